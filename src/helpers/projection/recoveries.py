"""What restorations gave back, to the model and to its monitors, told on test items and as a reader sees it (chapter 07)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers import results
from helpers.monitors import spot_check
from helpers.monitors.spot_check import Seen
from helpers.projection.curves import OWN, keyed_rows
from helpers.staleness import drops
from helpers.staleness.drops import Observed
from helpers.stats import roc
from helpers.updates import measurements, variants
from helpers.updates.names import EVERY, Variant

Restored = Mapping[Variant, Sequence[Variant]]  # an update as it was trained -> the same under restorations


def _seen(observed: Observed, in_use: Mapping[str, str], first: Variant | None, second: Variant) -> list[Seen]:
    """The monitors in use on two variants; without a first, on the model that they were frozen on."""
    found = []
    for task, reference in observed.references.items():
        j = [monitor.name for monitor in reference.monitors].index(in_use[task])
        before = reference.scores if first is None else observed.scores[first][task]
        found.append(Seen(reference.monitors[j], reference.test, before[j], observed.scores[second][task][j]))
    return found


def monitor_rows(observed: Observed, in_use: Mapping[str, str], changed: Mapping[Variant, int]) -> pd.DataFrame:
    """Rows of the table `projection`: the monitors in use on every variant, against the model they were frozen on."""
    rows = [
        keyed_rows(
            variant, count, pd.DataFrame(spot_check.health(_seen(observed, in_use, None, variant)), columns=spot_check.COLUMNS)
        )
        for variant, count in changed.items()
    ]
    return pd.concat(rows, ignore_index=True)


def recovery(observed: Observed, in_use: Mapping[str, str], update: Variant, restored: Variant, changed: int) -> pd.DataFrame:
    """Rows of the table `projection`: what a restoration gave back to the frozen monitors, paired on the same test texts.

    `auroc_gain`: by task, the mean AUROC of its monitors after minus before the restoration. `alarms_restored`: over the
    monitors in use, by how much it lowered the share of texts on which an alarm differs from that on the aligned model.
    """
    rows = []
    for task, reference in observed.references.items():
        loss = drops.mean_drop(reference, observed.scores[update][task], observed.scores[restored][task])
        rows.append((task, "auroc_gain", 0.0 - loss.value, -loss.high, -loss.low, loss.n))
    pair = [_seen(observed, in_use, None, variant) for variant in (update, restored)]
    alarmed = [(one, other) for one, other in zip(*pair, strict=True) if one.alarms() is not None]
    if alarmed:
        differs = [np.concatenate([np.not_equal(*one.alarms()) for one in side]) for side in zip(*alarmed, strict=True)]
        e = roc.rate_change(differs[1], differs[0], np.concatenate([one.units() for one, _ in alarmed]))
        rows.append((EVERY, "alarms_restored", e.value, e.low, e.high, e.n))
    kept = [row for row in rows if np.isfinite(row[2:5]).all()]
    return keyed_rows(restored, changed, pd.DataFrame(kept, columns=spot_check.COLUMNS))


def full_rows(behaviour: pd.DataFrame, utility: pd.DataFrame, changed: Mapping[Variant, int]) -> pd.DataFrame:
    """Rows of the table `projection`: behaviour (by the phrases judge, and the severity proxy) and utility of whole variants."""
    said = behaviour[(behaviour["judge"] == "phrases") | (behaviour["metric"] == "harmfulness")]
    parts = [said.rename(columns={"prompt_set": "measured_on"}), utility.rename(columns={"corpus": "measured_on"})]
    together = pd.concat([part[[*results.KEY, "measured_on", *results.VALUES]] for part in parts], ignore_index=True)
    codes, known = variants.variant_codes(together), variants.from_table(together)
    counts = [changed.get(variant, 0) for variant in known]
    own = together.assign(module="", layers_changed=[counts[code] for code in codes])
    return own[[*results.KEY, *OWN]].drop_duplicates([*results.KEY, *results.OWN["projection"], "metric"])


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


# ---------------------------------------------------------------- as a reader sees it
