"""serving: every request has its own vectors, whoever else is asking; every field does what it says or is refused."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from grains_ref.grains import Steering
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu
pytest.importorskip("starlette", reason="needs pip install 'grains-ref[serve]'")
pytest.importorskip("uvicorn", reason="needs pip install 'grains-ref[serve]'")

from clients import HEADERS, LAM, ask, at_once, listening, one, served_by, some_vectors  # noqa: E402

from grains_ref.export.serving.sampling import Sampling, scored  # noqa: E402
from grains_ref.export.serving.served import Served  # noqa: E402
from grains_ref.export.serving.words import Words  # noqa: E402
from grains_ref.models import decoding  # noqa: E402

PROMPTS = (
    "The capital of France",
    "Is the earth flat?",
    "Q: What is the moon made of?\nA:",
    "Tell",
    "Paris is round is",
)
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def served(llama: HuggingFaceModel) -> Iterator[Served]:
    """Eight answers at once, so that fifty requests make many cohorts."""
    with served_by(llama, 10, rows=8) as served:
        yield served


def said(answer: Any) -> tuple[str, list[str], str]:
    (choice,) = answer.json["choices"]
    return choice["text"], choice["logprobs"]["tokens"], choice["finish_reason"]


def log_probs(answer: Any) -> list[float]:
    (choice,) = answer.json["choices"]
    return [value for value in choice["logprobs"]["token_logprobs"] if value is not None]


# --- each request its own vectors


def fifty(name: str) -> list[dict[str, Any]]:
    """Ten vectors, five prompts, all strengths different, some at one block only, some plain, some drawn."""
    bodies: list[dict[str, Any]] = []
    for i in range(50):
        body: dict[str, Any] = {"model": name, "prompt": PROMPTS[i % 5], "max_tokens": 3 + i % 4, "logprobs": 2}
        body |= {"temperature": 0} if i % 3 else {"temperature": 0.8, "seed": i, "top_p": 0.9}
        if i % 7:
            body["steering"] = {"vectors": f"v{i // 5}", "lam": 0.5 + 0.1 * i}
        if i % 4 == 1 and "steering" in body:
            body["steering"]["layers"] = [i % 3]
        if i % 5 == 2:
            body["echo"] = True
        bodies.append(body)
    return bodies


def test_fifty_requests_at_once_get_the_answers_that_each_gets_alone(served: Served) -> None:
    bodies = fifty(served.name)
    together = at_once(served, bodies)
    assert {answer.status for answer in together} == {200}
    for body, answer in zip(bodies, together, strict=True):
        alone = one(served, body)
        assert said(answer) == said(alone), body
        assert log_probs(answer) == pytest.approx(log_probs(alone), abs=1e-5), body
    assert len({answer.json["choices"][0]["text"] for answer in together}) > 25


def test_a_steered_answer_is_that_of_the_steered_model(model: HuggingFaceModel) -> None:
    with served_by(model, 3, rows=4) as served:
        bodies, expected = [], []
        for i in range(3):
            steering = {"vectors": f"v{i}", "lam": 0.6 + i, "layers": [0, 2]}
            bodies += [{"model": served.name, "prompt": prompt, **GREEDY, "steering": steering} for prompt in PROMPTS]
            with Steering(model.blocks, some_vectors(model, i), lam=0.6 + i, layers=[0, 2]):
                expected += model.generate(PROMPTS, max_new_tokens=6)
        answers = at_once(served, bodies)
    assert [answer.json["choices"][0]["text"].strip() for answer in answers] == expected


def wait_for_another(served: Served) -> None:
    """Hold the scheduler's thread until another request waits for it."""
    while not served._scheduler._waiting:
        time.sleep(0.001)


@pytest.mark.parametrize(("name", "are_joined"), [("llama", True), ("gemma3_text", False)])
def test_later_answers_join_earlier_ones_where_the_caches_can_be_put_together(
    name: str, are_joined: bool, request: pytest.FixtureRequest
) -> None:
    model: HuggingFaceModel = request.getfixturevalue(name)
    seen: list[list[int]] = []

    async def two() -> list[Any]:
        with served_by(model, 2, rows=4) as served:
            step = served._scheduler._pass

            def watch(cohort: Any) -> None:
                seen.append([len(one.jobs) for one in served._scheduler._cohorts])
                if len(seen) == 3:
                    wait_for_another(served)
                step(cohort)

            served._scheduler._pass = watch  # type: ignore[method-assign]
            bodies = [
                {
                    "model": f"{served.name}+v{i}",
                    "prompt": PROMPTS[i],
                    "max_tokens": 20,
                    "temperature": 0,
                    "logprobs": 0,
                }
                for i in range(2)
            ]
            first = asyncio.create_task(ask(served, bodies[0]))
            while len(seen) < 3:
                await asyncio.sleep(0.001)
            answers = [await ask(served, bodies[1]), await first]
            alone = [await ask(served, body) for body in reversed(bodies)]
            return [said(answer) for answer in answers + alone]

    second, first, *alone = asyncio.run(two())
    assert [second, first] == alone
    assert [1, 1] in seen  # the later one reads its prompt
    assert ([2] in seen) is are_joined


