"""The one thread that runs the model, for all requests at once, each with its own vectors, strength and layers.

Answers that wait when the thread is free begin together: their prompts go through the model in one padded pass, and
then each step gives every one of them a token.  Such a cohort shares a cache; it shrinks as its answers end.  Others
that come meanwhile make a cohort of their own, which joins the first one behind its prompts where the caches can be
put together; where they cannot (windows, linear attention) the cohorts take turns, a step each.  Nobody waits for the
end of somebody else's answer.

`fast.RowSteering` steers row by row.  Its slots are filled anew whenever another cohort, or fewer rows of it, are next:
what a row is steered by follows from its own request alone.

A pass that is not finite says nothing about which row is to blame.  Its rows are then run again, each alone, from where
they were; only those that fail alone get the error.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from grains_ref.export.serving.sampling import Sampling, Scored, check_logits, scored
from grains_ref.export.serving.words import Words
from grains_ref.fast import RowSteering
from grains_ref.models import BATCH_TOKENS, HuggingFaceModel
from grains_ref.models.decoding import Rows, fits_together

Reason = Literal["stop", "length"]


class Overloaded(Exception):
    """Too many answers wait already."""


@dataclass(frozen=True)
class Steer:
    """Eq. (7) for one answer: which vectors of the bank, how strongly, at which blocks."""

    behaviour: int
    lam: float
    layers: tuple[int, ...]


@dataclass(eq=False)
class Job:
    """One answer, while it is made.  What comes of it is told by the four functions, in the scheduler's thread.

    Attributes:
        ids: the prompt.
        max_tokens: 0 for an echo alone.
        ends: ids that end the answer.
        top: so many alternatives at each token; None where no log-probabilities are needed.
        on_prompt: gets what is said of the prompt's tokens but the first; None where it is not asked for.
        on_token: gets each new token, and the text that may be shown more; an end-of-text token has none.
    """

    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    words: Words
    ends: frozenset[int]
    steer: Steer | None
    top: int | None
    on_prompt: Callable[[list[Scored]], None] | None
    on_token: Callable[[Scored, str], None]
    on_end: Callable[[Reason, str], None]
    on_error: Callable[[Exception], None]
    is_cancelled: bool = False
    made: list[int] = field(default_factory=list)
    has_prompt_scores: bool = False

    @property
    def so_far(self) -> tuple[int, ...]:
        """The prompt and what has been made."""
        return (*self.ids, *self.made)


@dataclass(eq=False)
class _Cohort:
    """Answers behind one cache; row i is job i."""

    jobs: list[Job]
    rows: Rows | None = None  # None until the prompts have been run
    next: list[int] = field(default_factory=list)  # the tokens to feed


class Scheduler:
    """Runs the model; `submit` jobs from any thread, `close` at the end.

    bank: vectors of all behaviours, (n, L, d); n may be 0.  rows: answers at once.  waiting: answers that may wait.
    """

    def __init__(self, model: HuggingFaceModel, bank: Tensor, *, rows: int, waiting: int) -> None:
        self._model, self._n_rows, self._n_waiting = model, rows, waiting
        self._steering = RowSteering(model.blocks, bank, slots=rows) if len(bank) else None
        self._waiting: collections.deque[Job] = collections.deque()
        self._cohorts: list[_Cohort] = []
        self._assigned: list[Job] = []
        self._news = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="steered model", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all jobs of a request, or none.

        Raises:
            Overloaded: there is no room for them.
        """
        with self._news:
            if self._is_closing or len(self._waiting) + len(jobs) > self._n_waiting:
                raise Overloaded
            self._waiting.extend(jobs)
            self._news.notify()

    def close(self) -> None:
        """End the thread after the step it is at; answers that are not finished get an error."""
        with self._news:
            self._is_closing = True
            self._news.notify()
        self._thread.join()

    # ------------------------------------------------------------------------------- the thread
    def _work(self) -> None:
        steered: AbstractContextManager[object] = self._steering or nullcontext()
        try:
            if not self._has_work():
                return
            with torch.no_grad(), steered:  # hooks act in the thread that enters
                while self._has_work():
                    self._begin_waiting()
                    for cohort in list(self._cohorts):
                        self._turn(cohort)
        finally:
            with self._news:
                self._is_closing = True
            for job in [*(job for cohort in self._cohorts for job in cohort.jobs), *self._waiting]:
                job.on_error(RuntimeError("the server is shutting down"))

    def _has_work(self) -> bool:
        """Wait for some; False when the end has come."""
        with self._news:
            while not (self._is_closing or self._waiting or self._cohorts):
                self._news.wait()
            return not self._is_closing

    def _begin_waiting(self) -> None:
        """Make cohorts of those that wait, in the order in which they came, as far as there is room."""
        while True:
            free = self._n_rows - sum(len(cohort.jobs) for cohort in self._cohorts)
            with self._news:
                jobs: list[Job] = []
                while self._waiting and len(jobs) < free and self._may_join(jobs, self._waiting[0]):
                    jobs.append(self._waiting.popleft())
            if not jobs:
                return
            self._cohorts.append(_Cohort(jobs))

    def _may_join(self, jobs: Sequence[Job], job: Job) -> bool:
        """Whether a job can begin together with others: alike in what is asked of its prompt, and within memory."""
        if not jobs:
            return True
        lengths = [len(member.so_far) for member in (*jobs, job)]
        scores_prompt = job.on_prompt is not None
        if scores_prompt != (jobs[0].on_prompt is not None):
            return False
        return len(lengths) * max(lengths) <= BATCH_TOKENS and (
            not scores_prompt or fits_together(self._model, lengths)
        )

    # ------------------------------------------------------------------------------- one turn
    def _turn(self, cohort: _Cohort) -> None:
        """One pass for a cohort, and the tokens that follow from it."""
        going_on = [i for i, job in enumerate(cohort.jobs) if not job.is_cancelled]
        self._go_on_with(cohort, going_on)
        if not cohort.jobs:
            return
        try:
            self._pass(cohort)
            chosen = self._chosen(cohort)
        except Exception as error:
            self._cohorts.remove(cohort)
            if len(cohort.jobs) == 1 or not isinstance(error, FloatingPointError):
                for job in cohort.jobs:
                    job.on_error(error)
            else:
                self._cohorts += [_Cohort([job]) for job in cohort.jobs]
            return
        self._tell(cohort, chosen)
        self._merge(cohort)

    def _merge(self, cohort: _Cohort) -> None:
        """Let a cohort go on within an earlier one, if their caches can be put together."""
        for earlier in self._cohorts:
            if earlier is cohort or not cohort.rows:
                return
            if earlier.rows and earlier.rows.absorb(cohort.rows):
                earlier.jobs += cohort.jobs
                earlier.next += cohort.next
                cohort.jobs = []
                self._cohorts.remove(cohort)
                return

    def _pass(self, cohort: _Cohort) -> None:
        """The prompts, or one token more of every row."""
        self._steer_rows(cohort.jobs)
        if cohort.rows is not None:
            cohort.rows.step(cohort.next)
        else:
            prompt_scores: dict[int, list[Scored]] = {i: [] for i in range(len(cohort.jobs))}
            asked = [job.on_prompt is not None and not job.has_prompt_scores for job in cohort.jobs]

            def on_prompt(row: int, start: int, logits: Tensor) -> None:
                job = cohort.jobs[row]
                tokens = torch.tensor(job.so_far[start : start + len(logits)])
                if len(tokens):
                    prompt_scores[row] += scored(logits, tokens, top=job.top or 0)

            prompts = [job.so_far for job in cohort.jobs]
            rows = Rows.begin(self._model, prompts, on_prompt=on_prompt if any(asked) else None)
            self._check()
            cohort.rows = rows
            for i, job in enumerate(cohort.jobs):
                if asked[i] and job.on_prompt:
                    job.has_prompt_scores = True
                    job.on_prompt(prompt_scores[i])
            return
        self._check()

    def _check(self) -> None:
        """What a GPU noted; on a CPU it has been raised."""
        if self._steering and self._model.device.type != "cpu":
            self._steering.check()

    def _chosen(self, cohort: _Cohort) -> list[Scored | None]:
        """The next token of every row; None where none is asked for."""
        assert cohort.rows is not None
        check_logits(cohort.rows.logits)  # before anything is drawn: a row that is run again draws what it would have
        chosen: list[Scored | None] = []
        for job, logits in zip(cohort.jobs, cohort.rows.logits, strict=True):
            if len(job.made) >= job.max_tokens:
                chosen.append(None)
                continue
            token = job.sampling.choose(logits)
            if job.top is None:
                chosen.append(Scored(token, 0.0, ()))
            else:
                chosen += scored(logits[None], torch.tensor([token]), top=job.top)
        return chosen

    def _tell(self, cohort: _Cohort, chosen: Sequence[Scored | None]) -> None:
        """Deliver the tokens; rows that have ended leave the cohort."""
        going_on = []
        for i, (job, token) in enumerate(zip(cohort.jobs, chosen, strict=True)):
            reason: Reason | None = "length"
            if token is not None:
                job.made.append(token.token)
                is_end = token.token in job.ends
                job.on_token(token, "" if is_end else job.words.add(token.token))
                if is_end or job.words.is_stopped:
                    reason = "stop"
                elif len(job.made) < job.max_tokens:
                    reason = None
            if reason is None:
                going_on.append(i)
            else:
                job.on_end(reason, job.words.end())
        self._go_on_with(cohort, going_on)

    def _go_on_with(self, cohort: _Cohort, going_on: Sequence[int]) -> None:
        if not going_on:
            cohort.jobs = []
            self._cohorts.remove(cohort)
            return
        if len(going_on) < len(cohort.jobs):
            cohort.jobs = [cohort.jobs[i] for i in going_on]
            if cohort.rows is not None:
                cohort.rows.keep(going_on)
        cohort.next = [job.made[-1] for job in cohort.jobs if job.made]

    def _steer_rows(self, jobs: Sequence[Job]) -> None:
        """Row i by the vectors of job i."""
        if not self._steering or self._assigned == jobs:
            return
        self._assigned = list(jobs)
        for i, job in enumerate(jobs):
            if job.steer is None:
                self._steering.release([i])
            else:
                steer = job.steer
                self._steering.assign([i], behaviour=steer.behaviour, lam=steer.lam, layers=steer.layers)
