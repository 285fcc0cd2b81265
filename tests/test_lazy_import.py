"""What ``import fcos_fast`` offers, and what it costs."""

from __future__ import annotations

import pytest

from tests.child import assert_runs


@pytest.mark.parametrize(
    "name", ["data", "engine", "integrations", "models", "models.fcos", "ops", "ops.nms", "reference"]
)
def test_subpackages_need_no_import_of_their_own(name):
    assert_runs(f"import fcos_fast; assert fcos_fast.{name} is not None")


def test_the_package_alone_is_light():
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
