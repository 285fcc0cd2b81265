"""FCOS (Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", 2019)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fcos_fast import ops
from fcos_fast.assignment import GroundTruth, Level, Targets
from fcos_fast.models.backbones import build_backbone
from fcos_fast.models.checks import check_images, check_packed, check_targets
from fcos_fast.models.config import STRIDES, FCOSConfig, check_fields
from fcos_fast.models.folding import conv_norm_pairs, fold_batch_norms
from fcos_fast.models.fpn import BackboneWithFPN
from fcos_fast.models.head import FCOSHead, HeadOutputs
from fcos_fast.models.names import unknown_name
from fcos_fast.models.norm import GroupNormReLU
from fcos_fast.models.padding import ignore_outside
from fcos_fast.models.presets import PRESETS
from fcos_fast.models.transform import ImageBatch, Size, Transform, image_size, scale_boxes
from fcos_fast.models.winograd import use_winograd
from fcos_fast.precision import Precision, choose_precision

_FOR_INFERENCE = "this FCOS was made by optimize_for_inference, its batch norms are gone"


class FCOS(nn.Module):
    """The detector that ``config`` describes, with torchvision's calling convention and parameter names.

    In training, ``model(images, targets)`` returns the losses ``{"classification", "bbox_regression",
    "bbox_ctrness"}``, float32 scalars. In evaluation, ``model(images)`` returns one dict per image:
    ``boxes`` (N, 4) float32 xyxy in pixels of the image as it was given, ``scores`` (N,) float32 in
    descending order, ``labels`` (N,) int64 in 0..C-1.

    Images are a list of RGB tensors (3, H, W) of any sizes, uint8 or float in [0, 1]. Targets are one
    dict per image: ``boxes`` (N, 4) float32 xyxy in pixels and ``labels`` (N,) int64 in 0..C-1; N may be 0.

    Training also takes what :class:`BatchPacker` made of a batch, copied to the model's device: an
    :class:`ImageBatch` and its :class:`GroundTruth`.
    """

    def __init__(self, config: FCOSConfig) -> None:
        super().__init__()
        self.config = config
        options: dict[str, Any] = {"norm": config.norm}
        if config.backbone.startswith("resnet"):
            options["stride_in_1x1"] = config.stride_in_1x1
        self.transform = Transform(config)
        self.backbone = BackboneWithFPN(
            build_backbone(config.backbone, config.trainable_stages, **options),
            config.fpn_channels,
            config.p6_from,
        )
        self.head = FCOSHead(
            config.fpn_channels,
            config.num_classes,
            len(STRIDES),
            config.head_channels,
            config.head_convs,
            config.head_norm,
            config.prior,
            config.centerness_on,
            config.regression,
            config.scale_per_level,
        )
        self._units = STRIDES if config.regression_unit == "stride" else (1,) * len(STRIDES)
        self.inference_dtype: torch.dtype | None = None
        """Of the weights after :meth:`optimize_for_inference`; None where the model can be trained."""

    def forward(
        self,
        images: Sequence[Tensor] | ImageBatch,
        targets: Sequence[dict[str, Tensor]] | GroundTruth | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Raises:
            ValueError, TypeError: for images or targets of another form; the message names the one and
                its remedy.
        """
        device = self.transform.mean.device
        if isinstance(images, ImageBatch):
            check_packed(images, targets, self.training, device)
            return self._losses(self.transform.normalize(images), targets)
        check_images(images, device)
        if self.training:
            check_targets(targets, len(images), self.config.num_classes, device)
            return self._losses(*self._pack(images, targets))
        return self._detect(images)

    def _pack(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[ImageBatch, GroundTruth]:
        resized = [self.transform(image) for image in images]
        boxes = [
            scale_boxes(target["boxes"], image_size(image), image_size(small))
            for target, image, small in zip(targets, images, resized, strict=True)
        ]
        return self.transform.batch(resized), GroundTruth.pack(
            boxes, [target["labels"] for target in targets]
        )

    def _losses(self, batch: ImageBatch, gt: GroundTruth) -> dict[str, Tensor]:
        assigned = self.assign(batch, gt)
        reduction = self._sum_totals(assigned)  # runs behind the forward pass
        return self.losses(batch.tensor, assigned, reduction)

    def losses(
        self, images: Tensor, targets: Targets, reduction: dist.Work | None = None
    ) -> dict[str, Tensor]:
        """The network and its losses, which ``torch.compile(fullgraph=True)`` takes as one graph.

        Args:
            images: (B, 3, H, W), normalised and padded.
            targets: of :meth:`assign`.
            reduction: of ``targets.totals``; waited for before they are read.
        """
        outputs = self.network(images)
        if reduction is not None:
            reduction.wait()
        config = self.config
        return ops.detection_loss(
            *outputs,
            targets,
            units=self._units,
            alpha=config.focal_alpha,
            gamma=config.focal_gamma,
            box_loss=config.box_loss,
            box_loss_smooth=config.box_loss_smooth,
            centerness_weighted=config.centerness_weighted,
            normalizers=self._normalizers(targets) if self._shares_totals() else None,
        )

    @torch.no_grad()
    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        resized = [self.transform(image) for image in images]
        detections: list[dict[str, Tensor]] = [{} for _ in images]
        for indices in self.transform.groups(resized):
            batch = self.transform.batch([resized[i] for i in indices])
            found = self.postprocess(self.network(batch.tensor), batch)
            for i, detection in zip(indices, found, strict=True):
                detection["boxes"] = scale_boxes(
                    detection["boxes"], image_size(resized[i]), image_size(images[i])
                )
                detections[i] = detection
        return detections

    def network(self, x: Tensor) -> HeadOutputs:
        """Images (B, 3, H, W) as the backbone sees them, padded, to the outputs of the head."""
        if self.inference_dtype is None:
            return self.head(self.backbone(x))
        with torch.autocast(x.device.type, enabled=False):  # every layer has its dtype already
            return self.head(self.backbone(x.to(self.inference_dtype)))

    def postprocess(self, outputs: HeadOutputs, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of each image of ``batch``, in pixels of the images as they lie in it."""
        config = self.config
        return ops.postprocess(
            *outputs,
            self.levels(batch.padded_size),
            batch.sizes,
            units=self._units,
            score_threshold=config.score_threshold,
            threshold_on=config.threshold_on,
            topk_candidates=config.topk_candidates,
            iou_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            inclusive_boxes=config.inclusive_boxes,
        ).split()

    def optimize_for_inference(self, precision: Precision = "auto", compile: bool = False) -> FCOS:
        """A copy of this model that detects faster, and does nothing else; this model stays as it is.

        Batch norms, plain and frozen, are folded into the convolutions, the weights are channels-last and in the
        precision of the device that they lie on (``.to(device)`` first), so that no norm of the backbone and no type
        conversion is left in the forward pass. In float32 on a CPU, large 3x3 convolutions are computed by Winograd's
        method. Detections change by rounding alone: boxes by a small fraction of a pixel in float32, as under autocast
        in bfloat16; one whose score lies that near to a threshold can come or go.

        The copy has another state dict, with a bias in place of each norm, and cannot be trained.

        Args:
            precision: of the weights and activations; ``auto`` is bfloat16 where the device is fast at it, else
                float32. Pixel values, norms of the head and post-processing are float32 in any case.
            compile: run the network through ``torch.compile``, which fuses ReLU and addition into the convolutions.
                For pictures of one size, or few: the first batch of every other shape compiles anew, for up to
                minutes, and from the ninth on torch runs them as without it.

        Raises:
            RuntimeError: for a model that is such a copy already.
        """
        if self.inference_dtype is not None:
            raise RuntimeError(f"{_FOR_INFERENCE}; optimize the model that it was made from")
        model = copy.deepcopy(self).eval().requires_grad_(False)
        device = self.transform.mean.device
        model.inference_dtype, _ = choose_precision(precision, device)
        fold_batch_norms(model.backbone, conv_norm_pairs(model.backbone))
        for module in model.modules():
            # The head's norms take bfloat16 maps with their float32 parameters.
            if isinstance(module, (nn.Conv2d, nn.GroupNorm)) and not isinstance(module, GroupNormReLU):
                module.to(model.inference_dtype, memory_format=torch.channels_last)
        if compile:
            # Not dynamic: a network compiled for any size is slower than one that is not compiled.
            model.network = torch.compile(model.network, dynamic=False, options={"freezing": True})
        elif device.type == "cpu" and model.inference_dtype == torch.float32:
            use_winograd(model)
        return model

    def train(self, mode: bool = True) -> FCOS:
        """As ``nn.Module.train``.

        Raises:
            RuntimeError: when a model of :meth:`optimize_for_inference` is to be trained.
        """
        if mode and self.inference_dtype is not None:
            raise RuntimeError(f"{_FOR_INFERENCE}; train the model that it was made from")
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # What torch.compile made belongs to this object: a copy would run the original's weights.
        return {name: value for name, value in vars(self).items() if name not in ("losses", "network")}

    def levels(self, size: Size) -> list[Level]:
        """The levels over a padded image of (height, width), known before the network runs."""
        feature_sizes = [tuple(math.ceil(side / stride) for side in size) for stride in STRIDES]
        return self.config.rule.levels(feature_sizes, size, STRIDES)

    def assign(self, batch: ImageBatch, gt: GroundTruth) -> Targets:
        """The targets of all locations of a batch."""
        levels = self.levels(batch.padded_size)
        targets = ops.assign_targets(gt, levels, self.config.rule)
        if not self.config.ignore_padding or not batch.is_padded:
            return targets
        return ignore_outside(targets, levels, batch.tensors[1])

    def _shares_totals(self) -> bool:
        return self.config.average_totals and dist.is_available() and dist.is_initialized()

    def _sum_totals(self, targets: Targets) -> dist.Work | None:
        """Begin to replace the totals by their sum over all processes."""
        return dist.all_reduce(targets.totals, async_op=True) if self._shares_totals() else None

    def _normalizers(self, targets: Targets) -> Tensor:
        """(3,) what the losses are divided by: a process's share of what one process would divide by.

        So the mean over the processes is the loss that one process has, also where there are fewer positive locations
        than processes.
        """
        num_positive = targets.num_positive.clamp(min=1)
        box = targets.centerness_sum.clamp(min=1e-6) if self.config.centerness_weighted else num_positive
        return torch.stack((num_positive, box, num_positive)) / dist.get_world_size()


def fcos(
    backbone: str = "resnet50",
    num_classes: int | None = None,
    preset: str = "official-improved",
    **overrides: Any,
) -> FCOS:
    """Build an FCOS with random weights.

    Args:
        backbone: a name of ``fcos_fast.models.BACKBONES``.
        num_classes: number of classes C; labels are 0..C-1. None: the preset's.
        preset: a name of ``fcos_fast.models.PRESETS``.
        **overrides: fields of :class:`FCOSConfig` that shall differ from the preset.

    Raises:
        ValueError: for an unknown preset, backbone or field, with the nearest names; for a value that no
            FCOS can have.

    Example:
        >>> model = fcos("resnet18", num_classes=3, min_size=240, max_size=320)
        >>> losses = model([torch.rand(3, 240, 320)], [{"boxes": boxes, "labels": labels}])
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    check_fields(overrides)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return FCOS(replace(PRESETS[preset], backbone=backbone, **overrides))
