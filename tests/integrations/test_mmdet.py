"""``accelerate`` of mmdetection's detectors, against mmdetection itself."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fcos_fast

mmdet = pytest.importorskip("mmdet", reason="mmdetection is not installed; it comes with fcos_fast[interop]")

from fcos_fast.integrations.mmcv import provide_ops  # noqa: E402

provide_ops()

from mmdet.models.losses import FocalLoss  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from tests.integrations.coco import write_coco  # noqa: E402

register_all_modules()

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
FCOS = "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"
FCOS_TRICKS = "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
RETINANET = "retinanet/retinanet_r50_fpn_1x_coco.py"
ATSS = "atss/atss_r50_fpn_1x_coco.py"
CLASSES, BATCH = 5, (96, 128)
COUNTS = [pytest.param(counts, id="-".join(map(str, counts))) for counts in ([7, 0], [1, 60], [0, 0])]


def build(path: str, **head) -> nn.Module:
    """The detector of a published config with a ResNet18, few channels and random weights."""
    config = Config.fromfile(CONFIGS / path).model
    config.backbone.update(
        depth=18, init_cfg=None, norm_cfg={"type": "BN", "requires_grad": True}, style="pytorch"
    )
    config.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    config.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=CLASSES, **head)
    torch.manual_seed(0)
    return MODELS.build(config)


def batch(counts, sizes=((96, 128), (80, 100)), pad=BATCH) -> tuple[torch.Tensor, list[DetDataSample]]:
    """Images and their ground truth; boxes reach beyond the image's edge."""
    torch.manual_seed(sum(counts))
    samples = []
    for (height, width), count in zip(sizes, counts, strict=True):
        size = torch.tensor([width, height])
        corner = torch.rand(count, 2) * size * 0.9 - 5
        boxes = torch.cat((corner, corner + 3 + torch.rand(count, 2) * size * 0.6), dim=1)
        sample = DetDataSample()
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(CLASSES, (count,)))
        meta = {"img_shape": (height, width), "pad_shape": pad, "batch_input_shape": BATCH}
        sample.set_metainfo({**meta, "ori_shape": (height * 2, width * 3), "scale_factor": (1 / 3, 0.5)})
        samples.append(sample)
    return torch.randn(len(counts), 3, *BATCH), samples


