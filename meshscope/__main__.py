"""``python -m meshscope``."""

from __future__ import annotations

import sys

from meshscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
