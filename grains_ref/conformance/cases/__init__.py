"""The cases of the kit: inputs of the seven stages, what each is for, and which planted bugs it must catch.

Cases are built to hide nothing. Left padding, answers of several tokens and different lengths, a padding token whose
embedding is not zero, batches, the first, middle and last layer, axes of different prime sizes: each of them hides a
bug when it is missing. One token per answer, no padding, batch 1 and lambda 1 together hide most of them.

Every number comes from a formula in whole numbers or from `random.Random` with the name of the case, and is one that
bfloat16 can hold, so that vectors regenerate bit for bit and serve every dtype. An id is never reused and a case never
edited in place.

A stage's cases are in the file of its name; the bugs that they must catch are in the file of the same name in `bugs`.

| file | holds |
|---|---|
| `common` | the class `Case`, seeded numbers, prompts, masks and baselines |
| `flags` | what a case looks for, and what goes wrong where it fails |
| `objective`, `attribution`, `selection`, `contrast`, `aggregation`, `steering`, `generation` | the cases of a stage |
| `options` | the cases of all options |
| `generated` | inputs that are given by a rule instead of being stored |
"""

from __future__ import annotations

from grains_ref.conformance.cases import (
    aggregation,
    attribution,
    contrast,
    generation,
    objective,
    options,
    selection,
    steering,
)
from grains_ref.conformance.cases.common import Case, ResultKind
from grains_ref.conformance.cases.flags import FLAGS, Flag

CASES: tuple[Case, ...] = (
    *objective.CASES,
    *attribution.CASES,
    *selection.CASES,
    *contrast.CASES,
    *aggregation.CASES,
    *steering.CASES,
    *generation.CASES,
    *options.CASES,
)

__all__ = ["CASES", "FLAGS", "Case", "Flag", "ResultKind"]
