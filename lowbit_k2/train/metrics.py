"""Running means of training metrics, weighted by frames, and where they go: the log and TensorBoard."""

from __future__ import annotations

import logging
import time
from logging.handlers import MemoryHandler
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

FRAMES = "frames"
FORMAT = "%(asctime)s %(levelname)s %(message)s"


class MetricsTracker:
    """Means of per-frame metrics over batches; every batch counts by its `frames`, for the metrics that it has."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.frames: dict[str, float] = {}  # of the batches that have a metric: not every branch is in every update

    def add(self, metrics: dict[str, float]) -> None:
        frames = metrics[FRAMES]
        for name, value in metrics.items():
            if name != FRAMES:
                self.sums[name] = self.sums.get(name, 0.0) + value * frames
                self.frames[name] = self.frames.get(name, 0.0) + frames

    def means(self) -> dict[str, float]:
        return {name: value / self.frames[name] for name, value in self.sums.items() if self.frames[name]}


def describe(metrics: dict[str, float]) -> str:
    """`loss=0.512 loss_2=0.490 ...`."""
    return " ".join(f"{name}={value:.4g}" for name, value in metrics.items() if name != FRAMES)


def log_to_screen(quiet: bool = False) -> None:
    """Log to the screen, and keep the lines for `log_to_file`: until the input is known to be good, no file is made.

    Args:
      quiet: warnings and errors only, for all but one of several processes that do the same.
    """
    early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format=FORMAT, handlers=[logging.StreamHandler(), early], force=True)


def log_to_file(exp_dir: Path, name: str = "train") -> None:
    """From now on log to `<exp-dir>/log/log-<name>-<date>`, too, as icefall does, after the lines that came before."""
    folder = exp_dir / "log"
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / f"log-{name}-{time.strftime('%Y-%m-%d-%H-%M-%S')}")
    file.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
        handler.setTarget(file)
        handler.close()  # hands over what it holds
        root.removeHandler(handler)
    root.addHandler(file)


class Board:
    """TensorBoard under `<exp-dir>/tensorboard`, made at the first curve, or nothing when it is switched off."""

    def __init__(self, exp_dir: Path, enabled: bool) -> None:
        self.folder = exp_dir / "tensorboard" if enabled else None
        self.writer: SummaryWriter | None = None

    def write(self, prefix: str, metrics: dict[str, float], update: int) -> None:
        """One curve `<prefix><name>` per metric, e.g. `train/current_loss_1`."""
        if self.folder is None:
            return
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder))
        for name, value in metrics.items():
            self.writer.add_scalar(prefix + name, value, update)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
