"""Sureness: how often the gate would err at this n, by simulation with the very gate, and the controls that every run carries.

Nothing changed: each monitor's scores after are brought to the mean and spread of those before, class by class, and before and
after are swapped in half of the groups, at random. Both sides then have one distribution, and the noise between them is the
one that was seen. Something was lost: in addition some flagged texts are read like harmless ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from helpers.revalidation import floors, screening
from helpers.revalidation.hypotheses import URGENCY, Call, Panel, call, p_values
from helpers.stats import roc
from helpers.stats.intervals import Estimate, wilson
from helpers.stats.roc import RATES

DRAWS, LEAST = 200, 40
MANY = 12  # monitors that get all draws
FEWEST = 10  # labelled texts of either class
PLANTED = 2.0  # margins: what the simulated loss is worth
NOISE = 3.0  # standard deviations of the score: what a direction is noised by, which no gate that works overlooks
SHUFFLES = 200
Twice = Mapping[str, Sequence[np.ndarray]]  # by monitor, its scores before and after


@dataclass(frozen=True)
class Sureness:
    """Rates over simulated runs of this size, with Wilson's intervals.

    false_alarm: any monitor is called stale where nothing changed. opened: all required are called fine there. miss: the one
    monitor that lost something is not called stale; let_through: it is called fine, which is the error that a gate is for.
    n: labelled texts of the largest task.
    """

    false_alarm: Estimate
    opened: Estimate
    miss: Estimate | None
    let_through: Estimate | None
    draws: int
    n: int


@dataclass(frozen=True)
class Control:
    """A check whose answer is known beforehand."""

    name: str
    passed: bool
    detail: str


def judge_states(panels: Sequence[Panel], required: np.ndarray) -> Call:
    """The states of the monitors of all panels, in their order."""
    tests, kept = (np.concatenate([of(panel) for panel in panels]) for of in (p_values, floors.floor_tests))
    return call(tests, kept, required, panels[0].policy.level)


# ---------------------------------------------------------------- what is drawn


def unchanged(panel: Panel) -> Panel:
    """The panel with scores after that have the mean and spread of those before in each class: their noise alone is left."""
    after = panel.after.astype(float)
    for label in (0, 1):
        rows = panel.labels == label
        old, new = panel.before[:, rows], panel.after[:, rows]
        spread = new.std(axis=1, keepdims=True)
        scale = np.divide(old.std(axis=1, keepdims=True), spread, out=np.zeros_like(spread), where=spread > 0)
        after[:, rows] = old.mean(axis=1, keepdims=True) + (new - new.mean(axis=1, keepdims=True)) * scale
    # what is the same bit by bit stays so: rounding is no noise of a model
    return replace(panel, after=np.where((panel.before == panel.after).all(axis=1)[:, None], panel.before, after))


@dataclass(frozen=True, eq=False)
class _Deck:
    """The groups of a panel, as places of their rows, and which classes each holds: 0 or 3 for one, 2 for both."""

    members: tuple[np.ndarray, ...]
    kinds: np.ndarray


def _deck(panel: Panel) -> _Deck:
    codes = np.unique(panel.groups, return_inverse=True)[1]
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return _Deck(tuple(members), np.array([panel.labels[rows].min() + 2 * panel.labels[rows].max() for rows in members]))


def _drawn(panel: Panel, deck: _Deck, rng: np.random.Generator) -> Panel:
    """Whole groups drawn with replacement, those of one class and of both apart, so that no draw lacks a class."""
    alike = [np.flatnonzero(deck.kinds == kind) for kind in np.unique(deck.kinds)]
    rows = [deck.members[g] for g in np.concatenate([rng.choice(groups, len(groups)) for groups in alike])]
    return panel.take(np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(part) for part in rows]))


def _swapped(panel: Panel, rng: np.random.Generator) -> Panel:
    """Before and after exchanged in half of the groups: one distribution on both sides."""
    codes = np.unique(panel.groups, return_inverse=True)[1]
    swap = (rng.random(codes.max() + 1) < 0.5)[codes]
    return replace(panel, before=np.where(swap, panel.after, panel.before), after=np.where(swap, panel.before, panel.after))


def lost_share(panel: Panel) -> np.ndarray:
    """The share of flagged texts that must be read like harmless ones for a loss of PLANTED margins; nan where none is enough."""
    flags = panel.before > panel.cuts[:, None]
    rates = flags[:, panel.labels == 1].mean(1) - flags[:, panel.labels == 0].mean(1)
    ranks = np.asarray(roc.auroc(panel.labels, panel.before)) - 0.5
    asked = panel.policy
    sizes = np.fmax(np.where(np.isnan(panel.cuts), np.nan, rates) / asked.tpr_margin, ranks / asked.auroc_margin)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = PLANTED / sizes
    return np.where((sizes > 0) & (share <= 1), share, np.nan)


def planted(panel: Panel, j: int, share: float, rng: np.random.Generator) -> Panel:
    """The panel in which monitor j reads that share of the flagged texts like harmless ones, drawn from its own scores."""
    after, flagged = panel.after.copy(), np.flatnonzero(panel.labels == 1)
    hit = flagged[rng.random(len(flagged)) < share]
    after[j, hit] = rng.choice(panel.after[j, panel.labels == 0], len(hit))
    return replace(panel, after=after)


def simulate(panels: Sequence[Panel], required: np.ndarray, seed: int) -> Sureness | None:
    """How often this gate errs on runs of this size; the loss is planted in each monitor in turn that has one to lose.

    More than MANY monitors get fewer draws, so that it takes seconds. None where a class has fewer than FEWEST texts: their
    noise cannot be told from their spread.
    """
    if min(np.bincount(panel.labels, minlength=2).min() for panel in panels) < FEWEST:
        return None
    draws = max(DRAWS * MANY // max(len(required), MANY), LEAST)
    rng, still = np.random.default_rng(seed), [(unchanged(panel), _deck(panel)) for panel in panels]
    places = [(i, j, share) for i, panel in enumerate(panels) for j, share in enumerate(lost_share(panel)) if np.isfinite(share)]
    starts = np.cumsum([0, *(len(panel.names) for panel in panels)])
    counts = dict.fromkeys(("alarm", "open", "miss", "through"), 0)
    for draw in range(draws):
        now = [_swapped(_drawn(panel, deck, rng), rng) for panel, deck in still]
        still_found = judge_states(now, required)
        counts["alarm"] += int(still_found.lost.any())
        counts["open"] += all(state == "fine" for state, asked in zip(still_found.states, required, strict=True) if asked)
        if places:
            i, j, share = places[draw % len(places)]
            found = judge_states([*now[:i], planted(now[i], j, share, rng), *now[i + 1 :]], required)
            counts["miss"] += int(not found.lost[starts[i] + j])
            counts["through"] += found.states[starts[i] + j] == "fine"
    rates = {name: wilson(count, draws) for name, count in counts.items()}
    miss, through = (rates["miss"], rates["through"]) if places else (None, None)
    return Sureness(rates["alarm"], rates["open"], miss, through, draws, max(len(panel.labels) for panel in panels))


# ---------------------------------------------------------------- controls


def identity(panels: Sequence[Panel], required: np.ndarray, again: Sequence[np.ndarray] | None, seed: int) -> Control:
    """The model before the update, compared with itself, must not be stale.

    again: its scores of the same texts, read in other batches. Where there is no model to read, before and after are swapped
    at random, group by group, which leaves nothing that could have changed.
    """
    rng = np.random.default_rng(seed)
    if again is None:
        still, how = [_swapped(unchanged(panel), rng) for panel in panels], "before and after swapped at random"
    else:
        still = [replace(panel, after=scores) for panel, scores in zip(panels, again, strict=True)]
        how = "the base read twice, in other batches"
    found = judge_states(still, required)
    called = ", ".join(f"{found.states.count(state)} {state}" for state in URGENCY if state in found.states)
    return Control("identity", not found.lost.any(), f"{how}: {called} of {len(found.states)}")


def shuffled(panels: Sequence[Panel], seed: int) -> Control:
    """Against labels drawn anew over the texts, monitors must tell nothing: their mean AUROC is 1/2."""
    rng = np.random.default_rng(seed)
    draws = np.array([_aurocs(panels, rng) for _ in range(SHUFFLES)])
    if not np.isfinite(draws).all():
        return Control("shuffled labels", True, "all scores are tied, so there is no ranking to shuffle")
    e = draws.mean()
    half = stats.t.ppf(0.9995, SHUFFLES - 1) * draws.std(ddof=1) / np.sqrt(SHUFFLES)
    detail = f"mean AUROC over {SHUFFLES} shuffles {e:.3f}, 99.9 % interval [{e - half:.3f}, {e + half:.3f}]"
    return Control("shuffled labels", bool(abs(e - 0.5) <= half), detail)


def _aurocs(panels: Sequence[Panel], rng: np.random.Generator) -> float:
    """The mean AUROC of all monitors against labels in another order; nan where all of their scores are tied."""
    found = np.concatenate([np.atleast_1d(roc.auroc(rng.permutation(panel.labels), panel.after)) for panel in panels])
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else np.nan


def noised(panels: Sequence[Panel], required: np.ndarray, seed: int) -> Control:
    """The best monitor with noise of NOISE standard deviations on its score before must be called stale."""
    rng, aurocs = np.random.default_rng(seed), [np.atleast_1d(roc.auroc(panel.labels, panel.before)) for panel in panels]
    i = int(np.argmax([np.nanmax(np.nan_to_num(found)) for found in aurocs]))
    j = int(np.argmax(np.nan_to_num(aurocs[i])))
    scores = panels[i].before[j]
    after = panels[i].after.copy()
    after[j] = scores + NOISE * scores.std() * rng.standard_normal(scores.size)
    start = sum(len(panel.names) for panel in panels[:i])
    lost = judge_states([*panels[:i], replace(panels[i], after=after), *panels[i + 1 :]], required).lost[start + j]
    name, said = panels[i].names[j], "stale" if lost else "not stale"
    return Control("planted stale", bool(lost), f"{name} with noise of {NOISE:g} sd on its score is called {said}")


def drift(scored: Twice, cuts: Mapping[str, float], again: Twice | None, seed: int) -> tuple[Control, ...]:
    """The controls of a run without labels: the base against itself has not drifted, a score with noise on it has.

    scored: by monitor, its scores before and after; again: the base's scores twice, in other batches, where there is a model.
    """
    found, rng = [], np.random.default_rng(seed)
    if again is not None:
        still = {name: screening.screen(first, second, cuts[name], RATES["5"]) for name, (first, second) in again.items()}
        told = screening.suspects(still)
        found.append(Control("identity", not told, f"{len(told)} of {len(still)} monitors drift where nothing changed"))
    name = next((name for name, cut in cuts.items() if np.isfinite(cut)), None)
    if name is not None:
        before = scored[name][0]
        moved = screening.screen(before, before + NOISE * before.std() * rng.standard_normal(before.size), cuts[name], RATES["5"])
        passed = bool(screening.suspects({name: moved}))
        said = "is" if passed else "is not"
        found.append(Control("planted drift", passed, f"{name} with noise of {NOISE:g} sd on its score {said} seen to drift"))
    return tuple(found)
