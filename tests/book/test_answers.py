"""Answers: every outcome has its sentence, every number in it is made again, and nothing is said that was not measured."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.tiers import slow

from helpers import folders
from helpers.book import pages
from helpers.book.answers import numbers, origins, parts, questions, statements, wording
from helpers.book.answers.facts import FACTS
from helpers.book.answers.numbers import Gathered, Told, look
from helpers.book.answers.questions import MONDAY, QUESTIONS, SECTIONS
from helpers.book.answers.statements import NIL, NOT_SO, OPEN, PARTLY, SO, outcome, stated
from helpers.book.answers.wording import CHAPTERS, STATEMENTS
from helpers.figures.findings_tables import said
from helpers.stats.intervals import Estimate
from helpers.stats.over_seeds import over_seeds
from helpers.study import findings
from helpers.study.claims import CLAIMS, LEVELS, UNITS, Component
from helpers.study.evidence.behaviour import UPDATES

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "results" / "cpu" / "toy" / "seed-0"
LINK = re.compile(r'<a class="number" href="\.\./book/provenance\.html#a-(?P<key>[a-z0-9-]+)">(?P<body>.*?)</a>')
VAGUE = re.compile(r"if there is|where the profile|may or may not", re.IGNORECASE)
TYPED = ("4 bits", "4-bit", "3 bits", "5 %", "0.05 AUROC", "bf16", "NF4")  # names and settings, not results
ASKED = {claim_key: component for claim, found in CLAIMS.items() for place, component in enumerate(found.components, 1)
         for claim_key in [f"{claim.lower()}-{place}"]} | FACTS  # fmt: skip
NAMED = [name for name, each in STATEMENTS.items() if each.parts]


def seen(component: Component, way: str, seeds: int = 3) -> list[Estimate]:
    """What so many seeds say that makes a component end in this way."""
    low, high = UNITS[component.unit].bounds
    bound, step = component.bound, UNITS[component.unit].step
    up, down = min(bound + 10 * step, (bound + high) / 2), max(bound - 10 * step, (bound + low) / 2)
    wanted, other = (down, up) if component.side == "below" else (up, down)
    if component.side == "within":
        wanted, other = bound, bound + 3 * component.margin
    tight = component.margin / 4 or min(step, abs(up - bound), abs(bound - down)) / 8
    value, half = {SO: (wanted, tight), NOT_SO: (other, tight), NIL: (bound, tight), OPEN: (bound, 0.0)}[way]
    if way == OPEN:  # off the bound, and wide
        value = bound + 0.4 * (wanted - bound)
        return [Estimate(value, max(value - 30 * step, low), min(value + 30 * step, high), 50)] * seeds
    return [Estimate(value, value - half, value + half, 50)] * seeds


@cache
def judged(ways: tuple[tuple[str, str], ...], seeds: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Findings, components and what each seed says, where the numbers of these keys end in these ways."""
    rows = []
    for key, way in ways:
        claim, _, place = key.partition("-")
        for seed, e in enumerate(seen(ASKED[key], way, seeds)):
            rows.append((claim.upper(), int(place), "toy", seed, e.value, e.low, e.high, e.n, np.nan, True))
    dots = pd.DataFrame(rows, columns=findings.DOTS[:-1]).astype({"counts": bool})
    return (*findings.judge(dots), dots)


def planted(
    ways: dict[str, str], seeds: int = 3, looks: dict[tuple[str, str], float] | None = None, verdicts: bool = False,
) -> Gathered:  # fmt: skip
    """What would be gathered where the numbers of these keys end in these ways, and nothing else was measured.

    verdicts: claims are judged too, else all of them count as not run.
    """
    found, components, dots = judged(tuple((key, way) for key, way in ways.items() if verdicts and key not in FACTS), seeds)
    told = []
    for key, component in ASKED.items():
        own = seen(component, ways[key], seeds) if key in ways else []
        told.append(numbers._over(key, component, "toy", {str(seed): e for seed, e in enumerate(own)}))
    for (update, question), value in (looks or {}).items():
        ends = (value, max(value - 0.02, 0.0), min(value + 0.02, 1.0))
        told.append(Told(look(update, question), update, "toy", "share", *ends, 50, seeds, ""))
    runs = tuple(("toy", seed) for seed in range(seeds)) if ways else ()
    return Gathered("planted", runs, Counter(), found, components, dots, dict(numbers._grouped(told)))


def plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", LINK.sub(r"\g<body>", text))


def again(key: str, way: str, seeds: int = 3) -> str:
    """The number of a key, made from what each seed says by the estimator for seeds."""
    component = ASKED[key]
    e = over_seeds(seen(component, way, seeds), LEVELS[component.side], UNITS[component.unit].bounds)
    return said(component.unit, e.value, e.low, e.high)


def test_numbers_of_claims_are_the_judges():
    ways = {key: SO if place % 2 else OPEN for place, key in enumerate(ASKED) if key[:2] in {"m1", "s1", "n2"}}
    _, components, dots = judged(tuple(ways.items()), 3)
    told = {each.key: each for each in numbers._of_claims(components, dots)}
    assert {key: told[key] for key in ways} == {key: each.told[key][0] for each in [planted(ways)] for key in ways}


# ---------------------------------------------------------------- a sentence for each outcome


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("way", [SO, NOT_SO, OPEN, NIL])
def test_each_outcome_has_its_sentence_and_each_number_in_it_is_made_again(name, way):
    statement = STATEMENTS[name]
    if way == NIL and any(ASKED[key].side == "within" for key in statement.parts):
        pytest.skip("sameness has no nil: it is what is claimed")
    ways = dict.fromkeys(statement.keys, way)
    found = planted(ways)
    assert outcome(found, statement) == way
    told = stated(found, statement, "../")
    assert not VAGUE.search(told)
    opening = {SO: statement.yes, NOT_SO: statement.no, OPEN: "It cannot be told yet whether", NIL: "There is no sign that"}[way]
    assert told.startswith(opening.partition("{")[0])
    links = [(match["key"], plain(match["body"])) for match in LINK.finditer(told)]
    assert {key for key, _ in links} >= set(statement.parts) if way in {OPEN, NIL} else links
    assert links == [(key, again(key, way)) for key, _ in links]


def test_the_ways_to_say_it_differ_and_no_result_is_typed():
    for name, each in STATEMENTS.items():
        assert each.yes != each.no, name
        for text in (each.whether, each.yes, each.no, each.beside):
            bare = statements.KEY.sub("", text)
            for setting in TYPED:
                bare = bare.replace(setting, "")
            assert not re.search(r"\d", bare), (name, bare)
            assert all(match["key"] in ASKED for match in statements.KEY.finditer(text)), name
            assert not VAGUE.search(text), name


def test_parts_that_differ_are_told_apart():
    statement = STATEMENTS["threshold-formats"]
    found = planted({"m1-3": NOT_SO, "m1-4": SO})
    assert outcome(found, statement) == PARTLY
    told = plain(stated(found, statement))
    assert told.startswith("It depends whether thresholds hold in 4 bits and more: last token ")
    assert re.search(r"last token [^()]*\(no\), mean of tokens [^()]*\(yes\)\.$", told)
    half = plain(stated(planted({"m1-3": NOT_SO, "m1-4": OPEN}), statement))
    assert half.startswith("It is only partly clear whether")
    assert re.search(r"\(no\), mean of tokens [^()]*\(open: [a-z].*\)\.$", half)
    left = plain(stated(planted({"m1-3": SO}), statement))
    assert left.startswith("It is only partly clear whether")
    assert left.endswith("(yes), mean of tokens (not measured).")


def test_a_part_that_was_not_measured_is_said_so_beside_one_that_is_open():
    """The fault: `last token, mean of tokens -22 points`, where no seed had a monitor of the last token."""
    for way, sign in ((OPEN, "(needs about"), (NIL, "(nil within")):
        told = plain(stated(planted({"m3-2": way}), STATEMENTS["privacy"]))
        assert ": last token (not measured), mean of tokens " in told
        assert sign in told
    found = planted({"m3-2": OPEN})
    other = replace(found.told["m3-2"][0], model="other", answer=findings.NOT_RUN, seeds=0)
    both = replace(found, told={**found.told, "m3-2": (*found.told["m3-2"], other)})
    assert "other: not measured" in plain(stated(both, STATEMENTS["privacy"]))


