"""What a training run writes down as it goes."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.curves import losses, read_losses
from runtime.files import atomic_file
from runtime.version import __version__

_log = logging.getLogger(__name__)
_REDRAW_S = 10.0  # seconds between drawings of the loss curve: short epochs would spend their time on it


class Log:
    """``metrics.jsonl``, its picture, and TensorBoard's event files; rows after the step we resume from are dropped.

    Args:
        out: the run folder.
        step, total: where this process begins, and the run's last step.
        epochs: passes over the data in all.
        main: whether this process writes.
        lines: whether to log a line an epoch, for log files; a terminal has a progress bar.
        state: what :meth:`state` gave when the checkpoint we resume from was written.
    """

    def __init__(self, out: Path, step: int, total: int, epochs: int, main: bool, lines: bool, state: Mapping[str, Any]) -> None:
        self.out, self.main, self.lines = out, main, lines
        self.first, self.total, self.epochs = step, total, epochs
        self.path = out / "metrics.jsonl"
        self.sum, self.count = float(state.get("sum", 0.0)), int(state.get("count", 0))
        self.started = self.drawn = time.monotonic()
        self.board: Any = None
        if main:
            rows = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")] if self.path.exists() else []
            rows = [row for row in rows if row["step"] <= step]
            with atomic_file(self.path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            self.before = rows[-1]["seconds"] if rows else 0.0
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def add(self, loss: float) -> float:
        """Take in one step's loss and return the mean since the last row."""
        self.sum, self.count = self.sum + loss, self.count + 1
        return self.sum / self.count

    def state(self) -> dict[str, Any]:
        """The mean's parts as JSON, so that a row is the same whether or not a kill fell into its epoch."""
        return {"sum": self.sum, "count": self.count}

    def write(self, step: int, epoch: float, loss: float, validation: Mapping[str, float], lr: float) -> None:
        """A row: the mean loss since the last one, and the validation losses by name."""
        self.sum, self.count = 0.0, 0
        if not self.main:
            return
        seconds = time.monotonic() - self.started
        values = {"loss": loss, **validation, "lr": lr}
        row = {"step": step, "epoch": epoch, **values, "seconds": round(self.before + seconds, 1), "version": __version__}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if self.lines:
            rate = (step - self.first) / max(seconds, 1e-9)
            losses = " · ".join(f"{name.replace('_loss', '').replace('_', ' ')} {value:.4f}" for name, value in validation.items())
            left = "done" if step >= self.total else f"{duration((self.total - step) / rate)} left"
            words = f"epoch {epoch:g}/{self.epochs} · loss {loss:.4f} · {losses} · {speed(rate)} · {left}"
            shown = {"epoch": epoch, "rate": rate, **values}
            # JSON has no word for numbers that are not finite.
            numbers = {name: value if math.isfinite(value) else str(value) for name, value in shown.items()}
            _log.info("%s", words, extra={"step": step, **numbers})
        if time.monotonic() - self.drawn > _REDRAW_S:
            self._draw()

    def _draw(self) -> None:
        losses({"": read_losses(self.path)}, self.out / "loss.png")
        self.drawn = time.monotonic()

    def close(self) -> None:
        """Draw the last curve and end TensorBoard's file."""
        if self.main:
            if self.path.stat().st_size:
                self._draw()
            self.board.close()


def speed(rate: float) -> str:
    """Steps a second in words; seconds a step where that is the larger number."""
    return f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.3g} s/step"


def duration(seconds: float) -> str:
    """A time in words, in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
