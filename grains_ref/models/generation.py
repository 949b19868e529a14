"""Generated text: transformers' own loop, greedy by default, whatever settings were stored beside the weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from grains_ref.data import Prompt, check_list, excess_tokens
from grains_ref.models.diagnosis import explained, only_together
from grains_ref.models.families import Picture, PictureSources
from grains_ref.models.next_token import RuleProcessor, rules_of
from grains_ref.models.replay import left_pad
from grains_ref.models.scoring import TokenPrompt

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

# Of a stored configuration only these are used: where a text ends, and the ids that frame it.
KEPT = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")
# These change no text: lengths (`max_new_tokens` is always given), caches, speed, what else is returned, records.
HARMLESS = {
    *("max_length", "max_new_tokens", "use_cache", "cache_implementation", "cache_config"),
    *("max_cache_len", "low_memory", "prefill_chunk_size", "compile_config", "disable_compile", "use_mtp"),
    *("continuous_batching_config", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
    *("assistant_ensemble_weight", "speculation_type", "renormalize_logits", "transformers_version"),
}
SAMPLING = {"do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
BEAMS = {"early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups"}


@torch.no_grad()
def generate(
    model: HuggingFaceModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    images: Sequence[PictureSources | None],
    **options: Any,
) -> list[str]:
    """See `HuggingFaceModel.generate`."""
    check_list("prompts", prompts)
    check_list("images", images)
    if not prompts:
        return []
    if images and len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(images)} images; give one (or None) for every prompt")
    rows: list[Tensor] = []
    token_prompts: list[TokenPrompt] = []
    seen: list[Picture] = []
    for i, (prompt, image) in enumerate(zip(prompts, images or [None] * len(prompts), strict=True)):
        pictures = model.checked_pictures(image)
        seen += pictures
        ids, _ = model.prompts.encode(prompt, pictures)
        if excess_tokens(len(ids), max_new_tokens, model.context) > 0:
            raise ValueError(
                f"prompt {i}: {len(ids)} tokens + {max_new_tokens} new ones = {len(ids) + max_new_tokens}, but the "
                f"model takes {model.context}. Ask for fewer new tokens (max_new_tokens), or shorten the prompt."
            )
        rows.append(torch.tensor(ids))
        token_prompts.append(TokenPrompt(tuple(ids), pictures))
    pad_id = model.prompts.pad_id()
    batch = left_pad(rows, value=pad_id)  # (B, T)
    inputs = {"input_ids": batch, "attention_mask": left_pad([torch.ones_like(row) for row in rows], value=0)}
    if seen:
        inputs |= model.family.generation(batch == model.prompts.image_id) | model.family.tensors(seen)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    hf = greedy_by_default(model, options)

    def run() -> Tensor:
        of_rules = [RuleProcessor(model, rule, token_prompts) for rule in rules_of(model)]
        processors = [*of_rules, *(options.get("logits_processor") or ()), _Finite()]
        given = {"do_sample": False, **options, "logits_processor": processors}
        loop: Any = hf.generate
        out: Tensor = loop(**inputs, max_new_tokens=max_new_tokens, pad_token_id=pad_id, **given)
        return out

    try:
        out = run() if len(prompts) > 1 else explained(model, run)
    except FloatingPointError as error:
        if len(prompts) == 1:
            raise
        for i, prompt in enumerate(prompts):
            try:
                generate(model, [prompt], max_new_tokens=max_new_tokens, images=images[i : i + 1], **options)
            except FloatingPointError as alone:
                raise FloatingPointError(f"prompt {i}: {alone}") from error
        raise FloatingPointError(only_together(model, str(error), what="prompt")) from error
    new = out[:, batch.shape[1] :].tolist()
    return [model.prompts.text(ids, skip_special_tokens=True).strip() for ids in new]


def greedy_by_default(model: HuggingFaceModel, options: dict[str, Any]) -> transformers.PreTrainedModel:
    """The model with a neutral generation configuration: the same modules, weights and hooks, and nothing is changed.

    What is left out of the stored configuration is told once for each model, if it would have changed the text.
    """
    ignored = _ignored_settings(model.hf.generation_config, options)
    if ignored and not model.told_of_settings:
        model.told_of_settings = True
        settings = ", ".join(f"{name}={value!r:.60}" for name, value in ignored.items())
        warnings.warn(
            f"{model.name}: settings of generation that are stored with the weights are not used, so that generation "
            f"is plain greedy decoding: {settings}. To use one, pass it to `generate`.",
            stacklevel=4,
        )
    neutral = copy.copy(model.hf)
    kept = {name: getattr(model.hf.generation_config, name, None) for name in KEPT}
    neutral.generation_config = GenerationConfig(**kept)
    return neutral


def _ignored_settings(stored: GenerationConfig, options: dict[str, Any]) -> dict[str, Any]:
    """Stored settings that would change the text, and that the caller does not set."""
    defaults = GenerationConfig().to_dict() | _defaults_in_use()
    without_effect = HARMLESS | set(KEPT) | options.keys()
    if not options.get("do_sample"):
        without_effect |= SAMPLING
    if options.get("num_beams", 1) == 1:
        without_effect |= BEAMS
    return {
        name: value
        for name, value in stored.to_dict().items()
        if name not in without_effect and not name.startswith("_") and value not in (None, defaults.get(name))
    }


def _defaults_in_use() -> dict[str, Any]:
    """What transformers 5 takes for a value that nobody gave; in transformers 4 a new configuration holds it."""
    of_version_5 = getattr(GenerationConfig, "_get_default_generation_params", None)
    return dict(of_version_5()) if of_version_5 else {}


class _Finite(LogitsProcessor):
    """Refuses logits of which a next token would be chosen by accident. -inf alone is a token that is forbidden."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        accidental = scores.isnan().any(-1) | scores.isposinf().any(-1) | scores.isneginf().all(-1)
        if accidental.any():
            raise FloatingPointError(f"the logits of new token {self.step} are not finite.")
        self.step += 1
        return scores
