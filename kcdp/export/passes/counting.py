"""What a model costs: operators, parameters, multiplications, bytes; counted on shapes, without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import share


@dataclass(frozen=True)
class Counts:
    """Of one picture through a model.

    Attributes:
        operators: torch operators that compute or copy; views do not count.
        parameters: numbers among weights and constants.
        gflops: 1e9 operations of convolutions, products and attention; a multiplication with its addition is two.
        megabytes: 1e6 bytes of weights and constants.
    """

    operators: int
    parameters: int
    gflops: float
    megabytes: float


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.count += 1
        return func(*args, **(kwargs or {}))


def count(model: DeviceModel, size: int) -> Counts:
    """Count.

    Args:
        size: side of the pictures.
    """
    shapes = share(model, "meta")
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    operators, flops = _Operators(), FlopCounterMode(display=False)
    with flops, operators:
        shapes.run_shapes(size)
    return Counts(
        operators.count, sum(t.numel() for t in tensors), flops.get_total_flops() / 1e9,
        sum(t.numel() * t.element_size() for t in tensors) / 1e6,
    )  # fmt: skip
