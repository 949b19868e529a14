"""The option of the dialect `authors`, row 22: what the released code makes of the likelihood objective.

Its single path, for one response alone, attributes nothing by Integrated Gradients or SmoothGrad: the gradient it asks
for was never kept, so every score is exactly 0, and the "top k" are the last k tokens. By `gradient`, its default, the
scores are those of y_pos's branch, as row 5 has them: the embedding times the gradient of the last response token said
once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from grains_ref import authors
from grains_ref.conformance.authors.bugs import y_pos_again
from grains_ref.conformance.bugs.attribution import attribution_with, last_token_again, right_f
from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.objective import right_sides
from grains_ref.conformance.signatures import Stage, Values, array, refusing, tensor, toy_in, whole


@refusing
def attribution_likelihood(
    *,
    x: Any,
    baseline: Any,
    attention_mask: Any,
    y_pos: Any,
    y_neg: Any,
    m: int,
    quadrature: str,
    method: str,
    dtype: str,
) -> Values:
    """Row 22: the scores of the prompt's tokens. y_neg, baseline, m and quadrature are ignored."""
    bare, y = toy_in(dtype), whole(y_pos)
    model = authors.AuthorsModel(bare, lambda ids: bare.embed[ids], lambda h: h, pad_id=0)
    branch = authors.branch(model, bare.encoded(tensor(x, dtype), whole(attention_mask)), y)
    scores = authors.likelihood(model, branch, y=y, method=method)  # type: ignore[arg-type]
    return {"a": array(scores.a[: len(x)])}


STAGES: dict[str, Stage] = {"attribution_likelihood": attribution_likelihood}
HEADERS: dict[str, str] = {
    "attribution_likelihood": "Row 22: exactly 0 by integrated gradients; by gradient the scores of y_pos's branch."
}


def by_gradient(f: Any = y_pos_again, *, of_the_path: Any = None) -> Stage:
    """The gradient times the embedding; integrated gradients by another stage, default: zeros."""
    first_order = attribution_with(f=f, baseline_used=torch.zeros_like)

    def stage(*, m: int, quadrature: str, method: str, **given: Any) -> Values:
        if method == "gradient":
            return first_order(m=1, quadrature="right", **given)
        if of_the_path is None:
            return {"a": np.zeros(len(given["x"]))}
        return dict(of_the_path(m=m, quadrature=quadrature, **given))

    return stage


def _paper(*, m: int, quadrature: str, method: str, **given: Any) -> Values:
    log_p = attribution_with(f=lambda path: right_sides(path.points, path.mask, path.y_pos, path.y_neg)[0])
    return log_p(
        m=1 if method == "gradient" else m, quadrature="right" if method == "gradient" else quadrature, **given
    )


LIKELIHOOD: tuple[Row, ...] = (
    ("paper_attribution_likelihood", "the paper's scores: log P(y_pos) from the given baseline",
     "Scores of the released code cannot be compared", "released code, row 22", _paper),
    ("likelihood_mended", "integrated gradients of y_pos's branch where the released code has zeros",
     "Tokens are selected by their scores, not by their place", "released code, row 22",
     by_gradient(of_the_path=attribution_with(f=y_pos_again, baseline_used=torch.zeros_like))),
    ("likelihood_of_y_neg", "the scores of y_neg's branch", "The other response is attributed", "released code, row 22",
     by_gradient(lambda path: last_token_again(path, path.y_neg))),
    ("likelihood_as_preference", "the preference by gradient", "Both responses count", "released code, row 22",
     by_gradient(right_f)),
)  # fmt: skip
BUGS = bugs_of("attribution_likelihood", LIKELIHOOD)
WITHOUT_BUG: dict[str, Stage] = {"attribution_likelihood": by_gradient()}
"""Row 22 with nothing exchanged, made without `grains_ref.authors`."""
KILLS = {
    "attribution_likelihood-001": "paper_attribution_likelihood likelihood_mended",
    "attribution_likelihood-002": "paper_attribution_likelihood likelihood_of_y_neg likelihood_as_preference",
    "attribution_likelihood-003": "paper_attribution_likelihood likelihood_mended",
    "attribution_likelihood-004": "paper_attribution_likelihood likelihood_of_y_neg likelihood_as_preference",
    "attribution_likelihood-005": "paper_attribution_likelihood likelihood_mended",
}
"""The planted bugs that each valid case must catch in this dialect."""
