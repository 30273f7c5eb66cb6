"""``kcdp doctor``: on this machine, on one that lacks packages, with broken ones, with a bundle."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kcdp.cli import COMMANDS, main
from kcdp.errors import KcdpError
from kcdp.gpu import Gpu
from kcdp.graph import tagging_graph
from kcdp.runtime import machine, trial
from kcdp.runtime.backends.registry import BACKENDS
from kcdp.runtime.command_doctor import table
from kcdp.runtime.processor import features, multiplies_bfloat16, processor_name
from kcdp.runtime.session import Session

#: Everything that a device may lack.
OPTIONAL = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "onnxruntime_qnn", "onnxruntime_ep_nv_tensorrt_rtx",
            "pillow_heif", "rlottie_python", "av")  # fmt: skip
XEON = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_int8\n"
OLD = "model name\t: Intel(R) Core(TM)2\nflags\t: fpu sse2\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp sve i8mm bf16\n"


@pytest.fixture
def bare(monkeypatch):
    """A machine with NumPy and Pillow and nothing else."""
    for module in OPTIONAL:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(machine, "_version", lambda module: "")
    monkeypatch.setattr(machine, "find_gpu", lambda index=0: None)


def told(capsys, *arguments):
    status = main(["doctor", *arguments])
    shown = capsys.readouterr()
    assert shown.err == "" and "Traceback" not in shown.out
    return status, shown.out


# --- the processor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "found", "bfloat16"),
    [
        (XEON, "Intel(R) Xeon(R)", ("AVX2", "AVX-512", "VNNI", "AVX-512 bf16", "AMX int8"), True),
        (OLD, "Intel(R) Core(TM)2", (), False),
        (XEON.replace("avx512_bf16 ", ""), "Intel(R) Xeon(R)", ("AVX2", "AVX-512", "VNNI", "AMX int8"), False),
        (GRAVITON, None, ("NEON", "dot product", "i8mm", "bf16", "SVE"), True),
    ],
)
def test_features_of_the_processor(tmp_path, text, name, found, bfloat16):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert features(path) == found and multiplies_bfloat16(path) is bfloat16
    assert processor_name(path) == name or (name is None and processor_name(path))


def test_a_system_that_does_not_tell(tmp_path):
    missing = tmp_path / "none"
    assert features(missing) is None and multiplies_bfloat16(missing) is None and processor_name(missing)


# --- this machine -----------------------------------------------------------------------------------------------------


def test_what_is_here(capsys):
    status, text = told(capsys)
    assert status == 0
    lines = text.splitlines()
    for name in BACKENDS:
        assert sum(line.split()[:1] == [name] for line in lines) == 1, name
    for title in ("backends", "pictures and animations", "extras"):
        assert title in lines
    assert any(line.startswith("  onnxruntime ") and " usable " in line for line in lines)
    assert lines[-1] == "next: kcdp doctor --model NAME.kcdp"
    never = next(line for line in lines if line.startswith("written, but never run on such a device: "))
    assert "tensorrt-rtx" in never and "openvino-npu" in never and " openvino," not in never


def test_json_holds_the_same(capsys):
    status, text = told(capsys, "--json")
    facts = json.loads(text)
    assert status == 0 and set(facts["backends"]) == set(BACKENDS)
    assert facts["backends"]["onnxruntime"]["state"] == "usable" and facts["backends"]["onnxruntime"]["version"]
    assert facts["backends"]["openvino"]["options"] == ["cache", "precision", "streams", "threads"]
    assert {"PNG", "JPEG", "WebP", "GIF", "AVIF", "HEIF", "TGS", "WebM"} == set(facts["formats"])
    assert {"serve", "ray"} <= set(facts["extras"]) and facts["processor"]["cores"] >= 1


def test_a_card_is_named(capsys, monkeypatch):
    cards = [Gpu("NVIDIA GeForce RTX 4090", (8, 9)), Gpu("Tesla T4", (7, 5))]
    monkeypatch.setattr(machine, "find_gpu", lambda index=0: cards[index] if index < 2 else None)
    assert "NVIDIA: NVIDIA GeForce RTX 4090 (SM89), Tesla T4 (SM75)" in told(capsys)[1]


# --- a machine that lacks packages ------------------------------------------------------------------------------------


def test_a_bare_machine(bare, capsys):
    status, text = told(capsys)
    assert status == 0
    found = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and line[2] != " "}
    for name in (*BACKENDS, "HEIF", "TGS", "WebM", "serve", "ray", "train", "export"):
        assert " not installed " in found[name] or " usable " not in found[name], name
    for name in ("PNG", "JPEG", "WebP", "GIF"):
        assert " usable " in found[name]
    for line in ('run: pip install "kcdp[runtime]"', 'run: pip install "kcdp[openvino]"',
                 'run: pip install "kcdp[tensorrt-rtx]"', 'run: pip install "kcdp[heif]"',
                 'run: pip install "kcdp[stickers]"', 'run: pip install "kcdp[serve]"'):  # fmt: skip
        assert f"      {line}" in text.splitlines(), line
    assert "NVIDIA: no driver or no card" in text


def test_install_lines_are_extras_that_there_are():

    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [backend.status(machine.DEFAULTS).fix for backend in BACKENDS.values()]
    lines += [row.fix for row in (backend.row for backend in BACKENDS.values() if hasattr(backend, "row"))]
    named = {part.split("]")[0] for line in lines for part in line.split("kcdp[")[1:]}
    assert {"runtime", "gpu", "directml", "qnn", "rtx-provider"} <= named <= set(project["optional-dependencies"])


def test_broken_packages_are_no_traceback(bare, monkeypatch, capsys):
    found = importlib.import_module

    def broken(name, package=None):
        if name in OPTIONAL:
            raise OSError("libfoo.so.1: cannot open shared object file")
        return found(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(machine, "import_module", broken)
    status, text = told(capsys)
    assert status == 0 and text.count("libfoo.so.1: cannot open shared object file") >= 6
    assert any(line.startswith("  openvino ") and " unusable " in line for line in text.splitlines())


def test_doctor_runs_where_nothing_is_installed():
    """In a process of its own, so that what other tests have imported does not count."""
    code = (
        "import sys\n"
        f"for name in {OPTIONAL}: sys.modules[name] = None\n"
        "from kcdp.cli import main\n"
        "status = main(['doctor'])\n"
        "assert not {'torch', 'onnx', 'diffusers'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and 'pip install "kcdp[runtime]"' in done.stdout


# --- with a bundle ----------------------------------------------------------------------------------------------------


def test_a_bundle_is_tried(tiny_bundle, capsys):
    status, text = told(capsys, "--model", str(tiny_bundle.path))
    lines = text.splitlines()
    assert status == 0 and "\n  onnxruntime would be chosen: of onnxruntime-cuda, onnxruntime, openvino the fir" in text
    rows = [line for line in lines if " ms for 4 pictures" in line]
    assert [row.split()[0] for row in rows] == ["onnxruntime", "openvino"]
    assert rows[0].endswith("  chosen") and "logits within " in rows[1]
    assert rows[1].endswith("  comes after onnxruntime")
    assert lines[-1] == f"next: kcdp tag PICTURES --model {tiny_bundle.path}"


def test_a_bundle_is_tried_in_json(tiny_bundle, capsys):
    status, text = told(capsys, "--json", "--model", str(tiny_bundle.path))
    found = json.loads(text)["model"]
    assert status == 0 and found["choice"]["backend"] == "onnxruntime" and found["choice"]["rejected"]["openvino"]
    tried = {row["backend"]: row for row in found["tried"]}
    assert set(tried) == set(BACKENDS)
    assert tried["onnxruntime"]["ran"] and tried["onnxruntime"]["difference"] is None
    assert tried["openvino"]["ran"] and tried["openvino"]["difference"] < 1e-4 and tried["openvino"]["milliseconds"] > 0
    assert not tried["tensorrt"]["ran"] and tried["tensorrt"]["reason"]


def test_a_difference_is_seen(tiny_bundle, monkeypatch):
    """The twin: a backend that computes something else."""
    run = Session.run

    def off(self, images, knowledge=None):
        logits = run(self, images, knowledge)
        return logits + np.float32(0.5) if type(self).__name__ == "CompiledSession" else logits

    monkeypatch.setattr(Session, "run", off)
    tried = {row.backend: row for row in trial.try_all(tiny_bundle, "onnxruntime")}
    assert 0.49 < tried["openvino"].difference < 0.51


def test_nothing_runs_the_bundle(bare, tiny_bundle, capsys):
    status, text = told(capsys, "--model", str(tiny_bundle.path))
    assert status == 1 and f"  nothing here runs {tiny_bundle.path} (portable, float32): " in text
    assert not text.splitlines()[-1].startswith("next: ")
    assert told(capsys, "--json", "--model", str(tiny_bundle.path))[0] == 1


def test_one_backend_that_fails_is_a_row(tiny_bundle, monkeypatch, capsys):
    def fails(self, images, knowledge=None):
        if type(self).__name__ == "CompiledSession":
            raise RuntimeError("a crash\nof many lines")
        return run(self, images, knowledge)

    run = Session.run
    monkeypatch.setattr(Session, "run", fails)
    status, text = told(capsys, "--model", str(tiny_bundle.path))
    failed = [line.split()[1:] for line in text.splitlines() if line.split()[:1] == ["openvino"]]
    assert status == 0 and failed[-1] == ["RuntimeError:", "a", "crash"]


def test_a_bundle_of_a_fixed_batch_and_knowledge(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "m.kcdp")
    assert trial._batch(bundle)[0].shape == (4, 32, 32, 3) and trial._batch(bundle)[1] is None
    other = replace(bundle, manifest=replace(bundle.manifest, graph=tagging_graph(32, batch=2, knowledge=(5, 8))))
    images, knowledge = trial._batch(other)
    assert images.shape == (2, 32, 32, 3) and knowledge.shape == (2, 5, 8) and knowledge.dtype == np.float32


def test_no_bundle_is_a_mistake_in_the_call(capsys, tmp_path):
    assert main(["doctor", "--model", str(tmp_path / "none.kcdp")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("kcdp: error: ") and shown.err.count("\n") == 1


def test_the_command_is_in_the_table():
    assert COMMANDS["doctor"][0] == "kcdp.runtime.command_doctor"


def test_columns():
    assert table([("a", "bbb", "c"), ("aaaa", "b", "")]) == ["  a     bbb  c", "  aaaa  b"]
    assert table([]) == []


def test_choice_for_says_why_not(bare, tiny_bundle):
    choice, why = trial.choice_for(tiny_bundle)
    assert choice is None and why.startswith("nothing here runs ")
    with pytest.raises(KcdpError, match="nothing here runs"):
        trial.choose(tiny_bundle)
