"""Contact sheets: a card for every tag, in its colour, and a grey tile with the reason for what failed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.runtime import sheet
from kcdp.runtime.sheet import COLOURS, write_contact_sheet
from kcdp.runtime.tagger import Tag


def picture(folder: Path, name: str, colour: tuple[int, ...] = (10, 200, 250), size: tuple[int, int] = (50, 50)) -> str:
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(folder / name)
    return str(folder / name)


def tag(path: str, label: str = "happy", confidence: float = 0.9) -> Tag:
    return Tag(path, label, confidence, dict.fromkeys(LABELS, 0.0))


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image).astype(int)


def count(pixels: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((pixels == np.array(colour)).all(axis=-1).sum())


def test_every_emotion_has_its_own_colour() -> None:
    assert set(COLOURS) == set(LABELS) and len(set(COLOURS.values())) == len(LABELS)
    for colour in COLOURS.values():  # white text on it: WCAG's contrast for large text is 3
        linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 2.7


def test_cards_show_picture_and_emotion(tmp_path: Path) -> None:
    tags = [tag(picture(tmp_path, f"{label}.png"), label) for label in LABELS]
    write_contact_sheet(tmp_path / "sheet.png", iter(tags), columns=3, tile=64)
    pixels = drawn(tmp_path / "sheet.png")
    assert count(pixels, (10, 200, 250)) == 6 * 64 * 64, "each picture fills its tile"
    for colour in COLOURS.values():
        assert count(pixels, colour) > 300
    write_contact_sheet(tmp_path / "wide.png", tags, columns=6, tile=64)
    wide = drawn(tmp_path / "wide.png")
    assert wide.shape[1] > 1.8 * pixels.shape[1] and wide.shape[0] < pixels.shape[0]


def test_proportions_are_kept_and_transparency_is_white(tmp_path: Path) -> None:
    tall = picture(tmp_path, "tall.png", (10, 200, 250), (25, 100))
    tags = [tag(tall), tag(picture(tmp_path, "glass.png", (9, 9, 9, 0)))]
    write_contact_sheet(tmp_path / "sheet.png", tags, tile=64)
    pixels = drawn(tmp_path / "sheet.png")
    assert count(pixels, (10, 200, 250)) == 16 * 64 and count(pixels, (9, 9, 9)) == 0


def test_failures_are_grey_tiles(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.png")
    tags = [
        Tag(missing, None, None, error=f"{missing} does not exist; expected a picture file"),
        tag(missing),  # was there when it was tagged
        tag("<bytes 3>"),
        Tag("日本\n.png", None, None, error="日本\n.png: " + "very " * 200 + "long"),
    ]
    write_contact_sheet(tmp_path / "sheet.png", tags, columns=4)
    pixels = drawn(tmp_path / "sheet.png")
    assert count(pixels, (224, 226, 230)) > 4 * 96 * 96 * 0.6
    assert sheet._thumbnail(tags[0], 64, tags[0].path) == (None, "does not exist")
    assert sheet._thumbnail(tags[1], 64, tags[1].path) == (None, "does not exist")
    assert sheet._thumbnail(tags[2], 64, tags[2].path) == (None, "no picture")


def test_truth_frames_what_is_wrong(tmp_path: Path) -> None:
    path = picture(tmp_path, "a.png")
    red = COLOURS["anger"]
    for name, truth, frame in (("right", {path: "happy"}, False), ("wrong", {path: "sad"}, True), ("none", {}, False)):
        write_contact_sheet(tmp_path / f"{name}.png", [tag(path)], truth=truth)
        assert (count(drawn(tmp_path / f"{name}.png"), red) > 400) is frame
    failed = Tag("b", None, None, error="b does not exist")
    title = sheet._title([tag(path), tag("c", "sad"), failed], 3, {path: "happy", "c": "anger", "b": "fear"})
    assert title == "2 tagged, 1 failed; 1 of 3 right (33.3 %)"
    assert sheet._title([tag(path)], 1, {}) == "1 tagged"
    with pytest.raises(KcdpError, match=r"truth holds the emotion 'hapy' \(did you mean 'happy'\?\); expected "):
        write_contact_sheet(tmp_path / "sheet.png", [tag(path)], truth={path: "hapy"})


def test_a_huge_sheet_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "_MAX_SHEET_PIXELS", 200_000)
    path = picture(tmp_path, "a.png")
    write_contact_sheet(tmp_path / "sheet.png", [tag(path)] * 500, columns=4, tile=48)
    pixels = drawn(tmp_path / "sheet.png")
    assert 100_000 < pixels.shape[0] * pixels.shape[1] <= 200_000
    assert sheet._title([tag(path)] * 500, 48, {}) == "500 tagged; the first 48 are shown"


@pytest.mark.parametrize("tile", [32, 96, 512])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_any_size_and_number(tmp_path: Path, tile: int, number: int) -> None:
    path = picture(tmp_path, "a very long name, longer than any tile " * 3 + ".png", size=(1, 300))
    write_contact_sheet(tmp_path / "sheet.png", [tag(path, "surprise", 1.0)] * number, columns=2, tile=tile)
    assert drawn(tmp_path / "sheet.png").shape[1] > 2 * tile


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0}, "columns is 0; expected a whole number from 1 to 64"),
        ({"tile": 31}, "tile is 31; expected a whole number from 32 to 512"),
        ({"tile": 96.0}, "tile is 96.0; expected a whole number from 32 to 512"),
    ],
)
def test_senseless_sizes(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(KcdpError) as caught:
        write_contact_sheet(tmp_path / "sheet.png", [], **options)
    assert str(caught.value) == message and not list(tmp_path.iterdir())
