"""Training on cached latents: the same numbers, no picture opened; they are found by what decides them, and whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import (
    SOURCE,
    adapting,
    command,
    equal,
    fails,
    record_losses,
    state,
    tiny,
    train_arguments,
    trainer_of,
    write_captions,
)

import kcdp.training.latent_cache as latent_cache
from kcdp.config import Config, load_config
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import TensorDataset, collate
from kcdp.data.registry import open_dataset
from kcdp.data.sampler import Share
from kcdp.errors import KcdpError
from kcdp.knowledge.lock import writer_lock
from kcdp.models.kadap import Kadap
from kcdp.training.checkpoint import LAST, load_checkpoint
from kcdp.training.latent_cache import LATENTS, encoder_fingerprint, pictures_fingerprint
from kcdp.training.latent_store import PLACES, STRONG, WEAK, CachedLatents, StoredView, ViewWriter
from kcdp.training.pictures import open_pictures
from kcdp.training.trainer import Trainer

#: Two steps an epoch: in five, the first view comes again.
FROZEN = ("model.train_backbone=false", "training.views=2", "training.batch_size=20", "training.validate_every=4")
CACHED = (*FROZEN, "training.cache_latents=true")
SHAPE = (2, 3, 3)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_captions(tmp_path_factory.mktemp("captions"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the encoder has seen outside a training step and a validation, one number per batch."""
    seen: list[int] = []
    encode = Kadap.encode

    def noting(self: Kadap, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Kadap, "encode", noting)
    return seen


class Broken(ImageDataset):
    """Another dataset some of whose pictures cannot be read."""

    def __init__(self, parent: ImageDataset, broken: set[int]) -> None:
        super().__init__(parent.name, parent.samples)
        self.parent, self.broken = parent, broken

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise KcdpError(f"picture {index} is damaged")
        return self.parent.image(index)


def run(config: Config, out: Path, stop_after: int | None = None, **options: Any) -> tuple[Trainer, list[dict]]:
    trainer = trainer_of(config, out, **options)
    losses = record_losses(trainer)
    trainer.run(stop_after=stop_after)
    return trainer, losses


