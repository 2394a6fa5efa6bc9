"""Restorations: a fine-tune's update brought back towards what alignment did, module by module, without training.

A restoration is a rule: which score puts the modules in order, and what a module's left factor becomes. `prepare` applies it
to every module once; `Prepared.at` gives the update in which only a share of the modules is changed. A few rules change every
module, the more the higher the strength. B: d_out x r, A: r x d_in, V = W_aligned - W_base, C = V V^T / ||V||_F; C is never
formed, and a dense update is projected in column blocks.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, nearest, shown
from helpers.projection import safelora, safety_inputs
from helpers.projection.alignment_matrix import Pair
from helpers.projection.safelora import Form, ModuleCase, ModuleScore, left_of, mapped, norm
from helpers.projection.safety_inputs import ModuleInputs
from helpers.seeding import derive_seed
from helpers.updates.lora import LowRank
from helpers.updates.quantizers import QUANTIZERS

WAYS = ("mixed", "both")  # a source quantizes the aligned checkpoint alone, or both

Updates = Mapping[str, Form]  # by module name
Restore = Callable[[ModuleCase], Form]


# ---------------------------------------------------------------- the rules


def _unchanged(case: ModuleCase) -> Form:
    return case.update


def _project(case: ModuleCase) -> Form:
    """C BA."""
    return case.moved


def _zero(case: ModuleCase) -> Form:
    return mapped(case.update, torch.zeros_like)


def _shrink(case: ModuleCase) -> Form:
    """BA at the norm of C BA: as small as projected, in its own directions."""
    size = norm(case.update)
    return mapped(case.update, lambda left: left * (norm(case.moved) / size if size > 0 else 0.0))


def _keep(case: ModuleCase) -> Form:
    """U_k U_k^T BA, on the k leading left singular vectors of V."""
    return _onto(case, safelora.module_leading(case.pair, case.change.module, case.k))


def _remove(case: ModuleCase) -> Form:
    """BA - U_k U_k^T BA, off them."""
    kept = left_of(_keep(case))
    return mapped(case.update, lambda left: left.float() - kept)


def _keep_random(case: ModuleCase) -> Form:
    """The same on k random directions."""
    return _onto(case, safelora.haar_frame(case.change.shape[0], case.k, case.generator))


def _onto(case: ModuleCase, frame: Float[Tensor, "d_out k"]) -> Form:
    return mapped(case.update, lambda left: frame @ (frame.T @ left.float()))


def _conjugate(case: ModuleCase) -> Form:
    """C' BA with C' of one random V' that has the singular values of V."""
    values = safelora.module_singular_values(case.pair, case.change.module)
    return mapped(case.update, lambda left: safelora.conjugated(left.float(), values, case.generator))


# ---------------------------------------------------------------- the whole update at once


def _faded(prepared: "Prepared", strength: float) -> dict[str, Form]:
    """The whole update times 1 - strength."""
    return {module: _times(update, 1 - strength) for module, update in prepared.update.items()}


def _as_small(prepared: "Prepared", strength: float) -> dict[str, Form]:
    """The whole update, scaled to the norm that safelora leaves of it at that strength."""
    rows, chosen = prepared.scores, set(prepared.order[: _share(prepared.scores, strength)])
    after = rows["after"].where(rows["module"].isin(chosen), rows["before"])
    before = float(rows["before"].pow(2).sum())
    left = math.sqrt(float(after.pow(2).sum()) / before) if before > 0 else 0.0
    return {module: _times(update, left) for module, update in prepared.update.items()}


def _times(update: Form, factor: float) -> Form:
    return mapped(update, lambda left: left * factor)


def _right_sided(change: Callable[[Tensor, ModuleInputs, float], Tensor]) -> "Whole":
    """Every module's right factor (a dense change as it is) by what the module reads."""

    def changed(prepared: "Prepared", strength: float) -> dict[str, Form]:
        found: dict[str, Form] = {}
        for module, update in prepared.update.items():
            inputs = prepared.inputs[module]
            if isinstance(update, LowRank):
                found[module] = LowRank(update.left, change(update.right, inputs, strength).to(update.right.dtype))
            else:
                found[module] = change(update, inputs, strength).to(update.dtype)
        return found

    return changed


Pick = Callable[[pd.DataFrame, float], int]  # how many modules a strength changes


def _share(scores: pd.DataFrame, strength: float) -> int:
    """That share of the modules, half a module rounded up (in decimals: 0.29 of 50 is 14.5, and not less)."""
    return int((Decimal(str(strength)) * len(scores)).to_integral_value(ROUND_HALF_UP))


def _below(scores: pd.DataFrame, strength: float) -> int:
    """The modules whose score is at most the strength."""
    return int((scores["score"] <= strength).sum())


def _nothing(scores: pd.DataFrame, strength: float) -> int:
    return 0


Whole = Callable[["Prepared", float], dict[str, Form]]