def reference_log_probs(model: HuggingFaceModel, ids: list[int], i: int, lam: float) -> list[float]:
    """Of every token but the first, by one plain pass."""
    with torch.no_grad(), Steering(model.blocks, some_vectors(model, i), lam=lam):
        log_p = model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [log_p[place, token].item() for place, token in enumerate(ids[1:])]


@pytest.mark.parametrize("memory", [decoding.LOGIT_MEMORY, 3 * 347 * decoding.BYTES_PER_LOGIT])
def test_an_echo_has_the_log_probabilities_of_the_prompt(
    served: Served, llama: HuggingFaceModel, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding.Rows.begin.__func__, "__kwdefaults__", {"on_prompt": None, "memory": memory})  # type: ignore[attr-defined]
    monkeypatch.setattr(decoding.fits_together, "__kwdefaults__", {"memory": memory})
    prompts = [llama.encode(prompt).ids.tolist() for prompt in PROMPTS]
    body = {"model": f"{served.name}+v4", "prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True}
    choices = one(served, body | {"temperature": 0}).json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3, 4]
    for ids, choice in zip(prompts, choices, strict=True):
        given = choice["logprobs"]
        assert given["token_logprobs"][0] is None
        assert given["top_logprobs"][0] is None
        assert given["token_logprobs"][1:-1] == pytest.approx(reference_log_probs(llama, ids, 4, LAM), abs=1e-4)
        assert len(given["tokens"]) == len(ids) + 1
        for own, top in zip(given["token_logprobs"][1:], given["top_logprobs"][1:], strict=True):
            assert own in top.values()
            assert own <= max(top.values())


def test_max_tokens_0_scores_the_prompt_alone(served: Served) -> None:
    body = {"model": served.name, "prompt": PROMPTS[0], "max_tokens": 0, "logprobs": 0, "echo": True}
    answer = one(served, body)
    text, tokens, reason = said(answer)
    assert (text, reason) == (PROMPTS[0], "length")
    assert "".join(tokens).endswith(PROMPTS[0])
    assert answer.json["usage"]["completion_tokens"] == 0
    assert "needs echo: true" in one(served, body | {"echo": False}).json["error"]["message"]


def test_a_strength_that_overflows_fails_alone(served: Served) -> None:
    bodies = [{"model": served.name, "prompt": PROMPTS[i], **GREEDY, "logprobs": 0} for i in range(4)]
    bodies = [
        body | {"steering": {"vectors": "v1", "lam": lam}} for body, lam in zip(bodies, (1, 2, 1e300, 3), strict=True)
    ]
    answers = at_once(served, bodies)
    assert [answer.status for answer in answers] == [200, 200, 400, 200]
    assert answers[2].json["error"]["code"] == "not_finite"
    assert "lam * v is too long beside h" in answers[2].json["error"]["message"]
    for i in (0, 1, 3):
        assert said(answers[i]) == said(one(served, bodies[i]))


def test_the_names_of_models_steer_too(served: Served) -> None:
    names = [model["id"] for model in one(served, b"", "/v1/models", method="GET").json["data"]]
    assert names == ["random-llama", *(f"random-llama+v{i}" for i in range(10))]
    by_name = one(served, {"model": "random-llama+v2", "prompt": PROMPTS[0], **GREEDY})
    in_words = {"vectors": "v2", "lam": LAM, "layers": [0, 1, 2]}
    by_field = one(served, {"model": "random-llama", "prompt": PROMPTS[0], **GREEDY, "steering": in_words})
    plain = one(served, {"model": "random-llama", "prompt": PROMPTS[0], **GREEDY})
    assert by_name.json["choices"] == by_field.json["choices"] != plain.json["choices"]


# --- the interface


