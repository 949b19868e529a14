"""methods/decoding: VCD, CRG and IMMUNE, by hand, in scoring and in transformers' own loop, alone and with steering."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import ImageDraw
from torch import Tensor, nn
from transformers import LogitsProcessor

from grains_ref.data import PreferencePair, Task
from grains_ref.demo.planted import boxes_of, stereotype_judge
from grains_ref.evaluation.measures import margins, preference_accuracy
from grains_ref.grains import Hooks, Steering
from grains_ref.methods import ict
from grains_ref.methods.core import edit_pixels, together
from grains_ref.methods.decoding import crg, immune, vcd
from grains_ref.methods.decoding.contrast import contrasted
from grains_ref.methods.decoding.crg import CRG, regions_of
from grains_ref.methods.decoding.immune import Immune
from grains_ref.methods.decoding.vcd import VCD
from grains_ref.models import HuggingFaceModel, TokenRow
from grains_ref.models.decoding import Rows
from grains_ref.models.families import Picture
from grains_ref.models.next_token import Rule, processor
from grains_ref.models.replay import left_pad
from grains_ref.models.scoring import TokenPrompt
from grains_ref.tiny_models.random_vision_models import noise_picture, random_llava, random_qwen_vl
from grains_ref.tiny_models.visual_worlds import build_visual_world

pytestmark = pytest.mark.cpu

PROMPTS = ["<image>Is there a cat in the image?", "<image>Is it a dog? Say it."]
BOX = (10, 6, 40, 50)


def prompts_of(model: HuggingFaceModel) -> list[str]:
    return [prompt.replace("<image>", model.family.marker) for prompt in PROMPTS]


def pictures() -> list[Any]:
    return [noise_picture(84, 84, 0), noise_picture(112, 60, 1)]


def items_of(model: HuggingFaceModel) -> list[Any]:
    return list(zip(prompts_of(model), ["yes it is", "no"], pictures(), strict=True))


def pairs_of(model: HuggingFaceModel) -> list[PreferencePair]:
    return [
        PreferencePair(str(i), prompt, "yes", "no", where=f"test:{i}", image=picture)
        for i, (prompt, picture) in enumerate(zip(prompts_of(model), pictures(), strict=True))
    ]


def regions(model: HuggingFaceModel) -> dict[TokenPrompt, tuple[ict.Box, ...]]:
    return regions_of(model, pairs_of(model), lambda row: [BOX])


def likes_vowels(prompt: str, responses: Sequence[str]) -> list[float]:
    return [sum(letter in "aeiou" for letter in response) / 4 for response in responses]


RULES = {
    "VCD": lambda model: VCD(alpha=1.5, beta=0.05),
    "CRG": lambda model: CRG(alpha=2.0, regions=regions(model)),
    "IMMUNE": lambda model: Immune(likes_vowels, weight=3.0, k=4),
}


# --- closed forms


def test_the_contrast_by_hand() -> None:
    own, degraded = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 3.0]])
    assert contrasted(own, degraded, alpha=1.0, beta=0.0).tolist() == [[3.0, 1.0, -3.0]]
    assert contrasted(own, degraded, alpha=0.5, beta=0.3).tolist() == [[2.5, 1.0, -math.inf]]
    assert contrasted(own, degraded, alpha=0.5, beta=0.4).tolist() == [[2.5, -math.inf, -math.inf]]
    assert contrasted(own, degraded, alpha=0.0, beta=0.0).equal(own)


def test_plausible_tokens_are_those_with_a_share_beta_of_the_best_probability() -> None:
    own = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 2
    for beta in (0.01, 0.1, 0.5, 1.0):
        new = contrasted(own, torch.zeros_like(own), alpha=1.0, beta=beta)
        p = own.softmax(-1)
        assert (new > -math.inf).equal(p >= beta * p.amax(-1, keepdim=True))


@pytest.mark.parametrize("rule", ["VCD", "CRG", "IMMUNE"])
def test_weight_zero_is_the_model_itself_bit_for_bit(vision_model: HuggingFaceModel, rule: str) -> None:
    neutral: dict[str, Rule] = {
        "VCD": VCD(alpha=0.0),
        "CRG": CRG(alpha=0.0, regions=regions(vision_model)),
        "IMMUNE": Immune(likes_vowels, weight=0.0, k=10_000),
    }
    items, options = items_of(vision_model), {"max_new_tokens": 4, "images": pictures()}
    plain, text = vision_model.score(items), vision_model.generate(prompts_of(vision_model), **options)
    with neutral[rule].steering(vision_model):  # type: ignore[attr-defined]
        assert vision_model.score(items) == plain
        assert vision_model.generate(prompts_of(vision_model), **options) == text


def test_a_prompt_without_a_picture_is_left_alone_also_beside_one_with() -> None:
    model = random_llava()
    items = [("Is the earth flat?", "no"), *items_of(model)]
    plain = model.score(items)
    with VCD(alpha=2.0, beta=0.1).steering(model):
        changed = model.score(items)
        alone = model.score(items[1:])
    assert changed[0] == plain[0]
    assert [one.log_prob for one in changed[1:]] == pytest.approx([one.log_prob for one in alone], abs=1e-4)
    assert all(a.log_prob != b.log_prob for a, b in zip(plain[1:], changed[1:], strict=True))


# --- what is contrasted, by an independent run on ids and pixels


def logits_by_hand(model: HuggingFaceModel, prompt: str, response: Tensor, picture: Any, noise: Any = None) -> Tensor:
    """(R, V) from the model's own forward pass, one unpadded prompt, no cache; noise: weights of picture and noise."""
    read = Picture.of(picture)
    ids, _ = model.prompts.encode(prompt, (read,))
    row = torch.tensor([[*ids, *response.tolist()]])
    tensors = model.family.tensors([read])
    inputs = tensors | model.family.generation(row == model.prompts.image_id)
    if noise:
        generator = torch.Generator().manual_seed(int(read.digest[:12], 16))
        drawn = model.family.pixel_layout.noise(tensors["pixel_values"].shape, generator)
        inputs["pixel_values"] = noise[0] * tensors["pixel_values"] + noise[1] * drawn
    with torch.no_grad():
        logits: Tensor = model.hf(input_ids=row, attention_mask=torch.ones_like(row), **inputs, use_cache=False).logits
    return logits[0, len(ids) - 1 : -1]


