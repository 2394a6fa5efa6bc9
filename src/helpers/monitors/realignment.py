"""Realignment: the same unlabelled texts, read by both models, tell how to bring updated hidden states back to the original's.

A frozen monitor then reads states like those it was fitted on. Pure arithmetic, in float64 since it inverts covariances; a map
is kept in factors, never as a d x d matrix. before: states under the model that the monitor was frozen on, after: under the
updated one; a row is a text. Paired kinds need the same texts in the same order; unpaired ones compare different texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.monitors import readouts
from helpers.monitors.probes import Readout
from helpers.monitors.readouts import Pooled
from helpers.stats.intervals import group_codes

FEWEST = 10  # texts
# penalties to choose from, as shares of the mean squared singular value of the centred states
TURNS = (0.01, 0.1, 1.0)
RIDGES = (0.1, 1.0, 10.0)
MOST_DIRECTIONS = 32  # that low-rank may mend

Array = Float[np.ndarray, "n d"]
Other = Float[np.ndarray, "m d"]
Factor = Float[np.ndarray, "d r"]
Rows = Int[np.ndarray, " n"]
Penalties = Float[np.ndarray, " k"]
Groups = Sequence | np.ndarray | None
States = Array | Float[Tensor, "n d"]
Others = Float[np.ndarray, "m d2"] | Float[Tensor, "m d2"]


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class Map:
    """y = target + scale * (x - source) + ((x - source) @ left) @ right.T for every row x: an affine map in factors."""

    source: Float[np.ndarray, " d"]
    target: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"] | float
    left: Factor
    right: Factor

    def __call__(self, x: Array) -> Array:
        _check_width("states are", x.shape[1], self)
        away = x - self.source
        return self.target + self.scale * away + (away @ self.left) @ self.right.T


def _check_width(what: str, width: int, realigned: Map) -> None:
    if width != len(realigned.source):
        raise StudyError(
            f"realignment: {what} {width} wide, the map {len(realigned.source)}; use it where it was fitted", NOT_COMPARABLE
        )


def _between_means(before: Array, after: Other, scale: np.ndarray | float = 1.0, factors: tuple[Factor, ...] = ()) -> Map:
    left, right = factors or np.zeros((2, after.shape[1], 0))
    return Map(after.mean(axis=0), before.mean(axis=0), scale, left, right)


def _in_groups(codes: Rows, seed: int) -> Rows:
    """The rows in random order, those of one group together."""
    rng = np.random.default_rng(seed)
    place, rows = rng.permutation(codes.max() + 1), rng.permutation(codes.size)
    return rows[np.argsort(place[codes[rows]], kind="stable")]


def halves(n: int, groups: Groups, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """The places of two random halves of `n` texts, as equal as whole groups allow. Errors: groups that leave one below 5."""
    codes = group_codes(groups, n)
    order = _in_groups(codes, seed)
    ends = np.append(np.flatnonzero(np.diff(codes[order])) + 1, n)
    cut = int(ends[np.argmin(np.abs(ends - n / 2))])
    if min(cut, n - cut) < FEWEST // 2:
        raise StudyError(f"realignment: groups leave {min(cut, n - cut)} of {n} texts in a half; pass smaller groups", REFUSED)
    return order[:cut], order[cut:]


def _strangers(n: int, groups: Groups, seed: int) -> Rows:
    """Another text for each, of another group unless one group holds more than half of the texts."""
    codes = group_codes(groups, n)
    order, partner = _in_groups(codes, seed), np.empty(n, dtype=int)
    partner[order] = np.roll(order, -np.bincount(codes).max())
    return partner


# ---------------------------------------------------------------- kinds that compare moments


def _none(before: Array, after: Other, groups: Groups, seed: int) -> Map:
    return _between_means(*np.zeros((2, 1, after.shape[1])))


def _centre(before: Array, after: Other, groups: Groups, seed: int) -> Map:
    return _between_means(before, after)


def _centre_scale(before: Array, after: Other, groups: Groups, seed: int) -> Map:
    old, new = (side.std(axis=0) for side in (before, after))
    still = (old <= 1e-9 * np.abs(before).max(axis=0)) | (new <= 1e-9 * np.abs(after).max(axis=0))  # constant but for rounding
    return _between_means(before, after, np.divide(old, new, where=~still, out=np.ones(len(old))))


def _same_products(*parts: Array) -> list[Float[np.ndarray, "k d"]]:
    """The parts, or where they have fewer columns than rows, shorter ones with the same products part.T @ part (R of a QR)."""
    widths = [part.shape[1] for part in parts]
    if len(parts[0]) <= sum(widths):
        return list(parts)
    return np.split(np.linalg.qr(np.hstack(parts), mode="r"), np.cumsum(widths)[:-1], axis=1)


def _root(centred: Array, inverse: bool = False) -> tuple[Float[np.ndarray, "k d"], float, Float[np.ndarray, "k k"]]:
    """Rows X, level a and core K of the root of the shrunk covariance S, or of its inverse: a I + X.T @ K @ X.

    S = (1 - rho) C + rho mu I (Ledoit and Wolf 2004). With X X^T = U diag(v) U^T and t = (1 - rho) v / n + rho mu,
    f(S) = f(rho mu) I + X^T U diag((f(t) - f(rho mu)) / v) U^T X (Higham 2008, theorem 1.35), here without differences.
    """
    n, d = centred.shape
    (rows,) = _same_products(centred)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    values = np.maximum(values, 0.0)  # rounding
    _, rho, mu = readouts.ledoit_wolf(centred if n > d else vectors * np.sqrt(values), d)
    floor = max(rho * mu, 1e-12 * mu * d)  # S has to have an inverse
    level, roots = np.sqrt(floor), np.sqrt((1 - rho) * values / n + floor)
    core = (1 - rho) / n / (roots + level)
    level, core = (1 / level, -core / (roots * level)) if inverse else (level, core)
    return rows, float(level), (vectors * core) @ vectors.T


def _coral(before: Array, after: Other, groups: Groups, seed: int) -> Map:
    """CORAL (Sun, Feng and Saenko 2016): whitened by the updated model's covariance, coloured by the original's."""
    x, p, white = _root(after - after.mean(axis=0), inverse=True)
    z, q, colour = _root(before - before.mean(axis=0))
    # (p I + x.T @ white @ x) @ (q I + z.T @ colour @ z), multiplied out
    coloured = colour @ z
    both = white @ (q * x + (x @ z.T) @ coloured)
    return _between_means(before, after, p * q, (np.hstack([x.T, z.T]), np.hstack([both.T, p * coloured.T])))


def _from_halves(fit_kind: Callable[..., Map], before: Array, after: Other, groups: Groups, seed: int) -> Map:
    """From different texts: one half's under the original, the other's under the update; all, where they differ already."""
    if len(before) == len(after):
        first, second = halves(len(before), groups, seed)
        before, after = _varying(before[first], "before"), _varying(after[second], "after")
    return fit_kind(before, after, None, seed)


# ---------------------------------------------------------------- kinds that compare text by text


def _held_out(before: Array, after: Array, groups: Groups, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`after` and what it lacks to `before`, of the half to fit on and of the half to choose on, both as the first is centred."""
    fitted, held = halves(len(after), groups, seed)
    x, gap = after - after[fitted].mean(axis=0), before - after
    gap = gap - gap[fitted].mean(axis=0)
    return x[fitted], gap[fitted], x[held], gap[held]


