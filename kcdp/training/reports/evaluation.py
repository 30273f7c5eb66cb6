"""From a model's answers to a report folder: ``report.json``, ``report.md``, CSV files and pictures."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.files import atomic_file, write_json
from kcdp.training.reports.abstention import abstention
from kcdp.training.reports.calibration import fit_temperature
from kcdp.training.reports.embedding import embed, write_embedding
from kcdp.training.reports.figures import (
    plot_abstention,
    plot_confusion,
    plot_embedding,
    plot_experts,
    plot_history,
    plot_reliability,
)
from kcdp.training.reports.history import pseudo_summary, read_history
from kcdp.training.reports.intervals import LEVEL, RESAMPLES
from kcdp.training.reports.markdown import report_text
from kcdp.training.reports.measurement import Answers, measured_row, write_predictions
from kcdp.training.reports.mistakes import confident_mistakes, write_mistakes
from kcdp.training.reports.specs import short

REPORT, TEXT, PREDICTIONS, EMBEDDING = "report.json", "report.md", "predictions.csv", "embedding.csv"
#: Files that a report may consist of; an older report's are taken away where the new one has none.
_OURS = re.compile(
    r"(confusion|reliability|experts|mistakes)(-[0-9]+)?\.png|(abstention|embedding|training)\.png|embedding\.csv"
)


@dataclass(frozen=True)
class Options:
    """What an evaluation does beside measuring.

    Attributes:
        resamples: of the bootstrap.
        seed: of the bootstrap, the map, and the halves of the abstention.
        embed: pictures on the map of v at most; 0: no map.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    embed: int = 1500


@dataclass(frozen=True)
class Measured:
    """What was predicted.

    Attributes:
        datasets: the labelled datasets, at least one; the first is the report's own.
        validation: the pictures that chose the checkpoint; None: not measured, for the reason given.
        neutral: pictures without an emotion, where there are any.
        no_validation: why there is no ``validation``.
        own_validation: dataset strings that have pictures in common with ``validation``.
        beside: the number of the dataset that ``neutral`` is held against: one of the same style tells emotion, one of
            another style tells styles apart.
    """

    datasets: Sequence[Answers]
    validation: Answers | None = None
    neutral: Answers | None = None
    no_validation: str = ""
    own_validation: frozenset[str] = field(default_factory=frozenset)
    beside: int = 0


def write_report(out: Path, about: dict[str, Any], run: Path, measured: Measured, options: Options) -> dict[str, Any]:
    """Compute, draw and write everything; an older report in the folder is replaced by a whole one or stays as it was.

    Args:
        out: the folder, which exists; what else it holds stays.
        about: what the report says of where it comes from: ``title``, ``model``, ``data``, ``checkpoint``, ``kcdp``,
            ``configuration``, ``command``, ``date``, ``versions``, ``device`` and ``warnings``.
        run: the run's folder, for its log.

    Returns:
        the report, as it stands in ``report.json``: ``about``; ``metrics``, ``groups``, ``intervals`` and ``experts``
        of the first dataset; ``datasets`` and ``validation``, see ``measured_row``, each with ``mistakes`` and
        ``files``; ``bootstrap``; ``abstention``, ``embedding`` and ``training``, None where there is none.
    """
    with tempfile.TemporaryDirectory(prefix=".report.", dir=out) as folder:  # an older report stays whole until then
        report = _compute(Path(folder), about, run, measured, options)
        files = sorted(os.listdir(folder), key=lambda name: name == REPORT)
        if (out / REPORT).is_file():
            for name in {path.name for path in out.iterdir() if _OURS.fullmatch(path.name)} - set(files):
                (out / name).unlink()
        for name in files:
            (Path(folder) / name).replace(out / name)
    return report


