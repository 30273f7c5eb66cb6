"""The plots of an evaluation, one function each: PNG files written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.cards import COLOURS
from kcdp.files import atomic_file
from kcdp.labels import LABELS
from kcdp.training.reports.embedding import Embedding
from kcdp.training.reports.history import PSEUDO, smoothed
from kcdp.training.reports.specs import short

#: Of lines, bars and points that stand for no emotion; told apart by the colour-blind too (Okabe and Ito).
INKS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
GREY, FAINT = "#666666", "#bbbbbb"


@contextmanager
def figure(path: Path, size: tuple[float, float], title: str, rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Yields the axes of a new plot, one or an array of them, and writes them when the block ends well.

    Args:
        path: PNG.
        size: width and height in inches, of 120 pixels.
        title: above all; empty: none.
    """
    from matplotlib.figure import Figure

    sheet = Figure(figsize=size, dpi=120, layout="constrained")
    axes = sheet.subplots(rows, columns)
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
    yield axes
    if title:
        sheet.suptitle(plain(title), fontsize=10, wrap=True)
    with atomic_file(path) as temporary:
        sheet.savefig(temporary, format="png")


def plain(text: str) -> str:
    """Text that matplotlib takes as it is: between two dollars it would read a formula."""
    return text.replace("$", r"\$")


def plot_confusion(path: Path, confusion: np.ndarray, title: str) -> None:
    """A confusion matrix, coloured by share of each true class, with counts.

    Args:
        path: PNG to write.
        confusion: int [6, 6], row true, column predicted.
        title: one line above it.
    """
    totals = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(totals, 1)
    with figure(path, (6.4, 5.6), title) as axes:
        axes.spines[:].set_visible(False)
        shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(LABELS)), LABELS)
        axes.set_yticks(range(len(LABELS)), [f"{name} ({n})" for name, n in zip(LABELS, totals[:, 0], strict=True)])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true (pictures)")
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if share[row, column] > 0.5 else "#1a1a1a"
            text = f"{share[row, column]:.0%}\n{confusion[row, column]}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axes.figure.colorbar(shown, label="share of the true class", fraction=0.046)


def plot_experts(path: Path, experts: dict[str, Any], title: str) -> None:
    """A histogram of expert use: share of all pictures, and of each class.

    Args:
        path: PNG to write.
        experts: see ``expert_use``.
        title: one line above it.
    """
    rows = {"all": experts["chosen"]} | {k: v for k, v in experts["chosen_by_class"].items() if v is not None}
    count = len(experts["chosen"])
    with figure(path, (8, 3.6), title) as axes:
        for expert in range(count):
            place = np.arange(len(rows)) + (expert - (count - 1) / 2) * 0.8 / count
            axes.bar(place, [row[expert] for row in rows.values()], 0.8 / count, label=f"expert {expert + 1}")
        even = sum(experts["chosen"]) / count
        axes.axhline(even, color=GREY, linewidth=0.8, linestyle="--", label="even use")
        axes.set_xticks(range(len(rows)), list(rows))
        axes.set_ylim(0, 1.15 + 0.1 * (count // 6))  # the legend stands above the bars
        axes.set_ylabel("share of pictures answered for")
        axes.legend(fontsize=8, ncols=min(count + 1, 6), loc="upper center")


def plot_reliability(path: Path, found: dict[str, Any], title: str) -> None:
    """Accuracy by confidence, as it is and, where there is a temperature, with it; below, the answers of each bin.

    Args:
        path: PNG to write.
        found: see ``calibration``.
        title: one line above it.
    """
    panels = [("as it is", found["before"])]
    if found["after"] is not None:
        panels.append((f"temperature {found['temperature']:.2f}", found["after"]))
    with figure(path, (4.2 * len(panels) + 0.4, 4.8), title, 2, len(panels)) as axes:
        grid = np.reshape(axes, (2, -1))
        grid[0, 0].get_gridspec().set_height_ratios([3, 1])
        for (name, one), (above, below) in zip(panels, grid.T, strict=True):
            _reliability(above, below, name, one)
        grid[0, 0].set_ylabel("accuracy")
        grid[1, 0].set_ylabel("answers")
        legend = [one.get_legend_handles_labels() for one in grid[:, 0]]
        handles, labels = (above + below for above, below in zip(*legend, strict=True))
        options = {"loc": "outside lower center", "ncols": 3 if len(panels) == 1 else 5, "fontsize": 8}
        grid[0, 0].figure.legend(handles, labels, frameon=False, **options)


def _reliability(above: Any, below: Any, name: str, one: dict[str, Any]) -> None:
    used = [row for row in one["bins"] if row["n"]]
    centres = [(row["low"] + row["high"]) / 2 for row in used]
    width = 1 / len(one["bins"])
    accuracy = np.array([row["accuracy"] for row in used])
    confidence = np.array([row["confidence"] for row in used])
    above.bar(centres, accuracy, width * 0.94, color=INKS[4], label="accuracy of the bin")
    gap = np.abs(confidence - accuracy)
    above.bar(
        centres, gap, width * 0.94, np.minimum(accuracy, confidence), color="none", edgecolor=INKS[5], hatch="////",
        linewidth=0.6, label="its distance from the confidence",
    )  # fmt: skip
    above.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", label="perfect")
    above.set_title(f"{name}: ECE {100 * one['ece']:.1f} %", fontsize=9)
    above.set_ylim(0, 1)
    below.bar(centres, [row["n"] for row in used], width * 0.94, color=FAINT)
    below.axvline(one["accuracy"], color=INKS[0], linewidth=1, label="accuracy of all")
    below.axvline(one["confidence"], color=INKS[5], linewidth=1, linestyle=":", label="mean confidence")
    below.set_xlabel("confidence")
    for axes in (above, below):
        axes.set_xlim(0, 1)


def plot_abstention(path: Path, found: dict[str, Any], title: str) -> None:
    """Risk against coverage on the measuring half, with the chosen threshold marked.

    Args:
        path: PNG to write.
        found: see ``abstention``.
        title: one line above it.
    """
    curve = found["curve"]
    with figure(path, (6.4, 4), title) as axes:
        axes.plot(curve["coverage"], curve["risk"], color=INKS[0], label="emotional pictures")
        axes.plot(
            curve["coverage"], curve["risk_with_neutral"], color=INKS[5], linestyle="--",
            label="and neutral pictures, every answer to which is wrong",
        )  # fmt: skip
        kept = found["emotional_kept"]
        text = f"threshold {found['threshold']:.2f}: {kept:.0%} kept"
        axes.axvline(kept, color=GREY, linewidth=0.8, linestyle=":", label=text)
        axes.set_xlim(0, 1.01)
        axes.set_ylim(0, 1)
        axes.set_xlabel("coverage: share of emotional pictures answered")
        axes.set_ylabel("risk: share of wrong answers")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)


def plot_embedding(path: Path, embedding: Embedding, title: str) -> None:
    """The map of v twice: coloured by emotion, and by dataset.

    Args:
        path: PNG to write.
        embedding: see ``embed``.
        title: one line above it.
    """
    size = 24 if len(embedding.labels) < 300 else 9
    with figure(path, (11, 5.8), title, 1, 2) as axes:
        emotions = [("#{:02x}{:02x}{:02x}".format(*COLOURS[n]), n, embedding.labels == i) for i, n in enumerate(LABELS)]
        names = [short(name) for name in embedding.names]
        domains = [(INKS[i % len(INKS)], name, embedding.domains == i) for i, name in enumerate(names)]
        order = np.random.default_rng(0).permutation(len(embedding.labels))  # else the last group covers the others
        for one, groups, name in zip(axes, (emotions, domains), ("by emotion", "by dataset"), strict=True):
            colours = np.zeros((len(order), 4))
            for colour, label, inside in groups:
                one.scatter([], [], s=20, color=colour, label=plain(f"{shortened(label)}: {int(inside.sum())}"))
                colours[inside] = _rgba(colour)
            x, y = embedding.places[order].T
            one.scatter(x, y, s=size, c=colours[order], linewidths=0)
            one.set_title(name, fontsize=9)
            one.set_xticks([])
            one.set_yticks([])
            one.spines[:].set_visible(True)
            one.spines[:].set_color(FAINT)
            columns = 3 if name == "by emotion" else 1
            one.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=columns, frameon=False)


