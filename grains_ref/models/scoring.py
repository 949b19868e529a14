"""Answers out: teacher-forced scores of many responses, in left-padded batches with a cache.

A response is scored in two passes, so that a prompt that many responses share is computed once:

1. all prompts of a batch, left-padded: (B, T, d) -> the logits of every response's first token, and a cache;
2. the responses behind the cache of their prompt, right-padded: (rows, R - 1) -> the logits of their other tokens.

Logits are the largest tensors here, rows x R x V numbers.  The second pass takes as many rows at once, and of a long
response as many tokens, as `memory` allows; of their logits only the scores are kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor, nn
from transformers import Cache

from grains_ref.data import Prompt, check_list, check_prompt, check_visible, excess_tokens
from grains_ref.files.processes import share
from grains_ref.models.diagnosis import explained, only_together
from grains_ref.models.families import Picture, PictureSources, digest_of_pictures
from grains_ref.models.next_token import Begun, Following, rules_of
from grains_ref.models.replay import padded_replay, run

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

Item: TypeAlias = tuple[Prompt, str] | tuple[Prompt, str, PictureSources | None]  # prompt, response, image
BATCH_TOKENS = 1 << 14  # prompt tokens scored at once; with 524 kB of cache per token (LLaVA-1.6-7B) that is 8.6 GB
LOGIT_MEMORY = 512 << 20  # bytes of logits, and of what is computed from them, that are in memory at once
_BYTES_PER_LOGIT = 12  # the logit itself, and float32 copies of it and of its log-probability


class TokenRow(NamedTuple):
    """Token ids of one prompt, its pictures in order, and one response; `where` it is from, for messages."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    where: str = ""

    @property
    def picture_digest(self) -> str:
        """See `families.digest_of_pictures`."""
        return digest_of_pictures(self.pictures)


@dataclass(frozen=True)
class Scored:
    """Teacher-forced score of one response: its log-probability in nats and whether greedy decoding would give it.

    is_forbidden: whether a rule of the next token (`next_token`) forbids one of its tokens; then log_prob is -inf.

    Raises:
        FloatingPointError: the log-probability is NaN or infinite, which is no score.
    """

    log_prob: float
    is_greedy: bool
    is_forbidden: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.log_prob) and not (self.is_forbidden and self.log_prob == -math.inf):
            raise FloatingPointError(f"the log-probability of a response is {self.log_prob}.")


