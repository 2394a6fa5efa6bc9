"""Moved verdicts: runs that disagree are planted, and each move, its cause and each wrong folder is said as it is."""

import json
import shutil
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from helpers import __main__, results
from helpers.book.verdict_history import lines, moves, sides
from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.runner.manifests import Finished
from helpers.study import findings
from helpers.study.claims import CLAIMS, RULES_SET, UNITS

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "cpu" / "embedded"


def dots(seeds=range(3), wrong=(), without=()):
    """What `findings.by_seed` gives: every part three steps on its claim's side, on the other in the claims of `wrong`."""
    rows = []
    for claim, found in CLAIMS.items():
        for place, part in enumerate(found.components, 1):
            unit = UNITS[part.unit]
            away = {"above": 3.0, "below": -3.0, "within": 0.0}[part.side]
            far = {"above": -3.0, "below": 3.0, "within": 3.0 + part.margin / unit.step}[part.side]
            value = min(max(part.bound + unit.step * (far if claim in wrong else away), unit.bounds[0]), unit.bounds[1])
            reach = 0.2 * unit.step
            rows += [(claim, place, "embedded", seed, value, value - reach, value + reach, 100) for seed in seeds
                     if claim not in without]  # fmt: skip
    return pd.DataFrame(rows, columns=findings.DOTS[:8])


def judged(seeds=range(3), wrong=(), without=()):
    """Findings and parts of what is planted, judged once for all tests: a table is never changed in place."""
    found, parts = _judged(tuple(seeds), tuple(sorted(wrong)), tuple(sorted(without)))
    return found.copy(), parts.copy()


@cache
def _judged(seeds, wrong, without):
    return findings.judge(dots(seeds, wrong, without))


def run(folder, seed=0, schema=1, profile="cpu"):
    chapters = {"01_models": {"parameters": {"profile": profile}}}
    return Finished(folder.name, "embedded", seed, folder / "embedded" / f"seed-{seed}", schema, chapters, {}, {}, {}, {}, False)


def side(folder, planted, rules=(RULES_SET,), stored=None, profile="cpu"):
    """A side whose runs say what is planted, and which stores that too where nothing else is given."""
    kept = planted[0] if stored is None else stored
    made = sides.Side(folder.name, folder, (run(folder, profile=profile),), rules, kept)
    made.__dict__["judged"] = planted  # what `cached_property` keeps
    return made


def kept(folder, table):
    """A folder with these findings and no run."""
    folder.mkdir(parents=True)
    table.to_parquet(folder / sides.FILE)
    return folder


# ---------------------------------------------------------------- what moved


def test_nothing_moved_is_one_line(tmp_path):
    found = moves.compare(side(tmp_path / "old", judged()), side(tmp_path / "new", judged()))
    assert (found["moved"], found["only_old"], found["only_new"]) == ([], [], [])
    assert lines.move_lines(found) == [f"nothing moved: all {len(CLAIMS)} claims of both have the verdicts that they had"]


def test_a_verdict_that_moved_names_every_part_that_gave_another_answer_with_both_numbers(tmp_path):
    found = moves.compare(side(tmp_path / "old", judged()), side(tmp_path / "new", judged(range(4), wrong={"M1"})))
    (moved,) = found["moved"]
    assert (moved["claim"], moved["before"]["verdict"], moved["after"]["verdict"]) == ("M1", "supported", "contradicted")
    assert [part["name"] for part in moved["parts"]] == [part.name for part in CLAIMS["M1"].components if not part.beside]
    first = moved["parts"][0]
    assert (first["before"]["answer"], first["after"]["answer"]) == ("supported", "contradicted")
    assert (first["before"]["n"], first["before"]["seeds"], first["after"]["n"], first["after"]["seeds"]) == (300, 3, 400, 4)
    assert first["before"]["low"] < first["before"]["estimate"] < first["before"]["high"] < first["after"]["low"]
    said = lines.move_lines(found)
    assert said[0] == f"1 of {len(CLAIMS)} claims moved from old to new"
    assert said[1].startswith("M1  supported → contradicted   ")
    text = " ".join(" ".join(said[2:]).split())
    for part in moved["parts"]:
        before, after = (lines.told_number(part["unit"], part[when]) for when in ("before", "after"))
        assert f"{part['name']}: supported, {before} → contradicted, {after}; claimed {part['asked']}" in text
    assert "(n = 300, 3 seeds)" in text
    assert "(n = 400, 4 seeds)" in text
    json.dumps(found, allow_nan=False)


def test_parts_of_other_claims_and_parts_beside_a_claim_are_not_named(tmp_path):
    beside = {(claim, place) for claim, one in CLAIMS.items() for place, part in enumerate(one.components, 1) if part.beside}
    assert beside  # there are some, or this shows nothing
    claim = next(name for name, _ in sorted(beside))
    found = moves.compare(side(tmp_path / "old", judged()), side(tmp_path / "new", judged(wrong={claim})))
    (moved,) = found["moved"]
    conjuncts = {part.name for part in CLAIMS[claim].components if not part.beside}
    assert moved["claim"] == claim
    assert {part["name"] for part in moved["parts"]} <= conjuncts


