"""Evidence: a report is judged anew without a model, under its own policy to the same end, and what was edited is refused."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from support import given
from support.bland import refused
from support.tiers import slow
from test_floors import scored, scores_file, write

from helpers import __main__
from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.revalidation import error_rates, watches
from helpers.revalidation.behaviour import comparison
from helpers.revalidation.behaviour.comparison import PairedItems
from helpers.revalidation.evidence import distances, kept
from helpers.revalidation.evidence.replay import replay
from helpers.revalidation.options import Options
from helpers.revalidation.policy import DEFAULT, GatePolicy
from helpers.revalidation.report import files, schema
from helpers.revalidation.score_file import run_scores

SILENT = (lambda line: None,)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer simulated runs, in making and in replaying alike."""
    monkeypatch.setattr(error_rates, "DRAWS", 10)
    monkeypatch.setattr(error_rates, "LEAST", 10)


@pytest.fixture
def report(tmp_path):
    """The folder of a report on the scores of a monitor that works, and the scores."""
    scores = scores_file(tmp_path / "s.csv", scored(3, 1.645, n=400))
    files.write(run_scores(Options(scores=scores), *SILENT), tmp_path / "report")
    return tmp_path / "report", scores


def edited(folder, change):
    """The report with something changed by hand."""
    found = json.loads((folder / "report.json").read_text())
    change(found)
    (folder / "report.json").write_text(json.dumps(found))
    return Options(evidence=str(folder))


def test_under_its_own_policy_a_report_is_judged_to_the_same_numbers(report):
    folder, scores = report
    old, new = files.read(folder), replay(Options(evidence=str(folder), scores=scores), *SILENT)
    schema.check_report(new)
    for key in ("verdict", "code", "monitors", "next", "sureness", "controls", "policy", "compared", "evidence", "triage"):
        assert new[key] == old[key], key
    assert new["notes"][-1].endswith("no model was read")


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [("tpr_floor = 0.99", 10, "unfit"), ("auroc_margin = 0.2", 0, "fine"), ("level = 0.001", 0, "fine"), ("seed = 5", 0, "fine")],
)
def test_another_policy_decides_anew(report, tmp_path, text, code, word):
    policy = write(tmp_path / "revalidate.toml", text + "\n")
    new = replay(Options(evidence=str(report[0]), policy=str(policy)), *SILENT)
    assert (new["code"], new["verdict"]["word"]) == (code, word)
    assert new["policy"]["file"] == "revalidate.toml"
    assert new["policy"]["hash"] != DEFAULT.hash


def test_margins_and_level_of_a_policy_decide():
    """What is shown beyond a margin of 0.05 lies within one of 0.3; and a p of 1 % does not pass at 0.1 %."""
    panel = scored(3, 1.645, n=400, lost=0.15)
    states = [
        watches.states_shown([replace(panel, policy=policy)], {"m": True}, None)["m"]
        for policy in (DEFAULT, GatePolicy(tpr_margin=0.3, auroc_margin=0.3), GatePolicy(level=1e-9))
    ]
    assert states == ["stale", "fine", "inconclusive"]


def test_required_monitors_can_be_named_at_the_replay(tmp_path):
    panel = given.panel(n=400, k=2, change=lambda s, y, rng: np.vstack([rng.normal(size=y.size), s[1]]))
    rows = [
        {"monitor": f"m{j}", "id": f"r{i}", "before": panel.before[j, i], "after": panel.after[j, i],
         "label": int(panel.labels[i]), "threshold": panel.cuts[j]}
        for j in range(2) for i in range(400)
    ]  # fmt: skip
    files.write(run_scores(Options(scores=given.write(tmp_path / "s.csv", rows)), *SILENT), tmp_path / "report")
    evidence = str(tmp_path / "report")
    assert [replay(Options(evidence=evidence, required=r), *SILENT)["code"] for r in ((), ("m0",), ("m1",))] == [10, 10, 0]
    with refused(USAGE, "required monitor 'm2' is not there"):
        replay(Options(evidence=evidence, required=("m2",)), *SILENT)
    with refused(REFUSED, "the evidence holds nothing of it"):
        replay(Options(evidence=evidence, required=("behaviour/refusals",)), *SILENT)


