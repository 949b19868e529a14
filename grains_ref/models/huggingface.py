"""Hugging Face models, text and vision-language, as the four functions that `grains_ref.grains` needs.

    model = load("path/or/hub-id")
    example = model.example(prompt, chosen, rejected, image="picture.png")

The decoder is found through the configuration and transformers' own accessors, never by counting module names,
and `load` proves by a short run that hooks on its blocks do what they should; anything else is refused. What differs
between the families is in `families`; once a picture's features are merged into the embeddings, an image token is
treated like any other.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

import torch
import transformers
from torch import Tensor, nn

from grains_ref.data import Message
from grains_ref.grains import Encoded, Example, Kind, Steering
from grains_ref.models.families import (
    PLACEHOLDER,
    Family,
    Patch,
    Picture,
    PictureSource,
    UnsupportedModelError,
    family_class,
)

Prompt: TypeAlias = str | Sequence[Message]
Item: TypeAlias = tuple[Prompt, str] | tuple[Prompt, str, PictureSource | None]  # prompt, response, image
BATCH_TOKENS = 1 << 14  # prompt tokens scored at once; with 524 kB of cache per token (LLaVA-1.6-7B) that is 8.6 GB
FEATURE_BYTES = 2 << 30  # image features kept in main memory, so that a sweep runs the vision tower once per picture


class _SeenEnoughError(Exception):
    """Ends a forward pass at the decoder's entrance."""


_SeenPrompt: TypeAlias = tuple[tuple[int, ...], Picture | None]


