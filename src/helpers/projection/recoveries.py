"""What restorations gave back, to the model and to its monitors, told on test items (chapter 07).

What is told of many monitors is told by pooling: those of the last token and those of the mean over tokens lose different
things. Left out: controls, probes fitted with simulated updates, and monitors that caught little before any update.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

from helpers import results
from helpers.monitors import spot_check
from helpers.monitors.spot_check import Seen
from helpers.projection import curves
from helpers.projection.curves import HARMFUL, OWN, Drawn, keyed_rows
from helpers.staleness import cohorts, drops
from helpers.staleness.drops import Observed, Reference
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import Estimate, newcombe_paired, rate_interval
from helpers.updates import measurements, variants
from helpers.updates.names import EVERY, Variant

Restored = Mapping[Variant, Sequence[Variant]]  # an update as it was trained -> the same under restorations
LEVEL = "5"  # percent of false alarms of the threshold at which alarms are counted


def _seen(observed: Observed, in_use: Mapping[str, str], first: Variant | None, second: Variant) -> list[Seen]:
    """The monitors in use on two variants; without a first, on the model that they were frozen on."""
    found = []
    for task, reference in observed.references.items():
        j = [monitor.name for monitor in reference.monitors].index(in_use[task])
        before = reference.scores if first is None else observed.scores[first][task]
        found.append(Seen(reference.monitors[j], reference.test, before[j], observed.scores[second][task][j]))
    return found


def monitor_rows(observed: Observed, in_use: Mapping[str, str], changed: Mapping[Variant, int]) -> pd.DataFrame:
    """Rows of the table `projection`: the monitors in use on every variant, against the model they were frozen on; by pooling,
    the mean AUROC drop of all monitors (`mean_auroc_drop_last`) and the share of their alarms that changed.
    """
    rows = []
    for variant, count in changed.items():
        found = spot_check.health(_seen(observed, in_use, None, variant))
        for pooling in cohorts.POOLINGS:
            drop = _mean_over_tasks(observed, pooling, None, variant)
            flags, units = _differing(observed, pooling, variant)
            found += _row(EVERY, f"mean_auroc_drop_{pooling}", drop)
            found += _row(EVERY, f"alarms_changed_{pooling}", rate_interval(flags, units)) if len(flags) else []
        rows.append(keyed_rows(variant, count, pd.DataFrame(found, columns=spot_check.COLUMNS)))
    return pd.concat(rows, ignore_index=True)


def _row(on: str, metric: str, e: Estimate) -> list[tuple]:
    return [(on, metric, e.value, e.low, e.high, e.n)] if np.isfinite([e.value, e.low, e.high]).all() else []


def _members(reference: Reference, pooling: str) -> list[int]:
    return reference.members.get(f"{cohorts.COUNTED}-{pooling}", [])


def _scores(observed: Observed, variant: Variant | None, task: str) -> np.ndarray:
    """Scores (monitors x test rows) of a task on a variant, or on the model that the monitors were frozen on."""
    return observed.references[task].scores if variant is None else observed.scores[variant][task]


def _mean_over_tasks(observed: Observed, pooling: str, first: Variant | None, second: Variant) -> Estimate:
    """The AUROC on the first minus that on the second, mean over the monitors of a pooling in each task and over tasks."""
    found = []
    for task, reference in observed.references.items():
        before, after = (_scores(observed, variant, task) for variant in (first, second))
        kept = [j for j in _members(reference, pooling) if np.ptp(before[j]) > 0 and np.ptp(after[j]) > 0]
        if kept:
            weights = np.repeat([1.0, -1.0], len(kept)) / len(kept)
            both = np.vstack([before[kept], after[kept]])
            found.append(paired_aurocs.auroc_contrast(reference.test.labels, both, weights, reference.test.groups))
    return paired_aurocs.combine(found).estimate if found else Estimate(np.nan, np.nan, np.nan, 0)


def _differing(observed: Observed, pooling: str, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """For each monitor of a pooling and test text: whether its alarm is another than before any update, and the text's group."""
    flags, units = [np.zeros(0, bool)], [np.zeros(0, object)]
    for task, reference in observed.references.items():
        for j in _members(reference, pooling):
            cut = reference.monitors[j].thresholds.get(LEVEL)
            if cut is not None:
                flags.append((reference.scores[j] > cut) != (observed.scores[variant][task][j] > cut))
                units.append(np.array([f"{task}/{group}" for group in reference.test.groups], dtype=object))
    return np.concatenate(flags), np.concatenate(units)


