"""What every row of the paper's tables does: the rows of `grains_ref.demo.rows`, baselines, and further settings.

All rows of all tables are named here once; a row that stands in several tables is run once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grains_ref.demo import rows as demo_rows
from grains_ref.demo.lab import Lab
from grains_ref.demo.rows import NEUTRAL, RANDOM_DRAWS, Draws, Row, grains, planted_tokens
from grains_ref.fitting.additions import layer_agreement, less_random
from grains_ref.grains import shift, vectors
from grains_ref.methods import attributions, caa, ict, icv, iti, lora, repe, vti
from grains_ref.methods.core import Setting
from grains_ref.reproduction import decoding_rows, edit_fits, edit_questions, systems
from grains_ref.reproduction.fair_fight import rows_of_the_fight

PROTECT: dict[str, Any] = {"eligible": ("content", "not_last")}
KS = {"text": (1, 2, 3, 5, 7, 10), "visual": (2, 5, 10, 20, 30)}  # figure 6; the paper's own k is the row "GrAInS"
RANDOM_DRAWS_LESS = 3  # of random tokens, whose mean shift is subtracted
LEAST_AGREEMENT = 0.5  # cosine of the vectors of two halves, for a layer to be steered
N_EXAMPLES = (5, 10, 20, 100, 200)  # 50 is the row "GrAInS"


# ------------------------------------------------------------------------------------------- baselines
def _baseline(method: Any, **options: Any) -> Row:
    """A baseline fitted on the steering pairs, with its declared grid."""
    return lambda lab: [method.fit(lab.model, lab.steer, **options).settings(lab.model)]


def _ict(lab: Lab) -> Draws:
    """Both levels where the object's box is known, the image level alone elsewhere."""
    return [ict.fit(lab.model, lab.steer, boxes=lab.boxes).settings(lab.model)]


def _scored_by(name: attributions.Name) -> Row:
    """GrAInS with scores of another attribution, all else as in the paper's setting."""

    def row(lab: Lab) -> Draws:
        shifts = []
        for example in map(lab.example, range(len(lab.steer))):
            f = lab.stages.objective(example, lab.paper)
            scores = attributions.attribute_by(name, lab.model, example, lab.paper, f=f)
            shifts += lab.stages.shifts([example], [scores.a], lab.paper)
        return [lab.strengths("GrAInS", lab.stages.vectors(shifts, lab.paper).v)]

    return row


def _masked_one_at_a_time(lab: Lab) -> Draws:
    """GrAInS with the paper's footnote 4: its tokens are masked one at a time."""
    shifts = []
    for i, example in enumerate(map(lab.example, range(len(lab.steer)))):
        together = lab.shift(lab.paper, i)
        baseline = lab.model.baseline(example.encoded, lab.paper.mask_baseline)
        delta_pos, delta_neg = attributions.contrast_one_at_a_time(lab.model, example, together.selection, baseline)
        shifts.append(replace(together, delta_pos=delta_pos, delta_neg=delta_neg))
    return [lab.strengths("GrAInS", lab.stages.vectors(shifts, lab.paper).v)]


def _examples(n: int, **changes: Any) -> Row:
    return lambda lab: [lab.grains(f"{n} examples", replace(lab.paper, **changes), n=n)]


# ------------------------------------------------------- what might rescue the paper's idea (fitting.additions)
def _less_random(**changes: Any) -> Row:
    """GrAInS with these changes, its shifts less those of as many random tokens."""

    def row(lab: Lab) -> Draws:
        hp = replace(lab.paper, **changes)
        examples = range(len(lab.steer))
        shifts = [lab.shift(hp, i) for i in examples]
        corrected = less_random(lab.model, [lab.example(i) for i in examples], shifts, hp, draws=RANDOM_DRAWS_LESS)
        return [lab.strengths("less random tokens", lab.stages.vectors(corrected, hp).v)]

    return row


def _agreeing_layers(lab: Lab) -> Draws:
    """GrAInS at the layers whose halves agree; unsteered where none does."""
    shifts = [lab.shift(lab.paper, i) for i in range(len(lab.steer))]
    agreement = layer_agreement(shifts, lab.paper)
    layers = [layer for layer, cosine in enumerate(agreement) if cosine >= LEAST_AGREEMENT]
    if not layers:
        return [[]]
    label = "layers " + ", ".join(str(layer) for layer in layers)
    return [lab.strengths(label, lab.fit(lab.paper).v, layers=layers)]


# ---------------------------------------------------------------- does the direction matter: controls, not methods
def _reversed(**changes: Any) -> Row:
    """GrAInS with these changes, its vector with the other sign."""
    return lambda lab: [lab.strengths("reversed", -lab.fit(replace(lab.paper, **changes)).v)]


