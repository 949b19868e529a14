"""What a pass need not compute where only the last tokens of every sequence are read.

Behind the last block's attention no token sees another.  So there

    the MLP and the attention's last matrix     are given the last n tokens; zeros stand for the others behind them
    the output layer                            is given one token; what it should have been given is kept for
                                                `grains_ref.models.vocabulary`, which makes no tensor of tokens x V

by hooks, with the model's own modules.  Whether a model is made so is tried on the first prompt: a part that does not
treat each token alone, or an output layer whose logits are still scaled or capped, is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from grains_ref.grains import Encoded, Hooks, at_least_float32
from grains_ref.models import vocabulary
from grains_ref.models.replay import padded_replay, run

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

PER_TOKEN = ("mlp", "self_attn.o_proj")  # parts of the last block that may treat each token alone
CLOSE = 1e-2  # of its length; a part that mixes tokens is off by about its whole output


class Shortcuts(NamedTuple):
    """What of a model can be spared."""

    per_token: tuple[nn.Module, ...] = ()
    head: nn.Linear | None = None

    def log_probs(self, states: Tensor, which: Tensor, tokens: Tensor) -> Tensor:
        """log P of M tokens, (M,) nats in float32 or wider; token m is predicted by the state `which[m]`.

        states: (N, d) that enter the output layer, or (N, V) logits where they cannot be spared; see `OnlyLast`.
        """
        which, tokens = which.to(states.device), tokens.to(states.device)
        if self.head is not None:
            return vocabulary.log_probs(states, self.head.weight, self.head.bias, which, tokens)
        return states.to(at_least_float32(states)).log_softmax(-1)[which, tokens]


def shortcuts_of(model: HuggingFaceModel, encoded: Encoded, embeds: Tensor) -> Shortcuts:
    """Run one prompt of at least two tokens, (T, d), and see what its parts do."""
    last_block = model.blocks[-1]
    parts = [part for name, part in last_block.named_modules() if name in PER_TOKEN]
    head = model.hf.get_output_embeddings()
    seen: dict[nn.Module, list[tuple[Any, Any]]] = {}

    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.setdefault(module, []).append((args, output))

    replay = padded_replay([encoded.replay], device=model.device)
    with torch.no_grad():
        with Hooks([(module, look) for module in (*parts, head) if module is not None]):
            out = run(model, embeds.detach()[None], replay, logits_to_keep=1, use_cache=False)
        per_token = tuple(part for part in parts if _treats_tokens_alone(part, seen.get(part, [])))
    is_last = _is_plain(head) and len(seen.get(head, [])) == 1 and torch.equal(seen[head][0][1], out.logits)
    return Shortcuts(per_token, head if is_last else None)


def _treats_tokens_alone(part: nn.Module, calls: list[tuple[Any, Any]]) -> bool:
    """Whether the last of several tokens gets alone what it gets among the others."""
    if len(calls) != 1:
        return False
    (args, output) = calls[0]
    if len(args) != 1 or not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != args[0].shape[:2]:
        return False
    alone, among_others = part(args[0][:, -1:]), output[:, -1:]
    return bool((alone - among_others).norm() <= CLOSE * among_others.norm())


def _is_plain(head: nn.Module | None) -> bool:
    """Whether it is a matrix that lies here in one piece, not quantised, spread or loaded when it is called."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return False
    return head.weight.is_floating_point() and not head.weight.is_meta


class OnlyLast(Hooks):
    """Runs inside compute the last n tokens of every sequence as they should be, and others only as far as needed.

    with OnlyLast(shortcuts, 3) as last:
        out = model.hf(..., logits_to_keep=3)
    states = last.states(out)  # (B, 3, d), or (B, 3, V); for `Shortcuts.log_probs`
    """

    def __init__(self, shortcuts: Shortcuts, n: int) -> None:
        self._n = n
        self._lengths: dict[nn.Module, int] = {}
        self._entered: Tensor | None = None
        before: list[tuple[nn.Module, Callable[..., Any]]] = [(part, self._shorten) for part in shortcuts.per_token]
        if shortcuts.head is not None:
            before.append((shortcuts.head, self._keep))
        super().__init__([(part, self._lengthen) for part in shortcuts.per_token], before=before)

    def states(self, out: Any) -> Tensor:
        """What entered the output layer, or the logits."""
        states: Tensor = out.logits if self._entered is None else self._entered
        return states[:, -self._n :]

    def _shorten(self, part: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._lengths[part] = args[0].shape[1]
        return (args[0][:, -self._n :], *args[1:]), kwargs

    def _lengthen(self, part: nn.Module, args: Any, output: Tensor) -> Tensor:
        return nn.functional.pad(output, (0, 0, self._lengths[part] - output.shape[1], 0))

    def _keep(self, head: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._entered = args[0]
        return (args[0][:1, :1], *args[1:]), kwargs
