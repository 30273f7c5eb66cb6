"""``python -m kcdp.export check``: the parity gate again, on a bundle that is there already."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcdp.bundle import MANIFEST, Bundle, Manifest
from kcdp.errors import KcdpError, require
from kcdp.export.command import check_run, next_command
from kcdp.export.running.runner import threads_or_all
from kcdp.files import check_writable, new_folder, sha256_file
from kcdp.training import PACKAGES
from kcdp.training.interrupts import interrupts_raise

if TYPE_CHECKING:
    from kcdp.export.reference import Named
    from kcdp.models.kadap import Kadap
    from kcdp.settings import ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle to check")
    parser.add_argument("--run", metavar="RUN", required=True, help="the run it was exported from, or its checkpoint")
    parser.add_argument(
        "--check-images", metavar="SPEC", help="pictures to compare on (default: some of the run's validation pictures)"
    )
    parser.add_argument(
        "--runtime", metavar="NAME", action="append", default=[],
        help="onnxruntime, openvino, openvino-bf16, onnxruntime-cuda, unfused, rounding (repeatable; default: those of "
        "the export)",
    )  # fmt: skip
    parser.add_argument("--threads", metavar="N", type=int, help="of the runtimes (default: all cores)")
    parser.add_argument("--out", metavar="DIR", help="write parity.md and its pictures there")
    parser.add_argument("--any-run", action="store_true", help="compare with a run that the bundle was not made from")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the steps")


def run(args: argparse.Namespace) -> int:
    """Compare; 0 when the gate is passed, 1 when it is not."""
    with interrupts_raise():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    threads_or_all(args.threads)
    if args.out is not None and (Path(args.out) / MANIFEST).exists():
        raise KcdpError(f"--out {args.out} is a bundle, which is sealed", "another folder")
    if args.out is not None:
        check_writable(Path(args.out) / "parity.md")
    check_run(args.run)
    bundle = Bundle.open(args.bundle)
    for package in (*PACKAGES, "onnx", "onnx_ir", "onnxruntime"):
        require(package, "export")
    from kcdp.export.check_pictures import check_pictures, preparation
    from kcdp.export.knowledge_choice import sample_knowledge
    from kcdp.export.parity import BATCH_SIZES, Gate, run_gate
    from kcdp.export.parity_page import write_parity_page
    from kcdp.export.reference import Reference
    from kcdp.export.runners import available, check_runtime
    from kcdp.models.kadap import Kadap
    from kcdp.training.checkpoint import find_checkpoint, load_model

    manifest = bundle.manifest
    for name in args.runtime:
        check_runtime(name)
    checkpoint_path = find_checkpoint(args.run)
    same = check_source(manifest, checkpoint_path, args.bundle, args.any_run)
    model, checkpoint = load_model(checkpoint_path)
    if not isinstance(model, Kadap):
        raise KcdpError(f"model.network is {checkpoint.config.model.network!r} in {args.run}", "'kadap'")
    pictures = check_pictures(args.check_images, checkpoint.config.data)
    progress = sys.stderr.isatty()
    if not args.json:
        whose = "" if same else " (another run than the bundle's)"
        print(f"comparing {args.bundle} with {checkpoint_path}{whose} on {len(pictures)} pictures of {pictures.name}")
        print("logits, probabilities and decisions; v, features and maps are compared at export only")
    named, encoder = reference_model(model, checkpoint.config.model, manifest)
    inputs = {"images": manifest.preprocess.apply_batch([pictures.image(i) for i in range(len(pictures))])}
    if encoder is not None:
        inputs["knowledge"] = sample_knowledge(encoder, len(pictures))
    keys = [sample.key for sample in pictures.samples]
    reference = Reference(named, inputs, keys=keys, labels=pictures.labels, level_pictures=0, progress=progress)
    reference.prepare = preparation(manifest.scaling)
    gate = Gate(manifest.precision["default"], BATCH_SIZES, manifest.calibration["temperature"], args.threads, progress)
    runtimes = args.runtime or [name for name in gated_on(manifest) if name in available()]
    if not runtimes:
        raise KcdpError(f"none of {', '.join(gated_on(manifest))} works here", f"one of {', '.join(available())}",
                        "name one with --runtime")  # fmt: skip
    report = run_gate(reference, bundle.model_path, manifest.graph, gate, runtimes=runtimes)
    if args.out is not None:
        with new_folder(Path(args.out)):
            write_parity_page(Path(args.out), report, reference, data=pictures.name)
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), "same_run": same, "data": pictures.name, **report.to_dict()}))
        return 0 if report.passed else 1
    print(report.summary())
    print(f"parity gate {'passed' if report.passed else 'FAILED'}")
    if report.passed:
        print(f"next: {next_command(args.bundle, manifest.target)}")
    else:
        print(f"next: python -m kcdp.export {args.run} --out NAME.kcdp, and compare the versions of the runtimes")
    return 0 if report.passed else 1


def check_source(manifest: Manifest, checkpoint: Path, bundle: str, any_run: bool) -> bool:
    """Whether a bundle was made from a checkpoint, by SHA-256.

    Raises:
        KcdpError: it was not, or does not say, and ``any_run`` is False.
    """
    stored, found = manifest.source.get("sha256"), sha256_file(checkpoint)
    if stored == found:
        return True
    if any_run:
        return False
    fix = "give the run it was exported from, or add --any-run"
    if not stored:
        raise KcdpError(f"{bundle} does not say which checkpoint it was made from", "its SHA-256 in the manifest", fix)
    made = f"SHA-256 {str(stored)[:12]}… as in {bundle}"
    raise KcdpError(f"{checkpoint} has SHA-256 {found[:12]}…", made, fix)


def reference_model(model: Kadap, config: ModelConfig, manifest: Manifest) -> tuple[Named, Any]:
    """The trained model with the knowledge that a bundle's graph has, and the text encoder of one that is told it."""
    from kcdp.export.device.model import ReferenceModel
    from kcdp.export.knowledge_choice import choose_knowledge

    knowledge = manifest.knowledge
    own = config.knowledge.mode
    options = manifest.export.get("options", {})
    text = options.get("text") if knowledge["mode"] == "constant" and own != "constant" else None
    choice = choose_knowledge(model, config, knowledge["mode"], text)
    return ReferenceModel(model, choice.fixed), choice.encoder


def gated_on(manifest: Manifest) -> list[str]:
    """The runtimes that passed the bundle at its export, or ONNX Runtime."""
    rows = manifest.parity.get("runtimes")
    names = [row["runtime"] for row in rows if "runtime" in row] if isinstance(rows, list) else []
    return names or ["onnxruntime"]
