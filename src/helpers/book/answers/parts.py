"""Parts: what of the answers stands on which page: boxes of chapters, the first page, and the page of questions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from helpers.book.answers.numbers import LOOKS, PAGE, Gathered, anchor, gathered, linked_number, look
from helpers.book.answers.questions import MONDAY, MOST, NOTES, QUESTIONS, SECTIONS, Imperative, settled
from helpers.book.answers.statements import SO, UNMEASURED, outcome, stated
from helpers.book.answers.wording import CHAPTERS, STATEMENTS
from helpers.book.markup import code, folded, text
from helpers.figures.findings_tables import claim_sentences, counted
from helpers.study import chapters
from helpers.study.claims import CLAIMS, RULES_SET, SEEDS
from helpers.study.evidence.behaviour import UPDATES
from helpers.study.findings import CONTRADICTED, INCONCLUSIVE, MIXED, NOT_RUN, SUPPORTED

UP = "../"  # from `book/` and `notebooks/` to the folder of the site
GROUPS = {SUPPORTED: "Holds", CONTRADICTED: "Does not hold", MIXED: "Does not hold as a whole",
          INCONCLUSIVE: "Cannot be told, because", NOT_RUN: "Not measured in these runs"}  # fmt: skip
TESTED = next(iter(UPDATES))  # the model before any update
BROKEN = {"refusals": ("refusals",), "thresholds of monitors": ("last", "mean")}  # what the first figure shows, by whose numbers
CAUSES = {  # how a reason begins or what it holds: the cause in words
    "no premise": "there was too little to see: what must be lost, or be alike, first was not so in enough seeds",
    "fewer than": "too few seeds were run",
    "needs about": "the intervals are too wide for these seeds and items",
    "too near": "the effect is too near its bound for any study of this size",
    "nil within": "there is no effect to speak of, and nothing lies beyond the bound",
    "not run": "a part was not measured",
}


def _found(run: Path) -> Gathered:
    return gathered(run.parents[1])


def runs_in_words(found: Gathered) -> str:
    """Which runs these are, as Markdown."""
    models = Counter(model for model, _ in found.runs)
    said = " and ".join(f"{counted(count)} of {code(model)}" for model, count in models.items())
    return f"profile {code(found.profile)}, {said or 'no finished run'}"


# ---------------------------------------------------------------- chapters


def in_short(run: Path, chapter: str) -> str:
    """The box *In short* of a chapter, `05_staleness`: what the runs of its profile found, or what is missing to say so."""
    found = _found(run)
    lines = _counts(found) if chapter[:2] == "11" and found.runs else _sentences(found, chapter)
    return f":::{{admonition}} In short\n:class: important in-short\n{chr(10).join(lines)}\n\n*{runs_in_words(found)}*\n:::\n"


def _sentences(found: Gathered, chapter: str) -> list[str]:
    names = CHAPTERS.get(chapter[:2], ())
    ends = {name: outcome(found, STATEMENTS[name]) for name in names}
    measured = [name for name in names if ends[name] != UNMEASURED]
    if not measured:
        return [_nothing(found, chapter)]
    left = [STATEMENTS[name].whether for name in names if ends[name] == UNMEASURED]
    lines = [f"- {stated(found, STATEMENTS[name], UP)}" for name in measured]
    return [*lines, *([f"- It was not measured in these runs whether {', nor whether '.join(left)}."] if left else [])]


def _nothing(found: Gathered, chapter: str) -> str:
    """What to say where no statement can be made: what is missing, and the command that makes it."""
    if not found.chapters.get(chapter):
        return f"No finished run of this profile holds this chapter: {code(f'make study PROFILE={found.profile}')} makes it."
    return (f"These runs do not hold what the rules of {RULES_SET} ask for: they lack its part, or are older than the rules. "
            f"{code(f'make study PROFILE={found.profile} FORCE=1')} measures it.")  # fmt: skip


def _counts(found: Gathered) -> list[str]:
    groups = {verdict: list(found.findings.loc[found.findings["verdict"] == verdict, "claim"]) for verdict in GROUPS}
    return [f"- {GROUPS[verdict].removesuffix(', because')}: {tally(len(own))} ({text(', '.join(own))})."
            for verdict, own in groups.items() if own]  # fmt: skip


def tally(count: int) -> str:
    """A number of claims, linked to the line that says how verdicts are made."""
    return f'<a class="number" href="{UP}{PAGE}#{anchor("verdicts")}">{count}</a> claim{"" if count == 1 else "s"}'


# ---------------------------------------------------------------- the first page


def chosen(found: Gathered) -> list[Imperative]:
    """The imperatives of the first page, at most MOST, in the order of doing; whose statement and claim are decided stay."""

    def rank(each: Imperative) -> int:
        which = outcome(found, STATEMENTS[each.statement])
        return 0 if settled(which, found.verdict(each.claim)) else 2 if which == UNMEASURED else 1

    best = sorted(MONDAY, key=lambda each: (rank(each), MONDAY.index(each)))[:MOST]
    return [each for each in MONDAY if each in best]


def on_monday(root: Path, run: Path) -> str:
    """At most five imperatives, each with what it rests on, the verdict of its claim, and its chapter."""
    found = _found(run)
    lines = [_imperative(found, each, root) for each in chosen(found)]
    note = f"From {runs_in_words(found)}. {{doc}}`More questions <faq>`; {{doc}}`how far this carries <limits>`."
    return "\n".join([*lines, "", note, ""])


def _imperative(found: Gathered, each: Imperative, root: Path) -> str:
    statement = STATEMENTS[each.statement]
    which = outcome(found, statement)
    words = each.words(which, found.verdict(each.claim))
    return f"1. **{words}.** {stated(found, statement, UP)} ({_cited(found, each.claim, root)})"


def _cited(found: Gathered, claim: str, root: Path) -> str:
    return f"{claim}: {text(found.verdict(claim))}, {chapter_of(claim, root)}"


def _cited_whole(found: Gathered, claim: str, root: Path, names: Sequence[str]) -> str:
    still = _still(found, claim, [name for name in names if name in statements_of(claim)])
    return f"{_cited(found, claim, root)}{f' ({still})' if still else ''}"


def _still(found: Gathered, claim: str, names: Sequence[str]) -> str:
    """What is open of a claim on which one of these statements rests that is said as if it were settled."""
    return left_open(found, claim) if any(outcome(found, STATEMENTS[name]) == SO for name in names) else ""


def left_open(found: Gathered, claim: str) -> str:
    """Which parts leave a claim open; nothing where the claim is not open."""
    rows = found.components[(found.components["claim"] == claim) & ~found.components["beside"].astype(bool)]
    if found.verdict(claim) != INCONCLUSIVE:
        return ""
    open_ = dict.fromkeys(rows.loc[rows["answer"] != SUPPORTED, "name"])
    return f"open in {len(open_)} of {rows['component'].nunique()} parts: {text('; '.join(open_))}"


def chapter_of(claim: str, root: Path) -> str:
    """The chapter of a claim as a link, from a page in `book/`."""
    names = list(chapters.discover(root))
    name = next(one for one in names if one.startswith(CLAIMS[claim].chapter))
    return f"{{doc}}`chapter {name[:2]} <../notebooks/{name}>`"


def look_message(root: Path, run: Path) -> str:
    """What the first figure shows, as its title: the most that an update does to refusals and to thresholds, and what is sure."""
    found = _found(run)
    most = {question: update for question in LOOKS if (update := _most(found, question))}
    if "refusals" not in most:
        return "**What updates do to refusals and monitors was not measured in these runs.**"
    sure = [words for words, asked in BROKEN.items() if any(_beyond(found, most[one], one) for one in asked if one in most)]
    title = f"Updates break {' and '.join(sure)}" if sure else "What updates break cannot be told from these runs"
    lines = [f"{linked_number(found, look(most[one], one), UP)} {LOOKS[one]} ({text(most[one])})" for one in most]
    before = f"As it was tested, {linked_number(found, look(TESTED, 'refusals'), UP)} {LOOKS['refusals']}"
    return f"**{title}.** {before}. At most: {'; '.join(lines)}."


def _most(found: Gathered, question: str) -> str | None:
    """The update with the largest value."""
    values = {update: found.told[key][0].value for update in UPDATES if (key := look(update, question)) in found.told}
    return max(values, key=values.__getitem__) if TESTED in values else None


def _beyond(found: Gathered, update: str, question: str) -> bool:
    """Whether a value lies above that of the tested model, intervals and all, in enough seeds."""
    new, old = (found.told[look(name, question)][0] for name in (update, TESTED))
    return new.low > old.high and min(new.seeds, old.seeds) >= SEEDS


def claims_by_verdict(root: Path, run: Path) -> str:
    """All claims, by what became of them; the open ones by why they are open."""
    found = _found(run)
    parts = []
    for verdict, title in GROUPS.items():
        own = found.findings[found.findings["verdict"] == verdict]
        if own.empty:
            continue
        lines = "\n".join(_claim(found, claim, root) for claim in own["claim"])
        parts.append(f"### {title}\n\n{_by_cause(found, own, root) if verdict == INCONCLUSIVE else lines}\n")
    return "\n".join(parts)


def _claim(found: Gathered, claim: str, root: Path) -> str:
    key, head = f"{claim.lower()}-1", CLAIMS[claim].components[0].name
    told = found.told.get(key, ())
    missing = " not measured" * (found.verdict(claim) != NOT_RUN and all(each.answer == NOT_RUN for each in told))
    number = f" {linked_number(found, key, UP)}" if any(each.measured for each in told) else missing
    shown = f": {text(head)}{number}" if number else ""
    still = left_open(found, claim) if any(each.answer == SUPPORTED for each in told) else ""  # a number that looks decided
    notes = filter(None, (still, chapter_of(claim, root)))
    return f"- **{claim}** {text(CLAIMS[claim].short)}{shown} ({'; '.join(notes)})"


def _by_cause(found: Gathered, own: pd.DataFrame, root: Path) -> str:
    causes: dict[str, list[str]] = {}
    for claim in own["claim"]:
        causes.setdefault(cause(found, str(claim)), []).append(str(claim))
    return "\n".join(
        f"... {CAUSES[name]}:\n\n" + "\n".join(_claim(found, claim, root) for claim in causes[name]) + "\n"
        for name in CAUSES if name in causes
    )  # fmt: skip


def cause(found: Gathered, claim: str) -> str:
    """The cause, of CAUSES, that leaves most conjuncts of a claim open; of two as frequent, the first."""
    rows = found.components[(found.components["claim"] == claim) & ~found.components["beside"].astype(bool)]
    seen = Counter(name for why in rows["reason"] for name in CAUSES if name in why)
    return max(CAUSES, key=lambda name: seen[name]) if seen else "needs about"


# ---------------------------------------------------------------- findings in plain words


def claims_in_words(root: Path, run: Path) -> str:
    """Every claim: its verdict, what was found in a sentence or two, what the literature has, and all of its parts folded."""
    found = _found(run)
    lines, texts = [], claim_sentences(found.findings, found.components)
    for claim, words in CLAIMS.items():
        if claim.endswith("1"):
            lines.append(f"## {text(SECTIONS[claim[0]])}\n")
        said = " ".join(stated(found, STATEMENTS[name], UP) for name in statements_of(claim))
        note = text(NOTES[claim]) if claim in NOTES else ""
        still = _still(found, claim, statements_of(claim))
        lines.append(f"### {claim}: {text(words.short)}\n\n*{text(words.statement)}* **{text(found.verdict(claim))}.**"
                     f"{f' {still[0].upper()}{still[1:]}.' if still else ''}\n\n"
                     f"{said} {note} *Literature:* {text(words.literature)}. More: {chapter_of(claim, root)}.\n\n"
                     f"{folded('Every part, and what was asked of it', _every_part(texts, claim))}")  # fmt: skip
    return "\n".join(lines)


def statements_of(claim: str) -> list[str]:
    """The statements that rest on parts of a claim."""
    return [name for name, each in STATEMENTS.items() if any(key.startswith(f"{claim.lower()}-") for key in each.parts)]


def _every_part(texts: Mapping[str, str], claim: str) -> str:
    own = [texts[f"{claim.lower()}-{place}"] for place in range(1, len(CLAIMS[claim].components) + 1)]
    return "\n".join(f"- {text(line)}" for line in own)


# ---------------------------------------------------------------- questions


def faq(root: Path, run: Path) -> str:
    """The questions of engineers, each with its answer, the verdicts that it rests on, and the chapters with the rest."""
    found = _found(run)
    sections = []
    for each in QUESTIONS:
        said = " ".join(stated(found, STATEMENTS[name], UP) for name in each.statements)
        cited = "; ".join(_cited_whole(found, claim, root, each.statements) for claim in each.claims)
        sections.append(f"## {text(each.question)}\n\n{said}\n\n{cited}.\n")
    return "\n".join([*sections, f"*From {runs_in_words(found)}.*\n"])


PAGES: dict[str, Callable[[Path, Path], str]] = {  # what stands in the place of a mark of a page
    "on-monday": on_monday,
    "look-message": look_message,
    "claims-by-verdict": claims_by_verdict,
    "claims-in-words": claims_in_words,
    "faq": faq,
}
