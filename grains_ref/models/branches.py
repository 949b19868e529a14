"""Many prompts at once, each with several responses behind it, computed so that no prompt is run twice.

A row is a prompt, its embeddings at one point of a path, and the responses to be scored behind it.  Three ways give
the same numbers:

    packed   prompt and responses stand in one sequence (`grains_ref.models.packed_rows`)
    cached   the prompts run once, left-padded; the responses run behind them on their keys and values
    apart    every response behind its own copy of the prompt, as `HuggingFaceModel.logits` does

Packed needs fewest passes, but a mask of its own, for which there is no kernel as fast as the one for plain causal
attention: long prompts are cached instead.  So are prompts whose mask is not plain causal (sliding windows, pictures
that see themselves both ways), because there the cache leaves every mask to transformers.

Neither is trusted unseen.  The first rows that go one of these ways are computed apart as well, log-probabilities and
gradients; where they differ by more than rounding, a warning says so and the model's responses are computed apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from grains_ref.data import excess_tokens
from grains_ref.grains import Encoded, at_least_float32
from grains_ref.models import packed_rows
from grains_ref.models.blocks import hooked, state_of
from grains_ref.models.last_rows import OnlyLast, Shortcuts, shortcuts_of
from grains_ref.models.packed_rows import Row
from grains_ref.models.replay import left_pad, padded_replay, run
from grains_ref.models.scoring import check_ids, select_rows

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

Way = Literal["packed", "cached", "apart"]
LONGEST_PACKED = 512  # tokens of a sequence; from there on the fused causal kernel wins over a shorter sequence


class Tolerance(NamedTuple):
    """How far a way may be from computing apart, as rounding makes it."""

    log_prob: float  # of 1 + |log P|
    gradient: float  # of its length


TOLERANCES = {
    torch.float64: Tolerance(1e-4, 1e-3),  # softmax and rotary angles are float32 in transformers
    torch.float32: Tolerance(1e-3, 2e-2),
    torch.bfloat16: Tolerance(5e-2, 0.5),
    torch.float16: Tolerance(5e-2, 0.5),
}


class Branches:
    """What `grains_ref.fast` needs beside the four things of `grains.Model`; `model.branches`."""

    def __init__(self, model: HuggingFaceModel) -> None:
        self._model = model
        self._is_right: dict[Way, bool] = {"apart": True}  # the ways that have been tried
        self._with_padding: set[Way] = set()  # those tried on rows of different lengths
        self._pads_states: bool | None = None  # whether padding leaves last states alone, once tried
        self._shortcuts: Shortcuts | None = None  # what can be spared, once tried

    # ------------------------------------------------------------------ what the engine asks
    def log_probs(
        self, encoded: Sequence[Encoded], embeds: Sequence[Tensor], responses: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """log P of every response of every row, (B, n) nats in float32 or wider.

        encoded: B prompts.  embeds: their embeddings, (T, d) each, through which gradients flow.  responses: n token
        vectors for each.

        Raises:
            ValueError: an empty response, an id that the vocabulary has not, or more tokens than the model's context.
        """
        rows = [Row(*row) for row in zip(encoded, embeds, map(tuple, responses), strict=True)]
        for row in rows:
            self._check(row)
        way = self._choose(rows)
        has_padding = len({packed_rows.length(row) for row in rows}) > 1
        if way not in self._is_right or (has_padding and self._is_right[way] and way not in self._with_padding):
            self._prove(way, rows)
        if not self._is_right[way]:
            way = "apart"
        return self._by(way, rows)

    def residuals(self, encoded: Sequence[Encoded], embeds: Sequence[Tensor]) -> Tensor:
        """`Model.residuals` of prompts of several lengths: (B, L, d), at the last token of each."""
        if len({len(row) for row in embeds}) > 1:
            if self._pads_states is None:
                self._prove_states(encoded, embeds)
            if not self._pads_states:
                return torch.cat([self._last_states([x], [row]) for x, row in zip(encoded, embeds, strict=True)])
        return self._last_states(encoded, embeds)

    def _last_states(self, encoded: Sequence[Encoded], embeds: Sequence[Tensor]) -> Tensor:
        """All prompts in one pass, left-padded."""
        shortcuts = self._spared(encoded[0], embeds[0])
        last: list[Tensor] = []

        def record(block: nn.Module, inputs: Any, output: Any) -> None:
            last.append(state_of(output)[:, -1].detach().to(embeds[0].device))  # (B, d)

        with hooked(self._model.blocks, record), OnlyLast(shortcuts, 1):
            run(self._model, _padded(embeds), self._replay(encoded), logits_to_keep=1, use_cache=False)
        return torch.stack(last, dim=1)

    # ------------------------------------------------------------------ which way
    def _choose(self, rows: Sequence[Row]) -> Way:
        """The fastest way that the rows and the model's masks allow."""
        longest = max(packed_rows.length(row) for row in rows)
        is_plain = all(self._has_plain_masks(row) for row in rows)
        return "packed" if is_plain and longest <= LONGEST_PACKED else "cached"

    def _has_plain_masks(self, row: Row) -> bool:
        """Whether attention is causal, and nothing else, in every layer."""
        if row.encoded.replay.keys() != {"attention_mask", "position_ids"}:
            return False
        config = self._model.text_config
        layer_types = getattr(config, "layer_types", None)
        if layer_types:
            return set(layer_types) == {"full_attention"}
        return getattr(config, "sliding_window", None) is None

    def _prove(self, way: Way, rows: Sequence[Row]) -> None:
        """Compute the shortest and the longest row this way and apart; a way that differs is not used again."""
        shortest, longest = min(rows, key=packed_rows.length), max(rows, key=packed_rows.length)
        tried = [shortest]
        if packed_rows.length(shortest) != packed_rows.length(longest):
            tried = [shortest, longest]
            self._with_padding.add(way)
        expected, expected_gradients = self._with_gradients("apart", tried)
        if not (expected.isfinite().all() and all(g.isfinite().all() for g in expected_gradients)):
            return  # nothing to compare with; the engine names what is not finite
        allowed = TOLERANCES[tried[0].embeds.dtype]
        try:
            computed, gradients = self._with_gradients(way, tried)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise
            self._refuse(way, f"it fails with {type(error).__name__}: {error}")
            return
        off = ((computed - expected).abs() / (1 + expected.abs())).max().item()
        turned = max(
            ((gradient - right).norm() / right.norm().clamp_min(torch.finfo(right.dtype).tiny)).item()
            for gradient, right in zip(gradients, expected_gradients, strict=True)
        )
        self._is_right[way] = off <= allowed.log_prob and turned <= allowed.gradient
        if not self._is_right[way]:
            self._refuse(way, f"log-probabilities differ by {off:.1e} of their size, gradients by {turned:.1e}")

    def _prove_states(self, encoded: Sequence[Encoded], embeds: Sequence[Tensor]) -> None:
        """Compute the last states of the shortest prompt alone and in front of padding."""
        short = min(range(len(embeds)), key=lambda i: len(embeds[i]))
        long = max(range(len(embeds)), key=lambda i: len(embeds[i]))
        padded = self._last_states([encoded[short], encoded[long]], [embeds[short], embeds[long]])
        alone = self._last_states([encoded[short]], [embeds[short]])
        wide = at_least_float32(alone)
        off = ((padded[:1].to(wide) - alone.to(wide)).norm() / alone.to(wide).norm().clamp_min(1e-30)).item()
        self._pads_states = not off > TOLERANCES[alone.dtype].log_prob  # what is not finite is told by the engine
        if not self._pads_states:
            warnings.warn(
                f"{self._model.name}: padding in front of a prompt changes its hidden states by {off:.1e} of their "
                "size: prompts of different lengths go through the model one at a time.",
                stacklevel=2,
            )

    def _refuse(self, way: Way, why: str) -> None:
        self._is_right[way] = False
        warnings.warn(
            f"{self._model.name}: sharing a prompt between two responses ({way}) does not give what separate runs "
            f"give: {why}. Every response is computed apart, which takes about twice as long.",
            stacklevel=2,
        )

    def _with_gradients(self, way: Way, rows: Sequence[Row]) -> tuple[Tensor, list[Tensor]]:
        """Log-probabilities, and the gradients of a weighted sum of them in which no two responses are alike."""
        with torch.enable_grad():
            points = [row.embeds.detach().requires_grad_() for row in rows]
            log_p = self._by(way, [row._replace(embeds=point) for row, point in zip(rows, points, strict=True)])
            weights = torch.tensor([1.0, -0.6, 0.3, -0.1], device=log_p.device, dtype=log_p.dtype)
            total = (log_p * weights[: log_p.shape[1]]).sum()
            gradients = torch.autograd.grad(total, points)
        return log_p.detach(), [gradient.to(at_least_float32(gradient)) for gradient in gradients]

    def _check(self, row: Row) -> None:
        """Refuse what `HuggingFaceModel.logits` and `grains.log_prob` would refuse."""
        n_prompt = int(row.encoded.replay["attention_mask"].sum())
        for y in row.responses:
            if y.ndim != 1 or len(y) == 0:
                raise ValueError(f"a response must be a vector of at least one token id; got shape {tuple(y.shape)}")
            check_ids(self._model, y.tolist(), where="the response")
            if excess_tokens(n_prompt, len(y) - 1, self._model.context) > 0:
                raise ValueError(
                    f"{n_prompt} prompt tokens and {len(y) - 1} of the response are more than the "
                    f"{self._model.context} that {self._model.name} takes"
                )

    # ------------------------------------------------------------------ the three ways
    def _by(self, way: Way, rows: Sequence[Row]) -> Tensor:
        if way == "packed":
            return self._packed(rows)
        if way == "cached":
            return self._cached(rows)
        return self._apart(rows)

    def _apart(self, rows: Sequence[Row]) -> Tensor:
        """Every response of every row in a run of its own; rows of one prompt that follow each other go together."""
        results: list[Tensor] = []
        start = 0
        while start < len(rows):
            first, stop = rows[start], start + 1
            while stop < len(rows) and rows[stop].encoded is first.encoded:
                stop += 1
            embeds = torch.stack([row.embeds for row in rows[start:stop]])
            of_responses = []
            for y in first.responses:
                log_p = self._model.logits(first.encoded, embeds, y).to(at_least_float32(embeds)).log_softmax(-1)
                of_responses.append(log_p[:, torch.arange(len(y)), y.to(log_p.device)].sum(-1))
            results.append(torch.stack(of_responses, dim=1))
            start = stop
        return torch.cat(results)

    def _packed(self, rows: Sequence[Row]) -> Tensor:
        """One sequence for each row, one pass for all."""
        device, dtype = rows[0].embeds.device, rows[0].embeds.dtype
        fed_ids = [packed_rows.fed(row).ids() for row in rows]
        fed = self._model.embed(torch.cat(fed_ids).to(self._model.device)).to(dtype).split([*map(len, fed_ids)])
        sequences = [torch.cat([row.embeds, behind.to(device)]) for row, behind in zip(rows, fed, strict=True)]
        longest = max(map(len, sequences))
        # The scored positions are a row's last ones: of the last prompt token, and of all response tokens that are fed.
        n_kept = 1 + max(map(len, fed_ids))
        shortcuts = self._spared(rows[0].encoded, rows[0].embeds)
        with OnlyLast(shortcuts, n_kept) as last:
            out = self._model.hf(
                inputs_embeds=_padded(sequences),
                attention_mask=_additive(packed_rows.visible(rows, longest), dtype, device),
                position_ids=left_pad([packed_rows.positions(row) for row in rows], value=0).to(device),
                logits_to_keep=n_kept,
                use_cache=False,
            )
        kept = last.states(out)  # (B, n_kept, d)
        states = torch.cat([of_row[n_kept - 1 - len(ids) :] for of_row, ids in zip(kept, fed_ids, strict=True)])
        which, tokens, responses = [], [], []
        first_state = 0
        for b, row in enumerate(rows):
            scored = packed_rows.scored(row)
            which += [first_state + state for state in scored.states]
            tokens += scored.tokens
            responses += [b * len(row.responses) + i for i in scored.responses]
            first_state += 1 + len(fed_ids[b])
        log_p = shortcuts.log_probs(states, torch.tensor(which), torch.tensor(tokens))
        return _summed(log_p, torch.tensor(responses), len(rows) * len(rows[0].responses)).view(len(rows), -1)

    def _cached(self, rows: Sequence[Row]) -> Tensor:
        """All prompts, then all responses on their keys and values."""
        replay = self._replay([row.encoded for row in rows])
        shortcuts = self._spared(rows[0].encoded, rows[0].embeds)
        with OnlyLast(shortcuts, 1) as last:
            out = run(self._model, _padded([row.embeds for row in rows]), replay, logits_to_keep=1, use_cache=True)
        n = len(rows[0].responses)
        responses = [y for row in rows for y in row.responses]  # (B * n,), those of one prompt beside each other
        longest = max(map(len, responses))
        states = last.states(out).repeat_interleave(n, dim=0)  # (B * n, 1, d), of each response's first token
        padded = torch.stack([nn.functional.pad(y, (0, longest - len(y))) for y in responses])
        target = padded.to(states.device)  # (B * n, R)
        if longest > 1:
            cache = out.past_key_values
            select_rows(cache, torch.arange(len(rows), device=target.device).repeat_interleave(n))
            mask = replay["attention_mask"].repeat_interleave(n, dim=0)
            positions = replay["position_ids"]  # (..., B, T)
            axes = positions.shape[:-2]
            after_prompt = positions.reshape(-1, *positions.shape[-2:]).amax(dim=(0, 2)) + 1  # (B,)
            behind = torch.arange(longest - 1, device=mask.device)
            behind_prompt = after_prompt.repeat_interleave(n)[:, None] + behind  # (B * n, R - 1)
            with OnlyLast(shortcuts, longest - 1) as last:
                others = self._model.hf(
                    input_ids=target[:, :-1],
                    attention_mask=torch.cat([mask, mask.new_ones(len(target), longest - 1)], dim=1),
                    position_ids=behind_prompt.expand(*axes, -1, -1),
                    past_key_values=cache,
                    use_cache=True,
                )
            states = torch.cat([states, last.states(others)], dim=1)
        lengths = torch.tensor([len(y) for y in responses], device=target.device)
        is_token = torch.arange(longest, device=target.device) < lengths[:, None]  # (B * n, R)
        log_p = shortcuts.log_probs(states[is_token], torch.arange(int(lengths.sum())), target[is_token])
        return _summed(log_p, torch.arange(len(target)).repeat_interleave(lengths.cpu()), len(target)).view(-1, n)

    def _spared(self, encoded: Encoded, embeds: Tensor) -> Shortcuts:
        """What passes of this model need not compute, tried on the first prompt in which it can be told."""
        if self._shortcuts is None and len(embeds) > 1:
            self._shortcuts = shortcuts_of(self._model, encoded, embeds)
        return self._shortcuts or Shortcuts()

    def _replay(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """Masks, positions and token types of the prompts, left-padded: (..., B, T)."""
        return padded_replay([prompt.replay for prompt in encoded], device=self._model.device)


# --------------------------------------------------------------------------------------------- helpers
def _summed(log_p: Tensor, responses: Tensor, n: int) -> Tensor:
    """Sums of the tokens' log-probabilities, (n,) for as many responses."""
    return log_p.new_zeros(n).index_add(0, responses.to(log_p.device), log_p)


def _additive(may_see: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a token may be seen, and the lowest number elsewhere."""
    mask = torch.zeros(may_see.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~may_see.to(device), torch.finfo(dtype).min)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """(T, d) of several T -> (B, longest T, d), left-padded."""
    longest = max(map(len, rows))
    return torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
