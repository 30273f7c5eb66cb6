"""A request's body as pictures: read no further than is allowed, kept in memory, never on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from kcdp.errors import nearest, require
from kcdp.runtime.items import Item
from kcdp.runtime.server.options import ServerOptions
from kcdp.runtime.server.problems import ClientGone, problem

#: Bytes of a text field (a caption) at most.
MAX_CAPTION = 4096
#: What a picture without a name is called in its row.
_NAMELESS = "<picture {}>"


async def read_items(request: Any, options: ServerOptions, hold: Callable[[int], None], captions: bool) -> list[Item]:
    """The pictures of a request, in order.

    Args:
        request: a Starlette request whose body has not been read.
        options: ``max_bytes`` and ``max_pictures`` are used.
        hold: called with the size of every piece that is kept; may raise.
        captions: whether the model takes captions.

    Raises:
        Problem: 400, 413, 415 or 422, as soon as it is known.
        ClientGone: the connection was closed meanwhile.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise problem(415, f"Content-Encoding {encoding}", "none", "send the pictures as they are")
    if kind != "multipart/form-data" and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise problem(
            415, f"Content-Type {kind}" if kind else "no Content-Type",
            "multipart/form-data with pictures, or one picture as image/* or application/octet-stream",
            "with curl: -F pictures=@a.png -F pictures=@b.webp",
        )  # fmt: skip
    pieces = _pieces(request, options, hold)
    if kind == "multipart/form-data":
        return await _parts(request.headers, pieces, options, captions)
    data = b"".join([piece async for piece in pieces])
    if not data:
        raise problem(400, "an empty body", "a picture", "with curl: --data-binary @a.png")
    return [Item(_NAMELESS.format(0), data)]


async def _pieces(request: Any, options: ServerOptions, hold: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The body as it comes in, up to ``max_bytes``."""
    length, size = request.headers.get("content-length", ""), 0
    if length.isdecimal() and int(length) > options.max_bytes:
        raise _too_long(f"a body of {int(length)} bytes", options)
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > options.max_bytes:
            raise _too_long(f"a body of more than {options.max_bytes} bytes", options)
        hold(len(piece))
        yield piece


def _too_long(received: str, options: ServerOptions) -> Exception:
    return problem(413, received, f"at most {options.max_bytes} bytes", "send fewer or smaller pictures at once")


async def _parts(headers: Any, pieces: AsyncIterator[bytes], options: ServerOptions, takes: bool) -> list[Item]:
    """Of multipart/form-data: every file is a picture, ``captions`` are texts, anything else is refused."""
    forms = require("starlette.formparsers", "serve")
    parser = forms.MultiPartParser(
        headers, pieces, max_files=options.max_pictures, max_fields=options.max_pictures, max_part_size=MAX_CAPTION
    )
    parser.spool_max_size = options.max_bytes + 1  # files stay in memory: together they are no longer than the body
    ended: list[bool] = []
    parser.on_end = lambda: ended.append(True)
    try:
        form = await parser.parse()
        if not ended:  # the parser itself forgets a part that is cut off
            raise forms.MultiPartException("It ends before its last boundary.")
    except (forms.MultiPartException, require("python_multipart.exceptions", "serve").FormParserError) as error:
        reason = getattr(error, "message", "Invalid multipart data.")  # as later versions of Starlette put the second
        if reason.startswith("Too many"):
            raise problem(
                422, f"more than {options.max_pictures} parts of one kind", f"at most {options.max_pictures} pictures",
                "send them in several requests",
            ) from None  # fmt: skip
        raise problem(400, f"multipart/form-data that cannot be read ({reason})", "whole parts") from None
    names: list[str] = []
    files: list[bytes] = []
    captions: list[str] = []
    for field, value in form.multi_items():
        if not isinstance(value, str):
            names.append(_plain(value.filename or "") or _NAMELESS.format(len(names)))
            files.append(await value.read())
            await value.close()
        elif field == "captions":
            captions.append(_plain(value))
        else:
            raise problem(
                422, f"the text field {_plain(field)!r}{nearest(field, ['captions', 'pictures'])}",
                "files, and texts called captions", "send pictures as files: parts with a filename",
            )  # fmt: skip
    if not files:
        raise problem(422, "no pictures", "files in fields called pictures", "with curl: -F pictures=@a.png")
    if captions and not takes:
        raise problem(422, "captions", "none: this model finds its knowledge itself", "leave captions out")
    if len(captions) > len(files):
        raise problem(
            422, f"{len(captions)} captions for {len(files)} pictures", "at most one for each picture, in their order"
        )
    texts = [caption or None for caption in captions] + [None] * (len(files) - len(captions))
    return [Item(*item) for item in zip(names, files, texts, strict=True)]


def _plain(text: str) -> str:
    """The text as UTF-8 can carry it: a charset parameter may have made lone surrogates of it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
