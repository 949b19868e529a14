"""vectors.py: the invariant, the file, and the arithmetic."""

from __future__ import annotations

import math
import os
import stat
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grains_ref.vectors import MismatchError, SteeringVectors, VectorFileError, check_fits, compose
from grains_ref.vectors.header import Header, VectorError, library_versions
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

pytestmark = pytest.mark.cpu

HEADER = Header(
    dialect="paper",
    hyper_parameters={"k": 3, "m": 5, "baseline": "zero"},
    model_name="tiny",
    fingerprint="f0",
    data_digest="d0",
    tokens_digest="t0",
    n_examples=50,
    versions={"torch": "2"},
    diagnostics={},
)
FLOATS = st.floats(-1e3, 1e3, width=32)
WEIGHTS = st.floats(-8, 8)


def make(v_pos: Tensor, v_neg: Tensor, **header: Any) -> SteeringVectors:
    changes = {"diagnostics": {"explained": [0.5**i for i in range(len(v_pos))]}} | header
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=replace(HEADER, **changes))


def sample(seed: int = 0, n_layers: int = 3, width: int = 4, **header: Any) -> SteeringVectors:
    v_pos, v_neg = torch.randn(2, n_layers, width, generator=torch.Generator().manual_seed(seed))
    return make(v_pos, v_neg, **header)


