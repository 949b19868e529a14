"""Appendix A.1: 50 examples for steering, dev and test 10/90 of the rest, and no question in two of them.

What must stay together is given by `keys`: texts or picture digests of an example.  Examples that share a key, directly
or through others, form a group, and a group goes into one part as a whole.

Convention: groups are put in the order of their smallest key and then shuffled with the seed, so a split depends on the
questions and the seed alone, not on the order of rows.  Two configurations of the same questions are cut alike.  Each
part is in shuffled order, so its first n examples are a random sample, the same for every larger n.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from grains_ref.datasets.records import DatasetError, Record, digest
from grains_ref.files import check_listed

T = TypeVar("T", bound=Record)
Keys = Callable[[T], Sequence[str]]
N_STEERING = 50
DEV_SHARE = 0.1


@dataclass(frozen=True)
class Split(Generic[T]):
    """The three parts, and the examples left out because they repeat one of the test set.

    `kind` is "paper", or "release" for the released code's, which leaks.
    """

    kind: str
    seed: int
    steering: tuple[T, ...]
    dev: tuple[T, ...]
    test: tuple[T, ...]
    left_out: tuple[T, ...] = ()

    @property
    def leaks(self) -> bool:
        """Whether an example that steers is also tested on."""
        tested = {digest([item]) for item in self.test}
        return any(digest([item]) in tested for item in self.steering)

    def record(self) -> dict[str, Any]:
        """Kind, seed, sizes and digests of the parts, for the record of a run."""
        parts = {"steering": self.steering, "dev": self.dev, "test": self.test}
        return {
            "kind": self.kind,
            "leaks": self.leaks,
            "seed": self.seed,
            "sizes": {name: len(part) for name, part in parts.items()} | {"left_out": len(self.left_out)},
            "digests": {name: digest(part) for name, part in parts.items()},
        }


def question_key(text: str) -> str:
    """A question's text as far as it matters: letter case, white space and the marks around it do not."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    without_marks = re.sub(r"^\W+|\W+$", "", " ".join(folded.split()))
    return without_marks or text  # a text of marks alone stays as it is


def paper_split(items: Sequence[T], *, keys: Keys[T], n: int = N_STEERING, seed: int) -> Split[T]:
    """n examples at random for steering; of the rest 10 % for dev and 90 % for test.

    A group that is larger than the room left in steering or dev goes on to the next part, so dev may fall short by
    less than a group.

    Raises:
        DatasetError: not n examples in groups that fit, or nothing left for dev or test.
    """
    check_size(n)
    groups = _shuffled_groups(items, keys, seed)
    steering, groups = _fill(groups, n)
    rest = sum(map(len, groups))
    dev, groups = _fill(groups, round(DEV_SHARE * rest))
    test = [item for group in groups for item in group]
    if len(steering) < n or not dev or not test:
        counts = f"{len(items)} examples give {len(steering)} for steering, {len(dev)} for dev and {len(test)} for test"
        raise DatasetError(f"{counts}; asked were {n} for steering. Take a smaller n, or more data.")
    return Split("paper", seed, tuple(steering), tuple(dev), tuple(test))


def cut(items: Sequence[T], *, kind: str, keys: Keys[T], n: int = N_STEERING, seed: int) -> Split[T]:
    """`paper_split` or, for the kind "release", `release_split_which_leaks`."""
    check_kind(kind)
    if kind == "release":
        return release_split_which_leaks(items, n=n)
    return paper_split(items, keys=keys, n=n, seed=seed)


def check_kind(kind: str, *, no_release: str = "") -> None:
    """Refuse a kind of split that does not exist; `no_release` says why a dataset has none of that kind.

    Raises:
        DatasetError: it does not exist.
    """
    if kind not in ("paper", "release"):
        raise DatasetError(f"there is no split of the kind {kind!r}; there are 'paper' and 'release'")
    if kind == "release" and no_release:
        raise DatasetError(f"the released code {no_release}, so there is no split of its kind; use 'paper'")


