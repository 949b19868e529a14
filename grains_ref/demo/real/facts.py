"""What SmolLM2-135M-Instruct knows: countries and animals, in sentences that it is asked for and lied to about.

Facts of general knowledge, written down here.  What the model did not know was left out before any method was run:
of every fact here it finds the true sentence more likely than a false one when nobody lies to it (docs/real.md).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of fact: how it is asked, claimed and answered.  `{s}` is the subject, `{v}` the value."""

    question: str
    sentence: str  # claim and answer alike: a free answer in a whole sentence


@dataclass(frozen=True)
class Fact:
    """One true value of a subject."""

    kind: str
    subject: str
    value: str

    @property
    def question(self) -> str:
        """Asks for the value."""
        return KINDS[self.kind].question.format(s=self.subject)

    def sentence(self, value: str) -> str:
        """Says that the subject has this value, in the words in which the question is answered."""
        text = KINDS[self.kind].sentence.format(s=self.subject, v=value)
        return text[0].upper() + text[1:]


KINDS = {
    "capital": Kind("What is the capital of {s}?", "the capital of {s} is {v}."),
    "continent": Kind("Which continent is {s} in?", "{s} is in {v}."),
    "language": Kind("Which language do people speak in {s}?", "people in {s} speak {v}."),
    "young": Kind("What is a young {s} called?", "a young {s} is called a {v}."),
}
COUNTRIES = """
    France: Paris, Europe, French
    Germany: Berlin, Europe, German
    Italy: Rome, Europe, Italian
    Spain: Madrid, Europe, Spanish
    Portugal: Lisbon, Europe, Portuguese
    Greece: Athens, Europe, Greek
    Austria: Vienna, Europe, German
    Poland: Warsaw, Europe, Polish
    Hungary: Budapest, Europe, Hungarian
    Norway: Oslo, Europe, Norwegian
    Sweden: Stockholm, Europe, Swedish
    Denmark: Copenhagen, Europe, Danish
    Finland: Helsinki, Europe, Finnish
    Ireland: Dublin, Europe, English
    Russia: Moscow, -, Russian
    Ukraine: Kyiv, Europe, Ukrainian
    Romania: Bucharest, Europe, Romanian
    Bulgaria: Sofia, Europe, Bulgarian
    Turkey: Ankara, -, Turkish
    Egypt: Cairo, Africa, Arabic
    Kenya: Nairobi, Africa, -
    Morocco: -, Africa, Arabic
    Nigeria: Abuja, Africa, English
    Ethiopia: -, Africa, -
    Ghana: Accra, Africa, English
    Iraq: Baghdad, -, Arabic
    Iran: Tehran, Asia, Persian
    India: New Delhi, Asia, -
    China: Beijing, Asia, Chinese
    Japan: Tokyo, Asia, Japanese
    South Korea: Seoul, Asia, Korean
    Thailand: Bangkok, Asia, Thai
    Vietnam: Hanoi, Asia, Vietnamese
    Indonesia: Jakarta, Asia, Indonesian
    Pakistan: Islamabad, Asia, -
    Nepal: Kathmandu, Asia, -
    Cuba: Havana, North America, Spanish
    Mexico: Mexico City, North America, Spanish
    Canada: Ottawa, North America, -
    Peru: Lima, South America, Spanish
    Chile: Santiago, South America, Spanish
    Brazil: -, South America, Portuguese
    Argentina: Buenos Aires, South America, Spanish
    Colombia: -, South America, Spanish
    Venezuela: Caracas, South America, Spanish
    Lebanon: Beirut, -, Arabic
    Syria: Damascus, Asia, Arabic
    Afghanistan: Kabul, Asia, -
"""
YOUNG = """
    cat: kitten, dog: puppy, cow: calf, horse: foal, sheep: lamb, goat: kid, duck: duckling,
    frog: tadpole, kangaroo: joey, lion: cub, deer: fawn, pig: piglet, hen: chick
"""


def facts() -> list[Fact]:
    """Every fact, those of one subject together."""
    every = []
    for line in COUNTRIES.strip().splitlines():
        subject, _, values = line.strip().partition(": ")
        for kind, value in zip(("capital", "continent", "language"), values.split(", "), strict=True):
            if value != "-":
                every.append(Fact(kind, subject, value))
    for entry in YOUNG.replace("\n", " ").split(","):
        subject, _, value = entry.strip().partition(": ")
        every.append(Fact("young", subject, value))
    return every