def _without_planted_part(**changes: Any) -> Row:
    """GrAInS with these changes, less what lies in the plane of the planted tokens' two mean shifts; same length."""

    def row(lab: Lab) -> Draws:
        v = lab.fit(replace(lab.paper, **changes)).v  # (L, d)
        plane = planted_plane(lab)  # (L, d, 2)
        rest = v - torch.einsum("lde,lfe,lf->ld", plane, plane, v)
        return [lab.strengths("the rest", rest * v.norm(dim=1, keepdim=True) / rest.norm(dim=1, keepdim=True))]

    return row


def planted_plane(lab: Lab) -> Tensor:
    """An orthonormal basis (L, d, 2) of the mean shifts, positive and negative, of the planted tokens."""
    shifts = lab.planted_shifts()
    pos = torch.stack([of_example.delta_pos for of_example in shifts]).double().mean(0)
    neg = torch.stack([of_example.delta_neg for of_example in shifts]).double().mean(0)
    return torch.linalg.qr(torch.stack([pos, neg], dim=2)).Q


def _gaussian(lab: Lab) -> Draws:
    """Random directions, in every layer as long as GrAInS's vector."""
    v = lab.fit(lab.paper).v
    draws = []
    for draw in range(RANDOM_DRAWS):
        noise = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(draw))
        noise *= v.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        draws.append(lab.strengths(f"draw {draw}", noise))
    return draws


def _layer(block: int) -> Row:
    return lambda lab: [lab.strengths(f"layer {block}", lab.fit(lab.paper).v, layers=[block])]


def _greedy_layers(lab: Lab) -> Draws:
    """The set of layers that grows by whichever layer raises dev accuracy most, until none does."""
    v = lab.fit(lab.paper).v
    chosen: list[int] = []
    best, settings = -1.0, list[Setting]()
    while len(chosen) < len(v):
        tried = []
        for layer in sorted(set(range(len(v))) - set(chosen)):
            layers = sorted([*chosen, layer])
            label = "layers " + ", ".join(str(i) for i in layers)
            grid = lab.strengths(label, v, layers=layers)
            choice = lab.bench.choose(grid)
            tried.append((choice.accuracy, -layer, grid))
        accuracy, layer, grid = max(tried, key=lambda candidate: candidate[:2])
        if accuracy <= best:
            break
        best, settings = accuracy, grid
        chosen.append(-layer)
    return [settings]


def _graded_in_log_alpha(m: int) -> Row:
    """Integrated Gradients with nodes equally spaced in log(alpha)."""

    def row(lab: Lab) -> Draws:
        shifts = []
        for example in map(lab.example, range(len(lab.steer))):
            f, x = lab.stages.objective(example, lab.paper), example.encoded.embeds
            scores = log_graded_scores(f, x, m=m)
            shifts.append(shift(lab.model, example, scores, lab.paper))
        return [lab.strengths("log-graded nodes", vectors(shifts, lab.paper).v)]

    return row


def log_graded_scores(f: Callable[[Tensor], Tensor], x: Tensor, *, m: int, start: float = 1e-3) -> Tensor:
    r"""Equation (2) with a zero baseline after the substitution alpha = exp(u): scores (T,) in nats.

        int_start^1 g(alpha) d alpha = int_{log start}^0 g(exp u) exp(u) du,  midpoint rule with m nodes in u

    x: (T, d).  Below `start` nothing is counted.  With a zero baseline RMSNorm hides the common scale of x, and almost
    all of f's change lies at small alpha, where equally spaced nodes never look.
    """
    width = -math.log(start) / m
    alpha = torch.tensor([math.exp(math.log(start) + (j + 0.5) * width) for j in range(m)])[:, None, None].to(x)
    points = (alpha * x).requires_grad_()  # (m, T, d)
    with torch.enable_grad():
        (gradients,) = torch.autograd.grad(f(points).sum(), points)
    return (x * (width * alpha * gradients).sum(0)).sum(-1)


# ------------------------------------------------------------------------------------------------ all
CANDIDATES: dict[str, dict[str, Any]] = {  # docs/reproduction_rules.md, "the hypothesis"
    "protect": PROTECT,
    "protect + mean": PROTECT | {"aggregation": "mean"},
    "neutral + mean": {"path_baseline": NEUTRAL, "aggregation": "mean"},
    "protect + neutral": PROTECT | {"path_baseline": NEUTRAL},
    "protect + neutral + mean": PROTECT | {"path_baseline": NEUTRAL, "aggregation": "mean"},
}

EDITS: dict[str, Row] = {  # where the edit gradient edits; the grid is `edit_gradient.LAMS` for all
    "edit gradient, residual, all": edit_fits.row("residual", "all"),
    "edit gradient, attention output, all": edit_fits.row("attention_output", "all"),
    "edit gradient, attention output, after": edit_fits.row("attention_output", "after_prompt"),
    "edit gradient, heads, after": edit_fits.row("heads", "after_prompt"),
    "edit gradient, MLP, after": edit_fits.row("mlp", "after_prompt"),
    "edit gradient, residual, after": edit_fits.row("residual", "after_prompt"),
    "edit gradient, heads, all": edit_fits.row("heads", "all"),
    "edit gradient, MLP, all": edit_fits.row("mlp", "all"),
}

