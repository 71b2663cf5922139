"""What a training run writes down as it goes."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from runtime.errors import DataError
from runtime.version import __version__

from .pictures import loss_curve


class Log:
    """``metrics.jsonl``, its picture, and TensorBoard's event files; rows after the step we resume from are dropped."""

    def __init__(self, out: Path, step: int, main: bool) -> None:
        self.out, self.main = out, main
        self.path = out / "metrics.jsonl"
        self.sum, self.count, self.started = 0.0, 0, time.time()
        self.board: Any = None
        if main:
            rows = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")] if self.path.exists() else []
            rows = [row for row in rows if row["step"] <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(temporary, self.path)
            self.before = rows[-1]["seconds"] if rows else 0.0
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def add(self, loss: float) -> float:
        """Take in one step's loss and return the mean since the last row."""
        self.sum, self.count = self.sum + loss, self.count + 1
        return self.sum / self.count

    def write(self, step: int, epoch: float, loss: float, validation: float, lr: float) -> None:
        self.sum, self.count = 0.0, 0
        if not self.main:
            return
        if not math.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {step}; lower --lr, or look for damaged samples")
        row = {
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "validation_loss": validation,
            "lr": lr,
            "seconds": round(self.before + time.time() - self.started, 1),
            "version": __version__,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name in ("loss", "validation_loss", "lr"):
            self.board.add_scalar(name, row[name], step)
        loss_curve(self.path, self.out / "loss.png")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
