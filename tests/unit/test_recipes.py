"""Recipes and ``docs/training.md``: every command parses, every dataset string and TOML file is read, none is left out.

A recipe's ``commands.sh`` is run by bash, with a stand-in for ``kcdp`` that writes down what it was called with and
makes the files that the real one would.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kcdp.cli import COMMANDS
from kcdp.config import Config, _toml, load_config
from kcdp.data.registry import parse_spec
from kcdp.errors import KcdpError
from kcdp.knowledge.captioners.registry import CAPTIONERS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.parent.name for path in ROOT.glob("recipes/*/commands.sh"))
TOMLS = sorted(ROOT.glob("recipes/*/*.toml"))
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")

STAND_IN = """#!/usr/bin/env bash
name=$(basename "$0")
printf '%s\\0' "$name" "$@" >> "$CALLS"; printf '\\n\\0' >> "$CALLS"
status=0
if [ "$1 $2" = "${FAIL:-nothing}" ]; then status=1; fi
out=
while [ $# -gt 0 ]; do
    case $1 in --out|--resume|--json) out=$2 ;; esac
    shift
done
[ -z "$out" ] || case $out in
    *.json|*.jsonl) touch "$out" ;;
    *) mkdir -p "$out"; touch "$out/best.safetensors" "$out/last.safetensors" ;;
esac
exit $status
"""
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="commands.sh needs bash")


def run_recipe(name: str, folder: Path, **variables: str) -> tuple[int, list[list[str]]]:
    """Exit status, and the words of every call."""
    programs, calls = folder / "bin", folder / "calls"
    programs.mkdir(exist_ok=True)
    for program in ("kcdp", "python"):
        (programs / program).write_text(STAND_IN)
        (programs / program).chmod(0o755)
    calls.write_bytes(b"")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), **variables}
    script = ROOT / "recipes" / name / "commands.sh"
    done = subprocess.run(["bash", str(script)], cwd=folder, env=environment, capture_output=True, text=True)
    words = calls.read_text(encoding="utf-8").split("\0")[:-1]
    found: list[list[str]] = [[]]
    for word in words:
        if word == "\n":
            found.append([])
        else:
            found[-1].append(word)
    return done.returncode, found[:-1]


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of a ``kcdp`` call, by its own parser; what they name is read as far as it can be without data.

    Raises:
        AssertionError, KcdpError, SystemExit, argparse.ArgumentError: something is wrong with it.
    """
    if words[:3] == ["accelerate", "launch", "--multi_gpu"]:
        words = ["kcdp", *words[words.index("kcdp") + 1 :]]
    if words[:3] == ["python", "-m", "kcdp.export"]:
        words = ["kcdp", "export", *words[3:]]
    assert words[0] == "kcdp" and words[1] in COMMANDS, words
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[words[1]][0]).add_arguments(parser)
    args = parser.parse_args(words[2:])
    names = ("source", "target", "validation", "data", "neutral", "spec", "specs", "check_images")
    for name in (name for name in names if (words[1], name) != ("export", "target")):  # there, a kind of runtime
        value = getattr(args, name, None) or ()
        for spec in [value] if isinstance(value, str) else value:
            parse_spec(spec)
    assert getattr(args, "captioner", "none") in CAPTIONERS, args.captioner
    return args


def configured(args: argparse.Namespace) -> Config:
    """The configuration that a ``kcdp train`` begins with."""
    given = {name: getattr(args, name) for name in ("source", "target", "validation", "captions")}
    tables = {"data": {name: value for name, value in given.items() if value}}
    return load_config(args.preset or "edge", args.config, args.set, tables, profile=args.profile or "paper")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, list[list[str]]]:
    found = {}
    for name in RECIPES:
        folder = tmp_path_factory.mktemp(name)
        for data in ("SER30K", "FI", "Emo8", "my fer.zip"):
            (folder / data).mkdir()
        status, found[name] = run_recipe(name, folder, FER2013="my fer.zip", LATENTS="kept" if name != "uc" else "")
        assert status == 0 and found[name], name
        assert run_recipe(name, folder, FER2013="my fer.zip") == (0, []), f"{name} does again what it has done"
    return found


