"""A fit that survives interruption.

| file | holds |
|---|---|
| `resumable` | the fit: finished examples are computed once, whatever ends the process |
| `together` | examples computed in one batch, and which of them is to blame |
| `edit_gradient` | the same for the edit gradient |
| `additions` | two options beyond the paper: shifts less those of random tokens, layers whose halves agree |
| `random_tokens` | the shifts of random tokens |
| `halves` | whether two halves of the pairs give the same vectors |
| `signal` | whether the vectors mean anything, from what a fit has anyway and a pass or two more |
| `work_folder` | where they are kept until the vectors are written |
"""

from grains_ref.fitting.additions import Additions
from grains_ref.fitting.resumable import (
    FitRecord,
    checked_examples,
    resumable_fit,
    score_settings,
    steering_vectors,
    tokens_digest,
)
from grains_ref.fitting.work_folder import WorkFolder, WorkFolderError, open_work_folder

__all__ = [
    "Additions",
    "FitRecord",
    "WorkFolder",
    "WorkFolderError",
    "checked_examples",
    "open_work_folder",
    "resumable_fit",
    "score_settings",
    "steering_vectors",
    "tokens_digest",
]
