"""A judge that knows the dumped files alone: right/CASE.json, and the rules of docs/porting.md.

It imports nothing of grains_ref, and is what a porting team would write in its own language.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np


def passes(folder: Path, case: str, answer: dict[str, Any], dtype: str) -> bool:
    """Whether an answer, {"out": {...}} or {"refused": "why"}, is right; folder: where the cases were dumped."""
    stage, right = case.rpartition("-")[0], what_is_right(folder / "right" / f"{case}.json")
    if right["result"] == "invalid" or "refused" in answer:
        return right["result"] == "invalid" and "refused" in answer
    rules = {
        "attribution_baselines": lambda *given: by_rows(("baseline",), *given),
        "selection_eligible": lambda got, right, budget: got == right["out"],
        "generation_beams": beams,
        "objective": objective,
        "attribution": lambda *given: largest_entry("a", *given),
        "selection": selection,
        "contrast": lambda *given: by_rows(("delta_pos", "delta_neg"), *given),
        "aggregation": directions if stage.startswith("aggregation_") else aggregation,
        "steering": lambda *given: by_rows(("h",), *given),
        "generation": generation,
    }
    rule = rules.get(stage) or rules[stage.partition("_")[0]]  # an option is judged like its stage
    return bool(rule(answer["out"], right, right["budget"][dtype]))


@functools.cache
def what_is_right(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def objective(got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    want = {name: np.array(value, float) for name, value in right["out"].items()}
    scale = abs(want["log_p_pos"]) + abs(want["log_p_neg"])
    return all((abs(np.array(got[name], float) - want[name]) <= budget * scale).all() for name in want)


def largest_entry(name: str, got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    ours, theirs = np.array(got[name], float), np.array(right["out"][name], float)
    return bool(np.abs(ours - theirs).max() <= budget * np.abs(theirs).max())


def selection(got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    for name in ("pos", "neg"):
        others = [one["out"][name] for one in right["accepted"] if name in one["out"] and one["from"] <= budget]
        if list(got[name]) not in [right["out"][name], *others]:
            return False
    return True


def by_rows(names: tuple[str, ...], got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    for name in names:
        ours, theirs = np.array(got[name], float), np.array(right["out"][name], float)
        errors, lengths = np.linalg.norm(ours - theirs, axis=-1), np.linalg.norm(theirs, axis=-1)
        if not (errors <= budget * lengths).all():
            return False
    return True


def directions(got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    errors = [
        np.linalg.norm(np.array(got[name], float) - np.array(want), axis=-1) for name, want in right["out"].items()
    ]
    return max(error.max() for error in errors) <= budget


def beams(got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    theirs = np.array(right["out"]["log_p"])
    if not (abs(np.array(got["log_p"], float) - theirs) <= budget * abs(theirs)).all():
        return False
    rows = zip(got["tokens"], right["out"]["tokens"], right["margins"]["beams"], strict=True)
    return all(ours == stored or margin < 2 * budget for ours, stored, margin in rows)


def aggregation(got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    for side in ("pos", "neg"):
        for layer, row in enumerate(np.array(got[f"v_{side}"], float)):
            accepted = [
                one
                for one in right["accepted"]
                if (one["of"], one["layer"]) == (f"v_{side}", layer) and one["from"] <= budget
            ]
            stored, gap = right["out"][f"v_{side}"][layer], right["margins"][f"gap_{side}"][layer]
            if not row_is_right(row, np.array(stored), gap, accepted, budget):
                return False
    differences = np.array(got["v"], float) - (np.array(got["v_pos"], float) - np.array(got["v_neg"], float))
    return bool(np.linalg.norm(differences, axis=-1).max() <= 4 * budget)


def row_is_right(w: np.ndarray, stored: np.ndarray, gap: float, accepted: list[dict[str, Any]], budget: float) -> bool:
    if abs(np.linalg.norm(w) - 1) > budget:
        return False
    rows = [stored, *(np.array(one["row"]) for one in accepted if "row" in one)]
    if gap > 2 * budget and min(np.linalg.norm(w - row) for row in rows) <= budget * (1 + 2 / gap):
        return True
    for one in (one for one in accepted if "span" in one and one["gap"] > 2 * budget):
        basis = np.array(one["span"])
        outside = np.linalg.norm(w - (basis @ w) @ basis)
        against = one["toward"] is not None and w @ np.array(one["toward"]) < -2 * budget
        if outside <= budget * (1 + 2 / one["gap"]) and not against:
            return True
    return False


def generation(got: dict[str, Any], right: dict[str, Any], budget: float) -> bool:
    if not largest_entry("logits", got, right, budget):
        return False
    for row, margins in enumerate(right["margins"].get("tokens", [])):
        for step, margin in enumerate(margins):
            if got["tokens"][row][step] == right["out"]["tokens"][row][step]:
                continue
            if margin >= 2 * budget:
                return False
            break  # from here on both continuations are right
    return True
