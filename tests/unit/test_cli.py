"""``kcdp``: the table of commands, help, exit statuses, and mistakes in one line."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import types

import pytest

import kcdp
from kcdp.cli import COMMANDS, main, run_module
from kcdp.errors import KcdpError


@pytest.fixture
def command(monkeypatch):
    """``command(function)``: makes ``kcdp probe [--number N]`` call ``function(args)``."""

    def install(run) -> None:
        module = types.ModuleType("kcdp_probe")
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int, default=0)
        module.run = run
        monkeypatch.setitem(sys.modules, "kcdp_probe", module)
        monkeypatch.setitem(COMMANDS, "probe", ("kcdp_probe", "a command of this test"))

    return install


def raises(error: BaseException):
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def stops(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    return stopped.value.code


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.startswith("usage: kcdp COMMAND")
    for name, (_, help_text) in COMMANDS.items():
        assert f"  {name} " in shown.out and help_text in shown.out


def test_help_is_no_mistake(capsys):
    assert stops("--help") == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    assert stops("--version") == 0
    assert capsys.readouterr().out == f"kcdp {kcdp.__version__}\n"


def test_unknown_command_names_the_known_ones(capsys):
    assert stops("trian") == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "invalid choice: 'trian'" in shown.err
    assert all(name in shown.err for name in COMMANDS)


def test_options_come_after_the_command(capsys):
    assert stops("--model", "x") == 2
    assert "kcdp: error: " in capsys.readouterr().err


def test_a_mistyped_part_of_a_command_names_what_is_near(capsys):
    assert main(["export", "inof", "x.kcdp"]) == 2
    assert "kcdp export inof (did you mean 'info'?); expected a run that is there" in capsys.readouterr().err


#: What makes no sense -> how its one line begins.
NONSENSE = {
    "export RUN --out x.kcdp --size 0": "--size 0; expected a number of pixels from 8 to 4096",
    "export RUN --out x.kcdp --size -32": "--size -32; expected a number of pixels from 8 to 4096",
    "export RUN --out x.kcdp --size many": "argument --size: invalid int value: 'many'",
    "export RUN --out x.kcdp --batch 0": "batch '0'; expected a number from 1 to 4096, or three of them",
    "export RUN --out x.kcdp --batch -1": "batch '-1'; expected a number from 1 to 4096, or three of them",
    "export RUN --out x.kcdp --batch 1:8:9999": "batch '1:8:9999'; expected a number from 1 to 4096",
    "export RUN --out x.kcdp --batch 1:8:32": "batch '1:8:32' for the target portable; expected one number",
    "export RUN --out x.kcdp --precision fp61": "precision 'fp61' (did you mean 'fp16'?); expected one of fp32,",
    "export RUN --out x.kcdp --skip-pass lroa": "no pass is called 'lroa' (did you mean 'lora'?)",
    "export RUN --threads 0 --out x.kcdp": "unrecognized arguments: --threads 0",
    "export check x.kcdp --run RUN --threads 0": "threads is 0; expected a whole number from 1",
    "export check x.kcdp --run RUN --threads -2": "threads is -2; expected a whole number from 1",
    "export check x.kcdp --run RUN --threads 1.5": "argument --threads: invalid int value: '1.5'",
    "export check x.kcdp --run RUN": "x.kcdp is not there; expected a bundle folder",
    "export check RUN --run x": "x is not there; expected a run folder",
    "export engine x.kcdp --workspace 0": "--workspace 0; expected a number of MiB from 1 to 1048576",
    "export engine x.kcdp --profile 1:8:99999999999999": "--profile 1:8:99999999999999; expected MIN:OPT:MAX",
    "tag RUN --model x.kcdp --threads 0": "--threads is 0; expected a whole number from 1",
    "tag RUN --model x.kcdp --threads none": "argument --threads: invalid int value: 'none'",
}

#: Runs all of ``NONSENSE`` in one process, then says what was loaded.
RUN_NONSENSE = """
import contextlib, io, json, sys
from kcdp.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = main(words.split())
        except SystemExit as stopped:
            status = stopped.code
    print(json.dumps([words, status, said.getvalue()]))
