"""Which layers bear 8 bits, by measurement on pictures that were not calibrated on.

Everything is measured in two graphs that hold each layer twice, as it is and quantised:

- side by side, each quantised layer fed with what its twin gets: the signal to noise ratio of its answer, alone;
- behind a switch for each layer: the noise that any set of quantised layers makes in the logits.

Noise of independent roundings adds up, so the layers that make most of it are found one by one, or in groups of
neighbours where a run of the model takes seconds. They are left in float32, most noise for the least cost first, until
the logits of the rest, quantised together, are as near to float32 as asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from tqdm import tqdm

from kcdp.errors import KcdpError
from kcdp.export.precision.calibration import METHODS, Effort, Feed, Interval, collect, effort_for
from kcdp.export.precision.layers import Layer, QuantReport, check_names, find_layers, name_of
from kcdp.export.precision.quantize import (
    ACTIVATIONS,
    FULL_RANGE,
    REDUCED_RANGE,
    UNTOUCHED,
    ActivationType,
    quantize,
)
from kcdp.export.precision.simulation import (
    ON,
    SCALES,
    TINY,
    ZEROS,
    compare_layers,
    switched_session,
)
from kcdp.export.precision.weight_only import quantize_weights

#: Signal to noise of a typical picture's logits, in dB, that is aimed at. Measured with the edge preset on 500 faces,
#: so many got the same answer as in float32: 97.8 % at 31.5 dB, 98.2 % at 35, 99.0 % at 37 to 38, 99.6 % at 43.
TARGET_DB = 37.0
#: At most this share of the multiplications, and of the weights, stays in float32, whatever the noise.
FLOAT_SHARE = 0.25
#: Below this share all layers are equally cheap in float32.
LEAST_SHARE = 1e-3
#: At most so many times layers are quantised again after the target was met.
ROUNDS = 6
#: A layer alone worse than this, in dB, is not worth its speed.
FLOOR_DB = 10.0


@dataclass(frozen=True)
class Setting:
    """Numbers that quantisation needs beside the graph.

    Attributes:
        method: of ``METHODS``.
        ranges: value name -> what is kept of it.
    """

    method: str
    ranges: Mapping[str, Interval]


WEIGHTS = Setting("weights alone", {})


@dataclass(frozen=True)
class Trial:
    """A set of quantised layers, run on the held-out pictures.

    Attributes:
        left_out: how many layers were in float32.
        float_share: share of the multiplications in float32, or, where only weights are quantised, of those; of the
            layers, while multiplications are not known.
        snr_db: of a typical picture's logits.
        decisions: share of pictures with the same strongest class as in float32.
    """

    setting: Setting
    left_out: int
    float_share: float
    snr_db: float
    decisions: float

    def describe(self) -> str:
        of = "work" if self.setting.ranges else "weights"
        return (f"{self.setting.method}; {self.left_out} layers ({self.float_share:.1%} of the {of}) in float32: "
                f"logits {self.snr_db:.1f} dB, decisions {self.decisions:.2%}")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a graph is to be quantised.

    Attributes:
        activations: a key of ``ACTIVATIONS``; empty: only weights are quantised.
        skip: layer name -> why it stays in float32.
        snr_db: layer name -> signal to noise of its answer alone.
        effect_db: layer name -> signal to noise of the logits by it alone.
        trials: in the order they were made; the last is the plan itself.
    """

    activations: str
    reduce_range: bool
    setting: Setting
    skip: Mapping[str, str]
    snr_db: Mapping[str, float]
    effect_db: Mapping[str, float]
    trials: tuple[Trial, ...]
    target_db: float

    def apply(self, model: ir.Model) -> QuantReport:
        """Quantise the graph that was planned for, in place, and say what was measured."""
        report = quantize(
            model, self.setting.ranges, activations=self.activations, skip=self.skip,
            reduce_range=self.reduce_range,
        ) if self.activations else quantize_weights(model, skip=self.skip)  # fmt: skip
        rows = [replace(row, snr_db=self.snr_db.get(row.name), effect_db=self.effect_db.get(row.name))
                for row in report.rows]  # fmt: skip
        last = self.trials[-1].snr_db
        short = "" if last >= self.target_db else f"; short of the {self.target_db:.1f} dB aimed at"
        notes = [trial.describe() for trial in self.trials]
        notes[-1] = f"chosen: {notes[-1]}{short}"
        return replace(report, rows=tuple(rows), notes=tuple(notes))


