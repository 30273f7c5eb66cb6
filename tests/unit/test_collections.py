"""Large collections: the rows of the plain run, in its order, each once, whatever is broken or killed."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import kcdp
from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.runtime.backends.options import SessionOptions
from kcdp.runtime.backends.registry import BACKENDS
from kcdp.runtime.collections import engine, tagging, worker
from kcdp.runtime.collections.cluster import cluster
from kcdp.runtime.collections.items import Files
from kcdp.runtime.collections.ledger import TRIES, Ledger
from kcdp.runtime.collections.options import CollectionOptions
from kcdp.runtime.collections.parts import STATE, Parts
from kcdp.runtime.collections.tables import Columns, Tables
from kcdp.runtime.collections.tagging import Tally, open_collection, stream_collection, tag_collection
from kcdp.runtime.collections.units import pack, unpack
from kcdp.runtime.items import Item
from kcdp.runtime.output import make_writer
from kcdp.runtime.rows import COLUMNS, DIGEST_DIGITS
from kcdp.runtime.sources import find_pictures
from kcdp.runtime.tagger import Tag, Tagger

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

OPTIONS = CollectionOptions(workers=2, batch_size=4, object_store=200 << 20, part_rows=8)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Ray of two processors, for all tests of this module. Starting it writes nothing to the terminal."""
    said = tmp_path_factory.mktemp("ray") / "said"
    with ExitStack() as stack:
        terminal = os.dup(2)
        with said.open("wb") as stream:
            os.dup2(stream.fileno(), 2)
            try:
                module = stack.enter_context(cluster(OPTIONS))
            finally:
                os.dup2(terminal, 2)
                os.close(terminal)
        assert said.read_text() == ""
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and "RAY_BACKEND_LOG_LEVEL" not in os.environ
        yield module
    assert not module.is_initialized(), "what was started was not ended"


def picture(colour: Sequence[int], size: int = 20) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), tuple(colour)).save(stream, "PNG")
    return stream.getvalue()


def pictures(number: int) -> list[bytes]:
    """Different ones, every seventh broken."""
    colours = np.random.default_rng(0).integers(0, 256, (number, 3)).tolist()
    return [picture(colour) if n % 7 != 3 else b"broken" for n, colour in enumerate(colours)]


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with ``s/00.png`` ... ``s/36.png``, of which some are broken."""
    (tmp_path / "s").mkdir()
    for number, data in enumerate(pictures(37)):
        (tmp_path / "s" / f"{number:02}.png").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(bundle: Bundle, items: Sequence[Item]) -> list[Tag]:
    with Tagger.load(bundle.path, threads=1, batch_size=OPTIONS.batch_size) as tagger:
        return list(tagger.stream(items))


def write_table(path: Path, rows: int, **columns: Any) -> Path:
    parquet.write_table(arrow.table(columns), path, row_group_size=rows)
    return path


@with_ray
def test_files_give_the_rows_of_the_plain_run(
    ray: Any, folder: Path, tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    """In order; broken and missing files are rows; nothing else is written; relative paths; Ray stays as it was."""
    paths = ["s", "gone.png", "s/05.png"]
    with Tagger.load(tiny_bundle.path, threads=1, batch_size=4) as tagger:
        writer = make_writer("jsonl", sys.stdout, model=tagger.manifest.digest[:DIGEST_DIGITS])
        for tag in tagger.stream(find_pictures(paths)):
            writer.write(tag)
    expected = capfd.readouterr().out
    assert len(expected.splitlines()) == 39 and expected.count('"error": null') == 33
    tally = tag_collection(paths, tiny_bundle.path, out=sys.stdout, options=OPTIONS)
    assert tally == Tally(33, 6) and capfd.readouterr() == (expected, "")
    assert ray.is_initialized(), "what was there before was ended"
    context = ray.data.DataContext.get_current()
    assert not context.execution_options.preserve_order, "the settings of others were changed"


@with_ray
def test_parquet_goes_on_where_it_was_left(
    ray: Any, tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Structs of bytes and path in row groups of two files, a row without a picture, names of rows, parts kept."""
    data = [*pictures(40), None]
    structs = [None if one is None else {"bytes": one, "path": f"{n}.png" if n % 2 else None}
               for n, one in enumerate(data)]  # fmt: skip
    (tmp_path / "in").mkdir()
    write_table(tmp_path / "in" / "b.parquet", 7, image=structs[:30], number=list(range(30)))
    write_table(tmp_path / "in" / "c.parquet", 100, image=structs[30:], number=list(range(30, 41)))
    places = [f"{tmp_path}/in/b.parquet#{n}" if n < 30 else f"{tmp_path}/in/c.parquet#{n - 30}" for n in range(41)]
    names = [f"{n}.png" if n % 2 else place for n, place in enumerate(places)]
    gone = KcdpError(f"{names[40]} has no picture in its row", "its bytes")
    expected = plain(tiny_bundle, [Item(name, one or b"", error=None if one else gone)
                                   for name, one in zip(names, data, strict=True)])  # fmt: skip
    failed = sum(tag.error is not None for tag in expected)
    call = partial(tag_collection, str(tmp_path / "in"), tiny_bundle.path, out=f"{tmp_path}/out/", options=OPTIONS)

    def ends(*_: object, start: int) -> Iterator[Tag]:
        yield from expected[start:20]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tagging, "stream_collection", ends)
        call()
    kept = {one: one.stat().st_mtime_ns for one in (tmp_path / "out").glob("part-*.parquet")}
    assert len(kept) == 2, "whole parts of 8 rows out of 20"
    assert call() == Tally(41 - failed, failed, kept=16) and failed == 7
    assert kept == {one: one.stat().st_mtime_ns for one in kept}
    files = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [parquet.read_metadata(one).num_rows for one in files] == [8, 8, 8, 8, 8, 1]
    whole = parquet.read_table(tmp_path / "out").to_pylist()  # a reader takes the folder as one table
    assert [(row["path"], row["label"], row["error"], row["frames"]) for row in whole] == [
        (tag.path, tag.label, tag.error, tag.frames) for tag in expected
    ]
    scores = [[row[label] for label in LABELS] for row in whole if row["error"] is None]
    wanted = [list(tag.scores.values()) for tag in expected if tag.error is None]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)  # batches end where row groups do
    assert call() == Tally(41 - failed, failed, kept=41), "nothing is left to do"


