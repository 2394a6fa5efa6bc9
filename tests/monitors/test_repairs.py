"""Repairs: what is planted (shifted, turned, scaled, lost) is mended by the rung that can, harm is counted, no label leaks."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize
from support import planted

from helpers import results
from helpers.data.splits import SPLITS
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import encoding
from helpers.monitors import gate, probes, readings, realignment, repair_case, repair_ladder, repair_measures, repairs
from helpers.monitors.frozen import Monitor
from helpers.monitors.gate import ALARM_SHIFT
from helpers.monitors.probes import PROBES, Readout
from helpers.monitors.readings import ATTENTION, LINEAR
from helpers.monitors.readouts import Pooled, Ragged
from helpers.monitors.realignment import REALIGNMENTS
from helpers.monitors.repairs import FEW_LABELS, LADDER, NULL, RUNGS
from helpers.stats import intervals, roc
from helpers.updates import measurements
from helpers.updates import names as update_names
from helpers.updates.names import CONTROL, SIMULATED, Variant
from helpers.updates.variants import Parts

TASKS = ("toxicity", "jailbreak", "privacy-pii")
TASK = TASKS[0]  # the one with attention
SEED = 4  # of planted noise in which no monitor has more than 10 % false positives from the start
PLAN = planted.plan(*TASKS, pairs=(40, 100, 80), depths=(0.5,), attention=True)
BASE = planted.activations(PLAN, strength=4.0, seed=SEED)
NOISE = torch.Generator().manual_seed(3)
TURN = torch.linalg.qr(torch.randn(planted.D, planted.D, generator=NOISE))[0]
SCALES = torch.linspace(0.4, 2.5, planted.D)
OWN = np.array([e.task == TASK for e in PLAN.examples])
PAIRED = [name for name, kind in REALIGNMENTS.items() if kind.paired and name != NULL]
LABEL_FREE = [name for name in RUNGS if name not in FEW_LABELS and name != "refit"]


def without_signal(x):
    """The axis of the signal holds fresh noise."""
    lost = x.clone()
    lost[:, 0] = torch.randn(len(x), generator=NOISE)
    return lost


def moved(found, whose, size=6.0):
    """The texts of some rows of the plan moved along the axis of the signal, the others left alone."""
    away = size * torch.eye(planted.D)[0] * torch.tensor(whose, dtype=torch.float32)[:, None]
    return replace(found, pooled={name: rows + away for name, rows in found.pooled.items()})


SEEN = {
    "same": BASE,
    "shifted": planted.changed(BASE, lambda x: x + 6 * torch.eye(planted.D)[0]),
    "turned": planted.changed(BASE, lambda x: x @ TURN),
    "scaled": planted.changed(BASE, lambda x: x * SCALES + 2),
    "lost": planted.changed(BASE, without_signal),
    "elsewhere": moved(BASE, ~OWN),
    "constant": planted.changed(BASE, torch.ones_like),
}


@pytest.fixture(scope="module")
def frozen(tiny):
    return planted.monitors(BASE, PLAN, tiny)


@pytest.fixture(scope="module")
def in_use(frozen):
    return {task: f"{task}/logistic-mean/2" for task in TASKS}


@pytest.fixture(scope="module")
def ladders(frozen, in_use):
    """Rows and cells of every planted variant."""
    return {name: repair_ladder.on_variant(BASE, found, frozen, in_use, PLAN) for name, found in SEEN.items()}


@pytest.fixture(scope="module")
def cases():
    """What the monitors of the first task share, by variant."""
    return {name: repair_case.case(TASK, BASE, found, PLAN) for name, found in SEEN.items()}


def repaired(method, monitor, after, plan=PLAN) -> repairs.Repaired:
    """One rung on one monitor of the first task, on a case of its own."""
    return repairs.apply(method, monitor, repair_case.case(TASK, BASE, after, plan))


def real(frozen, task=TASK) -> list[Monitor]:
    return [monitor for monitor in frozen if monitor.task == task and monitor.kind != CONTROL]


def values(ladders, variant, method, metric, kinds=None) -> np.ndarray:
    """One metric of single monitors."""
    table = ladders[variant][0]
    rows = table[(table["layer"] > 0) & (table["method"] == method) & (table["metric"] == metric)]
    if kinds:
        rows = rows[rows["probe"].str.replace(r"-(mean|last)$", "", regex=True).isin(kinds)]
    assert len(rows), (variant, method, metric)
    return rows["value"].to_numpy()


def summary(ladders, variant, method, metric, task="all") -> float:
    table = ladders[variant][0]
    rows = table[(table["probe"] == "all") & (table["task"] == task) & (table["method"] == method) & (table["metric"] == metric)]
    return float(rows["value"].iloc[0]) if len(rows) else np.nan


# ---------------------------------------------------------------- nothing changed


def test_an_unchanged_model_has_nothing_stale_and_every_gate_deploys(ladders):
    table, cells = ladders["same"]
    assert not cells[["stale", "stale_realigned", "stale_blind"]].any(axis=None)
    assert (cells["gate"] == "deploy").all()
    assert (cells["repaired_by"] == "none").all()
    assert (cells["agreement_before"] > 1 - 1e-12).all()
    plain = table[table["method"] == "none"]
    exact = plain[plain["metric"].isin(["auroc_drop", "auroc_gain"])]
    assert (exact[["value", "low", "high"]] == 0).all(axis=None)
    assert (plain.loc[plain["metric"].isin(["alarms_changed", "share_stale", "cost_texts", "cost_labels"]), "value"] == 0).all()
    assert not (table["metric"] == "share_repaired").any()  # there is nothing to repair


@pytest.mark.parametrize("method", [*PAIRED, "threshold", *(f"{name} (own corpus)" for name in repairs.OWN)])
def test_on_an_unchanged_model_a_paired_rung_changes_no_alarm(ladders, method):
    assert (values(ladders, "same", method, "alarms_changed") == 0).all()
    assert summary(ladders, "same", method, "share_harmed") == 0


def test_scores_before_any_repair_are_those_of_the_frozen_monitors(cases, frozen):
    test = readings.rows_of(PLAN, TASK, "test")
    for monitor in real(frozen):
        one = repaired("none", monitor, SEEN["turned"], PLAN)
        np.testing.assert_array_equal(one.scores, readings.scores([monitor], SEEN["turned"], PLAN, test.index)[0])
        assert (one.thresholds, one.cost_texts, one.cost_labels) == (monitor.thresholds, 0, 0)


# ---------------------------------------------------------------- planted changes


def test_a_shift_is_mended_by_centring_which_leaves_rankings_alone(ladders):
    assert (values(ladders, "shifted", "none", "stale_any") == 1).all()
    assert (values(ladders, "shifted", "none", "fpr_5", LINEAR) > 0.9).all()
    for method in ("centre", "coral", "low-rank"):
        assert summary(ladders, "shifted", method, "share_repaired") == 1
        assert (values(ladders, "shifted", method, "alarms_changed") == 0).all()
    np.testing.assert_allclose(values(ladders, "shifted", "centre", "auroc_gain", LINEAR), 0, atol=1e-12)
    for method in ("none", "centre"):
        np.testing.assert_allclose(values(ladders, "shifted", method, "auroc_drop", LINEAR), 0, atol=1e-12)
    assert summary(ladders, "shifted", "refit", "share_repaired") == 1


def test_a_threshold_alone_mends_a_shift_of_what_is_linear_and_no_turn(ladders):
    assert (values(ladders, "shifted", "threshold", "stale_any", LINEAR) == 0).all()
    np.testing.assert_allclose(values(ladders, "shifted", "threshold", "alarms_changed", LINEAR), 0, atol=1e-12)
    assert (values(ladders, "turned", "threshold", "stale_any", LINEAR) == 1).all()


def test_a_turn_is_mended_by_what_can_turn_and_by_no_centring(ladders):
    assert (values(ladders, "turned", "none", "auroc_drop", LINEAR) > 0.1).all()
    assert (values(ladders, "turned", "centre", "stale_any", LINEAR) == 1).all()
    for method in ("procrustes", "low-rank"):
        assert summary(ladders, "turned", method, "share_stale") < 0.1
        assert (values(ladders, "turned", method, "auroc_gain", LINEAR) > 0.1).all()
    assert (values(ladders, "turned", "refit", "auroc_drop", LINEAR) < 0.03).all()
    assert summary(ladders, "turned", NULL, "share_repaired") < 0.3  # wrongly paired texts tell nothing of the turn


def test_a_scaling_is_mended_by_scales(ladders):
    assert summary(ladders, "scaled", "none", "share_stale") > 0.9
    for method in ("centre-scale", "coral", "low-rank"):
        assert summary(ladders, "scaled", method, "share_stale") < 0.1
    assert summary(ladders, "scaled", "centre-scale", "alarms_changed") < 0.02


def test_a_lost_signal_is_mended_by_nothing_and_sent_to_a_refit(ladders):
    table, cells = ladders["lost"]
    stale = table[(table["metric"] == "stale_any") & (table["layer"] > 0)]
    assert (stale.loc[stale["method"].isin(["none", "refit", *REALIGNMENTS]), "value"] == 1).all()
    assert (cells["gate"] == "refit").all()
    assert (cells["repaired_by"] == "").all()
    assert cells[["stale", "stale_realigned", "stale_blind", "stale_refit"]].all(axis=None)


@pytest.mark.parametrize("variant", ["shifted", "turned", "scaled"])
def test_the_gate_realigns_what_a_map_brings_back(ladders, variant):
    cells = ladders[variant][1]
    assert (cells.loc[cells["stale"], "gate"] == "realign").all()
    assert (cells["gate"] != "refit").all()
    assert cells["stale"].mean() > 0.9
    assert cells["stale_realigned"].mean() < 0.1
    assert (cells["agreement_after"] > 0.97).all()
    assert (cells["alarm_shift_after"] <= ALARM_SHIFT).all()


def test_a_rung_is_named_as_the_repair_only_where_all_before_it_failed(ladders):
    assert (ladders["shifted"][1]["repaired_by"] == "centre").all()
    turned = ladders["turned"][1].set_index("monitor")["repaired_by"]
    assert set(turned[[name for name in turned.index if "/mlp" not in name]]) <= {"coral", "procrustes", "low-rank"}


def test_the_null_is_no_repair(cases, frozen):
    case, monitor = cases["shifted"], real(frozen)[0]
    fit, stale = (intervals.Estimate(flag, flag, flag, 1) for flag in (0.0, 1.0))
    found = [
        replace(one, values={"stale_any": fit if one.repaired.method in (NULL, "labels-20", "refit") else stale})
        for one in repair_measures.measure(case, [monitor])
    ]
    assert repair_ladder._cell(case, monitor, gate.judged(case, monitor), found)["repaired_by"] == "labels-20"


def test_a_variant_that_holds_the_same_for_every_text_keeps_no_rung(ladders, cases, frozen):
    table, cells = ladders["constant"]
    assert set(table["method"]) == {"none", "gate"}
    assert (cells["gate"] == "refit").all()
    assert cells[["stale", "stale_refit"]].all(axis=None)
    assert not table["metric"].str.startswith("auroc").any()
    with pytest.raises(StudyError, match="holds the same for every text") as error:
        repairs.apply("coral", frozen[0], cases["constant"])
    assert error.value.code == NOT_COMPARABLE


# ---------------------------------------------------------------- harm


def test_harm_is_counted_where_the_other_corpora_moved_and_the_own_did_not(ladders):
    """What realigning on another corpus risks: the monitors were fine, and the map takes off a shift that their texts lack."""
    cells = ladders["elsewhere"][1].query("task == @TASK")
    assert not cells["stale"].any()
    for method in ("centre", "coral"):
        assert summary(ladders, "elsewhere", method, "share_harmed", TASK) == 1
    assert summary(ladders, "elsewhere", "coral (own corpus)", "share_harmed", TASK) == 0
    assert np.isnan(summary(ladders, "elsewhere", "centre", "share_repaired", TASK))
    assert cells.loc[cells["probe"] != ATTENTION, "stale_blind"].all()


def test_shares_are_those_of_the_cells(ladders):
    for variant in ("scaled", "elsewhere"):
        table, cells = ladders[variant]
        singles = table[(table["layer"] > 0) & (table["metric"] == "stale_any")]
        was = singles[singles["method"] == "none"].set_index(["task", "probe"])["value"]
        for method in ("coral", "labels-20"):
            now = singles[singles["method"] == method].set_index(["task", "probe"])["value"]
            before = was[now.index]
            assert summary(ladders, variant, method, "share_stale") == pytest.approx(now.mean())
            for name, part in (("repaired", 1 - now[before == 1]), ("harmed", now[before == 0])):
                wanted = part.mean() if len(part) else np.nan
                assert summary(ladders, variant, method, f"share_{name}") == pytest.approx(wanted, nan_ok=True)
        blind = singles[singles["method"] == gate.DEFAULT].set_index(["task", "probe"])["value"]
        np.testing.assert_array_equal(cells["stale_blind"], blind.loc[list(zip(cells["task"], cells["probe"], strict=True))] == 1)


# ---------------------------------------------------------------- no label leaks


def relabelled(which) -> encoding.Plan:
    """The plan with the labels of the texts that `which` picks turned round."""
    return replace(PLAN, examples=tuple(replace(e, label=1 - e.label) if which(e) else e for e in PLAN.examples))


FOREIGN = relabelled(lambda e: e.task != TASK or e.split == "test")


@pytest.mark.parametrize("method", RUNGS)
@pytest.mark.parametrize("kind", ["logistic", "attention"])
def test_labels_of_other_tasks_and_of_the_test_change_nothing(frozen, method, kind):
    monitor = next(m for m in real(frozen) if m.kind == kind)
    if kind == ATTENTION and method in FEW_LABELS:
        pytest.skip("few labels are for linear kinds")
    honest, turned = (repaired(method, monitor, SEEN["scaled"], plan) for plan in (PLAN, FOREIGN))
    np.testing.assert_array_equal(honest.scores, turned.scores)
    assert honest.thresholds == turned.thresholds


@pytest.mark.parametrize("method", [*LABEL_FREE, "gate"])
def test_what_is_called_label_free_reads_no_label_at_all(frozen, method):
    swapped = relabelled(lambda e: True)
    for monitor in [real(frozen)[0], next(m for m in real(frozen) if m.kind == ATTENTION)]:
        pair = [repair_case.case(TASK, BASE, SEEN["scaled"], plan) for plan in (PLAN, swapped)]
        if method == "gate":
            assert len({gate.judged(one, monitor).gate for one in pair}) == 1
        else:
            first, second = (repairs.apply(method, monitor, one) for one in pair)
            np.testing.assert_array_equal(first.scores, second.scores)
            assert (first.thresholds, first.cost_labels) == (second.thresholds, 0)


@pytest.mark.parametrize("method", [*FEW_LABELS, "refit"])
def test_what_costs_labels_reads_them(frozen, method):
    monitor, swapped = real(frozen)[0], relabelled(lambda e: e.task == TASK and e.split == "train")
    first, second = (repaired(method, monitor, SEEN["scaled"], plan) for plan in (PLAN, swapped))
    assert np.abs(first.scores - second.scores).max() > 0.1
    assert first.cost_labels == FEW_LABELS.get(method, 2 * 40)


@pytest.mark.parametrize("method", [name for name in LABEL_FREE if not name.endswith("(own corpus)")])
def test_no_map_and_no_threshold_has_seen_the_corpus_it_is_judged_on(frozen, method):
    monitor, after = real(frozen)[0], SEEN["scaled"]
    test = readings.rows_of(PLAN, TASK, "test").index
    spoilt = OWN.copy()
    spoilt[test] = False
    spoilt = moved(after, spoilt, 50.0)  # the task's own training and validation texts are somewhere else
    one, other = (repaired(method, monitor, found, PLAN) for found in (after, spoilt))
    np.testing.assert_array_equal(one.scores, other.scores)
    assert one.thresholds == other.thresholds


def test_the_own_corpus_is_another_one(frozen):
    monitor, index = real(frozen)[0], repair_case.other_texts(PLAN, TASK)
    assert {PLAN.examples[i].task for i in index} == set(TASKS) - {TASK}
    assert {PLAN.examples[i].split for i in index} == set(SPLITS) - {"test"}
    own = repaired("coral (own corpus)", monitor, SEEN["elsewhere"], PLAN)
    other = repaired("coral", monitor, SEEN["elsewhere"], PLAN)
    assert (own.cost_texts, other.cost_texts) == (2 * 280, 2 * 560)
    assert np.abs(own.scores - other.scores).max() > 1
    with pytest.raises(StudyError, match="the only one"):
        repair_case.other_texts(planted.plan(TASK, pairs=(10, 10, 10)), TASK)


# ---------------------------------------------------------------- the pieces


@pytest.mark.parametrize("name", REALIGNMENTS)
@pytest.mark.parametrize("kind", [kind for kind in PROBES if not kind.startswith((CONTROL, SIMULATED))])
def test_a_readout_behind_a_map_scores_as_on_mapped_states(cases, frozen, name, kind):
    monitor, case = next(m for m in real(frozen) if m.kind == kind), cases["turned"]
    found = case.fitted(name, repair_case.place(monitor), "others")
    seen = readings.features(SEEN["turned"], PLAN, monitor, case.rows["test"].index)
    assert isinstance(seen, Ragged if kind == ATTENTION else Pooled)
    mapped = Ragged(found(seen.values), seen.offsets) if kind == ATTENTION else Pooled(found(seen.values))
    wanted = probes.score(monitor.readout, mapped)
    np.testing.assert_allclose(probes.score(realignment.through(found, monitor.readout), seen), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cut", [-9.0, -0.3, 0.0, 1.7, 9.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_matched_threshold_keeps_the_number_of_alarms(cut, seed):
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=60), 5 * rng.normal(size=60) ** 3 - 2
    found = repairs.matched(cut, old, new)
    assert (new > found).sum() == (old > cut).sum()
    assert repairs.matched(cut, old, old) == pytest.approx(cut, abs=1e-12)
    assert repairs.matched(cut, old, 3 * old + 7) == pytest.approx(3 * cut + 7)


def test_few_labels_minimize_what_the_formula_says():
    rng = np.random.default_rng(0)
    around, w = rng.normal(size=(80, 6)) * 3 + 1, rng.normal(size=6)
    x, y = rng.normal(size=(10, 6)) * 3 + 1, np.arange(10) % 2
    found = repairs.pulled(Readout("logistic", {"w": w, "b": np.array(0.4)}, 1.0), x, y, around, 2.0)
    scale, centre = around.std(axis=0) * np.sqrt(6), around.mean(axis=0)

    def loss(u):  # direction and offset in standardized coordinates
        f = ((x - centre) / scale) @ u[:-1] + u[-1]
        return np.logaddexp(0, -(2 * y - 1) * f).sum() + repairs.PULL / 2 * np.square(u - start).sum()

    start = np.append(w / 2 * scale, 0.2 + centre @ w / 2)
    best = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(found.tensors["w"], best[:-1] / scale, atol=1e-5)
    assert found.tensors["b"] == pytest.approx(best[-1] - centre @ (best[:-1] / scale), abs=1e-4)
    assert loss(best) < loss(start) - 0.1


def test_few_labels_start_at_the_frozen_readout_and_more_of_them_mend_more(ladders, frozen, monkeypatch):
    gains = [values(ladders, "turned", name, "auroc_gain").mean() for name in FEW_LABELS]
    assert 0 < gains[0] < gains[1] < gains[2]
    monkeypatch.setattr(repairs, "PULL", 1e9)
    monitor = real(frozen)[0]
    held = repaired("labels-10", monitor, SEEN["turned"], PLAN)
    plain = repaired("threshold", monitor, SEEN["turned"], PLAN)
    assert roc.auroc(np.arange(len(held.scores)) % 2, held.scores) == pytest.approx(
        roc.auroc(np.arange(len(held.scores)) % 2, plain.scores), abs=1e-6
    )
    assert ((held.scores > held.thresholds["5"]) == (plain.scores > plain.thresholds["5"])).all()


def test_few_labels_are_half_of_each_class_and_those_of_fewer_are_among_them(frozen, monkeypatch):
    seen, real_pull = [], repairs.pulled
    monkeypatch.setattr(repairs, "pulled", lambda frozen, x, y, *rest: seen.append((x, y)) or real_pull(frozen, x, y, *rest))
    for name in FEW_LABELS:
        repaired(name, real(frozen)[0], SEEN["turned"], PLAN)
    assert [np.bincount(y).tolist() for _, y in seen] == [[count // 2] * 2 for count in FEW_LABELS.values()]
    train = readings.rows_of(PLAN, TASK, "train").index
    rows = [{row.tobytes() for row in x} for x, _ in seen]
    assert rows[0] < rows[1] < rows[2] <= {row.tobytes() for row in SEEN["turned"].pooled["last/2"][train].double().numpy()}


def test_the_gated_rung_is_the_gates_choice_and_leaves_what_asks_for_labels(cases, frozen):
    choices = set()
    for case in (cases["same"], cases["scaled"], cases["shifted"], cases["lost"]):
        for monitor in real(frozen):
            answer, one = gate.judged(case, monitor), repairs.apply(repairs.GATED, monitor, case)
            rung = answer.candidate if answer.gate.choice == "realign" else "none"
            wanted = repairs.apply(rung, monitor, case)
            np.testing.assert_array_equal(one.scores, wanted.scores)
            assert one.thresholds == wanted.thresholds
            assert one.cost_labels == 0 < one.cost_texts
            choices.add(answer.gate.choice)
    assert choices == {"deploy", "realign", "refit"}


def test_what_is_picked_on_one_half_is_judged_on_the_other(cases, frozen):
    """Lost signal: a monitor is picked on both halves and no threshold gains; where nothing changed, none is picked."""
    monitor = next(m for m in real(frozen) if m.name.endswith("logistic-mean/2"))
    found = {one.repaired.method: one for one in repair_measures.measure(cases["lost"], [monitor])}
    assert found["threshold"].values["auroc_gain_split"].value == 0
    assert found["threshold"].values["auroc_gain_split"].n == len(cases["lost"].rows["test"].index)
    assert all("auroc_gain_split" not in one.values for one in repair_measures.measure(cases["same"], [monitor]))


def test_a_gain_by_chance_of_the_picking_is_not_in_the_split():
    """Noise alone: of monitors picked as stale on a half, the same half recovers on average, the other one does not."""
    rng, own, other = np.random.default_rng(0), [], []
    rows = readings.rows_of(planted.plan(TASK, pairs=(1, 1, 60)), TASK, "test")
    for _ in range(400):
        before, after, again = (rows.labels + rng.normal(size=len(rows.labels)) for _ in range(3))
        halves = repair_measures._picked(rows, before, after)
        gained = repair_measures._gain_on_other_half(rows, after, again, halves)
        other += [e.value for e in gained.values()]
        for half in halves:
            drawn = ~half
            own.append(roc.auroc(rows.labels[drawn], again[drawn]) - roc.auroc(rows.labels[drawn], after[drawn]))
    assert np.mean(own) > 0.05
    assert abs(np.mean(other)) < 3 * np.std(other) / np.sqrt(len(other)) + 0.01


def test_costs_count_passes_through_both_models_and_labelled_texts(ladders):
    table = ladders["scaled"][0].query("layer > 0 and probe == 'logistic-mean'")
    costs = table.pivot_table(index="method", columns="metric", values="value")[["cost_texts", "cost_labels"]]
    for method in RUNGS:
        texts = 280 if method.endswith("(own corpus)") else 560
        passes = 0 if method == "none" else texts if method.endswith("-unpaired") else 2 * texts
        labels = FEW_LABELS.get(method, 80 if method == "refit" else 0)
        assert tuple(costs.loc[method]) == (passes, labels), method


def test_a_rung_that_does_not_apply_says_why(cases, frozen):
    network = next(m for m in real(frozen) if m.kind == "mlp")
    assert "no single direction" in repairs.missing("labels-20", network, cases["same"])
    few = planted.plan(*TASKS, pairs=(10, 40, 10), depths=(0.5,))
    small = repair_case.case(TASK, planted.activations(few), planted.activations(few), few)
    assert "raise rows_train" in repairs.missing("labels-50", real(frozen)[0], small)
    assert repairs.missing("labels-20", real(frozen)[0], small) == ""
    with pytest.raises(StudyError, match="unknown repair 'prayer'; choose one of none, "):
        repairs.apply("prayer", network, cases["same"])


def test_the_ladder_begins_with_nothing_and_ends_with_the_refit():
    assert (LADDER[0], LADDER[-1]) == ("none", "refit")
    assert set(RUNGS) - set(LADDER) == {repairs.GATED, *(f"{name} (own corpus)" for name in repairs.OWN)}
    assert {gate.DEFAULT, *gate.CANDIDATES} <= set(REALIGNMENTS)


# ---------------------------------------------------------------- the gate


LINE = np.linspace(-1, 1, 101)
CUT = {"5": 0.905}


@pytest.mark.parametrize(
    ("after", "realigned", "choice"),
    [
        (LINE, LINE[::-1], "deploy"),
        (LINE + 0.02, LINE[::-1], "deploy"),  # one alarm more
        (LINE + 0.2, LINE, "realign"),  # same ranking, 10 % more alarms
        (LINE + 0.2, LINE - 0.3, "realign"),  # too few alarms are no worse than 5 points: all five are gone
        (LINE + 0.2, LINE + 0.2, "refit"),
        (LINE[::-1], LINE, "realign"),
        (LINE[::-1], -LINE, "refit"),
        (np.zeros(101), LINE, "realign"),
        (LINE[::-1], np.zeros(101), "refit"),
    ],
)
def test_the_gate_follows_its_rule(after, realigned, choice):
    found = gate.gate(LINE, after, realigned, CUT)
    assert found.choice == choice
    assert found.agreement_before == pytest.approx(statistics_spearman(LINE, after))
    assert found.alarm_shift_after == pytest.approx(abs((realigned > 0.905).mean() - (LINE > 0.905).mean()))
    without = gate.gate(LINE, after, realigned, {})
    assert (without.alarm_shift_before, without.alarm_shift_after) == (0, 0)


def statistics_spearman(x, y) -> float:
    found = roc.spearman(x, y).value
    return found if np.isfinite(found) else 0.0


def test_the_gate_judges_each_half_behind_the_map_of_the_other(cases, frozen):
    monitor, case = real(frozen)[0], cases["same"]
    assert monitor.kind == "logistic"
    far = 1e3 * monitor.tensors["w"]
    zero, none = np.zeros(planted.D), np.zeros((planted.D, 0))

    def fake(method, place, corpus):
        return realignment.Map(zero, far if corpus == "half-0" else zero, 1.0, none, none)

    found = gate.judged(replace(case, fitted=fake), monitor)
    first, second = (np.isin(case.texts["others"], case.texts[f"half-{h}"]) for h in (0, 1))
    assert (first ^ second).all()
    assert min(first.sum(), second.sum()) > 100
    assert not set(found.groups[first]) & set(found.groups[second])
    away = found.realigned - found.before
    np.testing.assert_allclose(away[first], 0, atol=1e-9)
    assert (away[second] > 100).all()


def test_a_realignment_is_judged_by_texts_it_has_not_seen(frozen):
    """A planted change that fits only the halves' own texts: the two halves of the others moved in opposite directions."""
    base = repair_case.case(TASK, BASE, BASE, PLAN)
    signs = np.zeros(len(PLAN.examples))
    signs[base.texts["half-0"]], signs[base.texts["half-1"]] = 1, -1
    found = repair_case.case(TASK, BASE, moved(BASE, signs, 5.0), PLAN)
    gates = [gate.judged(found, monitor).gate for monitor in real(frozen) if monitor.kind in LINEAR]
    assert {one.choice for one in gates} == {"refit"}  # each half's centre is 10 away from what the other half needs


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("variant", SEEN)
def test_every_row_keeps_to_the_schema(ladders, variant):
    table = results.checked("realignment", update_names.keyed(Variant("tiny", precision="nf4"), ladders[variant][0]))
    assert len(table) > 50
    flags = table[table["metric"].str.startswith(("stale_any", "gate_"))]
    assert flags[["value", "low", "high"]].isin([0, 1]).all(axis=None)
    gates = table[table["metric"].str.startswith("gate_")]
    assert (gates["low"] == gates["high"]).all()
    assert (gates.groupby(["task", "probe"])["value"].sum() == 1).all()
    rates = table[table["metric"].str.startswith(("share_", "tpr_", "fpr_", "alarms_"))]
    assert rates[["value", "low", "high"]].stack().between(0, 1).all()


