"""Planted bugs of options of attribution: gradients, noise, likelihood, pictures and baselines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.conformance.bugs.attribution import (
    Path,
    attribution_with,
    difference,
    right_f,
)
from grains_ref.conformance.bugs.common import Row
from grains_ref.conformance.bugs.decoder import widened
from grains_ref.conformance.bugs.objective import each, right_sides
from grains_ref.conformance.bugs.option_decoders import Decoder
from grains_ref.conformance.stages import DTYPES, Stage, Values, array, tensor, whole


# ------------------------------------------------------------------------------------- attribution
def at_x(**parts: Any) -> Stage:
    """Attribution at x alone."""
    stage = attribution_with(**parts)
    return lambda **given: stage(m=1, quadrature="right", **given)


def in_steps(m: int) -> Stage:
    """Integrated gradients where the gradient is asked for."""
    stage = attribution_with()
    return lambda **given: stage(m=m, quadrature="right", **given)


GRADIENT: tuple[Row, ...] = (
    ("gradient_at_the_baseline", "the gradient at the baseline", "The slope of another prompt", "ours",
     at_x(rule=lambda quadrature, m: ([0.125], [1.0]))),
    ("gradient_not_times_input", "the gradient alone, added up over the width",
     "The score is a slope, not a change of f", "released code, row 5", at_x(score=lambda x, b, g: g.sum(-1))),
    ("gradient_times_x", "the gradient times x instead of x - baseline", "The baseline has no part in it",
     "released code, row 5", at_x(score=lambda x, b, g: (x * g).sum(-1))),
    ("gradient_of_five_steps", "integrated gradients where the gradient is asked for", "The ablation ablates nothing",
     "ours", in_steps(5)),
)  # fmt: skip


def smoothgrad_with(
    *,
    samples: Callable[[Tensor], Tensor] = lambda noise: noise,
    weight: Callable[[int], float] = lambda n: 1 / n,
    score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = lambda x, b, points, g: (x - b) * g.sum(0),
) -> Stage:
    """SmoothGrad; score: x, baseline (T, d), points, their weighted gradients (n, T, d) -> (T, d)."""

    def stage(*, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, noise: Any, dtype: str) -> Values:
        prompt, start = tensor(x, dtype), tensor(baseline, dtype)
        points = (prompt + samples(tensor(noise, dtype))).requires_grad_()
        path = Path(points, [1.0] * len(points), whole(attention_mask), np.asarray(y_pos), np.asarray(y_neg))
        (gradient,) = torch.autograd.grad(right_f(path).sum(), points)
        gradient = widened(gradient) * weight(len(points))
        return {"a": array(score(prompt, start, points.detach(), gradient).sum(-1))}

    return stage


SMOOTHGRAD: tuple[Row, ...] = (
    ("noise_left_out", "the gradient at x, whatever the noise", "Nothing is smoothed", "field",
     smoothgrad_with(samples=torch.zeros_like)),
    ("first_sample_alone", "the first noisy sample alone", "Scores are as noisy as one draw", "field",
     smoothgrad_with(samples=lambda noise: noise[:1] * torch.ones_like(noise))),
    ("samples_added_up", "gradients added up over the samples, not averaged", "Scores grow with their number", "field",
     smoothgrad_with(weight=lambda n: 1.0)),
    ("smooth_not_times_input", "averaged gradients without the factor x - baseline", "The score is a slope",
     "released code, row 6", smoothgrad_with(score=lambda x, b, points, g: g.sum(0))),
    ("times_the_noisy_input", "every gradient times its own noisy x - baseline", "Noise enters the scores themselves",
     "field", smoothgrad_with(score=lambda x, b, points, g: ((points - b) * g).sum(0))),
    ("noise_subtracted", "the noise taken away from x", "Other samples", "ours",
     smoothgrad_with(samples=torch.neg)),
)  # fmt: skip


def random_with(change: Callable[[np.ndarray], np.ndarray]) -> Stage:
    """Scores that were drawn, changed."""
    return lambda *, x, attention_mask, scores, dtype: {"a": change(array(tensor(scores, dtype)))}


RANDOM: tuple[Row, ...] = (
    ("random_per_component", "a score for every component, so that a token's is d times too large",
     "The control is no standard normal", "ours", random_with(lambda scores: 13 * scores)),
    ("random_of_one_sign", "absolute values", "The control has no negative set", "ours", random_with(np.abs)),
    ("random_as_ranks", "ranks instead of scores", "The control loses its sizes and its signs", "ours",
     random_with(lambda scores: scores.argsort().argsort() + 1.0)),
)  # fmt: skip


def likelihood_with(
    f: Callable[[Path], Tensor] = lambda path: right_sides(path.points, path.mask, path.y_pos, path.y_neg)[0],
    method_used: Callable[[str], str] = lambda method: method,
) -> Stage:
    """log P(y_pos) attributed."""
    along_the_path, first_order = attribution_with(f=f), at_x(f=f)

    def stage(*, m: int, quadrature: str, method: str, **given: Any) -> Values:
        if method_used(method) == "gradient":
            return first_order(**given)
        return along_the_path(m=m, quadrature=quadrature, **given)

    return stage


def _log_p_neg(path: Path) -> Tensor:
    return right_sides(path.points, path.mask, path.y_pos, path.y_neg)[1]


def _probability(path: Path) -> Tensor:
    return right_sides(path.points, path.mask, path.y_pos, path.y_neg)[0].exp()


LIKELIHOOD: tuple[Row, ...] = (
    ("preference_for_likelihood", "the preference attributed", "The ablation ablates nothing", "ours",
     likelihood_with(right_f)),
    ("likelihood_of_the_other", "log P(y_neg) attributed", "Steering moves toward the rejected answer", "ours",
     likelihood_with(_log_p_neg)),
    ("likelihood_not_its_logarithm", "P(y_pos) attributed", "Scores vanish for unlikely answers", "field",
     likelihood_with(_probability)),
    ("likelihood_method_ignored", "integrated gradients whatever the method", "Two ablations are one", "ours",
     likelihood_with(method_used=lambda method: "integrated_gradients")),
    ("likelihood_is_nothing", "zeros for integrated gradients, as the released code has them",
     "The top k are the last k tokens", "released code, row 22",
     lambda **given: {"a": np.zeros(len(given["x"]))} if given["method"] == "integrated_gradients"
     else likelihood_with()(**given)),
)  # fmt: skip


# ------------------------------------------------------------------------------------- pictures, baselines
Places: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Given positions (3, T), mask (T,) -> those used (3, T)."""