print(json.dumps([name for name in ("torch", "onnx", "onnxruntime", "tensorrt_rtx") if name in sys.modules]))
"""


def test_what_makes_no_sense_is_told_in_one_line_and_before_anything_is_loaded(tmp_path):
    (tmp_path / "RUN").mkdir()
    command = [sys.executable, "-c", RUN_NONSENSE, json.dumps(list(NONSENSE))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    *answers, loaded = map(json.loads, done.stdout.splitlines())
    assert len(answers) == len(NONSENSE) and loaded == []
    for words, status, said in answers:
        assert status == 2 and said.count("\n") == 1 and f"error: {NONSENSE[words]}" in said, (words, said)
    assert os.listdir(tmp_path) == ["RUN"]


def test_the_table_is_whole():
    assert set(COMMANDS) >= {"data", "train", "evaluate", "export", "tag"}
    for name, (module, help_text) in COMMANDS.items():
        loaded = importlib.import_module(module)
        assert callable(loaded.add_arguments) and callable(loaded.run), name
        assert help_text and "\n" not in help_text and module.startswith("kcdp.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert stops(name, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: kcdp {name} ") and COMMANDS[name][1] in " ".join(shown.split())


@pytest.mark.parametrize("module", ["kcdp", "kcdp.export", "kcdp.runtime"])
def test_python_dash_m(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("usage: ")


def test_a_command_gets_its_arguments_and_gives_its_status(command):
    command(lambda args: args.number)
    assert [main(["probe", "--number", n]) for n in ("0", "1")] == [0, 1]


def test_wrong_arguments_are_the_commands_own_mistake(command, capsys):
    command(lambda args: 0)
    assert stops("probe", "--number", "many") == 2
    assert capsys.readouterr().err == (
        "kcdp probe: error: argument --number: invalid int value: 'many'; see: kcdp probe --help\n"
    )


def test_a_mistake_is_one_line_and_status_2(command, capsys):
    command(raises(KcdpError("the size\nis 0", "1 or more", "change it")))
    assert main(["probe"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "kcdp: error: the size is 0; expected 1 or more; change it\n"


def test_an_interrupt_is_status_130(command, capsys):
    command(raises(KeyboardInterrupt()))
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == "kcdp: interrupted\n"


def test_an_interrupt_while_a_command_is_loaded_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(importlib, "import_module", raises(KeyboardInterrupt()))
    assert main(["tag", "x.png"]) == 130
    assert capsys.readouterr().err == "kcdp: interrupted\n"


def test_a_fault_of_the_program_is_not_hidden(command):
    command(raises(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


def test_run_module_has_its_own_name(command, capsys):
    command(lambda args: args.number)
    assert run_module("kcdp_probe", "python -m probe", "what it does", ["--number", "3"]) == 3
    with pytest.raises(SystemExit):
        run_module("kcdp_probe", "python -m probe", "what it does", ["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m probe ")


def test_a_reader_that_has_gone_away_is_no_mistake():
    lines = "[print('x' * 99) for _ in range(9999)] and 0"
    probe = f"import sys; from kcdp.cli import guarded; sys.exit(guarded(lambda: {lines}))"
    with subprocess.Popen([sys.executable, "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(30) == 0


@pytest.mark.parametrize(("told", "quiet"), [(None, True), ("0", False)])
def test_onnxruntime_is_told_to_report_nothing_home(tmp_path, told, quiet):
    """It leaves an identity and a database of events behind where it may."""
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment |= {} if told is None else {"ORT_DISABLE_TELEMETRY": told}
    program = "import os; from kcdp.errors import require; require('onnxruntime', 'runtime')\n"
    program += "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (told or "1")
    if quiet:
        assert not list(tmp_path.rglob("*")), "nothing is left behind"