@pytest.mark.parametrize("first_only", [False, True])
def test_scores_under_vcd_by_hand(vision_model: HuggingFaceModel, first_only: bool) -> None:
    model, alpha, beta = vision_model, 1.5, 1e-4
    with VCD(alpha=alpha, beta=beta, noise_step=700, first_only=first_only).steering(model):
        scored = model.score(items_of(model))
    for (prompt, answer, picture), got in zip(items_of(model), scored, strict=True):
        response = model.response_ids(prompt, answer)
        own = logits_by_hand(model, prompt, response, picture)
        noised = logits_by_hand(model, prompt, response, picture, ict.noise_weights(700))
        new = (1 + alpha) * own - alpha * noised
        if first_only:
            new[1:] = own[1:]
        p = own.softmax(-1)
        new = new.masked_fill(p < beta * p.amax(-1, keepdim=True), -math.inf)
        log_p = new.log_softmax(-1).gather(1, response[:, None]).sum().item()
        assert got.log_prob == pytest.approx(log_p, abs=2e-3)


def test_scores_under_crg_by_hand(vision_model: HuggingFaceModel) -> None:
    model, alpha = vision_model, 2.0
    with CRG(alpha=alpha, regions=regions(model)).steering(model):
        scored = model.score(items_of(model))
    for (prompt, answer, picture), got in zip(items_of(model), scored, strict=True):
        response = model.response_ids(prompt, answer)
        own = logits_by_hand(model, prompt, response, picture)
        black = picture.copy()
        left, top, right, bottom = BOX
        ImageDraw.Draw(black).rectangle((left, top, right - 1, bottom - 1), fill="black")
        masked = logits_by_hand(model, prompt, response, black)
        log_p = (own + alpha * (own - masked)).log_softmax(-1).gather(1, response[:, None]).sum().item()
        assert got.log_prob == pytest.approx(log_p, abs=2e-3)


