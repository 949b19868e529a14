"""A judge that rates replies for hallucination, MMHal-Bench's way: a chat model anywhere.

    judge = Cached(ChatJudge("http://127.0.0.1:8000/v1", model="some-model"), "verdicts.jsonl")
    verdicts = judge_all(judge, [Case(contents=("bus", "dog"), question=..., reference=..., answer=...), ...])
    rating_summary([verdict.rating for verdict in verdicts])

A judge is any `Judge`: something with an identity that turns a case into a reply in free words.  The rating is read out
of the reply, which is kept, so that it can be read again.  Numbers of different judges cannot be compared: keep
`Judge.identity` with every result.
"""

from __future__ import annotations

import ast
import hashlib
import http.client
import json
import os
import re
import string
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

KEY_VARIABLE = "GRAINS_JUDGE_API_KEY"
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # too early, too many, or the server's own trouble
FIELDS = ("contents", "question", "reference", "answer")

TEMPLATE = """\
You are checking the answer that a vision-language model gave to a question about a picture. You cannot see the \
picture. You get a list of what it shows, and a correct answer written by a person.

Call it a hallucination if the answer claims something (an object, a number, a colour, a place, an action, a text) \
that is wrong about the picture or that nothing in the list and in the correct answer supports. General knowledge and \
careful reasoning are no hallucination. Neither is an answer that leaves things out, is vague, or says that it does \
not know.

First explain your finding in one or two sentences. Then end with one line "Rating: N", where N is
6 if the answer is very informative, reasons well, and has no hallucination
5 if it is very informative and has no hallucination
4 if it is somewhat informative and has no hallucination
3 if it is not informative and has no hallucination
2 if it is very informative but has a hallucination
1 if it is somewhat informative but has a hallucination
0 if it is not informative and has a hallucination

### What the picture shows
{contents}

### Question
{question}

### Correct answer
{reference}

### Answer to check
{answer}
"""


class JudgeError(RuntimeError):
    """The judge gave no reply; the message says what it answered instead and what to do."""


@dataclass(frozen=True)
class Case:
    """One answer to be judged.

    Raises:
        ValueError: `contents` is one text, which would be read letter by letter.
    """

    contents: tuple[str, ...]  # what the picture shows
    question: str
    reference: str  # the correct answer
    answer: str  # the answer to be judged

    def __post_init__(self) -> None:
        if isinstance(self.contents, str):
            raise ValueError(f"contents must be a tuple of texts; got the text {self.contents!r}")


@dataclass(frozen=True)
class Verdict:
    """A judge's reply, and the rating from 0 to 6 read out of it; None where it holds none."""

    reply: str
    rating: int | None


class Judge(Protocol):
    """Turns a case into a reply that holds a rating."""

    @property
    def identity(self) -> str:
        """Everything but the case that the reply depends on; part of a cached reply's key and of every record."""

    def __call__(self, case: Case) -> str:
        """The reply, for instance "The picture shows one cat, not two. Rating: 1"."""


# ------------------------------------------------------------------------------------- ratings
_SCALE = re.compile(r"\(?\b0\s*(?:-|\u2013|\u2014|to|through)\s*6\b\)?", re.IGNORECASE)
_RATING = re.compile(r"ratings?(?:\s+(?:is|of|score))?\W{0,6}(?<!\s[-\u2212])([0-6])(?![0-9]|[.,][0-9])", re.IGNORECASE)


def read_rating(reply: str) -> int | None:
    """The last rating from 0 to 6 in a reply, or None; Markdown, JSON and mentions of the scale do not disturb it."""
    ratings = _RATING.findall(_SCALE.sub("", reply))
    return int(ratings[-1]) if ratings else None


def read_rating_strictly(reply: str) -> int | None:
    """The benchmark's own rule: exactly one of "rating: 0" to "rating: 6" must stand in the reply, in any case.

    Convention: the benchmark gives 0 where this gives None; `metrics.rating_summary` counts both ways.
    """
    scores = [score for score in range(7) if f"rating: {score}" in reply.lower()]
    return scores[0] if len(scores) == 1 else None


