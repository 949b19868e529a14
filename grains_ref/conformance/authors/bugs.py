"""Planted bugs of the dialect `authors`: its stages with one row of the ledger undone, or read in another way.

Whoever ports the released code and stumbles does so where it is odd: in putting something right, in following the
paper, or in running it with another version of what it stands on. As in `bugs`, a bug is the correct stage with one
argument exchanged; `WITHOUT_BUG` is the correct one, written without `grains_ref.authors`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.bugs.aggregation import (
    aggregation_with,
    largest_entry_positive,
    largest_score_positive,
    svd,
)
from grains_ref.conformance.bugs.attribution import (
    Objective,
    Path,
    attribution_with,
    branch_logits,
    difference,
    last_token_again,
    response_on_path,
    right_rule,
    twenty_gauss_nodes,
)
from grains_ref.conformance.bugs.common import Bug, Row, bugs_of
from grains_ref.conformance.bugs.contrast import Prompt, contrast_with, last_normed, read_at, unattended
from grains_ref.conformance.bugs.decoder import norm, padding_row, weights, widened
from grains_ref.conformance.bugs.generation import Run, at_last_block, edited_by, generation_with, right_edit
from grains_ref.conformance.bugs.objective import (
    each,
    last_token,
    last_token_late,
    objective_with,
    pick,
    right_sides,
    token_log_p,
)
from grains_ref.conformance.bugs.selection import Choice, argsort_ends, right_choice, selection_with, top
from grains_ref.conformance.bugs.steering import (
    Steer,
    released_hook,
    released_hook_with_tensors,
    released_norm,
    right_steer,
    steering_with,
)
from grains_ref.conformance.stages import Stage
from grains_ref.grains import steer_hidden


def y_pos_again(path: Path) -> Tensor:
    """f of y_pos's branch."""
    return last_token_again(path, path.y_pos)


def from_zero(f: Objective, **parts: object) -> Stage:
    """Attribution with another f, everything else as released."""
    released = {"rule": twenty_gauss_nodes, "baseline_used": torch.zeros_like}
    return attribution_with(f=f, **released | parts)  # type: ignore[arg-type]


def all_tokens(choose: Choice) -> Stage:
    """Selection by another choice among all tokens."""
    return selection_with(lambda a, ok, k: choose(a, np.ones_like(ok), k))


