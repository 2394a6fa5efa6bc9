"""What modules read while the model refuses, and the restorations that act on that side of an update BA (chapter 07).

X "n d_in" holds a module's inputs at n tokens of the safety rows, harmful prompts with their refusals, on the aligned model.
Both methods multiply BA from the right, so low rank stays low rank: A alone changes, and the strength grows in every module.

null-space, after GuardSpace (Zhang et al. 2025, arXiv 2510.14301): BA (I - U U^T), U the leading right singular vectors of X,
so that nothing is added to what a module puts out where the model refuses. The paper constrains an adapter so while it learns,
and its code leaves it the eigenvectors of X^T X below 1e-6 of the largest value; here a finished update is projected, and the
strength is the share of the directions of X that are taken away, strongest first.

safe-delta, after Safe Delta (Lu et al., ICML 2025): with H = X^T X / n, keeping the change d_m of a weight costs safety
d_m^2 / (2 [H^-1]_mm) and gains utility d_m^2, so the gain for each unit of cost is 2 [H^-1]_mm, a number of the input coordinate
alone. The coordinates S with the most are kept, the strength is the share R that is not, and there the change becomes what
costs least beside the rest, d_R = -d_S H_SR H_RR^-1 (the Optimal Brain Surgeon's step; Hassibi and Stork 1993). The authors' code
stops at a sum of costs where this stops at a share of coordinates, may end within one, and makes up for what is kept in later
columns only, as SparseGPT does; 1 % of the mean of H's diagonal is added to it, as there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.data.text_rows import Row
from helpers.models import loading, shared_prefix
from helpers.models.loading import LanguageModel
from helpers.updates import quantizers, salora, training

DAMPING = 0.01  # of the mean of H's diagonal, as in the code of Safe Delta
LOST = 1e-6  # singular values below this share of the largest are rounding


@dataclass(frozen=True, eq=False)
class ModuleInputs:
    """What a module reads on the safety rows; what follows from it is computed when it is asked for, and kept."""

    states: Float[Tensor, "n d_in"]

    @cached_property
    def directions(self) -> Float[Tensor, "d_in k"]:
        """Orthonormal directions of the inputs, strongest first, as many as their numerical rank."""
        x = self.states.double()
        small = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        squares, vectors = (found.flip(-1) for found in torch.linalg.eigh(small))
        values = squares.clamp_min(0).sqrt()
        kept = vectors[:, values > LOST * values[0]]
        right = kept if x.shape[0] > x.shape[1] else x.T @ kept
        return torch.linalg.qr(right)[0].float()

    def curvature(self) -> Float[Tensor, "d_in d_in"]:
        """H with its damping, in float64; made anew each time, since those of all modules weigh more than a model."""
        found = (self.states.T @ self.states).double() / len(self.states)
        found.diagonal().add_(DAMPING * found.diagonal().mean())
        return found

    @cached_property
    def order(self) -> Float[Tensor, " d_in"]:
        """The input coordinates by falling [H^-1]_mm: what can be changed at the least cost comes first."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.curvature()))
        return inverse.diagonal().argsort(descending=True, stable=True)


def off_inputs(right: Float[Tensor, "r d_in"], inputs: ModuleInputs, strength: float) -> Float[Tensor, "r d_in"]:
    """A (I - U U^T), where U are that share of the directions of the inputs (null-space)."""
    taken = inputs.directions[:, : round(strength * inputs.directions.shape[1])]
    return right.float() - (right.float() @ taken) @ taken.T


def least_costly(right: Float[Tensor, "r d_in"], inputs: ModuleInputs, strength: float) -> Float[Tensor, "r d_in"]:
    """A with that share of the coordinates given back, made up for at the least cost to safety (safe-delta)."""
    given_back = round(strength * right.shape[1])
    kept, rest = inputs.order.split([right.shape[1] - given_back, given_back])
    h, found = inputs.curvature(), right.double().clone()
    step = torch.linalg.solve(h[rest][:, rest], h[rest][:, kept] @ found[:, kept].T) if given_back else found[:, rest].T
    found[:, rest] = -step.T
    return found.float()


# ---------------------------------------------------------------- reading them


@lru_cache(1)
@torch.no_grad()
def safety_inputs(folder: Path, rows: tuple[Row, ...], device: str = "cpu") -> dict[str, ModuleInputs]:
    """What every linear module of the blocks reads on the rows, from the model of a folder, behind what all rows open with."""
    language = loading.load(folder, on=device)
    told = salora.one_batch(training.examples(language.tokenizer, rows, training.Recipe.limit))
    ids = loading.pad([row.ids for row in told], language.tokenizer.pad_token_id).to(language.device)
    opening = shared_prefix.common([row.ids for row in told])
    places = salora.drawn_places([(opening, len(row.ids)) for row in told], ids.shape[1], salora.TOKENS).to(language.device)
    found: dict[str, ModuleInputs] = {}
    with _reading(language, places, found):
        loading.backbone(language.model)(input_ids=ids, use_cache=False)
    return found


@contextmanager
def _reading(language: LanguageModel, places: Tensor, found: dict[str, ModuleInputs]) -> Iterator[None]:
    last: list[tuple[Tensor, ModuleInputs]] = []

    def hook(module: torch.nn.Module, inputs: Sequence[Tensor], name: str) -> None:
        if not last or last[0][0] is not inputs[0]:  # queries, keys and values read the same states: held once
            last[:] = [(inputs[0], ModuleInputs(inputs[0].flatten(0, -2)[places].float().cpu()))]
        found[name] = last[0][1]

    modules = {name: language.model.get_submodule(name) for name in quantizers.linear_names(language.model)}
    handles = [module.register_forward_pre_hook(partial(hook, name=name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
