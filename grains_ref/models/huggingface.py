"""Hugging Face models, text and vision-language, as the four things that `grains_ref.grains` needs.

    model = load("path/or/hub-id")
    example = model.example(prompt, chosen, rejected, image="picture.png")

Where the decoder's blocks are is in `blocks`, the proof that they do what they should in `proof`, and what differs
between the families in `families`.  Once a picture's features are merged into the embeddings, an image token is
treated like any other.
"""

from __future__ import annotations

import contextlib
import datetime
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from grains_ref.data import FieldError, PreferencePair, Prompt, RowError, check_texts, check_tokens, excess_tokens
from grains_ref.files import digest_of
from grains_ref.grains import Encoded, Example, Kind
from grains_ref.models import features, generation, scoring, weights
from grains_ref.models.blocks import Decoder, find_decoder, hooked, state_of
from grains_ref.models.branches import Branches
from grains_ref.models.families import (
    Family,
    Patch,
    Picture,
    PictureSources,
    Size,
    UnsupportedModelError,
    digest_of_pictures,
)
from grains_ref.models.prompts import Prompts
from grains_ref.models.proof import prove, prove_several
from grains_ref.models.replay import Entrance, at_tokens, image_token_id, record, repeated, run
from grains_ref.models.scoring import LOGIT_MEMORY, Item, Scored, TokenRow
from grains_ref.models.vision_families import family_class


@dataclass(frozen=True, kw_only=True)
class EncodedPicture(Encoded):
    """A prompt with pictures: `patches` says for every image token what it looks at, and is None elsewhere.

    They are all None where a family's boxes are not known.
    """

    sizes: tuple[Size, ...]  # of the upright pictures, width and height
    patches: tuple[Patch | None, ...]  # T


