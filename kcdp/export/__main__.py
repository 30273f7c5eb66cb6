"""``python -m kcdp.export RUN --out NAME.kcdp``."""

import sys

from kcdp.cli import run_module

if __name__ == "__main__":
    sys.exit(run_module("kcdp.export.command", "python -m kcdp.export", "turn a trained model into a bundle"))
