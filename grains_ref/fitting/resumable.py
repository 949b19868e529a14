"""A fit that survives interruption: every example's result is kept on disk until the vectors are written.

    with open_work_folder(folder) as work:
        record = resumable_fit(model, pairs, examples, hp, work=work, on_example=show)
        record.vectors.save(path)
        work.discard()

A killed process, a full disk or Ctrl-C loses at most the batch in work.  The same command run again goes on from there
and gives bit-identical vectors: which examples go through the model together follows from all examples and from a
number of tokens that the folder keeps, never from what is finished, and a batch with one unfinished example is
computed as a whole.  A work folder that was made from other data, other tokens, another model, by the other engine or
with other settings of the attribution is refused, never mixed in.  What comes after the scores may change: with
another k or mask only eq. (4) is computed again, with another aggregation nothing but eq. (5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from grains_ref.data import FieldError, PreferencePair, RowError, content_digest, warn_of_repetition
from grains_ref.fast import DEFAULT_SHARE, Engine, EngineName, engine_of
from grains_ref.files import digest_of
from grains_ref.files.processes import check_same, first, share
from grains_ref.fitting.additions import NOTHING, Additions, added_to, layer_agreement, less_random
from grains_ref.fitting.together import in_batch
from grains_ref.fitting.work_folder import Finished, WorkFolder
from grains_ref.grains import (
    Example,
    Fit,
    HyperParameters,
    Selection,
    Shift,
    at_least_float32,
    eligible_tokens,
    select,
)
from grains_ref.vectors import Header, SteeringVectors, library_versions

if TYPE_CHECKING:
    from grains_ref.models import HuggingFaceModel


@dataclass(frozen=True)
class FitRecord:
    """A finished fit: the vectors, and what each example contributed."""

    vectors: SteeringVectors
    fit: Fit
    shifts: tuple[Shift, ...]
    resumed: int  # of how many examples the scores came from the work folder
    additions: Additions = NOTHING


def checked_examples(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, skip_bad_rows: bool
) -> tuple[list[PreferencePair], list[Example], list[RowError]]:
    """Tokenise every pair before any work is done; pairs that do not fit the model are refused or skipped.

    Raises:
        RowError: a response or a prompt has no tokens, or the row is longer than the model's context.
    """
    suitable, examples, skipped = [], [], []
    for pair in pairs:
        try:
            example = model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
        except ValueError as error:
            problem = _row_error(pair, error)
            if not skip_bad_rows:
                raise problem from error
            skipped.append(problem)
        else:
            suitable.append(pair)
            examples.append(example)
    warn_of_repetition(suitable)
    return suitable, examples, skipped


def _row_error(pair: PreferencePair, error: ValueError) -> RowError:
    """The error with the place of its pair."""
    if isinstance(error, RowError):
        return error
    if isinstance(error, FieldError):
        return pair.error(error.field, error.problem)
    return pair.error("", str(error))


def resumable_fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    hp: HyperParameters,
    *,
    work: WorkFolder,
    on_example: Callable[[int], None],
    engine: EngineName = "fast",
    memory: str = DEFAULT_SHARE,
    additions: Additions = NOTHING,
) -> FitRecord:
    """`grains_ref.grains.fit`, with each example's scores and shifts kept in `work` until they are discarded.

    on_example is called with the number of finished examples.  memory: the share of the free memory that the fast
    engine may take, or an amount (`grains_ref.fast.memory`); measured once for a work folder.  additions: what is added
    to the paper's method.

    Raises:
        WorkFolderError: the folder was made by another fit, or a file in it is damaged.
        DegenerateShiftsError: the shifts define no direction, or no layer is left.
        ValueError: too few examples to ask whether their halves agree.
        FloatingPointError: scores or shifts are not finite.
        OSError: the disk is full or not writable; finished examples are kept.
    """
    chosen = common_engine(engine, model, examples, hp, memory=memory, kept=work.recorded_number("pass_tokens"))
    by_engine = {"engine": engine, "memory": memory, "pass_tokens": chosen.pass_tokens}
    claim(work, model, pairs, examples, hyper_parameters=score_settings(hp), **by_engine)
    names = [str(pair.where) for pair in pairs]
    batches = []
    for numbers in chosen.batches(examples, hp):
        batch = _Batch(numbers, [examples[i] for i in numbers], [names[i] for i in numbers])
        batches.append(batch._replace(finished=_finished(model, batch, work)))
    finished = [_kept_shifts(batch, hp) for batch in batches]
    missing = [batch for batch, of_batch in zip(batches, finished, strict=True) if of_batch is None]
    computed = share(missing, lambda batch: _computed_shifts(model, chosen, batch, hp))
    shifts: dict[int, Shift] = {}
    resumed = 0
    for batch, of_batch in zip(batches, finished, strict=True):
        if of_batch is None:
            of_batch = next(computed)
            _keep(batch, of_batch, hp, work)
        shifts.update(zip(batch.numbers, of_batch, strict=True))
        resumed += len([piece for piece in batch.finished if piece is not None])
        on_example(len(shifts))
    in_order = [shifts[i] for i in range(len(examples))]
    if additions.less_random:
        in_order = less_random(model, examples, in_order, hp, draws=additions.less_random, work=work)
    fit = chosen.vectors(in_order, hp)
    agreement: list[float] = []
    if additions.agreeing_layers is not None:
        agreement = layer_agreement(in_order, hp)
    fit = added_to(fit, additions, agreement)
    vectors = steering_vectors(model, fit, hp, content_digest(pairs), examples, engine=engine)
    vectors = with_additions(vectors, additions, agreement)
    return FitRecord(vectors, fit, tuple(in_order), resumed, additions)


def with_additions(vectors: SteeringVectors, additions: Additions, agreement: Sequence[float]) -> SteeringVectors:
    """The vectors, whose header says what was added to the paper's method, and how far the halves agree by layer.

    agreement: L cosines, or none where they were not asked for.
    """
    header = vectors.header
    diagnostics = header.diagnostics | ({"halves": list(agreement)} if agreement else {})
    hyper_parameters = header.hyper_parameters | additions.record()
    return replace(vectors, header=replace(header, hyper_parameters=hyper_parameters, diagnostics=diagnostics))


def common_engine(
    name: EngineName,
    model: HuggingFaceModel,
    examples: Sequence[Example],
    hp: HyperParameters,
    *,
    memory: str,
    kept: int,
) -> Engine:
    """`engine_of`, with the batches of the first process in all of them.

    kept: the tokens of a pass that the work folder has, 0 if none.
    """

    def measured() -> int:
        return engine_of(name, model, examples, hp, memory=memory, pass_tokens=kept).pass_tokens

    return engine_of(name, model, examples, hp, memory=memory, pass_tokens=first(measured, runs_model=True))


def claim(
    work: WorkFolder,
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    **settings: Any,
) -> None:
    """Begin a fit in its work folder, or go on with one that depends on the same things.

    settings: what else than data, model and software the finished examples depend on.

    Raises:
        WorkFolderError: the folder was made by another fit.
    """
    record = {
        "data_digest": content_digest(pairs),
        "tokens": [_token_digest(example) for example in examples],
        "fingerprint": model.fingerprint(),
        "dtype": str(model.hf.dtype),
        "device": model.device.type,
        "versions": library_versions(),
        **_template_inputs(model, examples),
        **settings,
    }
    check_same("pairs, model, settings and software of the fit", digest_of(json.dumps(record, sort_keys=True).encode()))
    work.claim(record, names=[str(pair.where) for pair in pairs])


def score_settings(hp: HyperParameters) -> dict[str, Any]:
    """The hyper-parameters that enter the scores, and so all that a work folder keeps.

    What comes after them may change: `k` and `eligible` (eq. 3) and `mask_baseline` (eq. 4) enter the shifts, which
    are kept with what was masked for them; `aggregation` and `components` (eq. 5) enter nothing that is kept.
    """
    own = {
        "integrated_gradients": ("m", "quadrature"),
        "gradient": (),
        "smoothgrad": ("n", "sigma", "seed"),
        "random": ("seed",),
    }
    names = ("attribution", "objective", "path_baseline", *own[hp.attribution])
    return {name: getattr(hp, name) for name in names}


def tokens_digest(examples: Sequence[Example]) -> str:
    """SHA-256 of what the model sees of the examples: token ids, kinds of token, pictures.

    Equal pairs become other tokens where a chat template writes today's date, where the template or the special
    tokens change, or where another tokenizer is used.
    """
    return digest_of(json.dumps([_token_digest(example) for example in examples]).encode())


def _template_inputs(model: HuggingFaceModel, examples: Sequence[Example]) -> dict[str, Any]:
    """What a chat template adds that stands in no pair: its own words, and the date; nothing for plain texts."""
    if not any("template" in example.encoded.kinds for example in examples):
        return {"chat_template": "", "date": ""}
    return {"chat_template": model.prompts.template_digest, "date": model.prompts.date}


def _token_digest(example: Example) -> str:
    x = example.encoded
    seen = [x.ids.tolist(), list(x.kinds), x.picture, example.y_pos.tolist(), example.y_neg.tolist()]
    return digest_of(json.dumps(seen).encode())


def steering_vectors(
    model: HuggingFaceModel,
    fit: Fit,
    hp: HyperParameters,
    data_digest: str,
    examples: Sequence[Example],
    *,
    engine: EngineName,
) -> SteeringVectors:
    """A fit with its header, ready to be saved.

    data_digest: of the pairs (`grains_ref.data.content_digest`) that became these examples.  engine: what computed it.
    """
    v_pos, v_neg = fit.pos.v.float(), fit.neg.v.float()
    diagnostics = {
        f"{side}_{key}": list(getattr(aggregation, key))
        for side, aggregation in (("pos", fit.pos), ("neg", fit.neg))
        for key in ("explained", "gap", "cos_mean")
    }
    of_method: dict[str, Any] = {"dialect": "paper", "hyper_parameters": hp.as_dict(), "diagnostics": diagnostics}
    header = header_of(model, examples, data_digest, engine=engine, **of_method)
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=header)


def header_of(model: HuggingFaceModel, examples: Sequence[Example], data_digest: str, **of_method: Any) -> Header:
    """A header with what every method's vectors are made from; of_method: the fields that only the method knows."""
    inputs: dict[str, Any] = _template_inputs(model, examples)
    return Header(
        model_name=model.name,
        fingerprint=model.fingerprint(),
        data_digest=data_digest,
        tokens_digest=tokens_digest(examples),
        n_examples=len(examples),
        versions=library_versions(),
        origin=model.origin,
        **inputs,
        **of_method,
    )


