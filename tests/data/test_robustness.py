"""Whatever a pair file or a task file holds: it is read as the fields promise, or refused in a readable sentence."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from robustness import pairs as robustness

from grains_ref.data import containers

pytestmark = pytest.mark.cpu


@pytest.fixture
def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a path read as the given bytes, without the disk's time for thousands of files."""
    path = tmp_path / "pairs.x"
    path.write_bytes(b"")
    content = [b""]
    monkeypatch.setattr(containers, "read_whole", lambda file, *, limit: content[0])

    def place(data: bytes) -> Path:
        content[0] = data
        return path

    return place


@pytest.mark.parametrize(("fuzz", "n"), [(robustness.fuzz_pairs, 1000), (robustness.fuzz_tasks, 200)])
def test_spoilt_files_of_every_shape_are_read_without_loss_or_refused(placed: Any, fuzz: Any, n: int) -> None:
    outcomes = Counter[str]()
    for seed in range(n):
        content, check = fuzz(random.Random(seed))
        try:
            outcomes[check(placed(content))] += 1
        except Exception as error:
            error.add_note(f"{fuzz.__name__}(random.Random({seed})) gave {content[:1000]!r}")
            raise
    assert min(outcomes["ok"], outcomes["typed error"]) > n / 5  # neither all right nor all wrong


def test_flipped_bits_in_parquet_are_a_typed_error(placed: Any) -> None:
    pytest.importorskip("pyarrow", reason="comes with the extra eval")
    for seed in range(30):
        content, check = robustness.fuzz_parquet(random.Random(seed))
        assert check(placed(content)) in ("ok", "typed error")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(robustness.ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(robustness.NAMES), inner, max_size=4),
    max_leaves=8,
)
STARTS = (b"", b"{", b"[", b"\x1f\x8b", b"prompt,chosen,rejected\n")
SETTINGS = settings(
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ROW = st.dictionaries(st.sampled_from(robustness.NAMES) | st.text(max_size=5), JSON, max_size=8)


@SETTINGS
@given(rows=st.lists(ROW, min_size=1, max_size=2), as_array=st.booleans())
def test_any_object_is_a_pair_or_a_row_error(placed: Any, rows: list[dict[str, Any]], as_array: bool) -> None:
    text = json.dumps(rows) if as_array else "\n".join(json.dumps(row) for row in rows)
    for check in (robustness.check_pairs, robustness.check_tasks):
        robustness.check_spoilt_rows(placed(text.encode()), rows, check)


@settings(max_examples=150, suppress_health_check=["function_scoped_fixture"], deadline=None)
@given(
    content=st.binary(max_size=200), start=st.sampled_from([b"", b"{", b"[", b"\x1f\x8b", b"prompt,chosen,rejected\n"])
)
def test_any_bytes_are_refused_in_a_readable_sentence(placed: Any, content: bytes, start: bytes) -> None:
    assert robustness.check_pairs(placed(start + content)) in ("ok", "typed error")


def test_the_generators_are_the_same_for_a_seed() -> None:
    for fuzz in (robustness.fuzz_pairs, robustness.fuzz_tasks):
        assert [fuzz(random.Random(7))[0] for _ in range(2)] == [fuzz(random.Random(7))[0]] * 2
