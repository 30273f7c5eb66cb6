"""The demo's own script, in its form of seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from kcdp.bundle import Bundle
from kcdp.labels import LABELS

ROOT = Path(__file__).resolve().parents[2]


def test_quick_demo_goes_through_the_whole_line(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / "demo.py", "--quick", "--out", "demo"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "demo"
    rows = [json.loads(line) for line in (out / "tags.jsonl").read_text().splitlines()]
    assert len(rows) == 48 and all(row["label"] in LABELS and row["error"] is None for row in rows)
    assert Bundle.open(out / "demo.kcdp").manifest.parity["passed"]
    assert json.loads((out / "report" / "report.json").read_text())["metrics"]["n"] == 48
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 600 and len(sheet.convert("RGB").getcolors(1 << 24)) > 1000
    assert done.stdout.splitlines()[-1].startswith("next: ")


def test_a_failing_step_ends_the_demo_with_its_status(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / "demo.py", "--drawn", "--fer2013", "x", "--steps", "-3", "--out", "demo"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "training.max_steps is -3; expected 0 or more" in done.stderr
    assert done.stderr.splitlines()[-1] == "demo: this step failed with exit status 2"
    assert not (tmp_path / "demo" / "contact_sheet.png").exists()
