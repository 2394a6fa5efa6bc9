"""Findings: from the estimates of several runs to one verdict a claim, by rules that are code and older than the numbers.

A component is judged on the interval over the seeds of one model (`stats.over_seeds`), and with fewer than three seeds
never decided. The intervals are 95 % ones, also where two one-sided tests would do with 90 %. A claim has one family of tests
with its headline first; nothing is corrected over the claims, of which each stands for itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from helpers import results
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.results import OWN
from helpers.stats.intervals import Estimate
from helpers.stats.over_seeds import over_seeds
from helpers.study.claims import CLAIMS, SEEDS, UNITS, Claim, Component
from helpers.study.evidence import first_look
from helpers.study.selections import Tables
from helpers.updates.names import Variant, keyed

COLUMNS = ["claim", "source", "statement", "estimate", "low", "high", "n", "seeds", "literature", "verdict", "chapter"]
PARTS = [
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
]
DOTS = ["claim", "component", "model", "seed", "value", "low", "high", "n"]
SUPPORTED, CONTRADICTED, MIXED = "supported", "contradicted", "mixed"
INCONCLUSIVE, NOT_RUN = "inconclusive", "not run"
VERDICTS = (SUPPORTED, CONTRADICTED, MIXED, INCONCLUSIVE, NOT_RUN)
ALL = "all"
NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)
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
    """The verdict on a claim from the answers of its components, the headline's first.

    not run where the headline was not measured; supported or contradicted where all components are; mixed where some are
    supported and some contradicted; inconclusive where the headline is. A headline that is decided stands where the others
    leave it alone: those that are inconclusive, or were not measured, neither carry nor stop it.
    """
    if answers[0] == NOT_RUN:
        return NOT_RUN
    return MIXED if {SUPPORTED, CONTRADICTED} <= set(answers) else answers[0]


def over_models(verdicts: Sequence[str]) -> str:
    """The verdict over models: what all that measured it agree on, mixed where two decided ones differ, else inconclusive."""
    found = {name for name in verdicts if name != NOT_RUN}
    if len(found) <= 1:
        return next(iter(found), NOT_RUN)
    return MIXED if len(found - {INCONCLUSIVE}) > 1 else INCONCLUSIVE


# ---------------------------------------------------------------- from runs to findings


def by_seed(runs: Sequence[Run]) -> pd.DataFrame:
    """What each run says on each component: claim, component (from 1), model, seed, value, low, high, n; all are finite."""
    names = [(model, seed) for model, seed, _ in runs]
    if len(set(names)) < len(names):
        model, seed = next(name for name in names if names.count(name) > 1)
        raise StudyError(f"model {model!r}, seed {seed} is given twice; pass each run once", NOT_COMPARABLE)
    found = []
    for model, seed, own in sorted(runs, key=lambda run: run[:2]):
        for claim, place, component in _components():
            e = component.estimate(own)
            if e is not None:
                found.append((claim, place, model, seed, e.value, e.low, e.high, e.n))
    return pd.DataFrame(found, columns=DOTS)


def overlook(runs: Sequence[Run]) -> pd.DataFrame:
    """What some updates do to refusals and monitors (`evidence.first_look`), over the seeds of a model and in each of them.

    Columns update, asked, model, seed ("all" for all of them), value, low, high, n.
    """
    found: dict[tuple[str, str, str], dict[int, Estimate]] = {}
    for model, seed, own in sorted(runs, key=lambda run: run[:2]):
        for where, e in first_look(own).items():
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

    A finding shows the headline: over the seeds of the model, or where several models measured it, the mean of theirs with
    an interval that holds all of theirs. n and seeds count all; what was not run has no estimate, n 0 and seeds 0.
    """
    models = sorted(set(dots["model"])) or [""]
    parts = pd.DataFrame([_part(dots, model, *where) for where in _components() for model in models], columns=PARTS)
    verdicts = claim_verdicts(parts)
    findings = [_finding(claim, found, parts[parts["claim"] == claim], verdicts[claim]) for claim, found in CLAIMS.items()]
    found = pd.DataFrame(findings, columns=COLUMNS)
    found.attrs["table"] = "findings"
    return found, parts


def component_rows(run: results.Run, components: pd.DataFrame, dots: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table `components`: what all seeds together (`of_seed` is "all") and each seed say on each part of a claim."""
    pooled = components[components["seeds"] > 0].rename(columns={"estimate": "value"}).assign(of_seed=ALL)
    single = dots.assign(
        of_seed=dots["seed"].astype(str), unit=[_unit(*where) for where in zip(dots["claim"], dots["component"], strict=True)]
    )
    own = pd.concat([pooled, single], ignore_index=True).rename(columns={"unit": "metric"})
    own["component"] = own["component"].astype(str)
    columns = [*OWN["components"], *results.VALUES]
    parts = [keyed(Variant(model, run.seed, precision=""), part[columns]) for model, part in own.groupby("model")]
    return pd.concat(parts, ignore_index=True)


def _unit(claim: str, place: int) -> str:
    return CLAIMS[claim].components[place - 1].unit


def claim_verdicts(parts: pd.DataFrame) -> dict[str, str]:
    """The verdict on each claim over all models, from the answers of its components."""
    models = parts.sort_values("component").groupby(["claim", "model"], sort=False)["answer"].agg(list).map(verdict)
    return {claim: over_models(list(found)) for claim, found in models.groupby("claim")}


def _components() -> Iterator[tuple[str, int, Component]]:
    for claim, found in CLAIMS.items():
        yield from ((claim, place, component) for place, component in enumerate(found.components, 1))


def _part(dots: pd.DataFrame, model: str, claim: str, place: int, component: Component) -> tuple:
    rows = dots[(dots["claim"] == claim) & (dots["component"] == place) & (dots["model"] == model)]
    found = [Estimate(*row) for row in rows[["value", "low", "high", "n"]].itertuples(index=False, name=None)]
    e = over_seeds(found, bounds=UNITS[component.unit].bounds) if found else NOTHING
    said = answer(e, len(found), component)
    return (claim, place, component.name, model, component.unit, e.value, e.low, e.high, e.n, len(found), component.bound,
            component.margin, component.side, said)  # fmt: skip


def _finding(name: str, claim: Claim, parts: pd.DataFrame, said: str) -> tuple:
    heads = parts[(parts["component"] == 1) & (parts["seeds"] > 0)]
    ends = (heads["estimate"].mean(), heads["low"].min(), heads["high"].max(), int(heads["n"].sum()), int(heads["seeds"].sum()))
    return name, claim.source, claim.statement, *ends, claim.literature, said, claim.chapter


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