def test_the_recipes_are_the_ones_of_their_readme():
    readme = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert len(RECIPES) == 4 and sorted(re.findall(r"^\| `([\w-]+)/`", readme, flags=re.M)) == RECIPES
    assert (ROOT / "recipes" / "demo.py").is_file()


@needs_bash
def test_every_command_of_every_recipe_parses(ran):
    kinds = {(name, words[1]) for name, calls in ran.items() for words in calls if words[0] == "kcdp"}
    for name in ("emoset-to-ser30k", "ser30k-to-emoset"):
        assert {(name, word) for word in ("data", "knowledge", "train", "evaluate", "report", "export")} <= kinds
    for calls in ran.values():
        for words in calls:
            if words[0] == "kcdp":
                parse(words)


@needs_bash
def test_every_training_has_a_configuration(ran):
    for name, calls in ran.items():
        trainings = [parse(words) for words in calls if words[:2] == ["kcdp", "train"] and "--resume" not in words]
        seen = set()
        for args in trainings:
            config = configured(args)
            assert config.data.source and args.out and (config.training.method != "dann" or config.data.target)
            config.check_latents()
            seen.add((config.profile, config.training.seed))
        if name != "fer-to-emoji":
            profiles = {profile for profile, seed in seen if seed == 2}
            assert {"paper", "source-only", "pvt", "as-published-code", "clip-linear-probe"} <= profiles
            assert {seed for profile, seed in seen if profile == "paper"} == {0, 1, 2}


@needs_bash
def test_knowledge_is_explicit_where_captions_are_given_and_the_device_s_is_not(ran):
    for name, calls in ran.items():
        for words in calls:
            if words[:2] == ["kcdp", "train"] and "--resume" not in words:
                config = configured(parse(words))
                if config.training.implicit == "distill":
                    assert config.model.knowledge.mode == "implicit" and config.training.init_from
                else:
                    assert (config.model.knowledge.mode == "explicit") == bool(config.data.captions), name


@needs_bash
def test_every_toml_is_used_with_the_preset_and_the_profile_it_names(ran):
    used = set()
    for name, calls in ran.items():
        for words in calls:
            if "--config" in words:
                file = Path(words[words.index("--config") + 1]).resolve()
                used.add(file)
                assert file.parent.name == name
    assert used == set(TOMLS) and len(used) > 25
    for file in TOMLS:
        named = _toml().loads(file.read_text(encoding="utf-8"))
        load_config(named["preset"], file, profile=named["profile"])


def test_twin_a_toml_with_a_mistake_is_seen(tmp_path):
    file = tmp_path / "wrong.toml"
    for text, message in (
        ('preset = "sd15"\n', "names the preset 'sd15'"),
        ("[training]\nepoch = 1\n", "training.epoch is unknown"),
    ):
        file.write_text(text)
        with pytest.raises(KcdpError, match=message):
            load_config("edge", file)


@needs_bash
def test_all_methods_are_measured_alike_and_reported_with_a_name_each(ran):
    for name, calls in ran.items():
        evaluated = [parse(words) for words in calls if words[:2] == ["kcdp", "evaluate"]]
        assert len({(tuple(args.data), args.neutral) for args in evaluated}) == 1, name
        (report,) = [parse(words) for words in calls if words[:2] == ["kcdp", "report"]]
        assert [str(run) for run in report.runs] == [args.run for args in evaluated]
        trained = {str(parse(w).out or parse(w).resume) for w in calls if w[:2] == ["kcdp", "train"]}
        assert trained == {args.run for args in evaluated}, "a run that is not measured"
        methods = list(dict.fromkeys(re.sub(r"-\d+$", "", Path(args.run).name) for args in evaluated))
        assert len(report.name) == len(methods)
        if name != "fer-to-emoji":
            assert report.name == methods


