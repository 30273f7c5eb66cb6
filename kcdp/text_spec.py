"""What a bundle says of its text side: one definition for the exporter, the manifest and the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kcdp.errors import KcdpError, nearest
from kcdp.tokenizer import TOKENIZER

TEXT_GRAPH = "text.onnx"
MODE = "input"

#: Who reads triples out of a caption: the built-in rules on the device, or the caller, who passes them.
EXTRACTORS = ("rules", "given")
PRECISIONS = ("float32", "float16")


@dataclass(frozen=True)
class TextSpec:
    """From captions to knowledge tokens; see ``kcdp.runtime.text``.

    Attributes:
        context: tokens of one text; k has twice as many, first the caption's, then the triples'.
        width: width of a token.
        encoder: name of the text encoder, with the hash of its weights.
        prefix: put before every caption ("a sticker of"), for which the model was trained.
        extractor: who reads triples out of a caption, one of ``EXTRACTORS``.
        separator: between subject, verb and object of a triple.
        precision: of the stored weights; arithmetic is in float32.
        graph, tokenizer: files of the bundle.

    Raises:
        KcdpError: a value of the wrong kind.
    """

    context: int
    width: int
    encoder: str
    prefix: str = ""
    extractor: str = "rules"
    separator: str = " "
    precision: str = "float32"
    graph: str = TEXT_GRAPH
    tokenizer: str = TOKENIZER

    def __post_init__(self) -> None:
        for name, low in (("context", 3), ("width", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise KcdpError(f"{name} of the text side is {value!r}", f"a whole number from {low}")
        for name, valid in (("extractor", EXTRACTORS), ("separator", (" ", "")), ("precision", PRECISIONS)):
            if getattr(self, name) not in valid:
                raise KcdpError(f"{name} of the text side is {getattr(self, name)!r}", f"one of {list(valid)}")
        for name in ("encoder", "prefix", "graph", "tokenizer"):
            if not isinstance(getattr(self, name), str):
                raise KcdpError(f"{name} of the text side is {getattr(self, name)!r}", "a text")
        for name in ("graph", "tokenizer"):
            file = getattr(self, name)
            if not file.strip(".") or "/" in file or "\\" in file:
                raise KcdpError(f"{name} of the text side is {file!r}", "the name of a file")

    @property
    def tokens(self) -> int:
        """Number of knowledge tokens of a picture."""
        return 2 * self.context

    def files(self) -> tuple[str, str]:
        """Files that a bundle with this text side holds, apart from weights beside the graph."""
        return self.graph, self.tokenizer

    def to_knowledge(self) -> dict[str, Any]:
        """A manifest's ``knowledge``, in plain JSON types; ``read_knowledge`` is the inverse."""
        return {"mode": MODE, "tokens": self.tokens, "width": self.width, "text": asdict(self)}


def read_knowledge(knowledge: Any, where: str = "the manifest") -> TextSpec | None:
    """The text side of a manifest's ``knowledge`` of the mode "input"; None where the bundle takes tokens alone.

    Args:
        knowledge: {"mode": "input", "tokens": T, "width": W, "text": {...} or None}.

    Raises:
        KcdpError: anything else.
    """
    again = "export the bundle again"
    keys = {"mode", "tokens", "width", "text"}
    if not isinstance(knowledge, Mapping) or set(knowledge) != keys or knowledge["mode"] != MODE:
        raise KcdpError(f"{where}: knowledge is {knowledge!r:.80}", f'mode "{MODE}", tokens, width and text', again)
    sizes = (knowledge["tokens"], knowledge["width"])
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise KcdpError(f"{where}: knowledge of {sizes[0]!r} tokens of the width {sizes[1]!r}", "whole numbers", again)
    text = knowledge["text"]
    if text is None:
        return None
    known = [field.name for field in fields(TextSpec)]
    if not isinstance(text, Mapping) or sorted(text) != sorted(known):
        found = sorted(text) if isinstance(text, Mapping) else text
        odd = [name for name in text if name not in known] if isinstance(text, Mapping) else []
        hint = nearest(str(odd[0]), known) if odd else ""
        raise KcdpError(f"{where}: the text side has {found!r}{hint}", f"{sorted(known)}", again)
    spec = TextSpec(**text)
    if (spec.tokens, spec.width) != sizes:
        raise KcdpError(
            f"{where}: the text side makes {spec.tokens} tokens of the width {spec.width}",
            f"{sizes[0]} of the width {sizes[1]}, as the graph takes", again,
        )  # fmt: skip
    return spec
