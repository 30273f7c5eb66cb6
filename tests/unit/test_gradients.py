"""Every trained part gets gradient from the losses that are meant for it, and nothing that is frozen gets any.

A key's bias is the one exception: it shifts all scores of a query alike, softmax does not see that, and what gradient
there is is rounding. It is left out by name, here and there, and ``test_a_key_s_bias...`` says so in numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from kcdp.config import Config, load_config
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import Item, TensorDataset
from kcdp.models.alignment import contrastive_loss
from kcdp.models.build import build_model
from kcdp.models.kadap import Kadap
from kcdp.models.moe import balance_loss, gate_deviation
from kcdp.models.network import NetworkOutput
from kcdp.training.checkpoint import LAST, load_checkpoint
from kcdp.training.ema import average_model
from kcdp.training.progress import Pictures
from kcdp.training.steps.adaptation import AdaptationStep
from kcdp.training.steps.distillation import DistillationStep
from kcdp.training.steps.source import SourceStep
from kcdp.training.steps.step import StepResult
from kcdp.training.trainer import Trainer

WIDTH, TEXT_TOKENS, COUNT = 32, 12, 12
WEIGHTS = "diffusion_pytorch_model.safetensors"

#: part -> what its parameters' names begin with, or contain.
PARTS: dict[str, Callable[[str], bool]] = {
    "encoder": lambda name: name.startswith("features.encoder."),
    "unet": lambda name: name.startswith("features.unet.") and ".lora_" not in name,
    "adapters": lambda name: ".lora_" in name,
    "knowledge": lambda name: name.startswith("knowledge."),
    "pyramid": lambda name: name.startswith("pyramid."),
    "norm": lambda name: name.startswith("norm."),
    "gate": lambda name: name.startswith("moe.gate."),
    "experts": lambda name: name.startswith(("moe.hidden.", "moe.answer_")),
    "attention": lambda name: name.startswith("alignment.attention."),
    "mapping": lambda name: name.startswith("alignment.mapping."),
    "cesa": lambda name: name.startswith(("alignment.visual_map.", "alignment.prompt_map.", "alignment.knowledge_map.",
                                          "alignment.anchors")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers layout: a small U-Net of Stable Diffusion's plan, an autoencoder, and a tiny one."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(5)
    UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 32), norm_num_groups=4, cross_attention_dim=WIDTH, attention_head_dim=2,
        layers_per_block=1,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), decoder_block_out_channels=(8, 8),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder / "taesd")  # fmt: skip
    return folder


def frozen_backbone(folder: Path, *overrides: str) -> Config:
    """The preset of real weights at a small size: adapters train, told what a picture shows."""
    return load_config("sd15", overrides=(
        f"model.backbone={folder}", "model.lora.rank=2", f"model.knowledge.width={WIDTH}", "model.text.kind=seeded",
        "model.text.layers=1", f"model.text.tokens={TEXT_TOKENS}", "model.alignment.heads=4", "preprocess.size=32",
        "model.head.pyramid_channels=8", "model.head.hidden=16", "training.batch_size=6", "training.device=cpu",
        "training.mixed_precision=no", "training.warmup_steps=0", "training.augmentation=light",
        "training.strong_augmentation=light", *overrides,
    ))  # fmt: skip


def tiny(*overrides: str) -> Config:
    """Everything from scratch and trained, batch normalisation included."""
    return load_config("tiny", overrides=("training.mixed_precision=no", "training.device=cpu", *overrides))


def item(count: int = COUNT, seed: int = 0, tokens: int = 2 * TEXT_TOKENS) -> Item:
    """Random pictures, labels in turn, random knowledge."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Item(images, torch.arange(count) % 6, None, torch.randn(count, tokens, WIDTH, generator=generator))


def run(model: Kadap, batch: Item) -> NetworkOutput:
    given = batch.knowledge if model.knowledge is None else None
    return model(batch.images, given, align=model.alignment is not None)


LOSSES: dict[str, Callable[[NetworkOutput, Item], torch.Tensor]] = {
    "classification": lambda output, batch: F.cross_entropy(output.logits, batch.labels),
    "alignment": lambda output, batch: contrastive_loss(output.alignment.similarity, batch.labels),
    "switch": lambda output, batch: balance_loss(output.moe, 2),
    "gate-std": lambda output, batch: gate_deviation(output.moe, 2),
}


def backward(model: Kadap, loss: str, batch: Item | None = None) -> None:
    model.zero_grad(set_to_none=True)
    batch = batch or item()
    LOSSES[loss](run(model, batch), batch).backward()


