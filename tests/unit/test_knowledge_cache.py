"""The knowledge cache: nothing is encoded twice, nothing is promised that is not there, nothing wrong is handed out."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import kcdp.knowledge.cache as module
from kcdp.errors import KcdpError
from kcdp.knowledge import lock
from kcdp.knowledge.cache import DATA, INDEX, LOCK, KnowledgeCache
from kcdp.knowledge.embedding import knowledge_tokens
from kcdp.knowledge.text import TextEncoder

ROOT = Path(__file__).resolve().parents[2]
TOKENS, WIDTH = 6, 32
PICTURES = [
    ("a cat smiles", ["cat smiles broadly"]),
    ("a dog cries", ["dog sheds tears", "dog looks down"]),
    ("nothing to parse", []),
    ("a cat smiles", ["cat smiles broadly", "dog looks down"]),
]
TEXTS = ["a cat smiles", "cat smiles broadly", "a dog cries", "dog sheds tears", "dog looks down", "nothing to parse"]


class Counting(TextEncoder):
    """Numbers drawn from the bytes of a text, and a list of every text it was asked for."""

    def __init__(self, name: str = "counting", tokens: int = TOKENS, width: int = WIDTH, batch_size: int = 2) -> None:
        self.name, self.tokens, self.width, self.batch_size = name, tokens, width, batch_size
        self.asked: list[str] = []
        self.stop_after: int | None = None
        self.scale = 1.0

    def encode(self, texts):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += texts
        return super().encode(texts)

    def _tokenize(self, texts):
        seeds = [zlib.crc32(f"{self.name}:{text}".encode()) for text in texts]
        return torch.tensor(seeds)[:, None].expand(-1, self.tokens)

    def _states(self, ids):
        rows = [np.random.default_rng(int(row[0])).standard_normal((self.tokens, self.width)) for row in ids]
        return self.scale * torch.from_numpy(np.stack(rows))


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def opened(folder: Path, encoder: TextEncoder | None = None, **options) -> KnowledgeCache:
    return KnowledgeCache.open(folder, encoder or Counting(), **{"dtype": "float32", "progress": False, **options})


def rows(cache: KnowledgeCache, pictures=PICTURES) -> np.ndarray:
    return cache.rows([cache.key(*picture) for picture in pictures])


def right(cache: KnowledgeCache, pictures=PICTURES, **tolerance) -> bool:
    """Whether the rows are what the encoder gives without a cache."""
    expected = [knowledge_tokens(*picture, Counting().encode, prefix=cache.prefix) for picture in pictures]
    return np.allclose(rows(cache, pictures), torch.stack(expected), **(tolerance or {"rtol": 1e-6, "atol": 1e-6}))


@pytest.fixture
def filled(tmp_path):
    folder = tmp_path / "cache"
    opened(folder).ensure(PICTURES)
    return folder


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_rows_are_the_knowledge_tokens(tmp_path):
    cache = opened(tmp_path / "new" / "cache")
    cache.ensure(PICTURES)
    found = rows(cache)
    assert found.shape == (4, 2 * TOKENS, WIDTH) == (4, *cache.shape) and found.dtype == np.float32
    assert right(cache) and len(cache) == 4
    assert np.array_equal(rows(cache, PICTURES[::-1]), found[::-1]) and cache.rows([]).shape == (0, 2 * TOKENS, WIDTH)


def test_the_files_are_one_of_data_and_one_index(filled):
    assert sorted(os.listdir(filled)) == [DATA, INDEX]
    assert os.path.getsize(filled / DATA) == len(TEXTS) * TOKENS * WIDTH * 4
    cache = opened(filled)
    rows(cache)
    assert isinstance(cache._map, np.memmap)


def test_half_precision_is_the_default_and_near(tmp_path):
    encoder = Counting()
    cache = KnowledgeCache.open(tmp_path, encoder, progress=False)
    cache.ensure(PICTURES)
    assert cache.form.dtype == "float16" and os.path.getsize(tmp_path / DATA) == len(TEXTS) * TOKENS * WIDTH * 2
    assert rows(cache).dtype == np.float32 and right(cache, rtol=2e-3, atol=2e-3) and not right(cache)


def test_the_prefix_goes_before_the_caption(tmp_path):
    cache = opened(tmp_path, prefix="a sticker of")
    cache.ensure(PICTURES)
    assert right(cache) and cache._encoder.asked[:2] == ["a sticker of a cat smiles", "cat smiles broadly"]


def test_keys_that_were_not_asked_for(filled):
    assert fails(lambda: opened(filled).rows(["x"])) == (
        f"{filled} holds no knowledge of the key 'x'; call ensure with it first"
    )


def test_keys_tell_contents_apart(tmp_path):
    cache, styled, other = opened(tmp_path), opened(tmp_path, prefix="p"), opened(tmp_path, Counting("other"))
    keys = [cache.key("a", []), cache.key("a", ["b"]), cache.key("a", ["b", "c"]), cache.key("a", ["b c"]),
            cache.key("p a", []), styled.key("a", []), other.key("a", [])]  # fmt: skip
    assert len(set(keys)) == len(keys) and all(len(key) == 64 for key in keys)
    assert cache.key("a", ["b"]) == opened(tmp_path / "elsewhere").key("a", ("b", " "))


# --- nothing twice ----------------------------------------------------------------------------------------------------


def test_every_text_is_encoded_once_across_pictures(tmp_path):
    encoder = Counting()
    opened(tmp_path, encoder).ensure(PICTURES * 3)
    assert encoder.asked == TEXTS


def test_every_text_is_encoded_once_across_runs(filled):
    encoder = Counting()
    cache = opened(filled, encoder)
    cache.ensure(PICTURES)
    assert encoder.asked == [] and right(cache)
    more = [("a bird sings", ["cat smiles broadly"]), ("dog looks down", []), ("a cat smiles", ["dog sheds tears"])]
    cache.ensure(PICTURES + more)
    assert encoder.asked == ["a bird sings"]  # every other text is there, if in other pictures and other places
    assert right(cache, PICTURES + more) and right(opened(filled), more)


def test_nothing_is_written_when_nothing_is_missing(filled):
    before = (filled / INDEX).stat().st_mtime_ns, (filled / DATA).stat().st_mtime_ns
    filled.chmod(0o555)  # a folder that may only be read serves those who only read
    try:
        opened(filled).ensure(PICTURES)
    finally:
        filled.chmod(0o755)
    assert before == ((filled / INDEX).stat().st_mtime_ns, (filled / DATA).stat().st_mtime_ns)


def test_a_changed_caption_is_encoded_again(filled):
    encoder = Counting()
    opened(filled, encoder).ensure([("a cat smiles!", PICTURES[0][1])])
    assert encoder.asked == ["a cat smiles!"]


def test_another_encoder_or_prefix_reuses_nothing_of_it(filled):
    other, styled = Counting("another"), Counting()
    cache = opened(filled, other)
    cache.ensure(PICTURES)
    assert other.asked == TEXTS and not np.allclose(rows(cache), rows(opened(filled)), atol=0.1)
    opened(filled, styled, prefix="a sticker of").ensure(PICTURES)
    assert len(styled.asked) == 3 and all(text.startswith("a sticker of ") for text in styled.asked)
    assert right(opened(filled)) and len(opened(filled)) == 12


def test_a_copy_for_a_loaders_worker_reads_only(filled):
    cache = opened(filled)
    expected = rows(cache)
    data = pickle.dumps(cache)
    assert len(data) < 5000 + os.path.getsize(filled / INDEX)  # neither the encoder nor the mapped data
    copy = pickle.loads(data)
    assert np.array_equal(rows(copy), expected)
    copy.ensure(PICTURES)
    assert fails(lambda: copy.ensure([("new", [])])) == (
        f"this copy of {filled} only reads; call ensure before the loader starts"
    )


# --- interrupts -------------------------------------------------------------------------------------------------------


def promised(folder: Path) -> int:
    """Number of blocks that the index promises; each must be on the disk and what it claims to be."""
    cache = opened(folder)
    content = json.loads((folder / INDEX).read_text())
    assert all(cache._intact(position) for position in range(len(content["blocks"])))
    assert {position for row in content["rows"].values() for position in row} <= set(range(len(content["blocks"])))
    return len(content["blocks"])


@pytest.mark.parametrize("done", [0, 2, 4])
def test_an_interrupt_keeps_what_is_done(done, tmp_path):
    encoder = Counting()
    encoder.stop_after = done
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, encoder).ensure(PICTURES)
    assert promised(tmp_path) == done and not (tmp_path / LOCK).exists()
    assert len(opened(tmp_path)) == {0: 0, 2: 1, 4: 1}[done]  # the second picture needs the fifth text
    again = Counting()
    cache = opened(tmp_path, again)
    cache.ensure(PICTURES)
    assert again.asked == TEXTS[done:] and right(cache)


KILLED = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import kcdp.knowledge.cache as module
from test_knowledge_cache import PICTURES, Counting, opened
module.COMMIT_SECONDS = 0.0
class Dies(Counting):
    def encode(self, texts):
        if len(self.asked) == 4:
            with open(os.path.join({folder!r}, module.DATA), "ab") as handle:
                handle.write(b"half a block")
            os._exit(7)
        return super().encode(texts)
opened({folder!r}, Dies()).ensure(PICTURES)
"""


