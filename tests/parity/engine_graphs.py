"""Graphs for tests of engines: presets in float16, and a few nodes made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ml_dtypes  # noqa: F401  # gives numpy the type bfloat16
import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from kcdp.bundle import Bundle, Manifest, write_bundle
from kcdp.config import Config, load_config
from kcdp.export.device.model import DeviceModel
from kcdp.export.narrowing import narrow
from kcdp.export.passes.registry import PassOptions, apply_passes
from kcdp.export.targets import TARGETS
from kcdp.export.tracing import WEIGHTS, drop_dead_branches, keep_outputs, save_graph, trace
from kcdp.graph import tagging_graph
from kcdp.labels import LABELS
from kcdp.models.build import build_model
from kcdp.preprocess import PreprocessSpec


def make_bundle(path: Path, size: int, fill: Callable[[Path], None], precision: str, batch: int | None = 1) -> Bundle:
    """A bundle around whatever ``fill`` writes, saying that it is of ``precision``."""
    graph = tagging_graph(size)
    if batch is not None:
        sides = ((replace(t, shape=(batch, *t.shape[1:])) for t in side) for side in (graph.inputs, graph.outputs))
        graph = type(graph)(*map(tuple, sides))
    manifest = Manifest(
        labels=LABELS, preprocess=PreprocessSpec(size), graph=graph, knowledge={"mode": "constant"},
        precision={"default": precision}, target="portable", opset=20,
    )  # fmt: skip
    return write_bundle(path, manifest, fill, overwrite=True)


def half_bundle(path: Path, config: Config | str, batch: int | None = 1) -> Bundle:
    """A preset with random weights as the export makes a bundle of float16, without the gate: its answers are ties."""
    config = load_config(config) if isinstance(config, str) else config
    torch.manual_seed(0)
    size, target = config.preprocess.size, TARGETS["tensorrt"]
    model = DeviceModel(build_model(config).eval())
    apply_passes(model, PassOptions(size, target.kernel))
    graph = trace(model, size, opset=target.opset_for("fp16"), batch=batch)
    del model
    drop_dead_branches(graph)
    pictures = np.random.default_rng(0).integers(0, 256, (batch or 2, size, size, 3), dtype=np.uint8)
    narrow(graph, target, "fp16", {"images": pictures})
    keep_outputs(graph, ("logits",), {})
    return make_bundle(path, size, lambda folder: _save(graph, folder), "float16", batch)


def _save(graph: ir.Model, folder: Path) -> None:
    save_graph(graph, folder / "model.onnx")
    assert {file.name for file in folder.iterdir()} <= {"model.onnx", WEIGHTS}


SIZE = 16
CODES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16}


def small_graph(
    dtype: str = "float16",
    *,
    batch: int | str = 1,
    weight: str | None = None,
    extra: Sequence[onnx.NodeProto] = (),
    second: str | None = None,
) -> onnx.ModelProto:
    """uint8 pictures through a convolution and a matrix product to six logits, in one type.

    Args:
        batch: a number, or a name where it is free.
        weight: type of the convolution's weights, where another than ``dtype``.
        extra: nodes from "mixed" to "mixed2" that stand before the matrix product.
        second: type of the matrix product, where another: it stands between two casts.
    """
    random = np.random.default_rng(0)
    second = second or dtype
    code, inner = CODES[dtype], CODES[second]
    weights = {
        "kernel": random.normal(size=(32, 3, 3, 3)).astype(np.dtype(weight or dtype)),
        "product": random.normal(size=(32, len(LABELS))).astype(np.dtype(second)),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], "cast_pixels", to=code),
        helper.make_node("Transpose", ["numbers"], ["planes"], "move_channels", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["mixed"], "mix", pads=[1, 1, 1, 1]),
        *extra,
        helper.make_node("GlobalAveragePool", ["mixed2" if extra else "mixed"], ["mean"], "average"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node("Cast", ["flat"], ["typed"], "cast_inner", to=inner),
        helper.make_node("MatMul", ["typed", "product"], ["answers"], "answer"),
        helper.make_node("Cast", ["answers"], ["logits"], "cast_logits", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(LABELS)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def quantised_graph() -> onnx.ModelProto:
    """The small graph, its convolution's input and weights through QuantizeLinear and DequantizeLinear."""
    model = small_graph("float32")
    random = np.random.default_rng(0)
    constants = {
        "input_scale": np.array(1.0, np.float32), "zero": np.array(0, np.int8), "zeros": np.zeros(32, np.int8),
        "kernel8": random.integers(-127, 128, size=(32, 3, 3, 3)).astype(np.int8),
        "kernel_scale": np.full(32, 0.01, np.float32),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    position, conv = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    conv.input[:] = ["planes_float", "kernel_float"]
    before = [
        helper.make_node("QuantizeLinear", ["planes", "input_scale", "zero"], ["planes8"], "quantise"),
        helper.make_node("DequantizeLinear", ["planes8", "input_scale", "zero"], ["planes_float"], "dequantise"),
        helper.make_node("DequantizeLinear", ["kernel8", "kernel_scale", "zeros"], ["kernel_float"], "weights", axis=0),
    ]
    for node in reversed(before):
        model.graph.node.insert(position, node)
    return model


def small_bundle(path: Path, model: onnx.ModelProto, precision: str = "float16", batch: int | None = 1) -> Bundle:
    """A bundle around a graph made by hand."""

    def fill(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return make_bundle(path, SIZE, fill, precision, batch)
