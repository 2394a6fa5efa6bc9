"""A planted subspace survives noise as theory says, chance is what draws give, and a source that is the same says so."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import linalg, stats
from support.angles import principal_angles
from support.tiers import mostly_slow

from helpers import results
from helpers.errors import NOT_COMPARABLE, USAGE, StudyError
from helpers.projection import alignment_matrix, quantized_subspaces, subspaces
from helpers.projection.alignment_matrix import Change, Pair
from helpers.projection.quantized_subspaces import chance, decompose, gram_cosine, kept, quantized_pair, scaled, source_rows
from helpers.updates import names, quantizers
from helpers.updates.names import Variant

SHAPES = [(120, 120), (60, 150), (150, 60)]
ROUNDED = ["nf4", "rtn-4", "int8"]


def gaussian(*shape, seed=0, size=1.0):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(shape, values, seed=0):
    """A matrix with these singular values and random directions."""
    left, right = (torch.linalg.qr(gaussian(side, len(values), seed=seed + i))[0] for i, side in enumerate(shape))
    return left @ torch.diag(torch.tensor(values)) @ right.T


def pair_of(base, aligned):
    """A pair whose weights stand in two dicts."""
    return Pair(base.__getitem__, aligned.__getitem__, tuple(base))


def pair_with(changes, seed=0, size=1.0, dtype=torch.float32):
    """Random base weights, and the same plus each module's V."""
    base = {name: gaussian(*v.shape, seed=seed + i, size=size) for i, (name, v) in enumerate(changes.items())}
    return pair_of({n: b.to(dtype) for n, b in base.items()}, {n: (base[n] + v).to(dtype) for n, v in changes.items()})


def plus(pair, added):
    """The same pair with something added to the aligned weights: noise that is known."""
    return Pair(pair.base, lambda module: pair.aligned(module) + added[module], pair.modules)


def value(table, metric, source="noisy", module="m", k=""):
    found = table[(table[["source", "module", "k", "metric"]] == [source, module, k, metric]).all(axis=1)]
    assert len(found) == 1, (metric, source, module, k)
    return float(found["value"].iloc[0])


def refused(act, code, *words):
    with pytest.raises(StudyError) as error:
        act()
    assert error.value.code == code
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


# --- what survives noise ---


@mostly_slow("the same simulation at other sizes", "8.0-6-shape1", "0.8-0-shape1")
@pytest.mark.parametrize("shape", [(400, 400), (200, 500), (500, 200)])
@pytest.mark.parametrize(("times_edge", "above"), [(8.0, 6), (1.5, 6), (0.8, 0), (0.1, 0)])
def test_planted_directions_survive_noise_as_theory_says(shape, times_edge, above):
    deviation, k = 0.01, 6
    edge = deviation * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    pair = pair_with({"m": low_rank(shape, [times_edge * edge] * k)})
    noise = gaussian(*shape, seed=9, size=deviation)
    table = source_rows({"bf16": pair, "noisy": plus(pair, {"m": noise})}, ks=(k,))
    overlap, excess = value(table, "overlap", k=str(k)), value(table, "overlap_excess", k=str(k))
    assert value(table, "noise_edge") == pytest.approx(edge, rel=0.01)
    assert value(table, "noise_top") == pytest.approx(float(torch.linalg.matrix_norm(noise, 2)), rel=1e-4)
    assert value(table, "above_edge") == above
    assert value(table, "above_edge_energy") == pytest.approx(float(above > 0), abs=1e-6)
    assert value(table, "noise_to_signal") == pytest.approx(float(noise.norm()) / (times_edge * edge * math.sqrt(k)), rel=1e-3)
    assert excess == pytest.approx(value(table, "excess_predicted", k=str(k)), abs=0.03)
    assert excess == pytest.approx((overlap - k / shape[0]) / (1 - k / shape[0]))
    null = table[table["metric"] == "overlap_null"].iloc[0]
    if times_edge == 8:
        assert overlap > 0.95
    if times_edge == 0.1:  # below the limit of detection: no better than chance
        assert overlap < null["high"] + 0.01
        assert null["low"] < k / shape[0] < null["high"]


def test_theory_says_three_quarters_at_the_edge_and_nothing_at_half_of_it():
    square = kept(torch.tensor([2.0, 1.0, 0.5, 1e9]) * 0.1 * math.sqrt(64), 0.1, (64, 64))
    assert square.tolist() == pytest.approx([0.75, 0, 0, 1], abs=1e-6)
    assert kept(torch.tensor([1.0]), 0.0, (3, 5)).tolist() == [1]  # without noise nothing is lost
    limit = 0.1 * (40 * 90) ** 0.25
    below, above = kept(torch.tensor([0.999, 1.05]) * limit, 0.1, (40, 90)).tolist()
    assert below == 0
    assert above > 0.02