class TokenRow(NamedTuple):
    """Token ids of one prompt, its picture if it has one, and one response."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    picture: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedPicture(Encoded):
    """A prompt with a picture: `patches` says for every image token what it looks at, and is None elsewhere."""

    size: tuple[int, int]  # of the upright picture, width and height
    patches: tuple[Patch | None, ...]  # T


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
    """Load a model, its tokenizer and its image processor from a folder or the hub; check that it can be steered.

    dtype "auto" is the type the weights are stored in.  device_map spreads a model over several devices (needs the
    accelerate package) and then `device` is not used.  Weights are read from safetensors only; code from the hub is
    never run.

    Raises:
        UnsupportedModelError: another family, or its decoder blocks do not behave as expected.
        OSError: nothing was found there.
    """
    config = transformers.AutoConfig.from_pretrained(path_or_hub_id, trust_remote_code=False)
    family = family_class(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path_or_hub_id, trust_remote_code=False)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _older_chat_template(path_or_hub_id)
    image_processor = family.load_image_processor(str(path_or_hub_id))
    model = family.auto_class.from_pretrained(
        path_or_hub_id, dtype=dtype, device_map=device_map, use_safetensors=True, trust_remote_code=False
    )
    if device_map is None:
        model.to(device)
    folder = Path(path_or_hub_id)
    name = folder.resolve().name if folder.is_dir() else str(path_or_hub_id)
    return HuggingFaceModel(model, tokenizer, name=name, image_processor=image_processor)


class HuggingFaceModel:
    """A Hugging Face model behind the interface of `grains_ref.grains.Model`.

    A vision-language model needs its (PIL) image processor.

    Raises:
        UnsupportedModelError: see `load`.
    """

    def __init__(
        self,
        hf: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        *,
        name: str,
        image_processor: Any = None,
    ) -> None:
        family = family_class(hf.config)
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
        self._image_id = _image_token_id(hf.config)
        image_token = str(tokenizer.convert_ids_to_tokens(self._image_id)) if family.marker else ""
        if family.marker and image_processor is None:
            raise UnsupportedModelError(f"{name} is a vision-language model; give its image_processor (see `load`)")
        self.family: Family = family(hf.config, image_processor, image_token)
        self._features: OrderedDict[str, Tensor] = OrderedDict()  # picture digest -> (n, d), least recent first
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

        Of a vision-language model also those of the vision tower and the projector, whatever their order.  Enough to
        tell a fine-tune from its base without reading 16 GB.  Weights are rounded to bfloat16 first, so that a model
        loaded as bfloat16, float32 or float64 has one fingerprint.
        """
        shape = {
            key: getattr(self.text_config, key)
            for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        }
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        starts = (parameter.flatten()[:4096] for block in self.blocks for parameter in block.parameters())
        for values in (*self.embed.weight.detach().split(4096), *starts):
            digest.update(_bfloat16_bytes(values))
        if self.family.marker:
            decoder = {id(parameter) for parameter in self.hf.get_decoder().parameters()}
            others = [p for p in self.hf.parameters() if id(p) not in decoder and p is not self.embed.weight]
            for one in sorted(_bfloat16_bytes(parameter.flatten()[:4096]) for parameter in others):
                digest.update(one)
        return digest.hexdigest()

    # ------------------------------------------------------------------ text and picture in

    def encode(self, prompt: Prompt, image: PictureSource | None = None, *, left_padding: int = 0) -> Encoded:
        """Token ids, embeddings and kinds of a prompt: plain text, or chat messages through the chat template.

        Plain text gets the special tokens that the tokenizer adds (usually BOS), and so does the chat of a
        vision-language model; a text model's template brings its own. BOS is never doubled.  In plain text `<image>`
        marks the place of the picture; in messages the template puts it into the first message of the user, before
        the text.  With a picture the result is an `EncodedPicture`.
        left_padding puts that many unattended tokens in front; it changes no result except the noise that SmoothGrad
        and random scores draw.

        Raises:
            ValueError: an empty prompt, a missing chat template, an image for a text model, no image for a place
                marked for one, or the reverse.
            PictureError: the image cannot be read.
        """
        picture = self._picture(image)
        ids, kinds = self._prompt(prompt, picture)
        is_image = torch.tensor([kind == "image" for kind in kinds])
        replay = self.family.replay(is_image, picture.size if picture else (0, 0))
        pads: list[Kind] = ["pad"] * left_padding
        ids, kinds = [self._pad_id()] * left_padding + ids, pads + kinds
        embeds = self._embed_prompt(torch.tensor(ids), picture)
        encoded = Encoded(
            ids=torch.tensor(ids),
            embeds=embeds,
            tokens=tuple(self._token_text(token) for token in ids),
            kinds=tuple(kinds),
            replay={name: nn.functional.pad(tensor, (left_padding, 0)) for name, tensor in replay.items()},
            picture=picture.digest if picture else "",
        )
        if picture is None:
            return encoded
        where = iter(self.family.patches(picture.size))
        patches = [next(where) if kind == "image" else None for kind in encoded.kinds]
        return EncodedPicture(**vars(encoded), size=picture.size, patches=tuple(patches))

    def response_ids(self, prompt: Prompt, response: str) -> Tensor:
        """Token ids of a response that follows `prompt`, (R,).

        The response is tokenised by itself, so that no token straddles the boundary and x has the same tokens for
        every response.  After a plain-text prompt that does not end in white space, one space is put in front ("A:"
        and "Paris" make "A: Paris"); after a chat template, what the template itself would put there.
        """
        if not response[:1].isspace():
            response = (_space_after(prompt) if isinstance(prompt, str) else self._before_answer) + response
        return torch.tensor(self._tokenise_response(response), dtype=torch.long)

    def example(self, prompt: Prompt, chosen: str, rejected: str, image: PictureSource | None = None) -> Example:
        """One preference pair, tokenised.

        Raises:
            ValueError: see `encode`.
        """
        return Example(
            self.encode(prompt, image), self.response_ids(prompt, chosen), self.response_ids(prompt, rejected)
        )

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        """The (T, d) embeddings for "nothing here": `zero`, `mean` or `token:WORD`.

        `mean` is the mean of all token embeddings, and for an image token the mean of this picture's own features.

        Raises:
            ValueError: the name is unknown, or the word is not exactly one token.
        """
        if name == "zero":
            return torch.zeros_like(encoded.embeds)
        if name == "mean":
            vocabulary = torch.arange(self.embed.num_embeddings, device=self.device)
            total = sum(self.embed(part).double().sum(0) for part in vocabulary.split(4096))
            mean = (total / len(vocabulary)).to(encoded.embeds).repeat(len(encoded.ids), 1)
            image = [j for j, kind in enumerate(encoded.kinds) if kind == "image"]
            if image:
                mean[image] = encoded.embeds[image].double().mean(0).to(mean)
            return mean
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
            **_replay(encoded.replay, batch=len(embeds), response=len(fed), device=self.device),
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
                **_replay(encoded.replay, batch=len(embeds), response=0, device=self.device),
            )
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(last, dim=1)  # (B, L, d)

    def tokenise(self, items: Iterable[Item]) -> list[TokenRow]:
        """Token ids of many (prompt, response) or (prompt, response, image), for `score_rows`.

        Raises:
            ValueError: a prompt or a response has no tokens, or see `encode`.
        """
        rows, pictures = [], dict[str | None, Picture | None]()
        for prompt, response, *rest in items:
            image = rest[0] if rest else None
            key = None if image is None else str(image)  # a path; for a picture in memory what it is and its address
            if key not in pictures:
                pictures[key] = self._picture(image)
            ids, _ = self._prompt(prompt, pictures[key])
            rows.append(TokenRow(tuple(ids), tuple(self.response_ids(prompt, response).tolist()), pictures[key]))
            if not rows[-1].response:
                raise ValueError(f"the response {response!r} has no tokens; nothing can be scored")
        return rows

    def score(self, items: Iterable[Item], *, batch_size: int = 128) -> list[Scored]:
        """Score many (prompt, response) or (prompt, response, image) in left-padded batches; order is kept.

        Raises:
            ValueError: a prompt or a response has no tokens, or see `encode`.
        """
        return self.score_rows(self.tokenise(items), batch_size=batch_size)

    @torch.no_grad()
    def score_rows(self, rows: Sequence[TokenRow], *, batch_size: int = 128) -> list[Scored]:
        """`score` for items that are tokenised already, as sweeps score the same ones again and again.

        A prompt that several rows share is computed once: prompts first, then the responses on their cache.  A batch
        holds at most `BATCH_TOKENS` prompt tokens, whatever batch_size says.
        """
        by_prompt: dict[_SeenPrompt, list[int]] = {}
        for i, row in enumerate(rows):
            by_prompt.setdefault((row.prompt, row.picture), []).append(i)
        prompts = sorted(by_prompt, key=lambda prompt: len(prompt[0]))  # similar lengths waste less on padding
        scored: dict[int, Scored] = {}
        while prompts:
            fits = [n for n in range(1, len(prompts) + 1) if n * len(prompts[n - 1][0]) <= BATCH_TOKENS]
            size = min(batch_size, max(fits, default=1))
            batch, prompts = prompts[:size], prompts[size:]
            members = [(which, i) for which, prompt in enumerate(batch) for i in by_prompt[prompt]]
            log_p, right = self._score_batch(batch, [(which, rows[i].response) for which, i in members])
            for place, (_, i) in enumerate(members):
                n = len(rows[i].response)
                scored[i] = Scored(log_p[place, :n].sum().item(), bool(right[place, :n].all()))
        return [scored[i] for i in range(len(rows))]

    def _score_batch(
        self, prompts: Sequence[_SeenPrompt], responses: Sequence[tuple[int, tuple[int, ...]]]
    ) -> tuple[Tensor, Tensor]:
        """(index of the prompt, response) each -> log-probability and "is the argmax", both (rows, longest)."""
        ids = [torch.tensor(prompt) for prompt, _ in prompts]
        replays = [
            self.family.replay(one == self._image_id, picture.size if picture else (0, 0))
            for one, (_, picture) in zip(ids, prompts, strict=True)
        ]
        replay = {name: _left_pad([one[name] for one in replays], 0).to(self.device) for name in replays[0]}
        rows = [self._embed_prompt(one, picture) for one, (_, picture) in zip(ids, prompts, strict=True)]
        length = max(map(len, rows))
        embeds = torch.stack([nn.functional.pad(row, (0, 0, length - len(row), 0)) for row in rows])  # (B, T, d)
        out = self.hf(inputs_embeds=embeds, **replay, logits_to_keep=1, use_cache=True)
        mask, positions = replay["attention_mask"], replay["position_ids"]
        after = positions.movedim(-2, 0).flatten(1).max(1).values + 1  # (B,) first position after each prompt
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
                position_ids=(after[which, None] + steps - 1).expand(*positions.shape[:-2], -1, -1),
                past_key_values=cache,
                use_cache=True,
            )
            logits = torch.cat([logits, following.logits], dim=1)  # (rows, longest, V)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        return log_p.gather(2, target[..., None])[..., 0], logits.argmax(-1) == target

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        images: Sequence[PictureSource | None] = (),
        **options: Any,
    ) -> list[str]:
        """Continue each prompt with transformers' own `generate` (cached, left-padded); greedy by default.

        images: none at all, or one (or None) per prompt.

        Raises:
            ValueError: see `encode`.
        """
        pictures = [self._picture(image) for image in images or [None] * len(prompts)]
        rows = [
            torch.tensor(self._prompt(prompt, picture)[0]) for prompt, picture in zip(prompts, pictures, strict=True)
        ]
        ids = _left_pad(rows, self._pad_id())
        inputs = {"input_ids": ids, "attention_mask": _left_pad([torch.ones_like(row) for row in rows], 0)}
        if seen := [picture for picture in pictures if picture]:
            inputs |= self.family.generation(ids == self._image_id) | self.family.tensors(seen)
        out = self.hf.generate(
            **{name: tensor.to(self.device) for name, tensor in inputs.items()},
            max_new_tokens=max_new_tokens,
            pad_token_id=self._pad_id(),
            **{"do_sample": False, **options},
        )
        new = out[:, ids.shape[1] :].tolist()
        return [self._text(row, skip_special_tokens=True).strip() for row in new]

    @contextlib.contextmanager
    def fresh_image_features(self) -> Iterator[None]:
        """Image features are computed anew inside, and forgotten afterwards: for edits of pixels or vision tower."""
        kept, self._features = self._features, OrderedDict()
        try:
            yield
        finally:
            self._features = kept

    # ------------------------------------------------------------------ inside

    @torch.no_grad()
    def _embed_prompt(self, ids: Tensor, picture: Picture | None) -> Tensor:
        """(T,) -> (T, d), with the picture's features at its tokens."""
        ids = ids.to(self.device)
        is_image = ids == self._image_id
        embeds = self.embed(ids.masked_fill(is_image, 0) if picture else ids)
        if picture:
            embeds[is_image] = self._image_features(picture).to(embeds)
        return embeds

    def _image_features(self, picture: Picture) -> Tensor:
        """(n, d): what the model itself puts in the place of the picture's tokens, seen at the decoder's entrance."""
        if picture.digest in self._features:
            self._features.move_to_end(picture.digest)
            return self._features[picture.digest]
        text = self.family.expansion(picture.size)
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        seen: list[Tensor] = []

        def look(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["inputs_embeds"][0])
            raise _SeenEnoughError  # before any other hook of the decoder: nothing is to be steered or recorded here

        handle = self.hf.get_decoder().register_forward_pre_hook(look, with_kwargs=True, prepend=True)
        try:
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.family.tensors([picture])}
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            with contextlib.suppress(_SeenEnoughError):
                self.hf(**inputs, logits_to_keep=1, use_cache=False)
        finally:
            handle.remove()
        self._features[picture.digest] = seen[0][ids[0] == self._image_id].cpu()
        while len(self._features) > 1 and sum(kept.nbytes for kept in self._features.values()) > FEATURE_BYTES:
            self._features.popitem(last=False)
        return self._features[picture.digest]

    def _picture(self, image: PictureSource | None) -> Picture | None:
        """The checked picture, if this is a model that can see."""
        if image is None:
            return None
        if not self.family.marker:
            raise ValueError(f"{self.name} is a text model ({self.text_config.model_type}) and cannot take an image")
        return Picture.of(image)

    def _prompt(self, prompt: Prompt, picture: Picture | None) -> tuple[list[int], list[Kind]]:
        """Ids and kinds of a prompt's tokens, image tokens included."""
        text, spans = self._render(prompt, with_image=picture is not None)
        text, spans = self._expand(text, spans, prompt, picture)
        # As transformers does it: tokenizers take a rendered chat as it is, processors add BOS where it is missing.
        ids, offsets = self._tokenise(text, add_special_tokens=isinstance(prompt, str) or bool(self.family.marker))
        kinds: list[Kind] = []
        for token, (start, stop) in zip(ids, offsets, strict=True):
            if picture and token == self._image_id:
                kinds.append("image")
            elif token in self._special_ids:
                kinds.append("special")
            else:
                in_content = any(start < span_stop and stop > span_start for span_start, span_stop in spans)
                kinds.append("text" if in_content else "template")
        if picture and kinds.count("image") != len(self.family.patches(picture.size)):
            raise UnsupportedModelError(
                f"{self.name}: a picture of {picture.size} should give {len(self.family.patches(picture.size))} image "
                f"tokens, but its tokenizer made {kinds.count('image')}; is {self.family.image_token!r} one token?"
            )
        return ids, kinds

    def _expand(
        self, text: str, spans: list[tuple[int, int]], prompt: Prompt, picture: Picture | None
    ) -> tuple[str, list[tuple[int, int]]]:
        """A rendered prompt with its placeholder replaced by the picture's tokens; the user's spans move along."""
        if not self.family.placeholder:
            return text, spans
        before, *rest = text.split(self.family.placeholder)
        if len(rest) != (picture is not None):
            _refuse_places(len(rest), picture is not None, is_plain=isinstance(prompt, str))
        if picture is None:
            return text, spans
        inserted = self.family.expansion(picture.size)
        start, stop = len(before), len(before) + len(self.family.placeholder)
        shift = len(inserted) - len(self.family.placeholder)
        moved = []
        for a, b in spans:
            moved += [(a, min(b, start))] if a < start else []
            moved += [(max(a, stop) + shift, b + shift)] if b > stop else []
        return before + inserted + rest[0], moved

    def _tokenise_response(self, response: str) -> list[int]:
        """Ids of a response by itself.

        Tokenizers in the style of SentencePiece put a space in front of whatever they are given; a line break takes
        that space on itself and is cut off again.
        """

        def tokenise(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        if not str(self.tokenizer.convert_ids_to_tokens(tokenise("x")[0])).startswith("\u2581"):
            return tokenise(response)
        head, both = tokenise("\n"), tokenise("\n" + response)
        if both[: len(head)] != head:
            raise UnsupportedModelError(f"{self.name}: the tokenizer merges a line break with the words after it")
        return both[len(head) :]

    @functools.cached_property
    def _before_answer(self) -> str:
        """What the chat template writes between its generation prompt and an answer: "" or white space."""
        mark = "\ue000"
        chat: list[Message] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        asked = self._apply_template(chat[:1], ["x"])
        answered = self._apply_template(chat, ["x", mark], add_generation_prompt=False)
        between = answered.removeprefix(asked).partition(mark)[0]
        return between if answered.startswith(asked) and between.isspace() else ""

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

    def _render(self, prompt: Prompt, *, with_image: bool) -> tuple[str, list[tuple[int, int]]]:
        """The prompt as one string, and where the user's own words are in it."""
        if isinstance(prompt, str):
            text = prompt.replace(PLACEHOLDER, self.family.marker or PLACEHOLDER)
            return text, [(0, len(text))]
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.name} has no chat template, so it cannot take chat messages. Give the prompt as plain text "
                "(field 'prompt'), or use the instruction-tuned variant of the model."
            )
        contents = [m["content"] for m in prompt]
        if with_image and (written := "".join(contents).count(PLACEHOLDER)):
            _refuse_places(written + 1, True, is_plain=False)
        text = self._apply_template(prompt, contents, with_image=with_image)
        # Short contents may also occur in the template's own words: their places are read off a rendering of marks.
        marks = [f"\ue000{i}\ue001" for i in range(len(prompt))]
        pieces = re.split("(\ue000[0-9]+\ue001)", self._apply_template(prompt, marks, with_image=with_image))
        stripped = [content.strip() for content in contents]  # many templates strip
        for shown in (contents, stripped) if pieces[1::2] == marks else ():
            pieces[1::2] = shown
            if "".join(pieces) == text:
                ends = list(itertools.accumulate(map(len, pieces)))
                spans = zip(ends[0::2], ends[1::2], strict=False)
                return text, [span for span, message in zip(spans, prompt, strict=True) if message["role"] == "user"]
        raise ValueError(f"the chat template of {self.name} changed, moved or dropped the words of a message")

    def _apply_template(
        self,
        prompt: Sequence[Message],
        contents: Sequence[str],
        *,
        with_image: bool = False,
        add_generation_prompt: bool = True,
    ) -> str:
        """The chat with other contents, up to where the model's answer begins."""
        chat: list[dict[str, Any]] = []
        for message, content in zip(prompt, contents, strict=True):
            parts: list[dict[str, str]] = [{"type": "text", "text": content}]
            if with_image and message["role"] == "user" and all(turn["role"] != "user" for turn in chat):
                parts.insert(0, {"type": "image"})
            chat.append({"role": message["role"], "content": parts if self.family.marker else content})
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        return str(self.tokenizer.apply_chat_template(chat, **options))

    def _token_text(self, token: int) -> str:
        """One token for people; SentencePiece's leading space would be lost in decoding it alone."""
        text, piece = self._text([token]), str(self.tokenizer.convert_ids_to_tokens(token))
        return " " + text if piece.startswith("\u2581") and not text[:1].isspace() else text

    def _text(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _pad_id(self) -> int:
        """The padding id, or the end-of-text id where the tokenizer has none; padding is never attended."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise UnsupportedModelError(f"{self.name}: the tokenizer has neither a padding nor an end-of-text token")

    @torch.no_grad()
    def _check_hooks(self) -> None:
        """A zero vector must change nothing bit for bit, a unit vector must change the logits."""
        ordinary = (i for i in range(self.embed.num_embeddings) if i not in self._special_ids | {self._image_id})
        ids = torch.tensor([list(itertools.islice(ordinary, 3))], device=self.device)
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


def _replay(replay: dict[str, Tensor], *, batch: int, response: int, device: torch.device) -> dict[str, Tensor]:
    """A prompt's masks, positions and token types, continued over `response` text tokens, repeated over the batch."""
    after = int(replay["position_ids"].max()) + 1
    following = {"attention_mask": torch.ones(response).long(), "position_ids": after + torch.arange(response)}
    continued = {}
    for name, tensor in replay.items():  # the last axis is T; 3-D positions have one more in front
        more = following.get(name, torch.zeros(response).long()).expand(*tensor.shape[:-1], -1)
        whole = torch.cat([tensor, more], dim=-1).to(device)
        continued[name] = whole.unsqueeze(-2).expand(*whole.shape[:-1], batch, -1)
    return continued


def _left_pad(rows: Sequence[Tensor], value: int) -> Tensor:
    """Tensors (..., T) of different T -> (..., B, longest)."""
    longest = max(row.shape[-1] for row in rows)
    return torch.stack([nn.functional.pad(row, (longest - row.shape[-1], 0), value=value) for row in rows], dim=-2)


def _image_token_id(config: transformers.PretrainedConfig) -> int:
    """The id that stands for one piece of a picture; -1 for a text model."""
    for name in ("image_token_id", "image_token_index"):  # transformers 5, 4
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return -1


def _older_chat_template(path_or_hub_id: str | Path) -> str | None:
    """The chat template of a repository that keeps it with the processor (chat_template.json), or None."""
    found = transformers.utils.cached_file(
        str(path_or_hub_id), "chat_template.json", _raise_exceptions_for_missing_entries=False
    )
    return str(json.loads(Path(found).read_text(encoding="utf-8"))["chat_template"]) if found else None


def _space_after(prompt: str) -> str:
    return "" if prompt[-1:].isspace() else " "


def _bfloat16_bytes(values: Tensor) -> bytes:
    return values.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def _refuse_places(places: int, has_picture: bool, *, is_plain: bool) -> NoReturn:
    """Why a prompt with this many places for a picture does not go with the picture, or with none."""
    if not has_picture:
        raise ValueError(
            f"the prompt marks {places} place(s) for a picture, but no picture was given; name one in the field "
            "'image' (or --image), or leave the mark out"
        )
    if is_plain and not places:
        raise ValueError(
            f"the prompt has no place for its picture; write {PLACEHOLDER} in it, for instance at the start"
        )
    if is_plain:
        raise ValueError(f"the prompt marks {places} places for a picture; exactly one picture per prompt is supported")
    if places:
        raise ValueError(
            f"the rendered chat has {places} places for a picture instead of one. The chat template places it: leave "
            f"{PLACEHOLDER} out of the messages"
        )
    raise UnsupportedModelError("the chat template has no place for a picture; give the prompt as plain text")
