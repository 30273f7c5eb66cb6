"""What was found in a picture, in a file beside it: ``wave.png.json`` or ``wave.png.xmp``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from kcdp import __version__
from kcdp.errors import KcdpError
from kcdp.files import atomic_file
from kcdp.labels import LABELS
from kcdp.runtime.rows import row

if TYPE_CHECKING:
    from kcdp.runtime.items import Item
    from kcdp.runtime.tagger import Tag

#: Namespace of what XMP has no word for.
NAMESPACE = "urn:kcdp:tag:1.0#"

_X, _RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_MOST_BYTES = 1 << 20  # of a file that may be ours; a longer one is somebody else's


class Sidecars:
    """Writes a file beside each tagged picture. A picture that failed gets none.

    Args:
        kind: a name of ``KINDS``.
        model: digest of the bundle.
        overwrite: replace files that something else has written, too.
    """

    def __init__(self, kind: str, model: str, *, overwrite: bool = False) -> None:
        self._kind, self._model, self._overwrite = kind, model, overwrite
        self.written = self.without_place = 0

    def add(self, item: Item, tag: Tag) -> None:
        """Writes one.

        Raises:
            KcdpError: a file of another program is in the way, or the folder cannot be written to.
        """
        if tag.error is not None:
            return
        if not isinstance(item.source, (str, os.PathLike)):
            self.without_place += 1
            return
        write, ours = KINDS[self._kind]
        path = Path(f"{os.fspath(item.source)}.{self._kind}")
        if os.path.lexists(path) and not self._overwrite and not (path.is_file() and ours(_begin(path))):
            raise KcdpError(f"{path} is there already and not of kcdp", fix="move it away or add --overwrite")
        data = write(tag, self._model)
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
        self.written += 1

    def told(self) -> list[str]:
        """Lines for the end."""
        lines = [f"sidecars written: {self.written}"]
        if self.without_place:
            lines.append(f"pictures without a place for a sidecar (entries of archives): {self.without_place}")
        return lines


def json_sidecar(tag: Tag, model: str) -> bytes:
    """The row with the model's digest, as an indented JSON object in ASCII."""
    return (json.dumps(row(tag, model), indent=2, allow_nan=False) + "\n").encode("ascii")


def xmp_sidecar(tag: Tag, model: str) -> bytes:
    """An XMP packet, UTF-8.

    The emotion is a keyword (``dc:subject``), unless the tagger was unsure; label, confidence, scores, frames, spread
    and the model's digest are in the namespace ``NAMESPACE``.
    """
    for prefix, uri in (("x", _X), ("rdf", _RDF), ("dc", _DC), ("kcdp", NAMESPACE)):
        ElementTree.register_namespace(prefix, uri)
    fields = row(tag, model)
    top = ElementTree.Element(f"{{{_X}}}xmpmeta", {f"{{{_X}}}xmptk": f"kcdp {__version__}"})
    described = _below(_below(top, _RDF, "RDF"), _RDF, "Description")
    described.set(f"{{{_RDF}}}about", "")
    if tag.label in LABELS:
        _below(_below(_below(described, _DC, "subject"), _RDF, "Bag"), _RDF, "li").text = tag.label
    for name in ("label", "confidence", "frames", "spread", "model"):
        if (value := fields[name]) is not None:  # XMP's real numbers have no exponents
            _below(described, NAMESPACE, name).text = f"{value:.6f}" if isinstance(value, float) else str(value)
    scores = _below(described, NAMESPACE, "scores")
    scores.set(f"{{{_RDF}}}parseType", "Resource")
    for label, score in fields["scores"].items():
        _below(scores, NAMESPACE, label).text = f"{score:.6f}"
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="utf-8", xml_declaration=True) + b"\n"


def _is_our_json(data: bytes) -> bool:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"path", "label", "confidence", "scores", "error", "model"} <= set(found)


def _is_our_xmp(data: bytes) -> bool:
    """Written by ``xmp_sidecar`` and nothing added since."""
    if b"<!" in data:  # no entities, no comments: nothing of ours has them
        return False
    try:
        top = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):
        return False
    described = top.findall(f"{{{_RDF}}}RDF/{{{_RDF}}}Description")
    known = {f"{{{_DC}}}subject", *(f"{{{NAMESPACE}}}{n}" for n in _OURS)}
    keywords = [li.text for li in top.iter(f"{{{_RDF}}}li")]
    return (
        top.get(f"{{{_X}}}xmptk", "").startswith("kcdp ") and len(described) == 1
        and {child.tag for child in described[0]} <= known and set(described[0].attrib) == {f"{{{_RDF}}}about"}
        and len(keywords) <= 1 and set(keywords) <= set(LABELS)
    )  # fmt: skip


_OURS = ("label", "confidence", "frames", "spread", "model", "scores")

#: ending -> (its writer, whether a file's content was written by it)
KINDS: dict[str, tuple[Callable[[Any, str], bytes], Callable[[bytes], bool]]] = {
    "json": (json_sidecar, _is_our_json),
    "xmp": (xmp_sidecar, _is_our_xmp),
}


def _below(parent: ElementTree.Element, namespace: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, f"{{{namespace}}}{name}")


def _begin(path: Path) -> bytes:
    """The file's content, or as much of a long one that it is not ours."""
    try:
        with path.open("rb") as stream:
            return stream.read(_MOST_BYTES)
    except OSError as error:
        raise KcdpError(f"{path} cannot be read ({error.strerror})", fix="move it away or add --overwrite") from None
