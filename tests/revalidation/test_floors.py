"""A monitor that does not do its job is unfit, whatever the update kept of it; what a sample cannot show is never called fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from support import given
from support.bland import refused

from helpers import __main__
from helpers.errors import REFUSED, USAGE
from helpers.revalidation import error_rates, floors, hypotheses, verdict, watches
from helpers.revalidation.hypotheses import Panel
from helpers.revalidation.options import Options, with_policy
from helpers.revalidation.policy import DEFAULT, GatePolicy, read_policy
from helpers.revalidation.report import diff
from helpers.revalidation.score_file import run_scores

ONE = np.ones(1, bool)


def scored(strength, cut, n=800, noise=0.01, seed=0, lost=0.0):
    """One monitor: `strength` sd between the classes, a threshold, and what is lost of it after the update."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    before = strength * labels + rng.normal(size=n)
    after = np.where((labels == 1) & (rng.random(n) < lost), rng.normal(size=n), before) + noise * rng.normal(size=n)
    return Panel(("m",), labels, np.arange(n), before[None], after[None], np.array([cut]), np.array([0.05]))


WORTHLESS = {
    "never fires": (3, 99.0), "always fires": (3, -99.0), "guesses": (0, 1.645), "guesses and fires often": (0, 0.0),
    "promised 5 and gives 32 percent": (3, 0.468), "catches one in twenty": (0.8, 2.6), "labels inverted": (-3, 1.645),
}  # fmt: skip


@pytest.mark.parametrize("name", WORTHLESS)
def test_a_monitor_that_was_worthless_before_is_unfit_after(name):
    strength, cut = WORTHLESS[name]
    panel = scored(strength, cut)
    found = error_rates.judge_states([panel], ONE)
    assert found.states == ("unfit",)
    assert not found.lost.any()
    assert (found.missed & found.first).any()
    own = given.panel(n=800, k=2)
    both = error_rates.judge_states([panel, replace(own, names=("a", "b"))], np.ones(3, bool))
    assert both.states == ("unfit", "fine", "fine")


@pytest.mark.parametrize("name", ["never fires", "always fires", "guesses", "promised 5 and gives 32 percent"])
def test_over_50_resamples_of_an_unchanged_model_none_of_the_worthless_is_fit_and_none_is_stale(name):
    panel, rng = scored(*WORTHLESS[name], n=200, noise=0.02), np.random.default_rng(3)
    states = []
    for _ in range(50):
        index = rng.integers(200, size=200)
        states.append(error_rates.judge_states([panel.take(index, np.arange(200))], ONE).states[0])
    assert "fine" not in states
    assert states.count("stale") <= stats.binom.ppf(0.999, 50, 0.05)


@pytest.mark.parametrize(("n", "state"), [(24, "inconclusive"), (80, "inconclusive"), (2400, "fine")])
def test_what_a_sample_cannot_show_is_left_open_with_the_n_it_takes(n, state):
    """Nothing changed bit by bit, a third is caught: that this is more than the floor takes many texts."""
    panel = scored(1.25, 1.645, n=n, noise=0.0)
    judged = watches.judge([panel], {"m": True}, None, 0)
    watch = watches.watch(
        judged, "m", same=False, required=True, screened=None, mended=None, task=None, kind=None, layer=None, hash=None
    )
    assert watch.state == state
    if state == "inconclusive":
        assert "do not show that it does its job" in verdict.reason(watch)
        assert verdict.texts_needed_of(watch) > n


def test_as_many_texts_as_are_asked_for_show_it_mostly():
    panel = scored(1.5, 1.645, n=60, noise=0.0, seed=1)
    asked = floors.texts_asked(hypotheses.measured(panel, 1)[0], floors.measured_floors(panel, 1)[0])
    assert 60 < asked < 3000
    states = [error_rates.judge_states([scored(1.5, 1.645, n=2 * asked, noise=0.0, seed=s)], ONE).states[0] for s in range(12)]
    assert states.count("fine") >= 9


def test_rates_are_tested_by_the_exact_binomial_test():
    panel = scored(1.2, 1.3, n=100)
    fails, holds, _ = floors.floor_tests(panel)[0].T
    for place, label, limit in ((0, 1, 0.3), (1, 0, 0.125)):
        flags = panel.after[0, panel.labels == label] > panel.cuts[0]
        low, high = (stats.binomtest(int(flags.sum()), len(flags), limit, side).pvalue for side in ("less", "greater"))
        assert (fails[place], holds[place]) == pytest.approx((low, high) if label else (high, low))


def test_rows_in_groups_show_a_floor_as_their_groups_do():
    panel = scored(1.6, 1.645, n=120, noise=0.0)
    copies = panel.take(np.repeat(np.arange(120), 5))
    many, once = (np.log(floors.floor_tests(side)[0, 0, 1]) for side in (copies, panel))
    assert many == pytest.approx(once, rel=0.1)
    assert floors.floor_tests(panel.take(np.repeat(np.arange(120), 5), np.arange(600)))[0, 0, 1] < 1e-3


def test_what_the_update_broke_is_stale_and_not_unfit_from_the_start():
    found = error_rates.judge_states([scored(3, 1.645, lost=0.9)], ONE)
    assert found.states == ("stale",)
    assert found.missed.any()
    assert not found.first.any()


