r"""What an edit does to attention: mass on the planted lure, and how much of its effect goes by way of the patterns.

With A the attention patterns of all heads and blocks (eager attention), f of eq. (1), and e an edit:

    f_0        plain                f_e        edited
    f_frozen   edited, A as in the plain run          f_swapped  plain, A as in the edited run

    share by way of the patterns   (f_e - f_frozen) / (f_e - f_0)  and  (f_swapped - f_0) / (f_e - f_0)

A run with given patterns puts A V in the place of each block's heads, V from its own value projection.

Asked of the first dev prompt about each fact.  A cell holds, by edit, the means over prompts of `f_0`, `f_e`,
`f_frozen`, `f_swapped` in nats and of `lure`, the mass on the lure by block and head, (L, K), in the edited run; at the
tokens that predict the chosen answer.  `plain` has the mass without an edit, and `gradient` each head's share of the
squared length of the edit gradient at the site `heads`.  `places` has f less f_0 where the edit at the attention's
output acts only at some tokens: the lure, the evidence for the truth, those from the prompt's last on, the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from grains_ref.demo.lab import Lab
from grains_ref.grains import Example, Hooks, Selection, log_prob
from grains_ref.methods.any_site import scaled_to_state
from grains_ref.methods.core import at_site, n_heads
from grains_ref.methods.edit_gradient import steer
from grains_ref.models import HuggingFaceModel
from grains_ref.models.blocks import part_of
from grains_ref.reproduction.edit_fits import fitted
from grains_ref.reproduction.edit_questions import POSITIONS, SITE, beginning, gaussian_direction

N_PROMPTS = 40  # the first of each dev fact
LAM = 0.1  # at the attention's output
LAM_RESIDUAL = 0.05


def attention(lab: Lab) -> dict[str, Any]:
    """The cell of one model."""
    examples = [
        lab.model.example(pair.prompt, pair.chosen, pair.rejected, pair.image) for pair in lab.dev[0][:N_PROMPTS]
    ]
    lures = [causes.neg for causes in lab.dev_causes[:N_PROMPTS]]
    cell: dict[str, Any] = {"gradient": _shares_of_heads(lab), "edits": {}}
    with eager(lab.model):
        plain = [_patterns(lab.model, example, nullcontext()) for example in examples]
        cell["plain"] = _mean_mass(plain, examples, lures)
        for name, edit in _edits(lab).items():
            measured = [_effects(lab.model, example, edit, own) for example, own in zip(examples, plain, strict=True)]
            edited = [patterns for _, patterns in measured]
            effects = {key: sum(f[key] for f, _ in measured) / len(measured) for key in measured[0][0]}
            cell["edits"][name] = effects | {"lure": _mean_mass(edited, examples, lures)}
    cell["places"] = _places(lab, examples)
    return cell


def _places(lab: Lab, examples: Sequence[Example]) -> dict[str, float]:
    """By the tokens where the edit acts, the mean change of f in nats."""
    v = LAM * scaled_to_state(beginning(lab).g, beginning(lab).scale)
    changes: dict[str, list[float]] = {}
    for example, causes in zip(examples, lab.dev_causes, strict=False):
        plain = preference(lab.model, example)
        for name, where in places(example, causes).items():
            with at_tokens(lab.model, v, where):
                changes.setdefault(name, []).append(preference(lab.model, example) - plain)
    return {name: sum(of_prompts) / len(of_prompts) for name, of_prompts in changes.items()}


def places(example: Example, causes: Selection) -> dict[str, Callable[[int], bool]]:
    """Which tokens belong where; every token of prompt and answer belongs to one place."""
    last = len(example.encoded.ids) - 1
    evidence = {*causes.neg, *causes.pos, *range(last, last + 1 + max(len(example.y_pos), len(example.y_neg)))}
    return {
        "the lure": lambda t: t in causes.neg,
        "evidence for the truth": lambda t: t in causes.pos,
        "from the last prompt token on": lambda t: t >= last,
        "the others": lambda t: t not in evidence,
    }


def at_tokens(model: HuggingFaceModel, v: Tensor, where: Callable[[int], bool]) -> Hooks:
    """Hooks that add v (L, d) at the attention's output of these tokens only, in a run without a cache."""

    def adding(block: int) -> Callable[[Tensor], Tensor]:
        def added(x: Tensor) -> Tensor:  # (1, n, d)
            chosen = torch.tensor([t for t in range(x.shape[1]) if where(t)], device=x.device).long()
            return x.index_copy(1, chosen, x[:, chosen] + v[block].to(x))

        return added

    after, before = at_site(model, SITE, {block: adding(block) for block in range(len(model.blocks))})
    return Hooks(after, before=before)


