"""torch.library.opcheck and torch.compile for the operators."""

import torch

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck(name: str, *args) -> None:
    torch.library.opcheck(getattr(torch.ops.fcos_fast, name).default, args, test_utils=CHECKS)


def assert_compiles(function, *args) -> None:
    """Assert that the function compiles to one graph with dynamic shapes and returns the same result."""
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), function(*args))
