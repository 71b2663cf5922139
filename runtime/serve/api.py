"""The JSON API. Its schema is published at ``/openapi.json``; every error is one sentence, ``{"error": "..."}``."""

# No postponed annotations here: FastAPI reads those of the functions below, whose types exist only inside ``create``.

import asyncio
import concurrent.futures
import json
import reprlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

from ..errors import BundleError, Cancelled, DataError, GeometryError, MetascatterError, TargetError
from ..manifest import STRONGEST
from ..schedulers import SCHEDULERS
from ..target import Target
from ..version import __version__
from .guard import HEALTH, Rate, TooMany
from .jobs import FILES, MAX_BUDGET, MAX_CANDIDATES, MAX_STEPS, MAX_TOP, Busy, Jobs, Order

DESIGNS = "/api/v1/designs"
_POLL_S = 0.1  # how often a waiting request looks whether its client is still there
_WRONG = (TargetError, DataError, GeometryError, BundleError)
_EXAMPLE: dict[str, Any] = {"target": {"height_nm": 300, "orders": {"T(1,0)": 0.2, "T(-1,0)": {"max": 0.02}}}, "n": 64, "top": 4, "seed": 0}

_NUMBER = {"type": "number"}
_WISH = {
    "description": 'An efficiency; the least and the most of it; or a measured one with its standard deviation. "any" leaves it free.',
    "anyOf": [
        _NUMBER,
        {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
        {"type": "object", "properties": dict.fromkeys(("min", "max"), _NUMBER), "additionalProperties": False},
        {
            "type": "object",
            "properties": dict.fromkeys(("value", "sigma"), _NUMBER),
            "required": ["value", "sigma"],
            "additionalProperties": False,
        },
        {"const": "any"},
    ],
}
TARGET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "What the light should do: the fields of a .json target. Either height_nm and orders, or a preset.",
    "properties": {
        "height_nm": {"type": "number", "exclusiveMinimum": 0, "description": "Height of the pillars."},
        "orders": {
            "type": "object",
            "description": "Efficiency wanted by order, T(m,n) transmitted and R(m,n) reflected; orders not named are free.",
            "additionalProperties": _WISH,
        },
        "others": {"enum": ["any", 0], "description": "0 wants every order that is not named to carry nothing."},
        "noise": {"type": "number", "minimum": 0, "description": "Standard deviation of the efficiencies given as numbers."},
        "preset": {"type": "string", "description": "deflector, splitter-2x2, equal-3x3, mirror or zero-order-suppressor."},
        "order": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2, "description": "Of the preset."},
        "efficiency": {"type": "number", "description": "Of the preset."},
        "geometry": {"type": "object", "description": "Must be the bundle's, where it is given."},
        "channels": {"type": "object", "description": "Orders of further maps, for bundles that know them."},
    },
    "additionalProperties": False,
}


