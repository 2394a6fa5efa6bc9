"""Probes: a planted direction, a planted interaction and a planted token are found by the kinds that can, and only by them."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.monitors import probes, readouts
from helpers.monitors.probes import PROBES, Readout
from helpers.monitors.readouts import Moved, Pooled, Ragged
from helpers.stats import intervals
from helpers.updates.names import SIMULATED

D = 48
POOLED = [kind for kind, probe in PROBES.items() if probe.reads == "pooled"]
LINEAR = ["logistic", "lda", "mean-difference"]
TRUTH = np.random.default_rng(99).normal(size=D)
TRUTH /= np.linalg.norm(TRUTH)


def labels(n: int) -> np.ndarray:
    return np.arange(n) % 2


def planted(n: int, seed: int, gap: float = 4.0) -> Pooled:
    """White noise of unit variance, the classes `gap` apart along TRUTH; float32, as activations are."""
    rng = np.random.default_rng(seed)
    return Pooled((rng.normal(size=(n, D)) + gap * np.outer(labels(n) - 0.5, TRUTH)).astype(np.float32))


def exclusive_or(n: int, seed: int) -> tuple[Pooled, np.ndarray]:
    """Label 1 where the first two features differ in sign: no hyperplane does better than chance."""
    x = np.random.default_rng(seed).normal(size=(n, 8))
    return Pooled(x), (x[:, 0] * x[:, 1] < 0).astype(int)


def token_planted(n: int, seed: int) -> Ragged:
    """Texts of 20 to 39 tokens of noise: one token, marked along one axis, carries the label along another."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum([0, *rng.integers(20, 40, size=n)])
    tokens = rng.normal(size=(ends[-1], D))
    marked = rng.integers(ends[:-1], ends[1:])
    tokens[marked, 0] += 8
    tokens[marked, 1] += 3 * (2 * labels(n) - 1)
    return Ragged(tokens.astype(np.float32), ends)


def means(features: Ragged) -> Pooled:
    return Pooled(np.add.reduceat(features.tokens, features.offsets[:-1]) / np.diff(features.offsets)[:, None])


def features(kind: str, n: int, seed: int):
    if kind.startswith(SIMULATED):
        rows = planted(n, seed).rows
        return Moved(rows, (rows + 0.1 * np.random.default_rng(seed + 50).normal(size=rows.shape).astype(np.float32),))
    return planted(n, seed) if PROBES[kind].reads == "pooled" else token_planted(n, seed)


def fitted(kind: str, seed: int = 0) -> Readout:
    return probes.fit_probe(kind, features(kind, 80, 1), labels(80), features(kind, 60, 2), labels(60), seed)


def auroc(readout: Readout, tested, y: np.ndarray) -> float:
    return roc_auc_score(y, probes.score(readout, tested))


def refused(code, *words):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- what is planted is found


@pytest.mark.parametrize("kind", LINEAR)
def test_a_planted_direction_is_found(kind):
    readout = probes.fit_probe(kind, planted(2000, 1), labels(2000), planted(500, 2), labels(500))
    assert probes.angle(probes.direction(readout), TRUTH) < 12
    assert auroc(readout, planted(1000, 3), labels(1000)) > 0.99


def test_with_shuffled_labels_it_is_not_found():
    readout = probes.fit_probe("shuffled-labels", planted(2000, 1), labels(2000), planted(500, 2), labels(500))
    assert 45 < probes.angle(probes.direction(readout), TRUTH) < 135


def test_shuffled_labels_tell_nothing_on_average_although_one_draw_may():
    train, validation, tested = planted(60, 1), planted(60, 2), planted(400, 3)
    found = [
        auroc(probes.fit_probe("shuffled-labels", train, labels(60), validation, labels(60), seed), tested, labels(400))
        for seed in range(60)
    ]
    interval = intervals.mean_interval(found, level=0.99)
    assert interval.low < 0.5 < interval.high
    assert interval.high - interval.low < 0.2
    assert max(found) > 0.6  # why the mean over seeds is the control, and not one of them


