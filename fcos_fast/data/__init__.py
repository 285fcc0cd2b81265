"""Data sets: reading, checking, generating, augmenting and batching them. Needs the extra ``train``.

Names are imported when they are first used: ``AugmentConfig``, of which the command line makes its options, needs no
torch.
"""

from importlib import import_module

_FILES = {
    "augment": ("AugmentConfig",),
    "categories": ("COCO", "VOC", "Categories"),
    "checks": ("DataError", "IMAGE_SUFFIXES", "MAX_PIXELS", "Report"),
    "coco": ("load_coco",),
    "dataset": ("DetectionDataset", "Record"),
    "images": ("read_image",),
    "loader": ("EpochBatchSampler", "collate", "eval_loader", "train_loader"),
    "readers": ("READERS", "Reader", "load_dataset"),
    "synthetic": ("SyntheticConfig", "draw_picture", "synthetic_dataset", "write_voc"),
    "transforms": ("AugmentedDataset",),
    "voc": ("load_voc",),
    "yolo": ("load_yolo",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

__all__ = sorted(_FILE_OF)


def __getattr__(name: str):
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
