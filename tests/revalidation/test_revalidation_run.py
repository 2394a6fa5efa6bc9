"""From a user's files to the report: what did not change is told apart from what did, repairs are what they claim to be."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import use_real_cache
from support import given
from support.bland import refused
from support.tiers import mostly_slow, slow

from helpers.data.splits import Example
from helpers.errors import REFUSED
from helpers.models import activations, loading
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors import probes
from helpers.monitors.readouts import Pooled, Ragged
from helpers.revalidation import error_rates, inputs, observe, repair
from helpers.revalidation import run as revalidation_run
from helpers.revalidation.behaviour import speech
from helpers.revalidation.hypotheses import Panel, harm, measured
from helpers.revalidation.options import Options
from helpers.revalidation.repair import LabelledTexts, MonitorTexts, mend
from helpers.revalidation.report import schema

D = 40


# ---------------------------------------------------------------- mending planted states


def planted(change, n=400, texts=300, seed=0, kind="mean-difference", groups=None, d=D):
    """One monitor whose states went through `change`, with unlabelled texts of both classes and n labelled ones."""
    rng = np.random.default_rng(seed)
    mix, direction = rng.normal(size=(d, d)) / np.sqrt(d), rng.normal(size=d)

    def states(size, labels):
        return rng.normal(size=(size, d)) @ mix + 2.2 * np.outer(labels, direction / np.linalg.norm(direction))

    fit_labels, unseen, labels = (np.arange(size) % 2 for size in (400, texts, n))
    fit_on, unlabelled, labelled = (states(len(part), part) for part in (fit_labels, unseen, labels))
    readout = probes.fit_probe(kind, Pooled(fit_on), fit_labels, Pooled(fit_on), fit_labels)
    negatives = probes.score(readout, Pooled(states(400, np.zeros(400))))
    one = frozen_monitors.freeze(readout, negatives, task="t", pooling="mean", layer=1, layers=4, seed=0, reads="r", model="m")
    seen, judged = change(unlabelled, rng), change(labelled, rng)
    scores = [one.score(Pooled(side))[None] for side in (labelled, judged)]
    panel = Panel((one.name,), labels, np.arange(n) if groups is None else groups, *scores,
                  np.array([one.thresholds["5"]]), np.array([0.05]))  # fmt: skip
    return LabelledTexts(one, Pooled(unlabelled), Pooled(seen), (unlabelled, seen), Pooled(judged), panel)


TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(D, D)))[0]
CHANGES = {
    "shifted": (lambda x, rng: x + 8.0, "centre"),
    "scaled": (lambda x, rng: x * np.linspace(0.2, 3, D) - 1, "coral"),
    "turned": (lambda x, rng: x @ TURN + 2.0, "procrustes"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_map_can_undo_is_undone_and_shipped(name):
    change, method = CHANGES[name]
    case = planted(change)
    found = mend(case)
    tried = {one.method: one for one in found.tried}
    assert harm(measured(case.panel, 1)[0]) > 1
    assert found.state == "fine" or harm(found.effect) < 1
    assert found.chosen in tried
    assert harm(tried[method].measures) < 1
    assert tried[method].agreement > 0.9
    new = found.monitor.score(case.labelled)
    assert found.monitor.hash != case.monitor.hash
    assert (new > found.monitor.thresholds["5"]).mean() == pytest.approx(
        (case.panel.before > case.panel.cuts[0]).mean(), abs=0.05
    )


def test_a_repair_that_cannot_be_fitted_is_named():
    case = planted(lambda x, rng: np.full_like(x, 3.0))  # the updated model's states are all the same
    found = mend(case)
    left = found.reason.partition("could not be fitted: ")[2]
    assert left
    assert not set(left.split(", ")) & {one.method for one in found.tried}
    assert "could not" not in mend(planted(CHANGES["shifted"][0])).reason


def test_nothing_without_labels_claims_to_repair_a_lost_signal():
    """The states say nothing of the label any more: every map is seen to fail, and so is a refit that is judged on other rows."""
    case = planted(lambda x, rng: rng.normal(size=x.shape), n=200, d=120)
    found = mend(case)
    assert (found.chosen, found.monitor) == (None, None)
    assert {one.method for one in found.tried} == {*repair.MAPS, "threshold", "refit"}
    chance = 0.65  # a turn fitted and seen on the same texts agrees in 0.72
    assert all(one.agreement < chance + 0.03 for one in found.tried if not one.uses_labels)
    assert next(one for one in found.tried if one.method == "procrustes").agreement < chance
    aurocs = {one.method: one.measures[2].after.value for one in found.tried}
    assert all(0.35 < value < 0.65 for value in aurocs.values()), aurocs
    again = probes.refit(case.monitor.readout, case.labelled, case.panel.labels)
    own = probes.score(again, case.labelled)
    assert (
        np.mean(own[case.panel.labels == 1]) - np.mean(own[case.panel.labels == 0]) > own.std()
    )  # on its own rows it looks good


def test_where_only_labels_help_a_refit_is_chosen():
    """The unlabelled texts say nothing (they are noise under both models), the labelled ones moved to another axis."""
    case = planted(lambda x, rng: x @ TURN, n=1200)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, D))
    blind = replace(case, before=Pooled(noise), after=Pooled(noise @ TURN), states=(noise, rng.permutation(noise @ TURN)))
    found = mend(blind)
    tried = {one.method: one for one in found.tried}
    assert all(harm(tried[name].measures) > 2 for name in repair.MAPS)
    assert harm(tried["refit"].measures[2:]) < 1  # by AUROC: its threshold rests on the blind texts
    assert tried["refit"].uses_labels


def test_the_effect_of_the_best_of_many_is_judged_on_rows_that_did_not_choose_it():
    """Where nothing helps, the best on all rows looks better than its cross-fitted effect, on average."""
    gaps = []
    for seed in range(6):
        found = mend(planted(lambda x, rng: rng.normal(size=x.shape), n=100, seed=seed))
        best = max(one.measures[2].after.value for one in found.tried)
        gaps.append(best - found.effect[2].after.value)
    assert np.mean(gaps) > 0.02


def test_groups_stay_together_in_the_halves():
    groups = np.repeat(np.arange(50), 4)
    labels = np.tile([0, 0, 1, 1], 50)
    half = repair._halves(groups, labels, 0)
    assert all(len(set(half[groups == g])) == 1 for g in range(50))
    assert np.bincount(half).tolist() == [100, 100]
    alone = repair._halves(np.arange(20), np.arange(20) % 2, 1)
    assert [np.bincount(alone[np.arange(20) % 2 == label]).tolist() for label in (0, 1)] == [[5, 5], [5, 5]]


def test_without_labels_nothing_is_chosen_and_with_few_texts_nothing_is_tried():
    case = planted(CHANGES["shifted"][0])
    silent = mend(MonitorTexts(case.monitor, case.before, case.after, case.states))
    assert (silent.chosen, silent.monitor) == (None, None)
    centred = next(one for one in silent.tried if one.method == "centre")
    old, new = (case.monitor.score(side) > case.monitor.thresholds["5"] for side in (case.before, case.after))
    before = np.mean(old == new)
    assert centred.agreement > 0.95 > before
    few = planted(CHANGES["shifted"][0], texts=30)
    assert mend(few).tried == ()
    assert "fewer than 50" in mend(few).reason


def test_a_monitor_that_is_not_linear_is_mended_too():
    case = planted(CHANGES["shifted"][0], kind="mlp")
    found = mend(case)
    assert found.chosen
    assert found.monitor.kind == "mlp"
    assert harm(found.effect) < 1


def test_without_a_threshold_the_ranking_alone_is_mended():
    case = planted(CHANGES["turned"][0])
    bare = replace(case, monitor=replace(case.monitor, thresholds={}), panel=replace(case.panel, cuts=np.array([np.nan])))
    found = mend(bare)
    assert "threshold" not in {one.method for one in found.tried}
    assert [one.measure for one in found.effect] == ["auroc"]


# ---------------------------------------------------------------- end to end on the tiny model


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny):
    """Texts, labels, an attention monitor and others frozen on the tiny model, and updates of every kind."""
    folder = tmp_path_factory.mktemp("given")
    given.write(folder / "fit.jsonl", given.labelled(160, "fit"))
    given.write(folder / "texts.txt", given.unlabelled(80))
    given.write(folder / "labels.csv", given.labelled(120))
    given.adapter(folder / "zero", size=0.0)
    given.adapter(folder / "upper", size=1.0, module="model.layers.2.mlp.down_proj")
    given.adapter(folder / "strong", size=0.5)
    options = Options(
        base="tiny", update="none", fit=str(folder / "fit.jsonl"), labels=str(folder / "labels.csv"), kinds=("logistic", "lda")
    )  # the mean difference catches too little here to be fit
    frozen = observe.fit(loading.load(tiny), inputs.check_inputs(options), lambda line: None)
    frozen_monitors.save(frozen, folder / "frozen")
    shutil.copytree(tiny, folder / "same")
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Fewer simulated runs: how many are right is told in test_assessment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(error_rates, "DRAWS", 20)
        patch.setattr(error_rates, "LEAST", 20)
        yield


@pytest.fixture(scope="module")
def strong(files):
    """What a strong update does to the monitors, one of which is required."""
    return run(files, update="strong", required=("fit/lda-mean/2",))


def run(files, said=None, **changed):
    """The outcome of a run on the tiny model; its report has the form of one and says nothing that it may not."""
    paths = {"monitors": "frozen", "texts": "texts.txt", "labels": "labels.csv", **changed}
    paths = {k: str(files / v) if isinstance(v, str) and v and (files / v).exists() else v for k, v in paths.items()}
    found = revalidation_run.run(Options(**{"base": "tiny", **paths}), (said if said is not None else []).append)
    report = found.report
    schema.check_report(report)
    whole = json.dumps(report, allow_nan=False)
    assert not any(word in whole for word in ("thunder", "breeze", str(files)))
    return found


def states(found):
    """The state of each monitor by its name."""
    return {one["name"]: one["state"] for one in found.report["monitors"]}


@mostly_slow("a whole run each", "upper")
@pytest.mark.parametrize("update", ["none", "zero", "same", "upper"])
def test_an_update_that_changes_nothing_a_monitor_reads_is_no_update(files, update):
    said = []
    found = run(files, said, update=update)
    report = found.report
    assert set(states(found).values()) == {"no update"}
    assert (report["code"], report["verdict"]["word"]) == (0, "no update")
    assert report["compared"]["update"]["size"] == 0 or update == "upper"
    assert all(test["change"]["value"] == 0 for one in report["monitors"] for test in one["tests"])
    assert said[0] == "revalidate: checking what was given"
    assert found.repaired == ()
    assert all(control["passed"] for control in report["controls"])
    if update == "upper":  # it speaks otherwise, though the monitors see nothing of it
        assert report["behaviour"]["next_token_changed"]["value"] > 0.1
    else:
        assert report["behaviour"]["next_token_changed"]["value"] == 0


def test_a_strong_update_makes_monitors_stale_and_offers_what_repairs_them(files, strong, tmp_path):
    found = strong
    report, by_name = found.report, states(found)
    assert "stale" in by_name.values()
    assert report["code"] == {"stale": 10, "inconclusive": 11, "fine": 0}[by_name["fit/lda-mean/2"]]
    asked = [one["name"] for one in report["monitors"] if one["required"]]
    assert asked == ["fit/lda-mean/2"]
    stale = [one for one in report["monitors"] if one["state"] == "stale"]
    assert all({t["method"] for t in one["repair"]["tried"]} >= {*repair.MAPS, "threshold"} for one in stale)
    assert {one["name"] for one in stale if one["repair"]["chosen"]} == {one.name for one in found.repaired}
    assert found.repaired
    for one in stale:
        assert any(test["answer"] == "worse" for test in one["tests"])
        assert one["reason"].endswith("beyond the margin")
        aurocs = {tried["method"]: tried["after"]["auroc"] for tried in one["repair"]["tried"]}
        ranked = next(test["after"] for test in one["tests"] if test["measure"] == "auroc")
        assert [aurocs["threshold"], aurocs["centre"]] == pytest.approx([ranked] * 2)  # neither can change an order
    assert [path.name for path in revalidation_run.save(found, tmp_path)] == ["repaired"]
    loaded = frozen_monitors.load(tmp_path / "repaired")
    assert {one.hash for one in loaded} == {one.hash for one in found.repaired}
    assert {one.model for one in loaded} == {"strong"}
    frozen = {one.name: one.hash for one in frozen_monitors.load(files / "frozen")}
    assert all(one.hash != frozen[one.name] for one in loaded)
    moved = report["moved"]
    assert moved["by_layer"][0]["relative_change"] > 0
    assert {one["monitor"] for one in moved["directions"]} == set(by_name)


def test_fitting_and_no_labels_orders_the_labelling_and_decides_nothing(files):
    found = run(files, update="strong", monitors="", fit="fit.jsonl", labels="", texts="texts.txt")
    assert found.report["compared"]["labels"]["n"] > 0  # the test part of --fit
    assert len(found.fitted) == 6
    silent = run(files, update="strong", labels="")
    report = silent.report
    assert set(states(silent).values()) == {"inconclusive"}
    assert report["code"] == 11
    assert report["compared"]["labels"] is None
    order = report["triage"]["order"]
    risks = {one["name"]: one["screening"]["risk"] for one in report["monitors"]}
    assert order == sorted(risks, key=risks.get, reverse=True)
    plan = report["triage"]["plan"]
    assert sum(share["labels"] for share in plan) <= 200
    assert plan[0]["labels"] > 0
    assert report["sureness"]["false_alarm"] is None
    assert [control["name"] for control in report["controls"]] == ["identity", "planted drift", "same weights, same states"]
    assert all(one["needed_n"] for one in report["monitors"])
    tried = [one["repair"] for one in report["monitors"] if one["repair"]]
    assert tried
    assert all(one["chosen"] is None for one in tried)
    assert silent.repaired == ()


@slow("a whole run twice; scores alone are judged twice below")
def test_the_same_run_gives_the_same_report(files, strong):
    again = run(files, update="strong", required=("fit/lda-mean/2",))
    assert {**again.report, "seconds": 0} == {**strong.report, "seconds": 0}
    assert [one.hash for one in again.repaired] == [one.hash for one in strong.repaired]


def test_an_attention_monitor_reads_the_tokens_of_the_texts(files, tiny, tmp_path):
    language = loading.load(tiny)
    rows = [Example("t", "train", row["label"], "", row["text"]) for row in given.labelled(40, "fit")]
    plan = observe.plan(rows, [given.monitor()], 4, 64)
    found = activations.read(language, replace(plan, tokens=((observe.TASK, 0.5),)))
    tokens = Ragged(found.tokens["texts/2"], found.offsets["texts/2"])
    labels = np.array([row.label for row in rows])
    readout = probes.fit_probe("attention", tokens, labels, tokens, labels)
    negatives = probes.score(readout, tokens)[labels == 0]
    one = frozen_monitors.freeze(
        readout, negatives, task="fit", pooling="", layer=2, layers=4, seed=0, reads=given.READS, model="tiny-1"
    )
    frozen_monitors.save([one], tmp_path / "one")
    report = run(files, update="nf4", monitors=str(tmp_path / "one")).report
    assert report["monitors"][0]["kind"] == "attention"
    assert report["monitors"][0]["n"] == 120


def test_a_failed_control_shuts_the_gate(files, monkeypatch):
    failed = error_rates.Control("identity", False, "planted")
    monkeypatch.setattr(error_rates, "identity", lambda *_: failed)
    report = run(files, update="none").report
    assert (report["code"], report["verdict"]["word"]) == (11, "inconclusive")
    assert "identity" in report["verdict"]["reason"]


def test_nothing_is_written_when_the_input_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given.write(tmp_path / "empty.csv", "")
    with refused(REFUSED, "empty.csv holds no rows"):
        run(files, update="nf4", labels=str(tmp_path / "empty.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.csv"]


# ---------------------------------------------------------------- scores alone


def scores_file(path, panel, labelled=True, cut=True):
    """The scores of a panel as a user would write them."""
    rows = [
        {"monitor": f"m{j}", "id": f"r{i:04d}", "before": panel.before[j, i], "after": panel.after[j, i],
         **({"label": int(panel.labels[i])} if labelled else {}), **({"threshold": panel.cuts[j]} if cut else {})}
        for j in range(len(panel.names)) for i in range(len(panel.labels))
    ]  # fmt: skip
    return given.write(path, rows)


def lost(scores, labels, rng):
    """Monitor 0 tells nothing any more."""
    scores[0] = rng.normal(size=labels.size)
    return scores


@pytest.mark.parametrize(
    ("change", "how", "code", "state"),
    [(lost, {}, 10, "stale"), (lambda s, y, rng: s, {}, 0, "fine"), (lost, {"labelled": False}, 11, "inconclusive"),
     (lambda s, y, rng: s, {"cut": False}, 11, "inconclusive")],
)  # fmt: skip
def test_scores_of_other_monitors_are_judged_by_the_same_rules(tmp_path, change, how, code, state):
    path = scores_file(tmp_path / "s.csv", given.panel(n=400, k=3, change=change), **how)
    report = revalidation_run.run(Options(scores=path, required=("m0",)), lambda line: None).report
    schema.check_report(report)
    assert (report["code"], report["monitors"][0]["state"]) == (code, state)
    assert report["monitors"][0]["screening"]["ks"] >= 0
    assert [one["required"] for one in report["monitors"]] == [True, False, False]


def test_the_same_scores_give_the_same_report(tmp_path):
    path = scores_file(tmp_path / "s.csv", given.panel(n=100, k=2, change=lost))
    one, again = (revalidation_run.run(Options(scores=path), lambda line: None).report for _ in range(2))
    assert {**one, "seconds": 0} == {**again, "seconds": 0}
    other = revalidation_run.run(Options(scores=path, seed=1), lambda line: None).report
    assert {**one, "seconds": 0} != {**other, "seconds": 0}  # the control: another seed draws other samples


def test_only_required_monitors_decide(tmp_path):
    path = scores_file(tmp_path / "s.csv", given.panel(n=400, k=3, change=lost))
    codes = {
        name: revalidation_run.run(Options(scores=path, required=(name,)), lambda line: None).report["code"]
        for name in ("m0", "m1")
    }
    assert codes == {"m0": 10, "m1": 0}


def test_scores_that_did_not_change_are_no_update(tmp_path):
    panel = given.panel(n=60, k=2, noise=0.0)
    report = revalidation_run.run(Options(scores=scores_file(tmp_path / "s.csv", panel)), lambda line: None).report
    assert (report["code"], report["verdict"]["word"]) == (0, "no update")


# ---------------------------------------------------------------- what a model says beside its monitors


def test_speaking_is_told_by_likelihood_and_by_the_next_token(tiny_model):
    texts = ["polish the lamp by the river", "carry a kettle"]
    before = speech.speak(tiny_model, texts, 16)
    assert speech.summary(before, before)["next_token_changed"].value == 0
    with torch.no_grad():
        ids = tiny_model.tokenizer(texts[0], add_special_tokens=False, return_tensors="pt")["input_ids"][:, :16]
        logits = tiny_model.model(ids).logits[0, :-1].float().log_softmax(-1)
        expected = float(logits.gather(1, ids[0, 1:, None]).sum())
        assert before.totals[0] == pytest.approx(expected, rel=1e-5)
        assert before.likeliest[0].tolist() == logits.argmax(-1).tolist()
        tiny_model.model.model.layers[0].mlp.down_proj.weight.mul_(30)
    told = speech.summary(before, speech.speak(tiny_model, texts, 16))
    assert told["next_token_changed"].value > 0
    assert told["perplexity"]["before"] == pytest.approx(np.exp(-before.totals.sum() / told["tokens"]))
    assert speech.summary(*(speech.speak(tiny_model, ["a"], 16),) * 2) == {"texts": 0}


# ---------------------------------------------------------------- the real thing


@slow("the embedded model; the tiny one is revalidated above")
@pytest.mark.real
def test_the_embedded_model_in_nf4_with_monitors_fitted_on_the_spot(tmp_path):
    """Six monitors, 200 + 200 texts: none is shown fine under four bits, and the gate tells how sure it is."""
    with pytest.MonkeyPatch.context() as patch:
        use_real_cache(patch)
        patch.setattr(error_rates, "DRAWS", 200)
        given.write(tmp_path / "topic.jsonl", given.labelled(200, "fit", words=14))
        given.write(tmp_path / "texts.txt", given.unlabelled(200, words=14))
        given.write(tmp_path / "labels.jsonl", given.labelled(200, words=14))
        lines = []
        options = Options(update="nf4", fit=str(tmp_path / "topic.jsonl"), texts=str(tmp_path / "texts.txt"),
                          labels=str(tmp_path / "labels.jsonl"))  # fmt: skip
        found = revalidation_run.run(options, lines.append)
    report = found.report
    schema.check_report(report)
    assert len(report["monitors"]) == 6
    assert report["code"] in (10, 11)
    assert 0.05 < report["compared"]["update"]["size"] < 0.15
    assert all(control["passed"] for control in report["controls"])
    assert report["sureness"]["false_alarm"]["high"] < 0.05
    assert report["behaviour"]["perplexity"]["after"] > report["behaviour"]["perplexity"]["before"]
    assert lines[0] == "revalidate: checking what was given"
    assert "thunder" not in json.dumps(report)
