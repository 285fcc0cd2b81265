"""Names of the rows of a case."""

OURS = "fcos_fast"
FLOOR = "floor"
COMPILED = "torch.compile"
"""The reference, compiled."""


def graph_of(row: str) -> str:
    """The name of the row that replays ``row`` from a CUDA graph."""
    return f"{row} as CUDA graph"
