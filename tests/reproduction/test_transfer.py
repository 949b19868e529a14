"""Transfer and composition of vectors: a toy with two orthogonal behaviours in closed form, and a cut-down run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from shared import SHIPPED
from transformers import LlamaConfig, LlamaForCausalLM

from grains_ref.data import PreferencePair, Task
from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import double_labs
from grains_ref.grains import PRESETS, DegenerateShiftsError
from grains_ref.models import HuggingFaceModel, load
from grains_ref.reproduction import transfer as module
from grains_ref.reproduction.pages import transfer_page
from grains_ref.reproduction.transfer import measure, outcomes, results, steerings
from grains_ref.tiny_models.double_world import BEHAVIOURS, build_double_world
from grains_ref.tiny_models.tokenizer import word_tokenizer

pytestmark = pytest.mark.cpu

# --- a toy: blocks that do nothing, so that a state is the last token's embedding and what steering makes of it

D, L, N, EPS = 7, 2, 60, 1e-6
LAMS = (0.4, 0.9)
ANSWERS = ("true", "false", "friend", "fool", "ok")
AXES = {"true": (1, 1.0), "false": (1, -1.0), "friend": (2, 1.0), "fool": (2, -1.0), "ok": (0, 1.0)}
PAIR = {"myth": ("true", "false"), "manner": ("friend", "fool")}
rng = np.random.default_rng(0)
STATES = np.concatenate([1 + rng.random((N, 1)), rng.normal(-0.9, 0.8, (N, 2)), rng.normal(0, 0.5, (N, D - 3))], axis=1)
HEAD = np.zeros((len(ANSWERS), D))
for row, (axis, value) in enumerate(AXES.values()):
    HEAD[row, axis] = value
V = {"myth": torch.eye(D)[[1, 1]], "manner": torch.eye(D)[[2, 2]]}  # (L, d): orthogonal in every layer


@pytest.fixture(scope="module")
def labs() -> dict[str, Lab]:
    words = [f"w{i}" for i in range(N)]
    tokenizer = word_tokenizer(["<pad>", "<s>", "</s>", "<unk>", *ANSWERS, *words])
    hf = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=D, intermediate_size=3, num_hidden_layers=L,
                    num_attention_heads=1, num_key_value_heads=1, head_dim=4, rms_norm_eps=EPS,
                    tie_word_embeddings=False, max_position_embeddings=16)
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        hf.model.embed_tokens.weight[-N:] = torch.tensor(STATES)
        hf.lm_head.weight[4 : 4 + len(ANSWERS)] = torch.tensor(HEAD)
        hf.lm_head.weight[:4, 0] = -9  # special tokens are never the likeliest
    model = HuggingFaceModel(hf, tokenizer, name="toy")
    tasks = [Task(word, word, "ok") for word in words]

    def lab(behaviour: str) -> Lab:
        pairs = [PreferencePair(word, word, *PAIR[behaviour], where=word) for word in words]
        half = N // 2
        return Lab(model, PRESETS["paper_llm"], LAMS, "token:ok", steer=pairs,
                   dev=(pairs[half:], tasks[:1]), test=(pairs[:half], tasks[:half]), facts=words[:half])  # fmt: skip

    return {behaviour: lab(behaviour) for behaviour in BEHAVIOURS}


def expected(steps: Sequence[np.ndarray], states: np.ndarray = STATES[: N // 2]) -> dict[str, Any]:
    """Outcomes when every block adds each of the steps in turn and restores norms after each: plain numpy."""
    h = states
    for _ in range(L):
        for step in steps:
            moved = h + step
            h = moved * np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(moved, axis=1, keepdims=True)
    logits = h / np.sqrt((h**2).mean(1, keepdims=True) + EPS) @ HEAD.T
    capable = logits.argmax(1) == ANSWERS.index("ok")

    def text(bits: np.ndarray) -> str:
        return "".join("01"[int(bit)] for bit in bits)

    margins = {b: logits[:, ANSWERS.index(chosen)] - logits[:, ANSWERS.index(bad)] for b, (chosen, bad) in PAIR.items()}
    right = {b: text(one > 0) for b, one in margins.items()}
    return {"right": right, "capable": text(capable), "margin": {b: one.tolist() for b, one in margins.items()}}


def assert_outcomes(found: dict[str, Any], truth: dict[str, Any]) -> None:
    assert {name: found[name] for name in ("right", "capable")} == {name: truth[name] for name in ("right", "capable")}
    for behaviour in BEHAVIOURS:
        assert found["margin"][behaviour] == pytest.approx(truth["margin"][behaviour], abs=2e-4)


def axis(behaviour: str, lam: float) -> np.ndarray:
    return lam * V[behaviour][0].numpy()


def test_vectors_alone_and_together_do_what_the_toys_closed_form_says(labs: dict[str, Lab]) -> None:
    lam = {"myth": 0.9, "manner": 0.6}
    one, two = axis("myth", 0.9), axis("manner", 0.6)
    truth = {
        "vector of myth": expected([one]),
        "vector of manner": expected([two]),
        "sum": expected([one + two]),
        "nested": expected([one, two]),
    }
    found = {name: outcomes(labs, steering) for name, steering in steerings(labs, V, lam).items()}
    for name, one_truth in truth.items():
        assert_outcomes(found[name], one_truth)
    base = expected([])
    assert len({json.dumps(one) for one in [*truth.values(), base]}) == 5  # so that no two can be mixed up
    # Two orthogonal behaviours: a vector leaves the other behaviour as it was, and together each keeps its gain.
    assert truth["vector of myth"]["right"]["manner"] == base["right"]["manner"]
    assert truth["vector of manner"]["right"]["myth"] == base["right"]["myth"]
    for behaviour in BEHAVIOURS:
        alone = truth[f"vector of {behaviour}"]["right"][behaviour]
        assert alone.count("1") > base["right"][behaviour].count("1") + 5
        assert abs(truth["sum"]["right"][behaviour].count("1") - alone.count("1")) <= 2
    # Nothing is left behind.
    assert_outcomes(outcomes(labs, steerings(labs, V, {"myth": 0.0, "manner": 0.0})["sum"]), base)


def test_equally_likely_answers_are_not_right(labs: dict[str, Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "row_margins", lambda model, rows: [0.0, 0.00126, -0.1])
    found = outcomes(labs, nullcontext())
    assert found["right"] == dict.fromkeys(BEHAVIOURS, "010")
    assert found["margin"] == {behaviour: [0.0, 0.0013, -0.1] for behaviour in BEHAVIOURS}


def test_each_strength_is_chosen_on_its_own_behaviours_dev_set(
    labs: dict[str, Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The manner's vector points away from the preferred manner: it must stay unused, whatever helps the myth habit.
    given = {"myth": V["myth"], "manner": -V["manner"]}
    fit = {"given": lambda lab: next(given[b] for b, one in labs.items() if one is lab)}
    monkeypatch.setattr(module, "FITS", fit)
    cell = measure(labs, labs["myth"].facts)
    found = cell["fits"]["given"]
    dev = {lam: expected([axis("myth", lam)], STATES[N // 2 :])["right"]["myth"].count("1") for lam in (0.0, *LAMS)}
    assert [(lam, round(acc * N / 2)) for _, lam, acc in found["tried"]["myth"]] == [*dev.items()]
    assert found["lam"] == {"myth": max(dev, key=lambda lam: dev[lam]), "manner": 0.0}
    assert found["lam"]["myth"] > 0
    assert found["cosines"] == [0.0, 0.0]
    assert found["lengths"] == {b: [1.0, 1.0] for b in BEHAVIOURS}
    only_myth = expected([axis("myth", found["lam"]["myth"])])
    for name in ("vector of myth", "sum", "nested"):
        assert_outcomes(found["rows"][name], only_myth)
    assert_outcomes(found["rows"]["vector of manner"], expected([]))
    doses = {lam: expected([-axis("manner", lam)], STATES[N // 2 :])["margin"] for lam in (0.0, *LAMS)}
    assert [dose["lam"] for dose in found["doses"]["manner"]] == [*doses]
    for dose, truth in zip(found["doses"]["manner"], doses.values(), strict=True):
        assert {b: dose[b] for b in BEHAVIOURS} == pytest.approx({b: np.mean(truth[b]) for b in BEHAVIOURS}, abs=1e-4)
    assert [dose["capability"] for dose in found["doses"]["myth"]] == [
        float(expected([axis("myth", lam)], STATES[[0]])["capable"]) for lam in (0.0, *LAMS)
    ]
    gained = only_myth["right"]["myth"].count("1") - expected([])["right"]["myth"].count("1")
    assert found["rows"]["sum"]["results"]["myth"]["gain"][0] == pytest.approx(gained / (N / 2))
    assert found["rows"]["sum"]["results"]["manner"]["gain"] == [0.0, 0.0, 0.0]


def test_vectors_that_cannot_be_fitted_leave_their_reason(
    labs: dict[str, Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    def degenerate(lab: Lab) -> torch.Tensor:
        raise DegenerateShiftsError("layer 0: all shifts are zero")

    monkeypatch.setattr(module, "FITS", {"hopeless": degenerate})
    cell = {"seed": 4, "facts": labs["myth"].facts} | measure(labs, labs["myth"].facts)
    assert cell["fits"] == {"hopeless": {"error": "layer 0: all shifts are zero"}}
    assert "hopeless: none (seed 4: layer 0: all shifts are zero)" in page([cell])


# --- results and page


def page(curves: Sequence[dict[str, Any]]) -> str:
    """The page of the training seeds' cells."""
    cells = {("double", curve["seed"], "transfer"): {"curve": curve} for curve in curves}
    return transfer_page(cells, ["double"], [curve["seed"] for curve in curves])


