"""From a configuration to a model: what is built, what a checkpoint holds, and every way of doing it wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import kcdp.models.text_side as text_side_module
from kcdp.config import Config, load_config
from kcdp.errors import KcdpError
from kcdp.knowledge.text import SeededText
from kcdp.models.build import build_features, build_model, load_matching_state, load_trainable_state, trainable_state
from kcdp.models.diffusion_features import DiffusionFeatures
from kcdp.models.latents import LatentEncoder
from kcdp.models.lora import save_lora

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOKENS, WIDTH = 5, 24
EXPLICIT = "model.knowledge.mode=explicit"


def fails(call: Callable[[], Any]) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tiny(*overrides: str) -> Config:
    return load_config("tiny", overrides=overrides)


def bytes_batch(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --- what is built ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights():
    first, again = build_model(tiny()).state_dict(), build_model(tiny()).state_dict()
    other = build_model(tiny("training.seed=1")).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["knowledge.embedding"], other["knowledge.embedding"])


def test_building_leaves_the_global_random_generator_alone():
    before = torch.get_rng_state()
    build_model(tiny())
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_model_is_built_in_training_mode_in_float32():
    model = build_model(tiny())
    assert all(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_parts_that_are_never_run_are_left_out():
    names = {name for name, _ in build_model(tiny()).named_parameters()}
    assert not [name for name in names if "decoder" in name or "conv_out" in name or "conv_norm_out" in name
                if not name.startswith("features.encoder.encoder")]  # fmt: skip


# --- the text side ----------------------------------------------------------------------------------------------------


class Asked(SeededText):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(32, tokens=24, seed=5)
        self.calls = 0

    def encode(self, texts):
        self.calls += 1
        return super().encode(texts)


def test_a_text_encoder_that_is_open_already_is_used(monkeypatch):
    monkeypatch.setattr(text_side_module, "open_text", lambda _model: pytest.fail("another one was opened"))
    text = Asked()
    model = build_model(tiny("model.knowledge.text=a face"), text)
    assert text.calls == 2  # the sentence, the prompts
    assert torch.equal(model.knowledge.embedding, text.encode(["a face"])[:, :4])


def test_a_checkpoint_tells_what_the_text_encoder_would(monkeypatch):
    """Evaluation and export need no text encoder: 500 MB of CLIP stay on the machine that trained."""
    for overrides in (("model.knowledge.text=a face",), (EXPLICIT,), ("model.alignment.kind=cesa",)):
        config = tiny(*overrides)
        model = build_model(config, Asked())
        with monkeypatch.context() as patch:
            patch.setattr(text_side_module, "open_text", lambda _model: pytest.fail("the text encoder was opened"))
            again = build_model(config, state=trainable_state(model))
            load_trainable_state(again, trainable_state(model), "here")
            assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
            with pytest.raises(pytest.fail.Exception, match="was opened"):
                build_model(config)


def test_models_without_prompts_and_sentences_open_no_text_encoder(monkeypatch):
    monkeypatch.setattr(text_side_module, "open_text", lambda _model: pytest.fail("the text encoder was opened"))
    for mode in ("constant", "implicit", "explicit"):
        build_model(tiny(f"model.knowledge.mode={mode}", "model.alignment.kind=none"))


# --- what a checkpoint holds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), ("model.train_backbone=false",), ("model.train_encoder=false",)])
def test_what_is_made_from_scratch_is_stored_whole(overrides):
    """Frozen or not: it is nowhere else."""
    model = build_model(tiny(*overrides))
    stored = trainable_state(model)
    assert model.external == frozenset() and set(stored) == set(model.state_dict())
    assert len([name for name in stored if name.startswith("features.")]) > 50


def test_trained_parameters_round_trip():
    first, second = build_model(tiny()), build_model(tiny("training.seed=1"))
    images = bytes_batch()
    with torch.no_grad():
        want = first(images).logits
        assert not torch.equal(second(images).logits, want)
        load_trainable_state(second, trainable_state(first), "here")
        assert torch.equal(second(images).logits, want)


def test_trained_parameters_of_another_model_are_refused():
    model = build_model(tiny())
    state = trainable_state(model)
    advice = "; use the checkpoint with the configuration it was trained with"

    def load(change: dict[str, torch.Tensor], drop: str = "") -> str:
        changed = {name: value for name, value in {**state, **change}.items() if name != drop}
        return fails(lambda: load_trainable_state(model, changed, "run/best.safetensors"))

    assert load({}, drop="knowledge.embedding") == (
        f"run/best.safetensors: knowledge.embedding is missing; expected (1, 4, 32){advice}"
    )
    assert load({"knowledge.embedding": torch.zeros(1, 5, 32)}) == (
        f"run/best.safetensors: knowledge.embedding is (1, 5, 32); expected (1, 4, 32){advice}"
    )
    assert load({"more": torch.zeros(2)}) == f"run/best.safetensors: more is (2,); expected no such tensor{advice}"
    assert torch.equal(trainable_state(model)["knowledge.embedding"], state["knowledge.embedding"])


def test_starting_from_another_run_takes_what_both_have():
    explicit, implicit = (build_model(tiny(f"model.knowledge.mode={mode}", f"training.seed={seed}"))
                          for mode, seed in (("explicit", 0), ("implicit", 1)))  # fmt: skip
    before = {name: value.clone() for name, value in implicit.state_dict().items()}
    fresh = load_matching_state(implicit, trainable_state(explicit), "run")
    after, source = implicit.state_dict(), explicit.state_dict()
    assert fresh == sorted(name for name in after if name.startswith("knowledge.")) and len(fresh) > 10
    assert all(torch.equal(after[name], before[name]) for name in fresh)
    assert all(torch.equal(after[name], source[name]) for name in after if name not in fresh)
    # The other way round nothing is fresh, and what the model has no place for is left.
    assert load_matching_state(explicit, before, "run") == []


def test_starting_from_a_run_that_does_not_fit():
    model = build_model(tiny())
    state = trainable_state(model)
    before = {name: value.clone() for name, value in state.items()}
    wide = trainable_state(build_model(tiny("model.head.hidden=48")))
    assert fails(lambda: load_matching_state(model, wide, "runs/a/best.safetensors")) == (
        "runs/a/best.safetensors: moe.answer_weight is (4, 48, 6); expected (4, 32, 6); start from a run with the same "
        "model settings"
    )
    assert fails(lambda: load_matching_state(model, {"other": torch.zeros(2)}, "x")) == (
        "x has no tensor of this model; expected a run with the same model settings"
    )
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(model).items())


# --- configurations that cannot be built ------------------------------------------------------------------------------


def test_a_preset_without_a_backbone_asks_for_one():
    assert fails(lambda: build_model(load_config("sd15"))) == (
        "preset 'sd15' needs weights and model.backbone is empty; expected a folder in diffusers layout (unet, vae); "
        "add --set model.backbone=FOLDER"
    )


@pytest.mark.parametrize(("size", "advice"), [(33, 32), (8, 32), (48, 32), (100, 96)])
def test_a_size_that_is_no_multiple(size, advice):
    message = fails(lambda: build_model(tiny(f"preprocess.size={size}")))
    assert message == f"preprocess.size is {size}; expected a multiple of 32 for this model; try {advice}"
    build_model(tiny(f"preprocess.size={advice}"))


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "./nowhere", "no-such-folder", "~/no/such"])
def test_a_backbone_folder_that_is_not_there(folder):
    message = fails(lambda: build_model(tiny(f"model.backbone={folder}")))
    assert message == f"{folder} does not exist; expected a folder in diffusers layout (unet, vae); name its folder"


def test_an_encoder_that_does_not_fit_the_unet(weights):
    overrides = ("model.encoder.source=scratch", "model.encoder.kind=tiny", "model.encoder.latent_channels=5")
    message = fails(lambda: build_model(real(weights, *overrides)))
    assert message.startswith("the U-Net takes 4 latent channels; expected 5, as the autoencoder gives")


@pytest.mark.parametrize("blocks", ["[0, 1]", "[1, 2]", "[0, 0]"])
def test_an_encoder_of_kind_kl_has_equal_blocks(blocks):
    message = fails(lambda: build_model(tiny("model.encoder.kind=kl", f"model.encoder.blocks={blocks}")))
    assert (
        message
        == f"model.encoder.blocks is {blocks}; expected one number, 1 or more, repeated, for an encoder of kind kl"
    )
    layers = build_model(tiny("model.encoder.kind=kl", "model.encoder.blocks=[2, 2]", "preprocess.size=64"))
    assert len(layers.features.encoder.encoder.down_blocks[0].resnets) == 2


@pytest.mark.parametrize("channels", [4, 12, 24, 32])
def test_an_encoder_of_kind_kl_of_any_width(channels):
    model = build_model(tiny(
        "model.encoder.kind=kl", "model.encoder.blocks=[1, 1]", f"model.encoder.channels={channels}",
        "model.encoder.latent_channels=4",
    ))  # fmt: skip
    assert torch.isfinite(model(bytes_batch(2)).logits).all()


# --- weights on disk --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    torch.manual_seed(11)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 32), norm_num_groups=4, cross_attention_dim=WIDTH, attention_head_dim=2,
        layers_per_block=1,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.25,
    )  # fmt: skip
    return unet.eval(), vae.eval()


@pytest.fixture
def weights(tmp_path: Path, modules: tuple[UNet2DConditionModel, AutoencoderKL]) -> Path:
    """A folder in diffusers layout that a test may damage."""
    folder = tmp_path / "weights"
    for module, name in zip(modules, ("unet", "vae"), strict=True):
        module.save_pretrained(folder / name)
    return folder


def real(folder: Path, *overrides: str) -> Config:
    """The preset of real weights, at the size of those in ``folder``; without a text encoder and without adapters."""
    fitting = (f"model.backbone={folder}", f"model.knowledge.tokens={TOKENS}", f"model.knowledge.width={WIDTH}",
               "model.knowledge.mode=constant", "model.alignment.kind=none", "model.lora.rank=0",
               "preprocess.size=32")  # fmt: skip
    return load_config("sd15", overrides=(*fitting, *overrides))


def edit_config(folder: Path, part: str, **changes: Any) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("scale", [True, False])
def test_features_from_a_folder_equal_those_of_the_modules_themselves(weights, modules, scale):
    config = real(weights, f"model.scale_latents={str(scale).lower()}", "model.timestep=7")
    loaded = build_features(config.model).eval()
    unet, vae = modules
    in_memory = DiffusionFeatures(unet, LatentEncoder(vae, scale=scale), tokens=TOKENS, timestep=7)
    images, knowledge = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(1, TOKENS, WIDTH)
    with torch.no_grad():
        got, want = loaded(images, knowledge), in_memory(images, knowledge)
    assert list(got) == list(want) == ["s2", "s4", "s8", "s16"]
    for name in want:
        assert torch.equal(got[name], want[name])


def test_a_loaded_backbone_is_frozen_whole_and_in_training_mode(weights):
    model = build_model(real(weights))
    assert not any(p.requires_grad for p in model.features.parameters())
    assert all(module.training for module in model.modules())
    assert build_model(real(weights, "model.train_backbone=true")).features.unet.conv_in.weight.requires_grad


def test_weights_that_were_loaded_and_do_not_train_are_not_stored(weights):
    """They are where they came from; of everything else there is no other copy."""
    whole = build_model(real(weights, "model.train_backbone=true"))
    assert whole.external == frozenset() and set(trainable_state(whole)) == set(whole.state_dict())
    for overrides, left_out in (
        ((), ("features.",)),
        (("model.train_backbone=true", "model.train_encoder=false"), ("features.encoder.",)),
    ):
        model = build_model(real(weights, *overrides))
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert model.external == frozen == {name for name in model.state_dict() if name.startswith(left_out)}
        assert set(trainable_state(model)) == set(model.state_dict()) - frozen and len(frozen) > 20


def test_the_presets_own_form_trains_adapters_and_stores_them(weights):
    """The mode "explicit", CLIEA and LoRA of rank 8, with a text tower whose weights are drawn."""
    own = ("model.knowledge.mode=explicit", "model.alignment.kind=cliea", "model.lora.rank=8", "model.text.kind=seeded",
           "model.text.tokens=16")  # fmt: skip
    model, untouched = build_model(real(weights, *own)), build_model(real(weights))
    inside = {name: p.requires_grad for name, p in model.named_parameters() if name.startswith("features.")}
    adapters = {name for name in inside if "lora_" in name}
    backbone = set(inside) - adapters
    assert adapters and model.external == backbone and not set(trainable_state(model)) & backbone
    assert {name for name, trains in inside.items() if trains} == adapters
    base = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(base[n], v) for n, v in untouched.state_dict().items() if n.startswith("features."))

    for name, p in model.named_parameters():
        if name in adapters:
            torch.nn.init.normal_(p)
    again = build_model(real(weights, *own, "training.seed=3"))
    load_trainable_state(again, trainable_state(model), "here")
    images, knowledge = bytes_batch(2), torch.randn(2, 32, WIDTH)
    with torch.no_grad():
        assert torch.equal(model.eval()(images, knowledge).logits, again.eval()(images, knowledge).logits)


def test_adapters_start_from_a_folder_unless_a_checkpoint_has_them(weights, tmp_path):
    own = ("model.lora.rank=4", "model.lora.alpha=4")
    trained = build_model(real(weights, *own))
    for name, p in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    save_lora(trained.features.unet, tmp_path / "lora")
    told = real(weights, *own, f"model.lora.weights={tmp_path / 'lora'}")
    started = build_model(told).state_dict()
    adapters = {name: value for name, value in trained.state_dict().items() if "lora_" in name}
    assert all(torch.equal(started[name], value) for name, value in adapters.items()) and adapters
    shutil.rmtree(tmp_path / "lora")  # a run holds its adapters itself
    build_model(told, state=trainable_state(trained))
    assert "is not a folder" in fails(lambda: build_model(told))


def test_weights_of_16_bits_are_read_as_float32(weights):
    path = weights / "unet" / WEIGHTS
    save_file({name: value.half() for name, value in load_file(path).items()}, path, {"format": "pt"})
    model = build_model(real(weights))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_attention_names_of_older_weights_are_understood(weights):
    """Stable Diffusion 1.5's autoencoder was stored before diffusers renamed its attention layers."""
    path = weights / "vae" / WEIGHTS
    new = build_model(real(weights)).state_dict()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, value in load_file(path).items():
        found = next((name for name in names if f".{name}." in key), None)
        old[key.replace(found, names[found]) if found else key] = value
    assert any(".proj_attn." in key for key in old)
    save_file(old, path, {"format": "pt"})
    again = build_model(real(weights)).state_dict()
    assert all(torch.equal(new[name], again[name]) for name in new)