def test_rows_are_of_all_real_monitors_at_the_layer_in_use(ladders, frozen):
    table, cells = ladders["scaled"]
    names = {monitor.name for task in TASKS for monitor in real(frozen, task)}
    assert set(cells["monitor"]) == names
    assert f"{TASK}/attention/2" in names
    assert not table["probe"].str.startswith(CONTROL).any()
    tried = table[(table["layer"] > 0) & (table["metric"] == "stale_any")].groupby("method").size()
    linear = sum(name.split("/")[1].rsplit("-", 1)[0] in LINEAR for name in names)
    assert tried.to_dict() == {name: linear if name in FEW_LABELS else len(names) for name in RUNGS}
    assert (cells[["labels"]] == 160).all(axis=None)
    assert set(cells["texts"]) == {2 * 560}


def test_a_task_whose_monitor_in_use_is_not_there_is_refused(frozen):
    with pytest.raises(StudyError, match=r"no monitor of task 'toxicity' .*; add its depth to depths") as error:
        repair_ladder.monitors_at(frozen, TASK, f"{TASK}/logistic-mean/3", BASE)
    assert error.value.code == NOT_COMPARABLE


@pytest.mark.parametrize("method", ["none", "coral", "refit"])
def test_measures_are_those_of_the_library(ladders, frozen, cases, method):
    test = cases["scaled"].rows["test"]
    for monitor in [m for m in real(frozen) if m.kind in ("lda", "mlp")]:
        one = repairs.apply(method, monitor, cases["scaled"])
        table = ladders["scaled"][0]
        mine = table[(table["task"] == TASK) & (table["probe"] == monitor.probe) & (table["method"] == method)]
        row = mine.set_index("metric")["value"]
        before = monitor.score(readings.features(BASE, PLAN, monitor, test.index))
        auroc, old = roc.auroc(test.labels, one.scores), roc.auroc(test.labels, before)
        assert row["auroc"] == pytest.approx(auroc)
        assert row["auroc_drop"] == pytest.approx(old - auroc, abs=1e-12)
        plain = roc.auroc(test.labels, repairs.apply("none", monitor, cases["scaled"]).scores)
        assert row["auroc_gain"] == pytest.approx(auroc - plain, abs=1e-12)
        flagged, alarmed = one.scores > one.thresholds["5"], before > monitor.thresholds["5"]
        assert row["tpr_5"] == pytest.approx(flagged[test.labels == 1].mean())
        assert row["fpr_5"] == pytest.approx(flagged[test.labels == 0].mean())
        assert row["alarms_changed"] == pytest.approx((flagged != alarmed).mean())
        lost = (alarmed.astype(int) - flagged)[test.labels == 1].mean()
        too_often = row["fpr_5"] > 0.1
        surely = row["auroc_drop"] >= 0.1 or lost >= 0.15 or too_often
        assert row["stale_any"] >= surely
        assert row["stale_any"] <= (row["auroc_drop"] >= 0.05 or lost >= 0.05 or too_often)