def _orthogonal(matrix: Float[np.ndarray, "r r"]) -> Float[np.ndarray, "r r"]:
    """The nearest orthogonal matrix M (M^T M)^(-1/2) by eigenvalues, a third faster than by singular values.

    Off by 1e-18 condition(M)^2, here 1e-9 or less; Newton-Schulz steps make up for eigenvalues that rounding, or the floor, hit.
    """
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    vectors = vectors * np.maximum(values, 1e-13 * values[-1]) ** -0.25
    found = matrix @ (vectors @ vectors.T)
    for _ in range(30):
        error = found.T @ found - np.eye(len(found))
        if np.abs(error).max() < 1e-10:
            break
        found = found - 0.5 * found @ error
    return found


def _turns(x: Array, gap: Array, penalties: Penalties) -> tuple[Factor, list[Float[np.ndarray, "r r"]]]:
    """A basis Q of the span of both models' states, and for each penalty the K of its rotation I + Q @ K @ Q.T.

    The orthogonal factor of X^T Z + penalty I (Schoenemann 1966, drawn towards the identity), which is I off that span.
    """
    n, d = x.shape
    both = np.vstack([x, x + gap]).T
    basis, rows = np.linalg.qr(both) if 2 * n < d else (np.eye(d), both)
    product, eye = rows[:, :n] @ rows[:, n:].T, np.eye(len(rows))
    return basis, [_orthogonal(product + penalty * eye) - eye for penalty in penalties]


