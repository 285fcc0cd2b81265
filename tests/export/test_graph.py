"""The traceable function of a detector finds what the detector finds."""

from __future__ import annotations

import pytest
import torch

from fcos_fast.detections import BatchDetections
from fcos_fast.export.graph import DetectionGraph
from fcos_fast.models import PRESETS
from tests.export.models import photos, small_detector


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_detects_the_same(preset):
    before_nms = "before_nms" if PRESETS[preset].drop_empty == "before_nms" else "never"
    # what remains to be done in pixels of the original image is not part of the graph
    model = small_detector(
        preset, min_size=None, max_size=None, drop_empty=before_nms, inclusive_targets=False
    )
    images = [torch.from_numpy(x).permute(2, 0, 1) for x in photos((96, 160), (90, 131), (96, 160))]
    padded = torch.full((3, 3, 96, 160), 0.5)  # whatever the padding is, it is not seen
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image / 255
    sizes = torch.tensor([image.shape[1:] for image in images])
    with torch.no_grad():
        found, expected = BatchDetections(*DetectionGraph(model)(padded, sizes)).split(), model(images)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(theirs["labels"]) >= 5
        assert torch.equal(mine["labels"], theirs["labels"])
        torch.testing.assert_close(mine["boxes"], theirs["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(mine["scores"], theirs["scores"], atol=1e-5, rtol=0)


def test_the_model_does_not_change():
    model = small_detector("official-improved")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    DetectionGraph(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