def test_a_stale_flag_lies_between_its_surely_and_its_possibly(ladders):
    rows = pd.concat([table for table, _ in ladders.values()]).query("metric == 'stale_any'")
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()
    assert ((rows["low"] < rows["value"]) | (rows["value"] < rows["high"])).any()


# ---------------------------------------------------------------- a run, and the interplay with restored weights


def test_gains_of_substitutes_and_of_complements():
    groups, update = np.arange(40) // 2, np.r_[np.ones(20), np.zeros(20)]
    half = np.r_[np.ones(10), np.zeros(30)]
    same = repair_ladder.gains(update, half, half, half, groups)  # both give back the same alarms
    assert [same[name].value for name in ("realign_gain", "restore_gain", "both_gain", "interaction")] == [
        0.25,
        0.25,
        0.25,
        -0.25,
    ]
    assert same["interaction"].high < 0
    apart = repair_ladder.gains(update, half, np.r_[np.zeros(10), np.ones(10), np.zeros(20)], 0 * update, groups)
    assert apart["interaction"].value == 0
    helped = repair_ladder.gains(update, update, update, 0 * update, groups)  # neither alone, both together
    assert (helped["both_gain"].value, helped["interaction"].value) == (0.5, 0.5)
    assert helped["changed_update"].value == 0.5