@pytest.mark.parametrize("quantizer", ROUNDED)
@pytest.mark.parametrize("side", ["mixed", "both"])
def test_the_edge_is_where_the_noise_of_a_gaussian_weight_ends(quantizer, side):
    """Within 4 %: the errors are not normal, and their size depends on the absmax of each block or row."""
    pair = pair_with({"m": gaussian(300, 512, seed=5)}, dtype=torch.bfloat16)
    table = source_rows({"bf16": pair, "noisy": quantized_pair(pair, f"{quantizer}-{side}")}, ks=(8,))
    assert value(table, "noise_top") == pytest.approx(value(table, "noise_edge"), rel=0.04)


@pytest.mark.parametrize("quantizer", ROUNDED)
def test_both_sides_make_more_noise_where_errors_are_independent_and_less_where_they_are_shared(quantizer):
    found = {}
    for size in (1.0, 1e-3):  # V as large as the weights: other codes; far below a step: mostly the same codes
        pair = pair_with({"m": gaussian(200, 256, seed=5, size=size)}, dtype=torch.bfloat16)
        table = source_rows(
            {"bf16": pair} | {side: quantized_pair(pair, f"{quantizer}-{side}") for side in ("mixed", "both")}, ks=(8,)
        )
        noise = {side: value(table, "noise_to_signal", source=side) for side in ("mixed", "both")}
        found[size] = noise["mixed"] / noise["both"], value(table, "changed", source="both")
    # the norm of independent errors adds in squares; where V is added to the weight its error is sqrt(2) times the base's
    assert found[1.0][0] == pytest.approx(math.sqrt(2 / 3), rel=0.05)
    assert found[1e-3][0] > 1.5
    assert found[1e-3][1] < 0.3 < 0.8 < found[1.0][1]


def test_mixed_has_the_noise_of_one_error_and_both_of_two():
    base, aligned = {"m": gaussian(200, 256).bfloat16()}, {"m": gaussian(200, 256, seed=1).bfloat16()}
    pair = pair_of(base, aligned)
    table = source_rows({"bf16": pair} | {s: quantized_pair(pair, f"nf4-{s}") for s in ("mixed", "both")}, ks=(8,))
    noise = {s: value(table, "noise_to_signal", source=s) for s in ("mixed", "both")}
    assert noise["mixed"] / noise["both"] == pytest.approx(1 / math.sqrt(2), rel=0.03)
    ours = quantizers.QUANTIZERS["nf4"](aligned["m"], None).dequantize().float() - aligned["m"].float()
    size = value(table, "signal", source="bf16")
    assert noise["mixed"] * size == pytest.approx(float(ours.norm()), rel=1e-4)


# --- angles and cosines ---


@pytest.mark.parametrize("shape", SHAPES)
def test_angles_and_cosine_are_those_of_dense_algebra(shape):
    pair = pair_with({"m": gaussian(*shape, seed=3, size=0.1)})
    noise = {"m": gaussian(*shape, seed=4, size=0.08)}
    table = source_rows({"bf16": pair, "noisy": plus(pair, noise)}, ks=(4, 16))
    v = (pair.aligned("m") - pair.base("m")).double()
    w = v + noise["m"].double()
    left = [torch.linalg.svd(matrix, full_matrices=False)[0] for matrix in (v, w)]
    for k in (4, 16):
        cosines = np.cos(linalg.subspace_angles(left[0][:, :k].numpy(), left[1][:, :k].numpy()))
        assert value(table, "overlap", k=str(k)) == pytest.approx(float(np.mean(cosines**2)), abs=1e-4)
        ours = principal_angles(left[0][:, :k].float(), left[1][:, :k].float())
        assert value(table, "overlap", k=str(k)) == pytest.approx(float(ours.square().mean()), abs=1e-4)
    c = [m @ m.T / m.norm() for m in (v, w)]
    dense = float((c[0] * c[1]).sum() / (c[0].norm() * c[1].norm()))
    assert value(table, "cosine") == pytest.approx(dense, rel=1e-5)
    null = value(table, "cosine_null")
    assert null == pytest.approx(float(c[0].trace() * c[1].trace() / shape[0] / (c[0].norm() * c[1].norm())), rel=1e-4)
    assert value(table, "cosine_excess") == pytest.approx((dense - null) / (1 - null), abs=1e-4)
    assert value(table, "signal") == pytest.approx(float(w.norm()), rel=1e-5)
    assert value(table, "top_value") == pytest.approx(float(torch.linalg.matrix_norm(w, 2)), rel=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (60, 60)])
