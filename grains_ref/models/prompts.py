"""Text and picture in: from a prompt, plain or chat, to the ids and kinds of its tokens.

Three steps, each a method of `Prompts`:

1. `_render`: the prompt as one string, through the chat template if it is a chat, and where the user's words are in it;
2. `_insert_pictures`: the family's image tokens in the places that are marked for pictures;
3. `_tokenise`: ids and kinds.

Nothing here runs the model.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import transformers
from jinja2 import TemplateError
from transformers.convert_slow_tokenizer import bytes_to_unicode

from grains_ref.data import PICTURE_MARK, Message, Prompt
from grains_ref.files import digest_of
from grains_ref.grains import Kind
from grains_ref.models import reasoning
from grains_ref.models.families import Family, Picture, UnsupportedModelError

# In a second rendering of a chat these stand for the messages' contents; private-use characters, so that no template
# has them in its own words.
_STAND_IN = "\ue000{}\ue001"
_ASKED: list[Message] = [{"role": "user", "content": "x"}]
_ANSWER = _STAND_IN.format(0)
_ANSWERED: list[Message] = [*_ASKED, {"role": "assistant", "content": _ANSWER}]
_ANY_STAND_IN = re.compile("(\ue000[0-9]+\ue001)")
_STRIPPINGS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)  # of a message, by its role
_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}  # in the pieces of byte-level BPE


class _Span(NamedTuple):
    """Characters of a string, from `start` up to but not including `stop`."""

    start: int
    stop: int


class _Rendered(NamedTuple):
    """A prompt as one string, and the places of the user's own words in it, in order."""

    text: str
    user: list[_Span]


