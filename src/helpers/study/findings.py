"""Findings: from what several runs say to one verdict a claim, by rules that are code and older than the numbers.

A component is judged on the interval over the seeds of one model, 95 % wide, or where sameness is claimed 90 % (two one-sided
tests at 5 %), and with fewer than three seeds never decided. A claim is a conjunction: it is supported if each of its conjuncts
is, and what is undecided is named with its reason. Nothing is corrected over the claims, of which each stands for itself;
components of a family are (Holm).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import results
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.results import OWN
from helpers.stats.intervals import Estimate
from helpers.stats.over_seeds import over_seeds
from helpers.study.claims import CLAIMS, LEVELS, SEEDS, UNITS, Claim, Component
from helpers.study.evidence.behaviour import first_look
from helpers.study.paired_items import Premised, Seen, pooled, single
from helpers.study.reasons import Judged, counted_seeds, reason
from helpers.study.selections import Tables, remembered
from helpers.updates.names import Variant, keyed

COLUMNS = [
    *("claim", "source", "statement", "estimate", "low", "high", "n", "seeds", "literature", "verdict", "chapter", "reason"),
]
PARTS = [
    *(
        "claim",
        "component",
        "name",
        "model",
        "unit",
        "estimate",
        "low",
        "high",
        "n",
        "seeds",
        "bound",
        "margin",
        "side",
        "answer",
    ),
    *("beside", "by_seeds", "by_items", "premise", "took", "reason"),
]
DOTS = ["claim", "component", "model", "seed", "value", "low", "high", "n", "premise", "counts", "seen"]
SUPPORTED, CONTRADICTED, MIXED = "supported", "contradicted", "mixed"
INCONCLUSIVE, NOT_RUN = "inconclusive", "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, MIXED, INCONCLUSIVE, NOT_RUN)
ALL = "all"
PREMISE = "premise"  # the metric of rows that say how much there was to see
NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)
ERROR = 0.05  # of a family of components
Run = tuple[str, int, Tables]  # model, seed, tables


# ---------------------------------------------------------------- the rules


def answer(e: Estimate, seeds: int, component: Component) -> str:
    """supported, contradicted or inconclusive: where the whole interval lies, given enough seeds; without one, not run.

    An interval that touches the bound (for sameness: an end of the margin) decides nothing.
    """
    if seeds == 0:
        return NOT_RUN
    low, high = e.low - component.bound, e.high - component.bound
    if component.side == "within":  # the distance from the bound, of which the margin is the most
        low, high = (0.0 if low <= 0 <= high else min(abs(low), abs(high))) - component.margin, max(-low, high) - component.margin
    if component.side != "above":
        low, high = -high, -low
    return INCONCLUSIVE if seeds < SEEDS or low <= 0 <= high else SUPPORTED if low > 0 else CONTRADICTED


def verdict(answers: Sequence[str]) -> str:
    """The verdict on a claim from the answers of its conjuncts, the headline's first.

    not run where no conjunct was measured; supported or contradicted where all conjuncts are. One that is contradicted
    among others that are not makes it mixed: the sentence as a whole is not so, but a part of it is or may be. Else a conjunct
    that is undecided, or was not measured, leaves the claim inconclusive, however well the others stand.
    """
    found = set(answers)
    return answers[0] if len(found) == 1 else MIXED if CONTRADICTED in found else INCONCLUSIVE


def over_models(verdicts: Sequence[str]) -> str:
    """The verdict over models: what all that measured it agree on, mixed where two decided ones differ, else inconclusive."""
    found = {name for name in verdicts if name != NOT_RUN}
    if len(found) <= 1:
        return next(iter(found), NOT_RUN)
    return MIXED if len(found - {INCONCLUSIVE}) > 1 else INCONCLUSIVE


# ---------------------------------------------------------------- from runs to findings


def by_seed(runs: Sequence[Run]) -> pd.DataFrame:
    """What each run says on each component, one row each: claim, component (from 1), model, seed, value, low, high, n.

    premise: the size of what had to be there (nan where nothing had to); counts: whether it was large enough; seen: the items
    or the estimate itself. Values and intervals, for other items alone, are finite.
    """
    names = [(model, seed) for model, seed, _ in runs]
    if len(set(names)) < len(names):
        model, seed = next(name for name in names if names.count(name) > 1)
        raise StudyError(f"model {model!r}, seed {seed} is given twice; pass each run once", NOT_COMPARABLE)
    found = []
    for model, seed, own in sorted(runs, key=lambda run: run[:2]):
        tables = remembered(own)
        for claim, place, component in _components():
            seen = component.estimate(tables)
            e = NOTHING if seen is None else single(seen, UNITS[component.unit].bounds)
            if seen is not None and np.isfinite([e.value, e.low, e.high]).all():
                premise, counts = (seen.value, seen.held) if isinstance(seen, Premised) else (np.nan, True)
                found.append((claim, place, model, seed, e.value, e.low, e.high, e.n, premise, counts, seen))
    return pd.DataFrame(found, columns=DOTS)


def overlook(runs: Sequence[Run]) -> pd.DataFrame:
    """What some updates do to refusals and monitors (`behaviour.first_look`), over the seeds of a model and in each of them.

    Columns update, asked, model, seed ("all" for all of them), value, low, high, n.
    """
    found: dict[tuple[str, str, str], dict[int, Estimate]] = {}
    for model, seed, own in sorted(runs, key=lambda run: run[:2]):
        for where, e in first_look(remembered(own)).items():
            found.setdefault((*where, model), {})[seed] = e
    rows = []
    for address, seeds in found.items():
        shown = {ALL: over_seeds(list(seeds.values()), bounds=(0.0, 1.0)), **{str(seed): e for seed, e in seeds.items()}}
        rows += [(*address, seed, e.value, e.low, e.high, e.n) for seed, e in shown.items()]
    return pd.DataFrame(rows, columns=["update", "asked", "model", "seed", "value", "low", "high", "n"])


def collect(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The findings, one row a claim, and their components, one row a claim, component and model; see `judge`."""
    return judge(by_seed(runs))