@with_ray
def test_no_second_cluster_and_none_without_room(ray: Any, tiny_bundle: Bundle) -> None:
    files = Files([Item("a.png", "a.png")])
    for options, said in (
        (CollectionOptions(address="auto"), "the address auto, where this process is connected to Ray already; exp"),
        (CollectionOptions(threads=3), "a worker asks for 3 processors and 0 GPUs; expected at most 2 and 0, as the"),
    ):
        with pytest.raises(KcdpError, match=f"^{said}"):
            next(stream_collection(files, tiny_bundle.path, options))


@with_ray
def test_a_killed_worker_loses_and_repeats_nothing(ray: Any, tmp_path: Path, tiny_bundle: Bundle) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(picture((0, 255, 0), 2500))  # reading one takes long enough for the kill to find work going on
    for number in range(40):
        os.link(large, tmp_path / f"{number:02}.png")
    large.unlink()
    others = workers_now()
    tags = stream_collection(open_collection(str(tmp_path)), tiny_bundle.path, OPTIONS)
    got = [next(tags)]
    victim = max(workers_now() - others, key=lambda process: process.cpu_times().user)
    os.kill(victim.pid, signal.SIGKILL)
    got += tags
    assert [tag.path for tag in got] == [str(tmp_path / f"{number:02}.png") for number in range(40)]
    assert {(tag.label, tag.error) for tag in got} == {("happy", None)}
    assert not victim.is_running()


def workers_now() -> set[psutil.Process]:
    """Processes that tag."""
    processes = psutil.process_iter(["cmdline"])
    return {one for one in processes if "MapWorker(MapBatches(Worker))" in " ".join(one.info["cmdline"] or ())}


class Memory:
    """A ledger's handle, without a process."""

    def __init__(self, ledger: Ledger) -> None:
        self.end = self
        self.remote = ledger.end


class Died(BaseException):
    """What the end of a process is here."""


def die() -> bytes:
    raise Died