def pictures_with(
    *,
    places: Places = lambda positions, mask: positions,
    together: Callable[[Tensor, Tensor], Tensor] = lambda types, mask: types[:, None] & types,
    first: Callable[[Tensor, Tensor], Tensor] = lambda positions, mask: positions.max() + 1,
) -> Stage:
    """Attribution with a picture; together: token types (T,) -> who sees whom besides (T, T)."""

    def stage(*, positions: Any, token_types: Any, **given: Any) -> Values:
        where, types = whole(positions), whole(token_types).bool()

        def log_p(x: Tensor, mask: Tensor, y: np.ndarray) -> Tensor:
            following = (first(where, mask) + torch.arange(len(y))).expand(3, -1)
            everywhere = torch.cat([places(where, mask), following], 1).T
            besides = nn.functional.pad(together(types, mask), (0, len(y), 0, len(y)))
            return Decoder().log_p(x, mask, y, everywhere, besides)

        return attribution_with(f=difference(each(log_p)))(**given)

    return stage


def text_places(positions: Tensor, mask: Tensor) -> Tensor:
    """One token after the other."""
    return (mask.cumsum(0) - 1).clamp(min=0).expand(3, -1)


PICTURES: tuple[Row, ...] = (
    ("picture_read_as_text", "positions counted token by token, on all axes alike",
     "Rows and columns of the picture are lost", "field", pictures_with(places=text_places)),
    ("picture_axes_exchanged", "height and width exchanged", "The picture is turned over", "field",
     pictures_with(places=lambda positions, mask: positions[[0, 2, 1]])),
    ("picture_time_alone", "the first axis for all three", "All patches stand in one place", "ours",
     pictures_with(places=lambda positions, mask: positions[:1].expand(3, -1))),
    ("picture_causal", "picture tokens that see only those before them", "Attention inside the picture is lost",
     "field", pictures_with(together=lambda types, mask: torch.zeros(len(types), len(types)).bool())),
    ("text_sees_the_future_too", "all prompt tokens seeing each other", "Words see the words after them", "ours",
     pictures_with(together=lambda types, mask: torch.ones(len(types), len(types)).bool())),
    ("response_after_the_count", "the response's positions going on at the number of tokens",
     "A gap opens between picture and answer", "field",
     pictures_with(first=lambda positions, mask: mask.sum())),
)  # fmt: skip