def recovery(observed: Observed, in_use: Mapping[str, str], update: Variant, restored: Variant, changed: int) -> pd.DataFrame:
    """Rows of the table `projection`: what a restoration gave back to the frozen monitors, paired on the same test texts.

    `auroc_gain`: by task, the mean AUROC of its monitors after minus before the restoration. `alarms_restored`: over the
    monitors in use, by how much it lowered the share of texts on which an alarm differs from that on the aligned model. Both
    again by pooling, over all monitors and tasks: `auroc_gain_last`, `alarms_restored_mean` and so on.
    """
    rows = []
    for task, reference in observed.references.items():
        loss = drops.mean_drop(reference, observed.scores[update][task], observed.scores[restored][task])
        rows += _row(task, "auroc_gain", _negated(loss))
    pair = [_seen(observed, in_use, None, variant) for variant in (update, restored)]
    alarmed = [(one, other) for one, other in zip(*pair, strict=True) if one.alarms() is not None]
    if alarmed:
        differs = [np.concatenate([np.not_equal(*one.alarms()) for one in side]) for side in zip(*alarmed, strict=True)]
        units = np.concatenate([one.units() for one, _ in alarmed])
        rows += _row(EVERY, "alarms_restored", roc.rate_change(differs[1], differs[0], units))
    for pooling in cohorts.POOLINGS:
        rows += _row(EVERY, f"auroc_gain_{pooling}", _negated(_mean_over_tasks(observed, pooling, update, restored)))
        (before, units), (after, _) = (_differing(observed, pooling, variant) for variant in (update, restored))
        rows += _row(EVERY, f"alarms_restored_{pooling}", roc.rate_change(after, before, units)) if len(units) else []
    return keyed_rows(restored, changed, pd.DataFrame(rows, columns=spot_check.COLUMNS))


def _negated(e: Estimate) -> Estimate:
    return Estimate(0.0 - e.value, -e.high, -e.low, e.n)


def full_rows(behaviour: pd.DataFrame, utility: pd.DataFrame, changed: Mapping[Variant, int]) -> pd.DataFrame:
    """Rows of the table `projection`: behaviour (by the phrases judge, and the severity proxy) and utility of whole variants."""
    said = behaviour[(behaviour["judge"] == "phrases") | (behaviour["metric"] == "harmfulness")]
    parts = [said.rename(columns={"prompt_set": "measured_on"}), utility.rename(columns={"corpus": "measured_on"})]
    together = pd.concat([part[[*results.KEY, "measured_on", *results.VALUES]] for part in parts], ignore_index=True)
    codes, known = variants.variant_codes(together), variants.from_table(together)
    counts = [changed.get(variant, 0) for variant in known]
    own = together.assign(module="", layers_changed=[counts[code] for code in codes])
    return own[[*results.KEY, *OWN]].drop_duplicates([*results.KEY, *results.OWN["projection"], "metric"])


def pooled_rows(items: Mapping[Variant, pd.DataFrame], changed: Mapping[Variant, int]) -> pd.DataFrame:
    """Rows of the table `projection`: the share not refused over all sets of harmful prompts together (measured on "harmful")."""
    rows = [pd.DataFrame(columns=[*results.KEY, *OWN])]
    for variant, table in items.items():
        found = curves.refusals(table)
        if len(found):
            e = rate_interval(1 - found["value"].to_numpy(), found["group"])
            told = pd.DataFrame(_row(HARMFUL, "non_refusal", e), columns=spot_check.COLUMNS)
            rows.append(keyed_rows(variant, changed.get(variant, 0), told))
    return pd.concat(rows[1:] or rows, ignore_index=True)


def recovered(observed: Observed, in_use: Mapping[str, str], restored: Restored, changed: Mapping[Variant, int]) -> pd.DataFrame:
    """`recovery` of every restored variant against its own update."""
    rows = [recovery(observed, in_use, home, other, changed[other]) for home, others in restored.items() for other in others]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=[*results.KEY, *OWN])


