r"""A small sparse autoencoder of the residual stream, one per block, for CorrSteer where none is published.

    f(x) = relu( W_enc (x / s - b_dec) + b_enc ),    x ~ s ( sum_i f_i d_i + b_dec ),    |d_i| = 1

    loss = mean |x / s - reconstruction|^2 + penalty * mean sum_i f_i        s: root mean square of the entries of x

Published ones have tens of thousands of features and saw billions of tokens; this one is for models small enough to
train it in seconds, on the states of the pairs themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from grains_ref.grains import finite_number
from grains_ref.methods.core import whole_number

STEPS, BATCH, LEARNING_RATE = 400, 256, 1e-2
PENALTY = 1.0  # on the sum of the activations, where entries of the states are about 1


@dataclass(frozen=True)
class SparseAutoencoders:
    """Of all blocks.

    encoder: (L, d, F).  encoder_bias: (L, F).  decoder: (L, F, d), rows of unit length.  decoder_bias: (L, d).
    scale: (L,), what states are divided by.  explained: (L,), the share of the training states' variance.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    scale: Tensor
    explained: Tensor

    def encode(self, states: Tensor, block: int) -> Tensor:
        """Features of states of one block, (..., d) -> (..., F), in units of the states: a feature times its row."""
        scale = self.scale[block]
        inner = (states / scale - self.decoder_bias[block]) @ self.encoder[block] + self.encoder_bias[block]
        return scale * inner.relu()

    def decode(self, features: Tensor, block: int) -> Tensor:
        """States of one block from their features, (..., F) -> (..., d)."""
        return features @ self.decoder[block] + self.scale[block] * self.decoder_bias[block]


@torch.enable_grad()
def train(states: Tensor, *, features: int, penalty: float = PENALTY, seed: int = 0) -> SparseAutoencoders:
    """Autoencoders with this many features on states (L, N, d), every block by itself.

    Raises:
        TypeError: features is no whole number, penalty no number.
        ValueError: no feature, or a penalty below zero.
    """
    n_features = whole_number("features", features, least=1)
    if finite_number("penalty", penalty) < 0:
        raise ValueError(f"penalty is {penalty}; expected a number from 0 on")
    draw = torch.Generator().manual_seed(seed)
    n_blocks, n, width = states.shape
    scale = states.float().square().mean((1, 2)).sqrt().clamp_min(1e-12)
    rows = states.float() / scale[:, None, None]
    start = normalize(torch.randn(n_features, width, generator=draw), dim=-1).repeat(n_blocks, 1, 1)
    decoder, encoder = start.clone().requires_grad_(), start.transpose(1, 2).clone().requires_grad_()
    decoder_bias = rows.mean(1).clone().requires_grad_()
    encoder_bias = torch.zeros(n_blocks, n_features, requires_grad=True)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and reconstruction of (L, B, d)."""
        f = ((x - decoder_bias[:, None]) @ encoder + encoder_bias[:, None]).relu()
        return f, f @ normalize(decoder, dim=-1) + decoder_bias[:, None]

    optimiser = torch.optim.Adam([decoder, encoder, decoder_bias, encoder_bias], lr=LEARNING_RATE)
    for _ in range(STEPS):
        x = rows[:, torch.randint(n, (BATCH,), generator=draw)]
        f, reconstruction = run(x)
        loss = (x - reconstruction).square().sum(-1).mean(1) + penalty * f.sum(-1).mean(1)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    with torch.no_grad():
        unexplained = (rows - run(rows)[1]).square().sum((1, 2))
        spread = (rows - rows.mean(1, keepdim=True)).square().sum((1, 2))
    parameters = encoder, encoder_bias, normalize(decoder, dim=-1), decoder_bias
    explained = 1 - unexplained / spread.clamp_min(1e-12)
    return SparseAutoencoders(*(part.detach().double() for part in (*parameters, scale, explained)))
