"""The settings: one frozen dataclass per table of a configuration; each point that the paper leaves open has a name.

The defaults are the profile ``paper``; ``docs/fidelity.md`` tells where released code differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kcdp.errors import KcdpError

#: table -> field -> (lowest, highest), None where there is no highest; of a list, every entry.
_RANGES: Mapping[str, Mapping[str, tuple[float, float | None]]] = {
    "model": {"timestep": (0, 999)},
    "model.encoder": {"channels": (1, 4096), "blocks": (0, 64), "latent_channels": (1, 1024)},
    "model.unet": {"channels": (1, 8192), "layers_per_block": (1, 64), "heads": (1, 256), "norm_groups": (1, 1024)},
    "model.lora": {"rank": (0, 1024), "alpha": (1e-6, 1e6), "dropout": (0, 0.99)},
    "model.text": {"tokens": (4, 1024), "layers": (1, 64), "heads": (1, 256), "seed": (0, 2**63 - 1)},
    "model.knowledge": {"tokens": (1, 4096), "width": (1, 16384), "hidden": (1, 65536)},
    "model.head": {"pyramid_channels": (1, 8192), "experts": (1, 1024), "hidden": (1, 65536), "top_k": (1, 1024)},
    "model.alignment": {"heads": (1, 1024), "components": (1, 4096), "temperature": (1e-4, 100)},
    "training": {
        "epochs": (1, None), "max_steps": (0, None), "batch_size": (1, None), "target_batch_size": (0, None),
        "learning_rate": (1e-12, 10), "backbone_lr_scale": (0, 1e6), "weight_decay": (0, 100),
        "warmup_steps": (0, None), "gradient_clip": (0, None), "label_smoothing": (0, 1),
        "classification_weight": (0, None), "alignment_weight": (0, None), "balance_weight": (0, None),
        "distill_weight": (0, None), "baseline_weight": (0, None), "ema_decay": (0, 0.999999),
        "validate_every": (0, None), "validation_sample": (0, None), "workers": (-1, 1024), "accumulate": (1, 4096),
        "views": (0, 1024), "seed": (0, 2**63 - 1),
    },
    "training.pseudo_labels": {"weight": (0, None), "confidence": (0, 1), "momentum": (0, 0.999999), "ramp_up": (0, 1)},
}  # fmt: skip

#: Between two mistakes of one message.
SEPARATOR = " | "


def _check(table: str, values: Any, *more: str) -> None:
    """One KcdpError with every value that is out of its range, and ``more``, where that is not empty."""
    mistakes = []
    for name, (low, high) in _RANGES[table].items():
        value = getattr(values, name)
        entries = value if isinstance(value, tuple) else (value,)
        if not all(low <= entry <= (entry if high is None else high) for entry in entries):
            expected = f"{low} or more" if high is None else f"{low} to {high}"
            shown = list(value) if isinstance(value, tuple) else value
            mistakes.append(f"{table}.{name} is {shown!r}; expected {expected}")
    mistakes += filter(None, more)
    if mistakes:
        raise KcdpError(SEPARATOR.join(mistakes))


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
class LoraConfig:
    """Low-rank adapters on the knowledge-guided cross-attention (KGCA), by peft.

    Attributes:
        rank: 0: no adapters. Stable Diffusion 1.5 gets 99,456 parameters per unit of rank.
        alpha: what the adapters add is scaled by alpha / rank.
        dropout: on the adapters' input, in training.
        targets: which projections of every cross-attention: "to_q", "to_k", "to_v", "to_out.0".
        weights: a folder in peft's format to start from; empty: adapters that change nothing yet.
    """

    rank: int = 0
    alpha: float = 8.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    weights: str = ""

    def __post_init__(self) -> None:
        _check("model.lora", self, "" if self.targets else "model.lora.targets is empty; expected one or more")


@dataclass(frozen=True)
class TextConfig:
    """The text side: what turns captions, triples and prompts into token states.

    Attributes:
        kind: "clip" (open_clip's text tower) or "seeded" (random features of words, for models made from scratch).
        model: open_clip's name of the model, for "clip".
        weights: file, folder or open_clip tag, for "clip".
        tokens: context length: k has twice as many tokens. 77 for CLIP.
        layers, heads, seed: of a seeded tower.
        extractor: what reads triples out of captions, "rules" or "spacy".
        triple_separator: between subject, verb and object: " "; "" as released.
        source_prefix, target_prefix: put before every caption of that domain ("a sticker of"); validation pictures
            are of the source.
    """

    kind: Literal["clip", "seeded"] = "clip"
    model: str = "ViT-L-14-quickgelu"
    weights: str = "openai"
    tokens: int = 77
    layers: int = 2
    heads: int = 4
    seed: int = 0
    extractor: Literal["rules", "spacy"] = "rules"
    triple_separator: Literal[" ", ""] = " "
    source_prefix: str = ""
    target_prefix: str = ""

    def __post_init__(self) -> None:
        _check("model.text", self)


@dataclass(frozen=True)
class KnowledgeConfig:
    """The knowledge tokens k that steer the cross-attention.

    Attributes:
        mode: where k comes from. "explicit": from each picture's caption, twice ``model.text.tokens`` of them;
            "implicit": an adapter predicts as many from the picture; "constant": one set for all pictures.
        tokens: number of tokens in the mode "constant".
        width: width of a token (768 in the paper); with a backbone it must be its cross-attention width.
        text: of the mode "constant": a sentence to be their fixed content; empty: they are learned.
        hidden: width of the adapter of the mode "implicit".
    """

    mode: Literal["explicit", "constant", "implicit"] = "explicit"
    tokens: int = 154
    width: int = 768
    text: str = ""
    hidden: int = 128

    def __post_init__(self) -> None:
        _check("model.knowledge", self)


@dataclass(frozen=True)
class HeadConfig:
    """Feature pyramid and mixture-of-experts predictor.

    Attributes:
        pyramid_channels: width of every pyramid level; v has four times as many entries.
        knowledge: how k joins v before the experts: "mean" over its tokens, or "none" (released code). In the mode
            "constant" there is nothing to tell, and k stays out.
        experts, hidden, top_k: number of experts, their hidden width, how many answer.
        renormalize: whether the chosen gates are brought back to a sum of 1 (the paper: no).
        routing: "dense" runs all experts at once; "loop" goes picture by picture (released code): the same numbers.
        normalize_v: batch normalisation of what the experts get (the paper: no; a backbone made from scratch
            needs it, or the gate settles on two experts before the features mean anything).
    """

    pyramid_channels: int = 256
    knowledge: Literal["mean", "none"] = "mean"
    experts: int = 4
    hidden: int = 128
    top_k: int = 2
    renormalize: bool = False
    routing: Literal["dense", "loop"] = "dense"
    normalize_v: bool = False

    def __post_init__(self) -> None:
        _check(
            "model.head", self,
            "" if self.top_k <= self.experts else
            f"model.head.top_k is {self.top_k}; expected at most the number of experts ({self.experts})",
        )  # fmt: skip


@dataclass(frozen=True)
class AlignmentConfig:
    """Language-image alignment, which trains beside the predictor and gives the pseudo-labels.

    Attributes:
        kind: "cliea" (the paper), "cesa" (our reading of KCDP++), "none".
        template: the six prompts; ``{}`` is the emotion's word.
        temperature: of the contrastive loss.
        heads: attention heads of CLIEA; they divide the width.
        pooling: of CLIEA: "prompt" positions, the "emotion" word's, or "all" with the knowledge (released code).
        mapping: of v in CLIEA: "mlp", or "linear" (released code).
        components: canonical components of CESA.
    """

    kind: Literal["cliea", "cesa", "none"] = "cliea"
    template: str = "A {} photo of"
    temperature: float = 0.07
    heads: int = 8
    pooling: Literal["prompt", "emotion", "all"] = "prompt"
    mapping: Literal["mlp", "linear"] = "mlp"
    components: int = 32

    def __post_init__(self) -> None:
        _check("model.alignment", self)


@dataclass(frozen=True)
class ModelConfig:
    """What the model is.

    Attributes:
        network: "kadap" (the paper's); "clip" and "pvt": baselines that the profiles of their names set up.
        backbone: a folder or hub name in diffusers layout (``unet``, ``vae``); "scratch" builds from
            the ``unet`` and ``encoder`` tables; empty where a preset leaves the choice to the user. Of "pvt": timm's
            name of a pyramid, see ``kcdp.models.pyramid_transformer``; of "clip": "scratch" or empty, the weights are
            those of the ``text`` table.
        train_backbone: whether encoder and U-Net train; frozen parts are not stored in checkpoints. Of "clip" and
            "pvt": whether the tower does.
        train_head: of "clip": whether the six class vectors train; they do not in zero-shot classification.
        train_encoder: whether the encoder trains where the backbone does (released code: no).
        timestep: diffusion timestep of the single pass (the paper: 1).
        scale_latents: multiply latents by the autoencoder's scaling factor (released code: no).
        input_normalization: "range" maps bytes to ``preprocess.value_range``, -1..1 for the autoencoder;
            "imagenet-twice" subtracts ImageNet's mean and divides by its deviation two times (released code).
    """

    network: Literal["kadap", "clip", "pvt"] = "kadap"
    backbone: str = "scratch"
    train_backbone: bool = False
    train_encoder: bool = True
    train_head: bool = True
    timestep: int = 1
    scale_latents: bool = True
    input_normalization: Literal["range", "imagenet-twice"] = "range"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    text: TextConfig = field(default_factory=TextConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        _check(
            "model", self,
            f"model.lora.rank is {self.lora.rank} and model.train_backbone true; expected one of the two"
            if self.lora.rank and self.train_backbone else "",
            f"model.train_head is false and model.network {self.network!r}; expected the network 'clip'"
            if not self.train_head and self.network != "clip" else "",
            *_mistakes_of_network(self),
        )  # fmt: skip

    @property
    def knowledge_tokens(self) -> int:
        """How many knowledge tokens a picture has."""
        return self.knowledge.tokens if self.knowledge.mode == "constant" else 2 * self.text.tokens


def _mistakes_of_network(model: ModelConfig) -> list[str]:
    """Settings that mean nothing to the network of a baseline: none of them is passed over in silence."""
    if model.network == "kadap":
        return []
    values: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("lora.rank", model.lora.rank, (0,)), ("alignment.kind", model.alignment.kind, ("none",)),
        ("head.experts", model.head.experts, (1,)), ("input_normalization", model.input_normalization, ("range",)),
        ("knowledge.mode", model.knowledge.mode, ("constant",) if model.network == "clip" else ("explicit", "constant"))
    ]  # fmt: skip
    if model.network == "clip":
        values += [("text.kind", model.text.kind, ("clip",)), ("backbone", model.backbone, ("", "scratch"))]
    return [
        f"model.{name} is {value!r} and model.network {model.network!r}; expected {' or '.join(map(repr, right))}"
        for name, value, right in values if value not in right
    ]  # fmt: skip


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Pseudo-labels of the unlabelled target. Released code: everything off.

    Attributes:
        weight: of their cross-entropy.
        source: whose answer they are: the "alignment"'s most similar prompt (the paper), the "predictor"'s, or the
            "both" probabilities' mean.
        teacher: "ema" (the moving average of the weights, Mean Teacher), "student" (the model itself), or "start" (the
            run that ``training.init_from`` names, as it is: told by captions, it may know what an implicit model has
            yet to see for itself).
        views: "weak-strong": labels from the weakly augmented picture, loss on the strongly augmented one
            (FixMatch); "same": one view for both.
        threshold: "none"; "fixed" (FixMatch): at least ``confidence``; "per-class" (FreeMatch): adapts itself to how
            sure the model is of each class, and never asks for more than ``confidence``.
        confidence: see ``threshold``.
        prior: the class shares that pseudo-labels are aligned to (ReMixMatch): "source", "uniform" or "none".
        momentum: of the running means behind ``threshold`` and ``prior``.
        ramp_up: share of all steps over which the weight grows from nearly zero.
    """

    weight: float = 1.0
    source: Literal["alignment", "predictor", "both"] = "alignment"
    teacher: Literal["ema", "student", "start"] = "ema"
    views: Literal["weak-strong", "same"] = "weak-strong"
    threshold: Literal["none", "fixed", "per-class"] = "per-class"
    confidence: float = 0.95
    prior: Literal["source", "uniform", "none"] = "source"
    momentum: float = 0.99
    ramp_up: float = 0.3

    def __post_init__(self) -> None:
        _check("training.pseudo_labels", self)


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained.

    Attributes:
        init_from: run or checkpoint whose weights to start from; what it lacks starts afresh. ``kcdp train`` takes its
            ``model`` and ``preprocess`` tables too, wherever a file or ``--set`` says nothing else.
        method: "kcdp", or a baseline: "source-only", "dann", "cdan", "mcc", "fixmatch"; the profiles of their names set
            what else belongs to them.
        epochs: passes over the source.
        max_steps: stop after so many optimiser steps; 0: no limit. The schedule spans what is run.
        batch_size: labelled pictures per step, over all processes and accumulated parts.
        target_batch_size: unlabelled pictures per step; 0: as many. Of a smaller target, all of it.
        accumulate: parts that a process's share of a batch is worked off in, one after another; their gradients are
            added up. Saves memory; statistics over a batch are then of its parts.
        views: how many augmented views of a picture there are, used in turn, epoch by epoch; 0: a new one every time.
        cache_latents: before training, encode every view once with the frozen encoder, and keep the float32 latents
            on disk; needs ``views`` where there is an augmentation. No picture is opened while training.
        latents: the folder that keeps them, which runs can share: latents are found by all that decides them. Empty:
            ``latents`` in the run folder. Nothing is ever removed from it; it may be deleted when no run uses it.
        shuffle: a new order every epoch (released code: no).
        learning_rate, weight_decay, warmup_steps, gradient_clip: AdamW; weight decay spares norms and biases; clip 0
            turns it off.
        schedule: after the linear warm-up: "cosine" or "poly" (power 0.9) down to zero, or "constant".
        schedule_unit: the schedule moves with every "step", or only with every "epoch", still counting steps, so that
            it hardly moves (released code).
        backbone_lr_scale: factor on the learning rate of encoder and U-Net, adapters apart (released code sets one and
            its AdamW ignores it: 1).
        class_weighting: "none", "sqrt" or "balanced": weights 1, n^-1/2 or n^-1, mean 1 over samples.
        label_smoothing: 0..1.
        classification_weight: of the predictor's cross-entropy on the source (released code counts it twice: 2).
        alignment_weight: of the contrastive loss.
        balance: "switch" (share routed x mean gate) or "gate-std" (released code; does not balance experts).
        balance_weight: of the expert-balance loss.
        pseudo_labels: the table of that name; it matters where ``data.target`` is given.
        implicit: how the adapter of the mode "implicit" trains: "joint" with everything else, by the task and, where
            there are captions, by ``distill_weight`` too; "distill": it alone, towards the explicit model that
            ``init_from`` names, without labels.
        distill_weight: of the distance between predicted and explicit knowledge tokens (and, with "distill",
            between the two logits).
        baseline_weight: of what a baseline adds to the source's losses: the domain loss of "dann" and "cdan", the class
            confusion of "mcc", the pseudo-labels of "fixmatch".
        ema_decay: moving average of the weights, validated and exported in their place; 0: none.
        augmentation: "none", "light" (crop, flip), "randaugment" (and RandAugment 2 x magnitude 9, as released) or
            "strong" (and colour, cutting out, erasing); of target pictures, the weak view.
        strong_augmentation: the strong view of target pictures.
        mixed_precision: "auto" takes bf16 or fp16 where the device has it, "no", "bf16", "fp16".
        gradient_checkpointing: run the U-Net's blocks twice instead of keeping what they computed.
        validate_every: steps between validations; 0: once per epoch.
        validation_sample: validate on so many pictures, drawn anew and unseeded every time (released code: 1,000); 0:
            all of them.
        select: what ``best.safetensors`` is: the best at "validation", or the "last" validated.
        workers: processes that read pictures, for each training process; 0: the training process itself; -1: up to 8
            where a GPU trains, else 0.
        tensorboard: whether the log is also written as TensorBoard events, in the folder ``tensorboard`` of the run.
        seed: of weights, order and augmentation.
        device: "auto", "cpu", "cuda", "cuda:1", ...
    """

    method: Literal["kcdp", "source-only", "dann", "cdan", "mcc", "fixmatch"] = "kcdp"
    init_from: str = ""
    epochs: int = 10
    max_steps: int = 0
    batch_size: int = 16
    target_batch_size: int = 0
    accumulate: int = 1
    views: int = 0
    cache_latents: bool = False
    latents: str = ""
    shuffle: bool = True
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    schedule_unit: Literal["step", "epoch"] = "step"
    backbone_lr_scale: float = 1.0
    class_weighting: Literal["none", "sqrt", "balanced"] = "sqrt"
    label_smoothing: float = 0.0
    classification_weight: float = 1.0
    alignment_weight: float = 1.0
    balance: Literal["switch", "gate-std"] = "switch"
    balance_weight: float = 0.01
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    implicit: Literal["joint", "distill"] = "joint"
    distill_weight: float = 1.0
    baseline_weight: float = 1.0
    ema_decay: float = 0.999
    augmentation: Literal["none", "light", "randaugment", "strong"] = "strong"
    strong_augmentation: Literal["light", "randaugment", "strong"] = "strong"
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    validate_every: int = 0
    validation_sample: int = 0
    select: Literal["validation", "last"] = "validation"
    workers: int = -1
    tensorboard: bool = True
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        teacher = self.pseudo_labels.teacher == "ema" and not self.ema_decay
        _check(
            "training", self,
            "training.ema_decay is 0 and training.pseudo_labels.teacher 'ema'; expected an average or teacher 'student'"
            if teacher else "",
            "training.pseudo_labels.teacher is 'start' and training.init_from empty; expected a run to start from"
            if self.pseudo_labels.teacher == "start" and not self.init_from else "",
            "training.cache_latents is true and training.views 0; expected a number of views to keep, such as 4"
            if self.cache_latents and not self.views and self.augmentation != "none" else "",
            f"training.latents is {self.latents!r} and training.cache_latents false; expected cache_latents=true"
            if self.latents and not self.cache_latents else "",
        )  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """Which pictures: dataset strings such as ``fer2013:PATH?split=train``.

    Of several in one list, each may have a ``weight``: the share of drawn pictures that are its own.

    Attributes:
        source: labelled training pictures.
        target: unlabelled training pictures of the other domain (setting DA); empty: none (setting UC). Where they
            have labels, the log counts how many pseudo-labels are right; nothing else looks at them.
        validation: pictures that choose the best checkpoint; empty: the sources' own "val" splits.
        captions: captions files; together they hold every picture of source, target and validation. Of two captions of
            a picture the first file's counts.
        ancestors: what the run that ``training.init_from`` names has seen; filled in by ``kcdp train``.
    """

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    ancestors: tuple[str, ...] = ()