def stored(folder: Path) -> dict[str, bytes]:
    """Every file below, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_training_with_the_cache_is_training_without_it_to_the_bit(tmp_path, kind):
    more = () if kind == "tiny" else ("model.encoder.kind=kl", "model.encoder.blocks=[1,1,1]")
    plain, plain_losses = run(tiny(*FROZEN, *more), tmp_path / "plain", 5)
    cached, cached_losses = run(tiny(*CACHED, *more), tmp_path / "cached", 5)
    assert plain_losses == cached_losses and equal(state(plain), state(cached))
    assert plain.progress.validation == cached.progress.validation
    _, other_losses = run(tiny(*CACHED, *more, "training.seed=1"), tmp_path / "other", 1)
    assert other_losses[0] != cached_losses[0]  # the twin


def test_with_weak_and_strong_views_and_a_teacher(captions, tmp_path):
    plain, plain_losses = run(adapting(captions, *FROZEN), tmp_path / "plain", 5)
    cached, cached_losses = run(adapting(captions, *CACHED), tmp_path / "cached", 5)
    for mine, theirs in zip(cached_losses, plain_losses, strict=True):  # both domains were one batch for the encoder
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert plain.progress.validation == cached.progress.validation
    folders = sorted(p for p in (tmp_path / "cached" / LATENTS).iterdir() if p.is_dir())
    assert [(f / STRONG).exists() for f in folders].count(True) == 2 and len(folders) == 5
    data = cached.pictures.target
    item = data[1, 3]
    assert item.images.shape == (0,) and item.strong is None and item.latents.shape == item.strong_latents.shape
    assert not torch.equal(item.latents, item.strong_latents) and not torch.equal(item.latents, data[0, 3].latents)
    assert torch.equal(item.latents, data[3, 3].latents)


def test_the_distillation_step_takes_latents(captions, tmp_path):
    run(adapting(captions, *FROZEN), tmp_path / "explicit", 1)
    config = adapting(
        captions, *CACHED, "model.knowledge.mode=implicit", "training.implicit=distill", "model.train_backbone=true",
        f"training.init_from={tmp_path / 'explicit'}",
    )  # fmt: skip
    trainer, losses = run(config, tmp_path / "run", 2)
    assert len(losses) == 2 and not any(p.requires_grad for p in trainer.model.features.encoder.parameters())


def test_latents_are_channels_last_as_the_encoder_gives_them(tmp_path):
    trainer, _ = run(tiny(*CACHED), tmp_path / "run", 1)
    data = trainer.pictures.source
    batch = collate([data[0, i] for i in range(4)])
    with torch.no_grad():
        views = data.with_latents(None)
        fresh = trainer.model.encode(torch.stack([views[0, i].images for i in range(4)]))
    assert batch.latents.stride() == fresh.stride() and batch.latents.dtype == torch.float32
    torch.testing.assert_close(batch.latents, fresh, rtol=0, atol=1e-6)


def test_no_picture_is_opened_while_training(tmp_path, encoded):
    trainer = trainer_of(tiny(*CACHED), tmp_path / "run")
    opened: list[int] = []
    for data in (trainer.pictures.source, trainer.pictures.validation):
        read = data.dataset.image
        data.dataset.image = lambda index, read=read: (opened.append(index), read(index))[1]
    trainer.run(stop_after=1)
    assert sum(encoded) == 2 * 40 + 4 and len(opened) == 40 + 4  # each picture once, both views of it
    opened.clear()
    encoded.clear()
    trainer.run(stop_after=5)
    assert trainer.progress.step == 5 and trainer.progress.validation
    assert not opened and not encoded


def test_stopping_and_going_on_changes_nothing(tmp_path, encoded):
    whole, whole_losses = run(tiny(*CACHED), tmp_path / "whole", 3)
    _, first = run(tiny(*CACHED), tmp_path / "parts", 1)
    encoded.clear()
    second, rest = run(tiny(*CACHED), tmp_path / "parts", 3, resume=load_checkpoint(tmp_path / "parts" / LAST))
    assert first + rest == whole_losses and equal(state(second), state(whole)) and not encoded


def test_a_finished_run_needs_no_latents(tmp_path, encoded):
    run(tiny(*CACHED, "training.max_steps=1"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / LATENTS)
    encoded.clear()
    saved = load_checkpoint(tmp_path / "run" / LAST)
    run(saved.config, tmp_path / "run", resume=saved)
    assert not encoded and not (tmp_path / "run" / LATENTS).exists()


def test_workers_read_latents_too(tmp_path):
    _, alone = run(tiny(*CACHED), tmp_path / "alone", 3)
    _, helped = run(tiny(*CACHED, "training.workers=1"), tmp_path / "helped", 3)
    assert alone == helped
    assert stored(tmp_path / "alone" / LATENTS) == stored(tmp_path / "helped" / LATENTS)


# --- found by what decides them ---------------------------------------------------------------------------------------


def test_runs_share_a_folder(tmp_path, encoded, capsys):
    shared = (*CACHED, f"training.latents={tmp_path / 'shared'}")
    run(tiny(*shared), tmp_path / "a", 1)
    assert sum(encoded) == 84 and "latents: 3 of 3 views to encode" in capsys.readouterr().out
    before = stored(tmp_path / "shared")

    def again(*settings: str) -> int:
        encoded.clear()
        run(tiny(*shared, *settings), tmp_path / f"run{len(os.listdir(tmp_path))}", 1)
        return sum(encoded)

    assert again() == 0 and "latents:" not in capsys.readouterr().out
    assert again("training.learning_rate=1e-3", "training.batch_size=10") == 0
    assert again("training.views=3") == 40  # the first two are there
    assert again("training.augmentation=strong") == 80  # validation pictures are plain
    assert again("training.augmentation=none", "training.views=0") == 40
    assert again("training.seed=1") == 84  # another encoder too: it is made from scratch
    assert again("model.scale_latents=false") == 0  # this encoder's scale is 1
    assert again("model.input_normalization=imagenet-twice") == 84
    assert before.items() <= stored(tmp_path / "shared").items()
    assert not [name for name in os.listdir(tmp_path / "shared") if name.startswith(".")]


def test_the_seed_and_the_preprocessing_are_in_the_key():
    dataset = open_dataset("synthetic:photos?n=6&size=32")
    spec, base = tiny().preprocess, Path("latents")

    def key(data: TensorDataset, encoder: str = "e", view: int = 0) -> str:
        return latent_cache._jobs(data, encoder, SHAPE, base)[view].view.folder.name

    one = TensorDataset(dataset, spec, "light", 0, views=2)
    others = [
        TensorDataset(dataset, spec, "light", 1, views=2), TensorDataset(dataset, spec, "strong", 0, views=2),
        TensorDataset(dataset, replace(spec, fit="squash"), "light", 0, views=2),
        TensorDataset(dataset, spec, "light", 0, views=2, strong="strong"),
        TensorDataset(dataset.subset(range(5)), spec, "light", 0, views=2), TensorDataset(dataset, spec),
    ]  # fmt: skip
    assert len({key(data) for data in (one, *others)} | {key(one, "other"), key(one, view=1)}) == 9
    assert key(one) == key(TensorDataset(dataset, spec, "light", 0, views=5))
    assert key(TensorDataset(dataset, spec, seed=0)) == key(TensorDataset(dataset, spec, seed=1))  # nothing is drawn


def test_the_encoders_weights_are_in_the_key(tmp_path):
    model = trainer_of(tiny(*FROZEN), tmp_path / "run").model
    before = encoder_fingerprint(model)
    assert encoder_fingerprint(trainer_of(tiny(*FROZEN), tmp_path / "again").model) == before
    model.features.encoder.scaling_factor = 0.5
    scaled = encoder_fingerprint(model)
    with torch.no_grad():
        next(model.features.encoder.parameters()).view(-1)[0] += 1e-6
    assert len({before, scaled, encoder_fingerprint(model)}) == 3


def test_a_picture_that_has_changed_is_another_picture(tmp_path):
    (tmp_path / "data" / "happy").mkdir(parents=True)
    file = tmp_path / "data" / "happy" / "a.png"
    Image.new("RGB", (32, 32), "red").save(file)
    dataset = open_dataset(f"folder:{tmp_path / 'data'}")
    before = pictures_fingerprint(dataset)
    assert pictures_fingerprint(open_dataset(f"folder:{tmp_path / 'data'}")) == before
    os.utime(file, ns=(1, 1))
    assert pictures_fingerprint(dataset) != before
    archive = tmp_path / "pictures.zip"  # a dataset in one file

    class Packed(ImageDataset):
        def image(self, index: int) -> Image.Image:
            raise NotImplementedError

    packed = Packed(f"fer2013:{archive}", [Sample("a", 0)])
    before = pictures_fingerprint(packed)
    archive.write_bytes(b"other")
    assert pictures_fingerprint(packed) != before


# --- whole or not there -----------------------------------------------------------------------------------------------


def view_in(folder: Path, count: int = 5, strong: bool = True) -> tuple[StoredView, list[np.ndarray]]:
    generator = np.random.default_rng(0)
    rows = [generator.random((count, *SHAPE), np.float32) for _ in range(1 + strong)]
    return StoredView(folder / "key-0", count, SHAPE, strong, {"view": 0}), rows


def fill(view: StoredView, rows: list[np.ndarray], until: int) -> None:
    """Rows up to ``until``, two at a time, and the folder's name where these are all."""
    with ViewWriter(view) as writer:
        while writer.rows < until:
            some = slice(writer.rows, min(writer.rows + 2, until))
            writer.append(np.arange(view.count)[some], *(array[some] for array in rows))
        if until == view.count:
            writer.finish()


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_view_goes_on_where_it_was_stopped(tmp_path, stop):
    view, rows = view_in(tmp_path)
    whole = view.missing_bytes()
    if stop < 5:
        fill(view, rows, stop)
        assert not view.folder.exists() and not view.complete()
        assert view.missing_bytes() == whole - sum(p.stat().st_size for p in view.partial.glob("*.npy"))
        with ViewWriter(view) as writer:
            assert writer.rows == stop
    fill(view, rows, 5)
    assert view.complete() and not view.partial.exists() and view.missing_bytes() == 0
    assert whole == sum(p.stat().st_size for p in view.folder.glob("*.npy"))
    arrays = view.open()
    assert np.array_equal(arrays[WEAK], rows[0]) and np.array_equal(arrays[STRONG], rows[1])
    assert arrays[PLACES].tolist() == [0, 1, 2, 3, 4] and all(isinstance(a, np.memmap) for a in arrays.values())


