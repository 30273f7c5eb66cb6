"""The configuration: presets, profiles, TOML files, ``--set``, and that no mistake in them goes unnoticed."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from kcdp.config import PROFILES as PROFILE_FOLDER
from kcdp.config import Config, load_config, preset_names, profile_names
from kcdp.errors import KcdpError
from kcdp.settings import (
    AlignmentConfig,
    DataConfig,
    EncoderConfig,
    HeadConfig,
    KnowledgeConfig,
    LoraConfig,
    ModelConfig,
    PseudoLabelConfig,
    TextConfig,
    TrainingConfig,
    UNetConfig,
)

PRESETS = ("edge", "sd15", "tiny")
PROFILES = (
    "as-published-code", "cdan", "clip-linear-probe", "clip-zero-shot", "dann", "fixmatch", "mcc", "paper", "pvt",
    "source-only",
)  # fmt: skip


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refuse(*overrides: str, preset: str = "tiny") -> str:
    return fails(lambda: load_config(preset, overrides=overrides))


def at(config: Config, path: str) -> object:
    """The value of ``model.encoder.kind`` and the like."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def test_the_presets_and_profiles_are_those_of_the_design_that_exist():
    assert tuple(preset_names()) == PRESETS and tuple(profile_names()) == PROFILES


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_loads_with_every_profile_and_both_say_their_names(preset, profile):
    config = load_config(preset, profile=profile)
    assert (config.preset, config.profile) == (preset, profile)
    assert load_config(preset).profile == "paper"


def test_what_the_presets_are_for():
    tiny, edge, sd15 = (load_config(name) for name in ("tiny", "edge", "sd15"))
    assert tiny.preprocess.size == 32 and tiny.model.backbone == "scratch" and tiny.model.train_backbone
    assert edge.preprocess.size <= 128 and edge.model.backbone == "scratch" and edge.model.train_backbone
    assert sd15.preprocess.size == 512 and sd15.model.backbone == "" and not sd15.model.train_backbone
    assert (sd15.model.knowledge_tokens, sd15.model.knowledge.width, sd15.model.timestep) == (154, 768, 1)
    head = sd15.model.head
    assert (head.pyramid_channels, head.experts, head.top_k, head.renormalize) == (256, 4, 2, False)
    # The paper's model is told what a picture shows, and trains adapters; small ones learn their own tokens.
    assert sd15.model.knowledge.mode == "explicit" and sd15.model.lora.rank == 8 and sd15.model.text.kind == "clip"
    for small in (tiny, edge):
        assert small.model.knowledge.mode == "constant" and small.model.lora.rank == 0
        assert small.model.text.kind == "seeded" and small.model.knowledge_tokens == small.model.knowledge.tokens
    assert {config.model.alignment.kind for config in (tiny, edge, sd15)} == {"cliea"}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_json(preset, profile):
    captions = {"data": {"captions": ["a.jsonl", "b.jsonl"]}}
    # CLIP takes the picture alone: captions given on the command line would ask for the mode "explicit".
    alone = ["model.knowledge.mode=constant"] if profile.startswith("clip") else []
    config = load_config(
        preset, overrides=["training.epochs=7", "data.source=folder:x", *alone], data=captions, profile=profile
    )  # fmt: skip
    again = Config.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again == config
    assert again != dataclasses.replace(config, data=dataclasses.replace(config.data, source=("folder:y",)))
    assert again.model.unet.channels == tuple(again.model.unet.channels)  # lists come back as tuples
    assert again.data.captions == ("a.jsonl", "b.jsonl") and isinstance(again.model.lora.targets, tuple)


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config("tiny").training.epochs = 3


