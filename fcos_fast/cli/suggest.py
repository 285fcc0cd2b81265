"""Suggestions for mistyped options and subcommands, and for names that other programs have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fcos_fast import suggest

ELSEWHERE = {
    "augment.contrast": ("contrast_jitter",),
    "augment.horizontal_flip": ("fliplr", "hflip", "flip", "random_flip"),
    "augment.hue": ("hsv_h",),
    "augment.saturation": ("hsv_s",),
    "augment.brightness": ("hsv_v",),
    "augment.vertical_flip": ("flipud", "vflip"),
    "batch_size": ("batch", "bs", "b", "ims_per_batch", "images_per_batch"),
    "config": ("cfg", "config_file", "hyp", "recipe"),
    "data.group_by_aspect_ratio": ("aspect_ratio_group_factor", "aspect_ratio_grouping", "rect"),
    "data.root": ("data", "data_path", "data_dir", "dataset", "dataset_dir", "datasets", "coco_path", "path"),
    "data.train": ("train_split", "split"),
    "data.val": ("val", "val_split", "test"),
    "data.workers": ("num_workers", "j", "dataloader_workers"),
    "device": ("gpu", "gpus", "cuda", "accelerator"),
    "epochs": ("max_epochs", "num_epochs", "num_train_epochs", "n_epochs"),
    "iou_threshold": ("iou", "iou_thres", "iou_thresh", "nms_thresh", "nms"),
    "max_detections": ("max_det", "max_dets", "detections_per_img"),
    "model.backbone": ("arch", "encoder", "model_name"),
    "model.min_size": (
        *("imgsz", "img", "img_size", "image_size", "input_size", "resolution", "short_side"),
        *("multi_scale", "min_size_train"),
    ),
    "model.trainable_stages": ("freeze", "freeze_at", "trainable_backbone_layers"),
    "optimizer.clip_norm": ("clip_grad", "grad_clip", "max_norm", "clip_max_norm", "gradient_clip_val"),
    "optimizer.lr": ("lr0", "learning_rate", "base_lr"),
    "optimizer.name": ("opt", "optim", "optimizer"),
    "optimizer.weight_decay": ("wd",),
    "precision": ("amp", "half", "fp16", "bf16", "dtype"),
    "preset": ("model",),
    "resume": ("continue", "resume_from", "auto_resume"),
    "schedule.kind": ("cos_lr", "lr_scheduler", "scheduler", "schedule"),
    "schedule.milestones": ("lr_steps", "lr_drop"),
    "schedule.gamma": ("lr_gamma",),
    "schedule.warmup_steps": ("warmup_epochs", "warmup_iters", "warmup"),
    "score_threshold": ("conf", "conf_thres", "confidence", "score_thresh", "threshold", "score"),
    "train.accumulate": (
        "accum",
        "accumulate_grad_batches",
        "grad_accum_steps",
        "gradient_accumulation_steps",
    ),
    "train.loggers": ("logger", "tensorboard", "train.tensorboard", "wandb", "mlflow", "report_to"),
    "train.output": ("quiet", "json", "verbose"),
    "train.patience": ("early_stopping", "early_stopping_patience"),
    "train.ema_decay": ("ema", "model_ema_decay"),
    "train.evaluate_every": ("eval_period", "val_period", "eval_freq", "check_val_every_n_epoch"),
    "train.runs": ("project", "output_dir", "save_dir", "out_dir", "work_dir"),
    "train.steps": ("max_iter", "max_steps", "iterations"),
    "train.sync_batch_norm": ("sync_bn", "sync_batchnorm"),
    "weights": ("pretrained", "init_weights", "load_from"),
}
"""Last part of an option, or its whole name, -> names of the same thing in Ultralytics, detectron2, mmdetection,
torchvision's references and Lightning."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'train'?``, or the choices if none is near."""
    known = list(known)
    hint = suggest.did_you_mean(wrong, known, most=1)
    if hint:
        return f"; {hint}"
    return f"; choices: {', '.join(known)}" if len(known) <= 12 else "; --help lists the choices"


def did_you_mean_option(wrong: str, known: Sequence[str]) -> str:
    """The end of an error message about an unknown option: the options with that last part or that meaning, or the
    nearest.

    Args:
        wrong: what was given, such as ``--lr``.
        known: names of the options without dashes, such as ``optimizer.lr``.
    """
    if near := meant_by(wrong, known):
        return f"; did you mean {' or '.join(repr(f'--{option}') for option in near)}?"
    return did_you_mean(wrong, [f"--{option}" for option in known])


def meant_by(name: str, known: Sequence[str]) -> list[str]:
    """The options with that last part or that meaning; often none. The arguments are as for
    :func:`did_you_mean_option`."""
    last = name.lstrip("-").replace("-", "_").rpartition(".")[2].lower()
    return with_last_part(last, known) or _with_meaning(last, known)


def with_last_part(name: str, known: Sequence[str]) -> list[str]:
    """The options called ``name`` in some group; those of the shallowest group if there are several depths."""
    found = [option for option in known if option == name or option.endswith(f".{name}")]
    depth = min((option.count(".") for option in found), default=0)
    return [option for option in found if option.count(".") == depth]


def _with_meaning(name: str, known: Sequence[str]) -> list[str]:
    for option, names in ELSEWHERE.items():
        if name in names:
            return [option] if option in known else with_last_part(option.rpartition(".")[2], known)
    return []
