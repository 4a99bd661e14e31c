"""The HTTP side: routes, streams, errors in the API's shape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from evo_core.serve.answers import DONE, Answer, ApiError, sse
from evo_core.serve.engine import Busy, Choice, Event
from evo_core.serve.requests import ChatRequest, CompletionRequest, Request
from evo_core.serve.service import Service

_LOOK_SECONDS = 0.25
"""How often a waiting answer looks whether its client is still there."""

PAGE = Path(__file__).with_name("page.html")

Start = Callable[[Callable[[Event], None]], tuple[Answer, list[Choice]]]


def create_app(service: Service) -> FastAPI:
    """The web application of a service; its engine runs while the application does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(title="Evo", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @app.get("/health")
    async def health() -> JSONResponse:
        running, waiting = service.engine.load()
        alive = service.engine.alive
        body = {"status": "ok" if alive else "stopping", "running": running, "waiting": waiting}
        return JSONResponse(body, 200 if alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_name(name)
        return service.card()

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: HttpRequest) -> Response:
        return await _respond(service, request, http, lambda tell: service.completion(request, tell))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: HttpRequest) -> Response:
        return await _respond(service, request, http, lambda tell: service.answer(request, tell))

    return app


async def _respond(service: Service, request: Request, http: HttpRequest, start: Start) -> Response:
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Event] = asyncio.Queue()

    def tell(event: Event) -> None:  # on the engine's thread
        try:
            loop.call_soon_threadsafe(news.put_nowait, event)
        except RuntimeError:  # the loop has ended, and nobody listens any more
            pass

    answer, choices = await asyncio.to_thread(start, tell)
    try:
        service.engine.submit(choices)
    except Busy:
        raise ApiError(429, "too many requests wait already: try again later", kind="rate_limit_error") from None
    events = _events(service, choices, news, http)
    if request.stream:
        with_usage = request.stream_options is not None and request.stream_options.include_usage
        stream = _stream(answer, events, with_usage=with_usage)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    async for event in events:
        answer.take(event)
    return JSONResponse(answer.whole())


async def _events(
    service: Service, choices: list[Choice], news: asyncio.Queue[Event], http: HttpRequest
) -> AsyncIterator[Event]:
    """The events of all choices until each has ended; a client that goes away ends them."""
    open_choices, looked = len(choices), time.monotonic()
    try:
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
    finally:
        service.engine.cancel(choices)


async def _stream(answer: Answer, events: AsyncIterator[Event], *, with_usage: bool) -> AsyncIterator[str]:
    for chunk in answer.first_chunks():
        yield chunk
    try:
        async for event in events:
            answer.take(event)
            for chunk in answer.chunks(event):
                yield chunk
        if with_usage:
            yield answer.usage_chunk()
    except ApiError as error:  # the status line is long gone
        yield sse(error.body())
    finally:
        await events.aclose()  # type: ignore[attr-defined]
    yield DONE


async def _api_error(http: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status)


async def _bad_request(http: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        place, message = [], f"the body is not JSON ({first.get('ctx', {}).get('error', message)})"
    if first["type"] == "extra_forbidden":
        message = "there is no such field here"
    param = ".".join(place) or None
    return await _api_error(http, ApiError(400, f"{param}: {message}" if param else message, param=param))


async def _http_error(http: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    response = await _api_error(http, ApiError(error.status_code, message))
    response.headers.update(error.headers or {})
    return response