def test_later_sources_win(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[training]\nepochs = 5\nbatch_size = 6\n[data]\nsource = 'folder:a'\n", encoding="utf-8")
    config = load_config("tiny", file, ["training.batch_size=7"], {"data": {"source": "folder:b"}})
    assert config.training.epochs == 5  # the file over the preset's 3
    assert config.training.batch_size == 7  # --set over the file
    assert config.data.source == ("folder:b",)  # the command's own options over all
    assert config.training.learning_rate == 2e-3  # the preset's, where nobody says otherwise
    assert config.training.weight_decay == TrainingConfig().weight_decay  # the default


def test_a_table_keeps_the_keys_that_a_later_source_leaves_out():
    config = load_config("tiny", overrides=["model.encoder.channels=16"])
    assert config.model.encoder == EncoderConfig(kind="tiny", channels=16, blocks=(0, 1, 1), latent_channels=4)


def test_loading_twice_gives_the_same_although_the_first_was_overridden():
    before = load_config("edge")
    load_config("edge", overrides=["model.unet.channels=[16, 16, 16, 16]", "training.epochs=1"])
    assert load_config("edge") == before


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training.epochs=3", "training.epochs", 3),
        (" training.epochs = 3 ", "training.epochs", 3),
        ("training.learning_rate=1e-3", "training.learning_rate", 1e-3),
        ("training.learning_rate=1", "training.learning_rate", 1.0),
        ("model.train_backbone=false", "model.train_backbone", False),
        ("model.encoder.kind=kl", "model.encoder.kind", "kl"),
        ('model.encoder.kind="kl"', "model.encoder.kind", "kl"),
        ("model.unet.channels=[16, 32, 32, 64]", "model.unet.channels", (16, 32, 32, 64)),
        ("model.unet.attention=[true, false, true, false]", "model.unet.attention", (True, False, True, False)),
        ("model.encoder={ channels = 16 }", "model.encoder.channels", 16),
        ("data.source=folder:a b?split=train&limit=3", "data.source", ("folder:a b?split=train&limit=3",)),
        ("model.backbone=", "model.backbone", ""),
        ("preprocess.background=[0, 0, 0]", "preprocess.background", (0, 0, 0)),
        ("preprocess.value_range=[0, 1]", "preprocess.value_range", (0.0, 1.0)),
        ("model.knowledge.text=a photo of a face", "model.knowledge.text", "a photo of a face"),
        ("model.alignment.template=a sticker: {}", "model.alignment.template", "a sticker: {}"),
        ("model.text.triple_separator=", "model.text.triple_separator", ""),
        ("model.text.target_prefix=a sticker of", "model.text.target_prefix", "a sticker of"),
        ('model.lora.targets=["to_q", "to_out.0"]', "model.lora.targets", ("to_q", "to_out.0")),
        ("model.lora.alpha=16", "model.lora.alpha", 16.0),
        ("training.pseudo_labels={ ramp_up = 0 }", "training.pseudo_labels.ramp_up", 0.0),
        ("training.pseudo_labels.prior=none", "training.pseudo_labels.prior", "none"),
        ('data.captions=["a.jsonl"]', "data.captions", ("a.jsonl",)),
    ],
)
def test_set_reads_toml_values_and_falls_back_to_strings(text, path, value):
    got = at(load_config("tiny", overrides=[text]), path)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text", ["training.epochs", "=3", "", ".epochs=3", "training..epochs=3", "training.=3"])
def test_set_without_key_or_value(text):
    assert refuse(text) == f"--set {text!r}; expected key=value; write for example --set training.epochs=3"


def test_unknown_preset_names_the_nearest():
    message = fails(lambda: load_config("edgy"))
    assert message == "preset 'edgy' is unknown (did you mean 'edge'?); expected one of edge, sd15, tiny"


