"""Answers in OpenAI's shapes, of completions and of chats, whole and as parts of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grains_ref.export.serving.sampling import Scored
from grains_ref.export.serving.served import Ended, Event, NewToken, PromptScores, Running
from grains_ref.models import HuggingFaceModel

Json = dict[str, Any]


@dataclass
class _Answer:
    """What has been said in one answer."""

    text: str = ""
    prompt_scores: list[Scored] = field(default_factory=list)
    tokens: list[Scored] = field(default_factory=list)
    reason: str | None = None


class Answers:
    """All answers of one request, as they come."""

    def __init__(self, model: HuggingFaceModel, running: Running) -> None:
        self._model, self._running, self._asked = model, running, running.asked
        kind = "chatcmpl" if self._asked.is_chat else "cmpl"
        self._head: Json = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._asked.model}
        self._answers = [_Answer() for _ in running.prompts]

    # ------------------------------------------------------------------------------- whole
    def take(self, event: Event) -> None:
        """Note what has happened."""
        answer = self._answers[event.number]
        if isinstance(event, PromptScores):
            answer.prompt_scores = event.scores
        elif isinstance(event, NewToken):
            answer.tokens.append(event.token)
            answer.text += event.text
        elif isinstance(event, Ended):
            answer.text += event.text
            answer.reason = event.reason

    def whole(self) -> Json:
        """The answer to a request that is not streamed."""
        choices = []
        for index, answer in enumerate(self._answers):
            choice: Json = {"index": index, "finish_reason": answer.reason}
            if self._asked.is_chat:
                choice["message"] = {"role": "assistant", "content": answer.text}
                choice["logprobs"] = self._chat_log_probs(answer.tokens)
            else:
                choice["text"] = self._echo(index) + answer.text
                choice["logprobs"] = self._log_probs(self._prompt_places(index) + _places(answer.tokens))
            choices.append(choice)
        name = "chat.completion" if self._asked.is_chat else "text_completion"
        return {**self._head, "object": name, "choices": choices, "usage": self._usage()}

    # ------------------------------------------------------------------------------- streamed
    def beginning(self) -> list[Json]:
        """What a stream begins with: the role of a chat's answer, or the prompts that are to be echoed."""
        parts = []
        for index in range(len(self._answers)):
            if self._asked.is_chat:
                parts.append(self._part(index, {"delta": {"role": "assistant", "content": ""}, "logprobs": None}))
            elif self._asked.echo and self._asked.top is None:
                parts.append(self._part(index, {"text": self._echo(index), "logprobs": None}))
        return parts

    def part(self, event: Event) -> Json | None:
        """The next part of a stream; None where there is nothing to show."""
        self.take(event)
        index = event.number
        if isinstance(event, PromptScores):
            places = self._log_probs(self._prompt_places(index))
            return self._part(index, {"text": self._echo(index), "logprobs": places})
        tokens = [event.token] if isinstance(event, NewToken) else []
        text = event.text if isinstance(event, NewToken | Ended) else ""
        reason = event.reason if isinstance(event, Ended) else None
        if not text and not reason and self._asked.top is None:
            return None
        if self._asked.is_chat:
            delta = {"content": text} if text else {}
            return self._part(index, {"delta": delta, "logprobs": self._chat_log_probs(tokens)}, reason)
        return self._part(index, {"text": text, "logprobs": self._log_probs(_places(tokens))}, reason)

    def last(self) -> list[Json]:
        """What a stream ends with: the usage, if it was asked for."""
        if not self._asked.include_usage:
            return []
        return [{**self._part(0, {}), "choices": [], "usage": self._usage()}]

    def _part(self, index: int, content: Json, reason: str | None = None) -> Json:
        name = "chat.completion.chunk" if self._asked.is_chat else "text_completion"
        return {**self._head, "object": name, "choices": [{"index": index, **content, "finish_reason": reason}]}

    # ------------------------------------------------------------------------------- pieces
    def _usage(self) -> Json:
        n_prompt = sum(len(ids) for ids in self._running.prompts)
        n_new = sum(len(answer.tokens) for answer in self._answers)
        return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}

    def _echo(self, index: int) -> str:
        """The prompt as it was given, or what its ids say."""
        if not self._asked.echo:
            return ""
        prompt = self._asked.prompts[index]
        return prompt if isinstance(prompt, str) else self._model.prompts.text(self._running.prompts[index])

    def _prompt_places(self, index: int) -> list[tuple[int, Scored | None]]:
        """The prompt's tokens with what is said of them; nothing precedes the first."""
        if not self._asked.echo:
            return []
        scores = self._answers[index].prompt_scores
        return [(self._running.prompts[index][0], None), *_places(scores)]

    def _log_probs(self, places: Sequence[tuple[int, Scored | None]]) -> Json | None:
        """`logprobs` of a completion."""
        if self._asked.top is None:
            return None
        texts = [self._model.prompts.token_text(token) for token, _ in places]
        offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [scored.log_prob if scored else None for _, scored in places],
            "top_logprobs": [self._tops(scored) if scored else None for _, scored in places],
            "text_offset": offsets,
        }

    def _tops(self, scored: Scored) -> dict[str, float]:
        """The most probable tokens, and the one that stands there; of those with the same text the most probable."""
        tops: dict[str, float] = {}
        for token, log_prob in (*scored.top, (scored.token, scored.log_prob)):
            tops.setdefault(self._model.prompts.token_text(token), log_prob)
        return tops

    def _chat_log_probs(self, tokens: Sequence[Scored]) -> Json | None:
        """`logprobs` of a chat."""
        if self._asked.top is None:
            return None
        content = []
        for scored in tokens:
            own = self._chat_token(scored.token, scored.log_prob)
            content.append({**own, "top_logprobs": [self._chat_token(*top) for top in scored.top]})
        return {"content": content}

    def _chat_token(self, token: int, log_prob: float) -> Json:
        text = self._model.prompts.token_text(token)
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode(errors="replace"))}


def _places(tokens: Sequence[Scored]) -> list[tuple[int, Scored | None]]:
    return [(scored.token, scored) for scored in tokens]


def models_record(names: Sequence[str]) -> Json:
    """The answer to /v1/models."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "grains_ref"} for name in names],
    }
