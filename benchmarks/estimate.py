"""What training at Stable Diffusion 1.5's size should take on a GPU: ESTIMATES, for none was at hand.

    python benchmarks/estimate.py            the tables of docs/training.md, in seconds, without torch
    python benchmarks/estimate.py --count    count work and memory anew, and write them where the tables find them

Work and memory are counted, not guessed: the model's own code runs on tensors that have a shape, a type and a device
but no content, see ``counting.py``. From there to hours and GiB it takes the assumptions below.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

COUNTS = Path(__file__).parent / "results" / "estimate-counts.json"
MEASURED = Path(__file__).parent / "results" / "training-step-sd15-2-cores.json"
SIZES = (256, 512)
GIB = 2**30


class Card(NamedTuple):
    """A GPU by its maker's data sheet: GiB, and peak TFLOP/s without sparsity, bfloat16 (float32 sums) and float32."""

    name: str
    memory: float
    bf16: float
    float32: float


#: NVIDIA's papers on GA102 (2020), Ada (2022), A100 (2020) and H100 (2022, SXM). Of the RTX 3060 only float32 is
#: published; its bfloat16 is taken as twice that, as the GA102 paper has it for that generation.
CARDS = (
    Card("RTX 3060", 12, 25.4, 12.7), Card("RTX 3090", 24, 71.0, 35.6), Card("RTX 4090", 24, 165.2, 82.6),
    Card("A100", 80, 312.0, 19.5), Card("H100", 80, 989.4, 66.9),
)  # fmt: skip
#: Share of the peak that training is assumed to reach.
UTILISATION = (0.25, 0.40)
#: Assumed: CUDA's context and workspaces in GiB, and by how much holes between allocations raise what is kept.
CONTEXT, FRAGMENTS = 1.0, 1.10
#: A setting is said to fit a card where it needs at most so much of it.
ROOM = 0.95
#: EmoSet-118K holds 118,102 pictures; assumed: 80 % of them in its training list. SER30K: at most 30,739 x 80 %.
SOURCE, TARGET = round(0.8 * 118_102), round(0.8 * 30_739)
BATCH, EPOCHS = 16, 10
#: Bytes of one text's token states (77 x 768 float16), and how many texts a picture brings (assumed): caption, triples.
TEXT, TEXTS = 118_272, 3


class Setting(NamedTuple):
    """A way to train: what passes the network in a step of ``BATCH`` pictures (and as many of the target)."""

    name: str
    adapts: bool
    cached: bool
    checkpointing: bool
    accumulate: int
    whole: bool = False


SETTINGS = (
    Setting("UC", False, False, False, 1),
    Setting("UC, latents cached", False, True, False, 1),
    Setting("DA", True, False, False, 1),
    Setting("DA, in 4 parts", True, False, False, 4),
    Setting("DA, in 16 parts", True, False, False, 16),
    Setting("DA, gradient checkpointing", True, False, True, 1),
    Setting("DA, latents cached", True, True, False, 1),
    Setting("DA, latents cached, in 4 parts", True, True, False, 4),
    Setting("DA, latents cached, gradient checkpointing", True, True, True, 1),
    Setting("DA as released: whole U-Net, float32, checkpointing", True, False, True, 1, True),
)  # fmt: skip


def main() -> int:
    """Print the tables, or count."""
    parser = argparse.ArgumentParser(description="Estimates of training time and memory on GPUs.")
    parser.add_argument("--count", action="store_true", help=f"count anew and write {COUNTS.name}")
    if parser.parse_args().count:
        from counting import count

        from kcdp.files import write_json

        write_json(COUNTS, count(SIZES))
    print(tables(json.loads(COUNTS.read_text(encoding="utf-8"))))
    return 0


def tables(counts: dict[str, Any]) -> str:
    """All tables as Markdown."""
    checked = check(counts, json.loads(MEASURED.read_text(encoding="utf-8")))
    return "\n\n".join([work_table(counts), memory_table(counts), hours_table(counts), disk_table(), checked])


def check(counts: dict[str, Any], measured: dict[str, Any]) -> str:
    """What was counted beside what was measured on a CPU: one picture, float32, what gradient checkpointing changes."""
    plain, again = measured["rows"]
    found = counts["sizes"][str(measured["size"])]
    grown = [row["peak_gib"] - row["loaded_gib"] for row in (plain, again)]
    kept = found["gib"]["adapters, float32"]
    less = kept["kept"][0] - kept["kept, checkpointing"][0] - kept["largest layer"][0]
    gmac = [gmac_of(found["gmac"], 1, 0, 1, repeated) for repeated in (False, True)]
    return (
        f"Counted and measured, {measured['size']} px, one picture, float32, a step of two CPU cores: gradient "
        f"checkpointing saves {less:.2f} GiB counted, {grown[0] - grown[1]:.2f} measured, and makes the step "
        f"{gmac[1] / gmac[0]:.2f} times as long by the count, {again['seconds'][1] / plain['seconds'][1]:.2f} measured "
        "(a busy machine)."
    )


