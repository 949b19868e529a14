"""inspect_ai.py: Inspect gets the answers of our own model, steered as its arguments say."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grains_ref.grains import Steering
from grains_ref.models import HuggingFaceModel, load
from grains_ref.vectors import Header, MismatchError, SteeringVectors

pytestmark = pytest.mark.cpu
needs_inspect = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="needs Inspect: tox -e peer-inspect"
)

QUESTIONS = (
    "Is the earth flat?",
    "What do people say?",
    "Tell me about the weather",
    "Rome",
    "The capital of Spain is",
)
LAM, LAYERS, LENGTH = 0.7, [1, 2], 8


@pytest.fixture(scope="module")
def folder(llama: HuggingFaceModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, as a folder."""
    path = tmp_path_factory.mktemp("models") / "random-llama"
    llama.hf.save_pretrained(path)
    llama.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template."""
    model = load(folder)
    model.tokenizer.chat_template = None
    path = tmp_path_factory.mktemp("models") / "plain-llama"
    model.hf.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return written(folder, folder.parent / "vectors.safetensors")


def written(folder: Path, path: Path, **changes: Any) -> Path:
    model = load(folder)
    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(3))
    given = {"fingerprint": model.fingerprint(), "chat_template": model.prompts.template_digest} | changes
    header = Header(
        dialect="paper",
        hyper_parameters={"k": 3},
        model_name=model.name,
        data_digest="0" * 64,
        tokens_digest="1" * 64,
        n_examples=1,
        versions={},
        diagnostics={},
        **given,
    )
    SteeringVectors(v, v, torch.zeros_like(v), header).save(path)
    return path


def steered(folder: Path, file: Path, questions: Sequence[str], *, chat: bool = True, lam: float = LAM) -> list[str]:
    """The answers of our own model, one question at a time."""
    model = load(folder)
    prompts = [[{"role": "user", "content": text}] if chat else text for text in questions]
    with Steering(model.blocks, SteeringVectors.load(file).v, lam=lam, layers=LAYERS):
        return [model.generate([prompt], max_new_tokens=LENGTH)[0] for prompt in prompts]


def evaluated(folder: Path, log_dir: Path, *, questions: Sequence[str] = QUESTIONS, **options: Any) -> list[str]:
    """What an offline task of Inspect got as answers."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    cache = options.pop("cache", False)
    task = Task([Sample(input=text, target="x") for text in questions], solver=generate(cache=cache), scorer=includes())
    settings = {"max_tokens": LENGTH} | options.pop("settings", {})
    (log,) = eval(
        task,
        model=f"grains_ref/{folder}",
        model_args=options,
        display="none",
        log_dir=str(log_dir),
        fail_on_error=True,
        **settings,
    )
    assert log.status == "success", log.error
    return [sample.output.completion for sample in log.samples]


def provider(folder: Path, **options: Any) -> Any:
    from grains_ref.evaluation.inspect_ai import SteeredModel

    return SteeredModel(str(folder), **options)


def asked(model: Any, questions: Sequence[str], **config: Any) -> list[Any]:
    """Several requests at the same time."""
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    async def all_of_them() -> list[Any]:
        requests = (
            model.generate([ChatMessageUser(content=text)], [], "none", GenerateConfig(**config)) for text in questions
        )
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(all_of_them())


@needs_inspect
def test_answers_of_a_task_are_those_of_our_own_model(folder: Path, file: Path, tmp_path: Path) -> None:
    answers = evaluated(folder, tmp_path, vectors=str(file), lam=LAM, layers=LAYERS)
    assert answers == steered(folder, file, QUESTIONS)
    unsteered = evaluated(folder, tmp_path)
    assert unsteered == steered(folder, file, QUESTIONS, lam=0.0)
    assert answers != unsteered


