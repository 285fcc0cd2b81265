"""The names of ``import fcos_fast``, and what the import costs."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from tests.child import assert_runs


@pytest.mark.parametrize(
    "name",
    ["data", "engine", "inference", "integrations", "models", "models.fcos", "ops", "ops.nms", "reference"],
)
def test_subpackages_are_attributes(name):
    assert_runs(f"import fcos_fast; assert fcos_fast.{name} is not None")


def test_importing_the_package_is_light():
    assert_runs(
        """
        import sys
        import fcos_fast
        assert {"ops", "models", "accelerate"} <= set(dir(fcos_fast))
        heavy = {"torch", "torchvision", "fcos_fast.ops"} & set(sys.modules)
        assert not heavy, heavy
        fcos_fast.ops
        assert "torchvision" not in sys.modules
        try:
            fcos_fast.oops
        except AttributeError as error:
            assert "oops" in str(error)
        else:
            raise AssertionError("fcos_fast.oops exists")
        """
    )


def imports_for_type_checkers(package: str) -> dict[str, tuple[str, str]]:
    """Name -> (module, name in it) of the imports under ``if TYPE_CHECKING`` of a package."""
    tree = ast.parse(Path(import_module(package).__file__).read_text())
    (block,) = (
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname: (f"{package}.{node.module}" if node.level else node.module, alias.name)
        for node in block
        for alias in node.names
    }


@pytest.mark.parametrize(
    "package", ["fcos_fast", "fcos_fast.data", "fcos_fast.inference", "fcos_fast.models"]
)
def test_type_checkers_see_the_lazy_names(package):
    module = import_module(package)
    seen = imports_for_type_checkers(package)
    assert sorted(seen) == sorted(module.__all__)
    assert {*seen} <= {*dir(module)}
    for name, (origin, original) in seen.items():
        assert name == original
        expected = (
            import_module(f"{origin}.{name}")
            if origin == "fcos_fast"
            else getattr(import_module(origin), name)
        )
        assert getattr(module, name) is expected
