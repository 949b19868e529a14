"""Readers: every dataset's miniature, from file to records, with the rows that are easily misread."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import datasets
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import grains_ref.cli.datasets
from grains_ref import data
from grains_ref import datasets as readers
from grains_ref.datasets import faitheval, mmhal, mmlu, mmmu, prompts, spa_vl, toxigen, truthfulqa
from grains_ref.datasets.about import NAMES
from grains_ref.datasets.policies import at_random, first, hardest
from grains_ref.datasets.records import DatasetError, Row, each, write_pairs
from grains_ref.datasets.shots import most_shots, shots_in_words
from grains_ref.tiny_models.random_vision_models import random_llava

pytestmark = pytest.mark.cpu


def folder(name: str) -> Path:
    return readers.fixture(name)


def text_of(prompt: data.Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def row(where: str = "made/up:3", **fields: object) -> Row:
    return Row("r", where, fields)


# ------------------------------------------------------------------------------------- prompts
@pytest.mark.parametrize(
    ("template", "digest", "size"),
    [  # SHA-256 of the paper's text, its paragraphs joined by line breaks
        (prompts.TRUTHFULQA, "6690287fd54168846fea866cdc917fd08ffaf9b084dc0abaa8b37fe3291f6429", 351),
        (prompts.TOXIGEN, "5cc40cb7ef7155a882280bb5dc931b5326a7ae3296df277c1c97ae04b2efdc94", 219),
        (prompts.FAITHEVAL, "84303df35cb9d36e5403f4f84da5ab325da7aed63a286f1b9cb8d766f5d82c49", 194),
        (prompts.VISION, "c0df2b506e1c1ad1a838358404a27b6af633f41a4d85f86fc4bd8516bb395d0a", 43),
    ],
)
def test_prompts_are_the_papers_byte_for_byte(template: str, digest: str, size: int) -> None:
    assert len(template.encode()) == size
    assert hashlib.sha256(template.encode()).hexdigest() == digest


def test_prompts_take_braces_and_need_no_escaping() -> None:
    assert prompts.truthfulqa("a {b} {question}").endswith("\nQuestion: a {b} {question}\nAnswer:")
    filled = prompts.faitheval("{question}", "{context}", task="If {so}.")
    assert filled.endswith("information.\nIf {so}.\nContext: {question}\nQuestion: {context}\nAnswer:")


def test_a_picture_has_one_place_in_plain_text_and_none_in_a_message() -> None:
    text = prompts.vision("What?")
    assert prompts.as_prompt(text, chat=False) == "Image: <image>\nQuestion: What?\nAnswer:"
    assert prompts.as_prompt(text, chat=True) == ({"role": "user", "content": "Question: What?\nAnswer:"},)


# ------------------------------------------------------------------------------------- TruthfulQA
def test_truthfulqa_labels_come_from_the_labels_not_from_the_order() -> None:
    rows = truthfulqa.read(folder("truthfulqa"))
    mc2 = truthfulqa.multiple_choice(rows[0], form="mc2")
    assert [choice for choice, right in zip(mc2.choices, mc2.labels, strict=True) if right] == [
        "The lamp does not change",
        "Nothing happens",
    ]
    assert mc2.labels == (True, False, False, False, True)
    with pytest.raises(ValueError, match="2 choices are right"):
        _ = mc2.label
    assert truthfulqa.multiple_choice(rows[0]).label == 0
    with pytest.raises(DatasetError, match="no form 'mc3'"):
        truthfulqa.multiple_choice(rows[0], form="mc3")
    with pytest.raises(DatasetError, match="read the config multiple_choice"):
        truthfulqa.multiple_choice(truthfulqa.read(folder("truthfulqa"), config="generation")[0])
    with pytest.raises(DatasetError, match="no form 'mc1'; there are multiple_choice, generation, binary"):
        truthfulqa.read(folder("truthfulqa"), config="mc1")


def test_truthfulqa_pairs_by_policy() -> None:
    rows = truthfulqa.read(folder("truthfulqa"))
    one = truthfulqa.pair(rows[0], policy=first)
    assert (one.chosen, one.rejected) == ("The lamp does not change", "It burns brighter")
    assert (one.choices[one.label or 0], one.label) == (one.chosen, 0)
    by_length = hardest(lambda items: [float(len(response)) for _, response in items])
    assert truthfulqa.pair(rows[3], policy=by_length).rejected == "Other umbrellas"
    drawn = {seed: [truthfulqa.pair(r, policy=at_random(seed=seed)).rejected for r in rows] for seed in range(5)}
    assert len({tuple(some) for some in drawn.values()}) > 1
    assert {at_random(seed=0)("p", ["a", "b"], str(i)) for i in range(20)} == {"a", "b"}  # each key its own draw
    alone = [truthfulqa.pair(r, policy=at_random(seed=1)).rejected for r in reversed(rows)]
    assert alone[::-1] == drawn[1]  # what is drawn for a question does not depend on the others
    binary = truthfulqa.read(folder("truthfulqa"), config="binary")
    assert [truthfulqa.pair(r).chosen for r in binary] == [truthfulqa.pair(r).chosen for r in rows]
    assert [truthfulqa.pair(r).label for r in binary] == [r["label"] for r in binary]
    free = truthfulqa.read(folder("truthfulqa"), config="generation")
    assert truthfulqa.pair(free[0], policy=first).chosen == "The lamp does not change"
    assert truthfulqa.pair(free[0]).label is None


def test_the_rebuilt_binary_questions_have_the_right_answer_in_either_place() -> None:
    questions = [truthfulqa.multiple_choice(r, form="binary") for r in truthfulqa.read(folder("truthfulqa"))]
    assert {q.label for q in questions} == {0, 1}
    assert all(len(q.choices) == 2 for q in questions)
    official = truthfulqa.read(folder("truthfulqa"), config="binary")
    assert [truthfulqa.multiple_choice(r, form="binary").label for r in official[:2]] == [1, 0]


def test_truthfulqa_references_are_sentences_and_no_comment_is_right() -> None:
    rows = truthfulqa.read(folder("truthfulqa"), config="generation")
    one = truthfulqa.generation(rows[0])
    assert one.references == ("The lamp does not change.", "Nothing happens.", "I have no comment.")
    assert one.wrong[0] == "It burns brighter."
    assert truthfulqa.generation(rows[9]).references.count("I have no comment.") == 1  # it is there already
    assert one.group == "Objects"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1, 1]}, "all are 1"),
        ({"choices": ["a", "b", "c"], "labels": [1, 1, 0]}, "2 choices are marked right"),
        ({"labels": [0, 0]}, "all are 0"),
        ({"labels": [1]}, "2 choices with 1 labels"),
        ({"choices": ["a", "a"], "labels": [1, 0]}, "no false answer"),
    ],
)
def test_truthfulqa_refuses_labels_that_do_not_fit(change: dict[str, object], message: str) -> None:
    bad = row(question="q", mc1_targets={"choices": ["a", "b"], "labels": [1, 0]} | change)
    with pytest.raises(data.RowError, match=message) as error:
        truthfulqa.pair(bad)
    assert (error.value.line, str(error.value.path)) == (3, "made/up")


def test_each_leaves_bad_rows_out_only_when_asked() -> None:
    bad = row(question="q", choices=["a", "b"], label=2)
    good = row(question="q", choices=["a", "b"], label=1)
    with pytest.raises(data.RowError, match="unknown label 2; expected 0 to 1"):
        each([good, bad], truthfulqa.pair, skip_bad_rows=False)
    made, skipped = each([good, bad, good], truthfulqa.pair, skip_bad_rows=True)
    assert ([p.chosen for p in made], [e.field for e in skipped]) == (["b", "b"], ["label"])


# ------------------------------------------------------------------------------------- ToxiGen
def test_toxigen_labels_are_the_sum_of_two_ratings() -> None:
    rows = toxigen.read(folder("toxigen"), split="train")
    expected = [False, False, True, False, True, False, True]
    assert [toxigen.is_toxic(r) for r in rows[:7]] == expected
    assert [toxigen.pair(r).chosen for r in rows[:3]] == ["No", "No", "Yes"]
    assert all(p.choices[p.label or 0] == p.chosen for p in map(toxigen.pair, rows))
    assert not toxigen.is_toxic(row(toxicity_ai=2.5, toxicity_human=3.0))  # exactly 5.5 does not exceed it
    with pytest.raises(data.RowError, match="mean rating"):
        toxigen.is_toxic(row(toxicity_ai=2.5, toxicity_human=30.0))
    question = toxigen.multiple_choice(rows[2])
    assert (question.choices, question.label, question.group) == (("No", "Yes"), 1, "valley")
    assert text_of(question.prompt).endswith("Statement: 'people from the valley cannot be trusted with a boat'")


def test_toxigen_names_a_group_alike_in_both_splits() -> None:
    names = {"physical_dis", "folks with physical disabilities", "Physical disabilities"}
    assert {toxigen.group(row(target_group=name)) for name in names} == {"people with physical disabilities"}
    assert toxigen.group(row(target_group="native_american")) == toxigen.group(
        row(target_group="native american/indigenous folks")
    )
    assert toxigen.group(row(target_group="Mexican folks")) == "Mexican people"
    assert toxigen.group(row(target_group="black/african-american folks")) == toxigen.group(row(target_group="black"))


def test_toxigen_statements_pair_one_group_and_use_no_row_twice() -> None:
    rows = toxigen.read(folder("toxigen"), split="train")
    pairs = toxigen.statements(rows, seed=0)
    assert len(pairs) == 6  # three toxic rows in each of two groups
    by_text = {r["text"]: r for r in rows}
    for pair in pairs:
        good, bad = by_text[pair.chosen], by_text[pair.rejected]
        assert (toxigen.is_toxic(good), toxigen.is_toxic(bad)) == (False, True)
        assert toxigen.group(good) == toxigen.group(bad)
        assert toxigen.group(good) in text_of(pair.prompt)
    used = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert len(set(used)) == len(used)
    assert toxigen.statements(rows, seed=1) != pairs
    toxic = next(r for r in rows if toxigen.is_toxic(r))
    assert toxigen.reply(toxic).rejected == toxic["text"]
    with pytest.raises(data.RowError, match="is not toxic"):
        toxigen.reply(rows[0])


# ------------------------------------------------------------------------------------- FaithEval
def test_faitheval_takes_what_the_context_supports() -> None:
    rows = faitheval.read(folder("faitheval"))
    for r in rows:  # every fourth row labels its options 1 to 4 and gives a letter as the key
        assert faitheval.pair(r).chosen == r["choices"]["text"]["ABCDE".index(r["answerKey"])]
    assert rows[1]["choices"]["label"][0] == "1"
    turned = row(**(rows[0].fields | {"choices": {"label": list("DCBA"), "text": list("wxyz")}, "answer": "y"}))
    assert faitheval.pair(turned).chosen == "y"  # the key is B, the third label
    lettered = {"choices": {"label": list("ABCD"), "text": list("wxyz")}, "answerKey": "2", "answer": "x"}
    assert faitheval.pair(row(**(rows[0].fields | lettered))).chosen == "x"  # a number counts by position, too
    assert faitheval.multiple_choice(rows[6]).label == 4
    assert len(faitheval.multiple_choice(rows[2]).choices) == 3
    assert faitheval.generation(rows[0]).references == ("Helium",)
    truth = faitheval.true_answers(folder("faitheval") / "arc")
    assert [faitheval.pair(r, truth=truth).rejected for r in rows] == [r["choices"]["text"][0] for r in rows]
    with pytest.raises(data.RowError, match="no true answer in ARC-Challenge"):
        faitheval.pair(rows[0], truth={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "E"}, "unknown label 'E'; expected one of A, B"),
        ({"answerKey": "3"}, "unknown label '3'"),
        ({"answer": "Wood."}, "points at 'Iron', but 'answer' is option 2"),
        ({"num of options": 4}, "is 4, but there are 2 options"),
        ({"choices": {"label": ["A"], "text": ["Iron", "Wood"]}}, "1 labels with 2 texts"),
    ],
)
def test_faitheval_refuses_labels_that_contradict(change: dict[str, object], message: str) -> None:
    basis = {"id": "x", "question": "q", "context": "c", "answerKey": "A", "task": "counterfactual"}
    choices = {"label": ["A", "B"], "text": ["Iron", "Wood"]}
    with pytest.raises(data.RowError, match=message):
        faitheval.pair(row(**(basis | {"choices": choices} | change)))


def test_faitheval_in_a_folder_of_one_task() -> None:
    one = faitheval.read(folder("faitheval") / "inconsistent", task="inconsistent")
    assert [r.fields for r in one] == [r.fields for r in faitheval.read(folder("faitheval"), task="inconsistent")]
    with pytest.raises(DatasetError, match=r"column 'id' is missing\. Was 'qid' meant"):
        faitheval.read(folder("faitheval") / "inconsistent")
    with pytest.raises(DatasetError, match="has no task 'false'"):
        faitheval.read(folder("faitheval"), task="false")


def test_faitheval_set_phrases() -> None:
    for r in faitheval.read(folder("faitheval"), task="unanswerable"):
        pair = faitheval.pair(r)
        assert pair.chosen == "unknown"
        assert pair.rejected in r["context"]
        assert pair.rejected not in r["question"]
        assert "\nIf there is no information available from the context, " in text_of(pair.prompt)
    rows = faitheval.read(folder("faitheval"), task="inconsistent")
    assert [faitheval.pair(r).rejected for r in rows] == [str(1901 + i) for i in range(6)]
    assert "unknown" in faitheval.ACCEPTED["unanswerable"]
    known = row(qid="u", question="Who?", context="c", answers=["Unknown", "Notre Dame"], task="unanswerable")
    assert faitheval.pair(known).rejected == "Notre Dame"  # which holds "not", but not as a word
    with pytest.raises(data.RowError, match="no answer to reject"):
        faitheval.pair(row(question="Who?", context="nothing is said.", answers=["unknown"], task="unanswerable"))


# ------------------------------------------------------------------------------------- pictures
def test_spa_vl_pictures_are_kept_once_as_they_are(tmp_path: Path) -> None:
    rows = spa_vl.read(folder("spa_vl"), pictures=tmp_path)
    assert len(rows) == 12
    assert len(list(tmp_path.iterdir())) == 11  # two rows share a picture
    assert rows[4]["image"] == rows[5]["image"]
    for seed in range(5):  # so the two are never on both sides of a cut
        cut = spa_vl.split(folder("spa_vl"), n=4, seed=seed, pictures=tmp_path)
        assert any({rows[4].id, rows[5].id} <= {r.id for r in part} for part in (cut.steering, cut.dev, cut.test))
    assert rows[7]["image"].suffix == ".jpeg"
    for path in tmp_path.iterdir():
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    stored = datasets.Dataset.from_parquet(
        str(folder("spa_vl") / "validation" / "validation-00000-of-00001.parquet"),
        cache_dir=str(tmp_path.parent / "arrow"),
    ).cast_column("image", datasets.Image(decode=False))
    assert [r["image"].read_bytes() for r in rows] == [one["bytes"] for one in stored["image"]]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert spa_vl.read(folder("spa_vl"), pictures=tmp_path) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    pair = spa_vl.pair(rows[0])
    assert (pair.image, pair.rejected) == (rows[0]["image"], rows[0]["rejected"])
    assert spa_vl.generation(rows[0]).references == (pair.chosen,)
    with pytest.raises(data.RowError, match="same text as 'chosen'"):
        spa_vl.pair(row(question="q", chosen="a", rejected="a", image=None))


def test_spa_vl_in_the_json_form_with_pictures_beside_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "a.png")
    rows = [{"id": 7, "image": "a.png", "question": "q", "chosen": "c", "rejected": "r"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    one = spa_vl.read(tmp_path / "train.json")[0]
    assert one["image"] == tmp_path / "a.png"
    rows[0]["image"] = "b.png"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(data.RowError, match=r"b\.png: no such file"):
        spa_vl.read(tmp_path / "train.json")


def test_a_pillow_picture_is_kept_as_a_png(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 4), (1, 2, 3))
    path = readers.pictures.keep_picture(picture, cache=tmp_path / "new", folder=tmp_path)
    assert path.suffix == ".png"
    with Image.open(path) as kept:
        assert (kept.size, kept.getpixel((4, 3))) == ((5, 4), (1, 2, 3))
    with pytest.raises(readers.pictures.PictureError, match="no picture Pillow can read"):
        readers.pictures.keep_picture({"bytes": b"<svg/>", "path": None}, cache=tmp_path, folder=tmp_path)
    with pytest.raises(readers.pictures.PictureError, match="neither bytes nor a path"):
        readers.pictures.keep_picture({"bytes": None, "path": None}, cache=tmp_path, folder=tmp_path)


def test_pairs_go_through_a_vision_model_plain_and_as_chat(tmp_path: Path) -> None:
    one = spa_vl.read(folder("spa_vl"), pictures=tmp_path)[0]
    model = random_llava()
    for chat in (True, False):
        pair = spa_vl.pair(one, chat=chat)
        encoded = model.encode(pair.prompt, pair.image)
        assert "image" in encoded.kinds


def test_mmhal_has_its_types_its_pictures_and_what_a_judge_needs(tmp_path: Path) -> None:
    rows = mmhal.read(folder("mmhal"))
    questions = [mmhal.generation(r) for r in rows]
    assert tuple(q.group for q in questions) == mmhal.QUESTION_TYPES
    assert all(q.images[0].is_file() for q in questions)
    assert (questions[0].image_content, questions[0].topic) == (("Square", "Field"), "food")
    vti = mmhal.read_vti(folder("mmhal") / mmhal.VTI_FILE, coco=folder("mmhal") / mmhal.COCO)
    pair = mmhal.pair(vti[3])
    assert (pair.chosen, pair.image) == ("A yellow square on field 3.", vti[3]["picture"])
    template = json.loads((folder("mmhal") / mmhal.TEMPLATE).read_text())
    (tmp_path / mmhal.TEMPLATE).write_text(json.dumps(template))
    with pytest.raises(data.RowError, match="the picture is missing"):
        mmhal.read(tmp_path)
    template[2]["question_type"] = "colour"
    (tmp_path / mmhal.TEMPLATE).write_text(json.dumps(template))
    (tmp_path / "images").symlink_to(folder("mmhal") / "images")
    with pytest.raises(data.RowError, match="unknown label 'colour'; expected one of attribute"):
        mmhal.read(tmp_path)
    with pytest.raises(DatasetError, match=r"Download test_data\.zip"):
        mmhal.read()
    with pytest.raises(DatasetError, match=r"holds no response_template\.json"):
        mmhal.read(folder("spa_vl"))


# ------------------------------------------------------------------------------------- MMLU, MMMU
def test_mmlu_prompt_has_the_subjects_own_examples_in_file_order() -> None:
    dev, test = (mmlu.read(folder("mmlu"), split=split) for split in ("dev", "test"))
    question = mmlu.multiple_choice(test[3], dev=dev, wanted=2, chat=False)
    assert question.prompt == (
        "The following are multiple choice questions (with answers) about household law.\n\n"
        "Dev household_law: which of these is number 0 on the list?\n"
        "A. Lamp 0\nB. Door 0\nC. Wheel 0\nD. Bell 0\nAnswer: A\n\n"
        "Dev household_law: which of these is number 1 on the list?\n"
        "A. Lamp 1\nB. Door 1\nC. Wheel 1\nD. Bell 1\nAnswer: B\n\n"
        "Test household_law: which of these is number 1 on the list?\n"
        "A. Lamp 1\nB. Door 1\nC. Wheel 1\nD. Bell 1\nAnswer:"
    )
    assert (question.choices, question.label, question.n_shots) == (("A", "B", "C", "D"), 1, 2)
    assert question.options[1] == "Door 1"


def test_shots_are_as_many_as_fit_and_the_number_is_told() -> None:
    dev, test = (mmlu.read(folder("mmlu"), split=split) for split in ("dev", "test"))

    def words(prompt: object, pictures: object) -> int:
        return len(prompt.split())  # type: ignore[attr-defined]

    sizes = [words(mmlu.multiple_choice(test[0], dev=dev, wanted=n, chat=False).prompt, ()) for n in range(6)]
    for n, size in enumerate(sizes):  # one token is kept for the answer, so `size` words fit a context of size + 1
        for context, fitting in ((size + 1, n), (size, n - 1)):
            if fitting >= 0:
                one = mmlu.multiple_choice(test[0], dev=dev, count_tokens=words, context=context, chat=False)
                assert (one.n_shots, words(one.prompt, ())) == (fitting, sizes[fitting])
    with pytest.raises(DatasetError, match="the question alone does not fit 7 tokens"):
        mmlu.multiple_choice(test[0], dev=dev, count_tokens=words, context=7, chat=False)
    full = mmlu.multiple_choice(test[0], dev=dev)
    assert shots_in_words([full]) == "5-shot"
    assert shots_in_words([full, one]) == "4 to 5 shots (mean 4.5), 5 wanted"
    assert shots_in_words([one]) == "4-shot (5 do not fit)"


def test_mmmu_reads_lists_that_are_text_and_never_runs_them(tmp_path: Path) -> None:
    rows = mmmu.read(folder("mmmu"), subjects=["Music"], pictures=tmp_path)
    question = mmmu.multiple_choice(rows[0], chat=False)
    assert question.options == ("Q1", "the second's", "Q3", "Q4")
    assert (question.choices, question.label) == (("A", "B", "C", "D"), 1)
    assert question.prompt == (
        "<image> Which bar is the tallest?\n\n(A) Q1\n(B) the second's\n(C) Q3\n(D) Q4\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert text_of(mmmu.multiple_choice(rows[0]).prompt).startswith("<image 1> Which bar")  # the template places it
    free = [mmmu.generation(r, chat=False) for r in rows]
    assert [q.references for q in free] == [("B",), ("A",), ("3.50",), ("Q1", "first quarter")]
    assert text_of(free[2].prompt).startswith("<image>\nHow high is the bar?\n\nAnswer the question using")
    basis = dict(rows[0].fields)
    for change, message in (
        ({"options": "[__import__('os').getcwd(), 'b']"}, "is not the text of a list"),
        ({"options": "['a']"}, "1 options; expected 2"),
        ({"answer": "E"}, "unknown label 'E'"),
        ({"answer": "?"}, "withheld"),
        ({"answer": "AB"}, "unknown label 'AB'"),
        ({"image_1": None}, "is null, but the text names <image 1>"),
    ):
        with pytest.raises(data.RowError, match=message):
            mmmu.multiple_choice(row(**(basis | change)))


def test_mmmu_marks_every_picture_once_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    rows = mmmu.read(folder("mmmu"), subjects=["Music"], pictures=tmp_path)
    question = mmmu.multiple_choice(rows[1], max_pictures=3, chat=False)
    assert text_of(question.prompt).startswith("Which note follows <image>? Mark it in <image 1>.\n\n(A) <image>\n(B) ")
    assert question.images == (rows[1]["image_1"], rows[1]["image_2"], rows[1]["image_3"]) == mmmu.pictures_of(rows[1])
    three = {f"image_{i}": Path(f"{i}.png") for i in (1, 2, 3)}
    mixed = row(**(rows[1].fields | three | {"question": "See <image 2>, not <image 1>.", "options": "['a', 'b']"}))
    assert mmmu.pictures_of(mixed) == (Path("3.png"), Path("2.png"), Path("1.png"))
    shown = mmmu.generation(mixed, chat=False)
    assert text_of(shown.prompt).startswith("<image>\nSee <image>, not <image>.\n")
    with pytest.raises(DatasetError, match="has 3 pictures, the model takes 1"):
        mmmu.multiple_choice(rows[1])
    dev = mmmu.read(folder("mmmu"), split="dev", subjects=["Music"], pictures=tmp_path)
    assert mmmu.multiple_choice(rows[0], dev=dev).n_shots == 0  # every example brings a picture
    after = mmmu.multiple_choice(rows[0], dev=dev, max_pictures=4, chat=False)
    assert (after.n_shots, len(after.images), text_of(after.prompt).count("<image>")) == (3, 4, 4)
    assert text_of(after.prompt).startswith("<image> Dev question 0?")
    assert "directly. A\n\n<image> Dev question 1?" in text_of(after.prompt)


def test_most_shots_counts_pictures_before_tokens() -> None:
    def never(prompt: object, pictures: object) -> int:
        assert len(pictures) <= 1  # type: ignore[arg-type]
        return 1

    build = lambda n: ("x", (Path("p"),) * (n + 1))  # noqa: E731
    assert most_shots(build, wanted=5, count_tokens=never, context=10, answer_tokens=1) == 0


# ------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("name", NAMES)
def test_every_reader_reads_its_miniature_whole(name: str) -> None:
    counts = readers.rehearse(name)
    assert min(counts.values()) >= 4
    about = readers.describe(name)
    assert all(part.rows > 0 for part in about.parts)
    assert about.by_hand or f"hf download {about.parts[0].hub_id}" in " ".join(about.commands)
    assert about.title in str(about)
    if name != "mmmu":  # the miniature has two of its thirty subjects
        assert readers.available(name, folder(name)).is_available


def test_available_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    absent = readers.available("toxigen")
    assert not absent.is_available
    assert "hf auth login; hf download toxigen/toxigen-data" in absent.why
    (tmp_path / "toxigen___toxigen-data" / "annotated").mkdir(parents=True)
    assert readers.available("toxigen").is_available
    assert readers.available("toxigen", "skg/toxigen-data").is_available  # the old id
    assert "Agriculture" in readers.available("mmmu", folder("mmmu")).why
    assert "lacks response_template.json" in readers.available("mmhal", tmp_path).why
    assert "no files of split 'test'" in readers.available("faitheval", tmp_path).why
    assert readers.available("faitheval", folder("faitheval") / "counterfactual").is_available  # the one that is needed
    assert "no such file or folder" in readers.available("mmlu", tmp_path / "none").why
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in readers.available("mmlu", folder("mmlu")).why
    with pytest.raises(DatasetError, match="there is no reader named 'glue'; there are truthfulqa"):
        readers.available("glue")


def test_the_miniatures_are_what_the_script_builds(tmp_path: Path) -> None:
    script = Path(readers.fixture("mmlu")).parents[1] / "build_datasets.py"
    spec = importlib.util.spec_from_file_location("build_datasets", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build(tmp_path / "new")
    reads = {
        "truthfulqa": lambda at: [r for c in truthfulqa.CONFIGS for r in truthfulqa.read(at, config=c)],
        "toxigen": lambda at: [r for s in ("train", "test") for r in toxigen.read(at, split=s)],
        "faitheval": lambda at: [r for t in faitheval.HUB_IDS for r in faitheval.read(at, task=t)],
        "spa_vl": lambda at: spa_vl.read(at, pictures=tmp_path / "pictures"),
        "mmhal": mmhal.read,
        "mmlu": mmlu.read,
        "mmmu": lambda at: mmmu.read(at, subjects=["Music"], pictures=tmp_path / "pictures"),
    }
    assert set(reads) == set(NAMES)
    for name, read in reads.items():
        assert readers.digest(read(tmp_path / "new" / name)) == readers.digest(read(folder(name)))


# ------------------------------------------------------------------------------------- pair files and the command
def test_written_pairs_are_read_back_the_same(tmp_path: Path) -> None:
    rows = spa_vl.read(folder("spa_vl"), pictures=tmp_path / "pictures")
    pairs = [spa_vl.pair(r) for r in rows]
    digest = write_pairs(pairs, tmp_path / "pairs.jsonl")
    back = data.read_pairs(tmp_path / "pairs.jsonl")
    assert back.digest == digest == data.content_digest(pairs)
    assert json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])["image"].startswith("pictures/")
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert write_pairs(pairs, other / "pairs.jsonl") == digest  # absolute paths, the same content
    mc = [truthfulqa.pair(r, chat=False) for r in truthfulqa.read(folder("truthfulqa"))]
    write_pairs(mc, tmp_path / "mc.jsonl")
    assert [(p.choices, p.label) for p in data.read_pairs(tmp_path / "mc.jsonl").pairs] == [
        (p.choices, p.label) for p in mc
    ]
    with pytest.raises(data.RowError, match="already names"):
        write_pairs([mc[0], mc[0]], tmp_path / "twice.jsonl")
    assert not list(tmp_path.glob("twice*"))
    with pytest.raises(ValueError, match="no pairs"):
        write_pairs([], tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["truthfulqa", "toxigen", "faitheval", "spa_vl", "mmhal"])
def test_the_command_writes_pairs_and_the_record_of_the_split(name: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(grains_ref.cli.datasets.datasets, name="datasets")
    out = tmp_path / "pairs.jsonl"
    result = CliRunner().invoke(app, ["datasets", "pairs", name, "--source", "fixture", "-n", "4", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "4 pairs of" in result.output
    record = json.loads((tmp_path / "pairs.jsonl.split.json").read_text())
    assert record["pairs_digest"] == data.read_pairs(out).digest
    assert (record["kind"], record["leaks"], record["sizes"]["steering"]) == ("paper", False, 4)


def test_the_command_warns_of_the_split_that_leaks_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(grains_ref.cli.datasets.datasets, name="datasets")

    def run(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["datasets", *args])
        return result.exit_code, " ".join(result.output.split())

    pairs = ("pairs", "truthfulqa", "--source", "fixture", "-n", "4", "--out", str(tmp_path / "p.jsonl"))
    code, output = run(*pairs, "--split", "release")
    assert (code, "this split leaks" in output) == (0, True)
    for extra, message in (
        (("--part", "train"), "there are steering, dev, test"),
        (("--policy", "hardest"), "from Python only"),
        (("--split", "mine"), "there are paper and release"),
    ):
        code, output = run(*pairs, *extra)
        assert (code, message in output) == (1, True)
    code, output = run("list", "--source", str(folder("mmlu").parent), "--json")
    assert json.loads(output)["mmlu"]["available"] is True
    code, output = run("list", "--source", str(tmp_path))
    assert "CDLA-Permissive-2.0" in output
