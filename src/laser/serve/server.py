"""An HTTP front of a scorer, for trying it and for small loads: ``laser serve BUNDLE --vault PATH``.

    POST /score     candidates of one user -> probabilities
    POST /explain   one candidate -> its score, history, segments, gates
    GET  /          a page to click through that; /docs the OpenAPI page; /health, /model

It reads and scores; it changes nothing. Every mistake is one sentence under ``detail`` and a status below 500.
"""

from __future__ import annotations

import signal
import socket
from importlib.resources import files
from itertools import islice
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from laser.model.laser import Laser
from laser.schema import Kind
from laser.serve.explanation import Explainer, Explanation, RawValues
from laser.serve.limits import Gate, Limits
from laser.serve.requests import Request
from laser.serve.scorer import Scorer
from laser.versions import recorded

SHOWN = 100
"""Users, items and values of a context field that the page offers."""
Raw = StrictInt | StrictStr
Value = StrictInt | StrictFloat | StrictStr | None
Now = Annotated[StrictInt | None, Field(description="ticks of the model's time unit; default: the clock")]


class Problem(BaseModel):
    """What was wrong with a request."""

    detail: str


class Asked(BaseModel):
    """What scores and explanations have in common."""

    model_config = ConfigDict(extra="forbid")
    user: Annotated[Raw, Field(description="raw id")]
    context: Annotated[
        dict[str, Value | list[Value] | list[list[Value]]],
        Field(description="raw value, or one per candidate, of each field"),
    ] = {}
    now: Now = None


class ScoreRequest(Asked):
    """Candidates of one user."""

    candidates: Annotated[list[Raw | None], Field(description="raw item ids")]


class ExplainRequest(Asked):
    """One candidate."""

    candidate: Annotated[Raw | None, Field(description="raw item id")]


class Scores(BaseModel):
    """Probabilities in the order of the candidates."""

    probabilities: list[float]
    now: int
    known_user: bool
    events: Annotated[int, Field(description="of the history that was seen")]
    unknown_candidates: Annotated[list[int], Field(description="positions of candidates that the model does not know")]


class Model(BaseModel):
    """What is served, and values to try."""

    data_set: str
    model: str
    tables: str
    max_history: int
    time_unit: str
    item: str
    context: dict[str, list[Any]]
    users: list[Any]
    items: list[Any]
    explains: bool


def create_app(scorer: Scorer, limits: Limits = Limits()) -> Any:  # noqa: B008
    """The application, behind its limits; any ASGI server runs it."""
    responses: Any = {status: {"model": Problem} for status in (400, 408, 413, 422, 503)}
    app = FastAPI(title="LASER", version=recorded("laser-ctr")["laser-ctr"], description=__doc__, responses=responses)
    explainer = Explainer(scorer) if isinstance(scorer.engine.network, Laser) else None
    about = _about(scorer)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Any, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _sentence(error)}, 422)

    @app.exception_handler(ValueError)
    async def wrong(_request: Any, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(OSError)
    async def unavailable(_request: Any, error: OSError) -> JSONResponse:
        return JSONResponse({"detail": f"the histories cannot be read: {error}"}, 503)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return files("laser.serve").joinpath("page.html").read_text()

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether it answers."""
        return {"status": "ok"}

    @app.get("/model")
    def model() -> Model:
        """What is served, and values to try."""
        return about

    @app.post("/score")
    def score(asked: ScoreRequest) -> Scores:
        """Probabilities of a click on each candidate. Unknown users and items are legal."""
        if len(asked.candidates) > limits.candidates:
            raise ValueError(
                f"there are {len(asked.candidates)} candidates; this server takes {limits.candidates} at most"
            )
        coded = scorer.coder.request(Request(asked.user, asked.candidates, asked.context, asked.now))
        events = scorer.read([coded])
        return Scores(
            probabilities=scorer.engine.score([coded], events)[0].tolist(),
            now=coded.time,
            known_user=scorer.coder.user(asked.user)[1] > 0,
            events=int(events.lengths[0]),
            unknown_candidates=np.flatnonzero(coded.item_B == 0).tolist(),
        )

    if explainer is not None:

        @app.post("/explain")
        def explain(asked: ExplainRequest) -> Explanation:
            """A score, and what of the history the gates let through to it."""
            return explainer.explain(asked.user, asked.candidate, asked.context, asked.now)

    return Gate(app, limits)


def _about(scorer: Scorer) -> Model:
    schema, facts = scorer.schema, scorer.bundle.facts
    fields = [f.name for f in schema.of_kind(Kind.CONTEXT) if f.table is not None]
    examples = {name: _examples(scorer, name) for name in (schema.user.name, schema.item.name, *fields)}
    return Model(
        data_set=facts["data_set"],
        model=facts["network"]["class_path"],
        tables=facts["tables"],
        max_history=scorer.max_history,
        time_unit=schema.timestamp_unit,
        item=schema.item.name,
        context={name: examples[name] for name in fields},
        users=examples[schema.user.name],
        items=examples[schema.item.name],
        explains=isinstance(scorer.engine.network, Laser),
    )


def _examples(scorer: Scorer, name: str) -> list[Any]:
    known = list(islice(RawValues(scorer.coder.codes[name]).by_code.values(), SHOWN))
    return known or list(range(min(SHOWN, scorer.schema[name].cardinality or 0)))


def _sentence(error: RequestValidationError) -> str:
    """The first mistake that the validation found."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return f"{where}: {first['msg']}"[:300]


def run(scorer: Scorer, host: str, port: int, limits: Limits) -> None:
    """Serve until the process is told to stop; requests in work are finished first.

    Raises:
        OSError: when the address cannot be had.
    """
    import uvicorn

    # uvicorn raises the signal again when it has stopped: this ends the process with 0 and closes what is open.
    signal.signal(signal.SIGTERM, _end)
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        config = uvicorn.Config(create_app(scorer, limits), log_level="warning", timeout_graceful_shutdown=10)
        uvicorn.Server(config).run(sockets=[listener])


def _end(_number: int, _frame: Any) -> None:
    raise SystemExit(0)
