"""The export pipeline: load the run, write the graph, pass the gate, write the bundle."""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import kcdp
from kcdp.bundle import MODEL, Bundle, Manifest, check_target, write_bundle
from kcdp.data.dataset import ImageDataset
from kcdp.errors import KcdpError
from kcdp.export.graph_export import OPSET, ExportModel, export_instrumented, keep_outputs
from kcdp.export.parity import Gate, assemble, check_signature, compare, compare_levels
from kcdp.export.parity_report import ParityReport
from kcdp.export.reference import Reference
from kcdp.export.runners import open_runner
from kcdp.files import make_folder, sha256_file
from kcdp.graph import GraphSpec, tagging_graph
from kcdp.labels import LABELS
from kcdp.models.kadap import Kadap
from kcdp.models.lora import merge_lora
from kcdp.training.checkpoint import Checkpoint, find_checkpoint, load_model


class ParityError(KcdpError):
    """The exported graph is not the trained model; ``report`` says where."""

    def __init__(self, report: ParityReport) -> None:
        first, more = report.failures[0], len(report.failures) - 1
        super().__init__(
            f"the exported graph failed the parity gate: {first}" + (f" (and {more} more)" if more else ""),
            fix="no bundle was written; report this model and the versions of torch, onnx and onnxruntime",
        )
        self.report = report


def export_run(
    run: str | Path,
    out: str | Path,
    check_images: ImageDataset,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Bundle:
    """Export a trained run as a float32 bundle.

    Args:
        run: run folder or checkpoint.
        out: the bundle's folder.
        check_images: real pictures for the parity gate; labels are not used.
        overwrite: replace an existing bundle.
        say: receives one line per step.

    Raises:
        ParityError: the gate failed; nothing was written.
        KcdpError: the run cannot be loaded, or ``out`` exists.
    """
    out = Path(out)
    check_target(out, overwrite)
    say(f"1/4 load {run}")
    model, checkpoint = load_model(run)
    if not isinstance(model, Kadap):
        raise KcdpError(
            f"model.network is {checkpoint.config.model.network!r} in {run}",
            "'kadap', the only network that is exported", "export a run of the method itself",
        )  # fmt: skip
    if model.knowledge is None:
        raise KcdpError(
            f'{run} has the knowledge mode "explicit": it takes a caption with every picture',
            'a model of the mode "constant" or "implicit", which takes the picture alone',
            "teach an adapter: kcdp train --source SPEC --captions FILE --set model.knowledge.mode=implicit "
            f"--set training.implicit=distill --set training.init_from={run} --out RUN",
        )
    merge_lora(model.features.unet)
    model.moe.routing = "dense"  # the same function; a loop over pictures would fix the batch
    spec = checkpoint.config.preprocess
    graph = tagging_graph(spec.size)
    exportable = ExportModel(model)
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as scratch:
        work = Path(scratch)
        images = spec.apply_batch([check_images.image(i) for i in range(len(check_images))])
        say(f"2/4 write the graph (opset {OPSET})")
        export_instrumented(exportable, spec.size, work / "instrumented.onnx")
        say(f"3/4 parity gate on {len(check_images)} pictures of {check_images.name}")
        reference = Reference(
            exportable, images, keys=[sample.key for sample in check_images.samples], labels=check_images.labels,
            progress=progress,
        )  # fmt: skip
        manifest = make_manifest(find_checkpoint(run), checkpoint, graph)
        report = gate(work, reference, graph, manifest, progress)
        say(report.summary())
        if not report.passed:
            raise ParityError(report)
        say(f"4/4 write {out}")
        manifest = Manifest(**{**vars(manifest), "parity": {**report.to_dict(), "data": check_images.name}})
        return write_bundle(out, manifest, lambda folder: _move_graph(work, folder), overwrite=overwrite)


def gate(work: Path, reference: Reference, graph: GraphSpec, manifest: Manifest, progress: bool) -> ParityReport:
    """Compare ``instrumented.onnx`` of the folder ``work``, then turn it into ``model.onnx`` and compare that.

    Levels come from the first, signature, logits and decisions from the second: the file that is shipped.
    """
    gate = Gate(progress=progress)
    with open_runner("onnxruntime", work / "instrumented.onnx") as runner:
        levels = compare_levels(reference, runner, gate)
    text = {k: v for k, v in manifest.to_dict().items() if k not in ("files", "parity")}
    metadata = {"kcdp.manifest": json.dumps(text, ensure_ascii=False)}
    keep_outputs(work / "instrumented.onnx", work / MODEL, tuple(t.name for t in graph.outputs), metadata)
    with open_runner("onnxruntime", work / MODEL) as runner:
        found = compare(reference, runner, gate, levels)
    return assemble(reference, [found], gate, check_signature(work / MODEL, graph))


def make_manifest(path: Path, checkpoint: Checkpoint, graph: GraphSpec) -> Manifest:
    """What the bundle says of itself, before the gate has run."""
    config = checkpoint.config
    return Manifest(
        labels=LABELS,
        preprocess=config.preprocess,
        graph=graph,
        knowledge={"mode": config.model.knowledge.mode},
        needs=("onnx", f"knowledge-{config.model.knowledge.mode}"),
        precision={"default": "float32"},
        target="portable",
        opset=OPSET,
        producers=producers(),
        source={"checkpoint": path.name, "sha256": sha256_file(path), "revision": code_revision()},
        configuration=config.to_dict(),
        training={
            "source": list(config.data.source), "validation": list(config.data.validation),
            "progress": checkpoint.progress,
        },
    )  # fmt: skip


def producers() -> dict[str, str]:
    """Versions of everything that had a hand in the graph."""
    found = {"kcdp": kcdp.__version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy", "Pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def code_revision() -> str:
    """The git commit of the kcdp in use, with "-dirty" where files differ; empty for an installed package."""
    folder = Path(kcdp.__file__).parent.parent
    if not (folder / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", "kcdp") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def describe(bundle: Bundle) -> dict[str, Any]:
    """A few facts for the terminal or ``--json``."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
        "inputs": [t.describe() for t in manifest.graph.inputs],
        "outputs": [t.describe() for t in manifest.graph.outputs],
        "precision": manifest.precision["default"],
        "opset": manifest.opset,
        "parity": dict(manifest.parity),
    }


def _move_graph(work: Path, folder: Path) -> None:
    for file in work.glob(f"{MODEL}*"):
        file.replace(folder / file.name)
