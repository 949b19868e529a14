"""Seeded damage to what a chat endpoint answers: the right reply, or a JudgeError; and the key is nowhere.

rng = random.Random(0)
for _ in range(10_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import json
import os
import random
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from robustness.vector_files import STRANGE

from grains_ref.evaluation.judge import KEY_VARIABLE, Case, ChatJudge, JudgeError

KEY = "sk-7Gq2Xw9LmP4tZc8V+bN1y/5dRfKe="
QUERY = "Hj3Vn8TsQ0aY6uWi"
REPLY = "One dog, not two. \u00e9 Rating: 2"
CASE = Case(("Bus", "Dog"), "How many dogs are there?", "There is one dog.", "There are two dogs.")
BASE = f"http://127.0.0.1:9/v1?api_key={QUERY}"
WITHOUT_PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "")


class Wire(socket.socket):
    """One end of a pair, for a client that takes it for a connection over a network."""

    def setsockopt(self, *args: Any) -> None:
        pass


@contextmanager
def answering(*answers: bytes, key: str = KEY) -> Iterator[list[bytes]]:
    """Every connection gets the next of the answers, already written, and then the end of it. Gives the requests.

    No server: an answer lies in the buffer of a pair of sockets before it is asked for.
    """
    waiting, requests = list(answers), list[bytes]()

    def connect(*args: Any, **options: Any) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        theirs.setblocking(False)
        with theirs:
            theirs.sendall(waiting.pop(0))
            theirs.shutdown(socket.SHUT_WR)
            wire = Wire(fileno=ours.detach())
            wire.sendall = requests.append  # type: ignore[method-assign]
        return wire

    environment = WITHOUT_PROXIES | {KEY_VARIABLE: key}
    with patch.dict(os.environ, environment), patch("socket.create_connection", connect):
        yield requests


def judge(**options: Any) -> ChatJudge:
    """One attempt, and nobody waits."""
    return ChatJudge(BASE, "m", **{"attempts": 1, "timeout": 5.0, "sleep": lambda seconds: None} | options)


def leaks(text: str, *, part: int = 8) -> list[str]:
    """The parts of a secret in a text."""
    return [
        secret[i : i + part] for secret in (KEY, QUERY) for i in range(len(secret) - part + 1)
        if secret[i : i + part] in text
    ]  # fmt: skip


def told_by(error: BaseException) -> str:
    """All that an error can tell: its message, its repr, its context, and what its frames below the test hold."""
    assert error.__cause__ is None
    assert error.__context__ is None
    below = error.__traceback__.tb_next if error.__traceback__ else None
    whole = traceback.TracebackException(type(error), error, below, capture_locals=True)
    return "".join([str(error), repr(error), *whole.format()])


def body(content: Any) -> bytes:
    """What an endpoint answers, as JSON; what JSON cannot hold is written as Python writes it."""
    return json.dumps({"id": "x", "choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def response(data: bytes, *, status: str = "200 OK", length: Any = None, headers: bytes = b"") -> bytes:
    """An HTTP response."""
    size = len(data) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n".encode() + headers + b"\r\n" + data


def chunked(rng: random.Random, data: bytes) -> bytes:
    """The same in chunks of random sizes."""
    content = b""
    while data:
        n = rng.randint(1, 40)
        content += f"{len(data[:n]):x}\r\n".encode() + data[:n] + b"\r\n"
        data = data[n:]
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + content + b"0\r\n\r\n"


def mutations(rng: random.Random) -> tuple[bytes, bool]:
    """A raw answer with one kind of damage, and whether a reply out of it must be the right one."""
    data = body(REPLY)
    whole = rng.choice([response(data), chunked(rng, data)])
    match rng.randrange(9):
        case 0:
            return whole, True
        case 1:  # the connection ends too soon
            return whole[: rng.randrange(len(whole))], True
        case 2:  # a length that is none
            wrong = [-1, 10**30, "9" * 5000, "x", "", "1e3", len(data) + 7, "0x10", f"{len(data)}, {len(data)}"]
            return response(data, length=rng.choice(wrong)), True
        case 3:  # a chunk that is none
            sizes = [b"-1", b"-5", b"zz", b"", b"f" * 30, b"1 0", b"9" * 70_000, b"7fffffffffffffff"]
            start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            return start + rng.choice(sizes) + b"\r\n" + data + b"\r\n0\r\n\r\n", True
        case 4:  # JSON that does harm
            deep = b"[" * rng.choice([101, 20_000])
            harm = [deep, b'{"choices":' + deep, b"NaN", b"9" * 9999, b'{"a":1e999}', data[:-1] + b',"id":1}', b"\xff"]
            return response(rng.choice(harm)), True
        case 5:  # content of another kind
            strange = [value for value in STRANGE if not isinstance(value, str)]
            return response(body(rng.choice([*strange, [REPLY]]))), True
        case 6:  # the server repeats what is secret, whole or cut
            secret = rng.choice([KEY, f"Bearer {KEY}", QUERY, KEY[::-1] + KEY])
            echo = secret[rng.randrange(4) : rng.randint(12, len(secret))]
            status = rng.choice(["200 OK", f"200 {echo}", f"401 {echo}", f"302 {echo}", f"500 {echo}", f"{echo} 200"])
            headers = rng.choice([b"", f"Location: http://{echo}/\r\n".encode(), f"{echo}: {echo}\r\n".encode()])
            text = rng.choice([echo, f"{REPLY} {echo}", f"{echo}\n{echo}"])
            return response(rng.choice([body(text), text.encode()]), status=status, headers=headers), False
        case 7:  # bytes flipped anywhere
            damaged = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            return bytes(damaged), False
        case _:  # no HTTP at all
            junk = [b"", b"SSH-2.0\r\n", b"\0" * 100, b"HTTP/1.1 100 Continue\r\n\r\n" * 50, rng.randbytes(300)]
            return rng.choice([*junk, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, b"a" * 70_000]), True


def check(answer: bytes, *, must_be_right: bool = True) -> str:
    """ "accepted" with the right reply, or "refused" by a JudgeError; no secret in either."""
    asked = judge()
    assert not leaks(repr(asked)), "silent: the address shows a secret"
    error: JudgeError | None = None
    with answering(answer):
        try:
            reply = asked(CASE)
        except JudgeError as refusal:
            error = refusal
    if error is not None:
        assert not leaks(told_by(error)), f"silent: the error tells a secret: {error}"
        return "refused"
    assert reply == REPLY or not must_be_right, f"silent: {reply!r}"
    assert not leaks(reply), f"silent: the reply holds a secret: {reply!r}"
    return "accepted"


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged answer."""
    answer, must_be_right = mutations(rng)
    return check(answer, must_be_right=must_be_right)
