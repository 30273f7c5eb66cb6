"""Metrics against numbers worked out by hand, and ``kcdp evaluate`` from the command line to its report."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kcdp import __version__
from kcdp.cli import main
from kcdp.config import Config, load_config
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.files import sha256_file
from kcdp.labels import LABELS
from kcdp.training.checkpoint import BEST, LAST, load_checkpoint, load_model, save_checkpoint
from kcdp.training.knowledge import KnowledgeReader
from kcdp.training.metrics import classification_metrics
from kcdp.training.pictures import open_pictures
from kcdp.training.reports import evaluation
from kcdp.training.reports.datasets import labelled, open_for_evaluation, open_validation, specs
from kcdp.training.reports.datasets import warnings as warnings_of
from kcdp.training.reports.experts import expert_use
from kcdp.training.reports.figures import plot_confusion, plot_experts
from kcdp.training.reports.intervals import bootstrap_intervals
from kcdp.training.reports.measurement import measure
from kcdp.training.reports.summary import summary
from kcdp.training.trainer import Trainer

SURPRISE, HAPPY, DISGUST, FEAR, SAD, ANGER = range(6)
SOURCE = "synthetic:photos?n=48&size=32"
STICKERS = "synthetic:stickers?n=24&size=32&seed=5"


def pairs(*rows: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions from (true class, predicted class, how often)."""
    labels = [true for true, _, count in rows for _ in range(count)]
    predictions = [predicted for _, predicted, count in rows for _ in range(count)]
    return np.array(labels), np.array(predictions)


#: happy 4 right, 1 called sad; sad 1 right, 1 called happy, 1 called fear; anger 2, both called happy. Fear, disgust
#: and surprise do not occur.
EXAMPLE = pairs((HAPPY, HAPPY, 4), (HAPPY, SAD, 1), (SAD, SAD, 1), (SAD, HAPPY, 1), (SAD, FEAR, 1), (ANGER, HAPPY, 2))


#: Without what takes seconds: the validation pictures and the map of features.
BRIEF = ("--no-validation", "--embed", 0)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run ``kcdp evaluate``, briefly: status, standard output, standard error without progress bars."""
    capsys.readouterr()
    status = main(["evaluate", *(str(a) for a in (*arguments, *BRIEF))])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return (
        status,
        captured.out,
        "\n".join(line for line in captured.err.splitlines() if line.startswith(("kcdp", "warn"))),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on drawn photographs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    overrides = [
        f"data.source={SOURCE}",
        "training.max_steps=2",
        "training.mixed_precision=no",
        "training.batch_size=8",
    ]
    train(load_config("tiny", overrides=overrides), out)
    return out


def train(config: Config, out: Path) -> Path:
    """As the command does."""
    pictures, text = open_pictures(config)
    Trainer(config, pictures, out, text=text).run()
    return out


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that read the numbers: drawing takes longer than measuring a tiny model."""
    for name in ("confusion", "reliability", "experts", "history"):
        monkeypatch.setattr(evaluation, f"plot_{name}", lambda *_: None)
    monkeypatch.setattr(evaluation, "write_mistakes", lambda *_: None)


