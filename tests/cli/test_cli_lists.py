"""Lists of layers, whole numbers and strengths on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grains_ref.cli.lists import parse_layers, parse_strengths, parse_whole_numbers, write_layers

pytestmark = pytest.mark.cpu


# --- layers


@pytest.mark.parametrize(
    ("text", "n_layers", "layers"),
    [
        ("all", 4, [0, 1, 2, 3]),
        (" all ", 2, [0, 1]),
        ("8-10, 3,12", 13, [8, 9, 10, 3, 12]),
        ("3-3", 4, [3]),
        ("0", 1, [0]),
        ("007", 8, [7]),
    ],
)
def test_layers_are_read_as_written(text: str, n_layers: int, layers: list[int]) -> None:
    assert parse_layers(text).of(n_layers) == layers


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=5))
def test_layers_are_each_named_once_and_in_order(parts: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{last}" if last != first else str(first) for first, last in parts)
    numbers = [layer for first, last in parts for layer in range(first, last + 1)]
    if any(last < first for first, last in parts) or len(set(numbers)) < len(numbers):
        with pytest.raises(ValueError, match=r"runs backwards|is named twice"):
            parse_layers(text)
    else:
        assert parse_layers(text).of(31) == numbers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read; write 'all' or for instance '8-15,20'"),
        ("1,", "cannot be read"),
        (",1", "cannot be read"),
        ("1,,2", "cannot be read"),
        ("-1", "cannot be read"),
        ("1--2", "cannot be read"),
        ("1-2-3", "cannot be read"),
        ("1.5", "cannot be read"),
        ("\u0663", "cannot be read"),  # a digit three, but not one that anybody meant
        ("1" * 5000, "cannot be read"),
        ("all,1", "cannot be read"),
        ("3-1", "the range 3-1 runs backwards; write 1-3"),
        ("4,3-1", "the range 3-1 runs backwards; write 1-3"),
        ("1-3,2", "layer 2 is named twice"),
        ("2,1-3", "layer 2 is named twice"),
        ("0-4,4-8", "layer 4 is named twice"),
        ("4-8,0-4", "layer 4 is named twice"),
    ],
)
def test_what_are_no_layers_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^layers ") as error:
        parse_layers(text)
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["4", "2-4", "0-9999999999", "999999999999999999", "0-3,4-999999999999999999"])
def test_a_range_is_not_written_out_before_it_is_known_to_exist(text: str) -> None:
    with pytest.raises(ValueError, match=f"layers {text!r} do not exist: the model has layers 0 to 3"):
        parse_layers(text).of(4)


@pytest.mark.parametrize(
    ("layers", "text"), [([0, 1, 2, 3], "0-3"), ([5], "5"), ([2, 1, 0], "2,1,0"), ([8, 9, 20, 3, 4], "8-9,20,3-4")]
)
def test_layers_are_written_as_ranges(layers: list[int], text: str) -> None:
    assert write_layers(layers) == text


@given(st.lists(st.integers(0, 12), min_size=1, max_size=10, unique=True))
def test_layers_that_were_written_are_read_again(layers: list[int]) -> None:
    assert parse_layers(write_layers(layers)).of(13) == layers


# --- numbers


def test_whole_numbers_are_read_as_written() -> None:
    assert parse_whole_numbers("3, 1,20", "--k", least=1) == [3, 1, 20]
    assert parse_whole_numbers("0", "--seeds", least=0) == [0]


@pytest.mark.parametrize("text", ["", "1,", "1,,2", "0", "-1", "1.0", "1e3", "nan", "three", "9" * 5000])
def test_what_are_no_whole_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--k .* cannot be read; write whole numbers of at least 1 with commas"):
        parse_whole_numbers(text, "--k", least=1)


def test_strengths_are_read_as_written() -> None:
    assert parse_strengths("0.4, 1,-2,1e1", "--lam") == [0.4, 1.0, -2.0, 10.0]


@pytest.mark.parametrize("text", ["", "1,", "1,,2", "nan", "1,inf", "-Infinity", "1e999", "strong", "1;2"])
def test_what_are_no_strengths_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--lam .* cannot be read; write finite numbers with commas"):
        parse_strengths(text, "--lam")


def test_a_number_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="--k: 3 is named twice; name it once"):
        parse_whole_numbers("3,1,03", "--k", least=1)
    with pytest.raises(ValueError, match=r"--lam: 1\.0 is named twice; name it once"):
        parse_strengths("1,2,1.0", "--lam")


# --- what a hand or a script may put there


@pytest.mark.parametrize("text", ["1_0", "\u0663", "infinity", "nan", "1e400", "0x10", "1e", ".", "1 2", "--1"])
def test_a_strength_is_written_as_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be read; write finite numbers"):
        parse_strengths(f"1,{text}", "--lam")


@pytest.mark.parametrize("text", ["1", "-1", "+.5", "2.", "1e3", "1.5E-3", " 1 "])
def test_ways_to_write_a_strength(text: str) -> None:
    assert parse_strengths(text, "--lam") == [float(text)]


def test_messages_quote_the_beginning_of_a_long_list() -> None:
    for parse in (
        parse_layers,
        lambda text: parse_layers(text.replace("x", "")).of(3),
        lambda text: parse_strengths(text, "--lam"),
        lambda text: parse_whole_numbers(text, "--k", least=1),
    ):
        with pytest.raises(ValueError, match=r"0,1,2,3") as caught:
            parse(",".join(map(str, range(5000))) + "x")
        assert len(str(caught.value)) < 200


def test_many_entries_take_no_time_and_ranges_no_memory() -> None:
    """A quadratic search would take a minute here."""
    many = ",".join(str(2 * i) for i in range(30_000))
    assert parse_layers(many).of(60_000)[-1] == 59_998
    assert len(parse_strengths(many, "--lam")) == 30_000
    assert len(parse_whole_numbers(many, "--k", least=0)) == 30_000
    assert parse_layers("0-9999999999").ranges == (range(10**10),)
    with pytest.raises(ValueError, match="layer 59998 is named twice"):
        parse_layers(f"{many},59998")
