"""Errors that are told without a torch: by the command line, and where the binaries do not load."""

from __future__ import annotations


class ExtensionError(RuntimeError):
    """The native operators cannot do what was asked; the message says why and what to do."""


class ExtensionNotBuiltError(ExtensionError):
    """There is no binary."""


class ExtensionLoadError(ExtensionError):
    """There is a binary and it does not load, most often because of the torch or Python beside it."""
