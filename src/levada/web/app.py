"""The addresses of the server: what is asked, and which shape the answer has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, final

from fastapi import Depends, FastAPI, Query, Request
from fastapi import Path as Part
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from levada import __version__
from levada.web.access import Access, cookie_of
from levada.web.computation import Computation
from levada.web.folder import RefusedError
from levada.web.guard import Guard
from levada.web.network import Checked, CheckOf
from levada.web.pages import Pages
from levada.web.pictures import Drawings, Gates, GatesOf, Heat, HeatOf, Loss, LossOf, Memory, Mixing, MixingOf
from levada.web.reader import Reader
from levada.web.scanner import Scanner
from levada.web.shapes import Nothing, Problem, Runs, Summary

__all__ = ["API", "Json", "create_app"]

API: Final = "/api/1"
_SAFE: Final = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)


@final
class Json(Response):
    """JSON that stays text wherever it is put, also between the tags of a page."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Escape what a page could take for a tag; it stands in strings only."""
        for one, other in _SAFE:
            content = content.replace(one, other)
        return bytes(content)


@final
class _Events(Response):
    """What a scanner tells; the place among those that listen is taken and given back with the answer itself."""

    media_type = "text/event-stream"

    def __init__(self, scanner: Scanner) -> None:
        super().__init__()
        self._scanner = scanner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._scanner.listening() as told:
            await StreamingResponse(told, media_type=self.media_type)(scope, receive, send)


