"""What commands tell on stderr: lines for people, and with ``--log-format json`` nothing but JSON, whoever writes."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from runtime import console, logs
from runtime.errors import BackendError

Run = Callable[..., Result]


def records(text: str) -> list[dict[str, Any]]:
    """Lines of JSON, with what every record has."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(record) for record in found)
    return found


@pytest.fixture
def talking() -> Iterator[Callable[..., Result]]:
    """A group with a command that runs a given function."""
    work: list[Callable[[], object]] = []

    @click.group(cls=console.Group)
    @click.option("--log-level")
    @click.option("--log-format", default="text")
    def group(log_level: str | None, log_format: str) -> None:
        pass

    @group.command()
    def work_() -> None:
        work[0]()

    def run(function: Callable[[], object], *options: str) -> Result:
        work[:] = [function]
        return CliRunner().invoke(group, [*options, "work-"])

    before = logging.getLogger().handlers[:], sys.stderr
    yield run
    assert (logging.getLogger().handlers[:], sys.stderr) == before, "logging is as it was"


def chatter() -> None:
    """Everything that writes to stderr in one way or another."""
    console.status("said to people")
    logging.getLogger("runtime.backends").info("a detail")
    logging.getLogger("runtime.backends.kept").warning("a %s", "damage")
    logging.getLogger("asyncio").info("a detail of another package")
    logging.getLogger("asyncio").error("trouble of another package")
    warnings.warn("of Python", UserWarning, stacklevel=1)
    print("printed, ", file=sys.stderr, end="")
    print("in two parts", file=sys.stderr)
    print("half a line", file=sys.stderr, end="")


def test_text_is_for_people(talking: Callable[..., Result]) -> None:
    lines = talking(chatter).stderr.splitlines()
    assert lines[0] == "said to people"
    assert lines[1].endswith(" WARNING runtime.backends.kept: a damage")
    assert lines[2].endswith(" ERROR asyncio: trouble of another package")
    assert lines[3:] == ["Warning: of Python", "printed, in two parts", "half a line"]


def test_json_is_all_there_is(talking: Callable[..., Result]) -> None:
    found = [(record["level"], record["logger"], record["message"]) for record in records(talking(chatter, "--log-format", "json").stderr)]
    assert found == [
        ("INFO", "runtime.console", "said to people"),
        ("WARNING", "runtime.backends.kept", "a damage"),
        ("ERROR", "asyncio", "trouble of another package"),
        ("WARNING", "runtime.console", "of Python"),
        ("INFO", "stderr", "printed, in two parts"),
        ("INFO", "stderr", "half a line"),
    ]


@pytest.mark.parametrize(
    ("level", "messages"),
    [
        ("debug", ["said to people", "a detail", "a damage", "trouble of another package", "of Python"]),
        ("info", ["said to people", "a detail", "a damage", "trouble of another package", "of Python"]),
        ("warning", ["a damage", "trouble of another package", "of Python"]),
        ("error", ["trouble of another package"]),
    ],
)
def test_a_level_holds_for_what_commands_say_too(level: str, messages: list[str], talking: Callable[..., Result]) -> None:
    found = records(talking(chatter, "--log-level", level, "--log-format", "json").stderr)
    assert [record["message"] for record in found if record["logger"] != "stderr"] == messages


def fail(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (BackendError("no engine; install one"), 1, "no engine; install one"),
        (click.UsageError("--this is for that; leave it out"), 2, "--this is for that; leave it out"),
        (FileNotFoundError(2, "No such file or directory", "here.txt"), 1, "here.txt: No such file or directory"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ],
)
def test_an_error_is_one_record(error: BaseException, status: int, words: str, talking: Callable[..., Result]) -> None:
    done = talking(fail(error), "--log-format", "json")
    assert done.exit_code == status
    [record] = records(done.stderr)
    assert (record["level"], record["message"]) == ("ERROR", words)


def test_a_fault_of_ours_is_one_record_with_its_traceback(talking: Callable[..., Result]) -> None:
    done = talking(fail(ZeroDivisionError("by us")), "--log-format", "json")
    assert done.exit_code == 1
    [record] = records(done.stderr)
    assert record["level"] == "CRITICAL"
    assert "ZeroDivisionError: by us" in record["exc_info"]
    assert isinstance(talking(fail(ZeroDivisionError("by us"))).exception, ZeroDivisionError), "and as text Python's own"


def test_threads_do_not_mix_their_lines(talking: Callable[..., Result]) -> None:
    meet = threading.Barrier(2)

    def write(name: str) -> None:
        meet.wait()
        for _ in range(50):
            sys.stderr.write(name)
        sys.stderr.write("\n")

    def both() -> None:
        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted(record["message"] for record in records(talking(both, "--log-format", "json").stderr)) == ["a" * 50, "b" * 50]


def test_what_logging_itself_complains_of_is_not_logged_again() -> None:
    """By which it would never end: a handler that writes to the very stream whose lines are records."""
    stream = io.StringIO()
    lines = logs._Lines(stream)
    handler = logging.StreamHandler(lines)
    logging.getLogger("stderr").addHandler(handler)
    try:
        lines.write("once\n")
    finally:
        logging.getLogger("stderr").removeHandler(handler)
    assert stream.getvalue() == "once\n"


def test_no_bars_in_json(talking: Callable[..., Result]) -> None:
    seen: list[bool] = []
    talking(lambda: seen.append(sys.stderr.isatty()), "--log-format", "json")
    assert seen == [False]


@pytest.mark.usefixtures("no_picture")
def test_training_exporting_and_designing_speak_json(
    run: Run,
    small_data: Path,
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    ok: Callable[[Result], Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The installed command's group is the same; what it prints as its result stays on stdout."""
    network = {"size": 5, "orders": 3, "channels": 16, "components": 4, "hidden": 8, "blocks": 1, "tokens": 4, "embedding": 8}
    recipe: dict[str, Any] = {"base": "default", "epochs": 1, "batch_size": 64, "warmup_steps": 1, "precision": "fp32", "sampling_steps": 2}
    recipe["network_arguments"] = network
    (tmp_path / "tiny.json").write_text(json.dumps(recipe))
    training = ["train", "--data", small_data, "--recipe", tmp_path / "tiny.json", "--out", tmp_path / "run", "--pictures-every", 0]
    trained = ok(run("--log-format", "json", *training))
    [row] = [record for record in records(trained.stderr) if record["logger"] == "train.log"]
    assert row["epoch"] == 1
    assert {"step", "loss", "validation_loss", "lr", "rate"} <= set(row)
    assert "steps/s" in row["message"] or "s/step" in row["message"]
    assert trained.stdout.startswith("trained: ")
    monkeypatch.setattr("export.bundle.export", lambda run, out, say, **settings: say(f"wrote {out}"))
    exported = ok(run("--log-format", "json", "export", tmp_path / "run", "--out", tmp_path / "bundle"))
    assert [record["message"] for record in records(exported.stderr)] == [f"wrote {tmp_path / 'bundle'}"]
    command = ["infer", target, "--bundle", small_bundle, "--out", tmp_path / "designs", "-n", 2, "--steps", 2, "--no-refine"]
    designed = ok(run("--log-format", "json", "--log-level", "info", *command, "--backend", "onnxruntime"))
    assert [record["logger"] for record in records(designed.stderr)] == ["runtime.backends"]
    assert ok(run("--log-level", "error", *command, "--backend", "onnxruntime")).stderr == ""
