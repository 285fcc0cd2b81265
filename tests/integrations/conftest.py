from __future__ import annotations

import pytest
import torch


@pytest.fixture
def batch():
    """Three sizes in one batch, boxes of several levels; the second image has no boxes."""
    images = [torch.rand(3, 96, 128), torch.rand(3, 128, 100), torch.rand(3, 90, 70)]
    targets = [
        {
            "boxes": torch.tensor([[10.0, 12.0, 50.0, 60.0], [4.0, 5.0, 120.0, 90.0]]),
            "labels": torch.tensor([0, 2]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {
            "boxes": torch.tensor([[5.5, 8.0, 61.0, 80.0], [30.0, 30.0, 48.0, 49.0]]),
            "labels": torch.tensor([1, 6]),
        },
    ]
    return images, targets
