"""The parity gate: an exported graph against the PyTorch model, on pictures, at several batch sizes and runtimes.

In this order: names, dtypes, axes and shapes; finiteness; values; decisions. A graph that fails is not shipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tqdm import tqdm

from kcdp.errors import KcdpError, nearest
from kcdp.export.agreement import Closeness, closeness, compare_logits, flips, joined, near_ties
from kcdp.export.parity_report import ParityReport, Run, RuntimeReport
from kcdp.export.reference import Reference
from kcdp.export.runners import check_runtime, open_runner, usable
from kcdp.export.running.rounding import HALVES
from kcdp.export.running.runner import DoesNotRun, Runner
from kcdp.graph import TOLERANCES, GraphSpec, Tolerance
from kcdp.labels import LABELS, NUM_CLASSES
from kcdp.training.metrics import classification_metrics

BATCH_SIZES = (1, 5)


@dataclass(frozen=True)
class Gate:
    """How strictly and on what to compare.

    Attributes:
        precision: what the graph runs in, a key of the tolerance table.
        batch_sizes: pictures at a time.
        temperature: probabilities are softmax(logits / temperature).
        threads: of the runtimes; None: all cores.
        progress: show a bar.

    Raises:
        KcdpError: a precision that the table does not hold.
    """

    precision: str = "float32"
    batch_sizes: Sequence[int] = BATCH_SIZES
    temperature: float = 1.0
    threads: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.precision not in TOLERANCES:
            hint = nearest(self.precision, TOLERANCES)
            raise KcdpError(f"precision {self.precision!r}{hint}", f"one of {', '.join(TOLERANCES)}")

    @property
    def tolerance(self) -> Tolerance:
        """Of the precision."""
        return TOLERANCES[self.precision]


def run_gate(
    reference: Reference,
    shipped: Path,
    spec: GraphSpec,
    gate: Gate,
    *,
    runtimes: Sequence[str] = ("onnxruntime",),
    twin: Path | None = None,
) -> ParityReport:
    """Open a graph on one runtime after the other and compare.

    A graph that holds half precision is also run with its roundings, by the runtime "rounding", unless one of the
    runtimes computes in it: processors widen float16 and do not see it overflow.

    Args:
        shipped: the file that is to be shipped.
        spec: what its signature has to be. A fixed batch in it is the only batch size.
        runtimes: names from ``kcdp.export.runners``.
        twin: the same nodes with v, features and maps as further outputs; None leaves those out.

    Raises:
        KcdpError: a runtime that there is not, or not here.
    """
    names = list(dict.fromkeys(runtimes))
    if "rounding" not in names and not all(computed_by(half, names) for half in halves_in(shipped)):
        names.insert(0, "rounding")
    for name in names:
        check_runtime(name)
    fixed = spec.inputs[0].shape[0]
    if fixed is not None:
        gate = Gate(gate.precision, (fixed,), gate.temperature, gate.threads, gate.progress)
    signature = check_signature(shipped, spec)
    reports = [_on_one_runtime(reference, name, shipped, twin, gate) for name in names]
    return assemble(reference, reports, gate, signature)


def _on_one_runtime(reference: Reference, name: str, shipped: Path, twin: Path | None, gate: Gate) -> RuntimeReport:
    """One file open at a time: two of several gigabytes would not fit."""
    try:
        levels: Levels = {}
        if twin is not None:
            with open_runner(name, twin, gate.precision, gate.threads) as runner:
                levels = compare_levels(reference, runner, gate)
        with open_runner(name, shipped, gate.precision, gate.threads) as runner:
            return compare(reference, runner, gate, levels)
    except DoesNotRun as error:
        return RuntimeReport({"runtime": name}, (), (str(error),))


#: By batch size: the closeness of each output by name, and what failed.
Levels = Mapping[int, tuple[dict[str, Closeness], list[str]]]


def compare_levels(reference: Reference, twin: Runner, gate: Gate) -> Levels:
    """v, features and maps of a graph that has them as outputs, on the pictures whose features are kept.

    Nothing is kept of the graph's but three numbers a picture.
    """
    found: dict[int, tuple[dict[str, Closeness], list[str]]] = {}
    tolerance = gate.tolerance
    for batch in gate.batch_sizes:
        parts: dict[str, list[Closeness]] = {name: [] for name in reference.levels}
        failures: list[str] = []
        for places, outputs in _outputs(reference, twin, batch, reference.level_pictures, gate.progress):
            for name, want in reference.levels.items():
                got = _output(outputs, name, want[places.start : places.stop], failures)
                if got is not None:
                    parts[name].append(closeness(want[places.start : places.stop], got))
        close = {name: joined(part) for name, part in parts.items() if part}
        for name, one in close.items():
            least = tolerance.map_cosine if name.startswith("maps_") else tolerance.level_cosine
            failures += one.failures(name, least)
        found[batch] = close, list(dict.fromkeys(failures))
    return found


def compare(reference: Reference, runner: Runner, gate: Gate, levels: Levels | None = None) -> RuntimeReport:
    """Logits, probabilities and decisions of the graph that is shipped.

    Args:
        levels: what ``compare_levels`` found on the same runtime, to be reported along.
    """
    runs = []
    for batch in gate.batch_sizes:
        failures: list[str] = []
        logits = _logits(reference, runner, batch, gate.progress, failures)
        numbers: dict[str, Any] = {"logits": None, "probabilities": None, "decisions": None}
        if logits is not None:
            numbers, more = compare_logits(reference.logits, logits, gate.tolerance, gate.temperature)
            failures += more
        close, missed = (levels or {}).get(batch, ({}, []))
        if close:
            numbers = {**numbers, "levels": {name: one.row() for name, one in close.items()}}
        runs.append(Run(batch, numbers, (*failures, *missed), logits, close))
    strays = [] if all(run.logits is None for run in runs) else runner.failures()
    failed = [*strays, *(f"batch {run.batch}: {line}" for run in runs for line in run.failures)]
    answered = next((run.logits for run in runs if run.logits is not None), None)
    changed = {
        flip.place: flip
        for run in reversed(runs)
        if run.logits is not None
        for flip in flips(reference.logits, run.logits, gate.temperature, reference.keys, reference.labels)
    }
    ordered = sorted(changed.values(), key=lambda flip: -flip.margin)
    accuracy = None if answered is None else accuracy_of(reference.labels, answered)
    return RuntimeReport(runner.describe(), tuple(runs), tuple(failed), tuple(ordered), accuracy)


def assemble(
    reference: Reference, reports: Sequence[RuntimeReport], gate: Gate, signature: Sequence[str] = ()
) -> ParityReport:
    """One report from those of the runtimes.

    Args:
        signature: what ``check_signature`` found.
    """
    general = [*signature, *reference.not_finite()]
    if not any(run.logits is not None for report in reports for run in report.runs):
        general.append("no runtime gave any logits: nothing was compared")
    finite = np.isfinite(reference.logits).all(axis=1)
    logits = reference.logits[finite]
    counts = np.bincount(logits.argmax(axis=1), minlength=NUM_CLASSES)
    return ParityReport(
        precision=gate.precision,
        pictures=len(reference.images),
        level_pictures=reference.level_pictures if any(run.levels for r in reports for run in r.runs) else 0,
        temperature=gate.temperature,
        runtimes=tuple(reports),
        general=tuple(general),
        near_ties=int(near_ties(logits, gate.temperature).sum()),
        answers={name: int(n) for name, n in zip(LABELS, counts, strict=True) if n},
        accuracy=accuracy_of(reference.labels, reference.logits),
    )


def accuracy_of(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any] | None:
    """What logits are worth on the pictures that have labels; None where none has, or logits are not finite."""
    known = labels >= 0
    if not known.any() or not np.isfinite(logits).all():
        return None
    found = classification_metrics(labels[known], logits[known].argmax(axis=1))
    return {name: found[name] for name in ("n", "accuracy", "balanced_accuracy", "macro_f1", "recall",
                                           "constant_baseline")}  # fmt: skip


def check_signature(path: Path, spec: GraphSpec) -> list[str]:
    """Names, dtypes, axes and shapes of a graph against its spec; one line for each side that differs."""
    graph = onnx.load(str(path), load_external_data=False).graph
    failures = []
    for side, values, tensors in (("inputs", graph.input, spec.inputs), ("outputs", graph.output, spec.outputs)):
        found, expected = [_described(value) for value in values], [tensor.describe() for tensor in tensors]
        if found != expected:
            failures.append(f"{side} are {', '.join(found) or 'none'}; expected {', '.join(expected)}")
    return failures


def _described(value: Any) -> str:
    """As ``TensorSpec.describe`` puts it."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{value.name} {dtype} [{', '.join(d.dim_param or str(d.dim_value or '?') for d in tensor.shape.dim)}]"


