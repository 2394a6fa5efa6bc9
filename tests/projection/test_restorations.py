"""Restorations: factors give what dense formulas give, nulls are those of Haar matrices, and what does not fit is refused."""

import math

import pandas as pd
import pytest
import torch
from scipy import stats
from support.tiers import mostly_slow, slow
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.errors import NOT_COMPARABLE, REFUSED, USAGE, StudyError
from helpers.models import loading
from helpers.projection import alignment_matrix, safelora
from helpers.projection.alignment_matrix import Pair
from helpers.projection.restorations import RESTORATIONS, NamedRestoration, _share, parse, parse_source, prepare
from helpers.seeding import derive_seed
from helpers.updates import lora, quantizers
from helpers.updates.lora import LowRank

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

# square, grouped-query (fewer outputs), tall, wide
SHAPES = {
    "b.0.q_proj": (24, 24),
    "b.0.v_proj": (8, 24),
    "b.0.up_proj": (40, 24),
    "b.0.down_proj": (24, 40),
    "b.1.q_proj": (24, 24),
}
SQUARE = "b.0.q_proj"
K, RANK, SEED = 4, 3, 11
WHOLE = [name for name, rule in RESTORATIONS.items() if rule.whole]  # they change all modules at once: tests of their own
MADE = [name for name in RESTORATIONS if name != "salora" and name not in WHOLE]  # not by training
LOTS = ["random-modules", "random-modules-2", "random-modules-3"]
DISTANCES = ["splora", "splora-nearest"]
ORDERED = [name for name in MADE if name not in {"none", "safelora-threshold", "safelora-last", *DISTANCES, *LOTS}]  # by cosine


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair_of(shapes=SHAPES, size: float = 0.1) -> Pair:
    """A base of noise and an aligned model that differs from it by a matrix with a falling spectrum in every module."""
    base, aligned = {}, {}
    for seed, (name, (d_out, d_in)) in enumerate(shapes.items()):
        base[name] = gaussian(d_out, d_in, seed=seed)
        u, _, v = torch.linalg.svd(gaussian(d_out, d_in, seed=100 + seed), full_matrices=False)
        aligned[name] = base[name] + size * (u * 0.8 ** torch.arange(min(d_out, d_in))) @ v
    return Pair(base.__getitem__, aligned.__getitem__, tuple(shapes))


def adapter_of(shapes=SHAPES, rank: int = RANK) -> dict[str, LowRank]:
    return {
        name: LowRank(gaussian(d_out, rank, seed=200 + i), gaussian(rank, d_in, seed=300 + i))
        for i, (name, (d_out, d_in)) in enumerate(shapes.items())
    }


@pytest.fixture
def pair() -> Pair:
    return pair_of()


@pytest.fixture
def adapter() -> dict[str, LowRank]:
    return adapter_of()


def named(name: str) -> str:
    """The restoration with the tests' k where it takes one."""
    return f"{name}-k{K}" if RESTORATIONS[name].k else name


def dense(update) -> torch.Tensor:
    return update.dense() if isinstance(update, LowRank) else update.float()


def restored(update, pair: Pair, name: str, strength: float = 1.0, seed: int = SEED) -> dict:
    return prepare(update, pair, named(name), seed).at(strength).update


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-6)


def refused(code, *words):
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(StudyError, match=f"^{pattern}[^\n]*$", check=lambda error: error.code == code)


# ---------------------------------------------------------------- dense formulas


def safelora_matrix(v: torch.Tensor) -> torch.Tensor:
    return v @ v.T / v.norm()


def projector(v: torch.Tensor, k: int = K) -> torch.Tensor:
    u = torch.linalg.svd(v)[0][:, :k]
    return u @ u.T


def generator_of(name: str, module: str, seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, f"{name}/{module}"))


def completed(*frames: torch.Tensor) -> torch.Tensor:
    """An orthogonal matrix that begins with these orthonormal columns."""
    have = torch.cat(frames, dim=1)
    return torch.cat([have, torch.linalg.svd(have)[0][:, have.shape[1] :]], dim=1)


