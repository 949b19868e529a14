"""Planted bugs of attribution, eq. (2): another path, rule, baseline, score or function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import decode, embed, padding_row, widened
from grains_ref.conformance.bugs.decoder_bugs import AFTER_THE_BLOCKS, IN_THE_BLOCKS, SMALL_EPSILONS, rows_with
from grains_ref.conformance.bugs.objective import (
    Sides,
    each,
    last_token,
    last_token_late,
    mask_ignored,
    on,
    pick,
    response_logits,
    right_sides,
    token_log_p,
)
from grains_ref.conformance.stages import Stage, Values, array, tensor, whole
from grains_ref.grains import quadrature_rule


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
    inputs = torch.cat([path.points, alphas * embed(y, path.points.dtype)], 1)
    mask = torch.cat([path.mask, torch.ones(len(y), dtype=torch.long)])[None]
    return widened(decode(inputs, mask).logits).log_softmax(-1)


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
    baseline_of: Callable[[Tensor], Tensor] | None = None,
    start: Callable[[Tensor], Tensor] = lambda b: b,
    score: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, b, g: ((x - b) * g).sum(-1),
) -> Stage:
    """Eq. (2) with other parts.

    baseline_used replaces the baseline, or baseline_of makes one of x; start is where the path begins; score turns x,
    baseline and averaged gradient, each (T, d), into the scores (T,).
    """

    def stage(
        *, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, m: int, quadrature: str, dtype: str
    ) -> Values:
        quadrature_rule(quadrature, m)  # type: ignore[arg-type]  # refuses unknown names
        mask, y_pos, y_neg = whole(attention_mask), np.asarray(y_pos), np.asarray(y_neg)
        x = tensor(x, dtype)
        b = baseline_of(x) if baseline_of else baseline_used(tensor(baseline, dtype))
        nodes, weights = rule(quadrature, m)
        begin = start(b)
        points = torch.stack([begin + alpha * (x - begin) for alpha in nodes]).requires_grad_()
        (gradient,) = torch.autograd.grad(f(Path(points, nodes, mask, y_pos, y_neg)).sum(), points)
        gradient = widened(gradient)
        average = (torch.tensor(weights, dtype=torch.float64).to(gradient)[:, None, None] * gradient).sum(0)  # (T, d)
        return {"a": array(score(x, b, average))}

    return stage


def twenty_gauss_nodes(quadrature: str, m: int) -> tuple[list[float], list[float]]:
    """Captum's default, whatever was asked for."""
    return quadrature_rule("gauss_legendre", 20)


def fixed(nodes: Callable[[int], list[float]], weights: Callable[[int], list[float]]) -> Rule:
    """Nodes and weights by m alone."""
    return lambda quadrature, m: (nodes(m), weights(m))


def evenly_weighted(m: int) -> list[float]:
    """1 / m for every node."""
    return [1 / m] * m


def all_nodes(change: Callable[[float], float]) -> Rule:
    """The right weights at other places."""

    def rule(quadrature: str, m: int) -> tuple[list[float], list[float]]:
        nodes, weights = quadrature_rule(quadrature, m)  # type: ignore[arg-type]
        return [change(node) for node in nodes], weights

    return rule


