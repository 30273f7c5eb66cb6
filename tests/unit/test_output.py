"""The three formats: what is written can be read back, whatever the paths are called."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.runtime.output import FORMATS, TEXT, display_width, make_writer, printable
from kcdp.runtime.rows import fields_of_cells, row, tag_of_row
from kcdp.runtime.tagger import Tag

SCORES = dict(zip(LABELS, (0.5, 0.25, 0.125, 0.1234567, 0.0015433, 0.0), strict=True))
PATHS = (
    "plain.png", "with space.png", "comma,and\"quote'.png", "line\nfeed.png", "carriage\rreturn.png", "tab\t.png",
    "Grüße/日本語.webp", "😀 👩‍👩‍👧.png", "esc\x1b[31mape.png", "=1+1.png", "not utf-8 \udcff.png",
)  # fmt: skip


def rows() -> list[Tag]:
    return [
        *(Tag(path, "surprise", 0.5, SCORES, frames=1, spread=0.0) for path in PATHS),
        *(Tag(path, "unsure", 0.5, SCORES, frames=24, spread=0.25) for path in PATHS[:2]),
        *(Tag(path, None, None, error=f"{path} does not exist; expected a picture file") for path in PATHS),
    ]


def written(form: str, tags: list[Tag], file: Path, width: int = 0, model: str = "") -> Path:
    with file.open("w", **TEXT) as stream:
        writer = make_writer(form, stream, width, model=model)
        for tag in tags:
            writer.write(tag)
    return file


def test_jsonl_round_trip(tmp_path: Path) -> None:
    file = written("jsonl", rows(), tmp_path / "tags.jsonl")
    lines = file.read_bytes().decode("utf-8").split("\n")  # strictly valid UTF-8
    assert lines.pop() == "" and len(lines) == len(rows())
    for line, tag in zip(lines, rows(), strict=True):
        assert json.loads(line) == {
            "path": tag.path, "label": tag.label, "confidence": tag.confidence,
            "scores": {label: round(score, 6) for label, score in tag.scores.items()},
            "frames": tag.frames, "spread": tag.spread, "error": tag.error,
        }  # fmt: skip
        assert list(json.loads(line)) == ["path", "label", "confidence", "scores", "frames", "spread", "error"]
    assert "日本語" in file.read_text(encoding="utf-8"), "readable, not escaped"
    assert json.loads(lines[0])["scores"]["fear"] == 0.123457


def test_csv_round_trip(tmp_path: Path) -> None:
    file = written("csv", rows(), tmp_path / "tags.csv")
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        header, *body = csv.reader(stream)
    assert ",".join(header) == "path,label,confidence,surprise,happy,disgust,fear,sad,anger,frames,spread,error"
    assert len(body) == len(rows())
    for cells, tag in zip(body, rows(), strict=True):
        if tag.error is None:
            assert cells == [
                tag.path, tag.label, "0.500000", "0.500000", "0.250000", "0.125000", "0.123457", "0.001543",
                "0.000000", str(tag.frames), f"{tag.spread:.6f}", "",
            ]  # fmt: skip
        else:
            assert cells == [tag.path, *[""] * 10, tag.error]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_the_model_stands_in_every_row_and_rows_are_read_back(tmp_path: Path, form: str) -> None:
    file = written(form, rows(), tmp_path / "tags", model="0123456789ab")
    with file.open(**TEXT) as stream:
        records = islice(csv.reader(stream), 1, None)
        lines = map(json.loads, stream) if form == "jsonl" else map(fields_of_cells, records)
        read = list(lines)
    assert {fields["model"] for fields in read} == {"0123456789ab"}
    assert [tag_of_row(fields) for fields in read] == [
        replace(tag, scores={label: round(score, 6) for label, score in tag.scores.items()}) for tag in rows()
    ]


@pytest.mark.parametrize("broken", [{"label": "joy"}, {"label": None}, {"error": "x"}, {"scores": 3}, {"path": None}])
def test_what_is_no_row_is_not_read(broken: dict[str, object]) -> None:
    fields = row(rows()[0])
    assert tag_of_row(fields).label == "surprise"
    with pytest.raises((KeyError, TypeError, ValueError)):
        tag_of_row({**fields, **broken})
    del fields["spread"]
    with pytest.raises(KeyError):
        tag_of_row(fields)


def test_the_table_is_aligned_and_safe_to_show(tmp_path: Path) -> None:
    width = max(display_width(printable(path)) for path in PATHS)
    lines = written("table", rows(), tmp_path / "tags.txt", width).read_bytes().decode("utf-8").split("\n")
    assert len(lines) == len(rows()) + 2 and lines[0] == f"{'path':<{width}}  emotion   confidence"
    for line, tag in zip(lines[1:], rows(), strict=False):
        shown = printable(tag.path)
        assert line.startswith(shown) and line.isprintable()
        rest = line[len(shown) + width - display_width(shown) :]
        if tag.frames > 1:
            assert rest == "  unsure         0.500  24 frames, spread 0.25"
        elif tag.error is None:
            assert rest == "  surprise       0.500"
        else:
            assert rest == "  -                  -  does not exist; expected a picture file"
    assert lines[0].index("emotion") == lines[1].index("surprise")
    assert lines[0].index("confidence") + len("confidence") == len(lines[1])


def test_a_long_path_moves_only_its_own_row(tmp_path: Path) -> None:
    tags = [Tag("a.png", "sad", 1.0, SCORES), Tag("b" * 100, "sad", 1.0, SCORES)]
    lines = written("table", tags, tmp_path / "t", 100).read_text().splitlines()
    assert lines[1] == f"{'a.png':<72}  sad            1.000" and lines[2] == "b" * 100 + "  sad            1.000"


@pytest.mark.parametrize("form", FORMATS)
def test_rows_are_flushed_as_they_come(form: str) -> None:
    class Stream(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    stream = Stream()
    writer = make_writer(form, stream)
    for tag in rows()[:3]:
        writer.write(tag)
        assert stream.flushed == stream.getvalue() and printable(tag.path)[:5] in stream.flushed


def test_an_unknown_format() -> None:
    with pytest.raises(KcdpError) as caught:
        make_writer("jsonlines", io.StringIO())
    assert str(caught.value) == "format is 'jsonlines' (did you mean 'jsonl'?); expected one of table, jsonl, csv"


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        (display_width, "abc", 3), (display_width, "日本", 4), (display_width, "é", 1), (display_width, "e\u0301", 1),
        (display_width, "😀", 2), (printable, "a\nb\x1b\udcff", r"a\nb\x1b\udcff"), (printable, "ü 😀", "ü 😀"),
    ],
)  # fmt: skip
def test_widths_and_escapes(function: Callable[[str], object], text: str, expected: object) -> None:
    assert function(text) == expected
