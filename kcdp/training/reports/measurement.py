"""A model's answers to one dataset, and everything that is computed from them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.data.dataset import ImageDataset
from kcdp.errors import KcdpError
from kcdp.files import atomic_file
from kcdp.labels import LABELS
from kcdp.training.metrics import classification_metrics
from kcdp.training.predict import Predictions
from kcdp.training.reports.calibration import calibration
from kcdp.training.reports.experts import expert_use
from kcdp.training.reports.intervals import bootstrap_intervals

#: What a dataset is to an evaluation.
MEASURED, VALIDATION, NEUTRAL = "measured", "source validation", "neutral"

_COLUMNS = ("dataset", "role", "key", "group", "label", "predicted", *LABELS)


@dataclass(frozen=True)
class Answers:
    """A model's answers to one dataset.

    Attributes:
        name: the dataset string.
        role: ``MEASURED``, ``VALIDATION`` or ``NEUTRAL``.
        data: the pictures, in the order of the predictions.
        predictions: one row a picture.
        split: "train", "val", "test", or "all".
    """

    name: str
    role: str
    data: ImageDataset
    predictions: Predictions
    split: str = "all"

    @property
    def keys(self) -> list[str]:
        """Of the pictures."""
        return [sample.key for sample in self.data.samples]

    @property
    def predicted(self) -> np.ndarray:
        """int64 [N], index in LABELS."""
        return self.predictions.logits.argmax(axis=1)


def measure(dataset: ImageDataset, predictions: np.ndarray) -> dict[str, Any]:
    """``metrics`` over all pictures and, where the dataset has groups, ``groups`` by group name.

    Args:
        dataset: labelled pictures.
        predictions: int [N], index in LABELS.
    """
    labels = dataset.labels
    result: dict[str, Any] = {"metrics": classification_metrics(labels, predictions)}
    groups = sorted({sample.group for sample in dataset.samples} - {""})
    if groups:
        result["groups"] = {}
        for group in groups:
            inside = [i for i, sample in enumerate(dataset.samples) if sample.group == group]
            result["groups"][group] = classification_metrics(labels[inside], predictions[inside])
    return result


def measured_row(answers: Answers, temperature: float | None, *, resamples: int, seed: int) -> dict[str, Any]:
    """One dataset's part of a report.

    Args:
        temperature: fitted on other pictures; None: none.
        resamples, seed: of the bootstrap.

    Returns:
        ``data``, ``role``, ``split``, ``pictures`` (see ``fingerprint``), ``metrics``, ``intervals``, ``calibration``
        and ``experts``; ``groups`` and ``group_intervals`` where there are groups.
    """
    labels, logits = answers.data.labels, answers.predictions.logits
    row = {
        "data": answers.name,
        "role": answers.role,
        "split": answers.split,
        "pictures": fingerprint(answers.data),
        **measure(answers.data, answers.predicted),
    }
    options: dict[str, int] = {"resamples": resamples, "seed": seed}
    row["intervals"] = bootstrap_intervals(np.array(row["metrics"]["confusion"]), **options)
    if "groups" in row:
        row["group_intervals"] = {
            name: bootstrap_intervals(np.array(group["confusion"]), **options) for name, group in row["groups"].items()
        }
    row["calibration"] = calibration(logits, labels, temperature)
    row["experts"] = expert_use(answers.predictions.gates, answers.predictions.chosen, labels)
    return row


def fingerprint(dataset: ImageDataset) -> str:
    """Names the pictures measured and their labels, in whatever folder they lie and order they come.

    Returns:
        the first 16 hexadecimal digits of the SHA-256 over sorted keys with labels.
    """
    rows = sorted(f"{sample.key}\0{sample.label}\n" for sample in dataset.samples)
    return hashlib.sha256("".join(rows).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def write_predictions(path: Path, answers: Sequence[Answers]) -> None:
    """CSV with a header: dataset, role, key, group, label, predicted, and the six probabilities by class name.

    UTF-8; label is empty for neutral pictures; probabilities have seven significant digits.
    """
    with atomic_file(path) as temporary, temporary.open("w", **_TEXT) as handle:
        rows = csv.writer(handle)
        rows.writerow(_COLUMNS)
        for one in answers:
            pairs = zip(one.data.samples, one.predicted, one.predictions.probabilities, strict=True)
            for sample, predicted, probabilities in pairs:
                label = "" if sample.label is None else LABELS[sample.label]
                numbers = [f"{p:.7g}" for p in probabilities]
                rows.writerow([one.name, one.role, sample.key, sample.group, label, LABELS[predicted], *numbers])


def read_predictions(path: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """What ``write_predictions`` wrote of the datasets measured: dataset string -> key -> (label, predicted).

    Raises:
        KcdpError: the file is missing or is not one of ours.
    """
    found: dict[str, dict[str, tuple[str, str]]] = {}
    try:
        with path.open(**_TEXT) as handle:
            for row in csv.DictReader(handle):
                if row["role"] == MEASURED:
                    found.setdefault(row["dataset"], {})[row["key"]] = (row["label"], row["predicted"])
    except OSError as error:
        raise KcdpError(f"{path} cannot be read ({error.strerror})", "predictions of kcdp evaluate") from None
    except (KeyError, ValueError, csv.Error) as error:
        raise KcdpError(f"{path} is damaged ({error!r})", "predictions of kcdp evaluate", "evaluate again") from None
    return found


#: Any key survives, and line ends are the writer's own.
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
