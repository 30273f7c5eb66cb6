"""Training: resumable to the bit, in the settings UC and DA; what is validated and kept; rates, weights, devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import (
    STEPS_PER_EPOCH,
    command,
    equal,
    fails,
    open_tiny,
    part,
    record_batches,
    record_losses,
    rows,
    state,
    timeless,
    tiny,
    train_arguments,
    trainer_of,
    write_captions,
)

import kcdp.training.validation as validation_module
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import TensorDataset
from kcdp.data.sampler import EpochSampler
from kcdp.labels import LABELS
from kcdp.models.build import trainable_state
from kcdp.torch_device import autocast_dtype, resolve_device
from kcdp.training.checkpoint import BEST, LAST, Checkpoint, find_checkpoint, load_checkpoint, load_model
from kcdp.training.log import LOG
from kcdp.training.progress import Pictures
from kcdp.training.schedule import class_shares, class_weights, learning_rate
from kcdp.training.trainer import DivergedError, Trainer


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return open_tiny()


@pytest.fixture
def make(pictures: Pictures, tmp_path: Path) -> Callable[..., Trainer]:
    """``make("run", "training.epochs=2", resume=..., source=...)``: a trainer in the folder ``tmp_path / "run"``."""

    def make(name: str, *overrides: str, resume: Checkpoint | None = None, **others: Any) -> Trainer:
        start = others.pop("start", None)
        mine = replace(pictures, **others)
        return Trainer(tiny(*overrides), mine, tmp_path / name, resume, start=start)

    return make


def sampler_of(trainer: Trainer) -> EpochSampler:
    """The order of the source."""
    training = trainer.config.training
    return EpochSampler(len(trainer.pictures.source), training.batch_size, training.seed)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_captions(tmp_path_factory.mktemp("captions"))


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
    average, model = part(state(whole), "average"), part(state(whole), "model")
    assert set(average) == set(model) and not equal(average, model)

    if end == 4:
        forgetful = make("forgetful", resume=replace(saved, optimizer={}))  # the twin: without its state it would show
        forgetful.run(stop_after=end)
        assert not equal(forgetful.model.state_dict(), whole.model.state_dict())
        average = {f"average/{name}": value for name, value in saved.model.items()}  # the model in its average's place
        forgetful = make("forgetful", resume=replace(saved, parts=average))
        forgetful.run(stop_after=end)
        assert equal(part(state(forgetful), "model"), part(state(whole), "model"))
        assert not equal(part(state(forgetful), "average"), part(state(whole), "average"))


def test_the_real_command_goes_on_to_the_bit(tmp_path, capsys):
    settings = ("training.max_steps=4", "training.validate_every=3")
    assert command(capsys, *train_arguments(tmp_path / "whole", *settings))[0] == 0
    config = load_checkpoint(tmp_path / "whole" / LAST).config
    assert config == tiny(*settings)

    trainer_of(config, tmp_path / "parts").run(stop_after=2)
    status, out, _ = command(capsys, "train", "--resume", tmp_path / "parts")
    assert status == 0 and "next: kcdp evaluate" in out
    for name in (BEST, LAST):
        whole, parts = load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "parts" / name)
        assert equal(whole.model, parts.model) and equal(whole.optimizer, parts.optimizer)
        assert equal(whole.parts, parts.parts)
        assert timeless(whole.progress) == timeless(parts.progress)
    assert load_checkpoint(tmp_path / "whole" / LAST).progress["step"] == 4
    whole_rows, part_rows = ([timeless(row) for row in rows(tmp_path / name)] for name in ("whole", "parts"))
    assert whole_rows[-2:] == part_rows[-2:]


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


# --- the order of pictures --------------------------------------------------------------------------------------------


def test_without_shuffling_every_epoch_is_the_same(make, pictures):
    """As released: the last pictures of the source are never seen, where batches do not divide it."""
    trainer = make("run", "training.shuffle=false", "training.epochs=2", "training.augmentation=none")
    seen = [batch["source"][1] for batch in drive(trainer, 2 * STEPS_PER_EPOCH)]
    assert seen[:STEPS_PER_EPOCH] == seen[STEPS_PER_EPOCH:]
    labels = pictures.source.labels[: 8 * STEPS_PER_EPOCH].astype(np.int64).tobytes()
    assert b"".join(seen[:STEPS_PER_EPOCH]) == labels
    shuffled = [batch["source"][1] for batch in drive(make("other", "training.epochs=2"), 2 * STEPS_PER_EPOCH)]
    assert shuffled[:STEPS_PER_EPOCH] != shuffled[STEPS_PER_EPOCH:] and shuffled[:STEPS_PER_EPOCH] != seen[:5]


def drive(trainer: Trainer, steps: int) -> list[dict[str, list]]:
    """What a run looks at."""
    seen = record_batches(trainer)
    trainer.run(stop_after=steps)
    return seen


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
        "training.alignment_weight=0", "training.validate_every=1000", f"training.learning_rate={rate}", source=colours,
    )  # fmt: skip
    losses = record_losses(trainer)
    trainer.run(stop_after=29 if learns else 10)
    values = [row["loss"] for row in losses]
    assert all(row["loss"] == pytest.approx(row["classification"]) for row in losses)
    assert sum(values[:5]) / 5 == pytest.approx(math.log(6), abs=0.15)  # at first it knows nothing
    assert (sum(values[-5:]) < 0.85 * sum(values[:5])) is learns


@pytest.mark.parametrize("balance", ["switch", "gate-std"])
def test_the_loss_is_the_weighted_sum_of_its_parts(make, balance):
    weights = {"classification": 2.0, "balance": 0.5, "alignment": 0.25}
    trainer = make(
        "run", f"training.balance={balance}", *(f"training.{name}_weight={value}" for name, value in weights.items())
    )  # fmt: skip
    losses = record_losses(trainer)
    trainer.run(stop_after=2)
    for row in losses:
        assert (
            set(row) == {"loss", *weights} and row["alignment"] > 1 and (row["balance"] > 0.9) is (balance == "switch")
        )
        assert row["loss"] == pytest.approx(sum(value * row[name] for name, value in weights.items()), rel=1e-5)
    plain = make("plain", "model.alignment.kind=none")
    losses = record_losses(plain)
    plain.run(stop_after=1)
    assert set(losses[0]) == {"loss", "classification", "balance"}


def test_a_step_moves_the_weights_and_spares_norms_and_biases_from_decay(make):
    trainer = make("run", "training.backbone_lr_scale=0.25")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run(stop_after=1)
    assert not equal(before, trainer.model.state_dict())
    groups = trainer.optimizer.param_groups
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [
        (0.01, 0.25), (0.0, 0.25), (0.01, 1.0), (0.0, 1.0),
    ]  # fmt: skip
    for group in groups:
        assert all((p.ndim > 1) is (group["weight_decay"] > 0) for p in group["params"])
        backbone = {names[id(p)].startswith("features.") for p in group["params"]}
        assert backbone == {group["lr_scale"] == 0.25}
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))


def test_the_backbone_may_learn_at_a_rate_of_its_own(make):
    """Adam's first step moves every weight by the learning rate, whatever its gradient: the scale can be read off."""
    moved: dict[str, dict[str, torch.Tensor]] = {}
    settings = ("training.weight_decay=0", "training.gradient_clip=0")
    for scale in ("1", "0.25", "0"):
        trainer = make(scale, f"training.backbone_lr_scale={scale}", *settings)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.run(stop_after=1)
        moved[scale] = {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}
        rate = trainer.optimizer.param_groups[-1]["lr"]
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [rate * float(scale)] * 2 + [rate] * 2
    for name, full in moved["1"].items():
        backbone = name.startswith("features.")
        torch.testing.assert_close(moved["0.25"][name], full * (0.25 if backbone else 1), rtol=1e-2, atol=1e-6)
        assert not (backbone and moved["0"][name].any()) and (full.any() or name.endswith("to_k.bias"))


