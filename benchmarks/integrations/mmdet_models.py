"""mmdetection's FCOS-R50 and RetinaNet-R50 from their published configs, with random weights, and batches for them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from torch import Tensor, nn

import fcos_fast
from benchmarks.data import random_boxes
from fcos_fast.integrations.mmcv import provide_ops

provide_ops()

import mmdet  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

register_all_modules()

CONFIGS = {
    "FCOS-R50": "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
    "RetinaNet-R50": "retinanet/retinanet_r50_fpn_1x_coco.py",
}
SIZE, IMAGES, CLASSES = (800, 1088), 2, 80


@functools.cache
def build(name: str, accelerated: bool, winograd: bool = False) -> nn.Module:
    """The detector, with enough candidates for NMS."""
    if accelerated:
        return fcos_fast.accelerate(copy.deepcopy(build(name, False)), winograd=winograd)
    torch.manual_seed(0)
    folder = Path(mmdet.__file__).parent / ".mim" / "configs"
    model = MODELS.build(Config.fromfile(folder / CONFIGS[name]).model)
    head = model.bbox_head
    last = head.conv_cls if name.startswith("FCOS") else head.retina_cls
    nn.init.normal_(last.weight, std=0.05)
    nn.init.constant_(last.bias, -4.0)
    return model


def make_batch(device: str, boxes: int) -> tuple[Tensor, list[DetDataSample]]:
    """Normalized images and their ground truth."""
    height, width = SIZE
    samples = []
    for _ in range(IMAGES):
        sample = DetDataSample()
        sample.gt_instances = InstanceData(
            bboxes=random_boxes(boxes, 16, 400).to(device),
            labels=torch.randint(CLASSES, (boxes,), device=device),
        )
        meta = {name: SIZE for name in ("img_shape", "pad_shape", "batch_input_shape", "ori_shape")}
        sample.set_metainfo({**meta, "scale_factor": (1.0, 1.0)})
        samples.append(sample)
    return torch.randn(IMAGES, 3, height, width, device=device), samples


@torch.no_grad()
def head_outputs(name: str, images: Tensor, training: bool) -> list[list[Tensor]]:
    """The outputs of the head: one list of maps per kind."""
    model = build(name, False).to(images.device).train(training)
    return [list(maps) for maps in model.bbox_head(model.extract_feat(images))]
