"""What a command tells on stderr, as lines for people or as JSON for machines.

The library's modules log under their own names and never print; here is who listens while a command runs. What the command itself says, and
the rows of a training run, are records as well: shown from INFO on unless the user asks for another level, where the library's own are
shown from WARNING on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_HERE = __name__.rpartition(".")[0]  # 'runtime' in a checkout, 'metascatter' installed
_SPOKEN = (f"{_HERE}.console", f"{_HERE}.physics.simulate", f"{_HERE}.physics.add", "train", "export")
_QUIET = (_HERE, "uvicorn", "nicegui")


@contextlib.contextmanager
def to_stderr(level: str | None = None, form: str = "text") -> Iterator[None]:
    """Records on stderr for the block; afterwards logging is as it was.

    Args:
        level: one of ``LEVELS`` for everything; None shows what commands say, and warnings.
        form: ``text``, or ``json`` for one object a line. With ``json`` whatever else Python code writes to ``sys.stderr``, a progress bar
            or another library's message, becomes a record of the logger ``stderr``; ``sys.stderr`` is no terminal then, so that there are
            no bars.
    """
    root, stream = logging.getLogger(), sys.stderr
    handler: logging.Handler = _Text() if form == "text" else _json(stream)
    spoken, quiet = (level.upper(), level.upper()) if level else ("INFO", "WARNING")
    wanted = dict.fromkeys(_SPOKEN, spoken) | dict.fromkeys(_QUIET, quiet)
    before = {name: logging.getLogger(name).level for name in wanted}
    for name, least in wanted.items():
        logging.getLogger(name).setLevel(least)
    handler.addFilter(_others(level))
    root.addHandler(handler)
    lines = _Lines(stream) if form == "json" else None
    if lines is not None:
        sys.stderr = lines
    try:
        yield
    finally:
        if lines is not None:
            lines.end()
            sys.stderr = stream
        root.removeHandler(handler)
        for name, number in before.items():
            logging.getLogger(name).setLevel(number)


def _others(level: str | None) -> Any:
    """Other packages' records from WARNING on, and from a higher level where one is asked for: their details are nobody's here."""
    least = max(logging.WARNING, logging.getLevelName(level.upper()) if level else 0)

    def shown(record: logging.LogRecord) -> bool:
        return record.levelno >= least or record.name.partition(".")[0] in (*_QUIET, "train", "export", "stderr")

    return shown


def _json(stream: TextIO) -> logging.Handler:
    from pythonjsonlogger.json import JsonFormatter

    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter("{levelname}{name}{message}", style="{", rename_fields={"levelname": "level", "name": "logger"}, timestamp="time")
    )
    return handler


class _Text(logging.Handler):
    """What commands say as it is, other records with time, level and name; on whatever ``sys.stderr`` is at the time."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        import click

        try:
            spoken = record.name.startswith(_SPOKEN)
            word = f"{record.levelname.capitalize()}: " if spoken and record.levelno >= logging.WARNING else ""
            click.echo(word + record.getMessage() if spoken else self.format(record), err=True)
        except Exception:
            self.handleError(record)


class _Lines(io.TextIOBase):
    """A ``sys.stderr`` whose lines are records. Each thread's are its own, so that two never mix."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._mine, self._log = stream, threading.local(), logging.getLogger("stderr")
        self._log.setLevel(logging.INFO)
        self._on = True

    def write(self, text: str) -> int:
        mine = self._mine
        # Behind the end, or where logging itself fails and says so, the words go where they always went.
        if not self._on or getattr(mine, "busy", False):
            return self._stream.write(text)
        *whole, mine.rest = (getattr(mine, "rest", "") + text).replace("\r", "\n").split("\n")
        self._tell(whole)
        return len(text)

    def end(self) -> None:
        """Tell what is left of this thread's, and be an ordinary stream from now on."""
        self._tell([getattr(self._mine, "rest", "")])
        self._on = False

    def _tell(self, lines: list[str]) -> None:
        self._mine.busy = True
        try:
            for line in lines:
                if line.strip():
                    self._log.info("%s", line.rstrip())
        finally:
            self._mine.busy = False

    def flush(self) -> None:
        self._stream.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors
