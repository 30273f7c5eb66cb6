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