def halves_in(path: Path) -> set[ir.DataType]:
    """float16, bfloat16, or both: what weights or values of a graph are."""
    graph = ir.load(path).graph
    values = (*graph.initializers.values(), *(output for node in graph for output in node.outputs))
    return {value.dtype for value in values if value.dtype in HALVES}


def computed_by(half: ir.DataType, runtimes: Sequence[str]) -> bool:
    """Whether any of these runtimes multiplies in a half precision here."""
    if half == ir.DataType.BFLOAT16:
        return bool(usable([name for name in runtimes if name != "rounding"], "bfloat16"))
    return "onnxruntime-cuda" in runtimes


def _outputs(
    reference: Reference, runner: Runner, batch: int, count: int | None, progress: bool
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """Every batch's places and outputs, without those of pictures that only filled it up."""
    feeds = reference.feeds(batch, count, fixed=runner.fixed_batch is not None)
    total = len(reference.images) if count is None else count
    what = "gate" if count is None else "features"
    with tqdm(total=total, desc=f"{what}, {runner.name}, batch {batch}", disable=not progress, leave=False) as bar:
        for places, feed in feeds:
            outputs = runner.run(feed)
            yield places, {name: array[: len(places)] for name, array in outputs.items()}
            bar.update(len(places))


def _output(outputs: Mapping[str, np.ndarray], name: str, want: np.ndarray, failures: list[str]) -> np.ndarray | None:
    """One output, if it is there with the type and shape it is to have."""
    if name not in outputs:
        failures.append(f"there is no output {name}; found {', '.join(outputs) or 'none'}")
        return None
    got = outputs[name]
    if got.dtype != want.dtype or got.shape != want.shape:
        failures.append(f"{name} is {got.dtype} {list(got.shape)}; expected {want.dtype} {list(want.shape)}")
        return None
    return got


def _logits(reference: Reference, runner: Runner, batch: int, progress: bool, failures: list[str]) -> np.ndarray | None:
    parts = []
    for places, outputs in _outputs(reference, runner, batch, None, progress):
        got = _output(outputs, "logits", reference.logits[places.start : places.stop], failures)
        if got is None:
            return None
        parts.append(got)
    return np.concatenate(parts)
