"""The moving average of the weights: values by hand, what is shared, and what the trainer makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from kcdp.config import load_config
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import TensorDataset
from kcdp.models.build import build_model
from kcdp.training.checkpoint import LAST, Checkpoint, load_checkpoint
from kcdp.training.ema import average_model, update_average
from kcdp.training.progress import Pictures
from kcdp.training.trainer import Trainer


class Small(nn.Module):
    """A trained weight, a frozen one that was loaded from elsewhere, a batch normalisation and a buffer."""

    external = frozenset({"frozen"})

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.full((2,), 7.0), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("memory", torch.zeros(2))
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x * self.trained)


def set_weights(model: Small, value: float) -> None:
    with torch.no_grad():
        model.trained.fill_(value)


# --- values -----------------------------------------------------------------------------------------------------------


def test_values_by_hand():
    model = Small()
    average = average_model(model)
    set_weights(model, 2.0)
    update_average(average, model, decay=0.9, step=1)
    # In the warm-up the decay is (1 + 1) / (10 + 1): 1 x 2/11 + 2 x 9/11.
    torch.testing.assert_close(average.trained, torch.full((3,), 20 / 11))
    set_weights(model, 4.0)
    update_average(average, model, decay=0.9, step=2)
    # 3 / 12: 20/11 x 1/4 + 4 x 3/4.
    torch.testing.assert_close(average.trained, torch.full((3,), 38 / 11))
    update_average(average, model, decay=0.9, step=1000)
    torch.testing.assert_close(average.trained, torch.full((3,), 0.9 * 38 / 11 + 0.4))
    assert model.trained.tolist() == [4.0] * 3  # the model itself does not move


@pytest.mark.parametrize(
    ("decay", "step", "kept"),
    [(0.9, 79, 80 / 89), (0.9, 80, 0.9), (0.9, 81, 0.9), (0.5, 7, 8 / 17), (0.5, 8, 0.5), (0.5, 9, 0.5),
     (0.999, 1, 2 / 11), (0.999, 10_000, 0.999)],
)  # fmt: skip
def test_the_warm_up_ends_where_it_would_exceed_the_decay(decay, step, kept):
    model = Small()
    average = average_model(model)
    set_weights(model, 0.0)
    update_average(average, model, decay, step)
    torch.testing.assert_close(average.trained, torch.full((3,), kept))


def test_the_average_of_weights_that_stay_is_these_weights():
    model = Small()
    average = average_model(model)
    for step in range(1, 20):
        update_average(average, model, 0.9, step)
    assert torch.equal(average.trained, model.trained)


# --- buffers ----------------------------------------------------------------------------------------------------------


def test_running_statistics_are_averaged_and_other_buffers_copied():
    model = Small()
    average = average_model(model)
    with torch.no_grad():
        model.norm.running_mean.fill_(11.0)
        model.norm.running_var.fill_(12.0)
        model.norm.num_batches_tracked.fill_(5)
        model.memory.fill_(3.0)
        model.passing.fill_(4.0)
    update_average(average, model, 0.9, 1)
    torch.testing.assert_close(average.norm.running_mean, torch.full((3,), 9.0))  # 0 x 2/11 + 11 x 9/11
    torch.testing.assert_close(average.norm.running_var, torch.full((3,), 10.0))  # 1 x 2/11 + 12 x 9/11
    assert int(average.norm.num_batches_tracked) == 5
    assert average.memory.tolist() == [3.0, 3.0] and average.passing.tolist() == [4.0, 4.0]
    mine = {value.data_ptr() for value in average.buffers()}
    assert mine.isdisjoint(value.data_ptr() for value in model.buffers())


def test_a_buffer_that_was_replaced_is_followed():
    model = Small()
    average = average_model(model)
    model.memory = model.memory + 2  # as CESA does, so that no earlier forward is disturbed
    update_average(average, model, 0.9, 1)
    assert average.memory.tolist() == [2.0, 2.0]


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_frozen_parameters_are_shared_and_untouched():
    model = Small()
    average = average_model(model)
    assert average.frozen is model.frozen and average.trained is not model.trained
    before, version = model.frozen.clone(), model.frozen._version
    update_average(average, model, 0.9, 1)
    assert torch.equal(model.frozen, before) and model.frozen._version == version
    assert average.trained.data_ptr() != model.trained.data_ptr()


def test_the_average_is_in_evaluation_mode_without_gradients_and_the_model_stays_in_training():
    model = Small().train()
    average = average_model(model)
    assert not any(p.requires_grad for p in average.parameters())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["trained", "norm.weight", "norm.bias"]
    assert not any(module.training for module in average.modules()) and model.training and model.norm.training
    before = average.norm.running_mean.clone()
    assert not average(torch.randn(4, 3)).requires_grad and torch.equal(average.norm.running_mean, before)


def test_a_model_that_is_frozen_whole():
    model = Small().requires_grad_(False)
    model.external = frozenset(name for name, _ in model.named_parameters())
    average = average_model(model)
    update_average(average, model, 0.9, 1)
    assert all(a is b for a, b in zip(average.parameters(), model.parameters(), strict=True))


def test_of_an_adapted_model_only_what_trains_is_kept_twice():
    overrides = ("model.train_backbone=false", "model.lora.rank=2")
    model = build_model(load_config("tiny", overrides=overrides))
    model.external = frozenset(name for name, p in model.named_parameters() if not p.requires_grad)  # as if loaded
    average = average_model(model)
    theirs = dict(model.named_parameters())
    shared = {name for name, p in average.named_parameters() if p is theirs[name]}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert shared == frozen and len(frozen) > 100
    assert all(name.startswith("features.") for name in frozen) and not any(".lora_" in name for name in frozen)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(average(images).logits, model.eval()(images).logits)


# --- in the trainer ---------------------------------------------------------------------------------------------------


class Colours(ImageDataset):
    """A colour for each label."""

    def __init__(self, count: int) -> None:
        super().__init__("colours", [Sample(str(i), i % 6) for i in range(count)])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (32, 32), ("yellow", "lime", "cyan", "magenta", "blue", "red")[index % 6])


def make_trainer(out: Path, decay: float, *more: str, resume: Checkpoint | None = None) -> Trainer:
    overrides = (
        f"training.ema_decay={decay}", "training.batch_size=6", "training.mixed_precision=no",
        "training.pseudo_labels.teacher=student", "training.device=cpu", *more,
    )  # fmt: skip
    config = load_config("tiny", overrides=overrides)
    source, validation = (TensorDataset(Colours(count), config.preprocess) for count in (24, 6))
    return Trainer(config, Pictures(source, validation), out, resume)


def test_the_trainer_averages_after_every_step_and_validates_the_average(tmp_path):
    trainer = make_trainer(tmp_path, 0.99)
    name = "moe.gate.weight"
    values = [trainer.model.get_parameter(name).detach().clone()]
    for _ in range(2):
        trainer.run(stop_after=trainer.progress.step + 1)
        values.append(trainer.model.get_parameter(name).detach().clone())
    want = values[0]
    for step, value in enumerate(values[1:], 1):
        kept = (1 + step) / (10 + step)
        want = kept * want + (1 - kept) * value
    assert trainer.average is not None and trainer.validated_model is trainer.average
    torch.testing.assert_close(trainer.average.get_parameter(name), want)
    assert not torch.equal(values[1], values[2]) and not torch.equal(want, values[2])


def test_without_an_average_the_model_itself_is_validated(tmp_path):
    trainer = make_trainer(tmp_path, 0.0)
    assert trainer.average is None and trainer.validated_model is trainer.model


@pytest.mark.parametrize("frozen", ["model.train_backbone=false", "model.train_encoder=false"])
def test_what_is_frozen_and_from_scratch_is_stored_and_resumed(tmp_path, frozen):
    """It is in the checkpoint, for it is nowhere else; so the average has its own."""
    trainer = make_trainer(tmp_path, 0.99, frozen)
    trainer.run(stop_after=2)
    again = make_trainer(tmp_path, 0.99, frozen, resume=load_checkpoint(tmp_path / LAST))
    for mine, theirs in ((again.model, trainer.model), (again.average, trainer.average)):
        stored, want = mine.state_dict(), theirs.state_dict()
        assert stored.keys() == want.keys() and all(torch.equal(stored[name], want[name]) for name in want)
    theirs = dict(again.model.named_parameters())
    assert not any(p is theirs[name] for name, p in again.average.named_parameters())
