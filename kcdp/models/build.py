"""From a configuration to a model: from scratch, or from weights in diffusers layout."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn

from kcdp.config import Config
from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.knowledge.prompts import emotion_position, prompt_tokens
from kcdp.knowledge.text import TextEncoder
from kcdp.models.alignment import Alignment
from kcdp.models.cesa import Cesa
from kcdp.models.cliea import Cliea
from kcdp.models.clip_network import build_clip
from kcdp.models.diffusion_features import DiffusionFeatures
from kcdp.models.implicit_knowledge import ImplicitKnowledge
from kcdp.models.kadap import ConstantKnowledge, Kadap, visual_width
from kcdp.models.latents import LatentEncoder
from kcdp.models.lora import add_lora, load_lora
from kcdp.models.network import EmotionNetwork
from kcdp.models.pyramid_transformer import build_pyramid
from kcdp.models.text_side import TextSide
from kcdp.settings import EncoderConfig, ModelConfig


def build_model(
    config: Config, text: TextEncoder | None = None, state: Mapping[str, Any] | None = None
) -> EmotionNetwork:
    """The network of a configuration, in float32 on the CPU, in training mode.

    Made-from-scratch parts are seeded by ``training.seed``. A frozen backbone has ``requires_grad`` off.

    Args:
        text: the configuration's text encoder, where one is open already; else it is opened if need be.
        state: trained tensors that are going to be loaded: what the text encoder would have told is taken from there.

    Raises:
        KcdpError: no backbone named, weights missing or not fitting, picture size not a fitting multiple.
    """
    config.check_backbone()
    if config.training.cache_latents and config.model.network != "kadap":
        raise KcdpError(
            f"training.cache_latents is true and model.network {config.model.network!r}, which makes no latents",
            "false", "add --set training.cache_latents=false",
        )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return NETWORKS[config.model.network](config, TextSide(config.model, text, state or {})).train()


def build_kadap(config: Config, source: TextSide) -> Kadap:
    """The network "kadap"; see ``build_model``."""
    model = config.model
    features = build_features(model)
    if model.backbone != "scratch" and features.width != model.knowledge.width:
        raise KcdpError(
            f"model.knowledge.width is {model.knowledge.width}",
            f"{features.width}, the cross-attention width of {model.backbone}",
            f"add --set model.knowledge.width={features.width}",
        )
    size, multiple = config.preprocess.size, features.size_multiple
    if size % multiple:
        raise KcdpError(
            f"preprocess.size is {size}",
            f"a multiple of {multiple} for this model",
            f"try {size // multiple * multiple or multiple}",
        )
    features.requires_grad_(model.train_backbone)
    features.encoder.requires_grad_(model.train_backbone and model.train_encoder)
    features.checkpointing = config.training.gradient_checkpointing
    built = Kadap(
        features, model.head, _build_knowledge(features, model, source), _build_alignment(features, model, source),
        config.preprocess.value_range if model.input_normalization == "range" else None,
    )  # fmt: skip
    if model.lora.rank:
        lora = model.lora
        add_lora(features.unet, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets)
        if lora.weights and not source.state:
            load_lora(features.unet, lora.weights)
    if model.backbone != "scratch":  # what is made from scratch is nowhere else
        built.external = frozenset(name for name, p in built.named_parameters() if not p.requires_grad)
    if model.knowledge.mode == "implicit" and config.training.implicit == "distill":
        built.requires_grad_(False)
        assert built.knowledge is not None
        built.knowledge.requires_grad_(True)
    return built


#: ``model.network`` -> what builds it.
NETWORKS: Mapping[str, Callable[[Config, TextSide], EmotionNetwork]] = {
    "kadap": build_kadap,
    "clip": build_clip,
    "pvt": build_pyramid,
}


def _build_knowledge(
    features: DiffusionFeatures, model: ModelConfig, source: TextSide
) -> ConstantKnowledge | ImplicitKnowledge | None:
    knowledge, tokens, width = model.knowledge, features.tokens, features.width
    if knowledge.mode == "constant":
        return ConstantKnowledge(tokens, width, source.constant_knowledge(tokens))
    if knowledge.mode == "implicit":
        return ImplicitKnowledge(features.encoder.latent_channels, tokens, width, hidden=knowledge.hidden)
    return None


def _build_alignment(features: DiffusionFeatures, model: ModelConfig, source: TextSide) -> Alignment | None:
    wanted = model.alignment
    if wanted.kind == "none":
        return None
    visual = visual_width(features, model.head)
    prompts = source.get("alignment.prompts", lambda encoder: prompt_tokens(encoder, wanted.template))
    if wanted.kind == "cesa":
        return Cesa(prompts, visual, components=wanted.components)
    positions = source.get("alignment.positions", lambda encoder: emotion_position(encoder, wanted.template))
    return Cliea(
        prompts, positions, visual, heads=wanted.heads, pooling=wanted.pooling, mapping=wanted.mapping
    )  # fmt: skip


def build_features(config: ModelConfig) -> DiffusionFeatures:
    """The feature extractor alone: autoencoder encoder and U-Net, parts it never runs left out."""
    scratch = config.backbone == "scratch"
    unet = _scratch_unet(config) if scratch else _load(UNet2DConditionModel, config.backbone, "unet")
    source, subfolder = (config.encoder.source, "") if config.encoder.source else (config.backbone, "vae")
    kind = AutoencoderKL if config.encoder.kind == "kl" else AutoencoderTiny
    autoencoder = _scratch_encoder(config.encoder) if source == "scratch" else _load(kind, source, subfolder)
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None  # the noise prediction is never asked for
    encoder = LatentEncoder(autoencoder, scale=config.scale_latents)
    return DiffusionFeatures(unet, encoder, tokens=config.knowledge_tokens, timestep=config.timestep)


def trainable_state(model: EmotionNetwork) -> dict[str, torch.Tensor]:
    """What belongs in a checkpoint: all but the weights that were loaded and not trained, ``model.external``."""
    return {name: value for name, value in model.state_dict().items() if name not in model.external}


def load_trainable_state(model: EmotionNetwork, state: dict[str, torch.Tensor], where: str) -> None:
    """The inverse of ``trainable_state``.

    Raises:
        KcdpError: the tensors are not those of this model; the first difference is named.
    """
    expected = {name: tuple(value.shape) for name, value in trainable_state(model).items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise KcdpError(
                f"{where}: {name} is {found.get(name, 'missing')}",
                f"{expected.get(name, 'no such tensor')}",
                "use the checkpoint with the configuration it was trained with",
            )
    model.load_state_dict(state, strict=False)


def load_matching_state(model: EmotionNetwork, state: dict[str, torch.Tensor], where: str) -> list[str]:
    """Take over what a model has in common with another one.

    Returns:
        the names of the tensors that ``state`` does not have: they stay as they are.

    Raises:
        KcdpError: a tensor of the same name has another shape, or there is nothing in common.
    """
    described = {"alignment.prompts", "alignment.positions"}  # by the text settings: what this model has of them stays
    described |= {name for name, _ in model.named_buffers() if name == "knowledge.embedding"}
    expected = {name: value for name, value in trainable_state(model).items() if name not in described}
    for name, value in state.items():
        if name in expected and expected[name].shape != value.shape:
            raise KcdpError(
                f"{where}: {name} is {tuple(value.shape)}", f"{tuple(expected[name].shape)}",
                "start from a run with the same model settings",
            )  # fmt: skip
    common = {name: value for name, value in state.items() if name in expected}
    if not common:
        raise KcdpError(f"{where} has no tensor of this model", "a run with the same model settings")
    model.load_state_dict(common, strict=False)
    return sorted(set(expected) - set(common))


def _scratch_unet(config: ModelConfig) -> UNet2DConditionModel:
    unet = config.unet
    return UNet2DConditionModel(
        in_channels=config.encoder.latent_channels,
        out_channels=config.encoder.latent_channels,
        block_out_channels=unet.channels,
        layers_per_block=unet.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in unet.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(unet.attention)),
        cross_attention_dim=config.knowledge.width,
        attention_head_dim=unet.heads,  # diffusers' name; for this family it is the number of heads
        norm_num_groups=unet.norm_groups,
    )


def _scratch_encoder(config: EncoderConfig) -> nn.Module:
    widths = (config.channels,) * len(config.blocks)
    if config.kind == "tiny":
        return AutoencoderTiny(
            encoder_block_out_channels=widths, num_encoder_blocks=config.blocks, latent_channels=config.latent_channels,
            decoder_block_out_channels=(8,), num_decoder_blocks=(1,),
        )  # fmt: skip
    layers = config.blocks[0]
    if layers < 1 or any(blocks != layers for blocks in config.blocks):
        raise KcdpError(
            f"model.encoder.blocks is {list(config.blocks)}",
            "one number, 1 or more, repeated, for an encoder of kind kl",
        )
    return AutoencoderKL(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * len(widths), layers_per_block=layers,
        up_block_types=("UpDecoderBlock2D",) * len(widths), latent_channels=config.latent_channels,
        norm_num_groups=math.gcd(16, config.channels),
    )  # fmt: skip


def _load(kind: Any, source: str, subfolder: str) -> Any:
    """A local folder first; a hub name only where no such folder exists."""
    where = Path(source) / subfolder
    if os.path.exists(source):
        if not os.path.isfile(where / "config.json"):
            raise KcdpError(f"{where} has no config.json", f"a {kind.__name__} in diffusers layout", "name its folder")
        _check_kind(kind, where / "config.json")
        source, subfolder = str(where), ""
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise KcdpError(f"{source} does not exist", "a folder in diffusers layout (unet, vae)", "name its folder")
    try:
        module, report = kind.from_pretrained(
            source, subfolder=subfolder or None, low_cpu_mem_usage=True, output_loading_info=True
        )
        if report["missing_keys"]:  # diffusers would leave them without any memory, and only warn
            raise ValueError(f"its weights lack {sorted(report['missing_keys'])[0]}")
        return module
    except Exception as error:  # diffusers meets files from anywhere and raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KcdpError(
            f"{source}{'/' + subfolder if subfolder else ''} cannot be loaded ({reason})",
            f"a {kind.__name__} in diffusers layout",
            "name a local folder, or a hub name where there is a network",
        ) from None


def _check_kind(kind: Any, path: Path) -> None:
    """diffusers would build the kind asked for from any config, with default sizes for what is not in it."""
    config = read_json(path)
    found = config.get("_class_name", kind.__name__) if isinstance(config, dict) else f"a {type(config).__name__}"
    if found != kind.__name__:
        hint = "name another folder" + (" or set model.encoder.kind" if kind is not UNet2DConditionModel else "")
        raise KcdpError(f"{path} describes {found}", kind.__name__, hint)
