"""Further tests of ability beside MMLU and MMMU, for tables 4 and 5 of the full rung, asked by lm-evaluation-harness.

| ability | task of the harness, plain and chat | solved is |
|---|---|---|
| humaneval | `humaneval`, `humaneval_instruct` | the first greedy answer passes the problem's tests |
| xstory_cloze | `xstorycloze_en`, never through the chat template | the ending that fits is the more likely one |
| writing_prompts | ours, `grains_ref/datasets/writing_prompts.yaml` | a story is written that does not fall apart |

Prompts, stop texts and the judging of the other two are the harness's own; the rows are read, checked and handed over
here, so that a local folder serves as well as the hub.

HumanEval runs what the model wrote, on this machine.  Three things have to allow it, none of which is done here for the
user: the caller (`run_code`, the harness's own `confirm_run_unsafe_code`), the environment (HF_ALLOW_CODE_EVAL=1, which
the library `evaluate` asks for), and whoever gave the machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path

from grains_ref import datasets
from grains_ref.datasets.dataset import Harness
from grains_ref.datasets.registry import DATASETS, find
from grains_ref.datasets.sources import Source
from grains_ref.models import HuggingFaceModel

ABILITIES = tuple(name for name, dataset in DATASETS.items() if dataset.harness)
AT_ONCE = 16  # prompts in a batch
CODE_SWITCH = "HF_ALLOW_CODE_EVAL"  # of the library `evaluate`


def harness_of(name: str) -> Harness:
    """How the harness asks an ability.

    Raises:
        ValueError: there is no such ability.
    """
    if name not in ABILITIES:
        raise ValueError(f"there is no ability {name!r}; there are {', '.join(ABILITIES)}")
    harness = find(name).harness
    assert harness is not None
    return harness


def check_allowed(name: str, *, run_code: bool) -> None:
    """Refuse an ability that runs what the model wrote, unless the caller said so.

    Raises:
        ValueError: it does, and the caller did not; or there is no such ability.
    """
    if harness_of(name).runs_code and not run_code:
        raise ValueError(
            f"{name} runs code that the model wrote, on this machine and with your rights. If that is what you want, "
            "in a container or on a machine that you can lose, say --confirm-run-unsafe-code (in Python run_code=True)"
        )


def what_lacks(name: str) -> str:
    """What this machine lacks to ask an ability, and the next step; "" if nothing.  Fetches nothing."""
    if importlib.util.find_spec("lm_eval") is None:
        return "lm-evaluation-harness is missing: pip install 'grains-ref[lm-eval]'"
    if harness_of(name).runs_code and os.environ.get(CODE_SWITCH) != "1":
        return f"set {CODE_SWITCH}=1: the library evaluate runs no code without it"
    return ""


class Ability:
    """One ability of one model, under whatever steering is active; call it for one entry per question: solved or not.

    Everything is read and checked when it is made, before the model answers anything.

    Args:
        model: the model.
        name: one of `ABILITIES`.
        source: of the questions; "" for the hub.
        run_code: whether what the model wrote may be run.

    Raises:
        ValueError: there is no such ability, it runs code and `run_code` is off, something is missing on this machine,
            or the harness cannot build its task.
        DatasetError, RowError: the questions cannot be read.
    """

    def __init__(self, model: HuggingFaceModel, name: str, source: Source, *, run_code: bool) -> None:
        check_allowed(name, run_code=run_code)
        if lacking := what_lacks(name):
            raise ValueError(f"{name}: {lacking}")
        from lm_eval.tasks import TaskManager

        from grains_ref.evaluation.lm_eval import HarnessModel

        self.name, self.harness = name, harness_of(name)
        self.lm = HarnessModel(model, batch_size=AT_ONCE)
        has_template = bool(model.prompts.template_digest)
        self.chat = has_template and self.harness.through_template
        self.rows = self.harness.rows(source)
        self._folder = tempfile.TemporaryDirectory(prefix="grains-ref-")  # the harness's copy of the rows lies in it
        file = self.harness.chat if has_template else self.harness.plain
        self._write_task(Path(self._folder.name), file)
        try:
            self._loaded = TaskManager(include_path=self._folder.name, include_defaults=False).load([self._task])
        except Exception as error:  # the harness, `evaluate` and `datasets` each have their own
            advice = ""
            if self.harness.runs_code:
                advice = (
                    "; its judge is the metric code_eval, which `evaluate` fetches from the hub: once, with a network, "
                    "python -c \"import evaluate; evaluate.load('code_eval')\""
                )
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name}: lm-evaluation-harness cannot build its task ({cause}){advice}") from error

    def __call__(self) -> list[bool]:
        """Whether each question is solved, in the order of the rows.

        Raises:
            ValueError: the harness says nothing of some question.
        """
        import lm_eval

        results = lm_eval.evaluate(
            self.lm,
            self._loaded,
            bootstrap_iters=0,
            apply_chat_template=self.chat,
            confirm_run_unsafe_code=self.harness.runs_code,  # `check_allowed` has asked
        )
        solved = {sample["doc_id"]: sample[self.harness.metric] == 1 for sample in results["samples"][self._task]}
        if sorted(solved) != list(range(len(self.rows))):
            raise ValueError(f"{self.name}: {len(self.rows)} questions, and answers to {len(solved)} of them")
        return [solved[i] for i in range(len(self.rows))]

    @property
    def _task(self) -> str:
        return f"grains_ref_{self.name}"

    def _write_task(self, folder: Path, file: str) -> None:
        """The rows, and a task that is the packaged one but for where its questions lie."""
        import lm_eval

        packaged = Path(datasets.__file__).parent / file
        if not self.harness.is_ours:
            packaged = Path(lm_eval.__file__).parent / "tasks" / file
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(dict(row.fields)) + "\n" for row in self.rows), encoding="utf-8")
        data_files = json.dumps({self.harness.split: str(rows)})
        lines = (
            f"include: {json.dumps(str(packaged))}",
            f"task: {self._task}",
            "dataset_path: json",
            "dataset_name: null",
            f"dataset_kwargs: {{data_files: {data_files}, cache_dir: {json.dumps(str(folder))}}}",
            "training_split: null",
        )
        (folder / "task.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