def test_unknown_profile_names_the_nearest():
    message = fails(lambda: load_config("tiny", profile="papers"))
    assert message == f"profile 'papers' is unknown (did you mean 'paper'?); expected one of {', '.join(PROFILES)}"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("trainig.epochs=3", "configuration: trainig is unknown (did you mean 'training'?); expected one of preset, "),
        ("training.epoch=3", "configuration: training.epoch is unknown (did you mean 'epochs'?); expected one of "),
        ("model.unet.chanels=3", "configuration: model.unet.chanels is unknown (did you mean 'channels'?); "),
        ("preprocess.colour=3", "configuration: preprocess.colour is unknown; expected one of size, resize_filter, "),
        ("model.lora.rang=3", "configuration: model.lora.rang is unknown (did you mean 'rank'?); expected one of "),
        ("model.text.token=3", "configuration: model.text.token is unknown (did you mean 'tokens'?); "),
        ("model.alignment.head=3", "configuration: model.alignment.head is unknown (did you mean 'heads'?); "),
        ("training.pseudo_labels.ramp=3", "configuration: training.pseudo_labels.ramp is unknown (did you mean "
                                          "'ramp_up'?); "),
        ("training.pseudo_label.weight=3", "configuration: training.pseudo_label is unknown (did you mean "
                                           "'pseudo_labels'?); "),
        ("data.caption=x", "configuration: data.caption is unknown (did you mean 'captions'?); expected one of source, "
                           "target, validation, captions"),
    ],
)  # fmt: skip
def test_unknown_keys_name_the_nearest(text, start):
    assert refuse(text).startswith(start)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.epochs=1.5", "training.epochs is 1.5; expected a whole number"),
        ("training.epochs=true", "training.epochs is True; expected a whole number"),
        ("training.epochs=many", "training.epochs is 'many'; expected a whole number"),
        ("training.epochs=", "training.epochs is ''; expected a whole number"),
        ("training.epochs.x=3", "training.epochs is {'x': 3}; expected a whole number"),
        ("training.learning_rate=fast", "training.learning_rate is 'fast'; expected a number"),
        ("training.learning_rate=true", "training.learning_rate is True; expected a number"),
        ("training.learning_rate=nan", "training.learning_rate is nan; expected a finite number"),
        ("training.gradient_clip=inf", "training.gradient_clip is inf; expected a finite number"),
        ("model.train_backbone=1", "model.train_backbone is 1; expected true or false"),
        ("data.source=3", "data.source is 3; expected a list"),
        ("training=3", "training is 3; expected a table"),
        ("model.unet=[1]", "model.unet is [1]; expected a table"),
        ("model.unet.channels=3", "model.unet.channels is 3; expected a list"),
        ("model.unet.channels=[8, 8.5, 8, 8]", "model.unet.channels[1] is 8.5; expected a whole number"),
        ("preprocess.background=[0, 0]", "preprocess.background has 2 entries; expected 3"),
        ("training.augmentation=ligth", "training.augmentation is 'ligth' (did you mean 'light'?); expected one of "
                                        "none, light, randaugment, strong"),
        ("training.augmentation=3", "training.augmentation is 3; expected one of none, light, randaugment, strong"),
        ("training.strong_augmentation=none", "training.strong_augmentation is 'none'; expected one of light, "
                                              "randaugment, strong"),
        ("model.knowledge.mode=[1]", "model.knowledge.mode is [1]; expected one of explicit, constant, implicit"),
        ("model.text.kind=seed", "model.text.kind is 'seed' (did you mean 'seeded'?); expected one of clip, seeded"),
        ("model.alignment.kind=clip", "model.alignment.kind is 'clip' (did you mean 'cliea'?); expected one of cliea, "
                                      "cesa, none"),
        ("model.alignment.kind=off", "model.alignment.kind is 'off'; expected one of cliea, cesa, none"),
        ("model.alignment.pooling=mean", "model.alignment.pooling is 'mean'; expected one of prompt, emotion, all"),
        ("model.head.routing=looped", "model.head.routing is 'looped' (did you mean 'loop'?); expected one of dense, "
                                      "loop"),
        ("model.input_normalization=imagenet", "model.input_normalization is 'imagenet' (did you mean "
                                               "'imagenet-twice'?); expected one of range, imagenet-twice"),
        ("model.lora.targets=3", "model.lora.targets is 3; expected a list"),
        ("model.lora.targets=[1]", "model.lora.targets[0] is 1; expected a string"),
        ("model.lora.rank=8.0", "model.lora.rank is 8.0; expected a whole number"),
        ("training.pseudo_labels=off", "training.pseudo_labels is 'off'; expected a table"),
        ("training.pseudo_labels.threshold=0.95", "training.pseudo_labels.threshold is 0.95; expected one of none, "
                                                  "fixed, per-class"),
        ("training.schedule=flat", "training.schedule is 'flat'; expected one of cosine, poly, constant"),
        ("training.balance=switches", "training.balance is 'switches' (did you mean 'switch'?); expected one of "
                                      "switch, gate-std"),
        ("training.shuffle=0", "training.shuffle is 0; expected true or false"),
        ("model.unet.channels=a", "model.unet.channels is 'a'; expected a list"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind(text, message):
    assert refuse(text) == f"configuration: {message}"


def test_a_separator_that_is_none():
    assert refuse("model.text.triple_separator=-").startswith("configuration: model.text.triple_separator is '-'; exp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.epochs=0", "training.epochs is 0; expected 1 or more"),
        ("training.batch_size=-1", "training.batch_size is -1; expected 1 or more"),
        ("training.learning_rate=0", "training.learning_rate is 0.0; expected 1e-12 to 10"),
        ("training.label_smoothing=2", "training.label_smoothing is 2.0; expected 0 to 1"),
        ("training.seed=-1", "training.seed is -1; expected 0 to 9223372036854775807"),
        ("training.validate_every=-1", "training.validate_every is -1; expected 0 or more"),
        ("training.workers=-2", "training.workers is -2; expected -1 to 1024"),
        ("model.timestep=1000", "model.timestep is 1000; expected 0 to 999"),
        ("model.encoder.blocks=[]", "model.encoder.blocks is empty; expected one or more"),
        ("model.encoder.blocks=[1, -1]", "model.encoder.blocks is [1, -1]; expected 0 to 64"),
        ("model.unet.channels=[0, 8, 8, 8]", "model.unet.channels is [0, 8, 8, 8]; expected 1 to 8192"),
        ("model.unet.channels=[16, 16]", "model.unet.channels has 2 entries and attention 4; expected four of each"),
        ("model.unet.norm_groups=5", "model.unet.norm_groups is 5; expected a divisor of all of model.unet.channels "
                                     "(16, 16, 32, 32)"),
        ("model.unet.norm_groups=0", "model.unet.norm_groups is 0; expected 1 to 1024"),
        ("model.unet.heads=0", "model.unet.heads is 0; expected 1 to 256"),
        ("model.unet.layers_per_block=0", "model.unet.layers_per_block is 0; expected 1 to 64"),
        ("model.knowledge.tokens=0", "model.knowledge.tokens is 0; expected 1 to 4096"),
        ("model.knowledge.width=0", "model.knowledge.width is 0; expected 1 to 16384"),
        ("model.head.hidden=0", "model.head.hidden is 0; expected 1 to 65536"),
        ("model.head.top_k=5", "model.head.top_k is 5; expected at most the number of experts (4)"),
        ("model.lora.rank=2000", "model.lora.rank is 2000; expected 0 to 1024"),
        ("model.lora.alpha=0", "model.lora.alpha is 0.0; expected 1e-06 to 1000000.0"),
        ("model.lora.dropout=1", "model.lora.dropout is 1.0; expected 0 to 0.99"),
        ("model.lora.targets=[]", "model.lora.targets is empty; expected one or more"),
        ("model.text.tokens=3", "model.text.tokens is 3; expected 4 to 1024"),
        ("model.alignment.temperature=0", "model.alignment.temperature is 0.0; expected 0.0001 to 100"),
        ("model.alignment.heads=0", "model.alignment.heads is 0; expected 1 to 1024"),
        ("training.ema_decay=1", "training.ema_decay is 1.0; expected 0 to 0.999999"),
        ("training.backbone_lr_scale=-1", "training.backbone_lr_scale is -1.0; expected 0 to 1000000.0"),
        ("training.validation_sample=-1", "training.validation_sample is -1; expected 0 or more"),
        ("training.target_batch_size=-1", "training.target_batch_size is -1; expected 0 or more"),
        ("training.pseudo_labels.confidence=1.1", "training.pseudo_labels.confidence is 1.1; expected 0 to 1"),
        ("training.pseudo_labels.momentum=1", "training.pseudo_labels.momentum is 1.0; expected 0 to 0.999999"),
        ("training.pseudo_labels.ramp_up=2", "training.pseudo_labels.ramp_up is 2.0; expected 0 to 1"),
        ("preprocess.size=4", "preprocess.size is 4; expected a whole number from 8 to 4096"),
        ("preprocess.value_range=[1, -1]", "preprocess.value_range is (1.0, -1.0); expected two finite numbers, the "
                                           "lower one first"),
    ],
)  # fmt: skip
def test_values_out_of_range(text, message):
    assert refuse(text) == f"configuration: {message}"


