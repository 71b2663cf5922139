"""The loss curve a training run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.files import atomic_file


def loss_curve(metrics: Path, out: Path) -> None:
    """Training and validation loss of ``metrics.jsonl`` against epochs, as a PNG."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row["loss"] for row in rows], label="training (mean of the epoch)")
    axes.plot(epochs, [row["validation_loss"] for row in rows], label="validation (EMA weights)")
    axes.set(xlabel="epoch", ylabel="loss", title="Training loss")
    axes.grid(True, alpha=0.3)
    axes.legend(frameon=False)
    with atomic_file(out) as temporary:
        figure.savefig(temporary, dpi=120)
