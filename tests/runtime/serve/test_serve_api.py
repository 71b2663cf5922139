"""The API: designs as the sampler makes them, files that open, and every mistake answered in a sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

from runtime import design as room
from runtime.serve.api import DESIGNS, TARGET_SCHEMA
from runtime.serve.jobs import FILES, MAX_CANDIDATES
from runtime.target import Target
from runtime.target_fields import _FIELDS

TARGET = {"height_nm": 250, "orders": {"T(0,0)": 0.3, "R(0,0)": {"max": 0.2}}}


def test_designs_are_those_of_the_sampler(running: Any) -> None:
    """Field by field what ``designs.json`` says of ``Sampler.design`` with the same seed."""
    reply = running.design(seed=5, name="beam", refine=True, budget=8)
    assert reply.status == 200, reply.body
    answer = reply.json
    target = running.jobs.sampler.check(Target.from_dict(TARGET, "beam"))
    alone = running.jobs.sampler.design(target, n=4, top=2, seed=5, steps=3, refine=True, budget=8)
    assert [(d["refined"], d["uncertainty"]) for d in answer["designs"]] == [(d.refined, d.uncertainty) for d in alone]
    assert any(d.refined for d in alone)
    assert [d["pattern"] for d in answer["designs"]] == [["".join(map(str, row)) for row in d.pattern] for d in alone]
    assert [d["score"] for d in answer["designs"]] == [d.score for d in alone]
    assert all(d["verified"] and d["seed"] == 5 for d in answer["designs"])
    assert set(answer["files"]) == set(FILES)
    written = json.loads(running.ask("GET", answer["files"]["designs.json"]).body)
    assert {key: answer[key] for key in written} == written
    assert running.ask("GET", f"{DESIGNS}/{answer['job']}").json == answer
    assert running.design(seed=6).json["designs"][0]["pattern"] != answer["designs"][0]["pattern"]


def test_files_open_in_what_they_are_for(running: Any, tmp_path: Path) -> None:
    gdstk = pytest.importorskip("gdstk")
    files = running.design(seed=1).json["files"]
    got = {}
    for name, path in files.items():
        reply = running.ask("GET", path)
        assert reply.status == 200, (name, reply.body)
        assert f'filename="{name}"' in reply.headers["content-disposition"]
        got[name] = reply.body
        (tmp_path / name).write_bytes(reply.body)
    designs = room.read(tmp_path / "designs.npz")
    assert len(designs) == 2
    matlab = loadmat(io.BytesIO(got["designs.mat"]))
    np.testing.assert_array_equal(matlab["xx"].reshape(2, 5, 5), np.stack([d.pattern for d in designs]))
    cells = {cell.name for cell in gdstk.read_gds(tmp_path / "designs.gds").cells}
    assert any("1" in name for name in cells)
    assert got["design.png"].startswith(b"\x89PNG")
    assert got["designs.png"].startswith(b"\x89PNG")
    assert b"<svg" in got["design.svg"]
    assert running.ask("GET", files["designs.gds"]).body == got["designs.gds"], "once more the same file"


def test_who_is_in_a_hurry_gets_the_best_so_far(running: Any) -> None:
    """One network call of eight candidates is made, of the 64 that were asked for."""
    before = running.ask("GET", "/api/v1/health").json["candidates"]
    answer = running.design(n=64, steps=50, refine=True, time_limit=1e-6).json
    assert running.ask("GET", "/api/v1/health").json["candidates"] - before == 8
    assert answer["designs"][0]["verified"]
    assert not any(design["refined"] for design in answer["designs"])


def test_refining_is_the_default_and_stays_within_its_budget(running: Any) -> None:
    reply = running.ask("POST", DESIGNS, {"target": TARGET, "n": 2, "steps": 3, "budget": 6})
    assert any(design["refined"] for design in reply.json["designs"])
    assert running.jobs.find(reply.json["job"]).solved == (6, 6)


def test_unverified_designs_have_no_scores(running: Any) -> None:
    answer = running.design(verify=False, top=3).json
    assert len(answer["designs"]) == 3
    assert [d["score"] for d in answer["designs"]] == [None] * 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "the body is not JSON"),
        (b"\x80\x81abc", "since it is not UTF-8 or is nested too deep"),
        (b"[" * 100_000, "since it is not UTF-8 or is nested too deep"),
        ([], "the body must be a JSON object"),
        ({}, "the field 'target' is missing"),
        ({"target": 3}, "'target' is 3; input should be a valid dictionary"),
        ({"target": TARGET, "n": 0}, "'n' is 0; input should be greater than or equal to 1"),
        ({"target": TARGET, "n": 10**6}, "'n' is 1000000; input should be less than or equal to"),
        ({"target": TARGET, "n": True}, "'n' is True; input should be a valid integer"),
        ({"target": TARGET, "top": "2"}, "'top' is '2'; input should be a valid integer"),
        ({"target": TARGET, "seed": -1}, "'seed' is -1"),
        ({"target": TARGET, "seed": 2**63}, "'seed' is 9223372036854775808"),
        ({"target": TARGET, "steps": 0}, "'steps' is 0"),
        ({"target": TARGET, "refine": 1}, "'refine' is 1; input should be a valid boolean"),
        ({"target": TARGET, "budget": 0}, "'budget' is 0; input should be greater than or equal to 1"),
        ({"target": TARGET, "budget": 10**6}, "'budget' is 1000000; input should be less than or equal to"),
        ({"target": TARGET, "time_limit": 0}, "'time_limit' is 0; input should be greater than 0"),
        ({"target": TARGET, "scheduler": "best"}, "'scheduler' is 'best'; input should be 'ddpm'"),
        ({"target": TARGET, "eta": 0.5, "scheduler": "ddpm"}, "eta is 0.5, but only the scheduler ddim has an eta"),
        ({"target": TARGET, "guidance_scale": -1.7976931348623157e308}, "'guidance_scale' is -1.7976931348623157e+308"),
        ({"target": TARGET, "guidance_interval": [2, 1]}, "the guidance interval is 2 to 1"),
        ({"target": TARGET, "guidance_interval": [1]}, "'guidance_interval' is [1]"),
        ({"target": TARGET, "color": "red"}, "there is no field 'color'"),
        ({"target": {"height_nm": 250}}, "target lacks the field 'orders'"),
        ({"target": {"height_nm": 5, "orders": {"T(0,0)": 0.1}}}, "the height is 5 nm, outside the"),
        ({"target": {"height_nm": 250, "orders": {"T(9,9)": 0.1}}}, "T(9,9) is asked 0.1, but"),
        ({"target": {"height_nm": 250, "orders": {"T(0,0)": 0.8, "R(0,0)": 0.8}}}, "add up to 1.6"),
        ({"target": {"preset": "lens"}, "name": "wish"}, "wish: there is no preset 'lens'"),
        ({"target": {**TARGET, "geometry": {"wavelength_nm": 1}}}, "geometry"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(body: Any, words: str, running: Any) -> None:
    reply = running.ask("POST", DESIGNS, body, Content_Type="application/json")
    assert reply.status == 422, reply.body
    assert set(reply.json) == {"error"}
    assert words in reply.json["error"]
    assert "\n" not in reply.json["error"]
    assert len(reply.json["error"]) < 400


def test_a_form_is_not_json(running: Any) -> None:
    """What a page of another site could send without asking first."""
    reply = running.ask("POST", DESIGNS, json.dumps({"target": TARGET}).encode(), Content_Type="text/plain")
    assert reply.status == 422
    assert "sent as application/json" in reply.json["error"]


@pytest.mark.parametrize(
    "path", [f"{DESIGNS}/nobody", f"{DESIGNS}/nobody/designs.gds", f"{DESIGNS}/..%2f..%2fetc/passwd", "/api/v1/nothing", "/docs"]
)
def test_what_is_not_there(path: str, running: Any) -> None:
    reply = running.ask("GET", path)
    assert reply.status == 404
    assert reply.json["error"]


def test_a_job_has_no_other_files(running: Any) -> None:
    job = running.design().json["job"]
    reply = running.ask("GET", f"{DESIGNS}/{job}/passwords.txt")
    assert reply.status == 404
    assert reply.json["error"].startswith("there is no file 'passwords.txt'; there are designs.npz")


def test_the_health_counts_batches(running: Any) -> None:
    before = running.ask("GET", "/api/v1/health").json
    running.design(n=3)
    after = running.ask("GET", "/api/v1/health").json
    assert (before["status"], before["jobs"]) == ("ok", 0)
    assert (after["batches"] - before["batches"], after["candidates"] - before["candidates"]) == (1, 3)


def test_the_schema_is_published_and_says_what_is_checked(running: Any) -> None:
    schema = running.ask("GET", "/openapi.json").json
    assert set(schema["paths"]) == {"/api/v1/health", DESIGNS, DESIGNS + "/{job}", DESIGNS + "/{job}/{name}"}
    post = schema["paths"][DESIGNS]["post"]
    assert {"200", "413", "422", "429", "503"} <= set(post["responses"])
    parts = schema["components"]["schemas"]
    for code in ("413", "422", "429", "503"):
        assert post["responses"][code]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    wanted = parts["Wanted"]["properties"]
    assert {"target", "n", "top", "seed", "steps", "guidance_scale", "verify", "refine", "budget", "time_limit"} <= set(wanted)
    assert (wanted["n"]["minimum"], wanted["n"]["maximum"]) == (1, MAX_CANDIDATES)
    assert wanted["target"]["properties"].keys() == TARGET_SCHEMA["properties"].keys() == set(_FIELDS)
    [example] = parts["Wanted"]["examples"]
    assert set(example) <= set(wanted)
    answer = running.design().json
    assert set(parts["Designed"]["required"]) <= set(answer)
    assert set(parts["Health"]["required"]) == set(running.ask("GET", "/api/v1/health").json)


def test_a_missing_package_is_named(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = running.design(seed=9).json["files"]
    monkeypatch.setattr(room, "_installed", lambda package: package != "gdstk")
    reply = running.ask("GET", files["designs.gds"])
    assert reply.status == 404
    assert reply.json["error"] == "designs.gds cannot be made here; install metascatter[lab]"
    assert running.ask("GET", files["designs.png"]).status == 200


def test_old_answers_are_forgotten(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.serve.jobs._KEPT", 2)
    running = start()
    answers = [running.design(seed=seed, verify=False).json for seed in range(2)]
    assert running.ask("GET", answers[0]["files"]["designs.npz"]).status == 200
    folder = Path(running.jobs._folder.name) / answers[0]["job"]
    assert folder.is_dir()
    running.design(seed=3, verify=False)
    reply = running.ask("GET", answers[0]["files"]["designs.npz"])
    assert reply.status == 404
    assert "it has been forgotten; design again" in reply.json["error"]
    assert not folder.exists()
    assert running.ask("GET", answers[1]["files"]["designs.npz"]).status == 200
