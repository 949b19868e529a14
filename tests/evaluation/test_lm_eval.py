"""harness.py: lm-evaluation-harness gets our numbers through our model, and its own model's numbers unsteered."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from grains_ref.data import Message
from grains_ref.datasets import truthfulqa
from grains_ref.datasets.records import Row, Where
from grains_ref.evaluation.measures import multiple_choice
from grains_ref.evaluation.metrics import bleu_scores
from grains_ref.grains import Steering
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module", autouse=True)
def lm_eval() -> Iterator[Any]:
    module = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: tox -e peer-lm-eval")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:  # it asks pip for every installed package after every evaluation
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        patch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)  # it reads files with `load_dataset`
        yield module


@dataclass(frozen=True)
class Question:
    """What `multiple_choice` needs."""

    prompt: str | tuple[Message, ...]
    choices: tuple[str, ...]
    labels: tuple[int, ...]
    images: tuple[()] = ()


TRUTHS = [  # invented, in the schema of truthful_qa's multiple_choice; mc2's labels are in no order
    ("Is the earth flat?", ("No.", "Yes, it is."), (("Y", "N", "No, it is round."), (0, 1, 1))),
    ("What is the moon made of?", ("rock", "cheese", "It is cheese."), (("C", "R"), (0, 1))),
    ("What is the capital of Spain?", ("Madrid.", "Rome.", "Paris.", "France."), (("M", "R", "P"), (1, 0, 0))),
    ("Tell me about the weather", ("It is round.", "It is true."), (("W", "T", "R", "M"), (0, 1, 0, 1))),
    ("What do people say?", ("The moon is rock.", "Cheese", "Rome"), (("Cheese", "The moon is rock."), (0, 1))),
]


@pytest.fixture(scope="module")
def tasks(lm_eval: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The packaged TruthfulQA tasks on a parquet of our own, without their long primer."""
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": question,
            "mc1_targets": {"choices": list(mc1), "labels": [1] + [0] * (len(mc1) - 1)},
            "mc2_targets": {"choices": list(choices), "labels": list(labels)},
        }
        for question, mc1, (choices, labels) in TRUTHS
    ]
    Dataset.from_list(rows).to_parquet(folder / "truths.parquet")
    for which in ("mc1", "mc2"):
        packaged = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / f"truthfulqa_{which}.yaml"
        (folder / f"{which}.yaml").write_text(
            f"include: {packaged}\n"
            f"task: local_{which}\n"
            "tag: null\n"
            "dataset_path: parquet\n"
            "dataset_name: null\n"
            f"dataset_kwargs: {{data_files: {{validation: {folder / 'truths.parquet'}}}, cache_dir: {folder}}}\n"
            'doc_to_text: "Q: {{question}}\\nA:"\n'
        )
    return TaskManager(include_path=str(folder), include_defaults=False)


def simple_evaluate(lm: Any, tasks: Any, **options: Any) -> dict[str, float]:
    import lm_eval

    results = lm_eval.simple_evaluate(
        lm, tasks=["local_mc1", "local_mc2"], task_manager=tasks, bootstrap_iters=0, log_samples=False, **options
    )
    return {which: results["results"][f"local_{which}"]["acc,none"] for which in ("mc1", "mc2")}


def our_numbers(model: HuggingFaceModel, *, chat: bool = False) -> dict[str, float]:
    def prompt(question: str) -> str | tuple[Message, ...]:
        text = f"Q: {question}\nA:"
        return ({"role": "user", "content": text},) if chat else text

    first = [Question(prompt(q), mc1, (1,) + (0,) * (len(mc1) - 1)) for q, mc1, _ in TRUTHS]
    second = [Question(prompt(q), choices, labels) for q, _, (choices, labels) in TRUTHS]
    right, masses = multiple_choice(model, first).mc1, multiple_choice(model, second).mc2
    return {"mc1": sum(right) / len(right), "mc2": sum(masses) / len(masses)}


def vectors(model: HuggingFaceModel) -> torch.Tensor:
    return torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(3))


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def hflm(model: HuggingFaceModel) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model.hf, tokenizer=model.tokenizer, batch_size=2, max_length=model.context)


