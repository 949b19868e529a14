"""Readers for the paper's datasets: rows from the hub or a folder, cut as in appendix A.1, as pairs and questions.

Three steps, the same for every dataset::

    from grains_ref.datasets import truthfulqa

    cut = truthfulqa.split("data/truthfulqa", seed=0)              # rows, in three parts without a common question
    pairs = [truthfulqa.pair(row) for row in cut.steering]         # go straight into fitting
    test = [truthfulqa.multiple_choice(row) for row in cut.test]   # choices and labels

| datasets | read | give |
|---|---|---|
| `truthfulqa`, `toxigen`, `faitheval` | questions in words | `split`, `pair`, `multiple_choice`, `generation` |
| `spa_vl`, `mmhal` | questions about pictures | `split`, `pair`, `generation` |
| `mmlu`, `mmmu` | tests of general ability | `read`, `multiple_choice` with examples, `generation` |

Each says at its end, in `DATASET`, what it is and what commands and tables can make of it; `dataset` says what that has
to hold, and `registry` finds them all.  What they are built from:

| module | what |
|---|---|
| `sources`, `schema` | rows from the hub or a folder; what their columns must be |
| `records`, `pair_files` | what is made of rows; a file of pairs |
| `splits` | appendix A.1's parts, without a common question |
| `prompts`, `few_shot` | appendix C's prompts; examples with answers before a question |
| `rejection_policy` | which false answer a pair rejects |
| `picture_cache` | pictures from inside the data, as files |
"""

from grains_ref.datasets.dataset import Dataset, PairOptions, Part
from grains_ref.datasets.pair_files import write_pairs
from grains_ref.datasets.records import DatasetError, Generation, MultipleChoice, Row, Where, digest
from grains_ref.datasets.registry import DATASETS, available, find, fixture, pair_rows, rehearse
from grains_ref.datasets.sources import Repository
from grains_ref.datasets.splits import Split

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetError",
    "Generation",
    "MultipleChoice",
    "PairOptions",
    "Part",
    "Repository",
    "Row",
    "Split",
    "Where",
    "available",
    "digest",
    "find",
    "fixture",
    "pair_rows",
    "rehearse",
    "write_pairs",
]
