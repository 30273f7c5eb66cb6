"""The setting DA in the training loop: a labelled source, an unlabelled target, explicit and implicit knowledge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import (
    STEPS_PER_EPOCH,
    TARGET,
    adapting,
    command,
    equal,
    fails,
    part,
    record_batches,
    record_losses,
    state,
    timeless,
    tiny,
    train_arguments,
    trainer_of,
    write_captions,
)

from kcdp.data.loader import TensorDataset
from kcdp.training.checkpoint import BEST, LAST, Checkpoint, load_checkpoint, load_model
from kcdp.training.pictures import open_pictures
from kcdp.training.progress import Pictures
from kcdp.training.trainer import Trainer


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_captions(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def da(captions: list[str]) -> tuple[Pictures, Any]:
    """Pictures of both domains with their explicit knowledge, and the text encoder."""
    return open_pictures(adapting(captions))


@pytest.fixture
def adapt(da, captions, tmp_path) -> Callable[..., Trainer]:
    """``make``, in the setting DA with explicit knowledge."""

    def adapt(name: str, *overrides: str, resume: Checkpoint | None = None, target: Any = None) -> Trainer:
        mine = replace(da[0], target=target or da[0].target)
        return Trainer(adapting(captions, *overrides), mine, tmp_path / name, resume, text=da[1])

    return adapt


@pytest.mark.parametrize(("stop", "end"), [(2, 4), (4, 7)], ids=["2 + 2", "4 + 3, over the end of two epochs"])
def test_adaptation_goes_on_to_the_bit(adapt, tmp_path, stop, end):
    """Weights, their average, the optimiser, the labeller's running means, and both domains' pictures in order."""
    whole = adapt("whole")
    whole_losses, whole_batches = record_losses(whole), record_batches(whole)
    whole.run(stop_after=end)

    first = adapt("parts")
    first_losses, first_batches = record_losses(first), record_batches(first)
    first.run(stop_after=stop)
    saved = load_checkpoint(tmp_path / "parts" / LAST)
    second = adapt("parts", resume=saved)
    assert equal(state(second), state(first))
    second_losses, second_batches = record_losses(second), record_batches(second)
    second.run(stop_after=end)

    assert first_losses + second_losses == whole_losses and len(whole_losses) == end
    assert first_batches + second_batches == whole_batches
    assert all(None not in batch["target"][:6] and batch["source"][3] is not None for batch in whole_batches)
    assert equal(state(second), state(whole)) and not equal(state(first), state(whole))
    for name in ("model", "average", "optimizer", "step"):
        assert part(state(whole), name) and not equal(part(state(first), name), part(state(whole), name))

    if end == 4:  # the twins: what a checkpoint without one of its parts would do
        fresh = {f"step/{name}": v for name, v in part(state(adapt("fresh")), "step").items()}
        model = {f"average/{name}": value for name, value in saved.model.items()}
        for change in (fresh, model):
            forgetful = adapt("forgetful", resume=replace(saved, parts={**saved.parts, **change}))
            forgetful.run(stop_after=end)
            assert not equal(state(forgetful), state(whole))


def test_the_real_command_adapts_and_goes_on_to_the_bit(captions, tmp_path, capsys):
    settings = ("training.max_steps=4", "training.validate_every=3", "training.target_batch_size=6")
    call = [*train_arguments(tmp_path / "whole", *settings), "--target", TARGET]
    call += [word for file in captions for word in ("--captions", file)]
    status, out, error = command(capsys, *call)
    assert status == 0, error
    assert "knowledge explicit, 48 tokens of 32; alignment cliea" in out
    assert "target 26 pictures, unlabelled: setting DA" in out
    config = load_checkpoint(tmp_path / "whole" / LAST).config
    assert config == adapting(captions, *settings[:2])

    trainer_of(config, tmp_path / "parts").run(stop_after=2)
    assert command(capsys, "train", "--resume", tmp_path / "parts")[0] == 0
    for name in (BEST, LAST):
        whole, parts = load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "parts" / name)
        assert equal(whole.model, parts.model) and equal(whole.optimizer, parts.optimizer)
        assert equal(whole.parts, parts.parts) and timeless(whole.progress) == timeless(parts.progress)
    last = load_checkpoint(tmp_path / "whole" / LAST)
    means = {f"labeller.{name}" for name in ("prior", "mean", "confidence", "class_mean")}
    assert set(last.part("step")) == means and last.part("average")


def test_a_checkpoint_without_the_running_means_is_refused(adapt, tmp_path):
    adapt("da").run(stop_after=1)
    saved = load_checkpoint(tmp_path / "da" / LAST)
    without = {name: value for name, value in saved.parts.items() if not name.startswith("step/")}
    message = fails(lambda: adapt("x", resume=replace(saved, parts=without)))
    assert message.startswith(
        f"{tmp_path / 'x' / LAST}: Error(s) in loading state_dict for AdaptationStep: Missing key(s)"
    )
    assert message.endswith("; use the checkpoint with its own settings")


def test_the_target_has_an_order_of_its_own(adapt, da):
    """Two domains of one size must not go through the same permutations hand in hand."""
    trainer = adapt("run", "training.target_batch_size=0", target=da[0].source)
    orders: dict[str, list[bytes]] = {"source": [], "target": []}
    step = trainer.train_step

    def noting(source: Any, target: Any) -> dict[str, float]:
        for name, batch in (("source", source), ("target", target)):
            orders[name] += [row.numpy().tobytes() for row in batch.knowledge]
        assert len(target.images) == 8  # as many as of the source, where no other number is given
        return step(source, target)

    trainer.train_step = noting
    trainer.run(stop_after=STEPS_PER_EPOCH)
    assert Counter(orders["source"]) == Counter(orders["target"]) and orders["source"] != orders["target"]


def test_each_domain_repeats_at_its_own_pace(adapt):
    trainer = adapt("run", "training.epochs=2", "training.augmentation=none", "training.strong_augmentation=light")
    assert trainer.total_steps == 2 * STEPS_PER_EPOCH  # the source's passes; 26 // 6 = 4 steps are one of the target
    batches = record_batches(trainer)
    trainer.run()
    knowledge = [batch["target"][3] for batch in batches]
    size = len(knowledge[0]) // 6
    pictures = [[batch[i : i + size] for i in range(0, len(batch), size)] for batch in knowledge]
    for first in (0, 4):
        seen = [picture for batch in pictures[first : first + 4] for picture in batch]
        assert len(seen) == 24
    assert pictures[:4] != pictures[4:8]


def test_labels_of_the_target_are_only_counted_for_the_log(adapt, da, captions, tmp_path):
    """Hidden or wrong, they change nothing but what the log says of the pseudo-labels."""
    whole, spec = da[0].target, adapting(captions).preprocess

    def relabelled(labels: np.ndarray) -> TensorDataset:
        data = TensorDataset(whole.dataset, spec, "light", 0, strong="strong", knowledge=whole.knowledge)
        data.labels = labels
        return data

    wrong, hidden = relabelled((whole.labels + 1) % 6), relabelled(np.full(len(whole), -1))
    found = {}
    for name, target in (("known", None), ("wrong", wrong), ("hidden", hidden)):
        trainer = adapt(name, target=target)
        losses = record_losses(trainer)
        trainer.run(stop_after=3)
        found[name] = (state(trainer), losses)
    for name in ("wrong", "hidden"):
        assert equal(found[name][0], found["known"][0])
        assert [row["loss"] for row in found[name][1]] == [row["loss"] for row in found["known"][1]]
    known = {"loss", "classification", "balance", "alignment", "pseudo", "pseudo_share", "pseudo_accuracy"}
    assert all(known <= set(row) <= {*known, "pseudo_accuracy_counted"} for row in found["known"][1])
    assert all(set(row) == known - {"pseudo_accuracy"} for row in found["hidden"][1])
    accuracies = [[row["pseudo_accuracy"] for row in found[name][1]] for name in ("known", "wrong")]
    assert accuracies[0] != accuracies[1]


def test_the_loss_of_adaptation_is_the_sum_of_its_parts(adapt):
    weights = {"classification": 1.0, "balance": 0.01, "alignment": 1.0, "pseudo": 0.5}
    settings = ("training.pseudo_labels.weight=0.5", "training.pseudo_labels.ramp_up=0", "training.max_steps=4",
                "training.pseudo_labels.threshold=none")  # fmt: skip
    trainer, ramped = adapt("run", *settings), adapt("ramped", *settings, "training.pseudo_labels.ramp_up=1")
    losses, slow = record_losses(trainer), record_losses(ramped)
    trainer.run(stop_after=3)
    ramped.run(stop_after=1)
    for row in losses:
        assert row["pseudo"] > 0.5 and row["pseudo_share"] == 1.0
        assert row["loss"] == pytest.approx(sum(value * row[name] for name, value in weights.items()), rel=1e-5)
    assert losses[0]["pseudo"] == slow[0]["pseudo"]
    want = losses[0]["loss"] - 0.5 * losses[0]["pseudo"] * (1 - math.exp(-5))
    assert slow[0]["loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("views", ["weak-strong", "same"])
@pytest.mark.parametrize(("average", "teacher"), [("0.9", "ema"), ("0.9", "student"), ("0", "student")])
def test_who_gives_the_pseudo_labels(adapt, views, average, teacher):
    """The average, or the model itself: whichever was chosen, also where both are there."""
    trainer = adapt(
        "run", f"training.ema_decay={average}", f"training.pseudo_labels.teacher={teacher}",
        f"training.pseudo_labels.views={views}",
    )  # fmt: skip
    trainer.run(stop_after=1)  # so that the two differ
    asked: list[tuple[str, bool, int]] = []
    for name, model in (("student", trainer.model), ("ema", trainer.average)):
        if model is not None:
            model.moe.register_forward_pre_hook(
                lambda module, args, name=name: asked.append((name, torch.is_grad_enabled(), len(args[0])))
            )
    trainer.run(stop_after=2)
    learning = [call for call in asked if call[1]]
    assert learning == [("student", True, 8 + 6)]  # both domains pass as one batch
    answered = [call for call in asked if not call[1]]
    if views == "same" and teacher == "student":
        assert answered == []  # the answer that is trained on is the label's source too
    else:
        assert answered == [(teacher, False, 6)]
    assert trainer.model.training and (trainer.average is None or not trainer.average.training)


def test_the_run_that_was_started_from_may_be_the_teacher(adapt, tmp_path):
    """Whose labels do not move: nothing of it trains, and a resumed run finds it again."""
    adapt("first", "training.max_steps=1").run()
    settings = (f"training.init_from={tmp_path / 'first'}", "training.pseudo_labels.teacher=start",
                "training.pseudo_labels.ramp_up=0", "training.pseudo_labels.threshold=none")  # fmt: skip
    first, _ = load_model(tmp_path / "first")
    whole = adapt("whole", *settings)
    asked: list[int] = []
    whole.teacher.moe.register_forward_pre_hook(lambda _module, args: asked.append(len(args[0])))
    whole.run(stop_after=4)
    assert asked == [6] * 4 and whole.teacher not in (whole.model, whole.average) and not whole.teacher.training
    assert equal(whole.teacher.state_dict(), first.state_dict())
    assert not any(p.requires_grad for p in whole.teacher.parameters())

    adapt("parts", *settings).run(stop_after=2)
    second = adapt("parts", *settings, resume=load_checkpoint(tmp_path / "parts" / LAST))
    second.run(stop_after=4)
    assert equal(state(second), state(whole))
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    message = fails(lambda: adapt("parts", *settings, resume=load_checkpoint(tmp_path / "parts" / LAST)))
    assert message.startswith(f"{tmp_path / 'first'} is not there; expected a run folder with {BEST}, or a checkpoint")


def test_the_loss_is_on_the_strong_view_and_the_labels_from_the_weak_one(adapt):
    trainer = adapt("run")
    given: dict[str, torch.Tensor] = {}
    trainer.model.features.encoder.register_forward_pre_hook(lambda _m, args: given.update(student=args[0]))
    trainer.average.features.encoder.register_forward_pre_hook(lambda _m, args: given.update(teacher=args[0]))
    source, target = next(trainer.batches())
    trainer.train_step(source, target)

    def scaled(images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).float() * trainer.model.scale + trainer.model.shift

    assert torch.equal(given["teacher"], scaled(target.images))
    assert torch.equal(given["student"], scaled(torch.cat([source.images, target.strong])))
    assert not torch.equal(target.images, target.strong)


def test_steps_of_one_picture_of_each_domain(adapt, da, tmp_path):
    """Statistics over a batch are of both domains, so one of each is enough."""
    one = da[0].target.subset([3])
    adapt("a", "training.batch_size=1", target=one).run(stop_after=1)
    alone = replace(da[0], target=None)
    one_step = tiny("training.batch_size=1")
    message = fails(lambda: Trainer(one_step, alone, tmp_path / "b"))
    assert message.startswith("a training step has one picture; expected 2 or more, for model.head.normalize_v")


def test_implicit_knowledge_learns_from_captions_and_does_without_them(captions, tmp_path, capsys):
    """Joint training in the setting DA, then an adapter taught by an explicit run, each resumable to the bit."""
    explicit = trainer_of(adapting(captions, "training.max_steps=1"), tmp_path / "explicit")
    explicit.run()
    for how in ("joint", "distill"):
        config = adapting(
            captions, "model.knowledge.mode=implicit", f"training.implicit={how}", "training.max_steps=4",
            f"training.init_from={tmp_path / 'explicit'}",
        )  # fmt: skip
        start = load_checkpoint(tmp_path / "explicit" / BEST).model
        whole = trainer_of(config, tmp_path / how, start=start)
        assert whole.fresh and all(name.startswith("knowledge.") for name in whole.fresh)
        losses = record_losses(whole)
        whole.run()
        assert all(row["distillation"] > 0 for row in losses)
        trainer_of(config, tmp_path / f"{how}-parts", start=start).run(stop_after=2)
        saved = load_checkpoint(tmp_path / f"{how}-parts" / LAST)
        second = trainer_of(config, tmp_path / f"{how}-parts", resume=saved)
        second.run()
        assert equal(state(second), state(whole))
        model, _ = load_model(tmp_path / how)
        moved = {
            n.partition(".")[0]
            for n, value in model.state_dict().items()
            if not torch.equal(value, start.get(n, value + 1))
        }
        assert ("knowledge" in moved) and (moved == {"knowledge"}) is (how == "distill")
        with torch.no_grad():
            assert torch.isfinite(model(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).logits).all()