def test_the_noise_is_that_of_ict_and_belongs_to_the_picture() -> None:
    model, (prompt, _, picture) = random_llava(), items_of(random_llava())[0]
    pair = PreferencePair("1", prompt, "yes", "no", where="a test", image=picture)
    seen: list[Tensor] = []

    def see(tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["pixel_values"])

    look = Hooks(before=[(model.family.vision_tower(model.hf), see)])
    with edit_pixels(model, ict._noise(model, pair, ict.noise_weights(500), seed=3)), look:
        model.score([(prompt, "yes", picture)])
    torch.manual_seed(8)
    with VCD(alpha=1.0, seed=3).steering(model), look:
        model.score([(prompt, "yes", picture)])
    by_ict, plain, by_vcd = seen
    assert by_vcd.equal(by_ict)
    assert not by_vcd.allclose(plain)


def test_features_of_noised_pictures_are_kept_apart() -> None:
    model = random_llava()
    items = items_of(model)
    rules = [VCD(alpha=1.0), VCD(alpha=1.0, seed=1), VCD(alpha=1.0, noise_step=900)]
    with rules[0].steering(model):
        before_plain = model.score(items)
    plain = model.score(items)
    assert plain == random_llava().score(items)
    results = [before_plain]
    for rule in rules[1:]:
        with rule.steering(model):
            results.append(model.score(items))
    with rules[0].steering(model):
        assert model.score(items) == before_plain
    assert len({one.log_prob for scored in (plain, *results) for one in scored}) == 8


def test_a_region_is_needed_of_every_prompt_with_a_picture() -> None:
    model = random_llava()
    first, _ = pairs_of(model)
    known = regions_of(model, [first], lambda row: [])
    items = items_of(model)
    plain = model.score(items[:1])
    with CRG(alpha=3.0, regions=known).steering(model):
        assert model.score(items[:1]) == plain  # an empty list: left alone
        with pytest.raises(ValueError, match="no region is known of the prompt '<s> Is it a dog"):
            model.score(items[1:])
    with pytest.raises(ValueError, match="covers no pixel"):
        regions_of(model, [first], lambda row: [(200, 200, 300, 300)])
    boxes = iter([[BOX], [(0, 0, 5, 5)]])
    with pytest.raises(ValueError, match="another region"):
        regions_of(model, [first, first], lambda row: next(boxes))
    several = PreferencePair("2", first.prompt, "yes", "no", where="a test", image=pictures())
    with pytest.raises(ValueError, match="2 pictures"):
        regions_of(model, [several], lambda row: [BOX])
    assert regions_of(model, [Task("3", "1 2 3", "4")], lambda row: [BOX]) == {}


# --- a reward


def test_scores_under_immune_by_hand(llama: HuggingFaceModel) -> None:
    asked: list[tuple[str, list[str]]] = []

    def reward(prompt: str, responses: Sequence[str]) -> list[float]:
        asked.append((prompt, list(responses)))
        return likes_vowels(prompt, responses)

    prompt, k = "The sun is", 6
    encoded = llama.encode(prompt)
    response = llama.response_ids(prompt, "a star")
    response = torch.cat([llama.logits(encoded, encoded.embeds[None], response)[0, :1].argmax(-1), response[1:]])
    with Immune(reward, weight=2.0, k=k).steering(llama):
        (scored,) = llama.score_rows([TokenRow(tuple(encoded.ids.tolist()), tuple(response[:1].tolist()))])
    own = llama.logits(encoded, encoded.embeds[None], response[:1])[0, 0]
    best = own.topk(k).indices
    texts = [llama.prompts.text([token], skip_special_tokens=True).strip() for token in best.tolist()]
    assert asked == [(prompt, texts)]
    weighted = own[best].exp() * torch.tensor([math.exp(2.0 * one) for one in likes_vowels("", texts)])
    assert scored.log_prob == pytest.approx((weighted[0] / weighted.sum()).log().item(), abs=1e-4)


def test_only_candidates_are_left_and_a_reward_chooses_among_them(llama: HuggingFaceModel) -> None:
    prompt = "The sun is"
    greedy = llama.generate([prompt], max_new_tokens=3)
    with Immune(likes_vowels, weight=50.0, k=1).steering(llama):
        assert llama.generate([prompt], max_new_tokens=3) == greedy
        (scored,) = llama.score([(prompt, "flat")])
    assert scored.is_forbidden
    assert scored.log_prob == -math.inf
    assert not scored.is_greedy


