"""The parity gate on a small network: what it lets through, and everything that it has to stop."""

from __future__ import annotations

import itertools
import json

import gate_parts
import numpy as np
import pytest
import torch
from gate_parts import SIZE, StandIn, pictures, spec, weights, write_graph

from kcdp.errors import KcdpError
from kcdp.export.parity import Gate, assemble, check_signature, compare, compare_levels, run_gate
from kcdp.export.reference import Reference
from kcdp.export.runners import usable
from kcdp.export.running.runner import FunctionRunner
from kcdp.graph import TOLERANCES, GraphSpec, TensorSpec
from kcdp.labels import LABELS

COUNT = 23


@pytest.fixture(scope="module")
def reference():
    labels = np.arange(COUNT) % 6
    labels[-2:] = -1
    return Reference(StandIn(), pictures(COUNT), keys=[f"p{i}.png" for i in range(COUNT)], labels=labels)


def gated(reference, folder, *, precision="float32", runtimes=("onnxruntime",), batch=None, twin=True, **changes):
    """The report on a graph with some changes."""
    shipped = write_graph(folder / "model.onnx", ("logits",), batch=batch, **changes)
    instrumented = write_graph(folder / "twin.onnx", batch=batch, **changes) if twin else None
    gate = Gate(precision, threads=1)
    return run_gate(reference, shipped, spec(batch), gate, runtimes=runtimes, twin=instrumented)


def test_a_faithful_graph_passes_on_every_runtime_here(reference, tmp_path):
    pytest.importorskip("openvino")
    report = gated(reference, tmp_path, runtimes=("onnxruntime", "openvino"))
    assert report.passed, report.failures
    assert [runtime.name for runtime in report.runtimes] == ["onnxruntime", "openvino"]
    assert report.pictures == report.level_pictures == COUNT
    assert len(report.answers) >= 4 and sum(report.answers.values()) == COUNT
    for runtime in report.runtimes:
        assert [run.batch for run in runtime.runs] == [1, 5]
        for run in runtime.runs:
            assert run.numbers["logits"]["max_abs"] < 1e-4 and run.numbers["decisions"]["agree"] == 1
            assert set(run.numbers["levels"]) == {"v", "s8", "maps_s8"}
            assert all(row["cosine"] > 0.999999 for row in run.numbers["levels"].values())
        assert runtime.accuracy["accuracy"] == report.accuracy["accuracy"] and runtime.accuracy["n"] == COUNT - 2
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert {name.split()[1] for name in plain["runtimes"][1]["products"]} == {"float32"}
    assert plain["tolerance"]["decisions"] == 1.0 and plain["failures"] == []
    assert "onnxruntime, batch 5: logits within" in report.summary()


def perturbed():
    values = weights()
    values["kernel"][0, 0, 1, 1] += 0.02
    return values


def test_one_perturbed_weight_fails(reference, tmp_path):
    report = gated(reference, tmp_path, values=perturbed())
    assert any("batch 1: logits of 23 pictures differ by up to" in line for line in report.failures)
    assert any("batch 5: s8 has cosine" in line for line in report.failures)


TWICE, OTHER_RANGE, HALF_A_STEP = {"scale": 1 / 127.5 / 127.5}, {"scale": 1 / 255, "shift": 0.0}, {"shift": -0.996}


@pytest.mark.parametrize(
    ("wrong", "precision"),
    [(TWICE, "float32"), (TWICE, "int8-weights"), (OTHER_RANGE, "float32"), (OTHER_RANGE, "int8-weights"),
     (HALF_A_STEP, "float32")],
)  # fmt: skip
def test_a_wrong_normalisation_fails(reference, tmp_path, wrong, precision):
    report = gated(reference, tmp_path, precision=precision, **wrong)
    assert any(" logits " in line for line in report.failures), report.failures


def test_nan_in_the_graph_fails(reference, tmp_path):
    values = weights()
    values["kernel"][0, 0, 1, 1] = np.nan
    report = gated(reference, tmp_path, values=values)
    assert "onnxruntime: batch 1: 23 pictures have logits that are not finite" in report.failures
    assert any("v of 23 pictures are not finite" in line for line in report.failures)
    json.dumps(report.to_dict(), allow_nan=False)


