"""A model with its vectors: from what is asked to jobs of the scheduler, and back to a stream of events.

Names: the model's own is the plain model; `MODEL+VECTORS` is steered by vectors of that name as their file says.  What
a request says in `steering` goes before.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from grains_ref.data import check_prompt, excess_tokens
from grains_ref.export.serving.asked import Asked, AskedPrompt, Limits, RequestError
from grains_ref.export.serving.sampling import Sampling, Scored
from grains_ref.export.serving.scheduler import Job, Overloaded, Reason, Scheduler, Steer
from grains_ref.export.serving.words import Words
from grains_ref.files import printable, some_of
from grains_ref.models import HuggingFaceModel
from grains_ref.models.scoring import check_ids


@dataclass(frozen=True)
class ServedVectors:
    """Vectors (L, d) under a name, with the strength and the blocks that hold where a request says nothing."""

    v: Tensor
    lam: float | None
    layers: tuple[int, ...]


class PromptScores(NamedTuple):
    """What is said of a prompt's tokens but the first; number: of the answer in its request."""

    number: int
    scores: list[Scored]


class NewToken(NamedTuple):
    """One token more, and the text that may be shown more."""

    number: int
    token: Scored
    text: str


class Ended(NamedTuple):
    """An answer's end, with the text that was still held back."""

    number: int
    reason: Reason
    text: str


class Failed(NamedTuple):
    """An answer that cannot be made."""

    number: int
    error: Exception


Event = PromptScores | NewToken | Ended | Failed


