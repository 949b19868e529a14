"""What a demo keeps to look at: attributed examples, margins and answers, in the file that a report reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grains_ref.demo import vision
from grains_ref.demo.experiment import Exhibit, SeedResult
from grains_ref.demo.planted import PICTURES
from grains_ref.files import write_whole
from grains_ref.grains import Selection
from grains_ref.report.attributions import Attributed
from grains_ref.report.folder import EXAMPLES

TEXT_MARKS = "Marked are the planted words: R rumour, T trust."
VISION_MARKS = "Marked are the planted causes: L lure, G ground word, O a patch of the object."


def marks_of(exhibit: Exhibit, *, is_visual: bool) -> dict[int, str]:
    """The planted causes of one example, by a letter."""
    rejected, chosen = ("L", "G") if is_visual else ("R", "T")
    marks = dict.fromkeys(exhibit.causes.neg, rejected) | dict.fromkeys(exhibit.causes.pos, chosen)
    if is_visual:
        marks |= dict.fromkeys(vision.object_patches(exhibit.encoded, exhibit.causes), "O")
    return marks


def write_examples(folder: Path, result: SeedResult, selections: list[Selection], *, is_visual: bool) -> None:
    """The exhibits of one training seed with what is selected in each, and what steering does to test prompts."""
    attributions = []
    for exhibit, selection in zip(result.exhibits, selections, strict=True):
        pair = exhibit.pair
        assert isinstance(pair.prompt, str)
        attributed = Attributed.of(
            pair.prompt,
            pair.chosen,
            pair.rejected,
            encoded=exhibit.encoded,
            attribution=exhibit.attribution,
            selection=selection,
            marks=marks_of(exhibit, is_visual=is_visual),
        )
        image = f"{PICTURES}/{pair.images[0].name}" if pair.images else ""
        attributions.append(attributed.record() | {"image": image})
    record: dict[str, Any] = {
        "attributions": attributions,
        "marks": VISION_MARKS if is_visual else TEXT_MARKS,
        "answers": [],
        "margins": [],
    }
    if steered := result.steered:
        record["how"] = f"the paper's setting, lam {steered.strength:g} as chosen on dev; training seed {result.seed}"
        record["margins"] = [[pair.id, before, after] for pair, before, after in steered.margins]
        for pair, base, after in steered.answers:
            texts = {"prompt": pair.prompt, "base": base, "steered": after}
            record["answers"].append(texts | {"chosen": pair.chosen, "rejected": pair.rejected})
    write_whole(folder / EXAMPLES, json.dumps(record, indent=1) + "\n")
