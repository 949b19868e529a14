"""A pair that a dataset gives is one that the reader of pair files takes, too."""

from __future__ import annotations

import pytest

from grains_ref.data import PreferencePair, RowError
from grains_ref.datasets.records import checked_pair

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "field"),
    [
        ("p", "\u200b", "b", "chosen"),
        ("p", "a", "\u00ad ", "rejected"),
        ("p", "a", "a", "rejected"),
        ("\x00", "a", "b", "prompt"),
        (({"role": "user", "content": ""},), "a", "b", r"messages\[0\].content"),
    ],
)
def test_what_cannot_be_seen_is_refused(prompt: object, chosen: str, rejected: str, field: str) -> None:
    pair = PreferencePair("1", prompt, chosen, rejected, where="x:3")  # type: ignore[arg-type]
    with pytest.raises(RowError, match=f"x:3: field '{field}'"):
        checked_pair(pair)


def test_a_good_pair_stays_as_it_is() -> None:
    pair = PreferencePair("1", "p", "a", "b", where="x:3")
    assert checked_pair(pair) is pair
