"""The captioners by name. A new one is a module with a ``Captioner`` and a row of ``CAPTIONERS``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kcdp.errors import KcdpError, nearest
from kcdp.knowledge.captioners.base import Captioner, Request


@dataclass(frozen=True)
class Entry:
    """One captioner.

    Attributes:
        module: holds ``create(request) -> Captioner``; imported only when the captioner is chosen.
        help: one line.
        weights: what ``--weights`` stands for; empty where it takes none.
        takes_model: whether ``--model`` means anything to it.
        kind: the only kind of dataset it can describe; empty for any.
    """

    module: str
    help: str
    weights: str = ""
    takes_model: bool = False
    kind: str = ""


_HERE = "kcdp.knowledge.captioners"

CAPTIONERS: Mapping[str, Entry] = MappingProxyType({
    "coca": Entry(f"{_HERE}.coca", "CoCa, through open_clip: a short caption of what is seen",
                  "a weights file, a folder with open_clip_config.json, or an open_clip name", takes_model=True),
    "instructblip": Entry(f"{_HERE}.instructblip", "InstructBLIP, as in the paper: subject, expression, feeling",
                          "the model's folder in the layout of transformers"),
    "file": Entry(f"{_HERE}.file", "captions that somebody else wrote: JSON, JSONL or CSV by path or hash",
                  "the file"),
    "emoji": Entry(f"{_HERE}.emoji", "the names of emoji; they often are the emotion: not for measuring",
                   kind="emoji"),
    "drawn": Entry(f"{_HERE}.drawn", "what a synthetic: picture shows, from its drawing parameters",
                   kind="synthetic"),
    "none": Entry(f"{_HERE}.none", "empty captions, for comparison"),
})  # fmt: skip


def open_captioner(name: str, request: Request) -> Captioner:
    """The captioner of a name, ready to work.

    Raises:
        KcdpError: unknown name; an option or a dataset it cannot use; a package or weights missing.
    """
    if name not in CAPTIONERS:
        raise KcdpError(f"captioner {name!r} is unknown{nearest(name, CAPTIONERS)}", f"one of {', '.join(CAPTIONERS)}")
    entry = CAPTIONERS[name]
    for option, value, taken in (
        ("--weights", request.weights, bool(entry.weights)),
        ("--model", request.model, entry.takes_model),
    ):
        if value is not None and not taken:
            raise KcdpError(f"captioner {name!r} takes no {option}", fix=f"leave {option} {value} out")
    kind = request.dataset.name.partition(":")[0]
    if entry.kind and kind != entry.kind:
        raise KcdpError(
            f"captioner {name!r} cannot describe {request.dataset.name!r}", f"a dataset {entry.kind}:...",
            "choose another --captioner",
        )  # fmt: skip
    captioner: Captioner = importlib.import_module(entry.module).create(request)
    return captioner