def check_size(n: int) -> None:
    """Refuse a number of steering examples that cannot be.

    Raises:
        TypeError: it is no whole number.
        DatasetError: it is below 1.
    """
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n is {n!r}; expected a whole number of examples")
    if n < 1:
        raise DatasetError(f"{n} examples for steering were asked for; at least 1 is needed")


def own_split(train: Sequence[T], test: Sequence[T], *, keys: Keys[T], n: int = N_STEERING, seed: int) -> Split[T]:
    """For a dataset with splits of its own: n of the training examples for steering, the others dev, and its test set.

    Training examples that share a key with a test example are left out.

    Raises:
        DatasetError: not n + 1 training examples are left, or there is no test example.
    """
    check_size(n)
    in_test = {key for item in test for key in keys(item)}
    left_out: list[T] = []
    groups: list[list[T]] = []
    for group in _shuffled_groups(train, keys, seed):
        if any(key in in_test for item in group for key in keys(item)):
            left_out += group
        else:
            groups.append(group)
    steering, groups = _fill(groups, n)
    dev = [item for group in groups for item in group]
    if len(steering) < n or not dev or not test:
        counts = f"{len(train)} training examples, {len(left_out)} of which repeat test examples, and {len(test)} tests"
        raise DatasetError(f"{counts} do not give {n} for steering and some for dev. Take a smaller n, or more data.")
    return Split("paper", seed, tuple(steering), tuple(dev), tuple(test), tuple(left_out))


def release_split_which_leaks(items: Sequence[T], *, n: int = N_STEERING) -> Split[T]:
    """What the released code does: steer on the first n rows, test on all rows, those n among them; no dev set.

    Only for comparison with numbers that were made this way: the test set contains the steering set.
    """
    check_listed("items", items, "a list of examples")
    check_size(n)
    if len(items) < n:
        raise DatasetError(f"{len(items)} examples are fewer than the {n} asked for")
    return Split("release", 0, tuple(items[:n]), (), tuple(items))


def _shuffled_groups(items: Sequence[T], keys: Keys[T], seed: int) -> list[list[T]]:
    """Examples linked by shared keys, as groups in an order that only the seed and the keys decide."""
    check_listed("items", items, "a list of examples")
    if not items:
        return []
    keys_of = [tuple(sorted(set(keys(item)))) for item in items]
    n_with_keys = Counter(keys_of)

    def rank(i: int) -> tuple[tuple[str, ...], str]:
        """By the keys; among examples of the same keys the content decides, as the order of rows must not."""
        return keys_of[i], digest([items[i]]) if n_with_keys[keys_of[i]] > 1 else ""

    component = _components(keys_of)
    groups: dict[int, list[T]] = {}
    for i in sorted(range(len(items)), key=rank):
        groups.setdefault(component[i], []).append(items[i])
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _components(keys_of: Sequence[tuple[str, ...]]) -> list[int]:
    """The number of each example's group: the connected components of the graph that links examples to their keys."""
    node_of_key: dict[str, int] = {}  # the nodes after those of the examples
    from_examples: list[int] = []
    to_keys: list[int] = []
    for i, its_keys in enumerate(keys_of):
        for key in its_keys:
            from_examples.append(i)
            to_keys.append(node_of_key.setdefault(key, len(keys_of) + len(node_of_key)))
    size = len(keys_of) + len(node_of_key)
    links = np.ones(len(to_keys), dtype=bool)
    graph = coo_array((links, (from_examples, to_keys)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return [int(number) for number in component[: len(keys_of)]]


def _fill(groups: Sequence[list[T]], n: int) -> tuple[list[T], list[list[T]]]:
    """As many examples of whole groups as fit into n, and the groups that are left, both in order."""
    taken: list[T] = []
    left: list[list[T]] = []
    for group in groups:
        if len(taken) + len(group) <= n:
            taken += group
        else:
            left.append(group)
    return taken, left
