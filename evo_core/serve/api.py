"""The HTTP side: routes, streams, errors in the API's shape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from evo_core.serve.answers import DONE, Answer, ApiError, sse
from evo_core.serve.body import parse_json, read_body
from evo_core.serve.engine import Busy, Choice, Event
from evo_core.serve.guard import Guard, page_policy
from evo_core.serve.requests import ChatRequest, CompletionRequest, Request, read_request
from evo_core.serve.service import Service

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20
"""Bytes of a request's body."""

_LOOK_SECONDS = 0.25
"""How often a waiting answer looks whether its client is still there."""

PAGE = Path(__file__).with_name("page.html")

Tell = Callable[[Event], None]
Start = Callable[[bytes, Tell], tuple[Request, Answer, list[Choice]]]


def create_app(service: Service, *, max_body: int = MAX_BODY, hosts: Collection[str] | None = None) -> FastAPI:
    """The web application of a service; its engine runs while the application does.

    Args:
        max_body: bytes of a request's body.
        hosts: what requests may call the server, besides this machine's own names; None allows all.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(
        title="Evo", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.add_middleware(Guard, hosts=hosts)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)
    html = PAGE.read_text(encoding="utf-8")
    reading = ["GET", "HEAD"]

    @app.api_route("/", methods=reading)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": page_policy(html)})

    @app.api_route("/health", methods=reading)
    async def health() -> JSONResponse:
        running, waiting = service.engine.load()
        alive = service.engine.alive
        body = {"status": "ok" if alive else "stopping", "running": running, "waiting": waiting}
        return JSONResponse(body, 200 if alive else 503)

    @app.api_route("/v1/models", methods=reading)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card()]}

    @app.api_route("/v1/models/{name:path}", methods=reading)
    async def model(name: str) -> dict[str, Any]:
        service.check_name(name)
        return service.card()

    @app.post("/v1/completions")
    async def completions(http: HttpRequest) -> Response:
        def start(body: bytes, tell: Tell) -> tuple[Request, Answer, list[Choice]]:
            request = read_request(CompletionRequest, parse_json(body))
            return request, *service.completion(request, tell)

        return await _respond(service, http, await read_body(http, max_body), start)

    @app.post("/v1/chat/completions")
    async def chat_completions(http: HttpRequest) -> Response:
        def start(body: bytes, tell: Tell) -> tuple[Request, Answer, list[Choice]]:
            request = read_request(ChatRequest, parse_json(body))
            return request, *service.answer(request, tell)

        return await _respond(service, http, await read_body(http, max_body), start)

    return app


async def _respond(service: Service, http: HttpRequest, body: bytes, start: Start) -> Response:
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Event] = asyncio.Queue()

    def tell(event: Event) -> None:  # on the engine's thread
        try:
            loop.call_soon_threadsafe(news.put_nowait, event)
        except RuntimeError:  # the loop has ended, and nobody listens any more
            pass

    request, answer, choices = await asyncio.to_thread(start, body, tell)
    try:
        service.engine.submit(choices)
    except Busy:
        if not service.engine.alive:
            raise ApiError(503, "the server is stopping", kind="server_error") from None
        raise ApiError(429, "too many requests wait already: try again later", kind="rate_limit_error") from None
    events = _events(len(choices), news, http)
    if request.stream:
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        return _Stream(_chunks(answer, events, with_usage=with_usage), lambda: service.engine.cancel(choices))
    try:
        async for event in events:
            answer.take(event)
    finally:
        service.engine.cancel(choices)
    return JSONResponse(answer.whole())


class _Stream(StreamingResponse):
    """A stream of server-sent events.

    Args:
        chunks: its text.
        at_end: called when all is sent or the client has gone away, be it before the first chunk.
    """

    def __init__(self, chunks: AsyncIterator[str], at_end: Callable[[], None]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._at_end = at_end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._at_end()


async def _events(open_choices: int, news: asyncio.Queue[Event], http: HttpRequest) -> AsyncIterator[Event]:
    """The events of so many choices until each has ended, or the client has gone away."""
    looked = time.monotonic()
    while open_choices:
        try:
            event = await asyncio.wait_for(news.get(), _LOOK_SECONDS)
        except TimeoutError:
            event = None
        if time.monotonic() - looked > _LOOK_SECONDS:
            if await http.is_disconnected():
                return
            looked = time.monotonic()
        if event is not None:
            open_choices -= event.finish_reason is not None
            yield event


async def _chunks(answer: Answer, events: AsyncIterator[Event], *, with_usage: bool) -> AsyncIterator[str]:
    """The chunks of an answer; an error is a chunk too, since the status line is long gone."""
    try:
        for chunk in answer.first_chunks():
            yield chunk
        async for event in events:
            answer.take(event)
            for chunk in answer.chunks(event):
                yield chunk
        if with_usage:
            yield answer.usage_chunk()
    except ApiError as error:
        yield sse(error.body())
    except Exception as error:
        log.exception("a stream failed")
        yield sse(_internal(error).body())
    yield DONE


async def _api_error(http: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status)


async def _unforeseen(http: HttpRequest, error: Exception) -> JSONResponse:
    return await _api_error(http, _internal(error))


def _internal(error: Exception) -> ApiError:
    return ApiError(500, f"something went wrong here ({type(error).__name__})", kind="server_error")


async def _http_error(http: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.scope['path']}: {error.detail}"
    response = await _api_error(http, ApiError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response