def caption(data: str, out: Path) -> Path:
    """Captions of drawn pictures, told from their drawing."""
    assert main(["knowledge", "caption", "--data", data, "--captioner", "drawn", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps in the mode "explicit"; beside it, captions of photographs and of stickers."""
    folder = tmp_path_factory.mktemp("told")
    photos = caption(SOURCE, folder / "photos.jsonl")
    caption(STICKERS, folder / "stickers.jsonl")
    overrides = ["training.max_steps=2", "training.mixed_precision=no", "training.batch_size=8",
                 "model.text.target_prefix=a sticker of"]  # fmt: skip
    config = load_config("tiny", None, overrides, {"data": {"source": SOURCE, "captions": [str(photos)]}})
    return train(config, folder / "run")


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_against_numbers_worked_out_by_hand():
    got = classification_metrics(*EXAMPLE)
    assert got["n"] == 10 and got["accuracy"] == pytest.approx(5 / 10)
    assert got["support"] == {"surprise": 0, "happy": 5, "disgust": 0, "fear": 0, "sad": 3, "anger": 2}
    recall = {"happy": 4 / 5, "sad": 1 / 3, "anger": 0.0}
    assert got["recall"] == {name: pytest.approx(recall[name]) if name in recall else None for name in LABELS}
    precision = {"happy": 4 / 7, "sad": 1 / 2}
    assert got["precision"] == {name: pytest.approx(precision.get(name, 0.0)) for name in LABELS}
    assert got["balanced_accuracy"] == pytest.approx((4 / 5 + 1 / 3 + 0) / 3)
    f1_happy, f1_sad = 2 * (4 / 5) * (4 / 7) / (4 / 5 + 4 / 7), 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)
    assert got["macro_f1"] == pytest.approx((f1_happy + f1_sad + 0) / 3)
    f1 = {"happy": f1_happy, "sad": f1_sad, "anger": 0.0}
    assert got["f1"] == {name: pytest.approx(f1[name]) if name in f1 else None for name in LABELS}
    assert got["confusion"] == [
        [0, 0, 0, 0, 0, 0], [0, 4, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0, 2, 0, 0, 0, 0],
    ]  # fmt: skip


def test_the_constant_baseline_is_the_most_frequent_class_and_its_numbers():
    got = classification_metrics(*EXAMPLE)["constant_baseline"]
    assert got == {
        "answer": "happy", "accuracy": pytest.approx(5 / 10), "balanced_accuracy": pytest.approx(1 / 3),
        "macro_f1": pytest.approx((2 * 1 * 0.5 / 1.5) / 3),
    }  # fmt: skip


def test_a_constant_answer_scores_like_its_baseline():
    """SER30K-6 is 56.5 % happy: always saying so must not look like skill."""
    labels = np.repeat(np.arange(6), [76, 565, 11, 41, 169, 138])
    got = classification_metrics(labels, np.full(1000, HAPPY))
    assert got["accuracy"] == pytest.approx(0.565) and got["balanced_accuracy"] == pytest.approx(1 / 6)
    for key in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert got[key] == got["constant_baseline"][key]


def test_a_class_that_does_not_occur_has_no_recall_and_is_in_no_mean():
    labels, predictions = pairs((HAPPY, HAPPY, 3), (SAD, SAD, 2))
    got = classification_metrics(labels, predictions)
    assert got["balanced_accuracy"] == got["macro_f1"] == got["accuracy"] == 1.0
    assert [name for name, value in got["recall"].items() if value is None] == ["surprise", "disgust", "fear", "anger"]
    wrong = classification_metrics(*pairs((HAPPY, FEAR, 3), (SAD, SAD, 2)))  # a prediction makes no class occur
    assert wrong["recall"]["fear"] is None and wrong["balanced_accuracy"] == 0.5


def test_all_six_classes_right_and_all_wrong():
    labels = np.arange(6)
    assert classification_metrics(labels, labels)["macro_f1"] == 1.0
    wrong = classification_metrics(labels, (labels + 1) % 6)
    assert wrong["macro_f1"] == wrong["balanced_accuracy"] == wrong["accuracy"] == 0.0


def test_metrics_are_plain_json():
    got = classification_metrics(*EXAMPLE)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_no_labels_at_all():
    with pytest.raises(KcdpError, match="no picture has a label"):
        classification_metrics(np.array([], dtype=int), np.array([], dtype=int))


def test_numbers_by_group():
    stickers = open_dataset(STICKERS)
    predictions = np.zeros(24, dtype=int)
    got = measure(stickers, predictions)
    names = {sample.group for sample in stickers.samples}
    assert len(names) > 1 and set(got["groups"]) == names
    assert sum(group["n"] for group in got["groups"].values()) == got["metrics"]["n"] == 24
    for name, group in got["groups"].items():
        inside = [i for i, sample in enumerate(stickers.samples) if sample.group == name]
        assert group == classification_metrics(stickers.labels[inside], predictions[inside])
    assert "groups" not in measure(open_dataset("synthetic:photos?n=6"), np.zeros(6, dtype=int))


# --- what is measured on ----------------------------------------------------------------------------------------------


def test_a_dataset_without_splits_is_measured_whole():
    assert len(open_for_evaluation("synthetic:photos?n=24")) == 24
    assert 0 < len(open_for_evaluation("synthetic:photos?n=24&split=train")) < 24


def folder(root: Path, *names: str) -> str:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (20 * number, 0, 0)).save(path)
    return f"folder:{root}"


def test_a_dataset_with_a_test_split_is_measured_on_that(tmp_path):
    data = folder(tmp_path, "train/happy/a.png", "train/sad/b.png", "test/happy/c.png")
    assert [s.key for s in open_for_evaluation(data).samples] == ["test/happy/c.png"]
    assert len(open_for_evaluation(f"{data}?split=train")) == 2
    assert len(open_for_evaluation(f"{data}?split=all")) == 3


def test_unlabelled_pictures_are_left_out(tmp_path):
    data = open_dataset(folder(tmp_path, "train/a.png", "test/happy/b.png"))
    assert [s.key for s in labelled(data).samples] == ["test/happy/b.png"]
    whole = open_dataset("synthetic:photos?n=6")
    assert labelled(whole) is whole


def test_validation_pictures_are_those_that_chose_the_checkpoint():
    config = load_config("tiny", data={"data": {"source": [SOURCE]}})
    assert [s.key for s in open_validation(config).samples] == [
        s.key for s in open_dataset(SOURCE, split="val").samples
    ]
    other = load_config("tiny", data={"data": {"source": [SOURCE], "validation": [f"{STICKERS}&split=test"]}})
    assert {s.key for s in open_validation(other).samples} < {s.key for s in open_dataset(STICKERS).samples}
    both = load_config("tiny", data={"data": {"source": [SOURCE, STICKERS]}})
    assert len(open_validation(both)) == len(open_validation(config)) + len(open_dataset(STICKERS, split="val"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "the run's configuration names no source"),
        ({"source": [f"{SOURCE}&split=train"]},
         f"the run's source '{SOURCE}&split=train' names a split and the run no validation pictures"),
        ({"source": ["folder:nowhere"]}, "nowhere does not exist; expected a folder of pictures"),
    ],
)  # fmt: skip
def test_validation_pictures_that_are_not_to_be_had(data, message):
    with pytest.raises(KcdpError) as caught:
        open_validation(load_config("tiny", data={"data": data}))
    assert str(caught.value).startswith(message)


def test_settings_hold_one_dataset_string_or_several():
    assert specs("") == specs(()) == specs([""]) == ()
    assert specs("folder:a") == ("folder:a",) and specs(["folder:a", "folder:b"]) == ("folder:a", "folder:b")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_report_is_what_a_second_computation_gives(run, tmp_path, capsys):
    out = tmp_path / "report"
    status, printed, warned = command(capsys, run, "--data", STICKERS, "--out", out, "--batch-size", 7)
    assert status == 0 and warned == ""
    pictures = ["confusion.png", "experts.png", "mistakes.png", "reliability.png", "training.png"]
    assert sorted(os.listdir(out)) == sorted([*pictures, "predictions.csv", "report.json", "report.md"])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))

    model, checkpoint = load_model(run)
    stickers = open_dataset(STICKERS)
    images = checkpoint.config.preprocess.apply_batch([stickers.image(i) for i in range(24)])
    with torch.no_grad():
        output = model(torch.from_numpy(images))
    predictions = output.logits.argmax(1).numpy()
    want = classification_metrics(stickers.labels, predictions)
    assert report["metrics"] == want
    assert report["groups"] == measure(stickers, predictions)["groups"]
    assert report["experts"] == expert_use(output.moe.gates.numpy(), output.moe.chosen.numpy(), stickers.labels)
    assert report["data"] == STICKERS and report["kcdp"] == __version__
    assert report["configuration"] == checkpoint.config.to_dict()
    assert report["checkpoint"]["file"] == BEST and report["checkpoint"]["sha256"] == sha256_file(run / BEST)
    assert report["checkpoint"]["progress"] == checkpoint.progress
    assert report["title"] == f"run/{BEST} on {STICKERS}"

    assert f"24 pictures of {STICKERS}" in printed
    assert f"{want['balanced_accuracy']:.3f}" in printed and f"always {want['constant_baseline']['answer']}" in printed
    shares = " ".join(f"{share:.2f}" for share in report["experts"]["chosen"])
    assert f"experts answered for {shares} of the pictures" in printed
    assert report["intervals"] == bootstrap_intervals(np.array(want["confusion"]))
    low, high = report["intervals"]["balanced_accuracy"]
    assert f"{want['balanced_accuracy']:.3f}  {low:.3f} to {high:.3f}" in printed
    assert f"report: {out / 'report.md'}" in printed and "next, with several runs: kcdp report " in printed
    for name in pictures:
        with Image.open(out / name) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


@pytest.mark.usefixtures("no_pictures")
def test_a_checkpoint_can_be_named_itself_and_a_report_replaced(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(run)
    for name in (BEST, LAST):
        assert command(capsys, name, "--data", "synthetic:photos?n=6&seed=9", "--out", tmp_path)[0] == 0
        report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert report["checkpoint"]["file"] == name and report["title"].startswith(f"run/{name} on ")


SEEN = ["this model was trained on some of these pictures; add split=test"]
CHOSE = ["this model's checkpoint was chosen by some of these pictures; add split=test"]


def test_measuring_on_the_training_pictures_is_warned_of(run, tmp_path, capsys):
    status, _, warned = command(capsys, run, "--data", SOURCE, "--out", tmp_path)
    assert status == 0 and warned == f"warning: {SEEN[0]}"
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["warnings"] == [[SOURCE, SEEN[0]]]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"> **Warning:** `{SOURCE}`: {SEEN[0]}." in page and "decided nothing" not in page
    status, _, warned = command(capsys, run, "--data", STICKERS, "--data", SOURCE, "--out", tmp_path)
    assert status == 0 and warned == f"warning: {SEEN[0]} ({SOURCE})"


def seen(data: str, **settings: Any) -> list[str]:
    """What is said of measuring on ``data`` a model whose data table holds ``settings``."""
    return warnings_of(data, load_config("tiny", data={"data": settings}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (SOURCE, SEEN),
        (f"{SOURCE}&split=train", SEEN),
        (f"{SOURCE}&split=all", SEEN),
        (f"{SOURCE}&split=val", CHOSE),
        (f"{SOURCE}&split=test", []),
        ("synthetic:photos?n=48&size=32&seed=1&split=train", []),
        ("synthetic:photos?n=12&size=64", SEEN),  # other options, and pictures of the same names
        (STICKERS, []),
    ],
)
def test_what_a_model_has_seen(data, said):
    assert seen(data, source=[SOURCE]) == said
    assert seen(data, source=["synthetic:photos?n=6&seed=8", SOURCE]) == said


def test_what_a_model_was_adapted_to_started_from_and_chosen_by():
    adapted = ["this model was adapted, without labels, to some of these pictures; add split=test"]
    started = ["this model was started from one that had seen some of these pictures; add split=test"]
    assert seen(STICKERS, source=[SOURCE], target=[STICKERS]) == adapted
    assert seen(STICKERS, source=[SOURCE], ancestors=[STICKERS]) == started
    assert seen(f"{STICKERS}&split=val", source=[SOURCE], target=[STICKERS]) == []  # the target has no say in choosing
    assert seen(f"{STICKERS}&split=val", source=[SOURCE], validation=[STICKERS]) == CHOSE
    assert seen(f"{SOURCE}&split=val", source=[SOURCE], validation=[STICKERS]) == []
    last = load_config("tiny", overrides=["training.select=last"], data={"data": {"source": [SOURCE]}})
    assert warnings_of(f"{SOURCE}&split=val", last) == []
    assert seen("synthetic:photos?n=6", source=["folder:nowhere"]) == []
    assert seen("folder:nowhere", source=["folder:somewhere"]) == []


@pytest.mark.parametrize(
    ("split", "said"),
    [("", []), ("?split=test", []), ("?split=val", CHOSE), ("?split=train", SEEN), ("?split=all", SEEN)],
)
def test_a_dataset_with_splits_of_its_own_is_warned_of_only_where_they_are_left(tmp_path, split, said):
    names = [
        f"{part}/{label}/{i}.png" for part in ("train", "val", "test") for label in ("happy", "sad") for i in range(2)
    ]
    data = folder(tmp_path / "pictures", *names)
    assert seen(data + split, source=[data]) == said


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_was_not_trained_by_the_command_can_be_measured(tmp_path, capsys):
    config = load_config(
        "tiny", overrides=["training.max_steps=1", "training.mixed_precision=no", "training.batch_size=4"]
    )
    pictures, _ = open_pictures(load_config("tiny", overrides=[f"data.source={SOURCE}"]))
    Trainer(config, pictures, tmp_path / "run").run()
    assert command(capsys, tmp_path / "run", "--data", SOURCE, "--out", tmp_path / "report")[::2] == (0, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--data": f"{STICKERS}&labelled=no"},
         f"'{STICKERS}&labelled=no' has no labelled picture; expected pictures with labels; name another dataset"),
        ({"--data": "stickers"},
         "dataset 'stickers' has no kind; expected kind:PATH; write folder:stickers for a folder of pictures"),
        ({"--data": "folder:nowhere"}, "nowhere does not exist; expected a folder of pictures; check the path after "),
        ({"--batch-size": 0}, "--batch-size is 0; expected 1 or more"),
        ({"--device": "meta"},
         "device 'meta' cannot be used (kcdp trains on CPUs and NVIDIA GPUs); expected auto, cpu, cuda or cuda:N"),
        ({"--resamples": 0}, "--resamples is 0; expected 1 or more"),
        ({"--seed": -1}, "--seed is -1; expected 0 or more"),
        ({"--neutral": STICKERS},
         f"--neutral '{STICKERS}' has 24 pictures with a label of 24; expected pictures that show none of the six "
         "emotions, without labels; choose them, where the dataset knows them, by neutral=only"),
        ({"--out": "file"}, "cannot make the folder file: File exists; choose another place"),
        ({"--out": "file/below"}, "cannot make the folder file/below: Not a directory; choose another place"),
        ({"run": "no"}, f"no is not there; expected a run folder with {BEST}, or a checkpoint; train one with: kcdp "),
        ({"run": "file"}, "file is damaged ("),
    ],
)  # fmt: skip
def test_a_call_that_makes_no_sense(run, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    arguments: dict[str, Any] = {"run": run, "--data": STICKERS, "--out": "report", **changes}
    options = [part for name, value in arguments.items() if name != "run" for part in (name, value)]
    status, _, error = command(capsys, arguments["run"], *options)
    assert status == 2 and error.startswith(f"kcdp: error: {message}") and "\n" not in error
    assert not Path("report", "report.json").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_network_of_one_expert_has_no_choice_to_show(tmp_path, capsys):
    overrides = [f"data.source={SOURCE}", "training.max_steps=1", "training.mixed_precision=no",
                 "training.batch_size=8", "model.head.experts=1", "model.head.top_k=1"]  # fmt: skip
    run = train(load_config("tiny", overrides=overrides), tmp_path / "run")
    assert command(capsys, run, "--data", STICKERS)[0] == 0
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["experts"]["chosen"] == [1.0] and "experts" not in report["datasets"][0]["files"]
    page = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert "one expert or none" in page and "experts.png" not in page
    assert "There was no target, and so no pseudo-labels: a source-only run." in page


def test_answers_that_are_no_numbers_are_no_report(run, tmp_path, capsys):
    checkpoint = load_checkpoint(run / BEST)
    model, _ = load_model(run)
    with torch.no_grad():
        model.moe.answer_bias.fill_(float("nan"))
    save_checkpoint(tmp_path / "nan.safetensors", model, checkpoint.config, checkpoint.progress)
    status, _, error = command(capsys, tmp_path / "nan.safetensors", "--data", STICKERS)
    assert status == 2 and error == (
        f"kcdp: error: the model's answers to '{STICKERS}' are not finite numbers; take another checkpoint"
    )
    assert os.listdir(tmp_path / "report") == []  # the folder beside the checkpoint, where no other is named


def test_a_damaged_picture_is_named_and_no_report_written(run, tmp_path, capsys):
    data = folder(tmp_path / "pictures", "happy/a.png", "sad/b.png")
    damaged = tmp_path / "pictures" / "sad" / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    status, _, error = command(capsys, run, "--data", data, "--out", tmp_path / "report")
    assert status == 2 and error.startswith(f"kcdp: error: {damaged} is truncated or damaged (")
    assert os.listdir(tmp_path / "report") == []


# --- experts ----------------------------------------------------------------------------------------------------------


def test_expert_use_against_numbers_worked_out_by_hand():
    labels = np.array([HAPPY, HAPPY, SAD, ANGER])
    chosen = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 1, 0]], float)
    gates = np.array([[0.5, 0.4, 0.1], [0.6, 0.1, 0.3], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    got = expert_use(gates, chosen, labels)
    assert got["chosen"] == [1.0, 0.75, 0.25] and got["gate"] == [0.6, 0.25, 0.15]
    mean = (0.6, 0.25, 0.15)
    assert got["entropy"] == pytest.approx(-sum(p * np.log(p) for p in mean) / np.log(3), abs=1e-4)
    assert got["chosen_by_class"] == {
        "surprise": None, "happy": [1.0, 0.5, 0.5], "disgust": None, "fear": None, "sad": [1.0, 1.0, 0.0],
        "anger": [1.0, 1.0, 0.0],
    }  # fmt: skip
    assert list(got["chosen_by_class"]) == list(LABELS) and json.loads(json.dumps(got, allow_nan=False)) == got


def test_expert_use_at_its_ends():
    even = expert_use(np.full((5, 4), 0.25), np.tile([1.0, 1, 0, 0], (5, 1)), np.arange(5))
    assert even["entropy"] == 1.0
    alone = expert_use(np.tile([1.0, 0, 0, 0], (5, 1)), np.tile([1.0, 0, 0, 0], (5, 1)), np.arange(5))
    assert alone["entropy"] == 0.0 and alone["chosen"] == [1, 0, 0, 0]
    single = expert_use(np.ones((5, 1)), np.ones((5, 1)), np.arange(5))
    assert single["entropy"] == 0.0 and json.dumps(single, allow_nan=False)


@pytest.mark.usefixtures("no_pictures")
def test_the_shares_of_the_experts_add_up(run, tmp_path, capsys):
    assert command(capsys, run, "--data", STICKERS, "--out", tmp_path)[0] == 0
    experts = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["experts"]
    assert sum(experts["chosen"]) == pytest.approx(2, abs=1e-3) and sum(experts["gate"]) == pytest.approx(1, abs=1e-3)
    assert all(sum(row) == pytest.approx(2, abs=1e-3) for row in experts["chosen_by_class"].values() if row)
    assert 0 < experts["entropy"] <= 1


# --- knowledge --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_an_explicit_model_is_measured_with_captions(told, tmp_path, capsys):
    captions = told.parent / "stickers.jsonl"
    status, _, _ = command(capsys, told, "--data", STICKERS, "--captions", captions, "--out", tmp_path)
    assert status == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    model, checkpoint = load_model(told)
    stickers = open_dataset(STICKERS)
    images = torch.from_numpy(checkpoint.config.preprocess.apply_batch([stickers.image(i) for i in range(24)]))
    reader = KnowledgeReader(checkpoint.config, [captions])
    read = {p: reader.read(stickers, prefix=p, measuring=True) for p in ("", "a sticker of")}
    knowledge = {p: torch.from_numpy(np.stack([k.tokens(i) for i in range(24)])) for p, k in read.items()}
    assert not torch.equal(knowledge[""], knowledge["a sticker of"])
    with torch.no_grad():
        output = model(images, knowledge["a sticker of"])  # of the target, where nobody says otherwise
        other = model(images, knowledge[""])
    assert report["metrics"] == classification_metrics(stickers.labels, output.logits.argmax(1).numpy())
    assert report["experts"] == expert_use(output.moe.gates.numpy(), output.moe.chosen.numpy(), stickers.labels)

    call = ("--data", STICKERS, "--captions", captions, "--out", tmp_path)
    assert command(capsys, told, *call, "--domain", "source")[0] == 0
    plain = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert plain["experts"] == expert_use(other.moe.gates.numpy(), other.moe.chosen.numpy(), stickers.labels)
    assert plain["experts"] != report["experts"]
    assert command(capsys, told, *call, "--domain", "target")[0] == 0
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["experts"] == report["experts"]


@pytest.mark.usefixtures("no_pictures")
def test_captions_are_those_of_training_where_no_others_are_given(told, tmp_path, capsys):
    assert command(capsys, told, "--data", f"{SOURCE}&split=test", "--domain", "source", "--out", tmp_path)[0] == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    photos = told.parent / "photos.jsonl"
    again = ("--data", f"{SOURCE}&split=test", "--domain", "source", "--captions", photos, "--out", tmp_path)
    assert command(capsys, told, *again)[0] == 0
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["experts"] == report["experts"]


@pytest.mark.usefixtures("no_pictures")
def test_several_captions_files_together(told, tmp_path, capsys):
    both = ("--captions", told.parent / "photos.jsonl", "--captions", told.parent / "stickers.jsonl")
    one = ("--captions", told.parent / "stickers.jsonl")
    for name, files in (("both", both), ("one", one)):
        assert command(capsys, told, "--data", STICKERS, *files, "--out", tmp_path / name)[0] == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8")) for name in ("both", "one")]
    assert reports[0]["metrics"] == reports[1]["metrics"] and reports[0]["experts"] == reports[1]["experts"]


def test_captions_that_miss_pictures_name_the_command_that_fills_the_gap(told, tmp_path, capsys):
    photos = told.parent / "photos.jsonl"
    status, _, error = command(capsys, told, "--data", STICKERS, "--out", tmp_path / "report")
    first = open_dataset(STICKERS).samples[0].key
    assert status == 2 and error == (
        f"kcdp: error: {photos} has no caption for 24 of 24 pictures of {STICKERS!r} (first: {first!r}); expected a "
        f'caption for every picture; run: kcdp knowledge caption --data "{STICKERS}" --captioner drawn --out {photos}'
    )
    assert not (tmp_path / "report").exists()


def test_captions_that_may_hold_the_label_are_not_measured_with(told, tmp_path, capsys):
    rows = [json.loads(line) for line in (told.parent / "stickers.jsonl").read_text(encoding="utf-8").splitlines()]
    leaking = tmp_path / "leaking.jsonl"
    leaking.write_text("".join(json.dumps({**row, "leaks_labels": True}) + "\n" for row in rows), encoding="utf-8")
    status, _, error = command(
        capsys, told, "--data", STICKERS, "--captions", leaking, "--out", tmp_path / "report"
    )  # fmt: skip
    assert status == 2 and error == (
        f"kcdp: error: 24 captions of {leaking} may hold the label (captioner {rows[0]['captioner']!r}); expected "
        "captions that do not name the emotion, where accuracy is reported; caption these pictures with another "
        "captioner"
    )
    assert not (tmp_path / "report").exists()


def test_captions_whose_file_is_gone(told, tmp_path, capsys):
    missing = tmp_path / "no.jsonl"
    status, _, error = command(capsys, told, "--data", STICKERS, "--captions", missing, "--out", tmp_path / "report")
    assert status == 2 and error == (
        f"kcdp: error: {missing} does not exist; expected a captions file; run: kcdp knowledge caption --data SPEC "
        f"--captioner NAME --out {missing}"
    )


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("mode", ["constant", "implicit"])
def test_captions_for_a_model_that_takes_a_picture_alone(run, told, tmp_path, capsys, mode):
    """The mode "implicit" may have been trained with captions; it is measured as a device would run it."""
    if mode == "implicit":
        data = {"data": {"source": SOURCE, "captions": [str(told.parent / "photos.jsonl")]}}
        overrides = ["training.max_steps=1", "training.mixed_precision=no", "training.batch_size=8",
                     "model.knowledge.mode=implicit"]  # fmt: skip
        run = train(load_config("tiny", None, overrides, data), tmp_path / "run")
        assert command(capsys, run, "--data", STICKERS, "--out", tmp_path / "report")[0] == 0
    stickers = told.parent / "stickers.jsonl"
    status, _, error = command(capsys, run, "--data", STICKERS, "--captions", stickers, "--out", tmp_path / "x")
    assert status == 2 and error == (
        f'kcdp: error: --captions for a model of the knowledge mode "{mode}"; expected none: it takes the picture '
        "alone; leave out --captions"
    )
    assert not (tmp_path / "x").exists()


def test_a_model_that_is_told_and_no_captions_anywhere():
    config = load_config("tiny", overrides=["model.knowledge.mode=explicit"])
    with pytest.raises(KcdpError) as caught:
        KnowledgeReader(config)
    assert str(caught.value) == (
        "no captions given to a model that is told what a picture shows; expected --captions FILE; make it with: kcdp "
        "knowledge caption --data SPEC --captioner NAME --out FILE"
    )


def test_a_domain_that_is_none(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(capsys, run, "--data", STICKERS, "--out", tmp_path, "--domain", "targets")
    assert stopped.value.code == 2 and "invalid choice: 'targets'" in capsys.readouterr().err


# --- what is printed and drawn ----------------------------------------------------------------------------------------

EXPERTS = expert_use(np.full((6, 4), 0.25), np.tile([1.0, 1, 0, 0], (6, 1)), np.array([1, 1, 1, 4, 4, 5]))


@pytest.mark.parametrize("name", ["$a_{$b\\", "a$b", "50% $\\nothing$", "ünïcode"])
def test_names_that_look_like_formulas_do_not_break_the_plots(tmp_path, name):
    plot_confusion(tmp_path / "c.png", np.eye(6, dtype=int), f"run on {name}")
    plot_experts(tmp_path / "e.png", EXPERTS, f"run on {name}")
    assert all(Image.open(tmp_path / file).size[0] > 300 for file in ("c.png", "e.png"))


@pytest.mark.parametrize("experts", [1, 2, 12])
def test_the_plot_of_any_number_of_experts(tmp_path, experts):
    use = expert_use(np.full((3, experts), 1 / experts), np.ones((3, experts)), np.array([0, 1, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a layout that has no room
        plot_experts(tmp_path / "e.png", use, "run")
    assert Image.open(tmp_path / "e.png").size[0] > 300


def test_the_summary_says_what_a_constant_answer_gets():
    metrics = classification_metrics(*EXAMPLE)
    intervals = bootstrap_intervals(np.array(metrics["confusion"]))
    report = {"data": "folder:x", "metrics": metrics, "experts": EXPERTS, "intervals": intervals, "datasets": [None],
              "validation": None, "abstention": None}  # fmt: skip
    lines = summary(report).splitlines()
    assert lines[6] == "experts answered for 1.00 1.00 0.00 0.00 of the pictures"
    assert lines[0] == "10 pictures of folder:x"
    assert lines[1].split() == ["model", "95", "%", "interval", "always", "happy"]
    low, high = (f"{x:.3f}" for x in intervals["balanced_accuracy"])
    assert lines[2].split() == ["balanced", "accuracy", "0.378", low, "to", high, "0.333"]
    assert lines[4].split()[:2] == ["accuracy", "0.500"] and lines[4].split()[-1] == "0.500"
    assert "recall (pictures): surprise - (0), happy 0.80 (5), " in lines[5]
