"""Backbones from the package timm: any of its models with feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.config import NUM_STAGES, TIMM_PREFIX
from fcos_fast.models.optional import import_optional
from fcos_fast.models.tensor_order import in_order
from fcos_fast.suggest import did_you_mean

STRIDES = (4, 8, 16, 32)


def check_timm_name(name: str) -> None:
    """Raise unless ``name`` is ``timm:`` and a model that timm lists, with or without a tag of weights.

    Names come from untrusted checkpoints, and timm would download ``hf-hub:...`` or read ``local-dir:...``.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm lists no such model; the message has the nearest names.
    """
    timm = import_optional("timm", f"backbone {name!r} needs")
    if not timm.is_model(name.removeprefix(TIMM_PREFIX)):
        hint = did_you_mean(name, [TIMM_PREFIX + known for known in timm.list_models()])
        raise ValueError(f"{name}: timm has no such model; {hint} timm.list_models() lists all")


def _create(name: str) -> nn.Module:
    import timm

    make = partial(timm.create_model, name, features_only=True, pretrained=False)
    try:
        return make(strict_img_size=False)  # else Swin accepts only one image size
    except TypeError:  # other models do not have this option
        return make()


class TimmBackbone(Backbone):
    """The features of ``timm.create_model(name, features_only=True)``, with random weights.

    Args:
        name: ``timm:`` and a name of ``timm.list_models()``; the model must accept images of any size.
        norm: ``"batch"``: the model's own norms; ``"frozen"``: its batch norms frozen. Models without batch norm keep
            their own norms in both cases.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such model, the model has no feature maps at strides 4, 8, 16 and 32, or
            ``norm="group"``.
    """

    features: Any  # a timm.models.FeatureListNet or similar

    def __init__(self, name: str, norm: str = "batch") -> None:
        super().__init__()
        check_timm_name(name)

        if norm == "group":
            raise ValueError(
                f"{name}: norm='group' is not available for timm models; use norm batch or frozen"
            )
        try:
            self.features = _create(name.removeprefix(TIMM_PREFIX))
        except Exception as error:  # of any kind
            raise ValueError(f"{name}: timm cannot build it with features_only=True: {error}") from error
        self.name = name
        reductions, channels = self.features.feature_info.reduction(), self.features.feature_info.channels()
        if [r for r in reductions if r >= STRIDES[0]] != list(STRIDES):
            raise ValueError(
                f"{name}: has feature maps at strides {reductions}; expected 4, 8, 16 and 32 among them"
            )
        self.out_channels = tuple(channels[-len(STRIDES) :])
        self.is_channels_last = str(getattr(self.features, "output_fmt", "")).endswith("NHWC")
        if norm == "frozen":
            self.features = import_module("timm.layers").freeze_batch_norm_2d(self.features)

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of the whole classification model to the names in ``features``.

        Layers above the feature maps are dropped. Unknown names are kept; if all are unknown, the tensors are those of
        another implementation and read by their order.

        Raises:
            ValueError: all names are unknown, and the shapes do not fit in this order.
        """
        import timm

        with torch.device("meta"):
            whole = timm.create_model(self.name.removeprefix(TIMM_PREFIX), pretrained=False)
        own = self.features.state_dict().keys()
        renamed = {}  # name in the whole model to ours: timm renames its module "stages.0" to "stages_0"
        modules = {name.replace(".", "_"): name for name, _ in whole.named_modules() if name}
        for key in own:
            first, _, rest = key.partition(".")
            renamed[f"{modules[first]}.{rest}" if first in modules else key.removeprefix("model.")] = key
        theirs = whole.state_dict()
        if not state.keys() & (theirs.keys() | own):
            state = in_order(state, theirs, self.name)
        above = theirs.keys() - renamed.keys() - own
        return {renamed.get(key, key): value for key, value in state.items() if key not in above}

    def stages(self) -> list[list[nn.Module]]:
        """The modules up to each feature map; if there are four, the stem is part of the first stage.

        Raises:
            ValueError: feature maps come from inside of modules, so stages cannot be separated.
        """
        ends = [name.replace(".", "_") for name in self.features.feature_info.module_name()]
        children = dict(self.features.named_children())
        if any(end not in children for end in ends):
            raise ValueError(
                f"{self.name}: its stages cannot be frozen one by one; use trainable_stages 5 or 0"
            )
        stages: list[list[nn.Module]] = [[] for _ in range(NUM_STAGES - len(ends) + 1)]
        for name, module in children.items():
            stages[-1].append(module)
            if name in ends:
                stages.append([])
        return stages[:NUM_STAGES]

    def freeze(self, trainable_stages: int) -> None:
        """As :meth:`Backbone.freeze`; 0 and 5 trainable stages work for any model."""
        if 0 < trainable_stages < NUM_STAGES:
            super().freeze(trainable_stages)
            return
        self._frozen = [self.features] if trainable_stages == 0 else []
        self.features.requires_grad_(trainable_stages > 0)
        self.train(self.training)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C2, C3, C4, C5]."""
        maps = self.features(x)[-len(STRIDES) :]
        return [c.permute(0, 3, 1, 2) for c in maps] if self.is_channels_last else list(maps)
