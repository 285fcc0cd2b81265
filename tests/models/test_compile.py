from __future__ import annotations

import torch
from torch import nn

from fcos_fast import ops
from fcos_fast.assignment import GroundTruth
from fcos_fast.models import STRIDES


def test_the_network_exports(small_model):
    model = small_model().eval()
    x = torch.rand(2, 3, 64, 96)
    exported = torch.export.export(nn.Sequential(model.backbone, model.head), (x,)).module()
    for maps, expected in zip(exported(x), model.head(model.backbone(x)), strict=True):
        torch.testing.assert_close(list(maps), list(expected))


def test_the_losses_are_one_graph(small_model):
    model = small_model()
    batch = model.transform.batch([torch.rand(3, 64, 96)])
    targets = model.assign(batch, GroundTruth.pack([torch.tensor([[8.0, 9, 50, 60]])], [torch.tensor([1])]))
    outputs = model.head(model.backbone(batch.tensor))
    compiled = torch.compile(ops.detection_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*outputs, targets, units=STRIDES), ops.detection_loss(*outputs, targets, units=STRIDES)
    )
