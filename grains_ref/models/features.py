"""Image features that are kept, and those that hold for a while only: inside of an edit of pixels or vision tower."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from grains_ref.models.replay import Entrance

FEATURE_BYTES = 2 << 30  # kept in main memory, so that a sweep runs the vision tower once per picture

Features: TypeAlias = "OrderedDict[str, Entrance]"  # by the digest of a picture, or of a prompt; least recent first

# By the features that a model keeps: those that stand in for them in this thread or task, innermost last.
_FRESH: ContextVar[tuple[tuple[Features, Features], ...]] = ContextVar("grains_ref: fresh image features", default=())

_CHANGED: ContextVar[str] = ContextVar("grains_ref: how pictures are changed", default="")


@contextmanager
def fresh(kept: Features) -> Iterator[None]:
    """Inside, in this thread or asyncio task alone, features are computed anew; afterwards they are forgotten."""
    own: Features = OrderedDict()
    _FRESH.set((*_FRESH.get(), (kept, own)))
    try:
        yield
    finally:
        left = tuple(entered for entered in _FRESH.get() if entered[1] is not own)
        for _, others in left:  # those entered later hold features of both edits
            others.clear()
        _FRESH.set(left)


@contextmanager
def changed(how: str) -> Iterator[None]:
    """Inside, pictures are changed in a way of this name: their features are kept apart from those of other ways."""
    before = _CHANGED.get()
    _CHANGED.set(f"{before} {how}")
    try:
        yield
    finally:
        _CHANGED.set(before)


def features_of(digest: str, kept: Features, compute: Callable[[], Entrance]) -> Entrance:
    """What one picture puts at the decoder's entrance: kept up to `FEATURE_BYTES`, or computed."""
    digest += _CHANGED.get()
    here = kept
    for replaced, own in _FRESH.get():
        if replaced is kept:
            here = own
    features = here.pop(digest, None)  # put back as the most recent
    if features is not None:
        here[digest] = features
        return features
    here[digest] = features = compute()
    while len(here) > 1 and sum(entrance.nbytes for entrance in list(here.values())) > FEATURE_BYTES:
        here.popitem(last=False)
    return features
