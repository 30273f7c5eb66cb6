"""What tests of training share: the tiny model on drawn pictures, and ways to look at a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kcdp.cli import main
from kcdp.config import Config, load_config
from kcdp.errors import KcdpError
from kcdp.training.log import LOG
from kcdp.training.pictures import open_pictures
from kcdp.training.progress import Pictures
from kcdp.training.trainer import Trainer

SOURCE = "synthetic:photos?n=48&size=32"  # 40 pictures to train on, 4 to validate on
TARGET = "synthetic:stickers?n=36&size=32&seed=5"  # 26 pictures to adapt to
BASE = (
    "training.mixed_precision=no", "training.batch_size=8", "training.warmup_steps=2", "training.tensorboard=false",
    f"data.source={SOURCE}",
)  # fmt: skip
STEPS_PER_EPOCH = 5


def tiny(*overrides: str) -> Config:
    """The setting UC, without captions."""
    return load_config("tiny", overrides=(*BASE, *overrides))


def trainer_of(config: Config, out: Path, **options: Any) -> Trainer:
    """As the command makes it."""
    pictures, text = open_pictures(config)
    return Trainer(config, pictures, out, text=text, **options)


def write_captions(folder: Path) -> list[str]:
    """Captions of source and target, told from the drawings."""
    files = [folder / "photos.jsonl", folder / "stickers.jsonl"]
    for data, file in zip((SOURCE, TARGET), files, strict=True):
        assert main(["knowledge", "caption", "--data", data, "--captioner", "drawn", "--out", str(file)]) == 0
    return [str(file) for file in files]


def adapting(captions: list[str], *overrides: str) -> Config:
    """The setting DA with explicit knowledge, where ``captions`` are given."""
    data = {"data": {"target": TARGET, "captions": captions}}
    return load_config("tiny", overrides=(*BASE, "training.target_batch_size=6", *overrides), data=data)


def fails(call: Callable[[], Any]) -> str:
    """The one line of a KcdpError."""
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run ``kcdp``: status, standard output, and the last line of standard error."""
    capsys.readouterr()
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, (captured.err.splitlines() or [""])[-1]


def train_arguments(out: Path, *overrides: str) -> list[object]:
    """``kcdp train`` with the settings of ``tiny``."""
    sets = [part for text in (*BASE[:4], *overrides) for part in ("--set", text)]
    return ["train", "--preset", "tiny", "--source", SOURCE, "--out", out, *sets]


def record_losses(trainer: Trainer) -> list[dict[str, float]]:
    """The losses of every step to come."""
    losses: list[dict[str, float]] = []
    step = trainer.train_step
    trainer.train_step = lambda *batch: (losses.append(step(*batch)), losses[-1])[1]  # type: ignore[method-assign]
    return losses


def record_batches(trainer: Trainer) -> list[dict[str, list]]:
    """The pictures of source and target of every step to come, as bytes, with their knowledge."""
    seen: list[dict[str, list]] = []
    step = trainer.train_step

    def noting(*batches: Any) -> dict[str, float]:
        named = zip(("source", "target"), batches, strict=False)
        seen.append({name: [None if part is None else part.numpy().tobytes() for part in batch]
                     for name, batch in named if batch is not None})  # fmt: skip
        return step(*batches)

    trainer.train_step = noting  # type: ignore[method-assign]
    return seen


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that decides how training goes on: weights, their average, the optimiser's state, running means."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    found = {f"optimizer/{names[p]}/{k}": v for p, s in trainer.optimizer.state.items() for k, v in s.items()}
    found |= {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    for part, module in (("average", trainer.average), ("step", trainer.step)):
        found |= {f"{part}/{name}": value for name, value in (module.state_dict() if module else {}).items()}
    return found


def part(found: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """One part of ``state``: "model", "average", "optimizer" or "step"."""
    return {key.removeprefix(f"{name}/"): value for key, value in found.items() if key.startswith(f"{name}/")}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """The same names, and the same values to the bit."""
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    """A row of the log, or a progress, without what the clock says."""
    return {name: value for name, value in found.items() if name not in ("seconds", "waiting")}


def rows(run: Path) -> list[dict[str, Any]]:
    """The log; strict JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    lines = (run / LOG).read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def open_tiny() -> Pictures:
    """Source and validation of ``tiny()``, each picture drawn once for whoever shares them."""
    return open_pictures(tiny())[0]