@pytest.mark.parametrize("name", [WEAK, STRONG, PLACES])
def test_rows_that_are_not_whole_in_every_file_are_made_again(tmp_path, name):
    view, rows = view_in(tmp_path)
    fill(view, rows, 4)
    file = view.partial / name
    file.write_bytes(file.read_bytes()[:-3])
    with ViewWriter(view) as writer:
        assert writer.rows == 3
    fill(view, rows, 5)
    assert np.array_equal(view.open()[WEAK], rows[0]) and np.array_equal(view.open()[STRONG], rows[1])


def test_latents_that_no_places_promise_are_not_counted(tmp_path):
    """Power fails after the latents were written and before they were known to be on the disk."""
    view, rows = view_in(tmp_path)
    fill(view, rows, 2)
    with pytest.raises(RuntimeError), ViewWriter(view) as writer:
        writer._write(WEAK, np.full((1, *SHAPE), 9, np.float32))
        raise RuntimeError
    fill(view, rows, 5)
    assert np.array_equal(view.open()[WEAK], rows[0])


@pytest.mark.parametrize("name", [WEAK, STRONG, PLACES])
@pytest.mark.parametrize("damage", ["cut", "gone", "of another shape"])
def test_a_damaged_view_is_not_complete_and_is_made_again(tmp_path, name, damage):
    view, rows = view_in(tmp_path)
    fill(view, rows, 5)
    file = view.folder / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        np.save(file, np.zeros((4, *SHAPE), np.float32))
    assert not view.complete()
    fill(view, rows, 5)
    assert view.complete() and np.array_equal(view.open()[WEAK], rows[0])


