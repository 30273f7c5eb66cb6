"""The benchmark of hostile files: it counts what happens, a crash and a hang included, and finds none."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sticker_files import av, rlottie_python

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "benchmarks" / "hostile.py"


@pytest.mark.skipif(rlottie_python is None or av is None, reason="the stickers extra is not installed")
def test_a_few_files(tmp_path: Path) -> None:
    out = tmp_path / "hostile.json"
    command = [sys.executable, str(BENCHMARK), "--files=30", "--no-bombs", "--unguarded=5", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(out.read_text(encoding="utf-8"))
    assert {name: part["files"] for name, part in result["parts"].items()} == {
        "damaged": 30, "unguarded tgs": 5, "unguarded webm": 5,
    }  # fmt: skip
    part = result["parts"]["damaged"]
    assert part["read"] + part["refused"] == 30 and part["refused"] > 5 and not part["failures"]
    assert part["slowest"][0]["seconds"] == part["slowest_seconds"] >= part["median_seconds"] > 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_twin_a_crash_and_a_hang_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import hostile

    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, os, signal, sys, time\n"
        "start = int(sys.argv[sys.argv.index('--start') + 1])\n"
        "for n in range(start, 6):\n"
        "    if n == 2: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if n == 4: time.sleep(60)\n"
        "    print(json.dumps({'name': f'f{n}', 'outcome': 'read', 'seconds': 1.0 + n}), flush=True)\n"
    )
    monkeypatch.setattr(hostile, "__file__", str(fake))
    monkeypatch.setattr(hostile, "HANG_SECONDS", 1.0)
    rows: list[dict[str, Any]] = list(hostile.run(argparse.Namespace(seed=0), "damaged", 6))
    assert [row["outcome"] for row in rows] == ["read", "read", "crashed", "read", "hung", "read"]
    part = hostile.summary(rows)
    assert (part["files"], part["read"], part["crashed"], part["hung"]) == (6, 4, 1, 1)
    assert part["slowest_seconds"] == 6.0 and [row["name"] for row in part["failures"]] == ["damaged 2", "damaged 4"]
