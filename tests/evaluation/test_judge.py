"""judge.py: ratings out of every kind of reply, a chat endpoint that misbehaves, and runs that are interrupted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from grains_ref.evaluation.judge import (
    KEY_VARIABLE,
    TEMPLATE,
    Case,
    ChatJudge,
    JudgeError,
    fill,
    judge_all,
    read_rating,
    read_rating_strictly,
    read_template,
)
from grains_ref.evaluation.verdicts import Cached
from grains_ref.files import FileError

pytestmark = pytest.mark.cpu

CASE = Case(("Bus", "Dog"), "How many dogs are there?", "There is one dog.", "There are two dogs {by} the bus.")
CASES = [replace(CASE, answer=f"There are {i} dogs.") for i in range(6)]


class Echo:
    """A judge that needs no server: it repeats the answer."""

    identity = "echo"

    def __call__(self, case: Case) -> str:
        return case.answer


# --- ratings


@pytest.mark.parametrize(
    ("reply", "official", "ours"),
    [
        ("Rating: 4, somewhat informative", 4, 4),
        ("**Rating**: 5", None, 5),
        ("Rating: **3**", None, 3),
        ("rating 4", None, 4),
        ("At first I had Rating: 4, but it is not. Rating: 2", None, 2),
        ("The answer is fine.", None, None),
        ("", None, None),
        ("RATING: 0", 0, 0),
        ("### Rating\n\n6", None, 6),
        ('{"explanation": "fine", "rating": 1}', None, 1),
        ("Rating: [[2]]", None, 2),
        ("Rating (0-6): 4", None, 4),
        ("Rating (0 to 6): **4**", None, 4),
        ("Rating\u00a0: 3", None, 3),
        ("I would give it a rating of 5.", None, 5),
        ("The rating is: 5", None, 5),
        ("Rating: 4/6", 4, 4),
        ("Rating: 6.", 6, 6),
        ("Rating: 10", 1, None),
        ("Rating: 7", None, None),
        ("Rating: 60", 6, None),
        ("Rating: 4.5", 4, None),
        ("Rating: -1", None, None),
        ("Rating - 1", None, 1),
        ("Rating: four", None, None),
        ("There are 4 dogs; the rating depends on 3 things", None, None),
        ("<think>Rating: 1 is tempting</think> One dog, not two.\nRating: 2", None, 2),
    ],
)
def test_ratings_are_read(reply: str, official: int | None, ours: int | None) -> None:
    assert read_rating(reply) == ours
    assert read_rating_strictly(reply) == official


# --- templates


def test_the_prompt_shows_the_case() -> None:
    prompt = fill(TEMPLATE, CASE)
    for text in ("Bus, Dog", CASE.question, CASE.reference, CASE.answer):
        assert prompt.count(text) == 1
    assert [prompt.index(f"\n{score} if ") for score in range(6, -1, -1)] == sorted(
        prompt.index(f"\n{score} if ") for score in range(7)
    )
    assert "{" not in prompt.replace("{by}", "")


def test_a_template_is_read_from_the_benchmarks_script_without_running_it(tmp_path: Path) -> None:
    script = tmp_path / "eval_gpt4.py"
    script.write_text(
        "import openai\nraise SystemExit('run')\n"
        "template = '''Judge.\n### C\n{}\n### Q\n{}\n### S\n{}\n### R\n{}\n'''\n"
    )
    template = read_template(script)
    assert fill(template, CASE) == (
        "Judge.\n### C\nBus, Dog\n### Q\nHow many dogs are there?\n### S\nThere is one dog.\n### R\n"
        "There are two dogs {by} the bus.\n"
    )
    plain = tmp_path / "prompt.txt"
    plain.write_text("{answer} {{}} {contents} {reference} {question}")
    assert fill(read_template(plain), CASE).startswith("There are two dogs {by} the bus. {} Bus, Dog There")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1", "expected one assignment of a text to `template`, found 0"),
        ("a.py", "template = '{}{}{}{}'\ntemplate = '{}{}{}{}'", "found 2"),
        ("a.py", "template = 'a {} b'", r"expected the places \{contents\}.*found \[''\]"),
        ("a.txt", "{question} {answer} {contents}", "found .'question', 'answer', 'contents'."),
        ("a.txt", "{question} {answer} {contents} {reference} {more}", "Other braces must be doubled"),
    ],
)
def test_other_templates_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_template(tmp_path / name)


# --- a chat endpoint


# What the endpoint does with a request: status, body, headers.
Answer: TypeAlias = Callable[[dict[str, Any]], tuple[int, Any, dict[str, str]]]


class Server:
    """A chat endpoint on this machine. Each request is kept and gets the next of `answers`, then the last again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [says("Fine. Rating: 5")]
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append((self.path, dict(self.headers), body))
                    answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                status, payload, headers = answer(body)
                if status == 0:
                    self.close_connection = True  # hang up without a word
                    return
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                with suppress(ConnectionError):  # the other side does not wait any more
                    self.end_headers()
                    self.wfile.write(data)

            def do_GET(self) -> None:
                with server.lock:
                    server.requests.append((self.path, dict(self.headers), {}))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


def says(text: Any) -> Answer:
    return lambda body: (200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {})


def fails(
    status: int, payload: Any = b"", **headers: str
) -> Callable[[dict[str, Any]], tuple[int, Any, dict[str, str]]]:
    return lambda body: (status, payload, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    running = Server()
    thread = threading.Thread(target=running.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.http.shutdown()
    running.http.server_close()
    thread.join()


def chat(server: Server, waits: list[float] | None = None, **options: Any) -> ChatJudge:
    kept = [] if waits is None else waits
    return ChatJudge(server.url, "some-model", sleep=kept.append, **options)


def test_a_chat_model_is_asked_as_every_such_endpoint_expects(server: Server) -> None:
    assert judge_all(chat(server), [CASE])[0].rating == 5
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "some-model",
        "temperature": 0,
        "messages": [{"role": "user", "content": fill(TEMPLATE, CASE)}],
    }
    assert "Authorization" not in headers
    assert headers["Content-Type"] == "application/json"
    ChatJudge(server.url + "/", "some-model", options={"seed": 3})(CASE)
    assert server.requests[1][0] == path
    assert {k: v for k, v in server.requests[1][2].items() if k not in ("messages", "model")} == {"seed": 3}


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret-1234")
    path = tmp_path / "verdicts.jsonl"
    judge = Cached(chat(server), path)
    judge(CASE)
    assert server.requests[0][1]["Authorization"] == "Bearer secret-1234"
    server.answers = [fails(401, b"Incorrect API key provided: secret-1234.")]
    with pytest.raises(JudgeError, match=r"401 .*key provided: \*\*\*\.") as refused:
        judge(CASES[0])
    assert f"Is the environment variable {KEY_VARIABLE} set to a valid key?" in str(refused.value)
    server.answers = [fails(200, b"secret-1234 what?")]
    with pytest.raises(JudgeError, match=r"not with choices.*\*\*\* what\?") as other:
        judge(CASES[0])
    for text in (
        path.read_text(),
        repr(judge),
        repr(chat(server)),
        judge.identity,
        str(refused.value),
        str(other.value),
    ):
        assert "secret" not in text
    monkeypatch.setenv("OTHER", "secret-5678")
    server.answers = [says("Rating: 1")]
    chat(server, key_variable="OTHER")(CASE)
    assert server.requests[-1][1]["Authorization"] == "Bearer secret-5678"


def test_a_redirect_is_refused_and_the_key_does_not_follow_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret-1234")
    for status in (301, 302, 303, 307, 308):
        server.answers = [fails(status, Location=f"{server.url}/elsewhere")]
        with pytest.raises(JudgeError, match=f"refused the request: {status}"):
            chat(server)(CASE)
    assert len(server.requests) == 5


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 0])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    waits: list[float] = []
    server.answers = [fails(status), fails(status), fails(status), says("Rating: 2")]
    assert chat(server, waits)(CASE) == "Rating: 2"
    assert waits == [1.0, 2.0, 4.0]
    assert len({json.dumps(body) for _, _, body in server.requests}) == 1


def test_the_server_may_say_how_long_to_wait(server: Server) -> None:
    waits: list[float] = []
    asked = ["7", "0.5", "3600", "Wed, 21 Oct 2015 07:28:00 GMT", "-3"]
    server.answers = [*(fails(429, Retry_After=value) for value in asked), says("Rating: 2")]
    assert chat(server, waits, longest_wait=20)(CASE) == "Rating: 2"
    assert waits == [7.0, 2.0, 20.0, 8.0, 16.0]


def test_patience_ends(server: Server) -> None:
    waits: list[float] = []
    server.answers = [fails(503, b"loading the model")]
    with pytest.raises(
        JudgeError, match="gave no reply in 4 attempts; the last: 503 Service Unavailable: loading the m"
    ):
        chat(server, waits, attempts=4)(CASE)
    assert waits == [1.0, 2.0, 4.0]
    assert len(server.requests) == 4


