"""`python -m dagrow` is the same as `dagrow`."""

from __future__ import annotations

from dagrow.cli import main

if __name__ == "__main__":
    main()
