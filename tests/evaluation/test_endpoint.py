"""endpoint.py: no secret is shown anywhere, and no server holds up or fills the one who asks."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from robustness.judge_answers import (
    CASE,
    KEY,
    QUERY,
    REPLY,
    WITHOUT_PROXIES,
    Wire,
    answering,
    body,
    chunked,
    judge,
    leaks,
    response,
    told_by,
)  # fmt: skip

from grains_ref.evaluation import endpoint
from grains_ref.evaluation.endpoint import address_of, hidden
from grains_ref.evaluation.judge import KEY_VARIABLE, ChatJudge, JudgeError
from grains_ref.evaluation.verdicts import Cached

pytestmark = pytest.mark.cpu


def refusal(*answers: bytes, key: str = KEY) -> JudgeError:
    """The error of a judge that gets these answers."""
    with answering(*answers, key=key), pytest.raises(JudgeError) as error:
        judge(attempts=len(answers))(CASE)
    return error.value


# --- secrets


def test_key_and_query_are_sent_and_the_base_keeps_its_path() -> None:
    with answering(response(body(REPLY))) as requests:
        assert judge()(CASE) == REPLY
    head, sent = requests
    assert head.startswith(f"POST /v1/chat/completions?api_key={QUERY} HTTP/1.1\r\n".encode())
    assert f"Authorization: Bearer {KEY}\r\n".encode() in head
    assert KEY.encode() not in sent


@pytest.mark.parametrize("cut", [4, 9, 20, len(KEY)])
@pytest.mark.parametrize("place", ["reason", "header", "body", "redirect", "status", "retried", "content", "end"])
def test_a_key_that_the_server_repeats_is_in_no_error(place: str, cut: int) -> None:
    echo = KEY[:cut]
    answers = {
        "reason": response(b"", status=f"401 {echo}"),
        "header": response(b"", status="400 Bad", headers=f"X-Key: {echo}\r\n".encode()),
        "body": response(f"wrong key: {echo}".encode(), status="401 No"),
        "redirect": response(b"", status="302 Found", headers=f"Location: http://u:{echo}@[/\r\n".encode()),
        "status": f"{echo} {echo}\r\n\r\n".encode(),
        "retried": response(echo.encode(), status=f"503 {echo}"),
        "content": response(f'{{"choices": "{echo}"}}'.encode()),
        "end": response((" " + "x" * 490 + echo).encode(), status="400 Bad"),
    }
    told = told_by(refusal(answers[place]))
    assert leaks(told, part=min(8, cut)) == []
    assert echo not in told


@pytest.mark.parametrize("secret", [KEY, QUERY])
def test_a_reply_that_holds_a_secret_is_kept_without_it(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    with answering(response(body(f"The key {secret} and {secret[:11]}. Rating: 3"))):
        reply = Cached(judge(), path)(CASE)
    assert reply == "The key *** and ***. Rating: 3"
    assert leaks(path.read_text()) == []
    assert Cached(judge(), path)(CASE) == reply  # nobody is asked


def test_a_key_that_the_server_writes_in_escapes_is_not_kept_either() -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in KEY)
    with answering(response(body("The key is KEY. Rating: 3").replace(b"KEY", escaped.encode()))):
        assert judge()(CASE) == "The key is ***. Rating: 3"


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\0", "\x7f", "\u00e9", "\u4e2d", "\t", "\udcff"])
def test_a_key_that_no_header_can_carry_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    asked = judge()
    environment = {KEY_VARIABLE: KEY + end}
    monkeypatch.setattr(os, "environ", environment)  # some of these no environment holds, but a patched one
    with pytest.raises(JudgeError) as of_request:
        asked(CASE)
    assert leaks(told_by(of_request.value)) == []
    with pytest.raises(JudgeError) as of_judge:
        judge()
    for error in (of_request, of_judge):
        assert leaks(f"{error.value!r} {error.value}") == []
        assert f"variable {KEY_VARIABLE} holds no usable key" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (f"http://me:{KEY}@host/v1", "'host/v1' has a user or password"),
        (f"http://{KEY}@host/v1", "'host/v1' has a user or password"),
        (f"http://host:{KEY}/v1", "is no address"),
        (f"host/v1?api_key={KEY}", "'host/v1' is no address"),
        (f"https://host/v1?key={KEY}\n", "'https://host/v1' holds a space, a line break"),
        (f"http://host/v1#{KEY}", "'http://host/v1' is no address"),
        (f"http://[host/v1?{KEY}", "is no address"),
        ("http://:80/v1", "is no address"),
        ("http://h\u00f6st/v1", "beyond ASCII"),
    ],
)
def test_an_address_is_refused_without_user_and_query(base: str, words: str) -> None:
    with pytest.raises(ValueError, match="expected e") as error:
        ChatJudge(base, "m")
    assert words in str(error.value)
    assert error.value.__context__ is None
    if ":/v1" not in base and f":{KEY}/" not in base:
        assert leaks(str(error.value)) == []


def test_an_address_is_shown_without_the_values_of_its_query() -> None:
    found = address_of(f"https://host:81/openai/?api-version=1&key={QUERY}&{KEY}", "chat/completions")
    assert found.url == f"https://host:81/openai/chat/completions?api-version=1&key={QUERY}&{KEY}"
    assert found.shown == "https://host:81/openai/chat/completions?api-version=***&key=***&***"
    assert leaks(repr(found) + repr(judge())) == []


def test_what_is_hidden_is_a_secret_and_nothing_else() -> None:
    assert hidden("aXXbXXXc", ["XXX"], part=4) == "aXXbXXXc"  # too short to be a secret
    assert hidden("a secret secre ret", ["secret"], part=4) == "a *** *** ret"
    assert hidden("a secret secre ret", ["secret"], part=8) == "a *** secre ret"
    assert hidden("", ["secret"], part=4) == ""
    assert hidden("abcdabcd", ["abcdab"], part=4) == "***"


def test_a_word_of_the_query_is_no_secret_in_a_reply() -> None:
    with answering(response(body("It is true. Rating: 5"))):
        assert replace(judge(), base_url="http://127.0.0.1:9/v1?stream=true")(CASE) == "It is true. Rating: 5"


# --- limits


@contextmanager
def writing(write: Callable[[socket.socket], None]) -> Iterator[None]:
    """Every connection is written to by a thread, until the other side hangs up."""
    threads: list[threading.Thread] = []

    def serve(theirs: socket.socket) -> None:
        with theirs, suppress(OSError):
            write(theirs)

    def connect(*args: object, **options: object) -> socket.socket:
        ours, theirs = socket.socketpair()
        threads.append(threading.Thread(target=serve, args=(theirs,)))
        threads[-1].start()
        return Wire(fileno=ours.detach())

    with patch.dict(os.environ, WITHOUT_PROXIES), patch("socket.create_connection", connect):
        yield
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()  # the connection was closed


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("start", [b"", HEAD + b"X: ", HEAD + b"\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n2"])
def test_a_server_that_sends_one_space_now_and_then_is_not_waited_for(start: bytes) -> None:
    def drip(theirs: socket.socket) -> None:
        theirs.sendall(start)
        pause = threading.Event()
        for _ in range(100):  # in all ten times as long as is waited
            theirs.sendall(b" ")
            pause.wait(0.02)

    with writing(drip), pytest.raises(JudgeError, match=r"no whole answer within 0\.2 seconds") as error:
        judge(timeout=0.2)(CASE)
    told_by(error.value)


@pytest.mark.parametrize("start", [HEAD + b"\r\n", HEAD + b"Content-Length: 99999999999999\r\n\r\n"])
def test_a_server_that_sends_gigabytes_is_cut_off(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    sent: list[int] = []

    def pour(theirs: socket.socket) -> None:
        theirs.sendall(start)
        while sum(sent) < 3 * endpoint.MAX_REPLY:
            sent.append(theirs.send(b" " * (1 << 16)))

    with writing(pour), pytest.raises(JudgeError, match=f"the answer is larger than {endpoint.MAX_REPLY} bytes"):
        judge(timeout=60, attempts=2)(CASE)
    assert sum(sent) < 2 * endpoint.MAX_REPLY  # and it was not asked again


def test_endless_headers_and_hundreds_of_interim_answers_end() -> None:
    for answer in (HEAD + b"a: b\r\n" * 5000, b"HTTP/1.1 100 Continue\r\n\r\n" * 500):
        assert "gave no reply" in str(refusal(answer))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response(body(REPLY), length=len(body(REPLY)) + 1), "IncompleteRead"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", "IncompleteRead"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nab\r\n0\r\n\r\n", "gave no reply"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n", "IncompleteRead"),
        (b"", "RemoteDisconnected"),
        (b"SSH-2.0-x\r\n", "BadStatusLine"),
        (response(body(REPLY)[:-3] + b"\xff\"}"), "choices"),
        (response(b"[" * 20_000), "choices"),
        (response(b'{"choices": NaN}'), "choices"),
        (response(b'{"choices": ' + b"9" * 5000 + b"}"), "choices"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_or_does_harm_is_a_judge_error(answer: bytes, words: str) -> None:
    assert words in told_by(refusal(answer))


def test_chunks_are_put_together_and_trouble_that_passes_is_no_trouble() -> None:
    broken = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"
    with answering(broken, b"", chunked(random.Random(0), body(REPLY))):
        assert judge(attempts=3)(CASE) == REPLY
