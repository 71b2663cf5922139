"""The files that designs are saved as, one writer each; :func:`design.save` puts them in place together."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data import reorder_lab
from .report import channel_words, entries
from .version import __version__

if TYPE_CHECKING:
    from .design import Design
    from .target import Target

RANKING = "score"


@dataclasses.dataclass(frozen=True)
class Content:
    """What the writers write.

    Args:
        designs, target: best first, and what they were made for.
        arrays: of ``designs.npz``.
        mat_convention: ``lab`` or ``metascatter``, of the maps in ``designs.mat``.
        ranking: what the designs were ranked by, in words.
    """

    designs: Sequence[Design]
    target: Target
    arrays: dict[str, np.ndarray]
    mat_convention: str = "lab"
    ranking: str = RANKING

    @functools.cached_property
    def figure(self) -> Any:
        """The best design's figure, drawn once for both of its files."""
        from .figure import draw

        return draw(self.designs[0], self.target)


def gds_label(design: Design) -> str:
    """The text beside a design on a mask: what it is, its digest and the height to etch."""
    return f"metascatter {design.digest} h={design.height_nm:g}nm"


def _write_npz(path: Path, content: Content) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, **content.arrays)  # type: ignore[arg-type]


def document(designs: Sequence[Design], target: Target, ranking: str = RANKING) -> dict[str, Any]:
    """What ``designs.json`` says of designs, best first, as JSON values."""
    return {
        "target": target.name,
        "metascatter": __version__,
        "score": "misrouted power: the share of the light that does not go where the target wants it; 0 is exact, 1 the worst",
        "ranked_by": ranking,
        "pattern_axes": "row i is x in [i, i+1] pixels, character j is y in [j, j+1] pixels, 1 is a pillar",
        "order_axes": "order (m, n) has the transverse wavevector (+2 pi m / period_x, +2 pi n / period_y) added to the incident one",
        "geometry": designs[0].geometry.to_dict(),
        **channel_words(designs, target),
        "designs": entries(designs, target),
    }


def _write_json(path: Path, content: Content) -> None:
    words = document(content.designs, content.target, content.ranking)
    path.write_text(json.dumps(words, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_mat(path: Path, content: Content) -> None:
    from scipy.io import savemat

    arrays, count = content.arrays, len(content.designs)
    names = [key for key in ("h", "score", "verified", "seed", "candidate", "refined", "uncertainty") if key in arrays]
    columns: dict[str, np.ndarray] = {key: arrays[key].astype(np.float64)[:, None] for key in names}
    # MATLAB drops a third axis of length 1; so does the file, and one design reads as a target or a sample of the lab's.
    keys = [key for key in arrays if key.startswith(("Rm", "Tm"))]
    stacks = {key: reorder_lab(arrays[key]) if content.mat_convention == "lab" else arrays[key] for key in keys}
    maps = {key: np.moveaxis(stack, 0, -1) if count > 1 else stack[0] for key, stack in stacks.items()}
    worst = [math.nan if design.tolerance is None else design.tolerance.worst.score for design in content.designs]
    if not all(map(math.isnan, worst)):
        columns["worst_case"] = np.array(worst)[:, None]
    stream = io.BytesIO()
    savemat(
        stream,
        {
            "xx": arrays["xx"].reshape(count, -1).astype(np.float64),
            **columns,
            **maps,
            "convention": content.mat_convention,
            "geometry": str(arrays["geometry"]),
            "target": content.target.name,
        },
        do_compression=True,
    )
    # The first 116 bytes are free text in which SciPy writes the time; without it equal designs are equal files.
    written = stream.getvalue()
    path.write_bytes(f"MATLAB 5.0 MAT-file, written by metascatter {__version__}".encode().ljust(116) + written[116:])


def _write_picture(path: Path, content: Content) -> None:
    from .pictures import design_picture

    design_picture(content.designs, content.target, path)


def _write_figure(path: Path, content: Content) -> None:
    from .figure import write

    write(content.figure, path)


def _write_gds(path: Path, content: Content) -> None:
    from .physics.gds import write_gds

    write_gds(content.arrays["xx"], content.designs[0].geometry, path, labels=[gds_label(design) for design in content.designs])


# Name, the package it needs beyond the base, and the writer. The last one written takes its place first, designs.npz last of all.
WRITERS: tuple[tuple[str, str | None, Callable[[Path, Content], None]], ...] = (
    ("designs.npz", None, _write_npz),
    ("designs.json", None, _write_json),
    ("designs.mat", None, _write_mat),
    ("designs.png", "matplotlib", _write_picture),
    ("designs.gds", "gdstk", _write_gds),
    ("design.png", "matplotlib", _write_figure),
    ("design.svg", "matplotlib", _write_figure),
)
