"""What an exported graph has to agree with: the trained model's answers, computed in float32 by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from kcdp.errors import KcdpError

#: Features and maps are kept, and compared, of at most so many pictures, and of so many bytes: at the size of Stable
#: Diffusion 1.5 a picture has tens of megabytes of them.
LEVEL_PICTURES, LEVEL_BYTES = 32, 1 << 28
#: Pixels of the pictures that are computed at once; more would only cost memory.
PIXELS_AT_ONCE = 4 * 256 * 256

Feed = Mapping[str, np.ndarray]


class Named(Protocol):
    """A module whose outputs have names: "logits" [N, 6]; "v" [N, V]; "s8", ... [N, C, h, w]; "maps_s16", ...
    [N, T, h, w]."""

    @property
    def output_names(self) -> Sequence[str]:
        """In the order of the outputs, "logits" first."""

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors in the order of ``output_names``."""


class Reference:
    """The trained model's outputs on the check pictures, computed once.

    Args:
        model: the trained model as it is, before anything was rewritten; see ``Named``.
        inputs: uint8 [N, S, S, 3], or all inputs by name in the model's order, "images" first, N rows each.
        keys: names of the pictures, for lists of them.
        labels: int [N], index in ``LABELS``, -1 where a picture has none; for measuring only.
        level_pictures: features are kept of so many pictures at most.

    Attributes:
        inputs: by name.
        logits: float32 [N, 6].
        levels: every other output by name, float32, of the first pictures.
        prepare: what a graph's inputs are made of those of the model with; by default they are the same.

    Raises:
        KcdpError: no pictures, inputs of different lengths, or a model that is not float32.
    """

    def __init__(
        self,
        model: Named,
        inputs: Feed | np.ndarray,
        *,
        keys: Sequence[str] = (),
        labels: np.ndarray | None = None,
        level_pictures: int = LEVEL_PICTURES,
        progress: bool = False,
    ) -> None:
        self.inputs = {"images": inputs} if isinstance(inputs, np.ndarray) else dict(inputs)
        self.prepare: Callable[[dict[str, np.ndarray]], Feed] = dict
        count = _rows(self.inputs)
        self.keys = tuple(keys) or tuple(f"picture {i + 1}" for i in range(count))
        self.labels = np.full(count, -1) if labels is None else np.asarray(labels)
        if len(self.keys) != count or len(self.labels) != count:
            raise ValueError(f"{count} pictures, {len(self.keys)} keys, {len(self.labels)} labels")
        _check_float32(model)
        self.names = tuple(model.output_names)
        side = max(self.inputs["images"].shape[1:3])
        step = max(1, min(16, PIXELS_AT_ONCE // side**2))
        logits: list[np.ndarray] = []
        kept: dict[str, list[np.ndarray]] = {name: [] for name in self.names[1:]}
        room = level_pictures
        with _full_precision():
            for start in tqdm(range(0, count, step), desc="reference", disable=not progress, leave=False):
                batch = [torch.from_numpy(np.ascontiguousarray(a[start : start + step])) for a in self.inputs.values()]
                outputs = dict(zip(self.names, model(*batch), strict=True))
                logits.append(_array(outputs.pop("logits")))
                if start == 0:
                    room = min(room, _affordable(outputs))
                for name, tensor in outputs.items():
                    if start < room:
                        kept[name].append(_array(tensor[: room - start]))
        self.logits = np.concatenate(logits)
        self.levels = {name: np.concatenate(parts) for name, parts in kept.items() if parts}

    @property
    def images(self) -> np.ndarray:
        """uint8 [N, S, S, 3]."""
        return self.inputs["images"]

    @property
    def level_pictures(self) -> int:
        """How many pictures have features and maps."""
        return min((len(array) for array in self.levels.values()), default=0)

    def not_finite(self) -> list[str]:
        """One line for each output that holds NaN or infinity."""
        found = []
        for name, array in {"logits": self.logits, **self.levels}.items():
            broken = int((~np.isfinite(array.reshape(len(array), -1))).any(axis=1).sum())
            if broken:
                found.append(f"the trained model itself gives {name} that are not finite for {broken} pictures")
        return found

    def feeds(self, batch: int, count: int | None = None, fixed: bool = False) -> Iterator[tuple[range, Feed]]:
        """The inputs in batches, with the places of their pictures.

        Args:
            batch: pictures in each but the last.
            count: only so many pictures, the first; None: all.
            fixed: the last batch is full, too, like that of fewer pictures than a batch: with the first ones again.
        """
        total = len(self.images) if count is None else min(count, len(self.images))
        for start in range(0, total, batch):
            places = range(start, min(start + batch, total))
            chosen = np.arange(start, start + batch) % total if fixed or total < batch else np.array(places)
            yield places, self.prepare({name: array[chosen] for name, array in self.inputs.items()})


def _rows(inputs: Feed) -> int:
    counts = {name: len(array) for name, array in inputs.items()}
    if "images" not in counts or len(set(counts.values())) != 1:
        raise ValueError(f"inputs of {counts} rows")
    if not counts["images"]:
        raise KcdpError("no pictures to check the graph on", "at least one", "name some with --check-images")
    return counts["images"]


def _check_float32(model: Any) -> None:
    if isinstance(model, torch.nn.Module):
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise KcdpError(f"{name} of the reference model is {tensor.dtype}", "float32 throughout")


def _affordable(outputs: Mapping[str, torch.Tensor]) -> int:
    """Pictures whose features fit in ``LEVEL_BYTES``; never less than a batch of 5 takes."""
    each = sum(tensor[0].numel() * 4 for tensor in outputs.values())
    return max(5, LEVEL_BYTES // max(each, 1))


def _array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype != torch.float32:
        raise KcdpError(f"an output of the reference model is {tensor.dtype}", "float32")
    return tensor.detach().cpu().numpy().copy()  # a part of a batch would keep all of it


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32: PyTorch may have been told elsewhere to take fewer digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