def test_one_seed_decides_nothing_and_says_so():
    found = planted(dict.fromkeys(["s6-1", "over-refusal"], SO), seeds=1)
    assert plain(stated(found, STATEMENTS["benign"])).endswith("; 1 seed, and fewer than 3 decide nothing.")
    assert plain(stated(found, STATEMENTS["over-refusal"])).endswith(" (1 seed).")
    assert "seed" not in stated(planted({"over-refusal": SO}), STATEMENTS["over-refusal"])


def test_where_no_seed_counts_the_reason_leads_to_the_origin():
    found = planted({})
    why = "no premise: at least 20 points of damage in 0 of 3 seeds"
    open_ = replace(found.told["s2-1"][0], answer=findings.INCONCLUSIVE, reason=why)
    told = stated(replace(found, told={**found.told, "s2-1": (open_,)}), STATEMENTS["projected"], "../")
    assert [(match["key"], plain(match["body"])) for match in LINK.finditer(told)] == [("s2-1", why)]
    assert told.startswith("It cannot be told yet whether projecting")


def test_a_number_that_some_seeds_lack_says_on_how_many_it_rests():
    found = planted(dict.fromkeys(["q2-1", "q2-3"], SO))
    more = Gathered(found.profile, (*found.runs, ("toy", 3), ("toy", 4)), found.chapters, found.findings, found.components,
                    found.dots, found.told)  # fmt: skip
    assert "(3 of 5 seeds)" in stated(more, STATEMENTS["silenced"])
    assert "of 5 seeds" not in stated(found, STATEMENTS["silenced"])


def test_what_is_said_beside_is_said_only_where_it_was_measured():
    ways = dict.fromkeys(["m1-3", "m1-4"], SO)
    assert "Where nothing changed" not in stated(planted(ways), STATEMENTS["threshold-formats"])
    both = planted(ways | dict.fromkeys(["untouched-last", "untouched-mean"], SO))
    assert "Where nothing changed" in stated(both, STATEMENTS["threshold-formats"])


# ---------------------------------------------------------------- boxes


@pytest.fixture
def shown(monkeypatch):
    """Makes pages show what was planted."""
    return lambda found: monkeypatch.setattr(parts, "gathered", lambda profile: found)


@pytest.mark.parametrize("chapter", list(CHAPTERS))
@pytest.mark.parametrize("way", [SO, OPEN])
def test_the_box_of_a_chapter_says_what_its_numbers_say(chapter, way, shown):
    ways = {key: way for name in CHAPTERS[chapter] for key in STATEMENTS[name].keys}
    found = planted(ways)
    shown(found)
    box = parts.in_short(RUN, f"{chapter}_x")
    assert box.startswith(":::{admonition} In short\n")
    assert 2 <= sum(line.startswith("- ") for line in box.splitlines()) <= 3
    links = [(match["key"], plain(match["body"])) for match in LINK.finditer(box)]
    assert links == [(key, again(key, way)) for key, _ in links] != []
    assert not VAGUE.search(box)


def test_a_box_is_never_empty_but_says_what_is_missing(shown):
    shown(planted({}))
    for chapter in (*CHAPTERS, "11"):
        assert "`make study PROFILE=planted` makes it." in parts.in_short(RUN, f"{chapter}_x")
    found = planted({"s6-1": SO})
    shown(found)
    box = parts.in_short(RUN, "03_x")
    assert "costs refusals: " in box
    assert "It was not measured in these runs whether one harmful row in ten costs refusals, nor whether merging" in box
    older = Gathered(found.profile, found.runs, Counter({"05_x": 3}), found.findings, found.components, found.dots, found.told)
    shown(older)
    assert "older than the rules" in parts.in_short(RUN, "05_x")  # the chapter was run, and holds none of what is asked


def test_chapter_eleven_counts_every_claim_once(shown):
    shown(planted({"m1-1": SO, "s6-1": OPEN}, verdicts=True))
    box = parts.in_short(RUN, "11_findings")
    counts = [int(match["body"]) for match in LINK.finditer(box)]
    assert sum(counts) == len(CLAIMS)
    assert sorted(re.findall(r"\b[MSQN]\d\b", plain(box))) == sorted(CLAIMS)


