"""methods/iti.py: probes, directions and edits of attention heads, against plants, libraries and brute force."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from shared import first_quick
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.methods import iti
from grains_ref.methods.core import capture
from grains_ref.methods.iti import ProbedHeads, fit, head_counts, mlp_probe, rank_heads, shift_heads, split_questions
from grains_ref.models import HuggingFaceModel, TokenRow
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

WORDS = ["sun", "rain", "snow", "wind", "fog", "hail", "heat", "dew", "ice", "calm"]


def questions(n: int) -> list[PreferencePair]:
    """Questions whose right answer is "yes" for every second one, so that no answer is right by itself."""
    pairs = []
    for i in range(n):
        prompt = f"Q: Does {WORDS[i % 10]} follow {WORDS[(3 * i + 1) % 10]}? A:"
        chosen, rejected = ("yes, it does", "no, never") if i % 2 else ("no, never", "yes, it does")
        pairs.append(PreferencePair(str(i), prompt, chosen, rejected, where=f"test:{i}"))
    return pairs


PAIRS = questions(12)


@pytest.fixture(scope="module")
def probed(llama: HuggingFaceModel) -> ProbedHeads:
    return fit(llama, PAIRS, probe="mlp")


@pytest.fixture
def unranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no ranking of heads is looked at: a regression for every head takes longer than all the rest."""

    def undecided(x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(x.shape[1:2], 0.5), torch.zeros(x.shape[1])

    monkeypatch.setattr(iti, "logistic_probe", undecided)


def steered_heads(model: HuggingFaceModel, block: int, run: Callable[[], object]) -> list[Tensor]:
    """What enters block's output projection during a run, after every edit."""
    seen: list[Tensor] = []
    projection: Any = model.blocks[block].self_attn.o_proj
    handle = projection.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().clone()))
    try:
        run()
    finally:
        handle.remove()
    return seen


# --- planted truth


@pytest.mark.parametrize(
    ("name", "probe"), first_quick([("llama", "linear"), ("qwen2", "mlp"), ("gemma3_text", "linear")])
)
def test_the_head_that_carries_the_label_is_ranked_first_and_its_direction_found(
    name: str, probe: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(name)
    pairs = questions(20)
    block, head = len(model.blocks) - 1, 2  # 3 x 4, 5 x 6 and 7 x 4 heads: blocks and heads cannot be swapped
    d_h = model.blocks[0].self_attn.o_proj.in_features // model.text_config.num_attention_heads
    planted = torch.randn(d_h, generator=torch.Generator().manual_seed(1))
    planted = planted / planted.norm()
    is_right = {(p.prompt, p.chosen) for p in pairs}

    def with_plant(model: HuggingFaceModel, items: Sequence[Any], **options: Any) -> Tensor:
        states = capture(model, items, **options)
        sign = 1 if tuple(items[0][:2]) in is_right else -1
        states[:, block, :, head * d_h : (head + 1) * d_h] += sign * 6 * planted
        return states

    monkeypatch.setattr(iti, "capture", with_plant)
    monkeypatch.setattr(iti, "EPOCHS", 60)  # steps of 5e-4 are too small to learn anything in the published ten
    found = fit(model, pairs, probe=probe, spread="answers")
    assert found.theta.shape == (len(model.blocks), model.text_config.num_attention_heads, d_h)
    assert found.ranking[0] == (block, head)
    assert found.accuracy[block, head] == 1
    assert found.theta[block, head] @ planted.double() > 0.97
    assert found.sigma[block, head] == pytest.approx(6, abs=1)
    assert sorted(found.ranking) == [(b, h) for b in range(len(model.blocks)) for h in range(found.theta.shape[1])]
    assert not found.shift(1)[:block].any()
    assert found.shift(1)[block, head].norm() == pytest.approx(found.sigma[block, head].item())


@pytest.mark.usefixtures("unranked")
def test_swapping_the_answers_turns_every_direction_round(llama: HuggingFaceModel) -> None:
    swapped = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in PAIRS]
    one, other = (fit(llama, pairs, probe="linear", spread="answers") for pairs in (PAIRS, swapped))
    assert torch.allclose(one.theta, -other.theta, atol=1e-10)
    assert torch.allclose(one.sigma, other.sigma, atol=1e-10)
    assert (one.theta.norm(dim=-1) - 1).abs().max() < 1e-12


