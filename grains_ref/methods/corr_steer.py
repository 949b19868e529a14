r"""CorrSteer (Cho et al., 2025): the features that go with right answers while they are given are turned up.

    z_i = max over an answer's tokens of feature i,      r_i = Pearson correlation of z_i with whether it is right
    i_l = the feature of block l with the largest r,     a_l = mean of z over the right answers
    h   <- h + c a_l d_{i_l}                             d_i the decoder's direction of feature i, unit length

Read: the residual stream of the passes that make an answer's tokens, from the prompt's last token to the answer's last
but one.  Edit: one block or all, from the prompt's last token on.  Features are those of sparse autoencoders, or the
stream's own entries, where d_i is the i-th axis.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import sparse_autoencoder
from grains_ref.methods.adding import add_vectors
from grains_ref.methods.core import Edit, Positions, Setting, capture, check_option, check_pairs
from grains_ref.methods.sparse_autoencoder import SparseAutoencoders
from grains_ref.models import HuggingFaceModel

Answers = Literal["pairs", "greedy"]
Pool = Literal["max", "mean"]
Features: TypeAlias = SparseAutoencoders | Literal["raw", "trained"]

MULTIPLIERS = (0.5, 1.0, 2.0, 4.0, 8.0)
FEATURES_PER_WIDTH = 2  # of autoencoders that are trained here
MOST_TOKENS = 32  # of a prompt and answer, counted from their end, that autoencoders are trained on
LEAST_VARIANCE = 1e-12  # below it a feature does not vary


@dataclass(frozen=True)
class CorrSteer:
    """One feature of every block.

    v: (L, d) in float64, a_l d_{i_l}; 0 where no feature of a block goes with right answers.
    features: the numbers i_l.  correlations: their r.
    name: of the features and answers, for labels.
    """

    v: Tensor
    features: tuple[int, ...]
    correlations: tuple[float, ...]
    name: str

    def steering(
        self, model: HuggingFaceModel, *, c: float, blocks: Collection[int], positions: Positions = "after_prompt"
    ) -> Edit:
        """Add c times the feature's mean on right answers in these blocks while entered.

        Raises:
            TypeError: c is no number, or blocks no list of whole numbers.
            ValueError: the features are of another model, a block does not exist or is named twice, or c is not finite.
        """
        return add_vectors(model, self.v, c=c, blocks=blocks, positions=positions)

    @property
    def best(self) -> int:
        """The block whose feature has the largest correlation."""
        return max(range(len(self.correlations)), key=lambda block: self.correlations[block])

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid: `MULTIPLIERS` of the best block alone (the paper's S) and of all blocks (its A)."""
        groups = {f"block {self.best}": range(self.best, self.best + 1), "all blocks": range(len(self.v))}
        return [
            Setting(f"CorrSteer, {self.name}, {label}", c, functools.partial(self.steering, model, c=c, blocks=group))
            for c in MULTIPLIERS
            for label, group in groups.items()
        ]


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    features: Features = "raw",
    answers: Answers = "pairs",
    pool: Pool = "max",
) -> CorrSteer:
    """Each block's feature that goes with right answers most.

    features: autoencoders; `trained`, to train small ones on the pairs' states; `raw`, the stream's entries.
    answers: `pairs` takes the chosen answer of a pair as a right one and the rejected as a wrong one; `greedy` has the
    model answer, and takes as right what begins with the chosen answer.
    pool: over an answer's tokens.

    Raises:
        ValueError: no pair, or an unknown option.
        DegenerateShiftsError: all answers are right, or all wrong; or no feature of any block goes with right ones.
        FloatingPointError: a state is not finite.
    """
    check_option("answers", answers, Answers)
    check_option("pool", pool, Pool)
    if not isinstance(features, SparseAutoencoders):
        check_option("features", features, Literal["raw", "trained"])
    check_pairs(pairs, least=1)
    texts, right = _given(pairs) if answers == "pairs" else _greedy(model, pairs)
    if right.all() or not right.any():
        raise DegenerateShiftsError(
            f"blocks 0 to {len(model.blocks) - 1}: of {len(right)} answers {int(right.sum())} are right; a correlation "
            "needs both. Give prompts that the model answers now rightly and now wrongly, or take answers='pairs'."
        )
    name = f"{features if isinstance(features, str) else 'autoencoder'}, {answers}, {pool}"
    if features == "trained":
        features = trained(model, pairs)
    questions = [pair for pair in pairs for _ in range(len(texts) // len(pairs))]
    states_of = [_states(model, pair, text) for pair, text in zip(questions, texts, strict=True)]  # (L, R, d) each
    chosen, correlations, v = [], [], []
    for block in range(len(model.blocks)):
        of_answers = [states[block] for states in states_of]
        encoded = [x if isinstance(features, str) else features.encode(x, block) for x in of_answers]
        z = torch.stack([x.amax(0) if pool == "max" else x.mean(0) for x in encoded])
        r = correlate(z, right)
        i = int(r.argmax())
        axis = torch.eye(z.shape[1]).double()[i] if isinstance(features, str) else features.decoder[block, i]
        chosen.append(i)
        correlations.append(float(r[i]))
        v.append(z[right, i].mean() * axis if r[i] > 0 else torch.zeros(model.width).double())
    if max(correlations) <= 0:
        raise DegenerateShiftsError(
            f"blocks 0 to {len(v) - 1}: no feature is larger on right answers than on wrong ones. Check that chosen "
            "and rejected differ."
        )
    return CorrSteer(torch.stack(v), tuple(chosen), tuple(correlations), name)


def trained(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> SparseAutoencoders:
    """Small autoencoders, trained on the states of the pairs' prompts with either answer."""
    states = _states_to_train_on(model, pairs)
    return sparse_autoencoder.train(states, features=FEATURES_PER_WIDTH * model.width)


def correlate(z: Tensor, right: Tensor) -> Tensor:
    """Pearson correlation of every feature, z (N, F), with whether an answer is right, (N,); 0 where it is constant."""
    y = right.double()
    x, y = z.double() - z.double().mean(0), y - y.mean()
    variance = x.square().mean(0)
    r = (x * y[:, None]).mean(0) / (variance.clamp_min(LEAST_VARIANCE) * y.square().mean()).sqrt()
    return r.masked_fill(variance <= LEAST_VARIANCE, 0)


def _given(pairs: Sequence[PreferencePair]) -> tuple[list[str], Tensor]:
    """Both answers of every pair, and which are right."""
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    return texts, torch.tensor([True, False] * len(pairs))


def _greedy(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> tuple[list[str], Tensor]:
    """What the model answers, in as many tokens as the longer answer of each pair has, and whether it is right."""
    texts, right = [], []
    for pair in pairs:
        n = max(len(model.response_ids(pair.prompt, answer)) for answer in (pair.chosen, pair.rejected))
        images = [pair.image] if pair.image else []
        (text,) = model.generate([pair.prompt], images=images, max_new_tokens=n)
        texts.append(text)
        right.append(text.strip().startswith(pair.chosen.strip()))
    return texts, torch.tensor(right)


def _states(model: HuggingFaceModel, pair: PreferencePair, answer: str) -> Tensor:
    """States of the passes that make the answer's tokens, (L, R, d) in float64."""
    n = len(model.response_ids(pair.prompt, answer))
    states = capture(model, [(pair.prompt, answer, pair.image)], site="residual", last=n + 1)[0]
    return states[:, :-1].double()


def _states_to_train_on(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Tensor:
    """States at the last tokens of prompts with either answer, all in a row: (L, N, d)."""
    states = []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            n = len(model.encode(pair.prompt, pair.image).ids) + len(model.response_ids(pair.prompt, answer))
            item = (pair.prompt, answer, pair.image)
            states.append(capture(model, [item], site="residual", last=min(n, MOST_TOKENS))[0])
    return torch.cat(states, dim=1)
