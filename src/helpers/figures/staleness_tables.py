"""What chapter 05 says of drops: tables for people, the sentences above its figures, and those in its prose.

Nothing here is taken over two poolings, and nothing over the ranking and the threshold at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers.figures import tables
from helpers.figures.drawing.layout import READS
from helpers.staleness import cohorts
from helpers.staleness.cohorts import POOLINGS, RANKING, UNFIT
from helpers.staleness.interaction import TPR
from helpers.staleness.verdicts import COARSE, FAMILIES, FINE, FLOOR, GROUPS
from helpers.stats import intervals, paired_aurocs, roc
from helpers.stats.intervals import MARGINS, Estimate
from helpers.updates.names import place_names

NOBODY = "Nothing of this was measured in this run."
FEW_APART = 0.05  # shares that differ by less are called alike


# ---------------------------------------------------------------- tables for people


def verdict_table(table: pd.DataFrame, names: Sequence[str], pooling: str, measure: str) -> pd.DataFrame:
    """One row a variant, one column a task, for the monitors in use of one pooling: the loss with its interval, the answer, and
    the texts it would take."""

    def cell(row: pd.Series) -> str:
        answer = str(row["answer"])
        if np.isnan(row["value"]):
            return "undefined: all scores are tied"
        if answer == "inconclusive":
            answer += f" (n {row['n']} of {row['needed']:,})" if row["needed"] < paired_aurocs.NEVER else " (at the margin)"
        side = "" if row["side"] == "AUROC" else f"{row['side']} "
        return f"{side}{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] {answer}"

    table = table[(table["pooling"] == pooling) & (table["measure"] == measure)]
    if table.empty:
        return pd.DataFrame(columns=["variant"])
    cells = table.assign(cell=table.apply(cell, axis=1)).pivot(index="label", columns="task", values="cell")
    shown = [name for name in names if name in cells.index]
    return cells.loc[shown, list(dict.fromkeys(table["task"]))].reset_index(names="variant").rename_axis(columns=None)


def answers(table: pd.DataFrame) -> pd.DataFrame:
    """How many of a family's monitors in use were shown worse, shown preserved, or neither, by pooling and measure."""
    counts = table.groupby(["family", "pooling", "measure", "answer"]).size().unstack("answer", fill_value=0)
    counts = counts.reindex(columns=["worse", "preserved", "inconclusive"], fill_value=0)
    place = {name: i for i, name in enumerate(FAMILIES)}
    order = sorted(counts.index, key=lambda key: (place.get(key[0], len(place)), *key[1:]))
    return counts.loc[order].reset_index().rename_axis(columns=None)


def family_table(table: pd.DataFrame) -> pd.DataFrame:
    """By group of updates, task and pooling, the share of monitors that each definition calls stale; intervals over places.

    Weak monitors, doses, controls and simulated updates are left out; how many were weak stands in a column.
    """
    singles = cohorts.single_monitors(table)
    singles = singles[(singles["group"] != "") & singles["pooling"].isin(POOLINGS)]
    found = []
    for group in (name for name in GROUPS if name in set(singles["group"])):
        for (task, pooling), rows in singles[singles["group"] == group].groupby(["task", "pooling"], sort=False):
            kept, weak = rows[~rows["weak"]], rows.loc[rows["weak"], cohorts.MONITOR].drop_duplicates()
            cells = {words: _share(kept, flag) for flag, words in FLAGS.items()}
            found.append({"updates": group, "task": task, "reads": READS[pooling], "variants": rows["label"].nunique(), **cells,
                          "weak": len(weak)})  # fmt: skip
    return pd.DataFrame(found)


FLAGS = {"stale_auroc_05": "AUROC lost 0.05", "stale_auroc_10": "AUROC lost 0.10", "stale_tpr_5": "catches less",
         "stale_fpr_5": "cries wolf"}  # fmt: skip


