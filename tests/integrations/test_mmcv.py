"""``provide_ops``: mmcv's Python side on the operators of fcos_fast, against loops and plain PyTorch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("mmcv", reason="mmcv-lite is not installed; it comes with fcos_fast[interop]")

from fcos_fast.integrations.mmcv import provide_ops

provide_ops()

import mmcv.ops as mmcv_ops  # noqa: E402


def random_boxes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    corner = torch.randint(0, 40, (count, 2)).float()
    boxes = torch.cat((corner, corner + torch.randint(1, 30, (count, 2))), dim=1)
    return boxes, torch.rand(count)


def iou(a, b, offset=0) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    overlap = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return overlap / (sum(areas) - overlap)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms(offset):
    boxes, scores = random_boxes(60)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(iou(boxes[i].tolist(), boxes[k].tolist(), offset) <= 0.4 for k in kept):
            kept.append(i)
    assert mmcv_ops.nms(boxes, scores, 0.4, offset=offset)[1].tolist() == kept


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(40)
    left = {i: float(score) for i, score in enumerate(scores)}
    expected = []
    while left:
        best = max(left, key=left.get)
        expected.append((best, left.pop(best)))
        for i in list(left):
            overlap = iou(boxes[best].tolist(), boxes[i].tolist(), offset)
            if method == "gaussian":
                left[i] *= torch.tensor(-(overlap**2) / 0.5).exp().item()
            elif overlap >= 0.3:
                left[i] *= 1 - overlap if method == "linear" else 0
            if left[i] < 0.05:
                del left[i]
    dets, indices = mmcv_ops.soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.05, method=method, offset=offset
    )
    assert indices.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, :4], boxes[indices])
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]))


def test_nms_match():
    boxes, scores = random_boxes(40)
    order = scores.argsort(descending=True).tolist()
    expected = []
    while order:
        first, *rest = order
        group = [i for i in rest if iou(boxes[first].tolist(), boxes[i].tolist()) >= 0.5]
        expected.append([first, *group])
        order = [i for i in rest if i not in group]
    found = mmcv_ops.nms_match(torch.cat((boxes, scores[:, None]), dim=1), 0.5)
    assert [group.tolist() for group in found] == expected


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_sigmoid_focal_loss(weighted, reduction):
    logits, target = torch.randn(30, 4), torch.randint(5, (30,))  # 4 is background
    weight = torch.rand(4) if weighted else None
    results = []
    for by_mmcv in (True, False):
        x = logits.clone().requires_grad_()
        if by_mmcv:
            loss = mmcv_ops.sigmoid_focal_loss(x, target, 1.5, 0.3, weight, reduction)
        else:
            y = nn.functional.one_hot(target, 5)[:, :4].float()
            p = x.sigmoid()
            cross_entropy = nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
            loss = cross_entropy * (p * (1 - y) + (1 - p) * y) ** 1.5 * (0.3 * y + 0.7 * (1 - y))
            if weighted:
                loss = loss * torch.cat((weight, torch.ones(1)))[target][:, None]
            loss = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / len(x)}[reduction]
        loss.sum().backward()
        results.append((loss, x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution_without_offsets_is_a_convolution(modulated):
    kind = mmcv_ops.ModulatedDeformConv2dPack if modulated else mmcv_ops.DeformConv2dPack
    conv = kind(4, 6, 3, stride=2, padding=1, groups=2, deform_groups=2).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    plain = nn.functional.conv2d(x, conv.weight, conv.bias if modulated else None, 2, 1, 1, 2)
    expected = plain - conv.bias[:, None, None] if modulated else plain
    found = conv(x)
    if modulated:  # the mask starts at sigmoid(0)
        found, expected = found - conv.bias[:, None, None], expected / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("modulated", [False, True])
def test_gradients_of_deformable_convolution(modulated):
    torch.manual_seed(1)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    offset = (
        torch.rand(1, 18, 4, 4, dtype=torch.float64) * 0.4 + 0.3
    ).requires_grad_()  # away from whole pixels
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    if modulated:
        mask = torch.rand(1, 9, 4, 4, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
        inputs = (x, offset, mask, weight, bias)
        assert torch.autograd.gradcheck(lambda *a: mmcv_ops.modulated_deform_conv2d(*a, 1, 1), inputs)
    else:
        inputs = (x, offset, weight)
        assert torch.autograd.gradcheck(lambda *a: mmcv_ops.deform_conv2d(*a, 1, 1), inputs)


def test_roi_align():
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 2, 2, 10, 10], [0, 1.5, 3, 7, 9]], dtype=torch.float64)
    align = mmcv_ops.RoIAlign((2, 2), sampling_ratio=2)
    assert torch.autograd.gradcheck(lambda x: align(x, rois), (x,))
    ramp = torch.arange(12.0).expand(
        1, 1, 12, 12
    )  # bilinear samples of a ramp average to the centers of the bins
    torch.testing.assert_close(align(ramp, rois[:1].float())[0, 0, 0], torch.tensor([3.5, 7.5]))
    with pytest.raises(RuntimeError, match="pool_mode 'max' is not provided"):
        mmcv_ops.RoIAlign((2, 2), pool_mode="max")(ramp, rois.float())


def test_other_operators_raise():
    with pytest.raises(RuntimeError, match=r"mmcv\._ext\.nms_rotated is not provided by fcos_fast"):
        mmcv_ops.nms_rotated(torch.rand(3, 5), torch.rand(3), 0.5)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_it_prints_once():
    code = (
        "from fcos_fast.integrations.mmcv import provide_ops; provide_ops(); provide_ops(); import mmcv.ops"
    )
    output = run(code)
    assert output.count("\n") == 1
    assert output.startswith("fcos_fast.provide_ops: mmcv._ext offers nms, sigmoid_focal_loss,")


def test_a_compiled_mmcv_is_left_alone():
    code = (
        "import sys, types, mmcv; real = types.ModuleType('mmcv._ext'); real.__file__ = '_ext.so'\n"
        "sys.modules['mmcv._ext'] = real\n"
        "from fcos_fast.integrations.mmcv import provide_ops; provide_ops()\n"
        "assert sys.modules['mmcv._ext'] is real"
    )
    assert run(code) == "fcos_fast.provide_ops: mmcv is compiled (_ext.so), nothing to provide\n"


def test_a_script_runs_with_the_operators(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom mmcv.ops import nms\nprint(sys.argv, __name__)")
    command = [sys.executable, "-m", "fcos_fast.integrations.mmcv", str(script), "a", "--b"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == f"{[str(script), 'a', '--b']} __main__"
    command[3] = "no.py"
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "no.py is not a file" in failed.stderr
