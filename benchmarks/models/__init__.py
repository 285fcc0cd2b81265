"""Whole models beside torchvision's: a training step, and detecting."""