def test_the_box_stands_right_below_the_title_and_the_run_at_the_end():
    cell = pages.with_boxes("# 5. A title\n\n**Question.** Why?\n", ":::{admonition} In short\nx\n:::\n", "RUN")
    assert cell == "# 5. A title\n\n:::{admonition} In short\nx\n:::\n\n**Question.** Why?\n\nRUN"


# ---------------------------------------------------------------- the first page, and questions


def whole(claim: str) -> list[str]:
    """The keys of a claim's conjuncts."""
    return [f"{claim.lower()}-{place}" for place, each in enumerate(CLAIMS[claim].components, 1) if not each.beside]


@pytest.mark.parametrize("rest", [SO, None], ids=["whole", "in part"])
@pytest.mark.parametrize("way", [SO, NOT_SO, OPEN])
def test_the_first_page_has_at_most_five_imperatives_each_with_number_verdict_and_chapter(way, rest, shown):
    ways = {key: SO for each in MONDAY for key in whole(each.claim) if rest}
    found = planted(ways | {key: way for each in MONDAY for key in STATEMENTS[each.statement].keys}, verdicts=True)
    shown(found)
    lines = [line for line in parts.on_monday(ROOT, RUN).splitlines() if line.startswith("1. ")]
    assert len(lines) == questions.MOST
    for line, each in zip(lines, parts.chosen(found), strict=True):
        so = each.so if rest or set(whole(each.claim)) <= set(STATEMENTS[each.statement].keys) else each.in_part
        words = {SO: so, NOT_SO: each.not_so}.get(way, each.unsure)
        assert line.startswith(f"1. **{words}.** ")
        assert LINK.search(line)
        assert re.search(rf"\({each.claim}: {found.verdict(each.claim)}, {{doc}}`chapter {CLAIMS[each.claim].chapter} <", line)


def test_imperatives_differ_by_outcome_and_the_decided_come_first():
    for each in MONDAY:
        assert len({each.so, each.not_so, each.in_part, each.unsure}) == 4
        for open_ in (each.in_part, each.unsure):
            assert re.search(r": .* not (shown|settled) here$", open_), "what is open is said to be open"
        assert each.claim.lower() in {key.partition("-")[0] for key in STATEMENTS[each.statement].parts}
    found = planted({key: SO for claim in ("S2", "N3") for key in whole(claim)} | {"m2-3": OPEN, "m2-4": OPEN}, verdicts=True)
    assert {"projected", "merged", "threshold-lora"} <= {each.statement for each in parts.chosen(found)}
    part = planted({"s2-1": SO, **{key: SO for claim in ("M1", "M2", "M5", "N2", "N3") for key in whole(claim)}}, verdicts=True)
    assert part.verdict("S2") == findings.INCONCLUSIVE
    assert "projected" not in {each.statement for each in parts.chosen(part)}, "refusals come back, and the claim is open"
    assert [each.statement for each in parts.chosen(planted({}))] == [each.statement for each in MONDAY[: questions.MOST]]


def test_the_first_figure_is_given_a_title_that_its_numbers_bear(shown):
    flat = {(update, question): 0.1 for update in UPDATES for question in numbers.LOOKS}
    shown(planted({"m1-1": SO}, looks=flat))
    assert parts.look_message(ROOT, RUN).startswith("**What updates break cannot be told from these runs.**")
    last = list(UPDATES)[-1]
    shown(planted({"m1-1": SO}, looks=flat | {(last, "refusals"): 0.9}))
    told = parts.look_message(ROOT, RUN)
    assert told.startswith("**Updates break refusals.**")
    assert f"90 % [88, 92] of AdvBench's prompts not refused ({last})" in plain(told)
    shown(planted({"m1-1": SO}, looks=flat | {(last, "refusals"): 0.9, (last, "mean"): 0.5}))
    assert parts.look_message(ROOT, RUN).startswith("**Updates break refusals and thresholds of monitors.**")
    shown(planted({"m1-1": SO}, looks=flat | {(last, "refusals"): 0.9}, seeds=2))
    assert "cannot be told" in parts.look_message(ROOT, RUN)
    shown(planted({}))
    assert "was not measured" in parts.look_message(ROOT, RUN)


