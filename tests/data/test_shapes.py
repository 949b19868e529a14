"""Rows as trl, ms-swift and LLaMA-Factory write them: read to the same pair, or refused; no content is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from grains_ref.data import PreferencePair, RowError, content_digest, read_pairs
from grains_ref.data.columns import carries_content
from grains_ref.files import printable

pytestmark = pytest.mark.cpu

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
ANSWERS = {"chosen": "c", "rejected": "r"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "s"}


def read(folder: Path, row: dict[str, Any]) -> PreferencePair:
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    return read_pairs(path).pairs[0]


def refused(folder: Path, row: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as caught:
        read(folder, row)
    return caught.value


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


# --- the page


def test_every_block_of_the_page_is_the_same_pair(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        for line in block.splitlines():
            pair = read(tmp_path, json.loads(line))
            prompt = pair.prompt if isinstance(pair.prompt, str) else [turn["content"] for turn in pair.prompt][-1]
            assert (prompt, pair.chosen, pair.rejected) == ("Is the earth flat?", "No.", "Yes.")


def test_the_pages_python_runs_and_its_picture_lies_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas", reason="comes with the extra eval")
    monkeypatch.chdir(tmp_path)
    picture = {"bytes": b"a picture", "path": None}
    pandas.DataFrame([GOOD | {"prompt": "<image> p", "image": picture}]).to_parquet("pairs.parquet")
    with pytest.raises(RowError, match="the picture itself is in the row"):
        read_pairs("pairs.parquet")
    reading, saving = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(saving, "data.md", "exec"), {})
    exec(compile(reading, "data.md", "exec"), {})
    (pair,) = read_pairs("pairs.jsonl").pairs
    assert pair.image is not None
    assert pair.image.read_bytes() == b"a picture"


# --- what is read

READ: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "a system column is the first turn": ({"messages": [user("p")], "system": "s"} | ANSWERS, [SYSTEM, user("p")]),
    "trl, explicit prompt and whole conversations": (
        {"prompt": [user("p")], "chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("r")]},
        [user("p")],
    ),
    "trl, several turns in common": (
        {
            "chosen": [SYSTEM, user("a"), assistant("b"), user("p"), assistant("c")],
            "rejected": [SYSTEM, user("a"), assistant("b"), user("p"), assistant("r")],
        },
        [SYSTEM, user("a"), assistant("b"), user("p")],
    ),
    "UltraFeedback": (
        {
            "prompt": "p",
            "prompt_id": "f" * 64,
            "messages": [user("p"), assistant("c")],
            "chosen": [user("p"), assistant("c")],
            "rejected": [user("p"), assistant("r")],
            "score_chosen": 8.0,
            "score_rejected": 1.0,
        },
        [user("p")],
    ),
    "parts of one text": (
        {"messages": [user([{"type": "text", "text": "p"}])], "chosen": [assistant("c")], "rejected": assistant("r")},
        [user("p")],
    ),
    "ms-swift, margin and loss": (
        {"messages": [user("p"), assistant("c") | {"loss": 1}], "rejected_response": "r", "margin": 0.5},
        [user("p")],
    ),
    "ms-swift, query with history": (
        {"query": "p", "response": "c", "rejected_response": "r", "system": "s", "history": [["a", "b"]]},
        [SYSTEM, user("a"), assistant("b"), user("p")],
    ),
    "LLaMA-Factory, sharegpt in OpenAI's names": (
        {"conversations": [user("p")], "chosen": assistant("c"), "rejected": assistant("r"), "tools": ""},
        [user("p")],
    ),
    "LLaMA-Factory, alpaca": (
        {"instruction": "a", "input": "b", "system": "s", "history": [["x", "y"]]} | ANSWERS,
        [SYSTEM, user("x"), assistant("y"), user("a\nb")],
    ),
    "alpaca without an instruction": ({"instruction": "", "input": "b"} | ANSWERS, [user("b")]),
    "an empty field of another shape": (GOOD | {"prompt": [user("p")], "messages": []}, [user("p")]),
}


@pytest.mark.parametrize("case", READ)
def test_a_row_of_another_tool_is_read_with_every_turn(tmp_path: Path, case: str) -> None:
    row, turns = READ[case]
    pair = read(tmp_path, row)
    assert (list(pair.prompt), pair.chosen, pair.rejected) == (turns, "c", "r")


def test_keys_of_turns_that_hold_no_content_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"messages": [user("p") | {"weight": 1, "name": "Ann"}], "score": 2} | ANSWERS))
    file = read_pairs(path)
    assert file.ignored_columns == ("messages[].weight", "messages[].name", "score")
    assert file.remarks == (f"{path}: not read, as it holds no content: {', '.join(file.ignored_columns)}",)


def test_remarks_name_a_few_columns_and_count_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD | {f"{'x' * 100}{i}": i for i in range(500)}))
    (remark,) = read_pairs(path).remarks
    assert remark.endswith("... and 496 more")
    assert len(remark) < len(str(path)) + 250


# --- pictures

IMAGES: dict[str, dict[str, Any]] = {
    "images of one": GOOD | {"prompt": "<image> p", "images": ["a.png"]},
    "images as a text": GOOD | {"images": "a.png"},
    "image in a list": GOOD | {"image": ["a.png"]},
    "image as the hub stores it": GOOD | {"image": {"bytes": None, "path": "a.png"}},
    "image and images the same": GOOD | {"image": "a.png", "images": ["a.png"]},
    "ms-swift with a mark": {
        "messages": [user("<image>p"), assistant("c")],
        "rejected_response": "r",
        "images": ["a.png"],
    },
    "LLaMA-Factory with a mark": {
        "conversations": [{"from": "human", "value": "<image>\np"}],
        "images": ["a.png"],
        **ANSWERS,
    },
    "a mark after the system text": {"messages": [SYSTEM, user(" <image> p")], "image": "a.png"} | ANSWERS,
    "trl with a part": {"prompt": [user([{"type": "image"}, {"type": "text", "text": "p"}])], "images": ["a.png"]}
    | ANSWERS,
    "a part that names it": {"prompt": [user([{"type": "image", "path": "a.png"}, {"type": "text", "text": "p"}])]}
    | ANSWERS,
    "OpenAI's part": {
        "messages": [user([{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "p"}])],
        **ANSWERS,
    },
}


@pytest.mark.parametrize("case", IMAGES)
def test_one_picture_is_read_wherever_it_stands(pictures: Path, case: str) -> None:
    pair = read(pictures, IMAGES[case])
    assert pair.image == pictures / "a.png"
    if not isinstance(pair.prompt, str):
        assert pair.prompt[-1]["content"] == "p"  # the template puts the picture there


@pytest.mark.parametrize("images", [[], None, [None], {"bytes": None, "path": None}])
def test_no_picture_is_no_picture(tmp_path: Path, images: Any) -> None:
    assert read(tmp_path, GOOD | {"images": images, "image": images}).image is None


TWO = ["b.png", "a.png"]
PART = {"type": "image"}
TEXT = {"type": "text", "text": "p"}
SEVERAL: dict[str, dict[str, Any]] = {
    "a list": GOOD | {"images": TWO},
    "a list and marks": GOOD | {"prompt": "<image> and <image>", "images": TWO},
    "a list beside a chat": {"messages": [user("p")], "images": TWO} | ANSWERS,
    "marks in front of the words": {"messages": [user("<image>\n<image> p")], "images": TWO} | ANSWERS,
    "parts": {"messages": [user([PART, PART, TEXT])], "images": TWO} | ANSWERS,
    "parts that name them": {
        "messages": [user([PART | {"path": "b.png"}, PART | {"path": "a.png"}, TEXT])], **ANSWERS,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_several_pictures_are_read_in_their_order(pictures: Path, case: str) -> None:
    pair = read(pictures, SEVERAL[case])
    assert pair.images == pair.image == (pictures / "b.png", pictures / "a.png")
    if not isinstance(pair.prompt, str):
        assert pair.prompt == (user("p"),)


def test_the_order_of_pictures_counts_in_the_digest(pictures: Path) -> None:
    rows = [GOOD | {"id": "0", "images": images} for images in (TWO, TWO[::-1], TWO[:1])]
    digests = {content_digest([read(pictures, row)]) for row in rows}
    assert len(digests) == 3


# --- what is refused

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "fewer images than places": (
        {"messages": [{"role": "user", "content": [PART, PART, TEXT]}], "image": "a.png"} | ANSWERS,
        "messages",
        "places for 2 pictures, and the row has 1",
    ),
    "one part names its image": (
        {"messages": [{"role": "user", "content": [PART | {"path": "a.png"}, PART, TEXT]}]} | ANSWERS,
        "messages",
        "1 of 2 parts name their picture; name all, or none",
    ),
    "image and images differ": (
        GOOD | {"image": "a.png", "images": ["b.png"]},
        "images",
        "other pictures than 'image'",
    ),
    "an empty path among images": (GOOD | {"images": [""]}, "image", "empty; expected text"),
    "an address among images": (GOOD | {"images": ["https://a.org/b.png"]}, "image", "is an address, not a file"),
    "two parts": ({"prompt": [user([PART, PART, TEXT])], "images": ["a.png"]} | ANSWERS, "messages", "places for 2"),
    "a part without its picture": ({"prompt": [user([PART, TEXT])]} | ANSWERS, "image", "missing, though a turn has"),
    "a part after the text": (
        {"prompt": [user([TEXT, PART])], "images": ["a.png"]} | ANSWERS,
        "prompt[0].content[1]",
        "a picture after the text",
    ),
    "a part in a later turn": (
        {"prompt": [user("a"), assistant("b"), user([PART, TEXT])], "images": ["a.png"]} | ANSWERS,
        "prompt[2]",
        "the first turn of the user",
    ),
    "two texts": ({"prompt": [user([TEXT, TEXT])]} | ANSWERS, "prompt[0].content", "one part of text, found 2"),
    "a film part": (
        {"prompt": [user([{"type": "video"}, TEXT])]} | ANSWERS,
        "prompt[0].content[0]",
        "Films are not read",
    ),
    "a mark behind the text": (
        {"messages": [user("p <image>")], "image": "a.png"} | ANSWERS,
        "messages",
        "<image> stands where no template puts a picture",
    ),
    "a second mark": (
        {"messages": [user("<image><image>p")], "image": "a.png"} | ANSWERS,
        "messages",
        "2 marks <image> for 1 picture",
    ),
    "a mark in the system text": (
        {"messages": [{"role": "system", "content": "<image>"}, user("p")], "image": "a.png"} | ANSWERS,
        "messages",
        "<image> stands",
    ),
    "a picture in an answer": (
        GOOD | {"prompt": [user("p")], "chosen": [assistant([PART, {"type": "text", "text": "c"}])]},
        "chosen[0]",
        "a picture in an answer",
    ),
    "an answer of another role": (
        {"prompt": [user("p")], "chosen": [user("c")], "rejected": [assistant("r")]},
        "chosen[0]",
        "the answer's role is 'user'",
    ),
    "two answers in one": (
        {"prompt": [user("p")], "chosen": [assistant("c"), user("d"), assistant("e")], "rejected": [assistant("r")]},
        "rejected",
        "begins with another turn than 'chosen'",
    ),
    "conversations that part early": (
        {
            "chosen": [user("p"), assistant("c"), user("q"), assistant("d")],
            "rejected": [user("p"), assistant("r"), user("q"), assistant("d")],
        },
        "chosen",
        "3 turns follow the 1 that both conversations begin with",
    ),
    "conversations without a common prompt": (
        {"chosen": [user("p"), assistant("c")], "rejected": [user("q"), assistant("r")]},
        "rejected",
        "begins with another turn",
    ),
    "the same conversation": (
        {"chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("c")]},
        "rejected",
        "the same conversation as 'chosen'",
    ),
    "a prompt that is another": (
        {"prompt": "q", "chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("r")]},
        "prompt",
        "is not what the conversations",
    ),
    "messages that are another chat": (
        {
            "messages": [user("q"), assistant("c")],
            "chosen": [user("p"), assistant("c")],
            "rejected": [user("p"), assistant("r")],
        },
        "messages",
        "is not what the conversations",
    ),
    "an implicit prompt in text": (
        {"chosen": "Human: hi\nAssistant: c", "rejected": "Human: hi\nAssistant: r"},
        "prompt",
        "dataset.map(trl.extract_prompt)",
    ),
    "rows inside of a column": ({"data": [GOOD]}, "prompt", "inside of 'data'"),
    "ms-swift without an answer": ({"messages": [user("p")], "rejected_response": "r"}, "messages", "of role 'user'"),
    "ms-swift and chosen": (
        {"messages": [user("p"), assistant("c")], "rejected_response": "r", "chosen": "d"},
        "chosen",
        "'rejected_response' too",
    ),
    "two system texts": ({"messages": [SYSTEM, user("p")], "system": "t"} | ANSWERS, "system", "keep one of them"),
    "a system text before plain text": (GOOD | {"system": "Be brief."}, "system", "the first turn of a chat"),
    "history before messages": (
        {"messages": [user("p")], "history": [["a", "b"]]} | ANSWERS,
        "history",
        "in 'messages'",
    ),
    "history of another make": ({"query": "p", "history": ["a"]} | ANSWERS, "history[0]", "question and answer"),
    "tools": (GOOD | {"tools": '[{"name": "f"}]'}, "tools", "Calls of tools are not read"),
    "calls of tools": (
        {"messages": [user("a"), assistant("b") | {"tool_calls": [{"id": 1}]}, user("p")]} | ANSWERS,
        "messages[1].tool_calls",
        "content that would be lost",
    ),
    "thoughts in a turn": (
        {"prompt": [user("p")], "chosen": [assistant("c") | {"reasoning_content": "I think."}], "rejected": "r"},
        "chosen[0].reasoning_content",
        "content that would be lost",
    ),
    "films": (GOOD | {"videos": ["a.mp4"]}, "videos", "Films are not read"),
    "another prompt": (GOOD | {"instruction": "Say it in French."}, "instruction", "content that would be lost"),
    "a name in capitals": (GOOD | {"Images": ["a.png"]}, "Images", "Pictures are read from 'image', a path, or"),
    "a picture under another name": (GOOD | {"file_name": "a.png"}, "file_name", "content that would be lost"),
    "choices under another name": (GOOD | {"options": ["c", "r"], "label": 0}, "options", "Was 'choices' meant?"),
    "a text under a name of our own": (GOOD | {"x": "It was a dark night, and it rained."}, "x", "ignore=['x']"),
    "a list of numbers": (GOOD | {"x": [1, 2]}, "x", "content that would be lost"),
    "a chat in the metadata": (GOOD | {"metadata": {"system": "s"}}, "metadata", "content that would be lost"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_or_guessed_is_refused_with_advice(pictures: Path, case: str) -> None:
    row, field, words = REFUSED[case]
    error = refused(pictures, row)
    assert error.field == field
    assert words in str(error)
    assert printable(str(error)) == str(error)


def test_many_columns_with_content_are_named_by_three_and_a_count(tmp_path: Path) -> None:
    error = refused(tmp_path, GOOD | {f"x{i}": [f"text {i}"] for i in range(900)})
    assert "('x0', 'x1', 'x2', 'x3' and 896 more)" in str(error)
    assert len(str(error)) < 2 * len(str(tmp_path)) + 400


def test_a_column_may_be_left_unread_on_purpose(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD | {"tools": ["f"], "x": "It was a dark and stormy night.", "id": "a"}))
    file = read_pairs(path, ignore=["tools", "x", "id"])
    assert (file.pairs[0].id, file.ignored_columns) == ("000001", ())
    with pytest.raises(RowError, match="field 'x'"):
        read_pairs(path, ignore=["tools"])
    with pytest.raises(TypeError, match=r"ignore is a str \('tools'\); expected a list of names"):
        read_pairs(path, ignore="tools")


# --- labels and content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "Wikipedia, The Free Encyclopedia"),
        ("category", "Misconceptions: Law and Order in 1990"),
        ("url", "https://en.wikipedia.org/wiki/Flat_Earth?action=history&offset=1234567890"),
        ("prompt_id", "3f" * 32),
        ("chosen-model", "zephyr-7b"),
        ("chosen_rating", 4.5),
        ("label", "good"),
        ("label", True),
        ("difficulty", "very hard"),
        ("metadata", {"source": "x", "rating": 4, "tags": ["a", "b"], "spans": [1, 2]}),
        ("tags", ["history", "science"]),
        ("answer_index", 3),
        ("created", "2024-05-06 07:08:09"),
        ("x", "short label"),
        ("x", float("nan")),
        ("topic", "\u5730\u7406\u5b66"),
        ("images", 3),
    ],
)
def test_labels_numbers_ids_and_addresses_are_no_content(name: str, value: Any) -> None:
    assert not carries_content(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("system", "s"),
        ("system_prompt", "s"),
        ("SystemPrompt", "s"),
        ("context", "Paris"),
        ("few_shot_examples", "a"),
        ("image_path", "a"),
        ("picture", "x"),
        ("scan", "a.png"),
        ("id", "photo.JPG"),
        ("x", "https://a.org/b.webp?size=1"),
        ("x", "data:audio/wav;base64,AAAA"),
        ("x", "Answer briefly."),
        ("x", "answer it in French"),
        ("x", "line\nline"),
        ("x", "\u8bf7\u7528\u4e2d\u6587\u56de\u7b54\u8fd9\u4e2a\u95ee\u9898\u548c\u4e0b\u4e00\u4e2a"),
        ("x", "A" * 201),
        ("x", [0]),
        ("x", {"a": 1}),
        ("x", b"\x89PNG"),
        ("label", "Paris is the capital of France."),
        ("source", "word " * 30),
        ("source", "first line\nsecond line"),
        ("tags", ["a", "Answer it in French, please."]),
        ("metadata", {"tools": [{"name": "f"}]}),
        ("meta", {"a": {"b": ["one sentence is hidden here."]}}),
    ],
)
def test_texts_lists_objects_and_media_are_content(name: str, value: Any) -> None:
    assert carries_content(name, value)


def test_a_file_name_is_only_a_name_where_the_row_has_its_picture(pictures: Path) -> None:
    assert read(pictures, GOOD | {"image": "a.png", "file_name": "a.png", "image_id": "b.png"}).image
    assert refused(pictures, GOOD | {"image_id": "b.png"}).field == "image_id"
