"""lm-evaluation-harness asks a served model over loopback, and gets the numbers of the model in its own process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from grains_ref.grains import Steering
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu
pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: tox -e peer-lm-eval")
pytest.importorskip("tenacity", reason="needs lm-evaluation-harness for servers: tox -e peer-lm-eval")
pytest.importorskip("uvicorn", reason="needs pip install 'grains-ref[serve]'")

QUESTIONS = [
    ("Is the earth flat?", ["No.", "Yes, it is.", "It is round."], 0),
    ("What is the moon made of?", ["cheese", "rock"], 1),
    ("What is the capital of Spain?", ["Rome.", "Paris.", "Madrid.", "France."], 2),
    ("Tell me about the weather", ["It is round.", "It is true."], 1),
    ("What do people say?", ["The moon is rock.", "Cheese", "Rome"], 0),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A multiple-choice task, and one whose answers are generated."""
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": question, "choices": choices, "gold": gold} for question, choices, gold in QUESTIONS]
    Dataset.from_list(rows).to_parquet(folder / "questions.parquet")
    common = (
        "dataset_path: parquet\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'questions.parquet'}}}, cache_dir: {folder}}}\n"
        "test_split: test\n"
        'doc_to_text: "Q: {{question}}\\nA:"\n'
    )
    (folder / "choice.yaml").write_text(
        "task: local_choice\noutput_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold\n" + common
    )
    (folder / "words.yaml").write_text(
        'task: local_words\noutput_type: generate_until\ndoc_to_target: "{{choices[gold]}}"\n'
        'generation_kwargs: {until: ["."], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n' + common
    )
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluated(lm: Any, tasks: Any) -> tuple[list[Any], list[str]]:
    """All log-likelihoods with whether they are greedy, question by question, and all generated texts."""
    import lm_eval

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it asks pip for all packages
        patch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
        results = lm_eval.simple_evaluate(
            lm, tasks=["local_choice", "local_words"], task_manager=tasks, bootstrap_iters=0
        )
    samples = results["samples"]
    choices = [answer for sample in samples["local_choice"] for answer in sample["filtered_resps"]]
    return choices, [sample["filtered_resps"][0] for sample in samples["local_words"]]


def test_a_steered_server_has_the_numbers_of_the_steered_model_in_the_same_process(
    llama: HuggingFaceModel, tasks: Any, tmp_path: Path
) -> None:
    from clients import LAM, listening, served_by, some_vectors
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from grains_ref.evaluation.lm_eval import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    llama.tokenizer.save_pretrained(tmp_path)
    plain = evaluated(HarnessModel(llama), tasks)
    with Steering(llama.blocks, some_vectors(llama, 0), lam=LAM):
        steered = evaluated(HarnessModel(llama), tasks)
    with served_by(llama, 1) as served, listening(served) as address:
        for name, (scores, texts) in ((llama.name, plain), (f"{llama.name}+v0", steered)):
            lm = LocalCompletionsAPI(
                model=name,
                base_url=f"{address}/completions",
                tokenizer=str(tmp_path),
                tokenizer_backend="huggingface",
                add_bos_token=True,
                max_length=llama.context,
                num_concurrent=4,
            )
            found_scores, found_texts = evaluated(lm, tasks)
            assert [greedy for _, greedy in found_scores] == [greedy for _, greedy in scores]
            assert [value for value, _ in found_scores] == pytest.approx([value for value, _ in scores], abs=1e-4)
            assert found_texts == texts
    assert max(abs(a[0] - b[0]) for a, b in zip(plain[0], steered[0], strict=True)) > 0.1