def test_nan_in_the_trained_model_fails_even_where_the_graph_has_it_too(tmp_path):
    values = weights()
    values["offset"][3] = np.nan
    report = gated(Reference(StandIn(values=values), pictures(6)), tmp_path, values=values)
    assert report.general == ("the trained model itself gives logits that are not finite for 6 pictures",)
    assert any("6 pictures have logits that are not finite" in line for line in report.failures)
    assert report.answers == {}


def test_nan_in_features_alone_fails(tmp_path):
    class Hidden(StandIn):
        def forward(self, images):
            logits, v, s8, maps = super().forward(images)
            return logits, v, s8, torch.where(maps > 0.9, maps, torch.nan)

    report = gated(Reference(Hidden(), pictures(6)), tmp_path)
    assert report.general == ("the trained model itself gives maps_s8 that are not finite for 6 pictures",)
    assert "onnxruntime: batch 5: maps_s8 of 6 pictures are not finite" in report.failures


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"outputs": ("v",)}, "outputs are v float32 [batch, 8]; expected logits float32 [batch, 6]"),
        ({"outputs": ("logits", "v")}, "outputs are logits float32 [batch, 6], v float32 [batch, 8]; expected logits"),
        ({"axis": "N"}, "inputs are images uint8 [N, 16, 16, 3]; expected images uint8 [batch, 16, 16, 3]"),
        ({"batch": 3}, "inputs are images uint8 [3, 16, 16, 3]; expected images uint8 [batch, 16, 16, 3]"),
        ({"told": True}, "inputs are images uint8 [batch, 16, 16, 3], knowledge float32 [batch, 2, 5]; expected"),
    ],
)
def test_a_wrong_signature_is_named(tmp_path, changes, expected):
    path = write_graph(tmp_path / "model.onnx", **{"outputs": ("logits",), **changes})
    found = check_signature(path, spec())
    assert any(line.startswith(expected) for line in found), found


def stand_in(change=lambda outputs: outputs, name="a stand-in"):
    model = StandIn()

    def run(feed):
        with torch.inference_mode():
            outputs = model(torch.from_numpy(feed["images"]))
        return change({name: tensor.numpy() for name, tensor in zip(gate_parts.NAMES, outputs, strict=True)})

    return FunctionRunner(name, run)


def report_of(reference, runner, gate=None):
    gate = gate or Gate()
    return assemble(reference, [compare(reference, runner, gate, compare_levels(reference, runner, gate))], gate)


def rolled(outputs):
    return {**outputs, "maps_s8": np.roll(outputs["maps_s8"], 1, axis=1)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda o: {"scores": o["logits"]}, "there is no output logits; found scores"),
        (lambda o: {**o, "logits": o["logits"][:, :5]}, "logits is float32 [5, 5]; expected float32 [5, 6]"),
        (lambda o: {**o, "logits": o["logits"].astype(np.float64)}, "logits is float64 [5, 6]; expected float32"),
        (lambda o: {**o, "s8": o["s8"].transpose(0, 2, 3, 1)}, "s8 is float32 [5, 16, 16, 8]; expected float32 [5, 8,"),
        (lambda o: {n: a for n, a in o.items() if n != "v"}, "there is no output v; found logits, s8, maps_s8"),
        (lambda o: {**o, "s8": 2 * o["s8"]}, "s8 is longer or shorter by 100.00%, allowed 0.45%"),
        (rolled, "maps_s8 has cosine"),
    ],
)
def test_outputs_that_are_not_what_they_should_be(reference, change, expected):
    assert report_of(reference, stand_in()).passed
    report = report_of(reference, stand_in(change))
    assert any(line.startswith(f"a stand-in: batch 5: {expected}") for line in report.failures), report.failures


def flipped(reference, places):
    """The two best logits of some pictures change places."""
    swapped = {}
    for place in places:
        logits = reference.logits[place].copy()
        first, second = np.argsort(logits)[::-1][:2]
        logits[[first, second]] = logits[[second, first]]
        swapped[reference.images[place].tobytes()] = logits

    def run(feed):
        outputs = stand_in().run(feed)
        for row, image in enumerate(feed["images"]):
            outputs["logits"][row] = swapped.get(image.tobytes(), outputs["logits"][row])
        return outputs

    return FunctionRunner("a stand-in", run)