def test_adapters_learn_at_the_full_rate_in_a_slow_backbone(make):
    trainer = make("run", "model.train_backbone=false", "model.lora.rank=4", "training.backbone_lr_scale=0.25")
    assert {group["lr_scale"] for group in trainer.optimizer.param_groups} == {1.0}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    trained = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len([name for name in trained if "lora_" in name]) >= 16
    assert not [name for name in trained if name.startswith("features.") and "lora_" not in name]


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


def test_class_shares():
    shares = class_shares(np.array([1, 1, 1, 4, -1, -1]))  # pictures without a label count nothing
    assert shares.tolist() == pytest.approx([0, 0.75, 0, 0, 0.25, 0]) and shares.dtype == torch.float32
    assert class_shares(np.array([-1])).tolist() == [0] * 6


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


def test_other_schedules():
    poly = [learning_rate(step, 100, 10, 1.0, "poly") for step in range(101)]
    constant = [learning_rate(step, 100, 10, 1.0, "constant") for step in range(101)]
    cosine = [learning_rate(step, 100, 10, 1.0) for step in range(101)]
    assert poly[:10] == constant[:10] == cosine[:10] and poly[10] == 1.0  # one warm-up for all
    assert poly[55] == pytest.approx(0.5**0.9) and poly[100] == 0.0
    assert all(later < earlier for earlier, later in pairwise(poly[10:])) and poly != cosine
    assert constant[10:] == [1.0] * 91


