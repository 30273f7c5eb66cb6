"""The wheel as users get it: what is inside, and how it behaves in fresh environments without PyTorch.

Two environments are made, one with ``kcdp[runtime]`` and one with ``kcdp`` alone; pip fetches what they need.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import kcdp

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "kcdp", "tests", "export", "runtime")
INSTALL = 'kcdp: error: the package {package!r} is not installed; run: pip install "kcdp[{extra}]"\n'

#: How pip words that no package index answers. Anything else it fails with is a fault of the wheel.
UNREACHABLE = re.compile(r"Retrying \(Retry|NewConnectionError|ConnectTimeout|ProxyError|Network is unreachable")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder elsewhere to work in."""

    root: Path
    work: Path

    @property
    def scripts(self) -> Path:
        return self.root / ("Scripts" if os.name == "nt" else "bin")

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """``python`` or ``kcdp`` of the environment; nothing of the test's own Python leaks in."""
        return subprocess.run(
            [str(self.scripts / program), *map(str, arguments)], cwd=self.work, env=clean_environment(),
            capture_output=True, text=True, encoding="utf-8", check=False, timeout=300,
        )  # fmt: skip


def clean_environment() -> dict[str, str]:
    hidden = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in hidden}


def run_pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pip", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=clean_environment(), check=False, timeout=900)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the checkout gets no build folder, and an old one cannot slip into the wheel."""
    base = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, copy = ROOT / name, base / "source" / name
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    built = run_pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", base / "dist", base / "source")
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (base / "dist").iterdir()
    return path


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """kcdp without extras."""
    return make_environment(str(wheel), tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """kcdp[runtime]: what a device has."""
    return make_environment(f"{wheel}[runtime]", tmp_path_factory.mktemp("device"))


def make_environment(requirement: str, base: Path) -> Environment:
    environment = Environment(base / "venv", base / "work")
    environment.work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment.root)], check=True)
    if os.environ.get("PIP_NO_INDEX"):
        pytest.skip("pip is told to use no package index")
    done = run_pip("--python", environment.root, "install", "--disable-pip-version-check", requirement)
    if done.returncode != 0 and UNREACHABLE.search(done.stderr + done.stdout):
        pytest.skip(f"pip reaches no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return environment


def strangers(names: Iterable[str]) -> list[str]:
    """Files of a wheel that are neither the package nor its metadata."""
    return [name for name in names if not re.match(r"kcdp/|kcdp-[^/]+\.dist-info/", name)]


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"kcdp-{kcdp.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert strangers(names) == []
    package = {name for name in names if name.startswith("kcdp/")}
    wanted = [path for pattern in ("*.py", "presets/*.toml", "profiles/*.toml", "data/*.csv", "py.typed")
              for path in (ROOT / "kcdp").rglob(pattern)]  # fmt: skip
    assert package == {path.relative_to(ROOT).as_posix() for path in wanted} and len(package) > 40
    tables = {"kcdp/presets/edge.toml", "kcdp/profiles/paper.toml", "kcdp/data/emoji_labels.csv"}
    assert {"kcdp/py.typed", *tables} <= package


def test_strangers_would_be_seen() -> None:
    good = ["kcdp/cli.py", f"kcdp-{kcdp.__version__}.dist-info/METADATA"]
    bad = ["export/__init__.py", "runtime/tagger.py", "tests/conftest.py", "kcdp.py", "benchmarks/x.py"]
    assert strangers([*good, *bad]) == bad


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"kcdp-{kcdp.__version__}.dist-info"
        metadata = archive.read(f"{folder}/METADATA").decode()
        assert "kcdp = kcdp.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    for extra in ("runtime", "gpu", "openvino", "tensorrt", "tensorrt-rtx", "train", "export", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert [re.split(r"[ >=<!]", line.removeprefix("Requires-Dist: "))[0] for line in base] == ["numpy", "Pillow"]


def test_importing_costs_nothing(device: Environment) -> None:
    heavy = ["torch", "onnx", "onnxruntime", "numpy", "PIL"]
    look = f"import sys, kcdp, kcdp.runtime; print([m for m in {heavy} if m in sys.modules])"
    done = device.run("python", "-c", look)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_there_is_no_torch_and_this_is_the_wheel(device: Environment, bare: Environment) -> None:
    look = "import importlib.util as u, kcdp; print(kcdp.__file__); print([n for n in {} if u.find_spec(n)])"
    for environment, absent in ((device, ["torch", "onnx", "tqdm"]), (bare, ["torch", "onnxruntime", "tqdm"])):
        path, found = environment.run("python", "-c", look.format(absent)).stdout.splitlines()
        assert Path(path).is_relative_to(environment.root) and found == "[]"


def test_version_and_help(device: Environment) -> None:
    assert device.run("kcdp", "--version").stdout == f"kcdp {kcdp.__version__}\n"
    for module in ("kcdp", "kcdp.runtime", "kcdp.export"):
        done = device.run("python", "-m", module, "--help")
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")


@pytest.mark.parametrize("name", ["data", "train", "evaluate", "report", "export", "tag"])
def test_every_command_explains_itself_without_extras(bare: Environment, name: str) -> None:
    done = bare.run("kcdp", name, "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"usage: kcdp {name} ")


def draw(folder: Path, colours: dict[str, tuple[int, int, int]]) -> list[str]:
    folder.mkdir(exist_ok=True)
    labels = sorted(colours)[:3]
    for label in labels:
        Image.new("RGB", (20, 30), colours[label]).save(folder / f"{label}.png")
    return labels


def test_tag_on_the_device(device: Environment, tiny_bundle, label_colours) -> None:
    labels = draw(device.work / "stickers", label_colours)
    done = device.run("kcdp", "tag", "stickers", "--model", tiny_bundle.path, "--format", "jsonl", "--threads", "1")
    assert done.returncode == 0 and done.stderr == "3 tagged, 0 failed\n", done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(Path(row["path"]).stem, row["label"]) for row in rows] == [(label, label) for label in labels]


def test_the_three_lines_of_python(device: Environment, tiny_bundle, label_colours) -> None:
    labels = draw(device.work / "stickers", label_colours)
    lines = f"""from kcdp.runtime import Tagger, find_pictures
for tag in Tagger.load({str(tiny_bundle.path)!r}).stream(find_pictures(["stickers/"])):
    print(tag.label, tag.confidence)"""
    done = device.run("python", "-c", lines)
    assert [line.split()[0] for line in done.stdout.splitlines()] == labels, done.stderr


def test_tag_without_a_session_library_names_the_extra(bare: Environment, tiny_bundle, label_colours) -> None:
    draw(bare.work / "stickers", label_colours)
    done = bare.run("kcdp", "tag", "stickers", "--model", tiny_bundle.path)
    expected = INSTALL.format(package="onnxruntime", extra="runtime")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.parametrize("where", ["bare", "device"])
@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("train --source synthetic:photos --out x", "train"),
        ("evaluate x --data synthetic:photos --out y", "train"),
        ("export . --out y.kcdp", "export"),
    ],
)
def test_what_needs_torch_names_the_extra(where: str, line: str, extra: str, request: pytest.FixtureRequest) -> None:
    environment = request.getfixturevalue(where)
    done = environment.run("kcdp", *line.split())
    expected = INSTALL.format(package="torch", extra=extra)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not (environment.work / "x").exists()


def test_data_needs_no_extras(bare: Environment) -> None:
    listed = bare.run("kcdp", "data", "list", "synthetic:photos")
    assert (listed.returncode, listed.stderr) == (0, "") and "synthetic:photos: 600 pictures" in listed.stdout
    written = bare.run("kcdp", "data", "write", "synthetic:stickers?n=6&size=32", "--out", "drawn")
    assert (written.returncode, written.stderr) == (0, "") and "next: kcdp tag drawn --recursive" in written.stdout
    again = bare.run("kcdp", "data", "list", "folder:drawn", "--check")
    assert again.returncode == 0 and "6 pictures decoded, 0 damaged" in again.stdout
