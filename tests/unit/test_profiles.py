"""Profile ``as-published-code``: each setting is what the file says, and has the effect that it claims.

The contrast is the same configuration with one setting (or a few that belong together) put back to the paper's. A test
names the settings it holds; ``test_every_setting_has_its_test`` compares these with the file.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import kcdp.data.loader as loader_module
import kcdp.training.validation as validation_module
from kcdp.config import PROFILES, Config, load_config, preset_names, profile_names
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import Item, TensorDataset
from kcdp.data.registry import open_dataset
from kcdp.data.transforms import make_augmentation
from kcdp.errors import require
from kcdp.knowledge.captions import Caption, CaptionFile
from kcdp.knowledge.text import SeededText
from kcdp.knowledge.triples import open_extractor, triples_text
from kcdp.models.build import build_model
from kcdp.models.cliea import Cliea
from kcdp.models.kadap import Kadap
from kcdp.models.moe import BALANCE, MixtureOfExperts, MoEOutput
from kcdp.preprocess import picture_hash
from kcdp.torch_device import autocast_dtype
from kcdp.training.knowledge import KnowledgeReader
from kcdp.training.log import LOG
from kcdp.training.pictures import open_pictures
from kcdp.training.progress import Pictures
from kcdp.training.pseudo_labels import PseudoLabels
from kcdp.training.schedule import make_optimizer, set_learning_rate
from kcdp.training.steps.adaptation import AdaptationStep
from kcdp.training.steps.source import SourceStep
from kcdp.training.steps.step import StepResult
from kcdp.training.trainer import Trainer

PUBLISHED = "as-published-code"
#: dotted setting -> the value that a test below holds it to.
HELD: dict[str, Any] = {}

Test = Callable[..., None]


def holds(settings: Mapping[str, Any]) -> Callable[[Test], Test]:
    """Marks the test of these settings with the values it is about; no setting has two tests."""

    def mark(test: Test) -> Test:
        assert not HELD.keys() & settings.keys(), "two tests for one setting"
        HELD.update(settings)
        return test

    return mark


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables with dotted names."""
    values: dict[str, Any] = {}
    for name, value in tables.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return values


def profile_file(name: str = PUBLISHED) -> dict[str, Any]:
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli", "train")
    return flat(toml.loads((PROFILES / f"{name}.toml").read_text(encoding="utf-8")))


def of(config: Config, setting: str) -> Any:
    value: Any = config
    for name in setting.split("."):
        value = getattr(value, name)
    return value


def override(setting: str, value: Any) -> str:
    return f"{setting}={json.dumps(value)}"


def published(*overrides: str, preset: str = "tiny", **data: Any) -> Config:
    fixed = ("training.device=cpu", "training.seed=0") if preset == "tiny" else ()
    return load_config(preset, overrides=(*fixed, *overrides), data={"data": data} if data else None, profile=PUBLISHED)