@pytest.mark.parametrize(("kind", "low", "high"), [("mlp", 0.9, 1.0), ("logistic", 0.4, 0.6), ("lda", 0.4, 0.6)])
def test_an_exclusive_or_is_found_by_the_network_alone(kind, low, high):
    readout = probes.fit_probe(kind, *exclusive_or(600, 1), *exclusive_or(200, 2))
    assert low < auroc(readout, *exclusive_or(1000, 3)) <= high


def test_one_token_among_many_is_found_by_attention_and_lost_in_the_mean():
    train, validation, tested = (token_planted(n, seed) for seed, n in enumerate((120, 80, 300)))
    attention = probes.fit_probe("attention", train, labels(120), validation, labels(80))
    mean = probes.fit_probe("logistic", means(train), labels(120), means(validation), labels(80))
    assert auroc(attention, tested, labels(300)) > 0.97
    assert auroc(mean, means(tested), labels(300)) < 0.8


@pytest.mark.parametrize("kind", PROBES)
def test_every_kind_but_the_control_tells_its_classes_apart(kind):
    found = auroc(fitted(kind), features(kind, 200, 3), labels(200))
    assert found > 0.85 or kind == "shuffled-labels"


# ---------------------------------------------------------------- what an update does to frozen probes


@pytest.mark.parametrize("kind", LINEAR)
def test_a_turn_of_the_space_breaks_a_frozen_probe_and_leaves_a_refit_whole(kind):
    """A quarter turn in the plane of the planted direction and one other: everything else stays."""
    other = np.random.default_rng(5).normal(size=D)
    other -= (other @ TRUTH) * TRUTH
    other /= np.linalg.norm(other)
    plane = np.array([TRUTH, other])
    turn = np.eye(D) - plane.T @ plane + plane.T @ np.array([[0, 1], [-1, 0]]) @ plane
    assert np.allclose(turn @ turn.T, np.eye(D))
    train, tested = Pooled(planted(200, 1).rows @ turn), Pooled(planted(400, 3).rows @ turn)
    readout = fitted(kind)
    assert auroc(readout, planted(400, 3), labels(400)) > 0.93
    assert 0.3 < auroc(readout, tested, labels(400)) < 0.7
    assert auroc(probes.refit(readout, train, labels(200)), tested, labels(400)) > 0.93


@pytest.mark.parametrize("kind", LINEAR)
def test_a_shift_keeps_the_auroc_of_a_linear_probe_exactly_and_breaks_its_threshold(kind):
    readout, tested = fitted(kind), planted(400, 3)
    scores = probes.score(readout, tested)
    threshold = np.quantile(scores[labels(400) == 0], 0.95)
    moved = probes.score(readout, Pooled(tested.rows.astype(np.float64) + 3 * TRUTH))
    assert roc_auc_score(labels(400), moved) == roc_auc_score(labels(400), scores)
    assert (scores[labels(400) == 0] > threshold).mean() <= 0.05
    assert (moved[labels(400) == 0] > threshold).mean() > 0.5


@pytest.mark.parametrize("kind", ["logistic", "lda", "mlp", "shuffled-labels"])
def test_units_do_not_matter_where_features_are_standardized(kind):
    """A power of two in each column: nothing is rounded, so the fit sees the very same standardized features."""
    units, offset = 2.0 ** np.random.default_rng(6).integers(-6, 7, size=D), 4.0
    train, validation, tested = (planted(n, seed).rows.astype(np.float64) for seed, n in ((1, 80), (2, 60), (3, 50)))
    plain = probes.fit_probe(kind, Pooled(train), labels(80), Pooled(validation), labels(60))
    other = probes.fit_probe(kind, Pooled(train * units + offset), labels(80), Pooled(validation * units + offset), labels(60))
    ours, theirs = probes.score(plain, Pooled(tested)), probes.score(other, Pooled(tested * units + offset))
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max())
    assert plain.strength == other.strength


