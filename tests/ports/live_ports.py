"""Ports for the live check: the reference itself, and GrAInS on transformers alone, right or with a fault.

Used on tiny models (tests/conformance/test_live.py), shrunken ones (tests/models/test_ladder.py) and full-size ones
(tests/gpu).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.live import FUNCTIONS, fingerprint, reference
from grains_ref.data import PreferencePair
from grains_ref.grains import aggregate, combine, select, steer_hidden
from grains_ref.models import HuggingFaceModel


def reference_port() -> SimpleNamespace:
    """The reference itself."""

    def as_pair(prompt: Any, chosen: str, rejected: str, image: Any = None) -> PreferencePair:
        return PreferencePair("", prompt, chosen, rejected, "", image)

    def live_selection(handle: HuggingFaceModel, a: np.ndarray, eligible: np.ndarray, k: int) -> dict[str, Any]:
        return vars(select(torch.from_numpy(a), k=k, eligible=torch.from_numpy(eligible)))

    def live_aggregation(handle: HuggingFaceModel, delta_pos: np.ndarray, delta_neg: np.ndarray) -> dict[str, Tensor]:
        v_pos, v_neg = (aggregate(torch.from_numpy(deltas)).v for deltas in (delta_pos, delta_neg))
        return {"v_pos": v_pos, "v_neg": v_neg, "v": combine(v_pos, v_neg)}

    def live_edit(handle: HuggingFaceModel, h: np.ndarray, v: np.ndarray, lam: float) -> Tensor:
        return steer_hidden(torch.from_numpy(h).to(handle.hf.dtype), torch.from_numpy(v), lam=lam)

    def live_batch(handle: HuggingFaceModel, *lists: Any, images: Sequence[Any] = ()) -> list[Any]:
        rows = zip(*lists, images or [None] * len(lists[0]), strict=True)
        return [reference.objective_of(handle, as_pair(*row)) for row in rows]

    return SimpleNamespace(
        live_objective=lambda h, p, c, r, image=None: reference.objective_of(h, as_pair(p, c, r, image)),
        live_attribution=lambda h, p, c, r, m, image=None: reference.attribution_of(h, as_pair(p, c, r, image), m=m)[
            "a"
        ],
        live_contrast=lambda h, p, c, r, pos, neg, image=None: reference.contrast_of(
            h, as_pair(p, c, r, image), pos=pos, neg=neg
        ),
        live_steer=lambda h, p, c, r, v, lam, image=None: reference.steer_of(h, as_pair(p, c, r, image), v=v, lam=lam)[
            "logits"
        ],
        live_aggregation=live_aggregation,
        live_selection=live_selection,
        live_edit=live_edit,
        live_batch=live_batch,
    )


class PlainPort:
    """GrAInS on transformers alone, as someone else would write it; `wrong` names a fault.

    Ids in, whole sequences, a batch padded on the right for scores, all nodes of the path at once, `hidden_states`.
    """

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def ids(self, model: HuggingFaceModel, prompt: str, *answers: str) -> list[Tensor]:
        bos = model.tokenizer.bos_token or ""
        start = self.tokens(model, bos + prompt)
        if self.wrong == "no_bos":
            start = self.tokens(model, prompt)
        return [start, *(self.answer_tokens(model, answer) for answer in answers)]

    def answer_tokens(self, model: HuggingFaceModel, answer: str) -> Tensor:
        alone = self.tokens(model, answer)
        has_space = model.tokenizer.convert_ids_to_tokens(int(alone[0])).startswith("\u2581")  # as SentencePiece adds
        return alone if has_space else self.tokens(model, " " + answer)

    @staticmethod
    def tokens(model: HuggingFaceModel, text: str) -> Tensor:
        return torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"], device=model.device)

    def scores(self, model: HuggingFaceModel, prompts: list[Tensor], answers: list[Tensor]) -> Tensor:
        rows = [torch.cat(both) for both in zip(prompts, answers, strict=True)]
        n = max(map(len, rows))
        batch = torch.stack([torch.nn.functional.pad(row, (0, n - len(row))) for row in rows])
        log_p = model.hf(input_ids=batch).logits.float().log_softmax(-1)
        late = self.wrong == "one_late"
        return torch.stack([
            log_p[i, len(p) - 1 + late : len(p) - 1 + late + len(y)].gather(1, y[:, None]).sum()
            for i, (p, y) in enumerate(zip(prompts, answers, strict=True))
        ])  # fmt: skip

    def of_answer(self, logits: Tensor, n_prompt: int) -> Tensor:
        """The rows (..., R, V) that predict the tokens behind the prompt, of logits of both."""
        return logits[..., n_prompt:, :] if self.wrong == "one_late" else logits[..., n_prompt - 1 : -1, :]

    @torch.no_grad()
    def live_objective(self, model: HuggingFaceModel, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
        start, *answers = self.ids(model, prompt, chosen, rejected)
        pos, neg = self.scores(model, [start, start], answers)
        return {"log_p_pos": pos.item(), "log_p_neg": neg.item(), "f": (pos - neg).item()}

    @torch.no_grad()
    def live_batch(self, model: HuggingFaceModel, prompts: list[str], chosen: list[str], rejected: list[str]) -> Any:
        starts = [self.ids(model, prompt)[0] for prompt in prompts]
        pos, neg = (
            self.scores(model, starts, [self.answer_tokens(model, y) for y in side]) for side in (chosen, rejected)
        )
        if self.wrong == "left_padding_attended":
            starts = [torch.nn.functional.pad(s, (max(map(len, starts)) - len(s), 0)) for s in starts]
            pos = self.scores(model, starts, [self.answer_tokens(model, y) for y in chosen])
        return [{"log_p_pos": p, "log_p_neg": n, "f": p - n} for p, n in zip(pos, neg, strict=True)]

    def live_attribution(self, model: HuggingFaceModel, prompt: str, chosen: str, rejected: str, m: int) -> Tensor:
        start, *answers = self.ids(model, prompt, chosen, rejected)
        x, f = model.embed(start), 0.0
        points = (torch.arange(1, m + 1).to(x)[:, None, None] / m * x).requires_grad_()
        for sign, y in zip((1, -1), answers[:1] if self.wrong == "one_branch" else answers, strict=False):
            inputs = torch.cat([points, model.embed(y).expand(m, -1, -1)], 1)
            logits = model.hf(inputs_embeds=inputs).logits
            log_p = self.of_answer(logits, len(start)).float().log_softmax(-1)
            f = f + sign * log_p.gather(2, y.expand(m, -1)[..., None]).sum()
        (gradient,) = torch.autograd.grad(f, points)  # type: ignore[arg-type]
        gradient = gradient.float()
        return gradient.mean(0).sum(-1) if self.wrong == "not_times_input" else (gradient.mean(0) * x).sum(-1)

    @torch.no_grad()
    def live_contrast(
        self, model: HuggingFaceModel, prompt: str, chosen: str, rejected: str, pos: list[int], neg: list[int]
    ) -> dict[str, Any]:
        x = model.embed(self.ids(model, prompt)[0])

        def states(tokens: list[int]) -> Tensor:
            masked = x.clone()
            masked[tokens] = 0
            kept: list[Tensor] = []
            hook = model.blocks[-1].register_forward_hook(
                lambda block, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
            )
            found = model.hf(inputs_embeds=masked[None], output_hidden_states=True).hidden_states
            hook.remove()
            last = found[-1] if self.wrong == "normed" else kept[0]
            return torch.stack([h[0, -1] for h in (*found[1:-1], last)])

        return {"delta_pos": states([]) - states(pos), "delta_neg": states([]) - states(neg)}

    def live_aggregation(
        self, model: HuggingFaceModel, delta_pos: np.ndarray, delta_neg: np.ndarray
    ) -> dict[str, np.ndarray]:
        v_pos, v_neg = (
            np.stack([self.component(D) for D in deltas.swapaxes(0, 1)]) for deltas in (delta_pos, delta_neg)
        )
        return {"v_pos": v_pos, "v_neg": v_neg, "v": v_pos + v_neg if self.wrong == "sides_added" else v_pos - v_neg}

    def component(self, D: np.ndarray) -> np.ndarray:
        """The first principal direction of one layer's shifts (N, d), by eigenvectors of the Gram matrix in float32."""
        mean = D.mean(0)
        rows = D if self.wrong == "uncentred" else D - mean
        u = np.linalg.eigh(rows @ rows.T)[1][:, -1] @ rows
        u = u / np.linalg.norm(u)
        return u if self.wrong == "sign_as_it_comes" or u @ mean > 0 else -u

    @torch.no_grad()
    def live_steer(
        self, model: HuggingFaceModel, prompt: str, chosen: str, rejected: str, v: np.ndarray, lam: float
    ) -> Tensor:
        start, y = self.ids(model, prompt, chosen)
        lam = 1.0 if self.wrong == "zero_replaced" and lam == 0 else lam
        vectors = torch.from_numpy(v).to(model.device)
        if self.wrong == "v_normalised" and vectors.any():
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)

        def hook(i: int) -> Callable[..., Any]:
            def edit(block: Any, args: Any, out: Any) -> Any:
                h = out[0] if isinstance(out, tuple) else out
                steered = self.edit(h, vectors[i], lam)
                return (steered, *out[1:]) if isinstance(out, tuple) else steered

            return edit

        layers = [len(model.blocks) - 1] if self.wrong == "last_layer" else range(len(model.blocks))
        hooks = [model.blocks[i].register_forward_hook(hook(i)) for i in layers]
        try:
            logits = model.hf(input_ids=torch.cat([start, y])[None]).logits[0]
        finally:
            for one in hooks:
                one.remove()
        return self.of_answer(logits, len(start))

    def edit(self, h: Tensor, v: Tensor, lam: float) -> Tensor:
        axis = 1 if self.wrong == "norm_over_sequence" else -1
        moved = h.float() + lam * v
        return (moved * (h.float().norm(dim=axis, keepdim=True) / moved.norm(dim=axis, keepdim=True))).to(h.dtype)

    def live_edit(self, model: HuggingFaceModel, h: np.ndarray, v: np.ndarray, lam: float) -> Tensor:
        return self.edit(torch.from_numpy(h).float(), torch.from_numpy(v), lam)

    def live_selection(self, model: HuggingFaceModel, a: np.ndarray, eligible: np.ndarray, k: int) -> dict[str, Any]:
        allowed = np.ones_like(eligible) if self.wrong == "padding_selected" else eligible
        order = [int(j) for j in np.argsort(a) if allowed[j]]
        return {"pos": [j for j in order[::-1] if a[j] > 0][:k], "neg": [j for j in order if a[j] < 0][:k]}


def with_fingerprints(port: Any, *, rows: bool) -> Any:
    """A port whose large results are fingerprints: one per row, or one for all."""

    def brief(array: Any) -> Any:
        return [fingerprint(row) for row in array] if rows else fingerprint(array)

    def live_contrast(*arguments: Any, **image: Any) -> dict[str, Any]:
        return {name: brief(delta) for name, delta in port.live_contrast(*arguments, **image).items()}

    known = {name: getattr(port, name) for name in FUNCTIONS if hasattr(port, name)}
    shortened = {
        "live_contrast": live_contrast,
        "live_steer": lambda *arguments, **image: brief(port.live_steer(*arguments, **image)),
    }
    return SimpleNamespace(**known | shortened)