def train_step(model: nn.Module, images, samples) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Losses by name, of each level if there are several, and gradients."""
    model.train().zero_grad()
    losses = model(images, copy.deepcopy(samples), mode="loss")
    listed = {name: loss if isinstance(loss, list) else [loss] for name, loss in losses.items()}
    sum(sum(loss) for loss in listed.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: [x.item() for x in loss] for name, loss in listed.items()}, gradients


def detect(model: nn.Module, images, samples) -> list[InstanceData]:
    with torch.no_grad():
        found = model.eval()(images, copy.deepcopy(samples), mode="predict")
    return [sample.pred_instances for sample in found]


def assert_same(model: nn.Module, other: nn.Module, images, samples) -> None:
    (losses, gradients), (expected, expected_gradients) = (
        train_step(m, images, samples) for m in (model, other)
    )
    assert losses.keys() == expected.keys()
    for name in losses:
        assert losses[name] == pytest.approx(expected[name], rel=2e-6, abs=1e-6), name
    assert gradients.keys() == expected_gradients.keys()
    largest = max(g.norm() for g in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-7 * largest, name
    for found, wanted in zip(detect(model, images, samples), detect(other, images, samples), strict=True):
        assert torch.equal(found.labels, wanted.labels)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.bboxes, wanted.bboxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("path", [FCOS, FCOS_TRICKS, RETINANET, ATSS])
def test_training_and_detections_equal_mmdetection(path, counts):
    theirs = build(path)
    assert_same(fcos_fast.accelerate(copy.deepcopy(theirs)), theirs, *batch(counts))


@pytest.mark.parametrize("path", [FCOS_TRICKS, RETINANET])
def test_images_padded_to_less_than_the_batch(path):
    theirs = build(path)
    images, samples = batch([7, 12], pad=(80, 100))
    samples[0].set_metainfo({"pad_shape": BATCH})
    assert_same(fcos_fast.accelerate(copy.deepcopy(theirs)), theirs, images, samples)


@pytest.mark.parametrize("path", [FCOS, RETINANET])
def test_boxes_without_an_area(path):
    theirs = build(path)
    images, samples = batch([7, 3])
    samples[0].gt_instances.bboxes[2, 2:] = samples[0].gt_instances.bboxes[2, :2]
    assert_same(fcos_fast.accelerate(copy.deepcopy(theirs)), theirs, images, samples)


@pytest.mark.parametrize("path", [FCOS, FCOS_TRICKS, RETINANET])
def test_autocast(path):
    theirs = build(path)
    ours = fcos_fast.accelerate(copy.deepcopy(theirs))
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = train_step(ours, *batch([7, 2]))
        expected, _ = train_step(theirs, *batch([7, 2]))
    for name in expected:
        assert losses[name] == pytest.approx(expected[name], rel=0.02), name


def test_equal_scores_and_empty_boxes():
    """Saturated scores tie; boxes clipped to nothing are dropped before the cut."""
    theirs = build(FCOS)
    images, samples = batch([1, 1])
    theirs.bbox_head.conv_reg.bias.data -= 3  # tiny boxes, some of them outside the image
    ours = fcos_fast.accelerate(copy.deepcopy(theirs))
    for found, wanted in zip(detect(ours, images, samples), detect(theirs, images, samples), strict=True):
        assert len(found) == len(wanted)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"nms": {"type": "soft_nms", "iou_threshold": 0.5}},
        {"min_bbox_size": 8},
        {"nms_pre": -1},
        {"nms": {"type": "nms", "iou_threshold": 0.5, "class_agnostic": True}, "max_per_img": 7},
        {"score_thr": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [FCOS_TRICKS, RETINANET])
def test_options_of_the_postprocessing(path, options):
    theirs = build(path)
    theirs.bbox_head.test_cfg.update(options)
    ours = fcos_fast.accelerate(copy.deepcopy(theirs))
    images, samples = batch([1, 1])
    for found, wanted in zip(detect(ours, images, samples), detect(theirs, images, samples), strict=True):
        assert torch.equal(found.labels, wanted.labels)
        torch.testing.assert_close(found.bboxes, wanted.bboxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", ["classes", "one-hot"])
@pytest.mark.parametrize("weight", ["none", "rows", "column", "elements", "flat"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "avg_factor"])
def test_focal_loss(kind, weight, reduction):
    from fcos_fast.integrations.mmdet import AcceleratedFocalLoss

    torch.manual_seed(0)
    logits, classes = torch.randn(40, CLASSES), torch.randint(CLASSES + 1, (40,))
    target = classes if kind == "classes" else nn.functional.one_hot(classes, CLASSES + 1)[:, :CLASSES]
    shapes = {"rows": (40,), "column": (40, 1), "elements": (40, CLASSES), "flat": (40 * CLASSES,)}
    arguments = {"weight": None if weight == "none" else torch.rand(shapes[weight])}
    if reduction == "avg_factor":
        arguments["avg_factor"] = 7.0
    else:
        arguments["reduction_override"] = reduction
    results = []
    for loss_class in (FocalLoss, AcceleratedFocalLoss):
        x = logits.clone().requires_grad_()
        loss = loss_class(gamma=1.5, alpha=0.3, loss_weight=2.0)(x, target, **arguments)
        loss.sum().backward()
        results.append((loss, x.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-6)


def test_it_says_what_it_replaced(capsys):
    fcos_fast.accelerate(build(FCOS))
    assert "FCOSHead: target assignment, losses and postprocessing fused" in capsys.readouterr().out


def test_a_head_that_is_something_else_keeps_its_own_methods(capsys):
    model = build(FCOS, loss_bbox={"type": "DIoULoss", "loss_weight": 1.0})
    head = type(model.bbox_head)
    fcos_fast.accelerate(model)
    assert type(model.bbox_head) is head
    out = capsys.readouterr().out
    assert "FCOSHead unchanged (its loss_bbox is not what FCOS has)" in out
    assert "1 FocalLoss" in out


def test_a_detector_without_anything_to_replace_is_rejected():
    with pytest.raises(TypeError, match="GFL"):
        fcos_fast.accelerate(build("gfl/gfl_r50_fpn_1x_coco.py"))


def test_restore_and_copies():
    theirs = build(RETINANET)
    ours = fcos_fast.accelerate(copy.deepcopy(theirs))
    ours.load_state_dict(theirs.state_dict())
    assert_same(copy.deepcopy(ours), theirs, *batch([3, 1]))
    restored = fcos_fast.restore(ours)
    assert type(restored.bbox_head) is type(theirs.bbox_head)
    assert_same(restored, theirs, *batch([3, 1]))


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """Generated images in COCO format, some of them without a box."""
    from fcos_fast.data import SyntheticConfig, load_dataset, write_voc

    root = tmp_path_factory.mktemp("data") / "voc"
    write_voc(root, {"train": 12, "val": 4}, config=SyntheticConfig(size=(96, 128), object_size=(16, 60)))
    write_coco(root, {"train": load_dataset(root, "train"), "val": load_dataset(root, "val")})
    return root


def train(coco: Path, work_dir: Path, *options: str, processes: int = 1) -> list[dict[str, float]]:
    """The logged losses of each iteration of the script."""
    script = [
        str(Path(__file__).with_name("mmdet_train.py")),
        "--data",
        str(coco),
        "--work-dir",
        str(work_dir),
    ]
    module = ["-m", "fcos_fast.integrations.mmcv", *script, *options]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else ()), *module]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("fcos_fast.accelerate" in done.stdout) == ("--accelerate" in options)
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [row for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("path", [FCOS_TRICKS, RETINANET])
def test_twenty_iterations_of_a_runner(path, coco, tmp_path):
    options = ["--config", path, "--iterations", "20", "--lr", "1e-4"]
    expected = train(coco, tmp_path / "theirs", *options)
    found = train(coco, tmp_path / "ours", *options, "--accelerate")
    assert len(found) == len(expected) == 20
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss", "loss_cls", "loss_bbox"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3), name


@pytest.mark.slow
def test_two_processes(coco, tmp_path):
    options = ["--config", FCOS_TRICKS, "--iterations", "4", "--batch-size", "2", "--distributed"]
    expected = train(coco, tmp_path / "theirs", *options, processes=2)
    found = train(coco, tmp_path / "ours", *options, "--accelerate", processes=2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