def test_units_matter_to_the_difference_of_means():
    units = 2.0 ** np.random.default_rng(6).integers(-6, 7, size=D)
    plain, other = (
        probes.refit(Readout("mean-difference", {}, 0.0), Pooled(planted(80, 1).rows * u), labels(80)) for u in (1, units)
    )
    assert np.allclose(other.tensors["w"], plain.tensors["w"] * units)
    assert probes.angle(other.tensors["w"] / units, plain.tensors["w"] / units) > 1


# ---------------------------------------------------------------- probes that have seen simulated updates


def two_signs(n: int, seed: int) -> np.ndarray:
    """Noise in which two axes tell the label, the second one better."""
    x = np.random.default_rng(seed).normal(size=(n, D))
    x[:, 0] += 2 * (2 * labels(n) - 1)
    x[:, 1] += 3 * (2 * labels(n) - 1)
    return x


def shifted(x: np.ndarray, by: float) -> np.ndarray:
    """An update: the second axis of every text moves by as much."""
    return x + by * np.eye(D)[1]


def after_the_update(kind: str, by: float) -> tuple[float, float]:
    """What a probe catches and flags falsely once the second axis has moved; its threshold flags 5 % before."""
    train, held, test = two_signs(80, 1), two_signs(400, 2), two_signs(400, 3)
    under = tuple(shifted(train, move) for move in (-5.0, 5.0)) if kind.startswith(SIMULATED) else ()
    known = Moved(train, under) if under else Pooled(train)
    found = probes.fit_probe(kind, known, labels(80), Pooled(held), labels(400), seed=1)
    cut = np.quantile(probes.score(found, Pooled(held))[labels(400) == 0], 0.95)
    alarms = probes.score(found, Pooled(shifted(test, by))) > cut
    return float(alarms[labels(400) == 1].mean()), float(alarms[labels(400) == 0].mean())


@pytest.mark.parametrize("by", [-10.0, 10.0])  # twice as far as any simulated update went
def test_what_was_fitted_with_simulated_updates_survives_a_real_one_and_plain_and_noisy_probes_do_not(by):
    for kind in ("simulated-updates", "simulated-removed"):
        caught, false = after_the_update(kind, by)
        assert caught > 0.65, kind
        assert false < 0.4, kind
    for kind in ("logistic", "simulated-noise"):
        caught, false = after_the_update(kind, by)
        assert false > 0.9 if by > 0 else caught < 0.25, kind


def test_without_an_update_all_of_them_still_work():
    found = {kind: after_the_update(kind, 0.0) for kind in ("logistic", *(k for k in PROBES if k.startswith(SIMULATED)))}
    assert all(caught > 0.85 and false < 0.12 for caught, false in found.values())


def test_moves_of_no_length_leave_a_plain_probe():
    """Copies weigh as much as the penalty grows, noise of no length is none; what is taken out is then arbitrary."""
    x = two_signs(80, 1)
    plain = probes.refit(Readout("logistic", {}, 0.1), Pooled(x), labels(80))
    for kind in ("simulated-updates", "simulated-noise"):
        found = probes.refit(Readout(kind, {}, 0.1), Moved(x, (x, x)), labels(80))
        np.testing.assert_allclose(found.tensors["w"], plain.tensors["w"], rtol=1e-6)


def test_removed_directions_are_read_no_more_and_the_others_are():
    x = two_signs(80, 1)
    found = probes.refit(Readout("simulated-removed", {}, 0.1), Moved(x, (shifted(x, 3.0), shifted(x, -2.0))), labels(80))
    w = found.tensors["w"]
    assert abs(w[1]) < 1e-9 * np.abs(w).max()
    assert w[0] > 0


def test_noise_is_as_long_as_the_moves_and_points_anywhere():
    x = two_signs(40, 1)
    seen = []

    def record(features, moves, y, strengths):
        seen.append(moves)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readouts, "_on_copies", record)
        readouts.simulated_noise(Moved(x, (shifted(x, 3.0), x + 0.5)), labels(40), (0.1,), 1)
    np.testing.assert_allclose(np.linalg.norm(seen[0], axis=-1), [[3.0] * 40, [0.5 * np.sqrt(D)] * 40])
    directions = seen[0] / np.linalg.norm(seen[0], axis=-1, keepdims=True)
    assert np.linalg.norm(directions.mean(axis=(0, 1))) < 0.25


