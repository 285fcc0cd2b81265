"""Names of rows."""

OURS = "fcos_fast"
FLOOR = "floor"
COMPILED = "torch.compile"
"""The compiled reference."""


def graph_of(row: str) -> str:
    """Name of the row that replays ``row`` from a CUDA graph."""
    return f"{row} as CUDA graph"
