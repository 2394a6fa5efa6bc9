"""A predictor learns only from what its price pays for; what only names its group fools a random split and no split of ours."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.tiers import mostly_slow

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.staleness import predictors
from helpers.staleness.drift_signals import SIGNALS
from helpers.staleness.predictors import PREDICTORS, SPLITS

FAMILIES = ("quantization", "LoRA", "QLoRA", "full fine-tune", "QAT")
GROUPS = {"monitor": ["task"], "family": ["family"], "seed": ["seed"], "monitor and family": ["task", "family"]}


def grid(tasks=4, probes=2, layers=3, variants=20, seeds=1):
    """The crossed cells, monitors by updates, without drop and signals."""
    axes = [range(tasks), range(probes), range(layers), range(variants), range(seeds)]
    index = pd.MultiIndex.from_product(axes, names=list("tplvs")).to_frame(index=False)
    return pd.DataFrame({
        "monitor": [f"t{r.t}/p{r.p}/{r.l}" for r in index.itertuples()], "task": "t" + index["t"].astype(str),
        "probe": "p" + index["p"].astype(str), "layer": index["l"], "depth": index["l"] / layers,
        "pooling": np.where(index["p"] % 2, "mean", "last"),
        "variant": "v" + index["v"].astype(str), "family": [FAMILIES[v % len(FAMILIES)] for v in index["v"]], "seed": index["s"],
    })  # fmt: skip


def planted(signal="score_ks", strength=1.0, seed=0, **sizes):
    """Cells whose drop follows one signal; every other signal is noise."""
    cells, rng = grid(**sizes), np.random.default_rng(seed)
    noise = {name: rng.standard_normal(len(cells)) for name in SIGNALS if name not in predictors.NAMED}
    drop = 0.05 * strength * noise[signal] + 0.02 * rng.standard_normal(len(cells))
    return cells.assign(**noise, drop=drop, drop_low=drop - 0.02, stale=drop >= 0.05)


def named(level, signal, seed=0, **sizes):
    """Cells whose drop is one constant per value of `level`, and whose `signal` only says which value that is."""
    cells, rng = grid(**sizes), np.random.default_rng(seed)
    codes = np.unique(cells[level], return_inverse=True)[1]
    drop = 0.05 * rng.standard_normal(codes.max() + 1)[codes] + 0.002 * rng.standard_normal(len(cells))
    ids = rng.permutation(codes.max() + 1).astype(float)[codes]
    return cells.assign(**{signal: ids}, drop=drop, drop_low=drop, stale=drop >= 0.04)


def random_folds(cells, count=5, seed=0):
    """What this module refuses to offer: cells dealt out one by one."""
    codes = np.random.default_rng(seed).integers(count, size=len(cells))
    return [(str(k), np.flatnonzero(codes != k), np.flatnonzero(codes == k)) for k in range(count)]


def skill(cells, folds, predictor, signals=None):
    """Mean Spearman within the held-out folds; a fold without an order counts 0."""
    risk = predictors.out_of_fold(cells, folds, predictor, signals)
    drop = cells["drop"].to_numpy()
    return np.mean([stats.spearmanr(risk[t], drop[t]).statistic if np.ptp(risk[t]) else 0.0 for _, _, t in folds])


def refused(*words, code=2):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- a random split would have been fooled


FOOLED = {"monitor": ("monitor", "separation"), "family": ("variant", "relative_change")}


@mostly_slow("the same simulation at other sizes", "family")
@pytest.mark.parametrize("split", FOOLED)
def test_a_signal_that_only_names_its_group_fools_a_random_split_and_not_ours(split):
    """The theorem (no skill on groups held out) and its control (much skill on cells dealt out one by one)."""
    level, signal = FOOLED[split]
    fooled, honest = [], []
    for seed in range(5):
        cells = named(level, signal, seed, layers=4)
        fooled.append(skill(cells, random_folds(cells), "forest, free", [signal]))
        honest.append(skill(cells, predictors.applicable(cells)[split], "forest, free", [signal]))
    assert min(fooled) > 0.75
    assert abs(np.mean(honest)) < 0.25


def test_holding_out_tasks_leaves_the_updates_known_and_only_holding_out_both_does_not():
    """The limit of the split by task, said in its comment: it is a question about updates that were already labelled."""
    known, unknown = [], []
    for seed in range(3):
        cells = named("variant", "relative_change", seed, tasks=2, variants=30)
        for split, skills in (("monitor", known), ("monitor and family", unknown)):
            skills.append(skill(cells, predictors.applicable(cells)[split], "forest, free", ["relative_change"]))
    assert min(known) > 0.75
    assert abs(np.mean(unknown)) < 0.3


@pytest.mark.parametrize("split", SPLITS)
def test_training_cells_share_nothing_held_out_and_every_cell_is_held_out_once(split):
    cells = planted(seeds=3)
    held = np.zeros(len(cells), int)
    for _, train, test in predictors.applicable(cells)[split]:
        held[test] += 1
        for column in GROUPS[split]:
            assert not set(cells[column].iloc[train]) & set(cells[column].iloc[test])
            assert cells[column].iloc[test].nunique() == 1
    assert (held == 1).all()


# ---------------------------------------------------------------- predictors and what they meet


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_predictor_takes_missing_values_and_a_family_it_never_saw(predictor):
    cells, rng = planted(), np.random.default_rng(0)
    for name in ("score_ks", "mean_shift", "rank"):
        cells.loc[rng.random(len(cells)) < 0.3, name] = np.nan
    cells["few_drop"] = np.nan  # a column that is missing everywhere
    train, test = cells[cells["family"] != "QAT"], cells[cells["family"] == "QAT"]
    risk = PREDICTORS[predictor](train, test, list(SIGNALS), 0)
    assert risk.shape == (len(test),)
    assert np.isfinite(risk).all()
    assert np.array_equal(risk, PREDICTORS[predictor](train, test, list(SIGNALS), 0))  # deterministic
    if "forward" in predictor:
        assert stats.spearmanr(risk, test["drop"]).statistic > 0.4


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_predictor_uses_only_signals_that_its_price_pays_for(predictor):
    cells, rng = planted(), np.random.default_rng(0)
    prices = predictors.PRICES[predictor.rpartition(", ")[2]]
    train, test = cells[:300], cells[300:]
    risk = PREDICTORS[predictor](train, test, list(SIGNALS), 0)
    for name, signal in SIGNALS.items():
        if signal.price not in prices:
            test = test.assign(**{name: rng.standard_normal(len(test))})
    assert np.array_equal(risk, PREDICTORS[predictor](train, test, list(SIGNALS), 0))


def test_a_shift_to_either_side_is_the_same_risk():
    cells = planted("mean_shift", 0.0)
    cells["drop"] = 0.05 * cells["mean_shift"].abs() + 0.001 * cells["rank"]
    cells["stale"] = cells["drop"] > 0.08
    assert skill(cells, predictors.applicable(cells)["family"], "ridge, free+forward") > 0.8


# ---------------------------------------------------------------- what is refused


def test_names_that_nobody_knows_are_refused_with_those_there_are():
    cells = planted()
    with refused("signal 'vibes'"):
        PREDICTORS["ridge, free"](cells, cells, ["vibes"], 0)
    with refused("signal 'vibes'", "score_ks"):
        predictors.out_of_fold(cells, random_folds(cells), "ridge, free", ["vibes"])
    with refused("predictor 'oracle'"):
        predictors.out_of_fold(cells, random_folds(cells), "oracle")
    with refused("no signal"):
        PREDICTORS["ridge, free"](cells, cells, ["score_ks"], 0)


BAD = {
    "none": (lambda c: c[:0], "0 cells", NOT_COMPARABLE),
    "no column": (lambda c: c.drop(columns="task"), "column 'task'", 2),
    "no drop": (lambda c: c.assign(drop=c["drop"].where(c.index > 1)), "2 cells have no finite drop", REFUSED),
    "twice": (lambda c: pd.concat([c, c[:1]]), "stands in two cells", REFUSED),
    "infinite": (lambda c: c.assign(score_psi=np.inf), "'score_psi' is infinite", REFUSED),
}


@pytest.mark.parametrize("bad", BAD)
def test_cells_that_nothing_can_be_learned_from_are_refused(bad):
    change, words, code = BAD[bad]
    for call in (predictors.check_forecast_data, lambda c: predictors.out_of_fold(c, [], "ridge, free")):
        with refused(words, code=code):
            call(change(planted()))
