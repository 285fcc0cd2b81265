"""torch.library.opcheck with the checks that apply, and torch.compile, for an operator of the project."""

import torch

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def opcheck(name: str, *args) -> None:
    torch.library.opcheck(getattr(torch.ops.fcos_fast, name).default, args, test_utils=CHECKS)


def assert_compiles(function, *args) -> None:
    """The whole function is one graph, for other sizes too, and gives what it gives without compilation."""
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), function(*args))
