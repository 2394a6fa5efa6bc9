"""Lines: verdicts and what moved, for a terminal."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import pandas as pd

from helpers.figures.findings_tables import counted, head_of, said
from helpers.study.claims import CLAIMS, UNITS

WIDTH = 110


def told_number(unit: str, told: Mapping[str, Any]) -> str:
    """A number with its interval, n and seeds: `+8 points [+2, +14] (n = 24, 3 seeds)`; or that it was not run."""
    if not told["seeds"] or told["estimate"] is None:
        return "not run"
    ends = [told[name] for name in ("estimate", "low", "high")]
    text = said(unit, *ends) if unit in UNITS else f"{ends[0]:.3g} [{ends[1]:.3g}, {ends[2]:.3g}]"
    return f"{text} (n = {told['n']:,}, {counted(told['seeds'])})"


def part_words(part: Mapping[str, Any], several: bool) -> str:
    """What one part of a claim said before and says now, and what was asked of it."""
    before, after = (_answered(part["unit"], part[when]) for when in ("before", "after"))
    name = f"{part['model']}, {part['name']}" if several else part["name"]
    return f"{name}: {before} → {after}; claimed {part['asked']}"


def _answered(unit: str, told: Mapping[str, Any]) -> str:
    number = told_number(unit, told)
    return number if number == told["answer"] else f"{told['answer']}, {number}"


def claim_parts(claim: Mapping[str, Any]) -> list[str]:
    """The parts that gave another answer in words; where none is known, the headlines of both sides."""
    several = len({part["model"] for part in claim["parts"]}) > 1
    if claim["parts"]:
        return [part_words(part, several) for part in claim["parts"]]
    return [f"headline: {told_number(claim['unit'], claim['before'])} → {told_number(claim['unit'], claim['after'])}"]


def verdict_words(claim: Mapping[str, Any]) -> str:
    """`supported → mixed`."""
    return f"{claim['before']['verdict']} → {claim['after']['verdict']}"


def move_lines(moves: Mapping[str, Any]) -> list[str]:
    """What moved between two sides, each claim with its parts; one line where nothing did."""
    rules = moves["rules"]
    heads = [f"rules: {_dates(rules['before'])} → {_dates(rules['after'])}"] if rules["before"] != rules["after"] else []
    notes = [f"note: {note}" for note in moves["notes"]]
    alone = [_alone(moves[side], moves[f"only_{side}"]) for side in ("old", "new") if moves[f"only_{side}"]]
    if not moves["moved"]:
        both = moves["claims"] - len(moves["only_new"])
        return [f"nothing moved: all {both} claims of both have the verdicts that they had", *alone, *notes]
    found = [f"{len(moves['moved'])} of {moves['claims']} claims moved from {moves['old']} to {moves['new']}", *heads]
    for claim in moves["moved"]:
        found.append(f"{claim['claim']:<4}{verdict_words(claim)}   {claim['short']}".rstrip())
        for text in [*claim_parts(claim), *(f"note: {note}" for note in claim["notes"])]:
            found += wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ", break_long_words=False)
    return [*found, *alone, *notes]


def _alone(side: str, claims: Sequence[Mapping[str, Any]]) -> str:
    return f"only in {side}: {', '.join('{claim} ({verdict})'.format_map(claim) for claim in claims)}"


def _dates(rules: Sequence[str]) -> str:
    return " and ".join(rules) or "unknown"


def table_lines(findings: pd.DataFrame) -> list[str]:
    """The verdicts as chapter 11 shows them: claim, verdict, seeds, chapter, ours with its interval; below it what is open."""
    rows = [_row(row) for row in findings.to_dict("records")]
    cells = [("claim", "verdict", "seeds", "chapter", "ours"), *(own for own, _ in rows)]
    wide = [max(len(line[place]) for line in cells) for place in range(4)]
    first, *others = ["  ".join([*(line[place].ljust(wide[place]) for place in range(4)), line[4]]) for line in cells]
    found = [first]
    for line, (_, why) in zip(others, rows, strict=True):
        found += [line, *wrap(why, WIDTH, initial_indent=" " * (wide[0] + 2), subsequent_indent=" " * (wide[0] + 4))]
    return found


def _row(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    head = head_of(row["claim"], row["reason"]) if row["claim"] in CLAIMS else None
    told = {**row, "estimate": None if pd.isna(row["estimate"]) else row["estimate"]}
    ours = f"{head.name}: {told_number(head.unit, told)}" if head else told_number("", told)
    why = f"open: {row['reason']}" if row["reason"] else ""
    return (row["claim"], row["verdict"], str(row["seeds"]), str(row["chapter"]), ours), why