class Served:
    """The model behind the address; `close` at the end.

    vectors: by name.  All have the model's shape (`vectors.check_fits`).
    """

    def __init__(self, model: HuggingFaceModel, vectors: Mapping[str, ServedVectors], limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.name = printable(model.name)
        self._vectors = dict(vectors)
        self._behaviour = {name: i for i, name in enumerate(self._vectors)}
        bank = torch.zeros(0, len(model.blocks), model.width)
        if vectors:
            bank = torch.stack([of_name.v.double() for of_name in vectors.values()])
        self._tokenising = threading.Lock()
        self._scheduler = Scheduler(model, bank, rows=limits.rows, waiting=limits.waiting)
        stored = getattr(model.hf, "generation_config", None)
        ends = getattr(stored, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        self._ends = frozenset(end for end in [*ends, model.tokenizer.eos_token_id] if end is not None)

    def close(self) -> None:
        """End the thread that runs the model."""
        self._scheduler.close()

    @property
    def names(self) -> list[str]:
        """What `model` may be in a request: the plain model, then each vectors."""
        return [self.name, *(f"{self.name}+{name}" for name in self._vectors)]

    def steering(self, asked: Asked) -> Steer | None:
        """How an answer is steered.

        Raises:
            RequestError: there is no such model or vectors, no strength is known, or a block does not exist.
        """
        if asked.model not in self.names:
            raise RequestError(
                f"there is no model {printable(repr(asked.model)[:80])}; there are {some_of(self.names)}",
                param="model",
                code="model_not_found",
                status=404,
            )
        by_model = asked.model[len(self.name) + 1 :]
        wanted = asked.steering
        name = wanted.vectors if wanted else by_model
        if not name:
            return None
        if wanted and by_model and wanted.vectors != by_model:
            raise RequestError(
                f"the model's name asks for vectors {by_model!r}, steering for {printable(repr(name)[:80])}; ask for "
                f"model {self.name!r}, or leave steering.vectors as the name has it",
                param="steering.vectors",
            )
        if name not in self._vectors:
            raise RequestError(
                f"there are no vectors {printable(repr(name)[:80])}; there are {some_of(list(self._vectors))}",
                param="steering.vectors",
                code="vectors_not_found",
                status=404,
            )
        vectors = self._vectors[name]
        lam = wanted.lam if wanted and wanted.lam is not None else vectors.lam
        if lam is None:
            raise RequestError(
                f"vectors {name!r} hold no strength: give steering.lam, or start the server with a file that "
                "'grains-ref sweep --out' wrote",
                param="steering.lam",
            )
        layers = wanted.layers if wanted and wanted.layers else vectors.layers
        n_layers = len(self.model.blocks)
        if max(layers) >= n_layers:
            raise RequestError(
                f"block {max(layers)} does not exist; the model has 0 to {n_layers - 1}", param="steering.layers"
            )
        return Steer(self._behaviour[name], lam, layers)

    def ids_of(self, prompt: AskedPrompt, *, param: str) -> tuple[int, ...]:
        """The tokens of a prompt; ids are taken as they are.

        Raises:
            RequestError: an id that the vocabulary has not, or a text or chat that cannot be tokenised.
        """
        try:
            if not isinstance(prompt, str) and isinstance(prompt[0], int):
                check_ids(self.model, prompt, where="the prompt")
                return prompt
            check_prompt(prompt)
            with self._tokenising:
                ids, _ = self.model.prompts.encode(prompt, ())
            return tuple(ids)
        except ValueError as error:
            raise RequestError(str(error), param=param) from error

    def max_tokens(self, asked: Asked, n_prompt: int) -> int:
        """How long an answer may become.

        Raises:
            RequestError: prompt and answer are longer than the model's context.
        """
        context = self.model.context
        most = self.limits.new_tokens if context is None else min(self.limits.new_tokens, context - n_prompt)
        n = asked.max_tokens if asked.max_tokens is not None else most
        if excess_tokens(n_prompt, n, context) > 0 or n < 0 or (n == 0 and not asked.echo):
            if n == 0:
                raise RequestError("max_tokens 0 needs echo: true; otherwise nothing is asked for", param="max_tokens")
            raise RequestError(
                f"{n_prompt} prompt tokens and {max(n, 1)} new ones are more than the {context} that the model takes",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return n

    async def ask(self, asked: Asked) -> Running:
        """Begin to answer.

        Raises:
            RequestError: the request does not fit the model, or too many answers wait.
        """
        steer = self.steering(asked)
        param = "messages" if asked.is_chat else "prompt"
        prompts = [await asyncio.to_thread(self.ids_of, prompt, param=param) for prompt in asked.prompts]
        running = Running(asked, prompts, steer)
        jobs = [self._job(running, index, self.max_tokens(asked, len(ids))) for index, ids in enumerate(prompts)]
        running.jobs = jobs
        try:
            self._scheduler.submit(jobs)
        except Overloaded:
            raise RequestError(
                f"{self.limits.waiting} answers wait already; try again later", code="overloaded", status=429
            ) from None
        return running

    def _job(self, running: Running, index: int, max_tokens: int) -> Job:
        asked, ids = running.asked, running.prompts[index]
        decode = functools.partial(self.model.prompts.text, skip_special_tokens=True)
        seed = None if asked.seed is None else (asked.seed + index) % (1 << 63)  # each prompt its own draws
        return Job(
            ids=ids,
            max_tokens=max_tokens,
            sampling=Sampling(asked.temperature, asked.top_p, seed),
            words=Words(decode, ids, asked.stop),
            ends=self._ends,
            steer=running.steer,
            top=asked.top,
            on_prompt=running.teller(PromptScores, index) if asked.echo and asked.top is not None else None,
            on_token=running.teller(NewToken, index),
            on_end=running.teller(Ended, index),
            on_error=running.teller(Failed, index),
        )


class Running:
    """A request that is being answered."""

    def __init__(self, asked: Asked, prompts: Sequence[tuple[int, ...]], steer: Steer | None) -> None:
        self.asked, self.prompts, self.steer = asked, prompts, steer
        self.jobs: Sequence[Job] = ()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def teller(self, kind: type[Event], index: int) -> functools.partial[None]:
        """A function that sends an event of one answer from the scheduler's thread to the one that waits for it."""
        return functools.partial(self._tell, kind, index)

    def _tell(self, kind: type[Event], index: int, *given: object) -> None:
        event = kind(index, *given)  # type: ignore[arg-type]
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has been closed: nobody waits any more
            self.cancel()

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happens, until all answers have ended.

        Raises:
            RequestError: an answer cannot be made.
        """
        open_answers = len(self.prompts)
        try:
            while open_answers:
                event = await self._events.get()
                if isinstance(event, Failed):
                    raise _as_request_error(event.error) from event.error
                if isinstance(event, Ended):
                    open_answers -= 1
                yield event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        for job in self.jobs:
            job.is_cancelled = True


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, FloatingPointError):
        return RequestError(f"this cannot be computed: {error}", code="not_finite")
    return RequestError(f"the server failed: {type(error).__name__}: {error}", code="failed", status=500)
