"""The export pipeline: load the run, rewrite it, write the graph, narrow it, pass the gate, write the bundle."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from kcdp.bundle import MODEL, Bundle, Manifest, check_target, write_bundle
from kcdp.data.dataset import ImageDataset
from kcdp.errors import KcdpError
from kcdp.export.check_pictures import preparation
from kcdp.export.describing import check_size, first_manifest, scaling_of, sized
from kcdp.export.device.model import DeviceModel, ReferenceModel
from kcdp.export.facts import without_folders
from kcdp.export.fusions import registry as fusions
from kcdp.export.knowledge_choice import KnowledgeChoice, choose_knowledge, sample_knowledge
from kcdp.export.narrowing import Narrowed, narrow
from kcdp.export.options import ExportOptions
from kcdp.export.parity import Gate, run_gate
from kcdp.export.parity_page import write_parity_page
from kcdp.export.parity_report import ParityReport
from kcdp.export.passes.experts import folded_weights
from kcdp.export.passes.registry import DEAD_BRANCHES, PassOptions, PassRow, apply_passes
from kcdp.export.precision.calibration import Feed, calibration_pictures, effort_for, leave_out
from kcdp.export.precision.census import census, check_census
from kcdp.export.reference import Reference
from kcdp.export.runners import usable
from kcdp.export.targets import Batch, Target
from kcdp.export.text_graph import export_text
from kcdp.export.tracing import WEIGHTS, drop_dead_branches, keep_outputs, manifest_metadata, save_graph, trace
from kcdp.files import atomic_folder, check_writable, make_folder, new_folder, room_in, sha256_file
from kcdp.graph import tagging_graph
from kcdp.models.kadap import Kadap
from kcdp.preprocess import PreprocessSpec
from kcdp.text_spec import TEXT_GRAPH
from kcdp.tokenizer import TOKENIZER
from kcdp.training.checkpoint import Checkpoint, find_checkpoint, load_model

INSTRUMENTED = "instrumented.onnx"
MORE_ROOM = "free some space, or choose another --out: graphs under way lie beside it"
STEPS = 6


class ParityError(KcdpError):
    """The exported graph is not the trained model; ``report`` says where."""

    def __init__(self, report: ParityReport, kept: Path | None = None) -> None:
        first, more = report.failures[0], len(report.failures) - 1
        fix = "no bundle was written; " + ("" if kept is None else f"look at {kept / 'parity.md'}; ")
        unable = [runtime.name for runtime in report.runtimes if not runtime.runs]
        if unable:
            fix += f"{unable[0]} does not run this graph: export it for another target, or in another precision"
        elif report.precision == "float32":
            fix += "report this model and the versions of torch, onnx and onnxruntime"
        else:
            fix += f"this model does not bear {report.precision}: export it in a finer precision, fp32 being the finest"
            enough = round(1 / (1 - report.tolerance.decisions))
            runs = [run.numbers["decisions"] for runtime in report.runtimes for run in runtime.runs]
            if report.pictures < enough and max((run["changed"] for run in runs if run), default=0) == 1:
                fix += f", or compare on {enough} pictures: of {report.pictures} one changed answer is too many"
        super().__init__(
            f"the exported graph failed the parity gate: {first}" + (f" (and {more} more)" if more else ""),
            fix=fix,
        )
        self.report = report


@dataclass
class _Job:
    """An export under way."""

    target: Target
    batch: Batch
    options: ExportOptions
    model: Kadap
    checkpoint: Checkpoint
    spec: PreprocessSpec
    choice: KnowledgeChoice
    work: Path
    say: Callable[[str], None]
    progress: bool
    calibration: ImageDataset | None
    digest: str

    @property
    def opset(self) -> int:
        return self.target.opset_for(self.options.precision)

    @property
    def takes_knowledge(self) -> bool:
        return self.choice.mode == "input"

    def inputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All inputs for some pictures; knowledge, where it is one, of sample sentences."""
        found = {"images": images}
        if self.takes_knowledge:
            assert self.choice.encoder is not None
            found["knowledge"] = sample_knowledge(self.choice.encoder, len(images))
        return found


