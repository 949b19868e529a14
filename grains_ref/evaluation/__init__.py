"""What steering changed and what it cost.

| file | holds |
|---|---|
| `measures` | measures of a model under whatever steering is active |
| `pair_scores` | pairs scored by the whole answer and per token |
| `choice` | the choice of a strength on dev data: the rule, and `sweep` |
| `fits` | the fits of a sweep, each computed once |
| `candidates` | what that rule needs to know of a setting of any method |
| `given` | the same choice for vectors that are there already: `sweep_vectors` |
| `measured` | what a sweep has finished, kept in its work folder |
| `metrics` | what is made of the numbers: rates, means, intervals, paired tests (needs no model) |
| `side_effect_sets` | sets of neutral texts, prompts, BBQ's questions, statements, from files (needs no model) |
| `side_effect_measures` | what steering moved on them: `side_effects` |
| `refusals` | whether a reply refuses (needs no model) |
| `judge` | answers judged by another model (needs no model) |
| `endpoint` | one request to such a model: within time and size, without a trace of secrets |
| `verdicts` | its replies, kept in a file |
| `lm_eval` | a steered model in lm-evaluation-harness |
| `inspect_ai` | a steered model in Inspect |
| `stopping` | where a generation ends, for both |

The names of `measures` and `choice`, and those for side effects, are also found here. They are fetched when asked for,
so that `metrics` and `judge` can be imported without torch and transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grains_ref.evaluation.choice import (
        Candidate,
        Choice,
        Grid,
        SweepChoice,
        Tried,
        allowed_errors,
        choose,
        keeps_capability,
        sweep,
    )
    from grains_ref.evaluation.measures import (
        ChoiceScores,
        bleu_accuracy,
        capability,
        choice_rows,
        exact_matches,
        generations,
        margins,
        multiple_choice,
        multiple_choice_accuracy,
        pair_choices,
        pair_rows,
        preference_accuracy,
        row_choices,
        row_margins,
        task_rows,
    )
    from grains_ref.evaluation.side_effect_measures import SideEffect, SideEffects, side_effects
    from grains_ref.evaluation.side_effect_sets import SideEffectSet, miniatures, read_set

__all__ = [
    "Candidate",
    "Choice",
    "ChoiceScores",
    "Grid",
    "SideEffect",
    "SideEffectSet",
    "SideEffects",
    "SweepChoice",
    "Tried",
    "allowed_errors",
    "bleu_accuracy",
    "capability",
    "choice_rows",
    "choose",
    "exact_matches",
    "generations",
    "keeps_capability",
    "margins",
    "miniatures",
    "multiple_choice",
    "multiple_choice_accuracy",
    "pair_choices",
    "pair_rows",
    "preference_accuracy",
    "read_set",
    "row_choices",
    "row_margins",
    "side_effects",
    "sweep",
    "task_rows",
]


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it (PEP 562)."""
    if name in __all__:
        for module in ("measures", "choice", "side_effect_sets", "side_effect_measures"):
            home = import_module(f"{__name__}.{module}")
            if hasattr(home, name):
                return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
