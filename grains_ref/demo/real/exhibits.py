"""What the real demo keeps to look at: attributed prompts, margins and answers, in the file that a report reads."""

from __future__ import annotations

import json
from pathlib import Path

from grains_ref.data import PreferencePair
from grains_ref.demo.real.causes import places_of
from grains_ref.demo.real.trial import Chosen, Trial, question_of
from grains_ref.files import write_whole
from grains_ref.grains import eligible_tokens, select
from grains_ref.report.attributions import Attributed
from grains_ref.report.folder import EXAMPLES

N_ATTRIBUTED = 6
MARKS = "Marked C: the claim, which is a lie."


def write_examples(folder: Path, trial: Trial, best: Chosen, *, name: str) -> None:
    """The first steering prompts with what is selected in each, and what the best row of the dev set does on test.

    name: of that row.
    """
    record = {
        "attributions": [attributed(trial, i).record() for i in range(min(N_ATTRIBUTED, len(trial.sets.steer)))],
        "marks": MARKS if trial.sets.causes else "",
        "how": f"{name} at {best.best.strength:g}, the row that was best on dev",
        "answers": answers(trial, best),
        "margins": margins(trial, best),
    }
    write_whole(folder / EXAMPLES, json.dumps(record, indent=1) + "\n")


def attributed(trial: Trial, i: int) -> Attributed:
    """Steering prompt i in the paper's setting, with the told value marked where the cause is known."""
    pair, example, hp = trial.sets.steer[i], trial.lab.example(i), trial.lab.paper
    attribution = trial.lab.attribution(hp, i)
    cause = places_of(example.encoded, trial.sets.causes[i]) if trial.sets.causes else ()
    return Attributed.of(
        question_of(pair),
        pair.chosen,
        pair.rejected,
        encoded=example.encoded,
        attribution=attribution,
        selection=select(attribution.a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible)),
        marks=dict.fromkeys(cause, "C"),
    )


def answers(trial: Trial, best: Chosen) -> list[dict[str, str]]:
    """What the model says as it is and steered."""
    rows = []
    for asked, plain, steered in zip(trial.shown, trial.unsteered_test.texts, best.seen.texts, strict=True):
        row = {"prompt": question_of(asked), "base": plain, "steered": steered}
        if isinstance(asked, PreferencePair):
            row |= {"chosen": asked.chosen, "rejected": asked.rejected}
        rows.append(row)
    return rows


def margins(trial: Trial, best: Chosen) -> list[tuple[str, float, float]]:
    """Test pairs with log P(chosen) - log P(rejected) before and after, in nats."""
    return [
        (question_of(pair), before, after)
        for pair, before, after in zip(trial.sets.test, trial.unsteered_test.margins, best.seen.margins, strict=True)
    ]
