"""Questions about the edit gradient: each direction against a closed form or finite differences, and the rule."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.demo.planted import further_tasks
from grains_ref.evaluation.measures import margins
from grains_ref.grains import Selection
from grains_ref.methods.edit_gradient import derivative, fit, steer
from grains_ref.models import HuggingFaceModel
from grains_ref.reproduction import edit_fits
from grains_ref.reproduction import edit_questions as questions
from grains_ref.reproduction.edit_questions import ROWS, SHARES, START, beginning
from grains_ref.reproduction.edit_verdicts import answer, verdicts_page
from grains_ref.reproduction.pages import STRENGTH_ROWS, edit_strengths
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.visual_worlds import build_visual_world
from grains_ref.tiny_models.worlds import build_world

pytestmark = pytest.mark.cpu


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt, prompt, chosen, rejected, where="made up")


PAIRS = [
    pair("Q: What is the capital of France? A:", "Paris.", "Rome, of course."),
    pair("Is the earth flat?", "No, it is round.", "Yes"),
    pair("The moon is made of", "rock", "green cheese"),
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def wide() -> HuggingFaceModel:
    return random_llama(dtype=torch.float64)


class FakeLab(SimpleNamespace):
    """What the rows ask of a lab."""

    def once(self, name: str, make: Any) -> Any:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]


@pytest.fixture
def lab(wide: HuggingFaceModel) -> Any:
    examples = [wide.example(p.prompt, p.chosen, p.rejected) for p in PAIRS]
    return FakeLab(model=wide, steer=PAIRS, example=examples.__getitem__, made={})


def vectors_of(settings: Any) -> Tensor:
    """v of the first setting, at strength 1."""
    v: Tensor = settings[0].steering.func.__self__.v
    return v


# --- what is taken once


def test_the_gradient_of_a_place_is_taken_once_whoever_asks(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str]] = []

    def counted(model: Any, example: Any, *, site: Any, positions: Any) -> Any:
        taken.append((site, positions))
        return derivative(model, example, site=site, positions=positions)

    monkeypatch.setattr(edit_fits, "derivative", counted)
    for place in (("mlp", "all"), ("mlp", "after_prompt"), ("heads", "all")):
        (settings,) = edit_fits.row(*place)(lab)  # type: ignore[arg-type]
        expected = fit(lab.model, PAIRS, site=place[0], positions=place[1])  # type: ignore[arg-type]
        assert torch.equal(vectors_of(settings), expected.v)
        assert edit_fits.fitted(lab, *place).scale == expected.scale  # type: ignore[arg-type]
        assert taken.count(place) == len(PAIRS)
    questions.beginning(lab)
    assert len(taken) == 4 * len(PAIRS)


# --- a metric


def test_the_full_metric_is_the_dense_solve() -> None:
    g, probes = drawn(2, 3), drawn(4, 2, 3, seed=1)
    s = probes.flatten(1)
    fisher = s.mT @ s / 4
    rho = 0.1 * fisher.trace() / 4
    expected = torch.linalg.solve(fisher + rho * torch.eye(6).double(), g.flatten())
    torch.testing.assert_close(questions.by_fisher(g, probes, damping=0.1), expected.view(2, 3))


def test_the_diagonal_metric_divides_entry_by_entry() -> None:
    g, probes = torch.tensor([[6.0, 6.0]]), torch.tensor([[[1.0, 3.0]], [[3.0, 1.0]], [[-1.0, -1.0]], [[1.0, 1.0]]])
    torch.testing.assert_close(questions.by_diagonal(g, probes, damping=1.0), torch.tensor([[1.0, 1.0]]))
    probes[:, :, 0] = 0.0
    assert questions.by_diagonal(g, probes, damping=0.5)[0].tolist() == pytest.approx([6 / 0.75, 6 / 3.75])


class LinearHead:
    """Logits are W s at the last position of its one block: F is W^T (diag p - p p^T) W."""

    def __init__(self) -> None:
        block = torch.nn.Module()
        block.self_attn = torch.nn.Module()
        block.self_attn.o_proj = torch.nn.Identity()
        self.blocks = [block]
        self.head, self.state = drawn(3, 2, seed=2), drawn(1, 1, 2, seed=3)

    def encode(self, prompt: str, image: Any = None) -> Any:
        return SimpleNamespace(embeds=self.state[0])

    def response_ids(self, prompt: str, answer: str) -> Tensor:
        return torch.tensor([0])

    def logits(self, encoded: Any, embeds: Tensor, ids: Tensor) -> Tensor:
        logits: Tensor = self.blocks[0].self_attn.o_proj(embeds) @ self.head.mT  # type: ignore[union-attr, operator]
        return logits


def test_the_probes_mean_over_all_signs_is_the_fisher_information(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = LinearHead()
    products = []
    for bits in itertools.product((0, 1), repeat=3):
        monkeypatch.setattr(torch, "randint", lambda *a, bits=bits, **k: torch.tensor(bits))
        (probe,) = questions.fisher_probes(model, [("prompt", "answer")], site="attention_output", seed=0)
        products.append(torch.outer(probe[0], probe[0]))
    p = (model.state[0, 0] @ model.head.mT).softmax(0)
    expected = model.head.mT @ (torch.diag(p) - torch.outer(p, p)) @ model.head
    torch.testing.assert_close(torch.stack(products).mean(0), expected)


def test_probes_are_drawn_anew_for_each_text_and_alike_each_time(wide: HuggingFaceModel) -> None:
    items = [("Two and two", "are four"), ("Two and two", "are four")]
    probes = questions.fisher_probes(wide, items, site="attention_output", seed=0)
    assert not torch.equal(probes[0], probes[1])
    assert torch.equal(probes, questions.fisher_probes(wide, items, site="attention_output", seed=0))
    assert not torch.equal(probes, questions.fisher_probes(wide, items, site="attention_output", seed=1))


# --- steps


def test_the_first_step_is_the_edit_gradient_and_the_next_follows_the_gradient_there(lab: Any) -> None:
    (settings,) = ROWS["edit gradient, steps"](lab)
    assert [setting.strength for setting in settings] == list(SHARES)
    first, second = (setting.steering.args[1] for setting in settings[:2])
    plain = fit(lab.model, PAIRS, site="attention_output", positions="all").v
    torch.testing.assert_close(first, SHARES[0] * plain)
    there = [
        derivative(lab.model, lab.example(i), site="attention_output", positions="all", at=first).g for i in range(3)
    ]
    step = second - first
    assert torch.cosine_similarity(step.flatten(), torch.stack(there).mean(0).flatten(), dim=0) > 1 - 1e-9
    assert step.norm().item() == pytest.approx((SHARES[1] - SHARES[0]) * plain.norm().item())
    assert torch.cosine_similarity(step.flatten(), plain.flatten(), dim=0) < 0.9999


def test_log_sigmoid_lets_pairs_go_that_are_won(lab: Any) -> None:
    """The first step against finite differences of mean log sigmoid f."""
    (settings,) = ROWS["edit gradient, steps, log sigmoid"](lab)
    v = settings[0].steering.args[1] / SHARES[0]
    u, ends = drawn(*v.shape, seed=5), []
    for lam in (1e-3, -1e-3):
        with steer(lab.model, u, site="attention_output", positions="all", lam=lam):
            f = torch.tensor(margins(lab.model, PAIRS), dtype=torch.float64)
        ends.append(torch.nn.functional.logsigmoid(f).mean().item())
    weights = questions.log_sigmoid_weights(margins(lab.model, PAIRS))
    g = questions.mean_gradient(beginning(lab).derivatives, weights)
    assert (g * u).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-3)
    assert torch.cosine_similarity(v.flatten(), g.flatten(), dim=0) > 1 - 1e-9
    assert questions.log_sigmoid_weights([0.0, 50.0]) == pytest.approx([0.5, 0.0])


# --- tokens


def test_a_tokens_derivative_is_that_of_its_own_edit_and_all_together_are_the_whole(wide: HuggingFaceModel) -> None:
    """One-token answers, so that nothing of the answer is edited."""
    two_tokens = wide.example("The moon is made of", "x", "y")
    example = replace(two_tokens, y_pos=two_tokens.y_pos[-1:], y_neg=two_tokens.y_neg[-1:])
    n = len(example.encoded.ids)
    place: dict[str, Any] = {"site": "attention_output", "positions": "all"}
    whole = derivative(wide, example, **place)
    parts = [derivative(wide, example, **place, tokens=[t]) for t in range(n)]
    torch.testing.assert_close(torch.stack([part.g for part in parts]).sum(0), whole.g)
    torch.testing.assert_close(derivative(wide, example, **place, tokens=[0, n - 1]).g, parts[0].g + parts[-1].g)
    after = derivative(wide, example, site="attention_output", positions="after_prompt")
    torch.testing.assert_close(parts[-1].g, after.g)
    assert torch.equal(parts[0].size, whole.size)  # lam stays a share of the state where the edit acts
    assert not derivative(wide, example, **place, tokens=[]).g.any()


def test_attributed_tokens_are_those_of_both_signs_and_of_their_own_prompt(lab: Any) -> None:
    selections = [Selection((1,), (2,)), Selection((), (0,)), Selection((2,), ())]
    lab.shift = lambda hp, i: SimpleNamespace(selection=selections[i])
    lab.paper = None
    (settings,) = ROWS["edit gradient, attributed tokens"](lab)
    expected = questions.of_tokens(lab, [(1, 2), (0,), (2,)])
    assert torch.cosine_similarity(vectors_of(settings).flatten(), expected.flatten(), dim=0) > 1 - 1e-9


# --- layers, blocks, controls


def test_strengths_of_layers() -> None:
    g, sizes = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([2.0, 10.0])
    assert questions.equal_layers(g, sizes).tolist() == [pytest.approx([1.2, 1.6]), pytest.approx([0.0, 10.0])]
    assert questions.in_units_of_the_state(g, sizes).tolist() == [[12.0, 16.0], [0.0, 100.0]]
    assert questions.reversed_lengths(g).tolist() == [pytest.approx([0.6, 0.8]), pytest.approx([0.0, 5.0])]


def test_in_units_of_the_state_is_the_gradient_of_a_rescaled_edit(wide: HuggingFaceModel, lab: Any) -> None:
    """f of v_l = |s_l| w_l by finite differences in w."""
    start = beginning(lab)
    w = drawn(*start.g.shape, seed=7)
    ends = []
    for lam in (1e-3, -1e-3):
        with steer(wide, start.sizes[:, None] * w, site="attention_output", positions="all", lam=lam):
            ends.append(statistics.mean(margins(wide, PAIRS)))
    gradient_in_w = questions.in_units_of_the_state(start.g, start.sizes) / start.sizes[:, None]
    assert (gradient_in_w * w).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-3)


def test_every_row_is_as_long_as_the_state_and_controls_point_elsewhere(lab: Any) -> None:
    whole = fit(lab.model, PAIRS, site="attention_output", positions="all")
    names = ["reversed", "Gaussian", "first block only", "without the first block", "equal layers", "layers reversed"]
    vectors = {}
    for name in names:
        draws = ROWS[f"edit gradient, {name}"](lab)
        assert [len(settings) for settings in draws] == [len(SHARES)] * (2 if name == "Gaussian" else 1)
        vectors[name] = vectors_of(draws[0])
        rms = vectors[name].norm(dim=1).square().mean().sqrt().item()
        assert rms == pytest.approx(whole.scale), name
    torch.testing.assert_close(vectors["reversed"], -whole.v)
    torch.testing.assert_close(vectors["Gaussian"].norm(dim=1), whole.v.norm(dim=1))
    assert not vectors["first block only"][1:].any()
    assert not vectors["without the first block"][0].any()
    assert vectors["without the first block"][1].any()


# --- the verdicts

WORLDS = ("simple", "graded-visual")
FACTS = {(world, 0): [f"fact {i}" for i in range(10)] for world in WORLDS}


def cell(right: str, dev: float = 0.0) -> Any:
    tried = [("unsteered", 0.0, 0.1), ("s", 1.0, 0.1 + dev)]
    return {"draws": [{"label": "s", "strength": 1.0, "tried": tried, "right": right}]}


def some_cells(**changes: Any) -> Any:
    """Every row is right six times of ten, the Fisher metric ten times, and dev likes it best."""
    cells = {}
    for world in WORLDS:
        for row in ("unsteered", START, *ROWS):
            cells[world, 0, row] = cell("1111110000", 0.2)
        cells[world, 0, "unsteered"] = cell("0" * 10)
        cells[world, 0, "edit gradient, Fisher"] = cell("1" * 10, 0.3)
    for name, changed in changes.items():
        cells["simple", 0, f"edit gradient, {name}"] = changed
    return cells


@pytest.mark.thorough
def test_the_variant_is_chosen_on_dev_and_helps_if_it_is_ahead() -> None:
    outcome = answer(questions.QUESTIONS["b"], some_cells(), FACTS, WORLDS, [0])
    assert outcome.winner == "edit gradient, Fisher"
    assert outcome.failures() == []
    assert outcome.mean_lead == pytest.approx(0.4)
    better_on_test = answer(questions.QUESTIONS["b"], some_cells(Fisher=cell("1" * 10, -0.1)), FACTS, WORLDS, [0])
    assert better_on_test.winner == "edit gradient, diagonal Fisher"
    page = verdicts_page(some_cells(), FACTS, WORLDS, [0])
    assert "- (b) a metric: **edit gradient, Fisher** was put to the test and helps." in page
    assert "- (a) mean gain on test over worlds, in points: attention output, all +60.0, first block only +60.0" in page


def test_each_condition_of_the_rule_is_enough_to_fail() -> None:
    def failures(letter: str, **changes: Any) -> list[str]:
        return answer(questions.QUESTIONS[letter], some_cells(**changes), FACTS, WORLDS, [0]).failures()

    level = failures("d")
    assert level[0] == "not ahead in the mean over worlds (+0.0 points)"
    assert "ahead beyond chance in no world" in level
    within_chance = some_cells(**{"attributed tokens": cell("1111111000", 0.2)})
    outcome = answer(questions.QUESTIONS["d"], within_chance, FACTS, WORLDS, [0])
    assert outcome.mean_lead == pytest.approx(0.05)
    assert outcome.failures() == ["ahead beyond chance in no world"]
    behind = {"Fisher": cell("0000000000", 0.3)}
    assert any(why.startswith("behind in simple beyond chance (-60.0 [") for why in failures("b", **behind))
    assert failures("b", **{"random metric": cell("1" * 10)}) == []
    control_ahead = some_cells(**{"random metric": cell("1" * 10)})
    control_ahead["graded-visual", 0, "edit gradient, random metric"] = cell("1" * 10)
    outcome = answer(questions.QUESTIONS["b"], control_ahead, FACTS, WORLDS, [0])
    assert outcome.failures() == ["not ahead of its control in the mean (+0.0 points)"]


def test_a_row_without_direction_gains_nothing() -> None:
    outcome = answer(questions.QUESTIONS["b"], some_cells(Fisher={"error": "none"}), FACTS, WORLDS, [0])
    assert outcome.dev_gains["edit gradient, Fisher"] == pytest.approx(0.15)
    assert outcome.winner == "edit gradient, diagonal Fisher"


# --- text that steering should leave as it is


def test_tasks_for_the_metric_are_in_no_split() -> None:
    world = build_world("graded")
    items = further_tasks(world)
    prompts = [item[0] for item in items]
    assert len(set(prompts)) == len(prompts) == 50
    in_splits = {task.prompt for split in ("dev", "test") for task in world.capability_split(split)}  # type: ignore[arg-type]
    assert not in_splits & set(prompts)
    visual = build_visual_world("simple-visual")
    pictured = further_tasks(visual)
    assert len(pictured) == 50
    assert len({item[1].split()[-2] for item in pictured}) > 5
    assert all(len(item) == 3 for item in pictured)


@pytest.mark.thorough
def test_the_figure_shows_means_over_seeds_and_what_was_chosen(tmp_path: Path) -> None:
    def with_curve(first: float, chosen: float) -> Any:
        tried = [("unsteered", 0.0, 0.1), ("s", 0.1, first), ("s", 0.2, 0.5), ("s", 7.0, 0.9)]
        return {"draws": [{"label": "s", "strength": chosen, "tried": tried}]}

    cells = {}
    for row in STRENGTH_ROWS:
        cells["simple", 0, row] = with_curve(0.2, 0.1)
        cells["simple", 1, row] = with_curve(0.4, 0.0)
    drawn = edit_strengths(cells, ["simple"], [0, 1], tmp_path / "figure.png")
    assert drawn["simple"][START] == {"lam": [0.1, 0.2], "accuracy": pytest.approx([30.0, 50.0]), "chosen": [0.1, 0.0]}
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (tmp_path / "figure.svg").is_file()