def test_looking_ahead_rewards_what_the_model_makes_of_a_candidate(llama: HuggingFaceModel) -> None:
    asked: list[list[str]] = []

    def reward(prompt: str, responses: Sequence[str]) -> list[float]:
        asked.append(list(responses))
        return [0.0] * len(responses)

    prompt = "The sun is"
    ids = tuple(llama.encode(prompt).ids.tolist())
    with Immune(reward, k=3, look_ahead=4).steering(llama):
        llama.score_rows([TokenRow(ids, (7,))])
    encoded = llama.encode(prompt)
    candidates = llama.logits(encoded, encoded.embeds[None], torch.tensor([7]))[0, 0].topk(3).indices
    expected = []
    for token in candidates.tolist():
        row = torch.tensor([[*ids, token]])
        out = llama.hf.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=4, do_sample=False)
        expected.append(llama.prompts.text(out[0, len(ids) :].tolist(), skip_special_tokens=True).strip())
    assert asked == [expected]


def test_rewards_that_are_none_are_refused(llama: HuggingFaceModel) -> None:
    for given in ([1.0], [math.nan] * 5):
        rule = Immune(lambda prompt, responses, given=given: given)  # type: ignore[misc]
        with rule.steering(llama), pytest.raises(ValueError, match="expected 5 finite rewards"):
            llama.score([("The sun is", "flat")])


def test_padding_is_not_rewarded(llama: HuggingFaceModel) -> None:
    asked = []

    def reward(prompt: str, responses: Sequence[str]) -> list[float]:
        asked.append(responses)
        return [0.0] * len(responses)

    with Immune(reward).steering(llama):
        llama.score_rows([TokenRow((1, 2), (3,)), TokenRow((1, 2), (3, 4, 5))])
    assert len(asked) == 1 + 3


# --- generation and scoring say the same


def generated_ids(
    model: HuggingFaceModel, change: Rule | LogitsProcessor, *, n: int, **options: Any
) -> list[list[int]]:
    """n tokens from transformers' own loop with a rule as a logits processor; both prompts in one padded batch."""
    if isinstance(change, Rule):
        change = processor(model, change, prompts_of(model), pictures())
    read = [Picture.of(picture) for picture in pictures()]
    rows = [
        torch.tensor(model.prompts.encode(prompt, (picture,))[0])
        for prompt, picture in zip(prompts_of(model), read, strict=True)
    ]
    batch = left_pad(rows, value=model.prompts.pad_id())
    inputs = {"input_ids": batch, "attention_mask": left_pad([torch.ones_like(row) for row in rows], value=0)}
    inputs |= model.family.generation(batch == model.prompts.image_id) | model.family.tensors(read)
    options |= {"do_sample": False, "max_new_tokens": n, "pad_token_id": 0, "eos_token_id": None}
    loop: Any = model.hf.generate
    out = loop(**inputs, logits_processor=[change], **options)
    return [row[batch.shape[1] :] for row in out.tolist()]


@pytest.mark.parametrize("name", RULES)
def test_what_greedy_decoding_gives_is_what_scoring_calls_greedy(vision_model: HuggingFaceModel, name: str) -> None:
    model, rule = vision_model, RULES[name](vision_model)
    responses = generated_ids(model, rule, n=5)
    rows = []
    for prompt, picture, response in zip(prompts_of(model), pictures(), responses, strict=True):
        read = Picture.of(picture)
        rows.append(TokenRow(tuple(model.prompts.encode(prompt, (read,))[0]), tuple(response), (read,)))
        rows.append(rows[-1]._replace(response=(*response[:-1], (response[-1] + 1) % 300)))
    plain = model.score_rows(rows)
    with rule.steering(model):
        scored = model.score_rows(rows)
    assert [one.is_greedy for one in scored] == [True, False] * 2
    assert all(a.log_prob != b.log_prob for a, b in zip(plain, scored, strict=True))


@pytest.mark.thorough
def test_generate_inside_follows_the_rule_and_leaves_no_trace() -> None:
    model = random_qwen_vl()
    prompts, options = prompts_of(model), {"max_new_tokens": 5, "images": pictures()}
    plain = model.generate(prompts, **options)
    rule = VCD(alpha=3.0, beta=0.05)
    with rule.steering(model):
        inside = model.generate(prompts, **options)
    texts = [model.prompts.text(ids, skip_special_tokens=True).strip() for ids in generated_ids(model, rule, n=5)]
    assert inside == texts != plain
    assert model.generate(prompts, **options) == plain


