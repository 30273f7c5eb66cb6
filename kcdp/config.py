"""The configuration: frozen dataclasses, read strictly from TOML, stored in every checkpoint and bundle.

A preset is a TOML file that holds only what differs from the defaults here. Later sources win:
defaults, preset, ``--config FILE``, ``--set key=value``. An unknown key or a value of the wrong kind is an
error that names the nearest valid one, and all errors are reported together.
"""

from __future__ import annotations

import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from kcdp.errors import KcdpError, nearest, require
from kcdp.preprocess import PreprocessSpec

PRESETS = Path(__file__).parent / "presets"

#: table -> field -> (lowest, highest), None where there is no highest; of a list, every entry.
_RANGES: Mapping[str, Mapping[str, tuple[float, float | None]]] = {
    "model": {"timestep": (0, 999)},
    "model.encoder": {"channels": (1, 4096), "blocks": (0, 64), "latent_channels": (1, 1024)},
    "model.unet": {"channels": (1, 8192), "layers_per_block": (1, 64), "heads": (1, 256), "norm_groups": (1, 1024)},
    "model.knowledge": {"tokens": (1, 4096), "width": (1, 16384)},
    "model.head": {"pyramid_channels": (1, 8192), "experts": (1, 1024), "hidden": (1, 65536), "top_k": (1, 1024)},
    "training": {
        "epochs": (1, None), "max_steps": (0, None), "batch_size": (1, None), "learning_rate": (1e-12, 10),
        "weight_decay": (0, 100), "warmup_steps": (0, None), "gradient_clip": (0, None), "label_smoothing": (0, 1),
        "balance_weight": (0, None), "validate_every": (0, None), "workers": (0, 1024), "seed": (0, 2**63 - 1),
    },
}  # fmt: skip


def _check(table: str, values: Any, *more: str) -> None:
    """One KcdpError with every value that is out of its range, and ``more``, where that is not empty."""
    mistakes = []
    for name, (low, high) in _RANGES[table].items():
        value = getattr(values, name)
        entries = value if isinstance(value, tuple) else (value,)
        if not all(low <= entry <= (entry if high is None else high) for entry in entries):
            expected = f"{low} or more" if high is None else f"{low} to {high}"
            mistakes.append(f"{table}.{name} is {_plain(value)!r}; expected {expected}")
    mistakes += filter(None, more)
    if mistakes:
        raise KcdpError(_SEPARATOR.join(mistakes))


_SEPARATOR = " | "


