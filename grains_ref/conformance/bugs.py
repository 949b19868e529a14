"""Planted bugs: the seven stages, each computed wrongly in one way.

They have two uses. The suite is tested with them: every bug must be caught by the cases that name it in `kills`. And
they are the diagnosis: where a port fails, the bug whose output comes closest to the port's is what to look for.

A bug is the correct stage with one argument exchanged. `objective_with(sides)`, `attribution_with(...)` and so on are
the seven stages with their parts as arguments; the tables at the end of each section exchange them. The decoder is
written anew in `decode`, with one mistake called `variation` where asked for. What the oracle refuses, a bug refuses
too, unless not to refuse is the bug. Bugs take the dtype they are asked for and, like the oracle, add up in float32 or
wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.conformance.stages import DTYPES, Stage, Values, check, run_oracle
from grains_ref.conformance.toy import BLOCKS, EPS, HEAD_DIM, HEADS, KV_HEADS, THETA, WIDTH, toy_weights
from grains_ref.grains import quadrature_rule, steer_hidden


@dataclass(frozen=True)
class Bug:
    """One planted bug: the stage `function`, wrong in one way."""

    name: str
    stage: str
    description: str  # completes "your output equals ours with ..."
    effect: str  # what it does to a user of the port
    source: str  # study; released code, row N or rows (of docs/decisions.md); field (seen in public libraries); ours
    function: Stage


Row: TypeAlias = tuple[str, str, str, str, Stage]  # a Bug without its stage


def bugs_of(stage: str, rows: Sequence[Row]) -> tuple[Bug, ...]:
    """The bugs of a stage from their rows."""
    return tuple(
        Bug(name, stage, what, effect, source, _refusing(stage, function))
        for name, what, effect, source, function in rows
    )


def _refusing(stage: str, function: Stage) -> Stage:
    """The same stage, refusing what the oracle refuses before it computes anything."""

    def checked(*, dtype: str, **inputs: Any) -> Values:
        check(stage, dtype, **inputs)
        return function(**inputs, dtype=dtype)

    return checked


# -------------------------------------------------------------------------------------- the toy decoder
@cache
def _weights(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(dtype) for name, array in toy_weights().items()}


def _embed(ids: Any, dtype: torch.dtype) -> Tensor:
    """Whole numbers of any shape -> their embeddings."""
    return _weights(dtype)["embed"][_whole(ids)]


def _tensor(array: Any, dtype: str) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64)).to(DTYPES[dtype])


def _whole(numbers: Any) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


class Pass(NamedTuple):
    """What one run of the decoder leaves behind."""

    logits: Tensor  # (B, S, V)
    states: Tensor  # (B, L, S, d), the output of every block
    middles: Tensor  # (B, L, S, d), the residual stream between attention and MLP of every block


def decode(
    inputs: Tensor,
    mask: Tensor,
    *,
    variation: str = "",
    positions: Tensor | None = None,
    edit: Callable[[Tensor, int], Tensor] = lambda h, block: h,
) -> Pass:
    """The decoder of `toy` with one mistake; inputs (B, S, d), mask (B, S) of 0 and 1, positions (B, S).

    `edit` changes what leaves a block, or with the variation `edit_before_block` what enters it.
    """
    w, n = _weights(inputs.dtype), inputs.shape[1]
    seen = mask.bool()
    positions = count_from_first_token(mask) if positions is None else positions
    causal, itself = torch.ones(n, n).tril().bool(), torch.eye(n).bool()
    allowed = ((causal & seen[:, None, :]) | itself)[:, None]  # (B, 1, S, S)
    h, states, middles = inputs, [], []
    for block in range(BLOCKS):
        part = {name: w[f"blocks.{block}.{name}"] for name in "norm_1 q k v o norm_2 gate up down".split()}
        h = edit(h, block) if variation == "edit_before_block" else h
        x = _norm(h, part["norm_1"], variation)
        q, k, v = ((x @ part[name].mT).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for name in "qkv")
        q, k = (_rotate(z, positions, variation) for z in (q, k))
        repeats = HEADS // KV_HEADS
        if variation == "kv_heads_interleaved":
            k, v = (z.repeat(1, repeats, 1, 1) for z in (k, v))
        else:
            k, v = (z.repeat_interleave(repeats, dim=1) for z in (k, v))
        scale = 1.0 if variation == "attention_not_scaled" else HEAD_DIM**-0.5
        attention = (q @ k.mT * scale).masked_fill(~allowed, -torch.inf).softmax(-1)
        h = h + (attention @ v).transpose(1, 2).flatten(2) @ part["o"].mT
        middles.append(h)
        x = _norm(h, part["norm_2"], variation)
        gate, up = (x @ part[name].mT for name in ("gate", "up"))
        if variation == "gate_and_up_exchanged":
            gate, up = up, gate
        h = h + (nn.functional.silu(gate) * up) @ part["down"].mT
        h = h if variation == "edit_before_block" else edit(h, block)
        states.append(h)
    final = h if variation == "final_norm_missing" else _norm(h, w["norm"], variation)
    return Pass(final @ w["head"].mT, torch.stack(states, 1), torch.stack(middles, 1))


def _norm(h: Tensor, weight: Tensor, variation: str) -> Tensor:
    if variation == "layer_norm":
        h = h - h.mean(-1, keepdim=True)
    if variation == "norm_weight_plus_one":
        weight = 1 + weight
    eps = 0 if variation == "eps_missing" else EPS
    return h * (h.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def _rotate(z: Tensor, positions: Tensor, variation: str) -> Tensor:
    half = HEAD_DIM // 2
    theta = 10_000.0 if variation == "rotary_base_of_llama" else THETA
    angle = positions[:, None, :, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos().to(z), angle.sin().to(z)
    if variation == "rotary_pairs_adjacent":
        first, second = z[..., ::2], z[..., 1::2]
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    first, second = z[..., :half], z[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def count_from_first_token(mask: Tensor) -> Tensor:
    """The positions as they should be: 0 at the first token that is no padding."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


# -------------------------------------------------------------------------------------------- objective
Sides: TypeAlias = Callable[[Tensor, Tensor, np.ndarray, np.ndarray], tuple[Tensor, Tensor]]
"""Prompt x (B, T, d), attention mask (T,), y_pos, y_neg -> log P of both, each (B,)."""


def response_logits(
    x: Tensor, mask: Tensor, y: np.ndarray, *, late: int = 0, variation: str = "", positions: Tensor | None = None
) -> Tensor:
    """(B, R, V) in float32 or wider; `late` rows after the right ones."""
    inputs = torch.cat([x, _embed(y, x.dtype).expand(len(x), -1, -1)], 1)
    everywhere = torch.cat([mask, torch.ones(len(y), dtype=torch.long)])[None]
    logits = decode(inputs, everywhere, variation=variation, positions=positions).logits
    rows = (x.shape[1] - 1 + late + torch.arange(len(y))).clamp(min=0)
    return _wide(logits[:, rows])


def pick(scores: Tensor, y: np.ndarray) -> Tensor:
    """(B, R, V) -> (B, R): the entry of every response token."""
    return scores[:, torch.arange(len(y)), _whole(y)]


def token_log_p(x: Tensor, mask: Tensor, y: np.ndarray, **mistakes: Any) -> Tensor:
    """(B, R): log P of every response token."""
    return pick(response_logits(x, mask, y, **mistakes).log_softmax(-1), y)


def each(score: Callable[[Tensor, Tensor, np.ndarray], Tensor]) -> Sides:
    """The same score for both responses."""
    return lambda x, mask, y_pos, y_neg: (score(x, mask, y_pos), score(x, mask, y_neg))


def varied(variation: str) -> Sides:
    """The right score on a decoder with one mistake."""
    return each(lambda x, mask, y: token_log_p(x, mask, y, variation=variation).sum(-1))


right_sides: Sides = each(lambda x, mask, y: token_log_p(x, mask, y).sum(-1))
last_token: Sides = each(lambda x, mask, y: token_log_p(x, mask, y)[:, -1])
last_token_late: Sides = each(lambda x, mask, y: token_log_p(x, mask, y, late=1)[:, -1])
mask_ignored: Sides = each(lambda x, mask, y: token_log_p(x, torch.ones_like(mask), y).sum(-1))


