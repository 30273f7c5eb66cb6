"""The log of a run: ``log.jsonl``, a JSON object per line, and the same numbers as TensorBoard events."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kcdp.errors import KcdpError
from kcdp.files import atomic_file

LOG = "log.jsonl"
#: Folder of a run with TensorBoard's event files.
EVENTS = "tensorboard"


class RunLog:
    """Appends rows.

    Args:
        out: the run folder.
        step: the step training goes on from: later rows of an interrupted run are left out, for those steps are done
            again.
        tensorboard: whether to write events too.
        silent: write nothing (a process that is not the main one).
    """

    def __init__(self, out: Path, step: int, *, tensorboard: bool, silent: bool = False) -> None:
        self.path, self.silent, self._writer = out / LOG, silent, None
        if silent:
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        with atomic_file(self.path) as temporary:
            kept = [line for line in lines if step_of(line) <= step]
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(out / EVENTS), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it has a ``step``. Numbers in it, and in a ``validation`` inside it, are events.

        Raises:
            KcdpError: it cannot be written.
        """
        if self.silent:
            return
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, allow_nan=False) + "\n")
            if self._writer is not None:
                for name, value in _scalars(row):
                    self._writer.add_scalar(name, value, row["step"])
        except OSError as error:
            raise KcdpError(f"writing {self.path} failed ({error.strerror})", fix="free some space") from None

    def close(self) -> None:
        """Flush the events."""
        if self._writer is not None:
            self._writer.close()


def step_of(line: str) -> float:
    """The step of a row of the log; infinite for what is not a row."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _scalars(row: dict[str, Any]) -> list[tuple[str, float]]:
    found = [(f"train/{name}", value) for name, value in row.items() if name != "step"]
    validation = row.get("validation", {})
    found += [(f"validation/{name}", value) for name, value in validation.items()]
    found += [(f"recall/{name}", value) for name, value in validation.get("recall", {}).items()]
    return [(name, float(value)) for name, value in found if isinstance(value, (int, float))]
