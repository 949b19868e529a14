"""Hugging Face models as the four functions that `grains_ref.grains` needs, for the Llama and Qwen2 families.

    model = load("path/or/hub-id")
    example = model.example(prompt, chosen, rejected)

The decoder is found through the configuration and transformers' own accessors, never by counting module names,
and `load` proves by a short run that hooks on its blocks do what they should; anything else is refused. A vision
family will override `_embed_prompt` (to merge image features) and add its own entries to `Encoded.replay`; the rest
of this module treats an image token like any other.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import transformers
from torch import Tensor, nn

from grains_ref.data import Message
from grains_ref.grains import Encoded, Example, Kind, Steering

Prompt: TypeAlias = str | Sequence[Message]
FAMILIES = ("llama", "qwen2")  # model_type of the configurations that have been checked


class UnsupportedModelError(ValueError):
    """The model is not one whose decoder blocks this package knows how to find and hook."""


class TokenRow(NamedTuple):
    """Token ids of one prompt and one response."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """Teacher-forced score of one response: its log-probability in nats and whether greedy decoding would give it."""

    log_prob: float
    is_greedy: bool


def load(
    path_or_hub_id: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    device_map: str | dict[str, Any] | None = None,
) -> HuggingFaceModel:
    """Load a model and its tokenizer from a local folder or the hub, and check that it can be steered.

    dtype "auto" is the type the weights are stored in.  device_map spreads a model over several devices (needs the
    accelerate package) and then `device` is not used.  Weights are read from safetensors only; code from the hub is
    never run.

    Raises:
        UnsupportedModelError: another family, or its decoder blocks do not behave as expected.
        OSError: nothing was found there.
    """
    config = transformers.AutoConfig.from_pretrained(path_or_hub_id, trust_remote_code=False)
    _check_family(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path_or_hub_id, trust_remote_code=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path_or_hub_id, dtype=dtype, device_map=device_map, use_safetensors=True, trust_remote_code=False
    )
    if device_map is None:
        model.to(device)  # type: ignore[arg-type]  # transformers' own annotation of `to` is wrong
    folder = Path(path_or_hub_id)
    return HuggingFaceModel(model, tokenizer, name=folder.resolve().name if folder.is_dir() else str(path_or_hub_id))


class HuggingFaceModel:
    """A Hugging Face model behind the interface of `grains_ref.grains.Model`.

    Raises:
        UnsupportedModelError: see `load`.
    """

    def __init__(
        self, hf: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, *, name: str
    ) -> None:
        _check_family(hf.config)
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{name}: its tokenizer is {type(tokenizer).__name__}, which cannot say which characters a token "
                "covers; a fast tokenizer (tokenizer.json) is needed"
            )
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.text_config = hf.config.get_text_config()
        # `all_special_ids` alone leaves out tokens such as Llama 3's <|start_header_id|>.
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = added | set(tokenizer.all_special_ids)
        self.embed: nn.Embedding = hf.get_input_embeddings()  # type: ignore[assignment]
        self.blocks: Sequence[nn.Module] = _decoder_blocks(hf, self.text_config.num_hidden_layers)
        self._check_hooks()

    # ------------------------------------------------------------------ sizes and identity

    @property
    def width(self) -> int:
        """d, the width of the residual stream."""
        return int(self.text_config.hidden_size)

    @property
    def context(self) -> int:
        """Most tokens, prompt and response together, that the model was made for."""
        return int(self.text_config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Where embeddings live; inputs go there."""
        return self.embed.weight.device

    def fingerprint(self) -> str:
        """A hash of the architecture, the embedding weights and the first values of every block's parameters.

        Enough to tell a fine-tune from its base without reading 16 GB.  Weights are rounded to bfloat16 first, so that
        a model loaded as bfloat16, float32 or float64 has one fingerprint.
        """
        shape = {
            key: getattr(self.text_config, key)
            for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        }
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        starts = (parameter.flatten()[:4096] for block in self.blocks for parameter in block.parameters())
        for values in (*self.embed.weight.detach().split(4096), *starts):
            digest.update(values.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------ text in

    def encode(self, prompt: Prompt, image: object = None, *, left_padding: int = 0) -> Encoded:
        """Token ids, embeddings and kinds of a prompt: plain text, or chat messages through the chat template.

        Plain text gets the special tokens that the tokenizer adds (usually BOS); a template brings its own. BOS is
        never doubled.  left_padding puts that many unattended tokens in front; it changes no result except the noise
        that SmoothGrad and random scores draw.

        Raises:
            ValueError: an empty prompt, a missing chat template, or an image for a text model.
        """
        if image is not None:
            raise ValueError(f"{self.name} is a text model ({self.text_config.model_type}) and cannot take an image")
        text, spans = self._render(prompt)
        ids, offsets = self._tokenise(text, add_special_tokens=isinstance(prompt, str))
        kinds: list[Kind] = ["pad"] * left_padding
        for token, (start, stop) in zip(ids, offsets, strict=True):
            if token in self._special_ids:
                kinds.append("special")
            else:
                in_content = any(start < span_stop and stop > span_start for span_start, span_stop in spans)
                kinds.append("text" if in_content else "template")
        ids = [self._pad_id()] * left_padding + ids
        attended = torch.tensor([kind != "pad" for kind in kinds])
        return Encoded(
            ids=torch.tensor(ids),
            embeds=self._embed_prompt(torch.tensor(ids)),
            tokens=tuple(self._text([token]) for token in ids),
            kinds=tuple(kinds),
            replay={
                "attention_mask": attended.long(),
                "position_ids": (attended.long().cumsum(0) - 1).clamp(min=0),
            },
        )

    def response_ids(self, prompt: Prompt, response: str) -> Tensor:
        """Token ids of a response that follows `prompt`, (R,).

        The response is tokenised by itself, so that no token straddles the boundary and x has the same tokens for
        every response.  After a plain-text prompt that does not end in white space, one space is put in front ("A:"
        and "Paris" make "A: Paris"); a chat template ends where the response begins.
        """
        if isinstance(prompt, str) and not prompt[-1:].isspace() and not response[:1].isspace():
            response = " " + response
        ids = self.tokenizer(response, add_special_tokens=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def example(self, prompt: Prompt, chosen: str, rejected: str, image: object = None) -> Example:
        """One preference pair, tokenised.

        Raises:
            ValueError: see `encode`.
        """
        return Example(
            self.encode(prompt, image), self.response_ids(prompt, chosen), self.response_ids(prompt, rejected)
        )

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        """The (T, d) embeddings for "nothing here": `zero`, `mean` (of all token embeddings), or `token:WORD`.

        Raises:
            ValueError: the name is unknown, or the word is not exactly one token.
        """
        if name == "zero":
            return torch.zeros_like(encoded.embeds)
        if name == "mean":
            vocabulary = torch.arange(self.embed.num_embeddings, device=self.device)
            total = sum(self.embed(part).double().sum(0) for part in vocabulary.split(4096))
            return (total / len(vocabulary)).to(encoded.embeds).expand_as(encoded.embeds)
        if name.startswith("token:"):
            word = name.removeprefix("token:")
            ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
                raise ValueError(
                    f"baseline {name!r}: {word!r} is {len(ids)} token(s) {self.tokenizer.convert_ids_to_tokens(ids)} "
                    "for this tokenizer; it must be exactly one known token (a leading space may matter)"
                )
            return self.embed(torch.tensor(ids, device=self.device)).expand_as(encoded.embeds)
        raise ValueError(f"baseline {name!r} is unknown; expected 'zero', 'mean' or 'token:WORD'")

    # ------------------------------------------------------------------ the model's answers

    def logits(self, encoded: Encoded, embeds: Tensor, response_ids: Tensor) -> Tensor:
        """See `grains_ref.grains.Model.logits`."""
        fed = self.embed(response_ids[:-1].to(self.device)).to(embeds)  # (R-1, d): nothing follows the last token
        inputs = torch.cat([embeds, fed.expand(len(embeds), *fed.shape)], dim=1)  # (B, T + R - 1, d)
        out = self.hf(
            inputs_embeds=inputs,
            logits_to_keep=len(response_ids),
            use_cache=False,
            **_replay(encoded, batch=len(embeds), response=len(fed), device=self.device),
        )
        return out.logits

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        """See `grains_ref.grains.Model.residuals`."""
        last: list[Tensor] = []

        def record(block: nn.Module, inputs: Any, output: Any) -> None:
            h = output[0] if isinstance(output, tuple) else output  # (B, T, d)
            last.append(h[:, -1].detach().to(embeds.device))

        handles = [block.register_forward_hook(record) for block in self.blocks]
        try:
            self.hf(
                inputs_embeds=embeds,
                logits_to_keep=1,
                use_cache=False,
                **_replay(encoded, batch=len(embeds), response=0, device=self.device),
            )
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(last, dim=1)  # (B, L, d)

    def tokenise(self, items: Iterable[tuple[Prompt, str]]) -> list[TokenRow]:
        """Token ids of many (prompt, response) pairs, for `score_rows`.

        Raises:
            ValueError: a prompt or a response has no tokens.
        """
        rows = []
        for prompt, response in items:
            ids, _ = self._tokenise(self._render(prompt)[0], add_special_tokens=isinstance(prompt, str))
            rows.append(TokenRow(tuple(ids), tuple(self.response_ids(prompt, response).tolist())))
            if not rows[-1].response:
                raise ValueError(f"the response {response!r} has no tokens; nothing can be scored")
        return rows

    def score(self, items: Iterable[tuple[Prompt, str]], *, batch_size: int = 128) -> list[Scored]:
        """Score many (prompt, response) pairs in left-padded batches; order is kept.

        Raises:
            ValueError: a prompt or a response has no tokens.
        """
        return self.score_rows(self.tokenise(items), batch_size=batch_size)

    @torch.no_grad()
    def score_rows(self, rows: Sequence[TokenRow], *, batch_size: int = 128) -> list[Scored]:
        """`score` for pairs that are tokenised already, as sweeps score the same pairs again and again.

        A prompt that several rows share is computed once: prompts first, then the responses on their cache.
        """
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(rows):
            by_prompt.setdefault(row.prompt, []).append(i)
        prompts = sorted(by_prompt, key=len)  # batches of similar length waste less on padding
        scored: dict[int, Scored] = {}
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            members = [(which, i) for which, prompt in enumerate(batch) for i in by_prompt[prompt]]
            log_p, right = self._score_batch(batch, [(which, rows[i].response) for which, i in members])
            for place, (_, i) in enumerate(members):
                n = len(rows[i].response)
                scored[i] = Scored(log_p[place, :n].sum().item(), bool(right[place, :n].all()))
        return [scored[i] for i in range(len(rows))]

    def _score_batch(
        self, prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, tuple[int, ...]]]
    ) -> tuple[Tensor, Tensor]:
        """(index of the prompt, response) each -> log-probability and "is the argmax", both (rows, longest)."""
        ids, mask, positions = self._left_pad(prompts)
        out = self.hf(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True)
        which = torch.tensor([index for index, _ in responses], device=self.device)
        longest = max(len(response) for _, response in responses)
        target = torch.tensor([[*response] + [0] * (longest - len(response)) for _, response in responses])
        target = target.to(self.device)  # right-padded: what follows a response cannot change its scores
        logits = out.logits[which]  # (rows, 1, V): predicts the first token of each response
        if longest > 1:
            cache = out.past_key_values
            cache.batch_select_indices(which)
            steps = torch.arange(1, longest, device=self.device)
            following = self.hf(
                input_ids=target[:, :-1],
                attention_mask=torch.cat([mask[which], mask.new_ones(len(which), longest - 1)], dim=1),
                position_ids=positions[which, -1:] + steps,
                past_key_values=cache,
                use_cache=True,
            )
            logits = torch.cat([logits, following.logits], dim=1)  # (rows, longest, V)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        return log_p.gather(2, target[..., None])[..., 0], logits.argmax(-1) == target

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int, **options: Any) -> list[str]:
        """Continue each prompt with transformers' own `generate` (cached, left-padded); greedy by default."""
        ids, attention_mask, _ = self._left_pad([self.encode(prompt).ids.tolist() for prompt in prompts])
        out = self.hf.generate(
            input_ids=ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=self._pad_id(),
            **{"do_sample": False, **options},
        )
        new = out[:, ids.shape[1] :].tolist()
        return [self._text(row, skip_special_tokens=True).strip() for row in new]

    # ------------------------------------------------------------------ inside

    def _embed_prompt(self, ids: Tensor) -> Tensor:
        """(T,) -> (T, d); a vision family also merges its image features here."""
        with torch.no_grad():
            return self.embed(ids.to(self.device))

    def _tokenise(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character spans of a rendered prompt; BOS never doubled, never empty."""
        batch = self.tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids, offsets = list(batch["input_ids"]), list(batch["offset_mapping"])
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids, offsets = ids[1:], offsets[1:]
        if not ids:
            raise ValueError("the prompt has no tokens; give at least one word")
        return ids, offsets

    def _render(self, prompt: Prompt) -> tuple[str, list[tuple[int, int]]]:
        """The prompt as one string, and where the user's own words are in it."""
        if isinstance(prompt, str):
            return prompt, [(0, len(prompt))]
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.name} has no chat template, so it cannot take chat messages. Give the prompt as plain text "
                "(field 'prompt'), or use the instruction-tuned variant of the model."
            )
        contents = [m["content"] for m in prompt]
        text = self._apply_template(prompt, contents)
        # Short contents may also occur in the template's own words: their places are read off a rendering of marks.
        marks = [f"\ue000{i}\ue001" for i in range(len(prompt))]
        pieces = re.split("(\ue000[0-9]+\ue001)", self._apply_template(prompt, marks))
        stripped = [content.strip() for content in contents]  # many templates strip
        for shown in (contents, stripped) if pieces[1::2] == marks else ():
            pieces[1::2] = shown
            if "".join(pieces) == text:
                ends = list(itertools.accumulate(map(len, pieces)))
                spans = zip(ends[0::2], ends[1::2], strict=False)
                return text, [span for span, message in zip(spans, prompt, strict=True) if message["role"] == "user"]
        raise ValueError(f"the chat template of {self.name} changed, moved or dropped the words of a message")

    def _apply_template(self, prompt: Sequence[Message], contents: Sequence[str]) -> str:
        """The chat with other contents, up to where the model's answer begins."""
        chat = [{"role": m["role"], "content": content} for m, content in zip(prompt, contents, strict=True)]
        return str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))

    def _text(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _pad_id(self) -> int:
        """The padding id, or the end-of-text id where the tokenizer has none; padding is never attended."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise UnsupportedModelError(f"{self.name}: the tokenizer has neither a padding nor an end-of-text token")

    def _left_pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and position ids, each (B, longest)."""
        longest = max(map(len, rows))
        ids = torch.tensor([[self._pad_id()] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return ids.to(self.device), mask.to(self.device), positions.to(self.device)

    @torch.no_grad()
    def _check_hooks(self) -> None:
        """A zero vector must change nothing bit for bit, a unit vector must change the logits."""
        ids = torch.arange(3, device=self.device)[None] + 1
        fired: list[nn.Module] = []
        handles = [b.register_forward_hook(lambda block, inputs, output: fired.append(block)) for b in self.blocks]
        plain = self.hf(input_ids=ids, use_cache=False).logits
        for handle in handles:
            handle.remove()
        if [id(block) for block in fired] != [id(block) for block in self.blocks]:
            raise UnsupportedModelError(
                f"{self.name}: one forward pass ran {len(fired)} hooked blocks, not each of {len(self.blocks)} once"
            )
        v = torch.zeros(len(self.blocks), self.width)
        with Steering(self.blocks, v, lam=1.0):
            if not torch.equal(self.hf(input_ids=ids, use_cache=False).logits, plain):
                raise UnsupportedModelError(f"{self.name}: adding a zero vector changed the logits")
        v[:, 0] = 1.0
        with Steering(self.blocks, v, lam=1.0):
            if torch.equal(self.hf(input_ids=ids, use_cache=False).logits, plain):
                raise UnsupportedModelError(f"{self.name}: adding a unit vector to every block changed no logit")


def _check_family(config: transformers.PretrainedConfig) -> None:
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)}. Where its "
            "decoder blocks are and what they return has not been checked, and guessing could steer the wrong modules."
        )


def _decoder_blocks(hf: transformers.PreTrainedModel, expected: int) -> Sequence[nn.Module]:
    """The decoder's blocks, found by transformers' accessor and counted against the configuration."""
    decoder = hf.get_decoder()
    blocks = getattr(decoder, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != expected:
        found = f"{len(blocks)} blocks" if isinstance(blocks, nn.ModuleList) else f"no list `layers` ({type(blocks)})"
        raise UnsupportedModelError(
            f"{type(hf).__name__}: the configuration has {expected} decoder blocks, but its decoder has {found}"
        )
    return list(blocks)


def _replay(encoded: Encoded, *, batch: int, response: int, device: torch.device) -> dict[str, Tensor]:
    """Attention mask and positions of the prompt, continued over `response` tokens and repeated over the batch."""
    mask, positions = encoded.replay["attention_mask"], encoded.replay["position_ids"]
    mask = torch.cat([mask, mask.new_ones(response)])
    positions = torch.cat([positions, positions[-1] + 1 + torch.arange(response)])
    return {
        "attention_mask": mask.to(device).expand(batch, -1),
        "position_ids": positions.to(device).expand(batch, -1),
    }
