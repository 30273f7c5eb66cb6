"""CLIP and the pyramid transformer as networks, and a run of every profile of a baseline through the real trainer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import BASE, SOURCE, TARGET, command, fails, train_arguments, trainer_of, write_captions

import kcdp.models.clip_network as clip_network_module
from kcdp.config import Config, load_config
from kcdp.data.registry import open_dataset
from kcdp.export.exporter import export_run
from kcdp.labels import LABELS
from kcdp.models.build import NETWORKS, build_model, load_trainable_state, trainable_state
from kcdp.models.clip_network import NOUNS, ClipNetwork
from kcdp.models.image_tower import CLIP_MEAN, CLIP_STD, load_image_tower
from kcdp.models.pyramid_transformer import PyramidTransformer, open_tower
from kcdp.preprocess import PreprocessSpec
from kcdp.training.checkpoint import BEST, LAST, load_checkpoint, load_model
from kcdp.training.pictures import open_pictures
from kcdp.training.predict import predict
from kcdp.training.trainer import Trainer

TEXT_CFG = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
DESCRIPTION = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT_CFG}
NAME = "kcdp-baseline-quickgelu"
TEMPLATE = "a picture of a face expressing {}"
PVT = ("model.backbone=pvt_v2_b0", "preprocess.size=32")


def small_clip(**vision: object) -> torch.nn.Module:
    """A whole CLIP model with random weights, its norms and biases not those of a fresh model."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        24, open_clip.CLIPVisionCfg(**(VISION | vision)), open_clip.CLIPTextCfg(**TEXT_CFG), quick_gelu=True
    )
    for name, parameter in model.named_parameters():
        if name != "logit_scale":
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def write_folder(folder: Path, model: torch.nn.Module, **more: object) -> Path:
    """open_clip's layout: weights and the description beside them."""
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    described = {"model_cfg": DESCRIPTION, **more}
    (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    return small_clip()


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clip") / "weights", clip)


@pytest.fixture(scope="module")
def named_model(tmp_path_factory) -> str:
    """The small model's description, known to open_clip by name."""
    path = tmp_path_factory.mktemp("configs") / f"{NAME}.json"
    path.write_text(json.dumps(DESCRIPTION), encoding="utf-8")
    open_clip.add_model_config(path)
    return NAME


def zero_shot(folder: Path, *overrides: str) -> Config:
    return load_config("tiny", profile="clip-zero-shot", overrides=(
        *BASE, f"model.text.weights={folder}", "preprocess.size=32", *overrides))  # fmt: skip


def pvt(*overrides: str) -> Config:
    return load_config("tiny", profile="pvt", overrides=(*BASE, *PVT, *overrides))


def pictures(count: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def with_gradient(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


# --- CLIP -------------------------------------------------------------------------------------------------------------


def their_logits(clip: torch.nn.Module, images: torch.Tensor, mean=CLIP_MEAN, std=CLIP_STD) -> torch.Tensor:
    """open_clip's own: pictures and texts to 100 x cosine, or whatever the weights' scale is."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    scaled = (scaled - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    texts = open_clip.tokenize([TEMPLATE.replace("{}", noun) for noun in NOUNS])
    with torch.no_grad():
        return clip.get_logits(scaled, texts)[0]


def test_zero_shot_logits_are_open_clips(clip, folder):
    model, images = build_model(zero_shot(folder)).eval(), pictures(5)
    output = model(images)
    theirs = their_logits(clip, images)
    assert theirs.std() > 0.1 and torch.allclose(output.logits, theirs, rtol=1e-4, atol=1e-4)
    assert output.v.shape == (5, model.visual) == (5, 24)
    assert torch.allclose(output.v.norm(dim=1), torch.ones(5), atol=1e-6)
    assert output.moe.gates.shape == (5, 1) and output.knowledge is None and output.levels == {}
    assert model.scale.item() == pytest.approx(clip.logit_scale.exp().item())


def test_nouns_are_in_the_order_of_the_labels():
    assert [noun[:3] for noun in NOUNS] == [label[:3] for label in LABELS]


def test_the_profile_names_the_template(folder):
    other = build_model(zero_shot(folder, "model.alignment.template=a sticker of {}"))
    assert zero_shot(folder).model.alignment.template == TEMPLATE
    assert not torch.allclose(other.classes, build_model(zero_shot(folder)).classes)


def test_mean_and_deviation_are_those_of_the_weights(clip, tmp_path):
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.5]}
    model = build_model(zero_shot(write_folder(tmp_path / "a", clip, preprocess_cfg=half))).eval()
    images = pictures()
    assert torch.allclose(model(images).logits, their_logits(clip, images, half["mean"], half["std"]), atol=1e-4)
    assert not torch.allclose(model(images).logits, their_logits(clip, images), atol=1e-2)


def test_one_file_and_a_models_name(clip, folder, named_model, tmp_path):
    file = tmp_path / "clip.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in clip.state_dict().items()}}, file)
    model = build_model(zero_shot(file, f"model.text.model={named_model}")).eval()
    assert torch.equal(model(pictures()).logits, build_model(zero_shot(folder)).eval()(pictures()).logits)


def test_a_pretrained_tag_tells_mean_and_deviation(clip, named_model, tmp_path, monkeypatch):
    path = tmp_path / "clip.safetensors"
    save_file(clip.state_dict(), path)
    tag = {"quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["mine"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, name: tag)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: str(path))
    tower = load_image_tower(named_model, "mine")
    assert tower.mean == tower.deviation == (0.5, 0.5, 0.5)


def test_a_tower_with_statistics_keeps_them(tmp_path, named_model):
    """A ResNet: its batch normalisation would move in training mode."""
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 16}
    model = small_clip(**resnet)
    described = DESCRIPTION | {"vision_cfg": VISION | resnet}
    folder = write_folder(tmp_path / "rn", model, model_cfg=described)
    network = build_model(zero_shot(folder, "model.train_head=true"))
    assert network.training and not network.tower.training
    before = {name: value.clone() for name, value in network.tower.state_dict().items()}
    output = network(pictures())
    assert all(torch.equal(before[name], value) for name, value in network.tower.state_dict().items())
    assert torch.allclose(output.logits, their_logits(model, pictures()), rtol=1e-3, atol=1e-3)
    assert set(trainable_state(network)) == {"classes", "bias", "scale"}
    whole = build_model(zero_shot(folder, "model.train_backbone=true"))
    assert whole.tower.training and whole.external == frozenset()


def test_what_trains_in_each_of_its_forms(folder):
    for overrides, trained in (((), set()), (("model.train_head=true",), {"classes", "bias"})):
        model = build_model(zero_shot(folder, *overrides))
        assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
        assert set(trainable_state(model)) == {"classes", "bias", "scale"}  # the tower is where it came from
        assert all(name.startswith("tower.") == (name in model.external) for name in model.state_dict())
        assert bool(model.parameter_groups(0.01, 1.0)) == bool(trained)
    torch.nn.functional.cross_entropy(model(pictures()).logits, torch.tensor([0, 1, 2])).backward()
    assert with_gradient(model) == {"classes", "bias"}
    whole = build_model(zero_shot(folder, "model.train_backbone=true", "model.train_head=true"))
    whole(pictures()).logits.square().sum().backward()
    assert with_gradient(whole) >= {"classes", "bias", "tower.conv1.weight", "tower.proj"}
    assert whole.is_backbone("tower.proj") and not whole.is_backbone("classes")


def test_a_checkpoint_needs_no_text_tower(folder, monkeypatch):
    config = zero_shot(folder)
    model = build_model(config)
    stored = trainable_state(model)
    stored["classes"] = stored["classes"] + 1
    monkeypatch.setattr(clip_network_module, "OpenClipText", lambda *_: pytest.fail("the text tower was opened"))
    again = build_model(config, state=stored)
    load_trainable_state(again, stored, "here")
    assert torch.equal(again.classes, model.classes + 1)
    with pytest.raises(pytest.fail.Exception, match="was opened"):
        build_model(config)


def test_logits_are_float32_in_mixed_precision(folder):
    model = build_model(zero_shot(folder)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pictures())
    assert output.logits.dtype == output.v.dtype == torch.float32


def test_a_picture_size_that_is_not_the_towers(folder):
    assert fails(lambda: build_model(zero_shot(folder, "preprocess.size=64"))) == (
        f"preprocess.size is 64; expected 32, the picture size of {folder}; add --set preprocess.size=32"
    )


def test_weights_that_are_not_clips(clip, folder, named_model, tmp_path):
    def load(weights: Path | str, model: str = named_model) -> str:
        return fails(lambda: load_image_tower(model, str(weights)))

    (tmp_path / "empty").mkdir()
    assert load(tmp_path / "empty") == (
        f"{tmp_path / 'empty'} has no open_clip_config.json; expected a CLIP model in open_clip's layout; "
        "name such a folder"
    )
    assert load("clip.pt").startswith("clip.pt does not exist; expected a file or folder of CLIP weights")
    state = clip.state_dict()
    for gone, what in (("visual.", "image tower"), ("text_projection", "text_projection"),
                       ("logit_scale", "logit_scale")):  # fmt: skip
        file = tmp_path / f"without {gone}.safetensors"
        save_file({name: value for name, value in state.items() if not name.startswith(gone)}, file)
        assert load(file) == f"{file} holds no CLIP {what}; expected weights of open_clip or OpenAI's CLIP"
    file = tmp_path / "clip.safetensors"
    save_file(state | {"visual.proj": torch.zeros(32, 25)}, file)
    fix = f"name the model that the weights are of, if it is not {named_model}"
    assert load(file) == f"{file}: visual.proj is (32, 25); expected (32, 24); {fix}"
    save_file(state | {"text_projection": torch.zeros(32, 25)}, file)
    assert load(file) == f"{file}: text_projection is (32, 25); expected (32, 24); {fix}"
    save_file(state | {"visual.proj": torch.full((32, 24), torch.nan)}, file)
    assert load(file).startswith(f"{file}: visual.proj holds NaN or infinity")
    save_file({name: value for name, value in state.items() if name != "visual.proj"}, file)
    assert load(file) == f"{file}: visual.proj is missing; expected (32, 24); {fix}"
    file.write_bytes(b"not weights")
    assert load(file).startswith(f"{file} cannot be read (")
    save_file(state, file)
    assert load(file, "ViT-X-14").startswith("the model 'ViT-X-14' is unknown to open_clip (did you mean 'ViT-")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision_cfg": VISION | {"timm_model_name": "resnet18"}},
         "its image tower is 'resnet18'; expected CLIP's own image tower, such as that of ViT-L-14-quickgelu"),
        ({"custom_text": True}, "its image tower is 'one of several parts'; expected CLIP's own image tower, such as "
         "that of ViT-L-14-quickgelu"),
        ({"vision_cfg": VISION | {"image_size": [32, 48]}}, "its pictures are 32 x 48; expected square pictures"),
        ({"vision_cfg": {"depth": 3}}, None),
        ({"embed_dim": None}, None),
    ],
)  # fmt: skip
def test_descriptions_that_are_not_understood(clip, changes, reason, tmp_path):
    folder = write_folder(tmp_path / "a", clip, model_cfg=DESCRIPTION | changes)
    message = fails(lambda: load_image_tower("x", str(folder)))
    where = folder / "open_clip_config.json"
    if reason is None:
        assert message.startswith(f"{where} is not understood (") and message.endswith("; expected a CLIP model")
    else:
        assert message == f"{where}: {reason}"


# --- the pyramid transformer ------------------------------------------------------------------------------------------


def test_shapes_of_the_pyramid():
    model = build_model(pvt("preprocess.size=64")).eval()
    assert isinstance(model, PyramidTransformer) and model.visual == 4 * 16  # tiny's pyramid_channels
    output = model(pictures(3, 64))
    assert output.logits.shape == (3, 6) and output.v.shape == (3, 64) and output.knowledge.shape == (1, 4, 32)
    assert output.moe.gates.tolist() == [[1.0]] * 3


def test_v_is_the_guided_stages_pooled():
    """By hand from timm's stages: project, ask the knowledge, add, normalise, average; all four side by side."""
    model, images = build_model(pvt()).eval(), pictures()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    x, parts = model.tower.patch_embed(scaled).permute(0, 3, 1, 2).contiguous(), []
    tokens = model.knowledge.embedding.expand(3, -1, -1)
    x = model.tower.patch_embed(scaled)
    for stage, guide in zip(model.tower.stages, model.guides, strict=True):
        x = stage(x)
        positions = guide.project(x.flatten(2).transpose(1, 2))
        told = guide.attention(guide.norm(positions), tokens, tokens)[0]
        parts.append(guide.final(positions + told).mean(1))
    output = model(images)
    assert torch.allclose(output.v, torch.cat(parts, 1), atol=1e-5)
    assert torch.allclose(output.logits, model.classifier(output.v), atol=1e-6)


def test_all_of_it_trains_and_the_tower_is_the_backbone():
    model = build_model(pvt())
    torch.nn.functional.cross_entropy(model(pictures(6)).logits, torch.arange(6)).backward()
    # A key's bias shifts all scores of a query alike: what gradient there is is rounding.
    names = {name for name, _ in model.named_parameters()}
    assert with_gradient(model) >= {name for name in names if "k.bias" not in name and "kv.bias" not in name}
    assert {"knowledge.embedding", "guides.0.project.weight", "classifier.bias"} <= names
    groups = model.parameter_groups(0.05, 0.1)
    assert {group["lr_scale"] for group in groups} == {0.1, 1.0}
    frozen = build_model(pvt("model.train_backbone=false"))
    assert not any(p.requires_grad for p in frozen.tower.parameters()) and frozen.external == frozenset()
    assert frozen.classifier.weight.requires_grad


def test_the_tower_can_save_memory():
    model = build_model(pvt("training.gradient_checkpointing=true"))
    assert all(stage.grad_checkpointing for stage in model.tower.stages)


def test_knowledge_guides_and_is_asked_for():
    model = build_model(pvt("model.knowledge.mode=explicit", "model.text.tokens=6")).eval()
    assert model.knowledge is None
    first, second = torch.randn(3, 12, 32), torch.randn(1, 12, 32)
    images = pictures()
    a, b = model(images, first), model(images, second)
    assert not torch.allclose(a.logits, b.logits) and torch.equal(a.knowledge, first)
    assert torch.allclose(model(images, second.expand(3, -1, -1)).logits, b.logits, atol=1e-6)
    assert fails(lambda: model(images)) == (
        'no knowledge given to a model of the mode "explicit"; expected knowledge tokens [3, 12, 32]; give captions, '
        "or train in another model.knowledge.mode"
    )
    for wrong in (torch.zeros(3, 11, 32), torch.zeros(2, 12, 32)):
        assert fails(lambda wrong=wrong: model(images, wrong)) == (
            f"knowledge of the shape {list(wrong.shape)}; expected [3, 12, 32]; encode the captions with this model's "
            "text settings"
        )


def test_a_fixed_sentence_guides():
    model = build_model(pvt("model.knowledge.text=a photo of a face"))
    assert "knowledge.embedding" in dict(model.named_buffers())
    again = build_model(pvt("model.knowledge.text=a photo of a face"), state=trainable_state(model))
    assert torch.equal(again.knowledge.embedding, model.knowledge.embedding)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> Path:
    """timm's layout on disk."""
    folder = tmp_path_factory.mktemp("timm") / "b0"
    folder.mkdir()
    torch.manual_seed(3)
    model = timm.create_model("pvt_v2_b0", num_classes=10)
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"num_classes": 10, "classifier": "head", "first_conv": "patch_embed.proj"}
    described = {"architecture": "pvt_v2_b0", "num_classes": 10, "num_features": 256, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def test_weights_from_a_folder_of_timms(timm_folder):
    stored = load_file(timm_folder / "model.safetensors")
    model = build_model(pvt(f"model.backbone={timm_folder}"))
    found = model.tower.state_dict()
    assert len(found) > 50 and all(torch.equal(value, stored[name]) for name, value in found.items())
    assert model.external == frozenset()
    frozen = build_model(pvt(f"model.backbone={timm_folder}", "model.train_backbone=false"))
    assert frozen.external == {f"tower.{name}" for name in found}
    # A checkpoint that holds the tower does not read those weights again.
    assert not torch.equal(open_tower(str(timm_folder), stored=True)[0].patch_embed.proj.weight,
                           stored["patch_embed.proj.weight"])  # fmt: skip


def test_a_tag_asks_timm_for_its_weights(monkeypatch):
    asked = []

    def create(name, pretrained, num_classes):
        asked.append((name, pretrained, num_classes))
        if pretrained:
            raise OSError("no network\nand more")
        return real(name, num_classes=num_classes)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    assert fails(lambda: open_tower("pvt_v2_b0.in1k")) == (
        "pvt_v2_b0.in1k cannot be loaded (no network); expected a PVT v2 in timm's layout; name a local folder, or one "
        "of timm's names where there is a network"
    )
    assert open_tower("pvt_v2_b0.in1k", stored=True)[1] is True
    assert open_tower("pvt_v2_b0")[1] is False
    assert asked == [("pvt_v2_b0.in1k", True, 0), ("pvt_v2_b0.in1k", False, 0), ("pvt_v2_b0", False, 0)]


def test_towers_that_are_not_there(tmp_path):
    assert fails(lambda: open_tower("pvt_v2_b2_l")) == (
        "model.backbone is 'pvt_v2_b2_l' (did you mean 'pvt_v2_b2_li'?) and model.network 'pvt'; expected one of "
        "pvt_v2_b0, pvt_v2_b1, pvt_v2_b2, pvt_v2_b2_li, pvt_v2_b3, pvt_v2_b4, pvt_v2_b5, or a folder in timm's layout"
    )
    assert fails(lambda: build_model(pvt("model.backbone=resnet18"))).startswith("model.backbone is 'resnet18'")
    (tmp_path / "a").mkdir()
    assert fails(lambda: open_tower(str(tmp_path / "a"))) == (
        f"{tmp_path / 'a'} has no config.json; expected a PVT v2 in timm's layout; name its folder"
    )
    (tmp_path / "a" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 3,
                                                            "pretrained_cfg": {}}))  # fmt: skip
    assert fails(lambda: open_tower(str(tmp_path / "a"), stored=True)) == (
        f"{tmp_path / 'a'} is a VisionTransformer; expected a PVT v2; name another folder"
    )
    assert fails(lambda: open_tower(str(tmp_path / "a"))).startswith(f"{tmp_path / 'a'} cannot be loaded (")


def test_sizes_that_are_no_multiple():
    assert fails(lambda: build_model(pvt("preprocess.size=48"))) == (
        "preprocess.size is 48; expected a multiple of 32 for the network 'pvt'; try 32"
    )


# --- settings that mean nothing to them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "override", "message"),
    [
        ("pvt", "model.alignment.kind=cesa",
         "model.alignment.kind is 'cesa' and model.network 'pvt'; expected 'none'"),
        ("pvt", "model.head.experts=4", "model.head.experts is 4 and model.network 'pvt'; expected 1"),
        ("pvt", "model.knowledge.mode=implicit",
         "model.knowledge.mode is 'implicit' and model.network 'pvt'; expected 'explicit' or 'constant'"),
        ("pvt", "model.input_normalization=imagenet-twice",
         "model.input_normalization is 'imagenet-twice' and model.network 'pvt'; expected 'range'"),
        ("clip-zero-shot", "model.lora.rank=8", "model.lora.rank is 8 and model.network 'clip'; expected 0"),
        ("clip-zero-shot", "model.knowledge.mode=explicit",
         "model.knowledge.mode is 'explicit' and model.network 'clip'; expected 'constant'"),
        ("clip-zero-shot", "model.text.kind=seeded",
         "model.text.kind is 'seeded' and model.network 'clip'; expected 'clip'"),
        ("clip-zero-shot", "model.backbone=ViT-B-32",
         "model.backbone is 'ViT-B-32' and model.network 'clip'; expected '' or 'scratch'"),
        ("pvt", "model.train_head=false",
         "model.train_head is false and model.network 'pvt'; expected the network 'clip'"),
        ("dann", "model.train_head=false",
         "model.train_head is false and model.network 'kadap'; expected the network 'clip'"),
    ],
)  # fmt: skip
def test_settings_of_another_network_are_refused(profile, override, message):
    assert fails(lambda: load_config("tiny", profile=profile, overrides=[override])) == f"configuration: {message}"


