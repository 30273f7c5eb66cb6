"""Several evaluated runs side by side: which of them differ in nothing but the seed, and what each kind is worth."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.labels import LABELS
from kcdp.training.reports.evaluation import PREDICTIONS, REPORT
from kcdp.training.reports.intervals import FIGURES, paired_differences
from kcdp.training.reports.measurement import read_predictions
from kcdp.training.reports.specs import short, specs

#: Settings that say where a run lay and what it ran on, not what it is; and its seed.
_PLACES = (("training", "seed"), ("training", "device"), ("training", "workers"))


@dataclass(frozen=True)
class Report:
    """One evaluated run.

    Attributes:
        folder: of ``report.json``.
        content: of ``report.json``.
    """

    folder: Path
    content: dict[str, Any]

    @property
    def configuration(self) -> dict[str, Any]:
        """Of the run."""
        return self.content["configuration"]

    @property
    def pictures(self) -> list[str]:
        """Fingerprints of the datasets measured."""
        return [row["pictures"] for row in self.content["datasets"]]

    @property
    def data(self) -> str:
        """The datasets measured, for messages."""
        return ", ".join(f"{row['data']} ({row['metrics']['n']} pictures)" for row in self.content["datasets"])


def read_report(run: Path) -> Report:
    """The report of RUN: ``RUN/report``, or RUN where it is the report's folder or its ``report.json``.

    Raises:
        KcdpError: there is none, or an older kcdp wrote it.
    """
    for path in (run, run / "report" / REPORT, run / REPORT):
        if path.is_file():
            break
    else:
        raise KcdpError(f"{run} holds no {REPORT}", "an evaluated run", f"run: kcdp evaluate {run} --data SPEC")
    content = read_json(path)
    if not isinstance(content, dict) or not {"datasets", "configuration", "checkpoint"} <= set(content):
        raise KcdpError(f"{path} is not a report of this kcdp", "what kcdp evaluate writes", "evaluate the run again")
    return Report(path.parent, content)


def check_comparable(reports: Sequence[Report]) -> None:
    """
    Raises:
        KcdpError: two of them are of one checkpoint, or were measured on different pictures.
    """
    first = reports[0]
    seen: dict[str, Report] = {}
    for one in reports:
        if one.pictures != first.pictures:
            raise KcdpError(
                f"{first.folder} was measured on {first.data} and {one.folder} on {one.data}", "the same pictures",
                "evaluate both with the same --data",
            )  # fmt: skip
        other = seen.setdefault(one.content["checkpoint"]["sha256"], one)
        if other is not one:
            raise KcdpError(f"{other.folder} and {one.folder} are of one checkpoint", "each run once", "leave one out")


def kind_of(report: Report) -> str:
    """What two runs of the same kind have in common: every setting but seed, device and the folders data lies in."""
    configuration = json.loads(json.dumps(report.configuration))
    for table, name in _PLACES:
        configuration[table].pop(name, None)
    data, training = configuration["data"], configuration["training"]
    for name in ("source", "target", "validation", "ancestors"):
        data[name] = [short(spec) for spec in specs(data[name])]
    data["captions"] = [Path(file).name for file in data["captions"]]
    training["init_from"] = bool(training["init_from"])
    configuration["model"]["backbone"] = Path(configuration["model"]["backbone"]).name
    configuration["checkpoint"] = report.content["checkpoint"]["file"]
    return json.dumps(configuration, sort_keys=True)


def name_of(report: Report) -> str:
    """Profile, preset, source and target of a run in a few words."""
    configuration = report.configuration
    source, target = (" + ".join(map(short, specs(configuration["data"][name]))) for name in ("source", "target"))
    method = configuration["training"].get("method", "")
    words = [configuration["profile"], *([method] if method not in ("", "kcdp", configuration["profile"]) else [])]
    return f"{', '.join(words)}, {configuration['preset']}: {source or '?'}" + (f" -> {target}" if target else "")


def compare(reports: Sequence[Report], names: Sequence[str] = ()) -> dict[str, Any]:
    """Runs of one kind become one row.

    Args:
        reports: comparable ones, see ``check_comparable``.
        names: of the rows, in the order in which their first runs come; empty: made from the configurations.

    Returns:
        ``datasets``: name, number of pictures and the constant answer's figures of each; ``rows``: ``name`` and
        ``runs``, each run with ``folder``, ``seed``, ``step``, and for each dataset and the source's validation (None
        where not measured) its figures; and ``summary``, the same with mean and deviation (see ``spread``).

    Raises:
        KcdpError: the number of names is not that of the rows.
    """
    kinds: dict[str, list[Report]] = {}
    for one in reports:
        kinds.setdefault(kind_of(one), []).append(one)
    if names and len(names) != len(kinds):
        counts = ", ".join(str(len(group)) for group in kinds.values())
        raise KcdpError(f"{len(names)} names for {len(kinds)} rows (of {counts} runs)", "one --name for each row")
    made = _distinct([name_of(group[0]) for group in kinds.values()])
    rows = []
    for name, group in zip(names or made, kinds.values(), strict=True):
        runs = [_run(one) for one in group]
        summary = {
            "datasets": [_spread([run["datasets"][i] for run in runs]) for i in range(len(runs[0]["datasets"]))],
            "validation": _spread([run["validation"] for run in runs if run["validation"]]),
        }
        rows.append({"name": name, "runs": runs, "summary": summary})
    datasets = [
        {"data": row["data"], "split": row["split"], "n": row["metrics"]["n"], "pictures": row["pictures"],
         "constant_baseline": row["metrics"]["constant_baseline"]}
        for row in reports[0].content["datasets"]
    ]  # fmt: skip
    return {"datasets": datasets, "rows": rows}


def paired(first: Report, second: Report, *, resamples: int, seed: int) -> list[dict[str, Any]] | None:
    """By how much the second run is better than the first on each dataset, on the same pictures.

    Returns:
        see ``paired_differences``; None where one of them has no predictions beside its report.

    Raises:
        KcdpError: predictions are damaged or are not of the pictures measured.
    """
    if not all((one.folder / PREDICTIONS).is_file() for one in (first, second)):
        return None
    answers = [list(read_predictions(one.folder / PREDICTIONS).values()) for one in (first, second)]
    found = []
    for mine, others in zip(*answers, strict=False):
        if mine.keys() != others.keys():
            raise KcdpError(f"the predictions of {first.folder} and {second.folder} are of different pictures",
                            fix="evaluate both again")  # fmt: skip
        columns = np.array([[LABELS.index(mine[key][0]), LABELS.index(mine[key][1]), LABELS.index(others[key][1])]
                            for key in mine])  # fmt: skip
        found.append(paired_differences(*columns.T, resamples=resamples, seed=seed))
    return found


def _run(report: Report) -> dict[str, Any]:
    content = report.content
    validation = content["validation"]
    return {
        "folder": str(report.folder),
        "seed": report.configuration["training"]["seed"],
        "step": content["checkpoint"]["progress"].get("step"),
        "datasets": [_figures(row) for row in content["datasets"]],
        "validation": _figures(validation) if validation else None,
    }


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row["metrics"][name] for name in FIGURES} | {"intervals": row["intervals"]}


def _spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """By figure: mean over runs, and standard deviation (with n - 1), None for a single run."""
    if not runs:
        return None
    columns = {name: [run[name] for run in runs] for name in FIGURES}
    return {
        name: {
            "mean": statistics.mean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "runs": len(values),
        }
        for name, values in columns.items()
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that several rows have get a number."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]