def test_a_head_that_never_moves_has_no_spread_and_is_never_edited() -> None:
    model = random_llama(seed=3)
    attention: Any = model.blocks[1].self_attn
    attention.v_proj.weight[6:12] = 0  # key/value head 1 is silent, and so are query heads 2 and 3
    found = fit(model, PAIRS[:6], probe="mlp")
    assert found.sigma[1].tolist()[2:] == [0, 0]
    assert (found.sigma > 0).sum() == 10
    assert not found.shift(12)[1, 2:].any()


# --- reading


@pytest.mark.usefixtures("unranked")
@pytest.mark.parametrize("spread", first_quick(["answers", "next_question"]))
def test_directions_and_spreads_by_hand(llama: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch, spread: Any) -> None:
    monkeypatch.setattr(iti.random.Random, "randrange", lambda self, low, high: low)  # always the pair behind
    found = fit(llama, PAIRS, probe="linear", tokens=(1, 3), spread=spread)

    def mean_state(prompt: Any, text: str) -> np.ndarray:
        n = min(3, len(llama.response_ids(prompt, text)))
        return capture(llama, [(prompt, text)], site="heads", last=n)[0].double().mean(1).view(3, 4, 6).numpy()

    right = np.stack([mean_state(p.prompt, p.chosen) for p in PAIRS])
    wrong = np.stack([mean_state(p.prompt, p.rejected) for p in PAIRS])
    theta = right.mean(0) - wrong.mean(0)
    theta /= np.linalg.norm(theta, axis=-1, keepdims=True)
    assert np.allclose(found.theta, theta, atol=1e-12)
    rows = [right, wrong]
    if spread == "next_question":
        behind = [str(PAIRS[(i + 1) % len(PAIRS)].prompt).removesuffix("A:").strip() for i in range(len(PAIRS))]
        assert any(q != PAIRS[(i + 1) % len(PAIRS)].prompt for i, q in enumerate(behind))  # no answer's label is read
        rows = [
            np.stack([mean_state(p.prompt, f"{a}\n\n{q}") for p, q, a in zip(PAIRS, behind, answers, strict=True)])
            for answers in ([p.chosen for p in PAIRS], [p.rejected for p in PAIRS])
        ]
    projections = (np.concatenate(rows) * theta).sum(-1)
    assert np.allclose(found.sigma, np.sqrt(((projections - projections.mean(0)) ** 2).mean(0)), atol=1e-12)


def test_an_answer_shorter_than_the_window_gives_the_tokens_it_has(llama: HuggingFaceModel) -> None:
    items = [("Q: Is it? A:", "No", None)]
    assert len(llama.response_ids("Q: Is it? A:", "No")) < 4
    short, whole = iti._states(llama, items, (1, 50))
    n = len(llama.response_ids("Q: Is it? A:", "No"))
    expected = capture(llama, items, site="heads", last=n)[0].double()
    assert torch.equal(short[0].flatten(1), expected[:, -1])
    assert torch.equal(whole[0].flatten(1), expected.mean(1))


def test_all_choices_with_one_right(llama: HuggingFaceModel) -> None:
    pairs = [replace(p, choices=("never", p.rejected, p.chosen), label=2) for p in PAIRS[:5]]
    items, right, question = iti._answers(pairs, "choices")
    assert [text for _, text, *_ in items[:3]] == ["never", PAIRS[0].rejected, PAIRS[0].chosen]
    assert right.tolist() == [False, False, True] * 5
    assert question.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert fit(llama, pairs, probe="linear", answers="choices").theta.isfinite().all()
    with pytest.raises(ValueError, match="test:5 has no 'choices'"):
        fit(llama, [*pairs, PAIRS[5]], probe="linear", answers="choices")


def test_chat_messages_and_what_does_not_fit(llama: HuggingFaceModel) -> None:
    chat = [replace(p, prompt=({"role": "user", "content": str(p.prompt)},)) for p in PAIRS[:4]]
    assert fit(llama, chat, probe="linear").sigma.min() > 0
    long = [replace(p, prompt=str(p.prompt) + " so" * 22) for p in PAIRS[:4]]
    assert fit(llama, long, probe="linear", spread="answers").sigma.min() > 0
    with pytest.raises(ValueError, match="takes 128; fit with spread='answers'"):
        fit(llama, long, probe="linear")
    with pytest.raises(ValueError, match="at least one token"):
        fit(llama, PAIRS, probe="linear", tokens=(0, 1))


