"""The committed results keep the contract: every table its columns, every row its interval and n, every monitor every variant."""

from pathlib import Path

import pandas as pd
import pytest

from helpers.results import KEY, OWN, VALUES
from helpers.study import findings
from helpers.study.claims import CLAIMS

ROOT = Path(__file__).parents[2]
RUNS = sorted(path.parent for profile in ("cpu", "published") for path in (ROOT / "results" / profile).glob("*/*/manifest.json"))
IDS = [str(path.relative_to(ROOT / "results")) for path in RUNS]


def test_a_run_is_committed():
    assert RUNS


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_every_row_of_every_table_has_its_interval_and_n(run):
    tables = {path.stem: pd.read_parquet(path) for path in (run / "tables").glob("*.parquet")}
    assert {"behaviour", "utility", "monitors", "staleness", "interaction", "triage"} <= set(tables)
    for name, table in tables.items():
        assert list(table.columns) == [*KEY, *OWN[name], *VALUES], name
        assert len(table), name
        assert table[["value", "low", "high"]].notna().all(axis=None), name
        assert (table["n"] >= 1).all(), name
        assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all(), name


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_every_monitor_met_every_variant(run):
    """At least 5 tasks, 5 depths and 4 kinds of probe, on each variant that chapters 02 and 03 measured."""
    behaviour, table = (pd.read_parquet(run / "tables" / f"{name}.parquet") for name in ("behaviour", "staleness"))
    names = [column for column in KEY if column != "strength"]
    measured = set(map(tuple, behaviour[names].to_numpy()))
    drops = table[table["metric"].isin(["auroc_drop", "auroc_undefined"])]
    drops = drops.assign(kind=drops["probe"].str.replace("-(mean|last)$", "", regex=True))
    for key, rows in drops.groupby(names):
        measured.discard(key)
        grid = rows.groupby(["task", "depth"])["kind"].nunique().unstack("depth")
        assert grid.shape[0] >= 5, key
        assert grid.shape[1] >= 5, key
        assert (grid >= 4).all(axis=None), key
    assert not measured


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_the_test_sets_are_as_large_as_the_tasks_allow(run):
    """100 test texts a class where the task holds them; toxicity holds fewer."""
    table = pd.read_parquet(run / "tables" / "monitors.parquet")
    sizes = table[table["metric"] == "auroc"].groupby("task")["n"].min()
    assert (sizes.drop("toxicity") >= 200).all(), sizes.to_dict()


PROFILES = sorted({run.parents[1] for run in RUNS})


@pytest.mark.parametrize("profile", PROFILES, ids=[path.name for path in PROFILES])
def test_the_findings_are_those_of_the_committed_runs_and_of_three_seeds(profile):
    table = pd.read_parquet(profile / "findings.parquet")
    again, components = findings.collect([(run.parent.name, seed_of(run), findings.run_tables(run)) for run in runs_of(profile)])
    pd.testing.assert_frame_equal(table, again)
    assert table["claim"].tolist() == list(CLAIMS)
    assert len(runs_of(profile)) >= 3
    assert (table.loc[table["verdict"] != "not run", "seeds"] >= 3).all()
    decided = components[components["answer"].isin(["supported", "contradicted"]) & (components["side"] != "within")]
    assert not ((decided["low"] <= decided["bound"]) & (decided["bound"] <= decided["high"])).any()


def runs_of(profile: Path) -> list[Path]:
    """The runs of a profile in the order in which chapter 11 reads them."""
    return sorted((run for run in RUNS if run.parents[1] == profile), key=lambda run: (run.parent.name, seed_of(run)))


def seed_of(run: Path) -> int:
    """The seed of a run's folder."""
    return int(run.name.removeprefix("seed-"))