@needs_bash
def test_uc_leaves_out_what_is_not_there(ran, tmp_path):
    (args,) = {tuple(parse(words).data) for words in ran["uc"] if words[:2] == ["kcdp", "evaluate"]}
    assert args == ("ser30k:SER30K", "fi:FI", "emo8:Emo8", "fer2013:my fer.zip")
    assert not any("--target" in words for words in ran["uc"])
    assert run_recipe("uc", tmp_path)[0] == 2


@needs_bash
def test_the_latents_of_a_recipe_are_shared_by_all_that_can(ran):
    for words in ran["emoset-to-ser30k"]:
        if words[:2] == ["kcdp", "train"]:
            config = configured(parse(words))
            trains = config.profile == "as-published-code" or config.model.network != "kadap"
            assert config.training.cache_latents != trains, config.profile


@needs_bash
def test_a_stopped_recipe_goes_on_and_a_failing_step_ends_it(tmp_path):
    status, calls = run_recipe("emoset-to-ser30k", tmp_path, SEEDS="0", FAIL="knowledge caption")
    assert status == 1 and [words[1] for words in calls] == ["data", "data", "knowledge"]
    status, calls = run_recipe("emoset-to-ser30k", tmp_path, SEEDS="0")
    assert status == 0 and [words[1] for words in calls][:2] == ["knowledge"] * 2, "what was checked is not again"
    (tmp_path / "runs/emoset-to-ser30k/kcdp-0/done").unlink()
    status, calls = run_recipe("emoset-to-ser30k", tmp_path, SEEDS="0")
    assert (status, calls) == (0, [["kcdp", "train", "--resume", "runs/emoset-to-ser30k/kcdp-0"]])


@needs_bash
def test_a_check_that_finds_something_stops_once(tmp_path):
    for data in ("emoset", "ser30k"):
        status, calls = run_recipe("uc", tmp_path, FAIL="data check", SER30K=".")
        assert status == 1 and [words[1] for words in calls] == ["data"]
        assert (tmp_path / "runs" / "uc" / f"{data}.check.json").exists()
    assert run_recipe("uc", tmp_path, SER30K=".", SEEDS="0")[0] == 0


@needs_bash
def test_faces_to_emoji_is_what_was_run(ran):
    trainings = [words for words in ran["fer-to-emoji"] if words[:2] == ["kcdp", "train"]]
    first, kcdp_words = [words for words in trainings if "--resume" not in words]
    source, kcdp = configured(parse(first)), configured(parse(kcdp_words))
    usual = ["training.epochs=1000", "training.validate_every=500"]
    faces = {"source": ["fer2013:my fer.zip"]}
    assert source == load_config("edge", overrides=[*usual, "training.max_steps=3000"], data={"data": faces})
    emoji = {"target": ["emoji:emoji?styles=twemoji,fluent,fluent-flat,openmoji"]}
    settings = ["training.max_steps=1500", "training.target_batch_size=32"]
    start = "training.init_from=runs/fer-to-emoji/source-1500"
    assert kcdp == load_config("edge", overrides=[*usual, *settings, start], data={"data": faces | emoji})
    assert first[first.index("--stop-after") + 1] == "1500"
    assert ["kcdp", "train", "--resume", "runs/fer-to-emoji/source"] in ran["fer-to-emoji"]


