"""Readers for the paper's datasets: rows from the hub or a folder, cut as in appendix A.1, as pairs and questions.

Three steps, the same for every dataset::

    from grains_ref.datasets import truthfulqa

    cut = truthfulqa.split("data/truthfulqa", seed=0)              # rows, in three parts without a common question
    pairs = [truthfulqa.pair(row) for row in cut.steering]         # go straight into fitting
    test = [truthfulqa.multiple_choice(row) for row in cut.test]   # choices and labels

| module | reads | gives |
|---|---|---|
| `truthfulqa`, `toxigen`, `faitheval` | questions in words | `split`, `pair`, `multiple_choice`, `generation` |
| `spa_vl`, `mmhal` | questions about pictures | `split`, `pair`, `generation` |
| `mmlu`, `mmmu` | tests of general ability | `read`, `multiple_choice` with examples, `generation` |

`about` says what each needs (`describe`, `available`) and has a miniature of each (`fixture`).
"""

from grains_ref.datasets.about import available, describe, fixture, rehearse
from grains_ref.datasets.records import DatasetError, Generation, MultipleChoice, Row, digest, write_pairs
from grains_ref.datasets.splits import Split

__all__ = [
    "DatasetError",
    "Generation",
    "MultipleChoice",
    "Row",
    "Split",
    "available",
    "describe",
    "digest",
    "fixture",
    "rehearse",
    "write_pairs",
]