@st.composite
def vectors(draw: Any, shape: tuple[int, int] = (2, 3)) -> SteeringVectors:
    rows = st.lists(FLOATS, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return make(*(torch.tensor(draw(rows), dtype=torch.float32).reshape(shape) for _ in range(2)))


def arrays(a: SteeringVectors) -> tuple[Tensor, Tensor, Tensor]:
    return a.v, a.v_pos, a.v_neg


def same(a: SteeringVectors, b: SteeringVectors) -> bool:
    return all(torch.equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


def close(a: SteeringVectors, b: SteeringVectors, size: float) -> bool:
    return all((x - y).abs().max() <= 1e-5 * size for x, y in zip(arrays(a), arrays(b), strict=True))


def write(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    path.write_bytes(tensor_file(tensors, record))
    return path


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return parse_tensor_file(path.read_bytes(), name=str(path))


# --- construction


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": torch.zeros(3)}, r"v has the shape \(3,\), expected \(layers, width\)"),
        ({"v": torch.zeros(0, 4)}, r"v has the shape \(0, 4\)"),
        ({"v_neg": torch.zeros(3, 5)}, r"v_neg has the shape \(3, 5\), expected \(3, 4\)"),
        ({"v_pos": torch.zeros(3, 4).double()}, r"v_pos is torch.float64 on cpu.*v_pos.float\(\).cpu\(\)"),
        ({"v_pos": torch.zeros(3, 4, device="meta")}, "v_pos is torch.float32 on meta"),
    ],
)
def test_a_tensor_of_another_shape_or_kind_is_refused(change: dict[str, Tensor], words: str) -> None:
    a = sample()
    tensors = {"v": a.v, "v_pos": a.v_pos, "v_neg": a.v_neg} | change
    with pytest.raises(VectorError, match=words):
        SteeringVectors(**tensors, header=HEADER)


@pytest.mark.parametrize("name", ["v", "v_pos", "v_neg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_first_layer(name: str, value: float) -> None:
    tensors = {"v": sample().v, "v_pos": sample().v_pos, "v_neg": sample().v_neg}
    tensors[name] = tensors[name].clone()
    tensors[name][1:, 2] = value
    with pytest.raises(VectorError, match=f"{name} is not finite, first at layer 1"):
        SteeringVectors(**tensors, header=HEADER)


def test_v_other_than_the_difference_of_its_parts_is_refused_with_its_layer() -> None:
    a = sample()
    wrong = a.v.clone()
    wrong[2] = a.v_pos[2] + a.v_neg[2]
    with pytest.raises(VectorError, match="v is not v_pos - v_neg at layer 2"):
        SteeringVectors(v=wrong, v_pos=a.v_pos, v_neg=a.v_neg, header=HEADER)


def test_rounding_of_v_is_no_violation_even_where_the_parts_nearly_cancel() -> None:
    v_pos = torch.full((1, 4), 1000.0).double() + torch.linspace(0, 1e-3, 4).double()
    v_neg = torch.full((1, 4), 1000.0).double()
    SteeringVectors(v=(v_pos - v_neg).float(), v_pos=v_pos.float(), v_neg=v_neg.float(), header=HEADER)


# --- the file


@settings(max_examples=15, deadline=None)
@given(original=vectors())
def test_saving_and_loading_gives_the_same_bits(tmp_path_factory: Any, original: SteeringVectors) -> None:
    path = tmp_path_factory.mktemp("v") / "v.safetensors"
    original.save(path)
    loaded = SteeringVectors.load(path)
    for x, y in zip(arrays(original), arrays(loaded), strict=True):
        assert torch.equal(x.view(torch.int32), y.view(torch.int32))  # bits, so that -0.0 counts too
    assert loaded.header == original.header


def test_the_file_is_laid_out_as_documented(tmp_path: Path) -> None:
    a = sample(n_layers=12)
    a.save(tmp_path / "v")
    tensors, record = contents(tmp_path / "v")
    assert record == asdict(a.header)
    assert set(tensors) == {f"layer.{i}{part}" for i in range(12) for part in ("", ".pos", ".neg")}
    for i in range(12):
        assert torch.equal(tensors[f"layer.{i}"], a.v[i])
        assert torch.equal(tensors[f"layer.{i}.pos"], a.v_pos[i])
        assert torch.equal(tensors[f"layer.{i}.neg"], a.v_neg[i])


def test_twelve_layers_come_back_in_order(tmp_path: Path) -> None:
    a = sample(n_layers=12)
    a.save(tmp_path / "v")
    assert same(SteeringVectors.load(tmp_path / "v"), a)


def test_equal_vectors_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        sample().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loaded_vectors_do_not_change_when_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "v"
    sample().save(path)
    loaded = SteeringVectors.load(path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert same(loaded, sample())


def test_tensors_that_track_gradients_or_are_transposed_can_be_saved(tmp_path: Path) -> None:
    v_pos = torch.randn(4, 3).T.requires_grad_()
    make(v_pos, torch.zeros(3, 4)).save(tmp_path / "v")
    assert torch.equal(SteeringVectors.load(tmp_path / "v").v, v_pos.detach())


@pytest.mark.parametrize("culprit", ["replace", "fsync"])
def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: Any, culprit: str) -> None:
    path = tmp_path / "v.safetensors"
    sample(1).save(path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, culprit, fail)
    with pytest.raises(OSError, match="disk full"):
        sample(2).save(path)
    assert same(SteeringVectors.load(path), sample(1))
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_complete_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: Any) -> None:
    events: list[str] = []
    really_replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda _: events.append("fsync"))

    def replace_file(source: Any, target: Any) -> None:
        events.append("replace")
        assert Path(source).parent == Path(target).parent
        assert same(SteeringVectors.load(source), sample())
        really_replace(source, target)

    monkeypatch.setattr(os, "replace", replace_file)
    sample().save(tmp_path / "v")
    assert events == ["fsync", "replace", "fsync"]  # the last is the folder's
    assert list(tmp_path.iterdir()) == [tmp_path / "v"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_a_saved_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    sample().save(tmp_path / "v")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "v")]
    assert modes[0] == modes[1]


def test_saving_where_nothing_can_be_written_is_refused_and_creates_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VectorFileError, match="is a folder; name a file in it"):
        sample().save(tmp_path)
    with pytest.raises(VectorFileError, match=r"there is no folder .*new\. Make it first"):
        sample().save(tmp_path / "new" / "v.safetensors")
    with pytest.raises(VectorFileError, match="no regular file"):
        sample().save(tmp_path / "pipe")
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


def test_loading_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in {"none": "none does not exist", "": "it is a folder", "pipe": "it is no regular file"}.items():
        with pytest.raises(VectorFileError, match=words):
            SteeringVectors.load(tmp_path / name)