class _Batch(NamedTuple):
    """Examples that go through the model together."""

    numbers: list[int]
    examples: list[Example]
    names: list[str]  # where each is from, for messages
    finished: Sequence[Finished | None] = ()  # what the work folder has of each


def _finished(model: HuggingFaceModel, batch: _Batch, work: WorkFolder) -> list[Finished | None]:
    """What the work folder has of each example."""
    per_layer = (len(model.blocks), model.width)
    pieces: list[Finished | None] = []
    for i, example in zip(batch.numbers, batch.examples, strict=True):
        shapes = {"a": example.encoded.ids.shape, "delta_pos": per_layer, "delta_neg": per_layer}
        pieces.append(work.read(i, shapes=shapes, dtype=at_least_float32(example.encoded.embeds)))
    return pieces


def _kept_shifts(batch: _Batch, hp: HyperParameters) -> list[Shift] | None:
    """The shifts of a batch as the work folder has them; None where one is missing, or was made of other tokens."""
    shifts = []
    for example, piece in zip(batch.examples, batch.finished, strict=True):
        if piece is None:
            return None
        a = piece.tensors["a"]
        selection = _selection(a, example, hp)
        if piece.record.get("masked") != _masked(selection, hp):
            return None
        shifts.append(Shift(a, selection, piece.tensors["delta_pos"], piece.tensors["delta_neg"]))
    return shifts


