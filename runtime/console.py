"""How the commands speak: errors in one sentence, warnings and progress on stderr, results alone on stdout."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from . import logs
from .errors import BundleError, DataError, GeometryError, MetascatterError, TargetError

if TYPE_CHECKING:
    from .design import Design

WRONG_INPUT = (TargetError, DataError, GeometryError, BundleError)
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_log = logging.getLogger(__name__)


class Group(click.Group):
    """Errors meant for people become one sentence and the contract's exit status: 2 for wrong input, 1 for work that failed."""

    def invoke(self, ctx: click.Context) -> Any:
        level, form = ctx.params.get("log_level"), ctx.params.get("log_format", "text")
        with logs.to_stderr(level, form), warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest: _log.warning("%s", message)
            try:
                return super().invoke(ctx)
            except MetascatterError as error:
                _log.error("%s", error)
                ctx.exit(2 if isinstance(error, WRONG_INPUT) else 1)
            except OSError as error:
                if error.errno == errno.EPIPE:  # who reads stdout has gone; click ends quietly
                    raise
                where = f"{error.filename}: " if error.filename else ""
                full = "; make room there, or choose another place" if error.errno in _FULL else ""
                _log.error("%s%s%s", where, error.strerror or error, full)
                ctx.exit(1)
            except (click.ClickException, click.Abort, KeyboardInterrupt, click.exceptions.Exit) as error:
                if form == "text" or isinstance(error, click.exceptions.Exit):
                    raise  # click says these itself, usage and all
                _log.error("%s", error.format_message() if isinstance(error, click.ClickException) else "interrupted")
                ctx.exit(getattr(error, "exit_code", 1))
            except Exception:
                if form == "text":
                    raise
                _log.critical("an error that nobody thought of", exc_info=True)
                ctx.exit(1)


def status(text: str) -> None:
    """A line for people, on stderr: stdout is for results. With ``--log-format json`` a record like others."""
    _log.info("%s", text)


def problem(text: str) -> None:
    """An error as a line for people, where the command goes on or ends by itself."""
    _log.error("%s", text)


def own_data(recipe: Mapping[str, Any], named: Any, what: str = "option '--data'") -> Any:
    """The data set that is named, or the recipe's own. Raises click.UsageError: neither, and ``what`` is missing."""
    source = named or recipe.get("data")
    if not source:
        raise click.UsageError(f"Missing {what}: the recipe of this bundle has no data of its own.")
    return source


def given(option: str) -> bool:
    """Whether an option of the command at work was written on the command line, rather than left at its default."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def check_writable(folder: Path) -> None:
    """Refuse an output folder before the work rather than after it; nothing is left there.

    Raises:
        DataError: the folder, or the nearest one above it that exists, cannot be written.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    try:
        # Permissions, read-only mounts and the access lists of Windows are only known to who tries.
        with tempfile.TemporaryDirectory(prefix=".metascatter-", dir=existing):
            pass
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error} ({existing}); choose a place you may write to") from None


def check_picture(path: Path, animated: bool = False) -> None:
    """Refuse, before any work, a figure of an unknown kind or in a place where none can be written; ``animated``: .gif will do.

    Raises:
        DataError: the suffix, or the place.
        BackendError: matplotlib is not installed.
    """
    from . import evaluate_picture

    if not (animated and path.suffix.lower() == ".gif"):
        evaluate_picture.check(path)
    check_writable(path.absolute().parent)


class Bars:
    """Progress on stderr, for a terminal only: one bar while sampling, one while solving."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.bars: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def step(self, done: int, total: int, estimate: object) -> None:
        """A denoising step is done."""
        self._move("sampling", "step", done, total)

    def solve(self, done: int, total: int) -> None:
        """A candidate is solved."""
        self._move("solving", "cell", done, total)

    def best(self, design: Design) -> None:
        """The best design so far is another: its misrouted power stands at the end of the solving bar."""
        self.bars["solving"].set_postfix_str(f"best {design.score:.3f}")

    def vary(self, done: int, total: int) -> None:
        """A variation of a design is solved."""
        self._move("tolerances", "cell", done, total)

    def _move(self, name: str, unit: str, done: int, total: int) -> None:
        from tqdm.auto import tqdm

        if name not in self.bars:
            self.bars[name] = tqdm(total=total, desc=self.prefix + name, unit=unit, disable=None, leave=False)
        self.bars[name].update(done - self.bars[name].n)
