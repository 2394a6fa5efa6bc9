"""Sentences above the figures of chapter 10. *Unfit*: stale by any definition, in ranking or at the frozen threshold."""

from collections.abc import Mapping

import pandas as pd

from helpers.figures.titles.parts import NOTHING, clear_of, points, share


def _where_nothing_changed(floor: float | None) -> str:
    return "" if floor is None else f" ({share(floor)} where nothing changed)"


def ladder_title(shares: Mapping[str, float], free: Mapping[str, str], floor: float | None) -> str:
    """How many frozen monitors are unfit, beside the floor, and what the best rung without labels and a refit leave.

    shares: by method; free: the words of each rung that asks for no label.
    """
    if "none" not in shares:
        return NOTHING
    said = f"Of the frozen monitors {share(shares['none'])} are unfit{_where_nothing_changed(floor)}"
    known = [name for name in free if name in shares]
    if known:
        best = min(known, key=lambda name: shares[name])
        said += f"; without labels “{free[best]}” leaves fewest, {share(shares[best])}"
    return f"{said}; a refit leaves {share(shares['refit'])}." if "refit" in shares else f"{said}."


def mended_title(mended: float | None, harmed: float | None) -> str:
    """What share of the unfit monitors realigning everything makes fit, and of the fit ones unfit."""
    said = [f"{one} {share(value)} of {of}" for one, value, of in
            (("mends", mended, "the unfit monitors"), ("harms", harmed, "the fit ones")) if value is not None]  # fmt: skip
    return f"Realigning every monitor {' and '.join(said)}." if said else NOTHING


def rates_title(means: pd.DataFrame, words: Mapping[str, str]) -> str:
    """How the share of harmless texts flagged moves from the frozen monitor to each method, and what is still caught."""
    said = []
    for metric, what in (("fpr_5", "false alarms"), ("tpr_5", "catches")):
        own = means[means["metric"] == metric].groupby("method", sort=False)["value"].mean()
        if "none" in own.index and len(own) > 1:
            others = [f"{share(value)} with {words.get(name, name)}" for name, value in own.items() if name != "none"]
            said.append(f"{what} {share(own['none'])} frozen, {', '.join(others)}")
    return f"At the threshold: {'; '.join(said)}." if said else NOTHING


def gate_title(quarters: pd.DataFrame) -> str:
    """Whether monitors with least agreement are surely left unfit more often than those with most."""
    if len(quarters) < 2:
        return NOTHING
    least, *_, most = quarters.itertuples()
    tells = clear_of(least, most) > 0
    said = (
        "Agreement without labels tells who is left unfit"
        if tells
        else "Agreement without labels does not surely tell who is unfit"
    )
    return f"{said}: {share(least.value)} of the quarter that agrees least, {share(most.value)} of the one that agrees most."


def survivors_title(rows: pd.DataFrame) -> str:
    """What share of plain probes and of those that saw simulated updates are unfit, by what they read."""
    said = []
    for pooling, words in (("last", "last token"), ("mean", "mean over tokens")):
        own = rows[rows["pooling"] == pooling].set_index("kind")["value"]
        if {"logistic", "simulated-updates"} <= set(own.index):
            said.append(f"{words} {share(own['simulated-updates'])} against {share(own['logistic'])}")
    return f"Unfit of the probes that saw simulated updates, against plain ones: {'; '.join(said)}." if said else NOTHING


def interplay_title(rows: pd.DataFrame) -> str:
    """What realigning, restoring and both give back on average, and in how many cases both surely give less than their sum."""
    means = rows[rows["task"] == "all"] if (rows["task"] == "all").any() else rows
    by = means.groupby("metric")["value"].mean()
    if not {"realign_gain", "restore_gain", "both_gain"} <= set(by.index):
        return NOTHING
    said = f"Realigning gives back {points(by['realign_gain'])}, restoring {points(by['restore_gain'])}"
    said += f", both {points(by['both_gain'])}"
    sums = means[means["metric"] == "interaction"]
    return f"{said}; surely less than the sum in {int((sums['high'] < 0).sum())} of {len(sums)}." if len(sums) else f"{said}."


def policy_title(left: pd.DataFrame, paid: pd.DataFrame) -> str:
    """What triage at 20 % leaves unfit, beside the same budget at random and doing nothing; both by policy."""
    wanted = [name for name in ("do nothing", "random 20 %", "triage 20 %", "realign everything") if name in left.index]
    if not wanted:
        return NOTHING
    texts = (f"{name} {share(left.loc[name, 'value'])} for {paid.loc[name, 'value']:.0f} labels" for name in wanted)
    return f"Left unfit in service: {', '.join(texts)}."
