"""A judge that rates replies for hallucination, MMHal-Bench's way: a chat model anywhere.

    judge = ChatJudge("http://127.0.0.1:8000/v1", model="some-model")
    verdicts = judge_all(judge, [Case(contents=("bus", "dog"), question=..., reference=..., answer=...), ...])
    rating_summary([verdict.rating for verdict in verdicts])

A judge is any `Judge`: something with an identity that turns a case into a reply in free words.  The rating is read out
of the reply, which is kept, so that it can be read again.  Numbers of different judges cannot be compared: keep
`Judge.identity` with every result.  `grains_ref.evaluation.verdicts` keeps replies in a file.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import string
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from grains_ref.evaluation.endpoint import Endpoint, JudgeError, Reply, Trouble, address_of, check_key
from grains_ref.files import parse_json, read_whole

KEY_VARIABLE = "GRAINS_JUDGE_API_KEY"
PATH = "chat/completions"  # below the base of an endpoint
MAX_TEMPLATE = 1 << 20  # bytes
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
        ValueError: the file cannot be read, no such text, or other places in it.
    """
    try:
        text = read_whole(Path(path), limit=MAX_TEMPLATE).decode()
        tree = ast.parse(text if Path(path).suffix == ".py" else "")
    except (SyntaxError, UnicodeDecodeError, RecursionError, MemoryError) as error:  # the last two: nested too deep
        raise ValueError(f"{path} cannot be read as a template: {error or 'nested too deep'}") from error
    if Path(path).suffix == ".py":
        texts = [
            node.value.value
            for node in tree.body
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
    places = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is not None:
            places.append(name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else ""))
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


@dataclass(frozen=True)
class ChatJudge:
    """A chat model behind an OpenAI-compatible endpoint (vLLM, llama.cpp, Ollama, a hosted one).

    Errors that may pass (too many requests, the server's trouble, a timeout, a broken connection) are tried again
    after 1, 2, 4, ... seconds, or as long as the server asks for; others are raised at once.

    The API key is read from the environment variable `key_variable` with each request, is sent to `base_url` only, and
    is written nowhere: should the server quote it, *** stands for it in errors and replies.  Without the variable no
    key is sent.

    Args:
        base_url: up to and without "/chat/completions", for instance "http://127.0.0.1:8000/v1"; a query, such as
            ?api-version=..., is kept, and its values are treated as secrets.
        model: the model's name at that endpoint.
        template: see `read_template`.
        options: further fields of the request; temperature 0 unless given.
        key_variable: the name of the environment variable that holds the key.
        timeout: seconds in which one whole reply must be there.
        attempts: how often one request is tried.
        longest_wait: seconds between two attempts at most.
        sleep: waits that many seconds.

    Raises:
        ValueError: the template has other places, the address is none, or the key cannot be sent.
    """

    base_url: str = field(repr=False)
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
        address_of(self.base_url, PATH)
        check_key(self.key_variable)

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
        check_key(self.key_variable)
        endpoint = Endpoint(address_of(self.base_url, PATH), self.key_variable, self.timeout)
        where = endpoint.address.shown
        message = {"role": "user", "content": fill(self.template, case)}
        body = json.dumps({"model": self.model, "messages": [message], **self.options}).encode()
        trouble = ""
        for attempt in range(self.attempts):
            wait = min(2.0**attempt, self.longest_wait)
            answer = endpoint.post(body)
            if isinstance(answer, Trouble):
                if not answer.may_pass:
                    raise JudgeError(f"{where} gave no reply: {answer.words}")
                trouble = answer.words
            elif 200 <= answer.status < 300:
                return endpoint.without_secrets(_content(answer, endpoint))
            else:
                trouble = f"{answer.status} {answer.reason}: {endpoint.hidden(answer.text)[:500]}"
                if answer.status not in RETRIED:
                    raise JudgeError(f"{where} refused the request: {trouble}{self._advice(answer.status)}")
                wait = min(max(wait, _asked_for(answer.retry_after)), self.longest_wait)
            if attempt + 1 < self.attempts:
                self.sleep(wait)
        raise JudgeError(f"{where} gave no reply in {self.attempts} attempts; the last: {trouble}")

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f". Is the environment variable {self.key_variable} set to a valid key?"
        if status == 404:
            return ". Does base_url end as in http://127.0.0.1:8000/v1, and does the server have this model?"
        return ". Some models refuse options such as temperature; see `options`" if status == 400 else ""


def _content(answer: Reply, endpoint: Endpoint) -> str:
    """The message in a server's answer.

    Raises:
        JudgeError: there is none.
    """
    content = None
    if answer.is_utf8:
        with suppress(ValueError, LookupError, TypeError):
            content = parse_json(answer.text)["choices"][0]["message"]["content"]
    if isinstance(content, str):
        return content
    raise JudgeError(
        f"{endpoint.address.shown} answered, but not with choices[0].message.content as text: "
        f"{endpoint.hidden(answer.text)[:200]!r}. Is base_url that of an OpenAI-compatible chat endpoint?"
    )


def _asked_for(retry_after: str) -> float:
    """Seconds of a Retry-After header; a date or nothing counts as 0."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0
