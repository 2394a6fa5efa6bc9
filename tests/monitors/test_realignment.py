"""Realignment: what each kind can undo is planted and undone, what it cannot is left, and every factored map is the dense one."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.linalg import expm, polar
from scipy.stats import ortho_group
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.monitors import frozen, probes, realignment
from helpers.monitors.probes import PROBES, Readout
from helpers.monitors.readouts import Moved, Pooled, score_linear
from helpers.monitors.realignment import REALIGNMENTS, Map, fit_map, halves
from helpers.updates.names import SIMULATED

KINDS = list(REALIGNMENTS)
PAIRED = [name for name in KINDS if REALIGNMENTS[name].paired and name != "mispaired"]
UNPAIRED = [name for name in KINDS if not REALIGNMENTS[name].paired]
LINEAR = [kind for kind, probe in PROBES.items() if probe.score is score_linear]
SHAPES = {"wide": (30, 90), "between": (50, 80), "tall": (140, 20)}  # 2 n < d, n < d < 2 n, 2 d < n


def labels(n: int) -> np.ndarray:
    return np.arange(n) % 2


def axis(d: int) -> np.ndarray:
    """The unit vector that tells the classes apart."""
    w = np.random.default_rng(99).normal(size=d)
    return w / np.linalg.norm(w)


def states(n: int, d: int, seed: int, gap: float = 4.0) -> np.ndarray:
    """White noise around a mean far from 0, the classes `gap` apart along one axis."""
    rng = np.random.default_rng(seed)
    return 5 + rng.normal(size=(n, d)) + gap * np.outer(labels(n) - 0.5, axis(d))


def uneven(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States of unlike scales that correlate, and the same texts after an update that moved, mixed and blurred them a little."""
    rng, texts = np.random.default_rng(7), np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * rng.lognormal(sigma=0.7, size=d) / np.sqrt(d)
    before = texts.normal(size=(n, d)) @ mixing + rng.normal(size=d)
    update = np.eye(d) + 0.4 * rng.normal(size=(d, 3)) @ rng.normal(size=(3, d)) / np.sqrt(d)
    return before, before @ update + 0.2 * texts.normal(size=(n, d)) + rng.normal(size=d)


def probe(kind: str, n: int, d: int, gap: float = 4.0) -> Readout:
    train, validation = (Pooled(states(n, d, seed, gap)) for seed in (1, 2))
    if kind.startswith(SIMULATED):  # under one simulated update, which moves each text a little
        train = Moved(train.values, (train.values + 0.1 * np.random.default_rng(3).normal(size=(n, d)),))
    return probes.fit_probe(kind, train, labels(n), validation, labels(n))


def auroc(readout: Readout, x: np.ndarray) -> float:
    return roc_auc_score(labels(len(x)), probes.score(readout, Pooled(x)))


def error(realigned: Map, before: np.ndarray, after: np.ndarray) -> float:
    """The squared distance that is left, as a share of what centring at the fitted means leaves."""
    centred = after - realigned.source + realigned.target
    return float(np.square(realigned(after) - before).sum() / np.square(centred - before).sum())


def refused(code: int, *words: str):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- what is planted is undone, and by whom


def test_a_rotation_is_undone_by_procrustes_and_not_by_centring():
    d, n = 24, 300
    turn = ortho_group.rvs(d, random_state=3)
    before, held = states(n, d, 4), states(n, d, 5)
    lda = probe("lda", 400, d)
    found = {name: fit_map(name, before, before @ turn - 2) for name in ("none", "centre", "procrustes")}
    assert error(found["procrustes"], held, held @ turn - 2) < 1e-4
    assert auroc(lda, held) > 0.95
    assert auroc(lda, found["procrustes"](held @ turn - 2)) == pytest.approx(auroc(lda, held), abs=1e-3)
    for name in ("none", "centre"):
        assert auroc(lda, found[name](held @ turn - 2)) < 0.85


def test_with_fewer_texts_than_dimensions_a_rotation_is_undone_in_their_span_and_nothing_happens_off_it():
    d, n, k = 100, 40, 8
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(d, k + 4)))[0]
    skew = rng.normal(size=(k, k))
    turn = frame[:, :k] @ expm(skew - skew.T) @ frame[:, :k].T
    texts, held = (rng.normal(size=(rows, k)) @ frame[:, :k].T for rows in (n, 200))
    found = fit_map("procrustes", texts, texts @ turn + frame[:, 8])
    assert error(found, held, held @ turn + frame[:, 8]) < 1e-3
    off = rng.normal(size=(5, 4)) @ frame[:, k:].T
    assert np.allclose(found(found.source + off), found.target + off, atol=1e-10)
    assert np.linalg.norm(found(found.source + held) - found.target - held) > np.linalg.norm(held) / 2