def _computed_shifts(model: HuggingFaceModel, engine: Engine, batch: _Batch, hp: HyperParameters) -> list[Shift]:
    """The shifts of a whole batch, from its finished scores if all are there."""
    scores = [piece.tensors["a"] for piece in batch.finished if piece]
    if len(scores) < len(batch.examples):
        scores = in_batch(model, lambda some: engine.scores(some, hp), batch.examples, batch.names)
    score_of = dict(zip(map(id, batch.examples), scores, strict=True))
    return in_batch(
        model,
        lambda some: engine.shifts(some, [score_of[id(example)] for example in some], hp),
        batch.examples,
        batch.names,
    )


def _keep(batch: _Batch, shifts: Sequence[Shift], hp: HyperParameters, work: WorkFolder) -> None:
    """Write what the work folder does not have of a batch."""
    for i, name, piece, shift in zip(batch.numbers, batch.names, batch.finished, shifts, strict=True):
        masked = _masked(shift.selection, hp)
        if piece is None or piece.record.get("masked") != masked:
            work.write(i, _finite_tensors(shift, name), {"masked": masked})


def _selection(a: Tensor, example: Example, hp: HyperParameters) -> Selection:
    return select(a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))


def _masked(selection: Selection, hp: HyperParameters) -> dict[str, Any]:
    """What was masked for a shift, as it is kept beside it."""
    return {"pos": list(selection.pos), "neg": list(selection.neg), "baseline": hp.mask_baseline}


def _finite_tensors(shift: Shift, where: str) -> dict[str, Tensor]:
    """What is kept of a shift.

    Raises:
        FloatingPointError: something of it is not finite.
    """
    tensors = {"a": shift.a, "delta_pos": shift.delta_pos, "delta_neg": shift.delta_neg}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{where}: {name} is not finite.")
    return tensors
