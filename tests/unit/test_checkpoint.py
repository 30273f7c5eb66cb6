"""Checkpoints and the command ``kcdp train``: what is stored, what is refused, and every mistake in one line."""

from __future__ import annotations

import json
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import (
    SOURCE,
    TARGET,
    command,
    equal,
    fails,
    open_tiny,
    tiny,
    train_arguments,
    trainer_of,
)

from kcdp.config import profile_names
from kcdp.models.build import build_model, trainable_state
from kcdp.training.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    find_checkpoint,
    load_buffers,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from kcdp.training.log import LOG
from kcdp.training.trainer import Trainer


def test_the_best_checkpoint_holds_what_inference_needs_and_nothing_else(tmp_path):
    trainer = trainer_of(tiny("training.max_steps=2"), tmp_path / "run")
    trainer.run()
    best, last = (load_file(tmp_path / "run" / name) for name in (BEST, LAST))
    assert set(best) == set(trainable_state(trainer.model))
    extra = {name for name in last if name not in best}
    assert extra == {name for name in last if name.startswith(("optimizer/", "part/average/"))}
    assert {name.removeprefix("part/average/") for name in extra if name.startswith("part/")} == set(best)
    assert len([name for name in extra if name.startswith("optimizer/")]) == 3 * len(list(trainer.model.parameters()))
    # Best is the average, last the model itself with its average beside it.
    assert all(torch.equal(best[name], last[f"part/average/{name}"]) for name in best)
    assert not all(torch.equal(best[name], last[name]) for name in best)

    model, checkpoint = load_model(tmp_path / "run")
    assert not model.training and checkpoint.optimizer == checkpoint.parts == {} and checkpoint.config == trainer.config
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images).logits, trainer.validated_model(images).logits)
        assert not torch.equal(model(images).logits, trainer.model.eval()(images).logits)


def test_the_parts_of_a_checkpoint(tmp_path):
    config = tiny()
    model = build_model(config)
    parts = {"one": {"a": torch.ones(2), "b/c": torch.zeros(())}, "on": {"e/a": torch.full((1,), 3)}}
    save_checkpoint(tmp_path / "x", model, config, {}, parts=parts)
    checkpoint = load_checkpoint(tmp_path / "x")
    assert all(equal(checkpoint.part(name), parts[name]) for name in parts) and checkpoint.part("o") == {}
    assert equal(checkpoint.model, trainable_state(model)) and checkpoint.optimizer == {}
    assert Checkpoint(config, {}, {}).part("one") == {}


@pytest.mark.parametrize(
    "overrides", [("model.train_backbone=false",), ("model.knowledge.mode=implicit", "training.implicit=distill")]
)
def test_frozen_weights_and_their_average_are_stored_side_by_side(tmp_path, overrides):
    """Of a model made from scratch both are needed, and safetensors refuses tensors that share their memory."""
    config = tiny(*overrides)
    trainer = Trainer(config, open_tiny(), tmp_path / "run")
    trainer.save_last()
    checkpoint = load_checkpoint(tmp_path / "run" / LAST)
    assert equal(checkpoint.model, trainer.model.state_dict())
    assert equal(checkpoint.part("average"), trainer.average.state_dict())
    Trainer(config, open_tiny(), tmp_path / "run", checkpoint)


def test_a_checkpoint_in_memory_stays_as_it_was_read(tmp_path):
    trainer = trainer_of(tiny(), tmp_path / "run")
    trainer.run(stop_after=1)
    checkpoint, again = load_checkpoint(tmp_path / "run" / LAST), load_checkpoint(tmp_path / "run" / LAST)
    trainer_of(tiny(), tmp_path / "other", resume=checkpoint).run(stop_after=2)
    for name in ("model", "optimizer", "parts"):
        assert equal(getattr(checkpoint, name), getattr(again, name))


