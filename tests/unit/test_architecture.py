"""The rules between the parts, read from the source: who imports whom, names, docstrings, no trace of a machine.

Every rule is a function from source text to a list of problems; its twin below feeds it source that breaks the rule.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kcdp"

#: The folders of the package; the modules beside them are the part "".
PARTS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}

STANDARD = {*sys.stdlib_module_names, "numpy", "PIL"}
#: What a device may load when it is asked to: by ``require`` or ``import_module``, never by an import statement.
SESSION_LIBRARIES = {
    "onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime_qnn", "openvino", "tensorrt", "tensorrt_rtx",
}  # fmt: skip
#: What ``kcdp serve`` loads, in the same way.
SERVER_LIBRARIES = {"fastapi", "h11", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn"}
#: What reads more kinds of stickers, in the same way.
STICKER_LIBRARIES = {"rlottie_python", "av", "pillow_heif"}
#: What ``kcdp tag --engine ray`` loads, in the same way.
COLLECTION_LIBRARIES = {"pyarrow", "ray"}
TOML = {"tomllib", "tomli"}  # the first is the standard library's from Python 3.11
DATA_TOOLS = {"tqdm", "resvg_py"}
#: What a device needs of kcdp.knowledge, to read captions as training does: modules, and folders of them.
DEVICE_TEXTS = ("kcdp.knowledge.grammar", "kcdp.knowledge.texts")
#: The modules of the torch-free parts that make tensors: nothing torch-free may import them.
TENSOR_MODULES = ("kcdp.data.loader", "kcdp.data.sampler", "kcdp.data.transforms", "kcdp.torch_device")

#: part -> the parts that it must not import.
FORBIDDEN = {
    "training": {"export", "runtime"},
    "models": {"export", "runtime"},
    "data": {"export", "runtime"},
    "knowledge": {"export", "runtime"},
    "runtime": {"export", "training", "models", "data", "knowledge"},
}
#: Packages that are wrapped somewhere; a module of the same name hides which of the two is meant.
WRAPPED = {
    "accelerate", "av", "diffusers", "fastapi", "h11", "matplotlib", "numpy", "onnx", "onnxruntime", "onnxscript",
    "openclip", "openvino", "peft", "pil", "pillow", "pillowheif", "prometheusclient", "pyarrow", "pydantic",
    "pythonmultipart", "ray", "resvgpy", "rlottiepython", "safetensors", "scipy", "sklearn", "starlette",
    "tensorboard", "tensorrt", "tensorrtrtx", "timm", "tomli", "torch", "torchvision", "tqdm", "transformers",
    "uvicorn",
}  # fmt: skip
#: Written so that this file does not match itself.
TRACES = re.compile(
    r"/wor[k]/|/roo[t]/|/hom[e]/[^/\s]+/|--(?:extra-)?inde[x]-url|find[-]links"
    r"|https://files\.pythonh[o]sted|registry\.n[p]mjs"
)


@dataclass(frozen=True)
class Import:
    """One imported name: ``from a.b import c`` is "a.b.c". ``lazy``: asked for by a call, with a literal name."""

    line: int
    target: str
    lazy: bool

    @property
    def top(self) -> str:
        return self.target.split(".")[0]

    @property
    def for_devices(self) -> bool:
        """One of ``DEVICE_TEXTS``."""
        return any(f"{self.target}.".startswith(f"{name}.") for name in DEVICE_TEXTS)

    @property
    def part(self) -> str:
        """The part of kcdp it belongs to; "" beside the folders."""
        second = self.target.split(".")[1:2]
        return second[0] if second and second[0] in PARTS else ""


def imports(source: str) -> list[Import]:
    """Every import of a file, wherever it stands. Relative ones begin with a dot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [Import(node.lineno, f"{base}.{alias.name}", False) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called in ("require", "import_module", "__import__"):
                names = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
                found += [Import(node.lineno, name, True) for name in names if isinstance(name, str)]
    return found


def foreign_imports(source: str, parts: Collection[str], lazy: Collection[str]) -> list[str]:
    """Imports beyond the standard library, numpy, Pillow, ``lazy`` ones by a call, and the given parts of kcdp."""
    problems = []
    for found in imports(source):
        own = found.top == "kcdp" and (found.part in parts or ("runtime" in parts and found.for_devices))
        tensors = any(f"{found.target}.".startswith(f"{name}.") for name in TENSOR_MODULES)
        if not (found.top in STANDARD or (found.lazy and found.top in lazy) or own) or tensors:
            problems.append(f"line {found.line} imports {found.target}")
    return problems


def wrong_direction(source: str, part: str) -> list[str]:
    """Imports of a part that ``part`` must not know; relative imports, which this cannot tell."""
    forbidden = FORBIDDEN.get(part, set())
    return [
        f"line {found.line} imports {found.target}"
        for found in imports(source)
        if (found.top == "kcdp" and found.part in forbidden and not (part == "runtime" and found.for_devices))
        or found.target.startswith(".")
    ]


def wrapped_names(module: str) -> list[str]:
    """The components of a module's dotted name that are names of wrapped packages."""
    return [part for part in module.split(".") if part.lower().replace("_", "") in WRAPPED]


def imports_through_links(source: str) -> list[str]:
    """``import export`` and its kin."""
    return [f"line {i.line} imports {i.target}" for i in imports(source) if i.top in ("export", "runtime")]


def missing_docstrings(source: str) -> list[str]:
    """The module, its public classes and functions without a docstring."""
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    missing = [f"line {node.lineno}: {node.name}" for node in public if not ast.get_docstring(node)]
    return missing if ast.get_docstring(tree) else ["the module", *missing]


def machine_traces(text: str) -> list[str]:
    """Lines that name a path of somebody's machine, or where packages come from."""
    return [f"line {n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if TRACES.search(line)]


def part_of(module: str) -> str:
    return Import(0, module, False).part


def report(problems: dict[str, list[str]]) -> None:
    """Fails with all of them at once."""
    lines = [f"{name}: {problem}" for name, found in problems.items() for problem in found]
    assert not lines, "\n".join(lines)


TORCH_FREE = [
    name
    for name in MODULES
    if name not in TENSOR_MODULES
    and (part_of(name) in ("", "runtime") or name == "kcdp.knowledge" or Import(0, name, False).for_devices)
]
READERS = [name for name in MODULES if part_of(name) == "data" and name not in TENSOR_MODULES]


def test_the_modules_were_found():
    assert len(MODULES) > 40 and len(TORCH_FREE) > 15 and len(READERS) > 10
    assert {"data", "models", "training", "export", "runtime"} <= PARTS
    assert {"kcdp", "kcdp.cli", "kcdp.bundle", "kcdp.runtime", "kcdp.runtime.tagger"} <= set(TORCH_FREE)
    assert {"kcdp.knowledge", "kcdp.knowledge.texts", "kcdp.knowledge.grammar.clauses"} <= set(TORCH_FREE)
    assert set(TENSOR_MODULES) <= set(MODULES)
    assert sum(len(imports(source)) for source in MODULES.values()) > 300


def test_the_torch_free_part_imports_only_what_a_device_has():
    lazy = SESSION_LIBRARIES | SERVER_LIBRARIES | STICKER_LIBRARIES | COLLECTION_LIBRARIES | TOML
    report({name: foreign_imports(MODULES[name], ("", "runtime"), lazy) for name in TORCH_FREE})


def test_the_readers_of_data_are_torch_free():
    report({name: foreign_imports(MODULES[name], ("", "data"), DATA_TOOLS) for name in READERS})


def test_imports_go_in_one_direction():
    report({name: wrong_direction(source, part_of(name)) for name, source in MODULES.items()})


def test_no_module_is_named_after_a_library():
    report({name: wrapped_names(name) for name in MODULES})


def test_public_names_have_docstrings():
    report({name: missing_docstrings(source) for name, source in MODULES.items()})


@pytest.mark.parametrize("name", ["export", "runtime"])
def test_the_links_at_the_top(name):
    link = ROOT / name
    assert link.is_symlink() and link.readlink() == Path("kcdp") / name
    assert (link / "__init__.py").read_text(encoding="utf-8") == MODULES[f"kcdp.{name}"]


def test_nothing_imports_through_the_links():
    folders = ("kcdp", "tests", "benchmarks", "recipes", "docs")
    sources = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(sources) > len(MODULES) and Path(__file__).resolve() in sources
    report({str(p.relative_to(ROOT)): imports_through_links(p.read_text(encoding="utf-8")) for p in sources})


def test_no_file_names_a_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are the project's own is not known")
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    texts = {}
    for path in files:
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        if data and b"\0" not in data:
            texts[str(path.relative_to(ROOT))] = data.decode("utf-8", "replace")
    assert len(texts) > 60 and "pyproject.toml" in texts
    report({name: machine_traces(text) for name, text in texts.items()})


def test_the_torch_free_part_loads_nothing_else():
    """What the source says, tried: all of it imported in a process of its own."""
    names = [name for name in (*TORCH_FREE, *READERS) if not name.endswith("__main__")]
    optional = SERVER_LIBRARIES | STICKER_LIBRARIES | COLLECTION_LIBRARIES
    heavy = sorted({*SESSION_LIBRARIES, *optional, *DATA_TOOLS, "torch", "torchvision", "onnx", "diffusers", "sklearn"})
    probe = f"import sys, importlib\nfor n in {names}: importlib.import_module(n)\n"
    probe += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The twins: each rule sees what breaks it.


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        ("import torch", ["line 1 imports torch"]),
        ("import numpy as np\nfrom torch.nn import functional", ["line 2 imports torch.nn.functional"]),
        ("def f():\n    import scipy.ndimage", ["line 2 imports scipy.ndimage"]),
        ("if TYPE_CHECKING:\n    import onnxruntime", ["line 2 imports onnxruntime"]),
        ("require('torch', 'train')", ["line 1 imports torch"]),
        ("x = importlib.import_module('torch' if a else 'json')", ["line 1 imports torch"]),
        ("from kcdp.models.kadap import Kadap", ["line 1 imports kcdp.models.kadap.Kadap"]),
        ("from kcdp import training, files", ["line 1 imports kcdp.training"]),
        ("from kcdp.knowledge.text import TextEncoder", ["line 1 imports kcdp.knowledge.text.TextEncoder"]),
        ("from kcdp.knowledge.texts import rule_triples\nimport kcdp.knowledge.grammar.words", []),
        ("import kcdp.data.registry", ["line 1 imports kcdp.data.registry"]),
        ("from kcdp.torch_device import autocast", ["line 1 imports kcdp.torch_device.autocast"]),
        ("from .tagger import Tag", ["line 1 imports .tagger.Tag"]),
        ("import os, PIL.Image\nfrom kcdp.errors import require\nrequire('onnxruntime', 'runtime')", []),
        ("from kcdp.runtime.tagger import Tag\nfrom kcdp import __version__", []),
    ],
)
def test_twin_torch_free(source, problems):
    assert foreign_imports(source, ("", "runtime"), SESSION_LIBRARIES) == problems


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        ("from kcdp.data.loader import TensorDataset", ["line 1 imports kcdp.data.loader.TensorDataset"]),
        ("from kcdp.data import transforms", ["line 1 imports kcdp.data.transforms"]),
        ("from kcdp import torch_device", ["line 1 imports kcdp.torch_device"]),
        ("from tqdm import tqdm", ["line 1 imports tqdm.tqdm"]),
        ("import kcdp.data.loaders\nrequire('tqdm', 'train')", []),
    ],
)
def test_twin_readers(source, problems):
    assert foreign_imports(source, ("", "data"), DATA_TOOLS) == problems