def test_the_harness_gets_our_numbers_steered_and_unsteered(llama: HuggingFaceModel, tasks: Any) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    lm, seen = HarnessModel(llama), []
    for lam in (0.0, 0.7):
        with Steering(llama.blocks, vectors(llama), lam=lam):
            ours = our_numbers(llama)
            assert simple_evaluate(lm, tasks) == pytest.approx(ours, abs=1e-4)
            seen.append(ours)
    assert 0 < seen[0]["mc1"] < 1
    assert abs(seen[0]["mc2"] - seen[1]["mc2"]) > 0.01
    assert simple_evaluate(hflm(llama), tasks) == pytest.approx(seen[0], abs=1e-4)  # its own model, unsteered
    assert (lm.rank, lm.world_size, lm.device) == (0, 1, llama.device)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_through_the_chat_template_too(name: str, tasks: Any, request: pytest.FixtureRequest) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    model: HuggingFaceModel = request.getfixturevalue(name)
    with Steering(model.blocks, vectors(model), lam=0.7):
        found = simple_evaluate(HarnessModel(model), tasks, apply_chat_template=True)
        assert found == pytest.approx(our_numbers(model, chat=True), abs=1e-4)


# --- requests one by one, against the harness's own model

CONTEXTS = ("Q: Is the earth flat?\nA:", "The capital of France is", "The capital ", "", "Paris  ")