def padded_response(x: Tensor, mask: Tensor, y_pos: np.ndarray, y_neg: np.ndarray) -> tuple[Tensor, Tensor]:
    """Both responses padded with token 0 to one length, as a batch; the padding is scored like any token."""
    longest = max(len(y_pos), len(y_neg))
    y_pos, y_neg = (np.pad(y, (0, longest - len(y))) for y in (y_pos, y_neg))
    return right_sides(x, mask, y_pos, y_neg)


def packed(x: Tensor, mask: Tensor, y_pos: np.ndarray, y_neg: np.ndarray) -> tuple[Tensor, Tensor]:
    """Prompt, y_pos and y_neg in one row, and nothing keeps y_neg from attending to y_pos."""
    together = token_log_p(x, mask, np.concatenate([y_pos, y_neg]))
    return together[:, : len(y_pos)].sum(-1), together[:, len(y_pos) :].sum(-1)


def _response_positions(x: Tensor, mask: Tensor, y: np.ndarray, first: Tensor | int) -> Tensor:
    """Score with response positions first, first + 1, ..."""
    prompt = count_from_first_token(mask[None])[0]
    return token_log_p(x, mask, y, positions=torch.cat([prompt, first + torch.arange(len(y))])[None]).sum(-1)


def objective_with(sides: Sides, f: Callable[[Tensor, Tensor], Tensor] = torch.sub) -> Stage:
    """Eq. (1) with other log-probabilities or another difference."""

    def stage(*, x: np.ndarray, attention_mask: np.ndarray, y_pos: Any, y_neg: Any, dtype: str) -> Values:
        with torch.no_grad():
            pos, neg = sides(_tensor(x, dtype)[None], _whole(attention_mask), np.asarray(y_pos), np.asarray(y_neg))
            return {"log_p_pos": pos.item(), "log_p_neg": neg.item(), "f": f(pos, neg).item()}

    return stage


def _sum_where(scores: Tensor, keep: np.ndarray) -> Tensor:
    return (scores * torch.from_numpy(keep)).sum(-1)


OBJECTIVE: tuple[Row, ...] = (
    ("off_by_one_logits", "each response token scored by its own row of logits, one late",
     "The score is that a token is repeated, not that it is said", "released code, row 1",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y, late=1).sum(-1)))),
    ("off_by_two_logits", "the logits shifted by one twice: in the model and again by the caller",
     "Every token is scored from a context that lacks the token before it", "ours",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y, late=-1).sum(-1)))),
    ("last_token_only", "only the last response token scored", "Answers that end alike cannot be told apart", "study",
     objective_with(last_token)),
    ("last_token_one_late", "only the last response token scored, by the row of that token itself",
     "The preference is close to noise: in the released code's own runs its sign disagrees on 14 of 20 pairs",
     "released code, row 1", objective_with(last_token_late)),
    ("first_token_only", "only the first response token scored", "Answers that start alike cannot be told apart",
     "field", objective_with(each(lambda x, mask, y: token_log_p(x, mask, y)[:, 0]))),
    ("mean_over_tokens", "the mean over the response's tokens, not the sum", "Long answers are preferred", "study",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y).mean(-1)))),
    ("mask_ignored", "an attention mask of ones: padding is attended",
     "The score depends on how far the batch was padded", "study", objective_with(mask_ignored)),
    ("response_padding_scored", "the shorter response padded with token 0 and the padding scored",
     "The shorter answer pays for the other's length", "study", objective_with(padded_response)),
    ("padding_id_skipped", "response tokens that happen to have the padding's id left out",
     "An answer that contains the end-of-text token loses it", "field",
     objective_with(each(lambda x, mask, y: _sum_where(token_log_p(x, mask, y), y != 0)))),
    ("end_of_text_appended", "an end-of-text token (0) appended to both responses and scored",
     "The score mixes in how the model ends a turn", "ours",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, np.append(y, 0)).sum(-1)))),
    ("packed_without_mask", "both responses in one row, the second attending to the first",
     "The second answer is scored as the continuation of the first", "ours", objective_with(packed)),
    ("raw_logits", "logits added up instead of log-probabilities",
     "A token that is likely everywhere is not discounted", "field",
     objective_with(each(lambda x, mask, y: pick(response_logits(x, mask, y), y).sum(-1)))),
    ("base_two", "logarithms to base 2: bits instead of nats", "Every score is 1.44 times too large", "field",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y).sum(-1) / np.log(2)))),
    ("likelihood_only", "f = log P(y_pos), the objective of the ablation in sect. 5.3",
     "Tokens that help both answers count as preferred", "study",
     objective_with(right_sides, f=lambda pos, neg: pos)),
    ("sides_exchanged", "y_pos and y_neg exchanged", "Steering moves toward the rejected answer", "study",
     objective_with(lambda x, mask, y_pos, y_neg: right_sides(x, mask, y_neg, y_pos))),
    ("response_positions_restart", "the response's rotary positions starting again at 0",
     "The answer is read as if it stood at the start of the prompt", "field",
     objective_with(each(lambda x, mask, y: _response_positions(x, mask, y, 0)))),
    ("response_positions_by_column", "the response's rotary positions continued from the padded length",
     "A gap as wide as the padding opens between prompt and answer", "field",
     objective_with(each(lambda x, mask, y: _response_positions(x, mask, y, len(mask))))),
    ("response_one_position_early", "the response's positions starting at the last prompt token's",
     "Two tokens share a position, as with a cache whose length is counted one short", "field",
     objective_with(each(lambda x, mask, y: _response_positions(x, mask, y, mask.sum() - 1)))),
    ("kv_heads_interleaved", "query head j reading key-value head j mod KV_HEADS",
     "Grouped-query heads attend with other heads' keys", "study", objective_with(varied("kv_heads_interleaved"))),
    ("rotary_pairs_adjacent", "rotary pairs (2i, 2i+1) instead of (i, i + head_dim/2)",
     "Weights of the one layout run in the other", "field", objective_with(varied("rotary_pairs_adjacent"))),
    ("rotary_base_of_llama", "the rotary base 10000 instead of the model's", "Distances are misread", "field",
     objective_with(varied("rotary_base_of_llama"))),
    ("eps_missing", "RMSNorm without its epsilon", "Small residual streams, as near a zero baseline, are blown up",
     "study", objective_with(varied("eps_missing"))),
    ("layer_norm", "LayerNorm (mean subtracted) instead of RMSNorm", "Another model", "field",
     objective_with(varied("layer_norm"))),
    ("norm_weight_plus_one", "RMSNorm weights used as 1 + weight", "Another family's norm", "field",
     objective_with(varied("norm_weight_plus_one"))),
    ("attention_not_scaled", "attention scores without 1 / sqrt(head_dim)", "Attention is too sharp", "field",
     objective_with(varied("attention_not_scaled"))),
    ("gate_and_up_exchanged", "the activation on `up` instead of on `gate`", "Another model", "field",
     objective_with(varied("gate_and_up_exchanged"))),
    ("final_norm_missing", "the head applied to the residual stream without the final norm",
     "Log-probabilities scale with the norm of the stream", "field", objective_with(varied("final_norm_missing"))),
    ("embeddings_scaled", "the prompt's embeddings multiplied by sqrt(d) once more",
     "The prompt outweighs the response; seen where `inputs_embeds` of Gemma are scaled twice", "field",
     objective_with(each(lambda x, mask, y: token_log_p(x * WIDTH**0.5, mask, y).sum(-1)))),
)  # fmt: skip


# ------------------------------------------------------------------------------------------ attribution
class Path(NamedTuple):
    """Everything the gradient of f is taken over: m points between baseline and x, in one batch."""

    points: Tensor  # (m, T, d)
    alphas: list[float]  # m
    mask: Tensor  # (T,)
    y_pos: np.ndarray
    y_neg: np.ndarray


Objective: TypeAlias = Callable[[Path], Tensor]
"""f at all points of the path, (m,)."""
Rule: TypeAlias = Callable[[str, int], tuple[list[float], list[float]]]
"""Quadrature and m -> nodes and weights."""


def difference(sides: Sides) -> Objective:
    """f = log P(y_pos) - log P(y_neg)."""
    return lambda path: torch.sub(*sides(path.points, path.mask, path.y_pos, path.y_neg))


right_f: Objective = difference(right_sides)


def response_on_path(path: Path, y: np.ndarray) -> Tensor:
    """log P(y), the response's embeddings scaled by alpha like the prompt's; (m,)."""
    return pick(branch_logits(path, y)[:, path.points.shape[1] - 1 : -1], y).sum(-1)