def make_plan(
    model: ir.Model,
    feeds: Sequence[Feed],
    held_out: Sequence[Feed],
    *,
    activations: str = "uint8",
    skip: Mapping[str, str] | Collection[str] = frozenset(),
    reduce_range: bool = False,
    target_db: float = TARGET_DB,
    effort: Effort | None = None,
    progress: bool = False,
) -> Plan:
    """Calibrate a float32 graph and choose what is quantised, and how.

    Args:
        model: is not changed; its first output is the logits, [N, classes].
        feeds: batches to calibrate on.
        held_out: batches that all choices are measured on.
        activations: a key of ``ACTIVATIONS``; empty: only weights are quantised, and nothing is calibrated.
        skip: layers that stay in float32 whatever is measured, with the reason where it is a mapping.
        target_db: signal to noise of the logits to reach.
        effort: how much to measure; None: what the graph's size allows.

    Raises:
        KcdpError: the graph has no layers, a name is unknown, or values are not finite.
    """
    layers = find_layers(model.graph)
    check_names(skip, layers)
    if not layers:
        raise KcdpError("the graph has no layer with weights", fix="quantise the exported model")
    effort = effort or effort_for(model)
    kind = ACTIVATIONS[activations] if activations else UNTOUCHED
    limit = REDUCED_RANGE if reduce_range else FULL_RANGE
    names = {name for layer in layers for name in kind.rounded_in(layer)}
    calibration = collect(model, names, feeds, progress=progress)  # its session is closed before the next one opens
    bench = Bench(model, layers, kind, limit, held_out)
    asked = np.array([layer.name in skip for layer in layers])
    levels = kind.high - kind.low + 1
    settings = [Setting(method, calibration.ranges(method, levels)) for method in METHODS] if kind.rounds else [WEIGHTS]
    tried = [bench.trial(setting, ~asked) for setting in settings]
    best = max(tried, key=lambda trial: trial.snr_db)
    setting = best.setting
    noise, bench.work = compare_layers(model, kind, limit, setting.ranges, held_out)
    floor = ~asked & (noise > _ratio(FLOOR_DB)) & (bench.cost < FLOAT_SHARE)
    effects = bench.effects(setting, ~asked & ~floor, noise, effort.trials, progress)
    first = replace(best, float_share=float(bench.share[asked].sum()))
    if floor.any():
        first = bench.trial(setting, ~asked & ~floor)
    left, search = _search(bench, first, asked | floor, effects, target_db)
    reasons = {}
    for i, layer in enumerate(layers):
        if asked[i]:
            reasons[layer.name] = skip[layer.name] if isinstance(skip, Mapping) else "asked for"
        elif floor[i]:
            reasons[layer.name] = f"its answer has {_decibels(noise[i]):.1f} dB alone, needed {FLOOR_DB:.0f}"
        elif left[i]:
            reasons[layer.name] = f"alone brings the logits to {_decibels(effects[i]):.1f} dB"
    alone = {layer.name: _decibels(noise[i]) for i, layer in enumerate(layers)}
    logits = {layer.name: _decibels(effects[i]) for i, layer in enumerate(layers) if effects[i] > 0}
    others = [trial for trial in tried if trial is not best]
    return Plan(activations, reduce_range, setting, reasons, alone, logits, (*others, *search), target_db)