def plot_history(path: Path, curves: dict[str, dict[str, list[float]]], chosen: int | None, title: str) -> None:
    """Loss and validation by step; below, where there is a target, how many pseudo-labels were right and counted.

    Args:
        path: PNG to write.
        curves: see ``read_history``.
        chosen: the step of the checkpoint that is reported; None: not known.
        title: one line above it.
    """
    pseudo = [name for name in PSEUDO if name in curves]
    with figure(path, (8, 6.2 if pseudo else 3.4), title, 2 if pseudo else 1) as axes:
        above = np.ravel(axes)[0]
        right = above.twinx()
        right.tick_params(labelsize=8)
        lines = []
        if "loss" in curves:
            lines += _smooth(above, curves["loss"], GREY, "training loss (left)")
        for name, ink in (("balanced_accuracy", INKS[0]), ("accuracy", INKS[1])):
            curve = curves.get(f"validation {name}")
            if curve is not None:
                label = f"validation {name.replace('_', ' ')} (right)"
                lines += right.plot(curve["step"], curve["value"], "o-", ms=3, lw=1.2, color=ink, label=label)
        above.set_ylabel("loss")
        right.set_ylabel("validation")
        right.set_ylim(0, 1)
        lines += _chosen(above, chosen, "checkpoint reported")
        above.legend(handles=lines, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
        if pseudo:
            _pseudo(np.ravel(axes)[1], curves, pseudo, chosen)
        for one in np.ravel(axes):
            one.xaxis.get_major_locator().set_params(integer=True)
        np.ravel(axes)[-1].set_xlabel("step")


def _pseudo(axes: Any, curves: dict[str, dict[str, list[float]]], names: list[str], chosen: int | None) -> None:
    labels = {
        "pseudo_accuracy": "right, of all pseudo-labels", "pseudo_accuracy_counted": "right, of those that count",
        "pseudo_share": "share that counts",
    }  # fmt: skip
    for name, ink in zip(names, (INKS[2], INKS[0], FAINT), strict=False):
        _smooth(axes, curves[name], GREY if name == "pseudo_share" else ink, labels[name])
    _chosen(axes, chosen, "")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("pseudo-labels")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def _smooth(axes: Any, curve: dict[str, list[float]], ink: str, label: str) -> list[Any]:
    """The values, faint, and their running mean over a fifteenth of all rows."""
    width = max(1, len(curve["value"]) // 15)
    if width > 1:
        axes.plot(curve["step"], curve["value"], color=ink, lw=0.6, alpha=0.35)
    return axes.plot(curve["step"], smoothed(curve["value"], width), color=ink, lw=1.4, label=label)


def _chosen(axes: Any, step: int | None, label: str) -> list[Any]:
    if step is None:
        return []
    return [axes.axvline(step, color=GREY, lw=0.8, ls=":", label=label or None)]


def _rgba(colour: Any) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(colour, 0.75)


def shortened(text: str, most: int = 56) -> str:
    """The end of a long text, where a dataset's name and options are."""
    return text if len(text) <= most else f"...{text[3 - most :]}"