@pytest.mark.parametrize("small", [1024, 0])
def test_one_decomposition_gives_what_two_gave(shape, small, monkeypatch):
    monkeypatch.setattr(subspaces, "SMALL", small)  # 0: the vectors are randomized, as of a large V
    for v in (gaussian(*shape, seed=3, size=0.1), low_rank(shape, [3.0, 2.0, 1.0, 0.5, 0.1])):
        change = Change("m", torch.zeros(shape), v)
        found, true = decompose(change, (2, 5, 999)), subspaces.leading(change, 5)
        oracle = torch.linalg.svdvals(v.double())
        torch.testing.assert_close(found.values[:5], oracle[:5], rtol=1e-10, atol=0)
        torch.testing.assert_close(found.values, subspaces.singular_values(change), rtol=1e-10, atol=1e-6 * float(oracle[0]))
        torch.testing.assert_close(found.vectors.abs(), true.vectors.abs(), rtol=0, atol=1e-6)
    nothing = decompose(Change("m", torch.zeros(shape), torch.zeros(shape)), (2,))
    assert nothing.vectors.shape == (shape[0], 0)
    assert not nothing.values.any()


def test_the_cosine_forms_nothing_larger_than_the_smaller_side(monkeypatch):
    """A tall and a wide V of 3 on its smaller side: no matrix product gives more than 3 x 3."""
    sizes, product = [], torch.Tensor.__matmul__
    for shape in ((2000, 3), (3, 2000)):
        found = [decompose(Change("m", torch.zeros(shape), gaussian(*shape, seed=seed)), (2,)) for seed in (0, 1)]
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__matmul__", lambda a, b: sizes.append(product(a, b).shape) or product(a, b))
            cosine = gram_cosine(*found)
        v, w = (one.change.aligned.double() for one in found)
        dense = [v @ v.T, w @ w.T]
        assert cosine == pytest.approx(float((dense[0] * dense[1]).sum() / dense[0].norm() / dense[1].norm()), rel=1e-5)
    assert set(sizes) == {(3, 3)}


@mostly_slow("the same simulation at other sizes", "64-32")
@pytest.mark.parametrize(("d", "k"), [(40, 1), (40, 4), (64, 32), (192, 8)])
def test_chance_is_what_random_subspaces_give(d, k):
    ours, frames = chance(d, (k, k), (k, k), 7), (torch.linalg.qr(gaussian(d, k, seed=i))[0] for i in range(2000))
    drawn = [float(frame[:k].square().sum()) / k for frame in frames]  # one space may stand still
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert ours.n == 7
    assert ours.value == pytest.approx(k / d)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_chance_is_what_random_rotations_of_c_give():
    d, values = 30, (torch.linspace(1, 3, 30), torch.linspace(0, 2, 30).square())
    spectra = [one.double() for one in values]
    moments = [(float(one.sum()), float(one.square().sum())) for one in spectra]
    ours, generator, drawn = chance(d, *moments, 1), torch.Generator().manual_seed(0), []
    for _ in range(4000):
        rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        inner = spectra[0] @ rotation.square() @ spectra[1]
        drawn.append(float(inner / math.sqrt(moments[0][1] * moments[1][1])))
    assert ours.value == pytest.approx(np.mean(drawn), rel=1e-3)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=3e-3)


def test_one_direction_by_chance_is_exactly_a_beta_variable():
    ours = chance(25, (3.0, 9.0), (0.5, 0.25), 1)  # rank 1: trace^2 = squared norm
    assert (ours.low, ours.high) == pytest.approx(tuple(stats.beta.ppf([0.025, 0.975], 0.5, 12)))
    whole = chance(9, (9, 9), (2, 2), 1)  # everything: any rotation gives the same
    assert whole.low == whole.value == whole.high == pytest.approx(math.sqrt(2 / 9))


# --- identity, dose, zero, and what is left out ---


def test_an_identical_source_keeps_everything():
    pair = pair_with({"m": gaussian(48, 64, seed=3), "n": gaussian(64, 48, seed=4)})
    table = source_rows({"bf16": pair, "same": pair}, ks=(4, 8))
    for module in ("m", "n", "all"):
        assert [value(table, "overlap", "same", module, k) for k in ("4", "8")] == pytest.approx([1, 1], abs=1e-5)
        assert [value(table, "overlap_excess", "same", module, k) for k in ("4", "8")] == pytest.approx([1, 1], abs=1e-5)
        assert value(table, "excess_predicted", "same", module, "4") == 1
        assert value(table, "cosine_excess", "same", module) == pytest.approx(1, abs=1e-5)
        assert value(table, "noise_to_signal", "same", module) == 0
        assert value(table, "above_edge_energy", "same", module) == 1
    assert value(table, "cosine", "same") == pytest.approx(1, abs=1e-6)
    assert (value(table, "noise_edge", "same"), value(table, "noise_top", "same")) == (0, 0)
    assert set(table.loc[table["source"] == "bf16", "metric"]) == {"signal", "top_value"}


