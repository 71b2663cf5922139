"""A sweep's pictures: all that is written on them lies on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.condition import CONDITIONINGS
from train import sweep_report


def test_a_picture_of_one_column_cuts_nothing_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every title lies within the page, and one epoch is no fraction of an epoch."""
    from matplotlib.figure import Figure

    row = {"status": "done", "validation_loss": 0.05, "loss": 0.08, "yardstick": 0.05, "steps": 8, "seconds": 1.0, "epochs": 1}
    results = {
        "axes": {"network_arguments.conditioning": list(CONDITIONINGS)},
        "budget": "epochs",
        "yardstick": "validation MSE of the prediction",
        "runs": {kind: {**row, "settings": {"network_arguments.conditioning": kind}, "recipe": {}} for kind in CONDITIONINGS},
    }
    drawn: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *arguments: Any, **settings: Any) -> None:
        save(figure, *arguments, **settings)
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", saved)
    for kind in CONDITIONINGS:
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "metrics.jsonl").write_text(json.dumps({"epoch": 1.0, "loss": 0.08, "validation_loss": 0.05}) + "\n")
    sweep_report.heat_maps(tmp_path / "sweep.png", results)
    sweep_report.loss_curves(tmp_path / "loss_curves.png", tmp_path, results)
    for figure in drawn:
        page = figure.get_tightbbox()
        over = (-page.x0, -page.y0, page.x1 - figure.get_figwidth(), page.y1 - figure.get_figheight())
        assert max(over) < 0.02, "inches; a pixel or two are rounding"
    (curves,) = drawn[1].axes
    assert [tick for tick in curves.get_xticks() if tick != round(tick)] == []