def test_procrustes_turns_and_does_not_scale():
    before, after = uneven(60, 20, 0)
    found = fit_map("procrustes", before, 3 * after)
    moved = found(3 * after) - found.target
    assert np.allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(3 * after - found.source, axis=1), rtol=1e-9)


def test_a_change_of_covariance_is_undone_by_coral_and_not_by_scaling_or_centring():
    d, n = 20, 600
    even = np.ones(d) - axis(d) * axis(d).sum()
    across = 0.3 * axis(d) + np.sqrt(1 - 0.09) * even / np.linalg.norm(even)  # leans on the probe's axis, and on all dimensions
    grown = np.eye(d) + 20 * np.outer(across, across)
    lda, before, held = probe("lda", 400, d, gap=2.0), states(n, d, 4, gap=2.0), states(n, d, 5, gap=2.0)
    after = {name: auroc(lda, fit_map(name, before, before @ grown)(held @ grown)) for name in KINDS}
    for name in ("coral", "coral-unpaired"):
        assert after[name] == pytest.approx(auroc(lda, held), abs=0.015)
    for name in ("none", "centre", "centre-scale"):
        assert after[name] < auroc(lda, held) - 0.1


def test_a_scaling_of_the_axes_is_undone_by_centre_scale():
    before, held = states(200, 12, 4), states(200, 12, 5)
    scale, shift = np.exp(np.random.default_rng(0).normal(size=(2, 12)))
    found = fit_map("centre-scale", before, before * scale + shift)
    assert np.allclose(found(held * scale + shift), held, atol=1e-9)
    assert error(fit_map("centre", before, before * scale + shift), held, held * scale + shift) == pytest.approx(1)


@pytest.mark.parametrize("bump", [0.0, 1e-13])
def test_a_column_that_is_constant_but_for_rounding_is_moved_and_not_blown_up(bump):
    before, after = uneven(40, 12, 0)
    before[:, 3], after[:, 4] = 2.0, 3.0
    after[::3, 4] += bump
    found = fit_map("centre-scale", before, after)
    assert (found.scale[[3, 4]] == 1).all()
    assert np.allclose(found(after)[:, 4].mean(), before[:, 4].mean())
    assert (np.delete(found.scale, [3, 4]) != 1).all()


@pytest.mark.parametrize("kind", LINEAR)
def test_a_shift_breaks_rates_and_not_ranks_and_centring_brings_the_rates_back(kind):
    d, n = 24, 400
    readout, before, held = probe(kind, 200, d), states(n, d, 4), states(n, d, 5)
    shift = 3 * readout.tensors["w"] / np.linalg.norm(readout.tensors["w"])
    cut = frozen.threshold(probes.score(readout, Pooled(before[labels(n) == 0])), 0.05)
    flagged = [
        probes.score(readout, Pooled(x)) > cut
        for x in (held, held + shift, fit_map("centre", before, before + shift)(held + shift))
    ]
    old, moved, back = ([flags[labels(n) == label].mean() for label in (0, 1)] for flags in flagged)
    assert moved[0] > old[0] + 0.3
    assert back == old
    assert auroc(readout, held + shift) == auroc(readout, held)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("name", ["centre", "centre-unpaired"])
def test_centring_keeps_every_linear_probes_ranks_whatever_the_update_did(name, kind):
    before, after = uneven(80, 24, 0)
    readout = probe(kind, 100, 24)
    raw, mapped = (probes.score(readout, Pooled(x)) for x in (after, fit_map(name, before, after)(after)))
    assert np.ptp(mapped - raw) < 1e-9 * np.abs(raw).max()
    assert (np.argsort(mapped) == np.argsort(raw)).all()


def low_rank_change(d: int) -> tuple[np.ndarray, np.ndarray]:
    """A change of rank 3 that lets what lies on three other axes into the probe's, and a shift."""
    into = np.linalg.qr(np.column_stack([axis(d), np.random.default_rng(1).normal(size=(d, 5))]))[0]
    return np.eye(d) + 2.5 * into[:, 1:4] @ (into[:, [0, 4, 5]]).T, into[:, 1]


