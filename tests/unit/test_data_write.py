"""``kcdp data write``: what is written, read back as ``folder:``; names, modes, and what is refused."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kcdp.data import command
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.registry import open_dataset
from kcdp.data.write import MARKER, plan_files, safe_name, write_pictures
from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.labels import LABELS
from kcdp.preprocess import PreprocessSpec, to_rgb


class Pictures(ImageDataset):
    """Samples and their pictures, from memory."""

    def __init__(self, *samples: Sample, picture: Image.Image | None = None) -> None:
        super().__init__("memory", samples)
        self.picture = picture or Image.new("RGB", (3, 2), (1, 2, 3))

    def image(self, index: int) -> Image.Image:
        return self.picture


def run_command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(["write", *argv]))


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["png", "webp"])
@pytest.mark.parametrize("domain", ["photos", "stickers"])
def test_round_trip(tmp_path, domain, form):
    out, text = tmp_path / "out", f"synthetic:{domain}?n=24&size=48"
    assert run_command(text, "--out", str(out), "--format", form) == 0
    before, after = open_dataset(text), open_dataset(f"folder:{out}")
    keys = read_json(out / MARKER)["files"]
    assert len(after) == len(keys) == 24 and all(file.endswith(f".{form}") for file in keys)
    index = {sample.key: i for i, sample in enumerate(before.samples)}
    spec = PreprocessSpec(48)
    for i, sample in enumerate(after.samples):
        j = index[keys[sample.key]]
        assert (sample.label, sample.split) == (before.samples[j].label, None)
        assert np.array_equal(spec.apply(after.image(i)), spec.apply(before.image(j)))
        assert after.image(i).mode == before.image(j).mode == ("RGBA" if domain == "stickers" else "RGB")
        assert np.array_equal(np.asarray(after.image(i)), np.asarray(before.image(j)))


def test_the_command_says_what_it_wrote_and_what_is_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command("synthetic:stickers?n=12&size=32", "--out", "my stickers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 pictures in my stickers (surprise 2, happy 2, disgust 2, fear 2, sad 2, anger 2)"
    assert lines[1] == ("next: kcdp tag 'my stickers' --recursive --model NAME.kcdp   or   "
                        "kcdp evaluate RUN --data 'folder:my stickers' --out REPORT")  # fmt: skip
    assert sorted(path.name for path in Path("my stickers").iterdir()) == sorted([*LABELS, MARKER])
    about = read_json(Path("my stickers") / MARKER)
    assert about["dataset"] == "synthetic:stickers?n=12&size=32" and about["kind"] == "pictures"
    assert list(about["files"].items())[1] == ("happy/stickers-0-000001.png", "stickers-0-000001")


def test_without_labels_pictures_lie_in_the_folder_itself(tmp_path, capsys):
    out = tmp_path / "out"
    assert run_command("synthetic:stickers?n=3&size=32&labelled=no", "--out", str(out)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: kcdp tag {out} --model NAME.kcdp"
    assert sorted(path.name for path in out.glob("*.png")) == [f"stickers-0-00000{i}.png" for i in range(3)]
    assert open_dataset(f"folder:{out}").labels.tolist() == [-1] * 3


def test_splits_of_its_own_become_folders(tmp_path):
    samples = [Sample("a", 1, "train"), Sample("b", 4, "val"), Sample("c", None, "test"), Sample("d", 1, "train")]
    files = write_pictures(Pictures(*samples), tmp_path / "out")
    assert files == ["train/happy/a.png", "val/sad/b.png", "test/c.png", "train/happy/d.png"]
    after = {s.key: s for s in open_dataset(f"folder:{tmp_path / 'out'}").samples}
    assert [(after[f].label, after[f].split) for f in files] == [(s.label, s.split) for s in samples]


def test_a_single_split_keeps_its_folder(tmp_path):
    assert plan_files(Pictures(Sample("a", 0, "test")), "webp") == ["test/surprise/a.webp"]


def test_a_written_folder_can_be_written_again(tmp_path):
    run_command("synthetic:photos?n=6&size=32", "--out", str(tmp_path / "one"))
    run_command(f"folder:{tmp_path / 'one'}", "--out", str(tmp_path / "two"))
    one, two = (open_dataset(f"folder:{tmp_path / name}") for name in ("one", "two"))
    assert one.labels.tolist() == two.labels.tolist()
    assert two.samples[0].key == "anger/anger-photos-0-000005.png"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("noto/1F600-FE0F", "noto-1F600-FE0F"),
        ("train/angry/im 0.JPEG", "train-angry-im-0"),
        ("v1.2/sad", "v1.2-sad"),
        ("../../etc/passwd", "etc-passwd"),
        ("/abs/./x.png", "abs-.-x"),
        (r"C:\x\y.gif", "C-x-y"),
        ("a?b*c|d\0e\nf", "a-b-c-d-e-f"),
        (".hidden", "hidden"),
        ("笑い.png", "笑い"),
        ("cafe\u0301", "caf\u00e9"),
        ("bad\udcff.png", "bad"),
        ("con", "_con"),
        ("NUL.tar", "_NUL.tar"),
        ("...", "picture"),
        ("", "picture"),
        (".png", "picture"),
        ("x" * 300, "x" * 120),
        ("笑" * 300, "笑" * 40),
    ],
)
def test_names_are_safe(key, name):
    assert safe_name(key) == name


def test_the_same_name_is_never_used_twice(tmp_path):
    keys = ["a/b", "a-b", "A-B", "Z", "z", "a b.png", "a b.gif", "\udcff", "\udcfe", "../x", "con", "CON"]
    keys += ["y" * 200, "y" * 201]
    files = write_pictures(Pictures(*(Sample(key, 1) for key in keys)), tmp_path / "out")
    assert len({file.casefold() for file in files}) == len(keys)
    assert files[0] == "happy/a-b.png" and re.fullmatch(r"happy/a-b-[0-9a-f]{8}\.png", files[1])
    assert files == plan_files(Pictures(*(Sample(key, 1) for key in keys)), "png")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == len(keys) + 1 and len(open_dataset(f"folder:{tmp_path / 'out'}")) == len(keys)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putpixel((0, 0), 2)
    image.info["transparency"] = 2
    return image


def turned_by_exif() -> Image.Image:
    image = Image.new("RGB", (4, 2), "red")
    image.putpixel((0, 0), (0, 0, 255))
    image.getexif()[0x0112] = 6
    return image


def wide_grey() -> Image.Image:
    return Image.fromarray(np.arange(0, 60000, 5000, dtype=np.uint16).reshape(3, 4))


STORED = {
    **{mode: lambda mode=mode: Image.new(mode, (4, 3)) for mode in ("1", "L", "RGB", "CMYK", "YCbCr", "HSV", "F")},
    "LA": lambda: Image.new("LA", (4, 3), (9, 100)),
    "PA": lambda: Image.new("RGBA", (4, 3), (9, 8, 7, 100)).quantize().convert("PA"),
    "RGBa": lambda: Image.new("RGBA", (4, 3), (200, 100, 50, 100)).convert("RGBa"),
    "hidden colour": lambda: Image.new("RGBA", (4, 3), (200, 100, 50, 0)),
    "palette": palette_with_transparency,
    "exif": turned_by_exif,
    "16 bits": wide_grey,
}


@pytest.mark.parametrize("form", ["png", "webp"])
@pytest.mark.parametrize("kind", STORED)
def test_every_kind_of_picture_is_read_back_as_the_model_saw_it(tmp_path, kind, form):
    picture = STORED[kind]()
    write_pictures(Pictures(Sample("a", 1), picture=picture), tmp_path / "out", form=form)
    again = open_dataset(f"folder:{tmp_path / 'out'}").image(0)
    for background in ((255, 255, 255), (3, 50, 99)):  # on either: the transparency itself is kept
        assert np.array_equal(np.asarray(to_rgb(again, background)), np.asarray(to_rgb(picture, background)))


def test_colour_under_full_transparency_is_kept(tmp_path):
    for form in ("png", "webp"):
        write_pictures(Pictures(Sample("a", 1), picture=STORED["hidden colour"]()), tmp_path / form, form=form)
        assert open_dataset(f"folder:{tmp_path / form}").image(0).getpixel((1, 1)) == (200, 100, 50, 0)


def test_what_a_format_cannot_hold_names_the_picture(tmp_path):
    wide = Pictures(Sample("k/wide", 1), picture=Image.new("L", (16384, 1)))
    message = fails(lambda: write_pictures(wide, tmp_path / "out", form="webp"))
    assert message.startswith("picture 'k/wide' cannot be written as webp (") and message.endswith("use --format png")
    grey = wide_grey()
    grey.info["transparency"] = 5000
    message = fails(lambda: write_pictures(Pictures(Sample("g", 1), picture=grey), tmp_path / "out", form="webp"))
    assert message.startswith("picture 'g' cannot be written as webp (")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("split", "where"), [(None, ""), ("val", " in split 'val'")])
def test_labelled_and_unlabelled_are_not_mixed(tmp_path, split, where):
    mixed = Pictures(Sample("a", 1, split), Sample("b", None, split), Sample("c", 2, split))
    assert fails(lambda: write_pictures(mixed, tmp_path / "out")) == (
        f"dataset 'memory' holds 2 pictures with a label and 1 without{where}; expected only one of the two, since "
        "folder: cannot tell them apart; add only=labelled or labelled=no to the dataset string"
    )
    assert not list(tmp_path.iterdir())


def test_a_damaged_picture_leaves_nothing_behind(tmp_path):
    run_command("synthetic:photos?n=6&size=32", "--out", str(tmp_path / "in"))
    (tmp_path / "in" / "sad" / "photos-0-000004.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    message = fails(lambda: run_command(f"folder:{tmp_path / 'in'}", "--out", str(tmp_path / "out")))
    assert "photos-0-000004.png" in message
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_existing_folders(tmp_path):
    out, text = str(tmp_path / "out"), "synthetic:photos?n=6&size=32"
    run_command(text, "--out", out)
    assert "exists already" in fails(lambda: run_command(text, "--out", out))
    run_command(f"{text}&labelled=no", "--out", out, "--overwrite")
    assert len(list((tmp_path / "out").glob("*.png"))) == 6 and not (tmp_path / "out" / "sad").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("precious")
    message = fails(lambda: run_command(text, "--out", str(other), "--overwrite"))
    assert f"{other} exists and holds no {MARKER}" in message and (other / "mine.txt").read_text() == "precious"


def test_a_name_that_folder_could_not_read(tmp_path):
    message = fails(lambda: run_command("synthetic:photos?n=6", "--out", str(tmp_path / "what?")))
    assert message.endswith("holds a question mark; expected a name that folder: can read; choose another --out")


def test_it_needs_no_tqdm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run_command("synthetic:photos?n=2&size=32", "--out", str(tmp_path / "out")) == 0
