"""reproduction/habits.py: one choice for two habits, what is entered in turn, and what the page says of the cells."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grains_ref.demo.bench import UNSTEERED
from grains_ref.methods import mat_steer
from grains_ref.methods.core import Setting
from grains_ref.methods.mat_steer import ADAPTED, MatSteer
from grains_ref.reproduction import habits

pytestmark = pytest.mark.cpu

FACTS = ["a", "a", "b", "c"]


def bench(accuracies: dict[str, float], spoils: str = "") -> Any:
    return SimpleNamespace(
        dev_accuracy=lambda setting: accuracies[setting.label],
        keeps_capability=lambda setting: setting.label != spoils,
        choose=lambda settings: habits.choose(
            [UNSTEERED, *settings], accuracy=lambda s: accuracies[s.label], admissible=lambda s: s.label != spoils
        ),
    )


def test_a_setting_for_both_habits_is_chosen_by_their_mean_among_those_that_keep_capability() -> None:
    settings = [Setting(label, 1.0, nullcontext) for label in ("one", "both", "spoils")]
    of_myth = {"unsteered": 0.3, "one": 0.9, "both": 0.7, "spoils": 1.0}
    of_manner = {"unsteered": 0.3, "one": 0.2, "both": 0.6, "spoils": 1.0}
    labs: Any = {
        "myth": SimpleNamespace(bench=bench(of_myth, "spoils")),
        "manner": SimpleNamespace(bench=bench(of_manner, "spoils")),
    }
    choice = habits.chosen_for_all(labs, settings)
    assert (choice.best.label, choice.accuracy) == ("both", pytest.approx(0.65))
    worse: Any = {name: SimpleNamespace(bench=bench(dict.fromkeys(of_myth, 0.1))) for name in labs}
    assert habits.chosen_for_all(worse, settings).best is UNSTEERED


def test_every_way_is_measured_and_both_alone_are_entered_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    class Entered(nullcontext[None]):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def __enter__(self) -> None:
            entered.append(self.name)

    def fit_several(model: Any, attributes: dict[str, Any], **options: Any) -> Any:
        name = " and ".join(attributes)
        v = torch.eye(2).repeat(3, 1, 1)
        settings = [Setting(name, 2.0, lambda: Entered(name))]
        return SimpleNamespace(v=v, settings=lambda model: settings)

    def outcomes(labs: Any, steering: AbstractContextManager[object]) -> dict[str, Any]:
        with steering:
            right = {"myth": "1111", "manner": "0111"} if entered else {"myth": "0000", "manner": "0101"}
        entered.append("|")
        return {"right": right, "capable": "11", "margin": {name: [0.0] * 4 for name in right}}

    monkeypatch.setattr(mat_steer, "fit_several", fit_several)
    monkeypatch.setattr(habits, "outcomes", outcomes)
    accuracies = {"unsteered": 0.1, "myth": 0.5, "manner": 0.5, "myth and manner": 0.5}
    lab = SimpleNamespace(bench=bench(accuracies), steer=[], model=None)
    labs: Any = {"myth": lab, "manner": lab}
    cell = habits.measure(labs, FACTS)
    one = "myth and manner | myth | manner | myth manner |"
    assert " ".join(entered) == f"| {one} {one}"
    fit = cell["fits"]["MAT-Steer"]
    assert list(fit["rows"]) == [habits.TOGETHER, "myth alone", "manner alone", habits.IN_TURN]
    assert fit["chosen"]["manner alone"] == ["manner", 2.0]
    assert fit["cosines"] == [0.0, 0.0, 0.0]
    page = habits.page([cell | {"facts": FACTS}] * 2)
    line = next(line for line in page.splitlines() if "MAT-Steer: trained together" in line)
    assert "| 100.0 | +100.0 [100.0, 100.0] |" in line  # myth: from none to all
    assert line.count("|") == page.splitlines()[-1].count("|")
    with pytest.raises(ValueError, match="different test prompts"):
        habits.page([cell | {"facts": FACTS}, cell | {"facts": FACTS[::-1]}])


def test_cosines_are_of_the_two_habits_by_block() -> None:
    v = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [0.0, -1.0]]])
    fitted = MatSteer(("a", "b"), ADAPTED, v, v, v[..., 0], v, v)
    assert habits.cosines(fitted) == pytest.approx([0.5**0.5, -1.0])