def create_app(
    root: Path,
    access: Access | None = None,
    *,
    pages: Pages | None = None,
    reader: Reader | None = None,
    computation: Computation | None = None,
    every: float = 2.0,
    folder: str | None = None,
) -> Guard:
    """Make the server's application.

    Args:
        root: the folder whose runs are served.
        access: who may ask.
        pages: the files of the pages.
        reader: what reads the runs.
        computation: what computes for pages.
        every: seconds between two looks for runs.
        folder: what the pages call the folder; its path if left out, and empty for one that nobody has chosen.
    """
    reader = reader or Reader(root)
    access = access or Access()
    scanner = Scanner(root, reader, every, folder=str(root) if folder is None else folder)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(scanner.run())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        await reader.close()

    app = FastAPI(
        title="levada",
        version=__version__,
        description="Runs of levada, to be read.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.scanner, app.state.reader, app.state.access = scanner, reader, access
    _add_errors(app)
    _add_runs(app)
    _add_events(app)
    _add_check(app, computation or Computation())
    _add_session(app)
    _add_pages(app, pages or Pages())
    return Guard(app, access, scanner.end)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    why = {401: "The token is missing.", 403: "It is not this server's page that asks.", 404: "There is no such run."}
    why |= {
        409: "The run cannot be read.",
        422: "The question cannot be used.",
        429: "Too much is computed.",
        501: "A package is missing.",
    }
    why |= {413: "The request is too large.", 503: "Too many ask at once."}
    return {status: {"model": Problem, "description": why[status]} for status in (401, 403, 422, *statuses)}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        later = {"retry-after": "5"} if error.status in (429, 503) else None
        return JSONResponse({"detail": str(error)}, error.status, headers=later)

    @app.exception_handler(RequestValidationError)
    async def unusable(_: Request, error: RequestValidationError) -> JSONResponse:
        told = [f"{'.'.join(map(str, one['loc'][1:])) or 'it'}: {one['msg']}" for one in error.errors()[:5]]
        return JSONResponse({"detail": f"The question cannot be used. {'; '.join(told)}."}, 422)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        told = "levada itself failed, which is a defect: where `levada serve` runs, it says how."
        return JSONResponse({"detail": told}, 500)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI says so of a body that is no text
            return JSONResponse({"detail": "The question cannot be used. It is not JSON."}, 422)
        return JSONResponse({"detail": f"{error.detail.removesuffix('.')}."}, error.status_code, headers=error.headers)


# A pattern that were asked for would be answered by itself, which says nothing to who opens an old link.
Id = Annotated[
    str, Part(description="Of a run, as the list gives it.", json_schema_extra={"pattern": "^[a-z2-7]{20}$"})
]


def no_query(request: Request) -> None:
    """Raise if there is a query, as the question has none."""
    if request.query_params:
        name = next(iter(request.query_params))
        raise RefusedError(422, f"This question has no parameters, got {name!r}. Leave it out.")


def _add_runs(app: FastAPI) -> None:
    scanner: Scanner = app.state.scanner
    reader: Reader = app.state.reader
    known = _problems(404, 409, 501, 503)

    async def ask(name: str, of: str, **values: Any) -> Json:
        return Json(await reader.ask(name, run=await scanner.name_of(of), **values))

    @app.get(f"{API}/runs", response_model=Runs, responses=_problems(), dependencies=[Depends(no_query)])
    async def runs() -> Json:
        """List the runs."""
        return Json((await scanner.listed()).model_dump_json().encode())

    @app.get(f"{API}/runs/{{id}}", response_model=Summary, dependencies=[Depends(no_query)], responses=known)
    async def summary(id: Id) -> Json:
        """Say what is known of a run, without its curves."""
        return await ask("summary", id, id=id)

    @app.get(f"{API}/runs/{{id}}/loss", response_model=Loss, responses=known)
    async def loss(id: Id, asked: Annotated[LossOf, Query()]) -> Json:
        """Give a run's losses in bins."""
        return await ask("loss", id, asked=asked.model_dump())

    @app.get(f"{API}/runs/{{id}}/heat", response_model=Heat, responses=known)
    async def heat(id: Id, asked: Annotated[HeatOf, Query()]) -> Json:
        """Give a part of a signal by site and step, merged to as many cells as can be seen."""
        return await ask("heat", id, asked=asked.model_dump())

    @app.get(f"{API}/runs/{{id}}/mixing", response_model=Mixing, responses=known)
    async def mixing(id: Id, asked: Annotated[MixingOf, Query()]) -> Json:
        """Give the mixing matrices by layer and the gains of their products, where they were recorded."""
        return await ask("mixing", id, asked=asked.model_dump())

    @app.get(f"{API}/runs/{{id}}/gates", response_model=Gates, responses=known)
    async def gates(id: Id, asked: Annotated[GatesOf, Query()]) -> Json:
        """Give what the gates of recurrences were while a model trained, where they were recorded."""
        return await ask("gates", id, asked=asked.model_dump())

    @app.get(f"{API}/runs/{{id}}/memory", response_model=Memory, dependencies=[Depends(no_query)], responses=known)
    async def memory(id: Id) -> Json:
        """Give how far back the gradient of recurrences reaches, where it was recorded."""
        return await ask("memory", id)

    @app.get(f"{API}/runs/{{id}}/drawings", response_model=Drawings, dependencies=[Depends(no_query)], responses=known)
    async def drawings(id: Id) -> Json:
        """Give the figures of a check or a study, as the report draws them."""
        return await ask("drawings", id)


def _add_events(app: FastAPI) -> None:
    scanner: Scanner = app.state.scanner
    stream: dict[str, Any] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    told = stream | {"description": "appeared, grew, ended, gone: a Row; heartbeat."}

    @app.get(
        f"{API}/events",
        response_class=StreamingResponse,
        responses=_problems(503) | {200: told},
        dependencies=[Depends(no_query)],
    )
    async def events(request: Request) -> Response:
        """Tell what happens to the runs, as server-sent events."""
        if request.scope.get("levada.head"):
            return Response(media_type="text/event-stream")
        return _Events(scanner)


def _add_check(app: FastAPI, computation: Computation) -> None:
    @app.post(
        f"{API}/compute/check",
        response_model=Checked,
        responses=_problems(413, 429),
        dependencies=[Depends(no_query)],
    )
    async def check(asked: CheckOf, request: Request) -> Json:
        """Say what `levada check` says of a network as the explorer describes one."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        return Json(await computation.check(asked, gone))


def _add_session(app: FastAPI) -> None:
    access: Access = app.state.access

    @app.post(f"{API}/session", response_model=Nothing, responses=_problems(413), dependencies=[Depends(no_query)])
    async def session(request: Request) -> JSONResponse:
        """Let this browser read, by a cookie, what asks for the token: an event source sends no headers."""
        answer = JSONResponse({})
        name = cookie_of(request.headers["host"])
        answer.set_cookie(name, access.session, path="/api", httponly=True, samesite="strict")
        return answer


def _add_pages(app: FastAPI, pages: Pages) -> None:
    access: Access = app.state.access

    @app.get("/{name:path}", include_in_schema=False)
    async def page(request: Request, name: str) -> Response:
        if name.startswith("api/"):
            raise HTTPException(404, "There is no such question")
        return pages.answer(request, name, access.may_read(request.headers))
