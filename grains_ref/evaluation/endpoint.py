"""One request to a chat endpoint: within a total time and size, and without a trace of its secrets.

A secret is the API key, and every value in the query of an address.  What a server sends is never shown with one in it,
nor with a part of one.  Whatever goes wrong on the way comes back as words (`Trouble`), not as an exception: those of
the HTTP library hold the request and what the server wrote, and would go on as the context of the error made of them.
"""

from __future__ import annotations

import functools
import http.client
import io
import os
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from grains_ref.files import printable

MAX_REPLY = 1 << 24  # bytes of a response with its headers
PART = 4  # so many characters of a secret in a row are hidden in what is said of a failure
LONG_PART = 8  # and so many in a reply, whose words must not suffer
NO_SECRET = 4  # anything shorter keeps nothing secret, and is found in every text
_SENDABLE = re.compile(r"[\x21-\x7e]+")  # what a header or an address can carry

Connect: TypeAlias = Callable[..., http.client.HTTPConnection]


class JudgeError(ValueError):
    """The judge gave no reply; the message says what it answered instead and what to do."""


# ------------------------------------------------------------------------------------- secrets
@dataclass(frozen=True)
class Address:
    """Where requests go. `shown` is the address as it may be shown; `secrets` are the values of its query."""

    url: str = field(repr=False)
    shown: str
    secrets: tuple[str, ...] = field(repr=False)


def address_of(base_url: str, path: str) -> Address:
    """The address of a path below a base, whose query is kept.

    Raises:
        ValueError: the base is no address that a request can be sent to. The message shows neither user nor query.
    """
    beginning = printable(re.split(r"[?#]", base_url)[0].rpartition("@")[2])
    problem = _problem_of(base_url)
    if problem:
        raise ValueError(f"base_url {beginning!r} {problem}; expected e.g. http://127.0.0.1:8000/v1")
    scheme, host, base, query, _ = urllib.parse.urlsplit(base_url)
    whole = f"{base.rstrip('/')}/{path}"
    values, names = list[str](), list[str]()
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        values.append(value or part)  # without a value, the name itself may be the secret
        names.append(f"{name}{equals}***" if value else "***")
    return Address(
        url=urllib.parse.urlunsplit((scheme, host, whole, query, "")),
        shown=f"{scheme}://{host}{whole}" + ("?" + "&".join(names) if query else ""),
        secrets=(*values, *map(urllib.parse.unquote_plus, values)),
    )


def _problem_of(base_url: str) -> str:
    """What is wrong with an address, in words that follow its beginning; "" if nothing is."""
    if not base_url.startswith(("http://", "https://")):
        return "is no address"
    if not _SENDABLE.fullmatch(base_url):
        return "holds a space, a line break or a character beyond ASCII"
    if "@" in base_url.partition("?")[0]:
        return "has a user or password before the @, which is not sent; give a key in the environment variable"
    try:
        parts = urllib.parse.urlsplit(base_url)
        is_complete = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_complete = False
    if not is_complete or "#" in base_url:
        return "is no address"
    return ""


def check_key(variable: str) -> None:
    """Refuse a key that no header can carry, without showing it.

    Raises:
        JudgeError: the environment variable holds such a key.
    """
    if os.environ.get(variable) and not _SENDABLE.fullmatch(os.environ[variable]):
        raise JudgeError(
            f"the environment variable {variable} holds no usable key: it has a line break, a space or a character "
            "beyond ASCII"
        )


def hidden(text: str, secrets: Sequence[str], *, part: int) -> str:
    """Text in which every run of `part` characters of a secret, or all of a shorter one, is replaced by ***."""
    is_hidden = bytearray(len(text))
    for secret in secrets:
        if len(secret) < NO_SECRET:
            continue
        n = min(part, len(secret))
        for piece in {secret[i : i + n] for i in range(len(secret) - n + 1)}:
            at = text.find(piece)
            while at >= 0:
                is_hidden[at : at + n] = b"\x01" * n
                at = text.find(piece, at + 1)
    pieces, end = [], 0
    for run in re.finditer(b"\x01+", is_hidden):
        pieces += [text[end : run.start()], "***"]
        end = run.end()
    return "".join([*pieces, text[end:]])


# ------------------------------------------------------------------------------------- one request
@dataclass(frozen=True)
class Reply:
    """What a server answered, without secrets."""

    status: int
    reason: str
    retry_after: str
    text: str = field(repr=False)
    is_utf8: bool  # otherwise the text has replacement characters