def test_a_claim_that_was_not_run_before_says_so_of_its_parts(tmp_path):
    found = moves.compare(side(tmp_path / "old", judged(without={"S4"})), side(tmp_path / "new", judged()))
    (moved,) = found["moved"]
    assert (moved["claim"], moved["before"]["verdict"], moved["before"]["estimate"]) == ("S4", "not run", None)
    assert {part["before"]["answer"] for part in moved["parts"]} == {"not run"}
    first = moved["parts"][0]
    wanted = f"{first['name']}: not run → supported, {lines.told_number(first['unit'], first['after'])}; claimed"
    assert wanted in " ".join(" ".join(lines.move_lines(found)).split())


def test_a_verdict_that_moved_with_the_rules_alone_is_told_from_one_that_the_numbers_moved(tmp_path):
    older = judged()[0]
    older.loc[older["claim"] == "M1", "verdict"] = "mixed"
    found = moves.compare(side(tmp_path / "old", judged(), ("2020-01-01",), older), side(tmp_path / "new", judged()))
    (moved,) = found["moved"]
    assert moved["parts"] == []
    first, second = moved["notes"]
    assert first == (
        f"the old results say mixed, by the rules of 2020-01-01; judged anew, by the rules of {RULES_SET}, they say supported"
    )
    assert second == "judged by the same rules, no part of the claim gives another answer"
    said = lines.move_lines(found)
    assert f"rules: 2020-01-01 → {RULES_SET}" in said
    assert any(line.strip().startswith("headline: ") for line in said)
    both = moves.compare(side(tmp_path / "old", judged()), side(tmp_path / "new", judged(wrong={"M1"})))
    assert both["moved"][0]["notes"] == []  # the control: the numbers moved it


def test_claims_that_one_side_alone_has_are_named_with_their_verdicts(tmp_path):
    whole = judged()[0]
    old = side(tmp_path / "old", judged(), stored=whole[whole["claim"] != "N3"])
    new = side(tmp_path / "new", judged(), stored=whole[whole["claim"] != "M7"])
    found = moves.compare(old, new)
    assert [(one["claim"], one["verdict"]) for one in found["only_old"]] == [("M7", "supported")]
    assert [(one["claim"], one["verdict"]) for one in found["only_new"]] == [("N3", "supported")]
    assert lines.move_lines(found) == [
        f"nothing moved: all {len(CLAIMS) - 2} claims of both have the verdicts that they had",
        "only in old: M7 (supported)",
        "only in new: N3 (supported)",
    ]


def test_a_claim_that_is_no_longer_asked_is_compared_by_its_headline(tmp_path):
    table = judged()[0]
    sides_of = [table.assign(claim=table["claim"].replace("M1", "X1")) for _ in range(2)]
    sides_of[1].loc[0, "verdict"] = "mixed"
    old, new = (side(tmp_path / name, judged(), stored=one) for name, one in zip(("old", "new"), sides_of, strict=True))
    (moved,) = moves.compare(old, new)["moved"]
    assert (moved["claim"], moved["short"], moved["parts"]) == ("X1", "", [])
    assert moved["notes"] == ["this claim is no longer asked, so its parts are not known"]


def test_findings_without_a_run_are_compared_and_their_parts_are_said_to_be_unknown(tmp_path):
    old = sides.read_side(str(kept(tmp_path / "old", judged()[0])))
    (moved,) = moves.compare(old, side(tmp_path / "new", judged(wrong={"S1"})))["moved"]
    assert (moved["claim"], moved["parts"]) == ("S1", [])
    assert moved["notes"] == [f"no finished run in {tmp_path / 'old'}, so no part of the claim is known there"]


# ---------------------------------------------------------------- wrong folders


def refused(code, *words):
    def fits(error):
        assert error.code == code
        assert len(str(error).splitlines()) == 1
        return all(word in str(error) for word in words)

    return pytest.raises(StudyError, check=fits)


def test_wrong_folders_are_refused_in_one_line_with_a_remedy(tmp_path):
    with refused(USAGE, "nowhere is no folder", "results/cpu"):
        sides.read_side("nowhere")
    (tmp_path / "empty").mkdir()
    with refused(NOT_COMPARABLE, "holds no results", "make study"):
        sides.read_side(str(tmp_path / "empty"))
    kept(tmp_path / "checkout" / "results" / "cpu", judged()[0])
    with refused(NOT_COMPARABLE, "did you mean", str(tmp_path / "checkout" / "results" / "cpu")):
        sides.read_side(str(tmp_path / "checkout"))
    same = side(tmp_path / "same", judged())
    with refused(USAGE, "the same folder"):
        moves.compare(same, same)
    with refused(NOT_COMPARABLE, "of profile quick", "of profile cpu"):
        moves.compare(side(tmp_path / "old", judged(), profile="quick"), same)


