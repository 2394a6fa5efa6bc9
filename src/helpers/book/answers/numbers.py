"""Numbers: all that the finished runs of a profile say, over seeds, each with how it is written and where it leads."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.book.answers.facts import FACTS
from helpers.book.markup import text
from helpers.figures.findings_tables import asked, counted, said
from helpers.runner.manifests import finished
from helpers.study import findings
from helpers.study.claims import IN_WORDS, LEVELS, SEEDS, UNITS, Component
from helpers.study.findings import INCONCLUSIVE, NOT_RUN, Run
from helpers.study.paired_items import Premised, Seen, pooled, single
from helpers.study.reasons import Judged, reason
from helpers.study.selections import Remembered

PAGE = "book/provenance.html"
LOOKS = {"refusals": "of AdvBench's prompts not refused", "last": "of monitors unfit: last token",
         "mean": "of monitors unfit: mean of tokens"}  # fmt: skip
OwnSeeds = tuple[tuple[str, float, float, float], ...]  # of each seed: its number, value, low, high


@dataclass(frozen=True)
class Told:
    """A number over the seeds of a model: what it is, its interval, what was asked of it, the answer, and why that is open."""

    key: str
    name: str
    model: str
    unit: str
    value: float
    low: float
    high: float
    n: int
    seeds: int
    answer: str
    wanted: str = ""
    reason: str = ""
    took: str = ""
    own: OwnSeeds = ()

    @property
    def measured(self) -> bool:
        """Whether any seed measured it."""
        return self.seeds > 0

    @property
    def written(self) -> str:
        """The number with its interval, in the words of its unit."""
        return said(self.unit, self.value, self.low, self.high)

    @property
    def part(self) -> str:
        """What tells it from its neighbours in a claim: the pooling, or else its name."""
        last = self.name.rpartition(": ")[2]
        return last if last in IN_WORDS.values() else self.name


@dataclass(frozen=True, eq=False)
class Gathered:
    """What the finished runs of a profile say: findings and their parts, every number by its key, one a model, each run's own."""

    profile: str
    runs: tuple[tuple[str, int], ...]
    chapters: Mapping[str, int]  # in how many runs each is done
    findings: pd.DataFrame
    components: pd.DataFrame
    dots: pd.DataFrame
    told: Mapping[str, tuple[Told, ...]]

    @property
    def several(self) -> bool:
        """Whether numbers need the name of their model."""
        return len({model for model, _ in self.runs}) > 1

    def counting(self, keys: Sequence[str]) -> str:
        """How many seeds the numbers of these keys rest on, where these are not all, or too few to decide; else nothing."""
        told = [each for key in keys for each in self.told.get(key, ()) if each.measured]
        every = Counter(model for model, _ in self.runs)
        notes = [f"{each.seeds} of {counted(every[each.model])}" if each.seeds < every[each.model] else counted(each.seeds)
                 for each in told if each.seeds < max(SEEDS, every[each.model])]  # fmt: skip
        return min(notes, default="")

    def verdict(self, claim: str) -> str:
        """The verdict on a claim."""
        return str(self.findings.set_index("claim").loc[claim, "verdict"])


# ---------------------------------------------------------------- from runs


def gather(profile: str, runs: Sequence[Run], chapters: Mapping[str, int] | None = None) -> Gathered:
    """All numbers of these runs; without runs nothing is measured, and no key is missing."""
    held = [(model, seed, Remembered(own)) for model, seed, own in runs]
    dots = findings.by_seed(held)
    found, components = findings.judge(dots)
    told = {key: tuple(group) for key, group in _grouped([*_of_claims(components, dots), *_of_facts(held), *_of_looks(held)])}
    names = tuple((model, seed) for model, seed, _ in held)
    return Gathered(profile, names, chapters or {}, found, components, dots, told)


def gathered(profile: Path) -> Gathered:
    """All numbers of the finished runs in results/<profile>; read once as long as no manifest changes."""
    marks = tuple((each.folder, (each.folder / "manifest.json").stat().st_mtime_ns) for each in finished(profile))
    return _gathered(profile, marks)


@lru_cache(maxsize=4)
def _gathered(profile: Path, marks: tuple) -> Gathered:
    runs = [(each.model, each.seed, findings.run_tables(each.folder)) for each in finished(profile)]
    done = Counter(name for each in finished(profile) for name in each.chapters)
    return gather(profile.name, runs, done)