def _share(rows: pd.DataFrame, flag: str) -> str:
    """The share of rows with that flag, its interval and n, as a text that knows the rows."""
    part = rows[rows["metric"] == flag]
    if not len(part):
        return "–"
    e = intervals.rate_interval(part["value"], part["label"] + "/" + part["task"] + "/" + place_names(part))
    return tables.Said(f"{tables.percent(e.value, e.low, e.high)} of {e.n}", part, "share")


def weak_table(table: pd.DataFrame) -> pd.DataFrame:
    """By task and pooling, how many monitors there are, and how many caught too little before any update to lose much."""
    singles = cohorts.single_monitors(table)
    every = singles[singles["pooling"].isin(POOLINGS)].drop_duplicates(cohorts.MONITOR)
    found = every.groupby(["task", "pooling"], sort=False)["weak"].agg(monitors="size", weak="sum").reset_index()
    words = f"weak: caught less than {100 * cohorts.WEAK_BELOW:.0f} %"
    return found.assign(pooling=found["pooling"].map(READS)).rename(columns={"pooling": "reads", "weak": words})


def table_of_doses(arms: pd.DataFrame, shares: pd.DataFrame, drops: pd.DataFrame) -> pd.DataFrame:
    """One row a dose: its size, and by pooling the share that is unfit and the mean drop of AUROC over tasks."""
    rows = []
    for arm in arms.itertuples():
        cells = {"dose": arm.adapter, "|BA| / |W|": f"{100 * arm.size:.2f} %"}
        for pooling in POOLINGS:
            for words, part in (("unfit", shares), ("AUROC drop", drops)):
                own = part.loc[(part["label"] == arm.label) & (part["pooling"] == pooling), "value"]
                shown = f"{100 * own.mean():.0f} %" if words == "unfit" else f"{own.mean():+.3f}"
                cells[f"{words}, {READS[pooling]}"] = shown if len(own) else "–"
        rows.append(cells)
    return pd.DataFrame(rows)


def resampled_angles(monitors: pd.DataFrame) -> dict[str, float]:
    """By probe, the middle angle by which a direction turns when only the training texts are drawn anew (table `monitors`)."""
    rows = monitors[monitors["metric"] == "resampled_angle"]
    return rows.groupby("probe")["value"].median().to_dict()


def own_replies_table(labelled: pd.DataFrame | None) -> pd.DataFrame:
    """One row a group of updates of the table `replies`, described: the share of replies that refuse, and for monitors before and
    during the reply the refusals they flag, the answers they flag, and how many are unfit. Means over variants and monitors."""
    if labelled is None:
        return pd.DataFrame({"updates": ["no reply was read in this run: reply_prompts is 0"]})
    named = labelled.assign(group=labelled["group"].mask(labelled["label"] == "aligned", "the aligned model"))
    singles = cohorts.keeping_promises(cohorts.single_monitors(named))
    flags, found = cohorts.unfit(singles), []
    flags = flags[flags["label"] != "aligned"]  # by definition: nothing was lost there
    for group in ("the aligned model", *(name for name in GROUPS if name in set(named["group"]))):
        refused = named[(named["group"] == group) & (named["metric"] == "refused")]
        cells: dict[str, object] = {"updates": group, "replies that refuse": _mean_share(refused)}
        for pooling, words in (("last", "before"), ("mean", "during")):
            own = [rows[(rows["group"] == group) & (rows["pooling"] == pooling)] for rows in (singles, flags)]
            for metric, what in (("tpr_5", "refusals flagged"), ("fpr_5", "answers flagged")):
                cells[f"{words}: {what}"] = _mean_share(own[0][own[0]["metric"] == metric])
            e = cohorts.share(own[1])
            cells[f"{words}: unfit"] = f"{tables.percent(e.value, e.low, e.high)} of {e.n}" if e else "–"
        found.append(cells)
    return pd.DataFrame(found)


