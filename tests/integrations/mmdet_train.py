"""A training script as users of mmdetection have one: python -m fcos_fast.integrations.mmcv mmdet_train.py OPTIONS.

``--accelerate`` adds the one line of fcos_fast.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mmdet
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

import fcos_fast

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"


def make_config(options: argparse.Namespace) -> Config:
    """The published config with a ResNet18 from random weights, for the COCO data in ``options.data``."""
    config = Config.fromfile(CONFIGS / options.config)
    classes = tuple(json.loads((options.data / "classes.json").read_text()))
    model = config.model
    model.backbone.update(
        depth=18,
        init_cfg=None,
        norm_cfg={"type": "BN", "requires_grad": True},
        norm_eval=False,
        style="pytorch",
    )
    model.backbone.frozen_stages = -1
    model.neck.update(in_channels=[64, 128, 256, 512], out_channels=options.channels)
    model.bbox_head.update(
        in_channels=options.channels,
        feat_channels=options.channels,
        stacked_convs=2,
        num_classes=len(classes),
    )
    size = (options.size[1], options.size[0])
    common = {"data_root": str(options.data), "metainfo": {"classes": classes}}
    config.train_dataloader.update(batch_size=options.batch_size, num_workers=0, persistent_workers=False)
    config.train_dataloader.dataset.update(
        ann_file="train.json",
        data_prefix={"img": ""},
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True},
            {"type": "Resize", "scale": size, "keep_ratio": True},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PackDetInputs"},
        ],
        **common,
    )
    config.val_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    config.val_dataloader.dataset.update(
        ann_file="val.json",
        data_prefix={"img": ""},
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "Resize", "scale": size, "keep_ratio": True},
            {"type": "LoadAnnotations", "with_bbox": True},
            {
                "type": "PackDetInputs",
                "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            },
        ],
        **common,
    )
    config.val_evaluator.ann_file = str(options.data / "val.json")
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    if options.iterations:
        config.train_cfg = {
            "type": "IterBasedTrainLoop",
            "max_iters": options.iterations,
            "val_interval": 10**6,
        }
        config.train_dataloader.sampler = {"type": "InfiniteSampler", "shuffle": True}
    else:
        config.train_cfg = {
            "type": "EpochBasedTrainLoop",
            "max_epochs": options.epochs,
            "val_interval": options.epochs,
        }
    config.param_scheduler = []
    config.optim_wrapper = {
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": options.lr},
        "clip_grad": {"max_norm": 10.0},
    }
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint.interval = 10**6
    config.randomness = {"seed": options.seed}
    config.work_dir = str(options.work_dir)
    config.env_cfg.dist_cfg.backend = "gloo"
    if options.distributed:
        config.launcher = "pytorch"
        wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
        config.model_wrapper_cfg = {**wrapper, "device_ids": None}  # of CPUs there are none
        torch.cuda.set_device = lambda device: None  # mmengine calls it for processes on CPUs too
    return config


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train.json, val.json and classes.json"
    )
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--accelerate", action="store_true")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="height and width")
    options = parser.parse_args()
    register_all_modules()
    runner = Runner.from_cfg(make_config(options))
    if options.accelerate:
        fcos_fast.accelerate(getattr(runner.model, "module", runner.model))
    runner.train()


if __name__ == "__main__":
    main()