def test_a_change_of_rank_three_is_undone_by_low_rank_of_about_that_rank_and_not_by_wrong_pairs():
    d, n = 64, 240
    change, shift = low_rank_change(d)
    before, held = states(n, d, 4), states(500, d, 5)
    rng = np.random.default_rng(2)
    after, later = (x @ change + shift + 0.05 * rng.normal(size=x.shape) for x in (before, held))
    lda = probe("lda", 400, d)
    found = {name: fit_map(name, before, after) for name in ("centre", "low-rank", "mispaired")}
    left = {name: error(realigned, held, later) for name, realigned in found.items()}
    assert 3 <= found["low-rank"].left.shape[1] <= 5
    assert left["low-rank"] < 0.05
    assert left["mispaired"] > 0.6
    scored = {name: auroc(lda, realigned(later)) for name, realigned in found.items()}
    assert scored["low-rank"] > auroc(lda, held) - 0.01 > 0.95
    assert scored["centre"] < 0.85
    assert scored["mispaired"] < 0.85


def test_low_rank_is_centring_where_nothing_can_be_learned():
    before = states(60, 24, 4)
    noisy = before + 1 + np.random.default_rng(0).normal(size=before.shape)
    found = fit_map("low-rank", noisy, before)  # the gap is noise that the states know nothing of
    assert found.left.shape == found.right.shape == (24, 0)
    assert error(found, noisy, before) == pytest.approx(1)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_without_labels_brings_back_a_signal_that_is_lost(name):
    d, n = 24, 400
    rng = np.random.default_rng(0)

    def lost(x: np.ndarray) -> np.ndarray:
        """The class direction projected out, noise of the same spread in its place."""
        along = x @ axis(d)
        return x + np.outer(along.mean() + along.std() * rng.normal(size=len(x)) - along, axis(d))

    before, held = states(n, d, 4), states(1000, d, 5)
    realigned = fit_map(name, before, lost(before), groups=np.arange(n) // 2)
    lda = probe("lda", 400, d)
    assert auroc(lda, held) > 0.95
    assert 0.42 < auroc(lda, realigned(lost(held))) < 0.58


# ---------------------------------------------------------------- factors against dense formulas


def power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors @ np.diag(values**exponent) @ vectors.T


def dense_coral(before, after, groups, seed) -> np.ndarray:
    old, new = (LedoitWolf().fit(x).covariance_ for x in (before, after))
    return power(new, -0.5) @ power(old, 0.5)


def dense_turn(x: np.ndarray, z: np.ndarray, penalty: float) -> np.ndarray:
    return polar(x.T @ z + penalty * np.eye(x.shape[1]))[0]


def dense_regression(x: np.ndarray, gap: np.ndarray, ridge: float, rank: int) -> np.ndarray:
    """I + ridge regression on rows augmented by the penalty's, its fitted values projected on their leading directions."""
    d = x.shape[1]
    rows, targets = np.vstack([x, np.sqrt(ridge) * np.eye(d)]), np.vstack([gap, np.zeros((d, d))])
    full = np.linalg.lstsq(rows, targets, rcond=None)[0]
    leading = np.linalg.svd(rows @ full)[2][:rank].T
    return np.eye(d) + full @ leading @ leading.T


def best_of(tried: list, unit: float, before, after, groups, seed) -> np.ndarray:
    """The matrix whose settings leave the least on the half that was not fitted, fitted again on all texts."""
    first, second = halves(len(before), groups, seed)
    x, z = after - after[first].mean(axis=0), before - before[first].mean(axis=0)
    left = [np.square(x[second] @ make(x[first], z[first], unit) - z[second]).sum() for make in tried]
    return tried[int(np.argmin(left))](after - after.mean(axis=0), before - before.mean(axis=0), unit)


def dense_procrustes(before, after, groups, seed) -> np.ndarray:
    unit = np.sqrt(np.square(after - after.mean(axis=0)).sum() * np.square(before - before.mean(axis=0)).sum()) / len(after)
    tried = [lambda x, z, unit, share=share: dense_turn(x, z, share * unit) for share in realignment.TURNS]
    return best_of(tried, unit, before, after, groups, seed)


def dense_low_rank(before, after, groups, seed) -> np.ndarray:
    unit = np.square(after - after.mean(axis=0)).sum() / len(after)
    tried = [
        lambda x, z, unit, share=share, rank=rank: dense_regression(x, z - x, share * unit, rank)
        for share in realignment.RIDGES for rank in range(min(realignment.MOST_DIRECTIONS, len(after) // 2 - 1) + 1)
    ]  # fmt: skip
    return best_of(tried, unit, before, after, groups, seed)


DENSE = {
    "none": lambda before, after, groups, seed: np.eye(after.shape[1]),
    "centre": lambda before, after, groups, seed: np.eye(after.shape[1]),
    "centre-scale": lambda before, after, groups, seed: np.diag(before.std(axis=0) / after.std(axis=0)),
    "coral": dense_coral,
    "procrustes": dense_procrustes,
    "low-rank": dense_low_rank,
    "mispaired": dense_low_rank,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", KINDS)
def test_the_factored_map_is_that_of_the_dense_formula(name, shape):
    n, d = SHAPES[shape]
    (before, after), held = uneven(n, d, 0), uneven(20, d, 1)[1]
    groups, seed = np.arange(n) // 3, 5
    found = fit_map(name, before, after, seed, groups)
    if name in UNPAIRED:
        first, second = halves(n, groups, seed)
        before, after = before[first], after[second]
    if name == "mispaired":
        before = before[realignment._strangers(n, groups, seed)]
    source, target = (0, 0) if name == "none" else (after.mean(axis=0), before.mean(axis=0))
    matrix = DENSE[name.removesuffix("-unpaired")](before, after, groups, seed)
    expected = target + (held - source) @ matrix
    assert np.allclose(found(held), expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())
    assert name in ("none", "centre", "centre-unpaired") or np.abs(matrix - np.eye(d)).max() > 0.01
    assert found.left.shape[1] == found.right.shape[1] <= 2 * min(n, d)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_the_nearest_orthogonal_matrix_is_that_by_singular_values(condition):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(30, 30)))[0] for _ in range(2))
    matrix = (u * np.geomspace(1, 1 / condition, 30)) @ v.T
    found = realignment._orthogonal(matrix)
    assert np.abs(found - polar(matrix)[0]).max() < 1e-18 * condition**2 + 1e-12
    assert np.abs(found.T @ found - np.eye(30)).max() < 1e-10


@pytest.mark.parametrize("name", KINDS)
def test_no_d_by_d_matrix_is_formed_and_none_is_kept(name):
    n, d = 24, 2048
    before, after = uneven(n, 64, 0)
    before, after = (np.tile(x, d // 64) + 0.1 * np.random.default_rng(1).normal(size=(n, d)) for x in (before, after))
    tracemalloc.start()
    found = fit_map(name, before, after)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < d * d * 8 / 2
    assert found.left.shape[1] == found.right.shape[1] <= 2 * n


# ---------------------------------------------------------------- what every kind keeps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRED)
def test_where_nothing_was_updated_nothing_is_moved(name, shape):
    x, held = uneven(*SHAPES[shape], 0)[0], uneven(30, SHAPES[shape][1], 1)[0]
    assert np.allclose(fit_map(name, x, x)(held), held, atol=1e-8 * np.abs(held).max())


@pytest.mark.parametrize("name", UNPAIRED)
def test_where_nothing_was_updated_unpaired_kinds_move_by_the_error_of_sampling(name):
    n, d = 4000, 8
    x, held = states(n, d, 4), states(500, d, 5)
    moved = np.abs(fit_map(name, x, x)(held) - held).max()
    assert 1e-6 < moved < 10 * np.sqrt(4 / n)


@pytest.mark.parametrize("name", UNPAIRED)
def test_unpaired_kinds_read_one_half_of_each_side_and_no_pairs(name):
    before, after = uneven(60, 20, 0)
    groups = np.arange(60) // 2
    first, second = halves(60, groups, 3)
    found = fit_map(name, before, after, 3, groups)
    other_before, other_after = before.copy(), after.copy()
    other_before[second], other_after[first] = 1e6, -1e6
    unread = fit_map(name, other_before, other_after, 3, groups)
    shuffled = after.copy()
    shuffled[second] = after[np.random.default_rng(0).permutation(second)]
    permuted = fit_map(name, before, shuffled, 3, groups)
    assert (unread(after) == found(after)).all()
    assert np.allclose(permuted(after), found(after), rtol=1e-9)


@pytest.mark.parametrize("name", UNPAIRED)
def test_unpaired_kinds_take_different_texts_whole(name):
    before, after = uneven(60, 20, 0)
    found = fit_map(name, before[:25], after[25:])
    permuted = fit_map(name, before[:25], after[25:][::-1].copy())
    assert np.allclose(found.target, before[:25].mean(axis=0))
    assert np.allclose(found.source, after[25:].mean(axis=0))
    assert np.allclose(permuted(after), found(after), rtol=1e-9)


@pytest.mark.parametrize("name", ["procrustes", "low-rank"])
def test_kinds_by_pairs_do_read_the_pairs(name):
    before, after = uneven(60, 20, 0)
    assert not np.allclose(fit_map(name, before, after[::-1].copy())(after), fit_map(name, before, after)(after), rtol=0.01)


@pytest.mark.parametrize("name", KINDS)
def test_maps_are_the_same_for_the_same_seed_and_leave_what_they_are_given(name):
    before, after = uneven(40, 30, 0)
    kept = before.copy(), after.copy()
    one, two = (fit_map(name, torch.tensor(before), torch.tensor(after), seed=1) for _ in range(2))
    assert (one(after) == two(after)).all()
    assert (before == kept[0]).all()
    assert (after == kept[1]).all()
    assert one(after).dtype == np.float64


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("procrustes", "low-rank")])  # these draw a choice
def test_the_seed_matters_where_texts_are_drawn_and_only_there(name):
    before, after = uneven(40, 30, 0)
    same = [np.array_equal(fit_map(name, before, after, seed)(after), fit_map(name, before, after, 0)(after)) for seed in (1, 2)]
    assert same == [name in PAIRED] * 2


@pytest.mark.parametrize("sizes", [[1] * 41, [2] * 20, [7, 1, 5, 2, 9, 3, 3, 4]])
def test_halves_and_strangers_respect_groups(sizes):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n, drawn = sum(sizes), set()
    for seed in range(20):
        first, second = halves(n, groups, seed)
        assert sorted([*first, *second]) == list(range(n))
        assert not set(groups[first]) & set(groups[second])
        assert abs(len(first) - len(second)) <= max(sizes)
        partner = realignment._strangers(n, groups, seed)
        assert sorted(partner) == list(range(n))
        assert (groups[partner] != groups).all()
        drawn |= {frozenset(first), tuple(partner)}
    assert len(drawn) > 36


def test_wrong_pairs_do_not_keep_the_place_in_a_group():
    """Groups list their flagged text first: had a stranger the same place, wrong pairs would still agree on the label."""
    same = [np.mean((realignment._strangers(60, np.arange(60) // 2, seed) - np.arange(60)) % 2 == 0) for seed in range(50)]
    assert 0.42 < np.mean(same) < 0.58


def test_near_copies_in_a_group_do_not_pass_for_held_out_texts():
    rng = np.random.default_rng(0)
    x, noise = np.repeat(rng.normal(size=(40, 60)), 3, axis=0), np.repeat(rng.normal(size=(40, 60)), 3, axis=0)
    groups = np.repeat(np.arange(40), 3)
    assert fit_map("low-rank", x + noise, x, groups=groups).left.shape[1] == 0
    assert fit_map("low-rank", x + noise, x).left.shape[1] > 0  # the control: told nothing, it believes what it has memorized


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", KINDS)
def test_states_that_no_map_can_be_fitted_on_are_refused_in_one_line(name):
    before, after = uneven(20, 12, 0)
    broken, repeated = after.copy(), np.tile(after[:1], (20, 1))
    broken[[3, 5], 2] = np.nan, np.inf
    with refused(REFUSED, "9 texts after", "10"):
        fit_map(name, before, after[:9])
    with refused(REFUSED, "2 of 20", "after", "NaN"):
        fit_map(name, before, broken)
    with refused(REFUSED, "NaN", "before"):
        fit_map(name, broken, after)
    with refused(NOT_COMPARABLE, "width 12 before and 11"):
        fit_map(name, before, after[:, :11])
    with refused(REFUSED, "one", "different texts"):
        fit_map(name, before, repeated)
    with refused(REFUSED, "one", "before"):
        fit_map(name, repeated, after)


def test_other_misuse_is_refused_in_one_line():
    before, after = uneven(20, 12, 0)
    with refused(USAGE, "unknown realignment 'center'", "centre"):
        fit_map("center", before, after)
    for name in [*PAIRED, "mispaired"]:
        with refused(USAGE, name, "20 texts before and 15 after", "unpaired"):
            fit_map(name, before, after[:15])
    with refused(USAGE, "without groups"):
        fit_map("coral-unpaired", before, after[:15], groups=np.arange(20))
    for name in (*UNPAIRED, "procrustes", "low-rank", "mispaired"):
        with refused(REFUSED, "groups leave 0 of 20", "smaller groups"):
            fit_map(name, before, after, groups=np.zeros(20, dtype=int))
    with refused(NOT_COMPARABLE, "states are 11 wide, the map 12"):
        fit_map("centre", before, after)(after[:, :11])


@pytest.mark.parametrize("name", UNPAIRED)
def test_a_half_of_one_repeated_text_is_refused(name):
    before, after = uneven(20, 12, 0)
    after[halves(20, None, 0)[1]] = 1.0
    with refused(REFUSED, "all 10 states after the update are one"):
        fit_map(name, before, after)
