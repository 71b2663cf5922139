"""The commands ``tolerance`` and ``gds``, and what ``infer`` is told about making its designs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .console import Bars
from .errors import DataError

if TYPE_CHECKING:
    from .making import Making


def read_making(values: dict[str, Any], verify: bool) -> Making:
    """The :class:`Making` of ``options.making``.

    Raises:
        click.UsageError: options that contradict each other or would do nothing.
    """
    from .fabrication import Limits
    from .making import Making

    limits = None
    limited = values["min_width_nm"] is not None or values["no_corners"]
    if values["fabricable"]:
        if not limited:
            raise click.UsageError("--fabricable needs to know what can be made: --min-width-nm W, --no-corners or both")
        limits = Limits(values["min_width_nm"] or 0.0, corners=not values["no_corners"])
    elif limited:
        raise click.UsageError("--min-width-nm and --no-corners are limits for --fabricable; add it")
    if not verify and (values["tolerance"] or values["robust"]):
        raise click.UsageError("--tolerance and --robust solve Maxwell's equations; leave out --no-verify")
    return Making(limits, values["tolerance"] or values["robust"], values["robust"])


@click.command()
@options.saved_designs
@options.workers
@options.as_json
def tolerance(designs_path: Path, target_path: Path, convention: str | None, workers: int | None, as_json: bool) -> None:
    """Solve what designs do where the lab is a little off, and say what they cost to make.

    Twelve solves a design: height 5 % off, edges 10 and 20 nm, wavelength 10 nm, incidence 1 degree.

    \b
    metascatter tolerance designs/designs.npz --target deflector.json
    """
    from . import design, fabrication, report
    from . import tolerance as room
    from .target import Target, check_geometry

    target = Target.load(target_path, convention)
    designs = design.read(designs_path)
    check_geometry(target, designs[0].geometry, "designs'", "give the target they were made for")
    with Bars() as bars:
        designs = room.tolerances(designs, target, workers=workers, on_done=bars.solve)
    if as_json:
        click.echo(json.dumps({"target": target.name, "designs": report.entries(designs, target)}, indent=2))
    else:
        click.echo(f"{fabrication.table(designs)}\n\n{room.table(designs)}")


@click.command()
@click.argument("designs_path", metavar="DESIGNS.npz", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The .gds or .oas to write.")
@click.option("--design", "rank", type=click.IntRange(1), metavar="K", help="Only the design of this rank; default: all.")
@click.option(
    "--area-um",
    type=(click.FloatRange(0, min_open=True), click.FloatRange(0, min_open=True)),
    metavar="X Y",
    help="Area to fill with whole unit cells; default: about 100 x 100.",
)
@click.option("--layer", type=click.IntRange(0, 32767), default=1, show_default=True, help="Of the pillars.")
@click.option("--datatype", type=click.IntRange(0, 32767), default=0, show_default=True)
@click.option(
    "--unit-nm", type=click.FloatRange(0, min_open=True), metavar="U", help="Database unit; default: 1, or less where the period needs it."
)
def gds(
    designs_path: Path,
    out: Path,
    rank: int | None,
    area_um: tuple[float, float] | None,
    layer: int,
    datatype: int,
    unit_nm: float | None,
) -> None:
    """Write designs as GDSII or OASIS: a cell of rectangles each, and an array of it over an area.

    \b
    metascatter gds designs/designs.npz --out mask.gds --design 1 --area-um 500 500
    metascatter gds designs/designs.npz --out mask.oas --layer 7 --datatype 2 --unit-nm 0.5
    """
    import numpy as np

    from . import design
    from .design_files import gds_label
    from .physics.gds import default_repeat, repeat_within, write_gds

    if out.suffix.lower() not in (".gds", ".oas"):
        raise DataError(f"{out} ends neither in .gds, for GDSII, nor in .oas, for OASIS; choose one of them")
    designs = design.read(designs_path)
    ranks = range(1, len(designs) + 1)
    if rank is not None:
        if rank > len(designs):
            raise DataError(f"{designs_path} holds {len(designs)} designs; there is none of rank {rank}")
        designs, ranks = designs[rank - 1 : rank], range(rank, rank + 1)
    geometry = designs[0].geometry
    repeat = default_repeat(geometry) if area_um is None else repeat_within(geometry, area_um)
    write_gds(
        np.stack([one.pattern for one in designs]),
        geometry,
        out,
        repeat,
        labels=[gds_label(one) for one in designs],
        ranks=ranks,
        layer=layer,
        datatype=datatype,
        unit_nm=unit_nm,
    )
    x, y = (count * period / 1000 for count, period in zip(repeat, geometry.period_nm, strict=True))
    for number, one in zip(ranks, designs, strict=True):
        click.echo(
            f"DESIGN_{number}: {repeat[0]} x {repeat[1]} cells, {x:g} x {y:g} µm, layer {layer}/{datatype}, label '{gds_label(one)}'"
        )
    click.echo(f"  {'OASIS' if out.suffix.lower() == '.oas' else 'GDSII':<8}{out}")
