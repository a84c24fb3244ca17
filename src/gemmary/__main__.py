"""`python -m gemmary`."""

from __future__ import annotations

import sys

from gemmary.cli import main

if __name__ == "__main__":
    sys.exit(main())