@pytest.mark.parametrize("preset", ["tiny", "edge", "sd15"])
@pytest.mark.parametrize("profile", ["clip-zero-shot", "clip-linear-probe", "pvt"])
def test_the_profiles_fit_every_preset(preset, profile):
    config = load_config(preset, profile=profile)
    assert config.model.network in ("clip", "pvt") and config.preprocess.size == 224
    config.check_backbone()
    assert set(NETWORKS) == {"kadap", "clip", "pvt"}


def test_latents_are_not_cached_for_them(folder):
    cached = ("training.cache_latents=true", "training.views=2")
    for config in (pvt(*cached), zero_shot(folder, *cached)):
        assert fails(lambda config=config: build_model(config)) == (
            f"training.cache_latents is true and model.network {config.model.network!r}, which makes no latents; "
            "expected false; add --set training.cache_latents=false"
        )


# --- through the trainer ----------------------------------------------------------------------------------------------

ADAPTING = ("dann", "cdan", "mcc", "fixmatch")
RUNS = ("source-only", *ADAPTING, "pvt", "clip-linear-probe")


def config_of(profile: str, folder: Path, *overrides: str) -> Config:
    more: tuple[str, ...] = ()
    if profile == "pvt":
        more = PVT
    elif profile.startswith("clip"):
        more = (f"model.text.weights={folder}", "preprocess.size=32", "training.learning_rate=0.01")
    elif profile in ADAPTING:
        more = (f"data.target={TARGET}", "training.target_batch_size=6")
    return load_config("tiny", profile=profile, overrides=(*BASE, "training.max_steps=2", *more, *overrides))


