"""The training loop: source labels only, resumable to the bit on a CPU."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from kcdp.config import Config, TrainingConfig
from kcdp.data.loader import EpochSampler, TensorDataset, training_batches
from kcdp.errors import KcdpError
from kcdp.files import atomic_file, make_folder
from kcdp.labels import NUM_CLASSES
from kcdp.models.build import build_model, load_trainable_state
from kcdp.models.kadap import Kadap
from kcdp.models.moe import balance_loss
from kcdp.training.checkpoint import BEST, LAST, Checkpoint, restore_optimizer, save_checkpoint
from kcdp.training.device import autocast, autocast_dtype, resolve_device
from kcdp.training.metrics import classification_metrics
from kcdp.training.predict import predict_logits

LOG = "log.jsonl"


@dataclass
class Progress:
    """Where training stands; stored in every checkpoint.

    Attributes:
        step: optimiser steps done.
        best: best validation balanced accuracy so far, 0..1; -1 before the first validation.
        best_step: the step that gave it.
        seconds: time spent in training, over all resumptions.
        validation: the latest validation metrics.
        validated: the step they were measured at.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    seconds: float = 0.0
    validation: dict[str, Any] = field(default_factory=dict)
    validated: int = 0


class DivergedError(KcdpError):
    """The loss is not a finite number; the weights that gave it are not worth keeping."""


class Trainer:
    """Trains one configuration into one run folder.

    Args:
        config: everything that decides the result.
        source: augmented training pictures, all labelled.
        validation: pictures that choose the best checkpoint; no augmentation.
        out: the run folder, made if need be; holds ``best.safetensors``, ``last.safetensors`` and ``log.jsonl``.
        resume: the checkpoint to go on from.
    """

    def __init__(
        self,
        config: Config,
        source: TensorDataset,
        validation: TensorDataset,
        out: Path,
        resume: Checkpoint | None = None,
    ) -> None:
        training = config.training
        if config.model.head.normalize_v and min(training.batch_size, len(source)) < 2:
            raise KcdpError(
                "a training step has one picture", "2 or more, for model.head.normalize_v",
                "raise training.batch_size, or add --set model.head.normalize_v=false",
            )  # fmt: skip
        self.config, self.source, self.validation, self.out = config, source, validation, out
        self.device = resolve_device(training.device)
        self.dtype = autocast_dtype(training.mixed_precision, self.device)
        self.model = build_model(config)
        if resume is not None:
            load_trainable_state(self.model, resume.model, str(out / LAST))
        self.model.to(self.device).train()
        self.optimizer = make_optimizer(self.model, training)
        self.progress = Progress()
        if resume is not None:
            restore_optimizer(self.model, self.optimizer, resume.optimizer)
            self.progress = _read_progress(resume, out)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.class_weights = class_weights(source.labels, training.class_weighting).to(self.device)
        per_epoch = EpochSampler(len(source), training.batch_size, training.seed).batches_per_epoch
        self.total_steps = training.epochs * per_epoch
        if training.max_steps:
            self.total_steps = min(self.total_steps, training.max_steps)
        self.validate_every = training.validate_every or per_epoch
        make_folder(out)

    def run(self, stop_after: int | None = None) -> Progress:
        """Train to the end, or to step ``stop_after``, then save.

        An interrupt (SIGINT, SIGTERM) lets the step at hand end, saves ``last.safetensors`` and raises
        KeyboardInterrupt. A picture that cannot be read saves too, once a step is done.

        Raises:
            KcdpError: the loss is not finite, or a picture cannot be read.
        """
        first, until = self.progress.step, min(self.total_steps, stop_after or self.total_steps)
        training = self.config.training
        batches = training_batches(
            self.source, training.batch_size, training.seed, self.progress.step, training.workers
        )
        self._begin_log()
        bar = tqdm(
            total=self.total_steps, initial=first, unit="step", desc="train", smoothing=0.05, disable=None
        )  # fmt: skip
        with bar, interrupts_raise():
            started = time.perf_counter()
            try:
                if self._validation_due():  # an interrupt had come before it
                    self.validate()
                while self.progress.step < until:
                    images, labels = next(batches)
                    with interrupts_deferred():  # weights, statistics, optimiser state and step change together
                        losses = self.train_step(images, labels)
                    bar.update()
                    now = time.perf_counter()
                    self.progress.seconds += now - started
                    started = now
                    if self.progress.step % 10 == 0 or self.progress.step == until:
                        bar.set_postfix(loss=f"{losses['loss']:.3f}", best=f"{self.progress.best:.3f}")
                        self._log({"step": self.progress.step, "lr": self.optimizer.param_groups[0]["lr"], **losses})
                    if self._validation_due():
                        self.validate()
            except DivergedError:
                raise
            except (KeyboardInterrupt, KcdpError) as error:
                if self.progress.step > first or isinstance(error, KeyboardInterrupt):
                    self.save_last()
                raise
        if self.progress.step != self.progress.validated:  # a validation has saved it
            self.save_last()
        return self.progress

    def train_step(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """One optimiser step on uint8 [N, S, S, 3] and int64 [N]; returns the losses."""
        training = self.config.training
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with autocast(self.device, self.dtype):
            output = self.model(images.to(self.device, non_blocking=True))
        classification = F.cross_entropy(
            output.logits.float(), labels.to(self.device), self.class_weights, label_smoothing=training.label_smoothing
        )
        balance = balance_loss(output.moe, self.config.model.head.top_k)
        loss = classification + training.balance_weight * balance.float()
        if not math.isfinite(loss.item()):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.progress.step + 1}", "a finite number",
                f"start a new run with a lower training.learning_rate (now {training.learning_rate})",
            )  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if training.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained(), training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step += 1
        return {"loss": loss.item(), "classification": classification.item(), "balance": balance.item()}

    def validate(self) -> None:
        """Measure on the validation pictures, keep the best model, save the latest state."""
        logits = predict_logits(
            self.model, self.validation, self.config.preprocess,
            device=self.device, dtype=self.dtype, batch_size=2 * self.config.training.batch_size, progress="validate",
        )  # fmt: skip
        metrics = classification_metrics(self.validation.labels, logits.argmax(1))
        keep = ("n", "accuracy", "balanced_accuracy", "macro_f1", "recall", "constant_baseline")
        step = self.progress.step
        progress = replace(self.progress, validation={k: metrics[k] for k in keep}, validated=step)
        if metrics["balanced_accuracy"] > progress.best:
            progress.best, progress.best_step = metrics["balanced_accuracy"], step
            save_checkpoint(self.out / BEST, self.model, self.config, vars(progress))
        self.progress = progress  # not before: an interrupted validation is done again
        self._log({"step": step, "validation": progress.validation})
        balanced, accuracy = metrics["balanced_accuracy"], metrics["accuracy"]
        tqdm.write(f"step {step}: validation balanced accuracy {balanced:.4f}, accuracy {accuracy:.4f}")
        self.save_last()

    def save_last(self) -> None:
        """Everything needed to go on from here."""
        save_checkpoint(self.out / LAST, self.model, self.config, vars(self.progress), self.optimizer)

    def _validation_due(self) -> bool:
        step = self.progress.step
        return step > self.progress.validated and (step % self.validate_every == 0 or step == self.total_steps)

    def _learning_rate(self) -> float:
        training = self.config.training
        return learning_rate(self.progress.step, self.total_steps, training.warmup_steps, training.learning_rate)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _begin_log(self) -> None:
        """Leave in the log only the steps that are not done again: none of them in a new run."""
        path = self.out / LOG
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        with atomic_file(path) as temporary:
            kept = [line for line in lines if _step_of(line) <= self.progress.step]
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _log(self, row: dict[str, Any]) -> None:
        row = {**row, "seconds": round(self.progress.seconds, 2)}
        try:
            with (self.out / LOG).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        except OSError as error:
            raise KcdpError(f"writing {self.out / LOG} failed ({error.strerror})", fix="free some space") from None


