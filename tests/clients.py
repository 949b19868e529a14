"""Clients of a served model: in this process, and over loopback."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn

from grains_ref.export.serving.asked import Limits
from grains_ref.export.serving.served import Served, ServedVectors
from grains_ref.export.serving.server import application
from grains_ref.models import HuggingFaceModel

LAM = 0.7  # what the vectors' file is taken to say


def some_vectors(model: HuggingFaceModel, seed: int) -> torch.Tensor:
    return torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(seed))


@contextmanager
def served_by(model: HuggingFaceModel, n: int, **limits: int) -> Iterator[Served]:
    """The model with n vectors, v0, v1, ...; they act at all blocks."""
    layers = tuple(range(len(model.blocks)))
    vectors = {f"v{i}": ServedVectors(some_vectors(model, i), LAM, layers) for i in range(n)}
    served = Served(model, vectors, Limits(**limits))
    try:
        yield served
    finally:
        served.close()


@dataclass
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def parts(self) -> list[Any]:
        """The parts of a stream, which ends as it should."""
        *events, done, rest = self.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


HEADERS = {"host": "127.0.0.1:8000", "content-type": "application/json"}


async def ask(
    served: Served,
    body: Mapping[str, Any] | bytes,
    path: str = "/v1/completions",
    *,
    method: str = "POST",
    headers: Mapping[str, str] = HEADERS,
    hang_up_after: float | None = None,
) -> Answer:
    """One request to the application, without a network."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    incoming: list[Any] = [{"type": "http.request", "body": content, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await asyncio.sleep(hang_up_after if hang_up_after is not None else 3600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
    }
    await application(served)(scope, receive, send)
    start, *rest = sent
    named = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], b"".join(message.get("body", b"") for message in rest), named)


def one(served: Served, body: Mapping[str, Any] | bytes, path: str = "/v1/completions", **options: Any) -> Answer:
    """One request alone."""
    return asyncio.run(ask(served, body, path, **options))


def at_once(served: Served, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """All requests at the same time."""

    async def all_of_them() -> list[Answer]:
        return list(await asyncio.gather(*(ask(served, body) for body in bodies)))

    return asyncio.run(all_of_them())


@contextmanager
def listening(served: Served) -> Iterator[str]:
    """The address of a real server on loopback."""
    server = uvicorn.Server(uvicorn.Config(application(served), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
