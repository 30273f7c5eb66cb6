"""Where a training stands, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kcdp.data.loader import TensorDataset
from kcdp.errors import KcdpError
from kcdp.training.checkpoint import LAST, Checkpoint


@dataclass
class Progress:
    """Where training stands; stored in every checkpoint.

    Attributes:
        step: optimiser steps done.
        best: validation balanced accuracy of ``best.safetensors``, 0..1: the best so far, or with
            ``training.select = "last"`` the latest; -1 before the first validation.
        best_step: the step that gave it.
        seconds: time spent in training, over all resumptions, validation apart.
        waiting: of these, seconds in which the next batch was not there yet.
        validation: the latest validation metrics.
        validated: the step they were measured at.
        skipped: "source" or "target" -> keys of pictures that could not be read.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    validation: dict[str, Any] = field(default_factory=dict)
    validated: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """What a run looks at.

    Attributes:
        source: augmented training pictures, all labelled.
        validation: pictures that choose the best checkpoint; no augmentation.
        target: unlabelled training pictures of the other domain, in the setting DA. Labels that they have are only
            counted against pseudo-labels, for the log.
    """

    source: TensorDataset
    validation: TensorDataset
    target: TensorDataset | None = None

    def domains(self) -> dict[str, TensorDataset]:
        """ "source" and, in the setting DA, "target"."""
        return {"source": self.source} | ({} if self.target is None else {"target": self.target})


def read_progress(resume: Checkpoint, out: Path) -> Progress:
    """The progress that a checkpoint tells of.

    Raises:
        KcdpError: it is that of another version.
    """
    try:
        return Progress(**resume.progress)
    except TypeError as error:
        raise KcdpError(f"{out / LAST}: {error}", fix="use the kcdp that wrote it") from None
