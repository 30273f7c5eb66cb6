"""What a bundle says of itself: the manifest of an export, and the few facts that are printed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kcdp.bundle import Bundle, Manifest
from kcdp.errors import KcdpError
from kcdp.export.device.model import DeviceModel
from kcdp.export.facts import code_revision, producers, without_folders
from kcdp.export.knowledge_choice import KnowledgeChoice
from kcdp.export.targets import Batch, Target
from kcdp.export.text_graph import describe_text
from kcdp.graph import GraphSpec
from kcdp.labels import LABELS
from kcdp.preprocess import PreprocessSpec
from kcdp.training.checkpoint import Checkpoint


def first_manifest(
    file: str, digest: str, checkpoint: Checkpoint, spec: PreprocessSpec, graph: GraphSpec, choice: KnowledgeChoice,
    *, target: Target, batch: Batch, precision: Mapping[str, str], opset: int, scaling: dict[str, Any],
) -> Manifest:  # fmt: skip
    """A manifest without what only the gate and the finished files tell.

    Args:
        file, digest: name and SHA-256 of the checkpoint that was loaded.
        precision: {"default": ...}, with exceptions by node name.
        opset: of the graph.
        scaling: of the pictures, where the graph does not do it; see ``scaling_of``.
    """
    config = checkpoint.config
    knowledge: dict[str, Any] = {"mode": choice.mode}
    if choice.encoder is not None:
        knowledge = describe_text(choice.encoder, config.model.text, prefix=config.model.text.target_prefix)
    needs = ["onnx", f"knowledge-{choice.mode}"]
    needs += ["batch-fixed"] if batch.fixed is not None else []
    needs += ["pixels-scaled"] if scaling else []
    needs += ["operators-cuda"] if target.fused else []
    return Manifest(
        labels=LABELS,
        preprocess=spec,
        graph=graph,
        knowledge=knowledge,
        needs=tuple(needs),
        precision=precision,
        target=target.name,
        opset=opset,
        producers=producers(),
        source={"checkpoint": file, "sha256": digest, "revision": code_revision()},
        scaling=scaling,
        configuration=without_folders(config.to_dict()),
        training={
            "source": without_folders(config.data.source), "validation": without_folders(config.data.validation),
            "progress": checkpoint.progress,
        },
    )  # fmt: skip


def scaling_of(device: DeviceModel) -> dict[str, list[float]]:
    """How pictures are scaled before they enter the graph; empty where the graph does it."""
    if device.pixels is not None:
        return {}
    return {"scale": device.input_scale.flatten().tolist(), "shift": device.input_shift.flatten().tolist()}


def sized(spec: PreprocessSpec, size: int | None, multiple: int) -> PreprocessSpec:
    """The preprocessing for pictures of another size.

    Raises:
        KcdpError: the model cannot take that size.
    """
    if size is None or size == spec.size:
        return spec
    if size < multiple or size % multiple:
        raise KcdpError(
            f"--size {size}", f"a multiple of {multiple} for this model",
            f"try {max(multiple, size // multiple * multiple)}",
        )  # fmt: skip
    return replace(spec, size=size)


def check_size(folder: Path, target: Target, names: Collection[str] = ()) -> None:
    """Raises KcdpError for a bundle, or some files of one, larger than its target takes."""
    total = sum(file.stat().st_size for file in folder.iterdir() if not names or file.name in names)
    if target.max_bytes is not None and total > target.max_bytes:
        raise KcdpError(
            f"the bundle has {total / 1e6:.0f} MB",
            f"at most {target.max_bytes / 1e6:.0f} MB for the target {target.name}",
            "export in fp16, int8 or w8, or a smaller model",
        )  # fmt: skip


def describe(bundle: Bundle) -> dict[str, Any]:
    """A few facts for the terminal or ``--json``."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
        "target": manifest.target,
        "inputs": [t.describe() for t in manifest.graph.inputs],
        "outputs": [t.describe() for t in manifest.graph.outputs],
        "knowledge": manifest.knowledge["mode"],
        "precision": dict(manifest.precision),
        "opset": manifest.opset,
        "export": dict(manifest.export),
        "parity": dict(manifest.parity),
    }
