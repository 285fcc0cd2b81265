"""Packages whose names are imported on first use, so that importing the package is fast (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]], subpackages: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    The package repeats the imports under ``if TYPE_CHECKING:`` for editors and type checkers.

    Args:
        package: its ``__name__``.
        modules: module of the package -> names that the package exports from it.
        subpackages: subpackages that are attributes without an import of their own.
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    exported = sorted([*module_of, *subpackages])

    def get(name: str) -> Any:
        if name in subpackages:
            return import_module(f"{package}.{name}")
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exported})

    return get, names, exported