def step(model: Kadap, *losses: str, rate: float = 1e-2) -> None:
    """One step of AdamW down these losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    batch = item(seed=9)
    output = run(model, batch)
    optimizer.zero_grad()
    torch.stack([LOSSES[loss](output, batch) for loss in losses]).sum().backward()
    optimizer.step()


def with_gradient(model: Kadap) -> set[str]:
    """Parameters with a gradient that is not 0."""
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def names(model: Kadap, *parts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if any(PARTS[part](name) for part in parts)}


def key_bias(found: set[str]) -> set[str]:
    """Names of keys' biases: of no effect, see above."""
    return {name for name in found if name.endswith(("to_k.bias", ".key.bias"))}


def parts_of(model: Kadap) -> set[str]:
    return {part for part in PARTS if names(model, part)}


def test_the_parts_are_all_there_is(backbone):
    for config in (frozen_backbone(backbone), tiny(), tiny("model.alignment.kind=cesa")):
        model = build_model(config)
        together = [name for part in PARTS for name in names(model, part)]
        assert sorted(together) == sorted(name for name, _ in model.named_parameters())
    with pytest.raises(AssertionError):  # the twin: a parameter of no part
        model.more = torch.nn.Parameter(torch.zeros(1))
        assert sorted(together) == sorted(name for name, _ in model.named_parameters())


# --- each loss and what it trains -------------------------------------------------------------------------------------

#: loss -> the parts of an adapted model it reaches; "unet" and "encoder" are frozen there.
REACHED = {
    "classification": {"adapters", "pyramid", "gate", "experts"},
    "alignment": {"adapters", "pyramid", "attention", "mapping"},
    "switch": {"adapters", "pyramid", "gate"},
    "gate-std": {"adapters", "pyramid", "gate"},
}


@pytest.mark.parametrize("loss", REACHED)
def test_each_loss_reaches_its_parts_whole_and_no_other(backbone, loss):
    model = build_model(frozen_backbone(backbone))
    assert parts_of(model) == {"encoder", "unet", "adapters", "pyramid", "gate", "experts", "attention", "mapping"}
    step(model, "classification", "alignment")  # before it B is 0, and A without gradient; see the next test
    backward(model, loss)
    assert with_gradient(model) == names(model, *REACHED[loss])
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("loss", ["classification", "alignment"])
def test_of_fresh_adapters_b_trains_first_and_then_a_too(backbone, loss):
    model = build_model(frozen_backbone(backbone))
    adapters = names(model, "adapters")
    b = {name for name in adapters if ".lora_B." in name}
    assert len(b) * 2 == len(adapters) > 50
    backward(model, loss)
    assert with_gradient(model) & adapters == b
    step(model, loss)
    backward(model, loss)
    assert with_gradient(model) & adapters == adapters


def test_frozen_parts_have_no_gradient_at_all(backbone):
    model = build_model(frozen_backbone(backbone))
    frozen = names(model, "encoder", "unet")
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen and len(frozen) > 150
    for loss in LOSSES:
        backward(model, loss)
        assert all(p.grad is None for name, p in model.named_parameters() if name in frozen)
    twin = build_model(frozen_backbone(backbone, "model.lora.rank=0", "model.train_backbone=true"))
    backward(twin, "classification")
    assert names(twin, "encoder") <= with_gradient(twin) and len(with_gradient(twin) & names(twin, "unet")) > 100


def test_prompts_are_a_buffer_and_their_encoder_is_no_part_of_the_model(backbone):
    for kind in ("cliea", "cesa"):
        model = build_model(frozen_backbone(backbone, f"model.alignment.kind={kind}", "model.alignment.components=8"))
        prompts = model.alignment.prompts
        before = prompts.clone()
        step(model, "classification", "alignment")
        assert not prompts.requires_grad and prompts.grad is None and torch.equal(model.alignment.prompts, before)
        assert "alignment.prompts" in dict(model.named_buffers())
        assert not [name for name, _ in model.named_parameters() if "token_embedding" in name or "prompts" in name]


def test_only_the_experts_that_answer_learn(backbone):
    model = build_model(frozen_backbone(backbone))
    with torch.no_grad():
        model.moe.gate.bias.copy_(torch.tensor([5.0, 4.0, -50.0, -50.0]))
    backward(model, "classification")
    width = model.moe.answer_weight.shape[1]
    for expert, learns in enumerate((True, True, False, False)):
        rows = slice(expert * width, (expert + 1) * width)
        found = (model.moe.hidden.weight.grad[rows], model.moe.hidden.bias.grad[rows],
                 model.moe.answer_weight.grad[expert], model.moe.answer_bias.grad[expert])  # fmt: skip
        assert [bool(gradient.any()) for gradient in found] == [learns] * 4