@pytest.mark.parametrize(
    "text",
    ["training.epochs=1", "training.learning_rate=1e-12", "training.label_smoothing=1", "training.seed=0",
     f"training.seed={2**63 - 1}", "model.timestep=0", "model.timestep=999", "model.encoder.blocks=[0]",
     "model.head.top_k=4", "preprocess.size=8", "training.gradient_clip=0", "model.lora.rank=0",
     "model.lora.alpha=1e-6", "model.lora.dropout=0.99", "model.text.tokens=4", "model.alignment.temperature=100",
     "training.ema_decay=0.999999",
     "training.backbone_lr_scale=0", "training.pseudo_labels.confidence=1", "training.pseudo_labels.confidence=0",
     "training.pseudo_labels.ramp_up=0", "training.pseudo_labels.ramp_up=1", "training.pseudo_labels.momentum=0"],
)  # fmt: skip
def test_the_ends_of_the_ranges_are_inside(text):
    load_config("tiny", overrides=[text])


def numbers(table: object, where: str = "") -> list[tuple[str, object]]:
    """Every number, or list of numbers, of a configuration: its key and its value."""
    found = []
    for field in dataclasses.fields(table):
        value, path = getattr(table, field.name), f"{where}{field.name}"
        if dataclasses.is_dataclass(value):
            found += numbers(value, f"{path}.")
        elif all(isinstance(entry, (int, float)) and not isinstance(entry, bool)
                 for entry in (value if isinstance(value, tuple) else (value,))) and value != ():  # fmt: skip
            found.append((path, value))
    return found