def export_run(
    run: str | Path,
    out: str | Path,
    check_images: ImageDataset,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    keep_failed: str | Path | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Bundle:
    """Export a trained run as a bundle.

    Args:
        run: run folder or checkpoint.
        out: the bundle's folder.
        check_images: real pictures for the parity gate; labels, where they have some, are for measuring only.
        overwrite: replace an existing bundle.
        keep_failed: a new folder for the graph and the page of a gate that fails; it is no bundle.
        say: receives one line per step.

    Raises:
        ParityError: the gate failed; nothing was written.
        KcdpError: the run cannot be loaded, the options make no sense, or ``out`` exists.
    """
    options, out = options or ExportOptions(), Path(out)
    target, batch = options.resolve()
    check_target(out, overwrite)
    kept = None if keep_failed is None else Path(keep_failed)
    if kept is not None:
        if os.path.lexists(kept):
            raise KcdpError(f"--keep-failed {kept} exists already", "a new name", "choose another")
        check_writable(kept)
    check_writable(out)
    say(f"1/{STEPS} load {run}")
    file = find_checkpoint(run)
    digest = sha256_file(file)
    model, checkpoint = load_model(run)
    if sha256_file(file) != digest:
        raise KcdpError(f"{file} was replaced while it was read", fix="is it still being trained? run this again")
    if not isinstance(model, Kadap):
        raise KcdpError(
            f"model.network is {checkpoint.config.model.network!r} in {run}",
            "'kadap', the only network that is exported", "export a run of the method itself",
        )  # fmt: skip
    choice = choose_knowledge(model, checkpoint.config.model, options.knowledge, options.text)
    spec = sized(checkpoint.config.preprocess, options.size, model.features.size_multiple)
    calibration = None
    if options.measures or options.calibration is not None:  # one that is of no use here has to exist all the same
        calibration = calibration_pictures(options.calibration, checkpoint.config.data)
    beside = Path(os.path.realpath(out)).parent
    with (
        new_folder(beside), room_in(beside, MORE_ROOM, _room(model)),
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=beside) as scratch,
    ):  # fmt: skip
        job = _Job(
            target, batch, options, model, checkpoint, spec, choice, Path(scratch), say, progress, calibration, digest
        )
        manifest, reference, report = _make(job, file.name, check_images)

        def fill(folder: Path) -> None:
            for pattern in (f"{MODEL}*", f"{TEXT_GRAPH}*", TOKENIZER):
                for file in job.work.glob(pattern):
                    shutil.move(file, folder / file.name)
            write_parity_page(folder, report, reference, data=without_folders(check_images.name))

        if not report.passed:
            if kept is not None:
                with atomic_folder(kept) as folder:
                    fill(folder)
            raise ParityError(report, kept)
        say(f"{STEPS}/{STEPS} write {out}")

        def checked(folder: Path) -> None:
            fill(folder)
            check_size(folder, target)

        return write_bundle(out, manifest, checked, overwrite=overwrite)