@pytest.mark.parametrize("routing", ["dense", "loop"])
def test_both_ways_through_the_experts_give_the_same_gradients(backbone, routing):
    gradients = []
    for way in ("dense", routing):
        model = build_model(frozen_backbone(backbone, f"model.head.routing={way}"))
        backward(model, "classification")
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("pooling", "mapping"), [("prompt", "mlp"), ("emotion", "mlp"), ("all", "linear")])
def test_a_key_s_bias_in_cliea_gets_nothing_but_rounding(backbone, pooling, mapping):
    overrides = (f"model.alignment.pooling={pooling}", f"model.alignment.mapping={mapping}")
    model = build_model(frozen_backbone(backbone, *overrides))
    backward(model, "alignment")
    assert names(model, "attention", "mapping") <= with_gradient(model)
    queries, keys, values = model.alignment.attention.in_proj_bias.grad.split(WIDTH)
    assert keys.abs().max() < 1e-4 * queries.abs().max() and keys.abs().max() < 1e-4 * values.abs().max()
    for rows in model.alignment.attention.in_proj_weight.grad.split(WIDTH):  # its weight learns like the others
        assert rows.any(dim=1).all()


def test_a_model_from_scratch_trains_whole():
    """Encoder, U-Net, normalisation and the learned constant tokens too."""
    model = build_model(tiny())
    assert all(p.requires_grad for p in model.parameters())
    for loss, without in (("classification", {"attention", "mapping"}), ("alignment", {"gate", "experts"})):
        backward(model, loss)
        still = {name for name, p in model.named_parameters()} - with_gradient(model)
        assert still - key_bias(still) == names(model, *without)


# --- knowledge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["classification", "alignment"])
def test_learned_constant_tokens_get_gradient_through_a_frozen_backbone(backbone, loss):
    model = build_model(frozen_backbone(backbone, "model.knowledge.mode=constant", "model.knowledge.tokens=5"))
    before = model.knowledge.embedding.detach().clone()
    backward(model, loss)
    assert names(model, "knowledge") == {"knowledge.embedding"} <= with_gradient(model)
    assert model.knowledge.embedding.grad.any(dim=2).all()  # every token
    assert not with_gradient(model) & names(model, "unet", "encoder")
    step(model, loss)
    assert not torch.equal(before, model.knowledge.embedding)


def test_constant_tokens_of_a_text_do_not_train(backbone):
    model = build_model(frozen_backbone(backbone, "model.knowledge.mode=constant", "model.knowledge.tokens=5",
                                        "model.knowledge.text=a sticker"))  # fmt: skip
    before = model.knowledge.embedding.clone()
    step(model, "classification", "alignment")
    assert not list(model.knowledge.parameters()) and torch.equal(model.knowledge.embedding, before)


@pytest.mark.parametrize("loss", ["classification", "alignment"])
def test_the_implicit_adapter_gets_gradient_from_the_task(backbone, loss):
    model = build_model(frozen_backbone(backbone, "model.knowledge.mode=implicit", "model.knowledge.hidden=16"))
    own = names(model, "knowledge")
    backward(model, loss)
    assert with_gradient(model) & own == {"knowledge.base", "knowledge.gate"}  # the gate is closed
    step(model, loss)
    backward(model, loss)
    assert own - with_gradient(model) <= key_bias(own)
    assert {"adapters", "pyramid"} <= {part for part in PARTS if names(model, part) <= with_gradient(model)}


def test_joint_training_pulls_the_adapter_towards_the_captions_too(backbone):
    config = frozen_backbone(backbone, "model.knowledge.mode=implicit", "model.knowledge.hidden=16")
    model = build_model(config)
    result = SourceStep(config, torch.ones(6))(model, model, item(), None, 0.0)
    result.parts["distillation"].backward()
    assert with_gradient(model) == {"knowledge.base", "knowledge.gate"}
    without = SourceStep(config, torch.ones(6))(model, model, item()._replace(knowledge=None), None, 0.0)
    assert "distillation" not in without.parts


def distilled(folder: Path) -> Config:
    return frozen_backbone(
        folder, "model.knowledge.mode=implicit", "model.knowledge.hidden=16", "training.implicit=distill",
        "model.head.normalize_v=true", "model.lora.dropout=0.5",
    )  # fmt: skip