def test_findings_of_another_schema_or_that_contradict_themselves_are_refused(tmp_path):
    table = judged()[0]
    with refused(NOT_COMPARABLE, "lacks the column 'seeds'", "judged anew"):
        sides.read_side(str(kept(tmp_path / "a", table.drop(columns="seeds"))))
    with refused(REFUSED, "the claim 'M1' twice"):
        sides.read_side(str(kept(tmp_path / "b", pd.concat([table, table.iloc[:1]]))))
    with refused(REFUSED, "the verdict 'perhaps'"):
        sides.read_side(str(kept(tmp_path / "c", table.assign(verdict="perhaps"))))
    with refused(REFUSED, "has no claim"):
        sides.read_side(str(kept(tmp_path / "d", table.iloc[:0])))
    torn = kept(tmp_path / "e", table)
    (torn / sides.FILE).write_bytes((torn / sides.FILE).read_bytes()[:100])
    with refused(REFUSED, "cannot be read"):
        sides.read_side(str(torn))
    older = sides.read_side(str(kept(tmp_path / "f", table.drop(columns="reason"))))  # as results were before reasons were kept
    assert older.verdicts == dict(zip(table["claim"], table["verdict"], strict=True))


# ---------------------------------------------------------------- from files, and on the command line


def some_runs(folder, seeds, tables=("behaviour", "items")):
    """The committed runs of some seeds with two of their tables, in a folder of their own; without findings."""
    for seed in seeds:
        source, target = RUNS / f"seed-{seed}", folder / "embedded" / f"seed-{seed}"
        target.mkdir(parents=True)
        shutil.copy2(source / "manifest.json", target)
        for part in (path for name in tables for path in source.glob(f"parts/*/{name}.parquet")):
            (target / "parts" / part.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(part, target / "parts" / part.parent.name)
    return folder


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkouts")
    return some_runs(place / "old" / "cpu", (0, 1)), some_runs(place / "new" / "cpu", (0, 1, 2))


def test_a_third_seed_decides_what_two_could_not_and_the_command_says_so(two_folders, capsys, monkeypatch):
    """From committed tables: what two seeds cannot decide a third does, and which claims those are the tables say."""
    monkeypatch.setattr(findings, "CLAIMS", {claim: CLAIMS[claim] for claim in ("S1", "S4", "S5")})  # of behaviour alone
    old, new = map(str, two_folders)
    assert __main__.main(["findings", "--diff", old, new, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["moved"]
    for claim in found["moved"]:
        assert claim["before"]["verdict"] == "inconclusive"
        assert claim["after"]["verdict"] != "inconclusive"
        assert {part["before"]["seeds"] for part in claim["parts"]} == {2}
        assert {part["after"]["seeds"] for part in claim["parts"]} == {3}
    assert len(found["notes"]) == 2  # neither has findings.parquet: both were judged anew


def test_tables_and_manifests_of_another_schema_are_refused(tmp_path):
    folder = some_runs(tmp_path / "cpu", (0,), ("utility",))
    for path in folder.rglob("*.parquet"):
        pd.read_parquet(path).drop(columns="n").to_parquet(path)
    with refused(NOT_COMPARABLE, "table 'utility' of embedded, seed 0", "(n)"):
        _ = sides.read_side(str(folder)).judged
    manifest = folder / "embedded" / "seed-0" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text(encoding="utf-8")) | {"schema": 0}), encoding="utf-8")
    with refused(NOT_COMPARABLE, "has schema 0"):
        sides.read_side(str(folder))


def test_verdicts_of_a_profile_are_printed_as_a_table(capsys):
    assert __main__.main(["findings", "--profile", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["claim", "verdict", "seeds", "chapter", "ours"]
    stored = pd.read_parquet(ROOT / "results" / "cpu" / sides.FILE).set_index("claim")
    rows = {line.split()[0]: line for line in said[1:] if not line.startswith(" ")}
    assert list(rows) == list(stored.index)
    assert all(f" {stored.loc[claim, 'verdict']} " in line for claim, line in rows.items())
    assert __main__.main(["findings", "--profile", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["claim"]: row["verdict"] for row in found["findings"]} == stored["verdict"].to_dict()


def test_wrong_options_end_with_one_line_and_the_code_of_the_contract(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AFTER_UPDATE_RESULTS", str(tmp_path / "none"))
    cases = {
        ("--diff", "a", "b", "--profile", "cpu"): USAGE,
        ("--record", "2026-12-01"): USAGE,
        ("--diff", "a", "b", "--record", "tomorrow"): USAGE,
        ("--diff", "a", "b"): USAGE,
        ("--profile", "No Name"): USAGE,
        ("--profile", "quick"): NOT_COMPARABLE,
        (): NOT_COMPARABLE,
    }
    for words, code in cases.items():
        assert __main__.main(["findings", *words]) == code, words
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: "), words


def test_a_table_keeps_the_columns_that_the_comparison_reads():
    assert {*sides.NEEDED, *sides.WORDS} == set(findings.COLUMNS)
    assert results.findings_path(results.Run("cpu", "m", 0, ROOT / "results" / "cpu" / "m" / "seed-0")).name == sides.FILE
