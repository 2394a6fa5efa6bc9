"""The committed results keep the contract: every table its columns, every row its interval and n, every monitor every variant."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from helpers.book.verdict_history import record, sides
from helpers.results import KEY, OWN, VALUES
from helpers.study import findings
from helpers.study.claims import CLAIMS, RULES_SET

ROOT = Path(__file__).parents[2]
LARGEST = 40e6  # bytes of all results in git
RUNS = sorted(path.parent for profile in ("cpu", "published") for path in (ROOT / "results" / profile).glob("*/*/manifest.json"))
IDS = [str(path.relative_to(ROOT / "results")) for path in RUNS]


def test_a_run_is_committed():
    assert RUNS


def test_what_is_committed_is_light_and_chapters_are_those_of_the_seed_that_the_book_shows():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "results"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git repository")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= LARGEST
    drawn = {path.parents[1].name for path in paths if path.suffix == ".ipynb"}
    assert drawn == {"seed-0"}
    assert {path.parents[1].name for path in paths if path.parent.name == "tables"} == {"seed-0"}


@pytest.mark.parametrize("profile", sorted({run.parents[1] for run in RUNS}), ids=lambda folder: folder.name)
def test_a_record_of_changed_verdicts_ends_with_those_that_are_committed(profile):
    """Where this fails, verdicts changed and nobody said so: `python -m helpers findings --diff OLD NEW --record DATE`."""
    changes = record.read_changes(profile)
    stored = sides.read_side(str(profile)).verdicts
    assert not changes or record.unlike(changes[-1]["verdicts"], stored) == []
    assert set(stored.values()) <= set(findings.VERDICTS)


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_every_row_of_every_table_has_its_interval_and_n(run):
    tables = findings.run_tables(run)  # put together from their parts where the run keeps none
    assert {"behaviour", "utility", "monitors", "staleness", "interaction", "triage"} <= set(tables)
    for name, table in tables.items():
        assert list(table.columns) == [*KEY, *OWN[name], *VALUES], name
        assert len(table), name
        assert table[["value", "low", "high"]].notna().all(axis=None), name
        assert (table["n"] >= 1).all(), name
        assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all(), name


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_every_monitor_met_every_variant(run):
    """At least 5 tasks, 3 depths and 4 kinds of probe, on each variant that chapters 02 and 03 measured."""
    tables = findings.run_tables(run)
    behaviour, table = (tables[name] for name in ("behaviour", "staleness"))
    names = [column for column in KEY if column != "strength"]
    measured = set(map(tuple, behaviour[names].to_numpy()))
    drops = table[table["metric"].isin(["auroc_drop", "auroc_undefined"])]
    drops = drops.assign(kind=drops["probe"].str.replace("-(mean|last)$", "", regex=True))
    for key, rows in drops.groupby(names):
        measured.discard(key)
        grid = rows.groupby(["task", "depth"])["kind"].nunique().unstack("depth").dropna(axis="columns")  # depths of all tasks
        assert grid.shape[0] >= 5, key
        assert grid.shape[1] >= 3, key
        assert (grid >= 4).all(axis=None), key
    assert not measured


@pytest.mark.parametrize("run", RUNS, ids=IDS)
def test_the_test_sets_are_as_large_as_the_tasks_allow(run):
    """100 test texts a class where the task holds them: of personal data some are too alike, of toxicity most are missing."""
    table = findings.run_tables(run)["monitors"]
    sizes = table[table["metric"] == "auroc"].groupby("task")["n"].min()
    assert (sizes.drop(["toxicity", "privacy-pii"]) >= 200).all(), sizes.to_dict()
    assert sizes["privacy-pii"] >= 190


PROFILES = sorted({run.parents[1] for run in RUNS})


@pytest.mark.parametrize("profile", PROFILES, ids=[path.name for path in PROFILES])
def test_the_findings_are_those_of_the_committed_runs_and_of_three_seeds(profile):
    judged_by = {json.loads((run / "parts/11_findings/rules.json").read_text())["set"] for run in runs_of(profile)}
    if judged_by != {RULES_SET}:
        pytest.skip(f"results/{profile.name} was judged by the rules of {', '.join(sorted(judged_by))}; run it again")
    table = pd.read_parquet(profile / "findings.parquet")
    again, components = findings.collect([(run.parent.name, seed_of(run), findings.run_tables(run)) for run in runs_of(profile)])
    pd.testing.assert_frame_equal(table, again)
    assert table["claim"].tolist() == list(CLAIMS)
    assert len(runs_of(profile)) >= 3
    shown = (table["verdict"] != "not run") & ~table["reason"].str.contains("no premise")
    assert (table.loc[shown, "seeds"] >= 3).all()
    decided = components[components["answer"].isin(["supported", "contradicted"]) & (components["side"] != "within")]
    assert not ((decided["low"] <= decided["bound"]) & (decided["bound"] <= decided["high"])).any()


def runs_of(profile: Path) -> list[Path]:
    """The runs of a profile in the order in which chapter 11 reads them."""
    return sorted((run for run in RUNS if run.parents[1] == profile), key=lambda run: (run.parent.name, seed_of(run)))


def seed_of(run: Path) -> int:
    """The seed of a run's folder."""
    return int(run.name.removeprefix("seed-"))
