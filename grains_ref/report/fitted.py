"""The examples of a fit, as a report shows them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grains_ref.data import PreferencePair
from grains_ref.data.images import read_picture
from grains_ref.data.pairs import Prompt
from grains_ref.grains import Example, HyperParameters, Shift, objective
from grains_ref.models import HuggingFaceModel
from grains_ref.report.attributions import Attributed


def prompt_words(prompt: Prompt) -> str:
    """A prompt as text: of a chat, every turn behind its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def fitted_examples(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    shifts: Sequence[Shift],
    hp: HyperParameters,
) -> list[Attributed]:
    """What a fit attributed and selected, pair by pair; f is computed once more at both ends of the path."""
    attributed = []
    for pair, example, shift in zip(pairs, examples, shifts, strict=True):
        encoded = example.encoded
        ends = torch.stack([encoded.embeds, model.baseline(encoded, hp.path_baseline)])
        with torch.no_grad():
            f_x, f_baseline = objective(model, example, hp)(ends).double().tolist()
        is_complete = hp.attribution == "integrated_gradients"
        attributed.append(
            Attributed(
                prompt=prompt_words(pair.prompt),
                chosen=pair.chosen,
                rejected=pair.rejected,
                tokens=encoded.tokens,
                kinds=encoded.kinds,
                a=shift.a.tolist(),
                pos=shift.selection.pos,
                neg=shift.selection.neg,
                f_x=f_x,
                gap=f_x - f_baseline - float(shift.a.double().sum()) if is_complete else None,
                patches=getattr(encoded, "patches", ()),
                picture=read_picture(pair.images[0]) if len(pair.images) == 1 else None,
            )
        )
    return attributed