def test_claims_are_grouped_by_verdict_and_the_open_ones_by_their_cause(shown):
    ways = {f"{claim}-{place}": way for claim, way in (("n2", SO), ("s1", NOT_SO), ("s6", OPEN))
            for place in range(1, len(CLAIMS[claim.upper()].components) + 1)}  # fmt: skip
    shown(planted(ways, verdicts=True))
    page = plain(parts.claims_by_verdict(ROOT, RUN))
    sections = dict(re.findall(r"### (.+)\n\n([^#]*)", page))
    assert "**N2**" in sections["Holds"]
    assert "**S1**" in sections["Does not hold"]
    assert "... the intervals are too wide for these seeds and items:\n\n- **S6**" in sections["Cannot be told, because"]
    assert Counter(re.findall(r"\*\*([MSQN]\d)\*\*", page)) == dict.fromkeys(CLAIMS, 1)
    shown(planted({"s6-1": SO, "s6-2": SO, "s6-3": SO}, seeds=2, verdicts=True))
    assert "... too few seeds were run:\n\n- **S6**" in plain(parts.claims_by_verdict(ROOT, RUN))


def test_a_settled_sentence_beside_an_open_claim_says_what_is_open(shown):
    """The fault: `One harmful row in ten costs refusals` beside *inconclusive*, and no word why."""
    found = planted({"s1-1": SO, "s1-2": OPEN, "s6-1": OPEN, "s6-2": SO, "s6-3": SO, "m3-2": OPEN}, verdicts=True)
    shown(found)
    said = "open in 1 of 2 parts: not refused, minus after as many benign"
    (line,) = (line for line in plain(parts.claims_by_verdict(ROOT, RUN)).splitlines() if "**S1**" in line)
    assert said in line
    answer = plain(parts.faq(ROOT, RUN)).partition("Do we lose refusals?")[2].partition("## ")[0]
    assert f"({said})" in answer
    assert answer.count("open in") == 1, "of S6 the sentence itself says that it is open"
    told = plain(parts.claims_in_words(ROOT, RUN))
    assert f"**inconclusive.** O{said[1:]}.\n\nOne harmful row in ten costs refusals" in told
    (line,) = (line for line in plain(parts.claims_by_verdict(ROOT, RUN)).splitlines() if "**M3**" in line)
    assert "unfit, privacy minus refusal: last token not measured" in line


