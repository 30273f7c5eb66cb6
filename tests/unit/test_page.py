"""The page of ``--html``: one file, nothing from outside, every name escaped, whole or not there."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sticker_files import tgs

from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.runtime.items import Item
from kcdp.runtime.page import HtmlSheet
from kcdp.runtime.page_parts import CHOICES
from kcdp.runtime.tagger import Tag
from kcdp.runtime.thumbnails import DRAWN, first_picture

VOID = {"meta", "input", "img"}
HOSTILE = (
    "<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>.png', "' onload='alert(1)", "</style><b>",
    "&lt;b&gt;", "<!-- ", "]]>", "\u202egnp.exe", "line\nfeed\x1b[31m.png", "\udcff.png", "javascript:alert(1)",
    "{{7*7}}${7*7}%s{x}",
)  # fmt: skip


class Page(HTMLParser):
    """Every element with its attributes; raises where an element is closed that is not the open one."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def cards(self) -> list[dict[str, str | None]]:
        return [attributes for attributes in self.of("li") if "data-label" in attributes]


def tag(path: str, label: str = "happy", frames: int = 1) -> Tag:
    scores = dict(zip(LABELS, (0.1, 0.625, 0.1, 0.1, 0.05, 0.025), strict=True))
    return Tag(path, label, 0.625, scores, None, frames, 0.0)


def picture(folder: Path, size: tuple[int, int] = (300, 150), colour: tuple[int, ...] = (10, 200, 60)) -> str:
    Image.new("RGB", size, colour).save(folder / "a.png")
    return str(folder / "a.png")


def written(path: Path, *pairs: tuple[Item, Tag], most: int = 10**6) -> tuple[str, HtmlSheet]:
    with HtmlSheet(path, most=most) as sheet:
        for item, found in pairs:
            sheet.add(item, found)
    return path.read_text(encoding="utf-8"), sheet


def test_cards_hold_small_pictures_and_scores(tmp_path: Path) -> None:
    path = picture(tmp_path)
    pairs = [(Item(path, path), tag(path)), (Item("z/b.png", Path(path).read_bytes), tag("z/b.png", "unsure", 24))]
    gone = Tag("gone.png", None, None, error="gone.png does not exist; expected a picture file")
    text, _ = written(tmp_path / "p.html", *pairs, (Item("gone.png", "gone.png"), gone))
    page = Page(text)
    assert [(c["data-label"], c["data-confidence"]) for c in page.cards] == [
        ("happy", "0.625000"), ("unsure", "0.625000"), ("failed", "-1.000000"),
    ]  # fmt: skip
    images = page.of("img")
    assert [image["alt"] for image in images] == [f"{path}: happy, 62 %", "z/b.png: unsure, 62 %"]
    for image in images:
        kind, data = str(image["src"]).split(";base64,")
        assert kind in ("data:image/webp", "data:image/jpeg")
        with Image.open(io.BytesIO(base64.b64decode(data))) as small:
            assert small.size == (160, 80) == (int(str(image["width"])), int(str(image["height"])))
            assert np.abs(np.asarray(small.convert("RGB"), int) - (10, 200, 60)).max() < 8
    widths = [str(bar["style"]) for bar in page.of("i")]
    assert widths[:6] == ["width:10.0%", "width:62.5%", "width:10.0%", "width:10.0%", "width:5.0%", "width:2.5%"]
    assert "unsure 62 %, 24 frames" in page.texts and "does not exist; expected a picture file" in page.texts
    assert "2 tagged, 1 failed: happy 1, unsure 1, failed 1" in page.texts


