"""Cards that an engine of ``tensorrt-rtx`` is built for, without any of them at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kcdp.errors import KcdpError, nearest
from kcdp.export.engine.package import CLASSIC, Native

#: Not architectures: "any", and the GPU of this machine, which an engine for other machines must not depend on.
_NOT_CARDS = frozenset({"NONE", "CURRENT"})
#: Precision of a bundle -> the oldest cards that compute in it, where that is not every card. The builder says so only
#: while it builds: "the model contains HW-specific datatypes: b16".
_OLDEST: Mapping[str, int] = {"bfloat16": 80}


def known_capabilities(trt: Native) -> dict[str, Native]:
    """ "SM89" -> the package's value, oldest first."""
    members = trt.ComputeCapability.__members__
    cards = {str(name): value for name, value in members.items() if name not in _NOT_CARDS}
    return dict(sorted(cards.items(), key=lambda item: _number(item[0])))


def check_capabilities(names: Sequence[str], trt: Native, precision: str = "") -> tuple[str, ...]:
    """The names in capitals, each once, oldest first.

    Args:
        precision: of the bundle, as its manifest spells it; empty: any.

    Raises:
        KcdpError: one that the package does not know, or that does not compute in this precision.
    """
    known = known_capabilities(trt)
    wanted = [name.upper() for name in names]
    for given, name in zip(names, wanted, strict=True):
        if name not in known:
            hint, fix = _about(name, known)
            raise KcdpError(f"--capability {given}{hint}", f"one of {', '.join(known)}", fix)
        if _number(name) < _OLDEST.get(precision, 0):
            able = [other for other in known if _number(other) >= _OLDEST[precision]]
            raise KcdpError(
                f"--capability {given} for a bundle of {precision}, in which such cards do not compute",
                f"some of {', '.join(able)}", "or export with --precision fp16",
            )  # fmt: skip
    return tuple(name for name in known if name in wanted)


def set_capabilities(names: Sequence[str], trt: Native, config: Native) -> None:
    """Build for these; for none of them, any card from Ampere on."""
    known = known_capabilities(trt)
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(known[name], index)


def _about(name: str, known: Iterable[str]) -> tuple[str, str]:
    """A hint and what to do, for a name that is not among the known."""
    digits = name.removeprefix("SM")
    oldest = next(iter(known))
    if not name.startswith("SM") or not digits.isdecimal():
        return nearest(name, known), ""
    if int(digits[:9]) < _number(oldest):
        return "", f"{oldest} are the oldest cards that it builds for"
    return nearest(name, known), f"for other cards, build where one is, with --package {CLASSIC}"


def _number(name: str) -> int:
    """89 of "SM89"."""
    return int(name.removeprefix("SM"))
