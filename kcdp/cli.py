"""The command ``kcdp``: finds the subcommand's module, loads only that, and turns mistakes into one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from kcdp import __version__
from kcdp.errors import KcdpError

#: subcommand -> (module with ``add_arguments`` and ``run``, one-line help)
COMMANDS: dict[str, tuple[str, str]] = {
    "data": ("kcdp.data.command", "get, list and check pictures"),
    "knowledge": ("kcdp.knowledge.command", "put pictures into words that steer the model"),
    "train": ("kcdp.training.command_train", "train a model"),
    "evaluate": ("kcdp.training.command_evaluate", "measure a trained model on a dataset"),
    "report": ("kcdp.training.command_report", "compare evaluated runs, over seeds"),
    "export": ("kcdp.export.command", "turn a trained model into a bundle (also: python -m kcdp.export)"),
    "tag": ("kcdp.runtime.command", "tag pictures with a bundle (also: python -m kcdp.runtime)"),
}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def guarded(function: Callable[[], int]) -> int:
    """Run a command: a KcdpError becomes one line and status 2, an interrupt status 130.

    A reader that has gone away (``| head``) ends the command quietly.
    """
    try:
        status = function()
        sys.stdout.flush()
        return status
    except KcdpError as error:
        print(f"kcdp: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
            print("kcdp: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder without permission: the system's reason is all there is
        where = f"{error.filename}: " if error.filename else ""
        print(f"kcdp: error: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_USER_ERROR


def run_module(module: str, prog: str, description: str, argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` with one subcommand's arguments and run it (for ``python -m kcdp.export`` and its kin)."""
    command = importlib.import_module(module)
    parser = argparse.ArgumentParser(prog=prog, description=description)
    command.add_arguments(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: command.run(args))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        0 all well, 1 done but something failed (a picture, the parity gate), 2 a mistake in the call
        or its input, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{help_text}" for name, (_, help_text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="kcdp",
        usage="kcdp COMMAND [ARGUMENT ...]   (kcdp COMMAND --help explains one)",
        description=f"Learn emotions from photographs, recognise them in stickers.\n\ncommands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kcdp {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands above")
    if not arguments:
        parser.print_help()
        return EXIT_USER_ERROR
    name = parser.parse_args(arguments[:1]).command
    module, help_text = COMMANDS[name]
    return run_module(module, f"kcdp {name}", help_text, arguments[1:])
