"""What a report is made of: the log as curves, the map of features, mistakes, predictions, plots and tables."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import fails

from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import open_dataset
from kcdp.labels import LABELS
from kcdp.training.predict import Predictions, softmax
from kcdp.training.reports.abstention import abstention
from kcdp.training.reports.calibration import calibration
from kcdp.training.reports.embedding import embed, fair_shares, write_embedding
from kcdp.training.reports.figures import plot_abstention, plot_embedding, plot_history, plot_reliability, shortened
from kcdp.training.reports.history import pseudo_summary, read_history, smoothed
from kcdp.training.reports.markdown import code, number, table
from kcdp.training.reports.measurement import (
    MEASURED,
    NEUTRAL,
    VALIDATION,
    Answers,
    fingerprint,
    measured_row,
    read_predictions,
    write_predictions,
)
from kcdp.training.reports.mistakes import confident_mistakes, write_mistakes
from kcdp.training.reports.specs import short

STICKERS = "synthetic:stickers?n=60&size=32&seed=5"
PHOTOS = "synthetic:photos?n=40&size=32"


def answers(name: str, role: str = MEASURED, seed: int = 0, spread: float = 2.0, shift: float = 0.0) -> Answers:
    """Random answers to drawn pictures, leaning to the truth; v is the class, ``shift`` and noise."""
    data = open_dataset(name)
    generator = np.random.default_rng(seed)
    count = len(data)
    truth = np.where(data.labels < 0, 0, data.labels)
    logits = (generator.normal(0, 1, (count, 6)) + spread * np.eye(6)[truth] * (data.labels >= 0)[:, None]).astype("f4")
    gates = softmax(generator.normal(0, 1, (count, 4))).astype("f4")
    chosen = (gates >= np.sort(gates, axis=1)[:, [2]]).astype("f4")
    v = (generator.normal(0, 0.2, (count, 12)) + 5 * np.eye(12)[truth] + shift).astype("f4")
    return Answers(name, role, data, Predictions(logits, gates, chosen, v))


def drawn(path: Path, least: int = 300) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) >= least and max(picture.size) < 3000
        assert len(picture.convert("RGB").getcolors(1 << 22)) > 10
        return np.asarray(picture.convert("RGB"))


# --- the log ----------------------------------------------------------------------------------------------------------


def write_log(run: Path, rows: list[object]) -> Path:
    run.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (run / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return run


def test_a_log_becomes_curves(tmp_path):
    run = write_log(tmp_path, [
        {"step": 10, "loss": 2.0, "pseudo_accuracy": 0.5, "pseudo_share": 0.1},
        {"step": 20, "loss": 1.0, "pseudo_accuracy": 0.75, "pseudo_accuracy_counted": 1.0, "pseudo_share": 0.2},
        {"step": 20, "validation": {"balanced_accuracy": 0.4, "accuracy": 0.5, "macro_f1": 0.3}},
        {"step": 30, "loss": None, "pseudo_share": True},
        [1], "", '{"step": 40, "lo',
    ])  # fmt: skip
    curves = read_history(run)
    assert curves is not None
    assert curves["loss"] == {"step": [10, 20], "value": [2.0, 1.0]}
    assert curves["pseudo_accuracy_counted"] == {"step": [20], "value": [1.0]}
    assert curves["validation balanced_accuracy"] == {"step": [20], "value": [0.4]}
    assert curves["pseudo_share"]["value"] == [0.1, 0.2]


def test_no_log_and_an_empty_one_are_no_curves(tmp_path):
    assert read_history(tmp_path / "nowhere") is None and read_history(write_log(tmp_path, ["x"])) is None


def test_pseudo_labels_by_thirds_of_the_training():
    curve = {"step": [1, 2, 3, 4, 5, 6], "value": [0.1, 0.3, 0.4, 0.6, 0.7, 0.9]}
    found = pseudo_summary({"pseudo_accuracy": curve, "loss": curve})
    assert found == {"pseudo_accuracy": {
        "first_step": 1, "last_step": 6, "rows": 6, "thirds": pytest.approx([0.2, 0.5, 0.8]),
    }}  # fmt: skip
    assert pseudo_summary({"loss": curve}) is None and pseudo_summary(None) is None
    one = pseudo_summary({"pseudo_share": {"step": [7], "value": [1.0]}})
    assert one is not None and one["pseudo_share"]["thirds"] == [1.0]


def test_smoothing_is_the_mean_of_neighbours():
    assert smoothed([1.0, 2.0, 6.0, 3.0], 3).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
    assert smoothed([1.0, 2.0], 1).tolist() == [1.0, 2.0]


def test_the_plot_of_a_training(tmp_path):
    steps = list(range(10, 1010, 10))
    curve = {"step": steps, "value": np.linspace(0.2, 0.8, 100).tolist()}
    curves = dict.fromkeys(("loss", "pseudo_accuracy", "pseudo_accuracy_counted", "pseudo_share"), curve)
    curves["validation balanced_accuracy"] = {"step": [500, 1000], "value": [0.3, 0.4]}
    plot_history(tmp_path / "a.png", curves, 500, "training of $run_{1}$")
    plot_history(tmp_path / "b.png", {"loss": curve}, None, "no target")
    plot_history(tmp_path / "c.png", {"pseudo_share": {"step": [1], "value": [0.5]}}, 1, "one row")
    both, one = drawn(tmp_path / "a.png"), drawn(tmp_path / "b.png")
    assert both.shape[0] > 1.5 * one.shape[0] and drawn(tmp_path / "c.png").shape == both.shape


# --- the map of features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "limit", "shares"),
    [([100, 100], 60, [30, 30]), ([10, 100], 60, [10, 50]), ([100, 10, 100], 61, [25, 10, 26]), ([5, 5], 60, [5, 5]),
     ([5], 3, [3])],
)  # fmt: skip
def test_every_dataset_has_its_fair_share(sizes, limit, shares):
    assert fair_shares(sizes, limit) == shares


def test_the_map_keeps_what_lies_together_together():
    """Classes that are far apart in v are far apart on the map: the nearest neighbour is of the same class."""
    found = embed([answers(STICKERS), answers(PHOTOS, VALIDATION, 1)], 90, seed=0)
    assert found is not None
    assert found.names == (STICKERS, f"{PHOTOS} (source validation)") and len(found.places) == len(found.keys) == 90
    assert np.bincount(found.domains).tolist() == [50, 40] and np.isfinite(found.places).all()
    apart = np.linalg.norm(found.places[:, None] - found.places[None], axis=2) + np.eye(90) * 1e9
    assert (found.labels[apart.argmin(axis=1)] == found.labels).mean() > 0.9
    again = embed([answers(STICKERS), answers(PHOTOS, VALIDATION, 1)], 90, seed=0)
    assert again is not None and np.array_equal(found.places, again.places) and found.keys == again.keys


def test_features_that_are_all_alike_and_too_few_of_them():
    alike = answers("synthetic:photos?n=24&size=32")
    alike.predictions.v[:] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = embed([alike], 100, 0)
    assert found is not None and np.isfinite(found.places).all()
    assert embed([answers("synthetic:photos?n=9&size=32")], 100, 0) is None


def test_the_map_as_a_table_and_as_a_plot(tmp_path):
    found = embed([answers(STICKERS), answers(PHOTOS, VALIDATION)], 60, seed=0)
    assert found is not None
    write_embedding(tmp_path / "map.csv", found)
    with (tmp_path / "map.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 60 and set(rows[0]) == {"dataset", "key", "label", "x", "y"}
    assert {row["label"] for row in rows} <= set(LABELS) and {row["dataset"] for row in rows} == set(found.names)
    plot_embedding(tmp_path / "map.png", found, "run: t-SNE of v")
    pixels = drawn(tmp_path / "map.png")
    assert pixels.shape[1] > 1.5 * pixels.shape[0]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_the_surest_mistakes_come_first():
    found = answers(STICKERS)
    rows = confident_mistakes(found, most=5)
    probabilities = found.predictions.probabilities
    wrong = np.flatnonzero(found.predicted != found.data.labels)
    assert 5 < len(wrong) < 60 and len(rows) == 5
    assert [row["confidence"] for row in rows] == sorted(probabilities.max(axis=1)[wrong])[::-1][:5]
    for row in rows:
        sample = found.data.samples[row["index"]]
        assert row["key"] == sample.key and row["true"] == LABELS[sample.label] != row["predicted"]
        assert row["confidence"] == probabilities[row["index"], LABELS.index(row["predicted"])]
    assert json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("most", [1, 3, 8, 32])
def test_the_sheet_of_mistakes(tmp_path, most):
    found = answers(STICKERS, spread=0.5)
    write_mistakes(tmp_path / "sheet.png", found, confident_mistakes(found, most))
    pixels = drawn(tmp_path / "sheet.png", least=100)
    assert pixels.shape[1] > 450
    assert (pixels == (200, 42, 50)).all(axis=2).sum() < pixels[..., 0].size / 20  # no frames: all of them are wrong


def test_no_mistakes_are_no_rows():
    assert confident_mistakes(answers(STICKERS, spread=50)) == []


# --- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_are_written_as_a_table_and_read_again(tmp_path):
    mine = answers(STICKERS)
    hidden = answers(f"{PHOTOS}&labelled=no", NEUTRAL)
    write_predictions(tmp_path / "p.csv", [mine, answers(PHOTOS, VALIDATION), hidden])
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 60 + 40 + 40 and list(rows[0])[6:] == list(LABELS)
    numbers = np.array([[float(row[label]) for label in LABELS] for row in rows[:60]])
    np.testing.assert_allclose(numbers, mine.predictions.probabilities, rtol=1e-6)
    assert {row["label"] for row in rows[100:]} == {""} and rows[0]["group"] == mine.data.samples[0].group
    found = read_predictions(tmp_path / "p.csv")
    assert list(found) == [STICKERS]
    want = {s.key: (LABELS[s.label], LABELS[p]) for s, p in zip(mine.data.samples, mine.predicted, strict=True)}
    assert found[STICKERS] == want


def test_predictions_that_are_missing_or_something_else(tmp_path):
    path = tmp_path / "p.csv"
    missing = fails(lambda: read_predictions(path))
    assert missing == f"{path} cannot be read (No such file or directory); expected predictions of kcdp evaluate"
    path.write_text("a,b\n1,2\n")
    assert fails(lambda: read_predictions(path)).startswith(f"{path} is damaged (KeyError('role'))")


def test_pictures_are_named_by_keys_and_labels():
    class Renamed(ImageDataset):
        def image(self, index: int) -> Image.Image:
            raise NotImplementedError

    data = open_dataset(STICKERS)
    assert fingerprint(Renamed("folder:elsewhere", data.samples[::-1])) == fingerprint(data)
    assert fingerprint(data.subset(range(59))) != fingerprint(data) != fingerprint(open_dataset(PHOTOS))
    assert fingerprint(open_dataset(f"{STICKERS}&labelled=no")) != fingerprint(data)


def test_a_row_of_a_report_is_strict_json():
    row = measured_row(answers(STICKERS), 1.5, resamples=50, seed=0)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert set(row["group_intervals"]) == set(row["groups"]) and row["calibration"]["temperature"] == 1.5
    low, high = row["intervals"]["accuracy"]
    assert low <= row["metrics"]["accuracy"] <= high


# --- plots and text ---------------------------------------------------------------------------------------------------


def test_the_plots_of_confidence(tmp_path):
    found, neutral = answers(STICKERS), answers(f"{PHOTOS}&labelled=no", NEUTRAL)
    logits, labels = found.predictions.logits, found.data.labels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_reliability(tmp_path / "one.png", calibration(logits, labels, None), "run on $x$")
        plot_reliability(tmp_path / "two.png", calibration(logits, labels, 0.6), "run")
        rejected = abstention(
            found.predictions.probabilities, labels, found.keys, neutral.predictions.probabilities, neutral.keys
        )
        assert rejected is not None
        plot_abstention(tmp_path / "risk.png", rejected, "run")
    assert drawn(tmp_path / "two.png").shape[1] > 1.7 * drawn(tmp_path / "one.png").shape[1]
    assert drawn(tmp_path / "risk.png").shape[1] > 700


def test_names_for_plots():
    assert short("fer2013:/some/where/fer.zip?split=test") == "fer2013:fer.zip?split=test"
    assert short("folder:C:\\art\\mine") == "folder:mine" and short("synthetic:photos") == "synthetic:photos"
    assert short("folder:a/b + emoji:c/d?styles=x") == "folder:b + emoji:d?styles=x"
    assert shortened("x" * 60) == "..." + "x" * 53 and shortened("x" * 56) == "x" * 56


def test_tables_and_code_hold_anything():
    assert table(["", "n"], [["a|b", "1"]], numbers=1) == "|  | n |\n|---|---:|\n| a\\|b | 1 |"
    assert code("a`b\nc") == "`` a`b c ``" and code("plain") == "`plain`"
    assert number(None) == "-" and number(0.12345, [0.1, 0.2]) == "0.123 [0.100, 0.200]"