def test_a_flipped_decision_fails_and_is_listed(reference):
    report = report_of(reference, flipped(reference, [7]))
    assert any("95.65% of decisions agree, needed 100.00%; of 1 changed ones" in line for line in report.failures)
    ((name, flip),) = report.flips
    assert name == "a stand-in" and flip.place == 7 and flip.key == "p7.png" and flip.label == LABELS[7 % 6]
    order = np.argsort(reference.logits[7])[::-1]
    assert (flip.before, flip.after) == (LABELS[order[0]], LABELS[order[1]])
    assert flip.confidence_before == pytest.approx(flip.confidence_after)
    (runtime,) = report.runtimes
    assert runtime.accuracy["accuracy"] != report.accuracy["accuracy"] or flip.label not in (flip.before, flip.after)


def test_a_near_tie_that_flips_counts_as_any_other(tmp_path):
    """Half a millionth between two classes is noise, but the answer is another one."""
    values = weights()
    values["answer"][:, 1], values["offset"][1] = values["answer"][:, 0], values["offset"][0]
    values["offset"][:2] += 50
    values["offset"][0] += 1e-6
    reference = Reference(StandIn(values=values), pictures(COUNT))
    other = weights() | {name: values[name].copy() for name in ("answer", "offset")}
    other["offset"][1] += 1e-5
    report = gated(reference, tmp_path, values=other, twin=False)
    assert report.near_ties == COUNT
    assert [line for line in report.failures if "batch 1" in line] == [
        "onnxruntime: batch 1: 0.00% of decisions agree, needed 100.00%; of 23 changed ones 23 are near ties"
    ]
    assert all(flip.near_tie for _, flip in report.flips) and len(report.flips) == COUNT


def test_tolerances_grow_with_the_coarseness():
    order = [TOLERANCES[name] for name in ("float32", "float16", "bfloat16", "int8-weights", "int8")]
    for finer, coarser in itertools.pairwise(order):
        assert finer.decisions >= coarser.decisions and finer.logits_error <= coarser.logits_error
        assert finer.level_cosine >= coarser.level_cosine and finer.probability <= coarser.probability
    assert TOLERANCES["float32"].atol == TOLERANCES["float32"].rtol == 1e-4 and TOLERANCES["float32"].decisions == 1
    for half in ("float16", "bfloat16"):
        assert TOLERANCES[half].level_cosine == 0.9995 and TOLERANCES[half].decisions == 0.995


def test_an_int8_tolerance_does_not_let_a_float32_mistake_through(reference, tmp_path):
    values = weights()
    values["kernel"][0] = 0
    report = gated(reference, tmp_path, values=values, precision="int8-weights")
    assert any("logits are off by" in line for line in report.failures), report.failures
    assert any("probabilities move by" in line for line in report.failures), report.failures


def test_half_precision_is_run_with_its_roundings(reference, tmp_path):
    pytest.importorskip("openvino")
    report = gated(reference, tmp_path, precision="float16", dtype="float16", runtimes=("onnxruntime", "openvino"))
    assert report.passed, report.failures
    assert [runtime.name for runtime in report.runtimes] == ["rounding", "onnxruntime", "openvino"]
    rounded, widened = report.runtimes[0].runs[0].numbers, report.runtimes[1].runs[0].numbers
    assert rounded["logits"]["error"] > widened["logits"]["error"] > 1e-5
    assert report.runtimes[0].facts["rounded"] >= 8


def test_bfloat16_is_rounded_only_where_no_runtime_computes_in_it(reference, tmp_path):
    report = gated(reference, tmp_path, precision="bfloat16", dtype="bfloat16", runtimes=())
    assert report.passed and [runtime.name for runtime in report.runtimes] == ["rounding"]
    if not usable(["openvino"], "bfloat16"):
        pytest.skip("no runtime here computes in bfloat16")
    report = gated(reference, tmp_path, precision="bfloat16", dtype="bfloat16", runtimes=("openvino",))
    assert report.passed and [runtime.name for runtime in report.runtimes] == ["openvino"]


def test_an_overflow_that_a_processor_does_not_see_fails(reference, tmp_path):
    """ONNX Runtime and OpenVINO compute this float16 graph in float32; on a GPU it is NaN."""
    pytest.importorskip("openvino")
    report = gated(
        reference, tmp_path, precision="float16", dtype="float16", gain=60000.0, runtimes=("onnxruntime", "openvino")
    )
    rounding, *processors = report.runtimes
    assert all(not runtime.failures for runtime in processors)
    assert "batch 1: 23 pictures have logits that are not finite" in rounding.failures