def last_token_again(path: Path, y: np.ndarray) -> Tensor:
    """log P that y's last token is said once more after y, the response scaled by alpha like the prompt; (m,)."""
    return pick(branch_logits(path, y)[:, -1:], y[-1:])[:, 0]


def branch_logits(path: Path, y: np.ndarray) -> Tensor:
    """Log-probabilities at every column of prompt and response, both scaled by alpha; (m, T + R, V)."""
    alphas = torch.tensor(path.alphas, dtype=torch.float64).to(path.points)[:, None, None]
    inputs = torch.cat([path.points, alphas * _embed(y, path.points.dtype)], 1)
    mask = torch.cat([path.mask, torch.ones(len(y), dtype=torch.long)])[None]
    return _wide(decode(inputs, mask).logits).log_softmax(-1)


def evenly(first: float, last: float) -> Rule:
    """The mean over m nodes from first to last, both included."""
    return lambda quadrature, m: (np.linspace(first, last, m).tolist(), [1 / m] * m)


def trapezoid(quadrature: str, m: int) -> tuple[list[float], list[float]]:
    """Nodes on linspace(0, 1, m), weights 1 / m, the two at the ends halved: they sum to (m - 1) / m."""
    return np.linspace(0, 1, m).tolist(), [(0.5 if j in (0, m - 1) else 1.0) / m for j in range(m)]


def reweighted(weight: Callable[[int, int], float]) -> Rule:
    """The right nodes, with each weight multiplied by weight(j, m), j = 0..m-1."""

    def rule(quadrature: str, m: int) -> tuple[list[float], list[float]]:
        nodes, weights = quadrature_rule(quadrature, m)  # type: ignore[arg-type]
        return nodes, [w * weight(j, m) for j, w in enumerate(weights)]

    return rule


right_rule: Rule = reweighted(lambda j, m: 1.0)


def attribution_with(
    *,
    f: Objective = right_f,
    rule: Rule = right_rule,
    baseline_used: Callable[[Tensor], Tensor] = lambda b: b,
    start: Callable[[Tensor], Tensor] = lambda b: b,
    score: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, b, g: ((x - b) * g).sum(-1),
) -> Stage:
    """Eq. (2) with other parts.

    baseline_used replaces the baseline; start is where the path begins; score turns x, baseline and averaged gradient,
    each (T, d), into the scores (T,).
    """

    def stage(
        *, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, m: int, quadrature: str, dtype: str
    ) -> Values:
        quadrature_rule(quadrature, m)  # type: ignore[arg-type]  # refuses unknown names
        mask, y_pos, y_neg = _whole(attention_mask), np.asarray(y_pos), np.asarray(y_neg)
        x, b = _tensor(x, dtype), baseline_used(_tensor(baseline, dtype))
        nodes, weights = rule(quadrature, m)
        begin = start(b)
        points = torch.stack([begin + alpha * (x - begin) for alpha in nodes]).requires_grad_()
        (gradient,) = torch.autograd.grad(f(Path(points, nodes, mask, y_pos, y_neg)).sum(), points)
        gradient = _wide(gradient)
        average = (torch.tensor(weights, dtype=torch.float64).to(gradient)[:, None, None] * gradient).sum(0)  # (T, d)
        return {"a": _array(score(x, b, average))}

    return stage


def padding_row(b: Tensor) -> Tensor:
    """The padding token's embedding for every token."""
    return _embed(0, b.dtype).expand_as(b)


def twenty_gauss_nodes(quadrature: str, m: int) -> tuple[list[float], list[float]]:
    """Captum's default, whatever was asked for."""
    return quadrature_rule("gauss_legendre", 20)


ATTRIBUTION: tuple[Row, ...] = (
    ("left_riemann", "nodes 0/m .. (m-1)/m", "One node lies at the baseline, where gradients explode", "study",
     attribution_with(rule=lambda quadrature, m: ([j / m for j in range(m)], [1 / m] * m))),
    ("trapezoid", "the trapezoid rule on m nodes whose weights sum to (m-1)/m",
     "All scores are too small, and one node lies at the baseline", "study", attribution_with(rule=trapezoid)),
    ("linspace_mean", "the mean over linspace(0, 1, m)", "One node lies at the baseline", "released code, row 22",
     attribution_with(rule=evenly(0, 1))),
    ("vanilla_gradient", "the gradient at x only", "No path: saturated tokens get nothing", "study",
     attribution_with(rule=lambda quadrature, m: ([1.0], [1.0]))),
    ("twenty_gauss_nodes", "Gauss-Legendre with 20 nodes whatever was asked for", "Other scores, other tokens",
     "released code, row 3",
     attribution_with(rule=twenty_gauss_nodes)),
    ("always_right_riemann", "the right Riemann sum whatever was asked for", "Coarser scores than asked for", "ours",
     attribution_with(rule=lambda quadrature, m: quadrature_rule("right", m))),
    ("gauss_not_rescaled", "Gauss-Legendre weights of [-1, 1] on [0, 1]", "Scores are twice too large", "field",
     attribution_with(rule=lambda quadrature, m: reweighted(
         lambda j, m: 2.0 if quadrature == "gauss_legendre" else 1.0)(quadrature, m))),
    ("steps_not_averaged", "gradients added up over the steps, not averaged", "Scores grow with m", "field",
     attribution_with(rule=reweighted(lambda j, m: m))),
    ("gradients_not_reset", "gradients accumulated from step to step because they are never reset",
     "Early nodes count up to m times", "field", attribution_with(rule=reweighted(lambda j, m: m - j))),
    ("one_step_too_many", "m + 1 steps", "Other scores", "ours",
     attribution_with(rule=lambda quadrature, m: quadrature_rule(quadrature, m + 1))),  # type: ignore[arg-type]
    ("input_factor_missing", "the averaged gradient without the factor x - baseline",
     "The score measures slope, not contribution", "study", attribution_with(score=lambda x, b, g: g.sum(-1))),
    ("input_factor_twice", "the factor x - baseline twice", "Signs are lost", "released code, row 22",
     attribution_with(score=lambda x, b, g: ((x - b) ** 2 * g).sum(-1))),
    ("times_x_not_difference", "the factor x instead of x - baseline", "The baseline enters only through the path",
     "field", attribution_with(score=lambda x, b, g: (x * g).sum(-1))),
    ("path_from_zero", "the path starting at zero whatever the baseline", "The baseline enters only as a factor",
     "ours", attribution_with(start=torch.zeros_like)),
    ("absolute_values", "absolute values added up over the width", "No token is ever negative", "study",
     attribution_with(score=lambda x, b, g: ((x - b) * g).abs().sum(-1))),
    ("l2_norm_over_width", "the L2 norm over the width", "No token is ever negative", "study",
     attribution_with(score=lambda x, b, g: ((x - b) * g).norm(dim=-1))),
    ("mean_over_width", "the mean over the width, not the sum", "Scores are d times too small", "field",
     attribution_with(score=lambda x, b, g: ((x - b) * g).mean(-1))),
    ("padding_as_baseline", "the padding token's embedding as the baseline whatever was given",
     "Other scores and other signs", "study", attribution_with(baseline_used=padding_row)),
    ("zero_as_baseline", "zeros as the baseline whatever was given", "Other scores and other signs", "field",
     attribution_with(baseline_used=torch.zeros_like)),
    ("response_on_the_path", "the response's embeddings scaled along the path with the prompt's",
     "The prompt's scores are taken where the answer is not yet the answer", "released code, row 2",
     attribution_with(f=lambda path: response_on_path(path, path.y_pos) - response_on_path(path, path.y_neg))),
    ("branch_of_y_pos", "the scores of y_pos's copy alone, its response scaled along the path too",
     "Tokens that help both answers count as preferred", "released code, row 2",
     attribution_with(f=lambda path: response_on_path(path, path.y_pos))),
    ("likelihood_attributed", "log P(y_pos) attributed instead of the preference",
     "Tokens that help both answers count as preferred", "study",
     attribution_with(f=lambda path: right_sides(path.points, path.mask, path.y_pos, path.y_neg)[0])),
    ("preference_reversed", "the preference for y_neg attributed", "The two token sets change places", "field",
     attribution_with(f=lambda path: -right_f(path))),
    ("mask_ignored_on_the_path", "an attention mask of ones at every step",
     "Padding gets scores and changes those of all tokens", "study", attribution_with(f=difference(mask_ignored))),
    ("last_token_attributed", "only the responses' last tokens attributed", "Answers that end alike give nothing",
     "study", attribution_with(f=difference(last_token))),
    ("last_token_one_late_attributed", "only the last tokens attributed, scored by their own rows",
     "The scores explain a repetition", "released code, row 1", attribution_with(f=difference(last_token_late))),
    ("mean_of_tokens_attributed", "length-normalised log-probabilities attributed", "Long answers are preferred",
     "field", attribution_with(f=difference(each(lambda x, mask, y: token_log_p(x, mask, y).mean(-1))))),
    ("probability_attributed", "probabilities attributed instead of log-probabilities",
     "Scores vanish for unlikely answers", "field",
     attribution_with(f=lambda path: torch.sub(
         *(side.exp() for side in right_sides(path.points, path.mask, path.y_pos, path.y_neg))))),
    ("released_attribution", "the released code's scores: y_pos's branch alone, its last token one late, the response "
     "on the path, 20 Gauss-Legendre nodes from zero", "The preference is not what is attributed",
     "released code, rows 1 to 4",
     attribution_with(f=lambda path: last_token_again(path, path.y_pos), rule=twenty_gauss_nodes,
                      baseline_used=torch.zeros_like)),
)  # fmt: skip


