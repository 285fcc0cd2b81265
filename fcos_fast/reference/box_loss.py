"""IoU losses between boxes: IoU, linear IoU, GIoU, DIoU, CIoU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fcos_fast.reference.reduction import reduce


def _as_xyxy(boxes: Tensor, box_format: str) -> Tensor:
    if box_format == "xyxy":
        return boxes
    if box_format == "ltrb":  # relative to a location at the origin
        return torch.cat((-boxes[..., :2], boxes[..., 2:]), dim=-1)
    raise ValueError(f'box_format={box_format!r}; expected "xyxy" or "ltrb"')


def box_loss(
    pred: Tensor,
    target: Tensor,
    kind: str = "giou",
    reduction: str = "none",
    *,
    box_format: str = "xyxy",
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Tensor:
    """See :func:`fcos_fast.ops.box_loss`."""
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    p = _as_xyxy(pred.to(dtype), box_format)
    t = _as_xyxy(target.to(dtype), box_format)
    px1, py1, px2, py2 = p.unbind(-1)
    tx1, ty1, tx2, ty2 = t.unbind(-1)
    pw, ph, tw, th = px2 - px1, py2 - py1, tx2 - tx1, ty2 - ty1

    overlap_w = F.relu(torch.minimum(px2, tx2) - torch.maximum(px1, tx1))
    overlap_h = F.relu(torch.minimum(py2, ty2) - torch.maximum(py1, ty1))
    intersection = overlap_w * overlap_h
    union = pw * ph + tw * th - intersection
    iou = (intersection + smooth) / (union + smooth + eps)

    enclosing_w = torch.maximum(px2, tx2) - torch.minimum(px1, tx1)
    enclosing_h = torch.maximum(py2, ty2) - torch.minimum(py1, ty1)
    if kind == "iou":
        loss = -iou.clamp(min=eps).log()
    elif kind == "linear_iou":
        loss = 1 - iou
    elif kind == "giou":
        enclosing = enclosing_w * enclosing_h
        loss = 1 - iou + (enclosing - union) / (enclosing + eps)
    elif kind in ("diou", "ciou"):
        diagonal = enclosing_w**2 + enclosing_h**2 + eps
        center_dx = (px1 + px2 - tx1 - tx2) / 2
        center_dy = (py1 + py2 - ty1 - ty2) / 2
        loss = 1 - iou + (center_dx**2 + center_dy**2) / diagonal
        if kind == "ciou":
            v = (4 / math.pi**2) * (torch.atan2(tw, th) - torch.atan2(pw, ph)) ** 2
            with torch.no_grad():
                weight = v / (1 - iou + v + eps)
            loss = loss + weight * v
    else:
        raise ValueError(f'kind={kind!r}; expected "iou", "linear_iou", "giou", "diou" or "ciou"')
    return reduce(loss, reduction)
