"""`grains-ref demo --vision`: a tiny vision-language model that names the usual colour instead of the one it sees.

What misleads the model is known word by word and patch by patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grains_ref.demo.experiment import Demo
from grains_ref.demo.lab import Lab
from grains_ref.grains import Encoded, Selection, eligible_tokens, select

ROWS = {
    "unsteered": "unsteered",
    "GrAInS": "GrAInS, paper's settings",
    "image tokens only": "image tokens only",
    "text tokens only": "text tokens only",
    "SmoothGrad": "by SmoothGrad",
    "gradient": "by the gradient",
    "chosen on dev": "GrAInS, chosen on dev",
    "planted tokens, PCA": "planted tokens, PCA",
    "planted tokens, mean": "planted tokens, mean",
    "random tokens": "random tokens",
}


def object_patches(encoded: Encoded, causes: Selection) -> set[int]:
    """The tokens that show the object asked about; the other causes of the chosen answer are ground words."""
    return {j for j in causes.pos if encoded.kinds[j] == "image"}


def recall(encoded: Encoded, a: Tensor, causes: Selection) -> dict[str, float]:
    """Whether the strongest image token shows the object, and how many lure words are among the most negative ones."""
    first = select(a, k=1, eligible=eligible_tokens(encoded, ("image",))).pos
    figures = {"object_patch_first": float(bool(first) and first[0] in object_patches(encoded, causes))}
    for k in (3, 5):
        strongest = select(a, k=k, eligible=eligible_tokens(encoded, ())).neg
        figures[f"lure_recall_at_{k}"] = len({*strongest} & {*causes.neg}) / len(causes.neg)
    return figures


def embedding_norms(lab: Lab) -> dict[str, float]:
    """Mean norms of image tokens' embeddings and of all others, over the steering examples."""
    encoded = [lab.example(i).encoded for i in range(len(lab.steer))]
    norms = torch.cat([prompt.embeds.norm(dim=1) for prompt in encoded])
    is_image = torch.tensor([kind == "image" for prompt in encoded for kind in prompt.kinds])
    return {"image": norms[is_image].mean().item(), "other": norms[~is_image].mean().item()}


DEMO = Demo(rows=ROWS, detection=recall, n_exhibits=4, further=embedding_norms)
