"""Ranges of values against numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from half_graphs import graph

from kcdp.export.precision import ranges
from kcdp.export.precision.ranges import Range, measure_ranges

RNG = np.random.default_rng(0)


def small():
    weight = RNG.normal(0, 1, (5, 3)).astype(np.float32)
    nodes = [("MatMul", ["x", "w"], ["product"], {}), ("Relu", ["product"], ["y"], {})]
    return graph(nodes, {"x": ["batch", 5]}, {"w": weight}), weight


def test_every_float_value_over_all_pictures():
    model, weight = small()
    feeds = [{"x": RNG.normal(2, 3, (count, 5)).astype(np.float32)} for count in (4, 1, 3)]
    found = measure_ranges(model, feeds)
    x = np.concatenate([feed["x"] for feed in feeds])
    assert list(found) == ["x", "product", "y"]
    for name, want in {"x": x, "product": x @ weight, "y": np.maximum(x @ weight, 0)}.items():
        got = found[name]
        np.testing.assert_allclose(
            [got.low, got.high, got.mean, got.rms, got.absmax],
            [want.min(), want.max(), want.mean(), np.sqrt((want**2).mean()), np.abs(want).max()], rtol=1e-5,
        )  # fmt: skip
        assert got.finite and got.offset is None and got.size == 4 * want.shape[1]


def test_a_file_is_measured_as_the_graph_is_and_neither_changes(tmp_path):
    model, _ = small()
    before = [node.name for node in model.graph]
    feeds = [{"x": np.ones((2, 5), np.float32)}]
    ir.save(model, tmp_path / "m.onnx", external_data="m.data")
    assert measure_ranges(tmp_path / "m.onnx", feeds) == measure_ranges(model, feeds)
    assert [node.name for node in model.graph] == before and len(model.graph.outputs) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_where_it_is(bad):
    model, _ = small()
    feed = {"x": np.ones((2, 5), np.float32)}
    broken = {"x": feed["x"].copy()}
    broken["x"][1, 2] = bad
    assert all(found.finite for found in measure_ranges(model, [feed]).values())
    assert not measure_ranges(model, [feed, broken, feed])["x"].finite


@pytest.mark.parametrize("kind", ranges.NORMS)
def test_how_far_a_group_is_from_zero(kind):
    x = RNG.normal(0, 1, (3, 4, 6)).astype(np.float32)
    x[1, 2:] += 50.0
    ones = np.ones(6 if kind == "LayerNormalization" else 4, np.float32)
    more = {"num_groups": 2} if kind == "GroupNormalization" else {}
    model = graph([(kind, ["x", "scale", "bias"], ["y"], more)], {"x": ["batch", 4, 6]}, {"scale": ones, "bias": ones})
    groups = x.reshape(3, 2, 12) if kind == "GroupNormalization" else x
    want = (np.abs(groups.mean(-1)) / groups.std(-1)).max()
    assert measure_ranges(model, [{"x": x[:1]}, {"x": x[1:]}])["x"].offset == pytest.approx(want, rel=1e-3)


def test_nothing_to_measure_on_is_an_error():
    with pytest.raises(ValueError, match="no pictures"):
        measure_ranges(small()[0], [])


def test_the_largest_magnitude():
    assert Range(-3.0, 2.0).absmax == 3.0 and Range(1.0, 2.0).absmax == 2.0