def _compute(out: Path, about: dict[str, Any], run: Path, measured: Measured, options: Options) -> dict[str, Any]:
    """The report, after all its files have been written to ``out``."""
    validation, temperature = measured.validation, None
    if validation is not None:
        temperature = fit_temperature(validation.predictions.logits, validation.data.labels)
    figures = {"resamples": options.resamples, "seed": options.seed}
    rows = []
    for number, answers in enumerate(measured.datasets, 1):
        row = measured_row(answers, None if answers.name in measured.own_validation else temperature, **figures)
        row["mistakes"] = confident_mistakes(answers)
        suffix = "" if number == 1 else f"-{number}"
        row["files"] = _draw_dataset(out, suffix, answers, row, f"{about['model']} on {short(answers.name)}")
        rows.append(row)
    report: dict[str, Any] = {
        **about,
        **{key: rows[0][key] for key in ("metrics", "groups", "intervals", "experts") if key in rows[0]},
        "bootstrap": {**figures, "level": LEVEL, "method": "percentile, pictures resampled within their true class"},
        "datasets": rows,
        "validation": None if validation is None else measured_row(validation, None, **figures),
        "no_validation": measured.no_validation,
        "temperature": temperature,
        "abstention": _abstain(out, measured, options, about),
        "embedding": _embed(out, measured, options, about),
        "training": _history(out, run, about),
    }
    everything = (*measured.datasets, *(one for one in (validation, measured.neutral) if one is not None))
    write_predictions(out / PREDICTIONS, everything)
    with atomic_file(out / TEXT) as temporary:
        temporary.write_text(report_text(report), encoding="utf-8", errors="backslashreplace")
    write_json(out / REPORT, report)
    return report


def _draw_dataset(out: Path, suffix: str, answers: Answers, row: dict[str, Any], title: str) -> dict[str, str]:
    files = {"confusion": f"confusion{suffix}.png", "reliability": f"reliability{suffix}.png"}
    plot_confusion(out / files["confusion"], np.array(row["metrics"]["confusion"]), title)
    plot_reliability(out / files["reliability"], row["calibration"], title)
    if len(row["experts"]["chosen"]) > 1:
        files["experts"] = f"experts{suffix}.png"
        plot_experts(out / files["experts"], row["experts"], title)
    if row["mistakes"]:
        files["mistakes"] = f"mistakes{suffix}.png"
        write_mistakes(out / files["mistakes"], answers, row["mistakes"])
    return files


def _abstain(out: Path, measured: Measured, options: Options, about: dict[str, Any]) -> dict[str, Any] | None:
    if measured.neutral is None:
        return None
    first, neutral = measured.datasets[measured.beside], measured.neutral
    found = abstention(
        first.predictions.probabilities, first.data.labels, first.keys, neutral.predictions.probabilities, neutral.keys,
        seed=options.seed,
    )  # fmt: skip
    beside = {"emotional": first.name, "neutral": neutral.name, "pictures": len(neutral.data)}
    if found is None:
        return {**beside, "threshold": None, "files": {}}
    plot_abstention(out / "abstention.png", found, f"{about['model']} on {short(first.name)}")
    return {**beside, **found, "files": {"abstention": "abstention.png"}}


def _embed(out: Path, measured: Measured, options: Options, about: dict[str, Any]) -> dict[str, Any] | None:
    if not options.embed:
        return None
    answers = [*measured.datasets, *([] if measured.validation is None else [measured.validation])]
    found = embed(answers, options.embed, options.seed)
    if found is None:
        return None
    plot_embedding(out / "embedding.png", found, f"{about['model']}: t-SNE of v")
    write_embedding(out / EMBEDDING, found)
    shown = {name: int((found.domains == i).sum()) for i, name in enumerate(found.names)}
    return {"pictures": shown, "seed": options.seed, "files": {"embedding": "embedding.png", "table": EMBEDDING}}


def _history(out: Path, run: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    curves = read_history(run)
    if curves is None:
        return None
    plot_history(
        out / "training.png", curves, about["checkpoint"]["progress"].get("step"), f"training of {run.resolve().name}"
    )
    return {"pseudo_labels": pseudo_summary(curves), "files": {"training": "training.png"}}