def test_a_killed_process_loses_only_what_was_not_committed(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(ROOT), folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 7
    assert (tmp_path / LOCK).exists() and promised(tmp_path) == 4
    encoder = Counting()
    cache = opened(tmp_path, encoder)
    cache.ensure(PICTURES)
    assert encoder.asked == TEXTS[4:] and right(cache) and not (tmp_path / LOCK).exists()


def test_a_full_disk(tmp_path):
    """The largest file allowed ends in the middle of a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = opened(tmp_path, Counting(width=256))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(3.5 * cache.form.bytes), hard))
    try:
        message = fails(lambda: cache.ensure(PICTURES))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message == f"writing {tmp_path / DATA} failed (File too large); free some space or choose another place"
    content = json.loads((tmp_path / INDEX).read_text())
    assert len(content["blocks"]) == 3 and len(content["rows"]) == 1
    encoder = Counting(width=256)
    cache = opened(tmp_path, encoder)
    cache.ensure(PICTURES)
    assert encoder.asked == TEXTS[3:] and len(rows(cache)) == 4


def test_the_index_is_written_after_the_data(tmp_path, monkeypatch):
    """The twin of the tests above: an index that could not be written promises nothing."""

    def no_space(self, path):
        raise KcdpError("no space")

    monkeypatch.setattr(module.CacheIndex, "save", no_space)
    with pytest.raises(KcdpError):
        opened(tmp_path).ensure(PICTURES)
    monkeypatch.undo()
    assert not (tmp_path / INDEX).exists() and os.path.getsize(tmp_path / DATA)
    encoder = Counting()
    cache = opened(tmp_path, encoder)
    cache.ensure(PICTURES)
    assert encoder.asked == TEXTS and right(cache)


# --- writers ----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from kcdp.knowledge.lock import writer_lock
with writer_lock(Path({path!r})):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(filled):
    """A process that is writing into the cache."""
    code = HOLDER.format(root=str(ROOT), path=str(filled / LOCK))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_two_writers_are_one_too_many(filled, holder):
    encoder = Counting()
    cache = opened(filled, encoder)
    message = fails(lambda: cache.ensure([("new", [])]))
    assert message.startswith(f"{filled} is being written by process {holder.pid} on ")
    assert message.endswith("; expected one writer at a time; wait for it, or stop it")
    assert encoder.asked == [] and (filled / LOCK).exists()
    cache.ensure(PICTURES)  # reading needs no lock
    assert right(cache)


def test_the_lock_of_a_killed_writer_is_taken_over(filled, holder):
    holder.kill()
    holder.wait()
    assert (filled / LOCK).exists()
    opened(filled).ensure([("new", [])])
    assert not (filled / LOCK).exists()


@pytest.mark.parametrize(
    "content", ["", "x", f'{{"pid": {os.getpid()}, "host": "h"}}'], ids=["empty", "no JSON", "this process"]
)
def test_a_lock_file_that_nobody_holds(content, filled):
    (filled / LOCK).write_text(content)
    opened(filled).ensure([("new", [])])
    assert not (filled / LOCK).exists()


def test_a_lock_file_removed_while_it_is_taken(tmp_path, monkeypatch):
    """Between our opening and our locking it, its holder may end and remove it: a lock on no file keeps nobody out."""
    path, real, removed = tmp_path / LOCK, lock._try, []

    def slow(handle):
        if not removed:
            removed.append(path.unlink())
        return real(handle)

    monkeypatch.setattr(lock, "_try", slow)
    with lock.writer_lock(path):
        assert removed and json.loads(path.read_text())["pid"] == os.getpid()
        assert "is being written by" in fails(lambda: lock.writer_lock(path).__enter__())
    assert not path.exists()


def test_one_process_is_no_exception(tmp_path):
    inner = []

    class Nested(Counting):
        def encode(self, texts):
            inner.append(fails(lambda: opened(tmp_path).ensure(PICTURES)))
            return super().encode(texts)

    opened(tmp_path, Nested()).ensure(PICTURES)
    assert inner[0].startswith(f"{tmp_path} is being written by process {os.getpid()} on ") and right(opened(tmp_path))


def test_what_another_process_added_meanwhile_is_found(tmp_path):
    encoder = Counting()
    early = opened(tmp_path, encoder)
    opened(tmp_path).ensure(PICTURES[:2])
    early.ensure(PICTURES)
    assert encoder.asked == ["nothing to parse"] and right(early) and right(opened(tmp_path))


# --- damage -----------------------------------------------------------------------------------------------------------


def repaired(folder: Path, capsys) -> tuple[list[str], str]:
    """What was encoded again, and what was said; afterwards all is right."""
    encoder = Counting()
    cache = opened(folder, encoder)
    cache.ensure(PICTURES)
    said = capsys.readouterr().err
    assert right(cache) and right(opened(folder)) and capsys.readouterr().err == ""
    return encoder.asked, said


def test_nothing_is_said_of_a_sound_cache(filled, capsys):
    assert repaired(filled, capsys) == ([], "")


@pytest.mark.parametrize("left", [0, 1, 2.5, 5.999])
def test_data_cut_short(left, filled, capsys):
    block = TOKENS * WIDTH * 4
    os.truncate(filled / DATA, int(left * block))
    asked, said = repaired(filled, capsys)
    assert asked == TEXTS[int(left) :]
    assert said == f"warning: {filled / DATA} is cut short; {6 - int(left)} of 6 texts have to be encoded again\n"


def test_data_cut_short_is_not_handed_out(filled, capsys):
    os.truncate(filled / DATA, 1000)
    cache = opened(filled)
    assert "is cut short" in capsys.readouterr().err and "no knowledge of the key" in fails(lambda: rows(cache))


def test_data_missing(filled, capsys):
    (filled / DATA).unlink()
    asked, said = repaired(filled, capsys)
    assert asked == TEXTS and "is cut short; 6 of 6 texts" in said


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("text", range(6))
def test_one_wrong_bit(text, filled, capsys):
    flip(filled / DATA, text * TOKENS * WIDTH * 4 + 77)
    asked, said = repaired(filled, capsys)
    assert asked == [TEXTS[text]]
    assert said == f"warning: {filled / DATA} is damaged; 1 of 6 texts have to be encoded again\n"
    assert os.path.getsize(filled / DATA) == 6 * TOKENS * WIDTH * 4  # in its place, not at the end


def test_a_wrong_bit_is_not_handed_out(filled):
    flip(filled / DATA, 0)
    cache = opened(filled)
    assert fails(lambda: rows(cache, PICTURES[:1])) == (
        f"{filled / DATA} is damaged; run the command again: it mends the cache"
    )
    assert right(cache, PICTURES[1:3])  # what is sound still is


def test_an_interrupt_while_mending(filled):
    flip(filled / DATA, 0)
    os.truncate(filled / DATA, os.path.getsize(filled / DATA) - 1)
    encoder = Counting()
    encoder.stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        opened(filled, encoder).ensure(PICTURES)
    again = Counting()
    cache = opened(filled, again)
    cache.ensure(PICTURES)
    assert sorted(again.asked) == ["a cat smiles", "nothing to parse"] and right(cache)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"width":32', '"width":0'),
        lambda text: text.replace('"blocks":[', '"blocks":[7,'),
        lambda text: text[: text.index('"blocks"')] + '"blocks":[],' + text[text.index('"rows"') :],
        lambda text: text.replace('"rows":{', '"rows":{"x":[0,99],'),
        lambda text: "\udcff" + text,
    ],
)
def test_a_damaged_index(change, filled, capsys):
    text = (filled / INDEX).read_text()
    assert change(text) != text
    (filled / INDEX).write_bytes(change(text).encode("utf-8", "surrogateescape"))
    asked, said = repaired(filled, capsys)
    assert asked == TEXTS
    assert said.startswith(f"warning: {filled / INDEX} is damaged (")
    assert said.endswith("; all of it has to be encoded again\n")


def test_readers_of_the_old_data_keep_it(filled):
    """A cache that is made anew is a new file: who has mapped the old one reads on."""
    reader = opened(filled)
    expected = rows(reader)
    (filled / INDEX).write_text("")
    opened(filled).ensure(PICTURES[2:])
    assert np.array_equal(rows(reader), expected)


def test_another_format(filled):
    (filled / INDEX).write_text((filled / INDEX).read_text().replace("kcdp-knowledge-1", "kcdp-knowledge-9"))
    assert fails(lambda: opened(filled)) == (
        f"{filled / INDEX} has the format kcdp-knowledge-9; expected kcdp-knowledge-1; "
        "use another folder, or the kcdp that wrote it"
    )


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_knowledge_of_the_wrong_width(filled):
    assert fails(lambda: opened(filled, Counting("wide", width=64))) == (
        f"{filled} holds knowledge of the wrong width: 32; expected 64, the width of wide; "
        "name another folder, or delete this one"
    )
    assert fails(lambda: opened(filled, width=768)) == (
        "counting makes knowledge of the wrong width: 32; expected 768, the width of the model's knowledge tokens; "
        "choose a text encoder of that width, or set model.knowledge.width=32"
    )
    assert opened(filled, width=32).shape == (12, 32)


def test_another_form(filled):
    fix = "name another folder, or delete this one"
    assert fails(lambda: opened(filled, Counting(tokens=77))) == (
        f"{filled} holds knowledge of 6 tokens a text; expected 77; {fix}"
    )
    assert fails(lambda: opened(filled, dtype="float16")) == (
        f"{filled} holds knowledge in float32; expected float16; {fix}"
    )
    assert fails(lambda: opened(filled, dtype="int8")) == (
        "dtype of the knowledge cache is 'int8'; expected float16 or float32"
    )
    (filled / "file").write_text("")
    assert fails(lambda: opened(filled / "file")).startswith(f"{filled / 'file'} is not a folder; expected the folder")


def test_states_that_cannot_be_stored(tmp_path):
    encoder = Counting()
    encoder.scale = 1e5
    assert fails(lambda: opened(tmp_path, encoder, dtype="float16").ensure(PICTURES)) == (
        "counting gives states of 'a cat smiles' that float16 cannot hold; expected finite numbers; "
        "check its weights, or store float32"
    )
    encoder.scale = float("nan")
    assert "that float32 cannot hold" in fails(lambda: opened(tmp_path / "2", encoder).ensure(PICTURES))
    assert len(opened(tmp_path, dtype="float16")) == 0


def test_an_encoder_that_is_not_as_wide_as_it_says(tmp_path):
    encoder = Counting()
    cache = opened(tmp_path, encoder)
    encoder.width = 8
    assert fails(lambda: cache.ensure(PICTURES)) == (
        "counting gives knowledge of the shape (2, 6, 8); expected (2, 6, 32)"
    )


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "cache"
    assert fails(lambda: opened(inside)).startswith(f"{inside / INDEX} cannot be read (Not a directory); ")
    data = tmp_path / "cache" / DATA
    data.mkdir(parents=True)
    assert fails(lambda: opened(data.parent).ensure(PICTURES)).startswith(f"writing {data} failed (")


def test_many_pictures(tmp_path):
    encoder = Counting(batch_size=64)
    pictures = [(f"picture {i}", [f"thing {i % 7}"] * (i % 3)) for i in range(500)]
    cache = opened(tmp_path, encoder)
    cache.ensure(pictures)
    assert len(encoder.asked) == len(set(encoder.asked)) == 507 and len(cache) == 500
    cache = opened(tmp_path)
    cache.ensure(pictures)
    assert right(cache, pictures[::50]) and cache._encoder.asked == []


def test_a_patient_writer_waits_and_says_for_whom(tmp_path, capsys):
    path, held = tmp_path / "knowledge.lock", threading.Event()

    def hold():
        with lock.writer_lock(path):
            held.set()
            time.sleep(0.4)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(KcdpError, match="one writer at a time"), lock.writer_lock(path, patience=0.05):
        pass
    with lock.writer_lock(path, patience=30):
        assert path.exists()
    thread.join()
    assert f"waiting for process {os.getpid()}" in capsys.readouterr().err