def gauss_between_minus_one_and_one(quadrature: str, m: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre as NumPy has it, not moved to [0, 1]."""
    if quadrature != "gauss_legendre":
        return right_rule(quadrature, m)
    nodes, weights = np.polynomial.legendre.leggauss(m)
    return nodes.tolist(), weights.tolist()


def gauss_evenly_weighted(quadrature: str, m: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes with the weights of a mean."""
    nodes, weights = right_rule(quadrature, m)
    return nodes, evenly_weighted(m) if quadrature == "gauss_legendre" else weights


def closed_trapezoid(quadrature: str, m: int) -> tuple[list[float], list[float]]:
    """The trapezoid rule with m steps: m + 1 nodes from 0 to 1."""
    return np.linspace(0, 1, m + 1).tolist(), [(0.5 if j in (0, m) else 1.0) / m for j in range(m + 1)]


def unit_gradients(x: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """Every token's averaged gradient at unit length."""
    return ((x - b) * g / g.norm(dim=-1, keepdim=True).clamp(min=1e-30)).sum(-1)


def products(x: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """The right scores."""
    return ((x - b) * g).sum(-1)


def as_shares(x: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """Scores whose absolute values sum to 1."""
    return products(x, b, g) / products(x, b, g).abs().sum().clamp(min=1e-30)


def without(token: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The score of one token is 0; a prompt of one token keeps its own."""

    def score(x: Tensor, b: Tensor, g: Tensor) -> Tensor:
        scores = products(x, b, g).clone()
        if len(scores) > 1:
            scores[token] = 0.0
        return scores

    return score


def one_late(path: Path) -> Tensor:
    """All response tokens, each scored by its own row."""
    return difference(each(lambda x, mask, y: token_log_p(x, mask, y, late=1).sum(-1)))(path)


ROWS: tuple[Row, ...] = (
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
    # nodes and weights
    ("always_midpoint", "the midpoint rule whatever was asked for", "Other scores than asked for", "ours",
     attribution_with(rule=lambda quadrature, m: quadrature_rule("midpoint", m))),
    ("always_gauss_legendre", "Gauss-Legendre nodes whatever was asked for", "Other scores than asked for", "ours",
     attribution_with(rule=lambda quadrature, m: quadrature_rule("gauss_legendre", m))),
    ("gauss_nodes_unmoved", "Gauss-Legendre nodes and weights of [-1, 1], not moved to [0, 1]",
     "Half of the nodes lie beyond the baseline", "study", attribution_with(rule=gauss_between_minus_one_and_one)),
    ("gauss_evenly_weighted", "Gauss-Legendre nodes with weights of 1 / m", "The middle of the path counts too little",
     "study", attribution_with(rule=gauss_evenly_weighted)),
    ("closed_trapezoid", "the trapezoid rule with both ends, m + 1 nodes", "One node lies at the baseline", "field",
     attribution_with(rule=closed_trapezoid)),
    ("one_step_too_few", "m - 1 steps", "Coarser scores than asked for", "ours",
     attribution_with(rule=lambda quadrature, m: quadrature_rule(quadrature, max(m - 1, 1)))),  # type: ignore[arg-type]
    ("inner_nodes", "nodes j / (m + 1): neither end of the path", "The end at the prompt is not reached", "field",
     attribution_with(rule=fixed(lambda m: [j / (m + 1) for j in range(1, m + 1)], evenly_weighted))),
    ("weights_over_m_plus_one", "weights of 1 / (m + 1)", "All scores are too small", "ours",
     attribution_with(rule=reweighted(lambda j, m: m / (m + 1)))),
    ("last_node_only", "the gradient of the last node alone, with its weight: each step overwrites the one before",
     "Most of the path is lost", "field", attribution_with(rule=reweighted(lambda j, m: float(j == m - 1)))),
    ("first_node_only", "the gradient of the first node alone, with its weight", "Most of the path is lost", "ours",
     attribution_with(rule=reweighted(lambda j, m: float(j == 0)))),
    ("nodes_squared", "nodes squared, as on a path of another shape", "The beginning of the path counts too much",
     "ours", attribution_with(rule=all_nodes(lambda alpha: alpha**2))),
    ("gradient_at_the_middle", "the gradient at the middle of the path only", "One node for the whole path", "ours",
     attribution_with(rule=lambda quadrature, m: ([0.5], [1.0]))),
    ("gradient_near_the_baseline", "the gradient a hundredth of the way from the baseline only",
     "The score explains the baseline", "ours", attribution_with(rule=lambda quadrature, m: ([0.01], [1.0]))),
    ("gradients_doubled", "gradients that arrive twice, once for each copy of the prompt",
     "Scores are twice too large", "field", attribution_with(rule=reweighted(lambda j, m: 2.0))),
    # baselines and the path
    ("mean_of_prompt_as_baseline", "the mean of the prompt's embeddings as the baseline whatever was given",
     "Other scores and other signs", "field", attribution_with(
         baseline_of=lambda x: x.mean(0, keepdim=True).expand_as(x))),
    ("first_baseline_row_for_all", "the baseline's first row for every token", "Tokens are told from another baseline",
     "ours", attribution_with(baseline_used=lambda b: b[:1].expand_as(b))),
    ("baseline_rows_reversed", "the baseline's rows in reverse order", "Tokens are told from another's baseline",
     "ours", attribution_with(baseline_used=lambda b: b.flip(0))),
    ("baseline_sign", "x + baseline as the factor instead of x - baseline", "Other scores and other signs", "ours",
     attribution_with(score=lambda x, b, g: ((x + b) * g).sum(-1))),
    ("path_from_padding", "the path starting at the padding's embedding whatever the baseline",
     "The baseline enters only as a factor", "ours", attribution_with(start=padding_row)),
    # scores
    ("positive_parts_only", "negative products left out of the sum over the width", "No token is ever negative",
     "field", attribution_with(score=lambda x, b, g: ((x - b) * g).relu().sum(-1))),
    ("largest_over_width", "the largest product over the width, not the sum", "One feature speaks for the token",
     "field", attribution_with(score=lambda x, b, g: ((x - b) * g).amax(-1))),
    ("absolute_sum", "the absolute value of the right score", "No token is ever negative", "field",
     attribution_with(score=lambda x, b, g: products(x, b, g).abs())),
    ("unit_gradients", "every token's gradient scaled to unit length", "Flat and steep tokens count alike", "ours",
     attribution_with(score=unit_gradients)),
    ("signs_of_gradients", "the gradient's signs instead of the gradient", "Flat and steep features count alike",
     "ours", attribution_with(score=lambda x, b, g: ((x - b) * g.sign()).sum(-1))),
    ("gradient_norms", "the gradient's length instead of its product with x - baseline", "No token is ever negative",
     "field", attribution_with(score=lambda x, b, g: g.norm(dim=-1))),
    ("scores_as_shares", "scores divided by the sum of their absolute values", "Prompts cannot be compared", "field",
     attribution_with(score=as_shares)),
    ("scores_centred", "scores without their mean over the prompt", "Signs depend on the other tokens", "field",
     attribution_with(score=lambda x, b, g: products(x, b, g) - products(x, b, g).mean())),
    ("scores_one_token_late", "scores moved by one token", "Each token gets its neighbour's score", "field",
     attribution_with(score=lambda x, b, g: products(x, b, g).roll(1))),
    ("scores_reversed", "scores in reverse order", "Tokens get each other's scores", "ours",
     attribution_with(score=lambda x, b, g: products(x, b, g).flip(0))),
    ("first_token_not_scored", "the score of the first token set to 0", "A choice the paper does not make", "field",
     attribution_with(score=without(0))),
    ("last_token_not_scored", "the score of the last token set to 0", "A choice the paper does not make", "field",
     attribution_with(score=without(-1))),
    # what is attributed
    ("rejected_likelihood_attributed", "-log P(y_neg) attributed instead of the preference",
     "Tokens that harm both answers count as preferred", "ours",
     attribution_with(f=lambda path: -right_sides(path.points, path.mask, path.y_pos, path.y_neg)[1])),
    ("sum_of_sides_attributed", "log P(y_pos) + log P(y_neg) attributed", "Tokens that help both answers count most",
     "ours", attribution_with(f=lambda path: torch.add(
         *right_sides(path.points, path.mask, path.y_pos, path.y_neg)))),
    ("logits_attributed", "logits attributed instead of log-probabilities", "What all words share is not discounted",
     "field", attribution_with(f=difference(each(
         lambda x, mask, y: pick(response_logits(x, mask, y), y).sum(-1))))),
    ("first_token_attributed", "only the responses' first tokens attributed", "Answers that start alike give nothing",
     "field", attribution_with(f=difference(each(lambda x, mask, y: token_log_p(x, mask, y)[:, 0])))),
    ("all_tokens_one_late_attributed", "all response tokens attributed, each scored by its own row",
     "The scores explain a repetition", "field", attribution_with(f=one_late)),
    ("end_of_text_attributed", "an end-of-text token (0) after both responses attributed too",
     "The scores mix in how the model ends a turn", "ours", attribution_with(f=difference(each(
         lambda x, mask, y: token_log_p(x, mask, np.append(y, 0)).sum(-1))))),
)  # fmt: skip

BUGS = bugs_of(
    "attribution",
    (
        *ROWS,
        *rows_with(
            lambda decoder: attribution_with(f=difference(on(decoder))),
            (*SMALL_EPSILONS, *IN_THE_BLOCKS, *AFTER_THE_BLOCKS),
        ),
    ),
)
WITHOUT_BUG = attribution_with()