@pytest.mark.parametrize(("schedule", "rates"), [("cosine", 15), ("poly", 15), ("constant", 1)])
def test_the_schedule_of_a_run(make, schedule, rates):
    trainer = make("run", f"training.schedule={schedule}", "training.epochs=3", "training.warmup_steps=0")
    rate, seen = trainer.config.training.learning_rate, []
    step = trainer.train_step
    trainer.train_step = lambda *batch: (step(*batch), seen.append(trainer.optimizer.param_groups[0]["lr"]))[0]
    trainer.run()
    assert seen == [learning_rate(i, 15, 0, rate, schedule) for i in range(15)] and len(set(seen)) == rates


def test_a_schedule_that_counts_steps_and_moves_with_epochs_hardly_moves(make):
    """The released code: after all three epochs it has gone as far as three steps of fifteen."""
    trainer = make(
        "run", "training.schedule=poly", "training.schedule_unit=epoch", "training.epochs=3", "training.warmup_steps=0"
    )  # fmt: skip
    rate, seen = trainer.config.training.learning_rate, []
    step = trainer.train_step
    trainer.train_step = lambda *batch: (step(*batch), seen.append(trainer.optimizer.param_groups[0]["lr"]))[0]
    trainer.run()
    want = [rate * (1 - epoch / 15) ** 0.9 for epoch in range(3) for _ in range(STEPS_PER_EPOCH)]
    assert seen == pytest.approx(want) and seen[-1] > 0.87 * rate


def test_the_schedule_spans_what_is_run(make):
    assert make("a", "training.epochs=3").total_steps == 3 * STEPS_PER_EPOCH
    assert make("b", "training.epochs=3", "training.max_steps=4").total_steps == 4
    assert make("c", "training.epochs=1", "training.max_steps=400").total_steps == STEPS_PER_EPOCH
    assert make("d", "training.epochs=2", "training.batch_size=4000").total_steps == 2


# --- validation and checkpoints ---------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_chosen_by_balanced_accuracy(make, pictures, tmp_path, monkeypatch):
    # Four validation pictures: make two classes of them, three pictures against one.
    labels = np.array([1, 1, 1, 4])
    validation = TensorDataset(pictures.validation.dataset, tiny().preprocess)
    validation.labels = labels
    answers = iter([
        [0, 0, 0, 0],  # step 1: nothing right
        [1, 1, 1, 1],  # step 2: accuracy 0.75, balanced 0.5
        [1, 0, 0, 4],  # step 3: accuracy 0.5, balanced 0.667: the best
        [1, 1, 1, 1],  # step 4: accuracy 0.75, balanced 0.5
    ])  # fmt: skip
    monkeypatch.setattr(validation_module, "predict_logits", lambda *_args, **_options: np.eye(6)[next(answers)])
    trainer = make("run", "training.validate_every=1", "training.max_steps=4", validation=validation)
    weights = []
    validate = trainer.validate
    trainer.validate = lambda: (
        weights.append(trainable_state(trainer.validated_model)["knowledge.embedding"].clone()),
        validate(),
    )
    progress = trainer.run()
    assert progress.best_step == 3 and progress.best == pytest.approx(2 / 3)
    best, last = load_checkpoint(tmp_path / "run" / BEST), load_checkpoint(tmp_path / "run" / LAST)
    assert best.progress["step"] == 3 and last.progress["step"] == 4 and last.progress["best_step"] == 3
    assert torch.equal(best.model["knowledge.embedding"], weights[2])
    assert torch.equal(last.part("average")["knowledge.embedding"], weights[3])
    assert not torch.equal(weights[2], weights[3]) and not torch.equal(last.model["knowledge.embedding"], weights[3])
    measured = [row["validation"]["balanced_accuracy"] for row in rows(tmp_path / "run") if "validation" in row]
    assert measured == pytest.approx([0, 0.5, 2 / 3, 0.5])


def test_validations_come_where_they_were_asked_for(make, tmp_path):
    make("a", "training.max_steps=3", "training.validate_every=2").run()
    make("b", "training.epochs=1").run()
    for name, want in (("a", [2, 3]), ("b", [STEPS_PER_EPOCH])):
        assert [row["step"] for row in rows(tmp_path / name) if "validation" in row] == want


