"""Which layers are quantised, by measurement: pictures, graphs with switches, and the plan."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from kcdp.config import load_config
from kcdp.data.registry import open_dataset, open_datasets
from kcdp.errors import KcdpError
from kcdp.export.device.model import DeviceModel
from kcdp.export.narrowing import narrow
from kcdp.export.passes.registry import PassOptions, apply_passes
from kcdp.export.precision import sensitivity
from kcdp.export.precision.calibration import (
    EFFORT,
    EFFORT_OF_LARGE,
    Effort,
    calibration_pictures,
    effort_for,
    feeds_of,
    leave_out,
    open_session,
    split_feeds,
)
from kcdp.export.precision.layers import find_layers
from kcdp.export.precision.quantize import ACTIVATIONS, quantize
from kcdp.export.precision.sensitivity import Bench, Setting, make_plan
from kcdp.export.precision.simulation import compare_layers
from kcdp.export.precision.weight_only import too_small
from kcdp.export.targets import TARGETS
from kcdp.export.tracing import keep_outputs, trace
from kcdp.models.build import build_model
from kcdp.settings import DataConfig

SMALL = Effort(pictures=24, batch=6, trials=50)


def array(*shape, scale=0.3):
    """The same numbers for the same shape."""
    return (np.random.default_rng(shape).normal(size=shape) * scale).astype(np.float32)


def chain(outlier):
    """Gemm layers with a residual; the second one's input has a channel that is ``outlier`` times the others.

    That channel's weights are 1 / outlier, so that in float32 all channels matter alike.
    """
    first, second = array(32, 16), array(32, 32)
    first[0] *= outlier
    second[:, 0] /= outlier
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("Gemm", ["x", "w1"], ["h1"], "first", transB=1),
        make("Gemm", ["h1", "w2"], ["h2"], "second", transB=1),
        make("Tanh", ["h2"], ["t2"], "tanh"),
        *(make("Gemm", [f"t{i}", f"w{i + 1}"], [f"t{i + 1}"], f"middle{i}", transB=1) for i in range(2, 6)),
        make("Gemm", ["t6", "w9"], ["logits"], "last", transB=1),
    ]
    weights = {"w1": first, "w2": second, "w9": array(6, 32),
               **{f"w{i + 1}": array(32, 32, scale=0.2) + i * 0.001 for i in range(2, 6)}}  # fmt: skip
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes, "g", [value("x", 1, ["batch", 16])], [value("logits", 1, ["batch", 6])],
            [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def inputs():
    return split_feeds({"x": array(64, 16, scale=1.0)}, 16)


def test_a_layer_with_an_outlier_is_left_out_and_its_twin_without_is_not():
    plan = make_plan(chain(3000.0), *inputs(), target_db=25.0, effort=SMALL)
    assert set(plan.skip) == {"second"}
    assert "dB alone, needed 10" in plan.skip["second"] and plan.snr_db["second"] < 10
    assert plan.trials[0].snr_db < 15 and plan.trials[-1].snr_db > 25
    plan = make_plan(chain(1.0), *inputs(), target_db=25.0, effort=SMALL)
    assert not plan.skip and plan.trials[-1].snr_db > 25


def test_the_plan_is_applied_as_it_was_measured():
    model, (feeds, held_out) = chain(3000.0), inputs()
    (want,) = (np.concatenate([open_session(model).run(["logits"], feed)[0] for feed in held_out]),)
    plan = make_plan(model, feeds, held_out, target_db=25.0, effort=SMALL)
    report = plan.apply(model)
    got = np.concatenate([open_session(model).run(["logits"], feed)[0] for feed in held_out])
    want, got = (logits - logits.mean(axis=1, keepdims=True) for logits in (want, got))
    typical = np.exp(np.log(((got - want) ** 2).sum(axis=1)).mean()) / (want**2).sum(axis=1).mean()
    assert -10 * np.log10(typical) == pytest.approx(plan.trials[-1].snr_db, abs=1.5)
    assert report.quantised == len(report.rows) - 1
    assert report.notes[-1].startswith("chosen: ") and "1 layers" in report.notes[-1]
    assert "| `second` | Gemm | 1024 |" in report.table().splitlines()[2], "the worst comes first"
    (row,) = (row for row in report.to_dict()["rows"] if not row["quantised"])
    assert row["name"] == "second" and row["snr_db"] < 10


@pytest.mark.parametrize("precision", ["int8", "w8"])
def test_what_a_pass_did_to_a_layer_is_told_where_it_stays_in_float32(monkeypatch, precision):
    monkeypatch.setattr(sensitivity, "FLOAT_SHARE", 0.4)
    folded = {"w2": "a norm is part of it", "w9": "another", "w5": "a third"}
    narrowed = narrow(chain(3000.0), TARGETS["portable"], precision, {"x": array(64, 16, scale=1.0)}, folded=folded)
    reasons = {row["name"]: row["why"] for row in narrowed.report["rows"] if not row["quantised"]}
    assert reasons["second"].endswith(" (a norm is part of it)") and " dB" in reasons["second"]
    assert f"  second stays in float32: {reasons['second']}" in narrowed.lines
    small = {name for name, why in reasons.items() if why == "fewer than 1024 weights"}
    assert small == ({"first", "last"} if precision == "w8" else set()), "which is no matter of rounding"
    assert sum("stays in float32" in line for line in narrowed.lines) == sum("(" in why for why in reasons.values())
    plain = narrow(chain(3000.0), TARGETS["portable"], precision, {"x": array(64, 16, scale=1.0)})
    assert plain.precision == narrowed.precision and len(plain.lines) == 2


def test_weights_alone_are_planned_too(monkeypatch):
    monkeypatch.setattr(sensitivity, "FLOAT_SHARE", 0.4)
    model, (_, held_out) = chain(3000.0), inputs()
    want = np.concatenate([open_session(model).run(["logits"], feed)[0] for feed in held_out])
    plan = make_plan(model, [], held_out, activations="", skip=too_small(find_layers(model.graph)), target_db=25.0,
                     effort=SMALL)  # fmt: skip
    assert set(plan.skip) == {"first", "second", "last"} and plan.skip["last"] == "fewer than 1024 weights"
    assert plan.trials[0].snr_db < 21 and plan.trials[-1].snr_db > 25
    assert plan.trials[-1].float_share == pytest.approx((512 + 1024 + 192) / (512 + 5 * 1024 + 192)), "of the weights"
    report = plan.apply(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("DequantizeLinear") == report.quantised == len(report.rows) - 3 and "QuantizeLinear" not in kinds
    assert "weights alone; 3 layers" in report.notes[-1] and "of the weights) in float32" in report.notes[-1]
    got = np.concatenate([open_session(model).run(["logits"], feed)[0] for feed in held_out])
    want, got = (logits - logits.mean(axis=1, keepdims=True) for logits in (want, got))
    typical = np.exp(np.log(((got - want) ** 2).sum(axis=1)).mean()) / (want**2).sum(axis=1).mean()
    assert -10 * np.log10(typical) == pytest.approx(plan.trials[-1].snr_db, abs=0.1), "nothing else is rounded"
    even = make_plan(chain(1.0), [], held_out, activations="", target_db=25.0, effort=SMALL)
    assert not even.skip and even.trials[-1].snr_db > 25


def test_layers_are_left_out_until_the_target_is_met_and_no_more_than_a_share(monkeypatch):
    everything = make_plan(chain(1.0), *inputs(), target_db=0.0, effort=SMALL)
    target = everything.trials[-1].snr_db + 3
    monkeypatch.setattr(sensitivity, "FLOAT_SHARE", 0.9)
    plan = make_plan(chain(1.0), *inputs(), target_db=target, effort=SMALL)
    assert plan.skip and plan.trials[-1].snr_db >= target
    assert all("alone brings the logits to" in why for why in plan.skip.values())
    monkeypatch.setattr(sensitivity, "FLOAT_SHARE", 0.0)
    plan = make_plan(chain(1.0), *inputs(), target_db=target, effort=SMALL)
    assert not plan.skip
    assert f"short of the {target:.1f} dB aimed at" in plan.apply(chain(1.0)).notes[-1]


def test_groups_of_neighbours_share_what_they_do_to_the_logits():
    model, (feeds, held_out) = chain(1.0), inputs()
    single = make_plan(model, feeds, held_out, target_db=0.0, effort=SMALL)
    grouped = make_plan(model, feeds, held_out, target_db=0.0, effort=Effort(24, 6, trials=2))
    assert set(grouped.effect_db) == set(single.effect_db) == {layer.name for layer in find_layers(model.graph)}
    noise = [sum(10 ** (-value / 10) for value in plan.effect_db.values()) for plan in (single, grouped)]
    assert noise[1] == pytest.approx(noise[0], rel=1.0)


def test_layers_asked_for_stay_and_unknown_ones_are_named():
    plan = make_plan(chain(1.0), *inputs(), skip={"last"}, target_db=0.0, effort=SMALL)
    assert plan.skip == {"last": "asked for"}
    with pytest.raises(KcdpError, match="no layer is called 'lost'"):
        make_plan(chain(1.0), *inputs(), skip={"lost"}, effort=SMALL)


def test_pictures_are_the_runs_training_pictures_or_those_named():
    data = DataConfig(source=("synthetic:photos?n=120&size=32",), target=("synthetic:stickers?n=60&size=32",))
    pictures = calibration_pictures(None, data)

    def shown(dataset):
        return {dataset.image(i).tobytes() for i in range(len(dataset))}

    train, val = (shown(open_datasets((*data.source, *data.target), split=split)) for split in ("train", "val"))
    assert shown(pictures) == train and not train & val and val
    chosen = pictures.spread(24)
    parts = {chosen.name_of(i).split("?")[0] for i in range(24)}
    assert parts == {"synthetic:photos", "synthetic:stickers"}
    assert len(calibration_pictures("synthetic:photos?n=7&size=32", data)) == 7
    with pytest.raises(KcdpError, match=r"training pictures cannot be opened .*with --calibration SPEC"):
        calibration_pictures(None, DataConfig(source=("folder:gone",)))


def test_pictures_are_spread_from_end_to_end():
    pictures = open_dataset("synthetic:photos?n=39&size=32")
    places = [pictures.samples.index(sample) for sample in pictures.spread(20).samples]
    assert len(places) == 20 and (places[0], places[-1]) == (0, 38) and set(np.diff(places)) == {2}
    assert pictures.spread(99).samples == pictures.samples and len(pictures.subset([]).spread(5)) == 0


def test_pictures_that_are_checked_on_are_left_out():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    assert len(leave_out(pictures, pictures[1:3])) == 3
    with pytest.raises(KcdpError, match="all pictures to calibrate on are among those that the result is checked on"):
        leave_out(pictures, pictures)


def test_no_picture_is_both_calibrated_on_and_held_out():
    rows = np.arange(20)[:, None]
    feeds, held_out = split_feeds({"images": rows, "knowledge": np.zeros((1, 3))}, 4)
    calibrated = np.concatenate([feed["images"] for feed in feeds])[:, 0]
    held = np.concatenate([feed["images"] for feed in held_out])[:, 0]
    assert sorted([*calibrated, *held]) == list(range(20)) and len(held) == 5
    assert all(len(feed["knowledge"]) == 1 for feed in (*feeds, *held_out))
    assert split_feeds({"images": rows[:1]}, 4) == ([{"images": rows[:1]}], [{"images": rows[:1]}])


@pytest.fixture(scope="module")
def tiny():
    """The tiny preset's graph, exact passes applied, and pictures."""
    config = load_config("tiny", data={"data": {"source": "synthetic:photos?n=120&size=48"}})
    torch.manual_seed(0)
    device = DeviceModel(build_model(config).eval())
    apply_passes(device, PassOptions(config.preprocess.size))
    model = trace(device, config.preprocess.size)
    keep_outputs(model, ("logits",), {})
    stickers = open_dataset("synthetic:stickers?n=24&size=48")
    return model, config.preprocess.apply_batch([stickers.image(i) for i in range(24)])


