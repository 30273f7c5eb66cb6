"""The configuration: the settings' tables, read strictly from TOML, stored in every checkpoint and bundle.

A preset (how large the model is) and a profile (whose method it follows) are TOML files that hold only what differs
from the defaults. Later sources win: defaults, preset, profile, ``--config FILE``, ``--set key=value``. An unknown key
or a value of the wrong kind is an error that names the nearest valid one, and all errors are reported together.
"""

from __future__ import annotations

import math
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from kcdp.errors import KcdpError, nearest, require
from kcdp.preprocess import PreprocessSpec
from kcdp.settings import SEPARATOR, DataConfig, ModelConfig, TrainingConfig

PRESETS = Path(__file__).parent / "presets"
PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run does."""

    preset: str = "edge"
    profile: str = "paper"
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessSpec = field(default_factory=lambda: PreprocessSpec(size=512))
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def check_backbone(self) -> None:
        """Raises KcdpError: no backbone named, or a local folder that does not exist; of the network "kadap"."""
        name = self.model.backbone
        if self.model.network != "kadap":  # their own builders know what the name may be
            return
        if not name:
            raise KcdpError(
                f"preset {self.preset!r} needs weights and model.backbone is empty",
                "a folder in diffusers layout (unet, vae)",
                "add --set model.backbone=FOLDER",
            )
        on_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        if name != "scratch" and not on_hub and not os.path.exists(name):
            raise KcdpError(f"{name} does not exist", "a folder in diffusers layout (unet, vae)", "name its folder")

    def check_latents(self) -> None:
        """Raises KcdpError: latents are to be cached of a network that has none, or of an encoder that trains."""
        model, training = self.model, self.training
        if not training.cache_latents:
            return
        if model.network != "kadap":
            raise KcdpError(
                f"training.cache_latents is true and model.network {model.network!r}", "the network 'kadap'",
                "leave out training.cache_latents",
            )  # fmt: skip
        distils = model.knowledge.mode == "implicit" and training.implicit == "distill"
        if model.train_backbone and model.train_encoder and not distils:
            raise KcdpError(
                "training.cache_latents is true and the encoder trains", "a frozen encoder, whose latents stay",
                "add --set model.train_encoder=false, or leave out training.cache_latents",
            )  # fmt: skip

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
    preset: str,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    *,
    profile: str = "paper",
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Defaults, then the preset, the profile, ``base``, a TOML file, ``key=value`` overrides, then ``data``.

    Captions given in ``data`` are there to be used: the mode of knowledge is then "explicit" where the file and the
    overrides say nothing else.

    Args:
        preset: name of a preset ("edge", "tiny", "sd15").
        file: TOML with the same tables.
        overrides: such as ``training.epochs=3``; the value is read as TOML, or as a string if it is not.
        data: tables that the command line's own options set, such as ``{"data": {"source": ...}}``.
        profile: "paper" or "as-published-code".
        base: tables of another run that this one starts from.

    Raises:
        KcdpError: unknown preset or profile, unreadable file, or any mistake in the keys and values.
    """
    for kind, name, names in (("preset", preset, preset_names()), ("profile", profile, profile_names())):
        if name not in names:
            raise KcdpError(f"{kind} {name!r} is unknown{nearest(name, names)}", f"one of {', '.join(names)}")
    merged: dict[str, Any] = {"preset": preset, "profile": profile}
    _merge(merged, _read_toml(PRESETS / f"{preset}.toml"))
    _merge(merged, _read_toml(PROFILES / f"{profile}.toml"))
    _merge(merged, base or {})
    if (data or {}).get("data", {}).get("captions"):
        _merge(merged, {"model": {"knowledge": {"mode": "explicit"}}})
    if file is not None:
        _merge(merged, _read_toml(Path(file)))
    for override in overrides:
        _merge(merged, _parse_override(override))
    _merge(merged, data or {})
    for kind, name in (("preset", preset), ("profile", profile)):
        if merged[kind] != name:
            raise KcdpError(
                f"a setting names the {kind} {merged[kind]!r}", f"{name!r}, as chosen", f"choose it with --{kind}"
            )
    return Config.from_dict(merged)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


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
        errors += str(error).split(SEPARATOR)
    except TypeError as error:
        errors.append(f"{where}: {error}")
    return None


def _convert(hint: Any, value: Any, path: str, errors: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            hint_text = nearest(str(value), [str(a) for a in arguments])
            known = ", ".join(a if a.strip() else repr(a) for a in arguments)
            errors.append(f"{path} is {value!r}{hint_text}; expected one of {known}")
        return value
    if origin is tuple:
        if isinstance(value, str) and arguments[0] is str:
            return (value,) if value else ()  # one text stands for a list of one
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
