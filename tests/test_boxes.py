"""Valid boxes, as tensors and as arrays."""

from __future__ import annotations

import numpy as np
import torch

from fcos_fast.boxes import has_area

BOXES = [[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [2, 0, 1, 1], [0, float("nan"), 1, 1]]
EXPECTED = [True, False, False, False, False]


def test_tensors_and_arrays():
    assert has_area(torch.tensor(BOXES)).tolist() == EXPECTED
    assert has_area(np.array(BOXES)).tolist() == EXPECTED
    assert has_area(torch.tensor([BOXES])).tolist() == [EXPECTED]
    assert has_area(torch.zeros(0, 4)).shape == (0,)