@pytest.mark.parametrize("profile", RUNS)
def test_every_profile_trains_resumes_and_answers(profile, folder, tmp_path):
    """2 steps = 1, saved and loaded, and 1, to the bit; the kept model answers as the trainer's did."""
    config = config_of(profile, folder)
    shared, _ = open_pictures(config)
    whole = Trainer(config, shared, tmp_path / "whole")
    before = {name: value.clone() for name, value in trainable_state(whole.model).items()}
    whole.run()
    Trainer(config, shared, tmp_path / "parts").run(stop_after=1)
    again = Trainer(config, shared, tmp_path / "parts", load_checkpoint(tmp_path / "parts" / LAST))
    assert again.progress.step == 1
    assert again.run().step == 2
    first, second = (load_checkpoint(tmp_path / name / LAST) for name in ("whole", "parts"))
    for here, there in ((first.model, second.model), (first.optimizer, second.optimizer), (first.parts, second.parts)):
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    moved = {name for name, value in first.model.items() if not torch.equal(value, before[name])}
    assert len(moved) > 1
    names = {name.partition("/")[2].split(".")[0] for name in first.parts if name.startswith("step/")}
    assert ("discriminator" in names) == (profile in ("dann", "cdan"))
    model, checkpoint = load_model(tmp_path / "whole")
    assert checkpoint.config == config and set(load_checkpoint(tmp_path / "whole" / BEST).parts) == set()
    found = predict(model, shared.validation, config.preprocess, device=torch.device("cpu"))
    assert found.logits.shape[1] == 6 and found.v.shape[1] == model.visual and np.isfinite(found.logits).all()


