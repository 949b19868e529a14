"""Oracles and planted bugs answer each question once: most tests here ask them all about the same cases."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from grains_ref.conformance import bugs, second_options, second_oracle, stages
from grains_ref.conformance.authors import bugs as authors_bugs
from grains_ref.conformance.authors import options as authors_options
from grains_ref.conformance.authors import stages as authors_stages
from grains_ref.conformance.dialects import DIALECTS
from grains_ref.conformance.stages import Values


def remembering(stage: Callable[..., Values]) -> Callable[..., Values]:
    """The same stage; every caller gets a copy of its own. A refusal is not kept."""
    known: dict[tuple[Any, ...], Values] = {}

    @functools.wraps(stage)
    def answer(**inputs: Any) -> Values:
        question = tuple((name, key_of(value)) for name, value in sorted(inputs.items()))
        if question not in known:
            known[question] = stage(**inputs)
        return copy.deepcopy(known[question])

    return answer


def key_of(value: Any) -> Any:
    """Something hashable that differs wherever two inputs differ."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return type(value), repr(value)


@pytest.fixture(autouse=True, scope="session")
def every_question_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for answers in (stages.ORACLE, authors_stages.STAGES, DIALECTS["authors"].oracle):
            for name, stage in answers.items():
                patch.setitem(answers, name, remembering(stage))
        for name in stages.OUTPUTS:
            answer = remembering(getattr(second_options, name))
            patch.setattr(second_options, name, answer)
            if name in stages.STAGES:
                patch.setattr(second_oracle, name, answer)
        changed = [(bug, bug.function) for bug in (*bugs.BUGS, *authors_bugs.BUGS, *authors_options.BUGS)]
        for bug, function in changed:
            object.__setattr__(bug, "function", remembering(function))
        yield
        for bug, function in changed:
            object.__setattr__(bug, "function", function)
