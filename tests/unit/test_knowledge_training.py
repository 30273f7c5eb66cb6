"""The commands from captions to an adapted model, and every mistake on the way in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from test_text_encoder import small_clip, write_folder
from tiny_runs import BASE, SOURCE, TARGET, command, rows, train_arguments, trainer_of, write_captions

from kcdp.cli import main
from kcdp.config import load_config
from kcdp.knowledge.captions import CaptionFile
from kcdp.training.checkpoint import load_checkpoint

QUICK = ("training.max_steps=2",)


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> list[str]:
    return write_captions(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def told(tmp_path_factory, captions) -> Path:
    """A run in the setting DA with explicit knowledge, trained by the command."""
    from kcdp.cli import main

    run = tmp_path_factory.mktemp("told") / "run"
    assert main([*map(str, train_arguments(run, *QUICK)), *adaptation(captions)]) == 0
    return run


def adaptation(captions: list[str]) -> list[str]:
    return ["--target", TARGET, *(part for file in captions for part in ("--captions", file))]


def test_captions_make_the_knowledge_explicit_and_a_target_makes_it_da(told, captions):
    config = load_checkpoint(told / "best.safetensors").config
    assert config.model.knowledge.mode == "explicit" and config.model.knowledge_tokens == 48
    assert config.data.captions == tuple(captions) and config.data.target == (TARGET,)
    steps = [row for row in rows(told) if "loss" in row]
    assert {"classification", "alignment", "pseudo", "pseudo_share", "pseudo_accuracy"} <= set(steps[-1])


def test_the_command_says_what_it_is_going_to_do(tmp_path, captions, capsys):
    status, out, _ = command(capsys, *train_arguments(tmp_path / "run", *QUICK), *adaptation(captions))
    assert status == 0
    assert "knowledge explicit, 48 tokens of 32; alignment cliea" in out
    assert re.search(r"^target \d\d pictures, unlabelled: setting DA$", out, flags=re.M)
    assert "kcdp evaluate" in out and "--captions FILE" in out and "training.implicit=distill" in out


def test_labels_of_the_target_make_no_difference(tmp_path, captions, told, capsys):
    blind = [*adaptation(captions)]
    blind[1] = f"{TARGET}&labelled=no"
    status, _, error = command(capsys, *train_arguments(tmp_path / "run", *QUICK), *blind)
    assert status == 0, error
    first, second = (load_checkpoint(run / "last.safetensors") for run in (told, tmp_path / "run"))
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)
    assert "pseudo_accuracy" not in [row for row in rows(tmp_path / "run") if "loss" in row][-1]


def test_evaluating_needs_the_captions_of_what_is_measured(told, captions, tmp_path, capsys):
    status, _, error = command(capsys, "evaluate", told, "--data", "synthetic:stickers?n=12&size=32&seed=9",
                               "--out", tmp_path / "report")  # fmt: skip
    assert status == 2 and "no caption for 12 of 12 pictures" in error and "(first: 'stickers-9-000000')" in error
    assert not (tmp_path / "report").exists()
    status, _, error = command(capsys, "evaluate", told, "--data", TARGET, "--captions", captions[1],
                                 "--out", tmp_path / "report")  # fmt: skip
    assert status == 0, error
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(report["experts"]["chosen"]) == 4 and sum(report["experts"]["chosen"]) == pytest.approx(2, abs=1e-3)
    assert (tmp_path / "report" / "experts.png").stat().st_size > 1000


def test_measuring_on_pictures_that_were_adapted_to_is_said(told, captions, tmp_path, capsys):
    arguments = ("evaluate", told, "--data", TARGET, "--captions", captions[1], "--out", tmp_path / "report")
    status, _, error = command(capsys, *arguments)
    assert status == 0
    assert error == "warning: this model was adapted, without labels, to some of these pictures; add split=test"


def test_what_the_run_that_is_started_from_has_seen_is_said_too(told, captions, tmp_path, capsys):
    settings = ("model.knowledge.mode=implicit", "training.implicit=distill", f"training.init_from={told}")
    arguments = [*train_arguments(tmp_path / "run", *QUICK, *settings), "--captions", captions[0]]
    assert command(capsys, *arguments)[0] == 0  # without the target
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").config.data.ancestors == (SOURCE, TARGET)
    status, _, error = command(capsys, "evaluate", tmp_path / "run", "--data", TARGET, "--out", tmp_path / "report")
    assert status == 0 and "started from one that had seen some of these pictures" in error


@pytest.mark.parametrize("settings", [("training.implicit=distill",), ("training.pseudo_labels.teacher=start",)])
def test_learning_from_a_run_that_takes_captions_needs_captions(told, tmp_path, capsys, settings):
    settings = ("model.knowledge.mode=implicit", f"training.init_from={told}", *settings)
    arguments = [*train_arguments(tmp_path / "run", *QUICK, *settings), "--target", TARGET]
    status, _, error = command(capsys, *arguments)
    assert status == 2 and "the run to learn from takes captions and there are no captions" in error, error
    assert not (tmp_path / "run").exists()


def test_another_template_counts_although_the_run_that_is_started_from_had_one(told, captions, tmp_path, capsys):
    other = ("model.alignment.template='the {} photo of'", f"training.init_from={told}")
    status, _, error = command(
        capsys, *train_arguments(tmp_path / "run", *QUICK, *other), *adaptation(captions)
    )  # fmt: skip
    assert status == 0, error
    runs = (told, tmp_path / "run")
    old, new = (load_checkpoint(run / "best.safetensors").model["alignment.prompts"] for run in runs)
    assert old.shape == new.shape and not torch.equal(old, new)


def test_distilling_from_the_command_gives_a_model_that_needs_no_captions(told, captions, tmp_path, capsys):
    status, out, error = command(
        capsys,
        *train_arguments(
            tmp_path / "seeing", *QUICK, "model.knowledge.mode=implicit", "training.implicit=distill",
            f"training.init_from={told}",
        ),
        *adaptation(captions),
    )  # fmt: skip
    assert status == 0, error
    assert f"starts from {told}; new: knowledge" in out
    before, after = (load_checkpoint(run / "best.safetensors").model for run in (told, tmp_path / "seeing"))
    assert all(torch.equal(before[name], after[name]) for name in before), "only the adapter trains"
    assert any(name.startswith("knowledge.") for name in after)
    status, _, error = command(capsys, "evaluate", tmp_path / "seeing", "--data", TARGET, "--out", tmp_path / "report")
    assert status == 0, error
    status, _, error = command(capsys, "export", tmp_path / "seeing", "--out", tmp_path / "seeing.kcdp")
    assert status == 0, error


def test_pseudo_labels_of_the_run_that_was_started_from(told, captions, tmp_path, capsys):
    status, _, error = command(
        capsys,
        *train_arguments(
            tmp_path / "run", *QUICK, "model.knowledge.mode=implicit", f"training.init_from={told}",
            "training.pseudo_labels.teacher=start",
        ),
        *adaptation(captions),
    )  # fmt: skip
    assert status == 0, error
    assert {"pseudo", "distillation"} <= set([row for row in rows(tmp_path / "run") if "loss" in row][-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model.knowledge.mode=constant",), 'captions given to the mode "constant", which does not use them'),
        (("model.lora.rank=2",), "model.lora.rank is 2 and model.train_backbone true; expected one of the two"),
        (("training.pseudo_labels.teacher=start",), "training.init_from empty; expected a run to start from"),
        (("training.ema_decay=0.0",), "expected an average or teacher 'student'"),
        (("model.alignment.kind=none",), "add --set training.pseudo_labels.source=predictor"),
        (("model.alignment.heads=5",), "model.alignment.heads is 5; expected a divisor of model.knowledge.width, 32"),
        (("training.init_from=nowhere",), "nowhere is not there; expected a run folder"),
        (("training.init_from=a", "model.lora.weights=b"), "expected one of the two: a run has its adapters in it"),
        (("model.text.triple_separator=-",), "model.text.triple_separator is '-'; expected one of ' ', ''"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, captions, capsys, change, message):
    status, _, error = command(capsys, *train_arguments(tmp_path / "run", *QUICK, *change), *adaptation(captions))
    assert status == 2 and message in error, error
    assert not (tmp_path / "run").exists()


def test_explicit_knowledge_without_captions(tmp_path, capsys):
    arguments = train_arguments(tmp_path / "run", *QUICK, "model.knowledge.mode=explicit")
    status, _, error = command(capsys, *arguments)
    assert status == 2 and "there are no captions; expected --captions FILE" in error
    status, _, error = command(capsys, *arguments, "--captions", tmp_path / "none.jsonl")
    assert status == 2 and "none.jsonl does not exist" in error
    assert not (tmp_path / "run").exists()


def test_captions_that_miss_pictures_are_counted_and_the_first_is_named(tmp_path, captions, capsys):
    whole = Path(captions[0]).read_text().splitlines(keepends=True)
    short = tmp_path / "short.jsonl"
    missing = {json.loads(line)["key"] for line in (whole[5], whole[9], whole[30])}
    short.write_text("".join(line for line in whole if json.loads(line)["key"] not in missing))
    status, _, error = command(capsys, *train_arguments(tmp_path / "run", *QUICK), "--captions", short)
    train = [row for row in CaptionFile(captions[0]) if row.key in missing]
    assert status == 2 and "short.jsonl has no caption for" in error and "(first: '" in error
    assert error.split("(first: '")[1].split("'")[0] in {row.key for row in train}
    assert "kcdp knowledge caption --data" in error
    assert not (tmp_path / "run").exists()


def test_captions_that_may_name_the_label_are_refused_where_accuracy_is_reported(tmp_path, captions, capsys):
    leaking = tmp_path / "leaking.jsonl"
    lines = [json.loads(line) for line in Path(captions[0]).read_text().splitlines()]
    leaking.write_text("".join(json.dumps(line | {"leaks_labels": True}) + "\n" for line in lines))
    status, _, error = command(capsys, *train_arguments(tmp_path / "run", *QUICK), "--captions", leaking)
    assert status == 2 and "may hold the label" in error


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> list[Path]:
    """Two small backbones whose cross-attentions differ in width."""
    folders = []
    for name, channels in (("one", (8, 8, 16, 16)), ("other", (8, 16, 24, 32))):
        folder = tmp_path_factory.mktemp(name)
        UNet2DConditionModel(
            block_out_channels=channels, norm_num_groups=4, cross_attention_dim=24, attention_head_dim=2,
            layers_per_block=1,
        ).save_pretrained(folder / "unet")  # fmt: skip
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), decoder_block_out_channels=(8, 8),
            num_decoder_blocks=(1, 1),
        ).save_pretrained(folder / "vae")  # fmt: skip
        folders.append(folder)
    return folders


def adapting_backbone(folder: Path, run: Path, *overrides: str) -> list[object]:
    settings = (
        *BASE[:3], *QUICK, f"model.backbone={folder}", "model.encoder.kind=tiny", "model.lora.rank=2",
        "model.knowledge.mode=constant", "model.knowledge.tokens=5", "model.knowledge.width=24",
        "model.alignment.kind=none", "preprocess.size=32", "model.head.pyramid_channels=8", *overrides,
    )  # fmt: skip
    sets = [part for text in settings for part in ("--set", text)]
    return ["train", "--preset", "sd15", "--source", SOURCE, "--out", run, *sets]


def test_adapters_are_written_in_peft_s_format_read_back_and_refused_by_another_model(backbones, tmp_path, capsys):
    status, out, error = command(capsys, *adapting_backbone(backbones[0], tmp_path / "run"))
    assert status == 0, error
    assert "of them low-rank adapters, rank 2)" in out
    folder = tmp_path / "run" / "lora"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    status, _, error = command(
        capsys, *adapting_backbone(backbones[0], tmp_path / "again", f"model.lora.weights={folder}")
    )
    assert status == 0, error
    status, _, error = command(
        capsys, *adapting_backbone(backbones[1], tmp_path / "wrong", f"model.lora.weights={folder}")
    )
    assert status == 2 and "lora" in error.lower() and "expected" in error, error
    assert not (tmp_path / "wrong").exists()
    other_rank = ("model.lora.rank=3", f"model.lora.weights={folder}")
    status, _, error = command(capsys, *adapting_backbone(backbones[0], tmp_path / "wrong", *other_rank))
    assert status == 2 and "model.lora.rank" in error, error


def test_dropout_of_adapters_is_resumed_to_the_bit(backbones, tmp_path):
    settings = [str(part) for part in adapting_backbone(backbones[0], tmp_path, "model.lora.dropout=0.5")]
    chosen = [settings[i + 1] for i, part in enumerate(settings) if part == "--set"]
    config = load_config("sd15", overrides=[*chosen, "training.max_steps=4"], data={"data": {"source": SOURCE}})
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    trainer_of(config, whole).run()
    trainer_of(config, halves).run(stop_after=2)
    torch.manual_seed(99)
    trainer_of(config, halves, resume=load_checkpoint(halves / "last.safetensors")).run()
    first, second = (load_checkpoint(run / "last.safetensors") for run in (whole, halves))
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)
    still = load_config("sd15", overrides=[*chosen, "training.max_steps=4", "model.lora.dropout=0.0"],
                        data={"data": {"source": SOURCE}})  # fmt: skip
    trainer_of(still, tmp_path / "still").run()
    other = load_checkpoint(tmp_path / "still" / "last.safetensors").model
    assert any(not torch.equal(first.model[name], other[name]) for name in first.model), "dropout does something"


def test_knowledge_of_the_wrong_width(backbones, tmp_path, captions, capsys):
    status, _, error = command(capsys, *adapting_backbone(backbones[0], tmp_path / "run", "model.knowledge.width=32"))
    assert status == 2 and "model.knowledge.width is 32; expected 24, the cross-attention width" in error
    weights = write_folder(tmp_path / "clip", small_clip())  # of width 32
    settings = ("model.knowledge.width=48", "model.text.kind=clip", f"model.text.weights={weights}")
    arguments = train_arguments(tmp_path / "run", *QUICK, *settings)
    status, _, error = command(capsys, *arguments, "--captions", captions[0])
    assert status == 2 and "makes knowledge of the wrong width: 32; expected 48" in error, error
    assert not (tmp_path / "run").exists()


def test_an_interrupted_cache_or_a_second_run_encodes_no_text_again(told, captions, tmp_path, capsys, monkeypatch):
    """Captions lie encoded beside their file: a second run opens the encoder for the prompts alone."""
    from kcdp.knowledge import text

    encoded: list[str] = []
    original = text.TextEncoder.encode

    def noting(self, texts):
        encoded.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(text.TextEncoder, "encode", noting)
    status, _, error = command(capsys, *train_arguments(tmp_path / "run", *QUICK), *adaptation(captions))
    assert status == 0, error
    assert len(encoded) == 6 and all(text.startswith("A ") and text.endswith(" photo of") for text in encoded)


def test_a_changed_caption_is_encoded_again_and_nothing_twice(captions, tmp_path, capsys, monkeypatch):
    from kcdp.knowledge import text

    encoded: list[str] = []
    original = text.TextEncoder.encode
    monkeypatch.setattr(
        text.TextEncoder, "encode", lambda self, texts: (encoded.extend(texts), original(self, texts))[1]
    )
    copied = [str(shutil.copy(name, tmp_path)) for name in captions]
    assert command(capsys, *train_arguments(tmp_path / "first", *QUICK), *adaptation(copied))[0] == 0
    first = [text for text in encoded if not text.endswith(" photo of")]
    assert len(first) == len(set(first)) > 48
    rows_before = [json.loads(line) for line in Path(copied[1]).read_text().splitlines()]
    changed = [row | {"caption": f"{row['caption']} holding an umbrella"} for row in rows_before]
    Path(copied[1]).write_text("".join(json.dumps(row) + "\n" for row in changed))
    encoded.clear()
    status, _, error = command(capsys, *train_arguments(tmp_path / "second", *QUICK), *adaptation(copied))
    assert status == 0, error
    second = [text for text in encoded if not text.endswith(" photo of")]
    assert not set(first) & set(second) and len(second) == len(set(second))
    used = [row["caption"] for row in changed if row["caption"] in second]
    assert len(used) > 20, "the target's training pictures"


def test_captions_that_hold_a_target_s_labels_are_warned_of(tmp_path, captions, capsys):
    leaking = tmp_path / "leaking.jsonl"
    lines = [json.loads(line) for line in Path(captions[1]).read_text(encoding="utf-8").splitlines()]
    leaking.write_text("".join(json.dumps(row | {"leaks_labels": True}) + "\n" for row in lines), encoding="utf-8")
    for name, told, warned in (("leaking", leaking, True), ("clean", captions[1], False)):
        capsys.readouterr()
        arguments = train_arguments(tmp_path / name, "training.max_steps=1")
        assert main([str(a) for a in (*arguments, *adaptation([captions[0], str(told)]))]) == 0
        said = capsys.readouterr().err
        line = "26 captions of the target may hold its labels: pseudo-labels can read them there, so no accuracy on"
        assert (line in said) is warned