@pytest.mark.parametrize("prompt", [PROMPTS[1], [PROMPTS[1], PROMPTS[3]]], ids=["one", "two"])
@pytest.mark.parametrize("extra", [{}, {"logprobs": 1}, {"echo": True}, {"echo": True, "logprobs": 1}], ids=str)
def test_a_stream_says_what_the_whole_answer_says(served: Served, prompt: Any, extra: dict[str, Any]) -> None:
    body = {"model": f"{served.name}+v3", "prompt": prompt, **GREEDY, **extra}
    whole = one(served, body).json
    streamed = one(served, body | {"stream": True, "stream_options": {"include_usage": True}})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *parts, last = streamed.parts
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        if choice["logprobs"]:
            for key in ("tokens", "token_logprobs", "top_logprobs"):
                joined = [value for part in own for value in part["logprobs"][key]]
                assert joined == choice["logprobs"][key] or key != "tokens"


def test_a_chat_goes_through_the_chat_template(served: Served, llama: HuggingFaceModel) -> None:
    messages = [{"role": "user", "content": "Tell me about the moon"}]
    body = {"model": f"{served.name}+v0", "messages": messages, **GREEDY, "logprobs": True, "top_logprobs": 2}
    answer = one(served, body, "/v1/chat/completions").json
    with Steering(llama.blocks, some_vectors(llama, 0), lam=LAM):
        (expected,) = llama.generate([messages], max_new_tokens=6)  # type: ignore[list-item]
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": choice["message"]["content"]}
    assert choice["message"]["content"].strip() == expected
    for token in choice["logprobs"]["content"]:
        assert token["top_logprobs"][0] == {key: token[key] for key in ("token", "logprob", "bytes")}  # it is greedy
        assert len(token["top_logprobs"]) == 2
    in_parts = body | {"messages": [{"role": "user", "content": [{"type": "text", "text": "Tell me about the moon"}]}]}
    assert one(served, in_parts, "/v1/chat/completions").json["choices"] == answer["choices"]
    streamed = one(served, body | {"stream": True}, "/v1/chat/completions").parts
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [part["choices"][0]["delta"].get("content", "") for part in streamed]
    assert "".join(deltas) == choice["message"]["content"]


