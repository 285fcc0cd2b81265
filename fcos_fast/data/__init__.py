"""Data sets: reading, checking, generating, augmenting and batching them. Needs the extra ``train``."""

from .categories import COCO, VOC, Categories
from .checks import IMAGE_SUFFIXES, MAX_PIXELS, DataError, Report
from .coco import load_coco
from .dataset import DetectionDataset, Record
from .images import read_image
from .loader import EpochBatchSampler, collate, eval_loader, train_loader
from .readers import READERS, Reader, load_dataset
from .synthetic import SyntheticConfig, draw_picture, synthetic_dataset, write_voc
from .transforms import AugmentConfig, AugmentedDataset
from .voc import load_voc
from .yolo import load_yolo

__all__ = [
    "COCO",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "READERS",
    "VOC",
    "AugmentConfig",
    "AugmentedDataset",
    "Categories",
    "DataError",
    "DetectionDataset",
    "EpochBatchSampler",
    "Reader",
    "Record",
    "Report",
    "SyntheticConfig",
    "collate",
    "draw_picture",
    "eval_loader",
    "load_coco",
    "load_dataset",
    "load_voc",
    "load_yolo",
    "read_image",
    "synthetic_dataset",
    "train_loader",
    "write_voc",
]
