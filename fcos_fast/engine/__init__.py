"""Training, evaluation, checkpoints, prediction and reports."""