def test_a_file_that_is_cut_is_refused_as_truncated(tmp_path: Path) -> None:
    path = tmp_path / "v"
    sample(n_layers=1, width=2).save(path)
    whole = path.read_bytes()
    for cut in (0, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(VectorFileError, match="truncated, corrupt"):
            SteeringVectors.load(path)


@pytest.mark.parametrize("content", [b"GGUF" + b"\0" * 60, b"{}", b"\xff" * 64])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(VectorFileError, match="no safetensors file"):
        SteeringVectors.load(tmp_path / "v")


@pytest.mark.parametrize(
    ("drop", "add", "words"),
    [
        ([], {"layer.9.pos": torch.zeros(4)}, "missing tensors: none; unexpected: layer.9.pos"),
        ([], {"layer.01": torch.zeros(4)}, "unexpected: layer.01"),
        (["layer.2.neg"], {}, "missing tensors: layer.2.neg; unexpected: none"),
        (
            ["layer.1", "layer.1.pos", "layer.1.neg"],
            {},
            "missing tensors: layer.1, layer.1.neg, layer.1.pos;",
        ),
        (["layer.0", "layer.0.pos", "layer.0.neg"], {}, "missing tensors: layer.0, "),
        ([], {"layer.1": torch.zeros(5)}, r"layer.1 is torch.float32 of shape \(5,\), expected .* \(4,\)"),
        ([], {"layer.2.pos": torch.zeros(1, 4)}, r"layer.2.pos is .* of shape \(1, 4\)"),
        ([], {"layer.0": torch.zeros(2, 2)}, r"layer.0 is .* of shape \(2, 2\)"),
        ([], {"layer.1": torch.zeros(4).double()}, "layer.1 is torch.float64"),
        ([], {"layer.1": torch.full((4,), torch.nan)}, "v is not finite, first at layer 1"),
        ([], {"layer.1": torch.full((4,), 9.0)}, "v is not v_pos - v_neg at layer 1"),
    ],
)
def test_a_file_with_wrong_tensors_is_refused_by_name(
    tmp_path: Path, drop: list[str], add: dict[str, Tensor], words: str
) -> None:
    sample().save(tmp_path / "v")
    tensors, record = contents(tmp_path / "v")
    for name in drop:
        del tensors[name]
    with pytest.raises(VectorFileError, match=words) as caught:
        SteeringVectors.load(write(tmp_path / "w", tensors | add, record))
    assert str(caught.value).startswith(str(tmp_path / "w"))


def test_a_file_without_any_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorFileError, match=r"missing tensors: layer.0, layer.0.neg, layer.0.pos"):
        SteeringVectors.load(write(tmp_path / "v", {}, asdict(HEADER)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "newer grains_ref.*Upgrade"),
        ({"format_version": "1"}, "must be an integer from 1, found '1'"),
        ({"dialect": 3}, "'dialect' must be of type str"),
        ({"lambda": 2}, "unknown keys: lambda"),
        ({"diagnostics": {"gap": [1.0, 2.0]}}, "'gap' of 'diagnostics' must be a list of 3 numbers"),
        ({"diagnostics": {"gap": [1.0, 2.0, "3"]}}, "'gap' of 'diagnostics' must be a list of 3 numbers"),
        ({"diagnostics": {"gap": [1.0, [], 2.0]}}, "must be one value or a list of numbers"),
        ({"diagnostics": {"gap": {}}}, "must be one value or a list of numbers"),
        ({"choice": {"lam": 1.0, "layers": [0, 3]}}, r"'choice' names the layers \[3\]; there are 0 to 2"),
        ({"hyper_parameters": {"composed_of": [{}]}}, "part 0 of 'composed_of' must have exactly the keys"),
    ],
)
def test_a_file_with_a_wrong_header_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    sample().save(tmp_path / "v")
    tensors, record = contents(tmp_path / "v")
    with pytest.raises(VectorFileError, match=words) as caught:
        SteeringVectors.load(write(tmp_path / "w", tensors, record | change))
    assert str(caught.value).startswith(str(tmp_path / "w"))


