"""What every detector does around its head: images in, losses or detections out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fcos_fast.assignment import GroundTruth
from fcos_fast.models.backbones import backbone_options, build_backbone
from fcos_fast.models.checks import check_images, check_packed, check_targets
from fcos_fast.models.config import DetectorConfig
from fcos_fast.models.deform_conv import DeformConv2d
from fcos_fast.models.folding import conv_norm_pairs, fold_batch_norms
from fcos_fast.models.fpn import FPN, BackboneWithFPN
from fcos_fast.models.norm import GroupNormReLU
from fcos_fast.models.packing import learned_target
from fcos_fast.models.timm_backbone import TimmBackbone
from fcos_fast.models.transform import ImageBatch, Size, Transform, has_area, image_size, scale_boxes
from fcos_fast.models.winograd import use_winograd
from fcos_fast.precision import Precision, choose_precision

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

_FOR_INFERENCE = "this model was made by optimize_for_inference, its batch norms are gone"


class Detector(nn.Module):
    """Base of the detectors: a transform, a backbone with a pyramid, a head.

    In training, ``model(images, targets)`` returns the losses by name, float32 scalars. In evaluation,
    ``model(images)`` returns one dict per image: ``boxes`` (N, 4) float32 xyxy in pixels of the image as it was
    given, ``scores`` (N,) float32 in descending order, ``labels`` (N,) int64 in 0..C-1.

    Images are a list of RGB tensors (3, H, W) of any sizes, uint8 or float in [0, 1]. Targets are one
    dict per image: ``boxes`` (N, 4) float32 xyxy in pixels and ``labels`` (N,) int64 in 0..C-1; N may be 0.

    Training also takes what :class:`BatchPacker` made of a batch, copied to the model's device: an
    :class:`ImageBatch` and its :class:`GroundTruth`.

    A subclass adds the ``head``, from [P_min, ..., P_max] to a tuple of lists, one tensor (B, channels, H, W) per
    level, and says in :meth:`assign`, :meth:`losses` and :meth:`postprocess` what these mean.

    Attributes:
        LOSSES: names of the losses, in the order in which they are reported.
    """

    head: nn.Module
    LOSSES: ClassVar[tuple[str, ...]]

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.transform = Transform(config)
        self.backbone = _build_pyramid(config)
        self.inference_dtype: torch.dtype | None = None
        """Of the weights after :meth:`optimize_for_inference`; None where the model can be trained."""

    @property
    def title(self) -> str:
        """What this is, in words."""
        return f"{type(self).__name__} on {self.config.backbone}"

    def assign(self, batch: ImageBatch, gt: GroundTruth) -> Any:
        """The targets of a batch; their ``totals``, a tensor, are what processes add up."""
        raise NotImplementedError

    def losses(self, images: Tensor, targets: Any, reduction: dist.Work | None = None) -> dict[str, Tensor]:
        """The network and its losses, which ``torch.compile(fullgraph=True)`` takes as one graph.

        Args:
            images: (B, 3, H, W), normalised and padded.
            targets: of :meth:`assign`.
            reduction: of ``targets.totals``; waited for before they are read.
        """
        raise NotImplementedError

    def postprocess(self, outputs: tuple[list[Tensor], ...], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of each image of ``batch``, in pixels of the images as they lie in it.

        Their boxes are still as the network learns them, see ``inclusive_targets`` of the configuration.
        """
        raise NotImplementedError

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
        learned = [
            learned_target(target, image_size(image), image_size(small), self.config)
            for target, image, small in zip(targets, images, resized, strict=True)
        ]
        boxes, labels = ([target[name] for target in learned] for name in ("boxes", "labels"))
        return self.transform.batch(resized), GroundTruth.pack(boxes, labels)

    def _losses(self, batch: ImageBatch, gt: GroundTruth) -> dict[str, Tensor]:
        targets = self.assign(batch, gt)
        reduction = self._sum_totals(targets)  # runs behind the forward pass
        return self.losses(batch.tensor, targets, reduction)

    def _sum_totals(self, targets: Any) -> dist.Work | None:
        """Begin to replace the totals by their sum over all processes."""
        return dist.all_reduce(targets.totals, async_op=True) if self._shares_totals() else None

    def _shares_totals(self) -> bool:
        """Do several processes divide their losses by what they count together?"""
        return self.config.average_totals and dist.is_available() and dist.is_initialized()

    @torch.no_grad()
    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        resized = [self.transform(image) for image in images]
        detections: list[dict[str, Tensor]] = [{} for _ in images]
        for indices in self.transform.groups(resized):
            batch = self.transform.batch([resized[i] for i in indices])
            found = self.postprocess(self.network(batch.tensor), batch)
            for i, detection in zip(indices, found, strict=True):
                detections[i] = self._finish(detection, image_size(resized[i]), image_size(images[i]))
        return detections

    def _finish(self, detection: dict[str, Tensor], size: Size, original: Size) -> dict[str, Tensor]:
        """The detections of :meth:`postprocess` in an image of ``size``, in pixels of the ``original`` image."""
        boxes = scale_boxes(detection["boxes"], size, original)
        if self.config.inclusive_targets:
            # Where the image was enlarged, its last pixel and one more lie beyond the edge of the original.
            edge = boxes.new_tensor(original[::-1])
            boxes = torch.cat((boxes[:, :2], (boxes[:, 2:] + 1).minimum(edge)), dim=1)
        detection = detection | {"boxes": boxes}
        if self.config.drop_empty == "at_end":
            kept = has_area(boxes)
            detection = {name: values[kept] for name, values in detection.items()}
        return detection

    def network(self, x: Tensor) -> tuple[list[Tensor], ...]:
        """Images (B, 3, H, W) as the backbone sees them, padded, to the outputs of the head."""
        if self.inference_dtype is None:
            return self.head(self.backbone(x))
        with torch.autocast(x.device.type, enabled=False):  # every layer has its dtype already
            return self.head(self.backbone(x.to(self.inference_dtype)))

    def optimize_for_inference(self, precision: Precision = "auto", compile: bool = False) -> Self:
        """A copy of this model that detects faster, and does nothing else; this model stays as it is.

        Batch norms, plain and frozen, are folded into the convolutions, the weights are channels-last and in the
        precision of the device that they lie on (``.to(device)`` first), so that no norm of the backbone and no type
        conversion is left in the forward pass. In float32 on a CPU, large 3x3 convolutions are computed by Winograd's
        method; their transformed weights, four times as large, are kept from the first batch on. Detections change by
        rounding alone: boxes by a small fraction of a pixel in float32, as under autocast in bfloat16; one whose score
        lies that near to a threshold can come or go.

        The copy has another state dict, with a bias in place of each norm, and cannot be trained.

        Args:
            precision: of the weights and activations; ``auto`` is bfloat16 where the device is fast at it, else
                float32. Pixel values, norms of the head and post-processing are float32 in any case.
            compile: run the network through ``torch.compile``, which fuses ReLU and addition into the convolutions.
                For images of one size, or few: the first batch of every other shape compiles anew, for up to
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
        _lower_precision(model, model.inference_dtype)
        if compile:
            # Not dynamic: a network compiled for any size is slower than one that is not compiled.
            model.network = torch.compile(model.network, dynamic=False, options={"freezing": True})
        elif device.type == "cpu" and model.inference_dtype == torch.float32:
            use_winograd(model, keep=True)
        return model

    def train(self, mode: bool = True) -> Self:
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

    def feature_sizes(self, size: Size) -> list[Size]:
        """(height, width) of each level's maps over a padded image, known before the network runs."""
        return [tuple(math.ceil(side / stride) for side in size) for stride in self.config.strides]