def test_the_encoder_may_come_from_another_folder(weights, tmp_path):
    torch.manual_seed(3)
    tiny_encoder = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), decoder_block_out_channels=(8, 8),
        num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    tiny_encoder.save_pretrained(tmp_path / "taesd")
    model = build_model(real(weights, "model.encoder.kind=tiny", f"model.encoder.source={tmp_path / 'taesd'}"))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        got = model.features.encoder(images)
        assert torch.equal(got, tiny_encoder.encode(images).latents * tiny_encoder.config.scaling_factor)


def test_a_knowledge_width_that_does_not_fit(weights):
    assert fails(lambda: build_model(real(weights, "model.knowledge.width=25"))) == (
        f"model.knowledge.width is 25; expected 24, the cross-attention width of {weights}; "
        "add --set model.knowledge.width=24"
    )


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_folder_without_one_of_its_parts(weights, part):
    shutil.rmtree(weights / part)
    kind = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}[part]
    assert fails(lambda: build_model(real(weights))) == (
        f"{weights / part} has no config.json; expected a {kind} in diffusers layout; name its folder"
    )


@pytest.mark.parametrize("text", ["{", "", "not json"])
def test_a_config_that_is_not_json(weights, text):
    (weights / "unet" / "config.json").write_text(text)
    message = fails(lambda: build_model(real(weights)))
    assert message.startswith(f"{weights / 'unet' / 'config.json'} is not valid JSON (")


