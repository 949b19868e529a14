"""A model, steered or not, for lm-evaluation-harness (`pip install 'grains-ref[lm-eval]'`).

    with Steering(model.blocks, v, lam=6.0):
        results = lm_eval.simple_evaluate(HarnessModel(model), tasks=["truthfulqa_mc1"])

Requests go through the model's own scoring and generation, so that whatever steering is active applies, and so that
numbers are those of `grains_ref.evaluation` on the same prompts and answers.

Convention: the harness's `use_cache` knows neither vectors nor strength.  Give every setting a cache of its own, or
none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from grains_ref.data import excess_tokens
from grains_ref.evaluation.stopping import SaidSoFar
from grains_ref.models import HuggingFaceModel, TokenRow
from grains_ref.models.scoring import score_rows

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise ImportError(
        f"grains_ref.evaluation.lm_eval needs lm-evaluation-harness 0.4.13 or newer ({error}). Install it with: "
        "pip install 'grains-ref[lm-eval]'"
    ) from error

_CHUNK = 1024  # requests between two steps of the progress bar


class HarnessModel(LM):
    """`lm_eval.api.model.LM` around a model; one process, one device map.

    Convention: a continuation is tokenised by itself, so that no token straddles the boundary; the harness's own
    `HFLM` tokenises both together and cuts.  For most tokenizers that is the same.  Spaces at the end of a context go
    to the continuation, as there; line breaks stay, since a chat template's belong to the prompt.

    Args:
        model: any model, of which texts are asked; tasks with pictures are refused by the harness itself.
        batch_size: prompts at once.
        max_new_tokens: of a generation whose task does not say.
        truncate: cut the beginning off what is too long for the model (as `HFLM` does), instead of raising.
    """

    def __init__(
        self, model: HuggingFaceModel, *, batch_size: int = 32, max_new_tokens: int = 256, truncate: bool = False
    ) -> None:
        super().__init__()
        self.model, self.batch_size, self.max_new_tokens, self.truncate = model, batch_size, max_new_tokens, truncate
        self._device = model.device

    # ------------------------------------------------------------------ scores

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log P(continuation given context) in nats, and whether greedy decoding gives it, for each request.

        Raises:
            ValueError: context and continuation are longer than the model takes, unless `truncate`.
        """
        rows = [self._row(*request.args) for request in requests]
        answers: list[tuple[float, bool]] = []
        with tqdm(total=len(rows), desc="Scoring", disable=disable_tqdm) as bar:
            for start in range(0, len(rows), _CHUNK):
                chunk = rows[start : start + _CHUNK]
                scored = self.model.score_rows(chunk, batch_size=self.batch_size)
                answers += [(score.log_prob, score.is_greedy) for score in scored]
                bar.update(len(chunk))
        self._remember("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log P(text) in nats for each request; long texts in disjoint windows, each with one token before it."""
        answers = []
        for request in tqdm(requests, desc="Scoring", disable=disable_tqdm):
            ids = self._prompt_ids(request.args[0]) if request.args[0] else []
            longest = self.model.context or len(ids) + 1
            windows = get_rolling_token_windows(ids, self._prefix, max_seq_len=longest, context_len=1)
            rows = [TokenRow(tuple(before), tuple(scored)) for before, scored in map(make_disjoint_window, windows)]
            # Past the check of `model.score_rows`: the harness counts what is fed, and a window's last token is not.
            answers.append(sum(score.log_prob for score in score_rows(self.model, rows, batch_size=self.batch_size)))
        self._remember("loglikelihood_rolling", requests, answers)
        return answers

    def _row(self, context: str, continuation: str) -> TokenRow:
        bare = context.rstrip(" ")
        continuation = context[len(bare) :] + continuation
        if not continuation:
            raise ValueError(f"the continuation {continuation!r} has no tokens; nothing can be scored")
        # Behind a prompt that ends in white space nothing is put between prompt and response.
        response = self.model.response_ids("\n", continuation).tolist()
        prompt = self._prompt_ids(bare) if bare else [self._prefix]
        excess = excess_tokens(len(prompt), len(response), self.model.context)
        if excess > 0 and not self.truncate:
            raise ValueError(
                f"a context of {len(prompt)} tokens and a continuation of {len(response)} are {excess} more than the "
                f"{self.model.context} that {self.model.name} takes. Use fewer shots (num_fewshot), or "
                "HarnessModel(..., truncate=True) to cut the beginning off"
            )
        return TokenRow(tuple(prompt[max(0, min(excess, len(prompt) - 1)) :]), tuple(response))

    def _prompt_ids(self, text: str) -> list[int]:
        return self.model.encode(text).ids.tolist()

    @property
    def _prefix(self) -> int:
        """What stands before a text without a context: BOS, or the end-of-text token where there is none."""
        bos, eos = self.model.tokenizer.bos_token_id, self.model.tokenizer.eos_token_id
        return int(eos if bos is None else bos)

    # ------------------------------------------------------------------ generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, up to the first stop text; greedy unless the task samples.

        Convention: a stop text that is a special token, which decoding drops, stops by its id. `HFLM` does so for
          batches of one; in larger ones its other rows let a stopped row go on, and what it says then is kept.
          An empty stop text is refused: it occurs in every text, so that `HFLM` ends the whole batch after one token,
          and then looks for the other stop texts only.

        Raises:
            ValueError: the context and what may be generated are longer than the model takes, an empty stop text, or
                beam search.
        """
        by_options: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_options.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        replies: dict[int, str] = {}
        with tqdm(total=len(requests), desc="Generating", disable=disable_tqdm) as bar:
            for members in by_options.values():
                members.sort(key=lambda i: len(requests[i].args[0]))  # similar lengths waste less on padding
                for start in range(0, len(members), self.batch_size):
                    batch = members[start : start + self.batch_size]
                    texts = self._generate([requests[i].args[0] for i in batch], requests[batch[0]].args[1])
                    replies.update(zip(batch, texts, strict=True))
                    bar.update(len(batch))
        answers = [replies[i] for i in range(len(requests))]
        self._remember("generate_until", requests, answers)
        return answers

    def _generate(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        generation: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_new_tokens))
        until = [stop for stop in generation.pop("until") if stop is not None]
        if "" in until:
            raise ValueError(
                f"until={until}: an empty stop text occurs in every text; leave it out (until=[] stops at the "
                "end-of-text token only; a task without 'until' has its fewshot_delimiter), or ask for max_gen_toks=1"
            )
        n = generation.pop("max_gen_toks")
        if not generation["do_sample"]:
            generation.pop("temperature", None)  # transformers warns of a temperature that is not used
        if generation.get("num_beams", 1) > 1:
            raise ValueError(f"num_beams={generation['num_beams']}: beam search is not supported; generate greedily")
        longest = max(len(self._prompt_ids(context)) for context in contexts)
        if excess_tokens(longest, n, self.model.context) > 0:
            raise ValueError(
                f"a context of {longest} tokens and {n} new ones are more than the {self.model.context} that "
                f"{self.model.name} takes; use fewer shots (num_fewshot), or a smaller max_gen_toks in the task"
            )
        so_far = SaidSoFar(self.model, until)
        self.model.generate(contexts, max_new_tokens=n, stopping_criteria=[so_far], **generation)
        return so_far.texts

    # ------------------------------------------------------------------ chat, identity, cache

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the model's template writes it; without a generation prompt the last message is left open.

        An answer to a reasoning model's chat stands behind an empty reasoning block, as everywhere.
        """
        prompts = self.model.prompts
        opening = prompts.answer_opening if add_generation_prompt else ""
        chat: list[dict[str, Any]] = list(chat_history)
        if self.model.family.marker:  # the template of a model that sees drops a content that is no list of parts
            chat = [
                {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
                for message in chat_history
            ]
        written = str(
            self.model.tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **prompts.template_options,
            )
        )
        return written + opening

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template, for the harness's record; None where none is used.

        Raises:
            ValueError: a template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise ValueError(f"chat template {chat_template!r}: only the model's own is used; pass True")
        template = self.model.tokenizer.chat_template
        return str(template) if chat_template and template else None

    @property
    def tokenizer_name(self) -> str:
        """Part of the key of the harness's cache of requests."""
        return str(self.model.name).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's record; the active steering is not part of it."""
        return {
            "model_name": self.model.name,
            "model_fingerprint": self.model.fingerprint(),
            "model_num_parameters": self.model.hf.num_parameters(),
            "model_dtype": str(self.model.hf.dtype),
        }

    def _remember(self, kind: str, requests: Sequence[Instance], answers: Iterable[Any]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
