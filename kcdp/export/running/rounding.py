"""Half precision on a processor as a GPU has it: products in float32, every result rounded to the graph's type."""

from __future__ import annotations

import onnx_ir as ir

from kcdp.export.running.runner import DoesNotRun

WEIGHTS = "rounded.data"
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: Kinds that give back numbers they were given: what was rounded stays so.
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool",
    "Min", "Neg", "Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose",
    "Unsqueeze", "Where", "Abs", "Resize",
})  # fmt: skip
#: Kinds whose type does not follow from their inputs: they make halves themselves.
MAKERS = frozenset({"Cast", "Constant", "ConstantOfShape"})


def round_in_float32(model: ir.Model) -> int:
    """Rewrite a graph in place: float16 and bfloat16 become float32, and results are rounded to what they were.

    Weights stay as they are stored. A graph without halves is left as it is.

    Returns:
        how many results are rounded.

    Raises:
        DoesNotRun: a value whose type is not stored, a node that holds a graph, or halves that go in or come out.
    """
    graph, count = model.graph, 0
    nodes = list(graph)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in HALVES:
            raise DoesNotRun(f"{value.name} is {value.dtype}", "inputs and outputs of the graph that are not halves")
    widened: dict[ir.Value, ir.Value] = {}
    for value in list(graph.initializers.values()):
        if value.dtype in HALVES:
            _widen(graph, value, widened, first=True)
    for node in nodes:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise DoesNotRun(f"the node {node.name} ({node.op_type}) holds a graph of its own", "none that does")
        for index, read in enumerate(node.inputs):
            if read is not None and read in widened:
                node.replace_input_with(index, widened[read])
        for output in node.outputs:
            if output.dtype is None and output.name:
                raise DoesNotRun(f"the type of {output.name} is not stored", "the types of all values in the graph")
            if output.dtype not in HALVES:
                continue
            if node.op_type in MAKERS:
                _widen(graph, output, widened)
            elif node.op_type in MOVES and not node.domain:
                output.dtype = ir.DataType.FLOAT
            else:
                _round(graph, node, output, widened)
                count += 1
    return count


def _widen(graph: ir.Graph, value: ir.Value, widened: dict[ir.Value, ir.Value], first: bool = False) -> None:
    """A half that is made as such: what reads it gets float32."""
    cast = _cast(value, ir.DataType.FLOAT, f"{value.name}_float32")
    node = None if first else value.producer()
    if node is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(node, cast)
    widened[value] = cast.outputs[0]


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, widened: dict[ir.Value, ir.Value]) -> None:
    """A result that is now float32: rounded to the half it was and widened again."""
    half = output.dtype
    assert half is not None
    output.dtype = ir.DataType.FLOAT
    down = _cast(output, half, f"{output.name}_rounded")
    up = _cast(down.outputs[0], ir.DataType.FLOAT, f"{output.name}_float32")
    graph.insert_after(node, [down, up])
    widened[output] = up.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], num_outputs=1, name=name)
    node.outputs[0].name = name
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    return node