def but(*settings: str, more: tuple[str, ...] = ()) -> Config:
    """``published``, with these settings as in the profile ``paper``."""
    defaults = Config()
    return published(*(override(name, of(defaults, name)) for name in settings), *more)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def batch(count: int = 12, seed: int = 0, side: int = 32) -> Item:
    """Random pictures, labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    return Item(images, torch.arange(count) % 6)


class Colours(ImageDataset):
    """A colour for each label; sorted by label, so that an order is seen."""

    COLOURS = ("yellow", "lime", "cyan", "magenta", "blue", "red")

    def __init__(self, count: int) -> None:
        super().__init__("colours", [Sample(str(i), i * 6 // count) for i in range(count)])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (32, 32), self.COLOURS[self.samples[index].label or 0])


def trainer(config: Config, out: Path, *, count: int = 48, validation: int = 6, target: int = 0) -> Trainer:
    sets = [TensorDataset(Colours(n), config.preprocess) if n else None for n in (count, validation, target)]
    assert sets[0] is not None and sets[1] is not None
    return Trainer(config, Pictures(sets[0], sets[1], sets[2]), out)


def moved(before: dict[str, torch.Tensor], model: Kadap) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def parameters(model: Kadap) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- the file ---------------------------------------------------------------------------------------------------------


def untested(settings: Mapping[str, Any]) -> set[str]:
    return settings.keys() ^ HELD.keys()


def test_every_setting_has_its_test():
    found = profile_file()
    assert untested(found) == set() and found == HELD
    assert len(found) > 30
    # The twins: a setting without a test, and a test without its setting.
    assert untested({**found, "training.more": 1}) == {"training.more"}
    assert untested({k: v for k, v in found.items() if k != "training.epochs"}) == {"training.epochs"}


@pytest.mark.parametrize("preset", preset_names())
def test_the_profile_reaches_the_configuration_whatever_the_preset(preset):
    config = published(preset=preset)
    assert {name: of(config, name) for name in HELD} == HELD
    assert config.profile == PUBLISHED and config.preset == preset


def test_the_paper_is_the_default_and_differs_in_what_the_other_one_sets():
    assert profile_file("paper") == {} and {"paper", PUBLISHED} <= set(profile_names())
    config = Config()
    assert load_config("tiny") == load_config("tiny", profile="paper") and config.profile == "paper"
    same = {name for name, value in HELD.items() if of(config, name) == value}
    # Named although the paper's default is the same: a preset may have set another value.
    assert same <= {
        "model.lora.rank", "model.head.normalize_v", "model.alignment.kind", "training.epochs", "training.batch_size",
        "training.weight_decay", "training.backbone_lr_scale", "training.pseudo_labels.source",
    }  # fmt: skip


# --- the backbone -----------------------------------------------------------------------------------------------------


@holds({"model.train_backbone": True, "model.train_encoder": False, "model.lora.rank": 0})
def test_the_whole_unet_trains_without_adapters_and_the_encoder_does_not(tmp_path):
    run = trainer(published("training.learning_rate=1e-2"), tmp_path)
    before = parameters(run.model)
    assert not [name for name in before if ".lora_" in name]
    run.run(stop_after=1)
    unet = {name for name in before if name.startswith("features.unet.")}
    still = {name for name in unet if name not in moved(before, run.model)}
    assert len(unet) > 100 and not {name for name in still if not name.endswith("to_k.bias")}
    encoder = {name for name in before if name.startswith("features.encoder.")}
    assert encoder and not encoder & moved(before, run.model)

    # The preset of the paper's model, made from scratch and small: there the profile has something to take back.
    small = ("model.backbone=scratch", "model.text.kind=seeded", "model.text.tokens=12", "model.knowledge.width=32",
             "preprocess.size=64")  # fmt: skip
    whole, adapted = (build_model(load_config("sd15", overrides=small, profile=name)) for name in (PUBLISHED, "paper"))
    trained = [{name for name, p in model.features.named_parameters() if p.requires_grad} for model in (whole, adapted)]
    assert trained[0] == {name for name, _ in whole.features.named_parameters() if name.startswith("unet.")}
    assert trained[1] == {name for name, _ in adapted.features.named_parameters() if ".lora_" in name} != set()
    assert all(p.requires_grad for p in build_model(but("model.train_encoder")).features.encoder.parameters())


def seen_by_the_encoder(config: Config, images: torch.Tensor) -> torch.Tensor:
    model, seen = build_model(config).eval(), []
    model.features.encoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    return seen[0]


@holds({"model.input_normalization": "imagenet-twice"})
def test_imagenet_s_normalisation_is_applied_twice():
    images = batch(2).images
    images[0, 0, :2] = torch.tensor([[0, 0, 0], [255, 255, 255]], dtype=torch.uint8)
    scaled = images.permute(0, 3, 1, 2) / 255
    once = v2.functional.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    want = v2.functional.normalize(once, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    got = seen_by_the_encoder(published(), images)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert got.min() < -11 and got.max() > 9  # far out of what the autoencoder knows
    papers = seen_by_the_encoder(but("model.input_normalization"), images)
    assert papers.min() == -1 and papers.max() == 1
    torch.testing.assert_close(papers, scaled * 2 - 1)


#: The tiny encoder's own factor is 1; that of Stable Diffusion's kind is 0.18215.
KL = ("model.encoder.kind=kl", "model.encoder.blocks=[1, 1]", "model.encoder.latent_channels=4")


@holds({"model.scale_latents": False})
def test_latents_are_not_scaled():
    published_model, papers = build_model(published(*KL)), build_model(but("model.scale_latents", more=KL))
    papers.load_state_dict(published_model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain, scaled = published_model.features.encoder(images), papers.features.encoder(images)
    torch.testing.assert_close(plain * 0.18215, scaled)
    assert plain.abs().max() > 0.1 and not torch.allclose(plain, scaled, atol=0.05)


# --- knowledge and experts --------------------------------------------------------------------------------------------

TOLD = ("model.knowledge.mode=explicit",)


@holds({"model.head.knowledge": "none"})
def test_knowledge_does_not_reach_the_experts():
    """The U-Net's answer is held fast, so that only the way past it is left."""
    images, first, second = batch(3).images, torch.randn(3, 48, 32), torch.randn(3, 48, 32)
    for config, told in ((published(*TOLD), False), (but("model.head.knowledge", more=TOLD), True)):
        model = build_model(config).eval()
        with torch.no_grad():
            through = [model(images, k).logits for k in (first, second)]
            levels = model(images, first).levels
            model.features.decode = lambda latents, knowledge, levels=levels: levels
            past = [model(images, k).logits for k in (first, second)]
        assert torch.equal(past[0], past[1]) is not told
        assert not torch.equal(through[0], through[1])  # through the cross-attention it always comes
        assert model.moe.gate.in_features == 4 * 16 + (32 if told else 0)