class TokenPrompt(NamedTuple):
    """What rows must have in common to share a cache."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()


class PromptPass(NamedTuple):
    """What one pass over B left-padded prompts leaves for the responses behind them."""

    logits: Tensor  # (B, 1, V), of the token after each prompt; (B, T, V) where all are kept
    cache: Any  # keys and values of all prompt tokens
    mask: Tensor  # (B, T), 0 at padding
    next_position: Tensor  # (B,), of the token after each prompt
    position_axes: tuple[int, ...]  # what a family's positions have in front of (B, T)


# ------------------------------------------------------------------------------------------- rows
def tokenise(model: HuggingFaceModel, items: Iterable[Item]) -> list[TokenRow]:
    """See `HuggingFaceModel.tokenise`."""
    check_list("items", items)
    rows: list[TokenRow] = []
    known: dict[str | None, tuple[Picture, ...]] = {}
    for item in items:
        if isinstance(item, str | bytes | Mapping) or len(item) not in (2, 3):
            raise ValueError(f"expected (prompt, response) or (prompt, response, image); got {item!r:.60}")
        prompt, response, *rest = item
        check_prompt(prompt)
        check_visible(response, "response")
        image = rest[0] if rest else None
        key = (
            None if image is None else str(image)
        )  # a path, or several; of a picture in memory what it is and its address
        if key not in known:
            known[key] = model.checked_pictures(image)
        ids, _ = model.prompts.encode(prompt, known[key])
        rows.append(TokenRow(tuple(ids), tuple(model.prompts.response_ids(prompt, response)), known[key]))
    return rows


def check_rows(model: HuggingFaceModel, rows: Sequence[TokenRow]) -> None:
    """Refuse, before the work, rows that cannot be scored.

    Raises:
        ValueError: a row without tokens, with ids that the vocabulary has not, or longer than the model's context.
    """
    check_list("rows", rows)
    for i, row in enumerate(rows):
        where = row.where or f"row {i}"
        for what, ids in (("prompt", row.prompt), ("response", row.response)):
            if not ids:
                raise ValueError(f"{where}: the {what} has no tokens; nothing can be scored")
            check_ids(model, ids, where=f"{where}: the {what}", also=model.prompts.image_id if row.pictures else 0)
        if excess_tokens(len(row.prompt), len(row.response), model.context) > 0:
            total = len(row.prompt) + len(row.response)
            raise ValueError(
                f"{where}: {len(row.prompt)} prompt tokens + {len(row.response)} of the response = {total}, but the "
                f"model takes {model.context}. Shorten the row, or leave it out."
            )


def check_ids(model: HuggingFaceModel, ids: Sequence[int], *, where: str, also: int = 0) -> None:
    """Refuse ids that no embedding belongs to: negative ones would count from the end of the vocabulary.

    also: an id that is allowed wherever it lies, as that of an image token.
    """
    size = model.embed.num_embeddings
    if min(ids) >= 0 and max(ids) < size:
        return
    strange = [token for token in ids if not 0 <= token < size and token != also]
    if strange:
        raise ValueError(
            f"{where} has the token id {strange[0]}; the vocabulary of {model.name} has the ids 0 to {size - 1}. "
            "Was it tokenised for another model?"
        )


# ------------------------------------------------------------------------------------------- scoring
@torch.no_grad()
def score_rows(
    model: HuggingFaceModel, rows: Sequence[TokenRow], *, batch_size: int, memory: int = LOGIT_MEMORY
) -> list[Scored]:
    """See `HuggingFaceModel.score_rows`; the rows have been checked."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1, the number of prompts scored at once")
    rows_of: dict[TokenPrompt, list[int]] = {}
    for i, row in enumerate(rows):
        rows_of.setdefault(TokenPrompt(row.prompt, row.pictures), []).append(i)

    def score(prompts: Sequence[TokenPrompt]) -> dict[int, Scored]:
        numbers: list[int] = []  # of the rows in this batch
        owners: list[int] = []  # for each of them, which of the batch's prompts it belongs to
        for owner, prompt in enumerate(prompts):
            for i in rows_of[prompt]:
                numbers.append(i)
                owners.append(owner)
        try:
            results = _score_batch(model, prompts, owners, [rows[i].response for i in numbers], memory)
        except FloatingPointError as error:
            _refuse_batch(model, rows, numbers, memory, error)
        return dict(zip(numbers, results, strict=True))

    scored: dict[int, Scored] = {}
    for of_batch in share(list(_batches(rows_of, batch_size)), score):
        scored.update(of_batch)
    return [scored[i] for i in range(len(rows))]


def _refuse_batch(
    model: HuggingFaceModel, rows: Sequence[TokenRow], numbers: Sequence[int], memory: int, error: FloatingPointError
) -> NoReturn:
    """Say which row of a batch is not finite, by scoring each of them alone."""
    for i in numbers:
        row = rows[i]
        prompt = TokenPrompt(row.prompt, row.pictures)

        def alone(prompt: TokenPrompt = prompt, row: TokenRow = row) -> list[Scored]:
            return _score_batch(model, [prompt], [0], [row.response], memory)

        explained(model, alone, where=row.where or f"row {i}")
    raise FloatingPointError(only_together(model, str(error), what="row")) from error


