"""Word-level tokenizers for the tiny models: one whitespace-separated word, one token; no hub."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the positions in ``vocabulary``; it adds ``<s>`` in front and pads left.

    Raises:
        ValueError: the special tokens are missing, or a word occurs twice.
    """
    missing = {"<pad>", "<s>", "</s>", "<unk>"} - set(vocabulary)
    if missing or len(set(vocabulary)) != len(vocabulary):
        raise ValueError(f"vocabulary needs each word once and the special tokens; missing: {sorted(missing)}")
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
