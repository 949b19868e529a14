"""Preference pairs and tasks, read strictly: no bad row slips in or out unseen, and no content is lost.

A row of a pair file::

    {"prompt": "Is the earth flat?", "chosen": "No.", "rejected": "Yes."}

| field | meaning |
|---|---|
| `prompt` or `messages` | exactly one: plain text, or turns `{"role": ..., "content": ...}` up to a user's |
| `chosen`, `rejected` | the preferred answer and the other one, as text without any template |
| `image` | optional path of a picture, relative to the pair file |
| `id` | optional name of the row; default: its number, as "000012"; given twice, the second becomes "a#2" |
| `choices`, `label` | optional: multiple-choice answers, the right one's index from 0 |

A row of a task file has `prompt` or `messages`, `answer`, and optionally `image` and `id`.  A null counts as an absent
field.  Further columns are listed if they hold no content (scores, sources) and refused if they do.

| module | for |
|---|---|
| `pairs` | what the readers give; checks of texts and tokens; the digest |
| `shapes`, `turns` | rows as trl, ms-swift and LLaMA-Factory write them (`docs/data.md`) |
| `fields`, `columns` | each field checked; columns that no reader takes |
| `containers` | JSONL, JSON arrays, CSV, Parquet, gzip |
| `reading` | all of it in order |
| `images` | pictures, read strictly |

Nothing but the standard library is imported; pyarrow where a Parquet file asks for it. `images` needs Pillow, and no
other module imports it.
"""

from grains_ref.data.pairs import (
    PICTURE_MARK,
    FieldError,
    Message,
    PairFile,
    PairFileError,
    PreferencePair,
    Prompt,
    RowError,
    Task,
    TaskFile,
    Where,
    check_list,
    check_prompt,
    check_texts,
    check_tokens,
    check_visible,
    content_digest,
    excess_tokens,
    picture_bytes,
    warn_of_repetition,
)
from grains_ref.data.reading import read_column, read_pairs, read_tasks, stream_pairs

__all__ = [
    "PICTURE_MARK",
    "FieldError",
    "Message",
    "PairFile",
    "PairFileError",
    "PreferencePair",
    "Prompt",
    "RowError",
    "Task",
    "TaskFile",
    "Where",
    "check_list",
    "check_prompt",
    "check_texts",
    "check_tokens",
    "check_visible",
    "content_digest",
    "excess_tokens",
    "picture_bytes",
    "read_column",
    "read_pairs",
    "read_tasks",
    "stream_pairs",
    "warn_of_repetition",
]
