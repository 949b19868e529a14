"""Bugs planted one at a time to show that the suite notices each: `python tests/planted_bugs`.

`planting` puts one bug into a copy of the checkout and runs tests on it; the other modules are lists, one per room.
"""

from planted_bugs import datasets, evaluation, methods, models, reference, reproduction

BUGS = (*reference.BUGS, *models.BUGS, *methods.BUGS, *datasets.BUGS, *evaluation.BUGS, *reproduction.BUGS)
