"""Claim pages: what the book's pages show of verdicts, power and coverage, made from tables and never typed."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from helpers.book.answers.numbers import gathered
from helpers.book.markup import table, text
from helpers.book.power import PLANS
from helpers.book.verdict_history.sides import rules_of
from helpers.figures.findings_tables import asked
from helpers.figures.projection_tables import table_one_over_seeds
from helpers.runner.manifests import finished
from helpers.study.claims import CLAIMS, RULES_SET, UNITS
from helpers.study.findings import run_tables

TABLES = Path("book") / "_static" / "tables"
MISSING = "This table is not made yet."


def older_rules(profile: Path) -> list[str]:
    """The sets of rules, by date, that judged the stored runs of a profile and are not the present ones."""
    return [name for name in rules_of(profile) if name != RULES_SET]


def rules(root: Path, run: Path) -> str:
    """A box that says which rules judged what is shown, where these are not the present ones; else nothing."""
    older = older_rules(run.parents[1])
    if not older:
        return ""
    return (
        f":::{{warning}}\nThe runs shown here were judged by the rules of {text(' and '.join(older))}, and so are the verdicts "
        f"of chapter 11 as it was run. All other pages judge the same runs anew, by the present rules, of {RULES_SET}; where the "
        "runs lack what these ask for, they say so. The difference ends when the runs are made anew.\n:::\n"
    )


def reasons(root: Path, run: Path) -> str:
    """Every claim with its verdict, and of what is undecided or mixed the parts that are, each with its reason."""
    judged = gathered(run.parents[1]).findings
    rows = [(row.claim, text(CLAIMS[row.claim].short), text(row.verdict), text(row.reason)) for row in judged.itertuples()]
    return table(("claim", "in short", "verdict", "what is open, and why"), rows)


def _read(root: Path, name: str) -> pd.DataFrame | None:
    path = root / TABLES / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() and path.stat().st_size else None


def power(root: Path, run: Path) -> str:
    """Half widths of every component under each plan, in bold where the estimate would be decided."""
    found = _read(root, "power")
    if found is None:
        return MISSING
    heads = ("claim", "part", "asked", "seen", *(f"{seeds} seeds, items x {times}" for seeds, times in PLANS))
    rows = []
    for (claim, name), own in found.groupby(["claim", "name"], sort=False):
        first = own.iloc[0]
        unit = UNITS[first["unit"]]
        wanted = asked(first["unit"], first["side"], first["bound"], first["margin"])
        cells = [(unit.written(r.half_width)[0].lstrip("+"), r.items, r.decides) for r in own.itertuples()]
        shown = [f"{'**' * decides}±{half} (n {items}){'**' * decides}" for half, items, decides in cells]
        rows.append((text(claim), text(name), text(wanted), text(unit.written(first["estimate"])[0]), *shown))
    return table(heads, rows)


def coverage(root: Path, run: Path) -> str:
    """How often intervals held what was planted, by estimator, seeds, items and how far seeds lie apart."""
    found = _read(root, "coverage")
    if found is None:
        return MISSING
    rows = [(text(r.what), str(r.seeds), str(r.n), f"{r.spread:g}", f"{100 * r.coverage:.1f} %",
             f"{100 * r.low:.1f} to {100 * r.high:.1f} %") for r in found.itertuples()]  # fmt: skip
    heads = ("estimator and truth", "seeds", "items", "seed sd, log odds", "holds the truth", "95 % of that")
    return table(heads, rows)


def decisions(root: Path, run: Path) -> str:
    """How often simulated studies decide, one row an attack, one column a number of seeds and prompts."""
    found = _read(root, "decisions")
    if found is None:
        return MISSING
    plans = list(dict.fromkeys(zip(found["seeds"], found["n"], strict=True)))
    rows = [(text(what), f"{own['spread'].iloc[0]:g}", *(f"{100 * value:.0f} %" for value in own["decided"]))
            for what, own in found.groupby("what", sort=False)]  # fmt: skip
    return table(("the attack", "seed sd, log odds", *(f"{seeds} seeds, {n} prompts" for seeds, n in plans)), rows)


def gate(root: Path, run: Path) -> str:
    """What the gate did on the embedded model: how often it erred over resamples, and what a run took."""
    found = _read(root, "gate")
    if found is None:
        return MISSING
    rows = [tuple(text(cell) for cell in row) for row in found.fillna("").itertuples(index=False, name=None)]
    return table(("tried", "seen", "what the gate states", "within that"), rows)


def table_one(root: Path, run: Path) -> str:
    """Restorations in the form of the literature's Table 1, over all seeds of the shown model; a line where none ran them."""
    own = [each for each in finished(run.parents[1]) if each.model == run.parent.name]
    tables = {each.seed: run_tables(each.folder)["projection"] for each in own if "07_projection" in each.chapters}
    if not tables:
        return "*No run of this profile has restored an update yet.*"
    found = table_one_over_seeds(tables)
    return table(tuple(found), [tuple(text(str(cell)) for cell in row) for row in found.itertuples(index=False, name=None)])


CLAIM_PARTS: dict[str, Callable[[Path, Path], str]] = {
    "rules": rules,
    "reasons": reasons,
    "power": power,
    "coverage": coverage,
    "decisions": decisions,
    "gate": gate,
    "table-one": table_one,
}
