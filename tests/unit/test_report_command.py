"""A whole report of a run that adapted, and ``kcdp report``: runs over seeds, pairs of runs, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report_parts import STICKERS, answers, drawn
from tiny_runs import TARGET, command, fails, tiny, trainer_of

from kcdp.config import load_config
from kcdp.files import write_json
from kcdp.training.reports import evaluation
from kcdp.training.reports.comparison import kind_of, name_of, read_report
from kcdp.training.reports.measurement import Answers, measured_row, write_predictions

PHOTOS = "synthetic:photos?n=30&size=32&seed=9"
#: Neither trained on nor adapted to.
UNSEEN = "synthetic:stickers?n=60&size=32&seed=6"


# --- the whole report of a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps that adapted to drawn stickers, evaluated with everything there is."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    config = tiny(
        "training.max_steps=20", "training.epochs=9", "model.knowledge.mode=constant", "training.target_batch_size=6",
        f"data.target=['{TARGET}']",
    )  # fmt: skip
    trainer_of(config, run).run()
    return run


@pytest.fixture(scope="module")
def whole(adapted: Path) -> dict[str, Any]:
    """Its report, in the folder that is meant where no other is named."""
    from kcdp.cli import main

    (adapted / "report").mkdir()
    (adapted / "report" / "mine.txt").write_text("kept")
    arguments = ["--data", UNSEEN, "--data", PHOTOS, "--neutral", f"{PHOTOS}&labelled=no", "--resamples", "200"]
    assert main(["evaluate", str(adapted), *arguments]) == 0
    return json.loads((adapted / "report" / "report.json").read_text(encoding="utf-8"))


def test_every_part_is_there(adapted, whole):
    names = {path.name for path in (adapted / "report").iterdir()}
    per_dataset = {
        f"{name}{suffix}.png" for suffix in ("", "-2") for name in ("confusion", "reliability", "experts", "mistakes")
    }
    others = {"abstention.png", "embedding.png", "embedding.csv", "training.png", "predictions.csv"}
    assert names == {*per_dataset, *others, "report.md", "report.json", "mine.txt"}
    for name in names:
        if name.endswith(".png"):
            drawn(adapted / "report" / name)


def test_the_first_dataset_is_the_reports_own(whole):
    first, second = whole["datasets"]
    assert (first["data"], second["data"]) == (UNSEEN, PHOTOS) and whole["data"] == UNSEEN
    assert [row["metrics"]["n"] for row in (first, second, whole["validation"])] == [60, 30, 4]
    for key in ("metrics", "groups", "intervals", "experts"):
        assert whole[key] == first[key]
    assert "groups" in first and "groups" not in second and whole["validation"]["role"] == "source validation"
    assert whole["bootstrap"]["resamples"] == 200 and whole["no_validation"] == "" and whole["warnings"] == []


def test_the_temperature_is_the_validation_pictures_own(whole):
    assert whole["temperature"] is not None
    assert all(row["calibration"]["temperature"] == whole["temperature"] for row in whole["datasets"])
    assert whole["validation"]["calibration"]["after"] is None  # not judged where it was fitted


def test_neutral_pictures_are_held_against_those_of_their_own_style(whole):
    found = whole["abstention"]
    assert found["emotional"] == PHOTOS and found["neutral"] == f"{PHOTOS}&labelled=no" and found["pictures"] == 30
    assert found["chosen_on"] == {"emotional": 15, "neutral": 15} == found["measured_on"]
    assert found["auroc"] == pytest.approx(0.5, abs=0.35)  # they are the same pictures


def test_pseudo_labels_of_the_training_are_reported(adapted, whole):
    found = whole["training"]["pseudo_labels"]
    assert {"pseudo_share", "pseudo_accuracy"} <= set(found)
    assert found["pseudo_accuracy"]["rows"] == 2 and found["pseudo_accuracy"]["last_step"] == 20
    page = (adapted / "report" / "report.md").read_text(encoding="utf-8")
    assert "counted with the target's labels, which decided nothing" in page


def test_the_pages_links_and_tables_are_whole(adapted, whole):
    page = (adapted / "report" / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert len(links) == 11 and all((adapted / "report" / link).is_file() for link in links)
    assert page.startswith("# Evaluation of run/best.safetensors\n")
    assert f"kcdp evaluate {adapted} --data '{UNSEEN}' --data '{PHOTOS}' --neutral" in page and whole["date"] in page
    assert whole["checkpoint"]["sha256"][:16] in page and f"torch {whole['versions']['torch']}" in page
    assert "neither the training, nor the checkpoint, nor the temperature" in page
    for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    want = whole["datasets"][0]["metrics"]["balanced_accuracy"]
    assert f"| {want:.3f} [" in page and page.count("\n## ") == 7


def test_the_numbers_are_strict_json(adapted, whole):
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = (adapted / "report" / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == whole


def test_single_answers_are_kept(adapted, whole):
    with (adapted / "report" / "predictions.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    counts = {role: sum(row["role"] == role for row in rows) for role in ("measured", "source validation", "neutral")}
    assert counts == {"measured": 90, "source validation": 4, "neutral": 30}
    first = [row for row in rows if row["dataset"] == UNSEEN]
    assert statistics.mean(row["label"] == row["predicted"] for row in first) == whole["metrics"]["accuracy"]


def test_a_second_report_replaces_the_first_one_whole(adapted, whole, tmp_path, capsys, monkeypatch):
    out = tmp_path / "report"
    out.mkdir()
    for name in ("confusion-2.png", "mistakes-7.png", "confusion-mine.png", "report.json"):
        (out / name).write_text("{}")
    call = ("evaluate", adapted, "--data", PHOTOS, "--out", out, "--no-validation", "--embed", 0)
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "write_predictions", lambda *_: fail())
        with pytest.raises(ZeroDivisionError):
            command(capsys, *call)
    assert (out / "report.json").read_text() == "{}" and len(list(out.iterdir())) == 4  # as it was
    assert command(capsys, *call)[0] == 0
    names = {path.name for path in out.iterdir()}
    assert "confusion-mine.png" in names and not {"confusion-2.png", "mistakes-7.png", "embedding.png"} & names
    report = json.loads((out / "report.json").read_text())
    assert report["embedding"] is None and report["validation"] is None and report["temperature"] is None
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "were not measured: left out by --no-validation." in page and "No temperature" in page


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.usefixtures("adapted")
def test_a_source_that_is_gone_is_said(adapted, whole, tmp_path, monkeypatch, capsys):
    from kcdp.training.reports import datasets

    def gone(*_: object, **__: object) -> None:
        raise datasets.KcdpError("photos do not exist", "a folder", "check the path")

    monkeypatch.setattr(datasets, "open_datasets", gone)
    status, _, _ = command(capsys, "evaluate", adapted, "--data", PHOTOS, "--out", tmp_path, "--embed", 20)
    assert status == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["validation"] is None
    assert report["no_validation"] == "photos do not exist; expected a folder; check the path"
    assert list(report["embedding"]["pictures"]) == [PHOTOS]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "were not measured: photos do not exist" in page and "There is one dataset only" in page


def test_a_dataset_given_twice(adapted, tmp_path, capsys):
    arguments = ("evaluate", adapted, "--data", PHOTOS, "--data", PHOTOS, "--out", tmp_path / "x")
    status, _, error = command(capsys, *arguments)
    assert status == 2
    assert error == f"kcdp: error: --data '{PHOTOS}' is given twice; expected each dataset once; leave one out"


# --- comparing runs ---------------------------------------------------------------------------------------------------


def report_of(
    folder: Path, *, seed: int = 0, spread: float = 1.0, data: tuple[str, ...] = (STICKERS,), **settings: Any
) -> Path:
    """An evaluated run, made up: ``kcdp evaluate``'s files that a comparison reads."""
    overrides = [f"training.seed={seed}", *(f"{key}={value}" for key, value in settings.pop("set", {}).items())]
    config = load_config("tiny", overrides=overrides, data={"data": {"source": ["fer2013:/a/fer.zip"], **settings}})
    found: list[Answers] = [answers(name, seed=seed, spread=spread) for name in data]
    write_json(folder / "report" / "report.json", {
        "checkpoint": {"file": "best.safetensors", "sha256": str(folder), "progress": {"step": 7}},
        "configuration": config.to_dict(),
        "datasets": [measured_row(one, None, resamples=50, seed=0) for one in found],
        "validation": None,
    })  # fmt: skip
    write_predictions(folder / "report" / "predictions.csv", found)
    return folder


