"""The routes: a dashboard, a playground, OpenAI's completions. Nothing in a request names a file."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from overnight.serve import pages
from overnight.serve.batcher import Batcher
from overnight.serve.completions import Completions, Events
from overnight.serve.fields import Limits
from overnight.serve.live import MOST_FOLLOWERS, Live
from overnight.serve.refusal import Refusal


def make_app(
    batcher: Batcher, model: str, live: Live | None, limits: Limits, stopping: asyncio.Event
) -> Starlette:
    """The application, unguarded. live: the run to follow; None for other people's weights."""
    completions = Completions(batcher, model, limits, stopping)
    # Each page is rendered once, and its bytes are shared by all answers.
    prompting = pages.playground(model, live is not None).encode()
    dashboard = {-1: b""}  # the run's version -> page

    async def first(request: Request) -> Response:
        if live is None:
            return RedirectResponse("/playground", 303)
        await live.look()
        if live.version not in dashboard:
            dashboard.clear()
            dashboard[live.version] = pages.dashboard(model, live.parts()).encode()
        return HTMLResponse(dashboard[live.version])

    async def playground(request: Request) -> Response:
        return HTMLResponse(prompting)

    async def events(request: Request) -> Response:
        if live is None:
            raise Refusal(404, "No run is followed here.")
        if live.watchers >= MOST_FOLLOWERS:
            told = f"{MOST_FOLLOWERS} dashboards are open, the most that are kept up to date: close one."
            raise Refusal(503, told, code="overloaded")
        live.watchers += 1
        return Events(live.events(stopping), live.leave)

    async def about(request: Request) -> Response:
        if live is None:
            raise Refusal(404, "No run is followed here.")
        return Response(await live.summary(), media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        following = asyncio.create_task(live.follow()) if live else None
        try:
            yield
        finally:
            if following:
                following.cancel()

    routes = [
        Route("/", first),
        Route("/playground", playground),
        Route("/events", events),
        Route("/summary.json", about),
        Route("/v1/models", completions.models),
        Route("/v1/completions", completions.create, methods=["POST"]),
        *[Route(path, fixed(one)) for path, one in pages.fixed().items()],
    ]
    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        Refusal: refused, HTTPException: not_here, Exception: broken,
    }  # fmt: skip
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def fixed(one: pages.Fixed) -> Callable[[Request], Awaitable[Response]]:
    async def give(request: Request) -> Response:
        # Names of what may be kept hold its version.
        headers = {"Cache-Control": "private, max-age=31536000, immutable"} if one.keep else {}
        return Response(one.content, media_type=one.kind, headers=headers)

    return give


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def not_here(request: Request, error: Exception) -> Response:
    """No such place, or not by this method."""
    assert isinstance(error, HTTPException)
    return Refusal(error.status_code, str(error.detail), code="not_found").response()


async def broken(request: Request, error: Exception) -> Response:
    """A mistake of ours: its traceback goes to the log, not to the client."""
    return Refusal(500, "The server made a mistake; its log says which.").response()
