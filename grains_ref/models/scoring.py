"""Answers out: teacher-forced scores of many responses, and generated text, in left-padded batches with a cache.

A response is scored in two passes, so that a prompt that many responses share is computed once:

1. all prompts of a batch, left-padded: (B, T, d) -> the logits of every response's first token, and a cache;
2. all responses behind the cache of their prompt, right-padded: (rows, R - 1) -> the logits of their other tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from grains_ref.data import Prompt
from grains_ref.models.families import Picture, PictureSource

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

Item: TypeAlias = tuple[Prompt, str] | tuple[Prompt, str, PictureSource | None]  # prompt, response, image
BATCH_TOKENS = 1 << 14  # prompt tokens scored at once; with 524 kB of cache per token (LLaVA-1.6-7B) that is 8.6 GB


class TokenRow(NamedTuple):
    """Token ids of one prompt, its picture if it has one, and one response."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    picture: Picture | None = None


@dataclass(frozen=True)
class Scored:
    """Teacher-forced score of one response: its log-probability in nats and whether greedy decoding would give it."""

    log_prob: float
    is_greedy: bool


class _TokenPrompt(NamedTuple):
    """What rows must have in common to share a cache."""

    ids: tuple[int, ...]
    picture: Picture | None


class _PromptPass(NamedTuple):
    """What one pass over B left-padded prompts leaves for the responses behind them."""

    logits: Tensor  # (B, 1, V), of the token after each prompt
    cache: Any  # keys and values of all prompt tokens
    mask: Tensor  # (B, T), 0 at padding
    next_position: Tensor  # (B,), of the token after each prompt
    position_axes: tuple[int, ...]  # what a family's positions have in front of (B, T)


# ------------------------------------------------------------------------------------------- scoring
def tokenise(model: HuggingFaceModel, items: Iterable[Item]) -> list[TokenRow]:
    """See `HuggingFaceModel.tokenise`."""
    rows: list[TokenRow] = []
    pictures: dict[str | None, Picture | None] = {}
    for prompt, response, *rest in items:
        image = rest[0] if rest else None
        key = None if image is None else str(image)  # a path; for a picture in memory what it is and its address
        if key not in pictures:
            pictures[key] = model.checked_picture(image)
        picture = pictures[key]
        ids, _ = model.prompts.encode(prompt, picture)
        response_ids = model.prompts.response_ids(prompt, response)
        if not response_ids:
            raise ValueError(f"the response {response!r} has no tokens; nothing can be scored")
        rows.append(TokenRow(tuple(ids), tuple(response_ids), picture))
    return rows


