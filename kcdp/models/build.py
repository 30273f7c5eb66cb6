"""From a configuration to a model: from scratch, or from weights in diffusers layout."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn

from kcdp.config import Config, EncoderConfig, ModelConfig
from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.models.diffusion_features import DiffusionFeatures
from kcdp.models.kadap import Kadap
from kcdp.models.latents import LatentEncoder


def build_model(config: Config) -> Kadap:
    """The model of a configuration, in float32 on the CPU, in training mode.

    Made-from-scratch parts are seeded by ``training.seed``. A frozen backbone has ``requires_grad`` off.

    Raises:
        KcdpError: no backbone named, weights missing or not fitting, picture size not a fitting multiple.
    """
    if not config.model.backbone:
        raise KcdpError(
            f"preset {config.preset!r} needs weights and model.backbone is empty",
            "a folder in diffusers layout (unet, vae)",
            "add --set model.backbone=FOLDER",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        features = build_features(config.model)
        if config.model.backbone != "scratch" and features.width != config.model.knowledge.width:
            raise KcdpError(
                f"model.knowledge.width is {config.model.knowledge.width}",
                f"{features.width}, the cross-attention width of {config.model.backbone}",
                f"add --set model.knowledge.width={features.width}",
            )
        model = Kadap(features, config.model.head, config.preprocess.value_range)
    size, multiple = config.preprocess.size, features.size_multiple
    if size % multiple:
        raise KcdpError(
            f"preprocess.size is {size}",
            f"a multiple of {multiple} for this model",
            f"try {size // multiple * multiple or multiple}",
        )
    features.requires_grad_(config.model.train_backbone)
    return model.train()


def build_features(config: ModelConfig) -> DiffusionFeatures:
    """The feature extractor alone: autoencoder encoder and U-Net, parts it never runs left out."""
    scratch = config.backbone == "scratch"
    unet = _scratch_unet(config) if scratch else _load(UNet2DConditionModel, config.backbone, "unet")
    source, subfolder = (config.encoder.source, "") if config.encoder.source else (config.backbone, "vae")
    kind = AutoencoderKL if config.encoder.kind == "kl" else AutoencoderTiny
    autoencoder = _scratch_encoder(config.encoder) if source == "scratch" else _load(kind, source, subfolder)
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None  # the noise prediction is never asked for
    encoder = LatentEncoder(autoencoder, scale=config.scale_latents)
    return DiffusionFeatures(unet, encoder, tokens=config.knowledge.tokens, timestep=config.timestep)


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What belongs in a checkpoint: trained parameters and all persistent buffers, frozen parameters left out."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
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
