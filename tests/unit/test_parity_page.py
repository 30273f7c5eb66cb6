"""The parity report as a page: what it says, what is drawn, and that it stays small."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kcdp.export.agreement import NEAR_TIE, closeness, error_of, flips, near_ties, probabilities
from kcdp.export.parity import Gate, assemble, compare, compare_levels
from kcdp.export.parity_page import CARDS, page_text, write_parity_page
from kcdp.export.parity_report import RuntimeReport
from kcdp.export.reference import Reference
from kcdp.export.running.runner import FunctionRunner
from kcdp.labels import LABELS

COUNT = 30


class Recorded:
    """A model whose outputs are known."""

    output_names = ("logits", "v", "s8", "maps_s8")

    def __init__(self, outputs):
        self.outputs = outputs

    def __call__(self, images):
        import torch

        places = images[:, 0, 0, 0].long()
        return tuple(torch.from_numpy(self.outputs[name])[places] for name in self.output_names)


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)
    return {
        "logits": rng.normal(size=(COUNT, 6)).astype(np.float32), "v": rng.normal(size=(COUNT, 9)).astype(np.float32),
        "s8": rng.normal(size=(COUNT, 4, 6, 6)).astype(np.float32),
        "maps_s8": rng.random((COUNT, 3, 6, 6)).astype(np.float32),
    }  # fmt: skip


@pytest.fixture(scope="module")
def reference(outputs):
    images = np.random.default_rng(1).integers(0, 256, (COUNT, 64, 64, 3), dtype=np.uint8)  # noise: the largest PNG
    images[:, 0, 0, 0] = np.arange(COUNT)
    labels = np.arange(COUNT) % 6
    keys = [f"folder/a|b `{i}`.png" for i in range(COUNT)]
    return Reference(Recorded(outputs), images, keys=keys, labels=labels)


def noisy(reference, outputs, sizes, precision="int8"):
    """The report on runtimes whose outputs are off by so much."""
    gate, found = Gate(precision), []
    for name, size in sizes.items():
        rng = np.random.default_rng(5)
        off = {k: (a + size * rng.normal(size=a.shape)).astype(np.float32) for k, a in outputs.items()}
        runner = FunctionRunner(name, lambda feed, off=off: {k: a[feed["images"][:, 0, 0, 0]] for k, a in off.items()})
        found.append(compare(reference, runner, gate, compare_levels(reference, runner, gate)))
    return assemble(reference, found, gate)


def test_a_page_with_its_pictures(reference, outputs, tmp_path):
    report = noisy(reference, outputs, {"onnxruntime": 1.5, "openvino": 0.3})
    assert not report.passed and len(report.runtimes[0].flips) > CARDS
    files = write_parity_page(tmp_path, report, reference, data="folder:stickers")
    assert [path.name for path in files] == ["parity.md", "parity.png", "flipped.png"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}, "nothing is left behind"
    assert sum(path.stat().st_size for path in files) < 300_000
    assert Image.open(tmp_path / "parity.png").size[0] > 900
    text = files[0].read_text(encoding="utf-8")
    for part in (
        "# Parity: FAILED", "`folder:stickers`, 1 and 5 at a time", "## What failed", "openvino: batch 5: ",
        "| onnxruntime | 5 | ", "![differences of logits", "| openvino | maps_s8 | ", "## Accuracy before and after",
        "| always surprise | 16.7 |", "## Changed answers", "`` folder/a\\|b `", "more are not listed here",
        "![pictures whose answer changed](flipped.png)", "## What ran", "## What is allowed",
        "python -m kcdp.export check BUNDLE",
    ):  # fmt: skip
        assert part in text, part
    width = {line.count(" | ") for line in text.splitlines() if line.startswith("| `")}
    assert len(width) == 1, "a bar in a key does not end a cell"


def test_a_page_of_a_pass_without_changes(reference, outputs, tmp_path):
    report = noisy(reference, outputs, {"onnxruntime": 0.0}, "float32")
    files = write_parity_page(tmp_path, report, reference, data="x")
    assert report.passed and [path.name for path in files] == ["parity.md", "parity.png"]
    text = files[0].read_text(encoding="utf-8")
    assert text.startswith("# Parity: passed") and "What failed" not in text and "Changed answers" not in text
    assert "| each logit, difference at most | 0.0001 + 0.0001 x value |" in text


def test_a_page_of_a_graph_that_never_ran(reference, tmp_path):
    report = assemble(reference, [RuntimeReport({"runtime": "openvino"}, (), ("cannot open model.onnx",))], Gate())
    files = write_parity_page(tmp_path, report, reference, data="x")
    assert [path.name for path in files] == ["parity.md"]
    assert "- openvino: cannot open model.onnx" in files[0].read_text(encoding="utf-8")


def test_a_page_of_numbers_that_are_not_finite(reference, outputs, tmp_path):
    broken = {name: np.full_like(array, np.nan) for name, array in outputs.items()}
    report = noisy(reference, broken, {"onnxruntime": 0.0})
    files = write_parity_page(tmp_path, report, reference, data="x")
    text = files[0].read_text(encoding="utf-8")
    assert [path.name for path in files] == ["parity.md"]
    assert "| onnxruntime | s8 | not finite | - | - |" in text and "| onnxruntime | 1 | - | - |" in text


def test_one_answer_for_all_is_said_to_prove_little(outputs, tmp_path):
    same = {**outputs, "logits": np.tile(np.float32([0, 9, 0, 0, 0, 0]), (COUNT, 1))}
    images = np.zeros((COUNT, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(COUNT)
    report = noisy(Reference(Recorded(same), images), same, {"onnxruntime": 0.0})
    text = page_text(report, "x", [])
    assert "answers: happy 30. All have the same answer" in text and "Accuracy" not in text


def test_closeness():
    want = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    got = np.array([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0], [6.0, 8.0], [np.inf, 1.0]])
    found = closeness(want, got)
    np.testing.assert_allclose(found.cosine[:4], [0, 1, 0, 1])
    np.testing.assert_allclose(found.length[[0, 1, 3]], [2, 1, 2])
    np.testing.assert_allclose(found.max_abs[:4], [2, 0, 1, 4])
    assert found.finite.tolist() == [True] * 4 + [False]
    assert found.row() == {"cosine": None, "length": None, "max_abs": None}
    assert found.failures("s8", 0.99) == ["s8 of 1 pictures are not finite"]
    one = closeness(want[3:4], got[3:4])
    assert one.failures("s8", 0.99) == ["s8 is longer or shorter by 100.00%, allowed 14.14%"]
    assert closeness(want[:1], got[:1]).failures("s8", 0.99)[0] == "s8 has cosine 0.000000, needed 0.99"
    halves = closeness(np.float16([[60000, 60000]]), np.float16([[60000, 60000]]))
    assert halves.cosine[0] == pytest.approx(1), "not computed in half precision"


def test_probabilities_and_ties():
    logits = np.array([[1.0, 1.02, 0, 0, 0, 0], [5.0, 0, 0, 0, 0, 0], [0, 0.4, 0, 0, 0, 0.2]])
    sharp = probabilities(logits, 0.5)
    np.testing.assert_allclose(sharp.sum(axis=1), 1)
    np.testing.assert_allclose(sharp[1, 0], np.exp(10) / (np.exp(10) + 5))
    assert near_ties(logits, 1.0).tolist() == [True, False, False]
    assert near_ties(logits, 10.0).tolist() == [True, False, True], "as near as the probabilities are"
    assert error_of(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]])) == pytest.approx(0.1)
    (flip,) = flips(logits[:1], logits[:1, ::-1].copy(), 1.0, ["k"], np.array([-1]))
    assert (flip.before, flip.after, flip.label) == (LABELS[1], LABELS[4], None)
    assert flip.margin > NEAR_TIE and not flip.near_tie
    assert flips(logits, np.full_like(logits, np.nan), 1.0, ["k"] * 3, np.array([-1] * 3)) == ()
