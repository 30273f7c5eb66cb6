"""Pyramid, experts and the whole model: against plain re-statements, and every way of building them wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from kcdp.config import Config, load_config
from kcdp.errors import KcdpError
from kcdp.models.build import build_features, build_model, load_trainable_state, trainable_state
from kcdp.models.diffusion_features import DiffusionFeatures, FeatureLevel
from kcdp.models.latents import LatentEncoder
from kcdp.models.moe import MixtureOfExperts, MoEOutput, balance_loss
from kcdp.models.pyramid import FeaturePyramid, pool_levels

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOKENS, WIDTH = 5, 24


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


# --- the pyramid ------------------------------------------------------------------------------------------------------

LEVELS = tuple(FeatureLevel(f"s{8 * 2**i}", channels, 0, 8 * 2**i) for i, channels in enumerate((3, 5, 7, 4)))


def level_tensors(batch: int = 2) -> dict[str, torch.Tensor]:
    return {level.name: torch.randn(batch, level.channels, 16 // 2**i, 16 // 2**i) for i, level in enumerate(LEVELS)}


def test_pyramid_shapes_and_names():
    out = FeaturePyramid(LEVELS, channels=6)(level_tensors())
    assert [(name, tuple(t.shape)) for name, t in out.items()] == [
        ("s8", (2, 6, 16, 16)), ("s16", (2, 6, 8, 8)), ("s32", (2, 6, 4, 4)), ("s64", (2, 6, 2, 2)),
    ]  # fmt: skip
    assert tuple(pool_levels(out).shape) == (2, 24)


def test_top_down_path_against_a_plain_re_statement():
    pyramid, features = FeaturePyramid(LEVELS, channels=6), level_tensors()
    above = None
    want: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for number in (3, 2, 1, 0):  # coarse to fine
            name, lateral, output = LEVELS[number].name, pyramid.lateral[number], pyramid.output[number]
            here = torch.einsum("oc,nchw->nohw", lateral.weight[:, :, 0, 0], features[name])
            here = here + lateral.bias[None, :, None, None]
            if above is not None:
                here = here + above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            above = here
            want[name] = F.conv2d(F.pad(here, (1, 1, 1, 1)), output.weight, output.bias)
        got = pyramid(features)
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_coarsest_level_reaches_all_and_the_finest_only_itself():
    pyramid, features = FeaturePyramid(LEVELS, channels=6), level_tensors()
    with torch.no_grad():
        before = pyramid(features)
        coarse = pyramid({**features, "s64": features["s64"] + 1})
        fine = pyramid({**features, "s8": features["s8"] + 1})
    assert [not torch.equal(before[name], coarse[name]) for name in before] == [True] * 4
    assert [not torch.equal(before[name], fine[name]) for name in before] == [True, False, False, False]


def test_pooling_is_the_mean_of_each_channel_in_level_order():
    levels = {"a": torch.full((1, 2, 4, 4), 1.0), "b": torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])}
    assert pool_levels(levels).tolist() == [[1.0, 1.0, 3.0]]


# --- the experts ------------------------------------------------------------------------------------------------------


def experts_one_by_one(moe: MixtureOfExperts, v: torch.Tensor) -> torch.Tensor:
    """Every sample through its chosen experts alone, each a Linear-ReLU-Linear cut out of the joint weights."""
    width = moe.answer_weight.shape[1]
    rows = []
    for sample in v:
        gates = torch.softmax(moe.gate.weight @ sample + moe.gate.bias, dim=0)
        chosen = sorted(range(moe.experts), key=lambda e: -float(gates[e]))[: moe.top_k]
        total = sum(gates[e] for e in chosen) if moe.renormalize else torch.ones(())
        row = torch.zeros(6)
        for e in chosen:
            rows_of_e = slice(e * width, (e + 1) * width)
            hidden = torch.relu(moe.hidden.weight[rows_of_e] @ sample + moe.hidden.bias[rows_of_e])
            row = row + gates[e] / total * (hidden @ moe.answer_weight[e] + moe.answer_bias[e])
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (4, 1), (4, 4), (3, 2), (1, 1)])
def test_dense_experts_equal_a_loop_over_samples(experts, top_k, renormalize):
    moe = MixtureOfExperts(10, experts=experts, hidden=7, top_k=top_k, renormalize=renormalize)
    torch.nn.init.normal_(moe.answer_bias)
    v = 3 * torch.randn(20, 10)
    with torch.no_grad():
        got = moe(v)
        torch.testing.assert_close(got.logits, experts_one_by_one(moe, v), rtol=1e-6, atol=1e-6)
    assert got.chosen.sum(1).tolist() == [top_k] * 20 and set(got.chosen.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(got.gates.sum(1), torch.ones(20))
    assert tuple(got.logits.shape) == (20, 6) and tuple(got.gates.shape) == (20, experts)


def test_the_chosen_experts_are_those_with_the_largest_gates():
    moe = MixtureOfExperts(10, experts=4, top_k=2)
    out = moe(torch.randn(50, 10))
    for gates, chosen in zip(out.gates, out.chosen, strict=True):
        assert gates[chosen.bool()].min() >= gates[~chosen.bool()].max()
    assert len({tuple(row) for row in out.chosen.tolist()}) > 1


def test_gates_are_not_renormalised_unless_asked_for():
    plain, scaled = (MixtureOfExperts(10, renormalize=on) for on in (False, True))
    scaled.load_state_dict(plain.state_dict())
    v = torch.randn(8, 10)
    with torch.no_grad():
        a, b = plain(v), scaled(v)
    share = (a.gates * a.chosen).sum(1, keepdim=True)
    assert float(share.max()) < 0.99
    torch.testing.assert_close(a.logits, b.logits * share)


def output(gates: list[list[float]], chosen: list[list[float]]) -> MoEOutput:
    return MoEOutput(torch.zeros(len(gates), 6), torch.tensor(gates, requires_grad=True), torch.tensor(chosen))


def test_balance_loss_is_one_when_use_is_even():
    gates = [[0.25] * 4] * 2
    assert balance_loss(output(gates, [[1.0, 1, 0, 0], [0, 0, 1, 1]]), top_k=2).item() == 1.0
    assert balance_loss(output(gates, [[1.0, 0, 0, 0]] * 2), top_k=1).item() == 1.0  # even gates: routing is chance


def test_balance_loss_when_all_goes_to_the_same_experts():
    one = output([[1.0, 0, 0, 0]] * 3, [[1.0, 0, 0, 0]] * 3)
    assert balance_loss(one, top_k=1).item() == 4.0  # experts / 1
    two = output([[0.5, 0.5, 0, 0]] * 3, [[1.0, 1, 0, 0]] * 3)
    assert balance_loss(two, top_k=2).item() == 2.0  # experts / 2


def test_balance_loss_by_hand():
    mixed = output([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [[1.0, 1, 0], [1, 1, 0]])
    want = 3 * (0.5 * 0.4 + 0.5 * 0.5 + 0 * 0.1)
    assert balance_loss(mixed, top_k=2).item() == pytest.approx(want)


def test_balance_loss_pulls_on_the_gate_alone():
    moe = MixtureOfExperts(10, experts=4, top_k=2)
    balance_loss(moe(torch.randn(8, 10)), top_k=2).backward()
    reached = {name for name, p in moe.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {"gate.weight", "gate.bias"}


def test_following_the_balance_loss_evens_out_the_experts():
    moe = MixtureOfExperts(10, experts=4, top_k=1)
    with torch.no_grad():
        moe.gate.bias.copy_(torch.tensor([3.0, 0, 0, 0]))
    v = torch.randn(64, 10)
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.5)
    losses = []
    for _ in range(150):
        loss = balance_loss(moe(v), top_k=1)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    share = moe(v).chosen.mean(0)
    assert losses[0] > 2 and min(losses) < 1.2 and float(share.max()) < 0.6


# --- the whole model --------------------------------------------------------------------------------------------------


def test_output_shapes_of_the_tiny_model():
    model = build_model(tiny())
    out = model(bytes_batch(3))
    assert tuple(out.logits.shape) == (3, 6) and tuple(out.v.shape) == (3, 4 * 16)
    assert list(out.levels) == [level.name for level in model.features.levels] and tuple(out.moe.gates.shape) == (3, 4)
    assert [t.shape[-1] for t in out.levels.values()] == [8, 4, 2, 1]


def test_gradient_reaches_every_parameter():
    model = build_model(tiny())
    out = model(bytes_batch(8))
    (F.cross_entropy(out.logits, torch.arange(8) % 6) + balance_loss(out.moe, 2)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
    still = [name for name, p in model.named_parameters() if not p.grad.any()]
    # A key's bias shifts all scores of a row alike, and softmax does not see that; there are no others.
    assert [name for name in still if not name.endswith("to_k.bias")] == []


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-2.5, 3.0), (0.0, 255.0)])
def test_bytes_are_scaled_to_the_value_range_exactly_at_its_ends(low, high):
    model = build_model(tiny(f"preprocess.value_range=[{low}, {high}]")).eval()
    seen = []
    model.features.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    images[0, :16] = 255
    images[0, 20, 7] = torch.tensor([51, 102, 153])
    with torch.no_grad():
        model(images)
    scaled = seen[0]
    assert tuple(scaled.shape) == (1, 3, 32, 32) and scaled.dtype == torch.float32
    assert (scaled[0, :, :16] == high).all() and (scaled[0, :, 24:] == low).all()
    want = torch.tensor([low + (high - low) * byte / 255 for byte in (51, 102, 153)])
    torch.testing.assert_close(scaled[0, :, 20, 7], want)


def test_a_picture_is_judged_alone():
    model, images = build_model(tiny()).eval(), bytes_batch(5)
    with torch.no_grad():
        together = model(images).logits
        alone = torch.cat([model(images[i : i + 1]).logits for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_normalising_v_follows_the_batch_in_training_and_what_it_has_seen_in_evaluation():
    model, plain = (build_model(tiny(f"model.head.normalize_v={on}")) for on in ("true", "false"))
    images = bytes_batch(6)
    seen = []
    model.moe.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    statistics = {name for name in trainable_state(model) if name.startswith("norm.running")}
    before = {name: trainable_state(model)[name].clone() for name in statistics}
    assert len(statistics) == 2
    with torch.no_grad():
        v = model(images).v
        torch.testing.assert_close(seen[0].mean(0), torch.zeros(v.shape[1]), atol=1e-4, rtol=0)
        assert not torch.allclose(v.mean(0), torch.zeros(v.shape[1]), atol=1e-4)  # the output's v is as pooled
        after = {name: trainable_state(model)[name].clone() for name in statistics}
        model.eval()(images)
    assert not any(torch.equal(before[name], after[name]) for name in statistics)
    assert all(torch.equal(after[name], trainable_state(model)[name]) for name in statistics)
    assert not [name for name in plain.state_dict() if name.startswith("norm")]


def test_a_frozen_backbone_gets_no_gradient_and_is_not_stored():
    model = build_model(tiny("model.train_backbone=false"))
    out = model(bytes_batch(4))
    F.cross_entropy(out.logits, torch.arange(4)).backward()
    backbone = {name for name, _ in model.named_parameters() if name.startswith("features.")}
    assert len(backbone) > 50
    assert all(p.grad is None for name, p in model.named_parameters() if name in backbone)
    assert all(p.grad is not None for name, p in model.named_parameters() if name not in backbone)
    assert model.knowledge.embedding.grad.any()  # through the frozen layers, not into them
    stored = trainable_state(model)
    assert stored and not set(stored) & backbone
    trained = trainable_state(build_model(tiny()))
    assert backbone <= set(trained) and set(stored) <= set(trained)


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


# --- trained parameters -----------------------------------------------------------------------------------------------


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
    """The preset of real weights, at the size of those in ``folder``."""
    fitting = (f"model.backbone={folder}", f"model.knowledge.tokens={TOKENS}", f"model.knowledge.width={WIDTH}",
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