@pytest.mark.parametrize("kind", [kind for kind in PROBES if kind.startswith(SIMULATED)])
def test_without_states_under_simulated_updates_such_a_probe_is_refused(kind):
    with refused(USAGE, "foresees updates", "name some in simulated"):
        probes.fit_probe(kind, planted(80, 1), labels(80), planted(80, 2), labels(80))


# ---------------------------------------------------------------- fit and refit


@pytest.mark.parametrize("kind", PROBES)
def test_one_seed_gives_the_same_tensors_bit_for_bit_and_a_refit_on_the_same_rows_too(kind):
    first, second = fitted(kind, seed=3), fitted(kind, seed=3)
    again = probes.refit(first, features(kind, 80, 1), labels(80), seed=3)
    assert set(first.tensors) == set(PROBES[kind].axes)
    for name, tensor in first.tensors.items():
        assert tensor.dtype == np.float64
        assert tensor.ndim == len(PROBES[kind].axes[name])
        assert tensor.tobytes() == second.tensors[name].tobytes() == again.tensors[name].tobytes()
    assert first.width == D


@pytest.mark.parametrize("kind", ["mlp", "shuffled-labels"])
def test_another_seed_gives_another_probe(kind):
    assert any((fitted(kind, 1).tensors[name] != fitted(kind, 2).tensors[name]).any() for name in PROBES[kind].axes)


def test_attention_hardly_depends_on_its_seed():
    first, second = (probes.score(fitted("attention", seed), token_planted(100, 3)) for seed in (1, 2))
    assert np.corrcoef(first, second)[0, 1] > 0.99


def test_the_strength_is_the_best_on_validation_and_the_strongest_among_equals():
    train, validation, strengths = planted(60, 1, gap=1.5), planted(60, 2, gap=1.5), PROBES["logistic"].strengths
    candidates = [probes.refit(Readout("logistic", {}, strength), train, labels(60)) for strength in strengths]
    found = [auroc(candidate, validation, labels(60)) for candidate in candidates]
    assert len(set(found)) > 1
    chosen = probes.fit_probe("logistic", train, labels(60), validation, labels(60))
    assert chosen.strength == strengths[int(np.argmax(found))]
    clear = probes.fit_probe("logistic", planted(60, 1, gap=40), labels(60), planted(60, 2, gap=40), labels(60))
    assert clear.strength == max(strengths)  # every strength is perfect there


def test_the_control_chooses_its_strength_without_the_truth():
    """Labels of both splits are shuffled: with all labels exchanged the probe is exactly the opposite."""
    data = planted(80, 1), labels(80), planted(60, 2), labels(60)
    one = probes.fit_probe("shuffled-labels", *data, seed=1)
    other = probes.fit_probe("shuffled-labels", data[0], 1 - data[1], data[2], 1 - data[3], seed=1)
    assert one.strength == other.strength
    assert np.allclose(one.tensors["w"], -other.tensors["w"], rtol=1e-6)


# ---------------------------------------------------------------- directions


@pytest.mark.parametrize("kind", PROBES)
def test_linear_kinds_have_a_unit_direction_and_the_others_none(kind):
    found = probes.direction(fitted(kind))
    assert (found is None) == (kind in ("mlp", "attention"))
    assert found is None or np.linalg.norm(found) == pytest.approx(1)


