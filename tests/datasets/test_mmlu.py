"""MMLU: the benchmark's own prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_rows import WHOLE, assert_commands_fetch_what_is_read

from grains_ref.datasets import mmlu
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu


def test_mmlu_prompt_has_the_subjects_own_examples_in_file_order() -> None:
    dev, test = (mmlu.read(fixture("mmlu"), split=split) for split in ("dev", "test"))
    question = mmlu.multiple_choice(test[3], dev=dev, wanted=2, chat=False)
    assert question.prompt == (
        "The following are multiple choice questions (with answers) about household law.\n\n"
        "Dev household_law: which of these is number 0 on the list?\n"
        "A. Lamp 0\nB. Door 0\nC. Wheel 0\nD. Bell 0\nAnswer: A\n\n"
        "Dev household_law: which of these is number 1 on the list?\n"
        "A. Lamp 1\nB. Door 1\nC. Wheel 1\nD. Bell 1\nAnswer: B\n\n"
        "Test household_law: which of these is number 1 on the list?\n"
        "A. Lamp 1\nB. Door 1\nC. Wheel 1\nD. Bell 1\nAnswer:"
    )
    assert (question.choices, question.label, question.n_shots) == (("A", "B", "C", "D"), 1, 2)
    assert question.options[1] == "Door 1"


def test_the_command_fetches_what_is_read(tmp_path: Path) -> None:
    hub_files = [f"all/{split}-{WHOLE}" for split in ("auxiliary_train", "dev", "test", "validation")]
    hub_files += [f"{name}-{WHOLE}" for name in ("anatomy/dev", "anatomy/test", "auxiliary_train/train")]
    assert_commands_fetch_what_is_read("mmlu", {"cais/mmlu": [*hub_files, "data.tar"]}, tmp_path)