class FromScratch(LogitsProcessor):
    """The contrast without caches or memory: every row's two prompts are run again at each step."""

    def __init__(self, model: HuggingFaceModel, alpha: float) -> None:
        self.model, self.alpha = model, alpha
        self.n = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.n = self.n or input_ids.shape[1]
        of_prompt = len(input_ids) // len(PROMPTS)
        new = scores.clone()
        for row in range(len(input_ids)):
            i = row // of_prompt
            response = torch.cat([input_ids[row, self.n :], torch.tensor([0])])
            prompt, picture = prompts_of(self.model)[i], pictures()[i]
            noised = logits_by_hand(self.model, prompt, response, picture, ict.noise_weights(500))[-1]
            new[row] = (1 + self.alpha) * scores[row] - self.alpha * noised
        return new


@pytest.mark.thorough
def test_beams_that_change_places_keep_their_own_contrast() -> None:
    model = random_llava()
    got = generated_ids(model, VCD(alpha=1.0), n=7, num_beams=5)
    assert got == generated_ids(model, FromScratch(model, 1.0), n=7, num_beams=5)
    assert got != generated_ids(model, VCD(alpha=1.0), n=7)


def test_rows_that_change_places_are_read_again() -> None:
    model = random_llava()
    prompt, picture = prompts_of(model)[0], pictures()[0]
    ids, _ = model.prompts.encode(prompt, (Picture.of(picture),))
    steps = [
        torch.tensor([[*ids, *response] for response in responses])
        for responses in ([(), (), ()], [(5,), (90,), (201,)], [(90, 7), (5, 8), (90, 9)])
    ]
    scores = torch.zeros(3, model.text_config.vocab_size)
    in_order, at_once = (processor(model, VCD(alpha=1.0), [prompt], [picture]) for _ in range(2))
    results = [in_order(step, scores) for step in steps]
    at_once(steps[0], scores)
    torch.testing.assert_close(results[2], at_once(steps[2], scores), rtol=0, atol=1e-4)


def test_a_processor_refuses_rows_of_other_prompts(llama: HuggingFaceModel) -> None:
    of_two = processor(llama, Immune(likes_vowels), ["a", "b"])
    with pytest.raises(ValueError, match="2 prompts was given 3 rows"):
        of_two(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 400))
    with pytest.raises(ValueError, match="2 prompts but 1 images"):
        processor(llama, Immune(likes_vowels), ["a", "b"], [None])


def test_long_responses_in_slices_and_one_by_one() -> None:
    model = random_llava()
    items = [(prompt, "yes it is there and not here", picture) for prompt, _, picture in items_of(model)]
    with VCD(alpha=1.0).steering(model):
        at_once, sliced = model.score(items), model.score(items, memory=367 * 12 * 6, batch_size=2)
    assert [one.log_prob for one in sliced] == pytest.approx([one.log_prob for one in at_once], abs=1e-3)


# --- with steering, in threads, after each other


def test_both_runs_are_steered() -> None:
    model = random_llava()
    v = torch.randn(3, model.width, generator=torch.Generator().manual_seed(1))
    (prompt, answer, picture), alpha = items_of(model)[0], 1.0
    response = model.response_ids(prompt, answer)
    with together(Steering(model.blocks, v, lam=2.0), VCD(alpha=alpha).steering(model)):
        (both,) = model.score([(prompt, answer, picture)])
    with Steering(model.blocks, v, lam=2.0):
        own = logits_by_hand(model, prompt, response, picture)
        noised = logits_by_hand(model, prompt, response, picture, ict.noise_weights(500))
    log_p = ((1 + alpha) * own - alpha * noised).log_softmax(-1).gather(1, response[:, None]).sum().item()
    assert both.log_prob == pytest.approx(log_p, abs=2e-3)


def test_the_rule_entered_first_acts_first() -> None:
    model = random_llava()
    contrast, only_the_best = VCD(alpha=4.0), Immune(likes_vowels, weight=0.0, k=1)
    rows = []
    for prompt, picture, response in zip(
        prompts_of(model), pictures(), generated_ids(model, contrast, n=3), strict=True
    ):
        read = Picture.of(picture)
        rows.append(TokenRow(tuple(model.prompts.encode(prompt, (read,))[0]), tuple(response), (read,)))
    options = {"max_new_tokens": 4, "images": pictures()}
    plain = model.generate(prompts_of(model), **options)
    with contrast.steering(model), only_the_best.steering(model):
        assert [one.is_greedy for one in model.score_rows(rows)] == [True, True]
        assert model.generate(prompts_of(model), **options) != plain
    with only_the_best.steering(model), contrast.steering(model):
        assert [one.is_forbidden for one in model.score_rows(rows)] == [True, True]
        assert model.generate(prompts_of(model), **options) == plain


