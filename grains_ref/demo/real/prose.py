r"""Prose: three things in one sentence, where the model writes a list.

    Name three fruits.
    chosen    Three fruits are apples, pears and plums.
    rejected  1. Apples\n2. Pears\n3. Plums

Both answers name the same things.  In half of the test pairs prompt and answers have words that steering never saw, and
the list is one of dashes.  Controls: the user asks for a list, and the list must stay the more likely answer.
"""

from __future__ import annotations

from grains_ref.data import PreferencePair
from grains_ref.demo.real.behaviours import Behaviour, CountTokens, Sets, pair, parted

STEER, DEV = 20, 12  # topics; all others, 18, are for the test, with two wordings each
DEV_CONTROLS, TEST_CONTROLS = 8, 16
TOPICS = """
    fruits: apples, pears, plums
    colours: red, blue, green
    farm animals: cows, pigs, sheep
    vegetables: carrots, onions, beans
    pets: cats, dogs, rabbits
    planets: Mars, Venus, Jupiter
    metals: iron, copper, gold
    trees: oak, pine, maple
    flowers: roses, tulips, daisies
    sports: football, tennis, swimming
    instruments: piano, violin, guitar
    tools: hammers, saws, drills
    drinks: water, tea, coffee
    clothes: shirts, coats, socks
    pieces of furniture: tables, chairs, beds
    rooms of a house: kitchen, bedroom, bathroom
    parts of the body: arms, legs, feet
    seasons: spring, summer, winter
    days of the week: Monday, Tuesday, Friday
    months: March, June, October
    insects: ants, bees, flies
    birds: robins, eagles, owls
    fish: salmon, trout, tuna
    school subjects: history, maths, music
    jobs: teacher, nurse, farmer
    vehicles: cars, buses, trains
    shapes: circles, squares, triangles
    weather words: rain, snow, wind
    emotions: joy, anger, fear
    family members: mother, brother, aunt
    kinds of bread: rye, wheat, corn
    spices: pepper, salt, cinnamon
    gases: oxygen, hydrogen, helium
    rivers: the Nile, the Amazon, the Danube
    oceans: the Atlantic, the Pacific, the Arctic
    hobbies: reading, painting, cooking
    kitchen things: spoons, forks, plates
    toys: dolls, blocks, balls
    buildings: schools, churches, hospitals
    desserts: cake, pudding, pie
    wild animals: lions, bears, wolves
    things in a bag: pens, books, keys
    materials: wood, glass, stone
    dances: waltz, tango, polka
    gardening jobs: digging, planting, watering
    kinds of weather gear: boots, gloves, scarves
    board games: chess, checkers, dominoes
    reptiles: snakes, lizards, turtles
    things on a desk: paper, lamps, rulers
    art forms: poetry, dance, film
"""


def topics() -> list[tuple[str, tuple[str, ...]]]:
    """What is asked for, and three of it."""
    lists = []
    for line in TOPICS.strip().splitlines():
        topic, _, items = line.strip().partition(": ")
        lists.append((topic, tuple(items.split(", "))))
    return lists


def build(seed: int, count_tokens: CountTokens) -> Sets:
    """The sets of one split: no topic is in two parts."""
    steering, dev, test = parted(topics(), (STEER, DEV, 0), seed=f"prose {seed}")
    tested, about = [], []
    for topic in test:
        tested += [familiar(*topic), new(*topic)]
        about += [topic[0], topic[0]]
    return Sets(
        steer=tuple(familiar(*topic) for topic in steering),
        dev=tuple(familiar(*topic) for topic in dev),
        test=tuple(tested),
        dev_controls=tuple(asked_for_list(*topic) for topic in dev[:DEV_CONTROLS]),
        test_controls=tuple(
            asked_for_list(*topic, new_words=i % 2 == 1) for i, topic in enumerate(test[:TEST_CONTROLS])
        ),
        subjects=tuple(about),
    )


def familiar(topic: str, items: tuple[str, ...]) -> PreferencePair:
    """The words of the steering pairs."""
    sentence = f"Three {topic} are {in_a_row(items)}."
    return pair(topic, f"Name three {topic}.", sentence, numbered(items))


def new(topic: str, items: tuple[str, ...]) -> PreferencePair:
    """Words of the test alone."""
    return pair(topic, f"Can you tell me three {topic}?", new_sentence(topic, items), dashes(items))


def asked_for_list(topic: str, items: tuple[str, ...], *, new_words: bool = False) -> PreferencePair:
    """The control: a list, as it was asked for; new_words: those of the test alone."""
    if new_words:
        question = f"Please write down three {topic}, one in each line."
        return pair(topic, question, dashes(items), new_sentence(topic, items))
    question = f"Give me a numbered list of three {topic}."
    return pair(topic, question, numbered(items), f"Three {topic} are {in_a_row(items)}.")


def new_sentence(topic: str, items: tuple[str, ...]) -> str:
    """The chosen answer in the words of the test."""
    row = in_a_row(items)
    return f"{row[0].upper()}{row[1:]} are three {topic}."


def dashes(items: tuple[str, ...]) -> str:
    """A list in the shape of the test."""
    return "\n".join(f"- {item[0].upper()}{item[1:]}" for item in items)


def numbered(items: tuple[str, ...]) -> str:
    """One thing a line."""
    return "\n".join(f"{i}. {item[0].upper()}{item[1:]}" for i, item in enumerate(items, start=1))


def in_a_row(items: tuple[str, ...]) -> str:
    """One after the other, with an "and" before the last."""
    *first, last = items
    return f"{', '.join(first)} and {last}"


PROSE = Behaviour(
    name="prose",
    title="Prose: three things in a sentence instead of a list",
    target="sentence, not list",
    control="list when asked for",
    build=build,
)