@dataclass(frozen=True)
class Trouble:
    """Why there is no answer, without secrets; and whether that may pass."""

    words: str
    may_pass: bool


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, with which key, and how long and how large an answer may be.

    timeout: seconds from the first byte sent to the last byte read (the look-up of a name comes before).
    limit: bytes of an answer, headers included.
    """

    address: Address
    key_variable: str
    timeout: float
    limit: int = MAX_REPLY

    def post(self, body: bytes) -> Reply | Trouble:
        """Send JSON and read the answer, whatever its status. A redirect is an answer: the key follows none."""
        limits = _Limits(time.monotonic() + self.timeout, self.limit)
        opener = urllib.request.build_opener(_AnyStatus, _Http(limits), _Https(limits))
        try:
            with opener.open(self._request(body), timeout=self.timeout) as response:
                content = _read(response)
                status, reason = int(response.status), str(response.reason)
                retry_after = str(response.headers.get("Retry-After", ""))
        except _TooLargeError as error:
            return Trouble(str(error), may_pass=False)
        except TimeoutError:
            return Trouble(f"TimeoutError: no whole answer within {self.timeout:g} seconds", may_pass=True)
        except (OSError, http.client.HTTPException) as error:
            return Trouble(self.hidden(f"{type(error).__name__}: {error}"), may_pass=True)
        except (ValueError, OverflowError) as error:  # a chunk of less than no bytes
            return Trouble(self.hidden(f"no HTTP: {type(error).__name__}: {error}"), may_pass=True)
        try:
            text, is_utf8 = content.decode(), True
        except UnicodeDecodeError:
            text, is_utf8 = content.decode(errors="replace"), False
        return Reply(status, self.hidden(reason), retry_after, self.without_secrets(text), is_utf8)

    def hidden(self, text: str) -> str:
        """Text of the server in one line, without secrets, should it quote one."""
        return printable(" ".join(hidden(text, [self._key(), *self.address.secrets], part=PART).split()))

    def without_secrets(self, reply: str) -> str:
        """A reply as it was written, without secrets, should it quote one; ?stream=true makes no secret of a word."""
        long = [secret for secret in self.address.secrets if len(secret) >= LONG_PART]
        return hidden(reply, [self._key(), *long], part=LONG_PART)

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "")

    def _request(self, body: bytes) -> urllib.request.Request:
        request = urllib.request.Request(self.address.url, body, {"Content-Type": "application/json"})
        if key := os.environ.get(self.key_variable):
            request.add_header("Authorization", f"Bearer {key}")
        return request


def _read(response: Any) -> bytes:
    """The body, piece by piece: the length that a server claims is neither believed nor set aside for it."""
    parts = []
    while part := response.read(1 << 16):
        parts.append(part)
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


class _TooLargeError(Exception):
    """The answer is larger than any reply."""


class _Limits:
    """How long an answer may go on, and how large it may become."""

    def __init__(self, deadline: float, limit: int) -> None:
        self._deadline, self._limit, self._read = deadline, limit, 0

    def seconds_left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def count(self, n: int) -> None:
        self._read += n
        if self._read > self._limit:
            raise _TooLargeError(f"the answer is larger than {self._limit} bytes")


class _Bounded(io.RawIOBase):
    """What a socket gives within the limits: a timeout of the socket itself begins anew with every byte."""

    def __init__(self, sock: socket.socket, limits: _Limits) -> None:
        self._sock, self._stream, self._limits = sock, sock.makefile("rb", buffering=0), limits

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._limits.seconds_left())
        n = self._stream.readinto(buffer)
        self._limits.count(n or 0)
        return n

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that is read within the limits, status line and headers too."""

    def __init__(self, sock: socket.socket, *args: Any, limits: _Limits, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Bounded(sock, limits))


def _within(limits: _Limits, kind: Connect) -> Any:
    def connect(host: str, **options: Any) -> http.client.HTTPConnection:
        connection = kind(host, **options)
        connection.response_class = functools.partial(_Response, limits=limits)  # type: ignore[assignment]
        return connection

    return connect


class _Http(urllib.request.HTTPHandler):
    def __init__(self, limits: _Limits) -> None:
        super().__init__()
        self._limits = limits

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_within(self._limits, http.client.HTTPConnection), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, limits: _Limits) -> None:
        super().__init__()
        self._limits = limits

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_within(self._limits, http.client.HTTPSConnection), request)


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Every status is an answer: nothing is raised, and no redirect followed, which would carry the key elsewhere."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response