def test_a_frozen_backbone_stays_as_it_was(make, tmp_path):
    trainer = make("run", "model.train_backbone=false", "training.max_steps=3")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    after = trainer.model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and not [name for name in changed if name.startswith("features.")]
    assert {"knowledge.embedding", "moe.gate.weight", "pyramid.lateral.0.weight"} <= changed
    assert not [key for key in load_file(tmp_path / "run" / LAST) if key.startswith("optimizer/features.")]
    for name in (BEST, LAST):  # made from scratch, so the checkpoint has it: there is no other copy
        stored = load_checkpoint(tmp_path / "run" / name).model
        assert set(stored) == set(after)
        assert all(torch.equal(stored[key], before[key]) for key in stored if key.startswith("features."))
    model, _ = load_model(tmp_path / "run")
    assert equal(model.state_dict(), trainer.validated_model.state_dict())


def test_the_log_is_one_json_object_a_line(make, tmp_path):
    trainer = make("run", "training.max_steps=11", "training.validate_every=8")
    trainer.run()
    steps = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in steps] == [10, 11]
    rate = trainer.config.training.learning_rate
    assert [row["lr"] for row in steps] == pytest.approx([learning_rate(s - 1, 11, 2, rate) for s in (10, 11)])
    names = {"step", "lr", "loss", "classification", "balance", "alignment", "waiting", "seconds"}
    assert all(set(row) == names and 0 <= row["waiting"] < 1 for row in steps)
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


# --- which weights a run begins with and ends with --------------------------------------------------------------------


def test_the_last_may_be_what_is_kept(make, pictures, tmp_path, monkeypatch):
    """Without validation pictures of the target there is nothing to choose by; then the last one is honest."""
    validation = TensorDataset(pictures.validation.dataset, tiny().preprocess)
    validation.labels = np.array([1, 1, 1, 4])
    for select, step, balanced in (("validation", 1, 1.0), ("last", 3, 0.5)):
        answers = iter([[1, 1, 1, 4], [1, 1, 1, 1], [1, 1, 1, 1]])  # the first is the best
        monkeypatch.setattr(
            validation_module, "predict_logits", lambda *_a, answers=answers, **_o: np.eye(6)[next(answers)]
        )
        settings = ("training.validate_every=1", "training.max_steps=3", f"training.select={select}")
        trainer = make(select, *settings, validation=validation)
        progress = trainer.run()
        assert (progress.best_step, progress.best) == (step, balanced)
        best, last = (load_checkpoint(tmp_path / select / name) for name in (BEST, LAST))
        assert best.progress["step"] == step and equal(best.model, last.part("average")) is (select == "last")


def test_validation_on_a_sample_that_is_drawn_anew(make, pictures, tmp_path, monkeypatch):
    """The released evaluation: so many pictures, unseeded."""
    seen: list[list[int]] = []

    def predict(_model: Any, data: Any, _spec: Any, **_options: Any) -> np.ndarray:
        seen.append(data.indices)
        assert data.labels.tolist() == pictures.source.labels[data.indices].tolist()
        return np.eye(6)[data.labels]

    monkeypatch.setattr(validation_module, "predict_logits", predict)
    settings = ("training.validate_every=1", "training.max_steps=4", "training.validation_sample=10")
    make("run", *settings, validation=pictures.source).run()
    make("again", *settings, validation=pictures.source).run()
    assert all(len(set(some)) == 10 and some == sorted(some) and max(some) < 40 for some in seen) and len(seen) == 8
    assert len({tuple(some) for some in seen}) == 8  # not the seed's doing: the second run's are others
    assert [row["validation"]["n"] for row in rows(tmp_path / "run") if "validation" in row] == [10] * 4
    make("all", "training.max_steps=1", "training.validation_sample=999", validation=pictures.source).run()
    assert seen[-1] == list(range(40))


def test_a_run_may_start_from_another_one(make, tmp_path):
    make("first", "training.max_steps=2").run()
    first = load_checkpoint(find_checkpoint(tmp_path / "first"))
    second = make("second", "training.seed=4", start=first.model)
    assert second.fresh == [] and second.progress.step == 0
    assert equal(second.model.state_dict(), first.model) and equal(second.average.state_dict(), first.model)
    assert second.optimizer.state == {}  # weights, and nothing else of the other run
    cold = make("cold", "training.seed=4")
    assert not equal(cold.model.state_dict(), first.model)
    second.run(stop_after=1)
    assert not equal(second.model.state_dict(), first.model)


