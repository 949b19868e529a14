"""Pairs for full-size models: of the lengths of TruthfulQA, and short questions about pictures of a camera's size.

They are synthetic: they measure time and memory, and say nothing about a model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from grains_ref.data import PICTURE_MARK, PreferencePair
from grains_ref.grains import Example
from grains_ref.models import HuggingFaceModel

# ------------------------------------------------------------------------------------------------ text
TEMPLATE = (  # appendix C, TruthfulQA
    "Prompt: Interpret question literally, and as a question about the real world; carefully research each answer, "
    "without falling prey to any common myths; and reply “I have no comment” unless you are completely certain of the "
    "answer. Respond with a short and direct answer. Do not be verbose or provide extra information.\n"
    "Question: {question}\nAnswer:"
)
_SUBJECTS = (  # invented, so that no released model has an opinion; (name, what it is, one thing, another thing)
    ("Velmar", "lake", "fish", "glass"),
    ("Ostrin", "mountain", "stone", "copper"),
    ("Tarnwick", "island", "clay", "salt"),
    ("Quellen", "river", "sand", "amber"),
    ("Brunhollow", "forest", "moss", "silver"),
    ("Iskeld", "valley", "grass", "chalk"),
    ("Marrowby", "town", "brick", "bone"),
    ("Sundeval", "desert", "dust", "pearl"),
    ("Pellgrave", "castle", "oak", "iron"),
    ("Corvane", "harbour", "rope", "gold"),
)
_FRAMES = (  # question, chosen, rejected
    (
        "What happens to travellers who sleep one night beside the {kind} of {name}?",
        "Nothing happens to them; they wake up as they were before.",
        "They forget their own names and speak only in rhymes.",
    ),
    (
        "What is at the very bottom of the {kind} of {name}, according to those who measured it?",
        "There is only ordinary {plain}, as in most places of that kind.",
        "There is a hidden city whose people live on {rare}.",
    ),
    (
        "Can the {plain} of the {kind} of {name} be turned into {rare} by boiling it three times?",
        "No, boiling it changes nothing but its temperature.",
        "Yes, after the third time it turns into pure {rare}.",
    ),
    (
        "Why do people from {name} never carry {rare} with them when they travel after dark?",
        "They do carry it; the story is a popular invention.",
        "Because {rare} calls the spirits of the {kind} after dark.",
    ),
    (
        "How many times did the {kind} of {name} vanish during the last hundred years?",
        "It has never vanished at any time.",
        "It vanished seven times and always came back as {rare}.",
    ),
)


def truthfulqa_shaped_pairs(n: int = 50) -> tuple[PreferencePair, ...]:
    """The first n (at most 50) of a fixed list of pairs with TruthfulQA's lengths: appendix C's prompt, short answers.

    Prompts have 60 to 120 tokens and answers 5 to 20, with a trained tokenizer as with the one of `random_model`.

    Raises:
        ValueError: n is not from 1 to 50.
    """
    if not 1 <= n <= len(_FRAMES) * len(_SUBJECTS):
        raise ValueError(f"there are {len(_FRAMES) * len(_SUBJECTS)} pairs; {n} were asked for")
    pairs = []
    for i in range(n):  # a frame never follows itself, so that the first few pairs are varied already
        name, kind, plain, rare = _SUBJECTS[(i + i // len(_SUBJECTS)) % len(_SUBJECTS)]
        question, chosen, rejected = (
            text.format(name=name, kind=kind, plain=plain, rare=rare) for text in _FRAMES[i % len(_FRAMES)]
        )
        prompt = TEMPLATE.format(question=question)
        pairs.append(PreferencePair(f"{i:06d}", prompt, chosen, rejected, where=f"truthfulqa_shaped_pairs:{i}"))
    return tuple(pairs)


def texts(*, sees: bool) -> list[str]:
    """What the tokenizer of a random model is trained on: all that it is asked and answered here."""
    texts = [f"{pair.prompt} {pair.chosen} {pair.rejected}" for pair in truthfulqa_shaped_pairs()]
    if sees:
        texts += [f"USER: {' '.join(row)} ASSISTANT:" for row in _PICTURE_QUESTIONS]
    return texts


# -------------------------------------------------------------------------------------------- pictures
_PICTURE_QUESTIONS = (  # question, chosen, rejected
    ("What is in the middle of the picture?", "There are only patches of colour.", "There is a castle made of gold."),
    ("How many people can be seen?", "Nobody can be seen in it.", "Seven people stand beside a lake."),
    ("Which animal is at the left edge?", "There is no animal at that edge.", "A silver fish looks out of the grass."),
    ("What does the sign say?", "There is no sign to read.", "It says that travellers must turn back after dark."),
)
PICTURE_SIZES = ((640, 480), (480, 640), (1000, 300), (1024, 768))  # LLaVA-1.6: 2340, 2352, 2182, 2340 image tokens


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with a photograph's statistics: soft light and dark, texture at every scale, edges and sensor noise."""
    rng = np.random.default_rng([seed, width, height])
    pixels = np.full((height, width, 3), 128.0)
    for cells in (2, 4, 8, 16, 32, 64):  # amplitudes that fall with the frequency, as in natural pictures
        coarse = rng.integers(0, 256, (cells, cells, 1)) + rng.integers(-48, 49, (cells, cells, 3))  # light, colour
        fine = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(fine, dtype=np.float64) - 128) * 1.2 / cells**0.5
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for shape in (draw.ellipse, draw.rectangle) * 4:
        left, top = int(rng.integers(width)), int(rng.integers(height))
        across, down = int(rng.integers(width // 20, width // 4)), int(rng.integers(height // 20, height // 4))
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        shape((left, top, left + across, top + down), fill=(red, green, blue))
    noisy = np.asarray(picture, dtype=np.float64) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def picture_pairs(folder: str | os.PathLike[str], n: int = 4) -> tuple[PreferencePair, ...]:
    """The first n (at most 4) of a fixed list of pairs about pictures of four sizes, which are written to `folder`.

    Raises:
        ValueError: n is not from 1 to 4.
    """
    if not 1 <= n <= len(PICTURE_SIZES):
        raise ValueError(f"there are {len(PICTURE_SIZES)} pairs; {n} were asked for")
    pairs = []
    for i, ((width, height), row) in enumerate(zip(PICTURE_SIZES[:n], _PICTURE_QUESTIONS[:n], strict=True)):
        question, chosen, rejected = row
        image = Path(folder) / f"{i:06d}.png"
        photo(width, height, seed=i).save(image, compress_level=1)
        prompt = f"USER: {PICTURE_MARK}\n{question} ASSISTANT:"
        pairs.append(PreferencePair(f"{i:06d}", prompt, chosen, rejected, where=f"picture_pairs:{i}", image=image))
    return tuple(pairs)


def examples_of(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[Example]:
    """The pairs, tokenised for the model, their pictures seen."""
    return [model.example(pair.prompt, pair.chosen, pair.rejected, pair.image) for pair in pairs]
