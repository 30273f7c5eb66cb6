"""``python -m kcdp.runtime PATH... --model NAME.kcdp``: the same as ``kcdp tag``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kcdp.cli import run_module


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all tagged, 1 some failed, 2 a mistake the user can mend, 130 interrupted."""
    return run_module("kcdp.runtime.command", "python -m kcdp.runtime", "Tag pictures with a bundle.", argv)


if __name__ == "__main__":
    sys.exit(main())
