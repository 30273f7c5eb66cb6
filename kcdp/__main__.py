"""``python -m kcdp``: the same as the command ``kcdp``."""

import sys

from kcdp.cli import main

if __name__ == "__main__":
    sys.exit(main())
