"""``kcdp data check``: what it finds, what it must not find, what it prints, and how it ends."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kcdp.data import command
from kcdp.data.check import Check, check_dataset
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.fingerprint import MIN_CARD, MIN_CARD_LABELS, find_alike, fingerprint, is_card, same_content
from kcdp.data.registry import open_dataset, open_datasets
from kcdp.decoding import readable_formats
from kcdp.errors import KcdpError
from kcdp.labels import LABELS

REAL = Path(__file__).parents[3] / "shared" / "data" / "fer2013.zip"


def noise(seed: int) -> Image.Image:
    """A picture that resembles no other seed's: coloured patches."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return patches.resize((40, 30), Image.Resampling.BICUBIC)


def copy_of(seed: int, size: tuple[int, int] = (80, 60), quality: int = 85) -> Image.Image:
    """``noise`` in another size and compression."""
    buffer = io.BytesIO()
    noise(seed).resize(size).save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer)


def card(size: tuple[int, int] = (500, 374), quality: int = 90, form: str = "JPEG") -> Image.Image:
    """What a photo site shows in a picture's place, as it would have been stored."""
    image = Image.new("RGB", (500, 374), (240, 240, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((150, 120, 350, 260), outline=(120, 120, 120), width=3)
    draw.text((170, 180), "This photo is no longer available", fill=(90, 90, 90))
    draw.ellipse((220, 40, 280, 100), fill=(200, 30, 120))
    buffer = io.BytesIO()
    image.resize(size).save(buffer, form, **({"quality": quality} if form == "JPEG" else {}))
    buffer.seek(0)
    return Image.open(buffer)


class Pictures(ImageDataset):
    """Pictures in memory, each with a label and a split; an error instead of a picture is raised."""

    def __init__(self, *items: tuple[Image.Image | KcdpError, int | None, str]) -> None:
        self.items = items
        super().__init__("x:y", [Sample(f"{i:03d}", label, split) for i, (_, label, split) in enumerate(items)])

    def image(self, index):
        found = self.items[index][0]
        if isinstance(found, KcdpError):
            raise found
        return found


def one_of_each(split: str = "train", first: int = 0) -> list:
    return [(noise(first + label), label, split) for label in range(6)]


def save(root: Path, name: str, image: Image.Image) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def whole(tmp_path):
    """A folder of six different pictures, one of each label."""
    for number, label in enumerate(LABELS):
        save(tmp_path, f"{label}/{number}.png", noise(number))
    return tmp_path


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


def told(capsys, root: Path | None = None) -> list[str]:
    """What was printed below the table, the seconds left out."""
    lines = capsys.readouterr().out.replace(str(root), "ROOT").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("checked in "))
    return [lines[start].partition(" s: ")[2], *lines[start + 1 :]]


# Fingerprints


def test_fingerprint_as_it_is_defined():
    image = Image.new("L", (9, 8), 100)  # of the outline's own size, so that nothing is scaled
    for column, row in ((0, 0), (3, 7)):
        image.putpixel((column, row), 106)
    image.putpixel((5, 2), 104)  # not more than 4 levels brighter than its neighbour: no edge
    found = fingerprint(image)
    assert found.outline.tolist() == [1, 0, 0, 0, 0, 0, 0, 8] and found.outline.dtype == np.uint8
    wide = fingerprint(Image.new("RGB", (160, 80), (10, 20, 30)).convert("RGBA"))
    assert wide.small.shape == (16, 16) and set(wide.small.ravel().tolist()) == {18} and not wide.outline.any()
    assert wide.content == fingerprint(Image.new("RGB", (160, 80), (10, 20, 30))).content
    # Transparency is white.
    assert set(fingerprint(Image.new("RGBA", (20, 20))).small.ravel().tolist()) == {255}


def test_groups_of_equal_hashes():
    assert same_content(["a", "b", "", "a", "c", "b", "a", ""]) == [[0, 3, 6], [1, 5]]
    assert same_content([]) == []


def alike(images: list[Image.Image]) -> list[list[int]]:
    prints = [fingerprint(image) for image in images]
    return find_alike(np.stack([p.outline for p in prints]), np.stack([p.small for p in prints]))


def test_copies_in_other_sizes_and_compressions_are_alike():
    images = [
        noise(1),
        card(),
        noise(2),
        copy_of(1),
        card((240, 180), 60),
        card(form="PNG"),
        card((600, 449)),
    ]
    assert alike(images) == [[1, 4, 5, 6], [0, 3]]


def test_other_pictures_are_not_alike():
    assert alike([noise(seed) for seed in range(300)]) == []
    # The twin: with one picture twice it is found.
    assert alike([*(noise(seed) for seed in range(300)), copy_of(7, (81, 59))]) == [[7, 300]]


def test_the_same_is_found_without_numpy_2(monkeypatch):
    images = [noise(1), copy_of(1), noise(2), card(), card((240, 180), 50)]
    expected = alike(images)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert alike(images) == expected == [[0, 1], [3, 4]]


def test_plain_pictures_are_told_apart_by_brightness():
    plain = [Image.new("L", (20, 20), level) for level in (0, 255, 128, 0, 255, 250)]
    assert alike(plain) == [[0, 3], [1, 4]]


def test_faint_drawings_on_one_background_are_not_alike():
    images = []
    for seed in range(40):
        image = Image.new("L", (128, 128), 255)
        rng = np.random.default_rng(seed)
        ImageDraw.Draw(image).line([tuple(map(int, p)) for p in rng.integers(10, 118, (4, 2))], fill=180, width=1)
        images.append(image)
    outlines = np.stack([fingerprint(image).outline for image in images])
    bits = np.unpackbits(outlines[:, None] ^ outlines[None], axis=2).sum(axis=2)
    assert (np.triu(bits <= 4, 1)).sum() > 20  # the outline alone would not tell
    assert alike(images) == []


def test_drawn_faces_that_differ_in_expression_are_not_alike():
    for domain in ("stickers", "photos"):
        faces = open_dataset(f"synthetic:{domain}?n=150&size=48")
        assert alike([faces.image(index) for index in range(len(faces))]) == []


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2] * 4, True),
        ([0, 1, 2] * 3, False),  # nine pictures
        ([0, 1] * 6, False),  # two labels
        ([-1] * 10, True),
        ([-1] * 9, False),
        ([-1] * 9 + [0], False),
    ],
)
def test_what_makes_a_card(labels, expected):
    assert (MIN_CARD, MIN_CARD_LABELS) == (10, 3)
    assert is_card(np.array(labels)) is expected


