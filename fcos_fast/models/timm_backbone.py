"""Any model of the package timm that gives feature maps, as a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.config import NUM_STAGES, TIMM_PREFIX

STRIDES = (4, 8, 16, 32)


def check_timm_name(name: str) -> None:
    """Raise where ``name`` is not ``timm:`` and a name that timm lists, with a tag of weights or without.

    timm would take a name such as ``hf-hub:...`` to the network, or ``local-dir:...`` to the disk; names come from
    checkpoints of strangers.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm lists no such model; the message has the nearest.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"backbone {name!r} needs timm; pip install timm", name="timm") from error
    if not timm.is_model(name.removeprefix(TIMM_PREFIX)):
        near = get_close_matches(name, [TIMM_PREFIX + known for known in timm.list_models()], n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"{name}: timm cannot build it, it lists no such model; {hint}timm.list_models() has all"
        )


def _create(name: str) -> nn.Module:
    import timm

    make = partial(timm.create_model, name, features_only=True, pretrained=False)
    try:
        return make(strict_img_size=False)  # or Swin would take images of one size alone
    except TypeError:  # the others do not know this
        return make()


class TimmBackbone(Backbone):
    """The features of ``timm.create_model(name, features_only=True)``, with random weights.

    Args:
        name: ``timm:`` and a name of ``timm.list_models()``, of a model that takes images of any size.
        norm: ``"batch"``: as the model has it; ``"frozen"``: its batch norms frozen. A model without batch norm
            has its own norms in both cases.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such model, the model has no maps at strides 4, 8, 16 and 32, or a group norm.
    """

    def __init__(self, name: str, norm: str = "batch") -> None:
        super().__init__()
        check_timm_name(name)
        import timm

        if norm == "group":
            raise ValueError(f"{name}: timm's models have the norm that they have; take norm batch or frozen")
        try:
            self.features = _create(name.removeprefix(TIMM_PREFIX))
        except Exception as error:  # of many kinds; what timm says names the model
            raise ValueError(f"{name}: timm cannot build it with features_only: {error}") from error
        self.name = name
        reductions, channels = self.features.feature_info.reduction(), self.features.feature_info.channels()
        if [r for r in reductions if r >= STRIDES[0]] != list(STRIDES):
            raise ValueError(
                f"{name}: has feature maps at strides {reductions}; expected 4, 8, 16 and 32 among them"
            )
        self.out_channels = tuple(channels[-len(STRIDES) :])
        self.is_channels_last = str(getattr(self.features, "output_fmt", "")).endswith("NHWC")
        if norm == "frozen":
            self.features = timm.layers.freeze_batch_norm_2d(self.features)

    def from_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of ``state`` under the names that ``features`` has for them, where ``state`` is of the whole
        classification model; what that has above the feature maps is dropped, what it does not have is kept."""
        import timm

        with torch.device("meta"):
            whole = timm.create_model(self.name.removeprefix(TIMM_PREFIX), pretrained=False)
        own = self.features.state_dict().keys()
        renamed = {}  # name in the whole model to ours: timm makes "stages_0" of its module "stages.0"
        modules = {name.replace(".", "_"): name for name, _ in whole.named_modules() if name}
        for key in own:
            first, _, rest = key.partition(".")
            renamed[f"{modules[first]}.{rest}" if first in modules else key.removeprefix("model.")] = key
        above = whole.state_dict().keys() - renamed.keys() - own
        return {renamed.get(key, key): value for key, value in state.items() if key not in above}

    def stages(self) -> list[list[nn.Module]]:
        """The modules up to each feature map; what stands before the first of four maps is a part of the first stage.

        Raises:
            ValueError: the feature maps come from inside of modules, so that the stages cannot be told apart.
        """
        ends = [name.replace(".", "_") for name in self.features.feature_info.module_name()]
        children = dict(self.features.named_children())
        if any(end not in children for end in ends):
            raise ValueError(
                f"{self.name}: its stages cannot be frozen one by one; take trainable_stages 5 or 0"
            )
        stages: list[list[nn.Module]] = [[] for _ in range(NUM_STAGES - len(ends) + 1)]
        for name, module in children.items():
            stages[-1].append(module)
            if name in ends:
                stages.append([])
        return stages[:NUM_STAGES]

    def freeze(self, trainable_stages: int) -> None:
        """As :meth:`Backbone.freeze`; all and nothing can be frozen in any model."""
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