@pytest.mark.parametrize("part", ["distillation", "divergence"])
def test_distillation_trains_the_adapter_and_nothing_else(backbone, part):
    config = distilled(backbone)
    model = build_model(config)
    own = names(model, "knowledge")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == own
    with torch.no_grad():
        model.knowledge.gate.fill_(0.3)  # opened, as after the first step
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    result = DistillationStep(config, torch.ones(6))(model, model, item(), item(seed=1), 0.0)
    model.zero_grad(set_to_none=True)
    result.parts[part].backward()
    assert own - with_gradient(model) <= key_bias(own) and with_gradient(model) <= own
    assert all(p.grad is None for name, p in model.named_parameters() if name not in own)
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


# --- CESA -------------------------------------------------------------------------------------------------------------


def test_cesa_s_maps_and_anchors_learn_from_the_alignment_alone(backbone):
    config = frozen_backbone(backbone, "model.alignment.kind=cesa", "model.alignment.components=8")
    model = build_model(config)
    own = names(model, "cesa")
    assert own == {
        "alignment.visual_map.weight", "alignment.visual_map.bias", "alignment.prompt_map.weight",
        "alignment.knowledge_map.weight", "alignment.anchors",
    }  # fmt: skip
    step(model, "classification", "alignment")
    backward(model, "alignment")
    assert with_gradient(model) == own | names(model, "adapters", "pyramid")
    backward(model, "classification")
    assert not with_gradient(model) & own


# --- pseudo-labels ----------------------------------------------------------------------------------------------------


def adapt(config: Config, model: Kadap, teacher: Kadap | None = None) -> StepResult:
    shares = torch.full((6,), 1 / 6)
    target = item(seed=1)
    if config.training.pseudo_labels.views == "weak-strong":
        target = target._replace(strong=255 - target.images)
    step = AdaptationStep(config, torch.ones(6), shares)
    return step(model, teacher or model, item(), target._replace(labels=torch.empty(0)), 1.0)


def with_pseudo_labels(folder: Path, **settings: str) -> Config:
    settings = {"threshold": "none", "prior": "none", "ramp_up": "0", **settings}
    return frozen_backbone(folder, *(f"training.pseudo_labels.{key}={value}" for key, value in settings.items()))


@pytest.mark.parametrize("source", ["alignment", "predictor", "both"])
@pytest.mark.parametrize("views", ["weak-strong", "same"])
@pytest.mark.parametrize("teacher", ["ema", "student"])
def test_the_pseudo_label_loss_reaches_the_predictor_and_not_the_teacher(backbone, teacher, views, source):
    config = with_pseudo_labels(backbone, teacher=teacher, views=views, source=source)
    model = build_model(config)
    step(model, "classification", "alignment")
    average = average_model(model)
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.requires_grad_(mine is not theirs)  # so that a gradient would be seen
    model.zero_grad(set_to_none=True)
    adapt(config, model, average).parts["pseudo"].backward()
    assert with_gradient(model) == names(model, "adapters", "pyramid", "gate", "experts")
    assert not with_gradient(average)


@pytest.mark.parametrize("source", ["alignment", "predictor"])
def test_pseudo_labels_of_the_model_itself_are_taken_as_given(backbone, source):
    """The gradient is that of a cross-entropy with constants; the labels are the model's own answer to that batch."""
    config = with_pseudo_labels(backbone, teacher="student", views="same", source=source)
    model = build_model(config)
    result = adapt(config, model)
    result.parts["pseudo"].backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    output = run(model, item(seed=1))
    answers = output.logits if source == "predictor" else output.alignment.similarity
    assert torch.equal(result.pseudo_labels, answers.argmax(1))
    F.cross_entropy(output.logits, answers.argmax(1)).backward()
    for name, p in model.named_parameters():
        if name in got and p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-6)
    assert any(value.any() for value in got.values())


def test_pseudo_labels_that_do_not_count_train_nothing(backbone):
    config = with_pseudo_labels(backbone, threshold="fixed", confidence="1.0")
    model = build_model(config)
    result = adapt(config, model)
    assert not result.counted.any() and not result.parts["pseudo"]
    result.parts["pseudo"].backward()
    assert not with_gradient(model)


def test_the_target_trains_through_pseudo_labels_alone(backbone):
    """With their weight 0, the whole step is that of the source."""
    gradients = []
    config = with_pseudo_labels(backbone, weight="0")
    for way in (lambda model: adapt(config, model),
                lambda model: SourceStep(config, torch.ones(6))(model, model, item(), None, 1.0)):  # fmt: skip
        model = build_model(config)
        way(model).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    strong = with_pseudo_labels(backbone, weight="1")
    twin = build_model(strong)
    adapt(strong, twin).loss.backward()
    assert (gradients[1]["moe.gate.weight"] - twin.moe.gate.weight.grad).abs().max() > 1e-4