# --- probes


def test_questions_are_split_whole_and_always_alike() -> None:
    ((train, held_out),) = split_questions(50, folds=1, seed=0)
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(50))
    assert split_questions(6, folds=1, seed=0)[0][0].tolist() == [1, 2, 3, 4, 0]  # the same on every machine
    folds = split_questions(11, folds=5, seed=1)
    assert sorted(torch.cat([held_out for _, held_out in folds]).tolist()) == list(range(11))
    for train, held_out in folds:
        assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(11))
    assert split_questions(50, folds=1, seed=1)[0][1].tolist() != split_questions(50, folds=1, seed=0)[0][1].tolist()
    for n, folds_asked in ((1, 1), (4, 5), (10, 0)):
        with pytest.raises(ValueError, match="at least one fold"):
            split_questions(n, folds=folds_asked, seed=0)


def test_answers_of_one_question_are_never_on_both_sides() -> None:
    question = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])
    states = question.double()[:, None, None, None].expand(-1, 2, 3, 4)
    calls = []

    def probe(x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((set(x[:, 0, 0].tolist()), set(x_held_out[:, 0, 0].tolist())))
        assert len(x) + len(x_held_out) == 9
        assert x.shape[1:] == (6, 4)
        return torch.arange(6.0) + len(calls), torch.zeros(6)

    splits = split_questions(4, folds=2, seed=0)
    accuracy, _ = iti.score_heads(states, torch.arange(9) % 2 == 0, question, splits=splits, probe=probe)
    assert [(a & b, a | b) for a, b in calls] == [(set(), {0, 1, 2, 3})] * 2
    assert accuracy.tolist() == [[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]]  # (block, head), mean over the folds


def test_the_linear_probe_is_the_optimum_of_its_objective() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 1, 5)), draw.random(40) > 0.4
    x[:, 0, 2] += y

    def objective(w: np.ndarray) -> float:
        z = x[:30, 0] @ w[:-1] + w[-1]
        return float(np.logaddexp(0, np.where(y[:30], -z, z)).sum() + 0.5 * (w[:-1] ** 2).sum())

    w = scipy.optimize.minimize(objective, np.zeros(6)).x
    z = x[30:, 0] @ w[:-1] + w[-1]
    accuracy, loss = iti.logistic_probe(*(torch.tensor(a) for a in (x[:30], y[:30], x[30:], y[30:])))
    assert accuracy.item() == pytest.approx(((z > 0) == y[30:]).mean())
    assert loss.item() == pytest.approx(np.logaddexp(0, np.where(y[30:], -z, z)).mean(), abs=1e-3)


@pytest.mark.parametrize("rows", [33, 40])  # 33: the last training batch is a single row
def test_the_mlp_probe_is_one_ordinary_network_per_head(rows: int) -> None:
    x = torch.randn(rows + 35, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(len(x)) % 2 == 0
    x[:, 1, 0] += 3 * y
    accuracy, loss = mlp_probe(x[:rows], y[:rows], x[rows:], y[rows:], seed=4)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        first, last = nn.Conv1d(15, 48, 1, groups=3), nn.Conv1d(48, 3, 1, groups=3)
    for head in range(3):
        probe = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)).double()
        with torch.no_grad():
            probe[0].weight.copy_(first.weight[16 * head : 16 * head + 16, :, 0])
            probe[0].bias.copy_(first.bias[16 * head : 16 * head + 16])  # type: ignore[index]
            probe[3].weight.copy_(last.weight[head, :, 0])
            probe[3].bias.copy_(last.bias[head])  # type: ignore[index]
        adam = torch.optim.Adam(probe.parameters(), lr=5e-4, weight_decay=1e-4)
        order = torch.Generator().manual_seed(4)
        best = (-1.0, 0.0)
        for _ in range(10):
            probe.train()
            for batch in torch.randperm(rows, generator=order).split(32):
                if len(batch) > 1:
                    adam.zero_grad()
                    p = probe(x[batch, head]).sigmoid()[:, 0]
                    nn.functional.binary_cross_entropy(p, y[batch].double()).backward()
                    adam.step()
            probe.eval()
            p = probe(x[rows:, head]).sigmoid()[:, 0].detach()
            right = ((p > 0.5) == y[rows:]).double().mean().item()
            if right > best[0]:
                best = (right, nn.functional.binary_cross_entropy(p, y[rows:].double()).item())
        assert accuracy[head].item() == pytest.approx(best[0])  # of all 35 held-out rows, more than one batch
        assert loss[head].item() == pytest.approx(best[1], abs=1e-8)