def test_a_larger_dose_lifts_directions_over_the_noise():
    pair = pair_with({"m": low_rank((160, 192), [0.02 * 0.8**i for i in range(16)])}, size=0.05, dtype=torch.bfloat16)
    found = []
    for dose in (1, 4, 16, 64, 256):
        stronger = scaled(pair, dose)
        table = source_rows({"bf16": stronger, "noisy": quantized_pair(stronger, "nf4-both")}, ks=(4,))
        found.append([value(table, m, k=k) for m, k in (("above_edge", ""), ("noise_to_signal", ""), ("overlap", "4"))])
    above, noise, overlap = zip(*found, strict=True)
    assert above[0] == 0
    assert above[-1] >= 10
    assert list(above) == sorted(above)
    assert list(noise) == sorted(noise, reverse=True)
    assert overlap[0] < 0.3 < 0.95 < overlap[-1]


def test_a_dose_of_1_gives_the_weights_back_and_any_dose_scales_v():
    pair = pair_with({"m": gaussian(20, 30, seed=2, size=0.01)}, dtype=torch.bfloat16)
    before = pair.aligned("m").clone()
    assert torch.equal(scaled(pair, 1).aligned("m"), before)
    assert scaled(pair, 3).aligned("m").dtype == torch.bfloat16
    plain = pair_with({"m": gaussian(20, 30, seed=2)})
    v = plain.change("m").dense()
    torch.testing.assert_close(scaled(plain, 2.5).change("m").dense(), 2.5 * v, atol=1e-5, rtol=1e-5)
    assert torch.equal(scaled(plain, 2.5).base("m"), plain.base("m"))
    assert torch.equal(pair.aligned("m"), before)  # what was given is as it was


@pytest.mark.parametrize("dose", [0, -1, math.nan, math.inf])
def test_a_dose_that_scales_nothing_is_refused(dose):
    refused(lambda: scaled(pair_with({"m": torch.ones(2, 3)}), dose), USAGE, f"dose {dose}", "above 0")


def test_where_alignment_changed_nothing_the_module_is_named():
    pair = pair_with({"m": gaussian(8, 9), "still": torch.zeros(8, 9)})
    refused(lambda: source_rows({"bf16": pair}, ks=(2,)), NOT_COMPARABLE, "'still'", "V = 0", "leave it out")


def test_a_source_in_which_nothing_is_left_has_a_size_of_0_and_no_directions():
    pair = pair_with({"m": gaussian(8, 9), "n": gaussian(8, 9, seed=1)})
    erased = Pair(pair.base, lambda name: pair.base(name) if name == "m" else pair.aligned(name), pair.modules)
    table = source_rows({"bf16": pair, "noisy": erased}, ks=(2,))
    assert [value(table, m) for m in ("signal", "top_value", "changed", "noise_to_signal")] == pytest.approx([0, 0, 0, 1])
    metrics = set(table.loc[(table["source"] == "noisy") & (table["module"] == "m"), "metric"])
    assert not metrics & {"cosine", "cosine_null", "overlap", "overlap_null", "excess_predicted"}
    of_all = table[(table["module"] == "all") & (table["source"] == "noisy")].set_index("metric")["n"]
    assert (of_all["noise_to_signal"], of_all["overlap"]) == (2, 1)  # the count says that one module is missing


def test_a_k_that_a_module_does_not_have_is_left_out():
    changes = {"small": gaussian(12, 40), "square": gaussian(40, 40, seed=1), "thin": low_rank((40, 40), [3.0, 2.0, 1.0])}
    pair = pair_of({n: torch.zeros_like(v) for n, v in changes.items()}, changes)
    noisy = plus(pair, {name: gaussian(*v.shape, seed=5, size=0.01) for name, v in changes.items()})
    table = source_rows({"bf16": pair, "noisy": noisy}, ks=(2, 8, 12, 32, 256))
    found = table[table["metric"] == "overlap"].groupby("module")["k"].agg(list)
    assert found["small"] == ["2", "8"]  # 12 of 12 directions are the whole space
    assert found["square"] == ["2", "8", "12", "32"]
    assert found["thin"] == ["2"]  # beyond its rank V has no directions
    assert table.loc[(table["module"] == "all") & (table["metric"] == "overlap"), "n"].tolist() == [3, 2, 1, 1]


