"""Screening: what scores and states of unlabelled texts say of an update. It orders the labelling and calls no monitor fine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import special

from helpers.staleness import drift_signals
from helpers.stats import paired_rates
from helpers.stats.intervals import MARGINS, Estimate, rate_interval
from helpers.stats.paired_aurocs import ALPHA

if TYPE_CHECKING:  # torch is not needed to screen scores
    from torch import Tensor

    from helpers.monitors.frozen import Monitor

FEW = 50  # texts, below which drift is told from noise by chance only, and no realignment is fitted
ENOUGH = 50  # labelled texts of either class, half of which a probe can be fitted on


@dataclass(frozen=True)
class Screened:
    """What one monitor's scores of the same n texts say: shares of flags, distances of distributions, and the risk.

    risk = KS + 1 - Spearman: how far the scores moved, and how much their order changed.
    p_flags: one-sided p that more flags changed, on or off, than the nominal rate.
    """

    n: int
    agreement: float
    alarm_before: Estimate
    alarm_after: Estimate
    psi: float
    ks: float
    correlation: float
    shift: float
    risk: float
    p_flags: float
    same: bool


def screen(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], cut: float, nominal: float) -> Screened:
    """What the scores of unlabelled texts say of one monitor; rates are nan without a threshold."""
    old, new, n = before > cut, after > cut, len(before)
    z = paired_rates.score_test(float((old != new).sum()), 0.0, n, (MARGINS["fpr_ratio"] - 1) * nominal)
    ks, correlation = drift_signals.score_ks(before, after), drift_signals.score_correlation(before, after)
    nowhere = Estimate(np.nan, np.nan, np.nan, n)
    known = np.isfinite(cut)
    return Screened(
        n=n, agreement=float((old == new).mean()) if known else np.nan,
        alarm_before=rate_interval(old) if known else nowhere, alarm_after=rate_interval(new) if known else nowhere,
        psi=drift_signals.score_psi(before, after), ks=ks, correlation=correlation,
        shift=drift_signals.mean_shift(before[:, None], after[:, None], np.ones(1)),
        risk=ks + 1 - (0.0 if np.isnan(correlation) else correlation),  # an order that is gone counts as one without relation
        p_flags=float(special.ndtr(-z)) if known else np.nan, same=bool((before == after).all()),
    )  # fmt: skip


def suspects(found: Mapping[str, Screened]) -> list[str]:
    """The monitors whose flags surely changed in more than their nominal rate of texts, at 5 % over all of them (Bonferroni)."""
    return [name for name, one in found.items() if one.p_flags * len(found) <= ALPHA]


# ---------------------------------------------------------------- what to label


def order(found: Mapping[str, Screened]) -> list[str]:
    """The names, the riskiest first; ties as given."""
    return sorted(found, key=lambda name: -found[name].risk)


def labels_needed(one: Screened) -> int:
    """Labelled texts, half of them of either class, that would show this monitor fine if no flag in truth goes wrong.

    As many flags are taken to change in either direction as changed here: n pairs a class by `paired_rates.needed_pairs`.
    """
    changed = 0.0 if np.isnan(one.agreement) else (1 - one.agreement) * one.n / 2
    return int(np.ceil(2 * paired_rates.needed_pairs(changed, changed, one.n, MARGINS["tpr"], ALPHA)))


@dataclass(frozen=True)
class Share:
    """How many texts to label for a monitor, the riskiest first; monitors of one task share their labels."""

    monitor: str
    task: str
    labels: int
    needed: int


def budget(tasks: Mapping[str, str], names: Sequence[str], needed: Mapping[str, int], total: int) -> list[Share]:
    """What a budget of `total` labels buys, in the order of `names`: a monitor asks for what its task does not have yet."""
    have, left, found = dict.fromkeys(tasks.values(), 0), total, []
    for name in names:
        more = min(max(needed[name] - have[tasks[name]], 0), left)
        have[tasks[name]] += more
        left -= more
        found.append(Share(name, tasks[name], more, needed[name]))
    return found


# ---------------------------------------------------------------- what moved


@dataclass(frozen=True)
class Layer:
    """One layer's states of the same texts: |mean after - mean before| / |mean before|, and the mean cosine text by text."""

    layer: int
    relative_change: float
    cosine: float
    cka: float


def moved_layers(before: Mapping[str, "Tensor"], after: Mapping[str, "Tensor"]) -> list[Layer]:
    """What moved at each layer, by the mean-pooled states."""
    names = sorted((name for name in before if name.startswith("mean/")), key=_number)
    return [_layer(_number(name), *(side[name].double().numpy() for side in (before, after))) for name in names]


def _number(name: str) -> int:
    return int(name.split("/")[1])


def _layer(number: int, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> Layer:
    sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    shift, size, some = np.linalg.norm(y.mean(axis=0) - x.mean(axis=0)), np.linalg.norm(x.mean(axis=0)), sizes > 0
    cosine = float(((x * y).sum(axis=1)[some] / sizes[some]).mean()) if some.any() else np.nan
    return Layer(number, float(shift / size) if size > 0 else np.nan, cosine, drift_signals.linear_cka(x, y))


@dataclass(frozen=True)
class Direction:
    """The mean shift of the states a linear monitor reads, against its frozen direction.

    angle in degrees, 90 where they have nothing to do with one another; share = cos^2 of it, 1 / d_model by chance;
    shift in standard deviations of the monitor's score before.
    """

    monitor: str
    layer: int
    angle: float
    share: float
    by_chance: float
    shift: float


def direction(monitor: "Monitor", before: Float[np.ndarray, "n d"], after: Float[np.ndarray, "n d"]) -> Direction | None:
    """How the shift lies to the monitor's direction; None where it has none, or nothing moved."""
    from helpers.monitors import probes  # imports torch, which scores alone do not need

    frozen, shift = probes.direction(monitor.readout), after.mean(axis=0) - before.mean(axis=0)
    if frozen is None or not np.linalg.norm(shift) > 0:
        return None
    cosine = float(frozen @ shift / np.linalg.norm(shift))
    moved = drift_signals.mean_shift(before, after, frozen)
    return Direction(monitor.name, monitor.layer, probes.angle(frozen, shift), cosine**2, 1 / len(shift), moved)
