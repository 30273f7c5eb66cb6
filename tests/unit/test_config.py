"""The configuration: presets, TOML files, ``--set``, and that no mistake in them goes unnoticed."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from kcdp.config import (
    Config,
    EncoderConfig,
    HeadConfig,
    KnowledgeConfig,
    ModelConfig,
    TrainingConfig,
    UNetConfig,
    load_config,
    preset_names,
)
from kcdp.errors import KcdpError

PRESETS = ("edge", "sd15", "tiny")


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refuse(*overrides: str, preset: str = "tiny") -> str:
    return fails(lambda: load_config(preset, overrides=overrides))


def test_the_presets_are_those_of_the_design_that_exist():
    assert tuple(preset_names()) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_loads_and_says_its_name(preset):
    assert load_config(preset).preset == preset


def test_what_the_presets_are_for():
    tiny, edge, sd15 = (load_config(name) for name in ("tiny", "edge", "sd15"))
    assert tiny.preprocess.size == 32 and tiny.model.backbone == "scratch" and tiny.model.train_backbone
    assert edge.preprocess.size <= 128 and edge.model.backbone == "scratch" and edge.model.train_backbone
    assert sd15.preprocess.size == 512 and sd15.model.backbone == "" and not sd15.model.train_backbone
    assert (sd15.model.knowledge.tokens, sd15.model.knowledge.width, sd15.model.timestep) == (154, 768, 1)
    head = sd15.model.head
    assert (head.pyramid_channels, head.experts, head.top_k, head.renormalize) == (256, 4, 2, False)


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_json(preset):
    config = load_config(preset, overrides=["training.epochs=7", "data.source=folder:x"])
    again = Config.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again == config
    assert again != dataclasses.replace(config, data=dataclasses.replace(config.data, source="folder:y"))
    assert again.model.unet.channels == tuple(again.model.unet.channels)  # lists come back as tuples


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config("tiny").training.epochs = 3


def test_later_sources_win(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[training]\nepochs = 5\nbatch_size = 6\n[data]\nsource = 'folder:a'\n", encoding="utf-8")
    config = load_config("tiny", file, ["training.batch_size=7"], {"data": {"source": "folder:b"}})
    assert config.training.epochs == 5  # the file over the preset's 3
    assert config.training.batch_size == 7  # --set over the file
    assert config.data.source == "folder:b"  # the command's own options over all
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
        ("data.source=folder:a b?split=train&limit=3", "data.source", "folder:a b?split=train&limit=3"),
        ("model.backbone=", "model.backbone", ""),
        ("preprocess.background=[0, 0, 0]", "preprocess.background", (0, 0, 0)),
        ("preprocess.value_range=[0, 1]", "preprocess.value_range", (0.0, 1.0)),
    ],
)
def test_set_reads_toml_values_and_falls_back_to_strings(text, path, value):
    got = load_config("tiny", overrides=[text])
    for name in path.split("."):
        got = getattr(got, name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text", ["training.epochs", "=3", "", ".epochs=3", "training..epochs=3", "training.=3"])
def test_set_without_key_or_value(text):
    assert refuse(text) == f"--set {text!r}; expected key=value; write for example --set training.epochs=3"


def test_unknown_preset_names_the_nearest():
    message = fails(lambda: load_config("edgy"))
    assert message == "preset 'edgy' is unknown (did you mean 'edge'?); expected one of edge, sd15, tiny"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("trainig.epochs=3", "configuration: trainig is unknown (did you mean 'training'?); expected one of preset, "),
        ("training.epoch=3", "configuration: training.epoch is unknown (did you mean 'epochs'?); expected one of "),
        ("model.unet.chanels=3", "configuration: model.unet.chanels is unknown (did you mean 'channels'?); "),
        ("preprocess.colour=3", "configuration: preprocess.colour is unknown; expected one of size, resize_filter, "),
    ],
)
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
        ("data.source=3", "data.source is 3; expected a string"),
        ("training=3", "training is 3; expected a table"),
        ("model.unet=[1]", "model.unet is [1]; expected a table"),
        ("model.unet.channels=3", "model.unet.channels is 3; expected a list"),
        ("model.unet.channels=[8, 8.5, 8, 8]", "model.unet.channels[1] is 8.5; expected a whole number"),
        ("preprocess.background=[0, 0]", "preprocess.background has 2 entries; expected 3"),
        ("training.augmentation=ligth", "training.augmentation is 'ligth' (did you mean 'light'?); expected one of "
                                        "none, light, strong"),
        ("training.augmentation=3", "training.augmentation is 3; expected one of none, light, strong"),
        ("model.knowledge.mode=[1]", "model.knowledge.mode is [1]; expected one of constant"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind(text, message):
    assert refuse(text) == f"configuration: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.epochs=0", "training.epochs is 0; expected 1 or more"),
        ("training.batch_size=-1", "training.batch_size is -1; expected 1 or more"),
        ("training.learning_rate=0", "training.learning_rate is 0.0; expected 1e-12 to 10"),
        ("training.label_smoothing=2", "training.label_smoothing is 2.0; expected 0 to 1"),
        ("training.seed=-1", "training.seed is -1; expected 0 to 9223372036854775807"),
        ("training.validate_every=-1", "training.validate_every is -1; expected 0 or more"),
        ("training.workers=-1", "training.workers is -1; expected 0 to 1024"),
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
     "model.head.top_k=4", "preprocess.size=8", "training.gradient_clip=0"],
)  # fmt: skip
def test_the_ends_of_the_ranges_are_inside(text):
    load_config("tiny", overrides=[text])


@pytest.mark.parametrize(
    "make",
    [lambda: TrainingConfig(epochs=0), lambda: HeadConfig(top_k=9), lambda: UNetConfig(channels=(8,) * 3),
     lambda: ModelConfig(timestep=-1), lambda: EncoderConfig(blocks=()), lambda: KnowledgeConfig(width=0)],
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