# ------------------------------------------------------------------------------------- templates
def read_template(path: str | os.PathLike[str]) -> str:
    """A judge's prompt from a file, for instance `eval_gpt4.py` of a copy of MMHal-Bench.

    Of a Python file the text assigned to the name `template` is taken, without running the file; of any other the
    whole text.  It must have four places, `{}` each, for contents, question, reference and answer in this order, or
    those names in braces.

    Raises:
        ValueError: no such text, or other places in it.
        OSError: the file cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8")
    if Path(path).suffix == ".py":
        texts = [
            node.value.value
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["template"]
        ]
        if len(texts) != 1:
            raise ValueError(f"{path}: expected one assignment of a text to `template`, found {len(texts)}")
        text = texts[0]
    _check_template(text, str(path))
    return text


def _check_template(template: str, where: str) -> None:
    places = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    if places != [""] * 4 and sorted(places) != sorted(FIELDS):
        raise ValueError(
            f"{where}: expected the places {{contents}}, {{question}}, {{reference}} and {{answer}} once each, or four "
            f"times {{}}; found {places}. Other braces must be doubled"
        )


def fill(template: str, case: Case) -> str:
    """A judge's prompt about one case."""
    values = {**asdict(case), "contents": ", ".join(case.contents)}
    return template.format(*(values[name] for name in FIELDS), **values)


# ------------------------------------------------------------------------------------- judges
def judge_all(
    judge: Judge,
    cases: Sequence[Case],
    *,
    workers: int = 1,
    read: Callable[[str], int | None] = read_rating,
) -> list[Verdict]:
    """Judge every case, several at once if the judge can take it; order is kept.

    read: finds the rating in a reply; `read_rating_strictly` is the benchmark's own rule.

    Raises:
        JudgeError: a case got no reply.  With a `Cached` judge nothing that was judged before is lost.
    """
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(judge, case) for case in cases]
        try:
            replies = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [Verdict(reply, read(reply)) for reply in replies]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is refused: it would turn the request into another, and carry the key elsewhere."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class ChatJudge:
    """A chat model behind an OpenAI-compatible endpoint (vLLM, llama.cpp, Ollama, a hosted one).

    Errors that may pass (too many requests, the server's trouble, a timeout, a broken connection) are tried again
    after 1, 2, 4, ... seconds, or as long as the server asks for; others are raised at once.

    The API key is read from the environment variable `key_variable` with each request, is sent to `base_url` only, and
    is written nowhere.  Without the variable no key is sent.

    Args:
        base_url: up to and without "/chat/completions", for instance "http://127.0.0.1:8000/v1".
        model: the model's name at that endpoint.
        template: see `read_template`.
        options: further fields of the request; temperature 0 unless given.
        key_variable: the name of the environment variable that holds the key.
        timeout: seconds to wait for one reply.
        attempts: how often one request is tried.
        longest_wait: seconds between two attempts at most.
        sleep: waits that many seconds.

    Raises:
        ValueError: the template has other places, or the address is none.
    """

    base_url: str
    model: str
    template: str = TEMPLATE
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    key_variable: str = KEY_VARIABLE
    timeout: float = 120.0
    attempts: int = 6
    longest_wait: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        _check_template(self.template, "template")
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url {self.base_url!r} is no address; expected e.g. http://127.0.0.1:8000/v1")

    @property
    def identity(self) -> str:
        """Model, options and digest of the template; not the address, as a server may move."""
        digest = hashlib.sha256(self.template.encode()).hexdigest()[:16]
        return json.dumps({"model": self.model, "template": digest, **self.options}, sort_keys=True)

    def __call__(self, case: Case) -> str:
        """The model's reply.

        Raises:
            JudgeError: refused, or not reached in the given number of attempts.
        """
        message = {"role": "user", "content": fill(self.template, case)}
        body = json.dumps({"model": self.model, "messages": [message], **self.options}).encode()
        trouble = ""
        for attempt in range(self.attempts):
            wait = min(2.0**attempt, self.longest_wait)
            try:
                return self._reply(self._post(body))
            except urllib.error.HTTPError as error:
                with error:
                    trouble = f"{error.code} {error.reason}: {self._hidden(error.read(500).decode(errors='replace'))}"
                if error.code not in RETRIED:
                    raise JudgeError(f"{self._url} refused the request: {trouble}{self._advice(error.code)}") from None
                wait = min(max(wait, _asked_for(error.headers.get("Retry-After"))), self.longest_wait)
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                trouble = f"{type(error).__name__}: {error}"
            if attempt + 1 < self.attempts:
                self.sleep(wait)
        raise JudgeError(f"{self._url} gave no reply in {self.attempts} attempts; the last: {trouble}")

    @property
    def _url(self) -> str:
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        if key := os.environ.get(self.key_variable):
            request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout) as response:
            return bytes(response.read())

    def _reply(self, answer: bytes) -> str:
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            content = None
        if not isinstance(content, str):
            beginning = self._hidden(answer[:200].decode(errors="replace"))
            raise JudgeError(
                f"{self._url} answered, but not with choices[0].message.content as text: {beginning!r}. "
                "Is base_url that of an OpenAI-compatible chat endpoint?"
            )
        return content

    def _hidden(self, text: str) -> str:
        """Text of the server without the key, should it quote it."""
        key = os.environ.get(self.key_variable)
        return " ".join((text.replace(key, "***") if key else text).split())

    def _advice(self, code: int) -> str:
        if code in (401, 403):
            return f". Is the environment variable {self.key_variable} set to a valid key?"
        if code == 404:
            return ". Does base_url end as in http://127.0.0.1:8000/v1, and does the server have this model?"
        return ". Some models refuse options such as temperature; see `options`" if code == 400 else ""