# What is found in a dataset


def test_nothing_to_remark():
    check = check_dataset(Pictures(*one_of_each(), *one_of_each("test", 6)))
    assert (check.verdict, check.passed) == ("usable", True)
    assert not (check.unreadable or check.same or check.alike or check.absent or check.cards or check.conflicts)
    assert check.counts() == {split: {**dict.fromkeys(LABELS, 1), "unlabelled": 0} for split in ("train", "test")}


def test_equal_pictures_within_and_across_splits():
    items = [*one_of_each(), (noise(2), 2, "train"), (noise(4).convert("RGBA"), 4, "test"), *one_of_each("test", 6)]
    check = check_dataset(Pictures(*items))
    assert check.same == ((2, 6), (4, 7)) and check.across_splits(check.same) == [(4, 7)]
    assert check.conflicts == [] and check.alike == ()
    assert (check.verdict, check.passed) == ("usable with remarks", True)


def test_conflicting_labels():
    check = check_dataset(Pictures(*one_of_each(), (noise(2), 5, "train"), (noise(3), None, "train")))
    assert check.same == ((2, 6), (3, 7)) and check.conflicts == [(2, 6)]
    assert check.labels_of((2, 6)) == ["disgust", "anger"] and check.labels_of((3, 7)) == ["fear"]
    assert (check.verdict, check.passed) == ("usable with remarks", False)


def test_alike_pictures_are_a_remark_also_with_different_labels():
    check = check_dataset(Pictures(*one_of_each(), (copy_of(2), 5, "train")))
    assert check.alike == ((2, 6),) and check.same == () and check.conflicts == [] and check.cards == []
    assert (check.verdict, check.passed) == ("usable with remarks", True)


