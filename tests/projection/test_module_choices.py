"""The choice of modules is that of the restoration itself, and chance is counted over all pairs of sets, within kinds too."""

import itertools

import numpy as np
import pytest
from scipy import stats
from test_quantized_subspaces import gaussian, low_rank, pair_with, plus, refused, value

from helpers import results
from helpers.errors import NOT_COMPARABLE
from helpers.projection import restorations
from helpers.projection.quantized_subspaces import choice_rows, jaccard_null
from helpers.updates import names as update_names
from helpers.updates.lora import LowRank
from helpers.updates.names import Variant

NAMES = [f"model.layers.{i}.mlp.up_proj" for i in range(8)]


@pytest.fixture(scope="module")
def update():
    return {n: LowRank(gaussian(40, 3, seed=i), gaussian(3, 50, seed=100 + i)) for i, n in enumerate(NAMES)}


@pytest.fixture(scope="module")
def choices():
    """The true pair, itself again, a close one, and one that knows nothing of it."""
    pair = pair_with({n: low_rank((40, 50), [1.0, 0.8, 0.6, 0.4, 0.2], seed=i) for i, n in enumerate(NAMES)})
    close = plus(pair, {n: gaussian(40, 50, seed=50 + i, size=1e-3) for i, n in enumerate(NAMES)})
    far = pair_with({n: low_rank((40, 50), [1.0, 0.8, 0.6, 0.4, 0.2], seed=900 + i) for i, n in enumerate(NAMES)})
    return {"bf16": pair, "same": pair, "close": close, "far": far}


def all_prepared(update, pairs):
    """SafeLoRA of the update with V of each pair."""
    return {name: restorations.prepare(update, pair, "safelora", 0) for name, pair in pairs.items()}


def test_the_choice_is_compared_as_the_tables_of_the_restoration_say(update, choices):
    table = choice_rows(all_prepared(update, choices), (0.25, 0.5))
    results.checked("subspaces", update_names.keyed(Variant("m"), table))
    assert set(table["source"]) == {"same", "close", "far"}
    prepared = all_prepared(update, choices)
    chosen = {n: {s: set(_changed(p.at(s).table)) for s in (0.25, 0.5)} for n, p in prepared.items()}
    for name, share in itertools.product(("same", "close", "far"), (0.25, 0.5)):
        one, other = chosen["bf16"][share], chosen[name][share]
        assert value(table, "jaccard", name, "all", f"{share:g}") == len(one & other) / len(one | other)
        scores = [prepared[n].scores["score"] for n in ("bf16", name)]
        assert value(table, "score_spearman", name, "all") == pytest.approx(stats.spearmanr(*scores).statistic)
    assert value(table, "jaccard", "same", "all", "0.5") == value(table, "score_spearman", "same", "all") == pytest.approx(1)
    assert value(table, "score_spearman", "close", "all") > value(table, "score_spearman", "far", "all")


def _changed(table):
    return table.loc[table["changed"], "module"]


def test_without_the_true_pair_nothing_is_compared(update, choices):
    refused(lambda: choice_rows(all_prepared(update, {"same": choices["same"]}), (0.5,)), NOT_COMPARABLE, "'bf16'", "same")


def test_a_share_that_chooses_nothing_is_left_out(update, choices):
    table = choice_rows(all_prepared(update, choices), (0.0, 1.0))
    assert set(table["k"]) == {"", "1"}
    assert (table.loc[table["k"] == "1", "value"] == 1).all()  # all modules: no choice


def test_scores_that_are_all_equal_have_no_rank_correlation(update, choices):
    one = {NAMES[0]: update[NAMES[0]]}
    table = choice_rows(all_prepared(one, choices), (1.0,))
    assert set(table["metric"]) == {"jaccard", "jaccard_null", "jaccard_null_by_kind"}


@pytest.mark.parametrize(
    "strata", [[(7, 3, 3)], [(7, 2, 5)], [(6, 6, 2)], [(9, 1, 1)], [(4, 2, 1), (5, 0, 3)], [(4, 4, 3), (3, 1, 2), (2, 0, 0)]]
)
def test_the_null_of_the_jaccard_is_that_of_all_pairs_of_sets(strata):
    found, every = jaccard_null(strata), []
    fixed = {(i, j) for i, (_, first, _) in enumerate(strata) for j in range(first)}
    within = [itertools.combinations([(i, j) for j in range(n)], second) for i, (n, _, second) in enumerate(strata)]
    for parts in itertools.product(*within):
        other = set(itertools.chain(*parts))
        every.append(len(fixed & other) / len(fixed | other))
    assert found.value == pytest.approx(np.mean(every))
    low, high = np.quantile(every, [0.025, 0.975], method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx((min(low, found.value), max(high, found.value)))
    assert found.n == sum(n for n, _, _ in strata)


def test_agreement_by_kind_alone_is_not_taken_for_agreement():
    """A V that knows nothing scores the kinds in the same order, since its s0 is theirs: plain chance would be impressed."""
    kinds = {"q_proj": [1.0] * 2, "up_proj": [1.0] * 20}  # few directions or many: s0 is low or high
    names = {f"model.layers.{i}.{kind}": values for i in range(12) for kind, values in kinds.items()}
    update = {n: LowRank(gaussian(40, 8, seed=i), gaussian(8, 40, seed=99 + i)) for i, n in enumerate(names)}
    true, unrelated = (
        pair_with({n: low_rank((40, 40), v, seed=start + i) for i, (n, v) in enumerate(names.items())}) for start in (0, 500)
    )
    table = choice_rows(all_prepared(update, {"bf16": true, "noisy": unrelated, "same": true}), (0.5,))
    found = {m: value(table, m, module="all", k="0.5") for m in ("jaccard", "jaccard_null", "jaccard_null_by_kind")}
    assert found["jaccard"] > 0.9 > 0.5 > found["jaccard_null"]
    assert found["jaccard_null_by_kind"] == pytest.approx(found["jaccard"], abs=0.05)
    assert value(table, "score_spearman", module="all") > 0.6
    assert abs(value(table, "score_spearman_by_kind", module="all")) < 0.5
    assert value(table, "score_spearman_by_kind", source="same", module="all") == pytest.approx(1)
