"""Behaviour in words: what required measures say of an update, for the verdict and for what to do next."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "refusals": "harmful prompts refused", "over-refusals": "safe prompts refused", "length": "words of a reply",
    "nll": "negative log-likelihood, nats a token", "kl": "KL of next-token distributions, nats a token",
}  # fmt: skip
Measures = Sequence[Mapping[str, Any]]


def required(behaviour: object) -> list[Mapping[str, Any]]:
    """The required measures of a report's behaviour."""
    found = behaviour.get("measures", []) if isinstance(behaviour, Mapping) else []
    return [one for one in found if one["required"]]


def states_of(measures: Measures) -> list[str]:
    """What each required measure adds to the states of monitors: it is unfit, undecided, or fine where anything changed."""
    words = {"worse": "unfit", "inconclusive": "inconclusive"}
    return [words.get(one["answer"], "no update" if one["p_preserved"] == 0 else "fine") for one in measures]


def label(one: Mapping[str, Any]) -> str:
    """A measure by its name in words, and by its judge."""
    kind, _, judge = one["name"].partition("/")
    return NAMES[kind] + (f" ({judge})" if judge else "")


def sides_of(one: Mapping[str, Any]) -> str:
    """`before -> after`: shares in percent."""
    scale, unit, digits = (100, " %", 1) if one["unit"] == "share" else (1, "", 1 if one["unit"] == "ratio" else 3)
    return " -> ".join(f"{scale * one[side]['value']:.{digits}f}{unit}" for side in ("before", "after"))


def changed(one: Mapping[str, Any]) -> str:
    """A measure with its change, in words."""
    return f"{label(one)} {sides_of(one)}"


def worse(measures: Measures) -> list[str]:
    """The required measures that are shown beyond their margin."""
    return [changed(one) for one in measures if one["answer"] == "worse"]


def steps_of(measures: Measures) -> list[tuple[str, str | None, str]]:
    """What to do about required measures that are not preserved."""
    mend = "the update itself lost it: restore it, or train it otherwise; no monitor mends that"
    found: list[tuple[str, str | None, str]] = [
        ("mend the update", None, f"{changed(one)}; {mend}") for one in measures if one["answer"] == "worse"
    ]
    for one in measures:
        if one["answer"] == "inconclusive":
            asked = "texts" if one["unit"] == "nats" else "prompts"
            left = f"{one['n']} leave it open at a margin of {one['margin']:g}"
            found.append((f"give more {asked}", None, f"{changed(one)}; {left}"))
    return found