class HuggingFaceModel:
    """A Hugging Face model behind the interface of `grains_ref.grains.Model`.

    The transformers model is used as it is, not copied, and it is changed in two ways that stay, also if it is refused:
    it is put into evaluation mode (no dropout), and its parameters take no gradients any more (`requires_grad_(False)`;
    undo it to train them).  Hooks that were on it stay, and none is left behind.

    Args:
        hf: the model, on its device and in its dtype.
        tokenizer: a fast one, which knows the characters that a token covers.
        name: what messages and saved vectors call the model.
        image_processor: a vision-language model's (PIL) image processor.
        date: what chat templates that write today's date write; default: the day on which the model is wrapped.
        origin: what it was made from besides a folder of plain weights, for the headers of vectors: an adapter and its
            base, a GGUF file and the types in it, the method by which weights are quantised.

    Raises:
        UnsupportedModelError: see `load`.
        ValueError: a weight is NaN or infinite, or the date is none.
    """

    def __init__(
        self,
        hf: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        *,
        name: str,
        image_processor: Any = None,
        date: str | datetime.date | None = None,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        family = family_class(hf.config)
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{name}: its tokenizer is {type(tokenizer).__name__}, which cannot say which characters a token "
                "covers; a fast tokenizer (tokenizer.json) is needed"
            )
        if family.marker and image_processor is None:
            raise UnsupportedModelError(f"{name} is a vision-language model; give its image_processor (see `load`)")
        self.hf = hf.eval().requires_grad_(False)
        self.name = name
        self.origin = dict(origin or {})
        self.text_config = hf.config.get_text_config()
        self.embed: nn.Embedding = hf.get_input_embeddings()  # type: ignore[assignment]
        decoder = find_decoder(hf, self.text_config.num_hidden_layers)
        self.decoder: nn.Module = decoder.module  # what embeddings enter
        self.blocks: Sequence[nn.Module] = decoder.blocks
        image_id = image_token_id(hf.config)
        image_token = str(tokenizer.convert_ids_to_tokens(image_id)) if family.marker else ""
        self.family: Family = family(hf.config, image_processor, image_token)
        self.family.meet(hf)
        self.prompts = Prompts(tokenizer, self.family, image_id=image_id, name=name, date=_as_date(date))
        self.told_of_settings = False  # of stored settings of generation that are not used
        self._features: features.Features = OrderedDict()
        self._several_are_proven = False  # several pictures in one prompt
        self.branches = Branches(self)
        self.proof = prove(self)
        if block := self.prompts.reasoning_block:
            warnings.warn(
                f"{name} is a reasoning model: in chats every answer, scored or generated, stands behind an empty "
                f"reasoning block ({block!r}), so that answers are compared and not thoughts. For thoughts give "
                "prompts as plain text.",
                stacklevel=2,
            )

    # ------------------------------------------------------------------ sizes and identity

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The tokenizer, as it was given."""
        return self.prompts.tokenizer

    @property
    def width(self) -> int:
        """d, the width of the residual stream."""
        return int(self.text_config.hidden_size)

    @property
    def context(self) -> int | None:
        """Most tokens, prompt and response together, that the model was made for; None where it sets no limit."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def device(self) -> torch.device:
        """Where embeddings live; inputs go there."""
        return weights.execution_device(self.embed, self.embed.weight)

    def fingerprint(self) -> str:
        """A hash of the architecture, the embedding weights and the first values of every block's parameters.

        Of a vision-language model also those of the vision tower and the projector, whatever their order.  Enough to
        tell a fine-tune from its base without reading 16 GB.  Weights are rounded to bfloat16 first, so that a model
        loaded as bfloat16, float32 or float64 has one fingerprint.
        """
        return weights.fingerprint(self.hf, Decoder(self.decoder, list(self.blocks)), sees=bool(self.family.marker))

    # ------------------------------------------------------------------ text and picture in

    def encode(self, prompt: Prompt, image: PictureSources | None = None, *, left_padding: int = 0) -> Encoded:
        """Token ids, embeddings and kinds of a prompt: plain text, or chat messages through the chat template.

        Plain text gets the special tokens that the tokenizer adds (usually BOS), and so does the chat of a
        vision-language model; a text model's template brings its own. BOS is never doubled.  In plain text `<image>`
        marks the place of the picture; in messages the template puts it into the first message of the user, before
        the text.  image: a picture, or a list of several: one for each mark, in order.  With a picture the result is
        an `EncodedPicture`.
        left_padding puts that many unattended tokens in front; it changes no result except the noise that SmoothGrad
        and random scores draw.

        Raises:
            ValueError: an empty prompt, a missing chat template, an image for a text model, no image for a place
                marked for one, or the reverse.
            PictureError: the image cannot be read.
            UnsupportedModelError: several pictures, and the model was found not to take them.
        """
        pictures = self.checked_pictures(image)
        unpadded_ids, unpadded_kinds = self.prompts.encode(prompt, pictures)
        unpadded = torch.tensor(unpadded_ids)
        replay = self.replay(unpadded, pictures)
        pads: list[Kind] = ["pad"] * left_padding
        ids = [self.prompts.pad_id()] * left_padding + unpadded_ids
        kinds = pads + unpadded_kinds
        in_front = self.embed(torch.tensor(ids[:left_padding], dtype=torch.long, device=self.device))
        encoded = Encoded(
            ids=torch.tensor(ids),
            embeds=torch.cat([in_front, self.embed_prompt(unpadded, pictures)]),
            tokens=tuple(self.prompts.token_text(token) for token in ids),
            kinds=tuple(kinds),
            replay={name: nn.functional.pad(tensor, (left_padding, 0)) for name, tensor in replay.items()},
            picture=digest_of_pictures(pictures),
        )
        if not pictures:
            return encoded
        sizes = tuple(picture.size for picture in pictures)
        places = [j for j, kind in enumerate(kinds) if kind == "image"]
        of_token: list[Patch | None] = [None] * len(kinds)
        patches = [patch._replace(picture=i) for i, size in enumerate(sizes) for patch in self.family.patches(size)]
        if len(patches) == len(places):  # else their boxes are not known
            for j, patch in zip(places, patches, strict=True):
                of_token[j] = patch
        return EncodedPicture(**vars(encoded), sizes=sizes, patches=tuple(of_token))

    def response_ids(self, prompt: Prompt, response: str) -> Tensor:
        """Token ids of a response that follows `prompt`, (R,).

        The response is tokenised by itself, so that no token straddles the boundary and x has the same tokens for
        every response.  After a plain-text prompt that does not end in white space, one space is put in front ("A:"
        and "Paris" make "A: Paris"); after a chat template, what the template itself would put there.
        """
        return torch.tensor(self.prompts.response_ids(prompt, response), dtype=torch.long)

    def example(self, prompt: Prompt, chosen: str, rejected: str, image: PictureSources | None = None) -> Example:
        """One preference pair, tokenised.

        Raises:
            FieldError: a text is empty, both answers are the same text or the same tokens, or the pair is longer than
                the model's context.
            ValueError: see `encode`.
        """
        check_texts(prompt=prompt, chosen=chosen, rejected=rejected)
        example = Example(
            self.encode(prompt, image), self.response_ids(prompt, chosen), self.response_ids(prompt, rejected)
        )
        pair = PreferencePair("", prompt, chosen, rejected, "")
        try:
            check_tokens(
                pair,
                n_prompt=len(example.encoded.ids),
                n_chosen=len(example.y_pos),
                n_rejected=len(example.y_neg),
                context=self.context,
                same_answers=example.y_pos.equal(example.y_neg),
            )
        except RowError as error:  # which row this is only the caller knows
            raise FieldError(error.field, error.problem) from None
        return example

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
        """See `grains_ref.grains.Model.logits`.

        Raises:
            ValueError: an id that the vocabulary has not, or more tokens than the model's context.
        """
        scoring.check_ids(self, response_ids.tolist(), where="the response")
        n_prompt = int(encoded.replay["attention_mask"].sum())
        n_fed = len(response_ids) - 1  # the last one is only predicted
        if excess_tokens(n_prompt, n_fed, self.context) > 0:
            raise ValueError(
                f"{n_prompt} prompt tokens and {n_fed} of the response are more than the {self.context} that "
                f"{self.name} takes"
            )
        fed = self.embed(response_ids[:-1].to(self.device)).to(embeds)  # (R-1, d): nothing follows the last token
        inputs = torch.cat([embeds, fed.expand(len(embeds), *fed.shape)], dim=1)  # (B, T + R - 1, d)
        replay = repeated(encoded.replay, batch=len(embeds), response=len(fed), device=self.device)
        logits: Tensor = run(self, inputs, replay, logits_to_keep=len(response_ids), use_cache=False).logits
        return logits

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        """See `grains_ref.grains.Model.residuals`."""
        last: list[Tensor] = []

        def record(block: nn.Module, inputs: Any, output: Any) -> None:
            last.append(state_of(output)[:, -1].detach().to(embeds.device))  # (B, d)

        with hooked(self.blocks, record):
            replay = repeated(encoded.replay, batch=len(embeds), response=0, device=self.device)
            run(self, embeds, replay, logits_to_keep=1, use_cache=False)
        return torch.stack(last, dim=1)  # (B, L, d)

    def tokenise(self, items: Iterable[Item]) -> list[TokenRow]:
        """Token ids of many (prompt, response) or (prompt, response, image), for `score_rows`.

        Raises:
            ValueError: a prompt or a response is empty, or see `encode`.
        """
        return scoring.tokenise(self, items)

    def check_rows(self, rows: Sequence[TokenRow]) -> None:
        """Refuse, before any work, rows that `score_rows` would refuse."""
        scoring.check_rows(self, rows)

    def score(self, items: Iterable[Item], *, batch_size: int = 128, memory: int = LOGIT_MEMORY) -> list[Scored]:
        """Score many (prompt, response) or (prompt, response, image) in left-padded batches; order is kept.

        Raises:
            ValueError: a prompt or a response is empty, or see `encode` and `score_rows`.
            FloatingPointError: see `score_rows`.
        """
        return self.score_rows(self.tokenise(items), batch_size=batch_size, memory=memory)

    def score_rows(
        self, rows: Sequence[TokenRow], *, batch_size: int = 128, memory: int = LOGIT_MEMORY
    ) -> list[Scored]:
        """`score` for items that are tokenised already, as sweeps score the same ones again and again.

        A prompt that several rows share is computed once: prompts first, then the responses on their cache.  A batch
        holds at most `batch_size` prompts, and at most `BATCH_TOKENS` prompt tokens, whatever batch_size says.

        memory: bytes for logits; longer or more responses are scored in several goes.  A fixed number, so that scores
        do not depend on what else runs on the machine.

        Raises:
            ValueError: batch_size is less than 1; or a row has no tokens, an id that the vocabulary has not, or more
                tokens than the model takes.
            FloatingPointError: a score is not finite; the message names the row and the decoder block where it begins.
        """
        self.check_rows(rows)
        return scoring.score_rows(self, rows, batch_size=batch_size, memory=memory)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        images: Sequence[PictureSources | None] = (),
        **options: Any,
    ) -> list[str]:
        """Continue each prompt with transformers' own `generate` (cached, left-padded); greedy by default.

        images: none at all, or one (or None, or a list of several) per prompt.  options: more arguments of
        transformers' `generate`.

        Settings that are stored with the weights (`generation_config.json`: a repetition penalty, suppressed tokens,
        ...) are not used, and told in a warning; only the end-of-text ids are.

        Raises:
            ValueError: a string instead of a list of prompts; another number of images than of prompts; prompt and new
                tokens longer than the model's context; see `encode`.
            FloatingPointError: the logits are not finite; the message names the prompt and the decoder block.
        """
        return generation.generate(self, prompts, max_new_tokens=max_new_tokens, images=images, **options)

    # ------------------------------------------------------------------ pictures and what a run needs

    def checked_pictures(self, image: PictureSources | None) -> tuple[Picture, ...]:
        """The picture or pictures of one prompt, read and found good, if this is a model that can see; () for None.

        Raises:
            ValueError: an image for a text model.
            PictureError: an image cannot be read.
            UnsupportedModelError: several, and the model was found not to take them (`proof.prove_several`).
        """
        sources: Sequence[Any] = image if isinstance(image, list | tuple) else [image]
        if image is None or not sources:
            return ()
        if not self.family.marker:
            raise ValueError(f"{self.name} is a text model ({self.text_config.model_type}) and cannot take an image")
        if len(sources) > 1 and not self._several_are_proven:
            prove_several(self)
            self._several_are_proven = True
        return tuple(Picture.of(source) for source in sources)

    def replay(self, ids: Tensor, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """Masks, positions and whatever else a run needs besides the embeddings of (T,) ids; see `replay.py`."""
        is_image = ids == self.prompts.image_id
        replay = self.family.replay(is_image, [picture.size for picture in pictures])
        if not pictures:
            return replay
        entered = self._entered(ids, pictures)
        return replay | entered.replay | at_tokens(entered.deep, is_image)

    @torch.no_grad()
    def embed_prompt(self, ids: Tensor, pictures: Sequence[Picture]) -> Tensor:
        """(T,) -> (T, d), with the pictures' features at their tokens."""
        ids = ids.to(self.device)
        if not pictures:
            return self.embed(ids)
        is_image = ids == self.prompts.image_id
        embeds = self.embed(ids.masked_fill(is_image, 0))  # an image token need not have a row of its own
        embeds[is_image] = self._entered(ids, pictures).features.to(embeds)
        return embeds

    @contextlib.contextmanager
    def fresh_image_features(self) -> Iterator[None]:
        """Image features are computed anew inside, and forgotten afterwards: for edits of pixels or vision tower.

        Inside is where `grains.Hooks` act: in the thread or asyncio task that entered.
        """
        with features.fresh(self._features):
            yield

    def _entered(self, ids: Tensor, pictures: Sequence[Picture]) -> Entrance:
        """What the model itself puts at the decoder's entrance for a prompt with pictures.

        What a picture puts there is kept by picture, what a prompt does (`Family.records`) by prompt.
        """
        if self.family.records:
            key = digest_of(f"{digest_of_pictures(pictures)} {ids.tolist()}".encode())
            return features.features_of(key, self._features, lambda: record(self, ids.tolist(), pictures))
        entered = [
            features.features_of(picture.digest, self._features, lambda: self._picture_alone(picture))  # noqa: B023
            for picture in pictures
        ]
        deep = {name: torch.cat([each.deep[name] for each in entered]) for name in entered[0].deep}
        return Entrance(torch.cat([each.features for each in entered]), deep)

    def _picture_alone(self, picture: Picture) -> Entrance:
        """Seen in a run on the picture's own tokens."""
        text = self.family.expansion(picture.size)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        alone = record(self, ids, [picture])
        return Entrance(alone.features, alone.deep)


def _as_date(date: str | datetime.date | None) -> datetime.date | None:
    if not isinstance(date, str):
        return date
    try:
        return datetime.date.fromisoformat(date)
    except ValueError:
        raise ValueError(f"the date is {date!r}; expected year-month-day, for instance 2024-07-26") from None
