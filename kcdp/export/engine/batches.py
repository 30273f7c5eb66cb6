"""How many pictures an engine takes at once: a fixed number, or a range with a favourite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kcdp.errors import KcdpError
from kcdp.export.engine.network import ParsedNetwork
from kcdp.export.engine.package import Native

#: Pictures at once.
MOST = 4096
_TEXT = re.compile(r"(\d+):(\d+):(\d+)")


@dataclass(frozen=True)
class BatchRange:
    """Least, best and largest batch of a graph whose batch is free."""

    least: int
    best: int
    largest: int

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """``1:8:16``. Raises KcdpError for anything else."""
        match = _TEXT.fullmatch(text.strip())
        values = tuple(map(int, match.groups())) if match else ()
        if not values or not 1 <= values[0] <= values[1] <= values[2] <= MOST:
            raise KcdpError(
                f"--profile {text}", f"MIN:OPT:MAX, whole numbers in rising order, at most {MOST}", "for example 1:8:16"
            )
        return cls(*values)

    def as_tuple(self) -> tuple[int, int, int]:
        """Least, best, largest."""
        return self.least, self.best, self.largest

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """An input's shape with each of the three in the place of its free first axis."""
        return tuple((n, *shape[1:]) for n in self.as_tuple())


def check_batches(shapes: Mapping[str, tuple[int, ...]], batches: BatchRange | None) -> dict[str, tuple[int, ...]]:
    """The inputs whose batch is free.

    Args:
        shapes: of all inputs, -1 where an axis is free.

    Raises:
        KcdpError: a free batch without a range, a range without a free batch, or another free axis.
    """
    free = {name: shape for name, shape in shapes.items() if -1 in shape}
    other = [f"{name} {list(shape)}" for name, shape in free.items() if -1 in shape[1:]]
    if other:
        raise KcdpError(f"the input {other[0]} has a free axis beside the batch", "the batch alone")
    if free and batches is None:
        raise KcdpError(
            f"the graph's batch is free (input {next(iter(free))})", "--profile MIN:OPT:MAX", "for example 1:8:16"
        )
    if not free and batches is not None:
        fixed = next(iter(shapes.values()))[0]
        raise KcdpError(f"the graph's batch is fixed ({fixed})", "no --profile", "or export with --batch MIN:OPT:MAX")
    return free


def add_profile(parsed: ParsedNetwork, config: Native, batches: BatchRange | None) -> None:
    """Tell the builder the range of batches, if there is one. Raises KcdpError as ``check_batches`` does."""
    free = check_batches(parsed.input_shapes(), batches)
    if batches is None:
        return
    builder: Native = parsed.builder
    profile = builder.create_optimization_profile()
    for name, shape in free.items():
        profile.set_shape(name, *batches.shapes(shape))
    if config.add_optimization_profile(profile) < 0:
        received = f"{parsed.package.label} refuses the batches {batches.as_tuple()}"
        raise KcdpError(received, fix="choose another --profile")
