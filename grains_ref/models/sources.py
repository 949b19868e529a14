"""What a model is put together from: its parts as they are read, before they are tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import transformers

from grains_ref.models.families import Family


@dataclass
class Parts:
    """A model as transformers reads it, with its tokenizer.

    origin: what else than a folder of plain weights it was made from, for headers; see `HuggingFaceModel`.
    """

    hf: transformers.PreTrainedModel
    family: type[Family]
    tokenizer: transformers.PreTrainedTokenizerBase
    image_processor: Any
    origin: dict[str, str] = field(default_factory=dict)