def test_runs_that_differ_in_the_seed_alone_are_one_row(tmp_path, capsys):
    source_only = [report_of(tmp_path / f"s{i}", seed=i) for i in range(3)]
    adapting = [report_of(tmp_path / f"a{i}", seed=i, spread=2.0, target=["folder:/b/art?limit=9"]) for i in range(2)]
    out = tmp_path / "out"
    status, printed, _ = command(capsys, "report", *source_only, *adapting, "--out", out)
    assert status == 0
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    first, second = found["rows"]
    assert [run["seed"] for run in first["runs"]] == [0, 1, 2] and len(second["runs"]) == 2 and "paired" not in found
    assert first["name"] == "paper, tiny: fer2013:fer.zip"
    assert second["name"] == "paper, tiny: fer2013:fer.zip -> folder:art?limit=9"
    values = [json.loads((run / "report" / "report.json").read_text())["datasets"][0]["metrics"]["balanced_accuracy"]
              for run in source_only]  # fmt: skip
    summary = first["summary"]["datasets"][0]["balanced_accuracy"]
    assert summary["mean"] == pytest.approx(np.mean(values)) and summary["runs"] == 3
    assert summary["deviation"] == pytest.approx(np.std(values, ddof=1))
    cell = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert cell in printed and "always surprise" in printed and f"report: {out / 'comparison.md'}" in printed
    page = (out / "comparison.md").read_text(encoding="utf-8")
    assert cell in page and "![Comparison](comparison.png)" in page and page.count("| `paper, tiny") == 2 + 5
    assert drawn(out / "comparison.png", least=150).shape[1] > 500