def test_a_readout_without_weights_has_no_direction():
    assert probes.direction(Readout("logistic", {"w": np.zeros(3), "b": np.array(0.0)}, 1.0)) is None


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 1.0, 45.0, 90.0, 179.999, 180.0])
def test_angles_are_exact_and_do_not_depend_on_lengths(degrees):
    radians = np.radians(degrees)
    a, b = np.array([3.0, 0.0, 0.0]), 0.2 * np.array([np.cos(radians), np.sin(radians), 0.0])
    assert probes.angle(a, b) == pytest.approx(degrees, rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------- what is refused


def spoilt(kind: str, value: float):
    found = features(kind, 80, 1)
    rows = (found.rows if PROBES[kind].reads == "pooled" else found.tokens).copy()
    rows[5, 7] = value
    return Pooled(rows) if PROBES[kind].reads == "pooled" else Ragged(rows, found.offsets)


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_is_refused_with_the_place_and_the_share_of_rows(kind, value):
    bad, good, place = spoilt(kind, value), features(kind, 80, 1), "toxicity/mean/15"
    with refused(REFUSED, place, "train", "1 of"):
        probes.fit_probe(kind, bad, labels(80), good, labels(80), name=place)
    with refused(REFUSED, place, "validation", "1 of"):
        probes.fit_probe(kind, good, labels(80), bad, labels(80), name=place)
    with refused(REFUSED, place, "1 of"):
        probes.score(fitted(kind), bad, place)
    with refused(REFUSED, place, "1 of"):
        probes.refit(fitted(kind), bad, labels(80), name=place)


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_refused_with_the_place_and_the_split(kind, label):
    data, same = features(kind, 80, 1), np.full(80, label)
    with refused(REFUSED, "toxicity", "train", f"only label {label}"):
        probes.fit_probe(kind, data, same, data, labels(80), name="toxicity")
    with refused(REFUSED, "toxicity", "validation", f"only label {label}"):
        probes.fit_probe(kind, data, labels(80), data, same, name="toxicity")
    with refused(REFUSED, f"only label {label}"):
        probes.refit(fitted(kind), data, same)


@pytest.mark.parametrize("kind", [kind for kind in POOLED if not kind.startswith(SIMULATED)])
def test_constant_features_are_refused_and_one_constant_column_is_not(kind):
    x = planted(80, 1).rows.copy()
    x[:, 4] = 0.1
    readout = probes.fit_probe(kind, Pooled(x), labels(80), Pooled(x), labels(80))
    assert all(np.isfinite(tensor).all() for tensor in readout.tensors.values())
    with refused(REFUSED, "privacy", "train", "constant"):
        probes.fit_probe(kind, Pooled(np.full_like(x, 0.1)), labels(80), Pooled(x), labels(80), name="privacy")
    with refused(REFUSED, "constant"):
        probes.refit(readout, Pooled(np.full_like(x, 0.1)), labels(80))


@pytest.mark.parametrize("wrong", [labels(79), labels(80)[:, None], np.where(labels(80), 2, 0), labels(80) - 0.5], ids=str)
def test_labels_that_are_not_one_zero_or_one_a_text_are_refused(wrong):
    with refused(USAGE, "toxicity, train", "label"):
        probes.fit_probe("logistic", planted(80, 1), wrong, planted(80, 2), labels(80), name="toxicity")


def test_no_rows_at_all_are_refused():
    with refused(REFUSED, "label none"):
        probes.fit_probe("logistic", Pooled(np.zeros((0, D))), labels(0), planted(80, 2), labels(80))


@pytest.mark.parametrize("kind", PROBES)
def test_features_of_another_width_cannot_be_scored(kind):
    narrow = features(kind, 10, 1)
    narrow = Pooled(narrow.rows[:, :-1]) if PROBES[kind].reads == "pooled" else Ragged(narrow.tokens[:, :-1], narrow.offsets)
    with refused(NOT_COMPARABLE, "width 47", "48"):
        probes.score(fitted(kind), narrow)


@pytest.mark.parametrize("kind", PROBES)
def test_the_wrong_sort_of_features_is_refused(kind):
    wrong = features("attention" if kind in POOLED else "logistic", 80, 1)
    with refused(USAGE, kind, "reads"):
        probes.fit_probe(kind, wrong, labels(80), wrong, labels(80))
    with refused(USAGE, kind, "reads"):
        probes.score(fitted(kind), wrong)


def test_an_unknown_kind_is_refused_with_the_names_there_are():
    with refused(USAGE, "'ridge'", "logistic", "attention"):
        probes.fit_probe("ridge", planted(8, 1), labels(8), planted(8, 2), labels(8))