def _edits(lab: Lab) -> dict[str, AbstractContextManager[object]]:
    start, model = beginning(lab), lab.model
    noise = scaled_to_state(gaussian_direction(start.g, 0), start.scale)
    residual = fitted(lab, "residual", POSITIONS)
    at_attention = scaled_to_state(start.g, start.scale)
    return {
        "attention output": steer(model, at_attention, site=SITE, positions=POSITIONS, lam=LAM),
        "residual": residual.steering(model, lam=LAM_RESIDUAL),
        "Gaussian, attention output": steer(model, noise, site=SITE, positions=POSITIONS, lam=LAM),
    }


def _shares_of_heads(lab: Lab) -> list[list[float]]:
    """Each head's share of |g|^2 at the heads' outputs, (L, K)."""
    v = fitted(lab, "heads", POSITIONS).v
    squares = v.unflatten(1, (n_heads(lab.model), -1)).square().sum(-1)
    shares: list[list[float]] = (squares / squares.sum()).tolist()
    return shares


# ------------------------------------------------------------------------------------------- patterns
Patterns = dict[str, list[Tensor]]  # "pos" and "neg", the answer that follows -> A of every block, (1, K, n, n)


@contextmanager
def eager(model: HuggingFaceModel) -> Iterator[None]:
    """Attention that returns its patterns, while entered."""
    before = model.text_config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)


def _effects(
    model: HuggingFaceModel, example: Example, edit: AbstractContextManager[object], plain: Patterns
) -> tuple[dict[str, float], Patterns]:
    """f in the four runs, nats, and the edited run's patterns."""
    edited = _patterns(model, example, edit)
    effects = {"f_0": preference(model, example)}
    with edit:
        effects["f_e"] = preference(model, example)
        effects["f_frozen"] = preference(model, example, plain)
    effects["f_swapped"] = preference(model, example, edited)
    return effects, edited


@torch.no_grad()
def preference(
    model: HuggingFaceModel, example: Example, patterns: Mapping[str, Sequence[Tensor]] | None = None
) -> float:
    """f of one example, nats; with the given attention patterns if there are some."""
    f = []
    for name, y in (("pos", example.y_pos), ("neg", example.y_neg)):
        with nullcontext() if patterns is None else given_patterns(model, patterns[name]):
            f.append(log_prob(model, example.encoded, example.encoded.embeds[None], y=y).item())
    return f[0] - f[1]


@torch.no_grad()
def _patterns(model: HuggingFaceModel, example: Example, edit: AbstractContextManager[object]) -> Patterns:
    """The patterns of both answers' runs."""
    patterns: Patterns = {}
    for name, y in (("pos", example.y_pos), ("neg", example.y_neg)):
        seen: list[Tensor] = []

        def see(module: nn.Module, args: Any, output: Any, seen: list[Tensor] = seen) -> None:
            seen.append(output[1].detach())

        with edit, Hooks([(part_of(block, "self_attn"), see) for block in model.blocks]):
            log_prob(model, example.encoded, example.encoded.embeds[None], y=y)
        patterns[name] = seen
    return patterns


def given_patterns(model: HuggingFaceModel, patterns: Sequence[Tensor]) -> Hooks:
    """Hooks that put A V in the place of the heads' outputs of every block.

    patterns: of every block, (1, K, n, n).
    """
    values: dict[int, Tensor] = {}  # of the run so far, by block

    def keeping(block: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            values[block] = output

        return keep

    def replacing(block: int) -> Any:
        def replaced(heads: Tensor) -> Tensor:  # (1, n, K * d_h)
            a = patterns[block]
            n_all = a.shape[1]
            v = values[block].unflatten(-1, (-1, heads.shape[-1] // n_all)).transpose(1, 2)  # (1, K of values, n, d_h)
            v = v.repeat_interleave(n_all // v.shape[1], dim=1)
            return (a @ v).transpose(1, 2).flatten(2)

        return replaced

    blocks = range(len(model.blocks))
    _, before = at_site(model, "heads", {block: replacing(block) for block in blocks})
    after = [(part_of(model.blocks[block], "self_attn.v_proj"), keeping(block)) for block in blocks]
    return Hooks(after, before=before)


def _mean_mass(
    patterns: Sequence[Patterns], examples: Sequence[Example], lures: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Attention on the lure from the tokens that predict the chosen answer, by block and head, mean over prompts."""
    masses = []
    for of_prompt, example, lure in zip(patterns, examples, lures, strict=True):
        a = torch.cat(of_prompt["pos"])  # (L, K, n, n)
        masses.append(lure_mass(a, first=len(example.encoded.ids) - 1, lure=lure))
    means: list[list[float]] = torch.stack(masses).mean(0).tolist()
    return means


def lure_mass(a: Tensor, *, first: int, lure: Sequence[int]) -> Tensor:
    """The sum over the lure's tokens, mean over the tokens from `first` on: (L, K, n, n) -> (L, K)."""
    return a[:, :, first:][..., list(lure)].sum(-1).mean(-1)
