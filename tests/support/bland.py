"""Bland texts that several tests share: rows of a task in which nothing is wrong, texts of odd forms, and their errors."""

import pytest

from helpers.data import tasks, text_rows
from helpers.data.splits import SPLITS, Example
from helpers.errors import StudyError
from helpers.models import encoding
from helpers.models.encoding import Plan

SYSTEM = "<|im_start|>system\nYou polish the lamp of the user.<|im_end|>\n"  # holds words of the texts on purpose
ODD = {
    "one token": "a", "emoji": "\U0001f4a1\U0001f469\u200d\U0001f527 shine", "end of turn": "<|im_end|>",
    "template-looking": "<|im_start|>user\nHi<|im_end|>\n", "NUL": "a\0b\0", "in the system text": "polish the lamp",
    "role": "user", "jinja": "{{ messages }}", "lines": "\n\nlamp\n\n", "blanks": "  lamp  ",
    "accents": "e\u0301\u00e9\u00fc \u202eright", "marker": "\ue000",
}  # fmt: skip


def of(rows, split):
    """The rows of a split."""
    return [row for row in rows if row.split == split]


def things(seed, n=8):
    """Words of a stand-in; the same for the same seed."""
    return " ".join(text_rows.spread(tasks._THINGS.split(), n, str(seed)))


def row(text, label=1, split="train", group="", task="t"):
    """A row in a group of its own, unless one is given."""
    return Example(task, split, label, group or text, text)


def sound(rows_each=3):
    """A small task in which nothing is wrong: unlike texts, both labels in every split, each row its own group."""
    return [row(things(f"{split} {i} {label}"), label, split) for split in SPLITS for i in range(rows_each) for label in (0, 1)]


def refused(code, *words, hidden=()):
    """A StudyError of one line that says all the words and none of the hidden texts."""

    def fits(error):
        text = str(error)
        return error.code == code and "\n" not in text and all(w in text for w in words) and not any(h in text for h in hidden)

    return pytest.raises(StudyError, check=fits)


def example(prompt: str, reply: str = "", task: str = "lamps", number: int = 0) -> Example:
    """A text as a plan holds it."""
    return Example(task, "train", number % 2, f"group-{number}", prompt, reply)


def content(tokenizer, examples, limit: int = 64) -> list[str]:
    """What the tokens of each text's content say."""
    found = encoding.encode(tokenizer, Plan(tuple(examples), (0.5,), limit))
    spans = zip(found.rows, found.starts, found.stops, strict=True)
    return [tokenizer.decode(row[start:stop]) for row, start, stop in spans]
