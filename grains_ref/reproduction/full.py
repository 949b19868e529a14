"""The rung of the full models: which model meets which dataset, what is there, and what is missing.

A column is a model with a dataset, "llama-3.1-8b, truthfulqa". It becomes a `Lab` as a planted world does, so that
every row of every table runs on it unchanged.

| dataset | pairs | test measure | capability |
|---|---|---|---|
| truthfulqa, toxigen, faitheval | 50, and dev / test as in appendix A.1 | chosen more likely than rejected | MMLU |
| spa_vl | the same | the same | MMMU |
| mmhal | 50 of VTI's, the other 50 as dev | hallucinations that a judge finds in greedy answers | MMMU |

Further tests of ability stand beside the last in tables 4 and 5, if they are asked for (`abilities`).

Capability tasks are asked with as many examples as fit the context, at most five, and count as solved when the model's
most likely next token is the right letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from grains_ref.data import PreferencePair, Task
from grains_ref.datasets.dataset import PairOptions
from grains_ref.datasets.records import JudgedQuestion
from grains_ref.datasets.registry import DATASETS, available, find, pair_rows, rehearse
from grains_ref.demo.lab import Lab
from grains_ref.evaluation.judge import Case, Judge, judge_all, read_rating
from grains_ref.evaluation.measures import generations
from grains_ref.evaluation.metrics import hallucinated
from grains_ref.fast import EngineName
from grains_ref.grains import PRESETS
from grains_ref.models import HuggingFaceModel, load
from grains_ref.models.vision_families import family_class
from grains_ref.reproduction.abilities import ABILITIES, Ability, check_allowed, harness_of, what_lacks
from grains_ref.reproduction.local import (
    OwnPairs,
    check_shown_as,
    differences,
    own_columns,
    read_model_config,
    read_own_pairs,
    shape_in_words,
)
from grains_ref.reproduction.paper import WITH_ABILITIES, TableSpec
from grains_ref.tiny_models.full_size import read_config

LLMS = ("llama-3.1-8b", "qwen2.5-7b")
VLMS = ("llava-v1.6-vicuna-7b", "qwen2.5-vl-7b", "gemma-3-12b")
HUB_IDS = {
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "gemma-3-12b": "google/gemma-3-12b-it",
}
CAPABILITY = {"text": "mmlu", "visual": "mmmu"}  # what a model's general ability is measured on (tables 4 and 5)
LAMS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0)  # figure 5 shows 2 to 10
N_DEV_TASKS, N_TEST_TASKS = 200, 1000
MMHAL_TOKENS = 256  # longest answer that is judged
JUDGED_AT_ONCE = 4  # answers in a batch, each with a picture of up to 3000 tokens


def _columns(part: str, *, llms: Sequence[str] = LLMS, vlms: Sequence[str] = VLMS) -> tuple[str, ...]:
    """The columns of a table or figure: each model with the datasets of its modality that are in it and give pairs."""
    columns = []
    for model in (*llms, *vlms):
        for name, dataset in DATASETS.items():
            fits = dataset.pictures == (model in vlms) and dataset.pair_rows is not None
            if fits and part in dataset.used_for:
                columns.append(f"{model}, {name}")
    return tuple(columns)


COLUMNS: dict[str, tuple[str, ...]] = {  # what the paper measures
    "table 1": _columns("table 1"),
    "table 2": _columns("table 2"),
    "table 3": _columns("table 3"),
    "table 4": _columns("table 4"),
    "table 5": _columns("table 5", vlms=VLMS[:2]),
    "table 6": _columns("table 6", llms=LLMS[:1]),
    "table 7": _columns("table 7", vlms=VLMS[:2]),
    "table 8": _columns("table 8", vlms=VLMS[:2]),
    "figure 3": _columns("figure 3"),
    "figure 5": _columns("figure 5"),
    "figure 6": _columns("figure 6"),
    "cost": _columns("cost", vlms=VLMS[:1]),
}


def columns_of(part: str, rung: FullRung) -> tuple[str, ...]:
    """The columns of a table or figure, with one's own models and pairs in the place of the paper's.

    Nothing where the part is of models that see, and one's own, which are texts, were named.
    """
    own_models = [name for name in rung.weights if name not in HUB_IDS]
    if not own_models and not rung.pairs:
        return COLUMNS[part]
    of_texts = [column for column in COLUMNS[part] if column.split(", ")[0] in LLMS]
    return own_columns(of_texts, own_models, rung.pairs) if of_texts else ()


@dataclass(frozen=True)
class FullRung:
    """Where models and data lie; call it to get the lab of a column (`cells.MakeLab`).

    weights: model -> folder or hub id.  data: dataset -> folder or hub id, with "mmlu" and "mmmu" for capability.
    judge: rates MMHal-Bench's answers.  n: steering pairs.  n_tasks: capability tasks in dev and in test.
    engine: that computes the stages.
    pairs: one's own pairs, name -> file or folder (`local`).  ignore: columns of them to leave unread.
    abilities: further tests, of `abilities.ABILITIES`.  run_code: whether code that a model wrote may be run for them.
    Models with other names than the paper's are one's own.
    """

    weights: Mapping[str, str]
    data: Mapping[str, str]
    judge: Judge | None
    device: str = "cuda"
    dtype: str = "bfloat16"
    engine: EngineName = "fast"
    n: int = 50
    n_tasks: tuple[int, int] = (N_DEV_TASKS, N_TEST_TASKS)
    pairs: Mapping[str, str] = field(default_factory=dict)
    ignore: Sequence[str] = ()
    abilities: Sequence[str] = ()
    run_code: bool = False

    def __post_init__(self) -> None:
        for name in self.abilities:
            check_allowed(name, run_code=self.run_code)

    def own_pairs(self, name: str, *, seed: int) -> OwnPairs:
        """One's own pairs by name; seed: of the split."""
        return read_own_pairs(self.pairs[name], n=self.n, seed=seed, ignore=self.ignore)

    def __call__(self, column: str, seed: int, folder: Path) -> Lab:
        """The lab of a column; seed: of the split."""
        model_name, dataset = column.split(", ")
        place = self.weights[model_name]
        model = load(place, device=self.device, dtype=self.dtype)
        if model_name in HUB_IDS:
            check_shown_as(model_name, model.hf.config, place=place)
        own = self.own_pairs(dataset, seed=seed) if dataset in self.pairs else None
        judged: Callable[[], list[bool]] | None = None
        if own:
            steer, dev, test = own.steer, own.dev, own.test
        else:
            steer, dev, test, judged = self._pairs(dataset, seed, model)
        dev_tasks, test_tasks = self._tasks(model, own)
        return Lab(
            model,
            paper=PRESETS[model.family.preset],
            lams=LAMS,
            neutral=neutral_word(model),
            steer=steer,
            dev=(dev, dev_tasks),
            test=(test, test_tasks),
            facts=[pair.id for pair in test],
            judged=judged,
            abilities=self._abilities(column, model),
            engine=self.engine,
        )

    def _abilities(self, column: str, model: HuggingFaceModel) -> dict[str, Ability]:
        """The further tests of a column, read and checked before anything is measured; none outside tables 4 and 5."""
        if not any(column in columns_of(table, self) for table in WITH_ABILITIES):
            return {}
        return {
            name: Ability(model, name, self.data.get(name, ""), run_code=self.run_code)
            for name in ABILITIES
            if name in self.abilities
        }

    def _tasks(self, model: HuggingFaceModel, own: OwnPairs | None) -> tuple[Sequence[Task], Sequence[Task]]:
        """Capability tasks for dev and test: one's own, or a test of general ability; for own pairs also none."""
        if own and own.dev_tasks:
            return own.dev_tasks, own.test_tasks
        capability = CAPABILITY["visual" if model.family.marker else "text"]
        if own and capability not in self.data:
            return (), ()
        tasks = _tasks(capability, self.data[capability], model, n=sum(self.n_tasks))
        n_dev = min(self.n_tasks[0], len(tasks) // 2)
        return tasks[:n_dev], tasks[n_dev:]

    def _pairs(
        self, dataset: str, seed: int, model: HuggingFaceModel
    ) -> tuple[list[PreferencePair], list[PreferencePair], list[PreferencePair], Callable[[], list[bool]] | None]:
        """Steering, dev and test pairs; without pairs to test on, a judged measure instead of the last."""
        judged_question = find(dataset).judged_question
        if judged_question and self.judge is None:
            raise ValueError(f"{find(dataset).title} needs a judge: give --judge-url and --judge-model")
        split, make_pair = pair_rows(dataset, self.data[dataset], PairOptions(n=self.n, seed=seed))
        steer = [make_pair(row) for row in split.steering]
        dev = [make_pair(row) for row in split.dev]
        if judged_question and self.judge:
            questions = [judged_question(row) for row in split.test]
            return steer, dev, [], _Judged(model, questions, self.judge)
        return steer, dev, [make_pair(row) for row in split.test], None


@dataclass(frozen=True)
class _Judged:
    """Which answers the judge calls hallucinations, under whatever steering is active."""

    model: HuggingFaceModel
    questions: Sequence[JudgedQuestion]
    judge: Judge

    def __call__(self) -> list[bool]:
        texts = generations(
            self.model,
            [question.prompt for question in self.questions],
            max_new_tokens=MMHAL_TOKENS,
            images=[question.images[0] for question in self.questions],
            batch_size=JUDGED_AT_ONCE,
        )
        cases = []
        for question, text in zip(self.questions, texts, strict=True):
            cases.append(
                Case(
                    contents=question.image_content,
                    question=question.question,
                    reference=question.references[0],
                    answer=text,
                )
            )
        return [hallucinated(read_rating(verdict.reply)) for verdict in judge_all(self.judge, cases)]


def without_planted_rows(spec: TableSpec) -> TableSpec:
    """A table without the rows that only a planted world can have, as it alone knows the causes."""
    return replace(spec, rows={name: row for name, row in spec.rows.items() if not row.startswith("planted")})


def neutral_word(model: HuggingFaceModel) -> str:
    """A baseline of one token that is evidence for little: a space, a line break, or "the", whichever is one token.

    Raises:
        ValueError: none is.
    """
    for word in (" ", "\n", " the", "the"):
        ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != model.tokenizer.unk_token_id:
            return f"token:{word}"
    raise ValueError(f"{model.name}: neither a space nor 'the' is one token; name a neutral word")


def _tasks(name: str, source: str, model: HuggingFaceModel, *, n: int) -> list[Task]:
    """n capability tasks: multiple choice, the answer is a letter.

    Raises:
        ValueError: the dataset is no test of general ability.
    """
    capability = find(name).capability
    if capability is None:
        raise ValueError(f"{name} is no test of general ability")

    def count_tokens(prompt: Any, pictures: Sequence[Path]) -> int:
        return len(model.encode(prompt, pictures[0] if pictures else None).ids)

    tasks = []
    for question in capability(source, n=n, count_tokens=count_tokens, context=model.context):
        image = question.images[0] if question.images else None
        tasks.append(Task(question.id, question.prompt, question.choices[question.label], image=image))
    return tasks


# --------------------------------------------------------------------------------- what there is and what is missing
@dataclass(frozen=True)
class Part:
    """Something the full rung needs: what it is, whether it is there, and what to do about it."""

    kind: str  # model, dataset, device, judge
    name: str
    checked: str  # what has been verified here without it
    missing: str  # what to do; "" if it is there


def inventory(columns: Sequence[str], rung: FullRung) -> list[Part]:
    """Everything that the columns need; builds every model on the meta device, reads every dataset's miniature."""
    models = dict.fromkeys(column.split(", ")[0] for column in columns)
    named = dict.fromkeys(column.split(", ")[1] for column in columns)
    datasets = dict.fromkeys(name for name in named if name not in rung.pairs)
    if datasets:  # one's own pairs bring their own tasks, or do without
        datasets |= dict.fromkeys(CAPABILITY["visual" if model in VLMS else "text"] for model in models)
    parts = []
    for name in models:
        make_part = _model_part if name in HUB_IDS else _own_model_part
        parts.append(make_part(name, rung.weights.get(name, "")))
    parts += [_own_pairs_part(name, rung) for name in named if name in rung.pairs]
    datasets |= dict.fromkeys(rung.abilities)
    parts += [_dataset_part(name, rung.data.get(name, "")) for name in datasets]
    if rung.device.startswith("cuda"):
        has_cuda = torch.cuda.is_available()
        missing = "" if has_cuda else "no CUDA device here; run where there is one, or give --device cpu (very slow)"
        parts.append(Part("device", rung.device, torch.cuda.get_device_name() if has_cuda else "", missing))
    for name in rung.abilities:
        parts.append(Part("ability", name, "runs code" if harness_of(name).runs_code else "", what_lacks(name)))
    if any(find(name).judged_question for name in datasets):
        missing = "" if rung.judge else "give --judge-url and --judge-model: any OpenAI-compatible endpoint"
        parts.append(Part("judge", rung.judge.identity if rung.judge else "-", "", missing))
    return parts


def _model_part(name: str, weights: str) -> Part:
    config = read_config(name)
    with torch.device("meta"):
        hf = family_class(config).auto_class.from_config(config, dtype=torch.bfloat16)
    n = sum(p.numel() for p in hf.parameters())
    checked = f"{n / 1e9:.2f} billion parameters and {config.get_text_config().num_hidden_layers} blocks on meta"
    repository = HUB_IDS[name]
    if not weights:
        return Part("model", name, checked, f"hf download {repository}; then --weights {name}=FOLDER")
    if Path(weights).is_dir() and not (Path(weights) / "config.json").is_file():
        return Part("model", name, checked, f"{weights} holds no config.json; name the folder of the snapshot")
    if Path(weights).is_dir() and (other := differences(name, read_model_config(weights))):
        is_other = f"{weights} is not {name}: {'; '.join(other)}; show it as what it is, with --model NAME={weights}"
        return Part("model", name, checked, is_other)
    return Part("model", name, checked, "")


def _own_model_part(name: str, place: str) -> Part:
    if not (Path(place) / "config.json").is_file():
        return Part("model", name, "", f"{place} holds no config.json; name the folder of a model")
    try:
        return Part("model", name, shape_in_words(read_model_config(place)), "")
    except (OSError, ValueError) as error:
        return Part("model", name, "", f"{place}: {error}")


def _own_pairs_part(name: str, rung: FullRung) -> Part:
    try:
        return Part("pairs", name, rung.own_pairs(name, seed=0).words, "")
    except (OSError, ValueError) as error:
        return Part("pairs", name, "", str(error))


def _dataset_part(name: str, source: str) -> Part:
    counts = ", ".join(f"{n} {form}" for form, n in rehearse(name).items())
    there = available(name, source)
    missing = "" if there.is_available else f"{there.why}; then --data {name}=FOLDER"
    return Part("dataset", name, f"miniature read: {counts}", missing)