@pytest.mark.parametrize(
    ("part", "other"), [(part, other) for part in FORBIDDEN for other in sorted(FORBIDDEN[part] & PARTS)]
)
def test_twin_direction(part, other):
    spellings = (f"from kcdp.{other} import x", f"from kcdp import {other}", f"import kcdp.{other}.y",
                 f"def f():\n    require('kcdp.{other}', 'x')")  # fmt: skip
    assert [len(wrong_direction(source, part)) for source in spellings] == [1, 1, 1, 1]
    assert wrong_direction(f"from ..{other} import x", part)
    assert not wrong_direction(f"from kcdp.{part} import x\nimport torch\nfrom kcdp import errors", part)


def test_twin_direction_of_what_devices_share():
    source = "from kcdp.knowledge.texts import knowledge_texts\nfrom kcdp.knowledge.grammar import words"
    assert not wrong_direction(source, "runtime")
    assert len(wrong_direction(source.replace("texts", "text"), "runtime")) == 1
    assert len(wrong_direction(source.replace("knowledge", "models"), "runtime")) == 2


def test_twin_names():
    for name in ("kcdp.runtime.onnxruntime", "kcdp.export.tensorrt", "kcdp.torch.x", "kcdp.PIL", "kcdp.open_clip"):
        assert len(wrapped_names(name)) == 1
    assert not wrapped_names("kcdp.runtime.session_onnxruntime")


def test_twin_links():
    for source in ("import export", "from runtime import Tagger", "import runtime.tagger", "import_module('export')"):
        assert len(imports_through_links(source)) == 1
    assert not imports_through_links("from kcdp import export, runtime\nfrom kcdp.runtime import Tagger")


def test_twin_docstrings():
    source = 'def shown():\n    pass\n\nclass Shown:\n    x = 1\n\ndef _hidden(): ...\n\ndef said():\n    """So."""'
    assert missing_docstrings(source) == ["the module", "line 1: shown", "line 4: Shown"]
    assert missing_docstrings('"""All."""\nasync def f(): ...') == ["line 2: f"]


def test_twin_traces():
    slash = "/"
    bad = [f"{slash}work/x", f"see {slash}root/.cache", f"{slash}home/ann/data", "pip --index" + "-url x",
           "--extra-index" + "-url x", "find" + "-links = x", "https:" + "//files.python" + "hosted.org/p",
           "registry.npm" + "js.org"]  # fmt: skip
    for line in bad:
        assert machine_traces(f"fine\n{line}\n") == [f"line 2: {line}"]
    assert not machine_traces("a folder at home/ann\nnpm pack x\nhttps://pypi.org\nindex-url\nroots/work")