@holds({"model.head.routing": "loop"})
def test_experts_answer_picture_by_picture_with_the_same_numbers(monkeypatch):
    single, counted = MixtureOfExperts._one, []
    monkeypatch.setattr(MixtureOfExperts, "_one", lambda self, *row: (counted.append(1), single(self, *row))[1])
    answers = []
    for config, calls in ((published(), 12), (but("model.head.routing"), 0)):
        model = build_model(config).eval()
        with torch.no_grad():
            answers.append(model(batch(12).images).logits)
        assert len(counted) == calls
        counted.clear()
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-6)


@holds({"model.head.normalize_v": False})
def test_the_predictor_gets_v_as_it_was_pooled():
    for config, equal in ((published(), True), (published("model.head.normalize_v=true"), False)):
        model, seen = build_model(config), []
        model.moe.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0]))
        v = model(batch().images).v
        assert torch.equal(seen[0], v) is equal
    assert load_config("tiny").model.head.normalize_v  # what the profile takes back


# --- alignment --------------------------------------------------------------------------------------------------------


def alignment_of(config: Config) -> nn.Module:
    alignment = build_model(config).alignment
    assert alignment is not None
    return alignment


@holds({"model.alignment.mapping": "linear"})
def test_the_mapping_is_one_linear_layer():
    a, b = torch.randn(5, 64), torch.randn(5, 64)
    for config, linear in ((published(), True), (but("model.alignment.mapping"), False)):
        mapping = alignment_of(config).mapping
        layers = [module for module in mapping.modules() if not list(module.children())]
        assert isinstance(mapping, nn.Linear) is linear and (len(layers) == 1) is linear
        with torch.no_grad():
            zero = mapping(torch.zeros(5, 64))
            together, apart = mapping(a + b), mapping(a) + mapping(b) - zero
        assert torch.allclose(together, apart, atol=1e-5) is linear


@holds({"model.alignment.kind": "cliea", "model.alignment.pooling": "all"})
def test_pooling_over_knowledge_positions_drowns_the_prompt():
    """What differs between the six texts is what a prompt has to say; 48 tokens here, 154 as published, do not differ.

    Where every token attends to itself, the differences shrink by the share of the prompt among all positions.
    """
    spreads, told = [], (*TOLD, "model.alignment.heads=1")
    for config in (published(*told), but("model.alignment.pooling", more=told)):
        alignment = alignment_of(config)
        assert isinstance(alignment, Cliea)
        knowledge, asked = torch.randn(4, 48, 32), []
        with torch.no_grad():
            alignment.attention.in_proj_weight[:64] = 10 * torch.eye(32).repeat(2, 1)
        alignment.attention.register_forward_pre_hook(
            lambda _module, args, asked=asked: asked.append(args[0].shape[1])
        )  # fmt: skip
        with torch.no_grad():
            texts = alignment.embed(knowledge)
        spreads.append((texts - texts.mean(dim=1, keepdim=True)).square().mean().sqrt())
        length = alignment.prompts.shape[1]
        assert asked == [length + 48 if config.model.alignment.pooling == "all" else length]
    torch.testing.assert_close(spreads[0], spreads[1] * length / (length + 48), rtol=0.02, atol=0)


