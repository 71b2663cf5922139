"""The command line is a contract: results alone on stdout, one sentence for a mistake, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy.io import savemat

from cli import group
from runtime.data import load as load_data
from runtime.data import reorder_lab
from runtime.design import read
from runtime.target import Target

ROOT = Path(__file__).parents[1]
FIVE = ["designs.gds", "designs.json", "designs.mat", "designs.npz", "designs.png"]
COMMANDS = ["simulate", "train", "export", "infer", "verify", "evaluate", "doctor", "bench"]
QUICK = ["-n", "6", "--steps", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASCATTER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the picture: drawing it takes a second."""
    monkeypatch.setattr("runtime.pictures.design_picture", lambda designs, target, path: path.write_bytes(b"picture"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments], prog_name="cli.py")


def spawn(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """cli.py in a process of its own, as a person starts it; ``before`` runs first."""
    code = f"import runpy, sys; sys.argv = ['cli.py', *sys.argv[1:]]; {before}\nrunpy.run_path('cli.py', run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, arguments)] if before else [sys.executable, "cli.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.stderr
    return result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sentence(result: Result | subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of a refusal, once stdout is empty and the exit status as it must be."""
    found = result.exit_code if isinstance(result, Result) else result.returncode
    if isinstance(result, Result):
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert found == status, f"exit status {found}: {result.stderr}"
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture(scope="module")
def sample(small_data: Path) -> dict[str, np.ndarray]:
    """A sample that the small bundle can be asked for."""
    data = load_data(small_data)
    k = int(np.flatnonzero((data.h > 150) & (data.h < 350))[0])
    return {"Rm": data.Rm[k], "Tm": data.Tm[k], "h": np.float64(data.h[k]), "geometry": np.array(data.geometry.to_json())}


@pytest.fixture
def target(tmp_path: Path, sample: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "wish.npz"
    np.savez(path, **sample)  # type: ignore[arg-type]
    return path


@pytest.fixture
def deflector(tmp_path: Path) -> Path:
    path = tmp_path / "deflector.json"
    path.write_text('{"height_nm": 300, "orders": {"T(1,0)": 0.2, "T(0,0)": 0.1}}')
    return path


def test_infer_leaves_five_files_and_prints_a_table(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    result = ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--top", 3))
    assert names(tmp_path / "out") == FIVE
    assert all((tmp_path / "out" / name).stat().st_size > 100 for name in FIVE)
    assert (tmp_path / "out" / "designs.png").read_bytes().startswith(b"\x89PNG")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("wish: pillars ")
    assert "misrouted power" in lines[1]
    assert "wanted" in lines[2]
    assert [line.split()[0] for line in lines[3:6]] == ["1", "2", "3"]
    assert all("verified" in line and "not verified" not in line for line in lines[3:6])
    assert re.search(r"6 candidates in [0-9.]+ s on cpu", result.stdout)
    for name in FIVE:
        assert str(tmp_path / "out" / name) in result.stdout
    designs = read(tmp_path / "out" / "designs.npz")
    assert [f"{design.score:.3f}" for design in designs] == [line.split()[1] for line in lines[3:6]]


def test_infer_json_is_the_whole_of_stdout(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    done = spawn("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no bar where stderr is no terminal"
    document = json.loads(done.stdout)
    assert document["target"] == "wish"
    assert sorted(Path(path).name for path in document["files"]) == FIVE
    assert document["missing"] == {}
    assert [design["rank"] for design in document["designs"]] == [1, 2, 3, 4]
    stored = read(tmp_path / "out" / "designs.npz")
    for design, kept in zip(document["designs"], stored, strict=True):
        assert design["score"] == kept.score
        assert design["verified"] is True
        assert design["pattern"] == ["".join(map(str, row)) for row in kept.pattern.tolist()]


@pytest.mark.usefixtures("no_picture")
def test_infer_again_gives_the_same_designs(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        ok(run("infer", target, "--out", tmp_path / folder, "--bundle", small_bundle, *QUICK, "--seed", 5))
    for name in FIVE:
        assert name == "designs.gds" or (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    ok(run("infer", target, "--out", tmp_path / "a", "--bundle", small_bundle, *QUICK, "--seed", 6))
    assert names(tmp_path / "a") == FIVE
    assert read(tmp_path / "a" / "designs.npz")[0].seed == 6


@pytest.mark.usefixtures("no_picture")
def test_several_targets_are_a_list_and_folders(small_bundle: Path, target: Path, deflector: Path, tmp_path: Path) -> None:
    result = ok(run("infer", target, deflector, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--json"))
    documents = json.loads(result.stdout)
    assert [document["target"] for document in documents] == ["wish", "deflector"]
    assert names(tmp_path / "out") == ["deflector", "wish"]
    for document in documents:
        assert names(tmp_path / "out" / document["target"]) == FIVE
        assert document["directory"] == str(tmp_path / "out" / document["target"])
    table = ok(run("infer", target, deflector, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK)).stdout
    assert "deflector: pillars 300 nm high, 2 orders asked, the others free" in table
    assert "T(1,0)" in table


@pytest.mark.usefixtures("no_picture")
def test_infer_without_verification(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    result = ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--no-verify"))
    assert result.stdout.count("not verified") == 4
    assert "not solved" in result.stdout
    document = json.loads(
        ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--no-verify", "--json")).stdout
    )
    for design in document["designs"]:
        assert (design["score"], design["verified"]) == (None, False)
        assert all(order["achieved"] is None for order in design["strongest_orders"])


@pytest.mark.usefixtures("no_picture")
def test_lab_files_are_read_in_the_labs_convention(small_bundle: Path, sample: dict[str, np.ndarray], tmp_path: Path) -> None:
    lab = {"Rm": reorder_lab(sample["Rm"]).reshape(1, -1), "Tm": reorder_lab(sample["Tm"]).reshape(1, -1), "h": sample["h"]}
    savemat(tmp_path / "lab.mat", lab)
    document = json.loads(
        ok(run("infer", tmp_path / "lab.mat", "--out", tmp_path / "o", "--bundle", small_bundle, *QUICK, "--json")).stdout
    )
    wanted = Target.from_arrays(sample["Rm"], sample["Tm"], float(sample["h"]))
    for order in document["designs"][0]["strongest_orders"]:
        assert order["wanted"] == pytest.approx(wanted.wanted(order["side"], order["m"], order["n"]), abs=1e-6)


def mistakes(sample: dict[str, np.ndarray]) -> dict[str, tuple[str, dict[str, Any], str]]:
    """File name, content and what the sentence must say, per mistake of a target."""

    def maps(**more: Any) -> dict[str, Any]:
        return {**sample, **more}

    nan, low, high = sample["Rm"].copy(), sample["Tm"].copy(), sample["Tm"].copy()
    nan[1, 2], low[0, 0] = np.nan, -0.02
    high[3, 3] += 1.06 - sample["Rm"].sum() - high.sum()
    return {
        "missing key": ("wish.npz", {k: v for k, v in sample.items() if k != "Tm"}, "lacks the key 'Tm'"),
        "wrong shape": ("wish.npz", maps(Rm=sample["Rm"][:, :6]), r"'Rm' has shape \(7, 6\)"),
        "even side": ("wish.npz", maps(Rm=sample["Rm"][:6, :6]), r"'Rm' has shape \(6, 6\)"),
        "two sizes": ("wish.npz", maps(Rm=sample["Rm"][1:6, 1:6]), r"'Rm' has shape \(5, 5\) and 'Tm' \(7, 7\)"),
        "NaN": ("wish.npz", maps(Rm=nan), r"'Rm' holds nan at \[1, 2\]"),
        "infinity": ("wish.npz", maps(h=np.inf), "'h'"),
        "negative": ("wish.npz", maps(Tm=low), r"'Tm'.*-0\.02"),
        "too much": ("wish.npz", maps(Tm=high), "'Rm' and 'Tm' add up to 1.*scale them down"),
        "pickled": ("wish.npz", maps(Rm=np.array([{"a": 1}], object)), "pickled Python objects"),
        "too tall": ("wish.npz", maps(h=np.float64(500)), "the height is 500 nm, outside the 1.* to 3.* nm"),
        "too flat": ("wish.npz", maps(h=np.float64(20)), "the height is 20 nm"),
        "other geometry": ("wish.npz", maps(geometry=np.array("{}")), "geometry lacks the field 'wavelength_nm'"),
        "missing in mat": ("wish.mat", {"Rm": sample["Rm"], "Tm": sample["Tm"]}, "lacks the key 'h'"),
        "another ending": ("wish.csv", {}, r"a target is a \.mat, \.npz or \.json file"),
        "no json": ("wish.json", {}, "is not JSON"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        *("missing key", "wrong shape", "even side", "two sizes", "NaN", "infinity", "negative", "too much", "pickled", "too tall"),
        *("too flat", "other geometry", "missing in mat", "another ending", "no json"),
    ],
)
def test_a_wrong_target_is_one_sentence_and_status_2(
    mistake: str, small_bundle: Path, sample: dict[str, np.ndarray], tmp_path: Path
) -> None:
    name, content, words = mistakes(sample)[mistake]
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".mat":
        savemat(path, content)
    else:
        path.write_text("{not json")
    said = sentence(run("infer", path, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK), 2)
    assert re.search(words, said), said
    assert "wish" in said, "the sentence names the file"
    assert not (tmp_path / "out").exists()


def test_one_wrong_target_among_several_stops_before_any_work(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    said = sentence(run("infer", target, tmp_path / "nowhere.npz", "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK), 2)
    assert re.search(r"nowhere\.npz does not exist", said)
    assert not (tmp_path / "out").exists()


def test_two_targets_of_one_name(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = shutil.copy(target, tmp_path / "b" / "wish.npz")
    said = sentence(run("infer", target, other, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK), 2)
    assert "two targets are called 'wish'" in said


@pytest.mark.parametrize("name", ["nowhere.npz", "nowhere.mat", "nowhere.json", "n" * 300 + ".json", "n" * 300 + ".npz"])
def test_a_target_that_is_not_there(name: str, small_bundle: Path, tmp_path: Path) -> None:
    result = run("infer", tmp_path / name, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK)
    assert result.exit_code in (1, 2)
    sentence(result, result.exit_code)
    if len(name) < 255:
        assert result.exit_code == 2
        assert re.search(rf"{name} does not exist", result.stderr)
    assert not (tmp_path / "out").exists()


def test_unknown_and_corrupted_bundles(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", tmp_path / "no-bundle", *QUICK), 2)
    assert re.search(r"there is no bundle at .*no-bundle", said)
    for name in ("denoiser.onnx", "scheduler_config.json", "manifest.json"):
        folder = Path(shutil.copytree(small_bundle, tmp_path / name / "bundle"))
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", folder, *QUICK), 2)
        assert str(folder / name) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="/proc")
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/metascatter", "/proc/a/b", "/dev/null/x"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(place: str, small_bundle: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run("infer", target, "--out", tmp_path / place, "--bundle", small_bundle, "-n", "100000")  # hours, if it began
    said = sentence(result, 2)
    assert f"cannot write {tmp_path / place}" in said
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file", "wish.npz"]


@pytest.mark.usefixtures("no_picture")
def test_a_result_file_that_cannot_be_replaced(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "designs.npz").mkdir(parents=True)
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK), 2)
    assert "designs.npz" in said
    assert not [name for name in names(tmp_path / "out") if name.startswith(".")], "no temporary is left"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--seed", 2**63], 2, "--seed"),
        (["--seed", -1], 2, "--seed"),
        (["-n", 0], 2, "-n"),
        (["--steps", 5000], 2, "num_steps is 5000"),
        (["--guidance-scale", "nan"], 2, "guidance_scale is nan"),
        (["--device", "tpu"], 2, "--device"),
        (["--backend", "tensorflow"], 2, "--backend"),
        (["--precision", "fp8"], 2, "--precision"),
        (["--scheduler", "euler"], 2, "--scheduler"),
        (["--frobnicate"], 2, "--frobnicate"),
    ],
)
def test_wrong_options(options: list[object], status: int, words: str, small_bundle: Path, target: Path, tmp_path: Path) -> None:
    result = run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, "--device", "cpu", *options)
    assert result.exit_code == status
    assert words in result.stderr.splitlines()[-1]
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_gpu_asked_for_by_name_is_not_replaced(small_bundle: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, "--device", "cuda"), 1)
    assert "metascatter[gpu]" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("excursion", ["negative", "total"])
def test_small_excursions_are_warned_about(excursion: str, small_bundle: Path, sample: dict[str, np.ndarray], tmp_path: Path) -> None:
    Tm = sample["Tm"].copy()
    if excursion == "negative":
        Tm[3, 4] = -0.005
    else:
        Tm *= 1.03 / (sample["Rm"].sum() + Tm.sum())
        Tm += np.where(Tm == Tm.max(), 1.03 - sample["Rm"].sum() - Tm.sum(), 0)
    np.savez(tmp_path / "wish.npz", **{**sample, "Tm": Tm})  # type: ignore[arg-type]
    result = ok(run("infer", tmp_path / "wish.npz", "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--json"))
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Warning: ")
    assert "wish" in lines[0]
    assert json.loads(result.stdout)["designs"]


def test_mistakes_in_a_process_of_its_own(small_bundle: Path, tmp_path: Path) -> None:
    """The real thing once: the exit status of the process and both of its streams."""
    done = spawn("infer", tmp_path / "nowhere.mat", "--out", tmp_path / "out", "--bundle", small_bundle)
    assert "nowhere.mat does not exist" in sentence(done, 2)


@pytest.mark.usefixtures("no_picture")
def test_verify_gives_the_scores_again(small_bundle: Path, target: Path, tmp_path: Path) -> None:
    made = json.loads(ok(run("infer", target, "--out", tmp_path, "--bundle", small_bundle, *QUICK, "--json")).stdout)
    result = ok(run("verify", tmp_path / "designs.npz", "--target", target, "--json"))
    document = json.loads(result.stdout)
    assert [d["score"] for d in document["designs"]] == pytest.approx([d["score"] for d in made["designs"]], abs=1e-12)
    assert all(d["verified"] for d in document["designs"])
    table = ok(run("verify", tmp_path / "designs.npz", "--target", target)).stdout
    assert f"{document['designs'][0]['score']:.3f}" in table
    assert "does not exist" in sentence(run("verify", tmp_path / "x.npz", "--target", target), 2)
    assert "lacks the key" in sentence(run("verify", target, "--target", target), 2)
    assert "does not exist" in sentence(run("verify", tmp_path / "designs.npz", "--target", tmp_path / "x.json"), 2)


def test_evaluate_has_the_contracts_fields(small_bundle: Path, small_data: Path, tmp_path: Path) -> None:
    common = ["evaluate", "--data", small_data, "--bundle", small_bundle, "--limit", 2, "-n", 8, "--steps", 3, "--device", "cpu"]
    result = ok(run(*common, "--train-data", small_data, "--json"))
    document = json.loads(result.stdout)
    assert document["targets"] == 2
    assert {"best_of_1", "best_of_8", "best_of_64"} <= set(document["oracle"])
    assert {"random_best_of_64", "nearest_training"} <= set(document["baselines"])
    summaries = [document["ranked"], document["oracle"]["best_of_1"], document["oracle"]["best_of_8"], *document["baselines"].values()]
    for summary in summaries:
        assert {"median", "q25", "q75", "under", "solves"} <= set(summary)
        assert set(summary["under"]) == {"0.02", "0.05", "0.10"}
        assert 0 <= summary["q25"] <= summary["median"] <= summary["q75"] <= 1
    assert document["oracle"]["best_of_8"]["median"] <= document["oracle"]["best_of_1"]["median"]
    assert document["oracle"]["best_of_64"] is None, "there were 8 candidates"
    assert document["baselines"]["nearest_training"]["median"] < 1e-4, "the targets are in their own training data"
    assert {"refined", "by_height_nm", "lab_scores"} <= set(document)
    assert "Medians by height" in ok(run(*common)).stdout
    assert "does not exist" in sentence(run("evaluate", "--data", tmp_path / "x.npz", "--bundle", small_bundle), 2)


def test_doctor(small_bundle: Path, tmp_path: Path) -> None:
    document = json.loads(ok(run("doctor", "--bundle", small_bundle, "--json")).stdout)
    assert document["ok"] is True
    assert "self-test passed" in ok(run("doctor", "--bundle", small_bundle)).stdout
    result = run("doctor", "--bundle", tmp_path / "nowhere", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["ok"] is False
    assert re.fullmatch(r"Error: there is no bundle at .*nowhere.*\n", result.stderr)


def test_simulate_makes_and_solves_data(tmp_path: Path) -> None:
    settings = ["--harmonics", 3, "--period-nm", 2000, "--workers", 1]
    done = spawn("simulate", "--count", 3, "--seed", 1, "--height-nm", 100, 200, "--out", tmp_path / "a.npz", *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "a.npz")
    assert names(tmp_path) == ["a.npz"]
    data = load_data(tmp_path / "a.npz")
    assert (len(data), data.geometry.harmonics, data.geometry.period_nm) == (3, 3, (2000.0, 2000.0))
    assert ((data.h >= 100) & (data.h <= 200)).all()
    done = spawn("simulate", "--patterns", tmp_path / "a.npz", "--out", tmp_path / "b.npz", *settings)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(load_data(tmp_path / "b.npz").Tm, data.Tm, atol=1e-6)


def test_simulate_refuses_in_words(tmp_path: Path) -> None:
    assert "give either --count or --patterns" in run("simulate", "--out", tmp_path / "x.npz").stderr
    said = sentence(run("simulate", "--count", 2, "--height-nm", 300, 100, "--out", tmp_path / "x.npz"), 2)
    assert "height" in said
    assert "does not exist" in sentence(run("simulate", "--patterns", tmp_path / "p.npz", "--out", tmp_path / "x.npz"), 2)
    assert names(tmp_path) == []


def test_every_command_of_the_contract_is_listed() -> None:
    listed = {line.split()[0] for line in ok(run("--help")).stdout.split("Commands:")[1].splitlines() if line.strip()}
    assert listed == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_to_copy(command: str) -> None:
    text = ok(run(command, "--help")).stdout
    examples = re.findall(rf"^ +(?:metascatter|python cli\.py) {command}\b(.*)$", text, re.M)
    assert examples, f"{command} --help has no example"
    known = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", text.split("Options:")[1]))
    for example in examples:
        assert set(re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", example)) <= known, f"{command}: the example uses an unknown flag"


def test_version() -> None:
    from runtime.version import __version__

    assert ok(run("--version")).stdout == f"metascatter, version {__version__}\n"


@pytest.mark.parametrize("missing", [("matplotlib",), ("gdstk",), ("matplotlib", "gdstk")])
def test_files_whose_extra_is_missing_are_named(
    missing: tuple[str, ...],
    small_bundle: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if "matplotlib" not in missing:
        request.getfixturevalue("no_picture")
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    absent = {{"matplotlib": "designs.png", "gdstk": "designs.gds"}[package] for package in missing}
    result = ok(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK, "--json"))
    assert names(tmp_path / "out") == sorted(set(FIVE) - absent)
    assert json.loads(result.stdout)["missing"] == dict.fromkeys(absent, "lab")
    lines = result.stderr.strip().splitlines()
    assert len(lines) == len(absent)
    for name in absent:
        assert any(name in line and "metascatter[lab]" in line for line in lines)


def test_without_an_engine_infer_says_what_to_install(
    small_bundle: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle), 1)
    assert "metascatter[cpu]" in said


@pytest.mark.parametrize(
    ("command", "blocked", "extra"),
    [("train", "torch", "train"), ("train", "diffusers", "train"), ("export", "torch", "export")],
)
def test_training_and_exporting_without_their_extra(command: str, blocked: str, extra: str, small_data: Path, tmp_path: Path) -> None:
    arguments: dict[str, list[object]] = {"train": ["train", "--data", small_data], "export": ["export", tmp_path]}
    done = spawn(*arguments[command], "--out", tmp_path / "out", before=f"sys.modules[{blocked!r}] = None")
    said = sentence(done, 1)
    assert blocked in said
    assert f".[{extra}]" in said
    assert not (tmp_path / "out").exists()


def test_a_package_that_turns_out_to_be_missing_during_the_work(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = run("export", small_run, "--out", tmp_path / "bundle")
    assert result.exit_code == 1, result.exception
    assert re.fullmatch(r"Error: onnx is not installed; .*\.\[export\].*", result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_mistakes_in_train_and_export(small_data: Path, small_run: Path, tmp_path: Path) -> None:
    cases: list[tuple[Callable[[], Result], str]] = [
        (lambda: run("train", "--data", tmp_path / "x.npz", "--out", tmp_path / "run"), r"x\.npz does not exist"),
        (lambda: run("train", "--data", small_data, "--recipe", "magic", "--out", tmp_path / "run"), "there is no recipe 'magic'"),
        (lambda: run("train", "--data", small_data, "--out", small_run), "already holds a run; add --resume"),
        (lambda: run("export", tmp_path / "nowhere", "--out", tmp_path / "bundle"), "nowhere.*does not exist"),
        (lambda: run("export", small_run, "--out", tmp_path / "bundle", "--steps", 5000), "num_steps is 5000"),
        (lambda: run("export", small_run, "--out", tmp_path / "bundle", "--scheduler", "euler"), "unknown scheduler 'euler'"),
        (lambda: run("export", small_run, "--out", tmp_path / "bundle", "--evaluation", tmp_path / "e.json"), r"e\.json cannot be read"),
    ]
    for act, words in cases:
        said = sentence(act(), 2)
        assert re.search(words, said), said
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence(small_bundle: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "designs.npz"))

    monkeypatch.setattr(np, "savez_compressed", full)
    said = sentence(run("infer", target, "--out", tmp_path / "out", "--bundle", small_bundle, *QUICK), 1)
    assert "No space left on device" in said
    assert names(tmp_path / "out") == []
