"""Small float32 graphs, and running them in half precision as a GPU would."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kcdp.export.precision.layers import drop_unread
from kcdp.export.running.rounding import round_in_float32

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
BOTH = {HALF: np.float16, BRAIN: ml_dtypes.bfloat16}


def graph(nodes, shapes, constants=(), outputs=("y",), *, kind=TensorProto.FLOAT, opset=22):
    """From (operator, inputs, outputs, attributes); inputs of the graph by ``shapes``, constants by name."""
    made = [helper.make_node(op, ins, outs, name=f"node_{outs[0]}", **more) for op, ins, outs, more in nodes]
    model = helper.make_model(
        helper.make_graph(
            made, "small", [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(constants).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)], ir_version=10,
    )  # fmt: skip
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return ir.from_proto(model)


def run(model, feed):
    """The outputs on a CPU, which checks the types; where the graph has halves, every result is rounded to them."""
    model = ir.from_proto(ir.to_proto(model))  # a clone would share types
    round_in_float32(model)
    drop_unread(model.graph)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([value.name for value in model.graph.outputs], feed)


def types(model):
    """Node name -> the float type it computes in. Fails where a node mixes types, but for a Cast."""
    found = {}
    for node in model.graph:
        floats = {value.dtype for value in (*node.inputs, *node.outputs)
                  if value is not None and value.dtype is not None and value.dtype.is_floating_point()}  # fmt: skip
        if node.op_type not in ("Cast", "Resize"):
            assert len(floats) <= 1, (node.name, floats)
        if floats and node.op_type != "Cast":
            found[node.name] = node.outputs[0].dtype
    return found


def error(got, want):
    return float(np.sqrt(np.mean((got - want) ** 2)) / np.sqrt(np.mean(want**2)))