CAPTION = "a panda bear holding a red heart"


@holds({"model.text.triple_separator": ""})
def test_triples_are_joined_without_spaces(tmp_path, monkeypatch):
    spec, asked = "synthetic:photos?n=2&size=32", []
    dataset = open_dataset(spec)
    file = tmp_path / "captions.jsonl"
    with CaptionFile(file) as captions:
        for index in range(2):
            captions.append(Caption(picture_hash(dataset.image(index)), str(index), CAPTION, "hand"))
    encode = SeededText.encode
    monkeypatch.setattr(SeededText, "encode", lambda self, texts: (asked.extend(texts), encode(self, texts))[1])
    tokens = []
    for config, words in ((published(), "bearholdingred heart"), (but("model.text.triple_separator"), None)):
        texts = triples_text(CAPTION, open_extractor("rules"), config.model.text.triple_separator)
        assert len(texts) == 1 and texts[0].endswith(words or "bear holding red heart")
        asked.clear()
        knowledge = KnowledgeReader(config, [file]).read(dataset)
        assert set(asked) - {CAPTION} == set(texts)
        tokens.append(knowledge.tokens(0))
    half = tokens[0].shape[0] // 2
    assert np.array_equal(tokens[0][:half], tokens[1][:half])  # the caption's half is the same,
    assert not np.allclose(tokens[0][half:], tokens[1][half:], atol=0.01)  # the triples' is not


# --- losses -----------------------------------------------------------------------------------------------------------


def routed(experts: list[tuple[int, int]]) -> MoEOutput:
    """Gates 0.6 and 0.3 for each picture's two experts; the rest in equal parts."""
    gates = torch.full((len(experts), 4), 0.05)
    chosen = torch.zeros_like(gates)
    for row, (first, second) in enumerate(experts):
        gates[row, first], gates[row, second] = 0.6, 0.3
        chosen[row, [first, second]] = 1.0
    return MoEOutput(torch.zeros(len(experts), 6), gates, chosen)


@holds({"training.balance": "gate-std", "training.balance_weight": 0.1})
def test_the_balance_term_does_not_balance_experts():
    even, uneven = routed([(0, 1), (1, 2), (2, 3), (3, 0)]), routed([(0, 1)] * 4)
    published_term, papers = (BALANCE[config.training.balance] for config in (published(), but("training.balance")))
    assert torch.equal(published_term(even, 2), published_term(uneven, 2))
    assert published_term(even, 2) == pytest.approx(4 * 0.3 / math.sqrt(2))  # sums 2.4 and 1.2
    assert papers(even, 2) == pytest.approx(1.0) and papers(uneven, 2) > 1.7
    result, expected = source_losses(published()), source_losses(published("training.balance_weight=0"))
    torch.testing.assert_close(result.loss - expected.loss, 0.1 * result.parts["balance"], rtol=1e-4, atol=1e-6)
    assert result.parts["balance"] > 0.1


def test_following_the_released_balance_term_leaves_experts_unused():
    """And following the paper's does not: the same gate, the same pictures."""
    unused = []
    v = torch.randn(64, 10)
    for config in (published(), but("training.balance")):
        torch.manual_seed(1)
        moe = MixtureOfExperts(10)
        with torch.no_grad():
            moe.gate.bias.copy_(torch.tensor([6.0, 5.0, 0.0, 0.0]))
        optimizer = torch.optim.Adam(moe.gate.parameters(), 0.05)
        for _ in range(200):
            optimizer.zero_grad()
            BALANCE[config.training.balance](moe(v), 2).backward()
            optimizer.step()
        share = moe(v).chosen.mean(dim=0)
        unused.append(int((share < 0.05).sum()))
    assert unused == [2, 0]