# --- fitting a model

FITTING: dict[str, Any] = {"n_layers": 3, "width": 4, "fingerprint": "f0", "model_name": "other"}


@pytest.mark.parametrize("force", [False, True])
def test_vectors_fit_the_model_they_were_made_with(force: bool) -> None:
    check_fits(sample(), **FITTING, force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("change", [{"n_layers": 4}, {"n_layers": 2}, {"width": 5}, {"width": 1}])
def test_another_depth_or_width_is_refused_even_by_force(change: dict[str, int], force: bool) -> None:
    with pytest.raises(MismatchError, match=r"'tiny', have 3 layers of width 4; .*'other'.*cannot be forced"):
        check_fits(sample(), **FITTING | change, force=force)


def test_another_fingerprint_is_refused_unless_forced() -> None:
    with pytest.raises(MismatchError, match=r"'f0'.*'other' has 'f1'.*--force"):
        check_fits(sample(), **FITTING | {"fingerprint": "f1"})
    check_fits(sample(), **FITTING | {"fingerprint": "f1"}, force=True)


CHATS = {"chat_template": "c0", "date": "2024-07-26"}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"chat_template": "c1", "date": "2024-07-26"}, "in another chat template than 'other' has now"),
        (
            {"chat_template": "c0", "date": "2024-07-27"},
            "the date 2024-07-26; now it writes 2024-07-27.*--date 2024-07-26",
        ),
    ],
)
def test_chats_that_become_other_tokens_are_told(now: dict[str, str], words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        check_fits(sample(**CHATS), **FITTING, **now)


def test_nothing_is_told_where_no_template_differs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fits(sample(**CHATS), **FITTING, **CHATS)
        check_fits(sample(**CHATS), **FITTING)  # prompts are plain texts
        check_fits(sample(), **FITTING, **CHATS)  # so were the pairs


def test_a_sum_says_whether_its_parts_went_through_one_template() -> None:
    one, other = sample(**CHATS), sample(seed=1, **CHATS | {"date": "2024-07-27"})
    assert ((one + one).header.chat_template, (one + one).header.date) == ("c0", "2024-07-26")
    assert ((one + other).header.chat_template, (one + other).header.date) == ("c0", "various")
    assert ("date in the chats", "2024-07-26") in one.summary()


# --- arithmetic


@settings(max_examples=15, deadline=None)
@given(a=vectors(), b=vectors())
def test_addition_commutes_and_is_elementwise(a: SteeringVectors, b: SteeringVectors) -> None:
    assert same(a + b, b + a)
    assert torch.equal((a + b).v_pos, a.v_pos + b.v_pos)
    assert torch.equal((a + b).v_neg, a.v_neg + b.v_neg)
    assert ((a + b).v - (a.v + b.v)).abs().max() <= 2e-3  # rounding of values up to 4000


@settings(max_examples=15, deadline=None)
@given(a=vectors())
def test_simple_identities_hold_bit_for_bit(a: SteeringVectors) -> None:
    assert all((tensor == 0).all() for tensor in arrays(a - a))
    assert same(2 * a, a + a)
    assert same(2 * a, a * 2.0)
    assert same(1.0 * a, a)
    negative = -a
    assert same(-negative, a)
    assert same(negative, -1 * a)


def test_negation_and_scaling_act_on_all_three_arrays() -> None:
    a = sample()
    for weight, b in ((-1.0, -a), (-0.5, -0.5 * a), (4.0, a * 4)):
        assert all(torch.equal(y, weight * x) for x, y in zip(arrays(a), arrays(b), strict=True))


def test_subtraction_is_the_sum_with_the_negative() -> None:
    a, b = sample(1), sample(2)
    assert same(a - b, a + (-b))
    assert torch.equal((a - b).v_pos, a.v_pos - b.v_pos)


@settings(max_examples=15, deadline=None)
@given(a=vectors(), b=vectors(), s=WEIGHTS, t=WEIGHTS, u=WEIGHTS)
def test_compose_is_linear(a: SteeringVectors, b: SteeringVectors, s: float, t: float, u: float) -> None:
    size = 1e3 * 8 * 8 * 4
    assert close(compose([(s, a), (t, b)]), s * a + t * b, size)
    assert close(u * compose([(s, a), (t, b)]), compose([(u * s, a), (u * t, b)]), size)
    assert close(compose([(s, a), (t, a)]), (s + t) * a, size)
    assert close(compose([(s, a), (t, b)]), compose([(t, b), (s, a)]), size)


@settings(max_examples=15, deadline=None)
@given(a=vectors(), b=vectors(), s=WEIGHTS, t=WEIGHTS)
def test_v_stays_the_difference_of_its_parts(a: SteeringVectors, b: SteeringVectors, s: float, t: float) -> None:
    c = compose([(s, a), (t, b)])
    assert torch.equal(c.v, c.v_pos - c.v_neg)


def test_two_nearly_equal_vectors_can_be_subtracted() -> None:
    v_pos, v_neg = (torch.randn(2, 64, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))
    a, b = (
        SteeringVectors(v=(v_pos * s - v_neg).float(), v_pos=(v_pos * s).float(), v_neg=v_neg.float(), header=HEADER)
        for s in (1.0, 1.0 + 1e-6)
    )  # v is rounded once from float64, so it is not exactly the difference of the rounded parts
    difference = b - a
    assert 0 < difference.v.abs().max() < 1e-5


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), True, "2", None, 10**400])
def test_a_weight_that_is_no_finite_number_is_refused(weight: Any) -> None:
    with pytest.raises(VectorError, match="finite number"):
        compose([(weight, sample())])
    with pytest.raises(VectorError, match="finite number"):
        sample() * weight


