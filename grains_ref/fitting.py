"""A fit that survives interruption: every example's result is kept on disk until the vectors are written.

A killed process, a full disk or Ctrl-C loses at most the example in work. The same command run again goes on from
there and gives bit-identical vectors, because each example is computed from its own content alone. A work folder
that was made from other data, another model or other settings is refused, never mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from grains_ref.data import PreferencePair, RowError, check_tokens, content_digest
from grains_ref.files import is_draft, write_whole
from grains_ref.grains import Example, Fit, HyperParameters, Selection, Shift, attribute, shift, vectors
from grains_ref.models import HuggingFaceModel
from grains_ref.vectors import Header, SteeringVectors, library_versions


class WorkFolderError(ValueError):
    """The work folder belongs to another fit, or holds something that is not ours."""


@dataclass(frozen=True)
class FitRecord:
    """A finished fit: the vectors, and what each example contributed."""

    vectors: SteeringVectors
    fit: Fit
    shifts: tuple[Shift, ...]
    resumed: int  # how many examples came from the work folder


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
            check_tokens(
                pair,
                n_prompt=len(example.encoded.ids),
                n_chosen=len(example.y_pos),
                n_rejected=len(example.y_neg),
                context=model.context,
            )
        except ValueError as error:
            problem = error if isinstance(error, RowError) else RowError(Path(pair.where), 0, "", str(error))
            if not skip_bad_rows:
                raise problem from error
            skipped.append(problem)
        else:
            kept.append(pair)
            examples.append(example)
    return kept, examples, skipped


def resumable_fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    hp: HyperParameters,
    *,
    work: Path,
    on_example: Callable[[int], None],
) -> FitRecord:
    """`grains_ref.grains.fit`, with each example's shift kept in `work` until the caller removes it.

    on_example is called with the number of finished examples.

    Raises:
        WorkFolderError: the folder was made by another fit.
        DegenerateShiftsError: the shifts define no direction.
        OSError: the disk is full or not writable; finished examples are kept.
    """
    digest = content_digest(pairs)
    header = {
        "data_digest": digest,
        "fingerprint": model.fingerprint(),
        "dtype": str(model.hf.dtype),
        "hyper_parameters": hp.as_dict(),
        "versions": library_versions(),
    }
    _claim(work, header)
    shifts, resumed = [], 0
    for i, example in enumerate(examples):
        path = work / f"{i:06d}.safetensors"
        if path.exists():
            shifts.append(_read_shift(path))
            resumed += 1
        else:
            shifts.append(shift(model, example, attribute(model, example, hp).a, hp))
            _write_shift(path, shifts[-1])
        on_example(i + 1)
    fit = vectors(shifts, hp)
    return FitRecord(steering_vectors(model, fit, hp, digest, len(pairs)), fit, tuple(shifts), resumed)


def steering_vectors(
    model: HuggingFaceModel, fit: Fit, hp: HyperParameters, digest: str, n_examples: int
) -> SteeringVectors:
    """A fit with its header, ready to be saved."""
    v_pos, v_neg = fit.pos.v.float(), fit.neg.v.float()
    return SteeringVectors(
        v=v_pos - v_neg,
        v_pos=v_pos,
        v_neg=v_neg,
        header=Header(
            dialect="paper",
            hyper_parameters=hp.as_dict(),
            model_name=model.name,
            fingerprint=model.fingerprint(),
            data_digest=digest,
            n_examples=n_examples,
            versions=library_versions(),
            diagnostics={
                f"{side}_{key}": list(getattr(aggregation, key))
                for side, aggregation in (("pos", fit.pos), ("neg", fit.neg))
                for key in ("explained", "gap", "cos_mean")
            },
        ),
    )


def discard(work: Path) -> None:
    """Remove what a fit kept in its work folder, and the folder too unless it holds something else."""
    for path in (*work.glob("[0-9]*.safetensors"), work / "fit.json", *filter(is_draft, work.iterdir())):
        path.unlink()
    if not any(work.iterdir()):
        work.rmdir()


def _claim(work: Path, header: dict[str, Any]) -> None:
    """Make the work folder, or check that it was made by the same fit."""
    path = work / "fit.json"
    # A fit killed in its very first moment leaves only a draft.
    if work.exists() and not path.is_file() and not all(is_draft(other) for other in work.iterdir()):
        raise WorkFolderError(f"{work} is not empty and not a work folder of grains-ref; name another one with --work")
    work.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_whole(path, json.dumps(header, indent=2, sort_keys=True).encode())
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise WorkFolderError(f"{path} is damaged ({error}); delete the folder and start again") from error
    if not isinstance(found, dict):
        raise WorkFolderError(f"{path} is damaged (no JSON object); delete the folder and start again")
    changed = [key for key in header if found.get(key) != header[key]]
    if changed:
        old, new = (json.dumps({key: z.get(key) for key in changed}, sort_keys=True) for z in (found, header))
        raise WorkFolderError(
            f"{work} holds an unfinished fit with other {', '.join(changed)}.\n  there: {old}\n  now:   {new}\n"
            "Run the earlier command again to finish it, or delete the folder, or name another one with --work."
        )


def _write_shift(path: Path, one: Shift) -> None:
    content = safetensors.torch.save(
        {"a": one.a, "delta_pos": one.delta_pos, "delta_neg": one.delta_neg},
        metadata={"selection": json.dumps({"pos": one.selection.pos, "neg": one.selection.neg})},
    )
    try:
        write_whole(path, content)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error}); the examples finished so far are kept") from error


def _read_shift(path: Path) -> Shift:
    try:
        with safe_open(path, framework="pt") as stored:
            selection = json.loads((stored.metadata() or {})["selection"])
            a, delta_pos, delta_neg = (stored.get_tensor(name) for name in ("a", "delta_pos", "delta_neg"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise WorkFolderError(f"{path} is damaged ({error}); delete this file and run the command again") from error
    return Shift(a, Selection(tuple(selection["pos"]), tuple(selection["neg"])), delta_pos, delta_neg)
