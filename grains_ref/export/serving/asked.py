"""A request as it was read: completions and chats of OpenAI's interface, and beside them the field `steering`.

    {"model": "m", "prompt": "The moon", "max_tokens": 20, "steering": {"vectors": "calm", "lam": 4, "layers": [8, 9]}}

Every field is honoured, or refused by its name; none is passed over.  Nothing here needs the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from grains_ref.data import Message
from grains_ref.files import printable

AskedPrompt: TypeAlias = str | tuple[int, ...] | tuple[Message, ...]

MOST_TOP = 20  # of the most probable tokens that can be asked for at each place
MOST_STOPS = 16
SEEDS = 1 << 63

# Fields of the interface that are taken only where they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "parallel_tool_calls": (True, False),
    "verbosity": (),
}
WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")  # on the text


class RequestError(ValueError):
    """A request that cannot be answered, in OpenAI's shape: HTTP status, which field, and a code."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def record(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": printable(str(self)), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class AskedSteering:
    """Which vectors by name, how strongly, and where; None where the file's own choice holds."""

    vectors: str
    lam: float | None = None
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of the model.

    Attributes:
        model: a served name.
        prompts: one answer each: a text, token ids, or a chat.
        max_tokens: None where the request does not say.
        top: so many of the most probable tokens at each place; None where no log-probabilities are asked for.
        echo: whether the answer begins with the prompt.
        steering: None where the model's name says it all.
    """

    model: str
    prompts: tuple[AskedPrompt, ...]
    is_chat: bool
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int | None = None
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    steering: AskedSteering | None = None


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take."""

    body: int = 4 << 20  # bytes of a request
    prompts: int = 256  # of one request
    new_tokens: int = 4096  # of one answer
    rows: int = 64  # answers that are computed at once
    waiting: int = 1024  # answers that wait for that


# ------------------------------------------------------------------------------------------- both kinds
def read_completion(body: Mapping[str, Any], limits: Limits) -> Asked:
    """The body of a request to /v1/completions.

    Raises:
        RequestError: a field that is not honoured, or cannot be read.
    """
    own = {"prompt", "logprobs", "echo", "max_tokens"}
    given = _known(body, own)
    return Asked(
        prompts=_prompts(given.get("prompt"), limits),
        is_chat=False,
        max_tokens=_whole(given, "max_tokens", least=0, most=limits.new_tokens, default=16),
        top=_whole(given, "logprobs", least=0, most=MOST_TOP, default=None),
        echo=_flag(given, "echo"),
        **_common(given),
    )