def source_losses(config: Config, model: Kadap | None = None) -> StepResult:
    model = model or build_model(config)
    return SourceStep(config, torch.ones(6))(model, model, batch(), None, 0.0)


@holds({"training.classification_weight": 2.0})
def test_the_source_s_cross_entropy_is_counted_twice():
    for config, times in ((published(), 2), (but("training.classification_weight"), 1)):
        result = source_losses(config)
        parts = result.parts
        want = times * parts["classification"] + parts["alignment"] + 0.1 * parts["balance"]
        torch.testing.assert_close(result.loss, want)
        assert parts["classification"] > 1


@holds({"training.class_weighting": "none"})
def test_rare_classes_weigh_as_much_as_common_ones(tmp_path):
    for config, even in ((published(), True), (but("training.class_weighting"), False)):
        run = trainer(config, tmp_path / str(even))
        few = TensorDataset(Colours(48).subset([*range(8), 9, 17, 25, 33, 41]), config.preprocess)
        run = Trainer(config, replace(run.pictures, source=few), tmp_path / str(even))
        weights = run.step.class_weights
        assert (weights == 1).all().item() is even and (weights[0] < weights[1]).item() is not even


# --- pseudo-labels ----------------------------------------------------------------------------------------------------

PSEUDO = "training.pseudo_labels."