@dataclass(frozen=True)
class EncoderConfig:
    """The autoencoder half that turns a picture into latents.

    Attributes:
        kind: "kl" (diffusers AutoencoderKL) or "tiny" (AutoencoderTiny).
        source: a local folder or hub name in diffusers layout; empty: ``backbone``'s ``vae`` folder,
            or made from scratch when there is no backbone.
        channels: width of a made-from-scratch encoder.
        blocks: residual blocks per resolution of a made-from-scratch encoder; each entry after the
            first halves the resolution.
        latent_channels: channels of a made-from-scratch encoder's latents.
    """

    kind: Literal["kl", "tiny"] = "kl"
    source: str = ""
    channels: int = 32
    blocks: tuple[int, ...] = (1, 1, 1)
    latent_channels: int = 8

    def __post_init__(self) -> None:
        _check("model.encoder", self, "" if self.blocks else "model.encoder.blocks is empty; expected one or more")


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net made from scratch; ignored when ``model.backbone`` names one.

    Attributes:
        channels: width of each level, finest first; four levels.
        layers_per_block: ResNet blocks per level on the way down (one more on the way up).
        attention: which levels have self- and cross-attention.
        heads: attention heads.
        norm_groups: groups of every GroupNorm.
    """

    channels: tuple[int, ...] = (32, 64, 96, 128)
    layers_per_block: int = 1
    attention: tuple[bool, ...] = (False, True, True, False)
    heads: int = 4
    norm_groups: int = 16

    def __post_init__(self) -> None:
        entries, groups = (len(self.channels), len(self.attention)), max(1, self.norm_groups)
        _check(
            "model.unet", self,
            "" if entries == (4, 4) else
            f"model.unet.channels has {entries[0]} entries and attention {entries[1]}; expected four of each",
            "" if not any(width % groups for width in self.channels) else
            f"model.unet.norm_groups is {groups}; expected a divisor of all of model.unet.channels "
            f"({', '.join(map(str, self.channels))})",
        )  # fmt: skip


@dataclass(frozen=True)
class KnowledgeConfig:
    """The knowledge tokens k that steer the cross-attention.

    Attributes:
        mode: "constant": one learned set of tokens for all pictures.
        tokens: number of tokens (154 in the paper: caption and triples).
        width: width of a token (768 in the paper); with a backbone it must be its cross-attention width.
    """

    mode: Literal["constant"] = "constant"
    tokens: int = 154
    width: int = 768

    def __post_init__(self) -> None:
        _check("model.knowledge", self)


@dataclass(frozen=True)
class HeadConfig:
    """Feature pyramid and mixture-of-experts predictor.

    Attributes:
        pyramid_channels: width of every pyramid level; v has four times as many entries.
        experts, hidden, top_k: number of experts, their hidden width, how many answer.
        renormalize: whether the chosen gates are brought back to a sum of 1 (the paper: no).
        normalize_v: batch normalisation of v before the experts (the paper: no; a backbone made from scratch
            needs it, or the gate settles on two experts before the features mean anything).
    """

    pyramid_channels: int = 256
    experts: int = 4
    hidden: int = 128
    top_k: int = 2
    renormalize: bool = False
    normalize_v: bool = False

    def __post_init__(self) -> None:
        _check(
            "model.head", self,
            "" if self.top_k <= self.experts else
            f"model.head.top_k is {self.top_k}; expected at most the number of experts ({self.experts})",
        )  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """What the model is.

    Attributes:
        backbone: a folder or hub name in diffusers layout (``unet``, ``vae``); "scratch" builds from
            the ``unet`` and ``encoder`` tables; empty where a preset leaves the choice to the user.
        train_backbone: whether encoder and U-Net train; frozen parts are not stored in checkpoints.
        timestep: diffusion timestep of the single pass (the paper: 1).
        scale_latents: multiply latents by the autoencoder's scaling factor (released code: no).
    """

    backbone: str = "scratch"
    train_backbone: bool = False
    timestep: int = 1
    scale_latents: bool = True
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        _check("model", self)


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained.

    Attributes:
        epochs: passes over the source.
        max_steps: stop after so many optimiser steps; 0: no limit. The schedule spans what is run.
        batch_size: pictures per step.
        learning_rate, weight_decay, warmup_steps, gradient_clip: AdamW and its schedule (cosine to
            zero after a linear warm-up); weight decay spares norms and biases; clip 0 turns it off.
        class_weighting: "none", "sqrt" or "balanced": weights 1, n^-1/2 or n^-1, mean 1 over samples.
        label_smoothing: 0..1.
        balance_weight: weight of the expert-balance loss.
        augmentation: "none", "light" (crop, flip) or "strong" (and RandAugment, colour, cutting out, erasing).
        mixed_precision: "auto" takes bf16 or fp16 where the device has it, "no", "bf16", "fp16".
        validate_every: steps between validations; 0: once per epoch.
        workers: processes that read pictures; 0: the training process itself.
        seed: of weights, order and augmentation.
        device: "auto", "cpu", "cuda", "cuda:1", ...
    """

    epochs: int = 10
    max_steps: int = 0
    batch_size: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    class_weighting: Literal["none", "sqrt", "balanced"] = "sqrt"
    label_smoothing: float = 0.0
    balance_weight: float = 0.01
    augmentation: Literal["none", "light", "strong"] = "strong"
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    validate_every: int = 0
    workers: int = 0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        _check("training", self)