def conjugated_matrix(v: torch.Tensor, left: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """U' D U'^T as one matrix, with the orthogonal U' that the draws of `ediem.conjugated` stand for."""
    d_out, r = left.shape
    values = torch.linalg.svdvals(v)
    d = torch.diag(safelora.eigenvalues(values, d_out).float())
    if 2 * r > d_out:
        u = completed(safelora.haar_frame(d_out, len(values), generator))
    else:
        q, g = torch.linalg.qr(left)[0], safelora.haar_frame(d_out, r, generator)
        t = torch.linalg.qr(d @ g - g @ (g.T @ d @ g))[0]
        u = completed(q, safelora._off(q, generator)) @ completed(g, t).T
    torch.testing.assert_close(u @ u.T, torch.eye(d_out), atol=1e-5, rtol=0)
    return u @ d @ u.T


def random_projector(v, left, generator) -> torch.Tensor:
    frame = safelora.haar_frame(len(v), K, generator)
    return frame @ frame.T


DENSE = {  # what multiplies BA from the left
    "none": lambda v, left, ba, g: torch.eye(len(v)),
    "safelora": lambda v, left, ba, g: safelora_matrix(v),
    "safelora-threshold": lambda v, left, ba, g: safelora_matrix(v),
    "safelora-last": lambda v, left, ba, g: safelora_matrix(v),
    "splora": lambda v, left, ba, g: torch.zeros(len(v), len(v)),
    "splora-nearest": lambda v, left, ba, g: torch.zeros(len(v), len(v)),
    "orthogonal-keep": lambda v, left, ba, g: projector(v),
    "orthogonal-remove": lambda v, left, ba, g: torch.eye(len(v)) - projector(v),
    "zero": lambda v, left, ba, g: torch.zeros(len(v), len(v)),
    "norm-matched": lambda v, left, ba, g: torch.eye(len(v)) * (safelora_matrix(v) @ ba).norm() / ba.norm(),
    "random-spectrum": lambda v, left, ba, g: conjugated_matrix(v, left, g),
    "random-subspace": lambda v, left, ba, g: random_projector(v, left, g),
    **dict.fromkeys(LOTS, lambda v, left, ba, g: torch.zeros(len(v), len(v))),
}


def test_every_restoration_that_is_not_trained_has_a_dense_formula():
    assert list(DENSE) == MADE


@pytest.mark.parametrize("form", ["factors", "dense"])
@pytest.mark.parametrize("name", MADE)
def test_factors_give_what_the_dense_formula_gives(pair, adapter, name, form):
    update = adapter if form == "factors" else {module: low.dense() for module, low in adapter.items()}
    found = restored(update, pair, name)
    assert list(found) == list(update)
    for module, given in update.items():
        v, ba, left = pair.change(module).dense(), dense(given), given.left if form == "factors" else given
        close(dense(found[module]), DENSE[name](v, left, ba, generator_of(name, module)) @ ba)


@pytest.mark.parametrize("name", MADE)
def test_scores_are_those_of_the_dense_matrices(pair, adapter, name):
    table = prepare(adapter, pair, named(name), SEED).at(1.0).table
    assert list(table) == ["module", "score", "null", "z", "z_robust", "p", "changed", "before", "after"]
    for row in table.itertuples():
        v, ba = pair.change(row.module).dense().double(), adapter[row.module].dense().double()
        moved = safelora_matrix(v) @ ba
        assert row.before == pytest.approx(float(ba.norm()), rel=1e-5)
        if name in LOTS:
            assert 0 <= row.score < 1
        elif name in DISTANCES:
            assert row.score == pytest.approx(float((moved - ba).norm()), rel=1e-6)
            assert math.isfinite(row.z + row.z_robust)
            assert 1 / (safelora.DRAWS + 1) <= row.p <= 1
        else:
            assert row.score == pytest.approx(float((moved * ba).sum() / moved.norm() / ba.norm()), rel=1e-5)
            assert row.null == pytest.approx(float(v.norm() ** 2 / math.sqrt(len(v)) / (v @ v.T).norm()), rel=1e-5)
            assert math.isnan(row.p)


@pytest.mark.parametrize("name", MADE)
def test_dense_updates_score_as_low_rank_ones_of_the_same_matrix(pair, adapter, name):
    table = prepare(adapter, pair, named(name), SEED).at(0.5).table
    other = prepare({module: low.dense() for module, low in adapter.items()}, pair, named(name), SEED).at(0.5).table
    assert (table["changed"] == other["changed"]).all()
    columns = ["score", "null", "z", "z_robust", "p", "before"] + ([] if name == "random-spectrum" else ["after"])
    for column in columns:  # random-spectrum draws another matrix when it starts from other columns
        assert table[column].tolist() == pytest.approx(other[column].tolist(), rel=1e-3, nan_ok=True)


# ---------------------------------------------------------------- what the matrices are, and are not


def matrix_of(name: str, pair: Pair) -> torch.Tensor:
    """What a restoration multiplies with: its result on the identity as a dense update."""
    return restored({SQUARE: torch.eye(24)}, pair, name)[SQUARE]


@pytest.mark.parametrize("name", ["orthogonal-keep", "orthogonal-remove", "random-subspace"])
def test_orthogonal_projectors_are_symmetric_and_idempotent(pair, name):
    p = matrix_of(name, pair)
    close(p, p.T)
    close(p @ p, p)
    assert float(p.trace()) == pytest.approx(24 - K if name == "orthogonal-remove" else K, rel=1e-5)


def test_safeloras_matrix_is_no_projector(pair):
    c, v = matrix_of("safelora", pair), pair.change(SQUARE).dense()
    close(c, c.T)
    assert float(c.trace()) == pytest.approx(float(v.norm()), rel=1e-5)
    assert float((c @ c - c).norm()) > 0.5 * float(c.norm())
    twice = restored(restored({SQUARE: torch.eye(24)}, pair, "safelora"), pair, "safelora")[SQUARE]
    assert float(twice.norm()) < 0.5 * float(c.norm())  # so it must not be applied a second time


def test_keep_and_remove_share_the_update_out(pair, adapter):
    kept, off = (restored(adapter, pair, name) for name in ("orthogonal-keep", "orthogonal-remove"))
    for module, low in adapter.items():
        close(kept[module].left + off[module].left, low.left)
        assert abs(lora.inner(kept[module], off[module])) < 1e-4 * low.norm() ** 2
    again = restored(kept, pair, "orthogonal-keep")
    assert all(torch.allclose(again[m].left, kept[m].left, atol=1e-5) for m in kept)


def test_the_random_matrix_has_the_spectrum_of_safeloras(pair):
    c, other = matrix_of("safelora", pair), matrix_of("random-spectrum", pair)
    close(other, other.T)
    close(torch.linalg.eigvalsh(other), torch.linalg.eigvalsh(c), 1e-4)
    assert float((other - c).norm()) > 0.5 * float(c.norm())


@pytest.mark.parametrize("name", MADE)
def test_c_times_v_scales_c_and_leaves_scores_and_projectors(adapter, name):
    small, large = pair_of(size=0.1), pair_of(size=0.3)
    factor = 3 if name in {"safelora", "safelora-threshold", "safelora-last", "norm-matched", "random-spectrum"} else 1
    one, other = (prepare(adapter, pair, named(name), SEED).at(1.0) for pair in (small, large))
    for module in adapter:
        close(dense(other.update[module]), factor * dense(one.update[module]), 1e-4)
    if name not in DISTANCES:  # a distance is not the same in other units of V
        assert other.table["score"].tolist() == pytest.approx(one.table["score"].tolist(), rel=1e-4)


@pytest.mark.parametrize("name", MADE)
def test_a_folded_scale_goes_through(pair, adapter, name):
    twice = {module: low.scaled(2.0) for module, low in adapter.items()}
    one, other = (prepare(update, pair, named(name), SEED).at(1.0) for update in (adapter, twice))
    for module in adapter:
        close(dense(other.update[module]), 2 * dense(one.update[module]))
    for column, factor in {"score": 2 if name in DISTANCES else 1, "z": 1, "p": 1, "after": 2}.items():
        expected = (factor * one.table[column]).tolist()
        assert other.table[column].tolist() == pytest.approx(expected, rel=1e-4, nan_ok=True)


# ---------------------------------------------------------------- an update as a whole


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("form", ["factors", "dense"])
def test_what_is_given_is_not_changed_and_what_is_not_changed_is_the_same(pair, adapter, name, form):
    update = adapter if form == "factors" else {module: low.dense() for module, low in adapter.items()}
    parts = [t for u in update.values() for t in ((u.left, u.right) if form == "factors" else (u,))]
    parts += [weights(module) for weights in (pair.base, pair.aligned) for module in pair.modules]
    before = [t.clone() for t in parts]
    prepared = prepare(update, pair, named(name), SEED)
    for strength in (0.0, 0.5, 1.0):
        found = prepared.at(strength)
        assert all(row.changed or found.update[row.module] is update[row.module] for row in found.table.itertuples())
        if form == "factors":
            assert all(found.update[m].right is update[m].right for m in update)
            assert all(found.update[m].left.shape == update[m].left.shape for m in update)
    assert all(torch.equal(a, b) for a, b in zip(parts, before, strict=True))


@pytest.mark.parametrize("name", MADE)
def test_a_zero_update_stays_zero(pair, adapter, name):
    found = prepare({module: low.scaled(0.0) for module, low in adapter.items()}, pair, named(name), SEED).at(1.0)
    assert all(not low.dense().any() for low in found.update.values())
    assert (found.table[["before", "after"]] == 0).all(axis=None)
    assert found.table["z"].isna().all()
    assert name in DISTANCES or found.table["score"].isna().all()


@pytest.mark.parametrize(
    ("strength", "count"), [(0.0, 0), (0.09, 0), (0.1, 1), (0.2, 1), (0.29, 1), (0.3, 2), (0.5, 3), (0.69, 3), (0.7, 4), (1.0, 5)]
)
def test_the_strength_is_a_share_of_the_modules_half_rounded_up(pair, adapter, strength, count):
    prepared = prepare(adapter, pair, "safelora", SEED)
    table = prepared.at(strength).table
    assert table["changed"].sum() == count
    lowest = table.sort_values("score")["module"].head(count)
    assert set(table["module"][table["changed"]]) == set(lowest)
    assert (table["after"] == table["before"])[~table["changed"]].all()


def test_shares_are_rounded_in_decimals():
    assert 0.29 * 50 < 14.5  # control: in binary it would be rounded down
    assert _share(pd.DataFrame({"score": range(50)}), 0.29) == 15


@pytest.mark.parametrize("name", ORDERED)
def test_controls_change_the_modules_that_safelora_changes(pair, adapter, name):
    for strength in (0.2, 0.6):
        ours = prepare(adapter, pair, named(name), SEED).at(strength).table
        assert ours["changed"].tolist() == prepare(adapter, pair, "safelora", SEED).at(strength).table["changed"].tolist()
        assert ours["changed"].any()


def test_the_threshold_is_a_cosine(pair, adapter):
    prepared = prepare(adapter, pair, "safelora-threshold", SEED)
    scores = sorted(prepared.at(0.0).table["score"])
    for tau, count in ((0.0, 0), (scores[0] - 1e-9, 0), (scores[0], 1), (scores[2], 3), (1.0, 5)):
        table = prepared.at(tau).table
        assert table["changed"].tolist() == (table["score"] <= tau).tolist()
        assert table["changed"].sum() == count


def test_none_changes_nothing_at_any_strength(pair, adapter):
    found = prepare(adapter, pair, "none", SEED).at(1.0)
    assert all(found.update[module] is adapter[module] for module in adapter)
    assert not found.table["changed"].any()


def test_an_update_off_v_has_cosine_zero_and_comes_first():
    shapes = {"a": (6, 6), "b": (6, 6)}
    v = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0, 0.0]))
    weights = dict.fromkeys(shapes, torch.zeros(6, 6))
    pair = Pair(weights.__getitem__, dict.fromkeys(shapes, v).__getitem__, tuple(shapes))
    off = LowRank(torch.eye(6)[:, 4:], gaussian(2, 6, seed=1))
    table = prepare({"a": adapter_of(shapes)["a"], "b": off}, pair, "safelora", SEED).at(0.5).table
    assert table["score"].tolist()[1] == 0.0
    assert table["changed"].tolist() == [False, True]