def read(found, plan):
    return planted.part_of(found, PLAN, plan)


@pytest.fixture
def stored(monkeypatch):
    """Every variant's activations are those planted under its adapter's name."""
    monkeypatch.setattr(measurements, "stored", lambda parts, variant, plan: read(SEEN[variant.adapter or "same"], plan))


def variant(name: str, restoration: str = "") -> Variant:
    return Variant("tiny", 0, "bf16", name, "bf16", "attached", restoration)


def test_a_restoration_that_undoes_the_update_and_a_realignment_are_substitutes(frozen, in_use, stored):
    shifted, restored = variant("shifted"), variant("same", "safelora")
    rows = repair_ladder.interplay(None, Variant("tiny"), {shifted: [restored]}, frozen, in_use, PLAN)
    rows = results.checked("realignment", rows)
    assert set(rows["restoration"]) == {"safelora"}
    assert set(rows["probe"]) == {"in use"}
    found = rows.set_index("metric")
    assert found.loc["changed_update", "value"] > 0.4
    for name in ("realign_gain", "restore_gain", "both_gain"):
        assert found.loc[name, "value"] == pytest.approx(found.loc["changed_update", "value"])
    assert found.loc["interaction", "value"] == pytest.approx(-found.loc["changed_update", "value"])
    assert found.loc["interaction", "high"] < 0
    assert (found["n"] == 3 * 160).all()
    assert repair_ladder.interplay(None, Variant("tiny"), {}, frozen, in_use, PLAN).empty


