"""Training: resumable to the bit, stoppable at any moment, and every mistake in one line."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import kcdp.training.trainer as trainer_module
from kcdp.cli import main
from kcdp.config import Config, load_config
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import TensorDataset
from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.models.build import build_model, trainable_state
from kcdp.training.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from kcdp.training.command_train import open_source
from kcdp.training.device import autocast_dtype, resolve_device
from kcdp.training.trainer import (
    LOG,
    DivergedError,
    Trainer,
    class_weights,
    interrupts_deferred,
    interrupts_raise,
    learning_rate,
)

SOURCE = "synthetic:photos?n=48&size=32"  # 40 pictures to train on, 4 to validate on
BASE = ("training.mixed_precision=no", "training.batch_size=8", "training.warmup_steps=2", f"data.source={SOURCE}")
STEPS_PER_EPOCH = 5


@pytest.fixture(autouse=True)
def _interrupts_are_heard():
    """A shell ignores SIGINT for what it runs in the background, and the tests may be run there."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def tiny(*overrides: str) -> Config:
    return load_config("tiny", overrides=(*BASE, *overrides))


@pytest.fixture(scope="module")
def pictures() -> tuple[TensorDataset, TensorDataset]:
    """Source and validation of ``tiny()``, each picture drawn once for the whole module."""
    return open_source(tiny())


@pytest.fixture
def make(pictures: tuple[TensorDataset, TensorDataset], tmp_path: Path) -> Callable[..., Trainer]:
    """``make("run", "training.epochs=2", resume=..., source=...)``: a trainer in the folder ``tmp_path / "run"``."""

    def make(name: str, *overrides: str, resume: Checkpoint | None = None, source: Any = None) -> Trainer:
        return Trainer(tiny(*overrides), source or pictures[0], pictures[1], tmp_path / name, resume)

    return make


