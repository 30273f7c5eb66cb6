"""The benchmark of training runs, at a tiny size, and its rows say what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("benchmark") / "training.json"
    options = ("--tiny", "--whole", "--rounds=1", "--steps=2", "--threads=1", f"--out={out}")
    done = subprocess.run([sys.executable, str(BENCHMARKS / "training.py"), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(out.read_text(encoding="utf-8"))
    return result


def test_the_rows_are_compared_on_the_same_inputs(result):
    assert [row["name"] for row in result["rows"]] == ["every step", "text", "text, latents", "released"]
    plain, text, latents, released = result["rows"]
    for row in (plain, text, latents):
        assert len(row["losses"]) == 3 and row["largest_loss_difference"] <= 1e-3
        assert row["seconds"] > 0 and row["peak_gib"] > 0 and 0 <= row["waiting_share"] < 1
        assert row["trained"] == plain["trained"] < released["trained"]
        assert row["speedup"] == pytest.approx(plain["seconds"] / row["seconds"])
        assert row["cpu_speedup"] == pytest.approx(plain["cpu_seconds"] / row["cpu_seconds"])
        assert row["pictures_per_second"] == pytest.approx(2 / row["seconds"])
    assert result["losses_agree"] and released["largest_loss_difference"] > 1e-3  # another training: the twin
    assert 0 < plain["text_cpu_seconds"] < plain["cpu_seconds"]
    assert all(count >= 4 for count in plain["texts"]), "two pictures, each a caption and at least one more text"
    assert latents["latents_bytes_per_view"] == 4 * 4 * 8 * 8 and latents["seconds_to_encode_a_picture"] > 0


def test_the_edge_rows_tell_how_long_they_wait(result):
    assert [row["name"] for row in result["edge"]] == ["workers 0", "workers 2"]
    alone, helped = result["edge"]
    assert alone["losses"] == helped["losses"] and len(alone["losses"]) == 4
    for row in (alone, helped):
        assert 0 <= row["waiting_share_later"] < 1 and 0 <= row["waiting_share_first_epoch"] < 1


def test_what_the_numbers_belong_to_is_said(result):
    assert {"benchmark", "date", "command", "machine", "settings", "rows", "edge", "losses_agree"} == set(result)
    assert {"cpu", "cores", "threads", "torch", "load_before", "load_after"} <= set(result["machine"])
    assert result["settings"]["tiny"] and result["command"].endswith("training.json")