@torch.no_grad()
def score_rows(model: HuggingFaceModel, rows: Sequence[TokenRow], *, batch_size: int) -> list[Scored]:
    """See `HuggingFaceModel.score_rows`."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1, the number of prompts scored at once")
    rows_of: dict[_TokenPrompt, list[int]] = {}
    for i, row in enumerate(rows):
        rows_of.setdefault(_TokenPrompt(row.prompt, row.picture), []).append(i)
    scored: dict[int, Scored] = {}
    for prompts in _batches(rows_of, batch_size):
        numbers: list[int] = []  # of the rows in this batch
        owners: list[int] = []  # for each of them, which of the batch's prompts it belongs to
        for owner, prompt in enumerate(prompts):
            for i in rows_of[prompt]:
                numbers.append(i)
                owners.append(owner)
        results = _score_batch(model, prompts, owners, [rows[i].response for i in numbers])
        scored.update(zip(numbers, results, strict=True))
    return [scored[i] for i in range(len(rows))]


def _batches(prompts: Iterable[_TokenPrompt], batch_size: int) -> Iterator[list[_TokenPrompt]]:
    """Prompts of similar length together: at most batch_size, and `BATCH_TOKENS` tokens when padded, but at least one.

    Shortest first, so that every prompt that is added is the longest of its batch.
    """
    batch: list[_TokenPrompt] = []
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
    prompts: Sequence[_TokenPrompt],
    owners: Sequence[int],
    responses: Sequence[tuple[int, ...]],
) -> list[Scored]:
    """Score each response behind the prompt that owns it; no response is empty."""
    owner = torch.tensor(owners, device=model.device)  # (rows,)
    longest = max(len(response) for response in responses)
    padded = [[*response] + [0] * (longest - len(response)) for response in responses]
    target = torch.tensor(padded).to(model.device)  # (rows, R); what follows a response cannot change its scores
    after_prompts = _run_prompts(model, prompts)
    logits = after_prompts.logits[owner]  # (rows, 1, V): each response's first token
    if longest > 1:
        logits = torch.cat([logits, _run_responses(model, after_prompts, owner, target)], dim=1)  # (rows, R, V)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    log_p_of_target = log_p.gather(2, target[..., None])[..., 0]  # (rows, R)
    is_argmax = logits.argmax(-1) == target  # (rows, R)
    results = []
    for row, response in enumerate(responses):
        n = len(response)
        results.append(Scored(log_p_of_target[row, :n].sum().item(), bool(is_argmax[row, :n].all())))
    return results


def _run_prompts(model: HuggingFaceModel, prompts: Sequence[_TokenPrompt]) -> _PromptPass:
    """The first pass: all prompts, left-padded."""
    embeds, replays = [], []
    for prompt in prompts:
        ids = torch.tensor(prompt.ids)
        embeds.append(model.embed_prompt(ids, prompt.picture))  # (T, d)
        replays.append(model.replay(ids, prompt.picture))
    longest = max(len(row) for row in embeds)
    padded = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in embeds])  # (B, T, d)
    replay = {}
    for name in replays[0]:
        replay[name] = left_pad([row[name] for row in replays], value=0).to(model.device)
    out = model.hf(inputs_embeds=padded, **replay, logits_to_keep=1, use_cache=True)
    positions = replay["position_ids"]  # (..., B, T)
    axes = positions.shape[:-2]
    last_position = positions.reshape(-1, *positions.shape[-2:]).amax(dim=(0, 2))  # (B,)
    return _PromptPass(out.logits, out.past_key_values, replay["attention_mask"], last_position + 1, tuple(axes))


def _run_responses(model: HuggingFaceModel, after: _PromptPass, owner: Tensor, target: Tensor) -> Tensor:
    """The second pass: all tokens of the responses but the last, which predicts nothing, (rows, R - 1, V)."""
    fed = target[:, :-1]  # (rows, R - 1)
    after.cache.batch_select_indices(owner)
    steps = torch.arange(fed.shape[1], device=model.device)
    positions = after.next_position[owner][:, None] + steps  # (rows, R - 1)
    out = model.hf(
        input_ids=fed,
        attention_mask=torch.cat([after.mask[owner], after.mask.new_ones(fed.shape)], dim=1),
        position_ids=positions.expand(*after.position_axes, -1, -1),
        past_key_values=after.cache,
        use_cache=True,
    )
    logits: Tensor = out.logits
    return logits


# ---------------------------------------------------------------------------------------- generation
@torch.no_grad()
def generate(
    model: HuggingFaceModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    images: Sequence[PictureSource | None],
    **options: Any,
) -> list[str]:
    """See `HuggingFaceModel.generate`."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts is one string, {prompts!r}; give a list of prompts, with one in it: [prompt]")
    if not prompts:
        return []
    if images and len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(images)} images; give one (or None) for every prompt")
    pictures = [model.checked_picture(image) for image in images or [None] * len(prompts)]
    rows = []
    for prompt, picture in zip(prompts, pictures, strict=True):
        ids, _ = model.prompts.encode(prompt, picture)
        rows.append(torch.tensor(ids))
    pad_id = model.prompts.pad_id()
    batch = left_pad(rows, value=pad_id)  # (B, T)
    inputs = {"input_ids": batch, "attention_mask": left_pad([torch.ones_like(row) for row in rows], value=0)}
    seen = [picture for picture in pictures if picture]
    if seen:
        inputs |= model.family.generation(batch == model.prompts.image_id) | model.family.tensors(seen)
    out = model.hf.generate(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id,
        **{"do_sample": False, **options},
    )
    new = out[:, batch.shape[1] :].tolist()
    return [model.prompts.text(ids, skip_special_tokens=True).strip() for ids in new]


def left_pad(rows: Sequence[Tensor], *, value: int) -> Tensor:
    """Tensors (..., T) of different T -> (..., B, longest T)."""
    longest = max(row.shape[-1] for row in rows)
    return torch.stack([nn.functional.pad(row, (longest - row.shape[-1], 0), value=value) for row in rows], dim=-2)