def fails(call: Callable[[], Any]) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run ``kcdp``: status, standard output, and the last line of standard error."""
    capsys.readouterr()
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, (captured.err.splitlines() or [""])[-1]


def train_arguments(out: Path, *overrides: str) -> list[object]:
    sets = [part for text in (*BASE[:3], *overrides) for part in ("--set", text)]
    return ["train", "--preset", "tiny", "--source", SOURCE, "--out", out, *sets]


def record_losses(trainer: Trainer) -> list[dict[str, float]]:
    """The losses of every step to come."""
    losses: list[dict[str, float]] = []
    step = trainer.train_step
    trainer.train_step = lambda *batch: (losses.append(step(*batch)), losses[-1])[1]  # type: ignore[method-assign]
    return losses


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights and the optimiser's state by name."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    moments = {f"{names[p]}/{k}": v for p, s in trainer.optimizer.state.items() for k, v in s.items()}
    return {**trainer.model.state_dict(), **moments}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def rows(run: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


# --- to the bit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop", "end"), [(2, 4), (4, 7)], ids=["2 + 2", "4 + 3, over the end of an epoch"])
def test_stopping_and_going_on_changes_nothing(make, tmp_path, stop, end):
    whole = make("whole")
    whole_losses = record_losses(whole)
    whole.run(stop_after=end)

    first = make("parts")
    first_losses = record_losses(first)
    first.run(stop_after=stop)
    saved = load_checkpoint(tmp_path / "parts" / LAST)
    second = make("parts", resume=saved)
    assert equal(state(second), state(first))
    second_losses = record_losses(second)
    second.run(stop_after=end)

    assert first_losses + second_losses == whole_losses and len(whole_losses) == end
    assert equal(state(second), state(whole)) and not equal(state(first), state(whole))
    assert len(whole.optimizer.state) == len(list(whole.model.parameters()))

    if end == 4:
        forgetful = make("forgetful", resume=replace(saved, optimizer={}))  # the twin: without its state it would show
        forgetful.run(stop_after=end)
        assert not equal(forgetful.model.state_dict(), whole.model.state_dict())


def test_the_real_command_goes_on_to_the_bit(tmp_path, capsys):
    settings = ("training.max_steps=4", "training.validate_every=3")
    assert command(capsys, *train_arguments(tmp_path / "whole", *settings))[0] == 0
    config = load_checkpoint(tmp_path / "whole" / LAST).config
    assert config == tiny(*settings)

    stopped = Trainer(config, *open_source(config), tmp_path / "parts")
    stopped.run(stop_after=2)
    status, out, _ = command(capsys, "train", "--resume", tmp_path / "parts")
    assert status == 0 and "next: kcdp evaluate" in out
    for name in (BEST, LAST):
        whole, parts = load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "parts" / name)
        assert equal(whole.model, parts.model) and equal(whole.optimizer, parts.optimizer)
        assert {**whole.progress, "seconds": 0} == {**parts.progress, "seconds": 0}
    assert load_checkpoint(tmp_path / "whole" / LAST).progress["step"] == 4
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / "whole")]
    assert strip[-2:] == [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / "parts")][-2:]


def test_two_runs_of_the_same_configuration_are_the_same_and_another_seed_is_not(make):
    first, again, other = make("a"), make("b"), make("c", "training.seed=1")
    for trainer in (first, again, other):
        trainer.run(stop_after=2)
    assert equal(state(first), state(again)) and not equal(state(first), state(other))


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(tmp_path, capsys):
    assert command(capsys, *train_arguments(tmp_path / "run", "training.max_steps=1"))[0] == 0
    before = {name: (tmp_path / "run" / name).read_bytes() for name in (BEST, LAST, LOG)}
    assert command(capsys, "train", "--resume", tmp_path / "run")[0] == 0
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in (BEST, LAST, LOG)}


# --- that it learns ---------------------------------------------------------------------------------------------------


class Colours(ImageDataset):
    """A colour for each label: what a few steps can learn."""

    def __init__(self, count: int) -> None:
        super().__init__("colours", [Sample(str(i), i % 6) for i in range(count)])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (32, 32), ("yellow", "lime", "cyan", "magenta", "blue", "red")[index % 6])


@pytest.mark.parametrize(("rate", "learns"), [("1e-3", True), ("1e-12", False)])
def test_the_loss_goes_down(make, rate, learns):
    colours = TensorDataset(Colours(36), tiny().preprocess)
    trainer = make(
        "run", "training.epochs=60", "training.batch_size=16", "training.balance_weight=0",
        "training.validate_every=1000", f"training.learning_rate={rate}", source=colours,
    )  # fmt: skip
    losses = record_losses(trainer)
    trainer.run(stop_after=29 if learns else 10)
    values = [row["loss"] for row in losses]
    assert all(row["loss"] == pytest.approx(row["classification"]) for row in losses)
    assert sum(values[:5]) / 5 == pytest.approx(math.log(6), abs=0.15)  # at first it knows nothing
    assert (sum(values[-5:]) < 0.85 * sum(values[:5])) is learns


def test_the_loss_is_classification_plus_weighted_balance(make):
    trainer = make("run", "training.balance_weight=0.5")
    losses = record_losses(trainer)
    trainer.run(stop_after=2)
    for row in losses:
        assert row["balance"] > 0.9
        assert row["loss"] == pytest.approx(row["classification"] + 0.5 * row["balance"], rel=1e-5)


def test_a_step_moves_the_weights_and_spares_norms_and_biases_from_decay(make):
    trainer = make("run")
    before = {name: value.clone() for name, value in state(trainer).items()}
    trainer.run(stop_after=1)
    assert not equal(before, trainer.model.state_dict())
    decayed, spared = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 0.01 and spared["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(trainer.model.parameters()))


def test_class_weights():
    labels = np.array([0] * 8 + [1] * 2)
    assert class_weights(labels, "none").tolist() == [1, 1, 0, 0, 0, 0]
    # n^-1: both classes count the same; mean 1 over the ten pictures
    assert class_weights(labels, "balanced").tolist() == pytest.approx([0.625, 2.5, 0, 0, 0, 0])
    root = class_weights(labels, "sqrt")
    assert root[1] / root[0] == pytest.approx(2.0) and 8 * root[0] + 2 * root[1] == pytest.approx(10.0)
    assert root.dtype == torch.float32 and root.shape == (6,)
    for weighting in ("none", "sqrt", "balanced"):
        even = class_weights(np.arange(12) % 6, weighting)
        torch.testing.assert_close(even, torch.ones(6))


def test_learning_rate_warms_up_then_falls_to_zero():
    rates = [learning_rate(step, 100, 10, 1.0) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and max(rates) == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5) and rates[100] == 0.0 and 0 < rates[99] < 0.001


def test_learning_rate_of_short_runs():
    assert learning_rate(0, 1, 100, 2.0) == 2.0  # a single step is made at the full rate
    rates = [learning_rate(step, 10, 1000, 1.0) for step in range(11)]  # at most a fifth is warm-up
    assert rates[0] == 0.5 and rates[1] == rates[2] == 1.0 and rates[10] == 0.0
    assert learning_rate(0, 50, 0, 1.0) == 1.0  # no warm-up
    for total in range(1, 12):
        for warmup in (0, 1, 5, 100):
            assert all(0 < learning_rate(step, total, warmup, 1.0) <= 1 for step in range(total))


def test_the_schedule_spans_what_is_run(make):
    assert make("a", "training.epochs=3").total_steps == 3 * STEPS_PER_EPOCH
    assert make("b", "training.epochs=3", "training.max_steps=4").total_steps == 4
    assert make("c", "training.epochs=1", "training.max_steps=400").total_steps == STEPS_PER_EPOCH
    assert make("d", "training.epochs=2", "training.batch_size=4000").total_steps == 2


# --- validation and checkpoints ---------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_chosen_by_balanced_accuracy(make, pictures, tmp_path, monkeypatch):
    # Four validation pictures: make two classes of them, three pictures against one.
    labels = np.array([1, 1, 1, 4])
    validation = TensorDataset(pictures[1].dataset, tiny().preprocess)
    validation.labels = labels
    answers = iter([
        [0, 0, 0, 0],  # step 1: nothing right
        [1, 1, 1, 1],  # step 2: accuracy 0.75, balanced 0.5
        [1, 0, 0, 4],  # step 3: accuracy 0.5, balanced 0.667: the best
        [1, 1, 1, 1],  # step 4: accuracy 0.75, balanced 0.5
    ])  # fmt: skip
    monkeypatch.setattr(trainer_module, "predict_logits", lambda *_args, **_options: np.eye(6)[next(answers)])
    trainer = make("run", "training.validate_every=1", "training.max_steps=4")
    trainer.validation = validation
    weights = []
    validate = trainer.validate
    trainer.validate = lambda: (
        weights.append(trainable_state(trainer.model)["knowledge.embedding"].clone()),
        validate(),
    )
    progress = trainer.run()
    assert progress.best_step == 3 and progress.best == pytest.approx(2 / 3)
    best, last = load_checkpoint(tmp_path / "run" / BEST), load_checkpoint(tmp_path / "run" / LAST)
    assert best.progress["step"] == 3 and last.progress["step"] == 4 and last.progress["best_step"] == 3
    assert torch.equal(best.model["knowledge.embedding"], weights[2])
    assert torch.equal(last.model["knowledge.embedding"], weights[3]) and not torch.equal(weights[2], weights[3])
    measured = [row["validation"]["balanced_accuracy"] for row in rows(tmp_path / "run") if "validation" in row]
    assert measured == pytest.approx([0, 0.5, 2 / 3, 0.5])


def test_the_best_checkpoint_holds_what_inference_needs_and_nothing_else(make, tmp_path):
    trainer = make("run", "training.max_steps=1")
    trainer.run()
    best, last = (load_file(tmp_path / "run" / name) for name in (BEST, LAST))
    assert set(best) == set(trainable_state(trainer.model))
    assert {name for name in last if not name.startswith("optimizer/")} == set(best) and len(last) > 3 * len(best)
    model, checkpoint = load_model(tmp_path / "run")
    assert not model.training and checkpoint.optimizer == {} and checkpoint.config == trainer.config
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images).logits, trainer.model.eval()(images).logits)


def test_validations_come_where_they_were_asked_for(make, tmp_path):
    make("a", "training.max_steps=3", "training.validate_every=2").run()
    make("b", "training.epochs=1").run()
    for name, want in (("a", [2, 3]), ("b", [STEPS_PER_EPOCH])):
        assert [row["step"] for row in rows(tmp_path / name) if "validation" in row] == want


def test_a_frozen_backbone_stays_as_it_was_and_is_not_stored(make, tmp_path):
    trainer = make("run", "model.train_backbone=false", "training.max_steps=3")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    after = trainer.model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and not [name for name in changed if name.startswith("features.")]
    assert {"knowledge.embedding", "moe.gate.weight", "pyramid.lateral.0.weight"} <= changed
    for name in (BEST, LAST):
        assert not [key for key in load_file(tmp_path / "run" / name) if "features." in key]
    model, _ = load_model(tmp_path / "run")
    assert equal(model.state_dict(), after)


def test_the_log_is_one_json_object_a_line(make, tmp_path):
    trainer = make("run", "training.max_steps=11", "training.validate_every=8")
    trainer.run()
    steps = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in steps] == [10, 11]
    rate = trainer.config.training.learning_rate
    assert [row["lr"] for row in steps] == pytest.approx([learning_rate(s - 1, 11, 2, rate) for s in (10, 11)])
    assert all(set(row) == {"step", "lr", "loss", "classification", "balance", "seconds"} for row in steps)
    order = [row["step"] for row in rows(tmp_path / "run")]
    assert order == sorted(order) == [8, 10, 11, 11]
    validations = [row["validation"] for row in rows(tmp_path / "run") if "validation" in row]
    assert all({"n", "accuracy", "balanced_accuracy", "macro_f1", "recall"} <= set(v) for v in validations)
    assert set(validations[0]["recall"]) == set(LABELS) and validations[0]["n"] == 4


def test_a_log_keeps_only_what_is_not_done_again(make, tmp_path):
    make("run", "training.validate_every=1").run(stop_after=2)
    log = tmp_path / "run" / LOG
    log.write_text(log.read_text() + '{"step": 3, "loss": 1.0}\n{"step": 4, "lo')  # what a killed run leaves
    make("run", "training.validate_every=1", resume=load_checkpoint(tmp_path / "run" / LAST)).run(stop_after=3)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 2, 3, 3]
    make("run", "training.validate_every=1").run(stop_after=1)  # a new run in an old folder
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 1]


# --- interruptions ----------------------------------------------------------------------------------------------------


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


def stumbling(pictures: tuple[TensorDataset, TensorDataset], after: int, error: BaseException) -> TensorDataset:
    config = tiny()
    dataset = Stumbling(pictures[0].dataset, after, error)
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


@pytest.mark.parametrize(("number", "place"), [(signal.SIGINT, "optimizer"), (signal.SIGTERM, "forward")])
def test_an_interrupt_within_a_step_waits_for_its_end(make, number, place, tmp_path):
    trainer, whole = make("run"), make("whole")
    step = trainer.optimizer.step

    def interrupt() -> None:
        if trainer.progress.step == 1:
            signal.raise_signal(number)

    if place == "optimizer":
        trainer.optimizer.step = lambda: (interrupt(), step())
    else:  # after running statistics have changed, before the weights do
        trainer.model.moe.register_forward_hook(lambda *_: interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    whole.run(stop_after=2)
    saved = load_checkpoint(tmp_path / "run" / LAST)
    assert saved.progress["step"] == 2 and equal(state(trainer), state(whole))
    assert equal(saved.model, load_checkpoint(tmp_path / "whole" / LAST).model)


def test_an_interrupted_validation_is_done_again(make, tmp_path, monkeypatch):
    options = ("training.max_steps=2", "training.validate_every=2")
    make("whole", *options).run()
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "predict_logits", lambda *_a, **_o: signal.raise_signal(signal.SIGINT))
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


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_training_and_is_not_saved(make, tmp_path):
    trainer = make("run", "training.validate_every=1000")
    trainer.run(stop_after=1)
    good = (tmp_path / "run" / LAST).read_bytes()
    step = trainer.train_step

    def poisoned(images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        if trainer.progress.step == 2:
            trainer.model.moe.answer_bias.data.fill_(math.nan)
        return step(images, labels)

    trainer.train_step = poisoned
    with pytest.raises(DivergedError) as caught:
        trainer.run()
    assert str(caught.value) == (
        "the loss is nan at step 3; expected a finite number; start a new run with a lower training.learning_rate "
        "(now 0.002)"
    )
    assert (tmp_path / "run" / LAST).read_bytes() == good and trainer.progress.step == 2


def test_steps_of_one_picture(make, pictures):
    one = TensorDataset(pictures[0].dataset.subset([0]), tiny().preprocess)
    on = "model.head.normalize_v=true"
    for trainer in (lambda: make("a", on, "training.batch_size=1"), lambda: make("b", on, source=one)):
        assert fails(trainer) == (
            "a training step has one picture; expected 2 or more, for model.head.normalize_v; raise "
            "training.batch_size, or add --set model.head.normalize_v=false"
        )
    make("c", "training.batch_size=1", "model.head.normalize_v=false").run(stop_after=1)
    make("d", on, "training.batch_size=2").run(stop_after=1)


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(make, tmp_path):
    trainer = make("run")
    trainer.run(stop_after=1)
    path = tmp_path / "run" / LAST
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may grow beyond that
    try:
        message = fails(trainer.save_last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith(f"writing {path} failed (") and message.endswith(
        "; free some space or choose another place"
    )
    assert path.read_bytes() == before and sorted(os.listdir(path.parent)) == [LAST, LOG]


def test_a_run_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    assert command(capsys, *train_arguments(below))[::2] == (
        2, f"kcdp: error: cannot make the folder {below}: Not a directory; choose another place"
    )  # fmt: skip
    assert command(capsys, *train_arguments(tmp_path / "file"))[::2] == (
        2, f"kcdp: error: {tmp_path / 'file'} is a file; expected a new folder; choose another --out"
    )  # fmt: skip
    status, _, error = command(capsys, *train_arguments(tmp_path / ("n" * 300)))
    assert status == 2 and "File name too long" in error


@pytest.fixture(scope="module")
def finished(pictures: tuple[TensorDataset, TensorDataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, to be copied or looked at."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    Trainer(tiny("training.max_steps=1"), *pictures, out).run()
    return out


def test_an_existing_run_is_refused(finished, capsys):
    before = sorted(os.listdir(finished))
    assert command(capsys, *train_arguments(finished))[::2] == (
        2, f"kcdp: error: {finished} holds a run already; expected a new folder; choose another --out, or --resume "
           f"{finished}"
    )  # fmt: skip
    assert sorted(os.listdir(finished)) == before


@pytest.mark.parametrize(
    "option",
    [("--preset", "tiny"), ("--source", SOURCE), ("--validation", SOURCE), ("--out", "x"), ("--config", "x.toml"),
     ("--set", "training.epochs=9")],
)  # fmt: skip
def test_resuming_takes_no_other_options(finished, capsys, option):
    status, _, error = command(capsys, "train", "--resume", finished, *option)
    assert status == 2 and error == (
        f"kcdp: error: --resume with {option[0]}; expected --resume alone: a run goes on as it was configured; "
        "start a new run to change a setting"
    )


def test_resuming_what_is_not_there(tmp_path, capsys):
    status, _, error = command(capsys, "train", "--resume", tmp_path / "no")
    assert status == 2 and error == (
        f"kcdp: error: {tmp_path / 'no' / LAST} does not exist; expected a checkpoint; train one with: kcdp train"
    )


@pytest.mark.parametrize("keep", [0, 7, 1000, 100_000, -1])
def test_a_checkpoint_that_is_cut_off(finished, tmp_path, capsys, keep):
    run = tmp_path / "run"
    run.mkdir()
    (run / LAST).write_bytes((finished / LAST).read_bytes()[:keep])
    status, _, error = command(capsys, "train", "--resume", run)
    assert status == 2 and error.startswith(f"kcdp: error: {run / LAST} is damaged (")
    assert error.endswith("; take another checkpoint or train again")


def rewrite(source: Path, target: Path, tensors: Callable[[dict], dict] = dict, **metadata: Any) -> Path:
    """A copy of a checkpoint with other tensors or metadata; a value of None leaves the key out."""
    checkpoint = load_checkpoint(source)
    whole = {
        "format": "kcdp-checkpoint-1", "config": json.dumps(checkpoint.config.to_dict()),
        "progress": json.dumps(checkpoint.progress), **metadata,
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors(load_file(source)), target, {k: v for k, v in whole.items() if v is not None})
    return target


def test_rewriting_without_a_change_is_accepted(finished, tmp_path):
    assert load_checkpoint(rewrite(finished / LAST, tmp_path / "x")).config == load_checkpoint(finished / LAST).config


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"format": None}, "is not a kcdp checkpoint; expected best.safetensors or last.safetensors of a run"),
        ({"format": "kcdp-checkpoint-9"}, "is not a kcdp checkpoint"),
        ({"config": None}, "is damaged (KeyError('config'))"),
        ({"config": "{"}, "is damaged (JSONDecodeError("),
        ({"config": "[]"}, "the configuration is []; expected a table"),
        ({"config": '{"traning": {}}'}, "traning is unknown (did you mean 'training'?)"),
        ({"progress": None}, "is damaged (KeyError('progress'))"),
        ({"progress": "3"}, "is damaged (ValueError('progress is no object'))"),
    ],
)
def test_a_checkpoint_with_other_metadata(finished, tmp_path, metadata, part):
    path = rewrite(finished / LAST, tmp_path / LAST, **metadata)
    message = fails(lambda: load_checkpoint(path))
    assert message.startswith(str(path)) and part in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "knowledge.embedding"}, "knowledge.embedding is missing"),
        (lambda t: {**t, "knowledge.embedding": torch.zeros(1)}, "knowledge.embedding is (1,); expected (1, 4, 32)"),
        (lambda t: {**t, "optimizer/knowledge.embedding/exp_avg": torch.zeros(1)},
         "the optimiser's state of knowledge.embedding is "),
        (lambda t: {k: v for k, v in t.items() if not k.endswith("embedding/step")},
         "the optimiser's state of knowledge.embedding is "),
        (lambda t: {**t, "optimizer/knowledge.embedding2/step": torch.zeros(())},
         "the optimiser's state has knowledge.embedding2"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_other_tensors(finished, tmp_path, capsys, change, part):
    rewrite(finished / LAST, tmp_path / "run" / LAST, change)
    status, _, error = command(capsys, "train", "--resume", tmp_path / "run")
    assert status == 2 and part in error


def test_a_checkpoint_whose_progress_is_not_known(finished, tmp_path, capsys):
    rewrite(finished / LAST, tmp_path / "run" / LAST, progress=json.dumps({"step": 1, "mood": "good"}))
    status, _, error = command(capsys, "train", "--resume", tmp_path / "run")
    assert status == 2 and "'mood'" in error and error.endswith("use the kcdp that wrote it")


def test_finding_a_checkpoint(finished, tmp_path):
    assert find_checkpoint(finished) == finished / BEST and find_checkpoint(finished / LAST) == finished / LAST
    (tmp_path / LAST).write_bytes(b"")
    assert find_checkpoint(tmp_path) == tmp_path / LAST
    advice = f"expected a run folder with {BEST}, or a checkpoint; train one with: kcdp train"
    (tmp_path / "empty").mkdir()
    assert fails(lambda: find_checkpoint(tmp_path / "no")) == f"{tmp_path / 'no'} is not there; {advice}"
    assert fails(lambda: find_checkpoint(tmp_path / "empty")) == (
        f"{tmp_path / 'empty'} is a folder without a checkpoint; {advice}"
    )
    assert fails(lambda: load_checkpoint(tmp_path)).startswith(f"{tmp_path} is a folder; expected a checkpoint")


def test_saving_and_loading_a_checkpoint(tmp_path):
    config = tiny()
    model = build_model(config)
    save_checkpoint(tmp_path / "x", model, config, {"step": 3})
    checkpoint = load_checkpoint(tmp_path / "x")
    assert checkpoint.config == config and checkpoint.progress == {"step": 3} and checkpoint.optimizer == {}
    assert equal(checkpoint.model, trainable_state(model))
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path / "x", model, config, {"best": math.nan})
    assert load_checkpoint(tmp_path / "x").progress == {"step": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], 'no source given; expected labelled pictures, such as --source "fer2013:PATH"'),
        (["--source", SOURCE], "no --out given; expected the run folder to make, such as --out runs/first"),
        (["--preset", "tinny", "--source", SOURCE, "--out", "x"],
         "preset 'tinny' is unknown (did you mean 'tiny'?); expected one of edge, sd15, tiny"),
        (["--source", f"{SOURCE}&labelled=no", "--out", "x"],
         f"source '{SOURCE}&labelled=no' has 40 pictures without a label of 40; expected only labelled pictures; add "
         "?only=labelled"),
        (["--source", f"{SOURCE}&split=train", "--out", "x"],
         f"--source '{SOURCE}&split=train' names a split, so its validation pictures are unknown; expected "
         "--validation SPEC as well; add it, or leave split= out of the source"),
        (["--source", "synthetic:photos?n=1", "--out", "x"],
         "dataset 'synthetic:photos?n=1' holds no pictures in split 'train'; its splits are train 0, val 0, test 1; "
         "choose another split or other options"),
        (["--source", "photos", "--out", "x"],
         "dataset 'photos' has no kind; expected kind:PATH; write folder:photos for a folder of pictures"),
        (["--preset", "sd15", "--source", SOURCE, "--out", "x"],
         "preset 'sd15' needs weights and model.backbone is empty; expected a folder in diffusers layout (unet, vae); "
         "add --set model.backbone=FOLDER"),
    ],
)  # fmt: skip
def test_a_call_that_makes_no_sense(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command(capsys, "train", *arguments)[::2] == (2, f"kcdp: error: {message}")
    assert not (tmp_path / "x" / LAST).exists()


# --- devices ----------------------------------------------------------------------------------------------------------


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    absent = [] if torch.cuda.is_available() else ["cuda", "cuda:0"]
    for name in ("meta", "mps", "gpu", "", "cuda:99", *absent):  # never another device than the one that was named
        message = fails(lambda name=name: resolve_device(name))
        assert message.startswith(f"device {name!r} cannot be used (")
        assert message.endswith("expected auto, cpu, cuda or cuda:N")


def test_mixed_precision(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert autocast_dtype("no", cpu) is None and autocast_dtype("no", gpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16 and autocast_dtype("fp16", gpu) is torch.float16
    assert fails(lambda: autocast_dtype("fp16", cpu)).startswith(
        "training.mixed_precision is 'fp16' on a CPU; expected "
    )
    for has, on_gpu, on_cpu in ((True, torch.bfloat16, torch.bfloat16), (False, torch.float16, None)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has, raising=False)
        assert autocast_dtype("auto", gpu) is on_gpu and autocast_dtype("auto", cpu) is on_cpu


def test_training_in_bfloat16_keeps_float32_weights(make):
    trainer = make("run", "training.mixed_precision=bf16")
    losses = record_losses(trainer)
    trainer.run(stop_after=2)
    assert all(math.isfinite(row["loss"]) for row in losses)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    plain = make("plain")
    assert record_losses(plain) == []
    plain.run(stop_after=2)
    assert not equal(plain.model.state_dict(), trainer.model.state_dict())