@pytest.mark.parametrize("name", ["safelora", "safelora-last", "splora", "splora-nearest", "random-modules"])
def test_a_module_without_an_update_comes_last(pair, adapter, name):
    for module in adapter:
        prepared = prepare({**adapter, module: adapter[module].scaled(0.0)}, pair, name, SEED)
        assert prepared.order[-1] == module


def test_adapters_of_some_modules_are_restored_as_in_the_whole(pair, adapter):
    some = {module: low for module, low in adapter.items() if "q_proj" in module or "v_proj" in module}
    whole, part = restored(adapter, pair, "safelora"), restored(some, pair, "safelora")
    assert list(part) == list(some)
    assert all(torch.equal(part[module].left, whole[module].left) for module in some)


@pytest.mark.parametrize("name", MADE)
def test_bf16_factors_give_bf16_factors(pair, adapter, name):
    half = {m: LowRank(low.left.bfloat16(), low.right.bfloat16()) for m, low in adapter.items()}
    exact = {m: LowRank(low.left.float(), low.right.float()) for m, low in half.items()}
    ours, reference = restored(half, pair, name), restored(exact, pair, name)
    for module in adapter:
        assert ours[module].left.dtype == torch.bfloat16
        close(dense(ours[module]), dense(reference[module]), 0.01)


