"""Where a training stands, and what it looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kcdp.config import Config
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


def batch_sizes(config: Config, pictures: Pictures, world: int) -> dict[str, int]:
    """Pictures per step by domain, over all processes; of a dataset with fewer, as many as divide evenly.

    Raises:
        KcdpError: they cannot be divided among processes and accumulated parts, or are too few to normalise.
    """
    training = config.training
    divisor = world * training.accumulate
    sizes = {}
    for name, data in pictures.domains().items():
        setting = "target_batch_size" if name == "target" and training.target_batch_size else "batch_size"
        wanted = getattr(training, setting)
        if wanted % divisor:
            raise KcdpError(
                f"training.{setting} is {wanted}, for {world} processes x {training.accumulate} parts",
                f"a multiple of {divisor}", f"set it to {-(-wanted // divisor) * divisor}",
            )  # fmt: skip
        sizes[name] = min(wanted, len(data)) // divisor * divisor
        if not sizes[name]:
            raise KcdpError(
                f"{data.dataset.name!r} holds {len(data)} pictures for {world} processes x {training.accumulate} parts",
                f"{divisor} or more", "use fewer processes or training.accumulate=1",
            )  # fmt: skip
    if config.model.head.normalize_v and sum(sizes.values()) // training.accumulate < 2:
        raise KcdpError(
            "a training step has one picture", "2 or more, for model.head.normalize_v",
            "raise training.batch_size, or add --set model.head.normalize_v=false",
        )  # fmt: skip
    return sizes