class Prompts:
    """How one tokenizer and one family turn prompts and responses into tokens, and tokens into text.

    image_id: the id of the token that stands for one piece of a picture; -1 for a text model.  date: what a chat
    template is told that today is.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        family: Family,
        *,
        image_id: int,
        name: str,
        date: datetime.date | None = None,
    ) -> None:
        self.tokenizer, self.family, self.image_id, self.name = tokenizer, family, image_id, name
        self._date = date or datetime.date.today()
        # `all_special_ids` alone leaves out tokens such as Llama 3's <|start_header_id|>.
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = added | set(tokenizer.all_special_ids)
        self._n_behind = self._count_behind()

    # ------------------------------------------------------------------ what is written unasked

    @property
    def template_digest(self) -> str:
        """SHA-256 of the chat template; "" where there is none."""
        template = self.tokenizer.chat_template
        return digest_of(str(template).encode()) if template else ""

    @property
    def date(self) -> str:
        """The date that the chat template writes, as 2024-07-26; "" if it writes none."""
        return self._date.isoformat() if self.template_options else ""

    @property
    def template_options(self) -> dict[str, Any]:
        """Options of `apply_chat_template`: no thoughts, and the template with the date in it if it asks for one."""
        template = str(self.tokenizer.chat_template)
        options: dict[str, Any] = {name: False for name in reasoning.OPTIONS if name in template}
        if "strftime_now" in template:
            options["chat_template"] = _strftime_macro(self._date) + str(self.tokenizer.get_chat_template())
        return options

    @functools.cached_property
    def reasoning_block(self) -> str:
        """The empty reasoning block that stands in front of every answer to a chat; "" of most models."""
        template = str(self.tokenizer.chat_template or "")
        if not reasoning.is_spoken_of(template):
            return ""
        try:
            return reasoning.block_at_the_end(self._written(_ASKED, ["x"]) + self.answer_opening)
        except ValueError:  # told to whoever gives a chat; plain text is fine
            return ""

    @functools.cached_property
    def answer_opening(self) -> str:
        """What is written behind the template's generation prompt; see `reasoning.opening_of_answer`.

        Raises:
            UnsupportedModelError: the generation prompt begins a thought, and how it ends is not known.
        """
        return reasoning.opening_of_answer(self._written(_ASKED, ["x"]), self._answered, _ANSWER)

    @functools.cached_property
    def _answered(self) -> str:
        """A question and its answer as the template writes them; "" if it takes no answers."""
        try:
            return self._written(_ANSWERED, ["x", _ANSWER], is_answered=True)
        except ValueError:
            return ""

    def _count_behind(self) -> int:
        """How many tokens, an end-of-text token for instance, the tokenizer puts behind every text by itself.

        Raises:
            UnsupportedModelError: it also does so where no special tokens are asked for, or inside the text.
        """
        bare = self._ids_of("x")
        says_it = self.text(bare).strip() == "x" or self.tokenizer.unk_token_id in bare
        if not bare or not says_it:
            raise UnsupportedModelError(
                f"{self.name}: the tokenizer turns 'x' into {self.tokenizer.convert_ids_to_tokens(bare)} although no "
                "special tokens are asked for, so that answers cannot be told from what it adds. Change its "
                "normalizer or post-processor (tokenizer.json)"
            )
        whole = list(self.tokenizer("x", add_special_tokens=True)["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return len(whole) - len(bare) - start
        raise UnsupportedModelError(
            f"{self.name}: the tokenizer turns 'x' into {self.tokenizer.convert_ids_to_tokens(whole)} with special "
            f"tokens and into {self.tokenizer.convert_ids_to_tokens(bare)} without: not only around the text"
        )

    # ------------------------------------------------------------------ prompts

    def encode(self, prompt: Prompt, pictures: Sequence[Picture]) -> tuple[list[int], list[Kind]]:
        """Ids and kinds of a prompt's tokens, those of its pictures included.

        Raises:
            ValueError: an empty prompt, a missing chat template, a picture without a place, or the reverse.
            UnsupportedModelError: the tokenizer or the chat template does not know pictures.
        """
        if not (prompt if isinstance(prompt, str) else any(message["content"] for message in prompt)):
            raise ValueError("the prompt has no tokens; give at least one word")
        rendered = self._render(prompt, n_pictures=len(pictures))
        rendered = self._insert_pictures(rendered, pictures, is_plain=isinstance(prompt, str))
        # As transformers does it: tokenizers take a rendered chat as it is, processors add BOS where it is missing.
        adds_special = isinstance(prompt, str) or bool(self.family.marker)
        ids, spans = self._tokenise(rendered.text, add_special_tokens=adds_special)
        kinds: list[Kind] = []
        for token, span in zip(ids, spans, strict=True):
            if pictures and token == self.image_id:
                kinds.append("image")
            elif token in self.special_ids:
                kinds.append("special")
            elif any(span.start < words.stop and span.stop > words.start for words in rendered.user):
                kinds.append("text")
            else:
                kinds.append("template")
        if pictures:
            self._check_image_tokens(kinds.count("image"), pictures)
        return ids, kinds

    def _render(self, prompt: Prompt, *, n_pictures: int) -> _Rendered:
        if isinstance(prompt, str):
            text = prompt.replace(PICTURE_MARK, self._marker) if self.family.marker else prompt
            return _Rendered(text, [_Span(0, len(text))])
        return self._render_chat(prompt, n_pictures=n_pictures)

    @functools.cached_property
    def _marker(self) -> str:
        """What stands in a text where a picture belongs: the family's words, or those of the chat template."""
        placeholder = self.family.placeholder
        if not self.family.records or self.tokenizer.chat_template is None:
            return self.family.marker
        stand_in = _STAND_IN.format(0)
        chat: list[Message] = [{"role": "user", "content": stand_in}]
        with_picture = self._apply_template(chat, [stand_in], n_pictures=1).partition(stand_in)[0]
        without = self._apply_template(chat, [stand_in]).partition(stand_in)[0]
        start = 0  # of what is written for the picture
        while with_picture[start : start + 1] == without[start : start + 1] != "":
            start += 1
        words = with_picture[start:].strip()
        return words if words.count(placeholder) == 1 else self.family.marker

    def _render_chat(self, messages: Sequence[Message], *, n_pictures: int) -> _Rendered:
        """The chat up to where the model's answer begins, and where the contents of the user's messages are in it.

        A short content ("a", "user") may also occur in the template's own words, so it is not searched for. The chat
        is rendered once more with stand-ins as contents; what lies between the stand-ins are the template's words,
        and contents put between these must give the first rendering.
        """
        contents = [message["content"] for message in messages]
        text = self._apply_template(messages, contents, n_pictures=n_pictures)
        marks = "".join(contents).count(PICTURE_MARK)
        if n_pictures and marks:
            # The template has written marks of its own.
            _refuse_places(n_pictures + marks, n_pictures=n_pictures, is_plain=False)
        stand_ins = [_STAND_IN.format(i) for i in range(len(messages))]
        pieces = _ANY_STAND_IN.split(self._apply_template(messages, stand_ins, n_pictures=n_pictures))
        template_words, seen_stand_ins = pieces[0::2], pieces[1::2]  # they alternate, template's words at both ends
        if seen_stand_ins == stand_ins:
            roles = [message["role"] for message in messages]
            for written in _strippings(roles, contents):  # many templates strip the messages of some roles, or of all
                joined, spans = _join(template_words, written)
                if joined == text:
                    return _Rendered(text, [span for span, role in zip(spans, roles, strict=True) if role == "user"])
        raise ValueError(f"the chat template of {self.name} changed, moved or dropped the words of a message")

    def _apply_template(self, messages: Sequence[Message], contents: Sequence[str], *, n_pictures: int = 0) -> str:
        """The chat with other contents, up to where the answer begins."""
        return self._written(messages, contents, n_pictures=n_pictures) + self.answer_opening

    def _written(
        self, messages: Sequence[Message], contents: Sequence[str], *, n_pictures: int = 0, is_answered: bool = False
    ) -> str:
        """The chat with other contents, as the template writes it; pictures go into the user's first message.

        is_answered: the last message is the answer; otherwise the template's generation prompt ends it.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.name} has no chat template, so it cannot take chat messages. Give the prompt as plain text "
                "(field 'prompt'), or use the instruction-tuned variant of the model."
            )
        to_place = n_pictures
        chat: list[dict[str, Any]] = []
        for message, content in zip(messages, contents, strict=True):
            parts: list[dict[str, str]] = [{"type": "text", "text": content}]
            if message["role"] == "user":
                parts = [{"type": "image"}] * to_place + parts
                to_place = 0
            chat.append({"role": message["role"], "content": parts if self.family.marker else content})
        options: dict[str, Any] = {"add_generation_prompt": not is_answered, "tokenize": False}
        try:
            return str(self.tokenizer.apply_chat_template(chat, **options, **self.template_options))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"the chat template of {self.name} refuses messages of the roles {roles}: {error}. Where it takes no "
                "system message, put its words in front of the user's first one"
            ) from error

    def _insert_pictures(self, rendered: _Rendered, pictures: Sequence[Picture], *, is_plain: bool) -> _Rendered:
        """Each placeholder replaced by its picture's tokens; the user's words behind it move along."""
        placeholder = self.family.placeholder
        if not placeholder:
            return rendered
        places = rendered.text.count(placeholder)
        if places != len(pictures):
            _refuse_places(places, n_pictures=len(pictures), is_plain=is_plain)
        start = 0
        for picture in pictures:  # what has been inserted holds placeholders too, so the search goes on behind it
            start = rendered.text.index(placeholder, start)
            inserted = self.family.expansion(picture.size)
            rendered = _replaced(rendered, _Span(start, start + len(placeholder)), inserted)
            start += len(inserted)
        return rendered

    def _tokenise(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[_Span]]:
        """Ids and character spans of a rendered prompt; BOS never doubled, nothing behind the text, never empty."""
        batch = self.tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        ids = list(batch["input_ids"])
        spans = [_Span(start, stop) for start, stop in batch["offset_mapping"]]
        if add_special_tokens and self._n_behind:  # the answer goes on where the prompt ends
            ids, spans = ids[: -self._n_behind], spans[: -self._n_behind]
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids, spans = ids[1:], spans[1:]
        if not ids:
            raise ValueError("the prompt has no tokens; give at least one word")
        return ids, spans

    def _check_image_tokens(self, count: int, pictures: Sequence[Picture]) -> None:
        expected = sum(self.family.n_tokens(picture.size) for picture in pictures)
        if count != expected:
            sizes = " and of ".join(f"{picture.size}" for picture in pictures)
            raise UnsupportedModelError(
                f"{self.name}: a picture of {sizes} should give {expected} image tokens, but its tokenizer "
                f"made {count}; is {self.family.image_token!r} one token?"
            )

    # ------------------------------------------------------------------ responses

    def response_ids(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of a response that follows `prompt`; see `HuggingFaceModel.response_ids`."""
        if not response:  # before a space is put in front of it
            raise ValueError("the response has no tokens; nothing can be scored")
        if not isinstance(prompt, str):
            self._check_no_thoughts(response)
        if response[:1].isspace():
            return self._tokenise_response(response)
        if not isinstance(prompt, str):
            return self._tokenise_response(self.before_answer + response)
        between = "" if prompt[-1:].isspace() else " "
        return self._tokenise_response(between + response)

    def _check_no_thoughts(self, response: str) -> None:
        """Refuse an answer with thoughts of its own where the prompt ends behind an empty reasoning block."""
        mark = reasoning.end_of_thought_in(response)
        if mark and self.reasoning_block:
            raise ValueError(
                f"the answer has {mark} in it, but {self.name} is given every chat up to behind an empty reasoning "
                f"block ({self.reasoning_block!r}). Leave the thoughts out of the answers, or give prompts and answers "
                "as plain text"
            )

    def _tokenise_response(self, response: str) -> list[int]:
        """Ids of a response by itself.

        Tokenizers in the style of SentencePiece put a space in front of whatever they are given; a line break takes
        that space on itself and is cut off again.
        """
        first_piece = self.tokenizer.convert_ids_to_tokens(self._ids_of("x")[0])
        if not str(first_piece).startswith("\u2581"):
            return self._ids_of(response)
        line_break, with_line_break = self._ids_of("\n"), self._ids_of("\n" + response)
        if with_line_break[: len(line_break)] != line_break:
            raise UnsupportedModelError(f"{self.name}: the tokenizer merges a line break with the words after it")
        return with_line_break[len(line_break) :]

    def _ids_of(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @functools.cached_property
    def before_answer(self) -> str:
        """White space that the chat template writes between its generation prompt and an answer; mostly ""."""
        asked = self._written(_ASKED, ["x"])
        if self.answer_opening or not self._answered.startswith(asked):
            return ""
        return self._answered[len(asked) :].partition(_ANSWER)[0]

    # ------------------------------------------------------------------ back to text

    def token_text(self, token: int) -> str:
        """One token for people; SentencePiece's leading space would be lost in decoding it alone.

        Bytes that are only a part of a character are written as <0xE2>.
        """
        text, piece = self.text([token]), str(self.tokenizer.convert_ids_to_tokens(token))
        if "\ufffd" in text:
            return _bytes_in_words(piece)
        return " " + text if piece.startswith("\u2581") and not text[:1].isspace() else text

    def text(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """What the ids say."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def pad_id(self) -> int:
        """The padding id, or the end-of-text id where the tokenizer has none; padding is never attended.

        Raises:
            UnsupportedModelError: the tokenizer has neither.
        """
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise UnsupportedModelError(f"{self.name}: the tokenizer has neither a padding nor an end-of-text token")


def _replaced(rendered: _Rendered, place: _Span, inserted: str) -> _Rendered:
    """A rendered prompt with other words in one place; a span that holds the place falls apart around it."""
    growth = len(inserted) - (place.stop - place.start)
    user = []
    for span in rendered.user:
        if span.start < place.start:
            user.append(_Span(span.start, min(span.stop, place.start)))
        if span.stop > place.stop:
            user.append(_Span(max(span.start, place.stop) + growth, span.stop + growth))
    return _Rendered(rendered.text[: place.start] + inserted + rendered.text[place.stop :], user)


def _join(template_words: Sequence[str], contents: Sequence[str]) -> tuple[str, list[_Span]]:
    """template_words[0] + contents[0] + template_words[1] + ... + template_words[n], and where each content is."""
    text, spans = template_words[0], []
    for content, words_behind in zip(contents, template_words[1:], strict=True):
        spans.append(_Span(len(text), len(text) + len(content)))
        text += content + words_behind
    return text, spans


def _strftime_macro(date: datetime.date) -> str:
    """Jinja that gives a template a `strftime_now` of its own, since transformers' own always takes today."""
    replaced = ["format"]
    for directive in "aAbBCdDeFfgGhHIjmMpRsSTuUVwWxXyYzZc":
        for code in (f"%{directive}", f"%-{directive}"):  # the second: without a zero in front
            replaced.append(f"replace({code!r}, {date.strftime(code)!r})")
    return "{%- macro strftime_now(format) -%}{{ " + " | ".join(replaced) + " }}{%- endmacro %}{{ '' }}"


def _strippings(roles: Sequence[str], contents: Sequence[str]) -> Iterator[list[str]]:
    """The contents as they are, and with the white space around those of some roles taken off, in every way."""
    names = sorted(set(roles))
    for ways in itertools.product(_STRIPPINGS, repeat=len(names)):
        way_of = dict(zip(names, ways, strict=True))
        yield [way_of[role](content) for role, content in zip(roles, contents, strict=True)]


def _bytes_in_words(piece: str) -> str:
    """A token's piece, whole characters as they are and other bytes as <0xE2>."""
    if not all(character in _BYTE_OF for character in piece):
        return piece  # no byte-level BPE; SentencePiece writes <0xE2> itself
    text = bytes(_BYTE_OF[character] for character in piece).decode(errors="surrogateescape")
    # a byte that is no part of a whole character was read as a surrogate, U+DC00 + the byte
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def _refuse_places(places: int, *, n_pictures: int, is_plain: bool) -> NoReturn:
    """Why a prompt with this many places for pictures does not go with its pictures, or with none."""
    if not n_pictures:
        raise ValueError(
            f"the prompt marks {places} place(s) for a picture, but no picture was given; name one in the field "
            "'image' (or --image), or leave the mark out"
        )
    if is_plain and not places:
        raise ValueError(
            f"the prompt has no place for its picture; write {PICTURE_MARK} in it, for instance at the start"
        )
    if is_plain:
        raise ValueError(
            f"the prompt marks {places} places for a picture, but {n_pictures} came; give one picture for each "
            f"{PICTURE_MARK}, in order"
        )
    if places:
        raise ValueError(
            f"the rendered chat has {places} places for a picture instead of {n_pictures}. The chat template places "
            f"them: leave {PICTURE_MARK} out of the messages"
        )
    raise UnsupportedModelError("the chat template has no place for a picture; give the prompt as plain text")
