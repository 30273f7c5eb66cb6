"""``fer2013:PATH``: folder, zip and csv hold the same faces; what is refused and with which words."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kcdp.data.fer2013 import open_fer2013
from kcdp.errors import KcdpError
from kcdp.labels import LABELS

REAL = Path(__file__).parents[3] / "shared" / "data" / "fer2013.zip"
FACES = [
    ("train", "anger", 0), ("train", "neutral", 6), ("val", "happy", 3), ("test", "sad", 4), ("test", "neutral", 6),
]  # fmt: skip
USAGE = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for seed, (split, name, _) in enumerate(FACES):
        path = tmp_path / "fer2013" / split / name / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(path)
    return tmp_path


@pytest.fixture
def archive(folder):
    path = folder / "fer.zip"
    with zipfile.ZipFile(path, "w") as target:
        for file in sorted((folder / "fer2013").rglob("*.png")):
            target.write(file, file.relative_to(folder))
        target.writestr("__MACOSX/fer2013/train/anger/._0.png", b"resource fork")
    return path


def write_csv(path: Path, header: str = "emotion,pixels,Usage", end: str = "\n") -> Path:
    lines = [header]
    for seed, (split, _, code) in enumerate(FACES):
        values = {"emotion": str(code), "pixels": " ".join(map(str, pixels(seed).ravel())), "Usage": USAGE[split]}
        lines.append(",".join(values[column.strip()] for column in header.split(",")))
    path.write_bytes((end.join(lines) + end).encode())
    return path


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(data) -> dict:
    """(split, label) -> pixels; every face of FACES has its own pair."""
    return {(s.split, LABELS[s.label]): np.asarray(data.image(i)) for i, s in enumerate(data.samples)}


def expected() -> dict:
    return {(split, name): pixels(seed) for seed, (split, name, _) in enumerate(FACES) if name != "neutral"}


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_array_equal(found[key], wanted[key])


def test_folder_zip_and_csv_hold_the_same_faces(folder, archive, tmp_path):
    paths = [folder, folder / "fer2013", archive, write_csv(tmp_path / "fer2013.csv")]
    paths.append(write_csv(tmp_path / "other.csv", "emotion, Usage, pixels", "\r\n"))
    for path in paths:
        data = open_fer2013("x", path)
        assert_same(contents(data), expected())
        assert data.dropped == 2 and data.name == "x"
        assert len({s.key for s in data.samples}) == 3
    keys = [[s.key for s in open_fer2013("x", path).samples] for path in paths[:3]]
    assert keys[0] == keys[1] == keys[2] == ["test/sad/3.png", "train/anger/0.png", "val/happy/2.png"]


def test_zip_without_the_outer_folder(folder):
    path = folder / "bare.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted((folder / "fer2013").rglob("*.png")):
            target.write(file, file.relative_to(folder / "fer2013"))
    assert_same(contents(open_fer2013("x", path)), expected())


def test_train_and_test_alone_with_the_names_of_the_other_release(tmp_path):
    for split, name in (("train", "angry"), ("test", "angry"), ("test", "surprise")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.fromarray(pixels(0)).save(tmp_path / split / name / "a.jpg")
    data = open_fer2013("x", tmp_path)
    assert [(s.split, LABELS[s.label]) for s in data.samples] == [
        ("test", "anger"), ("test", "surprise"), ("train", "anger"),
    ]  # fmt: skip


def _read_in_child(data, queue):
    queue.put(np.asarray(data.image(0)).tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_zip_is_read_by_other_processes(archive, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    data = open_fer2013("x", archive)
    wanted = np.asarray(data.image(0)).tobytes()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(data, queue))
    child.start()
    assert queue.get(timeout=60) == wanted
    child.join()


def test_zip_is_read_by_threads_and_survives_pickling(archive):
    data = pickle.loads(pickle.dumps(open_fer2013("x", archive)))
    wanted, wrong = np.asarray(data.image(1)), []

    def read():
        for _ in range(50):
            if not np.array_equal(np.asarray(data.image(1)), wanted):
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_missing_path(tmp_path):
    message = fails(lambda: open_fer2013("x", tmp_path / "no.zip"))
    assert message == (
        f"{tmp_path / 'no.zip'} does not exist; expected the FER-2013 folder, .zip or .csv; "
        "check the path after fer2013:"
    )


def test_other_kinds_of_file(tmp_path):
    for name, kind in (("fer.tar", ".tar"), ("fer", "nameless kind of")):
        (tmp_path / name).write_bytes(b"x")
        message = fails(lambda name=name: open_fer2013("x", tmp_path / name))
        assert message == f"{tmp_path / name} is a {kind} file; expected a folder, a .zip or a .csv"


def test_not_a_zip(tmp_path):
    path = tmp_path / "fer.zip"
    path.write_bytes(b"not a zip at all")
    message = fails(lambda: open_fer2013("x", path))
    assert message == (
        f"{path} cannot be opened (File is not a zip file); expected a whole zip archive; fetch it again"
    )


def test_unknown_class_is_named_with_its_place(archive):
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr("fer2013/train/angre/x.png", b"x")
    message = fails(lambda: open_fer2013("x", archive))
    assert message.startswith(f"{archive}/train/angre: fer2013: class 'angre' is unknown (did you mean 'ang")


def test_pictures_without_split_or_class(tmp_path):
    layout = "expected {train,val,test}/<class>/<picture>, with or without fer2013/ above"
    (tmp_path / "a" / "happy").mkdir(parents=True)
    Image.fromarray(pixels(0)).save(tmp_path / "a" / "happy" / "a.png")
    message = fails(lambda: open_fer2013("x", tmp_path / "a"))
    assert message == f"{tmp_path / 'a'} holds happy/a.png; {layout}; use folder: for pictures laid out otherwise"
    (tmp_path / "b" / "train").mkdir(parents=True)
    Image.fromarray(pixels(0)).save(tmp_path / "b" / "train" / "a.png")
    assert f"{tmp_path / 'b'} holds train/a.png; {layout}" in fails(lambda: open_fer2013("x", tmp_path / "b"))


def test_damaged_members_of_a_zip(folder):
    path = folder / "fer.zip"
    whole = (folder / "fer2013/train/anger/0.png").read_bytes()
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("train/anger/cut.png", whole[:200])
        target.writestr("train/anger/flip.png", whole)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"IDAT") + 50] ^= 255
    path.write_bytes(bytes(data))
    faces = open_fer2013("x", path)
    assert fails(lambda: faces.image(0)).startswith(f"{path}:train/anger/cut.png is truncated or damaged (")
    message = fails(lambda: faces.image(1))
    assert message.startswith(f"the picture {path}:train/anger/flip.png cannot be read (Bad CRC-32")
    assert message.endswith("fetch the archive again")


def test_archive_that_vanishes_or_changes(archive):
    data = pickle.loads(pickle.dumps(open_fer2013("x", archive)))
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("fer2013/train/anger/other.png", b"x")
    message = fails(lambda: data.image(0))
    assert message == f"the picture {archive}:fer2013/test/sad/3.png is missing; open the dataset again"
    data = pickle.loads(pickle.dumps(data))
    archive.unlink()
    assert f"{archive} cannot be opened ([Errno 2] No such file" in fails(lambda: data.image(0))


def test_csv_header(tmp_path):
    path = tmp_path / "fer.csv"
    path.write_text("emotion,pixels\n0,1 2\n")
    message = fails(lambda: open_fer2013("x", path))
    assert message == (f"{path} has the header 'emotion,pixels'; expected 'emotion,pixels,Usage'; use the original csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7,1 2,Training", "line 2: emotion is '7'; expected a number from 0 to 6"),
        ("x,1 2,Training", "line 2: emotion is 'x'; expected a number from 0 to 6"),
        ("0,1 2,Trainin", "line 2: Usage is 'Trainin' (did you mean 'Training'?); expected one of Training, PublicT"),
        ("0,1 2", "line 2 has 2 fields; expected 3; fetch the csv again"),
        ("6,1 2,Training", "holds only dropped classes (1 pictures); expected one of the six emotions"),
        ("", "holds no pictures; expected one line a picture below the header"),
    ],
)
def test_csv_lines(tmp_path, line, message):
    path = tmp_path / "fer.csv"
    path.write_text(f"emotion,pixels,Usage\n{line}\n")
    assert fails(lambda: open_fer2013("x", path)).startswith(f"{path} {message}")


@pytest.mark.parametrize("values", ["1 2 3", "x " * 2304, "256 " * 2304, ""])
def test_csv_pixels(tmp_path, values):
    path = tmp_path / "fer.csv"
    path.write_text(f"emotion,pixels,Usage\n0,{values},Training\n")
    data = open_fer2013("x", path)
    assert fails(lambda: data.image(0)) == (
        f"the picture {path}:line/000002 cannot be decoded; expected 2304 numbers 0..255; fetch the csv again"
    )
    path.unlink()
    assert fails(lambda: data.image(0)) == f"the picture {path}:line/000002 is missing; put the csv back"


def test_only_the_neutral_faces(folder, archive, tmp_path):
    for path in (folder, archive, write_csv(tmp_path / "fer2013.csv")):
        data = open_fer2013("x", path, neutral=True)
        assert sorted((s.split, s.label) for s in data.samples) == [("test", None), ("train", None)]
        assert {s.split: data.image(i).tobytes() for i, s in enumerate(data.samples)} == {
            "train": pixels(1).tobytes(), "test": pixels(4).tobytes(),
        }  # fmt: skip
        assert data.dropped == 3


def test_no_neutral_faces(tmp_path):
    path = tmp_path / "fer.csv"
    path.write_text("emotion,pixels,Usage\n0,1,Training\n")
    assert fails(lambda: open_fer2013("x", path, neutral=True)) == (
        f"{path} holds no neutral pictures (1 others); leave neutral=only out"
    )


@pytest.mark.data
@pytest.mark.skipif(not REAL.exists(), reason="fer2013.zip is not in ../shared/data beside the repository")
def test_real_archive():
    data = open_fer2013("x", REAL)
    splits = [s.split for s in data.samples]
    assert {name: splits.count(name) for name in ("train", "val", "test")} == {
        "train": 22472,
        "val": 2229,
        "test": 3291,
    }
    assert data.dropped == 4846 + 483 + 730
    assert len({s.key for s in data.samples}) == len(data)
    start = time.perf_counter()
    for index in range(0, len(data), 100):
        assert (data.image(index).mode, data.image(index).size) == ("L", (48, 48))
    assert time.perf_counter() - start < 5
