"""Cards that an engine of ``tensorrt-rtx`` is built for, without any of them at hand."""

from __future__ import annotations

from collections.abc import Sequence

from kcdp.errors import KcdpError, nearest
from kcdp.export.engine.package import Native

#: Not architectures: "any", and the GPU of this machine, which an engine for other machines must not depend on.
_NOT_CARDS = frozenset({"NONE", "CURRENT"})


def known_capabilities(trt: Native) -> dict[str, Native]:
    """ "SM89" -> the package's value, oldest first."""
    members = trt.ComputeCapability.__members__
    cards = {str(name): value for name, value in members.items() if name not in _NOT_CARDS}
    return dict(sorted(cards.items(), key=lambda item: int(item[0].removeprefix("SM"))))


def check_capabilities(names: Sequence[str], trt: Native) -> tuple[str, ...]:
    """The names in capitals, each once, oldest first. Raises KcdpError for one that the package does not know."""
    known = known_capabilities(trt)
    wanted = [name.upper() for name in names]
    for given, name in zip(names, wanted, strict=True):
        if name not in known:
            raise KcdpError(f"--capability {given}{nearest(name, known)}", f"one of {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def set_capabilities(names: Sequence[str], trt: Native, config: Native) -> None:
    """Build for these; for none of them, any card from Ampere on."""
    known = known_capabilities(trt)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(known[name], index)
