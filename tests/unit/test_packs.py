"""Packs' descriptions, in the shapes that are found in the wild; unknown and damaged ones do no harm."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sticker_files import zipped

from kcdp.runtime import find_items
from kcdp.runtime.media.packs import MOST_BYTES, PackCaptions, descriptions, emoji_in

GRIN, JOY, COFFEE, HEART = "\N{GRINNING FACE}", "\N{FACE WITH TEARS OF JOY}", "\N{HOT BEVERAGE}", "\u2764\ufe0f"
FAMILY = "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}"
WAVE = "\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}"
FLAG, ENGLAND = "\U0001f1e9\U0001f1ea", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


def captions(name: str, content: Any) -> PackCaptions:
    known = PackCaptions()
    known.describe(name, lambda: json.dumps(content).encode(), name)
    return known


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (GRIN, [GRIN]),
        (GRIN + JOY + GRIN, [GRIN, JOY]),
        (f"so {GRIN}, or {COFFEE}!", [GRIN, COFFEE]),
        ([HEART, FAMILY], [HEART, FAMILY]),
        (WAVE + FLAG + ENGLAND + FLAG, [WAVE, FLAG, ENGLAND]),
        ("1\ufe0f\u20e3#\u20e3", ["1\ufe0f\u20e3", "#\u20e3"]),
        ("\u2764\ufe0f\u200d\U0001f525", ["\u2764\ufe0f\u200d\U0001f525"]),
        ("no emoji: 1 2 a \u00e4 \u3042 \u4e2d", []),
        (7, []),
        (None, []),
        ([3, {"a": GRIN}], []),
        ([chr(0x1F600 + n) for n in range(40)], [chr(0x1F600 + n) for n in range(16)]),
    ],
)
def test_emoji_are_found_whole(value: Any, found: list[str]) -> None:
    assert emoji_in(value) == found


def test_telegram_bot_api() -> None:
    known = captions("anything.json", {"ok": True, "result": {"name": "x", "stickers": [
        {"file_id": "CAACAgIAAx", "file_unique_id": "AgADBQ", "emoji": GRIN, "set_name": "x", "width": 512},
        {"file_id": "CAACAgIAAy", "file_unique_id": "AgADBg", "emoji": JOY},
    ]}})  # fmt: skip
    assert known.of("AgADBQ.webp") == GRIN and known.of("CAACAgIAAy.tgs") == JOY and known.of("other.webp") is None


def test_telegram_client() -> None:
    known = captions("set.json", {
        "packs": [{"_": "StickerPack", "emoticon": GRIN, "documents": [123456789012345678, 5]}],
        "documents": [{"id": 7, "attributes": [{"w": 512}, {"alt": JOY, "_": "DocumentAttributeSticker"}]}],
    })  # fmt: skip
    assert known.of("123456789012345678.webp") == GRIN and known.of("5.tgs") == GRIN and known.of("7.webm") == JOY


def test_telegram_desktop_export() -> None:
    known = captions("result.json", {"name": "chat", "messages": [
        {"id": 3, "type": "message", "file": "stickers/sticker (1).webp", "media_type": "sticker", "sticker_emoji": JOY,
         "reactions": [{"type": "emoji", "count": 1, "emoji": GRIN}]},
        {"id": 4, "type": "message", "text": f"hello {GRIN}"},
    ]})  # fmt: skip
    assert known.of("stickers/sticker (1).webp") == JOY and known.of("stickers/3.webp") is None


def test_signal_manifest() -> None:
    known = captions("manifest.json", {"title": "t", "author": "a", "cover": {"id": 0, "emoji": GRIN}, "stickers": [
        {"id": 0, "emoji": GRIN}, {"id": 1, "emoji": JOY}, {"id": 12, "emoji": ""}]})  # fmt: skip
    assert known.of("0.webp") == GRIN and known.of("001.png") == JOY and known.of("12.webp") is None


def test_whatsapp_contents() -> None:
    known = captions("contents.json", {"sticker_packs": [
        {"identifier": "one", "tray_image_file": "tray.png", "stickers": [
            {"image_file": "01.webp", "emojis": [COFFEE, GRIN]}, {"image_file": "02.webp", "emojis": [GRIN]}]},
        {"identifier": "Two", "stickers": [{"image_file": "01.webp", "emojis": JOY}, {"image_file": "2.webp"}]},
    ]})  # fmt: skip
    assert known.of("one/01.webp") == f"{COFFEE} {GRIN}" and known.of("two/01.webp") == JOY
    assert known.of("01.webp") is None, "two packs have one of that name"
    assert known.of("02.webp") == GRIN and known.of("tray.png") is None and known.of("Two/2.webp") is None


def test_emoji_txt() -> None:
    known = captions("emoji.txt", {"000": GRIN, "wave hello": f"{WAVE}{JOY}", "3": ""})
    assert known.of("000.webp") == GRIN and known.of("wave hello.png") == f"{WAVE} {JOY}" and known.of("3.png") is None


def test_file_names_in_other_spellings() -> None:
    known = captions(
        "pack.json", [{"path": "./Art\\Grin.PNG", "emoji": GRIN}, {"url": "https://x.org/p/joy.webp", "alt": JOY}]
    )
    assert known.of("art/grin.png") == GRIN and known.of("joy.webp") == JOY and known.of("grin.gif") == GRIN


def test_the_nearest_description_counts() -> None:
    known = captions("stickers.json", [{"file": "a/x.png", "emoji": GRIN}, {"file": "y.png", "emoji": GRIN}])
    known.describe("a/stickers.json", lambda: json.dumps([{"file": "x.png", "emoji": JOY}]).encode(), "n")
    assert known.of("a/x.png") == JOY and known.of("a/y.png") == GRIN and known.of("b/x.png") == GRIN


@pytest.mark.parametrize("content", [
    1, None, [], {}, "x", {"stickers": 3}, {"stickers": [None, 1, {"emoji": 4, "file": "x.png"}]}, {"emoji": GRIN},
    {"a": {"b": [{"file": "x.png"}]}}, {"file": ["x.png"], "emoji": GRIN}, {"id": True, "emoji": GRIN},
    {"attributes": [1], "id": "x"}, {"stickers": [{"file": "x.png", "emoji": GRIN}, {"file": "x.png", "emoji": JOY}]},
])  # fmt: skip
def test_other_json_says_nothing(content: Any) -> None:
    assert captions("emoji.json", content).of("x.png") is None


def test_damaged_descriptions(tmp_path: Path) -> None:
    for number, (data, reason) in enumerate([
        (b'{"stickers": [', "Expecting value"), (b"\xff\xfe{", "codec can't decode"), (b"[" * 100_000, "recursion"),
        (b" " * (MOST_BYTES + 1), "it has more than 16,777,216 bytes"),
    ]):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.png").touch()
        (folder / "contents.json").write_bytes(data)
        (folder / "other.json").write_bytes(data)
        bad, good = find_items(folder)
        assert bad.name == str(folder / "contents.json") and good.error is None and good.caption is None
        assert str(bad.error).startswith(f"{bad.name} is not valid JSON (") and reason in str(bad.error)
        assert str(bad.error).endswith("expected a sticker pack's description; repair it, or remove it")


def test_in_folders_and_archives(tmp_path: Path) -> None:
    stickers = [{"image_file": "01.webp", "emojis": [COFFEE]}, {"image_file": "02.webp", "emojis": [JOY + GRIN]}]
    description = json.dumps({"sticker_packs": [{"identifier": "one", "stickers": stickers}]})
    files = {"contents.json": description.encode(), "one/01.webp": b"a", "one/02.webp": b"b", "one/03.webp": b"c"}
    for name, data in files.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_bytes(data)
    expected = [COFFEE, f"{JOY} {GRIN}", None]
    assert [item.caption for item in find_items(tmp_path / "pack", recursive=True)] == expected
    (tmp_path / "pack.wastickers").write_bytes(zipped(files))
    assert [item.caption for item in find_items(tmp_path / "pack.wastickers")] == expected
    inside = {f"deep/er/{name}": data for name, data in files.items()}
    (tmp_path / "b.zip").write_bytes(zipped({**inside, "contents.json": b"{"}))
    bad, *items = find_items(tmp_path / "b.zip")
    assert [item.caption for item in items] == expected
    assert bad.name == f"{tmp_path}/b.zip/contents.json" and "is not valid JSON" in str(bad.error)


def test_only_few_files_are_looked_into() -> None:
    names = ["a.png", "notes.txt", *(f"{n:02}.JSON" for n in range(40)), "in/Emoji.txt", "in/contents.json"]
    assert descriptions(names) == [*names[-2:], *names[2:18]]


def test_what_is_wrong_with_other_json_in_an_archive_does_not_matter(tmp_path: Path) -> None:
    files = {"a.png": b"a", "contents.json": b"{}", "other.json": b'{"a": 1}'}
    large = b'"' + b"x" * (17 << 20) + b'"'
    (tmp_path / "large.zip").write_bytes(zipped({**files, "other.json": large}, zipfile.ZIP_STORED))
    assert [item.name for item in find_items(tmp_path / "large.zip")] == [f"{tmp_path}/large.zip/a.png"]
    (tmp_path / "sure.zip").write_bytes(zipped({**files, "contents.json": large}, zipfile.ZIP_STORED))
    bad, _ = find_items(tmp_path / "sure.zip")
    assert "contents.json has 17,825,794 bytes; expected at most 16,777,216" in str(bad.error)