def test_probes_work_with_fewer_rows_than_a_batch_and_leave_the_global_stream_alone(llama: HuggingFaceModel) -> None:
    before = torch.random.get_rng_state()
    found = fit(llama, PAIRS[:3], probe="mlp")  # two questions to train on, one held out: 4 and 2 rows
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(found.accuracy.flatten().tolist()) <= {0.0, 0.5, 1.0}
    assert len(found.ranking) == 12


def test_ties_go_to_the_smaller_loss_then_to_the_earlier_block_and_head() -> None:
    accuracy = torch.tensor([[0.5, 0.9, 0.9], [0.9, 0.9, 0.9 + 1e-13]], dtype=torch.float64)
    loss = torch.tensor([[0.1, 0.4, 0.3], [0.3, 0.4 + 1e-13, 0.4]], dtype=torch.float64)
    assert rank_heads(accuracy, loss) == ((0, 2), (1, 0), (0, 1), (1, 1), (1, 2), (0, 0))


@pytest.mark.parametrize(
    ("total", "counts"), [(1024, [16, 48, 96]), (784, [16, 48, 96]), (12, [1, 3, 9]), (16, [1, 4, 12]), (2, [1])]
)
def test_numbers_of_heads_to_try(total: int, counts: list[int]) -> None:
    assert head_counts(total, iti.HEADS) == counts


# --- steering


def test_one_head_is_edited_in_its_slice_from_the_last_prompt_token_on(model: HuggingFaceModel) -> None:
    heads = model.text_config.num_attention_heads
    d_h = model.blocks[0].self_attn.o_proj.in_features // heads  # type: ignore[union-attr, operator]
    shift = torch.zeros(len(model.blocks), heads, d_h, dtype=torch.float64)
    shift[1, 2] = torch.arange(1, d_h + 1)
    item = ("Q: Is it round? A:", "Yes, it is round")
    plain = steered_heads(model, 1, lambda: model.score([item]))
    with shift_heads(model, shift):
        edited = steered_heads(model, 1, lambda: model.score([item]))
    for step, (a, b) in enumerate(zip(plain, edited, strict=True)):  # the prompt, then the answer on its cache
        expected = a.clone()
        expected[:, -1 if step == 0 else 0 :, 2 * d_h : 3 * d_h] += shift[1, 2].float()
        assert torch.allclose(b, expected, atol=1e-6)
        assert torch.equal(b[..., : 2 * d_h], a[..., : 2 * d_h])