def load(path: Path) -> ModuleType:
    described = importlib.util.spec_from_file_location(path.stem, path)
    assert described and described.loader
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def commands(text: str) -> list[list[str]]:
    """The commands of a page's sh blocks; a backslash at a line's end joins it to the next."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def check_command(words: list[str]) -> str:
    """The ``kcdp`` command's name, or the program's. Raises as ``parse``."""
    while "=" in words[0]:  # variables before a command
        words = words[1:]
    if words[0] in ("pip", "tensorboard", "git", "cd"):
        return words[0]
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file(), words
        return words[0]
    if words[:2] == ["python", "benchmarks/estimate.py"]:
        assert load(ROOT / words[1])
        return words[1]
    args = parse(words)
    if hasattr(args, "set"):
        preset, profile = args.preset or "edge", args.profile or "paper"
        load_config(preset, args.config and ROOT / args.config, args.set, profile=profile)
    return next(word for word in words if word in COMMANDS or word == "kcdp.export")


def test_every_command_of_the_page_parses():
    found = [check_command(words) for words in commands(PAGE)]
    assert {"data", "knowledge", "train", "evaluate", "report", "kcdp.export", "bash"} <= set(found)
    assert len(found) > 20
    readme = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert [check_command(words) for words in commands(readme)] == ["bash"]


@pytest.mark.parametrize(
    "line",
    [
        "kcdp tran --source folder:x", "kcdp train --sauce folder:x", "kcdp train --source pholder:x --out r",
        "kcdp train --source folder:x --set training.epoch=3", "bash recipes/none/commands.sh", "sudo kcdp train",
        "kcdp evaluate r --data 'ser30k:x?neutral=yes'", "kcdp knowledge caption --data folder:x --captioner a --out c",
    ],
)  # fmt: skip
def test_twin_a_wrong_command_is_seen(line):
    with pytest.raises((AssertionError, KcdpError, SystemExit, argparse.ArgumentError)):
        check_command(commands(f"```sh\n{line}\n```")[0])


def test_settings_files_and_profiles_of_the_page_exist():
    config = load_config("sd15")
    names = set(re.findall(r"`((?:model|training|data)\.\w[\w.]*)", PAGE)) - {"model.safetensors"}
    assert len(names) > 10
    for name in names:
        value = config
        for part in name.split("."):
            assert hasattr(value, part), f"{name} is no setting"
            value = getattr(value, part)
    for name in set(re.findall(r"\]\((\.\.?/[\w./-]+)\)", PAGE)):
        assert (ROOT / "docs" / name).exists(), name
    profiles = {path.stem for path in (ROOT / "kcdp" / "profiles").glob("*.toml")}
    table = PAGE.partition("## Baselines")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)`", table, flags=re.M)) == profiles


def test_the_estimates_of_the_page_are_the_script_s(capsys):
    estimate = load(ROOT / "benchmarks" / "estimate.py")
    sys.argv, before = ["estimate.py"], sys.argv
    try:
        assert estimate.main() == 0
    finally:
        sys.argv = before
    assert capsys.readouterr().out.strip() in PAGE


def test_twin_other_counts_are_other_estimates():
    import json

    estimate = load(ROOT / "benchmarks" / "estimate.py")
    counts = json.loads(estimate.COUNTS.read_text(encoding="utf-8"))
    counts["sizes"]["512"]["gmac"]["encoder"] *= 2
    assert estimate.tables(counts) not in PAGE


def test_more_is_kept_where_more_is_learned_from():
    import json

    estimate = load(ROOT / "benchmarks" / "estimate.py")
    counts = json.loads(estimate.COUNTS.read_text(encoding="utf-8"))
    rows = {setting.name: setting for setting in estimate.SETTINGS}
    need = {name: estimate.gib(counts, setting, 512) for name, setting in rows.items()}
    work = {name: estimate.gmac_per_step(counts, setting, 512) for name, setting in rows.items()}
    assert need["UC"] < need["DA"] and need["DA, in 16 parts"] < need["DA, in 4 parts"] < need["DA"]
    assert need["DA, gradient checkpointing"] < need["DA"] and need["DA, latents cached"] < need["DA"]
    assert work["DA, in 4 parts"] == work["DA"] < work["DA, gradient checkpointing"]
    assert work["DA, latents cached"] < work["DA"]


def test_what_is_kept_is_counted_and_what_is_gone_is_not(monkeypatch):
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    counting = load(ROOT / "benchmarks" / "counting.py")
    with FakeTensorMode():
        layer, x = torch.nn.Linear(4, 8, bias=False), torch.empty(2, 4)
        with counting.Live(layer, x) as live:
            y = layer(x)
            assert live.now == 2 * 8 * 4, "the output alone: weights and input were there"
            z = y.exp()
            del y
            assert (live.now, live.peak) == (64, 128), "exp keeps its output only"
            del z
        assert (live.now, live.peak) == (0, 128)