@pytest.mark.parametrize("name", MADE)
def test_the_same_seed_gives_the_same_update_and_another_only_where_it_draws(pair, adapter, name):
    first, again, other = (restored(adapter, pair, name, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[m].left, again[m].left) for m in adapter)
    drawn = name.startswith("random") and name not in LOTS  # lots decide the order, and at 1.0 all are changed
    assert all(torch.equal(first[m].left, other[m].left) for m in adapter) != drawn


def test_a_restored_adapter_attaches_through_peft_unchanged(tiny, tiny_model, tmp_path):
    modules = tuple(quantizers.linear_names(tiny_model.model))
    weights = {m: tiny_model.model.get_submodule(m).weight.detach() for m in modules}
    base = {m: w + 0.05 * gaussian(*w.shape, seed=i) for i, (m, w) in enumerate(weights.items())}
    pair, update = (
        Pair(base.__getitem__, weights.__getitem__, modules),
        adapter_of({m: tuple(w.shape) for m, w in weights.items()}),
    )
    found = prepare(update, pair, "safelora", SEED).at(0.5)
    assert 0 < found.table["changed"].sum() < len(modules)
    lora.save_adapter(found.update, tmp_path / "restored", {})
    merged = loading.load(tiny, "fp32").model
    lora.merge(merged, lora.load_adapter(tmp_path / "restored"))
    ids = torch.arange(3, 40)[None]
    attached = lora.attach(tiny_model.model, update)
    with torch.no_grad():
        bare = attached(input_ids=ids).logits
        lora.exchange_(attached, found.update)
        torch.testing.assert_close(attached(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-3, rtol=1e-3)
        assert float((attached(input_ids=ids).logits - bare).norm()) > 0.05 * float(bare.norm())


# ---------------------------------------------------------------- orders


def chosen(update, pair: Pair, name: str, strength: float, seed: int = SEED) -> set[str]:
    table = prepare(update, pair, named(name), seed).at(strength).table
    return set(table["module"][table["changed"]])


@pytest.mark.parametrize(("one", "other"), [("safelora", "safelora-last"), ("splora", "splora-nearest")])
def test_an_opposite_order_begins_where_the_other_ends(pair, adapter, one, other):
    for strength, rest in ((0.2, 0.8), (0.4, 0.6)):
        assert chosen(adapter, pair, one, strength) == set(adapter) - chosen(adapter, pair, other, rest)


def test_lots_are_drawn_by_seed_and_name_and_are_nested(pair, adapter):
    orders = {prepare(adapter, pair, name, seed).order for name in LOTS for seed in (1, 2)}
    assert len(orders) > 4  # of 6 draws of 120 orders
    assert chosen(adapter, pair, "random-modules", 0.2) < chosen(adapter, pair, "random-modules", 0.6)
    shares = pd.Series([m for seed in range(200) for m in chosen(adapter, pair, "random-modules", 0.4, seed)]).value_counts()
    assert len(shares) == len(adapter)
    assert shares.between(80 - 28, 80 + 28).all()  # each two of five times: four standard deviations of a fair draw


# ---------------------------------------------------------------- the whole update at once


def test_shrinking_takes_the_whole_update_down(pair, adapter):
    prepared = prepare(adapter, pair, "shrink", SEED)
    for strength, factor in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        found = prepared.at(strength)
        for module, low in adapter.items():
            close(found.update[module].dense(), factor * low.dense())
        assert found.table["changed"].all() == (strength > 0)
        assert found.table["after"].tolist() == pytest.approx((factor * found.table["before"]).tolist())


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_an_update_shrunk_to_a_norm_has_that_of_safelora_and_its_own_directions(pair, adapter, strength):
    def norm(update) -> float:
        return math.sqrt(sum(low.norm() ** 2 for low in update.values()))

    ours, theirs = (prepare(adapter, pair, name, SEED).at(strength).update for name in ("shrink-to-norm", "safelora"))
    assert norm(ours) == pytest.approx(norm(theirs), rel=1e-5)
    assert norm(theirs) < 0.95 * norm(adapter)  # control: something was taken away
    assert all(lora.cosine(ours[m], adapter[m]) == pytest.approx(1) for m in adapter)


# ---------------------------------------------------------------- the nulls


def haar_matrices(d: int, count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(stats.ortho_group(d, seed=seed).rvs(count)).float()


def same_distribution(a, b) -> float:
    return float(stats.ks_2samp(torch.as_tensor(a).numpy(), torch.as_tensor(b).numpy()).pvalue)


VALUES = torch.tensor([2.0, 1.0, 0.5, 0.5, 0.2, 0.1])
FLATTER = VALUES.mean() + 0.5 * (VALUES - VALUES.mean())


@mostly_slow("the same simulation at other sizes", "3")
@pytest.mark.parametrize("r", [1, 3, 5, 6])  # with room beside the factor, and without
def test_random_spectrum_is_distributed_as_a_haar_conjugation(r):
    left, generator = gaussian(6, r, seed=1), torch.Generator().manual_seed(20)
    ours = torch.stack([safelora.conjugated(left, VALUES, generator) for _ in range(2000)])
    h = haar_matrices(6, 2000, seed=3)
    truth = h @ torch.diag(safelora.eigenvalues(VALUES, 6).float()) @ h.mT @ left
    close(ours.mean(0), VALUES.norm() / 6 * left, 0.1)  # E H C H^T = tr(C) / d = ||V||_F / d
    for statistic in (
        lambda x: x.flatten(1).norm(dim=1),
        lambda x: x[:, 0, 0],
        lambda x: x[:, 5, -1],
        lambda x: (x**3).sum((1, 2)),
    ):
        assert same_distribution(statistic(ours), statistic(truth)) > 0.005
    flatter = torch.stack([safelora.conjugated(left, FLATTER, generator) for _ in range(2000)])  # control: another spectrum
    assert same_distribution(flatter.flatten(1).norm(dim=1), truth.flatten(1).norm(dim=1)) < 1e-6


@mostly_slow("the same simulation at other sizes", "8-3")
@pytest.mark.parametrize(("d_out", "r"), [(8, 1), (8, 3), (8, 6), (6, 6)])
def test_the_null_of_ediem_is_that_of_random_alignment_matrices(d_out, r):
    ba = gaussian(d_out, r, seed=4) @ gaussian(r, 9, seed=5)
    squares = torch.linalg.svdvals(ba).square()[:r]
    ours = safelora.null_distances(VALUES, squares, d_out, torch.Generator().manual_seed(6), 3000)
    h = haar_matrices(d_out, 3000, seed=7)
    truth = (h @ torch.diag(safelora.eigenvalues(VALUES, d_out).float()) @ h.mT @ ba - ba).flatten(1).norm(dim=1)
    assert same_distribution(ours, truth) > 0.005
    control = safelora.null_distances(FLATTER, squares, d_out, torch.Generator().manual_seed(6), 3000)
    assert same_distribution(control, truth) < 1e-6


def test_the_null_of_a_full_rank_update_has_the_moments_of_theory():
    """Mean and variance of tr(W H K H^T) for Haar H (Collins & Sniady 2006), where weak directions enter by their mean."""
    d, generator = 60, torch.Generator().manual_seed(8)
    values, squares = 0.9 ** torch.arange(60), 0.7 ** torch.arange(60).double()
    assert len(safelora._strongest(squares, d)[0]) < 20  # so the short cut is taken
    null = safelora.null_distances(values, squares, d, generator, 4000).square()
    w, k = (1 - safelora.eigenvalues(values, d)).square(), squares
    mean = w.sum() * k.sum() / d
    spreads = [(x.square().sum() - x.sum() ** 2 / d) for x in (w, k)]
    deviation = (2 / ((d - 1) * (d + 2)) * spreads[0] * spreads[1]).sqrt()
    assert float(null.mean()) == pytest.approx(float(mean), abs=4 * float(deviation) / math.sqrt(4000))
    assert float(null.std()) == pytest.approx(float(deviation), rel=0.06)


def test_square_frames_are_orthogonal_though_their_gram_matrix_is_badly_conditioned():
    weights = gaussian(200, seed=1).double()
    shares = safelora._shares(weights, 200, 5, torch.Generator().manual_seed(2))
    torch.testing.assert_close(shares.sum(1), weights.sum().expand(5), atol=1e-5, rtol=0)  # tr(G^T W G) = tr(W)


def p_values(draw, count: int = 300) -> list[float]:
    """p of E-DIEM for updates that `draw` gives beside a V of random directions."""
    found = []
    for seed in range(count):
        h, left = draw(seed)
        base = torch.zeros(12, 20)
        v = h @ torch.nn.functional.pad(torch.diag(0.7 ** torch.arange(12)), (0, 8))
        pair = Pair({"m": base}.__getitem__, {"m": v}.__getitem__, ("m",))
        update = LowRank(left, gaussian(left.shape[1], 20, seed=2000 + seed))
        found.append(float(prepare({"m": update}, pair, "splora", seed).scores["p"][0]))
    return found


@slow("a simulation; the null is held against random alignment matrices above")
def test_ediems_p_is_uniform_under_its_own_null():
    haar = haar_matrices(12, 300, seed=9)
    p = p_values(lambda seed: (haar[seed], gaussian(12, 3, seed=1000 + seed)))
    assert stats.kstest(p, "uniform").pvalue > 0.02
    planted = p_values(lambda seed: (haar[seed], haar[seed][:, 9:]), 20)  # control: on the weakest directions of V
    assert max(planted) <= 0.01


def test_a_planted_misaligned_update_is_removed_first(pair, adapter):
    u = {m: torch.linalg.svd(pair.change(m).dense())[0] for m in adapter}
    strong = {m: LowRank(u[m][:, :RANK], low.right) for m, low in adapter.items()}
    planted = {**strong, "b.0.down_proj": LowRank(u["b.0.down_proj"][:, -RANK:], adapter["b.0.down_proj"].right)}
    found = prepare(planted, pair, "splora", SEED).at(0.2)
    table = found.table.set_index("module")
    assert table["changed"][table["changed"]].index.tolist() == ["b.0.down_proj"]
    assert not found.update["b.0.down_proj"].dense().any()
    assert table["p"]["b.0.down_proj"] < 0.05 < table["p"].drop("b.0.down_proj").min()
    assert table["z"]["b.0.down_proj"] > 0 > table["z"].drop("b.0.down_proj").max()


def test_a_null_without_width_is_no_unit_of_measure():
    """C = c I moves every update alike; copies of one distance give a z that is a rounding constant, so there is none."""
    null = safelora.null_distances(torch.ones(8), torch.tensor([2.0, 1.0]), 8, torch.Generator().manual_seed(1))
    found = safelora.ediem(float(null.mean()) * (1 + 1e-9), null)
    assert math.isnan(found.z)
    assert math.isnan(found.z_robust)
    assert not math.isnan(safelora.ediem(1.0, torch.linspace(0, 1, 200)).z)  # control


def test_ediem_counts_and_measures():
    found = safelora.ediem(7.5, torch.arange(10.0))
    assert found.p == pytest.approx((1 + 2) / 11)
    assert found.z == pytest.approx((7.5 - 4.5) / float(torch.arange(10.0).std()))
    assert found.z_robust == pytest.approx((7.5 - 4.5) / 4.5)
    assert (found.score, found.null) == (7.5, 4.5)


# ---------------------------------------------------------------- cost


def test_what_v_alone_decides_is_computed_once_a_pair(adapter):
    reads, plain = [], pair_of()

    def aligned(module):
        reads.append(module)
        return plain.aligned(module)

    pair = Pair(plain.base, aligned, plain.modules)
    for name in MADE:
        prepare(adapter, pair, named(name), SEED)
    reads.clear()
    for name in MADE:
        prepare(adapter, pair, named(name), SEED + 1)
    assert len(reads) == len(MADE) * len(adapter)


def test_a_module_that_is_asked_for_twice_in_a_row_is_quantized_once(monkeypatch):
    """SafeLoRA asks for V and for its null, and to quantize a weight takes longer than both."""
    asked, plain = [], quantizers.QUANTIZERS["nf4"]
    monkeypatch.setitem(quantizers.QUANTIZERS, "nf4", lambda weight, gram: asked.append(1) or plain(weight, gram))
    shapes = {"m": (64, 64), "n": (64, 128)}
    whole = pair_of(shapes)
    pair = Pair(*(alignment_matrix.quantized(w, "nf4") for w in (whole.base, whole.aligned)), whole.modules)
    prepare(adapter_of(shapes), pair, "safelora", SEED)
    assert len(asked) == 2 * len(shapes)  # a base and an aligned weight of each module


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor held that any operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        found = [x for x in (made if isinstance(made, tuple | list) else [made]) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *(x.numel() for x in found if x._base is None)])
        return made


@mostly_slow("matrices larger than those of a study", "safelora")
@pytest.mark.parametrize("name", ["safelora", "norm-matched", "random-subspace", "zero"])
def test_low_rank_stays_low_rank(name):
    shapes = {"m": (1600, 1300)}
    pair, update = Pair(*({"m": gaussian(1600, 1300, seed=i)}.__getitem__ for i in (1, 2)), ("m",)), adapter_of(shapes, 8)
    with Largest() as largest:
        prepare(update, pair, name, SEED).at(1.0)
    assert largest.numel <= alignment_matrix.ENTRIES < 1300**2  # row blocks of V, but no d x d matrix and no whole V


def test_a_random_spectrum_stays_low_rank_too():
    left, values = gaussian(1600, 8, seed=1), 0.99 ** torch.arange(1300)
    with Largest() as largest:
        safelora.conjugated(left, values, torch.Generator().manual_seed(1))
    assert largest.numel <= 1600 * 16
    with Largest() as largest:
        safelora.null_distances(values, torch.arange(1.0, 9.0), 1600, torch.Generator().manual_seed(1))
    assert largest.numel <= safelora.CHUNK


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", RESTORATIONS)
def test_every_name_is_parsed_with_its_default_k(name):
    assert parse(name) == NamedRestoration(name, RESTORATIONS[name].k, "")
    assert parse(f"{name}:gptq-4-mixed") == NamedRestoration(name, RESTORATIONS[name].k, "gptq-4-mixed")
    assert parse(f"{name}-x16:nf4-both") == NamedRestoration(name, RESTORATIONS[name].k, "nf4-both", 16.0)
    if RESTORATIONS[name].k:
        assert parse(f"{name}-k64:nf4-both") == NamedRestoration(name, 64, "nf4-both")
    else:
        with refused(USAGE, f"'{name}-k8'", "takes no k"):
            parse(f"{name}-k8")


@pytest.mark.parametrize("quantizer", quantizers.QUANTIZERS)
@pytest.mark.parametrize("way", ["mixed", "both"])
def test_every_quantizer_is_a_source(quantizer, way):
    source = f"{quantizer}-{way}"
    assert parse(f"safelora:{source}").source == parse_source(source) == source


NAMES = {
    "safe-lora": "did you mean 'safelora'.*choose one of none, safelora,",
    "orthogonal-kep-k3": "did you mean 'orthogonal-keep'",
    "orthogonal-keep-k": "did you mean 'orthogonal-keep'",
    "orthogonal-keep-k-3": "unknown restoration",
    "orthogonal-keep-k0": "whole number from 1",
    "orthogonal-keep-k08": "whole number from 1",
    "orthogonal-keep-k3.5": "unknown restoration",
    "": "unknown restoration",
    "safelora\n": "unknown restoration",
    "safelora-x0": "V is made -x0 times as large; give a number above 0",
    "safelora-x1.2.3": "V is made -x1.2.3 times",
    "safelora-x16:gptq-4-both": "GPTQ is calibrated on the aligned model as it is; leave '-x16' out",
    "safelora:": "unknown source of V ''",
    "safelora:nf4": "unknown source of V 'nf4'.*did you mean 'nf4-",
    "safelora:nf5-both": "did you mean 'nf4-both'.*one of none, int8",
    "safelora:nf4-mixed:both": "unknown source",
    "safelora:nf4-each": "unknown source",
}


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_refused_with_the_nearest(name):
    with refused(USAGE, NAMES[name]):
        parse(name)


def test_salora_is_made_by_training(pair, adapter):
    with refused(USAGE, "'salora' is made by training", r"helpers\.salora"):
        prepare(adapter, pair, "salora", SEED)


# ---------------------------------------------------------------- what is refused


UPDATES = {
    "another shape": (LowRank(torch.ones(8, 3), torch.ones(3, 24)), NOT_COMPARABLE, r"\(8, 24\).*\(24, 24\)"),
    "another dense shape": (torch.ones(24, 25), NOT_COMPARABLE, r"\(24, 25\).*\(24, 24\)"),
    "a rank beyond": (LowRank(torch.ones(24, 25), torch.ones(25, 24)), REFUSED, "rank 25.*24"),
    "NaN": (LowRank(torch.full((24, 3), math.nan), torch.ones(3, 24)), REFUSED, "NaN or Inf"),
    "Inf": (torch.full((24, 24), math.inf), REFUSED, "NaN or Inf"),
}


@pytest.mark.parametrize("case", UPDATES)
def test_an_update_that_does_not_fit_names_its_first_module(pair, adapter, case):
    update, code, words = UPDATES[case]
    with refused(code, f"'{SQUARE}'", words):
        prepare({**adapter, SQUARE: update}, pair, "safelora", SEED)


def test_a_module_that_the_pair_lacks_is_named(pair, adapter):
    with refused(NOT_COMPARABLE, "'b.9.q_proj'", "its own base"):
        prepare({"b.9.q_proj": adapter[SQUARE], **adapter}, pair, "zero", SEED)


@pytest.mark.parametrize("name", [*MADE, *WHOLE])
def test_no_update_says_what_is_needed(pair, name):
    with refused(USAGE, f"'{name}' needs an update", "give an adapter"):
        prepare({}, pair, named(name), SEED)


@pytest.mark.parametrize("name", MADE)
def test_an_unaligned_module_is_refused_by_name(adapter, name):
    plain = pair_of()
    pair = Pair(plain.base, lambda m: plain.base(m) if m == "b.0.up_proj" else plain.aligned(m), plain.modules)
    if name in LOTS:  # they know nothing of V
        assert prepare(adapter, pair, name, SEED).at(1.0).table["changed"].all()
        return
    with refused(NOT_COMPARABLE, "'b.0.up_proj'", "V = 0"):
        prepare(adapter, pair, named(name), SEED)


@pytest.mark.parametrize("name", [name for name in MADE if RESTORATIONS[name].k])
def test_k_beyond_a_module_is_refused_by_name(pair, adapter, name):
    assert len(prepare(adapter, pair, f"{name}-k8", SEED).order) == len(adapter)  # as many as v_proj has outputs
    with refused(USAGE, "k 9 is beyond the 8 directions of 'b.0.v_proj'"):
        prepare(adapter, pair, f"{name}-k9", SEED)


def test_k_beyond_the_rank_of_v_is_refused(adapter):
    base = {SQUARE: torch.zeros(24, 24)}
    aligned = {SQUARE: gaussian(24, 2, seed=1) @ gaussian(2, 24, seed=2)}
    pair = Pair(base.__getitem__, aligned.__getitem__, (SQUARE,))
    with refused(NOT_COMPARABLE, "k 3 is beyond", "rank 2", f"'{SQUARE}'"):
        prepare({SQUARE: adapter[SQUARE]}, pair, "orthogonal-keep-k3", SEED)


@pytest.mark.parametrize("strength", [-0.1, 1.01, math.nan, math.inf])
def test_a_strength_outside_0_to_1_is_refused(pair, adapter, strength):
    prepared = prepare(adapter, pair, "safelora", SEED)
    with refused(USAGE, f"strength {strength}", "'safelora'", "0 to 1"):
        prepared.at(strength)


def test_progress_is_told_every_module(pair, adapter):
    said = []
    prepare(adapter, pair, "zero", SEED, said.append)
    assert said == list(adapter)
