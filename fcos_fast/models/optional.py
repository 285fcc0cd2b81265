"""Packages that only some features need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_optional(module: str, needed_by: str, extra: str | None = None) -> Any:
    """Import ``module``; else a ModuleNotFoundError such as ``deformable convolutions need torchvision; pip install``.

    Args:
        module: dotted name; its first part is the package to install.
        needed_by: beginning of the message, such as "deformable convolutions need".
        extra: extra of fcos_fast that installs the package; None: the package is installed by itself.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        install = package if extra is None else f'"fcos_fast[{extra}]"'
        raise ModuleNotFoundError(f"{needed_by} {package}; pip install {install}", name=package) from error