def test_cards_whether_equal_or_alike():
    sizes = [(500, 374), (240, 180), (600, 449)]
    items = [(card(sizes[i % 3], 60 + i), i % 6, "train") for i in range(12)]
    check = check_dataset(Pictures(*one_of_each(), *items))
    assert check.cards == [tuple(range(6, 18))] and check.alike == (tuple(range(6, 18)),)
    equal = check_dataset(Pictures(*one_of_each(), *[(card(), i % 6, "train") for i in range(12)]))
    assert equal.cards == [tuple(range(6, 18))] and equal.alike == () and equal.same == (tuple(range(6, 18)),)
    both = check_dataset(Pictures(*items, *[(card(), i % 6, "train") for i in range(12)]))
    assert both.cards == [tuple(range(24))]
    # The twins: too few, or of one label.
    assert check_dataset(Pictures(*items[:9])).cards == []
    assert check_dataset(Pictures(*[(image, 0, split) for image, _, split in items])).cards == []


def test_labels_without_a_picture():
    check = check_dataset(Pictures(*one_of_each(), (noise(9), 0, "test"), (noise(10), None, "val")))
    assert check.absent == {"test": ["happy", "disgust", "fear", "sad", "anger"]}
    assert (check.verdict, check.passed) == ("usable with remarks", True)


def test_a_division_by_keys_may_miss_a_label(whole, capsys):
    data = open_dataset(f"folder:{whole}")
    assert {sum(row.values()) for row in check_dataset(data).counts().values()} != {6}
    assert run("check", f"folder:{whole}") == 0
    assert told(capsys) == ["6 pictures decoded, 0 missing, 0 damaged", "verdict: usable"]
    (whole / "sad/4.png").unlink()
    (whole / "fear/3.png").unlink()
    assert run("check", f"folder:{whole}") == 0
    assert told(capsys)[1:] == [
        "the dataset has no picture of fear, sad", "- nothing can be learned or measured there for these classes",
        "verdict: usable with remarks",
    ]  # fmt: skip


def test_missing_and_damaged_are_told_apart(whole):
    text = f"folder:{whole}"
    opened = [
        open_dataset(text), open_dataset(text).subset(range(6)), open_dataset(f"{text}?labelled=no"),
        open_datasets(["synthetic:photos?n=2&size=32", text]),
    ]  # fmt: skip
    (whole / "happy/1.png").unlink()
    (whole / "fear/3.png").write_bytes(b"")
    (whole / "sad/4.png").unlink()
    (whole / "sad/4.png").symlink_to(whole / "nowhere.png")
    for dataset in opened:
        check = check_dataset(dataset, threads=2)
        found = [[check.keys[picture.index] for picture in part] for part in (check.missing, check.damaged)]
        above = "1/" if len(dataset) == 8 else ""
        assert found == [[f"{above}happy/1.png", f"{above}sad/4.png"], [f"{above}fear/3.png"]]
        assert (check.verdict, check.passed) == ("broken", False)
        assert [picture.reason for picture in check.unreadable] == [
            f"{whole / 'fear/3.png'} is empty (0 bytes); expected a picture file; copy it again",
            f"{whole / 'happy/1.png'} does not exist; expected a picture file",
            f"{whole / 'sad/4.png'} does not exist; expected a picture file",
        ]


def test_a_picture_without_a_file_of_its_own_is_damaged():
    check = check_dataset(Pictures(*one_of_each(), (KcdpError("line 3 is wrong"), 0, "train")))
    assert [picture.reason for picture in check.damaged] == ["line 3 is wrong"] and check.missing == []


def test_nothing_can_be_read():
    check = check_dataset(Pictures((KcdpError("a"), 0, "train"), (KcdpError("b"), None, "train")))
    assert check.verdict == "broken" and len(check.damaged) == 2 and check.same == () and check.alike == ()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_threads(threads):
    class Slow(Pictures):
        def image(self, index):
            time.sleep(0.003 if index % 3 else 0)  # so that later ones are done first
            return super().image(index)

    items = [*one_of_each(), *one_of_each(), (KcdpError("x"), 1, "train"), (copy_of(0), 0, "train")] * 5
    check = check_dataset(Slow(*items), threads=threads)
    assert [picture.index for picture in check.unreadable] == list(range(12, 70, 14))
    assert check.same[0] == tuple(i for i in range(70) if i % 14 in (0, 6)) and len(check.same) == 7
    assert check.alike == (tuple(i for i in range(70) if i % 14 in (0, 6, 13)),)


def test_only_a_few_pictures_are_read_ahead():
    class Counting(Pictures):
        inside, most, lock = 0, 0, threading.Lock()

        def image(self, index):
            with self.lock:
                Counting.inside += 1
                Counting.most = max(Counting.most, self.inside)
            time.sleep(0.001)
            with self.lock:
                Counting.inside -= 1
            return super().image(index)

    check_dataset(Counting(*one_of_each() * 30), threads=3)
    assert 1 < Counting.most <= 3