@dataclass(frozen=True)
class DataConfig:
    """Which pictures: dataset strings such as ``fer2013:PATH?split=train``.

    Attributes:
        source: labelled training pictures.
        validation: pictures that choose the best checkpoint; empty: the source's own "val" split.
    """

    source: str = ""
    validation: str = ""


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run does."""

    preset: str = "edge"
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessSpec = field(default_factory=lambda: PreprocessSpec(size=512))
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` is the inverse."""
        return _plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Raises one KcdpError that lists every unknown key and every wrong value."""
        errors: list[str] = []
        config = _build(cls, data, "", errors)
        if errors:
            count = f"{len(errors)} mistakes: " if len(errors) > 1 else ""
            raise KcdpError(f"configuration: {count}" + " | ".join(errors))
        return config


def load_config(
    preset: str, file: str | Path | None = None, overrides: Sequence[str] = (), data: Mapping[str, Any] | None = None
) -> Config:
    """Defaults, then the preset, then a TOML file, then ``key=value`` overrides, then ``data``.

    Args:
        preset: name of a preset ("edge", "tiny", "sd15").
        file: TOML with the same tables.
        overrides: such as ``training.epochs=3``; the value is read as TOML, or as a string if it is not.
        data: tables that the command line's own options set, such as ``{"data": {"source": ...}}``.

    Raises:
        KcdpError: unknown preset, unreadable file, or any mistake in the keys and values.
    """
    names = preset_names()
    if preset not in names:
        raise KcdpError(f"preset {preset!r} is unknown{nearest(preset, names)}", f"one of {', '.join(names)}")
    merged: dict[str, Any] = {"preset": preset}
    _merge(merged, _read_toml(PRESETS / f"{preset}.toml"))
    if file is not None:
        _merge(merged, _read_toml(Path(file)))
    for override in overrides:
        _merge(merged, _parse_override(override))
    _merge(merged, data or {})
    if merged["preset"] != preset:
        raise KcdpError(
            f"a setting names the preset {merged['preset']!r}", f"{preset!r}, as chosen", "choose it with --preset"
        )
    return Config.from_dict(merged)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def _toml() -> Any:
    return require("tomllib" if sys.version_info >= (3, 11) else "tomli", "train")


def _read_toml(path: Path) -> dict[str, Any]:
    toml = _toml()
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KcdpError(f"{path} does not exist", "a TOML file") from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KcdpError(f"{path} is not valid TOML ({error})", fix="mend that line") from None
    except OSError as error:
        raise KcdpError(f"{path} cannot be read ({error.strerror})", "a TOML file") from None


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise KcdpError(f"--set {text!r}", "key=value", "write for example --set training.epochs=3")
    try:
        parsed = _toml().loads(f"value = {value}")["value"]
    except _toml().TOMLDecodeError:
        parsed = value.strip()
    nested: Any = parsed
    for part in reversed(parts):
        nested = {part: nested}
    return nested


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _build(cls: type, data: Any, where: str, errors: list[str]) -> Any:
    if not isinstance(data, Mapping):
        errors.append(f"{where or 'the configuration'} is {data!r}; expected a table")
        return None
    hints = typing.get_type_hints(cls)
    valid = [f.name for f in fields(cls)]
    values: dict[str, Any] = {}
    before = len(errors)
    for key, value in data.items():
        path = f"{where}.{key}" if where else key
        if key not in valid:
            known = ", ".join(valid)
            errors.append(f"{path} is unknown{nearest(key, valid)}; expected one of {known}")
        elif is_dataclass(hints[key]):
            values[key] = _build(hints[key], value, path, errors)
        else:
            values[key] = _convert(hints[key], value, path, errors)
    if len(errors) > before:
        return None
    try:
        return cls(**values)
    except KcdpError as error:
        errors += str(error).split(_SEPARATOR)
    except TypeError as error:
        errors.append(f"{where}: {error}")
    return None


def _convert(hint: Any, value: Any, path: str, errors: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            hint_text = nearest(str(value), [str(a) for a in arguments])
            errors.append(f"{path} is {value!r}{hint_text}; expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            errors.append(f"{path} is {value!r}; expected a list")
            return value
        inner = arguments[0]
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            errors.append(f"{path} has {len(value)} entries; expected {len(arguments)}")
        return tuple(_convert(inner, item, f"{path}[{i}]", errors) for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        errors.append(f"{path} is {value!r}; expected a finite number")
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        errors.append(f"{path} is {value!r}; expected {names.get(hint, hint)}")
    return value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, int, float, bool, types.NoneType)):
        return value
    raise TypeError(f"configuration value of type {type(value).__name__}")
