"""stopping.py: a generation ends at its first stop text, each row by itself, and its tokens are counted."""

from __future__ import annotations

import pytest
import torch

from grains_ref.evaluation.stopping import SaidSoFar, up_to
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu


def test_a_text_ends_at_the_stop_text_that_comes_first() -> None:
    assert up_to("a b c b", ["c", "b"]) == "a "
    assert up_to("a b c b", ["x"]) == "a b c b"


def test_end_of_text_in_ordinary_letters_is_a_stop_text(llama: HuggingFaceModel) -> None:
    """A model can spell it out, token by token; the harness's own model cuts there."""
    ids = [llama.response_ids("\n", text).tolist() for text in ("so", "<|eot", "_id|> and")]
    so_far = SaidSoFar(llama, [])
    row = [0, *ids[0], *ids[1], *ids[2]]
    assert so_far(torch.tensor([row[:2]]), None).tolist() == [False]
    assert so_far(torch.tensor([row]), None).tolist() == [True]
    assert so_far.texts == ["so"]


def test_white_space_in_front_of_a_generation_is_kept(simple_model: HuggingFaceModel) -> None:
    """Stop texts are looked for in what was really said."""
    ids = simple_model.tokenizer("0 1 2 3", add_special_tokens=False)["input_ids"]
    so_far = SaidSoFar(simple_model, ["2"])
    stopped = [so_far(torch.tensor([ids[:n], ids[:1] * n]), None).tolist() for n in range(2, 5)]
    assert stopped == [[False, False], [True, False], [True, False]]
    assert so_far.texts == ["1 ", "0 0 0"]
    assert (so_far.n_tokens, so_far.ended) == ([2, 3], [True, False])


def test_a_special_token_is_a_stop_text_by_its_id(llama: HuggingFaceModel) -> None:
    """Decoding drops it, so that no text tells."""
    stop = llama.tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    so = llama.response_ids("\n", "so").tolist()
    so_far = SaidSoFar(llama, ["<|start_header_id|>"])
    assert so_far(torch.tensor([[0, so[0]]]), None).tolist() == [False]
    assert so_far(torch.tensor([[0, *so, stop, *so]]), None).tolist() == [True]
    assert so_far.texts == ["so"]
    assert so_far.n_tokens == [len(so) + 1 + len(so)]
