"""Which backend is chosen for a bundle: the rule over machines that stand in, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kcdp.bundle import TARGET_NAMES, Bundle
from kcdp.errors import KcdpError
from kcdp.runtime.backends.base import ABSENT, UNUSABLE, USABLE, Backend, Status
from kcdp.runtime.backends.choice import ORDER, pick
from kcdp.runtime.backends.options import DEFAULTS, SessionOptions
from kcdp.runtime.backends.providers import PROVIDERS, unfit
from kcdp.runtime.backends.registry import BACKENDS, choose, open_session


class Stub(Backend):
    """A backend that is there or not; what it can run, the real rules say."""

    def __init__(self, name, state, refuses=None):
        self.name, self.state, self.refuses = name, state, refuses
        self.options, self.asked = BACKENDS[name].options, 0

    def status(self, options):
        self.asked += 1
        return Status(self.state, "1.0", "" if self.state == USABLE else "a reason", "run: pip install it")

    def unfit(self, bundle, options):
        if self.refuses is not None:
            return KcdpError(self.refuses)
        return unfit(PROVIDERS[self.name], bundle, options) if self.name in PROVIDERS else None

    def open(self, bundle, options):
        raise AssertionError("nothing is opened to choose")


def machine(*usable, **refuses):
    """Backends of a machine on which these are usable; ``tensorrt="no engine"``: usable, but refuses the bundle."""
    names = {*usable, *(name.replace("_", "-") for name in refuses)}
    return {
        name: Stub(name, USABLE if name in names else ABSENT, refuses.get(name.replace("-", "_"))) for name in BACKENDS
    }


@pytest.fixture
def of(tiny_bundle):
    """``of("cpu", "bfloat16", gated=("openvino",))``: the tiny bundle, said to be another."""

    def make(target, precision="float32", *, gated=(), needs=()) -> Bundle:
        runtimes = [{"runtime": name, "passed": True} for name in gated]
        return replace(tiny_bundle, manifest=replace(
            tiny_bundle.manifest, target=target, precision={"default": precision}, parity={"runtimes": runtimes},
            needs=("onnx", "knowledge-constant", *needs),
        ))  # fmt: skip

    return make


EVERYTHING = tuple(BACKENDS)
PROCESSOR = ("onnxruntime", "openvino")


@pytest.mark.parametrize(
    ("target", "precision", "gated", "usable", "chosen"),
    [
        ("cpu", "float32", (), PROCESSOR, "openvino"),
        ("cpu", "float32", (), EVERYTHING, "openvino"),
        ("cpu", "float32", (), ("onnxruntime", "onnxruntime-cuda"), "onnxruntime"),
        ("cpu", "bfloat16", ("openvino",), PROCESSOR, "openvino"),
        ("cpu", "int8", ("openvino",), PROCESSOR, "openvino"),
        ("cpu", "int8-weights", ("openvino", "onnxruntime"), PROCESSOR, "openvino"),
        ("cpu", "int8-weights", ("onnxruntime",), PROCESSOR, "onnxruntime"),
        ("portable", "float32", ("onnxruntime",), PROCESSOR, "onnxruntime"),
        ("portable", "float32", (), EVERYTHING, "onnxruntime-cuda"),
        ("portable", "int8", (), EVERYTHING, "onnxruntime"),
        ("portable", "float32", (), ("openvino",), "openvino"),
        ("web", "int8", (), EVERYTHING, "onnxruntime"),
        ("cuda", "float16", (), EVERYTHING, "onnxruntime-cuda"),
        ("cuda", "float32", (), PROCESSOR, "onnxruntime"),
        ("tensorrt", "float16", (), EVERYTHING, "tensorrt"),
        ("tensorrt", "float16", (), ("tensorrt-rtx", "onnxruntime-cuda", "onnxruntime"), "tensorrt-rtx"),
        ("tensorrt", "float16", (), ("onnxruntime-tensorrt", "onnxruntime-cuda"), "onnxruntime-cuda"),
        ("tensorrt", "float16", (), PROCESSOR, "onnxruntime"),
        ("tensorrt", "bfloat16", (), PROCESSOR, "openvino"),
    ],
)
def test_the_best_that_is_here(of, target, precision, gated, usable, chosen):
    choice = pick(of(target, precision, gated=gated), machine(*usable), DEFAULTS)
    assert choice.backend == chosen
    assert set(choice.rejected) == set(BACKENDS) - {chosen} and all(choice.rejected.values())
    assert choice.why.startswith(f"of {', '.join(ORDER[target])} the first that runs this {target} bundle of ")
    passed = ORDER[target][: ORDER[target].index(chosen)]
    assert all(f"{name}: " in choice.why for name in passed), "what would have been better is named with its reason"


def test_every_target_has_an_order_of_backends_that_there_are():
    assert set(ORDER) == set(TARGET_NAMES)
    for order in ORDER.values():
        assert len(set(order)) == len(order) and set(order) <= set(BACKENDS)


def test_reasons_are_told(of):
    choice = pick(of("cpu", "int8-weights", gated=("onnxruntime",)), machine(*PROCESSOR), DEFAULTS)
    assert choice.why.endswith("here (openvino: OpenVINO cannot open every graph of 8-bit weights, and this one's "
                               "parity gate has not run there)")  # fmt: skip
    choice = pick(of("tensorrt", "float16"), machine("onnxruntime", tensorrt="no engine of it"), DEFAULTS)
    absent = "tensorrt-rtx: not installed; onnxruntime-cuda: not installed"
    assert choice.why.endswith(f"(tensorrt: no engine of it; {absent})")
    assert choice.rejected["tensorrt-rtx"] == "not installed: a reason; run: pip install it"
    assert choice.rejected["openvino"] == "comes after onnxruntime"
    assert choice.rejected["onnxruntime-qnn"] == "taken only by name for a bundle of this target"


def test_what_comes_after_is_not_even_asked(of):
    backends = machine(*EVERYTHING)
    pick(of("cpu"), backends, DEFAULTS)
    assert {name for name, backend in backends.items() if backend.asked} == {"openvino"}


@pytest.mark.parametrize(
    ("target", "precision", "needs", "usable", "reasons"),
    [
        ("cpu", "bfloat16", (), ("onnxruntime",), (
            "openvino: not installed: a reason; run: pip install it",
            "onnxruntime: ONNX Runtime's processor kernels multiply in float32")),
        ("cuda", "float16", ("operators-cuda",), ("onnxruntime",), (
            "onnxruntime-cuda: not installed: a reason", "onnxruntime: ", "on CUDA GPUs alone")),
        ("portable", "float32", (), (), ("onnxruntime: not installed", "openvino: not installed")),
    ],
)  # fmt: skip
def test_nothing_runs_it(of, target, precision, needs, usable, reasons):
    bundle = of(target, precision, needs=needs)
    with pytest.raises(KcdpError) as caught:
        pick(bundle, machine(*usable), DEFAULTS)
    message = str(caught.value)
    assert message.startswith(f"nothing here runs {bundle.path} ({target}, {precision}): ") and "\n" not in message
    assert all(reason in message for reason in reasons)


def test_without_an_engine_the_line_that_builds_one_is_told(of):
    bundle = of("tensorrt", "float16")
    with pytest.raises(KcdpError) as caught:
        pick(bundle, machine(), DEFAULTS)
    assert str(caught.value).endswith(
        f"; on a machine with an NVIDIA GPU build one: python -m kcdp.export engine {bundle.path}"
    )


def test_installed_but_unusable_is_passed_over(of):
    backends = machine("onnxruntime")
    backends["onnxruntime-cuda"].state = UNUSABLE
    choice = pick(of("portable"), backends, DEFAULTS)
    assert choice.backend == "onnxruntime" and choice.why.endswith("(onnxruntime-cuda: unusable)")
    assert choice.rejected["onnxruntime-cuda"].startswith("unusable: a reason")


def test_options_narrow_the_choice(of):
    options = SessionOptions(streams=2)
    assert pick(of("portable"), machine(*EVERYTHING), options).backend == "onnxruntime"
    choice = pick(of("portable"), machine(*EVERYTHING), options)
    assert choice.rejected["onnxruntime-cuda"] == "has no option streams"
    assert pick(of("portable"), machine(*EVERYTHING), SessionOptions(threads=2)).backend == "onnxruntime-cuda"
    with pytest.raises(KcdpError, match=r"onnxruntime: has no option cuda_graph; openvino: has no option cuda_graph$"):
        pick(of("portable"), machine(*PROCESSOR), SessionOptions(cuda_graph=True))


def test_bfloat16_that_the_processor_lacks(of, monkeypatch):
    """The real rule of OpenVINO, on a processor that stands in."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setattr("kcdp.runtime.backends.compiled_graph.multiplies_bfloat16", lambda: False)
    bundle = of("cpu", "bfloat16", gated=("openvino",))
    with pytest.raises(KcdpError, match="in bfloat16, which this processor has no instructions for"):
        choose(bundle)
    choice = choose(bundle, options=SessionOptions(precision="f32"))
    assert choice.backend == "openvino", "asked for by name, float32 is fine"


def test_the_choice_is_what_is_opened(of):
    for target in ("portable", "cpu", "web"):
        choice = choose(of(target))
        with open_session(of(target)) as session:
            facts = session.describe()
        assert facts["backend"] == choice.backend and facts["why"] == choice.why