def picture_mean(x: Tensor, table: Tensor, kinds: list[str]) -> Tensor:
    """The mean of the prompt's picture tokens."""
    return x[[kind == "image" for kind in kinds]].mean(0)


def baselines_with(
    *,
    mean: Callable[[Tensor, Tensor, list[str]], Tensor] = lambda x, table, kinds: table.mean(0),
    picture: Callable[[Tensor, Tensor, list[str]], Tensor] = picture_mean,
    row: Callable[[int], int | None] = lambda token: token,
    nothing: Callable[[Tensor], Tensor] = lambda table: torch.zeros_like(table[0]),
) -> Stage:
    """Baselines with other means, another row (None: nothing), or another nothing."""

    def stage(*, x: Any, kinds: list[str], embeddings: Any, name: str, token: int, dtype: str) -> Values:
        prompt, table = tensor(x, "float64"), tensor(embeddings, "float64")
        if name != "mean":
            chosen = row(token) if name == "token" else None
            baseline = nothing(table) if chosen is None else table[chosen]
            return {"baseline": np.tile(array(baseline), (len(x), 1))}
        rows = [picture(prompt, table, kinds) if kind == "image" else mean(prompt, table, kinds) for kind in kinds]
        return {"baseline": array(torch.stack(rows).to(DTYPES[dtype]))}

    return stage


BASELINES: tuple[Row, ...] = (
    ("mean_of_the_prompt", "the mean of the prompt's own embeddings", "The baseline knows what it should hide", "field",
     baselines_with(mean=lambda x, table, kinds: x.mean(0))),
    ("picture_replaced_by_words", "the mean word for picture tokens too", "Patches leave the space of patches", "ours",
     baselines_with(picture=lambda x, table, kinds: table.mean(0))),
    ("picture_mean_of_everything", "the mean of the whole prompt for picture tokens", "Words enter the picture's mean",
     "ours", baselines_with(picture=lambda x, table, kinds: x.mean(0))),
    ("padding_for_the_word", "the padding's embedding whatever word is asked for", "Another baseline", "field",
     baselines_with(row=lambda token: 0)),
    ("zero_for_padding", "zero where the padding's embedding is asked for", "Padding is taken for nothing", "ours",
     baselines_with(row=lambda token: token or None)),
    ("padding_for_zero", "the padding's embedding where zero is asked for", "Nothing is taken for padding", "field",
     baselines_with(nothing=lambda table: table[0])),
    ("mean_of_half_the_words", "the mean of the first half of the embeddings", "Rare tokens are left out", "ours",
     baselines_with(mean=lambda x, table, kinds: table[: len(table) // 2].mean(0))),
)  # fmt: skip


WITHOUT_BUG: dict[str, Stage] = {
    "attribution_gradient": at_x(),
    "attribution_smoothgrad": smoothgrad_with(),
    "attribution_random": random_with(lambda scores: scores),
    "attribution_likelihood": likelihood_with(),
    "attribution_pictures": pictures_with(),
    "attribution_baselines": baselines_with(),
}
"""These options with nothing exchanged."""
