"""Pictures that cannot be read while a model trains: passed over, counted, named; too many of them stop the run."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_runs import STEPS_PER_EPOCH, command, equal, fails, rows, state, tiny, train_arguments

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import Item, TensorDataset
from kcdp.data.mixture import Mixture
from kcdp.errors import KcdpError
from kcdp.knowledge.captions import Caption, CaptionFile, captions_for, picture_hash
from kcdp.labels import LABELS
from kcdp.training.checkpoint import LAST, load_checkpoint
from kcdp.training.progress import Pictures
from kcdp.training.trainer import Trainer
from kcdp.training.unreadable import check_unreadable, note_unreadable, passed_over


class Broken(ImageDataset):
    """Coloured squares, some of which cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...]) -> None:
        super().__init__("squares", [Sample(f"{i}.png", i % 6) for i in range(count)])
        self.broken, self.asked = broken, []

    def image(self, index: int) -> Image.Image:
        self.asked.append(index)
        if index in self.broken:
            raise KcdpError(f"{index}.png is truncated or damaged", "a whole picture", "copy it again")
        return Image.new("RGB", (32, 32), (40 * (index % 6), index % 256, 90))


def tensors(count: int, *broken: int, tolerant: bool = True) -> TensorDataset:
    return TensorDataset(Broken(count, broken), tiny().preprocess, tolerant=tolerant)


def test_the_next_one_that_can_be_read_stands_in():
    data = tensors(10, 3, 4, 9)
    assert [(int(data[i].place), int(data[i].wanted)) for i in (2, 3, 4, 9)] == [(2, 2), (5, 3), (5, 4), (0, 9)]
    assert int(data[3].labels) == 5 and torch.equal(data[3].images, data[5].images)
    asked = data.dataset.asked.count(3)
    data[3]
    assert data.dataset.asked.count(3) == asked == 1  # it is not tried again


def test_evaluation_never_takes_another_picture():
    with pytest.raises(KcdpError, match=r"3\.png is truncated"):
        tensors(10, 3, tolerant=False)[3]


def test_nothing_stands_in_for_a_dataset_that_cannot_be_read():
    assert fails(lambda: tensors(5, *range(5))[2]) == (
        "squares: 5 pictures in a row cannot be read, the first is 2.png; expected pictures that can be read; look at "
        "them with: kcdp data check"
    )


def test_what_a_batch_should_have_had():
    item = Item(torch.empty(0), torch.empty(0), place=torch.tensor([2, 5, 5, 1]), wanted=torch.tensor([2, 3, 4, 8]))
    assert passed_over(item, 10) == {3, 4, 8, 9, 0}
    assert passed_over(Item(torch.empty(0), torch.empty(0)), 10) == set()


def test_they_are_named_once_and_then_counted(capsys):
    data, known = tensors(300, *range(20)), []
    assert note_unreadable(data, {1, 0}, known, speak=True) == ["0.png", "1.png"] == known
    assert note_unreadable(data, {1}, known, speak=True) == []
    note_unreadable(data, set(range(15)), known, speak=True)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "skipped 0.png: 0.png is truncated or damaged; expected a whole picture; copy it again"
    assert len(said) == 11 and said[-1] == "more pictures cannot be read; their keys are in the log"
    assert len(known) == 15
    note_unreadable(data, {16}, known, speak=False)
    assert not capsys.readouterr().out and known[-1] == "16.png"


@pytest.mark.parametrize(("count", "stops"), [(2, False), (3, True)])
def test_more_than_one_in_a_hundred_is_too_many(count, stops):
    data, known = tensors(299), [f"{i}.png" for i in range(count)]
    if not stops:
        check_unreadable(data, known)
        return
    assert fails(lambda: check_unreadable(data, known)) == (
        "3 of the 299 pictures of 'squares' cannot be read, the first is 0.png; expected at most 1 %; look at them "
        "with: kcdp data check 'squares'"
    )


def trainer(out: Path, *broken: int, resume: Path | None = None) -> Trainer:
    source = tensors(200, *broken)
    validation = TensorDataset(Broken(6, ()), tiny().preprocess)
    checkpoint = None if resume is None else load_checkpoint(resume / LAST)
    return Trainer(tiny("training.validate_every=1000"), Pictures(source, validation), out, checkpoint)