def read_chat(body: Mapping[str, Any], limits: Limits) -> Asked:
    """The body of a request to /v1/chat/completions.

    Raises:
        RequestError: a field that is not honoured, or cannot be read.
    """
    own = {"messages", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens"}
    given = _known(body, own)
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise RequestError("give max_completion_tokens or max_tokens, not both", param="max_tokens")
    name = "max_tokens" if "max_tokens" in given else "max_completion_tokens"
    has_scores = _flag(given, "logprobs")
    top = _whole(given, "top_logprobs", least=0, most=MOST_TOP, default=None)
    if top is not None and not has_scores:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return Asked(
        prompts=(_messages(given.get("messages")),),
        is_chat=True,
        max_tokens=_whole(given, name, least=1, most=limits.new_tokens, default=None),
        top=(top or 0) if has_scores else None,
        **_common(given),
    )


def _known(body: Mapping[str, Any], own: set[str]) -> dict[str, Any]:
    """The fields that say something; null is what is left out."""
    common = {"model", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "steering"}
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in common or name in own or name in WITHOUT_EFFECT:
            continue
        field = printable(name)[:60]
        if name not in NEUTRAL:
            raise RequestError(
                f"'{field}' is no field that this server knows. Steering is asked for by "
                '"steering": {"vectors": NAME, "lam": NUMBER, "layers": [8, 9]} (extra_body of the OpenAI client)',
                param=field,
            )
        if not _asks_for_nothing(name, value):
            raise RequestError(f"'{field}' is not supported; leave it out", param=field, code="unsupported_parameter")
    return given


def _asks_for_nothing(name: str, value: Any) -> bool:
    for neutral in NEUTRAL[name]:
        both_numbers = type(value) in (int, float) and type(neutral) is int  # 0 and 0.0, but not false
        if value == neutral and (both_numbers or type(value) is type(neutral)):
            return True
    return False


def _common(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both kinds of request have."""
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("'model' is missing; GET /v1/models lists the names", param="model")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise RequestError("of stream_options only include_usage is known", param="stream_options")
    stream = _flag(given, "stream")
    if options and not stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    return {
        "model": model,
        "temperature": _number(given, "temperature", least=0.0, most=2.0, default=1.0),
        "top_p": _number(given, "top_p", least=0.0, most=1.0, default=1.0, above=True),
        "seed": _whole(given, "seed", least=-SEEDS, most=SEEDS - 1, default=None),
        "stop": _stops(given.get("stop", [])),
        "stream": stream,
        "include_usage": _flag(options, "include_usage"),
        "steering": _steering(given.get("steering")),
    }


# ------------------------------------------------------------------------------------------- one field each
def _prompts(prompt: Any, limits: Limits) -> tuple[AskedPrompt, ...]:
    expected = "expected a text, a list of token ids, or a list of either"
    if isinstance(prompt, str):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise RequestError(f"'prompt' is {_shown(prompt)}; {expected}", param="prompt")
    if all(type(token) is int for token in prompt):
        prompt = [prompt]
    if len(prompt) > limits.prompts:
        raise RequestError(
            f"{len(prompt)} prompts in one request; at most {limits.prompts}. Send several requests", param="prompt"
        )
    read: list[AskedPrompt] = []
    for text_or_ids in prompt:
        if isinstance(text_or_ids, str) and text_or_ids:
            read.append(_text(text_or_ids, "prompt"))
        elif isinstance(text_or_ids, list) and text_or_ids and all(type(token) is int for token in text_or_ids):
            read.append(tuple(text_or_ids))
        else:
            raise RequestError(f"a prompt is {_shown(text_or_ids)}; {expected}, none of them empty", param="prompt")
    return tuple(read)


def _messages(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            f"'messages' is {_shown(messages)}; expected a list of {{'role': ..., 'content': ...}}", param="messages"
        )
    read: list[Message] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            expected = "expected an object with 'role' and 'content'"
            raise RequestError(f"{where} is {_shown(message)}; {expected}", param=where)
        unknown = sorted(name for name in message if name not in ("role", "content") and message[name] is not None)
        if unknown:
            raise RequestError(f"{where}: {_shown(unknown[0])} is not supported; leave it out", param=where)
        read.append({"role": _text(message["role"], where), "content": _content(message.get("content"), where)})
    return tuple(read)


def _content(content: Any, where: str) -> str:
    """A text, or parts of type text."""
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, list):
        raise RequestError(f"{where}: the content is {_shown(content)}; expected a text", param=where)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f"{where}: only parts of type 'text' are taken; pictures are not served", param=where)
        texts.append(_text(part["text"], where))
    return "".join(texts)


def _steering(steering: Any) -> AskedSteering | None:
    if steering is None:
        return None
    expected = 'expected {"vectors": NAME, "lam": NUMBER, "layers": [8, 9]}; only vectors must be there'
    if not isinstance(steering, dict) or not isinstance(steering.get("vectors"), str):
        raise RequestError(f"'steering' is {_shown(steering)}; {expected}", param="steering")
    given = {name: value for name, value in steering.items() if value is not None}
    unknown = sorted(given.keys() - {"vectors", "lam", "layers"})
    if unknown:
        raise RequestError(f"steering: {_shown(unknown[0])} is unknown; {expected}", param=f"steering.{unknown[0]:.40}")
    layers = given.get("layers")
    if layers is not None:
        is_list = isinstance(layers, list) and all(type(layer) is int and layer >= 0 for layer in layers)
        if not is_list or not layers or len(set(layers)) < len(layers):
            raise RequestError(
                f"steering.layers is {_shown(layers)}; expected different numbers of blocks from 0, as [8, 9, 10]",
                param="steering.layers",
            )
        layers = tuple(layers)
    lam = _number(given, "lam", least=-math.inf, most=math.inf, default=None, within="steering.")
    return AskedSteering(given["vectors"], lam, layers)


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise RequestError(
            f"'stop' is {_shown(stop)}; expected a text, or a list of texts, none of them empty", param="stop"
        )
    if len(stops) > MOST_STOPS:
        raise RequestError(f"{len(stops)} stop texts; at most {MOST_STOPS}", param="stop")
    return tuple(_text(text, "stop") for text in stops)


def _text(text: str, param: str) -> str:
    """A text without halves of characters, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{param}: half a character (a lone surrogate); is the text cut?", param=param) from None
    return text


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if type(value) is not bool:
        raise RequestError(f"{name!r} is {_shown(value)}; expected true or false", param=name)
    return value


def _whole(given: Mapping[str, Any], name: str, *, least: int, most: int, default: Any) -> Any:
    value = given.get(name, default)
    if value is default:
        return default
    if type(value) is not int or not least <= value <= most:
        raise RequestError(f"{name!r} is {_shown(value)}; expected a whole number from {least} to {most}", param=name)
    return value


def _number(
    given: Mapping[str, Any],
    name: str,
    *,
    least: float,
    most: float,
    default: Any,
    above: bool = False,
    within: str = "",
) -> Any:
    """above: `least` itself is not allowed."""
    value = given.get(name, default)
    if value is default:
        return default
    is_number = type(value) in (int, float) and abs(value) <= 1e300
    if not is_number or not least <= value <= most or (above and value == least):
        kind = "a finite number" if math.isinf(most) else f"a number from {least:g} to {most:g}"
        raise RequestError(
            f"'{within}{name}' is {_shown(value)}; expected {kind}{f', above {least:g}' if above else ''}",
            param=f"{within}{name}",
        )
    return float(value)


def _shown(value: Any) -> str:
    """A value in a message: short, and of no effect on a terminal."""
    return "missing" if value is None else printable(repr(value)[:80])
