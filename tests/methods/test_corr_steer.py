"""methods/corr_steer.py and its autoencoder: correlations, planted features, what is added and where."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_pairs import PAIRS, normal
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import corr_steer, sparse_autoencoder
from grains_ref.methods.core import Edit, capture
from grains_ref.methods.corr_steer import MULTIPLIERS, CorrSteer, correlate, fit
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu


# --- correlation


def test_correlations_are_numpys_and_a_constant_has_none() -> None:
    z, right = normal(20, 4), torch.tensor([True, False, False, True] * 5)
    z[:, 2] = 3.0
    got = correlate(z, right)
    for i in (0, 1, 3):
        assert float(got[i]) == pytest.approx(np.corrcoef(z[:, i].numpy(), right.numpy())[0, 1])
    assert got[2] == 0
    torch.testing.assert_close(correlate(5 * z + 1, right), got)
    torch.testing.assert_close(correlate(z, ~right), -got)


# --- what is chosen and added


def test_the_entry_that_goes_with_right_answers_by_hand(llama: HuggingFaceModel) -> None:
    fitted = fit(llama, PAIRS)
    pooled = []
    for pair in PAIRS:
        for answer in (pair.chosen, pair.rejected):
            n = len(llama.response_ids(pair.prompt, answer))
            states = capture(llama, [(pair.prompt, answer)], site="residual", last=n + 1)[0, :, :-1]
            pooled.append(states.amax(1).double())
    z = torch.stack(pooled)  # (2 N, L, d)
    for block in range(3):
        r = np.corrcoef(np.concatenate([z[:, block].numpy().T, [[1, 0] * 3]]))[-1, :-1]
        best = int(r.argmax())
        assert fitted.features[block] == best
        assert fitted.correlations[block] == pytest.approx(r[best])
        expected = torch.zeros(llama.width).double()
        expected[best] = z[0::2, block, best].mean()
        torch.testing.assert_close(fitted.v[block], expected)


def test_only_what_goes_with_right_answers_is_turned_up(
    llama: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(model: HuggingFaceModel, pair: PreferencePair, answer: str) -> Tensor:
        states = torch.ones(3, 2, 28).double()  # what is the same in all answers goes with nothing
        states[0, 0, 5] = 2.0 + 0.1 * len(pair.prompt) if answer == pair.chosen else 1.0  # at one token of two
        states[1, :, 7] = 1.0 if answer == pair.rejected else 0.5
        return states

    monkeypatch.setattr(corr_steer, "_states", planted)
    fitted = fit(llama, PAIRS)
    assert fitted.best == 0
    assert fitted.features[0] == 5
    mean = sum(2.0 + 0.1 * len(pair.prompt) for pair in PAIRS) / 3
    assert float(fitted.v[0, 5]) == pytest.approx(mean)
    assert not fitted.v[1:].any()
    assert float(fit(llama, PAIRS, pool="mean").v[0, 5]) == pytest.approx((mean + 1) / 2)


def test_it_is_added_from_the_prompts_last_token_on_in_the_blocks_named(llama: HuggingFaceModel) -> None:
    fitted = fit(llama, PAIRS)
    plain = margins(llama, PAIRS)
    with fitted.steering(llama, c=3.0, blocks=[0, 2]):
        got = margins(llama, PAIRS)
    pushes = {b: (lambda h, b=b: h + 3 * fitted.v[b].float()) for b in (0, 2)}
    with Edit(llama, "residual", pushes, positions="after_prompt"):
        assert margins(llama, PAIRS) == pytest.approx(got, rel=1e-6, abs=1e-5)
    assert got != pytest.approx(plain, abs=1e-2)
    assert margins(llama, PAIRS) == plain


def test_the_models_own_answers_are_judged_by_how_they_begin(llama: HuggingFaceModel) -> None:
    said, right = corr_steer._greedy(llama, PAIRS)
    assert not right.any()
    with pytest.raises(DegenerateShiftsError, match="of 3 answers 0 are right"):
        fit(llama, PAIRS, answers="greedy")
    short = [dataclasses.replace(PAIRS[0], chosen=f" {said[0].split()[0]}"), *PAIRS[1:]]
    judged = corr_steer._greedy(llama, short)
    assert judged[1].tolist() == [True, False, False]
    assert fit(llama, short, answers="greedy").name == "raw, greedy, max"


def test_the_grid_and_the_refusals(llama: HuggingFaceModel, qwen2: HuggingFaceModel) -> None:
    fitted = fit(llama, PAIRS)
    settings = fitted.settings(llama)
    assert [s.strength for s in settings] == sorted(MULTIPLIERS * 2)
    assert settings[0].label == f"CorrSteer, raw, pairs, max, block {fitted.best}"
    with pytest.raises(ValueError, match="from another model"):
        fitted.steering(qwen2, c=1.0, blocks=[0])
    with pytest.raises(ValueError, match="features"):
        fit(llama, PAIRS, features="sparse")  # type: ignore[arg-type]
    with pytest.raises(DegenerateShiftsError, match="no feature is larger"):
        fit(llama, [dataclasses.replace(pair, rejected=pair.chosen) for pair in PAIRS])
    assert isinstance(fitted, CorrSteer)


# --- the autoencoder


def test_an_autoencoder_finds_a_planted_dictionary() -> None:
    directions = torch.linalg.qr(normal(12, 6, seed=3)).Q.T
    draw = torch.Generator().manual_seed(1)
    active = torch.rand(500, 6, generator=draw, dtype=torch.float64) < 0.2
    strength = active * (1 + torch.rand(500, 6, generator=draw, dtype=torch.float64))
    states = (strength @ directions)[None]
    coders = sparse_autoencoder.train(states, features=12)
    assert float(coders.explained[0]) > 0.9
    cosines = coders.decoder[0] @ directions.T
    torch.testing.assert_close(coders.decoder[0].norm(dim=-1), torch.ones(12, dtype=torch.float64))
    assert float(cosines.amax(0).min()) > 0.97
    features = coders.encode(states[0], 0)
    nothing = torch.zeros(12, dtype=torch.float64)
    torch.testing.assert_close(coders.decode(nothing, 0), coders.scale[0] * coders.decoder_bias[0])
    unexplained = (coders.decode(features, 0) - states[0]).square().sum()
    spread = (states[0] - states[0].mean(0)).square().sum()
    assert float(1 - unexplained / spread) == pytest.approx(float(coders.explained[0]), abs=1e-5)
    best = int(cosines[:, 0].argmax())
    assert features[active[:, 0], best].mean() > 5 * features[~active[:, 0], best].mean()


def test_features_of_an_autoencoder_are_added_along_their_rows(
    llama: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_autoencoder, "STEPS", 30)
    states = corr_steer._states_to_train_on(llama, PAIRS)
    coders = sparse_autoencoder.train(states, features=2 * llama.width)
    given, trained = fit(llama, PAIRS, features=coders), fit(llama, PAIRS, features="trained")
    torch.testing.assert_close(given.v, trained.v)
    assert (given.name, trained.name) == ("autoencoder, pairs, max", "trained, pairs, max")
    for block, i in enumerate(given.features):
        if given.correlations[block] > 0:
            cosine = torch.cosine_similarity(given.v[block], coders.decoder[block, i], dim=0)
            assert float(cosine) == pytest.approx(1.0)