def result(seed: int, *, myth: str, manner: str, capable: str, base: str = "0000") -> dict[str, Any]:
    """A cell of four test prompts about two facts."""
    margin = {"myth": [-1.0, -1.0, -1.0, -2.0], "manner": [0.0, 0.0, 0.0, 0.0]}
    unsteered = {"right": {"myth": base, "manner": base}, "capable": "111", "margin": margin}
    margin = {"myth": [1.0, -1.0, 1.0, -2.0], "manner": [-0.5, -0.5, -0.5, -0.5]}
    row = {"right": {"myth": myth, "manner": manner}, "capable": capable, "margin": margin}
    dose = [{"lam": 0.0, "myth": -1.25, "manner": 0.0, "capability": 1.0},
            {"lam": 2.5, "myth": 0.5 + seed, "manner": -0.5, "capability": 0.995}]  # fmt: skip
    other = [dose[0], {"lam": 2.5, "myth": -1.5, "manner": 0.25, "capability": 0.5 + seed / 2}]
    fit = {"lam": {"myth": 1.0 + seed, "manner": 2.5}, "tried": {}, "cosines": [0.5, -0.25],
           "lengths": {}, "doses": {"myth": dose, "manner": other},
           "rows": {"vector of myth": row, "sum": row}}  # fmt: skip
    return {"seed": seed, "facts": ["a", "b", "a", "b"], "unsteered": unsteered, "fits": {"mean": fit}}