def _build_pyramid(config: DetectorConfig) -> BackboneWithFPN:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    options = {name: values[name] for name in values.keys() & backbone_options(config.backbone)}
    body = build_backbone(config.backbone, config.trainable_stages, **options)
    fpn = FPN(
        body.out_channels[config.min_level - 2 :],
        config.fpn_channels,
        config.p6_from,
        config.max_level - 5,
        config.fpn_norm,
        config.fpn_relu,
        config.fpn_upsampling,
    )
    return BackboneWithFPN(body, fpn)


def _lower_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Let ``model`` compute in ``dtype``, channels-last.

    Norms of the head and batch norms that were not folded take maps of 16 bits with their float32 parameters, and so do
    deformable convolutions.
    """
    whole = [module for module in model.modules() if isinstance(module, TimmBackbone)]
    kept = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    kept_ids = {id(module) for parent in kept for module in parent.modules()}
    for module in whole:
        module.to(dtype, memory_format=torch.channels_last)  # of layers and parameters of any kind
        kept_ids |= {id(m) for m in module.modules()}
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._NormBase):
                norm.float()
    for module in model.modules():
        lowers = isinstance(module, (nn.Conv2d, nn.GroupNorm)) and not isinstance(module, GroupNormReLU)
        if lowers and id(module) not in kept_ids:
            module.to(dtype, memory_format=torch.channels_last)