def test_hostile_names_are_text(tmp_path: Path) -> None:
    path = picture(tmp_path)
    pairs = [(Item(name, path), tag(name)) for name in HOSTILE]
    pairs += [(Item(name, name), Tag(name, None, None, error=f"{name}: {name} is bad")) for name in HOSTILE]
    pairs += [(Item(name, str(tmp_path / "gone")), tag(name)) for name in HOSTILE]
    text, _ = written(tmp_path / "p.html", *pairs)
    plain = Page(written(tmp_path / "q.html", *[(Item("a", path), tag("a"))] * len(HOSTILE),
                         *[(Item("a", "a"), Tag("a", None, None, error="a: bad"))] * len(HOSTILE),
                         *[(Item("a", str(tmp_path / "gone")), tag("a"))] * len(HOSTILE))[0])  # fmt: skip
    page = Page(text)
    assert [name for name, _ in page.elements] == [name for name, _ in plain.elements], "names make no elements"
    assert [sorted(a) for _, a in page.elements] == [sorted(a) for _, a in plain.elements], "nor attributes"
    assert "<script>alert(1)</script>.png" in page.texts and '"><img src=x onerror=alert(1)>.png' in page.texts
    assert r"\u202egnp.exe" in page.texts and r"line\nfeed\x1b[31m.png" in page.texts and r"\udcff.png" in page.texts


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    path = picture(tmp_path)
    text, _ = written(tmp_path / "p.html", (Item(path, path), tag(path)))
    page = Page(text)
    links = [a[name] for _, a in page.elements for name in ("src", "href", "action", "srcset", "data") if name in a]
    assert links and all(str(link).startswith("data:image/") for link in links)
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    (policy,) = [str(meta["content"]) for meta in page.of("meta") if "http-equiv" in meta]
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{digest}'" in policy
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]


def test_it_can_be_used_by_keyboard_and_reader(tmp_path: Path) -> None:
    page = Page(written(tmp_path / "p.html")[0])
    assert page.of("html") == [{"lang": "en"}] and len(page.of("main")) == len(page.of("h1")) == 1
    assert [radio["value"] for radio in page.of("input")] == list(CHOICES)
    assert len(page.of("label")) == len(page.of("input")) + len(page.of("select")), "every control has its label"
    assert [option["value"] for option in page.of("option")] == ["given", "surest", "least"]
    assert [output["aria-live"] for output in page.of("output")] == ["polite"]
    assert "0 tagged, 0 failed" in page.texts


def test_a_page_too_large_says_so(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    path = str(tmp_path / "noise.png")
    text, sheet = written(tmp_path / "p.html", *[(Item(path, path), tag(path))] * 5, most=60_000)
    page = Page(text)
    shown = len(page.of("img"))
    assert 0 < shown < 5 and len(page.cards) == 5 and len(text) < 60_000 + 30_000
    left = f"pictures not shown, the page would be too large: {5 - shown}"
    assert sheet.told() == [left] and left in page.texts
    assert [d["aria-label"] for d in page.of("div") if d.get("role") == "img"] == [f"{path}: happy, 62 %"] * (5 - shown)


def test_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "p.html").write_text("old")
    with pytest.raises(KeyboardInterrupt), HtmlSheet(tmp_path / "p.html") as sheet:
        sheet.add(Item("a", "a"), Tag("a", None, None, error="bad"))
        assert (tmp_path / "p.html").read_text() == "old"
        raise KeyboardInterrupt
    assert (tmp_path / "p.html").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["p.html"]


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    path = str(tmp_path / "a.gif")
    (image,) = Page(written(tmp_path / "p.html", (Item(path, path), tag(path)))[0]).of("img")
    with Image.open(io.BytesIO(base64.b64decode(str(image["src"]).split(",")[1]))) as small:
        assert small.size == (40, 40) and small.convert("RGB").getpixel((20, 20))[0] > 240  # type: ignore[index]


def test_stickers_that_are_drawings_are_shown() -> None:
    """What the decoder of pictures does not know: first frame, on white."""
    pytest.importorskip("rlottie_python")
    picture = first_picture(tgs(), "a.tgs")
    assert picture.size == (DRAWN, DRAWN) and len(picture.getcolors(1 << 20)) > 1
    with pytest.raises(KcdpError, match=r"broken\.tgs"):
        first_picture(tgs()[:40], "broken.tgs")
