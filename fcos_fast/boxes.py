"""The rule for valid boxes, for tensors and for arrays. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@overload
def has_area(boxes: Tensor) -> Tensor: ...
@overload
def has_area(boxes: NDArray[Any]) -> NDArray[np.bool_]: ...
def has_area(boxes: Any) -> Any:
    """(...) bool: which xyxy boxes (..., 4) have a positive width and height; a box with NaN does not."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)