def _grouped(found: Sequence[Told]) -> Iterator[tuple[str, list[Told]]]:
    for key in dict.fromkeys(each.key for each in found):
        yield key, [each for each in found if each.key == key]


def _of_claims(components: pd.DataFrame, dots: pd.DataFrame) -> Iterator[Told]:
    for row in components.to_dict("records"):
        own = dots[(dots["claim"] == row["claim"]) & (dots["component"] == row["component"]) & (dots["model"] == row["model"])]
        ends = tuple((str(dot.seed), dot.value, dot.low, dot.high) for dot in own.itertuples())
        wanted = asked(row["unit"], row["side"], row["bound"], row["margin"])
        yield Told(f"{row['claim'].lower()}-{row['component']}", row["name"], row["model"], row["unit"], row["estimate"],
                   row["low"], row["high"], int(row["n"]), int(row["seeds"]), row["answer"], wanted, row["reason"],
                   row["took"], ends)  # fmt: skip


def _of_facts(runs: Sequence[Run]) -> Iterator[Told]:
    for key, component in FACTS.items():
        for model in sorted({model for model, _, _ in runs}) or [""]:
            seen = {str(seed): component.estimate(own) for name, seed, own in sorted(runs, key=_place) if name == model}
            yield _over(key, component, model, {seed: one for seed, one in seen.items() if one is not None})


def _place(run: Run) -> tuple[str, int]:
    return run[0], run[1]


def _over(key: str, component: Component, model: str, seen: Mapping[str, Seen]) -> Told:
    """A fact over the seeds that measured it, judged as a claim's component is."""
    wanted = asked(component.unit, component.side, component.bound, component.margin)
    if not seen:
        gone = float("nan")
        return Told(key, component.name, model, component.unit, gone, gone, gone, 0, 0, NOT_RUN, wanted, "not run")
    bounds, each = UNITS[component.unit].bounds, list(seen.values())
    (e, spread), (inner, _) = (pooled(each, bounds, level) for level in (LEVELS[component.side], LEVELS["within"]))
    answer = findings.answer(e, len(each), component)
    premises = [(one.value, one.held) for one in each if isinstance(one, Premised)]
    why = reason(Judged(component, e, inner, spread, len(each), premises)) if answer == INCONCLUSIVE else ""
    own = tuple((seed, *_ends(single(one, bounds))) for seed, one in seen.items())
    return Told(key, component.name, model, component.unit, e.value, e.low, e.high, e.n, len(each), answer, wanted, why, "", own)


def _ends(e: Any) -> tuple[float, float, float]:
    return e.value, e.low, e.high


def _of_looks(runs: Sequence[Run]) -> Iterator[Told]:
    """What the figure of the first page shows, under `look-<update>-<asked>`."""
    table = findings.overlook(runs)
    for (update, question, model), part in table.groupby(["update", "asked", "model"], sort=False):
        single_rows = part[part["seed"] != findings.ALL]
        own = tuple((str(row.seed), row.value, row.low, row.high) for row in single_rows.itertuples())
        row = part[part["seed"] == findings.ALL].iloc[0]
        yield Told(look(str(update), str(question)), f"{update}: {LOOKS[str(question)]}", str(model), "share", row["value"],
                   row["low"], row["high"], int(row["n"]), len(own), "", own=own)  # fmt: skip


def look(update: str, question: str) -> str:
    """The key of what the first figure shows of an update: `refusals`, `last` or `mean`."""
    return f"look-{update.replace(' ', '-').replace(',', '')}-{question}"


# ---------------------------------------------------------------- as they are written


def anchor(key: str) -> str:
    """The id of a number's line on the page of provenance."""
    return f"a-{key}"


def linked_number(found: Gathered, key: str, up: str = "") -> str:
    """The number of a key as a link to its line, one a model; `up`: from the page's folder to the folder of the site."""
    shown = [f"{each.model}: {each.written}" * found.several or each.written for each in found.told[key] if each.measured]
    return link(key, "; ".join(shown) or "not measured", up)


def link(key: str, body: str, up: str = "") -> str:
    """Some words about a number as a link to its line."""
    return f'<a class="number" href="{up}{PAGE}#{anchor(key)}">{text(body)}</a>'