def test_zero_shot_is_validated_once_and_kept(clip, folder, tmp_path):
    config = zero_shot(folder)
    trainer = trainer_of(config, tmp_path / "run")
    assert trainer.total_steps == 0
    progress = trainer.run()
    assert progress.step == 0 and progress.validation["n"] == 4 and progress.best >= 0
    model, _ = load_model(tmp_path / "run")
    assert torch.allclose(model.eval()(pictures()).logits, their_logits(clip, pictures()), rtol=1e-4, atol=1e-4)


def test_a_linear_probe_starts_from_zero_shot_and_learns(folder, tmp_path):
    assert isinstance(build_model(config_of("clip-linear-probe", folder)), ClipNetwork)
    probe = trainer_of(config_of("clip-linear-probe", folder, "training.ema_decay=0", "training.max_steps=5",
                                 "training.pseudo_labels.teacher=student"), tmp_path / "run")  # fmt: skip
    start = build_model(zero_shot(folder))
    assert torch.equal(probe.model.classes, start.classes) and not probe.model.bias.any()
    source, _ = next(probe.batches())
    before = probe.train_step(source)["classification"]
    for _ in range(3):
        after = probe.train_step(source)["classification"]
    assert after < before and torch.equal(probe.model.tower.proj, start.tower.proj)


