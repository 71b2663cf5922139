"""The HTTP API against its own published schema: schemathesis asks whatever the schema admits, and much that it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for library in ("fastapi", "limits", "prometheus_client", "uvicorn"):
    pytest.importorskip(library, reason="the extra 'ui' is not installed")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis import checks  # noqa: E402

from runtime.sampler import Sampler  # noqa: E402
from runtime.serve import api  # noqa: E402
from runtime.serve.guard import Guard, Rate  # noqa: E402
from runtime.serve.jobs import Jobs  # noqa: E402
from runtime.serve.metrics import Metrics, Watched  # noqa: E402
from tests.fuzzing import counted, fuzz  # noqa: E402

ENGINE = {"backend": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 1}
TOKEN = "a long enough secret"
TARGET = {"height_nm": 250, "orders": {"T(0,0)": 0.3, "R(0,0)": {"max": 0.2}}}
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def served(small_bundle: Path) -> Iterator[Any]:
    """The application as ``serve`` makes it, but for the page. Requests may be as large as they like; the work is small."""
    design = Sampler.design

    def small(self: Sampler, target: Any, **settings: Any) -> Any:
        few = {"n": min(settings["n"], 2), "top": min(settings["top"], 2), "steps": min(settings.get("steps") or 2, 2)}
        return design(self, target, **{**settings, **few, "budget": min(settings["budget"], 3)})

    with pytest.MonkeyPatch.context() as patch, Jobs(small_bundle, ENGINE, workers=1) as jobs:
        patch.setattr(Sampler, "design", small)
        rate, metrics = Rate("100000/second"), Metrics(jobs)
        yield Watched(Guard(api.create(jobs, rate, True, metrics.text), TOKEN, 2**20, rate), metrics)


@pytest.fixture(scope="module")
def published(served: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", served, headers=HEADERS)


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@fuzz(80)
@given(values=st.data())
@counted
def test_every_answer_is_one_that_the_schema_promises(published: Any, mode: Any, values: st.DataObject) -> None:
    """``positive`` asks what the schema admits, ``negative`` what it does not."""
    operations = [found.ok() for found in published.get_all_operations()]
    able = [operation for operation in operations if mode.is_positive or operation.label.startswith("POST")]
    case = values.draw(values.draw(st.sampled_from(able)).as_strategy(generation_mode=mode))
    if mode.is_positive and isinstance(case.body, dict) and values.draw(st.booleans()):
        case.body["target"] = TARGET  # what a schema cannot say is hardly ever found by chance
    case.call_and_validate(checks=CHECKS, headers=HEADERS)


def test_some_of_them_were_designs(served: Any) -> None:
    """Below the tests above: what they asked for came as far as the engine, and nothing is left at work."""
    assert b'route="/api/v1/designs",status="200"' in served.metrics.text()[0]
    assert b"metascatter_queue_jobs 0.0" in served.metrics.text()[0]