def test_buffers_of_another_module_are_one_line():
    module = torch.nn.BatchNorm1d(3)
    load_buffers(module, {name: value + 1 for name, value in module.state_dict().items()}, "here")
    assert module.running_mean.tolist() == [1, 1, 1]
    for state in ({}, {**module.state_dict(), "running_mean": torch.zeros(4)}):
        message = fails(lambda state=state: load_buffers(module, state, "run/last.safetensors"))
        assert message.startswith("run/last.safetensors: Error(s) in loading state_dict for BatchNorm1d: ")
        assert message.endswith("; use the checkpoint with its own settings") and "running_mean" in message


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path):
    trainer = trainer_of(tiny(), tmp_path / "run")
    trainer.run(stop_after=1)
    path = tmp_path / "run" / LAST
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may grow beyond that
    try:
        message = fails(trainer.save_last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith(f"writing {path} failed (") and message.endswith(
        "; free some space or choose another place"
    )
    assert path.read_bytes() == before and sorted(os.listdir(path.parent)) == [LAST, LOG]


def test_a_run_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "run"
    assert command(capsys, *train_arguments(below))[::2] == (
        2, f"kcdp: error: cannot make the folder {below}: Not a directory; choose another place"
    )  # fmt: skip
    assert command(capsys, *train_arguments(tmp_path / "file"))[::2] == (
        2, f"kcdp: error: {tmp_path / 'file'} is a file; expected a new folder; choose another --out"
    )  # fmt: skip
    status, _, error = command(capsys, *train_arguments(tmp_path / ("n" * 300)))
    assert status == 2 and "File name too long" in error


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, to be copied or looked at."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    Trainer(tiny("training.max_steps=1"), open_tiny(), out).run()
    return out


def test_an_existing_run_is_refused(finished, capsys):
    before = sorted(os.listdir(finished))
    assert command(capsys, *train_arguments(finished))[::2] == (
        2, f"kcdp: error: {finished} holds a run already; expected a new folder; choose another --out, or --resume "
           f"{finished}"
    )  # fmt: skip
    assert sorted(os.listdir(finished)) == before


@pytest.mark.parametrize(
    "option",
    [("--preset", "tiny"), ("--source", SOURCE), ("--validation", SOURCE), ("--out", "x"), ("--config", "x.toml"),
     ("--set", "training.epochs=9"), ("--profile", "paper"), ("--target", TARGET), ("--captions", "c.jsonl")],
)  # fmt: skip
def test_resuming_takes_no_other_options(finished, capsys, option):
    status, _, error = command(capsys, "train", "--resume", finished, *option)
    assert status == 2 and error == (
        f"kcdp: error: --resume with {option[0]}; expected --resume alone: a run goes on as it was configured; "
        "start a new run to change a setting"
    )


def test_resuming_what_is_not_there(tmp_path, capsys):
    status, _, error = command(capsys, "train", "--resume", tmp_path / "no")
    assert status == 2 and error == (
        f"kcdp: error: {tmp_path / 'no' / LAST} does not exist; expected a checkpoint; train one with: kcdp train"
    )


@pytest.mark.parametrize("keep", [0, 7, 1000, 100_000, -1])
def test_a_checkpoint_that_is_cut_off(finished, tmp_path, capsys, keep):
    run = tmp_path / "run"
    run.mkdir()
    (run / LAST).write_bytes((finished / LAST).read_bytes()[:keep])
    status, _, error = command(capsys, "train", "--resume", run)
    assert status == 2 and error.startswith(f"kcdp: error: {run / LAST} is damaged (")
    assert error.endswith("; take another checkpoint or train again")


def rewrite(source: Path, target: Path, tensors: Callable[[dict], dict] = dict, **metadata: Any) -> Path:
    """A copy of a checkpoint with other tensors or metadata; a value of None leaves the key out."""
    checkpoint = load_checkpoint(source)
    whole = {
        "format": "kcdp-checkpoint-3", "config": json.dumps(checkpoint.config.to_dict()),
        "progress": json.dumps(checkpoint.progress), **metadata,
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors(load_file(source)), target, {k: v for k, v in whole.items() if v is not None})
    return target


def test_rewriting_without_a_change_is_accepted(finished, tmp_path):
    assert load_checkpoint(rewrite(finished / LAST, tmp_path / "x")).config == load_checkpoint(finished / LAST).config


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"format": None}, "is not a kcdp checkpoint; expected best.safetensors or last.safetensors of a run"),
        ({"format": "pt"}, "is not a kcdp checkpoint; expected best.safetensors or last.safetensors of a run"),
        ({"format": "kcdp-checkpoint-1"}, "was written by another kcdp; use the kcdp that wrote it, or train again"),
        ({"format": "kcdp-checkpoint-9"}, "was written by another kcdp; use the kcdp that wrote it, or train again"),
        ({"config": None}, "is damaged (KeyError('config'))"),
        ({"config": "{"}, "is damaged (JSONDecodeError("),
        ({"config": "[]"}, "the configuration is []; expected a table"),
        ({"config": '{"traning": {}}'}, "traning is unknown (did you mean 'training'?)"),
        ({"progress": None}, "is damaged (KeyError('progress'))"),
        ({"progress": "3"}, "is damaged (ValueError('progress is no object'))"),
    ],
)
def test_a_checkpoint_with_other_metadata(finished, tmp_path, metadata, part):
    path = rewrite(finished / LAST, tmp_path / LAST, **metadata)
    message = fails(lambda: load_checkpoint(path))
    assert message.startswith(str(path)) and part in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "knowledge.embedding"}, "knowledge.embedding is missing"),
        (lambda t: {**t, "knowledge.embedding": torch.zeros(1)}, "knowledge.embedding is (1,); expected (1, 4, 32)"),
        (lambda t: {**t, "optimizer/knowledge.embedding/exp_avg": torch.zeros(1)},
         "the optimiser's state of knowledge.embedding is "),
        (lambda t: {k: v for k, v in t.items() if not k.endswith("embedding/step")},
         "the optimiser's state of knowledge.embedding is "),
        (lambda t: {**t, "optimizer/knowledge.embedding2/step": torch.zeros(())},
         "the optimiser's state has knowledge.embedding2"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("part/")},
         "alignment.attention.in_proj_bias is missing; expected"),
        (lambda t: {k: v for k, v in t.items() if k != "part/average/moe.gate.bias"},
         "moe.gate.bias is missing; expected (4,)"),
        (lambda t: {**t, "part/average/moe.gate.bias": torch.zeros(3)}, "moe.gate.bias is (3,); expected (4,)"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_other_tensors(finished, tmp_path, capsys, change, part):
    rewrite(finished / LAST, tmp_path / "run" / LAST, change)
    status, _, error = command(capsys, "train", "--resume", tmp_path / "run")
    assert status == 2 and part in error


def test_a_checkpoint_whose_progress_is_not_known(finished, tmp_path, capsys):
    rewrite(finished / LAST, tmp_path / "run" / LAST, progress=json.dumps({"step": 1, "mood": "good"}))
    status, _, error = command(capsys, "train", "--resume", tmp_path / "run")
    assert status == 2 and "'mood'" in error and error.endswith("use the kcdp that wrote it")


def test_finding_a_checkpoint(finished, tmp_path):
    assert find_checkpoint(finished) == finished / BEST and find_checkpoint(finished / LAST) == finished / LAST
    (tmp_path / LAST).write_bytes(b"")
    assert find_checkpoint(tmp_path) == tmp_path / LAST
    advice = f"expected a run folder with {BEST}, or a checkpoint; train one with: kcdp train"
    (tmp_path / "empty").mkdir()
    assert fails(lambda: find_checkpoint(tmp_path / "no")) == f"{tmp_path / 'no'} is not there; {advice}"
    assert fails(lambda: find_checkpoint(tmp_path / "empty")) == (
        f"{tmp_path / 'empty'} is a folder without a checkpoint; {advice}"
    )
    assert fails(lambda: load_checkpoint(tmp_path)).startswith(f"{tmp_path} is a folder; expected a checkpoint")


def test_saving_and_loading_a_checkpoint(tmp_path):
    config = tiny()
    model = build_model(config)
    save_checkpoint(tmp_path / "x", model, config, {"step": 3})
    checkpoint = load_checkpoint(tmp_path / "x")
    assert checkpoint.config == config and checkpoint.progress == {"step": 3} and checkpoint.optimizer == {}
    assert equal(checkpoint.model, trainable_state(model)) and checkpoint.parts == {}
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path / "x", model, config, {"best": math.nan})
    assert load_checkpoint(tmp_path / "x").progress == {"step": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], 'no source given; expected labelled pictures, such as --source "fer2013:PATH"'),
        (["--source", SOURCE], "no --out given; expected the run folder to make, such as --out runs/first"),
        (["--preset", "tinny", "--source", SOURCE, "--out", "x"],
         "preset 'tinny' is unknown (did you mean 'tiny'?); expected one of edge, sd15, tiny"),
        (["--source", f"{SOURCE}&labelled=no", "--out", "x"],
         f"source '{SOURCE}&labelled=no' has 40 pictures without a label of 40; expected only labelled pictures; add "
         "?only=labelled"),
        (["--source", f"{SOURCE}&split=train", "--out", "x"],
         f"--source '{SOURCE}&split=train' names a split, so its validation pictures are unknown; expected "
         "--validation SPEC as well; add it, or leave split= out of the source"),
        (["--source", "synthetic:photos?n=1", "--out", "x"],
         "dataset 'synthetic:photos?n=1' holds no pictures in split 'train'; its splits are train 0, val 0, test 1; "
         "choose another split or other options"),
        (["--source", "photos", "--out", "x"],
         "dataset 'photos' has no kind; expected kind:PATH; write folder:photos for a folder of pictures"),
        (["--preset", "sd15", "--source", SOURCE, "--out", "x", "--set", "model.knowledge.mode=constant"],
         "preset 'sd15' needs weights and model.backbone is empty; expected a folder in diffusers layout (unet, vae); "
         "add --set model.backbone=FOLDER"),
        (["--preset", "sd15", "--source", SOURCE, "--out", "x"],
         "preset 'sd15' needs weights and model.backbone is empty; expected a folder in diffusers layout (unet, vae); "
         "add --set model.backbone=FOLDER"),
        (["--preset", "sd15", "--source", SOURCE, "--out", "x", "--set", "model.backbone=nowhere"],
         "nowhere does not exist; expected a folder in diffusers layout (unet, vae); name its folder"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--target", SOURCE],
         f"source and target are both '{SOURCE}'; expected unlabelled pictures of another domain; change --target"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--set", "training.implicit=distill"],
         "training.implicit is \"distill\" and model.knowledge.mode 'constant'; expected the mode implicit; add --set "
         "model.knowledge.mode=implicit"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--set", "training.implicit=distill", "--set",
          "model.knowledge.mode=implicit"],
         'training.implicit is "distill" and training.init_from empty; expected an explicit run to learn from; train '
         "one with --captions, then add --set training.init_from=RUN"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--set", "model.knowledge.mode=explicit"],
         'model.knowledge.mode is "explicit" and there are no captions; expected --captions FILE; make it with: kcdp '
         "knowledge caption --data SPEC --captioner NAME --out FILE; or add --set model.knowledge.mode=constant"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--captions", "no.jsonl"],
         "no.jsonl does not exist; expected a captions file; run: kcdp knowledge caption --data SPEC --captioner NAME "
         "--out no.jsonl"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--captions", "no.jsonl", "--set",
          "model.knowledge.mode=constant"],
         'captions given to the mode "constant", which does not use them; expected model.knowledge.mode "explicit" or '
         '"implicit"; leave out --captions or change the mode'),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--target", "stickers"],
         "dataset 'stickers' has no kind; expected kind:PATH; write folder:stickers for a folder of pictures"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--profile", "papper"],
         f"profile 'papper' is unknown (did you mean 'paper'?); expected one of {', '.join(profile_names())}"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--set", "training.init_from=runs/no"],
         f"runs/no is not there; expected a run folder with {BEST}, or a checkpoint; train one with: kcdp train"),
        (["--preset", "tiny", "--source", SOURCE, "--out", "x", "--target", TARGET,
          "--set", "model.alignment.kind=none"],
         "training.pseudo_labels.source is 'alignment' and model.alignment.kind 'none'; expected an alignment, or "
         "pseudo-labels of the predictor; add --set training.pseudo_labels.source=predictor"),
    ],
)  # fmt: skip
def test_a_call_that_makes_no_sense(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command(capsys, "train", *arguments)[::2] == (2, f"kcdp: error: {message}")
    assert not (tmp_path / "x" / LAST).exists()
