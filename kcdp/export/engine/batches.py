"""How many pictures an engine takes at once: a fixed number, or a range with a favourite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kcdp.errors import KcdpError
from kcdp.export.engine.network import ParsedNetwork
from kcdp.export.engine.package import Native
from kcdp.export.targets import MAX_BATCH

_TEXT = re.compile(r"(\d{1,9}):(\d{1,9}):(\d{1,9})")
#: Numbers in one tensor: kernels count with 32 bits. From "Volume limits" of
#: https://docs.nvidia.com/deeplearning/tensorrt/operators/docs/Convolution.html; past them ``tensorrt-rtx`` 1.7 builds
#: without a word, and its report of memory is nonsense.
LARGEST_TENSOR = 2**31 - 1


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
        if not values or not 1 <= values[0] <= values[1] <= values[2] <= MAX_BATCH:
            raise KcdpError(
                f"--profile {text}", f"MIN:OPT:MAX, whole numbers in rising order, from 1 to {MAX_BATCH}",
                "for example 1:8:16",
            )  # fmt: skip
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


def check_volume(parsed: ParsedNetwork, batches: BatchRange | None) -> None:
    """Raises KcdpError where a tensor of the largest batch has more than ``LARGEST_TENSOR`` numbers."""
    name, numbers = parsed.largest_tensor()
    largest = 1 if batches is None else batches.largest
    if numbers * largest <= LARGEST_TENSOR:
        return
    fits = LARGEST_TENSOR // numbers
    of_batch = "" if batches is None else f" for a batch of {largest}"
    raise KcdpError(
        f"the layer {name!r} makes {numbers * largest} numbers{of_batch}",
        f"at most {LARGEST_TENSOR} in a tensor: TensorRT's kernels count with 32 bits",
        f"give a --profile of at most {fits} pictures" if batches is not None and fits else
        "export it for fewer or smaller pictures",
    )  # fmt: skip


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
