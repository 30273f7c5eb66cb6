"""``kcdp doctor [--model NAME.kcdp]``: what this machine can run and read, and what to install for the rest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcdp.runtime.backends.choice import Choice
    from kcdp.runtime.trial import Trial

ALL_WELL, NOTHING_RUNS = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``run``."""
    parser.add_argument("--model", metavar="NAME.kcdp", help="try this bundle on every backend that is here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Prints what was found.

    Returns:
        0; with ``--model``, 1 when nothing here runs it.

    Raises:
        KcdpError: ``--model`` is no bundle.
    """
    from kcdp.runtime.backends.registry import open_model
    from kcdp.runtime.machine import survey
    from kcdp.runtime.trial import choice_for, try_all

    bundle = open_model(args.model) if args.model else None  # what is wrong with it, first
    facts: dict[str, Any] = survey()
    if bundle is None:
        print(json.dumps(facts) if args.json else "\n".join([*report(facts), "next: kcdp doctor --model NAME.kcdp"]))
        return ALL_WELL
    choice, nothing = choice_for(bundle)
    trials = try_all(bundle, "" if choice is None else choice.backend)
    if args.json:
        tried = [asdict(trial) for trial in trials]
        found = {"bundle": str(bundle.path), "choice": None if choice is None else asdict(choice), "tried": tried}
        print(json.dumps({**facts, "model": found}))
    else:
        print("\n".join([*report(facts), *report_model(args.model, choice, nothing, trials)]))
    return ALL_WELL if any(trial.ran for trial in trials) else NOTHING_RUNS


def report(facts: dict[str, Any]) -> list[str]:
    """What ``survey`` found, as lines."""
    processor = facts["processor"]
    known = "features not told by this system" if processor["features"] is None else ", ".join(processor["features"])
    cards = [f"{gpu['name']} ({gpu['architecture']})" for gpu in facts["gpus"]]
    lines = [
        f"kcdp {facts['kcdp']}, Python {facts['python']}, {facts['release']}",
        f"processor: {processor['name']}, {processor['cores']} cores; {known or 'none of the features that matter'}",
        f"NVIDIA: {', '.join(cards) or 'no driver or no card'}",
    ]
    for title, kind in (("backends", "backends"), ("pictures and animations", "formats"), ("extras", "extras")):
        rows = facts[kind]
        lines += ["", title]
        for line, row in zip(table([_status(name, row) for name, row in rows.items()]), rows.values(), strict=True):
            lines += [line, *([f"      {row['fix']}"] if row["fix"] else [])]
    never = [name for name, row in facts["backends"].items() if row["verified"].startswith("never")]
    return [*lines, "", f"written, but never run on such a device: {', '.join(never)}", ""]


def report_model(name: str, choice: Choice | None, nothing: str, trials: Sequence[Trial]) -> list[str]:
    """What was chosen for a bundle, how it ran, and why nothing else was taken, as lines."""
    chosen = nothing if choice is None else f"{choice.backend} would be chosen: {choice.why}"
    rejected = {} if choice is None else choice.rejected
    lines = [name, f"  {chosen}", *table([_ran(trial, rejected) for trial in trials if trial.ran])]
    lines += table([(trial.backend, trial.reason) for trial in trials if not trial.ran])
    if choice is None:
        return lines
    return [*lines, f"next: kcdp tag PICTURES --model {name}"]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, indented by two; the last is not filled up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _status(name: str, row: dict[str, Any]) -> tuple[str, str, str]:
    told = ", ".join(filter(None, (row["version"], row.get("what", ""))))
    return name, row["state"], told if row["state"] == "usable" else row["reason"]


def _ran(trial: Trial, rejected: Mapping[str, str]) -> tuple[str, str, str, str]:
    apart = "" if trial.difference is None else f"logits within {trial.difference:.1e} of the first"
    took = f"{trial.milliseconds:.2f} ms for {trial.pictures} pictures"
    return trial.backend, took, apart, rejected.get(trial.backend, "chosen")