def work_table(counts: dict[str, Any]) -> str:
    """GMAC by picture."""
    lines = ["| GMAC per picture (counted) | " + " | ".join(f"{size} px" for size in SIZES) + " |", "|---|---|---|"]
    rows = {
        "autoencoder, forward (0 with cached latents)": ("encoder",),
        "U-Net, pyramid, experts, CLIEA: forward": ("forward",),
        "the way back, adapters train": ("backward", "adapters"),
        "the way back, the whole U-Net trains": ("backward", "whole"),
    }
    for name, path in rows.items():
        values = []
        for size in SIZES:
            found = counts["sizes"][str(size)]["gmac"]
            for part in path:
                found = found[part]
            values.append(f"{found:.0f}")
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def memory_table(counts: dict[str, Any]) -> str:
    """GiB on the card by setting, and the smallest card with as much."""
    lines = ["| ESTIMATE: GiB at batch 16 | 256 px | 512 px | 512 px fits |", "|---|---|---|---|"]
    for setting in SETTINGS:
        need = [gib(counts, setting, size) for size in SIZES]
        fits = next((card.name for card in CARDS if ROOM * card.memory >= need[-1]), "none of these")
        lines.append(f"| {setting.name} | {need[0]:.0f} | {need[1]:.0f} | {fits} |")
    return "\n".join(lines)


def gib(counts: dict[str, Any], setting: Setting, size: int) -> float:
    """Peak memory: weights, what trains, what is kept for the way back, and the largest passing thing beside it."""
    found = counts["sizes"][str(size)]["gib"]
    kind = "whole" if setting.whole else "adapters"
    parameters = counts["parameters"]
    # Gradient and two moments of AdamW, each float32, and the moving average, which the released code has not.
    trained = parameters[f"trained, {kind}"] * 4 * (3 if setting.whole else 4) / GIB
    source = BATCH // setting.accumulate
    pictures = source * (2 if setting.adapts else 1)
    if setting.checkpointing:
        kept = _line(found[kind]["kept, checkpointing"], pictures) + _line(found[kind]["largest layer"], pictures)
    else:
        kept = _line(found[kind]["kept"], pictures)
    beside = 0.0
    if setting.adapts and not setting.whole:  # the teacher looks at the target while all that is kept
        passing = [found["forward, passing"]] + ([] if setting.cached else [found["encoder, passing"]])
        beside = max(_line(values, source) for values in passing)
    before = 0.0 if setting.cached else _line(found["encoder, passing"], pictures)
    return parameters["all"] * 4 / GIB + trained + max(before, kept + beside) * FRAGMENTS + CONTEXT


def _line(values: list[float], pictures: int) -> float:
    """Counted at 1 and 2 pictures, for more of them."""
    return values[0] + (values[1] - values[0]) * (pictures - 1)


def gmac_per_step(counts: dict[str, Any], setting: Setting, size: int) -> float:
    """All of a step's multiplications and additions."""
    learned = BATCH * (2 if setting.adapts else 1)
    taught = BATCH if setting.adapts and not setting.whole else 0  # the released code asks the model itself, once
    encoded = 0 if setting.cached else learned + taught
    found = counts["sizes"][str(size)]["gmac"]
    return gmac_of(found, learned, taught, encoded, setting.checkpointing, setting.whole)


def gmac_of(
    found: dict[str, Any], learned: int, taught: int, encoded: int, checkpointing: bool, whole: bool = False
) -> float:
    """Of so many pictures: learned from, seen by the teacher alone, passed through the autoencoder."""
    forward = learned * (2 if checkpointing else 1) + taught
    back = found["backward"]["whole" if whole else "adapters"]
    return forward * found["forward"] + learned * back + encoded * found["encoder"]


def hours_table(counts: dict[str, Any], size: int = 512) -> str:
    """Hours of one run by setting and card."""
    steps = EPOCHS * (SOURCE // BATCH)
    lines = [f"| ESTIMATE: hours of one run, {steps:,} steps, {size} px | {' | '.join(c.name for c in CARDS)} |",
             "|---|" + "---|" * len(CARDS)]  # fmt: skip
    seen = set()
    for setting in SETTINGS:
        name = setting.name.replace(", in 4 parts", "").replace(", in 16 parts", "")
        if name in seen:  # parts change memory, not work
            continue
        seen.add(name)
        flop = 2e9 * gmac_per_step(counts, setting, size) * steps
        cells = []
        for card in CARDS:
            peak = 1e12 * (card.float32 if setting.whole else card.bf16)
            slow, fast = (flop / (peak * share) / 3600 for share in UTILISATION)
            cells.append(f"{_hours(fast)} to {_hours(slow)}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _hours(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def disk_table(size: int = 512) -> str:
    """GB on disk."""
    latents = 4 * (size // 8) ** 2 * 4
    rows = {
        f"latents of the source's training pictures, one view, {size} px": SOURCE * latents,
        f"latents of the target's, weak and strong view, {size} px": TARGET * 2 * latents,
        "token states of all captions and triples (3 texts a picture)": (118_102 + 30_739) * TEXT * TEXTS,
    }
    lines = ["| ESTIMATE: disk | GB |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value / 1e9:.1f} |" for name, value in rows.items())])


if __name__ == "__main__":
    sys.exit(main())
