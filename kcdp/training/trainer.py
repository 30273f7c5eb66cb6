"""The training loop, resumable to the bit on a CPU; what a step is stands in ``steps`` and ``baselines``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kcdp.config import Config
from kcdp.data.loader import Item, training_batches
from kcdp.data.sampler import EpochSampler, mix_seeds
from kcdp.errors import KcdpError
from kcdp.files import make_folder
from kcdp.knowledge.text import TextEncoder
from kcdp.models.build import build_model, load_matching_state, load_trainable_state, trainable_state
from kcdp.models.kadap import Kadap
from kcdp.models.lora import save_lora
from kcdp.models.network import EmotionNetwork
from kcdp.torch_device import autocast, usable_cpus
from kcdp.training.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    load_buffers,
    load_model,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
    trained_parameters,
)
from kcdp.training.ema import average_model, update_average
from kcdp.training.engine import Engine
from kcdp.training.interrupts import Interrupted, interrupts_deferred, interrupts_raise
from kcdp.training.latent_cache import cached_pictures
from kcdp.training.log import RunLog
from kcdp.training.methods import leaves_out, make_step
from kcdp.training.progress import Pictures, Progress, batch_sizes, read_progress
from kcdp.training.schedule import class_shares, class_weights, make_optimizer, set_learning_rate
from kcdp.training.steps.step import StepResult, rightness
from kcdp.training.unreadable import check_unreadable, keys_of, note_unreadable, passed_over, still_unreadable
from kcdp.training.validation import validation_metrics

#: Folder of a run: the adapters of ``best.safetensors`` in peft's format, for other programs.
ADAPTERS = "lora"
#: Steps between two rows of the log.
LOG_EVERY = 10


class DivergedError(KcdpError):
    """The loss is not a finite number; the weights that gave it are not worth keeping."""


class Trainer:
    """Trains one configuration into one run folder.

    Started by ``accelerate launch`` with several processes, each makes a Trainer, and together they do what one
    would: a batch is divided among them, and everything that looks at a batch sees all of it. The first one writes.

    Args:
        config: everything that decides the result.
        pictures: of source, validation and, in the setting DA, target.
        out: the run folder, made if need be; holds ``best.safetensors``, ``last.safetensors``, ``log.jsonl``,
            ``tensorboard`` and, where adapters train, ``lora`` in peft's format.
        resume: the checkpoint to go on from.
        text: the configuration's text encoder, where one is open already.
        start: trained tensors to begin with, by name; what they lack starts afresh.
        engine: device and processes; by default as the configuration says.
    """

    def __init__(
        self,
        config: Config,
        pictures: Pictures,
        out: Path,
        resume: Checkpoint | None = None,
        *,
        text: TextEncoder | None = None,
        start: dict[str, torch.Tensor] | None = None,
        engine: Engine | None = None,
    ) -> None:
        training = config.training
        self.config, self.pictures, self.out = config, pictures, out
        self.engine = engine or Engine(training, find_unused=leaves_out(config))
        self.device, self.dtype = self.engine.device, self.engine.dtype
        self.batch_sizes = batch_sizes(config, pictures, self.engine.share.world)
        self.model = build_model(config, text, None if resume is None else resume.model)
        where = str(out / LAST)
        #: Tensors of the model that ``start`` did not have.
        self.fresh: list[str] = []
        if resume is not None:
            load_trainable_state(self.model, resume.model, where)
        elif start is not None:
            self.fresh = load_matching_state(self.model, start, config.training.init_from or "the given start")
        self.model.to(self.device).train()
        trained = any(p.requires_grad for p in self.model.parameters())
        self.average = average_model(self.model) if training.ema_decay and trained else None
        self.teacher = self._teacher()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seeds(training.seed, 3))
            labels, adapts = pictures.source.labels, pictures.target is not None
            weights = class_weights(labels, training.class_weighting)
            self.step = make_step(config, weights, class_shares(labels), self.model, adapts).to(self.device)
        self.optimizer = make_optimizer(self.model, self.step, training)
        self.progress = Progress()
        if resume is not None:
            self._restore(resume, where)
        self._prepare(resume)
        sampler = EpochSampler(len(pictures.source), self.batch_sizes["source"], training.seed)
        self.per_epoch = sampler.batches_per_epoch
        self.total_steps = training.epochs * self.per_epoch if self.optimizer is not None else 0
        if training.max_steps:
            self.total_steps = min(self.total_steps, training.max_steps)
        self.validate_every = training.validate_every or self.per_epoch
        #: The step that ``last.safetensors`` is of; -1: there is none of this run yet.
        self.saved = self.progress.step if resume is not None else -1
        self._logged = (0.0, 0.0)
        self.log = RunLog(out, 0, tensorboard=False, silent=True)  # of a run that has not begun
        make_folder(out)

    @property
    def validated_model(self) -> EmotionNetwork:
        """What is validated and kept: the moving average of the weights, where there is one."""
        return self.model if self.average is None else self.average

    def run(self, stop_after: int | None = None) -> Progress:
        """Train to the end, or to step ``stop_after``, then save.

        An interrupt (SIGINT, SIGTERM) lets the step at hand end, saves ``last.safetensors`` and raises
        KeyboardInterrupt. Pictures that cannot be read are passed over and named; too many of them are an error that
        saves too, once a step is done.

        Raises:
            KcdpError: the loss is not finite, or more than 1 % of the pictures cannot be read.
        """
        first, until = self.progress.step, min(self.total_steps, stop_after or self.total_steps)
        if self.config.training.cache_latents and (first < until or self._validation_due()):
            self._cache_latents()
        batches, alone, interrupted = self.batches(), self.engine.share.world == 1, Interrupted()
        self._logged = self._clock()
        with ExitStack() as stack:
            stack.enter_context(interrupts_raise() if alone else interrupted.watching())
            try:
                self._recheck_unreadable()
                self._begin_log(stack, first)
                silent = None if self.engine.is_main else True  # None: only on a terminal
                bar = stack.enter_context(tqdm(
                    total=self.total_steps, initial=first, unit="step", desc="train", smoothing=0.05, disable=silent
                ))  # fmt: skip
                if self._validation_due():  # an interrupt had come before it
                    self.validate()
                while self.progress.step < until:
                    self._timed_step(batches, bar, until)
                    if self._validation_due():
                        self.validate()
                    if not alone and self.engine.any(interrupted.received):
                        raise KeyboardInterrupt
            except DivergedError:
                raise
            except (KeyboardInterrupt, KcdpError) as error:
                if self.progress.step > first or isinstance(error, KeyboardInterrupt):
                    self.save_last()
                raise
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                with suppress(RuntimeError), interrupts_deferred():  # torch says it again when the block ends
                    self.save_last()
                raise KcdpError(
                    f"a process that reads pictures has died ({str(error).splitlines()[0]})",
                    f"memory for {self.workers} of them", "lower training.workers; the run was saved: --resume goes on",
                ) from None  # fmt: skip
            if self.progress.step != self.progress.validated:  # a validation has saved it
                self.save_last()
        return self.progress

    def _cache_latents(self) -> None:
        """Pictures become latents; an interrupt saves, so that the run can be resumed."""
        try:
            self.pictures = cached_pictures(
                self.pictures, self.model, self.teacher, self.config, self.engine, self.out, self.workers
            )
        except KeyboardInterrupt:
            self.save_last()
            raise

    def _begin_log(self, stack: ExitStack, step: int) -> None:
        self.log = RunLog(
            self.out, step, tensorboard=self.config.training.tensorboard, silent=not self.engine.is_main
        )  # fmt: skip
        stack.callback(self.log.close)

    def _timed_step(self, batches: Iterator[tuple[Item, Item | None]], bar: tqdm, until: int) -> None:
        started = time.perf_counter()
        source, target = self.engine.together(lambda: next(batches))
        arrived = time.perf_counter()
        with interrupts_deferred() if self.engine.share.world == 1 else ExitStack():
            losses = self.train_step(source, target)  # weights, statistics, optimiser and step change together
        bar.update()
        progress = self.progress
        progress.waiting += arrived - started
        progress.seconds += time.perf_counter() - started
        self._note_unreadable({"source": source} | ({} if target is None else {"target": target}))
        if progress.step % LOG_EVERY == 0 or progress.step == until:
            assert self.optimizer is not None
            seconds, waiting = (now - then for now, then in zip(self._clock(), self._logged, strict=True))
            self._logged = self._clock()
            bar.set_postfix(loss=f"{losses['loss']:.3f}", best=f"{progress.best:.3f}")
            self._log({"step": progress.step, "lr": self.optimizer.param_groups[0]["lr"], **losses,
                       "waiting": round(waiting / max(seconds, 1e-9), 4)})  # fmt: skip

    def batches(self) -> Iterator[tuple[Item, Item | None]]:
        """Source and target together, each in an order of its own; this process's share of them."""
        training, done = self.config.training, self.progress.step
        how = (done, self.workers, training.shuffle)
        more: dict[str, Any] = {"share": self.engine.share, "pin_memory": self.device.type == "cuda"}
        source = training_batches(self.pictures.source, self.batch_sizes["source"], training.seed, *how, **more)
        if self.pictures.target is None:
            return ((batch, None) for batch in source)
        seed = mix_seeds(training.seed, 1)  # not the source's permutations again
        target = training_batches(self.pictures.target, self.batch_sizes["target"], seed, *how, **more)
        return zip(source, target, strict=True)

    @property
    def workers(self) -> int:
        """Processes that read pictures; see ``training.workers``."""
        if self.config.training.workers >= 0:
            return self.config.training.workers
        if self.device.type == "cpu":
            return 0
        return min(8, max(1, (usable_cpus() - 1) // self.engine.share.world))

    def train_step(self, source: Item, target: Item | None = None) -> dict[str, float]:
        """One optimiser step on a batch of source and, in the setting DA, target; returns the losses."""
        training, accelerator = self.config.training, self.engine.accelerator
        assert self.optimizer is not None
        set_learning_rate(self.optimizer, training, self.progress.step, self.total_steps, self.per_epoch)
        rank = self.engine.share.rank
        if self._draws:  # depends on the step alone: a resumed run drops the same
            torch.manual_seed(mix_seeds(training.seed, 2, self.progress.step, *([rank] if rank else [])))
        self.optimizer.zero_grad(set_to_none=True)
        rows, parts = [], self._parts(source, target)
        for number, part in enumerate(parts, start=1):
            # Gradients are shared among processes once, with the last part. Not by Accelerate's own accumulation: its
            # counter is one for all trainings of a process.
            with nullcontext() if number == len(parts) else accelerator.no_sync(self.prepared):
                with autocast(self.device, self.dtype):
                    result = self._forward(*part)
                loss = result.loss.item()
                if not math.isfinite(loss):
                    self._diverged(loss, {"source": part[0], "target": part[1]})
                accelerator.backward(result.loss / len(parts))
            row = {"loss": loss, **{name: value.item() for name, value in result.parts.items()}}
            rows.append(row | rightness(result, part[1]))
        if training.gradient_clip:
            accelerator.clip_grad_norm_(self._trained(), training.gradient_clip)
        self.stepper.step()
        self.model.train()
        self.progress.step += 1
        if self.average is not None:
            update_average(self.average, self.model, training.ema_decay, self.progress.step)
        return {name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[-1]}

    def _forward(self, source: Item, target: Item | None) -> StepResult:
        hidden = None if target is None else target.to(self.device)._replace(labels=torch.empty(0))
        progress = self.progress.step / self.total_steps
        return self.step(self.prepared, self.teacher, source.to(self.device), hidden, progress)

    def _parts(self, source: Item, target: Item | None) -> list[tuple[Item, Item | None]]:
        count = self.config.training.accumulate
        targets: list[Item | None] = [None] * count if target is None else list(target.parts(count))
        return list(zip(source.parts(count), targets, strict=True))

    def validate(self) -> None:
        """Measure on the validation pictures, keep the best model, save the latest state."""
        training, model, step = self.config.training, self.validated_model, self.progress.step
        metrics = validation_metrics(model, self.pictures.validation, self.config, self.engine)
        progress = replace(self.progress, validation=metrics, validated=step)
        if metrics["balanced_accuracy"] > progress.best or training.select == "last":
            progress.best, progress.best_step = metrics["balanced_accuracy"], step
            if self.engine.is_main:
                save_checkpoint(self.out / BEST, model, self.config, vars(progress))
                if self.config.model.lora.rank and isinstance(model, Kadap):
                    save_lora(model.features.unet, self.out / ADAPTERS, overwrite=True)
        self.progress = progress  # not before: an interrupted validation is done again
        self._log({"step": step, "validation": metrics})
        if self.engine.is_main:
            balanced, accuracy = metrics["balanced_accuracy"], metrics["accuracy"]
            tqdm.write(f"step {step}: validation balanced accuracy {balanced:.4f}, accuracy {accuracy:.4f}")
        self.save_last()

    def save_last(self) -> None:
        """Everything needed to go on from here."""
        if self.engine.is_main:
            self._save_last()
        self.saved = self.progress.step

    def _save_last(self) -> None:
        parts = {"step": self.step.state_dict()}
        if self.average is not None:
            parts["average"] = trainable_state(self.average)
        if scaler := self.engine.accelerator.scaler:
            parts["scaler"] = {name: torch.tensor(value) for name, value in scaler.state_dict().items()}
        optimizer = None
        if self.optimizer is not None:
            optimizer = optimizer_state(trained_parameters(self.model, self.step), self.optimizer)
        save_checkpoint(self.out / LAST, self.model, self.config, vars(self.progress), optimizer, parts)

    def _restore(self, resume: Checkpoint, where: str) -> None:
        if self.optimizer is not None:
            restore_optimizer(trained_parameters(self.model, self.step), self.optimizer, resume.optimizer)
        if self.average is not None:
            load_trainable_state(self.average, resume.part("average"), where)
        load_buffers(self.step, resume.part("step"), where)
        self.progress = read_progress(resume, self.out)

    def _prepare(self, resume: Checkpoint | None) -> None:
        """Hand over to Accelerate: ``prepared`` is the model as a step calls it, ``stepper`` moves its weights."""
        accelerator = self.engine.accelerator
        self.prepared: torch.nn.Module = self.model
        if self.optimizer is None:
            return
        if self.engine.share.world > 1:
            self.prepared = accelerator.prepare_model(self.model)
        self.stepper = accelerator.prepare_optimizer(self.optimizer)
        state = {} if resume is None else resume.part("scaler")
        if accelerator.scaler and state:
            accelerator.scaler.load_state_dict({name: value.item() for name, value in state.items()})

    def _teacher(self) -> EmotionNetwork:
        """Whose pseudo-labels are learned; see ``training.pseudo_labels.teacher``."""
        training, adapts = self.config.training, self.pictures.target is not None
        if adapts and training.pseudo_labels.teacher == "start":
            return load_model(training.init_from)[0].requires_grad_(False).to(self.device)
        averaged = self.average is not None and training.pseudo_labels.teacher == "ema"
        return self.average if averaged and self.average is not None else self.model

    @property
    def _draws(self) -> bool:
        """Whether a step draws random numbers."""
        names = ("Dropout", "DropPath")
        modules = (*self.model.modules(), *self.step.modules())
        return bool(self.config.model.lora.dropout) or any(type(m).__name__.startswith(names) for m in modules)

    def _diverged(self, loss: float, batch: dict[str, Item | None]) -> None:
        """Raises DivergedError, with the batch in the log and its first pictures in the message."""
        data, step = self.pictures.domains(), self.progress.step + 1
        keys = {
            name: self.engine.collect(keys_of(item, data[name])) for name, item in batch.items() if item is not None
        }  # fmt: skip
        self._log({"step": step, "diverged": keys})
        named = "; ".join(f"{name} {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
                          for name, found in keys.items())  # fmt: skip
        raise DivergedError(
            f"the loss is {loss} at step {step} (batch: {named})", "a finite number",
            f"start a new run with a lower training.learning_rate (now {self.config.training.learning_rate}); the "
            "whole batch is in log.jsonl",
        )  # fmt: skip

    def _recheck_unreadable(self) -> None:
        """A resumed run counts only what still cannot be read."""
        data = self.pictures.domains()
        for name, known in self.progress.skipped.items():
            known[:] = still_unreadable(data[name], known)
            check_unreadable(data[name], known)

    def _note_unreadable(self, items: dict[str, Item]) -> None:
        data, share = self.pictures.domains(), self.engine.share
        found = {name: passed_over(item, len(data[name])) for name, item in items.items()}
        if share.world > 1 and not self.engine.any(any(found.values())):
            return
        for name, places in found.items():
            known = self.progress.skipped.setdefault(name, [])
            new = note_unreadable(data[name], set(self.engine.collect(sorted(places))), known, self.engine.is_main)
            if new:
                self._log({"step": self.progress.step, "skipped": {name: new}})
                check_unreadable(data[name], known)

    def _validation_due(self) -> bool:
        step = self.progress.step
        if not self.total_steps:
            return not self.progress.validation
        return step > self.progress.validated and (step % self.validate_every == 0 or step == self.total_steps)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in (*self.model.parameters(), *self.step.parameters()) if p.requires_grad]

    def _clock(self) -> tuple[float, float]:
        return self.progress.seconds, self.progress.waiting

    def _log(self, row: dict[str, Any]) -> None:
        self.log.write({**row, "seconds": round(self.progress.seconds, 2)})