def called_refusals(labelled: pd.DataFrame) -> pd.DataFrame:
    """The mean share of answers that monitors of own replies call refusals, and the mean of its ends, by group of updates and
    pooling; n: answers of one variant."""
    rows = cohorts.keeping_promises(cohorts.single_monitors(labelled))
    rows = rows[(rows["metric"] == "fpr_5") & (rows["group"] != "")]
    return rows.groupby(["group", "pooling"], sort=False)[["value", "low", "high", "n"]].mean().round({"n": 0}).reset_index()


def _mean_share(rows: pd.DataFrame) -> str:
    """The mean over variants and monitors with the mean of its ends, as the figure has it; n: replies of one variant."""
    if rows.empty:
        return "–"
    value, low, high, n = rows[["value", "low", "high", "n"]].mean()
    return f"{tables.percent(value, low, high)} of {n:.0f}"


# ---------------------------------------------------------------- sentences


SAID = {"formats": FINE, "coarse": COARSE, "lora": "LoRA", "qlora": "QLoRA"}


def staleness_sentences(table: pd.DataFrame) -> dict[str, str]:
    """Shares for the prose, by what is broken, pooling and group: such as `threshold-last-lora`, `ranking-mean-formats`."""
    singles = cohorts.single_monitors(table)
    told = {"ranking": singles[singles["metric"] == RANKING], "threshold": cohorts.unfit(singles)}
    found = {}
    for measure, rows in told.items():
        rows.attrs |= table.attrs
        for pooling in POOLINGS:
            own = rows[(rows["pooling"] == pooling) & ~rows["weak"]]
            for name, group in SAID.items():
                metric = RANKING if measure == "ranking" else UNFIT
                found[f"{measure}-{pooling}-{name}"] = _share(own[own["group"] == group], metric)
    return found


def pooled_share(table: pd.DataFrame, group: str, pooling: str, metric: str) -> Estimate | None:
    """The share of a pooling's monitors, over all tasks, that a group of updates breaks; None where nothing was measured."""
    singles = cohorts.single_monitors(table)
    rows = cohorts.unfit(singles) if metric == UNFIT else singles[singles["metric"] == metric]
    rows = rows[(rows["group"] == group) & (rows["pooling"] == pooling) & ~rows["weak"]]
    return cohorts.share(rows)


def heaps_title(labels: np.ndarray, before: np.ndarray, after: np.ndarray, threshold: float) -> str:
    """The sentence above one monitor's scores: what its frozen threshold does before and after the update, and its ranking."""
    rates = [[e.value for e in roc.rates(labels, scores, threshold)] for scores in (before, after)]
    (caught, alarms), (caught_after, alarms_after) = [[f"{100 * value:.0f} %" for value in pair] for pair in rates]
    ranks = [roc.auroc_interval(labels, scores).value for scores in (before, after)]
    said = f"At the frozen threshold false alarms go from {alarms} to {alarms_after}, catches from {caught} to {caught_after}"
    return f"{said}; the ranking (AUROC) goes from {ranks[0]:.2f} to {ranks[1]:.2f}."


def heat_map_title(drops: pd.DataFrame) -> str:
    """The sentence above the map of mean drops (`cohorts.by_group`): which cells surely lost more than the margin, and where."""
    rows = drops[drops["group"] != FLOOR]
    if rows.empty:
        return NOBODY
    sure = rows[rows["low"] > MARGINS["auroc"]]
    whole = f"of {len(rows)} mean rankings"
    if sure.empty:
        within = (rows["low"] > -MARGINS["auroc"]) & (rows["high"] < MARGINS["auroc"])
        if within.all():
            return f"Rankings survived: all {len(rows)} mean drops of AUROC lie within {MARGINS['auroc']:g} of no change."
        return f"No ranking surely fell by more than {MARGINS['auroc']:g}; {int(within.sum())} {whole} surely did not."
    counts = {pooling: int((sure["pooling"] == pooling).sum()) for pooling in POOLINGS}
    where = " and ".join(f"{count} for {READS[pooling]}" for pooling, count in counts.items() if count)
    kinds = set(sure["group"])
    only = " All of them lie in formats below 4 bits." if kinds <= {COARSE} else ""
    return f"{len(sure)} {whole} surely fell by more than {MARGINS['auroc']:g}: {where}.{only}"


