"""``fcos-fast info``: see :mod:`fcos_fast.info`, which also runs when the rest of the package is broken."""

from fcos_fast.info import main

__all__ = ["main"]
