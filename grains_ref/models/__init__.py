"""Hugging Face models behind the four things that `grains_ref.grains` needs: `load` one by folder or hub id.

| file | holds |
|---|---|
| `huggingface` | loading and the check at load, text and pictures in, scores and generated text out |
| `families` | what differs between model families |
"""

from grains_ref.models.families import Patch, Picture, PictureSource, UnsupportedModelError
from grains_ref.models.huggingface import EncodedPicture, HuggingFaceModel, Item, Prompt, Scored, TokenRow, load

__all__ = [
    "EncodedPicture",
    "HuggingFaceModel",
    "Item",
    "Patch",
    "Picture",
    "PictureSource",
    "Prompt",
    "Scored",
    "TokenRow",
    "UnsupportedModelError",
    "load",
]