NUMBERS = [(path, value) for path, value in numbers(load_config("tiny")) if not path.startswith("preprocess.")]


def test_the_numbers_are_found():
    paths = [path for path, _ in NUMBERS]
    assert len(paths) == len(set(paths)) == 51
    assert {"model.unet.channels", "model.lora.alpha", "training.pseudo_labels.weight", "training.seed"} <= set(paths)
    assert not {"model.train_backbone", "data.captions", "model.unet.attention"} & set(paths)


@pytest.mark.parametrize(("path", "value"), NUMBERS)
def test_no_number_may_be_negative(path, value):
    """Every number has a range; one that was forgotten would let this pass. Of workers, -1 means: as many as fit."""
    least = -2 if path == "training.workers" else -1
    if isinstance(value, tuple):
        wrong, shown = [least] * len(value), str([least] * len(value))
    else:
        wrong, shown = type(value)(least), str(type(value)(least))
    assert f" {path} is {shown}; expected " in refuse(f"{path}={wrong}")


@pytest.mark.parametrize(
    "make",
    [lambda: TrainingConfig(epochs=0), lambda: HeadConfig(top_k=9), lambda: UNetConfig(channels=(8,) * 3),
     lambda: ModelConfig(timestep=-1), lambda: EncoderConfig(blocks=()), lambda: KnowledgeConfig(width=0),
     lambda: LoraConfig(rank=-1), lambda: LoraConfig(targets=()), lambda: TextConfig(tokens=0),
     lambda: AlignmentConfig(temperature=0.0), lambda: PseudoLabelConfig(momentum=1.0),
     lambda: ModelConfig(train_backbone=True, lora=LoraConfig(rank=4)), lambda: TrainingConfig(ema_decay=0.0)],
)  # fmt: skip
def test_ranges_hold_for_configurations_made_in_python_too(make):
    fails(make)


def test_a_number_that_is_not_one_is_refused_in_python_too():
    fails(lambda: TrainingConfig(learning_rate=math.nan))


def test_all_mistakes_are_reported_at_once():
    message = refuse(
        "training.epoch=3", "training.epochs=0", "training.batch_size=x", "model.encoder.kind=klm", "modle=1",
        "preprocess.fit=squish",
    )  # fmt: skip
    assert message.startswith("configuration: 5 mistakes: ")
    for part in (
        "training.epoch is unknown", "training.batch_size is 'x'", "model.encoder.kind is 'klm'", "modle is unknown",
        "preprocess.fit is 'squish' (did you mean 'squash'?)",
    ):  # fmt: skip
        assert part in message
    assert message.count(" | ") == 4


def test_all_values_out_of_range_are_reported_at_once():
    message = refuse("training.epochs=0", "training.batch_size=0", "model.head.hidden=0", "model.head.top_k=5")
    assert message == (
        "configuration: 4 mistakes: model.head.hidden is 0; expected 1 to 65536 | model.head.top_k is 5; expected at "
        "most the number of experts (4) | training.epochs is 0; expected 1 or more | training.batch_size is 0; "
        "expected 1 or more"
    )


# --- settings that contradict one another -----------------------------------------------------------------------------

ADAPTERS_AND_BACKBONE = "model.lora.rank is 8 and model.train_backbone true; expected one of the two"
NO_TEACHER = (
    "training.ema_decay is 0 and training.pseudo_labels.teacher 'ema'; expected an average or teacher 'student'"
)


