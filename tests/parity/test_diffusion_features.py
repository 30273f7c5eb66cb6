"""The feature extractor's own forward against diffusers' forward, at several U-Net shapes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from kcdp.errors import KcdpError
from kcdp.models.diffusion_features import DiffusionFeatures
from kcdp.models.latents import LatentEncoder

TOKENS, WIDTH = 5, 24

SHAPES = {
    "stable-diffusion-like": {},
    "one layer, linear projections": {"layers_per_block": 1, "use_linear_projection": True},
    "no middle block": {"mid_block_type": None},
    "two transformers deep": {"transformer_layers_per_block": 2, "layers_per_block": 1},
    "attention in the middle levels only": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


def make_unet(**changes) -> UNet2DConditionModel:
    settings = {
        "block_out_channels": (8, 16, 24, 32), "norm_num_groups": 4, "cross_attention_dim": WIDTH,
        "attention_head_dim": 2, "in_channels": 4, "out_channels": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **changes})


def make_encoder(scale: bool = True) -> LatentEncoder:
    return LatentEncoder(make_kl(), scale=scale)


def make_kl() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class RecordingProcessor:
    """Plain attention written independently, that keeps its head-averaged probabilities."""

    def __init__(self, log: list) -> None:
        self.log = log

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        probabilities = attn.get_attention_scores(q, k)
        if encoder_hidden_states is not None:
            batch = hidden_states.shape[0]
            self.log.append(probabilities.reshape(batch, attn.heads, *probabilities.shape[1:]).mean(1))
        out = attn.batch_to_head_dim(probabilities @ v)
        return attn.to_out[1](attn.to_out[0](out))


@pytest.mark.parametrize("name", SHAPES)
def test_forward_equals_diffusers(name):
    unet = make_unet(**SHAPES[name]).eval()
    features = DiffusionFeatures(unet, make_encoder(), tokens=TOKENS, timestep=1).eval()
    latents, knowledge = torch.randn(2, 4, 16, 16), torch.randn(2, TOKENS, WIDTH)
    with torch.no_grad():
        want = unet(latents, 1, knowledge).sample
        _, _, hidden = features._unet_pass(latents, knowledge)
        got = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_levels_and_maps_equal_a_recording_of_diffusers(name):
    unet = make_unet(**SHAPES[name]).eval()
    features = DiffusionFeatures(unet, make_encoder(), tokens=TOKENS, timestep=1).eval()
    latents, knowledge = torch.randn(2, 4, 16, 16), torch.randn(2, TOKENS, WIDTH)
    log: list[torch.Tensor] = []
    maps: dict[int, list[torch.Tensor]] = {}
    taps: dict[int, torch.Tensor] = {}

    def keep_maps(_module, args, _output):
        maps.setdefault(args[0].shape[-1], []).extend(log)
        log.clear()

    with torch.no_grad():
        got = features.decode(latents, knowledge)
        unet.set_attn_processor(RecordingProcessor(log))
        for block in (*unet.down_blocks, *unet.up_blocks):
            for attention in getattr(block, "attentions", None) or ():
                attention.register_forward_hook(keep_maps)
        if unet.mid_block is not None:
            unet.mid_block.register_forward_hook(lambda *_: log.clear())
        for number, block in enumerate(unet.up_blocks):
            index = len(block.resnets) - (1 if number == 3 else 2)
            layers = getattr(block, "attentions", None) or block.resnets
            layers[index].register_forward_hook(
                lambda _m, _a, out, n=number: taps.update({n: out if torch.is_tensor(out) else out[0]})
            )
        unet(latents, 1, knowledge)
    for n, level in enumerate(reversed(features.levels)):  # up blocks run from coarse to fine
        channels = level.channels - level.map_channels
        torch.testing.assert_close(got[level.name][:, :channels], taps[n], rtol=1e-5, atol=1e-5)
        if level.map_channels:
            size = got[level.name].shape[-1]
            want = torch.stack(maps[size]).mean(0).transpose(1, 2).reshape(2, TOKENS, size, size)
            torch.testing.assert_close(got[level.name][:, channels:], want, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(want.sum(1), torch.ones(2, size, size))
        else:
            assert got[level.name].shape[1] == channels


def test_declared_levels_are_what_comes_out_and_sd15_has_the_published_channels():
    features = DiffusionFeatures(make_unet(), make_encoder(), tokens=TOKENS)
    out = features(torch.randn(1, 3, 32, 32), torch.randn(1, TOKENS, WIDTH))
    assert [(n, t.shape[1], 32 // t.shape[2]) for n, t in out.items()] == [
        (level.name, level.channels, level.stride) for level in features.levels
    ]
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
        )  # fmt: skip
    levels = DiffusionFeatures(unet, LatentEncoder(vae), tokens=154).levels
    assert [level.channels for level in levels] == [320, 794, 1434, 1280]
    assert [level.stride for level in levels] == [8, 16, 32, 64]


def test_latents_are_the_scaled_posterior_mode():
    vae = make_kl().eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mode = vae.encode(images).latent_dist.mode()
        torch.testing.assert_close(LatentEncoder(vae)(images), mode * vae.config.scaling_factor)
        torch.testing.assert_close(LatentEncoder(vae, scale=False)(images), mode)
        tiny = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
            decoder_block_out_channels=(8,), num_decoder_blocks=(1,),
        ).eval()  # fmt: skip
        encoder = LatentEncoder(tiny)
        assert encoder.stride == 4
        torch.testing.assert_close(encoder(images), tiny.encode(images).latents)


def test_one_set_of_tokens_serves_a_batch_and_the_pass_is_repeatable():
    features = DiffusionFeatures(make_unet(), make_encoder(), tokens=TOKENS).eval()
    images, knowledge = torch.rand(3, 3, 32, 32) * 2 - 1, torch.randn(1, TOKENS, WIDTH)
    with torch.no_grad():
        shared, repeated = features(images, knowledge), features(images, knowledge.repeat(3, 1, 1))
        again = features(images, knowledge)
    for name in shared:
        torch.testing.assert_close(shared[name], repeated[name])
        assert torch.equal(shared[name], again[name])


def test_timestep_and_knowledge_change_the_features():
    unet, encoder = make_unet().eval(), make_encoder().eval()
    images, knowledge = torch.rand(1, 3, 32, 32), torch.randn(1, TOKENS, WIDTH)
    with torch.no_grad():
        first = DiffusionFeatures(unet, encoder, tokens=TOKENS, timestep=1)(images, knowledge)
        later = DiffusionFeatures(unet, encoder, tokens=TOKENS, timestep=500)(images, knowledge)
        other = DiffusionFeatures(unet, encoder, tokens=TOKENS, timestep=1)(images, knowledge + 1)
    assert not torch.allclose(first["s2"], later["s2"], atol=1e-4)
    assert not torch.allclose(first["s2"], other["s2"], atol=1e-4)


def test_unsupported_parts_are_refused_by_name():
    with pytest.raises(KcdpError, match=r"class_embed_type = 'timestep'.*Stable Diffusion 1.x / 2.x"):
        DiffusionFeatures(make_unet(class_embed_type="timestep"), make_encoder(), tokens=TOKENS)
    with pytest.raises(KcdpError, match="takes 9 latent channels; expected 4, as the autoencoder gives"):
        DiffusionFeatures(make_unet(in_channels=9), make_encoder(), tokens=TOKENS)
    with pytest.raises(KcdpError, match="autoencoder of type Linear"):
        LatentEncoder(torch.nn.Linear(1, 1))