def varied(config: Config) -> Kadap:
    """An untrained model whose pictures lie around 0 in the space of the text, so that their prompts differ."""
    model = build_model(config)
    last = [module for module in model.alignment.mapping.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.bias -= model(batch(seed=1).images, align=True).alignment.image.mean(dim=0)
    return model


def adapt(config: Config, progress: float = 0.0, teacher: Kadap | None = None) -> tuple[StepResult, Kadap]:
    """A step on source and target; the source's shares say that nearly all is class 5."""
    model, shares = varied(config), torch.tensor([0.02] * 5 + [0.9])
    step = AdaptationStep(config, torch.ones(6), shares)
    target = batch(seed=1)
    if config.training.pseudo_labels.views == "weak-strong":
        target = target._replace(strong=batch(seed=2).images)
    return step(model, teacher or model, batch(), target, progress), model


def own_answers(model: Kadap, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The most similar prompts, and the predictor's classes, of the target."""
    with torch.no_grad():
        output = model(batch(seed=seed).images, align=True)
    return output.alignment.similarity.argmax(dim=1), output.logits.argmax(dim=1)


@holds({PSEUDO + "source": "alignment", PSEUDO + "teacher": "student", PSEUDO + "views": "same"})
def test_pseudo_labels_are_the_model_s_own_most_similar_prompts_on_the_same_view():
    other = varied(published("training.seed=7"))
    result, model = adapt(published(), teacher=other)
    prompts, classes = own_answers(model)
    assert torch.equal(result.pseudo_labels, prompts) and not torch.equal(prompts, classes)
    by_predictor, model = adapt(published(f"{PSEUDO}source=predictor"))
    assert torch.equal(by_predictor.pseudo_labels, own_answers(model)[1])
    # The paper's teacher is another model: the moving average; and what is learned on is another view.
    average = ("training.ema_decay=0.9",)
    taught, model = adapt(but(PSEUDO + "teacher", more=average), teacher=other)
    assert torch.equal(taught.pseudo_labels, own_answers(other)[0])
    assert not torch.equal(taught.pseudo_labels, own_answers(model)[0])
    two_views, model = adapt(but(PSEUDO + "views"))
    weak, strong = (own_answers(model, seed)[0] for seed in (1, 2))
    assert torch.equal(two_views.pseudo_labels, weak) and not torch.equal(weak, strong)


@holds({PSEUDO + "threshold": "none", PSEUDO + "prior": "none", PSEUDO + "ramp_up": 0.0})
def test_all_pseudo_labels_count_unaligned_and_in_full_from_step_0():
    result, model = adapt(published(), progress=0.0)
    assert result.counted.tolist() == [1.0] * 12
    assert torch.equal(result.pseudo_labels, own_answers(model)[0])
    parts = result.parts
    want = 2 * parts["classification"] + parts["alignment"] + 0.1 * parts["balance"] + 1.0 * parts["pseudo"]
    torch.testing.assert_close(result.loss, want)

    ramped, _ = adapt(but(PSEUDO + "ramp_up"), progress=0.0)
    difference = result.loss - ramped.loss
    torch.testing.assert_close(difference, (1 - math.exp(-5)) * parts["pseudo"], rtol=1e-4, atol=1e-5)
    quick = (f"{PSEUDO}momentum=0.0",)  # running means of this batch alone
    chosen, _ = adapt(but(PSEUDO + "threshold", more=quick))
    assert 0 < chosen.counted.sum() < 12
    sure, unsure = (torch.tensor([[greatest] + [(1 - greatest) / 5] * 5]) for greatest in (0.99, 0.3))
    for config, counts in ((published(), 1.0), (but(PSEUDO + "threshold"), 0.0)):
        labeller = PseudoLabels(config.training.pseudo_labels, torch.full((6,), 1 / 6))
        for _ in range(300):
            labeller(sure)
        assert labeller(unsure)[1].tolist() == [counts]
    aligned, _ = adapt(but(PSEUDO + "prior", more=quick))
    assert (aligned.pseudo_labels == 5).sum() > (result.pseudo_labels == 5).sum()


# --- optimiser and schedule -------------------------------------------------------------------------------------------


def rates(config: Config, per_epoch: int = 500) -> list[float]:
    """The first group's learning rate at every step of a run."""
    optimizer, found = make_optimizer(build_model(config), nn.Identity(), config.training), []
    total = config.training.epochs * per_epoch
    for step in range(total):
        set_learning_rate(optimizer, config.training, step, total, per_epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@holds({"training.schedule": "poly", "training.schedule_unit": "epoch", "training.warmup_steps": 0})
def test_the_schedule_hardly_moves():
    found = rates(published())
    assert found[0] == 1e-5 and len(set(found)) == 10 and found == sorted(found, reverse=True)
    want = [1e-5 * (1 - epoch / 5000) ** 0.9 for epoch in range(10)]
    assert found[::500] == pytest.approx(want, rel=1e-9) and found[-1] > 0.998e-5
    by_step = rates(but("training.schedule_unit"))
    assert len(set(by_step)) == 5000 and by_step[-1] < 1e-8
    assert by_step[2500] == pytest.approx(1e-5 * 0.5**0.9)
    papers = rates(but("training.schedule_unit", "training.schedule"))
    assert papers[1250] == pytest.approx(0.5e-5 * (1 + math.cos(math.pi / 4)))  # a cosine
    warm = rates(but("training.warmup_steps", "training.schedule_unit"))
    assert warm[0] == pytest.approx(1e-7) and warm[100] == pytest.approx(1e-5)


def test_the_schedule_hardly_moves_in_a_real_run(tmp_path):
    trainer(published("training.epochs=4", "training.batch_size=8"), tmp_path, count=80).run()
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    found = [(row["step"], row["lr"]) for row in rows if "lr" in row]
    assert found == [(step, pytest.approx(1e-5 * (1 - epoch / 40) ** 0.9)) for step, epoch in
                     ((10, 0), (20, 1), (30, 2), (40, 3))]  # fmt: skip


def group_rates(config: Config) -> tuple[set[float], set[float]]:
    """Learning rates of the U-Net's parameters and of all others, in the middle of a run."""
    model = build_model(config)
    optimizer = make_optimizer(model, nn.Identity(), config.training)
    set_learning_rate(optimizer, config.training, 50, 100, 10)
    of_parameter = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    backbone, others = set(), set()
    for name, p in model.named_parameters():
        if p.requires_grad:
            (backbone if name.startswith("features.") else others).add(of_parameter[id(p)])
    return backbone, others


@holds({"training.backbone_lr_scale": 1.0})
def test_no_part_has_a_learning_rate_of_its_own():
    backbone, others = group_rates(published())
    assert backbone == others and len(others) == 1
    backbone, others = group_rates(published("training.backbone_lr_scale=0.01"))  # what was meant, were it listened to
    assert [100 * rate for rate in backbone] == pytest.approx(list(others))


@holds({"training.learning_rate": 1e-5, "training.weight_decay": 1e-2, "training.batch_size": 16,
        "training.epochs": 10})  # fmt: skip
def test_adamw_with_decay_on_all_but_norms_and_biases_in_batches_of_16_over_10_epochs(tmp_path):
    run = trainer(published(), tmp_path, count=48, target=48)
    optimizer, names = run.optimizer, {id(p): name for name, p in run.model.named_parameters()}
    assert type(optimizer) is torch.optim.AdamW
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = {f"{name}.{kind}" for name, module in run.model.named_modules()
             if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) for kind in ("weight", "bias")}  # fmt: skip
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert len(norms & trained) > 40 and all(decays[name] == 0 for name in norms & trained)
    assert decays["pyramid.lateral.0.weight"] == 1e-2 and decays["features.unet.conv_in.weight"] == 1e-2
    assert decays.keys() == trained and set(decays.values()) == {0.0, 1e-2}
    assert run.per_epoch == 3 and run.total_steps == 30
    source, target = next(run.batches())
    assert len(source.images) == len(target.images) == 16
    before = parameters(run.model)
    run.train_step(source, target)
    # Adam's first step is the learning rate, whatever the gradient; decay takes 1e-7 of the weight on top.
    for name in ("pyramid.lateral.0.weight", "alignment.mapping.weight", "features.unet.conv_in.weight"):
        step = (run.model.get_parameter(name) - before[name]).abs()
        assert step.median().item() == pytest.approx(1e-5, rel=0.02)


@holds({"training.gradient_clip": 0.0})
def test_gradients_are_not_clipped(tmp_path):
    steep = "training.classification_weight=100"
    for config, clipped in ((published(steep), False), (but("training.gradient_clip", more=(steep,)), True)):
        run = trainer(config, tmp_path)
        run.train_step(next(run.batches())[0])
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert (norm < 1.001) if clipped else (norm > 10)


@holds({"training.ema_decay": 0.0})
def test_there_is_no_average_of_the_weights(tmp_path):
    run = trainer(published(), tmp_path)
    assert run.average is None and run.validated_model is run.model
    papers = trainer(but("training.ema_decay"), tmp_path)
    assert papers.average is not None and papers.validated_model is papers.average


@holds({"training.mixed_precision": "no"})
def test_arithmetic_is_float32(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    gpu = torch.device("cuda")
    assert autocast_dtype(published().training.mixed_precision, gpu) is None
    assert autocast_dtype(but("training.mixed_precision").training.mixed_precision, gpu) is torch.bfloat16
    for config, dtype in ((published(), torch.float32), (published("training.mixed_precision=bf16"), torch.bfloat16)):
        run, seen = trainer(config, tmp_path), []
        run.model.moe.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output.logits.dtype))
        run.model.pyramid.lateral[0].register_forward_hook(lambda _m, _a, output, seen=seen: seen.append(output.dtype))
        run.train_step(next(run.batches())[0])
        assert seen[0] == dtype and run.engine.accelerator.scaler is None


# --- pictures ---------------------------------------------------------------------------------------------------------


def first_labels(config: Config, out: Path, batches: int = 4) -> tuple[list[int], list[int]]:
    """Labels of source and target as they come to training."""
    found: tuple[list[int], list[int]] = ([], [])
    stream = trainer(config, out, count=48, target=60).batches()
    for _ in range(batches):
        for labels, item in zip(found, next(stream), strict=True):
            labels.extend(item.labels.tolist())
    return found


@holds({"training.shuffle": False})
def test_loaders_are_not_shuffled(tmp_path):
    source, target = first_labels(published(), tmp_path)
    # The data's own order, over and over; of the target the last 12 of 60 fill no batch and are never seen.
    assert source == [*Colours(48).labels.tolist(), *[0] * 8, *[1] * 8]
    assert target == [*Colours(60).labels.tolist()[:48], *[0] * 10, *[1] * 6]
    assert set(source[:16]) == {0, 1}  # a batch knows two of the six classes
    source, target = first_labels(but("training.shuffle"), tmp_path)
    assert sorted(source[:48]) == Colours(48).labels.tolist() != source[:48] and len(set(source[:16])) > 3
    assert target[:48] != Colours(60).labels.tolist()[:48]


@holds({"training.augmentation": "randaugment", "training.strong_augmentation": "randaugment"})
def test_pictures_are_cropped_flipped_and_randaugmented_with_magnitude_9(monkeypatch):
    made: list[str] = []
    make = loader_module.make_augmentation
    monkeypatch.setattr(loader_module, "make_augmentation", lambda name, size: (made.append(name), make(name, size))[1])
    data = {"source": "synthetic:photos?n=48&size=32", "target": "synthetic:stickers?n=48&size=32"}
    pictures, _ = open_pictures(published(**data))
    assert made == ["randaugment", "none", "randaugment"]  # source, validation, target; no second view
    item = pictures.target[(0, 0)]
    assert item.strong is None and not torch.equal(item.images, pictures.target[(1, 0)].images)
    assert torch.equal(pictures.validation[(0, 0)].images, pictures.validation[(1, 0)].images)
    crop, mirror, randaugment = make("randaugment", 32).transforms
    assert isinstance(crop, v2.RandomResizedCrop) and isinstance(mirror, v2.RandomHorizontalFlip)
    assert isinstance(randaugment, v2.RandAugment) and randaugment.magnitude == 9
    assert len(make_augmentation(Config().training.augmentation, 32).transforms) > 3

    made.clear()
    with_views = published("training.pseudo_labels.views=weak-strong", **data)
    pictures, _ = open_pictures(with_views)
    assert made == ["randaugment", "none", "randaugment", "randaugment"]  # what the strong view would be
    assert pictures.target[(0, 0)].strong is not None


def validated(config: Config, out: Path, monkeypatch: pytest.MonkeyPatch, times: int = 3) -> list[list[int]]:
    """Which of 1,200 pictures each validation looks at; all that could fix the choice is fixed."""
    seen: list[list[int]] = []

    def answer(_model: Kadap, data: TensorDataset, *_args: Any, **_options: Any) -> np.ndarray:
        seen.append(getattr(data, "indices", list(range(len(data)))))
        return np.zeros((len(data), 6))

    monkeypatch.setattr(validation_module, "predict_logits", answer)
    run = trainer(config, out, validation=1200)
    for _ in range(times):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        run.validate()
    return seen


@holds({"training.validation_sample": 1000})
def test_validation_looks_at_an_unseeded_sample_of_1000(tmp_path, monkeypatch):
    seen = validated(published(), tmp_path, monkeypatch)
    assert [len(indices) for indices in seen] == [1000] * 3
    assert all(len(set(indices)) == 1000 and max(indices) < 1200 for indices in seen)
    assert seen[0] != seen[1] != seen[2] != seen[0]
    whole = validated(but("training.validation_sample"), tmp_path, monkeypatch)
    assert whole == [list(range(1200))] * 3


def test_a_smaller_validation_is_looked_at_whole(tmp_path, monkeypatch):
    right = lambda _model, data, *_args, **_options: np.eye(6)[data.labels]  # noqa: E731
    monkeypatch.setattr(validation_module, "predict_logits", right)
    run = trainer(published(), tmp_path, validation=30)
    run.validate()
    assert run.progress.validation["n"] == 30 and run.progress.validation["accuracy"] == 1.0


# --- altogether -------------------------------------------------------------------------------------------------------


def test_the_profile_trains_in_the_setting_da(tmp_path):
    run = trainer(published("training.max_steps=2"), tmp_path, target=48)
    progress = run.run()
    assert progress.step == 2
    row = json.loads((tmp_path / LOG).read_text().splitlines()[0])
    assert row["pseudo_share"] == 1.0 and row["loss"] == pytest.approx(
        2 * row["classification"] + row["alignment"] + 0.1 * row["balance"] + row["pseudo"], rel=1e-5
    )