def test_results_pool_seeds_and_count_prompts_right_on_both() -> None:
    cells = [result(0, myth="1110", manner="1010", capable="111"), result(1, myth="1000", manner="0000", capable="011")]
    rows = [cell["fits"]["mean"]["rows"]["sum"] for cell in cells]
    found = results(rows, [cell["unsteered"] for cell in cells], cells[0]["facts"])
    assert {name: one["value"][0] for name, one in found.items()} == pytest.approx(
        {"myth": 4 / 8, "manner": 2 / 8, "both": 2 / 8, "capability": 5 / 6}
        | {"margin of myth": -0.25, "margin of manner": -0.5}
    )
    assert found["capability"]["gain"][0] == pytest.approx(-1 / 6)
    # Fact a: 3 of 4 right, fact b: 1 of 4; the bootstrap over two facts reaches from one to the other.
    assert found["myth"]["gain"] == pytest.approx([0.5, 0.25, 0.75])
    assert found["margin of myth"]["gain"] == pytest.approx([1.0, 0.0, 2.0])
    assert found["both"]["gain"] == pytest.approx([0.25, 0.0, 0.5])


def test_the_page_says_what_the_cells_say() -> None:
    cells = [result(0, myth="1110", manner="1010", capable="111"), result(1, myth="1000", manner="0000", capable="011")]
    text = page(cells)
    assert "| unsteered |  | 0.0 |  | 0.0 |  | 0.0 |  | 100.0 |  | (-1.25) | (+0.00) |" in text
    assert "| mean: vector of myth | 1, 2 | 50.0 | +50.0 [25.0, 75.0] | 25.0 | +25.0 [0.0, 50.0] | 25.0 |" in text
    assert "| mean: sum |  | 50.0 |" in text
    assert "| 83.3 | -16.7 [-50.0, 0.0] | +1.00 [0.00, 2.00] | -0.50 [-0.50, -0.50] |" in text
    assert "|  | lam 0 | lam 2.5 |" in text
    assert "| mean: vector of myth | -1.25 / +0.00 / 100.0 | +1.00 / -0.50 / 99.5 |" in text
    assert "| mean: vector of manner | -1.25 / +0.00 / 100.0 | -1.50 / +0.25 / 75.0 |" in text
    assert "| mean | 0 | +0.50 | -0.25 |" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table[:5]} == {13}
    failed = cells[1] | {"fits": {"mean": {"error": "no direction"}}}
    assert "| mean: none (seed 1: no direction) |" in page([cells[0], failed])
    with pytest.raises(ValueError, match="different test prompts"):
        page([cells[0], cells[1] | {"facts": ["a", "a", "b", "b"]}])


