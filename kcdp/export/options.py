"""What is to be made of a run, and which wishes make no sense."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kcdp.errors import KcdpError
from kcdp.export.facts import without_folders
from kcdp.export.passes.registry import check_names
from kcdp.export.runners import usable
from kcdp.export.targets import Batch, Target, choose


@dataclass(frozen=True)
class ExportOptions:
    """What is to be made of a run.

    Attributes:
        target, precision: see ``kcdp.export.targets``.
        knowledge: "input", "constant" or "implicit"; None: as the run has it.
        text: the one text of "constant" knowledge of a run that is told by captions.
        size: side of the pictures; None: that of the training.
        batch: a number, or MIN:OPT:MAX; None: free.
        skip: names of exact passes to leave out.
        calibration: pictures to measure on; None: training pictures.
    """

    target: str = "portable"
    precision: str = "fp32"
    knowledge: str | None = None
    text: str | None = None
    size: int | None = None
    batch: str | None = None
    skip: frozenset[str] = field(default_factory=frozenset)
    calibration: str | None = None

    def resolve(self) -> tuple[Target, Batch]:
        """Raises KcdpError for a combination that there is not."""
        target = choose(self.target, self.precision)
        check_names(self.skip)
        if self.precision == "bf16" and not target.typed_bfloat16 and not usable(target.runtimes, "bfloat16"):
            raise KcdpError(
                f"{self.target} in bf16: no runtime here computes in bfloat16, so that it could not be checked",
                f"{' or '.join(target.runtimes)} on a processor that has it",
                'run: pip install "kcdp[openvino]", or export where there is AVX-512 bf16 or AMX',
            )  # fmt: skip
        return target, Batch.parse(self.batch, target)

    def to_dict(self) -> dict[str, Any]:
        """JSON, for the manifest: ``skip`` in order, no folders of this machine."""
        return {**vars(self), "skip": sorted(self.skip), "calibration": without_folders(self.calibration)}

    @property
    def measures(self) -> bool:
        """Whether pictures decide on the precision."""
        if self.precision == "bf16":
            return choose(self.target, self.precision).typed_bfloat16
        return self.precision != "fp32"