def test_a_training_passes_over_them_and_goes_on_to_the_bit(tmp_path):
    whole = trainer(tmp_path / "whole", 7, 100)
    progress = whole.run(stop_after=28)  # more than an epoch
    assert progress.step == 28 and sorted(progress.skipped["source"]) == ["100.png", "7.png"]
    logged = [row["skipped"]["source"] for row in rows(tmp_path / "whole") if "skipped" in row]
    assert sorted(chain(*logged)) == ["100.png", "7.png"]
    trainer(tmp_path / "parts", 7, 100).run(stop_after=11)
    parts = trainer(tmp_path / "parts", 7, 100, resume=tmp_path / "parts")
    assert sorted(parts.run(stop_after=28).skipped["source"]) == ["100.png", "7.png"]
    assert equal(state(parts), state(whole))


def test_too_many_stop_a_training_which_saves(tmp_path):
    run = trainer(tmp_path / "run", *range(0, 200, 40))
    message = fails(run.run)
    assert message.startswith("3 of the 200 pictures of 'squares' cannot be read, the first is ")
    saved = load_checkpoint(tmp_path / "run" / LAST).progress
    assert saved["step"] == run.progress.step > 0 and len(saved["skipped"]["source"]) == 3


def test_the_command_tells_how_many_were_skipped(tmp_path, capsys):
    for number in range(120):
        folder = tmp_path / "photos" / ("val" if number < 6 else "train") / LABELS[number % 6]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 90, 40 * (number % 6))).save(folder / f"{number}.png")
    broken = tmp_path / "photos" / "train" / LABELS[50 % 6] / "50.png"
    broken.write_bytes(broken.read_bytes()[:40])
    arguments = train_arguments(tmp_path / "run", "training.max_steps=16")
    arguments[4] = f"folder:{tmp_path / 'photos'}"
    status, out, error = command(capsys, *arguments)
    assert status == 0, error
    key = f"train/{LABELS[50 % 6]}/50.png"
    assert f"skipped {key}: " in out and "is truncated or damaged" in out
    assert f"1 pictures of the source could not be read and were skipped, the first is {key}\n" in out


def test_twin_a_clean_dataset_has_none(tmp_path):
    progress = trainer(tmp_path / "run").run(stop_after=STEPS_PER_EPOCH)
    assert progress.skipped == {"source": []} and not any("skipped" in row for row in rows(tmp_path / "run"))


def test_a_target_is_watched_too(tmp_path):
    config = tiny("training.validate_every=1000")
    pictures = Pictures(tensors(48), TensorDataset(Broken(6, ()), config.preprocess), tensors(120, 5))
    run = Trainer(config, pictures, tmp_path / "run")
    assert run.run(stop_after=15).skipped == {"source": [], "target": ["5.png"]}


def test_a_resumed_run_counts_what_still_cannot_be_read(tmp_path):
    trainer(tmp_path / "run", 7).run(stop_after=25)
    mended = trainer(tmp_path / "run", resume=tmp_path / "run")
    assert mended.run(stop_after=26).skipped == {"source": []}


def test_resuming_does_not_go_round_the_limit(tmp_path):
    broken = range(0, 200, 40)
    first = fails(trainer(tmp_path / "run", *broken).run)
    again = trainer(tmp_path / "run", *broken, resume=tmp_path / "run")
    step = again.progress.step
    assert fails(again.run) == first and again.progress.step == step


def test_of_a_mixture_the_part_is_named(tmp_path):
    one, two = (Broken(150, broken) for broken in ((), (1, 2, 3, 4)))
    one.name, two.name = "folder:one", "folder:two"
    data = TensorDataset(Mixture([one, two]), tiny().preprocess)
    message = fails(lambda: check_unreadable(data, ["1/1.png", "1/2.png", "1/3.png", "1/4.png"]))
    assert message.endswith("1/1.png; expected at most 1 %; look at them with: kcdp data check 'folder:two'")


def test_a_picture_without_pixels_needs_no_caption_to_be_passed_over(tmp_path):
    shown = Broken(12, ())
    file = CaptionFile(tmp_path / "captions.jsonl")
    for index in range(12):
        if index != 3:
            file.append(Caption(picture_hash(shown.image(index)), f"{index}.png", f"a face {index}", "test"))
    assert len(captions_for(Broken(12, (3,)), file)) == 12
    with pytest.raises(KcdpError, match=r"3\.png is truncated"):
        captions_for(Broken(12, (3,)), file, measuring=True)