def _procrustes(before: Array, after: Array, groups: Groups, seed: int) -> Map:
    x, z = after - after.mean(axis=0), before - before.mean(axis=0)
    penalties = np.linalg.norm(x) * np.linalg.norm(z) / len(x) * np.array(TURNS)
    fitted, gap, held, lacks = _held_out(before, after, groups, seed)
    basis, turns = _turns(fitted, gap, penalties)
    # what is lacking off the basis is lacking with every penalty
    best = int(np.argmin([np.square(lacks @ basis - (held @ basis) @ turn).sum() for turn in turns]))
    basis, (turn,) = _turns(x, z - x, penalties[[best]])
    return _between_means(before, after, factors=(basis @ turn, basis))


def _regressions(x: Array, gap: Array, ridges: Penalties) -> list[tuple[Factor, Factor]]:
    """For each ridge the factors of gap ~ (x @ left) @ right.T, columns by weight, so that the first r are the fit of rank r.

    Reduced-rank ridge regression (Mukherjee and Zhu 2011): the ridge fit projected on the leading right singular vectors of
    its fitted values, those of the penalty's rows among them; all from n x n products.
    """
    x, gap = _same_products(x, gap)
    values, vectors = np.linalg.eigh(x @ x.T)
    values, turned, found = np.maximum(values, 0.0), vectors.T @ gap, []
    products = turned @ turned.T
    for ridge in ridges:
        share = np.sqrt(values / (values + ridge))[:, None]
        weights, mix = np.linalg.eigh(share * products * share.T)
        kept = np.flatnonzero(weights > 1e-12 * weights[-1])[-MOST_DIRECTIONS:][::-1]
        right = turned.T @ (share * mix[:, kept]) / np.sqrt(weights[kept])
        found.append((x.T @ (vectors @ (turned @ right / (values + ridge)[:, None])), right))
    return found


def _low_rank(before: Array, after: Array, groups: Groups, seed: int) -> Map:
    x, gap = after - after.mean(axis=0), before - after
    ridges = np.square(x).sum() / len(x) * np.array(RIDGES)
    fitted, known, held, lacks = _held_out(before, after, groups, seed)
    saved = np.zeros((len(ridges), MOST_DIRECTIONS + 1))  # of the squared residual, by ridge and rank; nothing by rank 0
    for row, (left, right) in zip(saved, _regressions(fitted, known, ridges), strict=True):
        wanted, given = lacks @ right, held @ left
        row[1 : 1 + right.shape[1]] = np.cumsum((np.square(wanted) - np.square(wanted - given)).sum(axis=0))
    best, rank = np.unravel_index(np.argmax(saved), saved.shape)
    if rank == 0:
        return _between_means(before, after)
    ((left, right),) = _regressions(x, gap - gap.mean(axis=0), ridges[[best]])
    return _between_means(before, after, factors=(left[:, :rank], right[:, :rank]))


def _mispaired(before: Array, after: Array, groups: Groups, seed: int) -> Map:
    return _low_rank(before[_strangers(len(before), groups, seed)], after, groups, seed)


# ---------------------------------------------------------------- the kinds, and what is done with them


@dataclass(frozen=True)
class MapKind:
    """How a map is fitted, whether that takes the same texts under both models, and what it does in words and as a formula.

    In formulas m, s, S are mean, standard deviations and shrunk covariance of the original's states; primed, the updated model's.
    """

    fit: Callable[[Array, Other, Groups, int], Map]
    paired: bool
    words: str
    formula: str