def _room(model: Kadap) -> int:
    """About how many bytes an export writes before it is done: two graphs at a time."""
    return 2 * sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def _make(job: _Job, file: str, check_images: ImageDataset) -> tuple[Manifest, Reference, ParityReport]:
    """Everything between loading and writing; the graph stands in the job's folder afterwards."""
    images = job.spec.apply_batch([check_images.image(i) for i in range(len(check_images))])
    job.say(f"2/{STEPS} exact passes")
    reference = Reference(
        ReferenceModel(job.model, job.choice.fixed), job.inputs(images),
        keys=[sample.key for sample in check_images.samples], labels=check_images.labels, progress=job.progress,
    )  # fmt: skip
    device = DeviceModel(job.model, job.takes_knowledge, job.choice.fixed)
    rows = _rewrite(job, device, images)
    graph = tagging_graph(
        job.spec.size, batch=job.batch.fixed, knowledge=device.token_shape if job.takes_knowledge else None,
        scaled=device.pixels is None,
    )  # fmt: skip
    scaling = scaling_of(device)
    reference.prepare = preparation(scaling)
    job.say(f"3/{STEPS} write the graph (opset {job.opset})")
    traced = trace(device, job.spec.size, opset=job.opset, batch=job.batch.fixed)
    if DEAD_BRANCHES not in job.options.skip:
        drop_dead_branches(traced)
    rewritten = job.options.precision != "fp32" or job.target.fused
    exact = job.work / "exact" if rewritten else job.work
    make_folder(exact)
    save_graph(traced, exact / INSTRUMENTED)
    folded = folded_weights(device)
    del traced, device
    job.model = None  # type: ignore[assignment]  # gigabytes, and no longer needed
    model = ir.load(exact / INSTRUMENTED)
    job.say(f"4/{STEPS} precision {job.options.precision}")
    narrowed = _narrow(job, model, images, reference, folded)
    fused = _fuse(job, model)
    present = {"default", *(node.name for node in model.graph)}  # an island may have become part of a fused node
    precision = {name: dtype for name, dtype in narrowed.precision.items() if name in present}
    counted = census(model)
    wrong = check_census(counted, narrowed.stored or precision["default"], precision)
    if wrong:
        raise KcdpError(f"the graph is not in {job.options.precision}: {wrong[0]}", fix="report this model")
    job.say(counted.text())
    manifest = first_manifest(
        file, job.digest, job.checkpoint, job.spec, graph, job.choice,
        target=job.target, batch=job.batch, precision=precision, opset=job.opset, scaling=scaling,
    )  # fmt: skip
    manifest = replace(manifest, export={
        "options": job.options.to_dict(),
        "passes": [row.to_dict() for row in rows], "operators": counted.to_dict(), "narrowing": narrowed.report,
        "profile": list(job.batch.profile or ()), "fused": fused,
    })  # fmt: skip
    if rewritten:
        save_graph(model, job.work / INSTRUMENTED)
        model = ir.load(job.work / INSTRUMENTED)
        shutil.rmtree(exact)
    keep_outputs(model, [tensor.name for tensor in graph.outputs], manifest_metadata(manifest.to_dict()))
    save_graph(model, job.work / MODEL, weights=not (job.work / WEIGHTS).exists())
    del model
    check_size(job.work, job.target, [MODEL, WEIGHTS])  # the rest of a bundle is there only after the gate
    job.say(f"5/{STEPS} parity gate on {len(check_images)} pictures of {check_images.name}")
    temperature = float(manifest.calibration["temperature"])
    gate = Gate(precision["default"], temperature=temperature, progress=job.progress)
    report = run_gate(
        reference, job.work / MODEL, graph, gate, runtimes=usable(job.target.runtimes, gate.precision),
        twin=job.work / INSTRUMENTED,
    )  # fmt: skip
    job.say(report.summary())
    parity = {**report.to_dict(), "data": without_folders(check_images.name)}
    if report.passed and job.choice.encoder is not None:
        text = export_text(job.choice.encoder, job.work)
        parity["text"] = text.to_dict()
        job.say(f"  text: states within {text.largest:.1e} on {text.texts} texts, the tokenizer's ids all equal")
    return replace(manifest, parity=parity), reference, report


def _rewrite(job: _Job, device: DeviceModel, images: np.ndarray) -> list[PassRow]:
    import torch

    probe = [torch.from_numpy(array) for array in job.inputs(images[:1]).values()]
    precision, target = job.options.precision, job.target
    options = PassOptions(job.spec.size, target.kernel, precision in target.winograd, precision in target.norms)
    rows = apply_passes(device, options, probe, job.options.skip)
    for row in rows:
        job.say(f"  {row.describe()}")
    return rows


def _narrow(
    job: _Job, model: ir.Model, images: np.ndarray, reference: Reference, folded: Mapping[str, str]
) -> Narrowed:
    inputs: Feed = {}
    if job.calibration is not None and job.options.measures:
        chosen = job.calibration.spread(effort_for(model).pictures)
        measured = job.spec.apply_batch([chosen.image(i) for i in range(len(chosen))])
        inputs = reference.prepare(job.inputs(leave_out(measured, images)))
    narrowed = narrow(model, job.target, job.options.precision, inputs, job.progress, folded)
    for line in narrowed.lines:
        job.say(line)
    return narrowed


def _fuse(job: _Job, model: ir.Model) -> dict[str, int]:
    """Join nodes, where the target has kernels for it; how many of each kind."""
    if not job.target.fused:
        return {}
    counts = fusions.fuse_for_cuda(model)
    wrong = fusions.check_fused(counts, model)
    if wrong:
        raise KcdpError(f"the graph is not fused as it should be: {wrong[0]}", fix="report this model")
    job.say(fusions.describe(counts, model))
    return counts
