"""A fit that survives interruption: every example's result is kept on disk until the vectors are written.

    with open_work_folder(folder) as work:
        record = resumable_fit(model, pairs, examples, hp, work=work, on_example=show)
        record.vectors.save(path)
        work.discard()

A killed process, a full disk or Ctrl-C loses at most the example in work. The same command run again goes on from
there and gives bit-identical vectors, because each example is computed from its own content alone. A work folder
that was made from other data, other tokens, another model or other settings of the attribution is refused, never
mixed in. What comes after the scores may change: with another k or mask only eq. (4) is computed again, with another
aggregation nothing but eq. (5).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grains_ref.data import FieldError, PreferencePair, RowError, content_digest, warn_of_repetition
from grains_ref.files import digest_of
from grains_ref.fitting.work_folder import WorkFolder
from grains_ref.grains import (
    Example,
    Fit,
    HyperParameters,
    Shift,
    at_least_float32,
    attribute,
    eligible_tokens,
    select,
    shift,
    vectors,
)
from grains_ref.models.diagnosis import explained
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


def checked_examples(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, skip_bad_rows: bool
) -> tuple[list[PreferencePair], list[Example], list[RowError]]:
    """Tokenise every pair before any work is done; pairs that do not fit the model are refused or skipped.

    Raises:
        RowError: a response or a prompt has no tokens, or the row is longer than the model's context.
    """
    kept, examples, skipped = [], [], []
    for pair in pairs:
        try:
            example = model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
        except ValueError as error:
            problem = _row_error(pair, error)
            if not skip_bad_rows:
                raise problem from error
            skipped.append(problem)
        else:
            kept.append(pair)
            examples.append(example)
    warn_of_repetition(kept)
    return kept, examples, skipped


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
) -> FitRecord:
    """`grains_ref.grains.fit`, with each example's scores and shifts kept in `work` until they are discarded.

    on_example is called with the number of finished examples.

    Raises:
        WorkFolderError: the folder was made by another fit, or a file in it is damaged.
        DegenerateShiftsError: the shifts define no direction.
        FloatingPointError: scores or shifts are not finite.
        OSError: the disk is full or not writable; finished examples are kept.
    """
    data_digest = content_digest(pairs)
    record = {
        "data_digest": data_digest,
        "tokens": [_token_digest(example) for example in examples],
        "fingerprint": model.fingerprint(),
        "dtype": str(model.hf.dtype),
        "device": model.device.type,
        "hyper_parameters": score_settings(hp),
        "versions": library_versions(),
        **_template_inputs(model, examples),
    }
    work.claim(record, names=[str(pair.where) for pair in pairs])
    shifts, resumed = [], 0
    for i, (pair, example) in enumerate(zip(pairs, examples, strict=True)):
        compute = functools.partial(_finished_shift, model, example, hp, work=work, i=i)
        finished, had_scores = explained(model, compute, where=str(pair.where))
        shifts.append(finished)
        if had_scores:
            resumed += 1
        on_example(i + 1)
    fit = vectors(shifts, hp)
    return FitRecord(steering_vectors(model, fit, hp, data_digest, examples), fit, tuple(shifts), resumed)


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
    model: HuggingFaceModel, fit: Fit, hp: HyperParameters, data_digest: str, examples: Sequence[Example]
) -> SteeringVectors:
    """A fit with its header, ready to be saved.

    data_digest: of the pairs (`grains_ref.data.content_digest`) that became these examples.
    """
    v_pos, v_neg = fit.pos.v.float(), fit.neg.v.float()
    inputs: dict[str, Any] = _template_inputs(model, examples)
    return SteeringVectors(
        v=v_pos - v_neg,
        v_pos=v_pos,
        v_neg=v_neg,
        header=Header(
            dialect="paper",
            hyper_parameters=hp.as_dict(),
            model_name=model.name,
            fingerprint=model.fingerprint(),
            data_digest=data_digest,
            tokens_digest=tokens_digest(examples),
            **inputs,
            n_examples=len(examples),
            versions=library_versions(),
            diagnostics={
                f"{side}_{key}": list(getattr(aggregation, key))
                for side, aggregation in (("pos", fit.pos), ("neg", fit.neg))
                for key in ("explained", "gap", "cos_mean")
            },
        ),
    )


def _finished_shift(
    model: HuggingFaceModel, example: Example, hp: HyperParameters, *, work: WorkFolder, i: int
) -> tuple[Shift, bool]:
    """The shift of example i, computed as far as the work folder does not have it, and whether it had the scores."""
    per_layer = (len(model.blocks), model.width)
    kept = work.read(
        i,
        shapes={"a": example.encoded.ids.shape, "delta_pos": per_layer, "delta_neg": per_layer},
        dtype=at_least_float32(example.encoded.embeds),
    )
    a = kept.tensors["a"] if kept else attribute(model, example, hp).a
    selection = select(a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))
    masked = {"pos": list(selection.pos), "neg": list(selection.neg), "baseline": hp.mask_baseline}
    if kept and kept.record.get("masked") == masked:
        return Shift(a, selection, kept.tensors["delta_pos"], kept.tensors["delta_neg"]), True
    computed = shift(model, example, a, hp)
    tensors = {"a": computed.a, "delta_pos": computed.delta_pos, "delta_neg": computed.delta_neg}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name} is not finite.")
    work.write(i, tensors, {"masked": masked})
    return computed, kept is not None
