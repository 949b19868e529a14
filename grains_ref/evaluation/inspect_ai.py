"""A model, steered or not, for Inspect (`pip install 'grains-ref[inspect]'`).

    inspect eval task.py --model grains_ref/MODEL -M vectors=FILE -M lam=2

MODEL is a local folder or a hub id.  The package names this module under the entry point `inspect_ai`, so that Inspect
finds the provider by itself.  Generation is `HuggingFaceModel.generate`: greedy unless a temperature is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import anyio
    import anyio.to_thread
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        modelapi,
    )
except ImportError as error:
    raise ImportError(
        f"grains_ref.evaluation.inspect_ai needs Inspect 0.3.285 or newer ({error}). Install it with: "
        "pip install 'grains-ref[inspect]'"
    ) from error

from grains_ref.files import digest_of

# torch and transformers are imported when a model is made: Inspect imports this module whenever it lists providers.
if TYPE_CHECKING:
    from grains_ref.grains import Hooks
    from grains_ref.models import HuggingFaceModel, Prompt

# Settings of Inspect that would change the answers, and that this provider does not have.
REFUSED = (
    *("best_of", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
    *("prompt_logprobs", "response_schema", "seed", "reasoning_effort", "reasoning_tokens"),
)


@modelapi(name="grains_ref")
class SteeredModel(ModelAPI):
    """`inspect_ai.model.ModelAPI` around a model in this process; text in, text out, no tools.

    Requests that wait at the same time are computed together.  Inspect's cache knows a model by its name and its
    base_url, not by its arguments; base_url therefore says which vectors steer at which strength, so that no answer is
    taken from the cache of another setting.

    Args:
        model_name: a local folder, or a hub id; what follows `grains_ref/` in Inspect's name of the model.
        base_url, api_key, config: given by Inspect.
        vectors: a vectors file; without it, the plain model.
        lam: the strength; default: as `grains-ref sweep --out` stored it in the file.
        layers: decoder blocks to steer, one or several; default: as the sweep stored them, else all.
        force: accept vectors that were made with other weights of the same shape.
        chat: whether messages go through the chat template; default: if the model has one.  Without it a prompt is a
            single message, taken as plain text.
        max_new_tokens: of an answer for which neither the task nor `--max-tokens` says a length.
        batch_size: most answers to compute at once.
        dtype, device, device_map, date: see `grains_ref.models.load`.

    Raises:
        ValueError: lam or layers without vectors, no strength given or stored, or an argument that does not fit.
        MismatchError: the vectors belong to another model.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - as Inspect's own providers have it
        *,
        vectors: str | None = None,
        lam: float | None = None,
        layers: int | str | Sequence[int | str] | None = None,
        force: bool = False,
        chat: bool | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 32,
        dtype: str = "auto",
        device: str = "cpu",
        device_map: str | None = None,
        date: Any = None,
    ) -> None:
        from grains_ref.models import load

        if vectors is None and (lam is not None or layers is not None):
            raise ValueError("lam and layers say how to use vectors: give -M vectors=FILE too, or none of them")
        if batch_size < 1 or max_new_tokens < 1:
            raise ValueError(f"batch_size={batch_size}, max_new_tokens={max_new_tokens}: both must be 1 or more")
        self.model = load(model_name, dtype=dtype, device=device, device_map=device_map, date=date)
        self.chat = self.model.tokenizer.chat_template is not None if chat is None else chat
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._steering: Hooks | contextlib.nullcontext[None] = contextlib.nullcontext()
        identity = f"grains_ref:{self.model.fingerprint()},{dtype},chat={self.chat},max_new_tokens={max_new_tokens}"
        identity += f",date={self.model.prompts.date}" if self.chat else ""
        if vectors is not None:
            self._steering, how = _steering(self.model, Path(vectors), lam, layers, force=force, chat=self.chat)
            identity += "," + how
        if base_url not in (None, identity):
            raise ValueError(f"base_url={base_url}: the model runs in this process; leave --model-base-url out")
        super().__init__(model_name=model_name, base_url=identity, api_key=api_key, api_key_vars=[], config=config)
        self._waiting: list[_Request] = []
        self._one_batch_at_a_time = anyio.Lock()

    def max_connections(self) -> int:
        """How many requests Inspect sends at once: as many as are computed together."""
        return self.batch_size

    async def generate(
        self, input: list[ChatMessage], tools: Sequence[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """The model's answer to a chat.

        Raises:
            ValueError: tools, pictures or settings that this provider does not have; prompt and answer are longer than
                the model takes.
            FloatingPointError: the steered model overflows.
        """
        if tools:
            raise ValueError(f"the task offers {len(tools)} tools; this provider has none. Use a solver without tools")
        request = _Request(self._prompt(input), self._options(config))
        self._waiting.append(request)
        await anyio.sleep(0)  # others that come at the same time are to be seen
        async with self._one_batch_at_a_time:
            if request.outcome is None:
                batch = [waiting for waiting in self._waiting if waiting.options == request.options]
                batch.remove(request)
                batch = [request, *batch[: self.batch_size - 1]]
                self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
                await anyio.to_thread.run_sync(functools.partial(self._answer, batch))
        if isinstance(request.outcome, ModelOutput):
            return request.outcome
        raise request.outcome or RuntimeError("the batch of this request was not computed")

    def _prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        for message in messages:
            kinds = {part.type for part in message.content} if not isinstance(message.content, str) else set()
            if strange := kinds - {"text", "reasoning"}:
                raise ValueError(f"a message with {', '.join(sorted(strange))}: this provider takes text only")
        if self.chat:
            return [{"role": message.role, "content": message.text} for message in messages]
        if len(messages) != 1:
            roles = ", ".join(message.role for message in messages)
            raise ValueError(
                f"{len(messages)} messages ({roles}) without a chat template: plain text is one message of the user. "
                "Leave out what writes a system message or examples, or use a model that has a template"
            )
        return messages[0].text

    def _options(self, config: GenerateConfig) -> _Options:
        refused = [name for name in REFUSED if getattr(config, name, None) is not None]
        if config.num_choices not in (None, 1):
            refused.append("num_choices")
        if not config.temperature and (config.top_p is not None or config.top_k is not None):
            raise ValueError("top_p and top_k say how to sample: give a temperature above 0 too, or none of them")
        if refused:
            raise ValueError(
                f"{', '.join(refused)}: this provider does not have these settings, and without them the answers would "
                "be others than asked for; leave them out"
            )
        if config.stop_seqs and "" in config.stop_seqs:
            raise ValueError("stop_seqs has an empty text, which occurs everywhere; leave it out")
        return _Options(
            max_new_tokens=self.max_new_tokens if config.max_tokens is None else config.max_tokens,
            temperature=config.temperature or 0.0,
            top_p=config.top_p,
            top_k=config.top_k,
            until=tuple(config.stop_seqs or ()),
        )

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Give every request its outcome; what fails together is tried alone, so that only the culprits fail."""
        try:
            outcomes = self._outputs([request.prompt for request in batch], batch[0].options)
        except Exception as error:
            if len(batch) == 1:
                batch[0].outcome = error
                return
            for request in batch:
                self._answer([request])
            return
        for request, outcome in zip(batch, outcomes, strict=True):
            request.outcome = outcome

    def _outputs(self, prompts: Sequence[Prompt], options: _Options) -> list[ModelOutput]:
        from grains_ref.evaluation.stopping import SaidSoFar

        so_far = SaidSoFar(self.model, options.until)
        began = time.monotonic()
        with self._steering:
            texts = self.model.generate(
                prompts,
                max_new_tokens=options.max_new_tokens,
                stopping_criteria=[so_far],
                **options.of_sampling(),
            )
        seconds = time.monotonic() - began
        if options.until:
            texts = [text.strip() for text in so_far.texts]
        outputs = []
        for i, prompt in enumerate(prompts):
            n_prompt = len(self.model.prompts.encode(prompt, ())[0])
            choice = ChatCompletionChoice(
                message=ChatMessageAssistant(content=texts[i], model=self.model_name, source="generate"),
                stop_reason="stop" if so_far.ended[i] else "max_tokens",
            )
            usage = ModelUsage(
                input_tokens=n_prompt,
                output_tokens=so_far.n_tokens[i],
                total_tokens=n_prompt + so_far.n_tokens[i],
            )
            outputs.append(ModelOutput(model=self.model_name, choices=[choice], usage=usage, time=seconds))
        return outputs


@dataclass(frozen=True)
class _Options:
    """What requests of one batch have in common; a temperature of 0 is greedy."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    until: tuple[str, ...]

    def of_sampling(self) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        if self.temperature == 0:
            return {}
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"do_sample": True} | {name: value for name, value in given.items() if value is not None}


@dataclass(eq=False)
class _Request:
    """One call of `generate`, until its outcome is there."""

    prompt: Prompt
    options: _Options
    outcome: ModelOutput | Exception | None = None


def _steering(
    model: HuggingFaceModel,
    path: Path,
    lam: float | None,
    layers: int | str | Sequence[int | str] | None,
    *,
    force: bool,
    chat: bool,
) -> tuple[Hooks, str]:
    """The edit that a file stands for, and a line that tells it from every other one."""
    from grains_ref.methods.from_file import steering_of, width_at_site
    from grains_ref.vectors import SteeringVectors, check_fits

    vectors = SteeringVectors.load(path)
    check_fits(
        vectors,
        n_layers=len(model.blocks),
        width=width_at_site(model, vectors),
        fingerprint=model.fingerprint(),
        model_name=model.name,
        force=force,
        chat_template=model.prompts.template_digest if chat else "",
        date=model.prompts.date if chat else "",
    )
    stored = vectors.header.choice
    if lam is None:
        if not stored:
            raise ValueError(f"{path} holds no strength: give one with -M lam=2, or choose one with 'grains-ref sweep'")
        lam = float(stored["lam"])
    if layers is None and stored:
        layers = stored["layers"]
    chosen = None if layers is None else _layers(layers)
    layer_names = "all" if chosen is None else "+".join(map(str, chosen))
    how = f"vectors={digest_of(path.read_bytes())},lam={float(lam)!r},layers={layer_names}"
    return steering_of(model, vectors, lam=float(lam), layers=chosen), how


def _layers(layers: int | str | Sequence[int | str]) -> list[int]:
    """Inspect reads `-M layers=3` as a number and `-M layers=3,5` as a list of texts."""
    listed = [layers] if isinstance(layers, int | str) else layers
    try:
        return [int(layer) for layer in listed]
    except ValueError as error:
        raise ValueError(f"layers={layers!r}: expected numbers of decoder blocks, such as -M layers=8,9,10") from error
