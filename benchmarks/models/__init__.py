"""Whole models compared with torchvision's: a training step, and inference."""
