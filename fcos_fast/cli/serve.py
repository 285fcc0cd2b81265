"""``fcos-fast serve``: a detector as an HTTP server."""

from __future__ import annotations

from collections.abc import Sequence

from fcos_fast.cli.options import parse_options
from fcos_fast.serve.options import ServeOptions


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast serve`` until a signal stops it."""
    options = parse_options(ServeOptions, "serve", arguments)

    from fcos_fast.serve.server import run

    return run(options)