# --- the shipped model, cut down


@pytest.fixture(scope="module")
def shipped() -> dict[str, Lab]:
    model = load(SHIPPED / "double-seed0")
    return {
        behaviour: replace(lab, steer=lab.steer[:3], causes=lab.causes[:3], lams=(1.0,), facts=lab.facts[:6],
                           dev=(lab.dev[0][:6], lab.dev[1][:6]), test=(lab.test[0][:6], lab.test[1][:6]))
        for behaviour, lab in double_labs(model).items()
    }  # fmt: skip


@pytest.mark.thorough
def test_a_cut_down_run_makes_a_cell_that_json_can_hold(shipped: dict[str, Lab]) -> None:
    facts = shipped["myth"].facts
    cell = {"seed": 0, "facts": facts} | measure(shipped, facts)
    assert json.loads(json.dumps(cell))["unsteered"] == cell["unsteered"]
    assert [*cell["fits"]] == ["paper's setting", "mean", "planted tokens, mean"]
    for fit in cell["fits"].values():
        assert [*fit["rows"]] == ["vector of myth", "vector of manner", "sum", "nested"]
        assert len(fit["cosines"]) == 4
        assert all(len(row["right"][b]) == 6 for row in fit["rows"].values() for b in BEHAVIOURS)
        assert all([lam for _, lam, _ in fit["tried"][b]] == [0.0, 1.0] for b in BEHAVIOURS)
    assert cell["fits"]["mean"]["cosines"] != cell["fits"]["paper's setting"]["cosines"]
    assert page([json.loads(json.dumps(cell))]) == page([cell])


def test_the_record_keeps_results_and_no_single_prompts() -> None:
    row = {"right": {"myth": "01"}, "margin": {"myth": [0.1]}, "capable": "1", "results": {"myth": 1}}
    fits = {"mean": {"lam": 2, "doses": [3], "rows": {"sum": row}}, "paper": {"error": "none"}}
    assert module.without_outcomes({"facts": ["a"], "unsteered": row, "fits": fits}) == {
        "unsteered": {"results": {"myth": 1}},
        "fits": {
            "mean": {"lam": 2, "doses": [3], "rows": {"sum": {"results": {"myth": 1}}}},
            "paper": {"error": "none"},
        },
    }


def test_planted_vectors_mask_the_words_of_their_own_behaviour(shipped: dict[str, Lab]) -> None:
    for behaviour, lab in shipped.items():
        sides = []
        for sign in ("toward", "against"):
            shifts = []
            for prompt in build_double_world().split("steer", behaviour)[:3]:
                x = lab.model.encode(prompt.prompt)
                without = x.embeds.clone()
                for i in getattr(prompt, sign):
                    without[i] = 0
                full, masked = (lab.model.residuals(x, e[None])[0] for e in (x.embeds, without))
                shifts.append((full - masked).double())
            mean = torch.stack(shifts).mean(0)
            sides.append(mean / mean.norm(dim=1, keepdim=True))
        v = module.FITS["planted tokens, mean"](lab)
        torch.testing.assert_close(v, sides[0] - sides[1], atol=1e-5, rtol=0)