def test_a_fixed_batch_is_the_only_one_and_is_filled_up(reference, tmp_path):
    report = gated(reference, tmp_path, batch=4)
    assert report.passed, report.failures
    assert [run.batch for run in report.runtimes[0].runs] == [4]
    assert report.runtimes[0].runs[0].logits.shape == (COUNT, 6)
    values = weights()
    values["answer"] += 0.05
    assert not gated(reference, tmp_path, batch=4, values=values).passed


def test_fewer_pictures_than_a_batch_still_make_one(tmp_path):
    seen = []

    def counting(outputs):
        seen.append(len(outputs["logits"]))
        return outputs

    few = Reference(StandIn(), pictures(2))
    assert report_of(few, stand_in(counting)).passed
    assert set(seen) == {1, 5}


def test_knowledge_goes_along_with_its_picture(tmp_path):
    knowledge = np.random.default_rng(3).normal(size=(7, 2, gate_parts.WIDTH)).astype(np.float32)
    inputs = {"images": pictures(7), "knowledge": knowledge}
    reference = Reference(StandIn(told=True), inputs)
    path = write_graph(tmp_path / "model.onnx", ("logits",), told=True)
    tokens = TensorSpec("knowledge", "float32", ("batch", "token", "width"), (None, 2, 5))
    told = GraphSpec((*spec().inputs, tokens), spec().outputs)
    assert run_gate(reference, path, told, Gate()).passed
    mixed = Reference(StandIn(told=True), {**inputs, "knowledge": knowledge[::-1].copy()})
    mixed.inputs["knowledge"] = knowledge
    assert not run_gate(mixed, path, told, Gate()).passed


def test_a_graph_that_does_not_run_is_a_failure(reference, tmp_path):
    path = write_graph(tmp_path / "model.onnx", ("logits",), told=True)
    report = run_gate(reference, path, spec(), Gate())
    assert "onnxruntime was fed images uint8 [1, 16, 16, 3]; expected images uint8 [?, 16, 16, 3], knowledge" in str(
        report.failures
    )
    assert "nothing to compare" not in report.summary() and report.summary().count("FAILED") == 3


def test_a_gate_that_ran_nothing_fails(reference, tmp_path):
    path = write_graph(tmp_path / "model.onnx", ("logits",))
    report = run_gate(reference, path, spec(), Gate(), runtimes=())
    assert report.failures == ("no runtime gave any logits: nothing was compared",)


def test_pictures_of_another_size_are_refused_by_the_runner(tmp_path):
    reference = Reference(StandIn(), np.zeros((3, SIZE, SIZE, 3), np.uint8))
    reference.inputs["images"] = np.zeros((3, 8, 8, 3), np.uint8)
    report = gated(reference, tmp_path)
    assert any("was fed images uint8 [1, 8, 8, 3]" in line for line in report.failures)


class TestReference:
    def test_levels_are_kept_of_the_first_pictures_in_bounded_memory(self, monkeypatch):
        assert Reference(StandIn(), pictures(40)).level_pictures == 32
        assert Reference(StandIn(), pictures(40), level_pictures=3).level_pictures == 3
        monkeypatch.setattr("kcdp.export.reference.LEVEL_BYTES", 100_000)  # a picture has 12 kB
        found = Reference(StandIn(), pictures(40))
        assert found.level_pictures == 8 and len(found.logits) == 40
        assert sum(array.nbytes for array in found.levels.values()) <= 100_000
        assert Reference(StandIn(), pictures(4), level_pictures=0).levels == {}

    def test_it_is_the_model_in_full_float32_whatever_was_set_elsewhere(self):
        model = StandIn()
        want = Reference(model, pictures(5)).logits
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got = Reference(model, pictures(5)).logits
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)
        np.testing.assert_array_equal(got, want)

    def test_models_that_are_not_float32_are_refused(self):
        with pytest.raises(KcdpError, match=r"kernel of the reference model is torch.float16; expected float32"):
            Reference(StandIn().half(), pictures(2))

    def test_inputs_that_do_not_belong_together_are_refused(self):
        with pytest.raises(KcdpError, match="no pictures to check the graph on"):
            Reference(StandIn(), np.empty((0, SIZE, SIZE, 3), np.uint8))
        with pytest.raises(ValueError, match=r"inputs of \{'images': 3, 'knowledge': 2\} rows"):
            Reference(StandIn(told=True), {"images": pictures(3), "knowledge": np.zeros((2, 2, 5), np.float32)})
        with pytest.raises(ValueError, match="3 pictures, 2 keys, 3 labels"):
            Reference(StandIn(), pictures(3), keys=["a", "b"])