# -------------------------------------------------------------------------------------------- selection
Choice: TypeAlias = Callable[[np.ndarray, np.ndarray, int], tuple[list[int], list[int]]]
"""Scores (T,), eligible (T,) bool, k -> both sets."""


def selection_with(choose: Choice) -> Stage:
    """Eq. (3) with another choice."""

    def stage(*, a: np.ndarray, eligible: np.ndarray, k: int, dtype: str) -> Values:
        pos, neg = choose(_array(_tensor(a, dtype)), np.asarray(eligible).astype(bool), k)
        return {"pos": [int(j) for j in pos], "neg": [int(j) for j in neg]}

    return stage


def top(a: np.ndarray, ok: np.ndarray, k: int, *, tie: int = 1, at_least: float = np.nextafter(0, 1)) -> list[int]:
    """The k tokens with the highest scores; ties go to the lower index (tie = 1) or to the higher (-1)."""
    candidates = [j for j in range(len(a)) if ok[j] and a[j] >= at_least]
    return sorted(candidates, key=lambda j: (-a[j], tie * j))[:k]


def both_signs(**mistake: Any) -> Choice:
    """`top` with a mistake, on the scores and on the negated scores."""
    return lambda a, ok, k: (top(a, ok, k, **mistake), top(-a, ok, k, **mistake))