_CENTRE, _SCALE, _CORAL = "m + x - m'", "m + (x - m') * s / s'", "m + (x - m') @ S'^(-1/2) @ S^(1/2)"
_RANK = f"m + (x - m') @ (I + B), rank B <= {MOST_DIRECTIONS}"
REALIGNMENTS: dict[str, MapKind] = {
    "none": MapKind(_none, True, "nothing (control)", "x"),
    "centre": MapKind(_centre, True, "equal means", _CENTRE),
    "centre-scale": MapKind(_centre_scale, True, "equal means and spreads", _SCALE),
    "coral": MapKind(_coral, True, "equal means and covariances", _CORAL),
    "procrustes": MapKind(_procrustes, True, "equal means, turned text by text", "m + (x - m') @ R, R orthogonal"),
    "low-rank": MapKind(_low_rank, True, "equal means, a few directions regressed", _RANK),
    "centre-unpaired": MapKind(partial(_from_halves, _centre), False, "centre from different texts", _CENTRE),
    "centre-scale-unpaired": MapKind(partial(_from_halves, _centre_scale), False, "centre-scale from different texts", _SCALE),
    "coral-unpaired": MapKind(partial(_from_halves, _coral), False, "coral from different texts", _CORAL),
    "mispaired": MapKind(_mispaired, True, "low-rank on wrong pairs (null)", _RANK),
}


def _varying(states: Array, side: str) -> Array:
    if not np.ptp(states, axis=0).any():
        raise StudyError(f"realignment: all {len(states)} states {side} the update are one; pass different texts", REFUSED)
    return states


def _checked(states: States, side: str) -> Array:
    values = Pooled(states).values
    if len(values) < FEWEST:
        raise StudyError(f"realignment: {len(values)} texts {side} the update; pass {FEWEST} or more", REFUSED)
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        what = f"{bad} of {len(values)} states {side} the update"
        raise StudyError(f"realignment: {what} hold NaN or infinity; run the model in bf16 or fp32", REFUSED)
    return _varying(values, side)


def fit_map(name: str, before: States, after: Others, seed: int = 0, groups: Groups = None) -> Map:
    """The map of that kind from states of the updated model to the original's; takes no label.

    groups: which texts belong together and never stand on both sides of a choice on held-out texts; `seed` draws halves and
    wrong pairs. Errors: unknown name, other width, fewer than 10 texts, NaN or infinity, one text repeated, unequal counts.
    """
    if name not in REALIGNMENTS:
        raise StudyError(f"unknown realignment {name!r}; choose one of {', '.join(REALIGNMENTS)}")
    old, new = _checked(before, "before"), _checked(after, "after")
    if old.shape[1] != new.shape[1]:
        widths = f"{old.shape[1]} before and {new.shape[1]} after the update"
        raise StudyError(f"realignment {name!r}: width {widths}; read the same layer of the same model", NOT_COMPARABLE)
    if len(old) != len(new) and (REALIGNMENTS[name].paired or groups is not None):
        remedy = "pass the same texts in the same order, or an unpaired kind without groups"
        raise StudyError(f"realignment {name!r}: {len(old)} texts before and {len(new)} after the update; {remedy}")
    return REALIGNMENTS[name].fit(old, new, groups, seed)


def through(found: Map, readout: Readout) -> Readout:
    """The readout, of any kind, that scores x as `readout` scores the mapped x: each of its weights on x is unfolded.

    With y = target + scale (x - source) + (x - source) L R^T, y @ w = x @ w' + const for w' = scale w + L R^T w; exact. A query's
    constant is the same for all tokens of a text, so that the softmax drops it.
    """
    tensors = dict(readout.tensors)
    for name, bias in (("w", "b"), ("W1", "b1"), ("v", "b"), ("q", None)):
        if name in tensors:
            rows = tensors[name]
            tensors[name] = rows * found.scale + (rows @ found.right) @ found.left.T
            if bias:
                tensors[bias] = tensors[bias] + rows @ found.target - tensors[name] @ found.source
    return replace(readout, tensors=tensors)
