"""Captions on disk: the hash that names a picture, rows, torn lines, strict errors, look-up for a dataset."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.errors import KcdpError
from kcdp.knowledge.captions import Caption, CaptionFile, captions_for, parse_row
from kcdp.preprocess import picture_hash

ROOT = Path(__file__).resolve().parents[2]
HASH = "0123456789abcdef0123456789abcdef"


class Pictures(ImageDataset):
    """Pictures from memory, keys a, b, c, ..."""

    def __init__(self, *images: Image.Image | KcdpError, name: str = "memory:x") -> None:
        super().__init__(name, [Sample(chr(97 + i), None) for i in range(len(images))])
        self.images = images

    def image(self, index: int) -> Image.Image:
        found = self.images[index]
        if isinstance(found, KcdpError):
            raise found
        return found


def solid(colour: str, size: tuple[int, int] = (5, 4)) -> Image.Image:
    return Image.new("RGB", size, colour)


def row(image: Image.Image, caption: str = "a dog", key: str = "k", **more) -> Caption:
    return Caption(picture_hash(image), key, caption, more.pop("captioner", "test"), **more)


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


def reopened(image: Image.Image, form: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


# The hash.


def test_the_hash_is_fixed_for_ever():
    assert picture_hash(Image.new("RGB", (2, 1), (1, 2, 3))) == "889677792e61e9923c17488c7719b023"


def test_the_hash_does_not_depend_on_the_container(noise):
    wanted = picture_hash(noise)
    assert picture_hash(reopened(noise, "PNG")) == picture_hash(reopened(noise, "BMP")) == wanted
    assert picture_hash(reopened(noise, "WEBP", lossless=True)) == wanted
    assert picture_hash(noise.convert("RGBA")) == wanted


def test_the_hash_does_not_depend_on_how_the_picture_is_stored(noise):
    few = noise.quantize(16)
    assert picture_hash(few) == picture_hash(few.convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: to be turned clockwise
    lying = reopened(noise.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert lying.size != noise.size and picture_hash(lying) == picture_hash(noise)


def test_another_picture_has_another_hash(noise):
    changed = noise.copy()
    changed.putpixel((0, 0), tuple(255 - v for v in noise.getpixel((0, 0))))
    hashes = {picture_hash(image) for image in (noise, changed, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT))}
    hashes |= {picture_hash(solid("red", (2, 3))), picture_hash(solid("red", (3, 2)))}  # the same bytes
    assert len(hashes) == 5 and all(len(h) == 32 and set(h) <= set("0123456789abcdef") for h in hashes)


# Rows.


def test_rows_are_plain_json_lines(tmp_path):
    with CaptionFile(tmp_path / "new" / "c.jsonl") as file:
        file.append(Caption(HASH, "é/1.png", "a “cat”", "test"))
        file.append(Caption(HASH[::-1], "bad\udcff.png", "", "test", leaks_labels=True))
    lines = file.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"hash": HASH, "key": "é/1.png", "caption": "a “cat”", "captioner": "test"}
    assert "“cat”" in lines[0] and json.loads(lines[1])["leaks_labels"] is True
    again = CaptionFile(file.path)
    assert list(again) == list(file) and len(again) == 2 and HASH in again and "x" not in again
    assert again.get(HASH) == Caption(HASH, "é/1.png", "a “cat”", "test") and again.get("x") is None
    assert again.captioners == ["test"] and again.leaks_labels


def test_a_row_is_on_the_disk_as_soon_as_it_is_appended(tmp_path):
    file = CaptionFile(tmp_path / "c.jsonl")
    file.append(Caption(HASH, "a", "x", "test"))
    assert len(CaptionFile(file.path)) == 1
    file.close()
    file.append(Caption(HASH[::-1], "b", "y", "test"))
    assert len(CaptionFile(file.path)) == 2
    file.close()


@pytest.mark.parametrize("torn", ['{"hash": "0123', '{"hash": "é'.encode()[:-1].decode("latin-1"), "{", " "])
def test_a_torn_last_line_is_ignored_then_cut_off(tmp_path, torn):
    path = tmp_path / "c.jsonl"
    with CaptionFile(path) as file:
        file.append(Caption(HASH, "a", "x", "test"))
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode("latin-1"))
    file = CaptionFile(path)
    assert len(file) == 1 and path.read_bytes() == whole + torn.encode("latin-1")  # reading changes nothing
    with file:
        file.append(Caption(HASH[::-1], "b", "y", "test"))
    assert path.read_bytes().startswith(whole) and [r.key for r in CaptionFile(path)] == ["a", "b"]


def test_a_whole_row_without_its_end_is_torn_too(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(Caption(HASH, "a", "x", "test").to_json())  # the line's end is the proof that all of it is there
    assert len(CaptionFile(path)) == 0
    with CaptionFile(path) as file:
        file.append(Caption(HASH, "a", "x", "test"))
    assert len(CaptionFile(path)) == 1


def test_a_new_file_is_empty_until_the_first_row(tmp_path):
    with CaptionFile(tmp_path / "c.jsonl") as file:
        assert len(file) == 0 and file.captioners == [] and not file.leaks_labels
    assert not file.path.exists()


GOOD = {"hash": HASH, "key": "a", "caption": "x", "captioner": "test"}
WANTED = "expected an object with hash, key, caption and captioner, all of them texts"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", f"is a list; {WANTED}"),
        ("null", f"is null; {WANTED}"),
        (json.dumps({**GOOD, "caption": None}), f": caption is null; {WANTED}"),
        (json.dumps({**GOOD, "key": 3}), f": key is a number; {WANTED}"),
        (json.dumps({**GOOD, "key": ["x"]}), f": key is a list; {WANTED}"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "captioner"}), f": captioner is missing; {WANTED}"),
        (json.dumps({**GOOD, "leak_labels": True}),
         ": field 'leak_labels' is unknown (did you mean 'leaks_labels'?); "
         "expected only hash, key, caption, captioner, leaks_labels"),
        (json.dumps({**GOOD, "leaks_labels": "no"}), ": leaks_labels is a text; expected true or false"),
        (json.dumps({**GOOD, "hash": HASH.upper()}),
         f": hash is '{HASH.upper()}'; expected 32 hexadecimal digits in lower case"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_row(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    separator = " " if message.startswith("is") else ""
    assert fails(lambda: CaptionFile(path)) == f"{path} line 2{separator}{message}"


def test_a_line_that_is_no_json(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{{\n")
    message = fails(lambda: CaptionFile(path))
    assert message.startswith(f"{path} line 2 is not JSON (Expecting property name")
    assert message.endswith(f"; {WANTED}; delete the line and run the command again")
    assert parse_row(json.dumps(GOOD).encode(), "here") == Caption(**GOOD)
    assert fails(lambda: parse_row(b'"\xff"', "here")).startswith("here is not JSON ('utf-8' codec can't decode")


def test_two_captions_of_one_picture(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "key": k, "caption": c}) + "\n" for k, c in (("a", "x"), ("b", "x"))))
    assert [r.key for r in CaptionFile(path)] == ["a"]  # said twice alike: no harm
    path.write_text(path.read_text() + json.dumps({**GOOD, "caption": "y"}) + "\n")
    assert fails(lambda: CaptionFile(path)) == (
        f"{path}: lines 1 and 3 hold different captions of one picture ({HASH}); "
        "expected one caption for a picture; delete one of the two lines"
    )
    file = CaptionFile(tmp_path / "d.jsonl")
    file.append(Caption(**GOOD))
    assert fails(lambda: file.append(Caption(**GOOD))) == (
        f"{file.path}: 'a' has a caption already; expected one caption for a picture"
    )
    file.close()


def test_files_that_cannot_be_used(tmp_path):
    assert (
        fails(lambda: CaptionFile(tmp_path)) == f"{tmp_path} cannot be read (Is a directory); expected a captions file"
    )
    missing = tmp_path / "no.jsonl"
    assert fails(lambda: CaptionFile(missing, must_exist=True)) == (
        f"{missing} does not exist; expected a captions file; "
        f"run: kcdp knowledge caption --data SPEC --captioner NAME --out {missing}"
    )
    (tmp_path / "file").write_text("")
    inside = CaptionFile(tmp_path / "file2" / "c.jsonl")
    (tmp_path / "file2").write_text("")
    assert fails(lambda: inside.append(Caption(**GOOD))).startswith(f"cannot make the folder {tmp_path / 'file2'}: ")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(28, "No space left on device")

    file = CaptionFile(tmp_path / "c.jsonl")
    monkeypatch.setattr(file, "_open", Full)
    assert fails(lambda: file.append(Caption(**GOOD))) == (
        f"writing {file.path} failed (No space left on device); free some space or choose another place"
    )
    assert len(file) == 0


# For a dataset.


def test_captions_come_in_the_datasets_order(tmp_path):
    red, blue = solid("red"), solid("blue")
    with CaptionFile(tmp_path / "c.jsonl") as file:
        file.append(row(blue, "a blue one"))
        file.append(row(red, "a red one"))
    data = Pictures(red, blue, red.convert("P"))
    wanted = ["a red one", "a blue one", "a red one"]
    assert captions_for(data, file.path) == captions_for(data, str(file.path)) == captions_for(data, file) == wanted


def test_missing_captions(tmp_path):
    path = tmp_path / "c.jsonl"
    with CaptionFile(path) as file:
        file.append(row(solid("red"), captioner="coca coca_ViT-L-14 mscoco"))
    data = Pictures(solid("red"), solid("blue"), solid("green"))
    assert fails(lambda: captions_for(data, path)) == (
        f"{path} has no caption for 2 of 3 pictures of 'memory:x' (first: 'b'); expected a caption for every picture; "
        f'run: kcdp knowledge caption --data "memory:x" --captioner coca --out {path}'
    )
    path.write_text("")
    assert "3 of 3 pictures" in fails(lambda: captions_for(data, path))
    assert "--captioner NAME" in fails(lambda: captions_for(data, path))
    assert "does not exist" in fails(lambda: captions_for(data, tmp_path / "no.jsonl"))


def test_a_damaged_picture_is_named(tmp_path):
    broken = KcdpError("x.png is truncated")
    (tmp_path / "c.jsonl").write_text("")
    assert fails(lambda: captions_for(Pictures(broken), tmp_path / "c.jsonl", measuring=True)) == "x.png is truncated"


def test_leaking_captions_are_refused_where_accuracy_is_measured(tmp_path):
    with CaptionFile(tmp_path / "c.jsonl") as file:
        file.append(row(solid("red"), "angry face", captioner="emoji", leaks_labels=True))
        file.append(row(solid("blue"), "a dog"))
    data = Pictures(solid("red"), solid("blue"))
    assert captions_for(data, file) == ["angry face", "a dog"]
    assert fails(lambda: captions_for(data, file, measuring=True)) == (
        f"1 captions of {file.path} may hold the label (captioner 'emoji'); expected captions that do not name the "
        "emotion, where accuracy is reported; caption these pictures with another captioner"
    )
    assert captions_for(Pictures(solid("blue")), file, measuring=True) == ["a dog"]


def test_captions_and_triples_need_no_torch():
    names = ["captions", "triples", "triples_report", "command", "dependency_triples", "captioners.registry"]
    names += [f"captioners.{name}" for name in ("none", "file", "emoji", "drawn")]
    probe = f"import sys, importlib\nfor n in {names}: importlib.import_module('kcdp.knowledge.' + n)\n"
    probe += "print([m for m in ('torch', 'open_clip', 'transformers', 'spacy', 'tqdm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
