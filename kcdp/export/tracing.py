"""From a PyTorch module to an ONNX file, once with features as extra outputs and once without."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass, IdentityEliminationPass, RemoveUnusedNodesPass

from kcdp.bundle import MODEL
from kcdp.errors import KcdpError
from kcdp.export.device.model import DeviceModel
from kcdp.export.precision.layers import weight_bytes
from kcdp.export.targets import MAX_BATCH
from kcdp.export.tidying import tidy

#: The newest operator set that older TensorRT, browsers and NPUs read.
OPSET = 20
#: Weights of an instrumented graph and of the shipped one: the same file, where it is a file of its own.
WEIGHTS = f"{MODEL}.data"
#: Above this many bytes of weights, they go to that file (protobuf ends at 2 GiB).
INLINE_LIMIT = (2 << 30) - (64 << 20)


def trace(model: DeviceModel, size: int, *, opset: int = OPSET, batch: int | None = None) -> ir.Model:
    """A graph with all outputs of ``DeviceModel.output_names``.

    Args:
        size: side of the pictures.
        batch: a fixed number of pictures; None: free, an axis called "batch".

    Raises:
        KcdpError: torch's exporter cannot express the model; its reason is in the message.
    """
    generator = torch.Generator().manual_seed(0)
    count = 2 if batch is None else batch
    example = model.scaled(torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator))
    arguments, names = [example], ["images"]
    if model.takes_knowledge:
        arguments.append(torch.randn(count, *model.token_shape, generator=generator))
        names.append("knowledge")
    free = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, tuple(arguments), dynamo=True, opset_version=opset, verbose=False, optimize=False,
                input_names=names, output_names=list(model.output_names),
                dynamic_shapes=None if batch is not None else tuple(free for _ in arguments),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise KcdpError(f"torch's exporter failed: {reason}", fix="report this configuration") from error
    assert program is not None
    graph = program.model
    tidy(graph)
    _name_free_axis(graph.graph)
    _forget_origin(graph)
    return graph


def save_graph(model: ir.Model, path: Path, *, weights: bool = True) -> None:
    """Write a graph, its weights inside while they fit, else in ``WEIGHTS`` beside it.

    Args:
        weights: False: ``WEIGHTS`` is there already, written with a graph of the same weights, and is left as it is.
    """
    if weights:
        large = weight_bytes(model.graph) > INLINE_LIMIT
        if not large:  # weights that were read from a file of their own come in
            ir.external_data.load_to_model(model)
        ir.save(model, path, external_data=WEIGHTS if large else None)
        return
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.path != str(path.parent / WEIGHTS):
            raise ValueError(f"{value.name} lies in {tensor.path}")
    ir.save(model, path)


def drop_dead_branches(model: ir.Model) -> None:
    """What no output depends on, constants that are there twice, nodes that hand on what they get; in place."""
    for clean in (IdentityEliminationPass(), DeduplicateInitializersPass(), RemoveUnusedNodesPass()):
        clean(model)


def keep_outputs(model: ir.Model, outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Leave only some outputs, and drop what served the others alone; in place.

    Args:
        outputs: names of the outputs to keep.
        metadata: text stored inside the file.
    """
    kept = [value for value in model.graph.outputs if value.name in outputs]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)
    model.graph.name = "kcdp"
    model.metadata_props.update(metadata)


def manifest_metadata(manifest: Mapping[str, object]) -> dict[str, str]:
    """What a graph says of itself: the manifest without what is known only later."""
    text = {key: value for key, value in manifest.items() if key not in ("files", "parity", "digest")}
    return {"kcdp.manifest": json.dumps(text, ensure_ascii=False)}


def _forget_origin(model: ir.Model) -> None:
    """The exporter writes to every node where in whose source it came from: a megabyte, and paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    values = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *values):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _name_free_axis(graph: ir.Graph) -> None:
    """The exporter may invent names for the batch axis of outputs; call it "batch" throughout."""
    for value in (*graph.inputs, *graph.outputs):
        shape = value.shape
        if shape is not None and not isinstance(shape[0], int):
            value.shape = ir.Shape(["batch", *shape[1:]])