def create(jobs: Jobs, rate: Rate, token: bool = False, metrics: Callable[[], tuple[bytes, str]] | None = None) -> Any:
    """The FastAPI application over a queue.

    Args:
        rate: how often one client may ask for designs.
        token: whether the schema says that a token is wanted; :class:`.guard.Guard` checks it.
        metrics: body and content type of ``/metrics``; None: there is no such address.
    """
    from fastapi import Depends, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse, Response
    from fastapi.security import HTTPBearer
    from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
    from starlette.exceptions import HTTPException

    class Wanted(BaseModel):
        """What to design."""

        model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_EXAMPLE]})
        target: Annotated[dict[str, Any], WithJsonSchema(TARGET_SCHEMA)]
        name: Annotated[str, Field(description="What errors and files call the target.", min_length=1, max_length=80)] = "target"
        n: Annotated[int, Field(description="Candidates sampled.", ge=1, le=MAX_CANDIDATES)] = 64
        top: Annotated[int, Field(description="Designs returned, best first.", ge=1, le=MAX_TOP)] = 4
        seed: Annotated[int, Field(description="Same seed, same designs.", ge=0, le=2**63 - 1)] = 0
        verify: Annotated[bool, Field(description="Solve Maxwell's equations for the most promising candidates.")] = True
        refine: Annotated[bool, Field(description="Search on from the best candidates, by flipped pixels.")] = True
        budget: Annotated[int, Field(description="With refine, RCWA solves in all, ranking included.", ge=1, le=MAX_BUDGET)] = 32
        time_limit: Annotated[
            float | None,
            Field(description="Seconds from the start of the work: the best found by then.", gt=0, allow_inf_nan=False),
        ] = None
        steps: Annotated[int | None, Field(description="Denoising steps; null: the bundle's.", ge=1, le=MAX_STEPS)] = None
        scheduler: Annotated[Literal[*SCHEDULERS] | None, Field(description="null: the bundle's.")] = None  # type: ignore[valid-type]
        eta: Annotated[float | None, Field(description="Fresh noise of ddim; null: the bundle's.", ge=0, le=1)] = None
        guidance_scale: Annotated[
            float | None,
            Field(description="1 is no guidance; null: the bundle's.", ge=-STRONGEST, le=STRONGEST, allow_inf_nan=False),
        ] = None
        guidance_interval: Annotated[
            list[Annotated[float, Field(ge=0)]] | None,
            Field(description="Lowest and highest noise level guided.", min_length=2, max_length=2),
        ] = None

    class Designed(BaseModel):
        """The fields of designs.json, and where the files are."""

        model_config = ConfigDict(extra="allow")
        job: Annotated[str, Field(description="Names the answer for later.")]
        seconds: Annotated[float, Field(description="From the start of the work.")]
        files: Annotated[dict[str, str], Field(description="Path of each file on this server, written when first fetched.")]
        target: str
        geometry: dict[str, Any]
        designs: Annotated[list[dict[str, Any]], Field(description="rank, score, pattern, strongest_orders and more; best first.")]

    class Health(BaseModel):
        """Whether the server takes requests, and how busy it is."""

        status: Literal["ok", "stopping"]
        version: str
        jobs: Annotated[int, Field(description="Waiting and at work.")]
        max_queue: int
        batches: Annotated[int, Field(description="Batches that the denoiser has sampled.")]
        candidates: Annotated[int, Field(description="Candidates in them.")]

    class Problem(BaseModel):
        """What was found, what was expected and what to do."""

        error: str

    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem, "description": words}
        for code, words in {
            413: "The request is too large.",
            422: "The request or its target is wrong.",
            429: "Too many requests from this address; Retry-After says when.",
            503: "The queue is full or the server is stopping.",
            **({401: "No token, or a wrong one."} if token else {}),
        }.items()
    }
    unknown: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such job or file."}, 422: refusals[422]}
    full: dict[int | str, dict[str, Any]] = {507: {"model": Problem, "description": "The server's disk is full."}}
    known = [Depends(HTTPBearer(auto_error=False))] if token else []
    app = FastAPI(
        title="metascatter",
        version=__version__,
        description="From a wanted light scattering to metasurface patterns that produce it.",
        docs_url=None,  # its scripts come from elsewhere, and a lab may have no way there
        redoc_url=None,
    )

    def problem(status: int, words: str, retry_s: int | None = None) -> JSONResponse:
        return JSONResponse({"error": words}, status, None if retry_s is None else {"Retry-After": str(retry_s)})

    @app.exception_handler(MetascatterError)
    async def refused(request: Request, error: MetascatterError) -> JSONResponse:
        if isinstance(error, TooMany):
            return problem(429, str(error), error.seconds)
        if isinstance(error, Busy | Cancelled):
            return problem(503, str(error), 1)
        return problem(422 if isinstance(error, _WRONG) else 500, str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, sentence(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's answer to whatever else json raises
            return problem(422, "the body is not JSON that can be read, since it is not UTF-8 or is nested too deep; correct it")
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "something went wrong here that nobody thought of; the server's log has it")

    @app.get(HEALTH, response_model=Health)
    async def health() -> dict[str, Any]:
        """Whether the server takes requests."""
        return {"status": "stopping" if jobs.stopping else "ok", "version": __version__, **jobs.load}

    @app.post(DESIGNS, response_model=Designed, responses=refusals, dependencies=known)
    async def design(wanted: Wanted, request: Request) -> Response:
        """Design metasurfaces for a target, and answer when they are there. Who hangs up gives up their place."""
        rate.hit(request.client.host if request.client else "")
        settings = {name: getattr(wanted, name) for name in ("steps", "scheduler", "eta", "guidance_scale")}
        interval = None if wanted.guidance_interval is None else tuple(wanted.guidance_interval)
        target = Target.from_dict(wanted.target, wanted.name)
        order = {name: getattr(wanted, name) for name in ("n", "top", "seed", "verify", "refine", "budget", "time_limit")}
        job = jobs.submit(Order(target, **order, settings={**settings, "guidance_interval": interval}))
        try:
            done = asyncio.wrap_future(job.result)
            done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # looked at, though nobody may be left to hear it
            while not done.done():
                await asyncio.wait({done}, timeout=_POLL_S)
                if await request.is_disconnected():
                    job.cancel()
                    return Response(status_code=499)  # nobody hears it
            done.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            job.cancel()
            raise Cancelled("the server was stopped before this was done; ask again when it is back") from None
        return JSONResponse(answer(job))

    @app.get(DESIGNS + "/{job}", response_model=Designed, responses=unknown, dependencies=known)
    async def again(job: str) -> Response:
        """The answer of a finished job once more."""
        try:
            return JSONResponse(answer(jobs.find(job)))
        except DataError as error:
            return problem(404, str(error))

    @app.get(DESIGNS + "/{job}/{name}", response_class=FileResponse, responses={**unknown, **full}, dependencies=known)
    def file(job: str, name: Annotated[str, WithJsonSchema({"enum": list(FILES)})]) -> Response:
        """A file of a finished job."""
        try:
            return FileResponse(jobs.file(jobs.find(job), name), filename=name)
        except DataError as error:
            return problem(404, str(error))
        except OSError as error:
            return problem(507, f"{name} cannot be written on the server: {error.strerror or error}; its disk wants room")

    if metrics is not None:

        @app.get("/metrics", include_in_schema=False)
        async def counted() -> Response:
            """The server's counters, for Prometheus."""
            body, kind = metrics()
            return Response(body, headers={"Content-Type": kind})

    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing(rest: str) -> Response:
        """Not the page's answer, which is for people."""
        return problem(404, f"there is no such address here; /openapi.json lists those there are, such as POST {DESIGNS}")

    def answer(job: Any) -> dict[str, Any]:
        files = {name: f"{DESIGNS}/{job.id}/{name}" for name in FILES}
        return {"job": job.id, "seconds": round(job.seconds, 3), "files": files, **jobs.document(job)}

    return app


def sentence(error: dict[str, Any]) -> str:
    """One of pydantic's errors in one sentence."""
    place = ".".join(str(part) for part in error["loc"][1:])
    if error["type"] == "json_invalid":
        return f"the body is not JSON ({error.get('ctx', {}).get('error', error['msg'])}); correct it"
    if not place:
        return f"the body must be a JSON object, sent as application/json, such as {json.dumps(_EXAMPLE)}"
    if error["type"] == "missing":
        return f"the field '{place}' is missing; a request is such as {json.dumps(_EXAMPLE)}"
    if error["type"] == "extra_forbidden":
        return f"there is no field '{place[:80]}'; /openapi.json lists those there are"
    words = str(error["msg"])
    return f"'{place}' is {reprlib.repr(error.get('input'))}; {words[0].lower()}{words[1:]}"
