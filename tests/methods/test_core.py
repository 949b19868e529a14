"""methods/core.py: reading and editing at a site, and the principal direction, against runs made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods.core import (
    Change,
    Edit,
    Site,
    answer_differences,
    capture,
    check_vectors,
    edit_pixels,
    first_component,
    keep_norm,
    mean_difference,
    n_heads,
    together,
    unit,
)
from grains_ref.models import HuggingFaceModel
from grains_ref.models.families import Picture
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import noise_picture, random_qwen_vl

pytestmark = pytest.mark.cpu

SITES: tuple[Site, ...] = ("block_input", "residual", "mlp", "heads", "attention_output")
ITEMS = [  # lengths differ, so that batches are padded; the first two share a prompt
    ("Q: What is the capital of France? A:", "Paris."),
    ("Q: What is the capital of France? A:", "Rome, of course."),
    ("Is it round?", "No"),
]
PROMPTS = [ITEMS[0][0], ITEMS[2][0], "The moon is made of"]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Models with grouped queries whose heads do not fill the width; Gemma's normalise twice per sub-layer."""
    fixture: HuggingFaceModel = request.getfixturevalue(request.param)
    return fixture


def add(width: int, *, seed: int = 0, size: float = 2.0) -> Change:
    y = size * torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return lambda x: x + y.to(x)


def width_of(model: HuggingFaceModel, site: Site) -> int:
    return model.blocks[0].self_attn.o_proj.in_features if site == "heads" else model.width  # type: ignore[union-attr, return-value]


def log_probs(model: HuggingFaceModel, items: Sequence[Any] = ITEMS) -> list[float]:
    return [scored.log_prob for scored in model.score(items)]


@torch.no_grad()
def one_pass(model: HuggingFaceModel, item: Any, *, use_cache: bool = False) -> float:
    """log P(response given prompt) from one unpadded pass over ids, by hand."""
    prompt, response, *image = item
    encoded, answer = model.encode(prompt, *image), model.response_ids(prompt, response)
    embeds = torch.cat([encoded.embeds, model.embed(answer)])[None]
    extra = {}
    if any(image):  # positions and token types as the model itself would continue them
        p = len(encoded.ids)
        for name, tensor in encoded.replay.items():
            after = int(encoded.replay["position_ids"].max()) + 1
            new = {"attention_mask": torch.ones(len(answer)).long(), "position_ids": after + torch.arange(len(answer))}
            more = new.get(name, torch.zeros(len(answer)).long()).expand(*tensor.shape[:-1], -1)
            extra[name] = torch.cat([tensor, more], -1).unsqueeze(-2)
        assert p + len(answer) == embeds.shape[1]
    logits = model.hf(inputs_embeds=embeds, use_cache=use_cache, **extra).logits[0]
    picked = logits[len(encoded.ids) - 1 : -1].double().log_softmax(-1)
    return float(picked[torch.arange(len(answer)), answer].sum())


class Plainly:
    """An edit of rows >= first of the sites' tensors, written out with torch hooks and nothing of the package."""

    def __init__(self, model: HuggingFaceModel, site: Site, changes: dict[int, Change], *, first: int) -> None:
        self.args = model, site, changes, first

    def __enter__(self) -> None:
        model, site, changes, first = self.args
        layers = model.hf.get_decoder().layers
        self.handles = []
        for b, change in changes.items():

            def edit(x: Tensor, change: Change = change) -> Tensor:
                x = x.clone()
                x[:, first:] = change(x[:, first:])
                return x

            def before(module: nn.Module, args: Any, edit: Any = edit) -> Any:
                return (edit(args[0]), *args[1:])

            def after(module: nn.Module, args: Any, output: Any, edit: Any = edit) -> Any:
                return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

            module = {
                "block_input": layers[b],
                "residual": layers[b],
                "mlp": layers[b].mlp,
                "heads": layers[b].self_attn.o_proj,
                "attention_output": layers[b].self_attn.o_proj,
            }[site]
            if site in ("block_input", "heads"):
                self.handles.append(module.register_forward_pre_hook(before))
            else:
                self.handles.append(module.register_forward_hook(after))

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()


# --- reading


