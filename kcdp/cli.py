"""The command ``kcdp``: finds the subcommand's module, loads only that, and turns mistakes into one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NoReturn

from kcdp import __version__
from kcdp.errors import KcdpError, nearest

#: subcommand -> (module with ``add_arguments`` and ``run``, one-line help)
COMMANDS: dict[str, tuple[str, str]] = {
    "data": ("kcdp.data.command", "get, list and check pictures"),
    "knowledge": ("kcdp.knowledge.command", "put pictures into words that steer the model"),
    "train": ("kcdp.training.command_train", "train a model"),
    "evaluate": ("kcdp.training.command_evaluate", "measure a trained model on a dataset"),
    "report": ("kcdp.training.command_report", "compare evaluated runs, over seeds"),
    "export": ("kcdp.export.command", "turn a trained model into a bundle (also: python -m kcdp.export)"),
    "tag": ("kcdp.runtime.command", "tag pictures with a bundle (also: python -m kcdp.runtime)"),
    "serve": ("kcdp.runtime.command_serve", "tag pictures over HTTP"),
    "doctor": ("kcdp.runtime.command_doctor", "what this machine can run and read, and what to install for the rest"),
}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """One that tells a mistake in one line, as everything here does, and not the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Ends with status 2."""
        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {message}; see: {self.prog} --help\n")


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


def say(text: str) -> None:
    """One line for the terminal. Work goes on where its reader has gone away (``| head``)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_module(module: str, prog: str, description: str, argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` with one command's arguments and run it (for ``python -m kcdp.export`` and its kin).

    A command's module may have ``SUBCOMMANDS``, name -> (module, one-line help): a first argument of such a name
    stands for that module.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(module, prog, description, arguments))  # an interrupt while it is loaded, too


def _run(module: str, prog: str, description: str, arguments: list[str]) -> int:
    command = importlib.import_module(module)
    subcommands: dict[str, tuple[str, str]] = getattr(command, "SUBCOMMANDS", {})
    if arguments and arguments[0] in subcommands:
        name = arguments[0]
        return _run(subcommands[name][0], f"{prog} {name}", subcommands[name][1], arguments[1:])
    word = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if word and not os.path.exists(word) and (hint := nearest(word, subcommands)):
        raise KcdpError(f"{prog} {word}{hint}", f"a run that is there, or one of {', '.join(subcommands)}")
    if odd := next((one for one in takewhile("--".__ne__, arguments) if _like_an_option(one)), None):
        raise KcdpError(f"{odd} would be taken for an option", f"./{odd} for the file of that name")
    width = max(map(len, subcommands), default=0) + 2
    listing = "\n".join(f"  {name:<{width}}{text}" for name, (_, text) in subcommands.items())
    parser = Parser(
        prog=prog, description=description, epilog=f"also: {prog} ...\n{listing}" if listing else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_arguments(parser)
    status: int = command.run(parser.parse_args(arguments))
    return status


def _like_an_option(argument: str) -> bool:
    """Whether it is the name of a file that begins with a dash: "-happy.png" would be "-h"."""
    return len(argument) > 2 and argument[0] == "-" != argument[1] and os.path.lexists(argument)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        0 all well, 1 done but something failed (a picture, the parity gate), 2 a mistake in the call
        or its input, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{help_text}" for name, (_, help_text) in COMMANDS.items())
    parser = Parser(
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