def right_choice(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Eq. (3)."""
    return top(a, ok, k), top(-a, ok, k)


def largest_absolute(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """The k largest |a|, then sorted by sign."""
    chosen = top(np.abs(a), ok, k)
    return [j for j in chosen if a[j] > 0], [j for j in chosen if a[j] < 0]


def argsort_ends(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Both ends of one stable argsort, whatever the signs: reversed, ties go to the higher index."""
    order = [j for j in np.argsort(a, kind="stable").tolist() if ok[j]]
    return order[::-1][:k], order[:k]


def filtered_after(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Top k of all tokens, and only then those that may not be selected are taken out."""
    everywhere = np.ones_like(ok)
    pos, neg = top(a, everywhere, k), top(-a, everywhere, k)
    return [j for j in pos if ok[j]], [j for j in neg if ok[j]]


def not_the(token: int) -> Choice:
    """The token (0 the first, -1 the last) is never selected."""

    def choose(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
        ok = ok.copy()
        ok[token] = False
        return right_choice(a, ok, k)

    return choose


def weakest_first(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Positive (negative) tokens sorted the wrong way round, and the first k of them."""
    pos, neg = right_choice(a, ok, len(a))
    return pos[::-1][:k], neg[::-1][:k]


def rounded(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Scores as a text file with four decimals keeps them."""
    return right_choice(a.round(4), ok, k)


def k_in_total(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """k split over both signs, the larger half to the positive."""
    return top(a, ok, (k + 1) // 2), top(-a, ok, k // 2)


SELECTION: tuple[Row, ...] = (
    ("absolute_ranking", "the k largest absolute scores, split by sign", "Each set gets what the other leaves", "study",
     selection_with(largest_absolute)),
    ("k_plus_one", "k + 1 tokens per sign", "One token too many is masked", "study",
     selection_with(lambda a, ok, k: right_choice(a, ok, k + 1))),
    ("k_in_total", "k tokens over both signs together", "Too few tokens are masked", "ours",
     selection_with(k_in_total)),
    ("ties_to_the_higher", "ties going to the higher index", "Equal tokens: the later one is masked", "field",
     selection_with(both_signs(tie=-1))),
    ("zero_counts", "scores of exactly zero counted as both signs", "Tokens without any influence are masked", "study",
     selection_with(both_signs(at_least=0.0))),
    ("sign_not_required", "the k highest and k lowest scores whatever their sign",
     "Tokens of the wrong sign fill up short sets", "released code, row 7",
     selection_with(both_signs(at_least=-np.inf))),
    ("argsort_ends", "both ends of one argsort: no sign required, ties to the higher index among the highest",
     "Tokens of the wrong sign fill up short sets; all-zero scores select by position", "released code, row 7",
     selection_with(argsort_ends)),
    ("eligibility_ignored", "tokens that may not be selected, such as padding, selected",
     "Padding or special tokens are masked instead of words", "study",
     selection_with(lambda a, ok, k: right_choice(a, np.ones_like(ok), k))),
    ("filtered_after_ranking", "the filter on eligible tokens applied after the top k",
     "An ineligible token uses up a place", "field", selection_with(filtered_after)),
    ("indices_of_the_filtered_list", "indices counted among the eligible tokens only", "Other tokens are masked",
     "field", selection_with(lambda a, ok, k: right_choice(a[ok], np.ones(int(ok.sum()), dtype=bool), k))),
    ("sets_exchanged", "the two sets exchanged", "Steering moves toward the rejected answer", "study",
     selection_with(lambda a, ok, k: right_choice(a, ok, k)[::-1])),
    ("weakest_first", "the k weakest tokens of each sign", "The tokens that matter are left in place", "ours",
     selection_with(weakest_first)),
    ("first_token_excluded", "the first token never selected", "BOS is dropped though the paper does not say so",
     "field", selection_with(not_the(0))),
    ("last_token_excluded", "the last token never selected", "A choice the paper does not make", "field",
     selection_with(not_the(-1))),
    ("rounded_to_four_decimals", "scores rounded to four decimals before ranking",
     "Small scores tie or vanish; seen where scores are cached as text", "ours", selection_with(rounded)),
    ("released_selection", "both ends of one argsort of all tokens: no sign required, none left out",
     "Padding is selected, and short sets are filled with tokens of the wrong sign", "released code, rows 7 and 8",
     selection_with(lambda a, ok, k: argsort_ends(a, np.ones_like(ok), k))),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- contrast
class Prompt(NamedTuple):
    """What a contrast is computed from."""

    x: Tensor  # (T, d)
    baseline: Tensor  # (T, d)
    mask: Tensor  # (T,)
    pos: list[int]
    neg: list[int]


Masked: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Embeddings (T', d), mask (T',), positions (T',)."""
State: TypeAlias = Callable[[Masked], Tensor]
"""Embeddings, mask and positions -> h (L, d)."""


def read_at(read: Callable[[Pass, Tensor, Tensor], Tensor]) -> State:
    """The state that `read` takes from a Pass, the mask (T,) and the inputs (1, T, d)."""

    def state(masked: Masked) -> Tensor:
        inputs, mask, positions = masked
        return _wide(read(decode(inputs[None], mask[None], positions=positions[None]), mask, inputs[None]))

    return state


last_state: State = read_at(lambda run, mask, inputs: run.states[0, :, -1])
last_normed: State = read_at(
    lambda run, mask, inputs: torch.cat(
        [run.states[0, :-1, -1], _norm(run.states[0, -1:, -1], _weights(inputs.dtype)["norm"], "")]
    )
)


def _counted(x: Tensor, mask: Tensor) -> Masked:
    return x, mask, count_from_first_token(mask[None])[0]


def replaced(prompt: Prompt, tokens: list[int]) -> Masked:
    """The right way to mask: embeddings replaced, attention mask and positions as they are."""
    x = prompt.x.clone()
    x[tokens] = prompt.baseline[tokens]
    return _counted(x, prompt.mask)


def contrast_with(
    *,
    state: State = last_state,
    masked: Callable[[Prompt, list[int]], Masked] = replaced,
    change: Callable[[Prompt], Prompt] = lambda prompt: prompt,
    join: Callable[[Tensor, Tensor], Tensor] = torch.sub,
    empty_is_zero: bool = True,
) -> Stage:
    """Eq. (4) with another state, another way to mask, another prompt or another difference."""

    def stage(*, x: Any, baseline: Any, attention_mask: Any, pos: Any, neg: Any, dtype: str) -> Values:
        right_mask = _whole(attention_mask)
        prompt = change(Prompt(_tensor(x, dtype), _tensor(baseline, dtype), right_mask, list(pos), list(neg)))
        with torch.no_grad():
            h = state(_counted(prompt.x, prompt.mask))
            deltas = []
            for tokens in (prompt.pos, prompt.neg):
                if tokens or not empty_is_zero:
                    deltas.append(join(h, state(masked(prompt, tokens))))
                else:
                    deltas.append(torch.zeros_like(h))
        return {"delta_pos": _array(deltas[0]), "delta_neg": _array(deltas[1])}

    return stage


def _without(n: int, tokens: list[int]) -> list[int]:
    return [j for j in range(n) if j not in tokens]


def dropped(prompt: Prompt, tokens: list[int]) -> Masked:
    """The tokens taken out of the sequence (all of them: the last one stays)."""
    keep = _without(len(prompt.x), tokens) or [len(prompt.x) - 1]
    return _counted(prompt.x[keep], prompt.mask[keep])


def unattended(prompt: Prompt, tokens: list[int]) -> Masked:
    """The tokens' attention mask set to 0, embeddings and positions kept."""
    x, mask, positions = _counted(prompt.x, prompt.mask.clone())
    mask[tokens] = 0
    return x, mask, positions


def not_undone(prompt: Prompt, tokens: list[int]) -> Masked:
    """The baseline written into the prompt itself: the second set is masked on top of the first."""
    return replaced(prompt, tokens if tokens == prompt.pos else [*prompt.pos, *prompt.neg])


CONTRAST: tuple[Row, ...] = (
    ("tokens_dropped", "masked tokens taken out instead of replaced by the baseline",
     "All later tokens move to other positions", "study", contrast_with(masked=dropped)),
    ("tokens_unattended", "masked tokens hidden by the attention mask instead of replaced",
     "All others attend more to what is left, and a masked last token still speaks for itself", "study",
     contrast_with(masked=unattended)),
    ("padding_for_baseline", "masked tokens replaced by the padding token's embedding whatever the baseline",
     "Another shift, by a token that means end of text", "released code, row 10",
     contrast_with(change=lambda prompt: prompt._replace(baseline=padding_row(prompt.x)))),
    ("zeros_for_baseline", "masked tokens replaced by zeros whatever the baseline", "Another shift", "field",
     contrast_with(change=lambda prompt: prompt._replace(baseline=torch.zeros_like(prompt.x)))),
    ("states_one_early", "`hidden_states[l]`, the input of block l, instead of its output",
     "Every vector is added one block after the place it was read at", "study",
     contrast_with(state=read_at(
         lambda run, mask, inputs: torch.cat([inputs[0, None], run.states[0, :-1]])[:, -1]))),
    ("last_state_normed", "the last layer's state read after the final norm, as in `hidden_states[-1]`",
     "The last layer is steered with a vector of another scale and direction", "released code, row 12",
     contrast_with(state=last_normed)),
    ("mean_over_positions", "the state averaged over the prompt's tokens, not the last one's",
     "The shift of the masked tokens themselves dominates", "study",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, mask.bool()].mean(1)))),
    ("first_position", "the state of the first column of the prompt", "It sees no masked token after it", "study",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, 0]))),
    ("last_position_by_length", "the last token looked for at (number of tokens) - 1, as with right padding",
     "With left padding a token in the middle is read", "field",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, int(mask.sum()) - 1]))),
    ("delta_reversed", "masked minus unmasked", "Steering moves toward the rejected answer", "study",
     contrast_with(join=lambda h, without: without - h)),
    ("delta_normalised", "every shift scaled to unit length", "Examples with a weak shift count as much as others",
     "field", contrast_with(join=lambda h, without: nn.functional.normalize(h - without, dim=-1))),
    ("mask_ignored_in_states", "an attention mask of ones: padding is attended",
     "The shift depends on how far the batch was padded", "study",
     contrast_with(change=lambda prompt: prompt._replace(mask=torch.ones_like(prompt.mask)))),
    ("mask_not_undone", "the second set masked on top of the first",
     "Delta_neg contains the shift of both sets", "ours", contrast_with(masked=not_undone)),
    ("complement_masked", "every token but the set's masked", "The shift of everything else", "ours",
     contrast_with(masked=lambda prompt, tokens: replaced(prompt, _without(len(prompt.x), tokens)))),
    ("sets_swapped", "the two sets exchanged", "Steering moves toward the rejected answer", "ours",
     contrast_with(change=lambda prompt: prompt._replace(pos=prompt.neg, neg=prompt.pos))),
    ("indices_without_padding", "token indices counted from the first token that is no padding",
     "In padded prompts other tokens are masked", "field",
     contrast_with(change=lambda prompt: prompt._replace(
         pos=[min(j + int((prompt.mask == 0).sum()), len(prompt.x) - 1) for j in prompt.pos],
         neg=[min(j + int((prompt.mask == 0).sum()), len(prompt.x) - 1) for j in prompt.neg]))),
    ("before_the_mlp", "the state between attention and MLP instead of the block's output",
     "Vectors are read where no hook acts", "field",
     contrast_with(state=read_at(lambda run, mask, inputs: run.middles[0, :, -1]))),
    ("empty_set_masks_all", "an empty set masking every token instead of none",
     "Examples without negative tokens contribute the largest shift", "ours",
     contrast_with(empty_is_zero=False, masked=lambda prompt, tokens: replaced(
         prompt, tokens or list(range(len(prompt.x)))))),
    ("released_contrast", "the released code's shifts: padding for the baseline, the last layer after the final norm",
     "The last layer is steered with a vector of another scale, and masking means end of text",
     "released code, rows 10 and 12",
     contrast_with(state=last_normed,
                   change=lambda prompt: prompt._replace(baseline=padding_row(prompt.x)))),
)  # fmt: skip


# ------------------------------------------------------------------------------------------ aggregation
Direction: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""The shifts of one layer (N, d) -> v (d,)."""


def aggregation_with(
    direction: Direction | None = None,
    *,
    both: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    combine: Callable[[Tensor, Tensor], Tensor] = torch.sub,
) -> Stage:
    """Eq. (5) and (6) with another direction per layer, another treatment of both sides, or another combination.

    both: the shifts of both sides, (N, L, d) each -> v_pos, v_neg, (L, d) each.
    """

    def one(deltas: np.ndarray) -> np.ndarray:
        return np.stack([(direction or first_component)(D) for D in deltas.swapaxes(0, 1)])

    def stage(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> Values:
        run_oracle(
            "aggregation", {"delta_pos": delta_pos, "delta_neg": delta_neg}, dtype
        )  # refuses shifts that define no direction
        pos, neg = (_array(_tensor(deltas, dtype)) for deltas in (delta_pos, delta_neg))
        sides = both(pos, neg) if both else (one(pos), one(neg))
        v_pos, v_neg = (_tensor(v, dtype) for v in sides)
        return {"v_pos": _array(v_pos), "v_neg": _array(v_neg), "v": _array(combine(v_pos, v_neg))}

    return stage


def svd(D: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left vectors (N, r), values (r,), right vectors (r, d)."""
    return np.linalg.svd(D, full_matrices=False)


def centred(D: np.ndarray) -> np.ndarray:
    """Shifts without their mean."""
    return D - D.mean(0)


def toward(v: np.ndarray, target: np.ndarray) -> np.ndarray:
    """v or -v, whichever does not point away from target."""
    return v if v @ target >= 0 else -v


def unit(v: np.ndarray) -> np.ndarray:
    """v at length 1; zero stays zero."""
    return v / (np.linalg.norm(v) or 1.0)