def test_what_a_run_lacks_starts_afresh(make, tmp_path):
    make("first", "training.max_steps=1", "model.alignment.kind=none").run()
    first = load_checkpoint(tmp_path / "first" / BEST)
    second = make("second", "training.seed=4", start=first.model)
    cold = make("cold", "training.seed=4").model.state_dict()
    assert second.fresh and all(name.startswith("alignment.") for name in second.fresh)
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, first.model[name] if name in first.model else cold[name])


def test_the_real_command_starts_from_another_run_and_says_so(make, tmp_path, capsys):
    make("first", "training.max_steps=1", "model.alignment.kind=none").run()
    first = tmp_path / "first"
    settings = ("training.max_steps=1", "training.learning_rate=1e-12", f"training.init_from={first}",
                "model.alignment.kind=cliea")  # fmt: skip
    status, out, error = command(capsys, *train_arguments(tmp_path / "second", *settings))
    assert status == 0, error
    assert f"starts from {first}; new: alignment (8 tensors)" in out
    second = load_checkpoint(tmp_path / "second" / LAST)
    for name, value in load_checkpoint(first / BEST).model.items():
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(second.model[name], value, rtol=0, atol=1e-6)
    # Resuming needs the run it started from no more.
    for file in first.iterdir():
        file.unlink()
    assert command(capsys, "train", "--resume", tmp_path / "second")[0] == 0


def test_a_run_is_the_same_model_as_the_one_it_starts_from_unless_told_otherwise(make, tmp_path, capsys):
    make("first", "training.max_steps=1", "model.head.hidden=48", "preprocess.background=[0, 0, 0]").run()
    same = ("training.max_steps=1", f"training.init_from={tmp_path / 'first'}")
    status, out, error = command(capsys, *train_arguments(tmp_path / "same", *same))
    assert status == 0 and f"starts from {tmp_path / 'first'}\n" in out, error  # nothing is new
    first, second = (load_checkpoint(tmp_path / name / BEST).config for name in ("first", "same"))
    assert second.model == first.model and second.preprocess == first.preprocess
    assert second.data.ancestors == first.data.source
    arguments = [*train_arguments(tmp_path / "other", *same), "--profile", "as-published-code"]
    status, _, error = command(capsys, *arguments)
    assert status == 2 and "--profile as-published-code for a run that starts from" in error
    settings = (*same, "model.head.hidden=32")
    status, _, error = command(capsys, *train_arguments(tmp_path / "second", *settings))
    assert status == 2 and error == (
        f"kcdp: error: {tmp_path / 'first'}: moe.answer_weight is (4, 48, 6); expected (4, 32, 6); start from a run "
        "with the same model settings"
    )
    assert not (tmp_path / "second").exists()


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_training_and_is_not_saved(make, tmp_path):
    trainer = make("run", "training.validate_every=1000")
    trainer.run(stop_after=1)
    good = (tmp_path / "run" / LAST).read_bytes()
    step = trainer.train_step

    def poisoned(*batches: Any) -> dict[str, float]:
        if trainer.progress.step == 2:
            trainer.model.moe.answer_bias.data.fill_(math.nan)
        return step(*batches)

    trainer.train_step = poisoned
    with pytest.raises(DivergedError) as caught:
        trainer.run()
    (named,) = [row for row in rows(tmp_path / "run") if "diverged" in row]
    keys = named["diverged"]["source"]
    samples = [trainer.pictures.source.dataset.samples[i].key for _, i in list(islice(sampler_of(trainer), 3))[2]]
    assert named["step"] == 3 and keys == samples
    assert str(caught.value) == (
        f"the loss is nan at step 3 (batch: source {', '.join(keys[:3])} and 5 more); expected a finite number; "
        "start a new run with a lower training.learning_rate (now 0.002); the whole batch is in log.jsonl"
    )
    assert (tmp_path / "run" / LAST).read_bytes() == good and trainer.progress.step == 2


def test_steps_of_one_picture(make, pictures, tmp_path):
    one = TensorDataset(pictures.source.dataset.subset([0]), tiny().preprocess)
    on = "model.head.normalize_v=true"
    for trainer in (lambda: make("a", on, "training.batch_size=1"), lambda: make("b", on, source=one)):
        assert fails(trainer) == (
            "a training step has one picture; expected 2 or more, for model.head.normalize_v; raise "
            "training.batch_size, or add --set model.head.normalize_v=false"
        )
    assert not (tmp_path / "a").exists()
    make("c", "training.batch_size=1", "model.head.normalize_v=false").run(stop_after=1)
    make("d", on, "training.batch_size=2").run(stop_after=1)


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