def _asked_for(retry_after: str | None) -> float:
    """Seconds of a Retry-After header; a date or nothing counts as 0."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


class Cached:
    """A judge whose replies are kept in a JSONL file, so that an interrupted run goes on where it stopped.

    A reply's key is the digest of the judge's identity and the case.  Each reply is written as soon as it is there; a
    line that was cut off by an interruption is dropped.

    Raises:
        ValueError: the file holds something else.
        OSError: the file cannot be written.
    """

    def __init__(self, judge: Judge, path: str | os.PathLike[str]) -> None:
        self._judge, self._path = judge, Path(path)
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        with self._path.open("a"):  # a folder that cannot be written is known before anything is paid for
            pass
        self._read()

    @property
    def identity(self) -> str:
        """The inner judge's."""
        return self._judge.identity

    def __call__(self, case: Case) -> str:
        """The kept reply, or a new one."""
        described = {"judge": self.identity, **asdict(case)}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        if key not in self._replies:
            reply = self._judge(case)
            line = json.dumps({"key": key, **described, "reply": reply}) + "\n"
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                self._replies[key] = reply
        return self._replies[key]

    def _read(self) -> None:
        """Take the replies out of the file; cut off a last line without an end."""
        whole_lines, newline, unfinished = self._path.read_bytes().rpartition(b"\n")
        content = whole_lines + newline
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._replies[str(row["key"])] = str(row["reply"])
            except (ValueError, LookupError, TypeError):
                raise ValueError(f"{self._path}:{number}: no kept verdict; is this another file?") from None
        if not unfinished:
            return
        start = b'{"key"'[: len(unfinished)]
        if not content and not unfinished.startswith(start):
            raise ValueError(f"{self._path}: no file of kept verdicts; is this another file?")
        with self._path.open("r+b") as file:
            file.truncate(len(content))