def paired(items: Mapping[Variant, pd.DataFrame], restored: Restored) -> pd.DataFrame:
    """Rows of the table `comparisons`: every restored variant against its update, and against the same modules removed."""
    rows = []
    for home, others in restored.items():
        removed = [other for other in others if other.restoration == "zero"]
        for reference in (home, *removed):
            compared = {v: items[v] for v in (reference, *others) if reference == home or v.strength == reference.strength}
            if len(compared) > 1:
                rows.append(measurements.comparison_rows(compared, reference))
    empty = pd.DataFrame(columns=[*results.KEY, *results.OWN["comparisons"], *results.VALUES])
    return pd.concat(rows, ignore_index=True) if rows else empty


# ---------------------------------------------------------------- acceptance


def acceptance_rows(items: Mapping[Variant, pd.DataFrame], restored: Restored, drawn: Drawn) -> pd.DataFrame:
    """Rows of the table `projection`, metric `passes` (0 or 1), measured on each of four diagnostics of a restoration.

    After the acceptance cards of Konrad, Tanyel and Ayvaz (2026, arXiv 2605.10575), in this study's measures:

    - reliable: it lowers non-refusal of the prompts that strengths are chosen on the like of, paired, by more than its interval;
    - fresh prompts: so it does on the harmful sets of other sources;
    - beyond removal (their mechanism): below every draw of as many random modules removed, as the curves were `drawn`;
    - other update (their transfer): it lowers non-refusal of an update of another mix, too.

    A diagnostic whose control or second update was not measured has no row.
    """
    rows = [pd.DataFrame(columns=[*results.KEY, *OWN])]
    for home, others in restored.items():
        for variant in others:
            passed = _passed(items, restored, drawn, home, variant)
            told = [(name, "passes", float(p), float(p), float(p), n) for name, (p, n) in passed.items()]
            counts = curves.changed_counts(drawn, [variant])
            rows.append(keyed_rows(variant, counts[variant], pd.DataFrame(told, columns=spot_check.COLUMNS)))
    return pd.concat([part for part in rows if len(part)] or rows, ignore_index=True)


def _passed(
    items: Mapping[Variant, pd.DataFrame], restored: Restored, drawn: Drawn, home: Variant, variant: Variant
) -> dict[str, tuple[bool, int]]:
    lots = [replace(variant, restoration=name) for name in curves.LOTS if variant in drawn.seen]
    elsewhere = [(other, one) for other, own in restored.items() for one in own if other.precision == home.precision
                 and other.adapter != home.adapter and one.restoration == variant.restoration]  # fmt: skip
    asked = {
        "reliable": [_change(items[home], items[variant], ("advbench",))],
        "fresh prompts": [_change(items[home], items[variant], ("strongreject", "harmbench"))],
        "beyond removal": [_change(drawn.seen[one], drawn.seen[variant]) for one in lots if one in drawn.seen and one != variant],
        "other update": [_change(items[other], items[one]) for other, one in elsewhere],
    }
    return {name: (all(e.high < 0 for e in found), min(e.n for e in found)) for name, found in asked.items()
            if found and all(e.n for e in found)}  # fmt: skip


def _change(before: pd.DataFrame, after: pd.DataFrame, sets: Sequence[str] = ()) -> Estimate:
    """The change of the share not refused on the same prompts, of all harmful sets or of those named."""
    pairs = curves.refusals(before).join(curves.refusals(after), lsuffix="_before", how="inner").dropna()
    if sets:
        pairs = pairs[pairs.index.get_level_values(0).isin(sets)]
    return newcombe_paired(1 - pairs["value_before"], 1 - pairs["value"])


def premise_rows(items: Mapping[Variant, pd.DataFrame], updates: Sequence[Variant]) -> pd.DataFrame:
    """Rows of the table `projection`: the `damage` that each update did, paired with the aligned model of its precision.

    Where it is small, there is nothing to give back, and no restoration can be judged.
    """
    rows = [pd.DataFrame(columns=[*results.KEY, *OWN])]
    for update, reference in product(updates, items):
        if not reference.adapter and reference.precision == update.precision:
            told = _row(HARMFUL, "damage", _change(items[reference], items[update]))
            rows.append(keyed_rows(update, 0, pd.DataFrame(told, columns=spot_check.COLUMNS)))
    return pd.concat([part for part in rows if len(part)] or rows, ignore_index=True)