@pytest.fixture()
def local_worker(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[worker.Worker, Ledger]:
    """A worker in this process, and its ledger."""
    ledger = Ledger()
    monkeypatch.setattr(worker.Worker, "_begin", lambda self, work: ledger.begin(work))
    return worker.Worker(str(tiny_bundle.path), OPTIONS, kcdp.__version__, Memory(ledger)), ledger


def test_a_picture_that_kills_costs_one_row(
    local_worker: tuple[worker.Worker, Ledger], label_colours: dict[str, tuple[int, int, int]]
) -> None:
    """As the engine has it: whoever reads the picture dies, and the same table comes again."""

    items = [Item(f"{label}.png", picture(label_colours[label])) for label in LABELS]
    items[4] = Item("bad.png", die)
    deaths = 0
    call, ledger = local_worker
    table = pack([(8, items[:3]), (11, items[3:])])
    while True:
        try:
            done = list(unpack(call(table)))
            break
        except Died:
            deaths += 1
            assert deaths <= 2 * TRIES, "tried without end"
    assert deaths == 2 * TRIES and [first for first, _ in done] == [8, 11]
    tags = [tag for _, tags in done for tag in tags]
    assert [tag.label for tag in tags] == [None if n == 4 else label for n, label in enumerate(LABELS)]
    assert tags[4].error == "bad.png ended the process that read it, 2 times; expected a sound picture"
    assert not ledger._begun, "what has ended is forgotten"


def test_what_ends_a_run_travels_with_the_tags(local_worker: tuple[worker.Worker, Ledger], tiny_bundle: Bundle) -> None:
    call, _ = local_worker
    ((_, passed),) = unpack(call(pack([(0, KcdpError("t.parquet cannot be read", "a Parquet file"))])))
    assert isinstance(passed, KcdpError) and str(passed) == "t.parquet cannot be read; expected a Parquet file"
    other = worker.Worker(str(tiny_bundle.path), OPTIONS, "0.0.0", call._ledger)
    ((_, old),) = unpack(other(pack([(0, [Item("a.png", picture((1, 2, 3)))])])))
    assert str(old) == f"a worker has kcdp {kcdp.__version__}; expected 0.0.0, as where the run was started"
    options = CollectionOptions(backend="tensor")
    mistaken = worker.Worker(str(tiny_bundle.path), options, kcdp.__version__, call._ledger)
    ((_, unknown),) = unpack(mistaken(pack([(0, [Item("a.png", picture((1, 2, 3)))])])))
    assert isinstance(unknown, KcdpError) and str(unknown).startswith("backend 'tensor'")


def test_threads_of_a_worker_keep_the_order(tiny_bundle: Bundle, local_worker: tuple[worker.Worker, Ledger]) -> None:
    items = [Item(f"{n}.png", data) for n, data in enumerate(pictures(12))]
    units = [(first, items[first : first + 4]) for first in (0, 4, 8)]
    options = CollectionOptions(threads=3, batch_size=4)
    threaded = worker.Worker(str(tiny_bundle.path), options, kcdp.__version__, local_worker[0]._ledger)
    tags = [tag for _, unit in unpack(threaded(pack(units))) for tag in unit]
    assert [tag.path for tag in tags] == [item.name for item in items]
    assert [tag.label for tag in tags] == [tag.label for tag in plain(tiny_bundle, items)]


def test_threads_are_told_to_backends_that_have_such_an_option(
    tiny_bundle: Bundle, local_worker: tuple[worker.Worker, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker always has some threads: a card's backend, which takes no number of them, is used all the same."""

    def opened(**more: Any) -> dict[str, Any]:
        options = CollectionOptions(threads=2, batch_size=4, **more)
        made = worker.Worker(str(tiny_bundle.path), options, kcdp.__version__, local_worker[0]._ledger)
        assert made._fault is None, made._fault
        return made._tagger.describe()

    assert opened()["threads"] == opened(backend="openvino")["threads"] == 2
    assert opened(load={"min_confidence": 0.5, "options": SessionOptions(threads=2)})["threads"] == 2
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setattr(BACKENDS[name], "options", frozenset({"cache"}))
        assert opened(backend=name)["threads"] is None
    assert (opened()["backend"], opened()["threads"]) == ("onnxruntime", None)


class Nothing:
    """Stands for Ray; makes ledgers of nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self


@pytest.fixture()
def came(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tag]]:
    """What twelve files become where the workers give this."""

    class Data:
        units: Sequence[tuple[int, Any]] = ()

        def iter_batches(self, **_: object) -> list[Any]:
            return [pack([unit]) for unit in self.units]

    def call(*units: tuple[int, Any], start: int = 0) -> list[Tag]:
        Data.units = units
        return list(engine.stream(Nothing(), Files([Item(str(n)) for n in range(12)]), "m", OPTIONS, start=start))

    monkeypatch.setattr(engine, "_dataset", lambda *_: Data())
    return call


def rows(first: int, number: int) -> tuple[int, list[Tag]]:
    return first, [Tag(str(first + n), "sad", 1.0) for n in range(number)]


def test_twin_lost_and_repeated_rows_are_seen(came: Callable[..., list[Tag]]) -> None:
    assert [tag.path for tag in came(rows(0, 8), rows(8, 4))] == [str(n) for n in range(12)]
    assert [tag.path for tag in came(rows(4, 4), rows(8, 4), start=6)] == [str(n) for n in range(6, 12)]
    for units, said in (
        ((rows(0, 4), rows(8, 4)), "rows from 8 on came where 4 was next"),
        ((rows(0, 4), rows(4, 4), rows(4, 4)), "rows from 4 on came where 8 was next"),
        ((rows(0, 8),), "8 of 12 rows came"),
    ):
        with pytest.raises(RuntimeError, match=said):
            came(*units)


def test_a_workers_mistake_ends_the_run(came: Callable[..., list[Tag]]) -> None:
    with pytest.raises(KcdpError, match=r"^no bundle; expected one$"):
        came(rows(0, 4), (4, KcdpError("no bundle", "one")))


@pytest.mark.parametrize("start", [0, 1, 4, 7, 9, 16, 19])
def test_units_of_tables(tmp_path: Path, start: int) -> None:
    """Row groups of 7, 3 and 10: every row in one unit, from the unit of ``start`` on."""
    write_table(tmp_path / "a.parquet", 7, bytes=[b"%d" % n for n in range(10)], id=list(range(10)), text=["x"] * 10)
    write_table(tmp_path / "b.parquet", 50, bytes=[b"%d" % n for n in range(10, 20)], id=list(range(10, 20)),
                text=["x"] * 10)  # fmt: skip
    tables = open_collection(str(tmp_path), columns=Columns(None, "id", "text"))
    assert isinstance(tables, Tables) and tables.count == 20 and tables.columns.picture == "bytes"
    units = [unit for block in tables.blocks(start, 4, 2) for table in tables.read(block) for unit in unpack(table)]
    first = units[0][0]
    assert first <= start < first + len(units[0][1])
    assert [number for number, items in units for _ in items] == sorted(
        number for number, items in units for _ in items
    )
    rows = [(number + place, item) for number, items in units for place, item in enumerate(items)]
    assert rows == [(n, Item(str(n), b"%d" % n, "x")) for n in range(first, 20)]


def test_units_of_files_are_shared_out(tmp_path: Path) -> None:
    items = [Item(str(n), f"{n}.png") for n in range(70)]
    blocks = [list(unpack(table)) for table in Files(items).blocks(8, 4, 2)]
    assert len(blocks) == 8, "four tasks for each of two workers"
    units = [unit for block in blocks for unit in block]
    assert [first for first, _ in units] == list(range(8, 70, 4)) and {len(unit) for _, unit in units} == {4, 2}
    assert [item.name for _, unit in units for item in unit] == [item.name for item in items[8:]]
    assert units[0][1][0].source == os.path.abspath("8.png")


def test_bytes_of_what_cannot_travel(tmp_path: Path) -> None:
    def fails() -> bytes:
        raise KcdpError("a.zip/b.png is damaged")

    items = [Item("a.zip/a.png", partial(bytes, b"data")), Item("a.zip/b.png", fails)]
    ((_, unit),) = unpack(next(Files(items).blocks(0, 4, 1)))
    assert unit[0].source == b"data" and str(unit[1].error) == "a.zip/b.png is damaged"


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out", {"a": 1}, 10, "m1")
    list(parts.write([Tag("\udcff.png", None, None, error="\udcff.png is not a picture")]))
    (row,) = parquet.read_table(tmp_path / "out").to_pylist()
    assert (row["path"], row["error"]) == ("\\udcff.png", "\\udcff.png is not a picture")


def test_parts_have_the_columns_and_rows_of_the_other_outputs(tmp_path: Path) -> None:
    """Against CSV and JSON lines: names in their order, and values, those of a picture that failed included."""
    scores = dict(zip(LABELS, (0.1, 0.5, 0.2, 0.1, 0.0499999999, 0.05), strict=True))
    tags = [
        Tag("a, b.png", "happy", 0.5, scores, frames=3, spread=0.123456789),
        Tag("gone.png", None, None, error="gone.png does not exist"),
    ]
    model, text = "0123456789ab", {}
    for form in ("csv", "jsonl"):
        stream = io.StringIO(newline="")
        writer = make_writer(form, stream, model=model)
        for tag in tags:
            writer.write(tag)
        text[form] = stream.getvalue()
    list(Parts(tmp_path / "out", {}, 2, model).write(tags))
    table = parquet.read_table(tmp_path / "out" / "part-000000.parquet")
    (header, *cells), found = list(csv.reader(io.StringIO(text["csv"], newline=""))), table.to_pylist()
    assert table.column_names == header == list(COLUMNS)
    for row, line, record in zip(found, text["jsonl"].splitlines(), cells, strict=True):
        fields = json.loads(line)
        assert {name: row[name] for name in fields if name != "scores"} == pytest.approx(
            {name: value for name, value in fields.items() if name != "scores"}, abs=1e-7
        )
        assert {name: row[name] for name in LABELS if row[name] is not None} == pytest.approx(fields["scores"])
        empty = {name for name, cell in zip(header, record, strict=True) if not cell}
        assert {name for name in header if row[name] is None} == empty - {"frames"}, "a picture that failed has 0"
    assert found[0]["model"] == found[1]["model"] == model


def test_parts_are_of_one_run(tmp_path: Path) -> None:
    tags = [Tag(f"{n}.png", "sad", 0.5, dict.fromkeys(LABELS, 0.1), frames=1, spread=0.0) for n in range(5)]
    out = tmp_path / "out"
    assert list(Parts(out, {"model": "m", "items": 5}, 2, "m1").write(tags)) == tags
    assert sorted(os.listdir(out)) == [STATE, "part-000000.parquet", "part-000001.parquet", "part-000002.parquet"]
    assert Parts(out, {"model": "m", "items": 5}, 2, "m1").kept == 5
    with pytest.raises(KcdpError, match=r"out holds rows of another run \(model, part_rows differ\)"):
        Parts(out, {"model": "n", "items": 5}, 3, "m1")
    (out / "part-000001.parquet").unlink()
    with pytest.raises(KcdpError, match=r"out holds part-000002.parquet but not part-000001.parquet; expected all"):
        Parts(out, {"model": "m", "items": 5}, 2, "m1")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(KcdpError, match=r"out holds files already, and notes.txt; expected an empty or a new folder"):
        Parts(out, {"model": "m", "items": 5}, 2, "m1")
    (out / STATE).unlink()
    with pytest.raises(KcdpError, match=rf"out holds files already, and no {STATE}; expected"):
        Parts(out, {"model": "m", "items": 5}, 2, "m1")


def test_an_interrupted_part_is_not_there(tmp_path: Path) -> None:
    def tags() -> Iterator[Tag]:
        yield from [Tag(str(n), "sad", 0.5) for n in range(3)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Parts(tmp_path / "out", {}, 2, "m1").write(tags()))
    assert sorted(os.listdir(tmp_path / "out")) == [STATE, "part-000000.parquet"]
    assert Parts(tmp_path / "out", {}, 2, "m1").kept == 2


@pytest.mark.parametrize(
    ("columns", "wanted", "said"),
    [
        ({"a": [b"x"], "b": [b"y"]}, Columns(), "t.parquet has several columns of bytes among a, b; expected one with "
         "pictures; name it by --column"),
        ({"a": ["x"]}, Columns(), "t.parquet has no column of bytes among a; expected one with pictures; name it by "
         "--column"),
        ({"image": [b"x"]}, Columns("imag"), "t.parquet has no column 'imag' (did you mean 'image'?); expected one of "
         "image"),
        ({"image": [b"x"]}, Columns(name="id"), "t.parquet has no column 'id'; expected one of image"),
        ({"image": [[1.0]]}, Columns("image"), "the column 'image' of t.parquet holds list<element: double>; expected "
         "bytes, or structs of bytes and path"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], wanted: Columns, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(Path("t.parquet"), 10, **columns)
    with pytest.raises(KcdpError) as raised:
        Tables(["t.parquet"], wanted)
    assert str(raised.value) == said


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really PAR1")
    for name in ("t.parquet", "gone.parquet"):
        with pytest.raises(KcdpError, match=rf"{name} cannot be read \(.*\); expected a Parquet file; copy or write"):
            open_collection(str(tmp_path / name))
    write_table(tmp_path / "t.parquet", 10, image=[b"x" * 1000 for _ in range(10)])
    tables = Tables([str(tmp_path / "t.parquet")])
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[4:40] = bytes(36)
    (tmp_path / "t.parquet").write_bytes(data)
    ((_, error),) = [unit for table in tables.read(next(tables.blocks(0, 4, 1))) for unit in unpack(table)]
    assert isinstance(error, KcdpError) and "t.parquet cannot be read (" in str(error)
    write_table(tmp_path / "t.parquet", 10, image=arrow.array([], arrow.binary()))
    with pytest.raises(KcdpError, match=r"no rows in .*; expected at least one picture"):
        open_collection(str(tmp_path / "t.parquet"))