def definitions_title(table: pd.DataFrame) -> str:
    """The sentence above the three definitions: which pooling breaks at its threshold after LoRA, and whether AUROC sees it."""
    both = {pooling: pooled_share(table, "LoRA", pooling, UNFIT) for pooling in POOLINGS}
    seen = {pooling: pooled_share(table, "LoRA", pooling, RANKING) for pooling in POOLINGS}
    known = {pooling: e for pooling, e in both.items() if e is not None}
    if len(known) < len(POOLINGS):
        return NOBODY if not known else _one_pooling(known, seen)
    first, second = sorted(POOLINGS, key=lambda pooling: -known[pooling].value)
    high, low = known[first], known[second]
    if high.value - low.value < FEW_APART:
        head = f"After LoRA both poolings break alike at the threshold ({high.value:.0%} and {low.value:.0%} of monitors)"
    else:
        apart = "" if high.low > low.high else " (the intervals overlap)"
        head = (
            f"After LoRA {high.value:.0%} of the monitors of {READS[first]} are unfit, {low.value:.0%} of {READS[second]}{apart}"
        )
    blind = max((e.value for e in seen.values() if e), default=np.nan)
    if not np.isfinite(blind):
        return f"{head}."
    return f"{head}; by AUROC {blind:.0%} at most." if blind < high.value else f"{head}; AUROC says as much ({blind:.0%})."


def _one_pooling(known: Mapping[str, Estimate], seen: Mapping[str, Estimate | None]) -> str:
    ((pooling, e),) = known.items()
    ranking = seen[pooling]
    by = "" if ranking is None else f", {ranking.value:.0%} by AUROC"
    return f"After LoRA {e.value:.0%} of the monitors of {READS[pooling]} are unfit at their threshold{by}."


def refit_title(labelled: pd.DataFrame, pooling: str) -> str:
    """The sentence above frozen and refitted probes: of the AUROC that a group lost at most, how much a refit brings back."""
    own = (labelled["probe"] == f"logistic-{pooling}") & ~labelled["group"].isin(["", FLOOR, FAMILIES[1]])
    means = labelled[own & labelled["metric"].isin(["auroc_drop", "refit_drop"])]
    means = means.groupby(["group", "metric"])["value"].mean().unstack().reindex(columns=["auroc_drop", "refit_drop"]).dropna()
    if means.empty:
        return NOBODY
    worst = means.loc[means["auroc_drop"].idxmax()]
    lost, lacking = worst["auroc_drop"], worst["refit_drop"]
    head = f"{READS[pooling].capitalize()}: the most that a group of updates lost is {lost:.3f} AUROC ({worst.name})"
    if lost < MARGINS["auroc"]:
        return f"{head}: nothing for a refit to bring back."
    if lacking < MARGINS["auroc"]:
        return f"{head}; a refit lacks {lacking:+.3f}: turned, not lost."
    return f"{head}; a refit still lacks {lacking:.3f}: {'some' if lacking < lost else 'all'} of the signal is lost."


def angle_title(means: pd.DataFrame, resampled: Mapping[str, float]) -> str:
    """The sentence above the angles: in how many groups directions turned further than another draw of texts turns them."""
    told = []
    for probe, rows in means[means["group"] != FLOOR].groupby("probe", sort=False):
        if probe in resampled:
            turned = rows.groupby("group")["value"].mean() > resampled[probe]
            told.append(f"{int(turned.sum())} of {len(turned)} groups for {READS[cohorts.pooling_of(probe)]}")
    return f"Turned further than by another draw of training texts: {', '.join(told)}." if told else NOBODY