def test_what_is_added_to_the_attention_output_is_w_o_times_the_shift(llama: HuggingFaceModel) -> None:
    shift = torch.zeros(3, 4, 6)
    shift[0, 3] = torch.randn(6, generator=torch.Generator().manual_seed(0))
    projection: Any = llama.blocks[0].self_attn.o_proj
    seen: list[Tensor] = []
    handle = projection.register_forward_hook(lambda module, args, output: seen.append(output))
    llama.score([("Is it?", "Yes")])
    with shift_heads(llama, shift):
        llama.score([("Is it?", "Yes")])
    handle.remove()
    gained = seen[len(seen) // 2][0, -1] - seen[0][0, -1]
    assert torch.allclose(gained, projection.weight[:, 18:24] @ shift[0, 3], atol=1e-6)


def test_steered_scores_are_those_of_one_pass_edited_from_the_last_prompt_row_on(
    llama: HuggingFaceModel, probed: ProbedHeads
) -> None:
    items = [("Q: Is it? A:", "Yes, it is"), ("Tell me what it is.", "No"), ("Q: Is it? A:", "No, never")]
    with probed.steering(llama, heads=5, alpha=4):
        steered = [scored.log_prob for scored in llama.score(items)]
    shift = 4 * probed.shift(5).float().flatten(1)
    blocks: list[Any] = [block.self_attn.o_proj for block in llama.blocks]
    for (prompt, response), got in zip(items, steered, strict=True):
        encoded, ids = llama.encode(prompt), llama.response_ids(prompt, response)

        def add(module: nn.Module, args: Any, start: int = len(encoded.ids) - 1) -> Any:
            x = args[0].clone()
            x[:, start:] += shift[blocks.index(module)]
            return (x,)

        handles = [block.register_forward_pre_hook(add) for block in blocks]
        with torch.no_grad():
            log_p = llama.logits(encoded, encoded.embeds[None], ids)[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        assert got == pytest.approx(log_p.gather(1, ids[:, None]).sum().item(), rel=1e-5)


def test_generation_says_what_scoring_calls_likeliest(
    llama: HuggingFaceModel, probed: ProbedHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["Q: Is it? A:", "Tell me what people say about rain."]
    said: list[tuple[int, ...]] = []
    monkeypatch.setattr(llama.prompts, "text", lambda ids, **_: said.append(tuple(ids)) or "")
    llama.generate(prompts, max_new_tokens=6)
    with probed.steering(llama, heads=12, alpha=8):
        llama.generate(prompts, max_new_tokens=6)
        plain, steered = said[:2], said[2:]
        assert steered != plain
        rows = [TokenRow(tuple(llama.encode(p).ids.tolist()), ids) for p, ids in zip(prompts, steered, strict=True)]
        assert all(scored.is_greedy for scored in llama.score_rows(rows))
    assert not all(scored.is_greedy for scored in llama.score_rows(rows))


def test_strength_zero_and_no_heads_change_nothing_and_leaving_restores_every_bit(
    llama: HuggingFaceModel, probed: ProbedHeads
) -> None:
    items = [(p.prompt, p.chosen) for p in PAIRS[:4]]
    plain = llama.score(items)
    for heads, alpha in ((12, 0.0), (0, 8.0)):
        with probed.steering(llama, heads=heads, alpha=alpha):
            assert llama.score(items) == plain
    settings = probed.settings(llama)
    assert [(s.strength, s.label) for s in settings][:4] == [
        (2.0, "NL-ITI, heads 1"),
        (2.0, "NL-ITI, heads 3"),
        (2.0, "NL-ITI, heads 9"),
        (5.0, "NL-ITI, heads 1"),
    ]
    assert len(settings) == 15
    for setting in (settings[0], settings[0], settings[-1]):
        with setting.steering():
            assert llama.score(items) != plain
        assert llama.score(items) == plain


@pytest.mark.parametrize("dtype", first_quick([torch.bfloat16, torch.float16, torch.float64]))
def test_other_number_types(dtype: torch.dtype) -> None:
    model = random_llama(dtype=dtype)
    found = fit(model, PAIRS[:4], probe="linear")
    plain = model.score([("Is it?", "Yes")])[0].log_prob
    with found.steering(model, heads=12, alpha=15):
        assert np.isfinite(model.score([("Is it?", "Yes")])[0].log_prob)
        assert model.score([("Is it?", "Yes")])[0].log_prob != plain


def test_other_models_and_too_many_heads_are_refused(
    llama: HuggingFaceModel, qwen2: HuggingFaceModel, probed: ProbedHeads
) -> None:
    with pytest.raises(
        ValueError, match=r"expected a shift \(L, K, d_h\) = \(5, 6, 6\) for random-qwen2, got \(3, 4, 6\)"
    ):
        probed.steering(qwen2, heads=1, alpha=1)
    with pytest.raises(ValueError, match="heads is 13; expected a whole number from 0 to 12"):
        probed.steering(llama, heads=13, alpha=1)


def test_the_same_to_the_bit_whatever_was_drawn_before(llama: HuggingFaceModel, probed: ProbedHeads) -> None:
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    again = fit(llama, PAIRS, probe="mlp")
    assert again.ranking == probed.ranking
    for one, other in ((again.theta, probed.theta), (again.sigma, probed.sigma), (again.accuracy, probed.accuracy)):
        assert torch.equal(one, other)
    assert not torch.equal(fit(llama, PAIRS, probe="mlp", seed=1).sigma, probed.sigma)