def test_block_outputs_are_the_raw_hidden_states(model: HuggingFaceModel) -> None:
    prompt, response = ITEMS[1]
    ids = torch.cat([model.encode(prompt).ids, model.response_ids(prompt, response)])
    states = model.hf(input_ids=ids[None], output_hidden_states=True).hidden_states
    got = capture(model, [ITEMS[1]], site="residual", last=3)
    assert got.shape == (1, len(model.blocks), 3, model.width)
    for block in range(len(model.blocks) - 1):
        torch.testing.assert_close(got[0, block], states[block + 1][0, -3:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got[0, -1], states[-1][0, -3:], atol=1e-2)  # transformers gives it after the final norm
    torch.testing.assert_close(model.hf.get_decoder().norm(got[0, -1]), states[-1][0, -3:], rtol=1e-4, atol=1e-4)
    entering = capture(model, [ITEMS[1]], site="block_input", last=3)[0]
    torch.testing.assert_close(entering[0], model.embed(ids[-3:]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entering[1:], got[0, :-1], rtol=1e-5, atol=1e-5)


def test_heads_lie_side_by_side_before_the_output_projection(model: HuggingFaceModel) -> None:
    heads = capture(model, ITEMS, site="heads", last=2)
    out = capture(model, ITEMS, site="attention_output", last=2)
    d_h = model.blocks[0].self_attn.q_proj.out_features // n_heads(model)
    assert heads.shape == (3, len(model.blocks), 2, n_heads(model) * d_h)
    for block, module in enumerate(model.blocks):
        assert heads.shape[-1] == module.self_attn.o_proj.in_features
        torch.testing.assert_close(module.self_attn.o_proj(heads[:, block]), out[:, block], rtol=1e-5, atol=1e-5)


def test_the_fixtures_have_grouped_queries_and_heads_that_do_not_fill_the_width(
    llama: HuggingFaceModel, gemma3_text: HuggingFaceModel
) -> None:
    for model in (llama, gemma3_text):
        config = model.text_config
        assert config.num_key_value_heads < n_heads(model)
        assert n_heads(model) * config.head_dim != model.width


def test_heads_of_one_token_are_its_values(llama: HuggingFaceModel) -> None:
    """With nothing else to attend to, each query head gives its group's value vector."""
    (ids,) = (torch.tensor([[7]]),)
    seen: dict[str, Tensor] = {}
    attention = llama.blocks[0].self_attn
    handle = attention.v_proj.register_forward_hook(lambda m, a, o: seen.update(v=o[0, 0]))
    with Edit(llama, "heads", {0: lambda x: (seen.update(heads=x[0, 0]), x)[1]}):
        llama.hf(input_ids=ids)
    handle.remove()
    per_group = n_heads(llama) // llama.text_config.num_key_value_heads
    torch.testing.assert_close(seen["heads"].view(-1, 6), seen["v"].view(-1, 6).repeat_interleave(per_group, 0))


def test_an_empty_response_reads_the_prompt(llama: HuggingFaceModel) -> None:
    encoded = llama.encode(PROMPTS[0])
    got = capture(llama, [(PROMPTS[0], "")], site="residual")[0, :, 0]
    torch.testing.assert_close(got, llama.residuals(encoded, encoded.embeds[None])[0], rtol=1e-5, atol=1e-5)


def test_too_few_tokens_to_read_are_refused(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="tokens; the last 99 were asked for"):
        capture(llama, ITEMS, site="residual", last=99)
    with pytest.raises(ValueError, match="at least one item"):
        capture(llama, [], site="residual")
    with pytest.raises(ValueError, match="at least one item and one token"):
        capture(llama, ITEMS, site="residual", last=0)


def test_differences_are_chosen_minus_rejected(llama: HuggingFaceModel) -> None:
    pairs = [PreferencePair(str(i), p, "Paris.", "Rome, or so", where="") for i, p in enumerate(PROMPTS)]
    got = answer_differences(llama, pairs)
    assert got.shape == (3, 3, 28)
    for row, prompt in zip(got, PROMPTS, strict=True):
        a, b = (capture(llama, [(prompt, answer)], site="residual")[0, :, 0] for answer in ("Paris.", "Rome, or so"))
        torch.testing.assert_close(row, a - b)


# --- editing


@pytest.mark.parametrize("site", SITES)
def test_all_positions_as_by_hand_in_batches_with_left_padding(model: HuggingFaceModel, site: Site) -> None:
    changes = {b: add(width_of(model, site), seed=b) for b in (0, len(model.blocks) - 1)}
    plain = log_probs(model)
    with Edit(model, site, changes):
        got = log_probs(model)
    with Plainly(model, site, changes, first=0):
        by_hand = [one_pass(model, item) for item in ITEMS]
    assert got == pytest.approx(by_hand, rel=1e-5)
    assert min(abs(a - b) for a, b in zip(got, plain, strict=True)) > 1e-3
    assert log_probs(model) == plain  # to the last bit


@pytest.mark.parametrize("site", SITES)
def test_after_prompt_as_an_edit_from_the_last_prompt_token_on(model: HuggingFaceModel, site: Site) -> None:
    changes = {b: add(width_of(model, site), seed=b) for b in (0, len(model.blocks) - 1)}
    plain = log_probs(model)
    with Edit(model, site, changes, positions="after_prompt"):
        got = log_probs(model)
    by_hand = []
    for item in ITEMS:
        with Plainly(model, site, changes, first=len(model.encode(item[0]).ids) - 1):
            by_hand.append(one_pass(model, item))
    assert got == pytest.approx(by_hand, rel=1e-5)
    assert min(abs(a - b) for a, b in zip(got, plain, strict=True)) > 1e-3
    assert log_probs(model) == plain


def test_the_two_position_modes_differ(llama: HuggingFaceModel) -> None:
    scores = []
    for positions in ("all", "after_prompt"):
        with Edit(llama, "residual", {0: add(28)}, positions=positions):  # type: ignore[arg-type]
            scores.append(log_probs(llama))
    assert min(abs(a - b) for a, b in zip(*scores, strict=True)) > 1e-3


@pytest.mark.parametrize("positions", ["all", "after_prompt"])
def test_cached_generation_says_what_scoring_calls_likeliest(model: HuggingFaceModel, positions: Any) -> None:
    """Every greedy answer of a padded batch is greedy by the teacher-forced score, and not what it was before."""
    changes = {b: add(model.width, seed=b, size=8.0) for b in range(len(model.blocks))}
    before = _generated(model)
    with Edit(model, "residual", changes, positions=positions):
        got = _generated(model)
        rows = model.tokenise((prompt, "x") for prompt in PROMPTS)
        rows = [row._replace(response=tuple(ids)) for row, ids in zip(rows, got, strict=True)]
        assert all(scored.is_greedy for scored in model.score_rows(rows))
    assert got != before
    assert _generated(model) == before


def _generated(model: HuggingFaceModel) -> list[list[int]]:
    """Ids of up to four greedy tokens for each of the prompts, as one left-padded batch."""
    rows = [model.encode(prompt).ids for prompt in PROMPTS]
    longest = max(map(len, rows))
    padded = [(nn.functional.pad(row, (longest - len(row), 0), value=model.tokenizer.pad_token_id)) for row in rows]
    mask = [nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows]
    out = model.hf.generate(
        input_ids=torch.stack(padded),
        attention_mask=torch.stack(mask),
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    end = model.tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in out[:, longest:].tolist()]


def test_an_edit_of_the_last_row_alone_cannot_change_a_score_made_in_one_pass(llama: HuggingFaceModel) -> None:
    """Why `after_prompt` starts at the prompt's last token, and why a run that hides the prompt's end is refused."""
    edit = Edit(llama, "residual", {b: add(28, seed=b) for b in range(3)}, positions="after_prompt")
    plain = [one_pass(llama, item) for item in ITEMS]
    with edit:
        assert [one_pass(llama, item, use_cache=True) for item in ITEMS] == plain
        with pytest.raises(ValueError, match="needs a run with a cache"):
            one_pass(llama, ITEMS[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("positions", ["all", "after_prompt"])
def test_other_types_run_and_keep_their_type(dtype: torch.dtype, positions: Any) -> None:
    model, wide = random_llama(dtype=dtype), random_llama(dtype=torch.float64)
    seen: list[torch.dtype] = []

    def change(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return add(28)(x)

    plain = log_probs(model)
    with Edit(model, "residual", {0: change, 2: change}, positions=positions):
        got = log_probs(model)
    with Edit(wide, "residual", {0: add(28), 2: add(28)}, positions=positions):
        exact = log_probs(wide)
    assert set(seen) == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert got == pytest.approx(exact, rel={torch.bfloat16: 0.05, torch.float16: 5e-3}.get(dtype, 1e-6))
    assert log_probs(model) == plain
    assert capture(model, ITEMS, site="mlp").dtype == seen[0]


def test_edits_stack_in_the_order_given(llama: HuggingFaceModel) -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    def single(change: Change) -> Edit:
        return Edit(llama, "mlp", {1: change})

    add1 = add(28)
    with together(single(add1), single(double)):
        add_first = log_probs(llama)
    with together(single(double), single(add1)):
        double_first = log_probs(llama)
    with single(lambda x: 2 * (x + add1(torch.zeros(28)))):
        assert log_probs(llama) == pytest.approx(add_first, rel=1e-5)
    with single(lambda x: 2 * x + add1(torch.zeros(28))):
        assert log_probs(llama) == pytest.approx(double_first, rel=1e-5)
    assert add_first != pytest.approx(double_first, abs=1e-3)


def n_hooks(model: HuggingFaceModel) -> int:
    """How many hooks there are; transformers leaves some of its own once hidden states were asked for."""
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.hf.modules())


def test_one_edit_may_be_entered_again_and_leaves_nothing_after_an_error(llama: HuggingFaceModel) -> None:
    plain, hooks = log_probs(llama), n_hooks(llama)
    edit = Edit(llama, "residual", {1: add(28)}, positions="after_prompt")
    with edit:
        once = log_probs(llama)
        with edit:
            assert log_probs(llama) != once
        assert log_probs(llama) == once
    with pytest.raises(RuntimeError, match="boom"), edit:
        raise RuntimeError("boom")
    assert log_probs(llama) == plain
    assert n_hooks(llama) == hooks


def test_what_is_read_inside_an_edit_holds_it(llama: HuggingFaceModel) -> None:
    plain = capture(llama, ITEMS, site="residual")
    with Edit(llama, "residual", {1: lambda x: x + 3}):
        inside = capture(llama, ITEMS, site="residual")
    assert torch.equal(inside[:, 0], plain[:, 0])
    torch.testing.assert_close(inside[:, 1], plain[:, 1] + 3)


def test_impossible_edits_are_refused(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=r"blocks must be different numbers from 0 to 2; got \[3, -1, 0\]"):
        Edit(llama, "residual", {3: add(28), -1: add(28), 0: add(28)})
    with pytest.raises(ValueError, match=r"must keep the shape"), Edit(llama, "mlp", {0: lambda x: x[..., :5]}):
        log_probs(llama)
    with pytest.raises(ValueError, match=r"needs vectors \(L, d\) = \(3, 28\); got \(28, 3\)"):
        check_vectors(llama, torch.zeros(28, 3))


# --- pictures


@pytest.fixture(scope="module")
def qwen_vl() -> HuggingFaceModel:
    return random_qwen_vl()


def seen_items() -> list[Any]:
    return [
        ("<image>What is this?", "It is round.", noise_picture(60, 90)),
        ("<image>Is", "a", noise_picture(84, 56, 1)),
    ]


def test_image_tokens_are_edited_with_all_positions_and_not_after_the_prompt(vision_model: HuggingFaceModel) -> None:
    (item, *_) = items = seen_items()
    encoded = vision_model.encode(item[0], item[2])
    image = [j for j, kind in enumerate(encoded.kinds) if kind == "image"]
    assert image
    change = add(vision_model.width)
    for positions, edited in (("all", range(len(encoded.ids))), ("after_prompt", [len(encoded.ids) - 1])):
        rows: list[Tensor] = []
        plain = log_probs(vision_model, items)
        with torch.no_grad(), Edit(vision_model, "block_input", {0: change}, positions=positions):  # type: ignore[arg-type]
            handle = vision_model.blocks[0].register_forward_pre_hook(lambda m, a, rows=rows: rows.append(a[0]))
            vision_model.score([item])
            handle.remove()
            got = log_probs(vision_model, items)
        moved = (rows[0][0] - encoded.embeds).abs().amax(-1) > 1e-6
        assert moved.nonzero()[:, 0].tolist() == list(edited)
        by_hand = []
        for one in items:
            p = len(vision_model.encode(one[0], one[2]).ids)
            with Plainly(vision_model, "block_input", {0: change}, first=0 if positions == "all" else p - 1):
                by_hand.append(one_pass(vision_model, one))
        assert got == pytest.approx(by_hand, rel=1e-5)
        assert got != plain
        assert log_probs(vision_model, items) == plain


def test_decoder_blocks_are_meant_where_the_vision_tower_has_more(qwen_vl: HuggingFaceModel) -> None:
    vision, text = qwen_vl.hf.config.vision_config, qwen_vl.text_config
    assert vision.depth > text.num_hidden_layers
    assert capture(qwen_vl, seen_items(), site="heads").shape[:2] == (2, text.num_hidden_layers)
    with pytest.raises(ValueError, match="from 0 to 3"):
        Edit(qwen_vl, "mlp", {vision.depth - 1: add(48)})
    decoder = {id(module) for module in qwen_vl.hf.get_decoder().modules()}
    for site in SITES:
        with Edit(qwen_vl, site, {b: add(48) for b in range(4)}):
            hooked = [m for m in qwen_vl.hf.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert len(hooked) == 4
        assert {id(module) for module in hooked} <= decoder


def test_pixels_are_changed_before_the_tower_and_features_not_kept(vision_model: HuggingFaceModel) -> None:
    (prompt, response, picture) = seen_items()[0]
    plain, hooks = log_probs(vision_model, [(prompt, response, picture)]), n_hooks(vision_model)
    kept = dict(vision_model._features)
    assert kept

    shapes: list[Any] = []

    def darken(pixels: Tensor) -> Tensor:
        shapes.append(pixels.shape)
        return pixels * 0.2

    with edit_pixels(vision_model, darken):
        dark = log_probs(vision_model, [(prompt, response, picture)])
        assert log_probs(vision_model, [(prompt, response, picture)]) == dark
        words = vision_model.generate([prompt], images=[picture], max_new_tokens=2)
    assert len(shapes) == 2  # once for both scores, once for generation
    processed = vision_model.family.tensors([Picture.of(picture)])["pixel_values"]
    assert shapes == [vision_model.family.pixel_layout.at_tower(processed).shape] * 2
    assert dark != plain
    assert {k: id(v) for k, v in vision_model._features.items()} == {k: id(v) for k, v in kept.items()}
    assert log_probs(vision_model, [(prompt, response, picture)]) == plain
    assert isinstance(words[0], str)
    assert n_hooks(vision_model) == hooks
    with edit_pixels(vision_model, lambda pixels: pixels):
        assert log_probs(vision_model, [(prompt, response, picture)]) == plain


def test_pixels_changed_are_those_of_a_changed_picture(qwen_vl: HuggingFaceModel) -> None:
    """Exchanging one picture's pixels for another's gives the other picture's score."""
    one, other = noise_picture(56, 56), noise_picture(56, 56, seed=5)
    prompt = "<image>What is this?"
    pixels: list[Tensor] = []
    with edit_pixels(qwen_vl, lambda p: (pixels.append(p), p)[1]):
        expected = log_probs(qwen_vl, [(prompt, "Rome", other)])
    words = [qwen_vl.generate([prompt], images=[picture], max_new_tokens=4) for picture in (one, other)]
    assert words[0] != words[1]
    with edit_pixels(qwen_vl, lambda p: pixels[0]):
        assert log_probs(qwen_vl, [(prompt, "Rome", one)]) == expected
        assert qwen_vl.generate([prompt], images=[one], max_new_tokens=4) == words[1]


def test_text_models_have_no_pixels(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="takes no pictures"), edit_pixels(llama, lambda p: p):
        pass


# --- directions


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_move_that_keeps_the_norm() -> None:
    x, y = drawn(2, 5, 7), drawn(7, seed=1)
    x[0, 0] = 0
    moved = keep_norm(x, y)
    torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(keep_norm(x, 0 * y), x)
    by_hand = x[1, 2] / x[1, 2].norm() + y
    torch.testing.assert_close(moved[1, 2], by_hand / by_hand.norm() * x[1, 2].norm())
    assert torch.equal(unit(torch.zeros(3)), torch.zeros(3))
    torch.testing.assert_close(unit(x[1]).norm(dim=-1), torch.ones(5).double())


@pytest.mark.parametrize("shape", [(50, 9), (6, 40), (3, 3)])
def test_the_component_is_scikit_learns_where_the_sign_rule_is(shape: tuple[int, int]) -> None:
    rows = drawn(*shape) * torch.linspace(3, 0.1, shape[1]) + 1
    p, mean = first_component(rows, centred=True, sign="loading")
    sklearn = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    peer = sklearn.PCA(n_components=1, svd_solver="full").fit(rows.numpy())
    np.testing.assert_allclose(p.numpy(), peer.components_[0], atol=1e-10)
    np.testing.assert_allclose(mean.numpy(), peer.mean_, atol=1e-12)


def test_an_uncentred_component_is_the_leading_eigenvector_of_the_second_moments() -> None:
    rows = drawn(20, 6) + torch.tensor([2.0, 0, 0, 0, 0, 1])
    p, _ = first_component(rows, centred=False, sign="mean")
    leading = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
    torch.testing.assert_close(p, leading * (leading @ rows.mean(0)).sign())


@pytest.mark.parametrize("centred", [True, False])
def test_the_three_sign_rules(centred: bool) -> None:
    for seed in range(8):
        rows = drawn(5, 4, seed=seed) + drawn(4, seed=seed + 100) * 0.3
        z = rows - rows.mean(0) if centred else rows
        p = {s: first_component(rows, centred=centred, sign=s)[0] for s in ("score", "loading", "mean")}  # type: ignore[arg-type]
        scores = z @ p["score"]
        assert scores.max() > -scores.min()
        assert p["loading"].max() > -p["loading"].min()
        assert rows.mean(0) @ p["mean"] > 0
        for one in p.values():
            assert torch.equal(one, p["mean"]) or torch.equal(one, -p["mean"])
            assert float(one.norm()) == pytest.approx(1)


def test_centring_takes_the_shared_shift_away() -> None:
    """The figures of a synthetic check: 50 rows, a shared shift, and one noisy axis across it."""
    shift, axis = torch.eye(30).double()[:2]
    rows = 3 * shift + 2 * drawn(50, 1) * axis + 0.1 * drawn(50, 30, seed=1)
    assert abs(first_component(rows, centred=True, sign="mean")[0] @ shift) < 0.1
    assert first_component(rows, centred=False, sign="mean")[0] @ shift > 0.98
    order = torch.where(drawn(50, seed=2) > 0, 1.0, -1.0)[:, None]
    assert abs(first_component(order * rows, centred=True, sign="mean")[0] @ shift) > 0.95


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sign", ["score", "loading", "mean"])
def test_rows_without_spread_have_no_direction(centred: bool, sign: Any) -> None:
    for noise in (0.0, 1e-9):  # rounding is no spread
        rows = (drawn(1, 6) + noise * drawn(5, 6)) if centred else torch.zeros(5, 6)
        with pytest.raises(DegenerateShiftsError, match=r"block 7: the 5 differences are all (equal|zero)"):
            first_component(rows, centred=centred, sign=sign, where="block 7")


def test_rows_that_cancel_give_the_mean_no_sign() -> None:
    rows = drawn(4, 6)
    with pytest.raises(DegenerateShiftsError, match="its sign is undefined"):
        first_component(torch.cat([rows, -rows]), centred=True, sign="mean")
    with pytest.raises(DegenerateShiftsError, match="block 2: the mean difference of 8 pairs is zero"):
        mean_difference(torch.cat([rows, -rows * (1 + 1e-9)]), where="block 2")


@pytest.mark.parametrize("rows", [drawn(2, 4), drawn(4), drawn(3, 4) / 0])
def test_too_few_or_broken_rows_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 3 finite rows"):
        first_component(rows, centred=True, sign="score")


def test_an_edit_does_not_depend_on_which_pictures_were_seen_before(vision_model: HuggingFaceModel) -> None:
    items = [("<image>What is this?", "It is round.", noise_picture(60, 90, seed=11))]
    edit = Edit(vision_model, "residual", {1: add(vision_model.width)}, positions="after_prompt")
    with edit:
        unseen = log_probs(vision_model, items)  # the picture's features are computed while the edit is active
        seen = log_probs(vision_model, items)
    assert unseen == seen != log_probs(vision_model, items)