def test_a_reply_that_takes_too_long_is_asked_for_again(server: Server) -> None:
    release = threading.Event()

    def hangs(body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        release.wait(10)
        return says("Rating: 0")(body)  # too late

    server.answers = [hangs, says("Rating: 3")]
    waits: list[float] = []
    assert chat(server, waits, timeout=0.5, attempts=50)(CASE) == "Rating: 3"  # many, as this machine may be slow
    release.set()
    assert waits[0] == 1.0


def test_nobody_there(server: Server) -> None:
    server.http.server_close()
    with pytest.raises(JudgeError, match="gave no reply in 2 attempts; the last: URLError"):
        chat(server, attempts=2)(CASE)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "Some models refuse options"),
        (403, "set to a valid key"),
        (404, "does the server have this model"),
        (422, ""),
    ],
)
def test_what_will_not_pass_is_raised_at_once(server: Server, status: int, advice: str) -> None:
    server.answers = [fails(status, b"no  such\nthing")]
    with pytest.raises(JudgeError, match=rf"refused the request: {status} .*: no such thing.*{advice}"):
        chat(server)(CASE)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "payload", [b"<html>", b"[]", b"{}", {"choices": []}, {"choices": [{"message": {"content": ["a"]}}]}, b"\xff"]
)
def test_an_answer_of_another_kind_is_an_error(server: Server, payload: Any) -> None:
    server.answers = [fails(200, payload)]
    with pytest.raises(JudgeError, match="Is base_url that of an OpenAI-compatible chat endpoint"):
        chat(server)(CASE)


def test_addresses_and_templates_are_checked_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="base_url 'localhost:8000' is no address"):
        ChatJudge("localhost:8000", "m")
    with pytest.raises(ValueError, match="template: expected the places"):
        ChatJudge("http://localhost:8000", "m", template="{answer}")


# --- the cache


def test_an_interrupted_run_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    def by_answer(body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        count = body["messages"][0]["content"].rsplit("There are ", 1)[1][0]
        return says(f"\u00e9\u2028 Rating: {count}")(body)

    path = tmp_path / "verdicts.jsonl"
    server.answers = [by_answer, by_answer, by_answer, fails(403), by_answer]
    with pytest.raises(JudgeError, match="403"):
        judge_all(Cached(chat(server), path), CASES)
    kept = path.read_text().count("\n")
    assert kept >= 3  # what was judged before the error, and perhaps after it
    before = len(server.requests)
    verdicts = judge_all(Cached(chat(server), path), CASES)
    assert [verdict.rating for verdict in verdicts] == [0, 1, 2, 3, 4, 5]
    assert verdicts[2].reply == "\u00e9\u2028 Rating: 2"
    assert len(server.requests) - before == 6 - kept
    again = judge_all(Cached(chat(server), path), CASES, workers=3, read=read_rating_strictly)
    assert [verdict.rating for verdict in again] == [0, 1, 2, 3, 4, 5]
    assert len(server.requests) - before == 6 - kept
    row = json.loads(path.read_text().splitlines()[0])
    assert (row["question"], row["reply"]) == (CASE.question, "\u00e9\u2028 Rating: 0")


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"options": {"temperature": 1}}, {"template": TEMPLATE + " "}],
)
def test_another_judge_is_asked_anew(server: Server, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "verdicts.jsonl"
    Cached(chat(server), path)(CASE)
    other = replace(chat(server), **change)
    Cached(other, path)(CASE)
    assert len(server.requests) == 2
    moved = replace(other, base_url="http://127.0.0.1:9/v1", timeout=1.0)
    Cached(moved, path)(CASE)  # the same judge at another address: nobody is asked
    assert len(server.requests) == 2


def test_every_part_of_a_case_counts(tmp_path: Path) -> None:
    judge = Cached(Echo(), tmp_path / "verdicts.jsonl")
    for change in ({"contents": ("Bus",)}, {"question": "?"}, {"reference": "two"}, {"answer": "one"}, {}):
        judge(replace(CASE, **change))  # type: ignore[arg-type]
    assert (tmp_path / "verdicts.jsonl").read_text().count("\n") == 5


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path, judge = tmp_path / "verdicts.jsonl", Echo()
    for case in CASES[:3]:
        Cached(judge, path)(case)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) - 30, whole.index(b"\n") + 1, whole.index(b"\n"), 3, 0):
        path.write_bytes(whole[:size])
        cached = Cached(judge, path)
        for case in CASES[:3]:
            cached(case)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", ["a,b\n", "{}\n", '{"key": 1}\n', "notes without an end", "[1]\n"])
def test_another_file_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="is this another file"):
        Cached(Echo(), path)
    assert path.read_text() == content


def test_a_folder_that_is_not_there_is_known_before_anything_is_asked(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"there is no folder .*missing\. Make it first"):
        Cached(chat(server), tmp_path / "missing" / "verdicts.jsonl")


def test_several_at_once_keep_their_order(server: Server, tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def waits_for_others(body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        together.wait(30)
        return says(body["messages"][0]["content"].rsplit("There are ", 1)[1][0])(body)

    server.answers = [waits_for_others]
    verdicts = judge_all(Cached(chat(server), tmp_path / "v.jsonl"), CASES, workers=3)
    assert [verdict.reply for verdict in verdicts] == list("012345")
    assert [verdict.rating for verdict in verdicts] == [None] * 6
    assert (tmp_path / "v.jsonl").read_text().count("\n") == 6


def test_contents_are_a_list_of_things_not_a_text() -> None:
    with pytest.raises(ValueError, match="contents must be a tuple of texts; got the text 'bus'"):
        Case("bus", "?", "One.", "Two.")  # type: ignore[arg-type]