def test_everything_as_plain_json():
    items = [*one_of_each(), (noise(2), 5, "test"), (copy_of(3), 3, "train"), (KcdpError("x"), 0, "train")]
    found = json.loads(json.dumps(check_dataset(Pictures(*items)).to_dict()))
    assert list(found) == [
        "dataset", "pictures", "verdict", "passed", "counts", "absent", "missing", "damaged", "conflicting", "equal",
        "alike", "cards",
    ]  # fmt: skip
    assert (found["dataset"], found["pictures"], found["verdict"], found["passed"]) == ("x:y", 9, "broken", False)
    pair = {"pictures": ["002", "006"], "labels": ["disgust", "anger"], "splits": ["train", "test"]}
    assert found["equal"] == found["conflicting"] == [pair]
    assert found["alike"] == [{"pictures": ["003", "007"], "labels": ["fear"], "splits": ["train"]}]
    assert found["damaged"] == [{"picture": "008", "reason": "x"}] and found["missing"] == found["cards"] == []


def test_names_that_are_no_text():
    key = os.fsdecode(b"a\xff.png")
    data = Pictures(*one_of_each())
    data.samples = (Sample(key, 0, "train"), *data.samples[1:])
    assert Check(data, (), (), ()).keys[0] == "a\\udcff.png"


# What is printed


def test_a_sound_dataset(whole, capsys):
    for split in ("val", "test"):
        for number, label in enumerate(LABELS):
            save(whole, f"{split}/{label}/{split}{number}.png", noise(number + 10 * len(split)))
    for label in LABELS:
        (whole / "train").mkdir(exist_ok=True)
        (whole / label).rename(whole / "train" / label)
    assert run("check", f"folder:{whole}") == 0
    assert told(capsys) == ["18 pictures decoded, 0 missing, 0 damaged", "verdict: usable"]


def test_a_broken_dataset_and_its_list(tmp_path, capsys):
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            save(tmp_path, f"image/{split}/{number}.png", noise(number + (50 if split == "test" else 0)))
    rows = [["amusement", f"image/train/{n}.png", "x"] for n in range(12)]
    names = ["excitement", "awe", "amusement", "disgust", "fear", "anger"]
    (tmp_path / "train.json").write_text(json.dumps(rows + [["fear", "image/train/0.png", "x"]]))
    (tmp_path / "test.json").write_text(json.dumps([[n, f"image/test/{i}.png", "x"] for i, n in enumerate(names)]))
    for number in range(1, 6):
        (tmp_path / f"image/train/{number}.png").unlink()
    (tmp_path / "image/train/6.png").write_text("<html>")
    save(tmp_path, "image/test/0.png", noise(7))
    out = tmp_path / "found.json"
    assert run("check", f"emoset:{tmp_path}", "--json", str(out)) == 1
    assert told(capsys, tmp_path) == [
        "13 pictures decoded, 5 missing, 1 damaged",
        "5 pictures are missing:",
        *(f"  ROOT/image/train/{n}.png does not exist; expected a picture file" for n in (1, 2, 3)),
        "  and 2 more",
        "- fetch the dataset again, or take these pictures out of its lists",
        "1 pictures cannot be decoded:",
        f"  ROOT/image/train/6.png is a web page (perhaps a failed download); expected {readable_formats()}; "
        "convert it first",
        "- copy these files again, or delete them",
        "2 pictures are there several times with different labels:",
        "  image/train/0.png, image/train/0.png#2 (happy, fear)",
        "  image/train/7.png, image/test/0.png (surprise, happy)",
        "- decide on one label for each, or delete all its copies",
        "2 pictures are there several times, equal in every pixel (2 copies too many), 1 of them in more than one "
        "split:",
        "  image/train/7.png, image/test/0.png (surprise, happy)",
        "  image/train/0.png, image/train/0.png#2 (happy, fear)",
        "- keep one copy of each: what was trained on is measured on too",
        "train has no picture of surprise, disgust, sad, anger",
        "test has no picture of sad",
        "- nothing can be learned or measured there for these classes",
        "verdict: broken",
        "everything that was found: ROOT/found.json",
    ]
    found = json.loads(out.read_text())
    assert found["verdict"] == "broken" and len(found["missing"]) == 5