@dataclass(frozen=True)
class Rule:
    """What a module becomes (None: made by training), the score that orders modules, the number to change, the default k."""

    restore: Restore | None
    score: Callable[[ModuleCase], ModuleScore] = safelora.by_cosine
    pick: Pick = _share
    k: int = 0  # takes none
    whole: Whole | None = None  # instead of choosing modules: what all of them become at a strength
    reads: bool = False  # needs what modules read on the safety rows


# Most controls change the modules that safelora changes: those of lowest cosine first. safelora-last begins at the other end,
# splora-nearest with the least distant, as the authors' code does where it is given a number; random-modules draws lots, three
# times, and removes.
RESTORATIONS: dict[str, Rule] = {
    "none": Rule(_unchanged, pick=_nothing),
    "safelora": Rule(_project),
    "safelora-threshold": Rule(_project, pick=_below),
    "safelora-last": Rule(_project, safelora.by_cosine_falling),
    "splora": Rule(_zero, safelora.by_distance),
    "splora-nearest": Rule(_zero, safelora.by_nearness),
    "salora": Rule(None),
    "safe-delta": Rule(_unchanged, safelora.in_given_order, whole=_right_sided(safety_inputs.least_costly), reads=True),
    "null-space": Rule(_unchanged, safelora.in_given_order, whole=_right_sided(safety_inputs.off_inputs), reads=True),
    "orthogonal-keep": Rule(_keep, k=32),
    "orthogonal-remove": Rule(_remove, k=32),
    "zero": Rule(_zero),
    "norm-matched": Rule(_shrink),
    "random-spectrum": Rule(_conjugate),
    "random-subspace": Rule(_keep_random, k=32),
    **{name: Rule(_zero, safelora.by_lot) for name in ("random-modules", "random-modules-2", "random-modules-3")},
    "shrink": Rule(_zero, safelora.in_given_order, whole=_faded),
    "shrink-to-norm": Rule(_project, whole=_as_small),
}


@dataclass(frozen=True)
class NamedRestoration:
    """A restoration by its full name: the rule, its k (0: none), which weights V is taken from (empty: the checkpoints), and how
    many times as large V is made before.
    """

    name: str
    k: int
    source: str
    scale: float = 1.0


FULL_NAME = re.compile(r"(.+?)(?:-k([0-9]+))?(?:-x([0-9.]+))?")


def parse(name: str) -> NamedRestoration:
    """The parts of `<restoration>[-k<int>][-x<scale>][:<quantizer>-mixed|:<quantizer>-both]`, each checked.

    mixed: V = deq(Q(W_aligned)) - W_base; both: both sides quantized. Which weights the pair holds is the caller's part.
    """
    plain, colon, source = name.partition(":")
    match = FULL_NAME.fullmatch(plain)
    named, k, scale = match.groups() if match else (plain, None, None)
    rule = RESTORATIONS.get(named)
    if rule is None:
        near = nearest(named, RESTORATIONS)
        raise StudyError(f"unknown restoration {shown(name)}; {near}choose one of {', '.join(RESTORATIONS)}")
    if k is not None and (not rule.k or k.startswith("0")):
        takes = "k is a whole number from 1" if rule.k else f"{named!r} takes no k; leave '-k{k}' out"
        raise StudyError(f"restoration {shown(name)}: {takes}")
    return NamedRestoration(named, int(k or rule.k), parse_source(source) if colon else "", _scale(name, scale, source))


def _scale(name: str, scale: str | None, source: str) -> float:
    if scale is None:
        return 1.0
    if not re.fullmatch(r"[1-9][0-9]*(\.[0-9]+)?|0?\.[0-9]*[1-9][0-9]*", scale):
        raise StudyError(f"restoration {shown(name)}: V is made -x{scale} times as large; give a number above 0, such as -x16")
    if source.startswith("gptq"):
        raise StudyError(f"restoration {shown(name)}: GPTQ is calibrated on the aligned model as it is; leave '-x{scale}' out")
    return float(scale)


def parse_source(source: str) -> str:
    """The named source of V, `<quantizer>-mixed` or `<quantizer>-both`, checked."""
    quantizer, dash, way = source.rpartition("-")
    if not dash or quantizer not in QUANTIZERS or way not in WAYS:
        near = nearest(source, [f"{known}-{way}" for known in QUANTIZERS for way in WAYS])
        raise StudyError(
            f"unknown source of V {shown(source)}; {near}write <quantizer>-mixed or <quantizer>-both with one of"
            f" {', '.join(QUANTIZERS)}"
        )
    return source


# ---------------------------------------------------------------- a whole update


@dataclass(frozen=True)
class Restored:
    """An update of the form it came in (modules that were not changed are the same objects), and a row for each module.

    table: module, score, null, z, z_robust, p, changed, and the Frobenius norms before and after.
    """

    update: dict[str, Form]
    table: pd.DataFrame