SHARED: dict[str, Row] = {
    "unsteered": demo_rows.unsteered,
    "LoRA, the paper's setting": _baseline(lora, learning_rates=lora.PAPER),
    "LoRA, tuned": _baseline(lora, learning_rates=lora.LEARNS),
    "ICV": _baseline(icv),
    "CAA": _baseline(caa),
    "CAA, read at the difference": _baseline(caa, read="difference"),
}
SHARED |= demo_rows.TEXT
SHARED |= {
    "likelihood objective": grains(objective="likelihood"),
    "path baseline: mean embedding": grains(path_baseline="mean"),
    "path baseline: neutral word": grains(path_baseline=NEUTRAL),
    "mask: mean embedding": grains(mask_baseline="mean"),
    "mask: neutral word": grains(mask_baseline=NEUTRAL),
    "GrAInS, reversed": _reversed(),
    "GrAInS, without its planted part": _without_planted_part(),
    "mean, reversed": _reversed(aggregation="mean"),
    "mean, without its planted part": _without_planted_part(aggregation="mean"),
    "planted tokens, mean, reversed": planted_tokens(sign=-1, aggregation="mean"),
    "Gaussian vectors": _gaussian,
}
SHARED |= {
    "less random tokens": _less_random(),
    "less random tokens, mean": _less_random(aggregation="mean"),
    "agreeing layers": _agreeing_layers,
}
SHARED |= {
    "Guided IG": _scored_by("guided_ig"),
    "Guided IG, wide band": _scored_by("guided_ig_wide"),
    "SHAP": _scored_by("shapley"),
    "KernelSHAP": _scored_by("kernel_shap"),
    "occlusion": _scored_by("occlusion"),
    "occlusion in pairs": _scored_by("occlusion_pairs"),
    "occlusion of all pairs": _scored_by("occlusion_all_pairs"),
    "masked one at a time": _masked_one_at_a_time,
}
SHARED |= {name: grains(**changes) for name, changes in CANDIDATES.items()}
SHARED |= EDITS
SHARED |= edit_questions.ROWS

TEXT: dict[str, Row] = SHARED | {
    "ITI": _baseline(iti, probe="linear"),
    "NL-ITI": _baseline(iti, probe="mlp"),
    "RepE": _baseline(repe),
    "weighted mean": grains(aggregation="weighted_mean"),
    "2 components": grains(components=2),
    "3 components": grains(components=3),
    "4 components": grains(components=4),
    "not the last token": grains(eligible=("not_last",)),
    "no special tokens": grains(eligible=("no_special",)),
    "path and mask: neutral word": grains(path_baseline=NEUTRAL, mask_baseline=NEUTRAL),
    "m = 1": grains(m=1),
    "m = 2": grains(m=2),
    "m = 10": grains(m=10),
    "m = 20": grains(m=20),
    "m = 50": grains(m=50),
    "m = 5, midpoint": grains(quadrature="midpoint"),
    "m = 5, Gauss-Legendre": grains(quadrature="gauss_legendre"),
    "m = 5, log-graded": _graded_in_log_alpha(5),
    "m = 10, log-graded": _graded_in_log_alpha(10),
    "layer 0": _layer(0),
    "layer 1": _layer(1),
    "layer 2": _layer(2),
    "layer 3": _layer(3),
    "greedy set of layers": _greedy_layers,
}
TEXT |= rows_of_the_fight(is_visual=False)
TEXT |= systems.TEXT
TEXT |= {f"k = {k}": grains(k=k) for k in KS["text"] if k != 3}
TEXT |= {f"{n} examples": _examples(n) for n in N_EXAMPLES}
TEXT |= {f"{n} examples, mean": _examples(n, aggregation="mean") for n in N_EXAMPLES if n not in (10, 100)}

VISUAL: dict[str, Row] = SHARED | demo_rows.VISUAL
VISUAL |= {
    "VTI": _baseline(vti),
    "ICT": _ict,
    "layer 0": _layer(0),
    "layer 1": _layer(1),
    "layer 2": _layer(2),
}
VISUAL |= rows_of_the_fight(is_visual=True)
VISUAL |= decoding_rows.ROWS
VISUAL |= systems.VISUAL
VISUAL |= {f"k = {k}": grains(k=k) for k in KS["visual"] if k != 20}


def rows_of(*, is_visual: bool) -> dict[str, Row]:
    """Every row of a text world or of a visual world, by name."""
    return VISUAL if is_visual else TEXT