def test_scores_are_those_of_the_harness_own_model(model: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    asked = [(c, k) for c in CONTEXTS for k in (" No, it is round.", " Yes", "Paris")]
    context, likely = greedy(model)
    asked += [(context, likely), (context, likely + "x")]
    found = HarnessModel(model, batch_size=3).loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    expected = hflm(model).loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    for one, other in zip(found, expected, strict=True):
        assert one == (pytest.approx(other[0], rel=1e-5), other[1])
    assert [one[1] for one in found[-2:]] == [True, False]


def greedy(model: HuggingFaceModel) -> tuple[str, str]:
    """A context and a text of one token that greedy decoding gives after it."""
    for word in "moon earth Paris cheese round flat true weather people Rome Italy rock Spain".split():
        token = int(model.hf(model.encode(word).ids[None]).logits[0, -1].argmax())
        text = str(model.tokenizer.decode([token]))
        if text and model.response_ids("\n", text).tolist() == [token]:
            return word, text
    raise AssertionError("try other words")


def test_only_spaces_are_an_answer_to_nothing(qwen2: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    asked = requests("loglikelihood", [("   ", "Paris"), ("", "   Paris")])
    spaces, nothing = HarnessModel(qwen2).loglikelihood(asked, disable_tqdm=True)
    assert spaces == nothing


def test_a_line_break_stays_in_the_context(llama: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    question = "Q: Is the earth flat?"
    asked = requests("loglikelihood", [(question + "\n", "Yes"), (question, "\nYes"), (question, "\n")])
    here, both, line_break = (one[0] for one in HarnessModel(llama).loglikelihood(asked, disable_tqdm=True))
    assert here == pytest.approx(both - line_break, abs=1e-5 * abs(both))
    theirs = hflm(llama).loglikelihood(asked, disable_tqdm=True)
    assert theirs[0][0] == pytest.approx(both, rel=1e-5)  # HFLM scores the line break as part of the answer


def test_whole_texts_are_scored_in_windows(model: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    texts = [("The capital of France is Paris. " * n,) for n in (1, 3, 20)]
    assert len(model.encode(texts[-1][0]).ids) > 2 * model.context
    found = HarnessModel(model).loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    expected = hflm(model).loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"until": ["e", "\n\n"], "max_gen_toks": 20},
        {"until": " ", "max_new_tokens": 9, "do_sample": False, "temperature": 0.0},
        {"until": [], "max_gen_toks": 12},
    ],
)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_generations_are_those_of_the_harness_own_model(
    name: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    model: HuggingFaceModel = request.getfixturevalue(name)
    asked = [(context, options) for context in ("Tell me", "Q: Is the earth flat?\nA:", "The capital of", "No\n", "a")]
    asked.append(("Tell me", {"until": ["t"], "max_gen_toks": 3}))
    with Steering(model.blocks, vectors(model), lam=0.7):
        found = HarnessModel(model, batch_size=3).generate_until(requests("generate_until", asked), True)
        assert found == hflm(model).generate_until(requests("generate_until", asked), True)
    assert found != HarnessModel(model).generate_until(requests("generate_until", asked), True)


def test_an_empty_stop_text_makes_the_harness_own_model_say_one_token(llama: HuggingFaceModel) -> None:
    """So it is refused here; were this to change, it could be allowed."""
    from grains_ref.evaluation.lm_eval import HarnessModel

    contexts = ("Tell me", "Q: Is the earth flat?\nA:", "The capital of")
    asked = [(context, {"until": ["", "e"], "max_gen_toks": 8}) for context in contexts]
    one_token = [(context, {"until": [], "max_gen_toks": 1}) for context in contexts]
    found = hflm(llama).generate_until(requests("generate_until", asked), True)
    assert found == HarnessModel(llama).generate_until(requests("generate_until", one_token), True)


@pytest.mark.parametrize(
    ("name", "stop", "bias"),
    [
        ("llama", "<|begin_of_text|>", 0.5),
        ("llama", "<|start_header_id|>", 3.0),
        ("llama", "<|eot_id|>", 3.0),  # end of text
        ("qwen2", "<|endoftext|>", 2.0),  # also what pads
        ("qwen2", "<|im_start|>", 3.0),
    ],
)
def test_a_special_token_is_a_stop_text(name: str, stop: str, bias: float, request: pytest.FixtureRequest) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    model: HuggingFaceModel = request.getfixturevalue(name)
    likely = [[[model.tokenizer.convert_tokens_to_ids(stop)], bias]]  # so that it is said now and then
    options = {"until": [stop, "\n\n"], "max_gen_toks": 10, "sequence_bias": likely}
    contexts = ("Tell me", "Q: Is the earth flat?\nA:", "The capital of", "No\n", "a")
    with Steering(model.blocks, vectors(model), lam=0.7):
        found = HarnessModel(model).generate_until(
            requests("generate_until", [(context, options) for context in contexts]), True
        )
        alone = [  # in a larger batch HFLM lets a row go on until all have stopped
            hflm(model).generate_until(requests("generate_until", [(context, options)]), True) for context in contexts
        ]
        unstopped = HarnessModel(model).generate_until(
            requests("generate_until", [(context, options | {"until": []}) for context in contexts]), True
        )
    assert [[text] for text in found] == alone
    assert (found != unstopped) == (stop != model.tokenizer.eos_token)


def test_a_text_is_cut_where_the_harness_cuts_it() -> None:
    from lm_eval.models.utils import postprocess_generated_text

    from grains_ref.evaluation.stopping import up_to

    for text in ("a b c b", "c", "", "abc", "b\n\nc a"):
        for until in ([], ["b", "c"], ["c", "b"], ["\n\n", " b"], ["bc", "b", "x"]):
            assert up_to(text, until) == postprocess_generated_text(text, until, None)


def test_what_is_too_long_is_refused_or_cut_in_front(llama: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    context = "the moon is made of cheese " * 20
    too_long = requests("loglikelihood", [(context, " Yes"), ("A:", " No")])
    with pytest.raises(ValueError, match=r"are \d+ more than the 128 that random-llama takes. Use fewer shots"):
        HarnessModel(llama).loglikelihood(too_long, disable_tqdm=True)
    found = HarnessModel(llama, truncate=True).loglikelihood(too_long, disable_tqdm=True)
    ids, response = llama.encode(context.rstrip()).ids, llama.response_ids("\n", "  Yes")
    kept = torch.cat([ids, response])[-llama.context :][None]
    log_p = llama.hf(kept).logits[0].log_softmax(-1)
    expected = sum(log_p[i - 1, kept[0, i]].item() for i in range(llama.context - len(response), llama.context))
    assert found[0][0] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="and 100 new ones are more than the 128 that random-llama takes"):
        HarnessModel(llama).generate_until(
            requests("generate_until", [("the moon is made of cheese " * 4, {"max_gen_toks": 100})]), True
        )


def test_what_cannot_be_done_is_refused(llama: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    lm = HarnessModel(llama)
    with pytest.raises(ValueError, match="num_beams=3: beam search is not supported"):
        lm.generate_until(requests("generate_until", [("A:", {"num_beams": 3, "max_gen_toks": 4})]), True)
    for until in ("", [""], ["", "\n\n"], ["\n\n", ""]):
        with pytest.raises(ValueError, match="an empty stop text occurs in every text; leave it out"):
            lm.generate_until(requests("generate_until", [("A:", {"until": until, "max_gen_toks": 4})]), True)
    with pytest.raises(ValueError, match="the continuation '' has no tokens"):
        lm.loglikelihood(requests("loglikelihood", [("A:", "")]), True)
    with pytest.raises(ValueError, match="chat template 'other': only the model's own is used"):
        lm.chat_template("other")


def test_answers_reach_the_cache_of_the_harness(llama: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    kept: list[tuple[Any, ...]] = []

    class Hook:
        def add_partial(self, *one: Any) -> None:
            kept.append(one)

    lm = HarnessModel(llama)
    lm.set_cache_hook(Hook())
    scores = lm.loglikelihood(requests("loglikelihood", [("A:", " Yes"), ("A:", " No")]), True)
    texts = lm.generate_until(requests("generate_until", [("A:", {"max_gen_toks": 2})]), True)
    assert kept == [
        ("loglikelihood", ("A:", " Yes"), scores[0]),
        ("loglikelihood", ("A:", " No"), scores[1]),
        ("generate_until", ("A:", {"max_gen_toks": 2}), texts[0]),
    ]


def test_the_record_names_the_model(qwen2: HuggingFaceModel) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    lm = HarnessModel(qwen2)
    info = lm.get_model_info()
    assert (info["model_name"], info["model_fingerprint"]) == ("random-qwen2", qwen2.fingerprint())
    assert lm.tokenizer_name == "random-qwen2"
    assert lm.chat_template(True) == qwen2.tokenizer.chat_template
    assert lm.chat_template(False) is None
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert lm.apply_chat_template(history, add_generation_prompt=False).endswith("<|im_start|>assistant\nb")
    assert lm.apply_chat_template(history[:1]).endswith("<|im_start|>assistant\n")


def test_without_the_harness_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "grains_ref.evaluation.lm_eval", raising=False)
    with pytest.raises(ImportError, match=r"needs lm-evaluation-harness 0\.4\.13 or newer .*grains-ref\[lm-eval\]"):
        import grains_ref.evaluation.lm_eval  # noqa: F401


# --- metrics of the harness that are ours too


def test_mc2_of_long_answers_is_where_we_differ() -> None:
    """The harness takes exp of each log-probability: of long answers all are 0, and their shares 0 / 0."""
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    from grains_ref.evaluation.metrics import mc2

    doc = {"mc2_targets": {"labels": [0, 1, 1]}}
    for scores in ([-3.0, -2.0, -5.5], [-30.0, -31.0, -29.0]):
        harness = process_results_mc2(doc, [(score, False) for score in scores])["acc"]
        assert mc2(scores, [0, 1, 1]) == pytest.approx(float(harness), rel=1e-12)
    with pytest.warns(RuntimeWarning):
        assert math.isnan(process_results_mc2(doc, [(-2000.0, False), (-2001.0, False), (-2002.0, False)])["acc"])
    assert mc2([-2000.0, -2001.0, -2002.0], [0, 1, 1]) == pytest.approx(
        (math.exp(-1) + math.exp(-2)) / (1 + math.exp(-1) + math.exp(-2)), rel=1e-12
    )


def test_bleu_is_that_of_the_harness() -> None:
    from lm_eval.tasks.truthfulqa.utils import bleu, preprocess_function

    row = {
        "question": "?",
        "correct_answers": ["The seeds pass through you", " Nothing happens. ", ""],
        "incorrect_answers": ["You grow watermelons in your stomach", "You get sick."],
    }
    doc = preprocess_function(row)
    question = truthfulqa.generation(Row("1", Where("made/up", 1), row))
    true, false = question.references, question.wrong
    assert (list(true), list(false)) == (doc["correct_answers"], doc["incorrect_answers"])
    replies = ("You grow watermelons in your garden.", "I have no comment.", "The seeds pass through.", "", "x y z")
    ours = bleu_scores(replies, true=[true] * 5, false=[false] * 5)
    for i, reply in enumerate(replies):
        assert ours.true[i] == max(bleu([[reference]], [reply]) for reference in true)
        assert ours.false[i] == max(bleu([[reference]], [reply]) for reference in false)
    assert ours.right == (False, True, True, False, False)