def first_component(D: np.ndarray) -> np.ndarray:
    """Eq. (5)."""
    return toward(svd(centred(D))[2][0], D.mean(0))


def each_layer(deltas: np.ndarray, direction: Direction = first_component) -> np.ndarray:
    """(N, L, d) -> (L, d)."""
    return np.stack([direction(D) for D in deltas.swapaxes(0, 1)])


def largest_entry_positive(D: np.ndarray) -> np.ndarray:
    """scikit-learn's svd_flip since 1.5: the component's entry of largest magnitude is positive."""
    u = svd(centred(D))[2][0]
    return u * np.sign(u[np.abs(u).argmax()])


def largest_score_positive(D: np.ndarray) -> np.ndarray:
    """scikit-learn's svd_flip before 1.5: the example with the largest projection projects positively."""
    left, _, right = svd(centred(D))
    return right[0] * np.sign(left[np.abs(left[:, 0]).argmax(), 0])


def majority_positive(D: np.ndarray) -> np.ndarray:
    """Most shifts, not their mean, project positively."""
    u = first_component(D)
    return u if (np.sign(D @ u)).sum() >= 0 else -u


def power_iteration(D: np.ndarray, steps: int = 3) -> np.ndarray:
    """A solver that stops after three steps, started from the first example."""
    u, C = centred(D)[0], centred(D).T @ centred(D)
    for _ in range(steps):
        u = unit(C @ u)
    return toward(u, D.mean(0))


def nonzero_only(D: np.ndarray) -> np.ndarray:
    """Examples without any shift are left out."""
    return first_component(D[np.abs(D).sum(1) > 0])


def eps_in_length(D: np.ndarray) -> np.ndarray:
    """The mean's projection divided by its length + 1e-6."""
    u = first_component(D)
    length = D.mean(0) @ u
    return u * length / (length + 1e-6)


def standardised(D: np.ndarray) -> np.ndarray:
    """Every feature scaled to unit variance first."""
    scale = D.std(0)
    return toward(svd(centred(D) / np.where(scale > 0, scale, 1))[2][0], D.mean(0))


def all_layers_at_once(deltas: np.ndarray) -> np.ndarray:
    """One component of all layers side by side, cut into layers: (N, L, d) -> (L, d)."""
    n, layers, width = deltas.shape
    return np.stack([unit(part) for part in first_component(deltas.reshape(n, layers * width)).reshape(layers, width)])


def one_for_all_layers(deltas: np.ndarray) -> np.ndarray:
    """One component of all layers' shifts as if they were examples: (N, L, d) -> (L, d)."""
    n, layers, width = deltas.shape
    return np.tile(first_component(deltas.reshape(n * layers, width)), (layers, 1))


