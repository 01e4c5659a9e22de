"""The web server of a study: one page, its pictures, its votes. It loads no torch and nothing from anywhere else.

A worker's link is `/w/TOKEN`. What a worker is sent, and when, is decided in `store.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from rasterformer.errors import ConfigError, MissingExtraError
from rasterformer.study.store import Side, Store

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi import Path as FromPath
    from fastapi.responses import RedirectResponse
    from pydantic import BaseModel, Field
    from starlette.middleware.base import BaseHTTPMiddleware
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"the study's server needs the package {error.name}. Install the extra: pip install 'rasterformer[studio]'"
    ) from error

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the token is in the address
    "X-Content-Type-Options": "nosniff",
}
MAX_POSITION = 1_000_000
MAX_CLAIMED_MS = 86_400_000


class State(BaseModel):
    """Where a worker is: the position to answer next, from 1 (total + 1 at the end), and how long a pair is shown."""

    position: int
    total: int
    seconds: float


class Answer(BaseModel):
    """A worker's vote. `claimed_ms` is what the browser measured, and nothing is built on it."""

    position: int = Field(ge=1, le=MAX_POSITION)
    choice: Side
    claimed_ms: int | None = Field(default=None, ge=0, le=MAX_CLAIMED_MS)


def make_app(path: Path, *, joining: bool = True) -> FastAPI:
    """Returns the application that asks a study's workers.

    Args:
        path: file that `create_study` made. The application closes it when it stops.
        joining: whether `/` makes a new worker. False: only workers that exist already are let in.

    Raises:
        DataError: the file is missing or no study.
    """
    store = Store(path)
    static = {
        name: (files("rasterformer.study") / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.js", "page.css")
    }

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None)  # nor the pages about it, which load scripts from elsewhere
    app.add_middleware(BaseHTTPMiddleware, dispatch=_with_headers)

    def state(token: str) -> State:
        progress = store.progress(token)
        if progress is None:
            raise HTTPException(404)
        return State(position=progress.position, total=progress.total, seconds=store.seconds)

    @app.get("/")
    def join() -> Response:
        if not joining:
            raise HTTPException(403, "This study is open to invited people only: use your personal link.")
        return RedirectResponse(f"/w/{store.join()}", status_code=303)

    @app.get("/page.js")
    def script() -> Response:
        return Response(static["page.js"], media_type="text/javascript")

    @app.get("/page.css")
    def style() -> Response:
        return Response(static["page.css"], media_type="text/css")

    @app.get("/w/{token}")
    def page(token: str) -> Response:
        state(token)
        return Response(static["page.html"], media_type="text/html")

    @app.get("/w/{token}/state")
    def progress(token: str) -> State:
        return state(token)

    @app.get("/w/{token}/{position}/{side}.png")
    def image(token: str, position: Annotated[int, FromPath(ge=1, le=MAX_POSITION)], side: Side) -> Response:
        content = store.image(token, position, side)
        if content is None:
            raise HTTPException(404)
        return Response(content, media_type="image/png")

    @app.post("/w/{token}/votes")
    def vote(token: str, answer: Answer) -> State:
        state(token)
        if not store.vote(token, answer.position, answer.choice, claimed_ms=answer.claimed_ms):
            raise HTTPException(409, f"Position {answer.position} is not open.")
        return state(token)

    return app


def run(app: FastAPI, host: str, port: int) -> None:
    """Serves the application until it is interrupted.

    Raises:
        ConfigError: the address cannot be listened at; the server's log says why.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level="error", access_log=False, server_header=False, ws="none",
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run()
    except SystemExit as error:
        raise ConfigError(f"{host}:{port} cannot be listened at, see above. Give another --port or --host.") from error


async def _with_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    response.headers.update(HEADERS)
    return response