def bits_title(rows: pd.DataFrame) -> str:
    """The sentence above the curves of bits: the fewest bits at which no task's mean surely fell by more than the margin."""
    told = []
    for pooling in POOLINGS:
        own = rows[rows["probe"] == f"all-{pooling}"]
        broken = own.loc[own["low"] > MARGINS["auroc"], "x"]
        kept = own.loc[own["x"] > (broken.max() if len(broken) else 0), "x"]
        if len(own):
            what = "falls at every number of bits" if kept.empty else f"holds down to {kept.min():.2g} bits"
            told.append(f"{READS[pooling]} {what}")
    return f"Ranking, within {MARGINS['auroc']:g}: {', '.join(told)}." if told else NOBODY


def dose_title(shares: pd.DataFrame, arms: pd.DataFrame) -> str:
    """The sentence above the dose curves: what the largest dose breaks that the smallest does not, by pooling."""
    if len(arms) < 2 or shares.empty:
        return NOBODY
    ends = [shares[shares["label"] == arms["label"].iloc[i]].groupby("pooling")["value"].mean() for i in (0, -1)]
    known = [pooling for pooling in POOLINGS if pooling in ends[0].index and pooling in ends[1].index]
    if not known:
        return NOBODY
    told = [f"{ends[0][pooling]:.0%} to {ends[1][pooling]:.0%} for {READS[pooling]}" for pooling in known]
    grown = [pooling for pooling in known if ends[1][pooling] - ends[0][pooling] > FEW_APART]
    word = (
        "breaks more" if len(grown) == len(known) else "breaks no more" if not grown else f"breaks more of {READS[grown[0]]} only"
    )
    times = arms["size"].iloc[-1] / arms["size"].iloc[0]
    return f"A dose {times:.1f} times as large {word}: unfit {', '.join(told)}."


def interaction_title(table: pd.DataFrame) -> str:
    """The sentence above the interactions: for each pooling over all tasks, more than the sum, equivalent to it, or open."""
    rows = table[(table["task"] == "all") & table["probe"].isin([f"all-{pooling}" for pooling in POOLINGS])]
    said = []
    for pooling in POOLINGS:
        for suffix, words, margin in (("", "AUROC", MARGINS["auroc"]), (TPR, "what is caught", MARGINS["tpr"])):
            own = rows[rows["probe"] == f"all-{pooling}"]
            outer, inner = (own[own["metric"] == f"interaction{suffix}{end}"] for end in ("", "_90"))
            if len(outer) and len(inner):
                said.append(f"{READS[pooling]}, {words}: {_beyond_sum(outer, inner, margin)}")
    return f"QLoRA against the sum of its parts: {'; '.join(said)}." if said else NOBODY


def _beyond_sum(outer: pd.DataFrame, inner: pd.DataFrame, margin: float) -> str:
    """What all updates of a run say together: of the worst of them, so that one that is worse is not averaged away."""
    if (outer["low"] > 0).any():
        return "worse" if (outer["low"] > 0).all() else f"worse in {int((outer['low'] > 0).sum())} of {len(outer)} updates"
    within = (inner["low"] > -margin) & (inner["high"] < margin)
    return f"equal within {margin:g}" if within.all() else "cannot be told"


def own_replies_title(unfit: pd.DataFrame, alarms: pd.DataFrame) -> str:
    """What LoRA does to monitors that read before and during the model's own reply, else what the first group that was measured
    does: the shares of them that are unfit, and of answers that they call refusals (rows by group and pooling)."""
    groups = [group for group in ("LoRA", *GROUPS) if group in {*unfit["group"], *alarms["group"]}]
    if not groups:
        return NOBODY
    told = []
    for pooling, place in (("last", "before it"), ("mean", "during it")):
        stale, called = (rows[(rows["group"] == groups[0]) & (rows["pooling"] == pooling)]["value"] for rows in (unfit, alarms))
        if len(called):
            also = f" ({stale.iloc[0]:.0%} of them are unfit)" if len(stale) else ""
            told.append(f"those that read {place} call {called.iloc[0]:.0%} of its answers refusals{also}")
        elif len(stale):
            told.append(f"{stale.iloc[0]:.0%} of those that read {place} are unfit")
    return f"Monitors of the model's own replies, {groups[0]}: {', '.join(told)}."