def test_a_file_that_is_none_of_ours_is_begun_anew(tmp_path):
    view, rows = view_in(tmp_path, strong=False)
    fill(view, rows, 3)
    np.save(view.partial / WEAK, np.ones((3, 3)))
    fill(view, rows, 5)
    assert np.array_equal(view.open()[WEAK], rows[0])


def test_rows_of_another_shape_are_refused(tmp_path):
    view, rows = view_in(tmp_path)
    with ViewWriter(view) as writer, pytest.raises(ValueError, match=r"latents of the shape \(2, 2, 3, 2\)"):
        writer.append(np.arange(2), rows[0][:2, :, :, :2], rows[1][:2])
    with ViewWriter(view) as writer, pytest.raises(ValueError, match="0 rows; expected 5"):
        writer.finish()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    view, rows = view_in(tmp_path)
    with ViewWriter(view) as writer:
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        writer.append(np.arange(2), *(array[:2] for array in rows))
        message = fails(writer._commit)
        assert message == (f"writing {view.partial} failed (No space left on device); "
                           "free some space, or choose another place with training.latents")  # fmt: skip
        monkeypatch.undo()


def test_latents_that_have_gone_are_one_line(tmp_path):
    view, rows = view_in(tmp_path)
    fill(view, rows, 5)
    latents = CachedLatents([view])
    shutil.rmtree(view.folder)
    message = fails(lambda: latents.views(0, 0))
    assert message.startswith(f"{view.folder} cannot be read") and message.endswith("it makes them again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_encoding_saves_and_the_run_goes_on(tmp_path, encoded, monkeypatch, number):
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trainer = trainer_of(tiny(*CACHED), tmp_path / "run")
        append = ViewWriter.append
        monkeypatch.setattr(ViewWriter, "append", lambda self, *rows: (
            append(self, *rows), signal.raise_signal(number) if self.rows == 20 and self.view.count == 40 else None,
        ))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    finally:
        signal.signal(signal.SIGINT, previous)
    monkeypatch.setattr(ViewWriter, "append", append)
    assert load_checkpoint(tmp_path / "run" / LAST).progress["step"] == 0
    encoded.clear()
    _, whole_losses = run(tiny(*CACHED), tmp_path / "whole", 2)
    assert sum(encoded) == 84
    encoded.clear()
    _, losses = run(tiny(*CACHED), tmp_path / "run", 2, resume=load_checkpoint(tmp_path / "run" / LAST))
    assert sum(encoded) == 84 - 20 and losses == whole_losses
    assert stored(tmp_path / "run" / LATENTS) == stored(tmp_path / "whole" / LATENTS)


@pytest.mark.parametrize(("every", "kept"), [(0, 4), (1000, 0)])
def test_a_killed_process_leaves_only_what_is_whole(tmp_path, every, kept):
    view, rows = view_in(tmp_path)
    np.save(tmp_path / "rows.npy", np.stack(rows))
    program = f"""
import os, numpy as np, kcdp.training.latent_store as store
from pathlib import Path
store.COMMIT_SECONDS = {every}
rows = np.load({str(tmp_path / "rows.npy")!r})
writer = store.ViewWriter(store.StoredView(Path({str(view.folder)!r}), 5, {SHAPE}, True))
writer.append(np.arange(4), rows[0, :4], rows[1, :4])
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not view.complete() and view.partial.is_dir()
    with ViewWriter(view) as writer:
        assert writer.rows == kept
    fill(view, rows, 5)
    assert np.array_equal(view.open()[WEAK], rows[0]) and np.array_equal(view.open()[STRONG], rows[1])


# --- several writers --------------------------------------------------------------------------------------------------


def test_a_view_that_another_writes_is_waited_for_and_the_others_are_made(tmp_path, encoded, monkeypatch, capsys):
    config = tiny(*CACHED)
    run(config, tmp_path / "other", 1)
    others = sorted(p for p in (tmp_path / "other" / LATENTS).iterdir())
    encoded.clear()
    mine = tmp_path / "run" / LATENTS
    mine.mkdir(parents=True)
    waited = threading.Event()
    monkeypatch.setattr(latent_cache.time, "sleep", lambda _: waited.set())
    held = mine / others[0].name

    def other_process() -> None:
        with writer_lock(held.with_name(f".{held.name}.lock")):
            started.set()
            assert waited.wait(30)
            shutil.copytree(others[0], held)

    started = threading.Event()
    thread = threading.Thread(target=other_process)
    thread.start()
    assert started.wait(30)
    run(config, tmp_path / "run", 1)
    thread.join()
    assert sum(encoded) == 84 - len(np.load(others[0] / PLACES)) and waited.is_set()
    assert "waiting:" in capsys.readouterr().out
    assert stored(mine) == stored(tmp_path / "other" / LATENTS)


def test_the_processes_of_a_run_share_the_work(tmp_path, encoded):
    """Two processes, here two threads: each begins elsewhere, none makes what the other has made."""
    config = tiny(*CACHED, "training.augmentation=none")  # which draws on a generator that threads have in common
    found = {}
    trainers = [trainer_of(config, tmp_path / "run") for _ in range(2)]

    def process(rank: int) -> None:
        trainer = trainers[rank]
        engine = SimpleNamespace(share=Share(rank, 2), is_main=rank == 0, device=trainer.device)
        both.wait(60)
        found[rank] = latent_cache.cached_pictures(
            trainer.pictures, trainer.model, trainer.teacher, config, engine, tmp_path / "run"
        )

    both = threading.Barrier(2)
    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(encoded) == 44 and set(found) == {0, 1}
    whole, _ = run(config, tmp_path / "whole", 1)
    assert stored(tmp_path / "run" / LATENTS) == stored(tmp_path / "whole" / LATENTS)
    assert torch.equal(found[0].source[0, 5].latents, found[1].source[0, 5].latents)
    assert torch.equal(found[0].source[0, 5].latents, whole.pictures.source[0, 5].latents)


# --- room, and pictures that cannot be read ---------------------------------------------------------------------------


def test_the_disk_is_looked_at_before(tmp_path, monkeypatch, capsys):
    need = "0.0875 MB"  # 84 x 4 x 8 x 8 float32, 84 int64, headers
    monkeypatch.setattr(latent_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=87_000))
    trainer = trainer_of(tiny(*CACHED), tmp_path / "run")
    assert fails(trainer.run) == (
        f"latents need {need} and {tmp_path / 'run' / LATENTS} has 0.087 MB free; expected room for all of them; "
        "free some space, lower training.views, or name another folder with training.latents"
    )  # fmt: skip
    assert not (tmp_path / "run" / LAST).exists()
    monkeypatch.setattr(latent_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    trainer.run(stop_after=1)
    assert f"latents: 3 of 3 views to encode, {need} in {tmp_path / 'run' / LATENTS} (3 GB free)" in (
        capsys.readouterr().out
    )
    assert sum(p.stat().st_size for p in (tmp_path / "run" / LATENTS).rglob("*.npy")) == pytest.approx(87_500, abs=100)


def test_a_picture_that_cannot_be_read_is_counted_as_without_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("kcdp.training.unreadable.LIMIT", 0.1)
    skipped = {}
    for name, settings in (("plain", FROZEN), ("cached", CACHED)):
        config = tiny(*settings)
        pictures, _ = open_pictures(config)
        source = pictures.source
        broken = Broken(source.dataset, {7, 8})
        source = TensorDataset(broken, source.spec, source.augmentation, source.seed, views=2, tolerant=True)
        trainer = Trainer(config, replace(pictures, source=source), tmp_path / name)
        losses = record_losses(trainer)
        trainer.run(stop_after=2)
        skipped[name] = (trainer.progress.skipped, losses)
        if name == "cached":
            item = trainer.pictures.source[0, 7]
            assert (item.wanted, item.place) == (7, 9) and item.labels == broken.labels[9]
    assert skipped["plain"] == skipped["cached"]
    assert sorted(skipped["cached"][0]["source"]) == sorted(broken.samples[i].key for i in (7, 8))


def test_too_many_of_them_are_an_error_while_encoding(tmp_path):
    config = tiny(*CACHED)
    pictures, _ = open_pictures(config)
    spec, dataset = config.preprocess, pictures.source.dataset
    source = TensorDataset(Broken(dataset, {3}), spec, "light", views=2, tolerant=True)
    trainer = Trainer(config, replace(pictures, source=source), tmp_path / "run")
    assert "1 of the 40 pictures of" in fails(trainer.run)
    validation = TensorDataset(Broken(pictures.validation.dataset, {1}), spec)
    trainer = Trainer(config, replace(pictures, validation=validation), tmp_path / "other")
    assert fails(trainer.run) == "picture 1 is damaged"


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("training.views=2",), "training.cache_latents is true and the encoder trains; expected a frozen encoder, "
         "whose latents stay; add --set model.train_encoder=false, or leave out training.cache_latents"),
        (("model.train_backbone=false",), "training.cache_latents is true and training.views 0; expected a number of "
         "views to keep, such as 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_cached_is_one_line_before_anything_is_loaded(tmp_path, capsys, settings, message):
    arguments = train_arguments(tmp_path / "run", "training.cache_latents=true", *settings)
    status, _, error = command(capsys, *arguments)
    assert status == 2 and message in error and not (tmp_path / "run").exists()


def test_more_mistakes(captions, tmp_path):
    config = load_config("tiny", profile="clip-linear-probe", overrides=[*CACHED, f"data.source={SOURCE}"])
    assert fails(config.check_latents) == (
        "training.cache_latents is true and model.network 'clip'; expected the network 'kadap'; "
        "leave out training.cache_latents"
    )
    assert "training.latents is 'x' and training.cache_latents false; expected cache_latents=true" in fails(
        lambda: tiny("training.latents=x")
    )
    endless = adapting(captions, *CACHED, "training.augmentation=none", "training.views=0")
    assert fails(trainer_of(endless, tmp_path / "run").run) == (  # the strong view is another one every time
        "training.cache_latents is true and training.views 0; expected a number of views to keep, such as 4; "
        "add --set training.views=4"
    )
    tiny(*CACHED, "model.train_backbone=true", "model.train_encoder=false").check_latents()  # the U-Net may train
    tiny(*FROZEN, "model.train_backbone=true").check_latents()


def test_a_teacher_with_another_encoder_is_refused(captions, tmp_path):
    run(adapting(captions, *FROZEN), tmp_path / "start", 1)
    settings = (*CACHED, f"training.init_from={tmp_path / 'start'}", "training.pseudo_labels.teacher=start")
    start = load_checkpoint(tmp_path / "start" / LAST).model
    run(adapting(captions, *settings), tmp_path / "same", 1, start=start)
    config = adapting(captions, *settings, "model.input_normalization=imagenet-twice")
    other = trainer_of(config, tmp_path / "run", start=start)
    assert fails(other.run).startswith(
        f"training.cache_latents is true and the teacher {tmp_path / 'start'} has another encoder; expected one encoder"
    )