# --- through the trainer ----------------------------------------------------------------------------------------------


class Colours(ImageDataset):
    """A colour for each label."""

    def __init__(self, count: int) -> None:
        super().__init__("colours", [Sample(str(i), i % 6) for i in range(count)])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (32, 32), ("yellow", "lime", "cyan", "magenta", "blue", "red")[index % 6])


class ToldAtRandom:
    """Knowledge that says nothing, in the place of captions."""

    def tokens(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).standard_normal((2 * TEXT_TOKENS, WIDTH)).astype(np.float32)


def make_trainer(config: Config, out: Path, *, adapting: bool, told: bool = True) -> Trainer:
    def tensors(count: int, augmentation: str = "none", strong: str = "") -> TensorDataset:
        knowledge = ToldAtRandom() if told else None
        return TensorDataset(Colours(count), config.preprocess, augmentation, strong=strong, knowledge=knowledge)

    target = tensors(12, "light", "light") if adapting else None
    return Trainer(config, Pictures(tensors(24, "light"), tensors(6), target), out)


def stored(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(folder / part / WEIGHTS)


def own_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By the names they have on disk: without adapters."""
    state = module.state_dict()
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


def moved(before: dict[str, torch.Tensor], model: Kadap) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


@pytest.mark.parametrize("adapting", [False, True], ids=["UC", "DA"])
@pytest.mark.parametrize("encoder", ["kl", "tiny"])
def test_training_adapters_leaves_the_unet_bit_identical(backbone, tmp_path, encoder, adapting):
    overrides = () if encoder == "kl" else ("model.encoder.kind=tiny", f"model.encoder.source={backbone / 'taesd'}")
    config = frozen_backbone(backbone, "training.max_steps=4", "training.weight_decay=0.1", *overrides)
    trainer = make_trainer(config, tmp_path / "run", adapting=adapting)
    model = trainer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert trainer.run().step == 4

    own, on_disk = own_weights(model.features.unet), stored(backbone, "unet")
    assert set(on_disk) - set(own) == {f"{name}.{kind}" for name in ("conv_norm_out", "conv_out")
                                       for kind in ("weight", "bias")}  # fmt: skip
    assert len(own) > 150 and all(torch.equal(value, on_disk[name]) for name, value in own.items())
    on_disk = stored(backbone, "vae" if encoder == "kl" else "taesd")
    assert all(torch.equal(value, on_disk[name]) for name, value in model.features.encoder.state_dict().items())

    trained = names(model, "adapters", "pyramid", "gate", "experts", "attention", "mapping")
    assert moved(before, model) == trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainer.average is not None and moved(before, trainer.average) == trained
    held = set(load_checkpoint(tmp_path / "run" / LAST).model)
    assert trained <= held and not held & names(model, "encoder", "unet")
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == {
        id(p) for name, p in model.named_parameters() if name in trained
    }


def test_twin_training_the_backbone_moves_the_unet_and_the_encoder_only_where_it_is_asked_to(backbone, tmp_path):
    for train_encoder in (True, False):
        config = frozen_backbone(
            backbone, "model.lora.rank=0", "model.train_backbone=true", "training.max_steps=1",
            f"model.train_encoder={str(train_encoder).lower()}",
        )  # fmt: skip
        trainer = make_trainer(config, tmp_path / str(train_encoder), adapting=False)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.run()
        changed = moved(before, trainer.model)
        assert names(trainer.model, "unet") - changed <= {n for n in names(trainer.model, "unet") if "bias" in n}
        assert bool(names(trainer.model, "encoder") & changed) is train_encoder


@pytest.mark.parametrize("adapting", [False, True], ids=["source", "source and target"])
def test_distilling_through_the_trainer_moves_the_adapter_alone(backbone, tmp_path, adapting):
    trainer = make_trainer(replace_steps(distilled(backbone), 3), tmp_path / "run", adapting=adapting)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    statistics = {name: value.clone() for name, value in trainer.model.named_buffers()}
    trainer.run()
    own = names(trainer.model, "knowledge")
    assert moved(before, trainer.model) <= own and own - moved(before, trainer.model) <= key_bias(own)
    assert all(torch.equal(value, statistics[name]) for name, value in trainer.model.named_buffers())


def replace_steps(config: Config, steps: int) -> Config:
    return replace(config, training=replace(config.training, max_steps=steps))