@dataclass(frozen=True)
class Prepared:
    """Every module's score and what it would become (`scores`: the table at strength 1), and the order of changing them."""

    named: NamedRestoration
    update: Updates
    restored: Mapping[str, Form]
    scores: pd.DataFrame
    order: tuple[str, ...]
    inputs: Mapping[str, ModuleInputs] = field(default_factory=dict, repr=False)

    def at(self, strength: float) -> Restored:
        """The update with that share of the modules changed, half rounded up (safelora-threshold: those with s <= strength)."""
        if not 0 <= strength <= 1:
            raise StudyError(f"strength {strength} of restoration {self.named.name!r} is out of range; use 0 to 1")
        rule = RESTORATIONS[self.named.name]
        if rule.whole is not None:
            return self._everywhere(rule.whole, strength)
        chosen = set(self.order[: rule.pick(self.scores, strength)])
        update = {module: (self.restored if module in chosen else self.update)[module] for module in self.update}
        changed = self.scores["module"].isin(chosen)
        after = self.scores["after"].where(changed, self.scores["before"])
        return Restored(update, self.scores.assign(changed=changed, after=after))

    def _everywhere(self, whole: Whole, strength: float) -> Restored:
        update = whole(self, strength) if strength > 0 else dict(self.update)
        after = [norm(update[module]) for module in self.scores["module"]]
        return Restored(update, self.scores.assign(changed=strength > 0, after=after))


def prepare(
    update: Updates, pair: Pair, name: str, seed: int, progress: Callable[[str], object] | None = None,
    inputs: Mapping[str, ModuleInputs] | None = None,
) -> Prepared:  # fmt: skip
    """Scores and restored modules of an update, for all strengths at once; nothing that is given is changed.

    update: factors, or dense changes W_new - W_aligned, by module name. `progress` is called with each finished module.
    inputs: what modules read on the safety rows, for the rules that ask for it. Errors: an update that does not fit the pair, a
    k beyond a module, V = 0 in a module (all by the module's name), a rule without the inputs that it needs.
    """
    named = parse(name)
    rule = RESTORATIONS[named.name]
    if rule.restore is None:
        raise StudyError(f"restoration {named.name!r} is made by training (helpers.{named.name}), not from a finished update")
    if not update:
        raise StudyError(f"restoration {named.name!r} needs an update, and there is none; give an adapter or a dense change")
    if rule.reads and not inputs:
        raise StudyError(f"restoration {named.name!r} reads safety rows, and there are none; give with_restorations(parts, rows)")
    scores, restored = {}, {}
    for module, given in update.items():
        case = _case(module, given, pair, named, derive_seed(seed, f"{named.name}/{module}"))
        scores[module] = rule.score(case)
        restored[module] = mapped(rule.restore(case), partial(torch.Tensor.to, dtype=left_of(given).dtype))
        if progress:
            progress(module)
    return Prepared(named, dict(update), restored, _table(update, restored, scores), _order(scores), inputs or {})


def _order(scores: Mapping[str, ModuleScore]) -> tuple[str, ...]:
    places = {module: tuple(math.inf if math.isnan(x) else x for x in found.place) for module, found in scores.items()}
    return tuple(sorted(places, key=lambda module: (places[module], module)))


def _table(update: Updates, restored: Updates, scores: Mapping[str, ModuleScore]) -> pd.DataFrame:
    table = pd.DataFrame([{"module": module, **asdict(found)} for module, found in scores.items()]).drop(columns="place")
    return table.assign(changed=True, before=[norm(update[m]) for m in scores], after=[norm(restored[m]) for m in scores])


def _case(module: str, update: Form, pair: Pair, named: NamedRestoration, seed: int) -> ModuleCase:
    if module not in pair.modules:
        raise StudyError(f"update names module {module!r}, which the pair does not have; use its own base", NOT_COMPARABLE)
    change = pair.change(module)
    _check_update(module, update, change.shape)
    if named.k > min(change.shape):
        raise StudyError(
            f"restoration {named.name!r}: k {named.k} is beyond the {min(change.shape)} directions of {module!r}; use fewer"
        )
    return ModuleCase(pair, change, update, named.k, seed)


def _check_update(module: str, update: Form, shape: tuple[int, int]) -> None:
    if isinstance(update, LowRank):
        theirs, rank = (update.left.shape[0], update.right.shape[1]), update.right.shape[0]
    else:
        theirs, rank = tuple(update.shape), 0
    if theirs != shape:
        raise StudyError(f"update of {module!r} is {theirs}, the pair's weights are {shape}; use its own base", NOT_COMPARABLE)
    if rank > min(shape):
        raise StudyError(f"update of {module!r} has rank {rank}, its weight allows {min(shape)}; give a dense change", REFUSED)
    if not math.isfinite(norm(update)):
        raise StudyError(f"update of {module!r} holds NaN or Inf; train it again", REFUSED)
