"""Errors that the command line reports. Needs no torch, which may be the cause."""

from __future__ import annotations


class ExtensionError(RuntimeError):
    """The native operators are not available; the message has the reason and the remedy."""


class ExtensionNotBuiltError(ExtensionError):
    """The extension was not built."""


class ExtensionLoadError(ExtensionError):
    """The extension was built but does not load, usually because torch or Python has another version."""


class ExportError(RuntimeError):
    """The exporter failed, or its result does not detect what the checkpoint does; no file was kept."""