@needs_inspect
def test_the_command_line_finds_the_provider(folder: Path, file: Path, tmp_path: Path) -> None:
    """By the entry point of the package: nothing of it is imported in the task."""
    task = tmp_path / "task.py"
    task.write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.scorer import includes\n"
        "@task\n"
        "def questions():\n"
        f"    return Task([Sample(input=text, target='x') for text in {QUESTIONS}], scorer=includes())\n",
        encoding="utf-8",
    )
    arguments = f"--model grains_ref/{folder} -M vectors={file} -M lam={LAM} -M layers=1,2 --max-tokens {LENGTH}"
    command = [sys.executable, "-m", "inspect_ai", "eval", task.name, *arguments.split()]
    command += ["--display", "none", "--log-format", "json", "--log-dir", str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (tmp_path / "logs").glob("*.json")
    samples = json.loads(log.read_text(encoding="utf-8"))["samples"]
    answers = [sample["output"]["choices"][0]["message"]["content"] for sample in samples]
    assert answers == steered(folder, file, QUESTIONS)


@needs_inspect
def test_without_a_template_a_message_is_plain_text(plain_folder: Path, file: Path, tmp_path: Path) -> None:
    answers = evaluated(plain_folder, tmp_path, vectors=str(file), lam=LAM, layers=LAYERS)
    assert answers == steered(plain_folder, file, QUESTIONS, chat=False)


@needs_inspect
def test_another_strength_is_not_answered_from_the_cache(
    folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    given = {"vectors": str(file), "layers": LAYERS, "cache": True}
    weak, strong, weak_again = (evaluated(folder, tmp_path, lam=lam, **given) for lam in (0.1, LAM, 0.1))
    assert strong == steered(folder, file, QUESTIONS)
    assert weak == weak_again != strong


@needs_inspect
def test_strength_and_layers_are_those_that_the_file_stores(folder: Path, tmp_path: Path) -> None:
    file = written(folder, tmp_path / "chosen.safetensors", choice={"lam": LAM, "layers": LAYERS})
    (answer,) = asked(provider(folder, vectors=str(file)), QUESTIONS[:1], max_tokens=LENGTH)
    assert [answer.completion] == steered(folder, file, QUESTIONS[:1])


@needs_inspect
def test_requests_together_are_answered_each_with_its_own_answer(folder: Path, file: Path) -> None:
    """Of different lengths, in batches of two, and with a request that fails among them."""
    model = provider(folder, vectors=str(file), lam=LAM, layers=LAYERS, batch_size=2)
    too_long = "cheese " * 200
    outputs = asked(model, [QUESTIONS[0], too_long, *QUESTIONS[1:]], max_tokens=LENGTH)
    error = outputs.pop(1)
    assert isinstance(error, ValueError)
    assert "but the model takes 128" in str(error)
    assert [output.completion for output in outputs] == steered(folder, file, QUESTIONS)


@needs_inspect
def test_tokens_and_the_reason_to_stop_are_told(folder: Path, file: Path) -> None:
    model = provider(folder, vectors=str(file), lam=LAM, layers=LAYERS)
    (output,) = asked(model, QUESTIONS[:1], max_tokens=LENGTH)
    prompt = model.model.encode([{"role": "user", "content": QUESTIONS[0]}])
    assert output.stop_reason == "max_tokens"
    assert (output.usage.input_tokens, output.usage.output_tokens) == (len(prompt.ids), LENGTH)
    stop = output.completion[3]
    (stopped,) = asked(model, QUESTIONS[:1], max_tokens=LENGTH, stop_seqs=[stop])
    assert stopped.completion == output.completion.split(stop)[0].strip()
    assert stopped.stop_reason == "stop"
    assert 0 < stopped.usage.output_tokens < LENGTH


@needs_inspect
def test_a_temperature_samples(folder: Path) -> None:
    torch.manual_seed(0)
    outputs = asked(provider(folder), QUESTIONS[:1] * 4, max_tokens=LENGTH, temperature=5.0)
    assert len({output.completion for output in outputs}) > 1
    greedy = asked(provider(folder), QUESTIONS[:1] * 4, max_tokens=LENGTH, temperature=0.0)
    assert len({output.completion for output in greedy}) == 1


@needs_inspect
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": 3}, "seed: this provider does not have these settings"),
        ({"num_choices": 2}, "num_choices: this provider"),
        ({"frequency_penalty": 0.5, "logprobs": True}, "frequency_penalty, logprobs: this provider"),
        ({"top_p": 0.9}, "give a temperature above 0 too"),
        ({"stop_seqs": ["a", ""]}, "stop_seqs has an empty text"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(folder: Path, config: dict[str, Any], message: str) -> None:
    (error,) = asked(provider(folder), QUESTIONS[:1], **config)
    assert isinstance(error, ValueError)
    assert message in str(error)


@needs_inspect
def test_messages_that_cannot_be_taken_are_refused(folder: Path, plain_folder: Path) -> None:
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ContentImage, GenerateConfig

    def ask(model: Any, *messages: Any, tools: Sequence[Any] = ()) -> Any:
        return asyncio.run(model.generate(list(messages), tools, "none", GenerateConfig()))

    with pytest.raises(ValueError, match=r"2 messages \(system, user\) without a chat template"):
        ask(provider(plain_folder), ChatMessageSystem(content="be kind"), ChatMessageUser(content="hi"))
    with pytest.raises(ValueError, match="a message with image: this provider takes text only"):
        ask(provider(folder), ChatMessageUser(content=[ContentImage(image="x.png")]))
    with pytest.raises(ValueError, match="the task offers 1 tools"):
        ask(provider(folder), ChatMessageUser(content="hi"), tools=["search"])


@needs_inspect
def test_arguments_that_do_not_fit_are_refused(folder: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give -M vectors=FILE too"):
        provider(folder, lam=2)
    with pytest.raises(ValueError, match=r"holds no strength: give one with -M lam=2"):
        provider(folder, vectors=str(file))
    with pytest.raises(ValueError, match="layers='8-15': expected numbers of decoder blocks"):
        provider(folder, vectors=str(file), lam=1, layers="8-15")
    with pytest.raises(ValueError, match="leave --model-base-url out"):
        provider(folder, base_url="http://127.0.0.1")
    with pytest.raises(ValueError, match="both must be 1 or more"):
        provider(folder, batch_size=0)
    stranger = written(folder, tmp_path / "stranger.safetensors", fingerprint="f" * 64)
    with pytest.raises(MismatchError, match="same shape, other weights"):
        provider(folder, vectors=str(stranger), lam=1)


@pytest.mark.skipif(importlib.util.find_spec("inspect_ai") is not None, reason="Inspect is installed")
def test_without_inspect_the_message_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"needs Inspect 0\.3\.285 or newer .*grains-ref\[inspect\]"):
        import grains_ref.evaluation.inspect_ai  # noqa: F401