def _search(
    bench: Bench, first: Trial, left: np.ndarray, effects: np.ndarray, target_db: float
) -> tuple[np.ndarray, list[Trial]]:
    """Leave out layers, most noise for the least cost first, until the target is met or too much would be left out."""
    cost = bench.cost
    order = [i for i in np.argsort(-effects / np.maximum(cost, LEAST_SHARE)) if not left[i] and effects[i] > 0]
    setting, trials = first.setting, [first]
    while trials[-1].snr_db < target_db and order:
        # noise adds up: as many layers as should be enough by their effects, and no fewer than a tenth more than before
        needed = (1 - _ratio(target_db) / _ratio(trials[-1].snr_db)) * effects[~left].sum()
        gone = np.cumsum(effects[order])
        count = max(int(np.searchsorted(gone, needed)) + 1, 1 + int(left.sum()) // 10)
        before = left.copy()
        for i in order[:count]:
            left[i] = cost[left].sum() + cost[i] <= FLOAT_SHARE
        order = order[count:]
        if (left != before).any():
            trials.append(bench.trial(setting, ~left))
    return _give_back(bench, left, effects, target_db, trials)


def _give_back(
    bench: Bench, left: np.ndarray, effects: np.ndarray, target_db: float, trials: list[Trial]
) -> tuple[np.ndarray, list[Trial]]:
    """Of the layers left out, quantise again what costs most, while the target stays met."""
    for _ in range(ROUNDS):
        last = trials[-1]
        scale = _ratio(last.snr_db) / max(effects[~left].sum(), TINY)
        room = _ratio(target_db) - _ratio(last.snr_db)
        fuller = left.copy()
        for i in np.argsort(-bench.cost):
            if left[i] and 0 < effects[i] * scale < room and bench.cost[i] > LEAST_SHARE:
                fuller[i] = False
                room -= effects[i] * scale
        if (fuller == left).all():
            break
        trials.append(bench.trial(last.setting, ~fuller))
        if trials[-1].snr_db < target_db:
            trials.append(last)
            break
        left = fuller
    return left, trials


class Bench:
    """A graph with a switch at each layer, and the pictures it runs on.

    Attributes:
        work: multiplications of each layer for a picture, [L]; all alike until they are known.
        parameters: weights of each layer, [L].
    """

    def __init__(
        self, model: ir.Model, layers: Sequence[Layer], kind: ActivationType, limit: int, feeds: Sequence[Feed]
    ) -> None:
        self.layers, self.kind, self.limit, self.feeds = layers, kind, limit, feeds
        self.work = np.ones(len(layers))
        self.parameters = np.array([layer.parameters for layer in layers], np.float64)
        self.session, self.values = switched_session(model, kind, limit)
        self.logits = name_of(model.graph.outputs[0])
        nothing = Setting("", dict.fromkeys(self.values, Interval(-1.0, 1.0)))
        self.reference = self.run(nothing, np.zeros(len(layers), bool))
        centred = self.reference - self.reference.mean(axis=1, keepdims=True)
        self.signal = float((centred**2).sum(axis=1).mean())

    @property
    def share(self) -> np.ndarray:
        """Of all multiplications, or of all weights where only those are quantised, [L]."""
        work = self.work if self.kind.rounds else self.parameters
        share: np.ndarray = work / work.sum()
        return share

    @property
    def cost(self) -> np.ndarray:
        """Of a layer in float32, [L]: its share of the multiplications or of the weights, whichever is more."""
        return np.maximum(self.share, self.parameters / self.parameters.sum())

    def run(self, setting: Setting, quantised: np.ndarray) -> np.ndarray:
        """Logits float64 [N, classes] with some layers quantised, bool [L]."""
        more = {ON: quantised}
        if self.values:
            scales, zeros = zip(*(self.kind.parameters(setting.ranges[name]) for name in self.values), strict=True)
            more |= {SCALES: np.stack(scales), ZEROS: np.stack(zeros)}
        parts = [self.session.run([self.logits], {**feed, **more})[0] for feed in self.feeds]
        return np.concatenate(parts).astype(np.float64)

    def noise(self, logits: np.ndarray) -> float:
        """Noise to signal of logits on a typical picture, the geometric mean over all.

        Each picture's logits are centred: what is common to all classes changes no answer. A picture whose choice of
        experts changes is an outlier that would drown the others in a sum.
        """
        difference = logits - self.reference
        difference -= difference.mean(axis=1, keepdims=True)
        ratios = (difference**2).sum(axis=1) / max(self.signal, TINY)
        return float(np.exp(np.log(ratios + TINY).mean()))

    def trial(self, setting: Setting, quantised: np.ndarray) -> Trial:
        """Run with some layers quantised and compare."""
        logits = self.run(setting, quantised)
        same = float((logits.argmax(axis=1) == self.reference.argmax(axis=1)).mean())
        share = float(self.share[~quantised].sum())
        return Trial(setting, int((~quantised).sum()), share, _decibels(self.noise(logits)), same)

    def effects(
        self, setting: Setting, chosen: np.ndarray, noise: np.ndarray, trials: int, progress: bool
    ) -> np.ndarray:
        """Noise to signal of the logits by each layer alone, [L]; 0 for those not in ``chosen``, bool [L].

        With fewer trials than layers, neighbours are tried together, and their noise is shared out by their own.
        """
        effects = np.zeros(len(self.layers))
        members = np.flatnonzero(chosen)
        groups = np.array_split(members, min(len(members), max(trials, 1))) if len(members) else []
        for group in tqdm(groups, desc="sensitivity", disable=not progress, leave=False):
            quantised = np.zeros(len(self.layers), bool)
            quantised[group] = True
            parts = noise[group] + TINY
            effects[group] = self.noise(self.run(setting, quantised)) * parts / parts.sum()
        return effects


def _ratio(decibels: float) -> float:
    """Signal to noise in dB to noise to signal."""
    return float(10 ** (-decibels / 10))


def _decibels(ratio: float) -> float:
    """Noise to signal to signal to noise in dB, at most 150."""
    return float(-10 * np.log10(max(ratio, 1e-15)))
