r"""Log-probabilities of single tokens, with the vocabulary in parts: no tensor of tokens x vocabulary is made.

For a state h that enters the output layer with rows W_v and biases b_v,

    log P(t) = z_t - log sum_v exp(z_v)        z_v = W_v h + b_v
    d log P(t) / dh = W_t - sum_v p_v W_v      p_v = exp(z_v) / sum_w exp(z_w)

The sum of exponentials and the mean of W under p are gathered part by part, relative to the largest z so far.  What
stays for the backward pass is one vector of the model's width for each state, where a softmax would keep one of the
vocabulary's size; and as both sums come from the same z, nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grains_ref.grains import at_least_float32

LOGITS_AT_ONCE = 1 << 22  # numbers; 16 MiB in float32
LEAST_PART = 1 << 10  # tokens of the vocabulary, however many states there are


def log_probs(states: Tensor, weight: Tensor, bias: Tensor | None, which: Tensor, tokens: Tensor) -> Tensor:
    """log P of M tokens, (M,) nats in float32 or wider; token m is predicted by the state `which[m]`.

    states: (N, d), through which a gradient flows, once.  weight: (V, d) and bias: (V,) of the output layer, through
    which none flows.  which: (M,) numbers of states.  tokens: (M,) ids.
    """
    log_p: Tensor = _LogProbs.apply(states, weight, bias, which, tokens)
    return log_p


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, which: Tensor, tokens: Tensor) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        wide = at_least_float32(states)
        largest = states.new_full((len(states),), torch.finfo(wide).min, dtype=wide)  # z so far
        total = torch.zeros_like(largest)  # sum of exp(z - largest)
        mean = torch.zeros_like(states, dtype=wide) if needs_gradient else None  # of W, times total
        chosen = torch.zeros(tokens.shape, dtype=wide, device=states.device)  # z of the tokens
        size = max(LEAST_PART, LOGITS_AT_ONCE // max(1, len(states)))
        for start in range(0, len(weight), size):
            part = weight[start : start + size]
            z = nn.functional.linear(states, part, None if bias is None else bias[start : start + size]).to(wide)
            column = tokens - start
            is_here = (column >= 0) & (column < len(part))
            chosen = torch.where(is_here, z[which, column.clamp(0, len(part) - 1)], chosen)
            before, largest = largest, torch.maximum(largest, z.amax(1))
            shrinking = (before - largest).exp()
            exponentials = z.sub_(largest[:, None]).exp_()
            total = total * shrinking + exponentials.sum(1)
            if mean is not None:
                mean.mul_(shrinking[:, None]).add_(exponentials.to(part.dtype) @ part)
        if mean is not None:
            ctx.save_for_backward(mean / total[:, None], weight, which, tokens)
        return chosen - (largest + total.log())[which]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_tokens: Tensor) -> tuple[Tensor, None, None, None, None]:
        mean, weight, which, tokens = ctx.saved_tensors
        of_states = torch.zeros(len(mean), dtype=mean.dtype, device=mean.device).index_add(0, which, of_tokens)
        towards = weight[tokens].to(mean.dtype) * of_tokens[:, None]
        gradient = torch.addcmul(torch.zeros_like(mean), mean, -of_states[:, None]).index_add(0, which, towards)
        return gradient.to(weight.dtype), None, None, None, None