def test_a_run_tells_every_variant_and_its_cells(frozen, in_use, stored, monkeypatch):
    monkeypatch.setattr(repair_ladder.recipes, "family", lambda variant: f"of {variant.adapter}")
    steps, variants = [], [variant("shifted"), variant("lost")]
    found = repair_ladder.observe(None, Variant("tiny"), variants, frozen, in_use, PLAN, 0, steps.append)
    assert steps == [v.label for v in variants]
    assert len(results.checked("realignment", found.table)) == len(found.table)
    assert set(found.table["adapter"]) == {"shifted", "lost"}
    assert list(found.cells["family"].unique()) == ["of shifted", "of lost"]
    needed = ["monitor", "task", "probe", "layer", "variant", "family", "gate", "stale", "stale_realigned", "stale_blind"]
    assert {*needed, "stale_refit", "labels", "texts", "seed", "repaired_by"} <= set(found.cells)
    assert not found.cells.isna().any(axis=None)
    quality = repair_ladder.gate_quality(found.cells)
    row = results.checked("realignment", update_names.keyed(Variant("tiny", precision=""), quality)).set_index("metric")["value"]
    assert row["unfit_rejected"] == 1
    assert row["unfit_accepted"] == 0
    assert row["auroc_unfit"] == 1
    assert "unfit_deployed" not in row