def test_a_stop_text_ends_the_answer_and_is_not_shown(served: Served) -> None:
    body = {"model": f"{served.name}+v3", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 12}
    text = one(served, body).json["choices"][0]["text"]
    stop = text[3:5]
    (choice,) = one(served, body | {"stop": stop}).json["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    parts = one(served, body | {"stop": [stop, "never said"], "stream": True}).parts
    assert "".join(part["choices"][0]["text"] for part in parts) == choice["text"]


def test_draws_follow_the_seed_and_are_other_draws_without_one(served: Served) -> None:
    body = {"model": served.name, "prompt": PROMPTS[2], "max_tokens": 8, "temperature": 1.5}

    def texts(**more: Any) -> list[str]:
        return [choice["text"] for choice in one(served, body | more).json["choices"]]

    assert texts(seed=5) == texts(seed=5) != texts(seed=6)
    assert texts() != texts()
    two = texts(seed=5, prompt=[PROMPTS[2], PROMPTS[2]])
    assert two[0] == texts(seed=5)[0] != two[1]  # each prompt its own draws


def test_a_client_that_hangs_up_is_not_computed_for_any_longer(served: Served) -> None:
    body = {"model": served.name, "prompt": PROMPTS[0], "max_tokens": 110, "temperature": 0}
    answer = one(served, body, hang_up_after=0.0)
    assert answer.status == 499
    jobs = [job for cohort in served._scheduler._cohorts for job in cohort.jobs]
    assert all(job.is_cancelled for job in jobs)


def test_too_many_answers_are_refused_until_there_is_room(llama: HuggingFaceModel) -> None:
    with served_by(llama, 0, rows=1, waiting=2) as served:
        body = {"model": served.name, "prompt": ["Tell"] * 3, **GREEDY}
        refused = one(served, body)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.json["error"]["message"] == "2 answers wait already; try again later"
        assert one(served, body | {"prompt": ["Tell"] * 2}).status == 200


# --- refusals, by name

REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"model": "other"}, "there is no model 'other'; there are random-llama, random-llama+v0", "model"),
    ({"model": None}, "'model' is missing", "model"),
    ({"prompt": None}, "'prompt' is missing; expected a text, a list of token ids", "prompt"),
    ({"prompt": []}, "'prompt' is []", "prompt"),
    ({"prompt": ["Tell", ""]}, "a prompt is ''", "prompt"),
    ({"prompt": ["Tell"] * 300}, "300 prompts in one request; at most 256", "prompt"),
    ({"prompt": "\ud800"}, "half a character", "prompt"),
    ({"prompt": [5, 9999]}, "the token id 9999; the vocabulary", "prompt"),
    ({"prompt": [5] * 200}, "200 prompt tokens and 6 new ones are more than the 128", "max_tokens"),
    ({"max_tokens": -1}, "'max_tokens' is -1; expected a whole number from 0 to 4096", "max_tokens"),
    ({"max_tokens": True}, "'max_tokens' is True; expected a whole number", "max_tokens"),
    ({"temperature": 3}, "'temperature' is 3; expected a number from 0 to 2", "temperature"),
    ({"temperature": "hot"}, "'temperature' is 'hot'", "temperature"),
    ({"top_p": 0}, "'top_p' is 0; expected a number from 0 to 1, above 0", "top_p"),
    ({"seed": 1.5}, "'seed' is 1.5; expected a whole number", "seed"),
    ({"logprobs": 50}, "'logprobs' is 50; expected a whole number from 0 to 20", "logprobs"),
    ({"echo": "yes"}, "'echo' is 'yes'; expected true or false", "echo"),
    ({"stop": ["a", ""]}, "'stop' is ['a', '']", "stop"),
    ({"n": 2}, "'n' is not supported; leave it out", "n"),
    ({"n": True}, "'n' is not supported; leave it out", "n"),
    ({"presence_penalty": 0.5}, "'presence_penalty' is not supported", "presence_penalty"),
    ({"logit_bias": {"5": 3}}, "'logit_bias' is not supported", "logit_bias"),
    ({"top_k": 5}, "'top_k' is no field that this server knows", "top_k"),
    ({"re\x1b[31md": 5}, r"'re\x1b[31md' is no field", r"re\x1b[31md"),
    ({"stream_options": {"include_usage": True}}, "stream_options needs stream: true", "stream_options"),
    ({"steering": "v1"}, "'steering' is 'v1'; expected", "steering"),
    ({"steering": {"vectors": "v99"}}, "there are no vectors 'v99'; there are v0, v1", "steering.vectors"),
    ({"steering": {"vectors": "v1", "lam": "much"}}, "'steering.lam' is 'much'; expected a finite", "steering.lam"),
    ({"steering": {"vectors": "v1", "lamb": 1}}, "steering: 'lamb' is unknown", "steering.lamb"),
    ({"steering": {"vectors": "v1", "layers": "0-1"}}, "steering.layers is '0-1'", "steering.layers"),
    ({"steering": {"vectors": "v1", "layers": [1, 1]}}, "steering.layers is [1, 1]", "steering.layers"),
    ({"steering": {"vectors": "v1", "layers": [7]}}, "block 7 does not exist; the model has 0 to 2", "steering.layers"),
    ({"model": "random-llama+v1", "steering": {"vectors": "v2"}}, "the model's name asks for vectors 'v1'", None),
]


@pytest.mark.parametrize(("changes", "words", "param"), REFUSED, ids=[words for _, words, _ in REFUSED])
def test_what_is_not_honoured_is_refused_by_name(
    served: Served, changes: dict[str, Any], words: str, param: str | None
) -> None:
    body = {"model": served.name, "prompt": PROMPTS[0], **GREEDY, **changes}
    answer = one(served, body)
    error = answer.json["error"]
    assert answer.status in (400, 404)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": []}, "'messages' is []"),
        ({"messages": [{"role": "user"}]}, "the content is missing; expected a text"),
        ({"messages": [{"role": "user", "content": " "}]}, "only white space"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "pictures are not served"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "'tool_calls' is not supported"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"max_completion_tokens": 2}, "give max_completion_tokens or max_tokens, not both"),
        ({"tools": [{"type": "function"}]}, "'tools' is not supported"),
        ({"prompt": "x"}, "'prompt' is no field"),
    ],
)
def test_chats_are_refused_by_name_too(served: Served, changes: dict[str, Any], words: str) -> None:
    body = {"model": served.name, "messages": [{"role": "user", "content": "Hi"}], **GREEDY, **changes}
    answer = one(served, body, "/v1/chat/completions")
    assert answer.status == 400
    assert words in answer.json["error"]["message"]


