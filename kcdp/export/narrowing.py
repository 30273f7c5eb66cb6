"""From the exact float32 graph to the precision asked for, by measurement on pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from kcdp.export.precision.calibration import Feed, effort_for, feeds_of, split_feeds
from kcdp.export.precision.layers import find_layers, name_of
from kcdp.export.precision.ranges import measure_ranges
from kcdp.export.precision.sensitivity import make_plan
from kcdp.export.precision.stored_half import store_bfloat16
from kcdp.export.precision.typed import to_half
from kcdp.export.precision.weight_only import too_small
from kcdp.export.targets import Target

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Narrowed:
    """What was done to a graph.

    Attributes:
        precision: the manifest's entry: {"default": ..., node name: "float32"}.
        report: plain JSON, what was measured and why.
        lines: for the terminal.
        stored: what the census has to find, where that is not the precision itself.
    """

    precision: dict[str, str]
    report: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    stored: str = ""


def narrow(
    model: ir.Model, target: Target, precision: str, inputs: Feed, progress: bool = False,
    folded: Mapping[str, str] = MappingProxyType({}),
) -> Narrowed:  # fmt: skip
    """Rewrite a float32 graph in place.

    Args:
        precision: a key of ``kcdp.export.targets.PRECISIONS``.
        inputs: calibration pictures, and knowledge where the graph takes it; none is a check picture. Empty where
            nothing is measured.
        folded: weights that bear rounding badly because of an exact pass, and why: what is said of layers that stay in
            float32.
    """
    if precision == "fp32":
        return Narrowed({"default": "float32"})
    if precision == "bf16" and not target.typed_bfloat16:
        count = store_bfloat16(model)
        line = f"  {count} weight tensors stored in bfloat16; the runtime computes in it"
        return Narrowed({"default": "bfloat16"}, {"stored": count}, (line,), "bfloat16-weights")
    first, effort = model.graph.inputs[0].shape, effort_for(model)
    fixed = first[0] if first is not None and isinstance(first[0], int) else None
    batch = fixed or effort.batch
    if precision in HALVES:
        feeds = feeds_of(inputs, batch, fill=fixed is not None)
        half = to_half(model, HALVES[precision], measure_ranges(model, feeds, progress=progress))
        islands = half.islands
        line = f"  {len(islands)} float32 islands, {half.casts} casts"
        return Narrowed(half.precision_map(), half.to_dict(), (line,))
    calibrating, held_out = split_feeds(inputs, batch, fill=fixed is not None)
    layers = find_layers(model.graph)
    small = too_small(layers) if precision == "w8" else {}
    explained = {layer.name: why for layer in layers
                 if layer.name not in small and (why := folded.get(name_of(layer.weight)))}  # fmt: skip
    if precision == "w8":
        plan = make_plan(model, [], held_out, activations="", skip=small, effort=effort, progress=progress)
        default = "int8-weights"
    else:
        plan = make_plan(
            model, calibrating, held_out, activations=target.activations, effort=effort, progress=progress
        )  # fmt: skip
        default = "int8"
    report = plan.apply(model).explained(explained)
    left = {row.name: "float32" for row in report.rows if not row.quantised}
    line = f"  {report.quantised} of {len(report.rows)} layers in 8 bits, weights {report.bytes_after / 1e6:.1f} MB"
    said = [f"  {note}" for note in report.notes[-1:]]
    said += [f"  {row.name} stays in float32: {row.why}" for row in report.rows if row.name in explained and row.why]
    return Narrowed({"default": default, **left}, report.to_dict(), (line, *said))
