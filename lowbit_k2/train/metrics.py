"""Running means of training metrics, weighted by frames, and where they go: the log and TensorBoard."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

FRAMES = "frames"


class FrameMeans:
    """Means of per-frame metrics over batches; every batch counts by its `frames`."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.frames = 0.0

    def add(self, metrics: dict[str, float]) -> None:
        frames = metrics[FRAMES]
        self.frames += frames
        for name, value in metrics.items():
            if name != FRAMES:
                self.sums[name] = self.sums.get(name, 0.0) + value * frames

    def means(self) -> dict[str, float]:
        return {name: value / self.frames for name, value in self.sums.items()} if self.frames else {}


def describe(metrics: dict[str, float]) -> str:
    """`loss=0.512 loss_2=0.490 ...`."""
    return " ".join(f"{name}={value:.4g}" for name, value in metrics.items() if name != FRAMES)


def set_up_log(exp_dir: Path, name: str = "train") -> None:
    """Log to the screen and to `<exp-dir>/log/log-<name>-<date>`, as icefall does."""
    folder = exp_dir / "log"
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[
            logging.StreamHandler(),
            logging.FileHandler(folder / f"log-{name}-{time.strftime('%Y-%m-%d-%H-%M-%S')}"),
        ],
        force=True,
    )


class Board:
    """TensorBoard under `<exp-dir>/tensorboard`, or nothing when it is switched off."""

    def __init__(self, exp_dir: Path, enabled: bool) -> None:
        self.writer = SummaryWriter(str(exp_dir / "tensorboard")) if enabled else None

    def write(self, prefix: str, metrics: dict[str, float], update: int) -> None:
        """One curve `<prefix><name>` per metric, e.g. `train/current_loss_1`."""
        if self.writer is None:
            return
        for name, value in metrics.items():
            self.writer.add_scalar(prefix + name, value, update)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