def test_switches_off_are_the_model_itself_and_on_the_quantised_one(tiny):
    model, images = tiny
    feeds = feeds_of({"images": images}, 8)
    layers = find_layers(model.graph)
    want = np.concatenate([open_session(model).run(["logits"], feed)[0] for feed in feeds])
    bench = Bench(model, layers, ACTIVATIONS["uint8"], 127, feeds)
    np.testing.assert_allclose(bench.reference, want, atol=2e-4 * np.abs(want).max())
    names = {name for layer in layers for name in layer.quantised_values}
    ranges = sensitivity.collect(model, names, feeds).ranges("min-max")
    setting = Setting("min-max", ranges)
    simulated = bench.trial(setting, np.ones(len(layers), bool))
    noise, work = compare_layers(model, ACTIVATIONS["uint8"], 127, ranges, feeds)
    assert work.min() > 0 and noise.shape == (len(layers),) and noise.max() < 0.1
    rounded = model.clone()
    quantize(rounded, ranges)
    got = np.concatenate([open_session(rounded).run(["logits"], feed)[0] for feed in feeds])
    assert -10 * np.log10(bench.noise(got.astype(np.float64))) == pytest.approx(simulated.snr_db, abs=3)


def test_the_tiny_model_is_quantised_whole(tiny):
    model, images = tiny
    feeds, held_out = split_feeds({"images": images}, 6)
    model = model.clone()
    plan = make_plan(model, feeds, held_out, target_db=25.0, effort=SMALL)
    report = plan.apply(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert report.quantised > 0.6 * len(report.rows) and report.bytes_after < report.bytes_before / 2
    kinds = {node.op_type: node for node in model.graph}
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds)
    assert open_session(model).run(["logits"], {"images": images})[0].shape == (24, 6)


def test_large_models_get_few_pictures(tiny):
    assert effort_for(tiny[0]) is EFFORT
    large = ir.Model(ir.Graph([], [], nodes=[], name="large"), ir_version=10)
    value = ir.Value(name="w", shape=ir.Shape([1 << 28]), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.ExternalTensor("gone", 0, 1 << 30, ir.DataType.FLOAT, shape=ir.Shape([1 << 28]), name="w")
    large.graph.register_initializer(value)
    assert effort_for(large) is EFFORT_OF_LARGE
