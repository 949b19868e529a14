"""`grains-ref demo`: a tiny language model with a planted bad habit is diagnosed, steered and measured."""

from __future__ import annotations

from torch import Tensor

from grains_ref.demo.centring import centring
from grains_ref.demo.experiment import Demo
from grains_ref.grains import Encoded, Selection, eligible_tokens, select

ROWS = {
    "unsteered": "unsteered",
    "GrAInS": "GrAInS, paper's settings",
    "uncentred PCA": "GrAInS, uncentred PCA",
    "mean": "GrAInS, mean",
    "chosen on dev": "GrAInS, chosen on dev",
    "random tokens": "random tokens",
    "planted tokens, PCA": "planted tokens",
    "planted tokens, mean": "planted tokens, mean",
}


def recall(encoded: Encoded, a: Tensor, causes: Selection) -> dict[str, float]:
    """The share of planted rumour words among the top 3 negative tokens, and whether the first of these is planted."""
    strongest = select(a, k=3, eligible=eligible_tokens(encoded, ())).neg
    hits = len({*strongest} & {*causes.neg})
    return {
        "recall_at_3": hits / min(3, len(causes.neg)),
        "precision_at_1": float(bool(strongest) and strongest[0] in causes.neg),
    }


DEMO = Demo(rows=ROWS, detection=recall, n_exhibits=3, further=centring)