def test_rows_can_be_named(tmp_path, capsys):
    runs = [report_of(tmp_path / "a"), report_of(tmp_path / "b", target=["folder:art"])]
    status, printed, _ = command(capsys, "report", *runs, "--name", "source only", "--name", "KCDP")
    assert status == 0 and "| source only | 1 |" in printed and "| KCDP | 1 |" in printed
    assert "next: the same with --out DIR" in printed
    status, _, error = command(capsys, "report", *runs, "--name", "one")
    assert status == 2 and error == "kcdp: error: 1 names for 2 rows (of 1, 1 runs); expected one --name for each row"


def test_two_runs_are_compared_picture_by_picture(tmp_path, capsys):
    runs = [report_of(tmp_path / "a", spread=0.5), report_of(tmp_path / "b", spread=3.0, target=["folder:art"])]
    assert command(capsys, "report", *runs, "--out", tmp_path / "out", "--resamples", 300)[0] == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    one = found["paired"][0]["accuracy"]
    means = [row["summary"]["datasets"][0]["accuracy"]["mean"] for row in found["rows"]]
    assert one["difference"] == pytest.approx(means[1] - means[0]) and one["interval"][0] > 0
    page = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert f"{one['difference']:+.3f} [" in page and "| yes |" in page
    (tmp_path / "a" / "report" / "predictions.csv").unlink()
    assert command(capsys, "report", *runs, "--out", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["paired"] is None


def test_several_datasets_are_several_tables(tmp_path, capsys):
    runs = [report_of(tmp_path / f"r{i}", seed=i, data=(STICKERS, PHOTOS)) for i in range(2)]
    status, printed, _ = command(capsys, "report", *runs, "--out", tmp_path / "out")
    assert status == 0 and f"{PHOTOS}, 30 pictures" in printed and f"{STICKERS}, 60 pictures" in printed
    page = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "the second run less the first (paired bootstrap)" in page and page.count("± ") >= 6
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.width > 900


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 5}, True),
        ({"source": ["fer2013:/elsewhere/fer.zip"]}, True),
        ({"set": {"training.device": "cpu", "training.workers": 2}}, True),
        ({"source": ["fer2013:/a/fer.zip?limit=9"]}, False),
        ({"source": ["fer2013:/a/other.zip"]}, False),
        ({"set": {"training.learning_rate": 0.01}}, False),
        ({"set": {"training.init_from": "runs/first"}}, False),
    ],
)
def test_what_makes_runs_of_one_kind(tmp_path, change, same):
    reports = [read_report(report_of(tmp_path / "a")), read_report(report_of(tmp_path / "b", **change))]
    assert (kind_of(reports[0]) == kind_of(reports[1])) is same


def test_rows_of_one_name_are_numbered(tmp_path, capsys):
    runs = [report_of(tmp_path / "a"), report_of(tmp_path / "b", set={"training.learning_rate": 0.01})]
    status, printed, _ = command(capsys, "report", *runs)
    assert status == 0 and "fer.zip (1) |" in printed and "fer.zip (2) |" in printed
    assert name_of(read_report(runs[0])) == name_of(read_report(runs[1]))


def test_a_report_is_found_by_run_folder_or_file(tmp_path):
    run = report_of(tmp_path / "a")
    found = [read_report(path) for path in (run, run / "report", run / "report" / "report.json")]
    assert {one.folder for one in found} == {run / "report"}


def test_what_cannot_be_compared(tmp_path, capsys):
    run, other = report_of(tmp_path / "a"), report_of(tmp_path / "b", data=(PHOTOS,))
    status, _, error = command(capsys, "report", run, other, "--out", tmp_path / "out")
    assert status == 2 and error == (
        f"kcdp: error: {run}/report was measured on {STICKERS} (60 pictures) and {other}/report on {PHOTOS} (30 "
        "pictures); expected the same pictures; evaluate both with the same --data"
    )
    assert not (tmp_path / "out").exists()
    status, _, error = command(capsys, "report", run, run / "report")
    assert status == 2 and error.endswith("are of one checkpoint; expected each run once; leave one out")
    (tmp_path / "none").mkdir()
    status, _, error = command(capsys, "report", tmp_path / "none")
    assert status == 2 and error == (
        f"kcdp: error: {tmp_path}/none holds no report.json; expected an evaluated run; run: kcdp evaluate "
        f"{tmp_path}/none --data SPEC"
    )
    write_json(tmp_path / "old.json", {"metrics": {}})
    assert fails(lambda: read_report(tmp_path / "old.json")) == (
        f"{tmp_path}/old.json is not a report of this kcdp; expected what kcdp evaluate writes; evaluate the run again"
    )
    status, _, error = command(capsys, "report", run, "--resamples", 0)
    assert status == 2 and error == "kcdp: error: --resamples is 0; expected 1 or more"
