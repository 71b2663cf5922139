"""Every command that the README and the documents show is one that the program takes."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest

import cli
from runtime.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
BARE = {"recipes.md"}  # documents whose commands stand without the program's name
WORD = r"(?:simulate|train|export|infer|verify|evaluate|doctor|bench|plot|serve|gds|tolerance)"


def commands(path: Path) -> list[str]:
    """The commands of a document: whole lines of its code blocks, and what stands in backticks."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^    ((?:python cli\.py|metascatter) .*)$", text, re.MULTILINE)
    found += re.findall(r"`((?:(?:python )?cli\.py |metascatter )" + WORD + r"\b[^`]*)`", text)
    if path.name in BARE:
        found += re.findall(r"`(" + WORD + r" [^`]*)`", text)
    # Without comments, and without what the shell does with the output.
    return [re.split(r" +# | > | < | \| ", line)[0].strip() for line in found if "..." not in line]


def shown() -> list[tuple[str, str]]:
    return [(path.name, line) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) for line in commands(path)]


@pytest.mark.parametrize(("document", "line"), shown())
def test_a_command_that_is_shown_is_taken(document: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # nothing of what is named is there, and nothing is left behind
    words = [word for word in shlex.split(line) if word not in ("python", "cli.py", "metascatter")]
    context: click.Context = cli.group.make_context("cli.py", words, resilient_parsing=False)
    rest = [*context._protected_args, *context.args]
    command: click.Command = cli.group
    while isinstance(command, click.Group):
        name, *rest = rest
        command = command.commands[name]
    # A mention may leave out what a whole command needs, and the files that are named are not there.
    with contextlib.suppress(click.MissingParameter, DataError):
        command.make_context(name, rest)


def test_there_are_commands_to_check() -> None:
    assert len(shown()) > 40
