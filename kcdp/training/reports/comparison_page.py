"""A comparison of runs as a page, as a plot and as lines for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.training.reports.figures import GREY, INKS, figure, plain, shortened
from kcdp.training.reports.intervals import FIGURES
from kcdp.training.reports.markdown import HEADS, code, number, table, which
from kcdp.training.reports.specs import short


def comparison_text(found: dict[str, Any], command: str, date: str, picture: str) -> str:
    """The page, Markdown.

    Args:
        found: of ``compare``, with ``paired`` where two runs were compared picture by picture.
        picture: name of the plot beside the page.
    """
    parts = ["# Comparison of runs", f"{date}, by:\n\n```sh\n{command}\n```", f"![Comparison]({picture})"]
    for place, data in enumerate(found["datasets"]):
        parts += [f"## {which({**data, 'role': 'measured'})}", comparison_table(found, place, code)]
        if found.get("paired"):
            parts.append(_paired(found, place))
    runs = [
        [code(row["name"]), str(run["seed"]), "-" if run["step"] is None else str(run["step"]), code(run["folder"]),
         *(number(one["balanced_accuracy"]) for one in run["datasets"])]
        for row in found["rows"] for run in row["runs"]
    ]  # fmt: skip
    heads = ["", "seed", "step", "report", *(f"balanced accuracy, {code(short(d['data']))}" for d in found["datasets"])]
    parts += ["## Runs", table(heads, runs)]
    lines = [
        "Runs that differ in seed, device or folders alone are one row: mean ± standard deviation over their seeds "
        "(n - 1). A single run stands with the 95 % bootstrap interval of its pictures instead; the two are not the "
        "same thing: the one is how figures vary with the seed, the other with the pictures.",
        "The first column of figures is of the source's validation pictures, which chose the checkpoints.",
        '"Always one answer" gives every picture the most frequent class.',
    ]
    return "\n\n".join([*parts, "## How to read this", "\n".join(f"- {line}" for line in lines)]) + "\n"


def comparison_table(found: dict[str, Any], place: int, mark: Callable[[str], str] = str) -> str:
    """One dataset's table, Markdown; its last row is the constant answer.

    Args:
        place: the dataset's number.
        mark: what is made of the rows' names.
    """
    rows = []
    for row in found["rows"]:
        validation = [run["validation"] for run in row["runs"] if run["validation"]]
        one = [run["datasets"][place] for run in row["runs"]]
        rows.append([
            mark(row["name"]), str(len(one)),
            _cell("balanced_accuracy", row["summary"]["validation"], validation),
            *(_cell(name, row["summary"]["datasets"][place], one) for name in FIGURES),
        ])  # fmt: skip
    constant = found["datasets"][place]["constant_baseline"]
    rows.append([f"always {constant['answer']}", "", "", *(number(constant[name]) for name in FIGURES)])
    heads = ["", "seeds", "source validation: balanced accuracy", *(HEADS[name] for name in FIGURES)]
    return table(heads, rows, numbers=1)


def _cell(name: str, summary: dict[str, Any] | None, runs: list[dict[str, Any]]) -> str:
    if summary is None:
        return "-"
    one = summary[name]
    if one["deviation"] is None:
        return number(one["mean"], runs[0]["intervals"][name])
    return f"{number(one['mean'])} ± {one['deviation']:.3f}"


def _paired(found: dict[str, Any], place: int) -> str:
    rows = []
    for name, one in found["paired"][place].items():
        low, high = one["interval"]
        tells = "yes" if low > 0 or high < 0 else "no"
        rows.append([HEADS[name], f"{one['difference']:+.3f} [{low:+.3f}, {high:+.3f}]", tells])
    first, second = (code(row["name"]) for row in (found["rows"] * 2)[:2])
    names = "the second run less the first" if len(found["rows"]) == 1 else f"{second} less {first}"
    heads = ["", "difference, 95 % interval", "told apart"]
    return f"On the same pictures, {names} (paired bootstrap):\n\n{table(heads, rows, numbers=1)}"


def plot_comparison(path: Path, found: dict[str, Any]) -> None:
    """One panel a dataset: every run a dot, the mean a bar, the constant answer a line.

    Args:
        path: PNG to write.
        found: of ``compare``.
    """
    rows, datasets = found["rows"], found["datasets"]
    names = [_folded(row["name"]) for row in rows]
    places = np.arange(len(rows))[::-1]
    letters = max(len(line) for name in names for line in name.split("\n"))
    lines = max(2, *(name.count("\n") + 1 for name in names))
    size = (0.8 + 4 * len(datasets) + 0.065 * letters, (0.12 + 0.19 * lines) * len(rows) + 1.4)
    with figure(path, size, "", 1, len(datasets)) as axes:
        for number_, (one, data) in enumerate(zip(np.ravel(axes), datasets, strict=True)):
            _bars(one, places, [_balanced(row, number_) for row in rows])
            one.axvline(data["constant_baseline"]["balanced_accuracy"], color=GREY, ls="--", lw=0.8,
                        label="always one answer")  # fmt: skip
            one.set_ylim(-0.6, len(rows) - 0.4)
            one.set_yticks(places, names if number_ == 0 else [""] * len(rows), fontsize=8)
            one.set_xlabel("balanced accuracy")
            one.set_title(plain(f"{shortened(short(data['data']), 44)}: {data['n']} pictures"), fontsize=9)
        sheet = np.ravel(axes)[0].figure
        handles, labels = np.ravel(axes)[0].get_legend_handles_labels()
        sheet.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _balanced(row: dict[str, Any], place: int) -> list[float]:
    return [run["datasets"][place]["balanced_accuracy"] for run in row["runs"]]


def _bars(axes: Any, places: np.ndarray, values: list[list[float]]) -> None:
    """Horizontal bars of means, with a dot for each value; behind them the mean and, of several, their deviation."""
    means = [sum(one) / len(one) for one in values]
    axes.barh(places, means, color=INKS[4], height=0.55, label="mean")
    for i, (y, mean, dots) in enumerate(zip(places, means, values, strict=True)):
        axes.plot(dots, [y] * len(dots), "o", color=INKS[0], ms=4, label="" if i else "one seed")
        text = number(mean)
        if len(dots) > 1:
            spread = statistics.stdev(dots)
            text = f"mean {number(mean)} ± {number(spread)}"
            axes.errorbar(mean, y, xerr=spread, color=INKS[0], capsize=4, linewidth=1)
        end = max(mean + (spread if len(dots) > 1 else 0), *dots)
        axes.annotate(text, (end, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
    room = 1.6 if max(map(len, values)) > 1 else 1.18
    axes.set_xlim(0, max(0.1, room * max(max(one) for one in values)))


def _folded(name: str) -> str:
    """A long name on several lines, broken where the data and the target begin."""
    if len(name) <= 40:
        return plain(name)
    parts = name.replace(": ", ":\n", 1).replace(" -> ", "\n-> ").split("\n")
    return plain("\n".join(shortened(part, 48) for part in parts))