def _batches(prompts: Iterable[TokenPrompt], batch_size: int) -> Iterator[list[TokenPrompt]]:
    """Prompts of similar length together: at most batch_size, and `BATCH_TOKENS` tokens when padded, but at least one.

    Shortest first, so that every prompt that is added is the longest of its batch.
    """
    batch: list[TokenPrompt] = []
    for prompt in sorted(prompts, key=lambda prompt: len(prompt.ids)):
        tokens_if_added = (len(batch) + 1) * len(prompt.ids)
        if batch and (len(batch) == batch_size or tokens_if_added > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _score_batch(
    model: HuggingFaceModel,
    prompts: Sequence[TokenPrompt],
    owners: Sequence[int],
    responses: Sequence[tuple[int, ...]],
    memory: int,
) -> list[Scored]:
    """Score each response behind the prompt that owns it; no response is empty."""
    after_prompts = run_prompts(model, prompts)
    begun = [rule.begin(model, prompts) for rule in rules_of(model)]
    longest = max(len(response) for response in responses)
    bytes_per_token = after_prompts.logits.shape[-1] * _BYTES_PER_LOGIT * (1 + len(begun))
    room = BATCH_TOKENS // (after_prompts.mask.shape[1] + longest)  # each row has a copy of its prompt's cache
    rows_at_once = max(1, min(memory // (longest * bytes_per_token), room))
    results: list[Scored] = []
    for start in range(0, len(responses), rows_at_once):
        stop = start + rows_at_once
        owner = torch.tensor(owners[start:stop], device=model.device)  # (rows,)
        cache = after_prompts.cache
        if stop < len(responses):  # others will need the cache as it is
            cache = another_view(cache)
        select_rows(cache, owner)
        rules = _begin_rows(begun, owner, responses[start:stop])
        chunk = _Chunk(owner, responses[start:stop], cache, rules, tokens_at_once=max(1, memory // bytes_per_token))
        results += _score_chunk(model, after_prompts, chunk)
    return results


class _Chunk(NamedTuple):
    """Responses that are scored at once."""

    owner: Tensor  # (rows,), which of the batch's prompts each belongs to
    responses: Sequence[tuple[int, ...]]
    cache: Any  # of each row's prompt
    rules: Sequence[Following]  # that change the logits, in order
    tokens_at_once: int  # of all rows together


def _begin_rows(begun: Sequence[Begun], owner: Tensor, responses: Sequence[tuple[int, ...]]) -> list[Following]:
    lengths = [len(response) for response in responses]
    return [of_prompts.rows(owner, lengths=lengths) for of_prompts in begun]


def another_view(cache: Any) -> Any:
    """A cache that can be changed without changing the first; the keys and values of the prompts are not copied."""
    other = _with_own_containers(cache)
    other.layers = [_with_own_containers(layer) for layer in cache.layers]
    return other


def _with_own_containers(thing: Any) -> Any:
    """A copy with dictionaries and lists of its own: linear attention keeps its states in them, not in attributes."""
    other = copy.copy(thing)
    for name, value in vars(thing).items():
        if isinstance(value, dict | list):
            setattr(other, name, copy.copy(value))
    return other


def select_rows(cache: Any, rows: Tensor) -> None:
    """Make row i of a cache its row rows[i]; a row may be taken several times.

    `reorder_cache`, made for beam search, knows every kind of layer.  `batch_select_indices` forgets the states of
    linear attention, unless a cache's class has one of its own: then it is `reorder_cache` that knows less.
    """
    if type(cache).batch_select_indices is not Cache.batch_select_indices:
        cache.batch_select_indices(rows)
    else:
        cache.reorder_cache(rows)


def cached_logits(
    model: HuggingFaceModel, prompts: Sequence[TokenPrompt], owners: Sequence[int], responses: Sequence[Sequence[int]]
) -> Tensor:
    """(rows, R, V): the logits of every token of responses of one length, each behind the prompt that owns it.

    They are computed as scores are: all prompts in one padded pass, the responses behind their cache.
    """
    after = run_prompts(model, prompts)
    owner = torch.tensor(owners, device=model.device)
    target = torch.tensor(responses, device=model.device)
    select_rows(after.cache, owner)
    behind = run_responses(model, after, owner, after.cache, target, start=1)
    return torch.cat([after.logits[owner], behind], dim=1)


def _score_chunk(model: HuggingFaceModel, after: PromptPass, chunk: _Chunk) -> list[Scored]:
    """The second pass: of every response as many tokens at once as there is room for, but the last predicts nothing."""
    longest = max(len(response) for response in chunk.responses)
    padded = [[*response] + [0] * (longest - len(response)) for response in chunk.responses]
    target = torch.tensor(padded).to(model.device)  # (rows, R); what follows a response cannot change its scores
    log_p_of_target, is_argmax = [], []  # of each slice, (rows, tokens)
    step = max(1, chunk.tokens_at_once // len(chunk.responses))
    start, stop = 0, 1
    while start < longest:
        if start == 0:
            logits = after.logits[chunk.owner]  # (rows, 1, V): each response's first token
        else:
            seen = target[:, :stop]
            logits = run_responses(model, after, chunk.owner, chunk.cache, seen, start=start)  # (rows, stop - start, V)
        for rule in chunk.rules:
            logits = rule.changed(logits.to(torch.promote_types(logits.dtype, torch.float32)), target[:, :stop])
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        log_p_of_target.append(log_p.gather(2, target[:, start:stop, None])[..., 0])
        is_argmax.append(logits.argmax(-1) == target[:, start:stop])
        del logits, log_p  # before the next slice takes as much
        start, stop = stop, min(stop + step, longest)
    scores, greedy = torch.cat(log_p_of_target, dim=1), torch.cat(is_argmax, dim=1)  # (rows, R)
    lengths = torch.tensor([len(response) for response in chunk.responses], device=greedy.device)
    is_behind = torch.arange(longest, device=greedy.device) >= lengths[:, None]
    all_greedy = (greedy | is_behind).all(1).tolist()
    results = []
    for row, response in enumerate(chunk.responses):
        n = len(response)
        is_forbidden = bool(chunk.rules) and bool(scores[row, :n].isneginf().any())
        results.append(Scored(scores[row, :n].sum().item(), all_greedy[row], is_forbidden))
    return results


def run_prompts(
    model: HuggingFaceModel,
    prompts: Sequence[TokenPrompt],
    *,
    logits_to_keep: int = 1,
    seen_as: Callable[[TokenPrompt], AbstractContextManager[object]] = nullcontext,
) -> PromptPass:
    """The first pass: all prompts, left-padded.

    logits_to_keep: of the last so many tokens; 0 for all.  seen_as: inside of what each prompt's pictures are seen.
    """
    embeds, replays = [], []
    for prompt in prompts:
        ids = torch.tensor(prompt.ids)
        with seen_as(prompt):
            embeds.append(model.embed_prompt(ids, prompt.pictures))  # (T, d)
            replays.append(model.replay(ids, prompt.pictures))
    longest = max(len(row) for row in embeds)
    padded = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in embeds])  # (B, T, d)
    replay = padded_replay(replays, device=model.device)
    out = run(model, padded, replay, logits_to_keep=logits_to_keep, use_cache=True)
    positions = replay["position_ids"]  # (..., B, T)
    axes = positions.shape[:-2]
    last_position = positions.reshape(-1, *positions.shape[-2:]).amax(dim=(0, 2))  # (B,)
    return PromptPass(out.logits, out.past_key_values, replay["attention_mask"], last_position + 1, tuple(axes))


def run_responses(
    model: HuggingFaceModel, after: PromptPass, owner: Tensor, cache: Any, target: Tensor, *, start: int
) -> Tensor:
    """The logits of tokens start, start + 1, ... of the responses, (rows, stop - start, V).

    owner: (rows,), which of the pass's prompts each belongs to; cache: of each row's prompt, which grows.
    target: (rows, stop) tokens up to the last one that is to be predicted; those before `start` - 1 are in the cache.
    """
    fed = target[:, start - 1 : -1]  # (rows, stop - start)
    behind_prompt = torch.arange(start - 1, target.shape[1] - 1, device=model.device)
    positions = after.next_position[owner][:, None] + behind_prompt  # (rows, stop - start)
    seen = after.mask.new_ones(len(fed), target.shape[1] - 1)
    out = model.hf(
        input_ids=fed,
        attention_mask=torch.cat([after.mask[owner], seen], dim=1),
        position_ids=positions.expand(*after.position_axes, -1, -1),
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = out.logits
    return logits