def lower_index_first(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Both ends, ties to the lower index at both."""
    return top(a, ok, k, at_least=-np.inf), top(-a, ok, k, at_least=-np.inf)


def higher_index_last(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Strict signs, ties as the released argsort has them."""
    pos, neg = argsort_ends(a, ok, k)
    return [j for j in pos if a[j] > 0], [j for j in neg if a[j] < 0]


def padded(prompt: Prompt) -> Prompt:
    """The padding token as the baseline."""
    return prompt._replace(baseline=padding_row(prompt.x))


def hook(factor: float, axis: int, eps: float = 1e-8) -> Steer:
    """The released hook with another factor, axis or epsilon."""

    def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
        shifted = h + factor * lam * v
        wanted, actual = (z.norm(dim=axis, keepdim=True) for z in (h, shifted))
        return torch.where(actual > 0, shifted * (wanted / (actual + eps)), 0 * h)

    return steer


def in_pieces(h: Tensor, block: int, run: Run) -> Tensor:
    """The prompt steered as a whole and every new token by itself, as with a cache."""
    if block not in run.layers:
        return h
    pieces = [h[:, : run.prompt], *h[:, run.prompt :].split(1, dim=1)]
    return torch.cat([released_hook(widened(p), widened(run.v[block]), run.lam).to(h) for p in pieces], 1)


def up_to_each_token(h: Tensor, block: int, run: Run) -> Tensor:
    """The norms at every new token over what had been said by then, as in generating without a cache."""
    if block not in run.layers:
        return h
    v, ends = widened(run.v[block]), range(run.prompt, h.shape[1] + 1)
    steered = [released_hook(widened(h[:, :n]), v, run.lam).to(h) for n in ends]
    return torch.cat([steered[0], *(z[:, -1:] for z in steered[1:])], 1)


OBJECTIVE: tuple[Row, ...] = (
    ("paper_objective", "the paper's log-probabilities: all tokens, each from the row before it",
     "Scores of the released code cannot be compared", "released code, row 1", objective_with(right_sides)),
    ("last_token_in_place", "the last token only, but from the row before it", "The released score is one row late",
     "released code, row 1", objective_with(last_token)),
    ("all_tokens_one_late", "all response tokens, one row late", "The released score has the last token only",
     "released code, row 1", objective_with(each(lambda x, mask, y: token_log_p(x, mask, y, late=1).sum(-1)))),
    ("sides_exchanged", "y_pos and y_neg exchanged", "The preference is reversed", "ours",
     objective_with(lambda x, mask, y_pos, y_neg: last_token_late(x, mask, y_neg, y_pos))),
)  # fmt: skip

ATTRIBUTION: tuple[Row, ...] = (
    ("paper_attribution", "the paper's scores: the preference, the given baseline and quadrature",
     "Scores of the released code cannot be compared", "released code, rows 1 to 4", attribution_with()),
    ("last_token_in_place", "the branch's last token from the row before it", "The released score is one row late",
     "released code, row 1",
     from_zero(lambda path: pick(branch_logits(path, path.y_pos)[:, -2:-1], path.y_pos[-1:])[:, 0])),
    ("all_tokens_in_place", "all tokens of y_pos, each from the row before it", "The released score has the last only",
     "released code, row 1", from_zero(lambda path: response_on_path(path, path.y_pos))),
    ("response_fixed", "the response's embeddings held fixed", "The released path moves them too",
     "released code, row 2",
     from_zero(lambda path: last_token_late(path.points, path.mask, path.y_pos, path.y_neg)[0])),
    ("branches_added", "the scores of both branches added", "The released code keeps two scores per token",
     "released code, row 2", from_zero(lambda path: y_pos_again(path) - last_token_again(path, path.y_neg))),
    ("both_responses_fixed", "the preference of row 1 with fixed responses", "Scores of a token are mixed",
     "released code, row 2", from_zero(difference(last_token_late))),
    ("branch_of_y_neg", "the scores of y_neg's branch", "The sets of one branch are used for the other",
     "released code, row 2", from_zero(lambda path: -last_token_again(path, path.y_neg))),
    ("quadrature_as_given", "the nodes and weights asked for", "The released code always takes 20 Gauss-Legendre nodes",
     "released code, row 3", from_zero(y_pos_again, rule=right_rule)),
    ("baseline_as_given", "the path from the given baseline", "The released path begins at zero for every token",
     "released code, row 4", from_zero(y_pos_again, baseline_used=lambda b: b)),
    ("input_factor_missing", "the averaged gradient without the factor x", "As the released SmoothGrad has it, not IG",
     "released code, row 5", from_zero(y_pos_again, score=lambda x, b, g: g.sum(-1))),
)  # fmt: skip

SELECTION: tuple[Row, ...] = (
    ("paper_selection", "the paper's choice: strict signs, eligible tokens, ties to the lower index",
     "Short sets where the released code fills them up", "released code, rows 7 and 8", selection_with(right_choice)),
    ("sign_required", "only tokens of the right sign", "Short sets where the released code fills them up",
     "released code, row 7", all_tokens(higher_index_last)),
    ("ties_to_the_lower", "ties going to the lower index at both ends", "Reversed, an argsort has the higher one first",
     "released code, row 7", all_tokens(lower_index_first)),
    ("eligible_only", "both ends of an argsort of the eligible tokens", "The released code leaves no token out",
     "released code, row 8", selection_with(argsort_ends)),
    ("sets_exchanged", "the two sets exchanged", "Steering is reversed", "ours",
     all_tokens(lambda a, ok, k: argsort_ends(a, ok, k)[::-1])),
)  # fmt: skip

CONTRAST: tuple[Row, ...] = (
    ("paper_contrast", "the paper's shifts: the given baseline, raw states", "Another shift in every layer",
     "released code, rows 10 and 12", contrast_with()),
    ("baseline_as_given", "tokens replaced by the given baseline", "The released code writes the padding id",
     "released code, row 10", contrast_with(state=last_normed)),
    ("tokens_unattended", "tokens hidden by the attention mask", "The released code attends to the padding it writes",
     "released code, row 10", contrast_with(state=last_normed, masked=unattended)),
    ("last_state_raw", "the last layer's state before the final norm", "The released one is after it",
     "released code, row 12", contrast_with(change=padded)),
    ("every_state_normed", "every layer's state after the final norm", "The released code norms the last layer only",
     "released code, row 12", contrast_with(change=padded, state=read_at(lambda run, mask, inputs: norm(
         run.states[0, :, -1], weights(inputs.dtype)["norm"])))),
    ("delta_reversed", "masked minus unmasked", "Steering is reversed", "ours",
     contrast_with(state=last_normed, change=padded, join=lambda h, without: without - h)),
)  # fmt: skip

AGGREGATION: tuple[Row, ...] = (
    ("signed_by_mean", "the paper's sign: along the mean shift", "Some sides are turned round",
     "released code, row 13", aggregation_with()),
    ("largest_score_positive", "the sign rule of scikit-learn before 1.5: the largest projection is positive",
     "Some sides are turned round", "released code, row 13", aggregation_with(largest_score_positive)),
    ("uncentred", "the mean not subtracted before the decomposition", "scikit-learn's PCA subtracts it",
     "released code, row 13", aggregation_with(lambda D: _positive(svd(D)[2][0]))),
    ("v_pos_alone", "v = v_pos, as in the scripts for vision models", "The negative side is lost",
     "released code, row 14", aggregation_with(largest_entry_positive, combine=lambda pos, neg: pos)),
    ("sum_of_sides", "v = v_pos + v_neg", "Exactly orthogonal to the released v", "ours",
     aggregation_with(largest_entry_positive, combine=torch.add)),
)  # fmt: skip

STEERING: tuple[Row, ...] = (
    ("paper_steering", "the paper's edit: lambda as it is, norms over the width", "Another edit of every token",
     "released code, rows 15 and 16", steering_with(right_steer)),
    ("lam_as_given", "lambda without the factor 10", "A tenth of the released strength", "released code, row 15",
     steering_with(hook(1.0, axis=1))),
    ("norm_over_width", "norms over the width, token by token", "The released axis is the sequence",
     "released code, row 16", steering_with(hook(10.0, axis=-1))),
    ("hook_with_tensors", "the hook as transformers 5 runs it: row 0 of the batch only, norms over the width",
     "Blocks that return tensors give the hook another `output[0]`", "released code, row 16",
     steering_with(released_hook_with_tensors)),
    ("eps_missing", "the 1e-8 in the denominator left out", "Tiny states are restored where the released code shrinks "
     "them", "released code, row 16", steering_with(hook(10.0, axis=1, eps=0.0))),
    ("norm_not_restored", "norms not restored", "The stream grows with lambda", "ours",
     steering_with(lambda h, v, lam: h + 10 * lam * v)),
    ("zero_lam_replaced", "lambda 0 taken for a missing value and replaced by 1",
     "The unsteered model cannot be asked for", "ours",
     steering_with(lambda h, v, lam: released_hook(h, v, lam or 1.0))),
    ("interpolated", "(1 - lam) h + 10 lam v", "At lambda 1 nothing of h is left", "field",
     steering_with(lambda h, v, lam: released_norm(h, (1 - lam) * h + 10 * lam * v, axis=1))),
)  # fmt: skip

GENERATION: tuple[Row, ...] = (
    ("paper_generation", "the paper's edit at the layers asked for", "Another model", "released code, rows 15 and 16",
     generation_with(right_edit)),
    ("layers_as_given", "the released hook at the layers asked for", "The scripts steer the last block only",
     "released code, row 15", generation_with(edited_by(released_hook))),
    ("lam_as_given", "lambda without the factor 10", "A tenth of the released strength", "released code, row 15",
     generation_with(edited_by(hook(1.0, axis=1)), change=at_last_block)),
    ("norm_over_width", "norms over the width, token by token", "The released axis is the sequence",
     "released code, row 16",
     generation_with(lambda h, block, run: (
         steer_hidden(h, run.v[block], lam=10 * run.lam) if block in run.layers else h), change=at_last_block)),
    ("hook_with_tensors", "the hook as transformers 5 runs it: row 0 of the batch only, norms over the width",
     "Blocks that return tensors give the hook another `output[0]`", "released code, row 16",
     generation_with(edited_by(released_hook_with_tensors), change=at_last_block)),
    ("with_a_cache", "the prompt steered as a whole and every new token by itself, as a cache has it",
     "A single token keeps the size of every entry, and only signs change", "released code, row 16",
     generation_with(in_pieces, change=at_last_block)),
    ("up_to_each_token", "every row from a pass that ends with its token", "Norms over the sequence know what follows",
     "released code, row 16", generation_with(up_to_each_token, change=at_last_block)),
    ("zero_lam_replaced", "lambda 0 taken for a missing value and replaced by 1",
     "The unsteered model cannot be asked for", "ours",
     generation_with(edited_by(released_hook), change=lambda run: at_last_block(run)._replace(lam=run.lam or 1.0))),
)  # fmt: skip


def _positive(u: np.ndarray) -> np.ndarray:
    return u * np.sign(u[np.abs(u).argmax()])


def of_its_own(stage: str, name: str) -> str:
    """Every bug of this dialect is a kind of its own: a row of the ledger undone."""
    return name


def never(stage: str, name: str) -> bool:
    """None of them is too slight for half precision."""
    return False


BUGS: tuple[Bug, ...] = (
    *bugs_of("objective", OBJECTIVE, kind=of_its_own, slight=never),
    *bugs_of("attribution", ATTRIBUTION, kind=of_its_own, slight=never),
    *bugs_of("selection", SELECTION, kind=of_its_own, slight=never),
    *bugs_of("contrast", CONTRAST, kind=of_its_own, slight=never),
    *bugs_of("aggregation", AGGREGATION, kind=of_its_own, slight=never),
    *bugs_of("steering", STEERING, kind=of_its_own, slight=never),
    *bugs_of("generation", GENERATION, kind=of_its_own, slight=never),
)

WITHOUT_BUG: dict[str, Stage] = {
    "objective": objective_with(last_token_late),
    "attribution": from_zero(y_pos_again),
    "selection": all_tokens(argsort_ends),
    "contrast": contrast_with(state=last_normed, change=padded),
    "aggregation": aggregation_with(largest_entry_positive),
    "steering": steering_with(released_hook),
    "generation": generation_with(edited_by(released_hook), change=at_last_block),
}
"""The seven stages with nothing exchanged, made without `grains_ref.authors`: they agree with the dialect's oracle."""