def test_a_monitor_that_sees_no_update_and_never_worked_is_told_so():
    judged = watches.judge([scored(3, 99.0, noise=0.0)], {"m": True}, None, 0)
    known = {"required": True, "screened": None, "mended": None, "task": None, "kind": None, "layer": None, "hash": None}
    assert watches.watch(judged, "m", same=True, **known).state == "unfit"
    works = watches.judge([scored(3, 1.645, noise=0.0)], {"m": True}, None, 0)
    assert watches.watch(works, "m", same=True, **known).state == "no update"


# ---------------------------------------------------------------- the policy


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_policy_is_read_from_its_own_file_or_from_a_pyproject(tmp_path):
    own = read_policy(write(tmp_path / "revalidate.toml", 'tpr_floor = 0.6\nrequired = ["a/b/1"]\n'))
    assert own == GatePolicy(tpr_floor=0.6, required=("a/b/1",))
    shared = read_policy(write(tmp_path / "pyproject.toml", "[tool.after-the-update]\ntpr_floor = 0.6\nrequired = ['a/b/1']\n"))
    assert (shared, shared.hash) == (own, own.hash)
    assert own.hash != DEFAULT.hash
    assert read_policy(write(tmp_path / "empty.toml", "")) == DEFAULT


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("tpr_flor = 0.5", REFUSED, "'tpr_flor' is unknown; did you mean 'tpr_floor'?"),
        ("tpr_floor = 30", REFUSED, "'tpr_floor' is 30"),
        ("tpr_floor = true", REFUSED, "'tpr_floor' is True"),
        ("auroc_floor = nan", REFUSED, "'auroc_floor' is nan"),
        ("fpr_ratio_ceiling = '2'", REFUSED, "'fpr_ratio_ceiling' is '2'"),
        ("required = 'a'", REFUSED, "'required' is 'a'"),
        ("tpr_floor = ", REFUSED, "is not TOML"),
        (None, USAGE, "is no .toml file that exists"),
    ],
)
def test_a_policy_that_says_something_unknown_is_refused_by_name(tmp_path, text, code, said):
    if text is not None:
        write(tmp_path / "revalidate.toml", text)
    with refused(code, said):
        read_policy(tmp_path / "revalidate.toml")


def test_a_pyproject_without_the_table_and_names_in_two_places_are_refused(tmp_path):
    with refused(REFUSED, "has no table [tool.after-the-update]"):
        read_policy(write(tmp_path / "pyproject.toml", "[tool.other]\na = 1\n"))
    path = write(tmp_path / "revalidate.toml", 'required = ["a"]')
    with refused(USAGE, "names required monitors too"):
        with_policy(Options(policy=str(path), required=("b",)))
    assert with_policy(Options(policy=str(path)))[0].required == ("a",)


def scores_file(path, panel):
    rows = [
        {"monitor": "m", "id": f"r{i}", "before": panel.before[0, i], "after": panel.after[0, i], "label": int(panel.labels[i]),
         "threshold": panel.cuts[0]}
        for i in range(len(panel.labels))
    ]  # fmt: skip
    return given.write(path, rows)


def test_a_policy_decides_stands_in_the_report_and_its_change_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(error_rates, "DRAWS", 10)
    monkeypatch.setattr(error_rates, "LEAST", 10)
    scores = scores_file(tmp_path / "s.csv", scored(3, 1.645, n=400))
    strict = write(tmp_path / "revalidate.toml", "tpr_floor = 0.99\n")
    plain, asked = (run_scores(Options(scores=scores, policy=name), lambda line: None) for name in ("", str(strict)))
    assert (plain["code"], plain["verdict"]["word"]) == (0, "fine")
    assert (asked["code"], asked["verdict"]["word"]) == (10, "unfit")
    assert "TPR 9" in asked["verdict"]["reason"]
    assert (plain["policy"]["file"], asked["policy"]["file"]) == (None, "revalidate.toml")
    assert asked["next"][0]["action"] == "set its threshold anew"
    changed = {row["what"]: (row["before"], row["after"]) for row in diff.compare(plain, asked)["fingerprints"]}
    assert changed["policy tpr_floor"] == (0.3, 0.99)
    assert changed["policy"] == (DEFAULT.hash, asked["policy"]["hash"])
    assert "policy" not in {row["what"] for row in diff.compare(plain, plain)["fingerprints"]}


def test_the_command_takes_a_policy_and_ends_with_10_where_a_monitor_is_unfit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(error_rates, "DRAWS", 10)
    monkeypatch.setattr(error_rates, "LEAST", 10)
    scores = scores_file(tmp_path / "s.csv", scored(3, -99.0, n=200))
    out = tmp_path / "out"
    assert __main__.main(["revalidate", "--scores", scores, "--out", str(out)]) == 10
    said = capsys.readouterr().out
    assert "UNFIT" in said
    report = json.loads((out / "report.json").read_text())
    assert [one["answer"] for one in report["monitors"][0]["floors"]] == ["kept", "missed", "kept"]
    unknown = write(tmp_path / "revalidate.toml", "floors = 1\n")
    assert __main__.main(["revalidate", "--scores", scores, "--policy", str(unknown), "--out", str(tmp_path / "no")]) == REFUSED
    assert not (tmp_path / "no").exists()