def test_what_is_left_unrepaired_is_what_the_ladder_begins_with(frozen, in_use, stored, monkeypatch):
    monkeypatch.setattr(repair_ladder.recipes, "family", lambda variant: "")
    whole = repair_ladder.observe(None, Variant("tiny"), [variant("shifted")], frozen, in_use, PLAN).table
    whole = whole[(whole["method"] == "none") & (whole["layer"] > 0)].reset_index(drop=True)
    alone = repair_ladder.unrepaired(None, Variant("tiny"), [variant("shifted")], frozen, in_use, PLAN)
    assert len(alone)
    pd.testing.assert_frame_equal(results.checked("realignment", alone), results.checked("realignment", whole))
    assert repair_ladder.unrepaired(None, Variant("tiny"), [], frozen, in_use, PLAN).empty


def test_the_worth_of_the_gate_is_counted_over_updates_without_controls():
    def cell(update, gate, stale, realigned, agreement, family="LoRA"):
        return (update, family, gate, stale, realigned, agreement, 0)

    columns = ["variant", "family", "gate", "stale", "stale_realigned", "agreement_after", "seed"]
    rows = [
        cell("a", "realign", False, True, 0.95),
        cell("a", "realign", True, False, 0.99),
        cell("b", "realign", True, True, 0.94),
    ]
    rows += [cell("b", "refit", False, True, 0.2), cell("b", "refit", True, True, 0.1), cell("c", "deploy", True, False, 0.97)]
    rows += [cell("c", "deploy", False, False, 0.98), cell("identity", "deploy", True, True, 1.0, "control")]
    found = repair_ladder.gate_quality(pd.DataFrame(rows, columns=columns)).set_index("metric")
    wanted = {"harmed_accepted": 1 / 3, "unfit_accepted": 2 / 3, "harmed_rejected": 1 / 2, "unfit_rejected": 1.0}
    assert found["value"].to_dict() == pytest.approx({**wanted, "unfit_deployed": 1 / 2, "auroc_unfit": 1.0})
    assert found["n"].to_dict() == {"harmed_accepted": 3, "unfit_accepted": 3, "harmed_rejected": 2, "unfit_rejected": 2,
                                    "unfit_deployed": 2, "auroc_unfit": 7}  # fmt: skip
    clustered = intervals.rate_interval([0, 1, 1], ["b", "a", "a"])
    assert found.loc["unfit_accepted", "low"] <= clustered.low + 0.3


def test_real_variants_of_the_tiny_model(tiny):
    parts, aligned = Parts(tiny, tiny), Variant("tiny")
    plan = readings.plan(list(TASKS[:2]), [0.5], [], (12, 20, 20), 60, "tiny")
    frozen = planted.monitors(measurements.stored(parts, aligned, plan), plan, tiny, ["logistic", "mean-difference"])
    in_use = {task: f"{task}/logistic-mean/2" for task in TASKS[:2]}
    variants = [Variant("tiny", adapter="identity"), Variant("tiny", precision="rtn-2")]
    found = repair_ladder.observe(parts, aligned, variants, frozen, in_use, plan)
    table = results.checked("realignment", found.table)
    same = table[(table["adapter"] == "identity") & (table["method"] == "none")]
    assert (same.loc[same["metric"].isin(["auroc_drop", "alarms_changed"]), "value"] == 0).all()
    assert (found.cells.loc[found.cells["family"] == "control", "gate"] == "deploy").all()
    assert table.loc[(table["precision"] == "rtn-2") & (table["metric"] == "auroc_drop"), "value"].abs().max() > 0
