"""Stopping at any moment: SIGINT, SIGTERM, a picture that cannot be read. No step is lost, none is done by halves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from tiny_runs import command, equal, fails, open_tiny, rows, state, tiny, train_arguments

import kcdp.training.trainer as trainer_module
import kcdp.training.validation as validation_module
from kcdp.data.dataset import ImageDataset
from kcdp.data.loader import TensorDataset
from kcdp.errors import KcdpError
from kcdp.training.checkpoint import BEST, LAST, Checkpoint, load_checkpoint
from kcdp.training.interrupts import interrupts_deferred, interrupts_raise
from kcdp.training.log import LOG
from kcdp.training.progress import Pictures
from kcdp.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("interrupts_are_heard")


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return open_tiny()


@pytest.fixture
def make(pictures: Pictures, tmp_path: Path) -> Callable[..., Trainer]:
    """``make("run", "training.epochs=2", resume=..., source=...)``: a trainer in the folder ``tmp_path / "run"``."""

    def make(name: str, *overrides: str, resume: Checkpoint | None = None, source: Any = None) -> Trainer:
        mine = replace(pictures, source=source or pictures.source)
        return Trainer(tiny(*overrides), mine, tmp_path / name, resume)

    return make


class Stumbling(ImageDataset):
    """Another dataset whose ``after``-th picture raises."""

    def __init__(self, parent: ImageDataset, after: int, error: BaseException) -> None:
        super().__init__(parent.name, parent.samples)
        self.parent, self.left, self.error = parent, after, error

    def image(self, index: int) -> Image.Image:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.parent.image(index)


def stumbling(pictures: Pictures, after: int, error: BaseException) -> TensorDataset:
    config = tiny()
    dataset = Stumbling(pictures.source.dataset, after, error)
    return TensorDataset(dataset, config.preprocess, config.training.augmentation, config.training.seed)


def test_an_interrupt_saves_and_training_goes_on_to_the_bit(make, pictures, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make("run", source=stumbling(pictures, 3 * 8 + 5, KeyboardInterrupt())).run()
    saved = load_checkpoint(tmp_path / "run" / LAST)
    assert saved.progress["step"] == 3 and not (tmp_path / "run" / BEST).exists()
    resumed, whole = make("run", resume=saved), make("whole")
    resumed.run(stop_after=4)
    whole.run(stop_after=4)
    assert equal(state(resumed), state(whole))


def test_a_damaged_picture_does_not_lose_the_steps_before_it(make, pictures, tmp_path):
    error = KcdpError("picture 17 is damaged")
    assert fails(make("run", source=stumbling(pictures, 2 * 8 + 1, error)).run) == "picture 17 is damaged"
    assert load_checkpoint(tmp_path / "run" / LAST).progress["step"] == 2
    fails(make("none", source=stumbling(pictures, 1, error)).run)
    assert not (tmp_path / "none" / LAST).exists()  # nothing was done, nothing stands in the way of a new run


@pytest.mark.parametrize(
    ("number", "place"), [(signal.SIGINT, "optimizer"), (signal.SIGTERM, "forward"), (signal.SIGTERM, "average")]
)
def test_an_interrupt_within_a_step_waits_for_its_end(make, number, place, tmp_path, monkeypatch):
    trainer, whole = make("run"), make("whole")
    step = trainer.optimizer.step
    interrupted: list[int] = []

    def interrupt() -> None:
        if trainer.progress.step == (2 if place == "average" else 1) and not interrupted:
            interrupted.append(number)
            signal.raise_signal(number)

    if place == "optimizer":
        trainer.optimizer.step = lambda *_: (interrupt(), step())
    elif place == "average":  # after the weights have changed, before their average has
        update = trainer_module.update_average
        monkeypatch.setattr(trainer_module, "update_average", lambda *given: (interrupt(), update(*given)))
    else:  # after running statistics have changed, before the weights do
        trainer.model.moe.register_forward_hook(lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    whole.run(stop_after=2)
    saved, want = (load_checkpoint(tmp_path / name / LAST) for name in ("run", "whole"))
    assert saved.progress["step"] == 2 and equal(state(trainer), state(whole))
    assert equal(saved.model, want.model) and equal(saved.parts, want.parts) and saved.parts


def test_an_interrupted_validation_is_done_again(make, tmp_path, monkeypatch):
    options = ("training.max_steps=2", "training.validate_every=2")
    make("whole", *options).run()
    with monkeypatch.context() as patch:
        patch.setattr(validation_module, "predict_logits", lambda *_a, **_o: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            make("run", *options).run()
    assert not (tmp_path / "run" / BEST).exists()
    make("run", *options, resume=load_checkpoint(tmp_path / "run" / LAST)).run()
    whole, run = (load_checkpoint(tmp_path / name / BEST) for name in ("whole", "run"))
    assert equal(whole.model, run.model) and whole.progress["best"] == run.progress["best"] >= 0
    assert len([row for row in rows(tmp_path / "run") if "validation" in row]) == 1


def test_signals_are_held_back_and_then_delivered():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_raise(), interrupts_deferred():
        signal.raise_signal(signal.SIGTERM)
        done.append("the whole block")
    assert done == ["the whole block"]
    with pytest.raises(KeyboardInterrupt), interrupts_raise():
        signal.raise_signal(signal.SIGTERM)
        done.append("not reached")
    assert done == ["the whole block"]


def test_signal_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupts_raise(), interrupts_deferred():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_in_another_thread_leaves_signals_to_the_main_one(make):
    trainer, before = make("run"), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=trainer.run, kwargs={"stop_after": 1})
    thread.start()
    thread.join()
    assert trainer.progress.step == 1 and signal.getsignal(signal.SIGTERM) == before


def test_a_real_sigterm_saves_what_an_undisturbed_run_has_at_that_step(tmp_path, make, capsys):
    run = tmp_path / "run"
    settings = ("training.epochs=1000", "training.validate_every=1000000", "training.batch_size=2")
    arguments = [str(a) for a in train_arguments(run, *settings)]
    process = subprocess.Popen(
        [sys.executable, "-m", "kcdp", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 120
        while not (run / LOG).is_file() or not (run / LOG).stat().st_size:  # the first row comes with step 10
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and err.splitlines()[-1] == "kcdp: interrupted" and "Traceback" not in err
    saved = load_checkpoint(run / LAST)
    step = saved.progress["step"]
    assert step >= 10 and f"stopped at step {step} and saved; go on with: kcdp train --resume {run}" in out
    assert sorted(os.listdir(run)) == [LAST, LOG]  # no temporary file is left
    whole = make("whole", *settings)
    assert saved.config == whole.config
    whole.run(stop_after=step)
    assert equal(state(make("run", *settings, resume=saved)), state(whole))


def children() -> list[int]:
    """The processes that read pictures."""
    found = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child.pid for child in found if not any("resource_tracker" in word for word in child.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_step(make, tmp_path, number):
    trainer = make("run", "training.workers=2")
    step = trainer.train_step

    def interrupted(*batches: Any) -> dict[str, float]:
        if trainer.progress.step == 2:
            workers = children()
            assert len(workers) >= 2
            for worker in workers:
                os.kill(worker, number)
            time.sleep(0.2)
            signal.raise_signal(number)
        return step(*batches)

    trainer.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.saved == 3 == load_checkpoint(tmp_path / "run" / LAST).progress["step"]


def test_a_worker_that_dies_ends_the_run_saved(make, tmp_path):
    trainer = make("run", "training.workers=2")
    step = trainer.train_step

    def killing(*batches: Any) -> dict[str, float]:
        if trainer.progress.step == 2:
            os.kill(children()[0], signal.SIGKILL)
            time.sleep(0.2)
        return step(*batches)

    trainer.train_step = killing
    message = fails(trainer.run)
    assert message.startswith("a process that reads pictures has died (DataLoader worker (pid")
    assert message.endswith(
        "expected memory for 2 of them; lower training.workers; the run was saved: --resume goes on"
    )
    saved = load_checkpoint(tmp_path / "run" / LAST).progress["step"]
    assert saved == trainer.progress.step == trainer.saved == 3  # the step at hand was done


def test_only_what_was_saved_is_called_saved(make, tmp_path, capsys, monkeypatch):
    def stopped(_self: Trainer, _stop: int | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", stopped)
    status, out, error = command(capsys, *train_arguments(tmp_path / "run"))
    assert status == 130 and out.endswith("\nstopped before step 0 was saved\n") and error == "kcdp: interrupted"


def test_an_interrupt_before_the_first_step_is_saved(make, tmp_path, monkeypatch):
    trainer = make("run")
    monkeypatch.setattr(trainer, "_begin_log", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.saved == 0 == load_checkpoint(tmp_path / "run" / LAST).progress["step"]