def test_adapters_and_a_backbone_that_trains():
    """Adapters are what trains in place of the backbone; peft would freeze it without a word."""
    assert refuse("model.train_backbone=true", preset="sd15") == f"configuration: {ADAPTERS_AND_BACKBONE}"
    assert refuse("model.lora.rank=8") == f"configuration: {ADAPTERS_AND_BACKBONE}"  # tiny trains its backbone
    both = load_config("sd15", overrides=["model.train_backbone=true", "model.lora.rank=0"]).model
    assert both.train_backbone and not both.lora.rank
    frozen = load_config("tiny", overrides=["model.train_backbone=false", "model.lora.rank=8"]).model
    assert frozen.lora.rank == 8 and not frozen.train_backbone


def test_a_teacher_that_is_no_average():
    assert refuse("training.ema_decay=0") == f"configuration: {NO_TEACHER}"
    without = load_config("tiny", overrides=["training.ema_decay=0", "training.pseudo_labels.teacher=student"])
    assert without.training.ema_decay == 0.0
    student = load_config("tiny", overrides=["training.pseudo_labels.teacher=student"])
    assert student.training.ema_decay == 0.99  # validated and exported all the same


def test_a_teacher_to_start_from_that_is_not_named():
    wanted = (
        "configuration: training.pseudo_labels.teacher is 'start' and training.init_from empty; expected a run to "
        "start from"
    )
    assert refuse("training.pseudo_labels.teacher=start") == wanted
    named = ("training.pseudo_labels.teacher=start", "training.init_from=runs/a", "training.ema_decay=0")
    assert load_config("tiny", overrides=named).training.init_from == "runs/a"


def test_contradictions_are_reported_with_everything_else():
    message = refuse("model.lora.rank=8", "training.ema_decay=0", "training.epochs=0")
    assert message == (
        f"configuration: 3 mistakes: {ADAPTERS_AND_BACKBONE} | training.epochs is 0; expected 1 or more | {NO_TEACHER}"
    )


# --- profiles and captions --------------------------------------------------------------------------------------------


def test_the_paper_is_what_the_defaults_are():
    """So that a preset and a file hold what differs from the paper, and nothing else does."""
    assert PROFILE_FOLDER.joinpath("paper.toml").read_text(encoding="utf-8").startswith("#")
    assert dataclasses.replace(load_config("sd15"), preset="edge") == Config(
        preset="edge",
        model=ModelConfig(backbone="", lora=LoraConfig(rank=8, alpha=8.0)),
        training=TrainingConfig(learning_rate=1e-4),
    )


def test_what_the_released_code_does():
    """The rows of docs/fidelity.md, in the words of the settings."""
    want = {
        "model.train_backbone": True, "model.train_encoder": False, "model.scale_latents": False,
        "model.input_normalization": "imagenet-twice", "model.lora.rank": 0, "model.text.triple_separator": "",
        "model.head.knowledge": "none", "model.head.routing": "loop", "model.head.normalize_v": False,
        "model.head.renormalize": False, "model.head.top_k": 2, "model.alignment.kind": "cliea",
        "model.alignment.pooling": "all", "model.alignment.mapping": "linear", "training.learning_rate": 1e-5,
        "training.gradient_clip": 0.0, "training.shuffle": False, "training.schedule": "poly",
        "training.schedule_unit": "epoch", "training.backbone_lr_scale": 1.0, "training.class_weighting": "none",
        "training.classification_weight": 2.0, "training.balance": "gate-std", "training.balance_weight": 0.1,
        "training.ema_decay": 0.0, "training.augmentation": "randaugment", "training.mixed_precision": "no",
        "training.validation_sample": 1000, "training.pseudo_labels.source": "alignment",
        "training.pseudo_labels.teacher": "student", "training.pseudo_labels.views": "same",
        "training.pseudo_labels.threshold": "none", "training.pseudo_labels.prior": "none",
        "training.pseudo_labels.ramp_up": 0.0,
    }  # fmt: skip
    for preset in PRESETS:
        published = load_config(preset, profile="as-published-code")
        assert {path: at(published, path) for path in want} == want
        assert published.preprocess == load_config(preset).preprocess  # sizes stay the preset's
        assert published.model.unet == load_config(preset).model.unet
    paper = load_config("sd15")
    same = {path for path, value in want.items() if at(paper, path) == value}
    assert same == {
        "model.head.normalize_v", "model.head.renormalize", "model.head.top_k", "model.alignment.kind",
        "training.backbone_lr_scale", "training.pseudo_labels.source",
    }  # fmt: skip


