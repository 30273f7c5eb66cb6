"""Several processes are one: the same losses, the same order, one writer, and all of them stop together.

The processes are started as ``accelerate launch --multi_gpu`` starts them, by torch's own launcher, on the CPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from kcdp.cli import main
from kcdp.training.checkpoint import BEST, LAST, load_checkpoint
from kcdp.training.log import LOG

#: Augmentation and dropout are off. The rate is low: where a gradient is rounding noise, Adam goes the whole rate.
SETTINGS = (
    "training.batch_size=16", "training.augmentation=none", "training.pseudo_labels.views=same",
    "training.mixed_precision=no", "training.device=cpu", "training.learning_rate=1e-5", "training.max_steps=8",
    "training.validate_every=4", "training.tensorboard=false",
)  # fmt: skip
SOURCE = ("--source", "synthetic:photos?n=60&size=32")
TARGET = ("--target", "synthetic:stickers?n=40&size=32&seed=5")
CESA = ("--set", "model.alignment.kind=cesa", "--set", "model.alignment.components=8")
#: name -> arguments: UC, DA with each alignment, and a baseline with a discriminator of its own.
METHODS: dict[str, tuple[str, ...]] = {
    "UC": (), "DA": TARGET, "DA with CESA": (*TARGET, *CESA), "CDAN": (*TARGET, "--profile", "cdan"),
}  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def arguments(out: Path, *more: str) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["train", "--preset", "tiny", *SOURCE, "--out", str(out), *sets, *more]


def launch(*arguments: str) -> subprocess.Popen[str]:
    """Two processes that run Python with the arguments."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    return subprocess.Popen(
        [*run, "--rdzv-endpoint", "localhost:0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "waiting")} for row in found]


def losses(run: Path) -> dict[tuple[int, str], float]:
    return {(row["step"], k): v for row in rows(run) for k, v in row.items() if isinstance(v, float)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``one-METHOD`` and ``two-METHOD``; the two processes are started once for all."""
    folder = tmp_path_factory.mktemp("runs")
    commands = [arguments(folder / f"two-{method}", *more) for method, more in METHODS.items()]
    script = folder / "two.py"
    script.write_text(
        "import sys, json\nfrom kcdp.cli import main\n"
        f"sys.exit(any([main(command) for command in json.loads({json.dumps(commands)!r})]))\n"
    )
    two = launch(str(script))
    for method, more in METHODS.items():
        assert main(arguments(folder / f"one-{method}", *more)) == 0
    said = two.communicate(timeout=400)[0]
    assert two.returncode == 0, said
    assert said.count("shared by 2 processes") == said.count("parameters train") == len(METHODS)  # one of them speaks
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_with_8_pictures_are_one_with_16(runs, method):
    one, two = (losses(runs / f"{name}-{method}") for name in ("one", "two"))
    assert set(one) == set(two) and {step for step, _ in one} == {8}
    assert all(abs(one[key] - two[key]) <= 1e-5 for key in one), [(k, one[k], two[k]) for k in one]
    checked, others = ([row["validation"] for row in rows(runs / f"{name}-{method}") if "validation" in row]
                       for name in ("one", "two"))  # fmt: skip
    assert checked == others and len(checked) == 2


@pytest.mark.parametrize("file", [BEST, LAST])
def test_they_save_the_same_weights(runs, file):
    one, two = (load_file(runs / f"{name}-DA" / file) for name in ("one", "two"))
    assert set(one) == set(two)
    weights = [name for name in one if not name.startswith("optimizer/")]
    # A gradient that is rounding noise has a sign by chance, and Adam goes the whole rate that way: 8 steps of 1e-5.
    assert len(weights) > 300 and all(np.abs(one[k] - two[k]).max(initial=0) <= 2e-4 for k in weights)


def test_twin_other_methods_have_other_losses(runs):
    one, other = losses(runs / "one-DA"), losses(runs / "two-DA with CESA")
    assert any(abs(one[key] - other[key]) > 1e-3 for key in one)


def test_an_interrupt_stops_both_at_one_step_and_saves(tmp_path):
    endless = ("--set", "training.max_steps=100000", "--set", "training.epochs=100000")
    process = launch("-m", "kcdp", *arguments(tmp_path / "run", *endless))
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / LAST).exists() and time.monotonic() < deadline:  # the first validation
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)[0]
    (line,) = [line for line in said.splitlines() if line.startswith("stopped at step")]
    assert int(line.split()[3]) >= 4 and line.endswith(f"and saved; go on with: kcdp train --resume {tmp_path / 'run'}")
    assert load_checkpoint(tmp_path / "run" / LAST).progress["step"] == int(line.split()[3])


TRIALS = '''
import json, sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import kcdp.training.validation as validation
from kcdp.config import load_config
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import TensorDataset
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.training.progress import Pictures
from kcdp.training.trainer import Trainer

out = Path(sys.argv[1])
base = ["training.mixed_precision=no", "training.device=cpu", "training.tensorboard=false",
        "training.augmentation=none"]


class Broken(ImageDataset):
    """Squares, one of which cannot be read."""

    def image(self, index):
        if index == 3:
            raise KcdpError("3.png is damaged", "a whole picture")
        return Image.new("RGB", (32, 32), (index, 90, 40))


def squares(count):
    return Broken("squares", [Sample(f"{i}.png", i % 6) for i in range(count)])


def trainer(name, *settings, validation_set=None, **tables):
    config = load_config("tiny", overrides=[*base, *settings], data=tables)
    source = TensorDataset(open_dataset("synthetic:photos?n=12&size=32"), config.preprocess)
    checked = TensorDataset(validation_set or open_dataset("synthetic:photos?n=12&size=32&seed=2"), config.preprocess)
    return Trainer(config, Pictures(source, checked), out / name)


said = {}
many = trainer("sample", "training.validation_sample=30", "training.batch_size=4", validation_set=squares(200))
right = validation.predict_logits
validation.predict_logits = lambda _model, data, *_args, **_options: np.eye(6)[data.labels]
found = [validation.validation_metrics(many.model, many.pictures.validation, many.config, many.engine)
         for _ in range(2)]
said["sample"] = [(m["n"], m["accuracy"]) for m in found]
few = trainer("few", "training.batch_size=4", validation_set=squares(1))
said["few"] = validation.validation_metrics(few.model, few.pictures.validation, few.config, few.engine)["accuracy"]
validation.predict_logits = right
damaged = trainer("damaged", "training.batch_size=4", "training.validate_every=2", validation_set=squares(6))
try:
    damaged.run()
except KcdpError as error:
    said["damaged"] = [str(error), damaged.progress.step, damaged.saved]
diverging = trainer("diverging", "training.batch_size=4")
diverging.model.moe.answer_bias.data.fill_(float("nan"))
try:
    diverging.run()
except KcdpError as error:
    said["diverging"] = str(error).partition(";")[0]
one = trainer("one", "model.knowledge.mode=implicit", "training.batch_size=2", "training.learning_rate=1e-5")
source, _ = next(one.batches())
tokens = torch.randn(12, 48, 32, generator=torch.Generator().manual_seed(0))
row = one.train_step(source._replace(knowledge=tokens[source.place]))
said["one"] = row["distillation"]
(out / f"rank{one.engine.share.rank}of{one.engine.share.world}.json").write_text(json.dumps(said))
'''


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What two processes, and then one, say of ``TRIALS``; and whether the damaged run was saved."""
    folder = tmp_path_factory.mktemp("trials")
    script = folder / "trials.py"
    script.write_text(TRIALS)
    two = launch(str(script), str(folder))
    said = two.communicate(timeout=300)[0]
    assert two.returncode == 0, said
    assert "Traceback" not in said and "Warning" not in said
    saved = load_checkpoint(folder / "damaged" / LAST).progress["step"]
    logged = [row for row in rows(folder / "diverging") if "diverged" in row]
    alone = subprocess.run([sys.executable, script, folder], env=ENVIRONMENT, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    return {
        "two": [json.loads((folder / f"rank{rank}of2.json").read_text()) for rank in range(2)],
        "one": [json.loads((folder / "rank0of1.json").read_text())], "saved": [saved], "logged": logged,
    }  # fmt: skip


def test_a_sample_to_validate_on_is_the_same_for_all(trials):
    assert all(said["sample"] == [[30, 1.0]] * 2 for said in (*trials["two"], *trials["one"]))


def test_fewer_validation_pictures_than_processes(trials):
    assert [said["few"] for said in (*trials["two"], *trials["one"])] == [1.0] * 3


def test_a_mistake_in_one_process_ends_all_alike_and_saves(trials):
    line = ("validation picture: 3.png is damaged; expected a whole picture; look at them with: kcdp data check "
            "'squares'")  # fmt: skip
    assert [said["damaged"] for said in trials["two"]] == [[line, 2, 2]] * 2 and trials["saved"] == [2]


def test_a_loss_that_is_not_finite_names_the_whole_batch_in_all(trials):
    (row,) = trials["logged"]
    assert len(set(row["diverged"]["source"])) == 4
    assert trials["two"][0]["diverging"] == trials["two"][1]["diverging"]
    assert row["diverged"]["source"][0] in trials["two"][0]["diverging"]


def test_knowledge_of_one_picture_per_process_is_its_own(trials):
    losses = [said["one"] for said in (*trials["two"], *trials["one"])]
    assert losses[0] == losses[1] == pytest.approx(losses[2], abs=1e-6)
