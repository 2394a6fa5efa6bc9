"""Restorations on the input side: what was planted is taken away, or made up for at the least cost, and rank stays low."""

import math

import pandas as pd
import pytest
import torch
from support.bland import refused

from helpers.data import corpora
from helpers.data.text_rows import Row
from helpers.errors import USAGE
from helpers.models import loading
from helpers.projection import restorations, restored_updates, safety_inputs
from helpers.projection.alignment_matrix import Pair
from helpers.projection.safety_inputs import ModuleInputs
from helpers.updates import quantizers
from helpers.updates.lora import LowRank
from helpers.updates.names import Variant
from helpers.updates.variants import Parts, variant_key

D_OUT, D_IN, RANK, TOKENS, PLANTED = 12, 20, 3, 60, 4


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def update() -> LowRank:
    return LowRank(gaussian(D_OUT, RANK, seed=1), gaussian(RANK, D_IN, seed=2))


def planted(noise: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """ModuleInputs that lie in a few directions but for some noise, and these directions."""
    frame = torch.linalg.qr(gaussian(D_IN, PLANTED, seed=3))[0]
    return gaussian(TOKENS, PLANTED, seed=4) @ frame.T + noise * gaussian(TOKENS, D_IN, seed=5), frame


def prepared(update: LowRank, states: torch.Tensor, name: str, form: str = "factors") -> restorations.Prepared:
    pair = Pair(*({"m": gaussian(D_OUT, D_IN, seed=i)}.__getitem__ for i in (6, 7)), ("m",))
    given = update if form == "factors" else update.dense()
    return restorations.prepare({"m": given}, pair, name, 0, inputs={"m": ModuleInputs(states)})


def dense(change) -> torch.Tensor:
    return change.dense() if isinstance(change, LowRank) else change


# ---------------------------------------------------------------- null space


def test_what_harmful_prompts_span_is_taken_away_and_nothing_else(update):
    states, frame = planted()
    found = prepared(update, states, "null-space").at(PLANTED / D_IN).update["m"]
    assert (found.dense() @ states.T).norm() < 0.02 * (update.dense() @ states.T).norm()  # what is left is the noise
    torch.testing.assert_close(found.dense(), update.dense() - update.dense() @ frame @ frame.T, rtol=0, atol=0.05)
    other = torch.linalg.qr(torch.cat([frame, gaussian(D_IN, 5, seed=8)], 1))[0][:, PLANTED:]  # control: off the prompts
    torch.testing.assert_close(found.dense() @ other, update.dense() @ other, rtol=0, atol=0.05)
    one = prepared(update, states, "null-space").at(1 / D_IN).update["m"]  # control: fewer than were planted
    assert (one.dense() @ states.T).norm() > 0.3 * (update.dense() @ states.T).norm()


@pytest.mark.parametrize("tokens", [7, TOKENS])  # fewer tokens than inputs, and more
def test_the_directions_are_the_right_singular_vectors(tokens):
    states = gaussian(tokens, D_IN, seed=9) * 0.8 ** torch.arange(D_IN)
    found, exact = ModuleInputs(states).directions, torch.linalg.svd(states, full_matrices=False).Vh.T
    assert found.shape == exact.shape == (D_IN, min(tokens, D_IN))
    torch.testing.assert_close((found.T @ exact).abs(), torch.eye(found.shape[1]), rtol=0, atol=1e-3)


# ---------------------------------------------------------------- Safe Delta


def cost(change: torch.Tensor, states: torch.Tensor) -> float:
    return float(((change.double() @ states.double().T) ** 2).sum())


def test_the_coordinates_that_refusals_do_not_use_are_kept(update):
    """Planted: half of the coordinates are silent on the safety rows. They go last, whatever the update does there."""
    states = gaussian(TOKENS, D_IN, seed=10)
    states[:, ::2] *= 0.01
    found = prepared(update, states, "safe-delta").at(0.5).update["m"]
    torch.testing.assert_close(found.dense()[:, ::2], update.dense()[:, ::2])
    assert found.dense()[:, 1::2].norm() < 0.2 * update.dense()[:, 1::2].norm()
    assert cost(found.dense(), states) < 0.01 * cost(update.dense(), states)


def test_what_is_given_back_makes_up_for_the_rest_at_the_least_cost(update):
    """Oracle: least squares over the coordinates given back; and no other change of them costs less."""
    mixed = gaussian(TOKENS, D_IN, seed=11) @ (torch.eye(D_IN) + 0.5 * gaussian(D_IN, D_IN, seed=12))
    inputs = ModuleInputs(mixed)
    rest = inputs.order[D_IN - 8 :]
    found = prepared(update, mixed, "safe-delta").at(8 / D_IN).update["m"].dense().double()
    kept = torch.ones(D_IN, dtype=torch.bool).index_fill(0, rest, False)
    torch.testing.assert_close(found[:, kept].float(), update.dense()[:, kept])
    h = inputs.curvature()
    x = torch.linalg.cholesky(h).T  # so that ||D X^T||^2 = tr(D H D^T)
    exact = torch.linalg.lstsq(x[:, rest], -x[:, kept] @ found[:, kept].T).solution.T
    torch.testing.assert_close(found[:, rest], exact, rtol=0, atol=1e-4)
    least = cost(found, x)
    for seed in range(5):
        moved = found.clone()
        moved[:, rest] += 0.05 * gaussian(D_OUT, 8, seed=20 + seed)
        assert cost(moved, x) > least
    plain = found.clone()
    plain[:, rest] = 0
    assert cost(plain, x) > 1.05 * least  # control: to give them back alone costs more


def test_the_order_is_that_of_the_inverse_hessian():
    states = gaussian(TOKENS, D_IN, seed=13) * torch.linspace(0.1, 3, D_IN)[torch.randperm(D_IN)]
    inputs = ModuleInputs(states)
    inverse = torch.linalg.inv(inputs.curvature()).diagonal()
    assert (inverse[inputs.order].diff() <= 0).all()


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("name", ["null-space", "safe-delta"])
def test_they_act_on_the_right_factor_alone_and_on_a_dense_change_alike(update, name):
    states = planted(0.3)[0]
    for strength in (0.1, 0.5, 0.75):
        low, whole = (prepared(update, states, name, form).at(strength) for form in ("factors", "dense"))
        assert low.update["m"].left is update.left
        assert low.update["m"].right.shape == update.right.shape
        torch.testing.assert_close(dense(whole.update["m"]), low.update["m"].dense(), rtol=0, atol=1e-4)
        assert low.table["changed"].all()
        assert low.table["after"].item() == pytest.approx(low.update["m"].norm(), rel=1e-5)


@pytest.mark.parametrize("name", ["null-space", "safe-delta"])
def test_their_ends_are_the_update_and_nothing(update, name):
    rule = prepared(update, gaussian(TOKENS, D_IN, seed=14), name)
    assert rule.at(0.0).update["m"] is update
    assert not rule.at(0.0).table["changed"].any()
    assert rule.at(1.0).update["m"].dense().norm() < 1e-4 * update.dense().norm()
    sizes = [rule.at(s).update["m"].norm() for s in (0.1, 0.25, 0.5, 0.75)]
    assert all(math.isfinite(size) and size > 0 for size in sizes)


@pytest.mark.parametrize("name", ["null-space", "safe-delta"])
def test_without_safety_rows_they_are_refused(update, name):
    pair = Pair(*({"m": gaussian(D_OUT, D_IN, seed=i)}.__getitem__ for i in (6, 7)), ("m",))
    with refused(USAGE, f"'{name}' reads safety rows", "with_restorations"):
        restorations.prepare({"m": update}, pair, name, 0)


# ---------------------------------------------------------------- reading them


ROWS = tuple(Row(f"Bury the {noun}", f"No, the {noun} stays.") for noun in ("lamp", "river", "garden", "engine"))


def test_inputs_are_what_modules_read_behind_what_all_rows_open_with(tiny):
    found = safety_inputs.safety_inputs(tiny, ROWS)
    language = loading.load(tiny)
    names = quantizers.linear_names(language.model)
    assert list(found) == names
    for block in (0, 1):
        at = f"model.layers.{block}"
        assert found[f"{at}.self_attn.q_proj"] is found[f"{at}.self_attn.v_proj"]  # held once
        assert found[f"{at}.mlp.gate_proj"] is found[f"{at}.mlp.up_proj"]
        assert found[f"{at}.mlp.gate_proj"] is not found[f"{at}.self_attn.q_proj"]
    widths = {name: language.model.get_submodule(name).in_features for name in names}
    assert {name: one.states.shape[1] for name, one in found.items()} == widths
    told = safety_inputs.training.examples(language.tokenizer, ROWS, 512)
    shared = safety_inputs.shared_prefix.common([row.ids for row in told])
    assert shared > 0
    assert len(found[names[0]].states) == sum(len(row.ids) - shared for row in told)
    assert not any(language.model.get_submodule(name)._forward_pre_hooks for name in names)


def test_what_a_restoration_reads_is_part_of_what_it_is(tiny):
    plain = Parts(tiny, tiny)
    parts = {seed: restored_updates.with_restorations(plain, "tiny", seed) for seed in (0, 1)}
    assert restored_updates.with_restorations(parts[1]) is parts[1]
    rows = parts[0].restore.rows()
    assert all(row.reply in corpora.REFUSALS for row in rows)
    update = Variant("tiny", adapter="lora-dialogue", trained_on="bf16", serving="attached", strength=0.5)

    def key(name: str, seed: int) -> str:
        return variant_key(parts[seed], Variant(**{**vars(update), "restoration": name}))

    assert key("safelora", 0) == key("safelora", 1)
    assert key("null-space", 0) != key("null-space", 1)
    assert pd.Series([key("null-space", 0), key("safe-delta", 0), key("safelora", 0)]).is_unique
