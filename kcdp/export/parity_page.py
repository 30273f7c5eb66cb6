"""The parity report as a page with pictures, to lie in the bundle beside the graph it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kcdp.cards import Card, Layout, draw_sheet, fitted
from kcdp.export.agreement import NEAR_TIE, Closeness, Flip, error_of
from kcdp.export.parity_report import ParityReport, RuntimeReport
from kcdp.export.reference import Reference
from kcdp.files import atomic_file
from kcdp.graph import Tolerance
from kcdp.labels import LABELS
from kcdp.training.reports.figures import FAINT, GREY, figure
from kcdp.training.reports.markdown import code, table

PAGE, HISTOGRAM, FLIPPED = "parity.md", "parity.png", "flipped.png"
#: Pictures on the sheet of changed answers, and rows of their list: the page stays below 300 kB.
CARDS, ROWS = 12, 24
#: Of runtimes in the plots: colour, line and marker, each of which alone tells them apart.
STYLES = (("#000000", "-", "o"), ("#0072b2", "--", "s"), ("#e69f00", ":", "^"), ("#009e73", "-.", "D"))
#: Differences below this are drawn as this.
LEAST_DIFFERENCE, LEAST_ANGLE = 1e-9, 1e-16


def write_parity_page(folder: Path, report: ParityReport, reference: Reference, *, data: str) -> tuple[Path, ...]:
    """Write ``parity.md``, ``parity.png`` and, where answers changed, ``flipped.png``.

    Args:
        folder: of the bundle.
        report: what the gate found.
        reference: what it compared with.
        data: name of the check pictures.

    Returns:
        the files written.
    """
    written = []
    if _usable(report):
        plot_differences(folder / HISTOGRAM, report, reference)
        written.append(folder / HISTOGRAM)
    if report.flips:
        write_flipped(folder / FLIPPED, report, reference)
        written.append(folder / FLIPPED)
    with atomic_file(folder / PAGE) as temporary:
        temporary.write_text(page_text(report, data, [path.name for path in written]), encoding="utf-8")
    return (folder / PAGE, *written)


def page_text(report: ParityReport, data: str, pictures: Sequence[str]) -> str:
    """The page.

    Args:
        data: name of the check pictures.
        pictures: names of the files beside it.
    """
    parts = [
        _head(report, data),
        _failures(report),
        _answers(report),
        f"![differences of logits, and angles between features]({HISTOGRAM})" if HISTOGRAM in pictures else "",
        _features(report),
        _accuracy(report),
        _flips(report, FLIPPED in pictures),
        _executed(report),
        _limits(report.tolerance),
        "Again, on the same or other pictures: `python -m kcdp.export check BUNDLE --run RUN --check-images SPEC`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: ParityReport, data: str) -> str:
    answers = ", ".join(f"{name} {count}" for name, count in report.answers.items()) or "none"
    batches = sorted({run.batch for runtime in report.runtimes for run in runtime.runs})
    sizes = " and ".join(map(str, batches)) or "none"
    features = (f" v, features and maps on the first {report.level_pictures} of them." if report.level_pictures else
                " Logits, probabilities and decisions only: this graph has no other outputs.")  # fmt: skip
    one = "" if len(report.answers) > 1 else " All have the same answer, so the share of equal decisions proves little."
    return (
        f"# Parity: {'passed' if report.passed else 'FAILED'}\n\n"
        f"The exported graph in {report.precision} against the trained model as it is, in PyTorch and float32. On "
        f"{report.pictures} pictures of {code(data)}, {sizes} at a time.{features} Probabilities at temperature "
        f"{report.temperature:g}.\n\n"
        f"The trained model's answers: {answers}.{one} Near ties, with the two best classes within "
        f"{100 * NEAR_TIE:g} points of a hundred: {report.near_ties}."
    )


def _failures(report: ParityReport) -> str:
    return "## What failed\n\n" + "\n".join(f"- {line}" for line in report.failures) if report.failures else ""


def _answers(report: ParityReport) -> str:
    rows = []
    for runtime in report.runtimes:
        for run in runtime.runs:
            if run.numbers["logits"] is None:
                rows.append([runtime.name, str(run.batch), *["-"] * 6])
                continue
            logits, moved, same = (run.numbers[name] for name in ("logits", "probabilities", "decisions"))
            rows.append([
                runtime.name, str(run.batch), f"{logits['max_abs']:.1e}", f"{logits['error']:.1e}",
                f"{moved['max_abs']:.1e}", f"{moved['mean']:.1e}", f"{same['agree']:.2%}",
                f"{same['changed']} ({same['changed_near_ties']} near ties)" if same["changed"] else "0",
            ])  # fmt: skip
    heads = ("runtime", "batch", "logits, largest difference", "root mean square of it, relative",
             "probabilities, largest", "their mean", "same decision", "changed")  # fmt: skip
    return "## Answers\n\n" + table(heads, rows, 1) if rows else ""


def _features(report: ParityReport) -> str:
    rows = []
    for runtime in report.runtimes:
        for name, one in _worst(runtime).items():
            row = one.row()
            if row["cosine"] is None:
                rows.append([runtime.name, name, "not finite", "-", "-"])
            else:
                rows.append([runtime.name, name, f"{max(1 - row['cosine'], 0):.1e}", f"{row['length']:.1e}",
                             f"{row['max_abs']:.1e}"])  # fmt: skip
    if not rows:
        return ""
    heads = ("runtime", "output", "1 - least cosine", "length off by", "largest difference")
    text = "Of the worst picture at either batch size; measured on the same graph with these as outputs.\n\n"
    return "## Features and attention maps\n\n" + text + table(heads, rows, 2)


def _accuracy(report: ParityReport) -> str:
    before = report.accuracy
    if before is None:
        return ""
    rows = [("trained model", before), *((runtime.name, runtime.accuracy) for runtime in report.runtimes)]
    names = ("accuracy", "balanced_accuracy", "macro_f1")
    heads = ("", *(name.replace("_", " ").replace("f1", "F1") for name in names), *(f"recall {n}" for n in LABELS))
    lines = []
    for name, found in rows:
        if found is not None:
            recall = [found["recall"][label] for label in LABELS]
            lines.append([name, *(_percent(found[key]) for key in names), *map(_percent, recall)])
    constant = before["constant_baseline"]
    lines.append([f"always {constant['answer']}", *(_percent(constant[key]) for key in names), *["-"] * len(LABELS)])
    text = f"On the {before['n']} check pictures that have a label: for the change, not for the level.\n\n"
    return "## Accuracy before and after\n\n" + text + table(heads, lines, 1)


def _flips(report: ParityReport, pictured: bool) -> str:
    if not report.flips:
        return ""
    rows = []
    for runtime, flip in report.flips[:ROWS]:
        rows.append([
            code(flip.key), runtime, f"{flip.before} {flip.confidence_before:.0%}",
            f"{flip.after} {flip.confidence_after:.0%}", f"{100 * flip.margin:.1f}", "yes" if flip.near_tie else "no",
            flip.label or "-",
        ])  # fmt: skip
    left = len(report.flips) - ROWS
    more = f"\n\n{left} more are not listed here." if left > 0 else ""
    sheet = ""
    if pictured:
        sheet = (
            "\n\nAs the graph gets them; the bar is its answer, a red frame means that it was not a near tie.\n\n"
            f"![pictures whose answer changed]({FLIPPED})"
        )
    heads = ("picture", "runtime", "trained model", "graph", "margin, points", "near tie", "label")
    return "## Changed answers\n\n" + table(heads, rows) + more + sheet


def _executed(report: ParityReport) -> str:
    lines = []
    for runtime in report.runtimes:
        facts = dict(runtime.facts)
        products = ", ".join(f"{count} {name}" for name, count in facts.pop("products", {}).items())
        nodes = ", ".join(f"{count} on {place}" for place, count in facts.pop("nodes", {}).items())
        known = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "runtime" and value is not None)
        counted = f" Products by the type they ran in: {products}." if products else ""
        lines.append(f"- {runtime.name}: {known or 'nothing known'}.{counted}" + (f" Nodes: {nodes}." if nodes else ""))
    if any(runtime.name == "rounding" for runtime in report.runtimes):
        lines.append(
            "\nProcessors compute half precision in float32 and leave out the roundings between; `rounding` is ONNX "
            "Runtime with every result rounded to its type in the graph, as on a GPU: what overflows there overflows."
        )
    return "## What ran\n\n" + "\n".join(lines) if lines else ""


def _limits(tolerance: Tolerance) -> str:
    single = "-" if tolerance.atol is None else f"{tolerance.atol:g} + {tolerance.rtol:g} x value"
    rows = [
        ("each logit, difference at most", single),
        ("all logits, root mean square of the difference, relative, at most", f"{tolerance.logits_error:g}"),
        ("v and features of each picture, cosine at least", f"{tolerance.level_cosine:g}"),
        ("attention maps of each picture, cosine at least", f"{tolerance.map_cosine:g}"),
        ("length of either, off by at most", f"{_length(tolerance.level_cosine):.2%}"),
        ("largest change of a picture's probabilities, mean, at most", f"{tolerance.probability:g}"),
        ("same decision, at least", f"{tolerance.decisions:.1%}"),
    ]
    return "## What is allowed\n\n" + table(("", "allowed"), rows, 1)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _length(cosine: float) -> float:
    return float(np.sqrt(2 * (1 - cosine)))


def _usable(report: ParityReport) -> bool:
    return any(_finite(runtime) is not None for runtime in report.runtimes)


def _finite(runtime: RuntimeReport) -> np.ndarray | None:
    """The first logits of a runtime that are all finite."""
    found = (run.logits for run in runtime.runs)
    return next((logits for logits in found if logits is not None and np.isfinite(logits).all()), None)


def _worst(runtime: RuntimeReport) -> dict[str, Closeness]:
    """By output, the numbers of all batch sizes one after the other."""
    names = dict.fromkeys(name for run in runtime.runs for name in run.levels)
    return {
        name: Closeness(*(
            np.concatenate([getattr(run.levels[name], part) for run in runtime.runs if name in run.levels])
            for part in ("cosine", "length", "max_abs", "finite")
        ))
        for name in names
    }  # fmt: skip


def plot_differences(path: Path, report: ParityReport, reference: Reference) -> None:
    """How the logits' differences are spread and, where features were compared, how far each level turned.

    Args:
        path: PNG to write.
    """
    levels = any(_worst(runtime) for runtime in report.runtimes)
    title = f"exported graph in {report.precision} and trained model, {report.pictures} pictures"
    with figure(path, (9, 4) if levels else (5.4, 4), title, 1, 2 if levels else 1) as axes:
        both = np.ravel(axes)
        _plot_logits(both[0], report, reference)
        if levels:
            _plot_angles(both[1], report)


def _plot_logits(axes: Any, report: ParityReport, reference: Reference) -> None:
    tolerance, want = report.tolerance, reference.logits
    parts, names, styles = [], [], []
    for runtime, style in zip(report.runtimes, STYLES, strict=False):
        logits = _finite(runtime)
        if logits is not None and np.isfinite(want).all():
            parts.append(np.maximum(np.abs(logits.astype(np.float64) - want).ravel(), LEAST_DIFFERENCE))
            styles.append(style)
            names.append(f"{runtime.name}: root mean square {100 * error_of(want, logits):.2g} % of the logits'")
    if parts:
        low, high = np.log10(min(p.min() for p in parts)), np.log10(max(p.max() for p in parts))
        bins = np.logspace(np.floor(low), np.ceil(high) + 0.01, 41)
        for values, name, (ink, line, _) in zip(parts, names, styles, strict=True):
            axes.hist(values, bins, histtype="step", color=ink, linestyle=line, linewidth=1.3, label=name)
    if tolerance.atol is not None:
        limit, label = tolerance.atol, f"allowed: {tolerance.atol:g} + {tolerance.rtol:g} x logit"
    else:
        limit = tolerance.logits_error * float(np.sqrt((want[np.isfinite(want)].astype(np.float64) ** 2).mean()))
        label = f"allowed root mean square, {100 * tolerance.logits_error:g} % of the logits'"
    axes.axvline(limit, color=GREY, linewidth=1.6, linestyle=(0, (1, 1)), label=label)
    axes.set_xscale("log")
    equal = any((values <= LEAST_DIFFERENCE).any() for values in parts)
    axes.set_xlabel("difference of a logit" + (f" (equal ones at {LEAST_DIFFERENCE:g})" if equal else ""))
    axes.set_ylabel(f"logits, of {want.size}")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.02)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def _plot_angles(axes: Any, report: ParityReport) -> None:
    names = list(dict.fromkeys(name for runtime in report.runtimes for name in _worst(runtime)))
    for row, name in enumerate(names):
        least = report.tolerance.map_cosine if name.startswith("maps_") else report.tolerance.level_cosine
        axes.plot([1 - least] * 2, [row - 0.4, row + 0.4], color=GREY, linewidth=1.6, linestyle=(0, (1, 1)),
                  label="allowed" if row == 0 else None)  # fmt: skip
    count = len(report.runtimes)
    for place, (runtime, (ink, line, marker)) in enumerate(zip(report.runtimes, STYLES, strict=False)):
        shift, labelled = (place - (count - 1) / 2) * 0.22, False
        for row, name in enumerate(names):
            one = _worst(runtime).get(name)
            if one is None or not one.finite.all():
                continue
            angles = np.maximum(1 - one.cosine, LEAST_ANGLE)
            axes.plot([np.median(angles), angles.max()], [row + shift] * 2, color=ink, linestyle=line, linewidth=1.1)
            axes.plot(angles.max(), row + shift, marker, color=ink, markersize=4.5,
                      label=None if labelled else f"{runtime.name}: median to worst picture")  # fmt: skip
            labelled = True
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color=FAINT, linewidth=0.4)
    axes.set_xlabel(f"1 - cosine of a picture's features (first {report.level_pictures} pictures)")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def write_flipped(path: Path, report: ParityReport, reference: Reference) -> None:
    """A sheet of the pictures whose answer changed, the most decided first: as the graph gets them, with both answers.

    Args:
        path: PNG to write.
    """
    places: dict[int, tuple[Flip, list[str]]] = {}
    for runtime, flip in report.flips:
        places.setdefault(flip.place, (flip, []))[1].append(runtime)
    rows = sorted(places.values(), key=lambda row: -row[0].margin)
    shown = rows[:CARDS]
    layout = Layout(112, min(6, max(3, len(shown))), notes=True)
    limited = f"; the {len(shown)} most decided are shown" if len(shown) < len(rows) else ""
    title = f"{len(rows)} of {report.pictures} answers changed by {report.precision}{limited}"
    legend = dict(Counter(flip.after for flip, _ in rows).most_common())
    sheet = draw_sheet(_cards(shown, reference, layout.tile, len(report.runtimes)), len(shown), layout, title, legend)
    with atomic_file(path) as temporary:
        sheet.quantize(256, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)


def _cards(rows: Sequence[tuple[Flip, list[str]]], reference: Reference, tile: int, runtimes: int) -> Iterator[Card]:
    for flip, names in rows:
        label = "" if flip.label is None else f"right: {flip.label}"
        yield Card(
            picture=fitted(Image.fromarray(reference.images[flip.place]), tile),
            bar=flip.after,
            share=f"{flip.confidence_after:.0%}",
            caption=f"was {flip.before} {flip.confidence_before:.0%}",
            note=label if len(names) == runtimes else f"{', '.join(names)} only",
            red=not flip.near_tie,
        )
