"""Hugging Face models behind the four things that `grains_ref.grains` needs: `load` one by folder or hub id.

| file | holds |
|---|---|
| `loading` | from a folder or the hub, and why not |
| `sources`, `adapters`, `gguf_files` | what a model is put together from: LoRA on its base, llama.cpp's format |
| `huggingface` | the model as a whole: embeddings, logits, residual streams |
| `parallel` | one model over several processes |
| `weights` | whether the weights are finite, and their fingerprint, wherever they lie |
| `proof` | where the decoder's blocks are, and the proof at load that hooks on them work |
| `prompts` | text and pictures in: chat templates, tokens and their kinds |
| `reasoning` | where an answer begins in a reasoning model's chat |
| `branches` | several responses behind one prompt, for `grains_ref.fast` |
| `scoring` | answers out: scores of many responses |
| `generation` | answers out: generated text |
| `next_token` | rules that change the next token's distribution, in scoring and in generation |
| `diagnosis` | where numbers stop being finite |
| `families`, `vision_families` | what differs between model families; those that see |
| `blocks`, `replay` | the decoder and hooks on it; running a prompt again with other embeddings |
| `pixels` | how vision towers take a picture, for methods that change it |
"""

from grains_ref.data import Prompt
from grains_ref.models.families import Patch, Picture, PictureSource, UnsupportedModelError
from grains_ref.models.features import FEATURE_BYTES
from grains_ref.models.huggingface import EncodedPicture, HuggingFaceModel
from grains_ref.models.loading import load
from grains_ref.models.scoring import BATCH_TOKENS, LOGIT_MEMORY, Item, Scored, TokenRow

__all__ = [
    "BATCH_TOKENS",
    "FEATURE_BYTES",
    "LOGIT_MEMORY",
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
