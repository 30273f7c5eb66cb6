"""The exact passes in the order they are applied, and what each of them did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kcdp.errors import KcdpError, nearest
from kcdp.export.device.model import DeviceModel
from kcdp.export.passes.attention import lean_attention
from kcdp.export.passes.autoencoder import fold_autoencoder
from kcdp.export.passes.context import fold_context
from kcdp.export.passes.counting import Counts, count
from kcdp.export.passes.experts import gather_experts
from kcdp.export.passes.lora import merge_adapters
from kcdp.export.passes.norms import scale_channels
from kcdp.export.passes.pixels import take_pixels
from kcdp.export.passes.pooling import collapse_pyramid
from kcdp.export.passes.timestep import fold_timestep
from kcdp.export.passes.winograd import filter_minimally


@dataclass(frozen=True)
class PassOptions:
    """What passes need to know beside the model.

    Attributes:
        size: side of the pictures.
        kernel: form of attention without maps; see ``kcdp.export.device.attention.Attention``.
        winograd: 3x3 convolutions by minimal filtering, for targets whose runtimes do not choose such themselves.
        norms: group normalisation without copies, for targets whose runtimes keep channels last.
    """

    size: int
    kernel: str = "products"
    winograd: bool = False
    norms: bool = False


@dataclass(frozen=True)
class ExactPass:
    """A rewriting that leaves the function as it is, up to rounding.

    Attributes:
        name: for ``--skip-pass``.
        what: one line.
        apply: rewrites a model in place.
        wanted: whether it is worth it under these options.
    """

    name: str
    what: str
    apply: Callable[[DeviceModel, PassOptions], None]
    wanted: Callable[[PassOptions], bool] = lambda options: True


TINY = 1e-30
#: "dead-branches" rewrites the graph, not the model: see ``kcdp.export.tracing.drop_dead_branches``.
DEAD_BRANCHES = "dead-branches"
PASSES: tuple[ExactPass, ...] = (
    ExactPass("lora", "adapters merged into the weights", lambda m, o: merge_adapters(m)),
    ExactPass("timestep", "time embedding folded into biases", lambda m, o: fold_timestep(m)),
    ExactPass("pixels", "uint8 in, scaling in the graph", lambda m, o: take_pixels(m)),
    ExactPass("autoencoder", "quant_conv, mean and scale in the last convolution", lambda m, o: fold_autoencoder(m)),
    ExactPass("context", "knowledge folded into keys and values", lambda m, o: fold_context(m)),
    ExactPass("attention", "no probabilities where no map is wanted", lambda m, o: lean_attention(m, o.kernel)),
    ExactPass("pyramid", "pyramid and pooling as region means", lambda m, o: collapse_pyramid(m, o.size)),
    ExactPass("experts", "experts in one product, answers gathered", lambda m, o: gather_experts(m)),
    ExactPass(
        "winograd",
        "large 3x3 convolutions by minimal filtering",
        lambda m, o: filter_minimally(m, o.size),
        lambda o: o.winograd,
    ),
    ExactPass(
        "norms",
        "group norms as scalings of channels",
        lambda m, o: scale_channels(m, o.size),
        lambda o: o.norms,
    ),
)
NAMES = (*(exact.name for exact in PASSES), DEAD_BRANCHES)


@dataclass(frozen=True)
class PassRow:
    """What a pass did.

    Attributes:
        counts: of the model after it.
        difference: largest change of any logit or entry of v on the probe, by this pass alone; None: not applied.
        relative: the same as a share of the largest logit or entry of v.
    """

    name: str
    what: str
    counts: Counts
    difference: float | None
    relative: float | None = None

    def describe(self) -> str:
        """One line."""
        counts = self.counts
        made = "" if self.relative is None else f", largest difference {self.relative:.1e} of the largest"
        return (f"{self.name:<14}{counts.operators:>6} operators {counts.parameters / 1e6:>8.2f} M "
                f"{counts.gflops:>8.2f} GFLOP {counts.megabytes:>8.1f} MB{made}")  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        differences = {"max_abs_difference": self.difference, "max_relative_difference": self.relative}
        return {"pass": self.name, "what": self.what, **asdict(self.counts), **differences}


def check_names(names: Iterable[str]) -> frozenset[str]:
    """Raises KcdpError for a pass that does not exist."""
    names = frozenset(names)
    for name in sorted(names - set(NAMES)):
        raise KcdpError(f"no pass is called {name!r}{nearest(name, NAMES)}", f"one of {', '.join(NAMES)}")
    return names


def apply_passes(
    model: DeviceModel,
    options: PassOptions,
    probe: Sequence[torch.Tensor] | None = None,
    skip: Collection[str] = (),
    each: Callable[[str], None] = lambda name: None,
) -> list[PassRow]:
    """Rewrite a model in place, pass by pass.

    Args:
        probe: uint8 pictures [N, S, S, 3] and, for a model that takes it, knowledge; every pass is measured on them.
            None measures nothing.
        skip: names of passes to leave out.
        each: called with the name of each pass before it runs.

    Returns:
        a row for the model as it came, then one for each pass, whether applied or not.
    """
    skip = check_names(skip)
    rows = [PassRow("as published", "", count(model, options.size), None)]
    before = _run(model, probe)
    for exact in PASSES:
        each(exact.name)
        if exact.name in skip or not exact.wanted(options):
            why = "left out" if exact.name in skip else "not for this target"
            rows.append(PassRow(exact.name, f"{exact.what} ({why})", rows[-1].counts, None))
            continue
        exact.apply(model, options)
        after = _run(model, probe)
        rows.append(PassRow(exact.name, exact.what, count(model, options.size), *_differences(before, after)))
        before = after
    return rows


def _run(model: DeviceModel, probe: Sequence[torch.Tensor] | None) -> list[torch.Tensor] | None:
    if probe is None:
        return None
    with torch.inference_mode():
        return list(model(model.scaled(probe[0]), *probe[1:])[:2])


def _differences(
    before: list[torch.Tensor] | None, after: list[torch.Tensor] | None
) -> tuple[float | None, float | None]:
    """The largest, and the largest as a share of the largest number of the same tensor."""
    if before is None or after is None:
        return None, None
    changed = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True)]
    size = [max(float(a.abs().max()), TINY) for a in before]
    return max(changed), max(a / b for a, b in zip(changed, size, strict=True))
