"""`ranp` and `python -m ranp_cli`."""

from __future__ import annotations

from .process import main

if __name__ == "__main__":
    main()
