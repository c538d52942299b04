"""The training loop and what it stands on: optimiser, checkpoints, metrics, BatchNorm recalibration."""