# --- the table ---


@pytest.fixture(scope="module")
def study():
    """Three modules of three shapes, two sources; what was read, and the rows."""
    pair = pair_with({f"m{i}": gaussian(*shape, seed=i, size=0.02) for i, shape in enumerate(SHAPES)}, dtype=torch.bfloat16)
    read, said = [], []
    counted = Pair(pair.base, lambda name: read.append(name) or pair.aligned(name), pair.modules)
    sources = {"bf16": pair, "nf4-mixed": quantized_pair(counted, "nf4-mixed"), "rtn-8-both": quantized_pair(pair, "rtn-8-both")}
    return source_rows(sources, ks=(4, 8), progress=said.append), sources, read, said


def test_the_rows_keep_to_the_schema_of_their_table(study):
    table, sources, _, said = study
    valid = results.checked("subspaces", names.keyed(Variant("m"), table))
    assert len(valid) == len(table)
    assert said == list(sources["bf16"].modules)
    single = table[(table["module"] != "all") & ~table["metric"].str.endswith("_null")]
    assert (single["low"] == single["high"]).all()
    nulls = table[table["metric"].str.endswith("_null")]
    assert (nulls["low"] < nulls["high"]).all()
    assert (table.loc[table["module"] != "all", "n"] >= 60 * 150).all()


def test_every_weight_is_read_once_and_the_same_comes_out_again(study):
    table, sources, read, _ = study
    assert read == list(sources["bf16"].modules)
    pd.testing.assert_frame_equal(source_rows(sources, ks=(4, 8)), table)
    one = source_rows(sources, modules=("m1",), ks=(4, 8))
    assert set(one["module"]) == {"m1", "all"}
    merged = one[one["module"] == "m1"].merge(table, on=["source", "module", "k", "metric"])
    assert (merged["value_x"] == merged["value_y"]).all()


def test_the_median_over_modules_is_that_of_its_rows(study):
    table, *_ = study
    of_all = table[table["module"] == "all"]
    assert set(of_all["metric"]) == set(quantized_subspaces.SUMMED_UP)
    for row in of_all.to_dict("records"):
        same = table[(table[["source", "k", "metric"]] == [row["source"], row["k"], row["metric"]]).all(axis=1)]
        values = same.loc[same["module"] != "all", "value"]
        assert row["value"] == np.median(values)
        assert values.min() <= row["low"] <= row["value"] <= row["high"] <= values.max()
        assert row["n"] == 3


def test_the_interval_of_a_median_covers_it():
    """80 studies of 35 modules, log-normal noise with median 1: nominal 95 %."""
    drawn, studies = np.random.default_rng(0).lognormal(size=(80, 35)), np.arange(80).astype(str)
    table = pd.DataFrame({"source": np.repeat(studies, 35), "module": np.tile(np.arange(35), 80), "value": drawn.ravel()})
    found = quantized_subspaces.medians(table.assign(k="", metric="noise_to_signal"))
    held = ((found["low"] <= 1) & (found["high"] >= 1)).sum()
    assert len(found) == 80
    assert 0.90 <= held / 80 <= 0.99


@pytest.mark.parametrize("source", ["nf4", "nf4-one", "", "mixed", "-both"])
def test_an_unknown_source_is_refused(source):
    refused(lambda: quantized_pair(pair_with({"m": torch.ones(2, 3)}), source), USAGE, "unknown")


def test_a_quantized_pair_is_dequantized_on_the_right_sides():
    pair = pair_with({"m": gaussian(16, 64)}, dtype=torch.bfloat16)
    mixed, both = (quantized_pair(pair, f"rtn-4-{side}") for side in ("mixed", "both"))
    low = {side: alignment_matrix.quantized(getattr(pair, side), "rtn-4")("m") for side in ("base", "aligned")}
    assert torch.equal(mixed.base("m"), pair.base("m"))
    assert torch.equal(both.base("m"), low["base"])
    assert all(torch.equal(one.aligned("m"), low["aligned"]) for one in (mixed, both))


def test_sources_that_cannot_be_compared_are_refused():
    pair = pair_with({"m": gaussian(8, 9)})
    refused(lambda: source_rows({"nf4-both": pair}), NOT_COMPARABLE, "'bf16'", "nf4-both")
    other = pair_with({"m": gaussian(9, 8)})
    refused(lambda: source_rows({"bf16": pair, "other": other}, ks=(2,)), NOT_COMPARABLE, "'m'", "(8, 9)", "(9, 8)")
