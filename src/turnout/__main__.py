"""`python -m turnout`: the same as the command `turnout`."""

from __future__ import annotations

import sys

from turnout.cli import main

if __name__ == "__main__":
    sys.exit(main())
