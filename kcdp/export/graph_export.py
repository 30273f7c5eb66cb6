"""From the PyTorch model to an ONNX file, once with feature levels as extra outputs and once without."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from kcdp.errors import KcdpError
from kcdp.models.kadap import Kadap

OPSET = 20
_DATA_SUFFIX = ".data"
#: Above this many bytes of weights, they go to a file of their own beside the graph (protobuf ends at 2 GiB).
_INLINE_LIMIT = (2 << 30) - (64 << 20)


class ExportModel(nn.Module):
    """The model as the graph sees it: pictures in, logits and feature levels out, no dataclasses.

    Args:
        model: in evaluation mode; it is not changed.
    """

    def __init__(self, model: Kadap) -> None:
        super().__init__()
        self.model = model.eval()
        self.eval()
        self.level_names = tuple(level.name for level in model.features.levels)
        self.output_names = ("logits", *self.level_names)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 [N, size, size, 3], RGB, to logits float32 [N, 6] and each level [N, C, H, W], fine to coarse."""
        output = self.model(images)
        return (output.logits, *(output.levels[name] for name in self.level_names))


def export_instrumented(model: ExportModel, size: int, path: Path, opset: int = OPSET) -> None:
    """Write ONNX with the outputs "logits" and one per feature level; the batch is the only free axis.

    Args:
        size: side of the pictures.
        path: the .onnx file; weights of large models go to ``path`` + ".data" beside it.

    Raises:
        KcdpError: torch's exporter cannot express the model; its reason is in the message.
    """
    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model, (example,), dynamo=True, opset_version=opset, verbose=False,
                input_names=["images"], output_names=["logits", *model.level_names],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise KcdpError(f"torch's exporter failed: {reason}", fix="report this configuration") from error
    assert program is not None
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(str(path), external_data=weights > _INLINE_LIMIT)
    _name_free_axis(path)


def keep_outputs(instrumented: Path, shipped: Path, outputs: tuple[str, ...], metadata: dict[str, str]) -> None:
    """Write the same graph with only some of its outputs; nodes and weights stay as they are.

    Args:
        instrumented: a file written by ``export_instrumented``; its weights file, if any, is moved along.
        shipped: the file to write.
        outputs: names of the outputs to keep.
        metadata: text stored inside the file.
    """
    model = onnx.load(str(instrumented), load_external_data=False)
    kept = [output for output in model.graph.output if output.name in outputs]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.name = "kcdp"
    onnx.helper.set_model_props(model, metadata)
    weights = Path(str(instrumented) + _DATA_SUFFIX)
    if weights.exists():
        target = shipped.name + _DATA_SUFFIX
        _rename_external_data(model, target)
        weights.replace(shipped.parent / target)
    onnx.save(model, str(shipped))
    onnx.checker.check_model(str(shipped))


def _rename_external_data(model: onnx.ModelProto, location: str) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location


def _name_free_axis(path: Path) -> None:
    """The exporter may invent names for the batch axis of outputs; call it "batch" throughout."""
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param != "batch":
            first.dim_param = "batch"
    onnx.save(model, str(path))