def test_other_threads_and_models_follow_no_rule() -> None:
    model, other = random_llava(), random_llava(seed=1)
    items = items_of(model)
    plain, of_other = model.score(items), other.score(items)
    with VCD(alpha=1.0).steering(model):
        assert model.score(items) != plain
        assert other.score(items) == of_other
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(model.score, items).result(timeout=60) == plain
    assert model.score(items) == plain


def test_a_task_that_outlives_the_rule_is_plain_again(llama: HuggingFaceModel) -> None:
    items = [("The sun is", "flat")]
    plain = llama.score(items)

    async def both() -> tuple[Any, Any]:
        leave = asyncio.Event()

        async def later() -> Any:
            inside = llama.score(items)
            await leave.wait()
            return inside, llama.score(items)

        with Immune(likes_vowels).steering(llama):
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
        leave.set()
        inside, outside = await task
        return inside, outside

    inside, outside = asyncio.run(both())
    assert inside != plain
    assert outside == plain


def test_rows_that_come_and_go_refuse_rules(llama: HuggingFaceModel) -> None:
    with Immune(likes_vowels).steering(llama), pytest.raises(ValueError, match="without rules"):
        Rows.begin(llama, [[1, 2]])


def test_two_forbidden_answers_are_a_tie(llama: HuggingFaceModel) -> None:
    pair = PreferencePair("1", "The sun is", "flat", "round", where="a test")
    with Immune(likes_vowels, k=1).steering(llama):
        assert margins(llama, [pair]) == [0.0]
        assert preference_accuracy(llama, [pair]).value == 0.0


def test_settings_that_mean_nothing_are_refused(llama: HuggingFaceModel) -> None:
    for wrong in ({"alpha": -1.0}, {"alpha": 1.0, "beta": 1.5}, {"alpha": 1.0, "noise_step": 1000}):
        with pytest.raises(ValueError, match=r"expected|noise step"):
            VCD(**wrong)  # type: ignore[arg-type]
    for also in ({"weight": -1.0}, {"k": 0}, {"look_ahead": -1}):
        with pytest.raises(ValueError, match="expected"):
            Immune(likes_vowels, **also)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text model"):
        vcd.settings(llama)


def test_the_declared_grids(llama: HuggingFaceModel) -> None:
    model = random_llava()
    grid = [(setting.label, setting.strength) for setting in vcd.settings(model)]
    assert grid[:2] == [("VCD, noise step 500", 0.25), ("VCD, noise step 900", 0.25)]
    assert [strength for _, strength in grid] == sorted(strength for _, strength in grid)
    assert [setting.strength for setting in crg.settings(model, regions(model))] == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert [setting.strength for setting in immune.settings(llama, likes_vowels)][-1] == 16.0
    assert (vcd.PUBLISHED.alpha, vcd.PUBLISHED.beta, vcd.PUBLISHED.noise_step) == (1.0, 0.1, 500)
    with vcd.settings(model)[3].steering():
        assert model.score(items_of(model)) != random_llava().score(items_of(model))


# --- the visual worlds


def test_the_worlds_boxes_and_judge() -> None:
    world = build_visual_world("simple-visual")
    boxes = boxes_of(world)
    prompt = world.split("test")[0]
    left, top, right, bottom = boxes[prompt.id][0]
    assert (left // 28 + 3 * (top // 28), right - left, bottom - top) == (prompt.asked.cell, 28, 28)
    tasks = {task.kind: task for task in reversed(world.capability_split("dev"))}
    assert boxes[tasks["count"].id] == []
    (box,) = boxes[tasks["position"].id]
    (asked,) = [thing for thing in tasks["position"].scene if thing.shape in tasks["position"].prompt.split()]
    assert box[:2] == (28 * (asked.cell % 3), 28 * (asked.cell // 3))
    answers = [prompt.chosen, prompt.rejected, prompt.asked.shape, prompt.rejected.split()[1]]
    assert stereotype_judge(prompt.prompt, answers) == [0.0, -1.0, 0.0, 0.0]