def test_what_asks_for_nothing_is_taken(served: Served) -> None:
    body = {"model": served.name, "prompt": PROMPTS[0], **GREEDY}
    more = {
        "n": 1,
        "best_of": 1,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "suffix": None,
        "user": "me",
        "logprobs": None,
    }
    assert one(served, body | more).json["choices"] == one(served, body).json["choices"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{", {}, 400, "no JSON that can be read"),
        (b"[1]", {}, 400, "no JSON object"),
        (b'{"a": NaN}', {}, 400, "NaN is no JSON number"),
        (b"[" * 5000, {}, 400, "nested"),
        (b"x" * (5 << 20), {}, 413, "larger than 4194304 bytes"),
        (b"{}", {"content-type": "text/plain"}, 415, "send JSON"),
        (b"{}", {"host": "evil.example"}, 403, "the request calls it 'evil.example'"),
    ],
)
def test_bad_requests_are_refused_in_words(
    served: Served, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = one(served, body, headers={**HEADERS, **headers, "authorization": "Bearer secret-key"})
    assert answer.status == status
    assert words in answer.json["error"]["message"]
    assert "secret-key" not in answer.body.decode()


def test_other_addresses_are_refused_in_the_same_shape(served: Served) -> None:
    for path, method, status in (("/v1/embeddings", "POST", 404), ("/v1/completions", "GET", 405)):
        answer = one(served, b"", path, method=method)
        assert answer.status == status
        assert "POST /v1/chat/completions" in answer.json["error"]["message"]


def test_an_answer_over_a_real_connection(llama: HuggingFaceModel) -> None:
    with served_by(llama, 2) as served:
        expected = one(served, {"model": f"{served.name}+v1", "prompt": PROMPTS[0], **GREEDY}).json["choices"]
    with served_by(llama, 2) as served, listening(served) as address:
        body = json.dumps({"model": f"{served.name}+v1", "prompt": PROMPTS[0], **GREEDY}).encode()
        request = urllib.request.Request(f"{address}/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.loads(answer.read())["choices"] == expected


# --- the pieces


def test_a_draw_is_made_of_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = {Sampling(1.0, 0.7, seed).choose(logits) for seed in range(200)}
    assert drawn == {0, 1}
    assert {Sampling(1.0, 0.01, seed).choose(logits) for seed in range(20)} == {0}
    shares = [Sampling(1.0, 1.0, seed).choose(logits) for seed in range(2000)]
    assert shares.count(0) / 2000 == pytest.approx(0.5, abs=0.05)
    cold = [Sampling(0.5, 1.0, seed).choose(logits) for seed in range(2000)]
    assert cold.count(0) / 2000 == pytest.approx(0.25 / 0.365, abs=0.05)  # p squared, normalised


def test_what_is_said_of_a_token_is_the_models_own_probability() -> None:
    (found,) = scored(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([1]), top=1)
    assert found.log_prob == pytest.approx(torch.tensor(0.25).log().item())
    assert [token for token, _ in found.top] == [0]
    (forbidden,) = scored(torch.tensor([[0.0, float("-inf")]]), torch.tensor([1]), top=2)
    assert forbidden.log_prob == -9999.0


def test_text_grows_by_whole_characters_and_never_shows_a_stop_text() -> None:
    pieces = {1: b"a", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b"st", 5: b"op", 6: b"!"}

    def decode(ids: Any) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    words = Words(decode, [1, 1], ["stop"])
    assert [words.add(token) for token in (1, 2, 3, 4, 6, 4)] == ["a", "", "é", "", "st!", ""]
    assert (words.add(5), words.is_stopped, words.end(), words.text) == ("", True, "", "aést!")
    unfinished = Words(decode, [], ["stop"])
    assert [unfinished.add(4), unfinished.add(2), unfinished.end()] == ["", "", "st\ufffd"]


def test_later_requests_do_not_wait_for_the_end_of_earlier_ones(llama: HuggingFaceModel) -> None:
    ended: list[str] = []

    async def two() -> None:
        with served_by(llama, 0, rows=4) as served:

            async def wait_for(name: str, n: int) -> None:
                await ask(served, {"model": served.name, "prompt": "Tell", "max_tokens": n, "temperature": 0})
                ended.append(name)

            step = served._scheduler._pass

            def held_once(cohort: Any) -> None:
                served._scheduler._pass = step  # type: ignore[method-assign]
                wait_for_another(served)
                step(cohort)

            served._scheduler._pass = held_once  # type: ignore[method-assign]
            long = asyncio.create_task(wait_for("long", 100))
            while not served._scheduler._cohorts:
                await asyncio.sleep(0.001)
            await wait_for("short", 2)
            await long

    asyncio.run(two())
    assert ended == ["short", "long"]