def pooled(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One component of both sides' shifts, signed by each side's mean."""
    u = each_layer(np.concatenate([pos, neg]))
    v_pos, v_neg = (np.stack([toward(w, mean) for w, mean in zip(u, side.mean(0), strict=True)]) for side in (pos, neg))
    return v_pos, v_neg


def neg_signed_by_pos(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """v_neg turned away from v_pos instead of toward its own mean."""
    v_pos, v_neg = each_layer(pos), each_layer(neg)
    return v_pos, np.stack([toward(v, -w) for v, w in zip(v_neg, v_pos, strict=True)])


AGGREGATION: tuple[Row, ...] = (
    ("uncentred", "the mean not subtracted before the decomposition",
     "With a large mean the component is nearly the mean", "study",
     aggregation_with(lambda D: toward(svd(D)[2][0], D.mean(0)))),
    ("mean_shift", "the normalised mean of the shifts instead of a principal component", "Another direction", "study",
     aggregation_with(lambda D: unit(D.mean(0)))),
    ("second_component", "the second principal component", "An orthogonal direction; eigh sorts ascending", "study",
     aggregation_with(lambda D: toward(svd(centred(D))[2][1], D.mean(0)))),
    ("scaled_by_deviation", "components multiplied by their standard deviation",
     "Lambda means something else in every layer", "study",
     aggregation_with(lambda D: first_component(D) * svd(centred(D))[1][0] / np.sqrt(max(len(D) - 1, 1)))),
    ("mean_added", "the component plus the mean, as in-context vectors do",
     "No unit vector; with a large mean the component is drowned", "field",
     aggregation_with(lambda D: first_component(D) + D.mean(0))),
    ("largest_entry_positive", "the sign rule of scikit-learn 1.5 and later: the largest entry is positive",
     "V_pos or v_neg points away from its shifts; one of them alone turns v to an orthogonal vector",
     "released code, row 13", aggregation_with(largest_entry_positive)),
    ("largest_score_positive", "the sign rule of scikit-learn before 1.5: the largest projection is positive",
     "V_pos or v_neg points away from its shifts", "released code, row 13", aggregation_with(largest_score_positive)),
    ("no_sign_rule", "the sign the solver happens to return", "Runs differ from machine to machine", "study",
     aggregation_with(lambda D: svd(centred(D))[2][0])),
    ("majority_positive", "the sign by a vote of the examples instead of their mean",
     "A few strong examples lose against many weak ones", "field", aggregation_with(majority_positive)),
    ("sign_reversed", "both directions pointing away from their mean shifts",
     "Steering moves toward the rejected answer", "study", aggregation_with(lambda D: -first_component(D))),
    ("neg_signed_by_pos", "v_neg turned away from v_pos instead of toward its own mean shift",
     "V is always long, whatever the shifts say", "ours", aggregation_with(both=neg_signed_by_pos)),
    ("sum_of_sides", "v = v_pos + v_neg", "Exactly orthogonal to the right v", "study",
     aggregation_with(combine=torch.add)),
    ("difference_reversed", "v = v_neg - v_pos", "Steering moves toward the rejected answer", "study",
     aggregation_with(combine=lambda pos, neg: neg - pos)),
    ("v_normalised", "v scaled to unit length", "Lambda means something else in every layer", "study",
     aggregation_with(combine=lambda pos, neg: nn.functional.normalize(_wide(pos - neg), dim=-1).to(pos))),
    ("v_pos_alone", "v = v_pos", "The negative side is lost", "released code, row 14",
     aggregation_with(combine=lambda pos, neg: pos)),
    ("sides_pooled", "one component of the positive and negative shifts together",
     "V is zero, or twice one direction", "ours", aggregation_with(both=pooled)),
    ("layers_side_by_side", "one component of all layers at once, cut into layers",
     "Layers with large shifts decide for all", "ours",
     aggregation_with(both=lambda pos, neg: (all_layers_at_once(pos), all_layers_at_once(neg)))),
    ("one_direction_for_all_layers", "the layers' shifts pooled as if they were examples",
     "Every layer gets the same vector", "ours",
     aggregation_with(both=lambda pos, neg: (one_for_all_layers(pos), one_for_all_layers(neg)))),
    ("shifts_normalised", "every shift scaled to unit length first", "Weak examples count as much as strong ones",
     "field", aggregation_with(lambda D: first_component(np.stack([unit(row) for row in D])))),
    ("features_standardised", "every feature scaled to unit variance first", "Another direction", "field",
     aggregation_with(standardised)),
    ("zero_shifts_left_out", "examples with a zero shift left out", "Another mean, another component", "field",
     aggregation_with(nonzero_only)),
    ("solver_stopped_early", "a power iteration of three steps", "With a small eigen-gap another direction",
     "released code, row 13", aggregation_with(power_iteration)),
    ("eps_in_length", "1e-6 added to the length that v is divided by", "Small shifts give short vectors", "ours",
     aggregation_with(eps_in_length)),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- steering
Steer: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""h (B, T, d), v (d,) in float32 or wider, lam -> h."""


def right_steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Eq. (7) and (8)."""
    return steer_hidden(h, v, lam=lam)


def steering_with(steer: Steer) -> Stage:
    """Eq. (7) and (8) with another edit."""

    def stage(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
        stream = _tensor(h, dtype)
        return {"h": _array(steer(_wide(stream), _wide(_tensor(v, dtype)), lam).to(stream))}

    return stage


def restoring(norm: Callable[[Tensor], Tensor], eps: float = 0.0) -> Steer:
    """Eq. (8) with another norm (shape of h, or broadcast), eps added to the denominator."""

    def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
        shifted = h + lam * v
        wanted, found = norm(h), norm(shifted)
        return torch.where(found > 0, shifted * (wanted / (found + eps)), h)

    return steer


def restoring_to(h: Tensor, shifted: Tensor) -> Tensor:
    """Eq. (8) for any h~."""
    wanted, found = h.norm(dim=-1, keepdim=True), shifted.norm(dim=-1, keepdim=True)
    return torch.where(found > 0, shifted * (wanted / found), h)


def only_where(kept: Callable[[Tensor], Tensor]) -> Steer:
    """The right edit at the rows (B, T, 1) where `kept` is true, h elsewhere."""
    return lambda h, v, lam: torch.where(kept(h), right_steer(h, v, lam), h)


def _nowhere(h: Tensor) -> Tensor:
    return torch.zeros_like(h[..., :1], dtype=torch.bool)


def row_0(h: Tensor) -> Tensor:
    """True in the batch's first row."""
    kept = _nowhere(h)
    kept[0] = True
    return kept


def last_token_of(h: Tensor) -> Tensor:
    """True at the last token."""
    kept = _nowhere(h)
    kept[:, -1] = True
    return kept


def product_in_float16(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """|h| * h~ in float16, and only then divided by |h~|."""
    shifted = h + lam * v
    norm, shifted_norm = (z.norm(dim=-1, keepdim=True) for z in (h, shifted))
    product = (shifted.half() * norm.half()).to(h)
    return torch.where(shifted_norm > 0, product / shifted_norm, h)


def unguarded(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """No care for h~ = 0."""
    shifted = h + lam * v
    return shifted * (h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True))


def only_shrinking(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Norms are cut back where they grew, not restored where they fell."""
    shifted = h + lam * v
    ratio = h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True)
    return torch.where(ratio.isfinite(), shifted * ratio.clamp(max=1), h)


def zero_rows_steered(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Where h is zero, h~ is kept at its own norm."""
    return torch.where(h.norm(dim=-1, keepdim=True) > 0, right_steer(h, v, lam), h + lam * v)


def released_hook(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Ten times lambda, norms over the sequence, 1e-8 in the denominator."""
    return released_norm(h, h + 10 * lam * v, axis=1)


def released_hook_with_tensors(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """The same hook where blocks return tensors: axis 1 of row 0 is the width, and no other row is steered."""
    return torch.cat([released_norm(h[:1], h[:1] + 10 * lam * v, axis=-1), h[1:]])


def released_norm(h: Tensor, shifted: Tensor, axis: int) -> Tensor:
    """Norms along an axis, 1e-8 in the denominator."""
    return shifted * (h.norm(dim=axis, keepdim=True) / (shifted.norm(dim=axis, keepdim=True) + 1e-8))


def norm_of_row_0(z: Tensor) -> Tensor:
    """Every row of the batch takes the norms of its first row."""
    return z[:1].norm(dim=-1, keepdim=True).expand(*z.shape[:-1], 1)


STEERING: tuple[Row, ...] = (
    ("norm_over_sequence", "norms taken over the sequence, feature by feature (`norm(dim=1)`)",
     "Tokens change their norms, and future tokens change past ones", "released code, row 16",
     steering_with(restoring(lambda z: z.norm(dim=1, keepdim=True)))),
    ("norm_over_tokens_and_width", "one norm per sequence instead of one per token",
     "Tokens change their norms", "study", steering_with(restoring(lambda z: z.norm(dim=(1, 2), keepdim=True)))),
    ("norm_over_batch", "one norm over the whole batch", "Rows of a batch change each other", "study",
     steering_with(restoring(lambda z: z.norm()))),
    ("norms_of_row_0", "the norms of the batch's first row used for all rows", "Rows of a batch change each other",
     "ours", steering_with(restoring(norm_of_row_0))),
    ("norm_not_restored", "eq. (8) left out", "The stream grows with lambda", "study",
     steering_with(lambda h, v, lam: h + lam * v)),
    ("l1_norm", "the L1 norm restored", "The L2 norm of every token moves", "study",
     steering_with(restoring(lambda z: z.abs().sum(-1, keepdim=True)))),
    ("largest_entry_norm", "the largest absolute entry restored", "The L2 norm of every token moves", "ours",
     steering_with(restoring(lambda z: z.abs().amax(-1, keepdim=True)))),
    ("only_shrinking", "norms that grew cut back, norms that fell not restored",
     "Tokens steered against themselves get weak", "field", steering_with(only_shrinking)),
    ("lam_times_ten", "lambda multiplied by 10", "Ten times the strength asked for", "released code, row 15",
     steering_with(lambda h, v, lam: right_steer(h, v, 10 * lam))),
    ("lam_squared", "lambda squared", "The sign of lambda is lost", "ours",
     steering_with(lambda h, v, lam: right_steer(h, v, lam * lam))),
    ("zero_lam_replaced", "lambda 0 taken for a missing value and replaced by 1",
     "The unsteered model cannot be asked for", "ours",
     steering_with(lambda h, v, lam: right_steer(h, v, lam or 1.0))),
    ("lam_reversed", "-lambda", "Steering moves toward the rejected answer", "study",
     steering_with(lambda h, v, lam: right_steer(h, v, -lam))),
    ("v_normalised_first", "v scaled to unit length before it is added", "V's length, which eq. (6) keeps, is lost",
     "study", steering_with(lambda h, v, lam: right_steer(h, v / v.norm().clamp(min=1e-12), lam))),
    ("strength_relative_to_h", "lambda measured in |h|: h + lam |h| v / |v|", "Large tokens are steered more",
     "field", steering_with(lambda h, v, lam: restoring_to(
         h, h + lam * h.norm(dim=-1, keepdim=True) * v / v.norm().clamp(min=1e-12)))),
    ("interpolated", "(1 - lam) h + lam v", "At lambda 1 nothing of h is left", "field",
     steering_with(lambda h, v, lam: restoring_to(h, (1 - lam) * h + lam * v))),
    ("applied_twice", "the edit applied twice, as by a hook registered twice", "Twice the strength or more", "study",
     steering_with(lambda h, v, lam: right_steer(right_steer(h, v, lam), v, lam))),
    ("batch_row_0_only", "only the first row of the batch steered", "All other rows stay unsteered",
     "released code, row 16", steering_with(only_where(row_0))),
    ("last_token_steered_only", "only the last token of the sequence steered", "The prompt stays unsteered", "study",
     steering_with(only_where(last_token_of))),
    ("product_overflows", "|h| * h~ multiplied in float16 before the division", "Infinities in half precision",
     "study", steering_with(product_in_float16)),
    ("eps_in_denominator", "1e-8 added to |h~|", "Norms are not restored where h and lam v nearly cancel",
     "released code, row 16", steering_with(restoring(lambda z: z.norm(dim=-1, keepdim=True), eps=1e-8))),
    ("cancelled_to_zero", "zeros where h~ is zero, instead of h", "A token is erased", "ours",
     steering_with(lambda h, v, lam: unguarded(h, v, lam).nan_to_num(nan=0.0))),
    ("cancelled_to_nan", "0 / 0 where h~ is zero", "NaN spreads to every later token", "study",
     steering_with(unguarded)),
    ("zero_rows_steered", "zero tokens replaced by lam v instead of staying zero", "Padding gets a state", "ours",
     steering_with(zero_rows_steered)),
    ("released_steering", "the released code's hook: ten times lambda, norms over the sequence",
     "Tokens change their norms, and a single token only its signs", "released code, rows 15 and 16",
     steering_with(released_hook)),
    ("released_steering_with_tensors", "the released code's hook with transformers 5: ten times lambda, row 0 only",
     "All other rows stay unsteered, and row 0 hardly keeps its direction", "released code, rows 15 and 16",
     steering_with(released_hook_with_tensors)),
)  # fmt: skip


# ------------------------------------------------------------------------------------------- generation
class Run(NamedTuple):
    """One steered batch: what an edit may look at."""

    v: Tensor  # (L, d)
    lam: float
    layers: list[int]
    prompt: int  # T, the padded length of the prompts


Edit: TypeAlias = Callable[[Tensor, int, Run], Tensor]
"""h (B, S, d), block, run -> h."""


def right_edit(h: Tensor, block: int, run: Run) -> Tensor:
    """Eq. (7) and (8) at every position after the blocks asked for."""
    return steer_hidden(h, run.v[block], lam=run.lam) if block in run.layers else h


def some_positions(kept: Callable[[Tensor, Run], Tensor]) -> Edit:
    """The right edit at the columns (S,) where `kept` is true."""
    return lambda h, block, run: torch.where(
        kept(torch.arange(h.shape[1]), run)[None, :, None], right_edit(h, block, run), h
    )


def with_vector(vector: Callable[[Run, int], Tensor]) -> Edit:
    """The right edit with another vector."""
    return lambda h, block, run: steer_hidden(h, vector(run, block), lam=run.lam) if block in run.layers else h


def edited_by(steer: Steer) -> Edit:
    """One of the edits of the section on steering, after the blocks asked for."""
    return lambda h, block, run: steer(_wide(h), _wide(run.v[block]), run.lam).to(h) if block in run.layers else h


def generation_with(
    edit: Edit = right_edit,
    *,
    change: Callable[[Run], Run] = lambda run: run,
    variation: str = "",
    mask_used: Callable[[Tensor], Tensor] = lambda mask: mask,
    positions: Callable[[Tensor, int], Tensor] = lambda mask, prompt: count_from_first_token(mask),
    last_prompt_token_twice: bool = False,
) -> Stage:
    """Sect. 3.3 with other parts; the whole batch at once, every token by full recomputation.

    What a cache does wrong shows without a cache: which columns were steered when their keys were made, and which
    positions they had. positions: mask (B, S), padded prompt length -> (B, S).
    """

    def stage(*, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Any, forced: Any, dtype: str) -> Values:
        ids, forced, mask = np.asarray(ids), np.asarray(forced), _whole(attention_mask)
        if last_prompt_token_twice:
            ids = np.concatenate([ids, ids[:, -1:]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        run = change(Run(_tensor(v, dtype), float(lam), list(layers), ids.shape[1]))

        def next_logits(known: np.ndarray) -> Tensor:
            """(B, r) tokens after the prompt -> (B, r, V): row r predicts known token r."""
            inputs = _embed(np.concatenate([ids, known], 1), DTYPES[dtype])
            seen = torch.cat([mask_used(mask), torch.ones(known.shape, dtype=torch.long)], 1)
            where = positions(seen, ids.shape[1])
            edited = decode(inputs, seen, variation=variation, positions=where, edit=lambda h, b: edit(h, b, run))
            return edited.logits[:, ids.shape[1] - 1 : -1]

        with torch.no_grad():
            said = np.zeros((len(ids), 0), dtype=np.int64)
            for _ in range(forced.shape[1]):
                place_holder = np.zeros((len(ids), 1), dtype=np.int64)
                best = next_logits(np.concatenate([said, place_holder], 1))[:, -1].argmax(-1, keepdim=True)
                said = np.concatenate([said, best.numpy()], 1)
            return {"logits": _array(next_logits(forced)), "tokens": said}

    return stage


def gap_after_padding(mask: Tensor, prompt: int) -> Tensor:
    """The prompt counted from its first token, new tokens from the padded length."""
    right = count_from_first_token(mask)
    columns = torch.arange(mask.shape[1]).expand_as(mask)
    return torch.where(columns >= prompt, columns, right)


def stuck_after_prompt(mask: Tensor, prompt: int) -> Tensor:
    """Every new token at the position after the prompt: the cache's length is not counted."""
    right = count_from_first_token(mask)
    return torch.minimum(right, right[:, prompt - 1 : prompt] + 1)


def at_last_block(run: Run) -> Run:
    """Only the last block steered."""
    return run._replace(layers=[BLOCKS - 1])


GENERATION: tuple[Row, ...] = (
    ("prefill_only", "only the prompt steered, not the generated tokens", "Steering fades while the model speaks",
     "study", generation_with(some_positions(lambda column, run: column < run.prompt))),
    ("decode_only", "only generated tokens steered, not the prompt", "The prompt is read unsteered", "study",
     generation_with(some_positions(lambda column, run: column >= run.prompt))),
    ("last_prompt_token_and_after", "the prompt steered at its last token only, then every generated token",
     "The prompt's keys and values stay unsteered; `h[:, -1]` with a cache", "study",
     generation_with(some_positions(lambda column, run: column >= run.prompt - 1))),
    ("last_layer_only", "only the last block steered", "Exactly an edit before the final norm",
     "released code, row 15", generation_with(change=at_last_block)),
    ("layers_ignored", "all blocks steered whatever was asked for", "Stronger than asked for", "ours",
     generation_with(change=lambda run: run._replace(layers=list(range(BLOCKS))))),
    ("layer_numbers_one_late", "layer l steered at block l + 1, the last not at all",
     "Layer numbers counted with the embeddings as 0", "field",
     generation_with(lambda h, block, run: (
         steer_hidden(h, run.v[block - 1], lam=run.lam) if block - 1 in run.layers else h))),
    ("vectors_one_late", "block l steered with the vector of block l - 1", "An index off by one in v", "field",
     generation_with(with_vector(lambda run, block: run.v[max(block - 1, 0)]))),
    ("one_vector_for_all", "every block steered with the last block's vector", "A closure that binds late", "field",
     generation_with(with_vector(lambda run, block: run.v[-1]))),
    ("before_the_block", "the input of each block steered instead of its output",
     "Every vector acts one block too early", "field", generation_with(variation="edit_before_block")),
    ("first_row_only", "only the first row of the batch steered", "All other rows stay unsteered",
     "released code, row 16", generation_with(lambda h, block, run: (
         torch.cat([right_edit(h[:1], block, run), h[1:]])))),
    ("norm_over_the_sequence", "norms restored over the sequence instead of the width",
     "Tokens change their norms, and future tokens change past ones", "released code, row 16",
     generation_with(edited_by(restoring(lambda z: z.norm(dim=1, keepdim=True))))),
    ("norm_left_out", "eq. (8) left out in every block", "The stream grows from block to block", "study",
     generation_with(edited_by(lambda h, v, lam: h + lam * v))),
    ("ten_times_lam", "lambda multiplied by 10", "Ten times the strength asked for", "released code, row 15",
     generation_with(change=lambda run: run._replace(lam=10 * run.lam))),
    ("hook_twice", "every block's hook registered twice", "Twice the strength or more", "study",
     generation_with(lambda h, block, run: right_edit(right_edit(h, block, run), block, run))),
    ("padding_attended", "an attention mask of ones: padding is attended",
     "What a row says depends on the other rows of its batch", "study", generation_with(mask_used=torch.ones_like)),
    ("new_positions_by_column", "new tokens' rotary positions counted from the padded length",
     "A gap as wide as the padding opens after the prompt", "study", generation_with(positions=gap_after_padding)),
    ("new_positions_stuck", "every new token at the same rotary position", "Word order is lost in decoding", "field",
     generation_with(positions=stuck_after_prompt)),
    ("last_prompt_token_twice", "the last prompt token fed again as the first decoding step",
     "The model reads a doubled word", "field", generation_with(last_prompt_token_twice=True)),
    ("released_generation", "the released code's hook after the last block only: ten times lambda, norms over the "
     "sequence", "What is said later changes what was said before", "released code, rows 15 and 16",
     generation_with(edited_by(released_hook), change=at_last_block)),
    ("released_generation_with_tensors", "the same hook with transformers 5: the last block, ten times lambda, row 0",
     "All other rows stay unsteered", "released code, rows 15 and 16",
     generation_with(edited_by(released_hook_with_tensors), change=at_last_block)),
)  # fmt: skip


BUGS: tuple[Bug, ...] = (
    *bugs_of("objective", OBJECTIVE),
    *bugs_of("attribution", ATTRIBUTION),
    *bugs_of("selection", SELECTION),
    *bugs_of("contrast", CONTRAST),
    *bugs_of("aggregation", AGGREGATION),
    *bugs_of("steering", STEERING),
    *bugs_of("generation", GENERATION),
)

WITHOUT_BUG: dict[str, Stage] = {
    "objective": objective_with(right_sides),
    "attribution": attribution_with(),
    "selection": selection_with(right_choice),
    "contrast": contrast_with(),
    "aggregation": aggregation_with(),
    "steering": steering_with(right_steer),
    "generation": generation_with(),
}
"""The seven stages with nothing exchanged; they agree with the oracle, so that a bug is wrong in one way only."""

EQUIVALENT: tuple[tuple[tuple[str, ...], str], ...] = ()
"""Groups of bugs that no case can tell apart, with the reason. None at present."""