def test_a_config_of_something_else(weights):
    path = weights / "unet" / "config.json"
    path.write_text("[]")
    assert fails(lambda: build_model(real(weights))) == (
        f"{path} describes a list; expected UNet2DConditionModel; name another folder"
    )


def test_an_encoder_of_the_other_kind(weights):
    assert fails(lambda: build_model(real(weights, "model.encoder.kind=tiny"))) == (
        f"{weights / 'vae' / 'config.json'} describes AutoencoderKL; expected AutoencoderTiny; name another folder or "
        "set model.encoder.kind"
    )


@pytest.mark.parametrize(
    "changes",
    [{"block_out_channels": "wide"}, {"norm_num_groups": 5}, {"block_out_channels": [8, 16, 24, 64]},
     {"down_block_types": ["NoSuchBlock"] * 4}, {"cross_attention_dim": None}, {"layers_per_block": {}}],
)  # fmt: skip
def test_a_config_that_does_not_fit_its_weights(weights, changes):
    edit_config(weights, "unet", **changes)
    message = fails(lambda: build_model(real(weights)))
    assert message.startswith(f"{weights / 'unet'} cannot be loaded (")
    assert "expected a UNet2DConditionModel in diffusers layout; name a local folder" in message


@pytest.mark.parametrize("keep", [0, 4, 5000, -1])
def test_weights_that_are_cut_off(weights, keep):
    path = weights / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    message = fails(lambda: build_model(real(weights)))
    assert message.startswith(f"{weights / 'unet'} cannot be loaded (")


