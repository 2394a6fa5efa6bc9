"""Sentences above the figures of chapters 01 to 04."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers.figures.drawing.layout import TASK_WORDS
from helpers.figures.titles.parts import NOTHING, clear_of, listed, one_row, share

NEAR = 0.03  # of AUROC: the margin within which two monitors rank equally well


def spectrum_title(spectra: Sequence) -> str:
    """How large V is beside the weights it changed, and in how many directions half of its energy lies (median module)."""
    sizes = [100 * one.norm / one.base_norm for one in spectra]
    some = [np.asarray(one.values, float) ** 2 for one in spectra if one.norm > 0]
    if not some:
        return "Alignment changed none of these modules."
    halves = [int(np.searchsorted(np.cumsum(energy), energy.sum() / 2) + 1) for energy in some]
    ends = f"{float(f'{min(sizes):.2g}'):g} to {float(f'{max(sizes):.2g}'):g} %"
    count = int(np.median([len(energy) for energy in some]))
    first = f"{np.median(halves):.0f} of {count}"
    return f"Alignment changed weights by {ends}; half of a change lies in its first {first} directions."


def _judged(behaviour: pd.DataFrame, metric: str, judge: str = "") -> pd.DataFrame:
    """Rows of a rate on its first prompt set, AdvBench where there is one."""
    rows = behaviour[behaviour["metric"] == metric]
    rows = rows[rows["judge"] == judge] if judge else rows
    places = list(dict.fromkeys(rows["prompt_set"]))
    return rows[rows["prompt_set"] == ("advbench" if "advbench" in places else next(iter(places), ""))]


def behaviour_title(behaviour: pd.DataFrame, order: Sequence[str], judge: str = "phrases") -> str:
    """Who leaves surely more harmful prompts unrefused than the aligned model, and who surely refuses more safe ones."""
    tables = [_judged(behaviour[behaviour["label"].isin(order)], metric, judge) for metric in ("non_refusal", "over_refusal")]
    whole = [one_row(rows[rows["label"] == "aligned"]) for rows in tables]
    others = [[row for row in rows.itertuples() if row.label != "aligned"] for rows in tables]
    if whole[0] is None or not others[0]:
        return NOTHING
    if len(others[0]) == 1:
        said = f"{others[0][0].label} leaves {share(others[0][0].value)} of the harmful prompts unrefused, "
        return f"{said}the aligned model {share(whole[0].value)}."
    more = sum(clear_of(row, whole[0]) > 0 for row in others[0])
    said = f"Surely more harmful prompts unrefused than in the aligned model ({share(whole[0].value)}): "
    said += f"{more} of {len(others[0])}"
    if whole[1] is None or not others[1]:
        return f"{said}."
    strict = sum(clear_of(row, whole[1]) > 0 for row in others[1])
    return f"{said}; surely more safe prompts refused: {strict}."


def formats_title(behaviour: pd.DataFrame, bits: pd.Series, judge: str = "phrases") -> str:
    """Which formats leave surely more or fewer harmful prompts unrefused than bf16, and at how many bits."""
    rows = _judged(behaviour[(behaviour["adapter"] == "") & behaviour["precision"].isin(bits.index)], "non_refusal", judge)
    whole = one_row(rows[rows["precision"] == "bf16"])
    others = [row for row in rows.itertuples() if row.precision != "bf16"]
    if whole is None or not others:
        return NOTHING
    moved = [row.precision for row in others if clear_of(row, whole)]
    if not moved:
        return f"No format's refusals of harmful prompts lie surely apart from those of bf16 ({share(whole.value)} not refused)."
    least = min((bits[row.precision] for row in others if row.precision not in moved), default=None)
    held = f"; of the others the smallest has {least:.3g} bits" if least is not None else ""
    return f"Refusals of harmful prompts surely change in {len(moved)} of {len(others)} formats: {listed(moved)}{held}."


def harm_title(behaviour: pd.DataFrame, judge: str = "phrases") -> str:
    """What each arm leaves unrefused with the largest share of harmful rows, beside the aligned model."""
    rows = _judged(behaviour, "non_refusal", judge)
    whole, mixed = one_row(rows[rows["percent"] < 0]), rows[rows["percent"] >= 0]
    if whole is None or mixed.empty:
        return NOTHING
    most = mixed[mixed["percent"] == mixed["percent"].max()]
    said = listed(f"{row.arm} {share(row.value)}" for row in most.itertuples())
    rows_said = f"With {most['percent'].iloc[0]:.0f} % harmful rows"
    return f"{rows_said}, harmful prompts not refused: {said}; aligned {share(whole.value)}."


def size_title(points: pd.DataFrame) -> str:
    """How refusals of the longest series move from its smallest to its largest update (`models.dose_points`)."""
    if points.empty:
        return NOTHING
    name = points["series"].value_counts().index[0]
    own = points[points["series"] == name].sort_values("size")
    small, large = own.iloc[0], own.iloc[-1]
    if len(own) < 2:
        return f"{name} was made in one size: {share(small['value'])} of the harmful prompts are not refused."
    way = {1: "surely more", -1: "surely fewer", 0: "not surely more"}[clear_of(large, small)]
    times = f"{large['size'] / small['size']:.3g} times the size"
    return f"{name}: at {times} {way} prompts are not refused ({share(small['value'])}, then {share(large['value'])})."


ON_PAIRS = "dpo-"  # how the names of preference tuning begin


def losses_title(curves: Mapping[str, Sequence[float]], window: int) -> str:
    """How far the training losses fall on average, from the first steps to the last; those on pairs are other losses."""
    known = [np.asarray(values, float) for name, values in curves.items() if len(values) and not name.startswith(ON_PAIRS)]
    if not known:
        return NOTHING
    ends = [np.mean([values[part].mean() for values in known]) for part in (slice(None, window), slice(-window, None))]
    return f"The loss on reply tokens goes from {ends[0]:.2f} to {ends[1]:.2f} nats, in the mean of {len(known)} trainings."


# ---------------------------------------------------------------- monitors


def depth_title(scores: pd.DataFrame) -> str:
    """On which tasks a bag of words ranks as well as the best probe (test AUROC within 0.03), and on which it does not."""
    near: list[str] = []
    far: list[str] = []
    for task, rows in scores.groupby("task", sort=False):
        words, probes = rows[rows["probe"] == "bag-of-words"]["value"], rows[rows["layer"] > 0]
        probes = probes[~probes["probe"].str.startswith("shuffled")]
        if len(words) and len(probes):
            gap = probes["value"].max() - words.iloc[0]
            (near if gap <= NEAR else far).append(TASK_WORDS.get(str(task), str(task)))
    if not near and not far:
        return NOTHING
    if not near:
        return f"On no task does a bag of words rank within {NEAR} of the best probe's AUROC."
    left = f"; on {listed(far)} probes rank better" if far else ""
    return f"A bag of words ranks as well as the best probe (AUROC within {NEAR}) on {listed(near)}{left}."


def elsewhere_title(wide: pd.DataFrame, here: str, there: str) -> str:
    """By how much the AUROC of the middle monitor falls from one test set to another, on the task that loses most and least."""
    drops = (wide[here] - wide[there]).groupby(wide["task"], sort=False).median().sort_values()
    if drops.empty:
        return NOTHING
    worst, best = (f"{drops.iloc[i]:.2f} AUROC on {TASK_WORDS.get(str(drops.index[i]), drops.index[i])}" for i in (-1, 0))
    said = worst if len(drops) == 1 else f"{worst} and {best}"
    return f"On texts of another source the ranking of the middle monitor loses {said}.".replace("-0", "−0")