def test_a_profile_is_over_the_preset_and_under_everything_else(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[training]\nbatch_size = 6\n", encoding="utf-8")
    config = load_config("tiny", file, ["training.balance=switch"], profile="as-published-code")
    assert config.training.learning_rate == 1e-5  # the profile over the preset's 2e-3
    assert config.training.batch_size == 6  # the file over the profile's 16
    assert config.training.balance == "switch"  # --set over all
    assert config.model.encoder.channels == 8  # the preset's, where the profile says nothing


def test_the_profile_cannot_be_renamed_by_a_setting(tmp_path):
    wanted = "a setting names the profile 'as-published-code'; expected 'paper', as chosen; choose it with --profile"
    assert refuse("profile=as-published-code") == wanted
    file = tmp_path / "x.toml"
    file.write_text('profile = "as-published-code"\n')
    assert fails(lambda: load_config("tiny", file)) == wanted
    load_config("tiny", file, profile="as-published-code")


CAPTIONS = {"data": {"captions": ["c.jsonl"]}}


def test_captions_that_are_given_are_used(tmp_path):
    assert load_config("tiny").model.knowledge.mode == "constant"
    told = load_config("tiny", data=CAPTIONS)
    assert told.model.knowledge.mode == "explicit" and told.data.captions == ("c.jsonl",)
    assert told.model.knowledge_tokens == 2 * told.model.text.tokens == 48
    assert load_config("tiny", data={"data": {"captions": []}}).model.knowledge.mode == "constant"
    # An express wish wins: captions also teach the adapter of the mode "implicit".
    wish = load_config("tiny", overrides=["model.knowledge.mode=implicit"], data=CAPTIONS)
    assert wish.model.knowledge.mode == "implicit" and wish.model.knowledge_tokens == 48
    file = tmp_path / "mine.toml"
    file.write_text("[model.knowledge]\nmode = 'implicit'\n", encoding="utf-8")
    assert load_config("tiny", file, data=CAPTIONS).model.knowledge.mode == "implicit"
    assert load_config("sd15", data=CAPTIONS) == load_config("sd15", overrides=['data.captions=["c.jsonl"]'])


def test_how_many_knowledge_tokens_there_are():
    constant = ModelConfig(knowledge=KnowledgeConfig(mode="constant", tokens=9))
    assert constant.knowledge_tokens == 9 and ModelConfig().knowledge_tokens == 154
    for mode in ("explicit", "implicit"):  # a caption and its triples, each as long as a text
        model = ModelConfig(knowledge=KnowledgeConfig(mode=mode, tokens=9), text=TextConfig(tokens=20))
        assert model.knowledge_tokens == 40
    assert DataConfig().captions == () and DataConfig().target == ()


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_preset_cannot_be_renamed_by_a_setting(tmp_path):
    wanted = "a setting names the preset 'edge'; expected 'tiny', as chosen; choose it with --preset"
    assert refuse("preset=edge") == wanted
    file = tmp_path / "x.toml"
    file.write_text('preset = "edge"\n')
    assert fails(lambda: load_config("tiny", file)) == wanted
    assert load_config("edge", file) == load_config("edge")


def test_a_typo_in_a_file(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("[training]\nbatchsize = 4\n")
    message = fails(lambda: load_config("tiny", file))
    assert message.startswith("configuration: training.batchsize is unknown (did you mean 'batch_size'?); expected one")


@pytest.mark.parametrize("content", [b"[training\nepochs = 3\n", b"epochs = \n", b"a = 1\na = 2\n", b"\xff\xfe"])
def test_a_file_that_is_not_toml(tmp_path, content):
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    message = fails(lambda: load_config("tiny", file))
    assert message.startswith(f"{file} is not valid TOML (") and message.endswith("); mend that line")


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    missing = tmp_path / "no.toml"
    assert fails(lambda: load_config("tiny", missing)) == f"{missing} does not exist; expected a TOML file"
    assert fails(lambda: load_config("tiny", tmp_path)).startswith(f"{tmp_path} cannot be read (")


def test_a_configuration_that_is_not_a_table():
    assert fails(lambda: Config.from_dict([1])) == "configuration: the configuration is [1]; expected a table"