def judge(dots: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Findings and components from what `by_seed` gives.

    A finding shows the headline, the first conjunct that was measured: over the seeds of the model, or where several models
    measured it, the mean of theirs with an interval that holds all of theirs. n and seeds count all; what was not run has no
    estimate, n 0 and seeds 0. Its reason names the conjuncts that are undecided, or that make the claim mixed.
    """
    models = sorted(set(dots["model"])) or [""]
    parts = pd.DataFrame([row for model in models for row in _parts(dots, model)], columns=PARTS)
    order = {claim: i for i, claim in enumerate(CLAIMS)}
    parts = parts.sort_values(["claim", "component"], key=lambda c: c.map(order) if c.name == "claim" else c, kind="stable")
    parts = parts.reset_index(drop=True)
    verdicts = claim_verdicts(parts)
    findings = [_finding(claim, found, parts[parts["claim"] == claim], verdicts[claim]) for claim, found in CLAIMS.items()]
    found = pd.DataFrame(findings, columns=COLUMNS)
    found.attrs["table"] = "findings"
    return found, parts


def component_rows(run: results.Run, components: pd.DataFrame, dots: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table `components`: what all seeds together (`of_seed` is "all") and each seed say on each part of a claim.

    Where a part has a premise, rows with metric `premise` say how much each seed had to show; seeds that fall short stand there
    with their number and take no part in "all".
    """
    dots = dots.reindex(columns=[*dots.columns, *(name for name in DOTS if name not in dots)])
    pooled_rows = components[components["seeds"] > 0].rename(columns={"estimate": "value"}).assign(of_seed=ALL)
    single_rows = dots.assign(
        of_seed=dots["seed"].astype(str), unit=[_unit(*where) for where in zip(dots["claim"], dots["component"], strict=True)]
    )
    asked = single_rows[single_rows["premise"].notna()]
    premises = asked.assign(value=asked["premise"], low=asked["premise"], high=asked["premise"], unit=PREMISE)
    own = pd.concat([pooled_rows, single_rows, premises], ignore_index=True).rename(columns={PREMISE: "size", "unit": "metric"})
    own["component"] = own["component"].astype(str)
    columns = [*OWN["components"], *results.VALUES]
    rows = [keyed(Variant(model, run.seed, precision=""), part[columns]) for model, part in own.groupby("model")]
    return pd.concat(rows, ignore_index=True)


def _unit(claim: str, place: int) -> str:
    return CLAIMS[claim].components[place - 1].unit


def claim_verdicts(parts: pd.DataFrame) -> dict[str, str]:
    """The verdict on each claim over all models, from the answers of its conjuncts."""
    own = parts[~parts["beside"].astype(bool)]
    models = own.sort_values("component").groupby(["claim", "model"], sort=False)["answer"].agg(list).map(verdict)
    return {claim: over_models(list(found)) for claim, found in models.groupby("claim")}


def _components() -> Iterator[tuple[str, int, Component]]:
    for claim, found in CLAIMS.items():
        yield from ((claim, place, component) for place, component in enumerate(found.components, 1))


def _parts(dots: pd.DataFrame, model: str) -> Iterator[tuple]:
    """The components of all claims over the seeds of a model."""
    rows = dict(list(dots[dots["model"] == model].groupby(["claim", "component"])))
    for claim, found in CLAIMS.items():
        own = [rows.get((claim, place), dots.iloc[:0]) for place in range(1, len(found.components) + 1)]
        levels = _levels(found.components, own)
        for place, (component, part) in enumerate(zip(found.components, own, strict=True), 1):
            yield _part(claim, place, model, component, part, levels[place - 1])


def _levels(components: Sequence[Component], rows: Sequence[pd.DataFrame]) -> list[float]:
    """The level of each component's interval; in a family, Holm's: 1 - 0.05 / k for the surest of k, and so on while sure.

    So an interval leaves its bound out where Holm's procedure rejects it, and there alone.
    """
    levels = [LEVELS[component.side] for component in components]
    for family in {component.family for component in components} - {""}:
        own = [i for i, component in enumerate(components) if component.family == family and _counting(rows[i])]
        sureness = sorted(own, key=lambda i: -_sureness(components[i], _counting(rows[i])))
        strict = 1.0
        for left, i in zip(range(len(own), 0, -1), sureness, strict=True):
            level = 1 - ERROR / left if strict == 1.0 else strict
            levels[i] = level
            if strict == 1.0 and _holds(components[i], _counting(rows[i]), level):
                strict = level
    return levels


def _holds(component: Component, seen: Sequence[Seen], level: float) -> bool:
    e = pooled(seen, UNITS[component.unit].bounds, level)[0]
    return bool(e.low <= component.bound <= e.high)


def _sureness(component: Component, seen: Sequence[Seen]) -> float:
    """The highest level at which the interval leaves the bound out, 0 where none does, by halving."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if _holds(component, seen, middle) else (middle, high)
    return low


def _counting(rows: pd.DataFrame) -> list[Seen]:
    """What the seeds say that count; rows that were made without items count by their intervals."""
    own = rows[rows["counts"].astype(bool)] if "counts" in rows else rows
    bare = [Estimate(*e) for e in own[["value", "low", "high", "n"]].itertuples(index=False, name=None)]
    seen: list[Any] = list(own["seen"]) if "seen" in own else [None] * len(own)
    return [e if one is None else one for one, e in zip(seen, bare, strict=True)]


def _part(claim: str, place: int, model: str, component: Component, rows: pd.DataFrame, level: float) -> tuple:
    seen, bounds = _counting(rows), UNITS[component.unit].bounds
    (e, spread), (inner, _) = ((pooled(seen, bounds, one) if seen else (NOTHING, None)) for one in (level, LEVELS["within"]))
    widths = spread.parts(level=level) if spread and len(seen) > 1 else (np.nan, np.nan)
    known = rows[rows["premise"].notna()] if "premise" in rows else rows.iloc[:0]
    premises = [(float(v), bool(c)) for v, c in zip(known.get("premise", []), known.get("counts", []), strict=True)]
    # what was measured and had nothing to show is open, and not unmeasured
    said = INCONCLUSIVE if premises and not seen else answer(e, len(seen), component)
    why = reason(Judged(component, e, inner, spread, len(seen), premises, level)) if said in {INCONCLUSIVE, NOT_RUN} else ""
    held = f"{sum(c for _, c in premises)} of {len(premises)}" if premises else ""
    return (claim, place, component.name, model, component.unit, e.value, e.low, e.high, e.n, len(seen), component.bound,
            component.margin, component.side, said, component.beside, *widths, held, _took(component, rows), why)  # fmt: skip


def _took(component: Component, rows: pd.DataFrame) -> str:
    """In how many seeds the effect is there by itself, where another seed by itself shows the opposite; else nothing."""
    own = rows[rows["counts"].astype(bool)] if "counts" in rows else rows
    each = [answer(Estimate(*e), SEEDS, component) for e in own[["value", "low", "high", "n"]].itertuples(index=False, name=None)]
    if not {SUPPORTED, CONTRADICTED} <= set(each):
        return ""
    return f"so in {each.count(SUPPORTED)} of {counted_seeds(len(each))}, the opposite in {each.count(CONTRADICTED)}"


def _finding(name: str, claim: Claim, parts: pd.DataFrame, said: str) -> tuple:
    measured = parts[~parts["beside"].astype(bool) & (parts["seeds"] > 0)]
    heads = measured[measured["component"] == measured["component"].min()]
    ends = (heads["estimate"].mean(), heads["low"].min(), heads["high"].max(), int(heads["n"].sum()), int(heads["seeds"].sum()))
    return name, claim.source, claim.statement, *ends, claim.literature, said, claim.chapter, _why(parts, said)


def _why(parts: pd.DataFrame, said: str) -> str:
    """One line a claim that is undecided or mixed: its conjuncts that are not as claimed, each with its reason."""
    own = parts[~parts["beside"].astype(bool) & (parts["answer"] != SUPPORTED)]
    if said not in {INCONCLUSIVE, MIXED, NOT_RUN}:
        return ""
    if said == NOT_RUN:
        return "; ".join(dict.fromkeys(own["reason"]))
    several = parts["model"].nunique() > 1
    lines = []
    for row in own.to_dict("records"):
        text = "; ".join(filter(None, (row["reason"] or row["answer"], row["took"])))
        lines.append(f"{row['model'] + ', ' if several else ''}{row['name']}: {text}")
    return ". ".join(lines)


# ---------------------------------------------------------------- runs on disk


@dataclass(frozen=True, eq=False)
class RunTables(Mapping):
    """The tables of one run by name, each read from its file when it is first asked for."""

    run: results.Run
    read: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self.read:
            if name not in list(self):
                raise KeyError(name)
            self.read[name] = results.read_table(self.run, name)
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        found = set(results.table_names(self.run.folder))
        return (name for name in OWN if name in found)

    def __len__(self) -> int:
        return len(list(iter(self)))


def run_tables(folder: Path) -> RunTables:
    """The tables of the run in results/<profile>/<model>/seed-<n>, read lazily; those that it has not are left out."""
    profile, model, seed = folder.parts[-3:]
    return RunTables(results.Run(profile, model, int(seed.removeprefix("seed-")), folder))
