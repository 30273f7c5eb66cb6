"""Every exact pass leaves the function as it is, in float64 on random weights; and takes away what it says."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from kcdp.config import load_config
from kcdp.errors import KcdpError
from kcdp.export.device.attention import Attention
from kcdp.export.device.model import DeviceModel, PlainExperts, PlainHead, ReferenceModel
from kcdp.export.device.unet import ResNet
from kcdp.export.passes.context import ConstantKeysValues, HiddenKnowledge
from kcdp.export.passes.counting import count
from kcdp.export.passes.experts import FOLDED, folded_weights
from kcdp.export.passes.norms import ChannelNorm
from kcdp.export.passes.pooling import pooled_kernel, region_matrix
from kcdp.export.passes.registry import NAMES, PASSES, PassOptions, apply_passes
from kcdp.export.passes.winograd import WinogradConv, matrices
from kcdp.models.build import build_model

SIZE = 32
KL = ["model.encoder.kind=kl", "model.encoder.blocks=[1,1,1]"]
LORA = ["model.lora.rank=2", "model.train_backbone=false"]
IMPLICIT = ["model.knowledge.mode=implicit", "model.knowledge.hidden=16"]
KINDS = {
    "constant": [],
    "fixed text": ["model.knowledge.text=a sad sticker", *KL],
    "implicit": [*IMPLICIT, *LORA],
    "explicit": ["model.knowledge.mode=explicit", *LORA, *KL],
    "as released": ["model.input_normalization=imagenet-twice", "model.scale_latents=false",
                    "model.head.routing=loop", "model.head.renormalize=true"],
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@cache
def network(kind):
    """A tiny network in float64, nothing in it at its neutral starting value."""
    torch.manual_seed(0)
    config = load_config("tiny", overrides=KINDS[kind], data={"data": {"source": "synthetic:photos?n=12"}})
    model = build_model(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2.0)
    return model


def inputs(model, count=3):
    torch.manual_seed(1)
    images = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8)
    if model.knowledge is not None:
        return (images,)
    return images, torch.randn(count, model.features.tokens, model.features.width, dtype=torch.float64)


def answers(model, given):
    with torch.no_grad():
        return model(model.scaled(given[0]) if isinstance(model, DeviceModel) else given[0], *given[1:])


def assert_same(got, want, names):
    for name, a, b in zip(names, got, want, strict=True):
        assert a.dtype == b.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@cache
def wanted(kind):
    return answers(ReferenceModel(network(kind)), inputs(network(kind)))


OPTIONS = PassOptions(SIZE, "fused", winograd=True, norms=True)


def test_the_network_as_published_is_the_trained_one(kind):
    model = network(kind)
    given = inputs(model)
    reference, device = ReferenceModel(model), DeviceModel(model, model.knowledge is None)
    assert_same(answers(device, given), answers(reference, given), reference.output_names)


@pytest.mark.parametrize("name", [exact.name for exact in PASSES])
def test_each_pass_alone_is_exact(kind, name):
    model = network(kind)
    given = inputs(model)
    device = DeviceModel(model, model.knowledge is None)
    (exact,) = [exact for exact in PASSES if exact.name == name]
    exact.apply(device, OPTIONS)
    assert_same(answers(device, given), wanted(kind), device.output_names)


def test_only_what_is_asked_for_is_applied():
    model = network("constant")
    device = DeviceModel(model)
    rows = apply_passes(device, OPTIONS, inputs(model), skip=set(NAMES) - {"timestep"})
    assert [(row.name, row.difference is not None) for row in rows[1:]] == [
        (exact.name, exact.name == "timestep") for exact in PASSES
    ]
    assert device.unet.time is None and isinstance(device.head, PlainHead)


def test_all_passes_together_are_exact_and_leave_the_trained_model_alone(kind):
    model = network(kind)
    given = inputs(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    want = wanted(kind)
    device = DeviceModel(model, model.knowledge is None)
    rows = apply_passes(device, OPTIONS, given)
    assert [row.name for row in rows] == ["as published", *(exact.name for exact in PASSES)]
    assert_same(answers(device, given), want, device.output_names)
    assert_same(answers(ReferenceModel(model), given), want, device.output_names)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_wrong_rewriting_is_seen(monkeypatch):
    """The twin: one bias off by a millionth."""
    model = network("constant")
    given = inputs(model)
    device = DeviceModel(model)
    want = answers(ReferenceModel(model), given)
    rows = apply_passes(device, OPTIONS, given)
    device.moe.first.bias = nn.Parameter(device.moe.first.bias + 1e-6, requires_grad=False)
    with pytest.raises(AssertionError, match="logits"):
        assert_same(answers(device, given), want, device.output_names)
    assert rows[-1].difference is not None


def modules(device, kind):
    return [module for module in device.modules() if isinstance(module, kind)]


def after(kind, name):
    model = network(kind)
    device = DeviceModel(model, model.knowledge is None)
    before = count(device, SIZE)
    apply_passes(device, OPTIONS, skip=set(NAMES) - {name})
    return device, before, count(device, SIZE)


def test_what_each_pass_takes_away():
    device, before, now = after("implicit", "lora")
    assert not modules(device, LoraLayer) and now.parameters < before.parameters
    device, before, now = after("constant", "timestep")
    assert device.unet.time is None and all(block.time is None for block in modules(device, ResNet))
    assert now.parameters < before.parameters and now.operators < before.operators
    device, before, now = after("fixed text", "autoencoder")
    assert device.encoder.conv_out.out_channels == 4 and now.parameters < before.parameters
    device, _, _ = after("constant", "pixels")
    assert device.scaled(images := torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)) is images
    device, before, now = after("fixed text", "context")
    assert len(modules(device, ConstantKeysValues)) == len([a for a in modules(device, Attention) if a.crosses]) > 0
    assert now.gflops < before.gflops
    device, before, now = after("implicit", "context")
    assert isinstance(device.knowledge, HiddenKnowledge) and now.gflops < before.gflops
    device, before, now = after("constant", "attention")
    assert {layer.kernel for layer in modules(device, Attention) if not layer.want_map} == {"fused"}
    assert {layer.kernel for layer in modules(device, Attention) if layer.want_map} == {"products"}
    device, before, now = after("constant", "pyramid")
    assert not modules(device, PlainHead) and now.gflops < before.gflops
    device, before, now = after("constant", "experts")
    assert not modules(device, PlainExperts) and isinstance(device.norm, nn.Identity)
    assert folded_weights(device) == {"moe.first.weight": FOLDED} and "moe.first.weight" in device.state_dict()
    assert folded_weights(after("constant", "attention")[0]) == {}


def test_one_text_for_all_pictures_is_folded():
    """A run that is told by captions, exported with one text."""
    model = network("explicit")
    images, knowledge = inputs(model)
    fixed = knowledge[:1]
    device = DeviceModel(model, fixed=fixed)
    want = answers(ReferenceModel(model), (images, fixed.expand(3, -1, -1)))
    assert_same(answers(ReferenceModel(model, fixed), (images,)), want, device.output_names)
    apply_passes(device, OPTIONS)
    assert_same(answers(device, (images,)), want, device.output_names)


def test_knowledge_is_not_folded_where_hidden_states_are_no_narrower():
    model = network("constant")
    wide = load_config(
        "tiny", overrides=["model.knowledge.mode=implicit", "model.knowledge.hidden=64"],
        data={"data": {"source": "synthetic:photos?n=12"}},
    )  # fmt: skip
    model = build_model(wide).eval()
    device = DeviceModel(model)
    before = count(device, SIZE)
    apply_passes(device, OPTIONS, skip=set(NAMES) - {"context"})
    assert not isinstance(device.knowledge, HiddenKnowledge) and count(device, SIZE) == before


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 6), (1, 1), (2, 1)])
def test_nine_means_stand_for_a_padded_convolution(height, width):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, padding=1).double()
    x = torch.randn(2, 5, height, width, dtype=torch.float64)
    means = x.flatten(2) @ region_matrix(height, width, torch.float64)
    got = torch.einsum("nir,ori->no", means, pooled_kernel(conv.weight, height, width)) + conv.bias
    torch.testing.assert_close(got, conv(x).mean(dim=(2, 3)), rtol=1e-12, atol=1e-12)


def test_region_means_survive_nearest_upsampling():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    doubled = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(
        doubled.flatten(2) @ region_matrix(8, 8, torch.float64), x.flatten(2) @ region_matrix(4, 4, torch.float64)
    )


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (16, 4)])
def test_minimal_filtering_is_the_convolution(height, width):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, 3, padding=1).double()
    x = torch.randn(3, 6, height, width, dtype=torch.float64)
    torch.testing.assert_close(WinogradConv(conv)(x), conv(x), rtol=1e-12, atol=1e-12)
    single = WinogradConv(conv.float())(x.float())
    assert (single - conv(x.float())).abs().max() < 1e-4


@pytest.mark.parametrize(("groups", "channels", "offset"), [(32, 64, 0.0), (4, 20, 5.0), (1, 7, -3.0), (8, 8, 100.0)])
def test_a_scaling_of_channels_is_the_group_norm(groups, channels, offset):
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, eps=1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, channels, 12, 9, dtype=torch.float64) + offset
    x[0, 0] = 0.0
    torch.testing.assert_close(ChannelNorm(norm)(x), norm(x), rtol=1e-9, atol=1e-9)
    constant = torch.full((1, channels, 4, 4), 7.0, dtype=torch.float64)
    assert torch.isfinite(ChannelNorm(norm.float())(constant.float())).all(), "no root of a number below zero"
    single = ChannelNorm(norm.float())(x.float())
    assert (single - norm.double()(x)).abs().max() < 2e-5 * max(1.0, abs(offset)) ** 2


@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0])
def test_bfloat16_bears_flat_pictures(mean):
    """The twin takes variances from sums of squares, in which every row of them has the same rounding error."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, 128, eps=1e-5)
    x = (mean + 0.1 * mean * torch.randn(1, 128, 1, 1)).expand(1, 128, 60, 60).bfloat16()
    want = norm(x.float())
    error = (ChannelNorm(nn.GroupNorm(32, 128, eps=1e-5)).bfloat16()(x).float() - want).abs().max()
    assert error < 0.5 and want.abs().max() > 1.0
    rows, lengths = x.mean(3), torch.linalg.vector_norm(x, dim=3)
    middle = rows.mean(2).unflatten(1, (32, 4)).mean(2).repeat_interleave(4, 1)[..., None]
    squares = lengths * lengths * (1 / 60) - rows * rows + (rows - middle) ** 2
    variance = squares.mean(2).unflatten(1, (32, 4)).mean(2).clamp(min=0.0).repeat_interleave(4, 1)[..., None, None]
    twin = (x.float() - middle[..., None].float()) * torch.rsqrt(variance.float() + 1e-5)
    assert (twin - want).abs().max() > 3 * error


