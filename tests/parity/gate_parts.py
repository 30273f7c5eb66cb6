"""A network of four layers, in PyTorch and as a graph written by hand, with every kind of output the gate knows."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from kcdp.graph import GraphSpec, TensorSpec, tagging_graph

SIZE, CHANNELS, TOKENS, WIDTH = 16, 8, 4, 5
NAMES = ("logits", "v", "s8", "maps_s8")
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """float32, by name; logits are centred and of a spread of about 1, so that answers differ."""
    rng = np.random.default_rng(seed)
    values = {
        name: rng.normal(0, scale, shape).astype(np.float32)
        for name, scale, shape in (
            ("kernel", 0.3, (CHANNELS, 3, 3, 3)), ("bias", 0.3, (CHANNELS,)), ("token", 1.0, (TOKENS, CHANNELS, 1, 1)),
            ("answer", 12.0, (CHANNELS, 6)), ("word", 0.5, (WIDTH, 6)),
        )
    }  # fmt: skip
    values["offset"] = np.zeros(6, np.float32)
    with torch.inference_mode():
        values["offset"] = -StandIn(values=values)(torch.from_numpy(pictures(64, seed=9)))[0].mean(dim=0).numpy()
    return values


def pictures(count: int, seed: int = 1) -> np.ndarray:
    """uint8 [N, 16, 16, 3]: blotches of colour, each another."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)


class StandIn(torch.nn.Module):
    """uint8 pictures and, where ``told``, knowledge [N, 2, 5], to logits [N, 6], v [N, 8], s8 [N, 8, 16, 16] and
    maps_s8 [N, 4, 16, 16]."""

    output_names = NAMES

    def __init__(self, told: bool = False, values: dict[str, np.ndarray] | None = None) -> None:
        super().__init__()
        self.told = told
        for name, value in (values or weights()).items():
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, images, knowledge=None):
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        s8 = torch.relu(torch.nn.functional.conv2d(x, self.kernel, self.bias, padding=1))
        maps = torch.nn.functional.conv2d(s8, self.token).softmax(dim=1)
        v = s8.mean(dim=(2, 3))
        logits = v @ self.answer + self.offset
        if self.told:
            logits = logits + knowledge.mean(dim=1) @ self.word
        return logits, v, s8, maps


def write_graph(
    path: Path,
    outputs: tuple[str, ...] = NAMES,
    *,
    values: dict[str, np.ndarray] | None = None,
    dtype: str = "float32",
    batch: int | None = None,
    told: bool = False,
    scale: float = 1 / 127.5,
    shift: float = -1.0,
    gain: float = 1.0,
    axis: str = "batch",
    quantised: bool = False,
) -> Path:
    """The same as ONNX.

    Args:
        outputs: of the graph; all float32.
        dtype: of everything inside.
        batch: fixed; None: free, called ``axis``.
        scale, shift: of the pictures.
        gain: features are that much larger on the way, which cancels out unless it overflows.
        quantised: the input and the kernel of the first layer go through int8.
    """
    values, kind = values or weights(), TYPES[dtype]
    nodes = [
        ("Cast", ["images"], ["bytes"], {"to": kind}), ("Mul", ["bytes", "scale"], ["scaled"], {}),
        ("Add", ["scaled", "shift"], ["shifted"], {}), ("Transpose", ["shifted"], ["x"], {"perm": [0, 3, 1, 2]}),
        ("Conv", ["x", "kernel", "bias"], ["conv"], {"pads": [1, 1, 1, 1]}), ("Relu", ["conv"], ["features"], {}),
        ("Mul", ["features", "gain"], ["large"], {}), ("Div", ["large", "gain"], ["small"], {}),
        ("Conv", ["small", "token"], ["scores"], {}), ("Softmax", ["scores"], ["maps"], {"axis": 1}),
        ("ReduceMean", ["small", "axes"], ["pooled"], {"keepdims": 0}),
        ("MatMul", ["pooled", "answer"], ["product"], {}), ("Add", ["product", "offset"], ["answers"], {}),
    ]  # fmt: skip
    last = "answers"
    if quantised:
        pairs = [("QuantizeLinear", [n, f"{n}_scale", "zero"], [f"{n}_q"], {}) for n in ("x", "kernel")]
        pairs += [("DequantizeLinear", [f"{n}_q", f"{n}_scale", "zero"], [f"{n}_d"], {}) for n in ("x", "kernel")]
        nodes[4:5] = [*pairs, ("Conv", ["x_d", "kernel_d", "bias"], ["conv"], {"pads": [1, 1, 1, 1]})]
    if told:
        nodes += [("Cast", ["knowledge"], ["k"], {"to": kind}),
                  ("ReduceMean", ["k", "one"], ["mean"], {"keepdims": 0}), ("MatMul", ["mean", "word"], ["more"], {}),
                  ("Add", ["answers", "more"], ["all"], {})]  # fmt: skip
        last = "all"
    sources = {"logits": last, "v": "pooled", "s8": "small", "maps_s8": "maps"}
    nodes += [("Cast", [sources[name]], [name], {"to": TensorProto.FLOAT}) for name in outputs]
    first = batch or axis
    shapes = {"logits": [first, 6], "v": [first, CHANNELS], "s8": [first, CHANNELS, SIZE, SIZE],
              "maps_s8": [first, TOKENS, SIZE, SIZE]}  # fmt: skip
    entries = [helper.make_tensor_value_info("images", TensorProto.UINT8, [first, SIZE, SIZE, 3])]
    if told:
        entries.append(helper.make_tensor_value_info("knowledge", TensorProto.FLOAT, [first, 2, WIDTH]))
    constants = {**values, "scale": np.float32(scale), "shift": np.float32(shift), "gain": np.float32(gain)}
    tensors = [_tensor(name, np.asarray(value), dtype) for name, value in constants.items()]
    tensors += [numpy_helper.from_array(np.array(axes, np.int64), name) for name, axes in (("axes", [2, 3]),
                                                                                            ("one", [1]))]  # fmt: skip
    if quantised:
        sizes = {"x_scale": 1 / 127, "kernel_scale": float(np.abs(values["kernel"]).max()) / 127}
        tensors += [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in sizes.items()]
        tensors.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, name=outs[0], **more) for op, ins, outs, more in nodes], "stand-in",
        entries, [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs], tensors,
    )  # fmt: skip
    opset = 22 if dtype == "bfloat16" else 20
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def spec(batch: int | None = None) -> GraphSpec:
    """The signature that the shipped graph is to have."""
    free = tagging_graph(SIZE)
    return GraphSpec(*(
        tuple(TensorSpec(t.name, t.dtype, t.axes, (batch, *t.shape[1:])) for t in side)
        for side in (free.inputs, free.outputs)
    ))  # fmt: skip


def _tensor(name: str, value: np.ndarray, dtype: str) -> onnx.TensorProto:
    typed = value.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return helper.make_tensor(name, TYPES[dtype], value.shape, typed.tobytes(), raw=True)