def _read_progress(resume: Checkpoint, out: Path) -> Progress:
    try:
        return Progress(**resume.progress)
    except TypeError as error:
        raise KcdpError(f"{out / LAST}: {error}", fix="use the kcdp that wrote it") from None


def _step_of(line: str) -> float:
    """The step of a row of the log; infinite for what is not a row."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def make_optimizer(model: Kadap, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices and kernels only, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear from 0 over the warm-up (at most a fifth of the run), then half a cosine down to 0 at ``total``."""
    warmup = min(warmup, max(1, total // 5))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def class_weights(labels: np.ndarray, weighting: str) -> torch.Tensor:
    """float32 [6]: weights of the cross-entropy, with mean 1 over the pictures; 0 for a class without one."""
    counts = np.bincount(labels, minlength=NUM_CLASSES).astype(np.float64)
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[weighting]
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** -power, 0.0)
    weights *= counts.sum() / (weights * counts).sum()
    return torch.tensor(weights, dtype=torch.float32)


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt like SIGINT does, while the block runs (main thread only)."""

    def raise_interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, raise_interrupt)
    except ValueError:  # not the main thread: leave signals to whoever runs it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until the block has ended (main thread only)."""
    caught: list[int] = []
    try:
        before = {
            number: signal.signal(number, lambda number, _frame: caught.append(number))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not the main thread: signals do not arrive here
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if caught:
        signal.raise_signal(caught[0])