def test_weights_that_are_missing(weights):
    (weights / "unet" / WEIGHTS).unlink()
    assert fails(lambda: build_model(real(weights))).startswith(f"{weights / 'unet'} cannot be loaded (")


def test_weights_that_lack_a_tensor_or_hold_it_in_another_shape(weights):
    path, name = weights / "unet" / WEIGHTS, "mid_block.resnets.0.conv1.weight"
    whole = load_file(path)
    save_file({key: value for key, value in whole.items() if key != name}, path, {"format": "pt"})
    assert fails(lambda: build_model(real(weights))).startswith(
        f"{weights / 'unet'} cannot be loaded (its weights lack {name})"
    )
    save_file({**whole, name: torch.zeros(3, 3)}, path, {"format": "pt"})
    assert name in fails(lambda: build_model(real(weights)))
    save_file(whole, path, {"format": "pt"})
    build_model(real(weights))


def test_a_unet_of_another_family_is_refused(weights):
    edit_config(weights, "unet", encoder_hid_dim=8)
    message = fails(lambda: build_model(real(weights)))
    assert str(weights / "unet") in message or "encoder_hid_dim" in message


def test_replacing_the_head_of_a_configuration_changes_the_head_alone():
    config = tiny()
    wide = replace(config, model=replace(config.model, head=replace(config.model.head, hidden=48)))
    a, b = build_model(config), build_model(wide)
    assert {n: tuple(p.shape) for n, p in a.features.named_parameters()} == {
        n: tuple(p.shape) for n, p in b.features.named_parameters()
    }
    assert b.moe.answer_weight.shape[1] == 48 != a.moe.answer_weight.shape[1]