def test_nothing_to_compose_is_refused() -> None:
    with pytest.raises(VectorError, match="at least one"):
        compose([])


def test_adding_something_else_is_a_type_error_that_names_compose() -> None:
    with pytest.raises(TypeError, match=r"found int; compose\(\)"):
        sample() + 3  # type: ignore[operator]


def test_a_product_of_weights_that_overflows_is_refused() -> None:
    with pytest.raises(VectorError, match="must have a finite weight"):
        compose([(1e308, 10.0 * sample())])


def test_an_overflow_is_refused_with_its_layer() -> None:
    with pytest.raises(VectorError, match="not finite, first at layer 0"):
        1e39 * sample()


@pytest.mark.parametrize("combine", [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: compose([(2, a), (0, b)])])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        (sample(n_layers=2), r"shapes \(3, 4\) and \(2, 4\)"),
        (sample(width=5), r"shapes \(3, 4\) and \(3, 5\)"),
        (sample(n_layers=1), r"shapes \(3, 4\) and \(1, 4\)"),  # torch would broadcast it
        (sample(fingerprint="f1"), "'fingerprint' differs: 'f0' and 'f1'"),
        (sample(site="attention"), "'site' differs"),
        (sample(dialect="authors"), "'dialect' differs"),
        (sample(layer_numbering="from 1"), "'layer_numbering' differs"),
    ],
)
def test_vectors_that_do_not_belong_together_are_refused(combine: Any, other: SteeringVectors, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        combine(sample(), other)


def test_the_header_of_a_sum_tells_its_parts() -> None:
    a = sample(hyper_parameters={"k": 1}, data_digest="a", n_examples=50, choice={"lam": 2, "layers": [0]})
    b = sample(hyper_parameters={"k": 2}, data_digest="b", n_examples=7)
    header = compose([(2.0, a), (-0.5, b)]).header
    assert header.hyper_parameters == {
        "composed_of": [
            {"weight": 2.0, "hyper_parameters": {"k": 1}, "data_digest": "a", "tokens_digest": "t0", "n_examples": 50},
            {"weight": -0.5, "hyper_parameters": {"k": 2}, "data_digest": "b", "tokens_digest": "t0", "n_examples": 7},
        ]
    }
    assert (header.n_examples, header.diagnostics, header.versions) == (57, {}, library_versions())
    assert header.choice == {}  # a strength was chosen for a part, not for the sum
    unchanged = ("format_version", "site", "layer_numbering", "dialect", "model_name", "fingerprint")
    assert all(getattr(header, name) == getattr(a.header, name) for name in unchanged)


@pytest.mark.parametrize("name", ["data_digest", "tokens_digest"])
def test_a_digest_of_a_sum_sees_digests_and_weights(name: str) -> None:
    a, b, c = (sample(**{name: text}) for text in "abc")
    digests = [getattr(x.header, name) for x in (a, a * 1, a * 2, a + b, b + a, a - b, a + c)]
    assert len(set(digests)) == len(digests)
    assert getattr((a + b).header, name) == getattr((a + b).header, name)


def test_a_sum_of_sums_stays_a_flat_list() -> None:
    a, b, c = (sample(hyper_parameters={"k": k}, data_digest=str(k)) for k in range(3))
    assert ((a + b) + c).header == (a + (b + c)).header
    parts = (2.0 * (a - 3.0 * b)).header.hyper_parameters["composed_of"]
    assert [(part["weight"], part["hyper_parameters"]["k"]) for part in parts] == [(2.0, 0), (-6.0, 1)]


def test_a_sum_can_be_saved_and_loaded(tmp_path: Path) -> None:
    total = sample(1) - 0.3 * sample(2)
    total.save(tmp_path / "v")
    assert SteeringVectors.load(tmp_path / "v").header == total.header


# --- looking at vectors


def test_norms_are_the_three_lengths_and_the_cosine_of_the_parts() -> None:
    v_pos, v_neg = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    first, second = make(v_pos, v_neg).norms()
    assert first == pytest.approx((13**0.5, 5.0, 2.0, 0.8))
    assert second == pytest.approx((3.0, 1.0, 2.0, -1.0))


def test_norms_do_not_overflow_and_a_zero_part_has_no_cosine() -> None:
    big = make(torch.full((1, 4), 1e30), torch.full((1, 4), -1e30)).norms()[0]
    assert big == pytest.approx((4e30, 2e30, 2e30, -1.0))
    (length, _, zero, cosine) = make(torch.ones(1, 4), torch.zeros(1, 4)).norms()[0]
    assert (length, zero) == (2.0, 0.0)
    assert math.isnan(cosine)


def test_a_summary_says_in_words_what_the_header_holds() -> None:
    rows = dict(sample().summary())
    assert rows["site"] == "raw output of each decoder block, before the final norm"
    assert rows["layers"] == "3 (0-based decoder block, 0 to 2)"
    assert rows["width"] == "4"
    assert (rows["dialect"], rows["model"], rows["model fingerprint"]) == ("paper", "tiny", "f0")
    assert (rows["examples"], rows["data digest"], rows["tokens digest"]) == ("50", "d0", "t0")
    assert rows["hyper-parameters"] == "k=3, m=5, baseline=zero"
    assert (rows["versions"], rows["diagnostics"]) == ("torch=2", "explained=[1 0.5 0.25]")
    assert rows["chosen by a sweep"] == "none"
    chosen = sample(choice={"lam": 2.5, "layers": [1, 2], "dev_accuracy": 0.625})
    assert dict(chosen.summary())["chosen by a sweep"] == "lam=2.5, layers=[1 2], dev_accuracy=0.625"


def test_a_summary_writes_control_characters_out() -> None:
    hostile = sample(model_name="\x1b[2Jtiny\r\n", hyper_parameters={"\x1b]0;k\x07": "\u202e3"}, site="\ud800")
    rows = dict(hostile.summary())
    assert (rows["model"], rows["site"]) == (r"\x1b[2Jtiny\r\n", r"\ud800")
    assert rows["hyper-parameters"] == r"\x1b]0;k\x07=\u202e3"


def test_a_summary_of_a_sum_shows_the_weights() -> None:
    a, b = sample(hyper_parameters={"k": 1}), sample(hyper_parameters={"k": 2}, site="elsewhere")
    assert dict(b.summary())["site"] == "elsewhere"
    assert dict((a - 0.5 * a).summary())["hyper-parameters"] == "+1 * (k=1) -0.5 * (k=1)"