@pytest.mark.parametrize("way", [SO, OPEN])
def test_every_claim_is_told_in_plain_words_with_its_parts_below(way, shown):
    shown(planted({key: way for each in STATEMENTS.values() for key in each.keys}))
    page = parts.claims_in_words(ROOT, RUN)
    entries = dict(re.findall(r"^### ([MSQN]\d): (.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(entries) == list(CLAIMS)
    for claim, entry in entries.items():
        assert LINK.search(entry), claim
        assert f"*Literature:* {CLAIMS[claim].literature}." in plain(entry)
        folded = entry.partition("{dropdown}")[2]
        assert folded.count("\n- ") == len(CLAIMS[claim].components)
        assert not VAGUE.search(entry)
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [
        head.replace("?", "\\?").replace(",", "\\,") for head in SECTIONS.values()
    ]


def test_questions_are_answered_and_found_by_their_words(shown):
    shown(planted({key: SO for each in STATEMENTS.values() for key in each.keys}))
    page = parts.faq(ROOT, RUN)
    heads = plain("\n".join(line for line in page.splitlines() if line.startswith("## ")))
    assert heads.count("## ") == len(QUESTIONS) >= 12
    for word in ("probe", "classifier", "drift", "recalibrate", "threshold", "merge", "PII", "QLoRA", "SafeLoRA", "check first"):
        assert word in heads, word
    for section in page.split("## ")[1:]:
        assert LINK.search(section)
        assert "{doc}`chapter " in section
    assert not VAGUE.search(page)


def test_every_number_that_can_be_shown_has_its_line(shown, monkeypatch):
    found = planted({key: SO for each in STATEMENTS.values() for key in each.keys})
    shown(found)
    monkeypatch.setattr(origins, "gathered", lambda profile: found)
    lines = set(re.findall(r'<tr id="a-([a-z0-9-]+)">', origins.answer_origins(ROOT, RUN)))
    whole = [make(ROOT, RUN) for name, make in parts.PAGES.items() if name != "look-message"]
    page = "".join([*whole, *(parts.in_short(RUN, f"{chapter}_x") for chapter in (*CHAPTERS, "11"))])
    assert {match["key"] for match in LINK.finditer(page)} <= lines
    assert {look(update, question) for update in UPDATES for question in numbers.LOOKS} <= lines


def test_ranking_and_threshold_are_the_words_of_what_monitors_lose():
    """Where a statement rests on AUROC it says ranking, and where on alarms threshold, or what happened to monitors."""
    for name in ("ranking-formats", "ranking-lora", "qlora", "private-ranking"):
        assert "rank" in STATEMENTS[name].whether and "threshold" not in STATEMENTS[name].whether  # noqa: PT018
    for name in ("threshold-formats", "threshold-lora", "reset", "private-threshold"):
        assert "threshold" in STATEMENTS[name].whether and "rank" not in STATEMENTS[name].whether  # noqa: PT018


def test_wording_covers_the_chapters_and_every_statement_is_shown_somewhere():
    chapters = [name[:2] for name in pages.book_chapters(ROOT)]
    assert [*CHAPTERS, "11"] == chapters
    asked = {name for names in CHAPTERS.values() for name in names} | {name for each in QUESTIONS for name in each.statements}
    asked |= {name for claim in CLAIMS for name in parts.statements_of(claim)}
    assert asked | {each.statement for each in MONDAY} == set(wording.STATEMENTS)
    for chapter, names in CHAPTERS.items():  # a chapter speaks of its own claims, or of facts
        owners = {key.partition("-")[0].upper() for name in names for key in STATEMENTS[name].parts if key not in FACTS}
        assert {CLAIMS[claim].chapter for claim in owners} <= {chapter}


# ---------------------------------------------------------------- committed runs

RUNS = folders.run_folders(ROOT / "results" / "cpu")


@slow("reads all committed runs")
@pytest.mark.skipif(not RUNS, reason="no committed run")
def test_the_numbers_of_committed_runs_are_those_of_their_tables():
    found = numbers.gathered(ROOT / "results" / "cpu")
    runs = [(model, seed, findings.run_tables(path)) for path in RUNS for model, seed in [(path.parts[-2], int(path.name[5:]))]]
    assert sorted((model, seed) for model, seed, _ in runs) == sorted(found.runs)
    judged, components = findings.collect(runs)
    for row in components.to_dict("records"):
        (own,) = (each for each in found.told[f"{row['claim'].lower()}-{row['component']}"] if each.model == row["model"])
        assert own.written == said(row["unit"], row["estimate"], row["low"], row["high"])
        assert own.answer == row["answer"]
    monday = parts.on_monday(ROOT, RUNS[0])
    assert len([line for line in monday.splitlines() if line.startswith("1. ") and LINK.search(line)]) >= 3
    for line in (line for line in monday.splitlines() if line.startswith("1. ") and ": inconclusive, " in line):
        assert re.match(r"1\. \*\*[^*]* not (shown|settled) here\.\*\*", line), "an open verdict, said as if it were settled"
    look_rows = findings.overlook(runs)
    for row in look_rows[look_rows["seed"] == findings.ALL].to_dict("records"):
        (own,) = (each for each in found.told[look(row["update"], row["asked"])] if each.model == row["model"])
        assert own.written == said("share", row["value"], row["low"], row["high"])
    shares = {"look-in-4-bits-last": "m1-3", "look-in-4-bits-mean": "m1-4"}  # no verdict against the figure above it
    for key, asked in shares.items():
        bar, claim = found.told[key][0], found.told[asked][0]
        bound = ASKED[asked].bound
        assert not (claim.answer == findings.SUPPORTED and bar.low > bound)
        assert not (claim.answer == findings.CONTRADICTED and bar.high < bound)
    assert {claim: found.verdict(claim) for claim in CLAIMS} == dict(zip(judged["claim"], judged["verdict"], strict=True))