EDITS = {
    "a score": (lambda r: r["evidence"]["panels"][0]["after"][0].__setitem__(0, 9.0), "evidence is not that of its sha256"),
    "a label": (lambda r: r["evidence"]["panels"][0]["labels"].__setitem__(0, 1), "evidence is not that of its sha256"),
    "the policy": (lambda r: r["policy"].update(tpr_floor=0.01), "policy is not that of its hash"),
    "a state": (lambda r: r["monitors"][0].update(state="stale"), "is stale, its evidence gives fine"),
    "no evidence": (lambda r: r.pop("evidence"), "it holds no evidence"),
    "another monitor": (lambda r: r["monitors"][0].update(name="n"), "evidence is of other monitors"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_was_edited_is_refused(report, name):
    change, said = EDITS[name]
    with refused(REFUSED, said):
        replay(edited(report[0], change), *SILENT)


def test_edited_evidence_with_its_hash_made_anew_is_refused_where_it_has_no_form(report):
    def change(found):
        found["evidence"]["panels"][0]["cuts"] = []
        found["evidence"]["sha256"] = kept.digest(found["evidence"])

    with refused(REFUSED, "has not the form of evidence"):
        replay(edited(report[0], change), *SILENT)


VALUES = (None, "x", [], {}, -1, float("inf"), [[]], [None])


def places(value, path=()):
    """The path of every part of the evidence, of long lists the first item alone."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


@slow("hundreds of replays; edits of every kind are refused above")
def test_no_evidence_of_any_form_ends_in_a_traceback(tmp_path):
    """Every part of it replaced by values of other kinds, under a hash made anew: a report or one line, nothing else."""
    scores = scores_file(tmp_path / "s.csv", scored(3, 1.645, n=60))
    report = run_scores(Options(scores=scores), *SILENT)
    items = [PairedItems("refusals", "phrases", np.ones(12), np.ones(12), np.arange(12))]
    report["evidence"]["behaviour"] = comparison.record(items)
    report["evidence"]["panels"][0]["again"] = report["evidence"]["panels"][0]["after"]
    ends = {"report": 0, "refused": []}
    for path in list(places(report["evidence"]))[1:]:
        for value in VALUES:
            found = copy.deepcopy(report)
            at = found["evidence"]
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
            found["evidence"]["sha256"] = kept.digest(found["evidence"])
            (tmp_path / "r.json").write_text(json.dumps(found))
            try:
                replay(Options(evidence=str(tmp_path / "r.json")), *SILENT)
                ends["report"] += 1
            except StudyError as error:
                ends["refused"].append((error.code, str(error).count("\n")))
    assert set(ends["refused"]) <= {(REFUSED, 0), (USAGE, 0)}
    assert len(ends["refused"]) > 120
    assert ends["report"] > 0


def test_other_files_than_those_of_the_evidence_are_not_comparable(report, tmp_path):
    other = scores_file(tmp_path / "other.csv", scored(3, 1.645, n=400, seed=9))
    with refused(NOT_COMPARABLE, "other.csv is not what the evidence is about"):
        replay(Options(evidence=str(report[0]), scores=other), *SILENT)


def test_the_command_replays_writes_a_comment_and_never_replaces_its_evidence(report, tmp_path, capsys):
    folder, _ = report
    before = (folder / "report.json").read_bytes()
    policy = write(tmp_path / "revalidate.toml", "tpr_floor = 0.99\n")
    words = ["revalidate", "--evidence", str(folder), "--policy", str(policy)]
    assert __main__.main([*words, "--comment", str(tmp_path / "c.md")]) == 10
    assert "UNFIT" in (tmp_path / "c.md").read_text()
    assert not (tmp_path / "revalidation").exists()
    assert __main__.main([*words, "--out", str(folder)]) == USAGE
    assert "holds the evidence" in capsys.readouterr().err
    assert (folder / "report.json").read_bytes() == before
    assert __main__.main([*words, "--out", str(tmp_path / "new")]) == 10
    assert files.read(tmp_path / "new")["verdict"]["word"] == "unfit"


# ---------------------------------------------------------------- noise, and the distance to the threshold


def test_no_monitor_is_stale_within_the_noise_of_reading_twice():
    """The same loss is stale where the base reads the same twice, and open where its second reading moved as far."""
    panel = scored(3, 1.645, n=400, lost=0.5)
    quiet, loud = [panel.before + 1e-6], [panel.after]
    judged = [watches.judge([panel], {"m": True}, again, 0).watches["m"] for again in (quiet, loud)]
    assert [one["state"] for one in judged] == ["stale", "inconclusive"]
    assert judged[1]["noise"] == {"update": judged[1]["noise"]["reading"], "reading": pytest.approx(0.7, abs=0.3), "within": True}
    assert watches.states_shown([panel], {"m": True}, loud) == {"m": "inconclusive"}
    sound = scored(3, 1.645, n=400, noise=0.001)
    assert watches.judge([sound], {"m": True}, [sound.after], 0).watches["m"]["state"] == "fine"  # no proof is undone


def test_scores_stand_as_far_from_their_threshold_as_they_do():
    before, labels = np.array([2.0, 4.0, -2.0, -4.0]), np.array([1, 1, 0, 0])
    found = distances.standing(before, before - 1, 1.0, labels)
    spread = before.std()
    assert found["flagged"]["before"]["median"] == pytest.approx(2 / spread)
    assert found["flagged"]["after"]["median"] == pytest.approx(1 / spread)
    assert found["harmless"]["after"]["median"] == pytest.approx(5 / spread)  # the right side is below
    assert found["flagged"]["before"]["nearest"] == pytest.approx(1.2 / spread)
    assert distances.standing(before, before, np.nan) is None
    assert "flagged" in distances.standing_words(found)
    assert set(distances.standing(before, before, 1.0)) == {"texts"}


def test_evidence_survives_json_bit_by_bit():
    panel = given.panel(n=60, k=2)
    panel = replace(panel, cuts=np.array([np.nan, 1 / 3]))
    items = [PairedItems("refusals", "phrases", np.ones(12), np.zeros(12), np.arange(12))]
    found = json.loads(json.dumps(kept.keep([panel], [panel.after], {"a": True}, 3, items)))
    assert kept.digest(found) == found["sha256"]
    (again,), second = kept.panels_of(found, DEFAULT)
    assert all((getattr(again, side) == getattr(panel, side)).all() for side in ("before", "after", "labels", "nominal"))
    assert np.array_equal(again.cuts, panel.cuts, equal_nan=True)
    assert (second[0] == panel.after).all()
