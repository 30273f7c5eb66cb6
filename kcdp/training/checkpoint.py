"""Checkpoints: safetensors files with the configuration inside, whole or not there at all.

A run folder holds ``best.safetensors`` (what inference needs, nothing else) and ``last.safetensors`` (the same
of the latest step, with the optimiser's state, from which training goes on). Frozen weights are in neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from kcdp.config import Config
from kcdp.errors import KcdpError
from kcdp.files import atomic_file
from kcdp.models.build import build_model, load_trainable_state, trainable_state
from kcdp.models.network import EmotionNetwork

BEST, LAST = "best.safetensors", "last.safetensors"
_FORMAT = "kcdp-checkpoint-3"
_OPTIMIZER, _PARTS = "optimizer/", "part/"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        config: the configuration it was trained with.
        progress: plain numbers: step, best score, seconds trained, metrics.
        model: trained tensors by name.
        optimizer: AdamW state by parameter: ``"<parameter>/exp_avg"``, ...; empty in ``best``.
        parts: what else is needed to go on: ``"<part>/<name>"``; see ``part``.
    """

    config: Config
    progress: dict[str, Any]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one part, by name; empty where it is not there."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.parts.items() if key.startswith(prefix)}


def save_checkpoint(
    path: Path,
    model: EmotionNetwork,
    config: Config,
    progress: dict[str, Any],
    optimizer: Mapping[str, torch.Tensor] | None = None,
    parts: Mapping[str, dict[str, torch.Tensor]] | None = None,
) -> None:
    """Write atomically.

    Args:
        optimizer: see ``optimizer_state``; with ``parts``, only where training is to go on from this file.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in trainable_state(model).items()}
    for part, values in (parts or {}).items():
        tensors |= {f"{_PARTS}{part}/{name}": value.detach().contiguous().cpu() for name, value in values.items()}
    if optimizer is not None:
        tensors |= {_OPTIMIZER + key: value.contiguous().cpu() for key, value in optimizer.items()}
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(config.to_dict()),
        "progress": json.dumps(progress, allow_nan=False),
    }
    with atomic_file(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise KcdpError(f"writing {path} failed ({error})", fix="free some space or choose another place") from None


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        KcdpError: missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not os.path.isfile(path):
        found = "is a folder" if os.path.isdir(path) else "does not exist"
        raise KcdpError(f"{path} {found}", "a checkpoint", "train one with: kcdp train")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("format", "").startswith("kcdp-checkpoint-") and metadata["format"] != _FORMAT:
                raise KcdpError(f"{path} was written by another kcdp", fix="use the kcdp that wrote it, or train again")
            if metadata.get("format") != _FORMAT:
                raise KcdpError(f"{path} is not a kcdp checkpoint", "best.safetensors or last.safetensors of a run")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise KcdpError(f"{path} is damaged ({error})", fix="take another checkpoint or train again") from None
    config, progress = _read_metadata(path, metadata)
    return Checkpoint(
        config=config,
        progress=progress,
        model={k: v for k, v in tensors.items() if not k.startswith((_OPTIMIZER, _PARTS))},
        optimizer={k.removeprefix(_OPTIMIZER): v for k, v in tensors.items() if k.startswith(_OPTIMIZER)},
        parts={k.removeprefix(_PARTS): v for k, v in tensors.items() if k.startswith(_PARTS)},
    )


def _read_metadata(path: Path, metadata: dict[str, str]) -> tuple[Config, dict[str, Any]]:
    try:
        config, progress = (json.loads(metadata[key]) for key in ("config", "progress"))
        if not isinstance(progress, dict):
            raise ValueError("progress is no object")
        return Config.from_dict(config), progress
    except KcdpError as error:
        raise KcdpError(f"{path}: {error}", fix="use the kcdp that wrote it") from None
    except (KeyError, ValueError) as error:
        raise KcdpError(f"{path} is damaged ({error!r})", fix="take another checkpoint or train again") from None


def find_checkpoint(run: str | Path) -> Path:
    """The file meant by RUN: a checkpoint itself, or a run folder's best, else last.

    Raises:
        KcdpError: nothing there.
    """
    run = Path(run)
    if os.path.isfile(run):
        return run
    for name in (BEST, LAST):
        if os.path.isfile(run / name):
            return run / name
    found = "a folder without a checkpoint" if os.path.isdir(run) else "not there"
    raise KcdpError(f"{run} is {found}", f"a run folder with {BEST}, or a checkpoint", "train one with: kcdp train")


def load_model(run: str | Path) -> tuple[EmotionNetwork, Checkpoint]:
    """The model of a run, in evaluation mode on the CPU.

    Raises:
        KcdpError: see ``find_checkpoint``, ``load_checkpoint`` and ``build_model``.
    """
    path = find_checkpoint(run)
    checkpoint = load_checkpoint(path)
    model = build_model(checkpoint.config, state=checkpoint.model)
    load_trainable_state(model, checkpoint.model, str(path))
    return model.eval(), checkpoint


def load_buffers(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """The inverse of ``state_dict`` for a module of our own.

    Raises:
        KcdpError: the tensors are not those of this module.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise KcdpError(f"{where}: {reason}", fix="use the checkpoint with its own settings") from None


def trained_parameters(model: nn.Module, step: nn.Module) -> dict[str, nn.Parameter]:
    """By the names that the optimiser's state is stored under: those of the step begin with ``step.``."""
    return dict(model.named_parameters()) | {f"step.{name}": p for name, p in step.named_parameters()}


def optimizer_state(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """AdamW's state, named by parameter."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: dict[str, torch.Tensor]
) -> None:
    """The inverse of ``optimizer_state``; parameters without a stored state start afresh.

    Raises:
        KcdpError: the state is not AdamW's, or not that of this model.
    """
    by_parameter: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        name, _, part = key.rpartition("/")
        by_parameter.setdefault(name, {})[part] = value
    for name, parameter in parameters.items():
        stored = by_parameter.pop(name, {})
        shapes = {k: tuple(v.shape) for k, v in stored.items()}
        moment = tuple(parameter.shape)
        if stored and shapes != {"step": (), "exp_avg": moment, "exp_avg_sq": moment}:
            raise KcdpError(
                f"the optimiser's state of {name} is {shapes}", f"step, exp_avg, exp_avg_sq of {moment}", "train again"
            )
        if stored:
            optimizer.state[parameter] = {  # copied: the optimiser changes them in place
                k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in stored.items()
            }
    if by_parameter:
        raise KcdpError(f"the optimiser's state has {min(by_parameter)}", "parameters of this model", "train again")