def test_the_pyramid_is_told_by_captions(tmp_path):
    config = load_config(
        "tiny", profile="pvt", overrides=(*BASE, *PVT, "training.max_steps=1"),
        data={"data": {"captions": write_captions(tmp_path)[:1]}},
    )  # fmt: skip
    trainer = trainer_of(config, tmp_path / "run")
    assert config.model.knowledge.mode == "explicit" and trainer.model.knowledge is None
    assert trainer.run().step == 1


def test_the_commands(folder, tmp_path, capsys):
    run = tmp_path / "run"
    sets = [part for text in PVT for part in ("--set", text)]
    status, out, _ = command(capsys, *train_arguments(run, "training.max_steps=1"), "--profile", "pvt", *sets)
    assert status == 0 and "network pvt" in out
    status, out, _ = command(capsys, "evaluate", run, "--data", TARGET, "--out", tmp_path / "report")
    assert status == 0, out
    sets = ["--set", f"model.text.weights={folder}", "--set", "preprocess.size=32"]
    status, out, _ = command(
        capsys, "train", "--preset", "tiny", "--profile", "clip-zero-shot", "--source", SOURCE, "--out",
        tmp_path / "clip", *sets,
    )  # fmt: skip
    assert status == 0 and (tmp_path / "clip" / BEST).is_file()


def test_they_are_not_exported(folder, tmp_path):
    trainer_of(zero_shot(folder), tmp_path / "run").run()
    images = open_dataset("synthetic:photos?n=2&size=32")
    assert fails(lambda: export_run(tmp_path / "run", tmp_path / "x.kcdp", images, say=lambda _: None)) == (
        f"model.network is 'clip' in {tmp_path / 'run'}; expected 'kadap', the only network that is exported; "
        "export a run of the method itself"
    )
    assert not (tmp_path / "x.kcdp").exists()


def test_preprocessing_is_the_projects_own(folder):
    """What validation and device see is one thing for all networks: padded squares, never a centre crop."""
    assert zero_shot(folder).preprocess == PreprocessSpec(size=32)
