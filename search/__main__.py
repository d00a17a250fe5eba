"""``python -m search`` is ``clnp-search``."""

import sys

from search.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
