"""Sentences above the figures of chapters 07 to 09."""

from collections.abc import Mapping

import pandas as pd

from helpers.figures.titles.parts import NOTHING, clear_of, listed, one_row, share, span

PAIR = ("safelora", "zero")  # a projection, and leaving the same modules out


def scores_title(rows: pd.DataFrame) -> str:
    """How many modules' cosines lie above an unrelated update's, and what is left of the middle module's norm."""
    above, left = int((rows["score"] > rows["null"]).sum()), float((rows["after"] / rows["before"]).median())
    said = f"{above} of {len(rows)} modules lie closer to V than an unrelated update would"
    return f"{said}; of the middle module's update {100 * left:.2g} % is left."


def curves_title_of_pair(whole: pd.DataFrame) -> str:
    """How far SafeLoRA's refusals lie from those with the same modules removed, at most, over updates and strengths."""
    keys = ["adapter", "precision", "strength"]
    first, other = (whole[whole["restoration"] == name].set_index(keys)["value"] for name in PAIR)
    gaps = (first - other).dropna()
    if gaps.empty:
        return NOTHING
    most = 100 * gaps.abs().max()
    if most < 0.5:
        return "Refusals under SafeLoRA are those with the same modules removed, at every strength and on every update."
    return f"Refusals under SafeLoRA and with the same modules removed differ by at most {most:.0f} points, over all strengths."


def recovered_title(rows: pd.DataFrame) -> str:
    """How many restored updates leave as few harmful prompts unrefused as the aligned model, by touching intervals."""
    whole = one_row(rows[rows["adapter"].eq("") & rows["precision"].eq("bf16")])
    restored = [row for row in rows.itertuples() if row.restoration]
    if whole is None or not restored:
        return NOTHING
    back = sum(clear_of(row, whole) <= 0 for row in restored)
    said = f"{back} of {len(restored)} restored updates cannot be told from the aligned model by their refusals"
    return f"{said} ({span(row.value for row in restored)} not refused; aligned {share(whole.value)})."


# ---------------------------------------------------------------- V from quantized models


def sources_title(norms: Mapping[str, float]) -> str:
    """Which source's V is largest beside the one from full precision; what is beyond it is noise."""
    whole = norms.get("bf16", 0.0)
    others = {name: norm / whole for name, norm in norms.items() if name.partition(" x")[0] != "bf16"} if whole else {}
    if not others:
        return "Singular values of V, with no source beside full precision to compare."
    name = max(others, key=lambda key: others[key])
    return f"V from {name} is {others[name]:.2g} times as large as V from full precision: the rest is noise of rounding."


def overlap_title(rows: pd.DataFrame, chance: float | None) -> str:
    """Which sources of V as it is find most and fewest of the leading directions again, beside chance (rows of one k)."""
    as_is = rows[~rows["source"].str.contains(" x")]
    ordered = (as_is if len(as_is) else rows).sort_values("value", kind="stable")
    least, most = ordered.iloc[0], ordered.iloc[-1]
    luck = "" if chance is None else f"; chance gives {share(chance)}"
    if len(ordered) == 1:
        return f"Of the {most['k']} leading directions of V, {most['source']} finds {share(most['value'])} again{luck}."
    found = f"{most['source']} finds {share(most['value'])} again, {least['source']} {share(least['value'])}"
    return f"Of the {most['k']} leading directions of V, {found}{luck}."


def restored_title(rows: pd.DataFrame) -> str:
    """Between which rates of non-refusal the restoration leaves the model at its largest share, whatever V it is given."""
    most = rows["strength"].max()
    own = rows[rows["strength"] == most]
    if own.empty:
        return NOTHING
    trained, values = rows[rows["restoration"].eq("") & rows["adapter"].ne("")]["value"], list(own["value"])
    before = f"; {span(trained)} as trained" if len(trained) else ""
    return f"With {100 * most:g} % of modules changed, {span(values)} of the harmful prompts are not refused, by V{before}."


# ---------------------------------------------------------------- neurons


def layers_title(rows: pd.DataFrame, size: float) -> str:
    """Which score picks most unevenly, and how much of its fullest part of the network, beside a random pick."""
    spread = rows.groupby("score", sort=False)["value"].agg(["max", "min"])
    scored = spread.drop(index="random", errors="ignore")
    if scored.empty:
        return NOTHING
    name = (scored["max"] - scored["min"]).idxmax()
    beside = f", random at most {share(spread.loc['random', 'max'])}" if "random" in spread.index else ""
    most = f"{name} picks up to {share(scored.loc[name, 'max'])} of one part of the network"
    return f"{most}{beside}; of all neurons {100 * size:g} %."


def causal_title(silent: pd.DataFrame, perplexity: pd.DataFrame) -> str:
    """What silencing the largest share by each score leaves unrefused, and what the strongest costs in perplexity."""
    most = silent["fraction"].max()
    own = silent[(silent["fraction"] == most) & (silent["score"] != "none")].sort_values("value", ascending=False, kind="stable")
    scored = own[own["score"] != "random"]
    if scored.empty:
        return NOTHING
    top, random = scored.iloc[0], one_row(own[own["score"] == "random"])
    said = f"Without {100 * most:g} % of the neurons, by {top['score']}, {share(top['value'])} of harmful prompts are not refused"
    said += f"; by random {share(random.value)}" if random is not None else ""
    cost = perplexity[(perplexity["fraction"] == most) & perplexity["score"].isin([top["score"], "random"])]
    worth = [f"{value:.0f}" for value in cost.set_index("score")["value"].reindex([top["score"], "random"]).dropna()]
    return f"{said} (perplexity {' and '.join(worth)})." if worth else f"{said}."


def disturbance_title(rows: pd.DataFrame) -> str:
    """In how many formats the neurons of any score are surely moved further than random ones, and by which."""
    moved, formats = [], list(dict.fromkeys(rows["precision"]))
    for _, own in rows.groupby("precision", sort=False):
        random = one_row(own[own["score"] == "random"])
        if random is not None:
            moved += [row.score for row in own.itertuples() if row.score != "random" and clear_of(row, random) > 0]
    if "random" not in set(rows["score"]):
        return NOTHING
    if not moved:
        return f"In none of {len(formats)} formats are picked neurons surely moved further than random ones."
    counts = pd.Series(moved).value_counts()
    said = listed(f"{name} in {count} of {len(formats)} formats" for name, count in counts.items())
    return f"Surely moved further than random neurons: {said}."


def hybrid_title(rows: pd.DataFrame) -> str:
    """What sparing the most neurons by the best score leaves unrefused, beside random and the plain format (one format)."""
    spared, plain = rows[rows["score"] != "none"], one_row(rows[rows["score"] == "none"])
    scored, random = spared[spared["score"] != "random"], one_row(spared[spared["score"] == "random"])
    if scored.empty or plain is None:
        return NOTHING
    best = scored.sort_values("value", kind="stable").iloc[0]
    said = (
        f"{best['precision']} leaves {share(plain.value)} of harmful prompts unrefused; with {100 * best['fraction']:g} % of the "
    )
    said += f"neurons in bf16 by {best['score']} {share(best['value'])}"
    return f"{said}, by random {share(random.value)}." if random is not None else f"{said}."
