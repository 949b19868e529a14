"""Hugging Face models, text and vision-language, as the four things that `grains_ref.grains` needs.

    model = load("path/or/hub-id")
    example = model.example(prompt, chosen, rejected, image="picture.png")

Where the decoder's blocks are, and the proof that hooks on them do what they should, is in `proof`; what differs
between the families is in `families`.  Once a picture's features are merged into the embeddings, an image token is
treated like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from grains_ref.data import Prompt
from grains_ref.grains import Encoded, Example, Kind
from grains_ref.models import features, scoring
from grains_ref.models.families import (
    Family,
    Patch,
    Picture,
    PictureSource,
    UnsupportedModelError,
    family_class,
)
from grains_ref.models.prompts import Prompts
from grains_ref.models.proof import decoder_blocks, hooked, prove_hooks
from grains_ref.models.scoring import Item, Scored, TokenRow


class _SeenEnoughError(Exception):
    """Ends a forward pass at the decoder's entrance."""


@dataclass(frozen=True, kw_only=True)
class EncodedPicture(Encoded):
    """A prompt with a picture: `patches` says for every image token what it looks at, and is None elsewhere."""

    size: tuple[int, int]  # of the upright picture, width and height
    patches: tuple[Patch | None, ...]  # T


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

    The transformers model is used as it is, not copied, and it is changed in two ways that stay, also if it is refused:
    it is put into evaluation mode (no dropout), and its parameters take no gradients any more (`requires_grad_(False)`;
    undo it to train them).  Hooks that were on it stay, and none is left behind.

    Args:
        hf: the model, on its device and in its dtype.
        tokenizer: a fast one, which knows the characters that a token covers.
        name: what messages and saved vectors call the model.
        image_processor: a vision-language model's (PIL) image processor.

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
        if family.marker and image_processor is None:
            raise UnsupportedModelError(f"{name} is a vision-language model; give its image_processor (see `load`)")
        self.hf = hf.eval().requires_grad_(False)
        self.name = name
        self.text_config = hf.config.get_text_config()
        self.embed: nn.Embedding = hf.get_input_embeddings()  # type: ignore[assignment]
        self.blocks: Sequence[nn.Module] = decoder_blocks(hf, self.text_config.num_hidden_layers)
        image_id = _image_token_id(hf.config)
        image_token = str(tokenizer.convert_ids_to_tokens(image_id)) if family.marker else ""
        self.family: Family = family(hf.config, image_processor, image_token)
        self.prompts = Prompts(tokenizer, self.family, image_id=image_id, name=name)
        self._features: features.Features = OrderedDict()
        prove_hooks(self)

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
            for start in sorted(_bfloat16_bytes(parameter.flatten()[:4096]) for parameter in others):
                digest.update(start)
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
        picture = self.checked_picture(image)
        unpadded_ids, unpadded_kinds = self.prompts.encode(prompt, picture)
        replay = self.replay(torch.tensor(unpadded_ids), picture)
        pads: list[Kind] = ["pad"] * left_padding
        ids = [self.prompts.pad_id()] * left_padding + unpadded_ids
        kinds = pads + unpadded_kinds
        encoded = Encoded(
            ids=torch.tensor(ids),
            embeds=self.embed_prompt(torch.tensor(ids), picture),
            tokens=tuple(self.prompts.token_text(token) for token in ids),
            kinds=tuple(kinds),
            replay={name: nn.functional.pad(tensor, (left_padding, 0)) for name, tensor in replay.items()},
            picture=picture.digest if picture else "",
        )
        if picture is None:
            return encoded
        patches = iter(self.family.patches(picture.size))
        of_token = tuple(next(patches) if kind == "image" else None for kind in kinds)
        return EncodedPicture(**vars(encoded), size=picture.size, patches=of_token)

    def response_ids(self, prompt: Prompt, response: str) -> Tensor:
        """Token ids of a response that follows `prompt`, (R,).

        The response is tokenised by itself, so that no token straddles the boundary and x has the same tokens for
        every response.  After a plain-text prompt that does not end in white space, one space is put in front ("A:"
        and "Paris" make "A: Paris"); after a chat template, what the template itself would put there.
        """
        return torch.tensor(self.prompts.response_ids(prompt, response), dtype=torch.long)

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
            **_repeated(encoded.replay, batch=len(embeds), response=len(fed), device=self.device),
        )
        return out.logits

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        """See `grains_ref.grains.Model.residuals`."""
        last: list[Tensor] = []

        def record(block: nn.Module, inputs: Any, output: Any) -> None:
            h = output[0] if isinstance(output, tuple) else output  # (B, T, d)
            last.append(h[:, -1].detach().to(embeds.device))

        with hooked(self.blocks, record):
            self.hf(
                inputs_embeds=embeds,
                logits_to_keep=1,
                use_cache=False,
                **_repeated(encoded.replay, batch=len(embeds), response=0, device=self.device),
            )
        return torch.stack(last, dim=1)  # (B, L, d)

    def tokenise(self, items: Iterable[Item]) -> list[TokenRow]:
        """Token ids of many (prompt, response) or (prompt, response, image), for `score_rows`.

        Raises:
            ValueError: a prompt or a response has no tokens, or see `encode`.
        """
        return scoring.tokenise(self, items)

    def score(self, items: Iterable[Item], *, batch_size: int = 128) -> list[Scored]:
        """Score many (prompt, response) or (prompt, response, image) in left-padded batches; order is kept.

        Raises:
            ValueError: a prompt or a response has no tokens, or see `encode`.
        """
        return self.score_rows(self.tokenise(items), batch_size=batch_size)

    def score_rows(self, rows: Sequence[TokenRow], *, batch_size: int = 128) -> list[Scored]:
        """`score` for items that are tokenised already, as sweeps score the same ones again and again.

        A prompt that several rows share is computed once: prompts first, then the responses on their cache.  A batch
        holds at most `batch_size` prompts, and at most `BATCH_TOKENS` prompt tokens, whatever batch_size says.

        Raises:
            ValueError: batch_size is less than 1.
        """
        return scoring.score_rows(self, rows, batch_size=batch_size)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        images: Sequence[PictureSource | None] = (),
        **options: Any,
    ) -> list[str]:
        """Continue each prompt with transformers' own `generate` (cached, left-padded); greedy by default.

        images: none at all, or one (or None) per prompt.  options: more arguments of transformers' `generate`.

        Raises:
            ValueError: a string instead of a list of prompts; another number of images than of prompts; see `encode`.
        """
        return scoring.generate(self, prompts, max_new_tokens=max_new_tokens, images=images, **options)

    # ------------------------------------------------------------------ pictures and what a run needs

    def checked_picture(self, image: PictureSource | None) -> Picture | None:
        """The picture, read and found good, if this is a model that can see; None for None.

        Raises:
            ValueError: an image for a text model.
            PictureError: the image cannot be read.
        """
        if image is None:
            return None
        if not self.family.marker:
            raise ValueError(f"{self.name} is a text model ({self.text_config.model_type}) and cannot take an image")
        return Picture.of(image)

    def replay(self, ids: Tensor, picture: Picture | None) -> dict[str, Tensor]:
        """Masks, positions and whatever else a run needs besides the embeddings of (T,) ids; see `Family.replay`."""
        return self.family.replay(ids == self.prompts.image_id, picture.size if picture else (0, 0))

    @torch.no_grad()
    def embed_prompt(self, ids: Tensor, picture: Picture | None) -> Tensor:
        """(T,) -> (T, d), with the picture's features at its tokens."""
        ids = ids.to(self.device)
        if picture is None:
            return self.embed(ids)
        is_image = ids == self.prompts.image_id
        embeds = self.embed(ids.masked_fill(is_image, 0))  # an image token need not have a row of its own
        embeds[is_image] = self._image_features(picture).to(embeds)
        return embeds

    @contextlib.contextmanager
    def fresh_image_features(self) -> Iterator[None]:
        """Image features are computed anew inside, and forgotten afterwards: for edits of pixels or vision tower.

        Inside is where `grains.Hooks` act: in the thread or asyncio task that entered.
        """
        with features.fresh(self._features):
            yield

    def _image_features(self, picture: Picture) -> Tensor:
        """(n, d): what the model itself puts in the place of the picture's tokens."""
        return features.features_of(picture.digest, self._features, lambda: self._compute_image_features(picture))

    def _compute_image_features(self, picture: Picture) -> Tensor:
        """(n, d), seen at the decoder's entrance in a run on the picture's tokens alone."""
        text = self.family.expansion(picture.size)
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.family.tensors([picture])}
        seen: list[Tensor] = []

        caller = threading.get_ident()

        def look(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if threading.get_ident() != caller:
                return
            seen.append(kwargs["inputs_embeds"][0])
            raise _SeenEnoughError  # before any other hook of the decoder: nothing is to be steered or recorded here

        handle = self.hf.get_decoder().register_forward_pre_hook(look, with_kwargs=True, prepend=True)
        try:
            with contextlib.suppress(_SeenEnoughError):
                on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
                self.hf(**on_device, logits_to_keep=1, use_cache=False)
        finally:
            handle.remove()
        return seen[0][ids[0] == self.prompts.image_id].cpu()


def _repeated(replay: dict[str, Tensor], *, batch: int, response: int, device: torch.device) -> dict[str, Tensor]:
    """A prompt's masks, positions and token types, continued over `response` text tokens, repeated over the batch.

    (..., T) -> (..., batch, T + response); only 3-D positions have more axes in front.
    """
    after = int(replay["position_ids"].max()) + 1
    following = {"attention_mask": torch.ones(response).long(), "position_ids": after + torch.arange(response)}
    repeated = {}
    for name, tensor in replay.items():
        of_response = following.get(name, torch.zeros(response).long())
        of_response = of_response.expand(*tensor.shape[:-1], -1)
        continued = torch.cat([tensor, of_response], dim=-1).to(device)
        repeated[name] = continued.unsqueeze(-2).expand(*continued.shape[:-1], batch, -1)
    return repeated


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


def _bfloat16_bytes(values: Tensor) -> bytes:
    return values.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
