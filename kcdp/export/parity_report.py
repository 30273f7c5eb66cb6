"""What the parity gate found, as data: for the manifest, the terminal and the page."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kcdp.export.agreement import Closeness, Flip
from kcdp.graph import TOLERANCES, Tolerance

#: At most so many changed answers of a runtime are named in a manifest; all are counted.
MOST_FLIPS = 100


@dataclass(frozen=True)
class Run:
    """One runtime at one batch size.

    Attributes:
        numbers: plain JSON: "logits", "probabilities" and "decisions", each None where there was nothing to compare
            (see ``compare_logits``), and "levels" by output name where features were compared.
        logits: float32 [N, 6] as the runtime gave them; None: it gave none.
        levels: v, features and maps, by picture.
    """

    batch: int
    numbers: dict[str, Any]
    failures: tuple[str, ...]
    logits: np.ndarray | None = None
    levels: dict[str, Closeness] = field(default_factory=dict)


@dataclass(frozen=True)
class RuntimeReport:
    """One runtime: what it is and executes, its runs, the answers it changes, and its accuracy where it is known."""

    facts: dict[str, Any]
    runs: tuple[Run, ...]
    failures: tuple[str, ...]
    flips: tuple[Flip, ...] = ()
    accuracy: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """``openvino``."""
        return str(self.facts["runtime"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.facts, "passed": not self.failures, "failures": list(self.failures),
            "batch_sizes": {str(run.batch): run.numbers for run in self.runs},
            "flips": [asdict(flip) for flip in self.flips[:MOST_FLIPS]], "flips_in_all": len(self.flips),
            "accuracy": self.accuracy,
        }  # fmt: skip


@dataclass(frozen=True)
class ParityReport:
    """What the gate found; stored in the manifest.

    Attributes:
        precision: whose tolerance holds.
        general: failures that are no runtime's: the signature, the trained model itself.
        pictures, level_pictures: how many had logits compared, and how many v, features and maps.
        temperature: of the probabilities.
        near_ties: pictures whose two most probable classes are nearly tied in the trained model; see ``NEAR_TIE``.
        answers: emotion -> how many pictures the trained model gives it.
        accuracy: of the trained model on the pictures that have labels; None: none has.
    """

    precision: str
    pictures: int
    level_pictures: int
    temperature: float
    runtimes: tuple[RuntimeReport, ...]
    general: tuple[str, ...]
    near_ties: int
    answers: dict[str, int]
    accuracy: dict[str, Any] | None = None

    @property
    def tolerance(self) -> Tolerance:
        """Of the precision."""
        return TOLERANCES[self.precision]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line each, empty when passed."""
        named = (f"{runtime.name}: {line}" for runtime in self.runtimes for line in runtime.failures)
        return (*self.general, *named)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def flips(self) -> tuple[tuple[str, Flip], ...]:
        """Every changed answer with the name of its runtime."""
        return tuple((runtime.name, flip) for runtime in self.runtimes for flip in runtime.flips)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "passed": self.passed, "failures": list(self.failures), "precision": self.precision,
            "tolerance": asdict(self.tolerance), "pictures": self.pictures, "level_pictures": self.level_pictures,
            "temperature": self.temperature, "near_ties": self.near_ties, "answers": self.answers,
            "accuracy": self.accuracy, "runtimes": [runtime.to_dict() for runtime in self.runtimes],
        }  # fmt: skip

    def summary(self) -> str:
        """One line for each runtime and batch size, then the failures."""
        lines = [f"  {runtime.name}, batch {run.batch}: {self._line(run)}"
                 for runtime in self.runtimes for run in runtime.runs]  # fmt: skip
        return "\n".join([*lines, *(f"  FAILED {failure}" for failure in self.failures)])

    def _line(self, run: Run) -> str:
        if run.numbers["logits"] is None:
            return "nothing to compare"
        decisions = run.numbers["decisions"]["agree"]
        cosines = [row["cosine"] for row in run.numbers.get("levels", {}).values() if row["cosine"] is not None]
        worst = f", features and maps cosine >= 1 - {1 - min(cosines):.0e}" if cosines else ""
        return (f"logits within {run.numbers['logits']['max_abs']:.1e}, decisions {decisions:.2%} "
                f"of {self.pictures}{worst}")  # fmt: skip