def test_bfloat16_bears_a_mean_far_from_zero():
    """Rounded as a processor rounds between operators; the variance as E[x^2] - mean^2 is the twin."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, 128, eps=1e-6)
    middles = 5.0 + 2.0 * torch.rand(32).repeat_interleave(4)[:, None, None]
    x = (torch.randn(1, 128, 64, 64) + middles).bfloat16()
    spread_of = lambda y: (y.float().unflatten(1, (32, 4)).flatten(2).std(2) - 1.0).abs().mean()  # noqa: E731
    assert spread_of(norm(x.float())) < 1e-4
    error = spread_of(ChannelNorm(norm).bfloat16()(x))
    assert error < 0.01
    mean, square = x.float().mean((2, 3)), (x.float() ** 2).mean((2, 3))
    grouped = [part.unflatten(1, (32, 4)).mean(2).bfloat16() for part in (mean, square)]
    naive = (grouped[1] - grouped[0] * grouped[0]).float().clamp(min=0.0)
    scale = torch.rsqrt(naive + 1e-6).repeat_interleave(4, 1)[..., None, None]
    assert spread_of(x.float() * scale) > 3 * error


def test_minimal_filtering_needs_enough_different_points():
    with pytest.raises(ValueError, match="expected 5 different ones"):
        matrices(points=(0, 1, 1, 2, 3))


@pytest.mark.parametrize(("option", "kind", "rest", "width"), [
    ("winograd", WinogradConv, nn.Conv2d, 256), ("norms", ChannelNorm, nn.GroupNorm, 64),
])  # fmt: skip
def test_rewritings_that_pay_by_size(option, kind, rest, width):
    """Of a network with wide layers, those with 16 x 16 cells or more; and none where the target does not want it."""
    config = load_config(
        "tiny", overrides=[f"model.unet.channels=[{width},{width},{width},{width}]", "preprocess.size=64"],
        data={"data": {"source": "synthetic:photos?n=12"}},
    )  # fmt: skip
    model = build_model(config).eval()
    apply_passes(device := DeviceModel(model), PassOptions(64, "products", **{option: True}))
    found = [name for name, module in device.named_modules() if isinstance(module, kind)]
    assert found and modules(device, rest), "and some are left"
    assert all(name.startswith(("unet.down.0.", "unet.up.")) for name in found), found
    apply_passes(other := DeviceModel(model), PassOptions(64, "products"))
    assert not modules(other, kind)


def test_unknown_pass_is_refused():
    message = r"no pass is called 'timestop' \(did you mean 'timestep'\?\); expected one of lora, timestep"
    with pytest.raises(KcdpError, match=message):
        apply_passes(DeviceModel(network("constant")), OPTIONS, skip={"timestop"})
