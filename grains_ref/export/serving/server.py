"""The HTTP side: /v1/models, /v1/completions, /v1/chat/completions, and errors as JSON that says what to do.

There is no authentication, so the address is this machine's own unless its owner says otherwise; then a web page that
happens to be open in a browser must not reach it either: requests name the host that they think they talk to, and must
be JSON, which a page cannot send to another site without being asked for it first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from grains_ref.export.serving.answers import Answers, models_record
from grains_ref.export.serving.asked import Asked, Limits, RequestError, read_chat, read_completion
from grains_ref.export.serving.served import Running, Served
from grains_ref.files import parse_json, printable

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise ImportError(
        f"grains-ref serve needs Starlette and Uvicorn ({error}). Install them with: pip install 'grains-ref[serve]'"
    ) from error

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_DEPTH = 16  # of a request's JSON

Reader = Callable[[Mapping[str, Any], Limits], Asked]


def application(served: Served, *, hosts: tuple[str, ...] | None = LOOPBACK) -> Starlette:
    """The application; the model's thread ends with it.

    hosts: names that requests may call this machine by; None for any.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(served.close)

    async def models(request: Request) -> Response:
        _check_host(request, hosts)
        return JSONResponse(models_record(served.names))

    async def completions(request: Request) -> Response:
        return await answer(request, read_completion)

    async def chats(request: Request) -> Response:
        return await answer(request, read_chat)

    async def answer(request: Request, read: Reader) -> Response:
        _check_host(request, hosts)
        asked = read(await _body(request, served.limits), served.limits)
        running = await served.ask(asked)
        answers = Answers(served.model, running)
        if asked.stream:
            return StreamingResponse(_stream(running, answers), media_type="text/event-stream")
        return await _unless_gone(request, _whole(running, answers))

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chats, methods=["POST"]),
        ],
        exception_handlers={RequestError: _refuse, HTTPException: _refuse_route, Exception: _fail},
        lifespan=lifespan,
    )


# ------------------------------------------------------------------------------------------- a request
def _check_host(request: Request, hosts: tuple[str, ...] | None) -> None:
    name = request.url.hostname or ""
    if hosts is not None and name not in hosts:
        raise RequestError(
            f"this server answers to {', '.join(hosts)}; the request calls it {printable(repr(name)[:80])}", status=403
        )


async def _body(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RequestError: it is none, or too large.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("send JSON, with the header 'Content-Type: application/json'", status=415)
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limits.body:
            raise RequestError(f"the request is larger than {limits.body} bytes", status=413)
    try:
        body = parse_json(bytes(content), max_depth=MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no JSON that can be read: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("the request is no JSON object")
    return body


# ------------------------------------------------------------------------------------------- an answer
async def _whole(running: Running, answers: Answers) -> Response:
    async with aclosing(running.events()) as events:
        async for event in events:
            answers.take(event)
    return JSONResponse(answers.whole())


async def _unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """The answer; given up when the client hangs up."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        return Response(status_code=499)  # nobody reads it
    finally:
        for task in (answering, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(running: Running, answers: Answers) -> AsyncIterator[str]:
    """Server-sent events; an error that comes too late for a status is one of them."""
    try:
        for part in answers.beginning():
            yield _event(part)
        async with aclosing(running.events()) as events:
            async for event in events:
                if (next_part := answers.part(event)) is not None:
                    yield _event(next_part)
        for part in answers.last():
            yield _event(part)
    except RequestError as error:
        yield _event(error.record())
    finally:
        running.cancel()
    yield "data: [DONE]\n\n"


def _event(record: dict[str, Any]) -> str:
    return f"data: {json.dumps(record, allow_nan=False)}\n\n"


# ------------------------------------------------------------------------------------------- errors
async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.record(), status_code=error.status, headers=headers)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    there = "there are GET /v1/models, POST /v1/completions and POST /v1/chat/completions"
    asked_for = f"{request.method} {request.url.path[:80]}"
    refusal = RequestError(f"{asked_for}: {error.detail}; {there}", status=error.status_code)
    return JSONResponse(refusal.record(), status_code=error.status_code)


async def _fail(request: Request, error: Exception) -> Response:
    failure = RequestError(f"the server failed: {type(error).__name__}", code="failed", status=500)
    return JSONResponse(failure.record(), status_code=500)