def test_cards_and_copies(tmp_path, capsys):
    for number, label in enumerate(LABELS):
        save(tmp_path, f"train/{label}/{number}.png", noise(number))
        save(tmp_path, f"train/{label}/z1.png", card((500, 374), 70 + number))
        save(tmp_path, f"train/{label}/z2.png", card((240, 180), 70 + number))
    save(tmp_path, "test/sad/copy.png", copy_of(2))
    assert run("check", f"folder:{tmp_path}?split=all&only=labelled") == 0
    lines = told(capsys)
    assert lines[:4] == [
        "19 pictures decoded, 0 missing, 0 damaged",
        '1 pictures look like a card ("picture unavailable"), under many keys:',
        "  train/anger/z1.png, train/anger/z2.png, train/disgust/z1.png and 9 more (surprise, happy, disgust, fear, "
        "sad, anger)",
        "- look at one of each, and delete all its copies",
    ]
    assert lines[4] == (
        "1 pictures are there several times in other sizes or compressions, 1 of them in more than one split, 1 with "
        "different labels:"
    )
    assert lines[5] == "  test/sad/copy.png, train/disgust/2.png (disgust, sad)"
    assert lines[6] == "- keep one copy of each: what was trained on is measured on too"
    assert lines[-1] == "verdict: usable with remarks"


def test_copies_in_one_split(tmp_path, capsys):
    for number, label in enumerate(LABELS):
        for split in ("train", "test"):
            save(tmp_path, f"{split}/{label}/{number}.png", noise(number + len(split)))
    save(tmp_path, "train/sad/z.png", noise(9))
    assert run("check", f"folder:{tmp_path}?split=train") == 0
    assert told(capsys)[1:] == [
        "1 pictures are there several times, equal in every pixel (1 copies too many), 0 of them in more than one "
        "split:",
        "  train/sad/4.png, train/sad/z.png (sad)",
        "- keep one copy of each, or let them count several times",
        "verdict: usable with remarks",
    ]


def test_several_datasets_are_checked_as_one(whole, tmp_path_factory, capsys):
    other = tmp_path_factory.mktemp("other")
    save(other, "happy/elsewhere.png", noise(1))
    assert run("check", f"folder:{whole}", f"folder:{other}") in (0, 1)
    assert "  0/happy/1.png, 1/happy/elsewhere.png (happy)" in told(capsys)


def test_help_says_what_the_verdicts_mean(capsys):
    with pytest.raises(SystemExit):
        run("check", "--help")
    out = capsys.readouterr().out
    assert "broken: a picture is missing or cannot be decoded" in out and "status: 0, or 1 where" in out


def test_list_of_what_was_found_cannot_be_written(whole):
    with pytest.raises(KcdpError) as caught:
        run("check", f"folder:{whole}", "--json", str(whole))
    assert str(caught.value) == f"{whole} is a folder; expected the name of a file"


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.usefixtures("interrupts_are_heard")
def test_an_interrupt_ends_it_at_once():
    # It would take minutes.
    process = subprocess.Popen(
        [sys.executable, "-m", "kcdp", "data", "check", "synthetic:photos?n=30000&size=256"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()  # the table is there: what follows is the check
    time.sleep(0.5)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert line.startswith("synthetic:photos") and process.returncode == 130
    assert err.strip().endswith("kcdp: interrupted") and "Traceback" not in err and "verdict" not in out
    assert time.perf_counter() - start < 20


@pytest.mark.data
@pytest.mark.skipif(not REAL.exists(), reason="fer2013.zip is not in ../shared/data beside the repository")
def test_real_faces():
    """Faces are framed alike; photographs that are there several times are found, cards are not."""
    faces = open_dataset(f"fer2013:{REAL}")
    check = check_dataset(faces.subset([i for i, s in enumerate(faces.samples) if s.label in (3, 5)]))
    assert check.cards == [] and check.same == () and check.unreadable == ()
    assert (check.verdict, check.passed) == ("usable with remarks", True)
    assert 50 <= len(check.alike) <= 110 and len(check.alike[0]) < 10
    # The largest group shows one photograph: its copies differ by a few grey levels.
    first, *others = (np.asarray(check.dataset.image(i), dtype=int) for i in check.alike[0])
    assert all(np.abs(other - first).mean() < 8 for other in others)
