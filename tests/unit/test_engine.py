"""Accumulation, TensorBoard, waiting time, disk, several sources, stopping early: what the engine adds to a step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    SOURCE,
    TARGET,
    adapting,
    command,
    equal,
    fails,
    open_tiny,
    record_losses,
    rows,
    state,
    timeless,
    tiny,
    train_arguments,
    trainer_of,
)

import kcdp.files
from kcdp.config import load_config
from kcdp.models.collective import BatchNorm, gather_rows, own_rows
from kcdp.training.checkpoint import BEST, LAST, load_checkpoint
from kcdp.training.engine import Engine
from kcdp.training.log import EVENTS, RunLog
from kcdp.training.pictures import open_pictures
from kcdp.training.progress import Pictures, batch_sizes
from kcdp.training.trainer import Trainer

#: No statistics over a batch: then parts of a batch add up to the whole of it.
SEPARABLE = (
    "model.head.normalize_v=false", "training.balance_weight=0.0", "training.class_weighting=none",
    "training.augmentation=none", "training.max_steps=4", "training.learning_rate=1e-5",
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return open_tiny()


def test_accumulated_parts_are_the_whole_batch(pictures, tmp_path):
    whole, parts = (
        Trainer(tiny(*SEPARABLE, f"training.accumulate={n}"), pictures, tmp_path / str(n)) for n in (1, 4)
    )
    losses, others = record_losses(whole), record_losses(parts)  # both are there before the first one runs
    whole.run()
    parts.run()
    for one, other in zip(losses, others, strict=True):
        assert all(abs(one[name] - other[name]) < 1e-5 for name in ("loss", "classification", "alignment"))
    assert parts.progress.step == 4  # a step is still a batch


def test_accumulation_clips_and_steps_once_a_batch(pictures, tmp_path):
    trainer = Trainer(tiny(*SEPARABLE, "training.accumulate=2"), pictures, tmp_path / "run")
    step, calls = trainer.optimizer.step, []
    trainer.optimizer.step = lambda *_: (calls.append(trainer.progress.step), step())
    trainer.run()
    assert calls == [0, 1, 2, 3]


def test_accumulation_goes_on_to_the_bit(tmp_path):
    config = adapting([], "training.accumulate=2", "training.target_batch_size=8", "training.max_steps=6")
    whole = trainer_of(config, tmp_path / "whole")
    whole.run(stop_after=4)
    trainer_of(config, tmp_path / "parts").run(stop_after=2)
    parts = trainer_of(config, tmp_path / "parts", resume=load_checkpoint(tmp_path / "parts" / LAST))
    parts.run(stop_after=4)
    assert equal(state(whole), state(parts))


@pytest.mark.parametrize(
    ("world", "overrides", "message"),
    [
        (2, ("training.batch_size=15",),
         "training.batch_size is 15, for 2 processes x 1 parts; expected a multiple of 2; set it to 16"),
        (2, ("training.batch_size=12", "training.target_batch_size=7"),
         "training.target_batch_size is 7, for 2 processes x 1 parts; expected a multiple of 2; set it to 8"),
        (1, ("training.batch_size=10", "training.accumulate=4"),
         "training.batch_size is 10, for 1 processes x 4 parts; expected a multiple of 4; set it to 12"),
        (64, ("training.batch_size=64",),
         f"{SOURCE!r} holds 40 pictures for 64 processes x 1 parts; expected 64 or more; use fewer processes or "
         "training.accumulate=1"),
        (8, ("training.batch_size=8", "training.accumulate=8", "model.head.normalize_v=false"),
         "training.batch_size is 8, for 8 processes x 8 parts; expected a multiple of 64; set it to 64"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_divided(world, overrides, message):
    config = load_config("tiny", overrides=(f"data.source={SOURCE}", f"data.target={TARGET}", *overrides))
    assert fails(lambda: batch_sizes(config, open_pictures(config)[0], world)) == message


def test_batches_are_divided_and_small_sets_rounded_down():
    config = load_config("tiny", overrides=(f"data.source={SOURCE}", f"data.target={TARGET}", "training.batch_size=60"))
    pictures = open_pictures(config)[0]
    assert batch_sizes(config, pictures, 1) == {"source": 40, "target": len(pictures.target)}
    assert batch_sizes(config, pictures, 4) == {"source": 40, "target": len(pictures.target) // 4 * 4}


def test_the_log_is_written_as_events_too(pictures, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny("training.tensorboard=true", "training.validate_every=10", "training.max_steps=20")
    Trainer(config, pictures, tmp_path / "run").run(stop_after=12)
    Trainer(config, pictures, tmp_path / "run", load_checkpoint(tmp_path / "run" / LAST)).run()
    found = events.EventAccumulator(str(tmp_path / "run" / EVENTS)).Reload()
    losses = {event.step: event.value for event in found.Scalars("train/loss")}
    logged = {row["step"]: row["loss"] for row in rows(tmp_path / "run") if "loss" in row}
    assert set(losses) == set(logged) == {10, 12, 15}
    assert all(losses[step] == pytest.approx(logged[step]) for step in losses)
    scores = [event.value for event in found.Scalars("validation/balanced_accuracy")]
    kept = [row["validation"]["balanced_accuracy"] for row in rows(tmp_path / "run") if "validation" in row]
    assert scores == pytest.approx(kept) and len(kept) == 2
    assert "train/lr" in found.Tags()["scalars"] and any(name.startswith("recall/") for name in found.Tags()["scalars"])


def test_no_events_where_they_are_off(pictures, tmp_path):
    Trainer(tiny("training.max_steps=1"), pictures, tmp_path / "run").run()
    assert not (tmp_path / "run" / EVENTS).exists()


def test_a_silent_log_writes_nothing(tmp_path):
    log = RunLog(tmp_path, 0, tensorboard=True, silent=True)
    log.write({"step": 1, "loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


def test_waiting_is_a_share_of_the_time(pictures, tmp_path):
    trainer = Trainer(tiny("training.max_steps=10"), pictures, tmp_path / "run")
    progress = trainer.run()
    assert 0 < progress.waiting < progress.seconds
    (row,) = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert row["waiting"] == pytest.approx(progress.waiting / progress.seconds, abs=1e-3)


def test_a_full_disk_loses_nothing(pictures, tmp_path, monkeypatch):
    trainer = Trainer(tiny("training.validate_every=2"), pictures, tmp_path / "run")
    trainer.run(stop_after=2)
    kept = {name: (tmp_path / "run" / name).read_bytes() for name in (BEST, LAST)}

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kcdp.files.os, "fsync", full)
        resumed = Trainer(trainer.config, pictures, tmp_path / "run", load_checkpoint(tmp_path / "run" / LAST))
        message = fails(lambda: resumed.run(stop_after=4))
    assert message.endswith("failed (No space left on device); free some space or choose another place")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == kept
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]
    Trainer(trainer.config, pictures, tmp_path / "run", load_checkpoint(tmp_path / "run" / LAST)).run(stop_after=4)


def test_several_sources_by_weight_and_targets_through_the_command(tmp_path, capsys):
    more = "synthetic:stickers?n=24&size=32&seed=9"
    arguments = train_arguments(tmp_path / "run", "training.max_steps=10")
    arguments[3:5] = ["--source", f"{SOURCE}&weight=1", "--source", f"{more}&weight=3", "--target", TARGET,
                      "--target", "synthetic:stickers?n=12&size=32&seed=11"]  # fmt: skip
    status, out, error = command(capsys, *arguments)
    assert status == 0, error
    config = load_checkpoint(tmp_path / "run" / LAST).config
    assert config.data.source == (f"{SOURCE}&weight=1", f"{more}&weight=3") and len(config.data.target) == 2
    pictures = open_pictures(config)[0]
    trainer = Trainer(config, pictures, tmp_path / "again")
    batches = trainer.batches()
    seen = Counter(int(place) < 40 for _ in range(15) for place in next(batches)[0].place)
    assert 2 < seen[False] / seen[True] < 4  # exactly 3 over whole epochs: test_sampler
    assert f"source {len(pictures.source)} pictures" in out and "setting DA" in out


def test_a_run_on_a_mixture_goes_on_to_the_bit(tmp_path):
    sources = f'["{SOURCE}&weight=2", "synthetic:stickers?n=24&size=32&seed=9&weight=1"]'
    config = tiny(f"data.source={sources}", "training.max_steps=9")
    whole = trainer_of(config, tmp_path / "whole")
    whole.run()
    trainer_of(config, tmp_path / "parts").run(stop_after=4)
    parts = trainer_of(config, tmp_path / "parts", resume=load_checkpoint(tmp_path / "parts" / LAST))
    parts.run()
    assert equal(state(whole), state(parts))


def test_stop_after_ends_and_resume_goes_on_to_the_bit(tmp_path, capsys):
    options = ("training.max_steps=6", "training.validate_every=3")
    assert command(capsys, *train_arguments(tmp_path / "whole", *options))[0] == 0
    status, out, _ = command(capsys, *train_arguments(tmp_path / "parts", *options), "--stop-after", 2)
    assert status == 0 and out.endswith(
        f"stopped at step 2 of 6, as --stop-after says; go on with: kcdp train --resume {tmp_path / 'parts'}\n"
    )
    assert command(capsys, "train", "--resume", tmp_path / "parts")[0] == 0
    whole, parts = (load_checkpoint(tmp_path / name / LAST) for name in ("whole", "parts"))
    assert equal(whole.model, parts.model) and equal(whole.optimizer, parts.optimizer)
    assert timeless(whole.progress) == timeless(parts.progress)
    status, _, error = command(capsys, *train_arguments(tmp_path / "x"), "--stop-after", 0)
    assert (status, error) == (2, "kcdp: error: --stop-after is 0; expected 1 or more, a step of the schedule")


def test_views_are_used_in_turn():
    few = open_pictures(tiny("training.views=3"))[0].source
    assert torch.equal(few[0, 5].images, few[3, 5].images) and torch.equal(few[1, 5].images, few[7, 5].images)
    assert not torch.equal(few[0, 5].images, few[1, 5].images)
    many = open_pictures(tiny())[0].source
    assert not torch.equal(many[0, 5].images, many[3, 5].images) and torch.equal(many[0, 5].images, few[0, 5].images)


def test_workers_are_chosen_by_the_device(pictures, tmp_path):
    trainer = Trainer(tiny(), pictures, tmp_path / "run")
    assert trainer.config.training.workers == -1 and trainer.workers == 0
    assert Trainer(tiny("training.workers=3"), pictures, tmp_path / "x").workers == 3
    trainer.device = torch.device("cuda")
    assert 1 <= trainer.workers <= 8


def test_one_process_gathers_nothing():
    rows = torch.randn(4, 3)
    assert gather_rows(rows) is rows and own_rows(rows) is rows
    torch.manual_seed(0)
    norm, plain = BatchNorm(3), torch.nn.BatchNorm1d(3)
    assert torch.equal(norm(rows), plain(rows)) and torch.equal(norm.running_var, plain.running_var)


def test_engines_of_different_precision_in_one_process():
    for setting, dtype in (("no", None), ("bf16", torch.bfloat16), ("no", None)):
        engine = Engine(tiny(f"training.mixed_precision={setting}", "training.device=cpu").training)
        assert engine.dtype == dtype and engine.accelerator.mixed_precision == setting
        assert engine.is_main and engine.share == (0, 1)
        assert engine.any(True) and not engine.any(False) and engine.collect([1]) == [1]


@pytest.mark.gpu
def test_a_gpu_trains_in_half_precision_and_keeps_its_loss_scale(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    config = load_config("tiny", overrides=(
        f"data.source={SOURCE}", f"data.target={TARGET}", "training.mixed_precision=fp16", "training.max_steps=6",
    ))  # fmt: skip
    first = trainer_of(config, tmp_path / "run")
    first.run(stop_after=3)
    saved = load_checkpoint(tmp_path / "run" / LAST)
    assert saved.part("scaler")["scale"] > 0
    resumed = trainer_of(config, tmp_path / "run", resume=saved)
    assert resumed.engine.accelerator.scaler.get_scale() == saved.part("scaler")["scale"].item()
    assert resumed.run().step == 6


def test_a_gpu_that_is_not_there_is_an_error_before_anything_is_made(pictures, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    message = fails(lambda: Trainer(tiny("training.device=cuda"), pictures, tmp_path / "run"))
    assert message.startswith("device 'cuda' cannot be used (") and not (tmp_path / "run").exists()
