"""Movement: how far an update's weights lie from the base's, and from which block on anything is not the same.

Both sides are the tensors that transformers loaded, read through `checkpoints.of_model`. A merged model that is served as it is
stored is compared in the values stored on both sides; what a quantizer or an adapter made, with the base as it was read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import checkpoints, loading
from helpers.models.activations import Activations
from helpers.models.checkpoints import Stored
from helpers.models.formats import decoders
from helpers.models.loading import LanguageModel
from helpers.revalidation.candidate.offer import Candidate
from helpers.staleness import moved_weights

ROUNDED = frozenset({"int8", "fp32"})  # precisions that round activations otherwise too, which no weight shows


@dataclass(frozen=True)
class Movement:
    """||W' - W|| / ||W|| over the matrices of the blocks, and `lowest`, the first block that is not the same bit by bit.

    lowest is 0 where the embedding or a setting changed too, the depth where only what follows the blocks did, and above it
    where nothing did: a monitor on layer l reads what blocks 0 to l - 1 made.
    """

    relative: float
    lowest: int


@torch.no_grad()
def moved(language: LanguageModel, update: Candidate, served_in: str, base: Stored) -> Movement:
    """How far the updated weights lie from the base's, one module at a time; squares summed in float64."""
    grid = loading.GRIDS["fp32" if served_in == "fp32" else "bf16"]
    plain = update.kind == "merged" and update.folder is not None and served_in in loading.GRIDS
    own = checkpoints.of_model(update.folder, language.model, grid) if plain and update.folder else None
    change, size, depth = 0.0, 0.0, language.depth
    touched, linear = [depth + 1], set()
    for name, weight in _matrices(language):
        linear.add(name)
        old, new = _pair(base, own, name, weight)
        gap = float((new - old).square().sum(dtype=torch.float64))
        change, size = change + gap, size + float(old.square().sum(dtype=torch.float64))
        touched += [_block(name, depth)] if gap > 0 else []
    touched += [_block(name, depth) for name, pair in (update.adapter or {}).items() if pair.norm() > 0]
    if update.kind == "merged":
        touched += [_block(name, depth) for name in _others(language, base, own, linear)]
    if {served_in, update.name} & ROUNDED or any(one.what.startswith("config") for one in update.differing):
        touched.append(0)
    return Movement((change / size) ** 0.5 if size > 0 else 0.0, min(touched))


def _matrices(language: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 value of each matrix of the blocks: of linear modules as they multiply, else as it is (fused experts)."""
    inner = loading.causal(language.model)
    others = decoders.other_matrices(inner)
    if len(others) < sum(parameter.ndim > 1 for block in loading.blocks(inner) for parameter in block.parameters()):
        yield from ((f"{name}.weight", weight) for name, weight in moved_weights.effective_weights(language.model))
    yield from ((name, inner.get_parameter(name).detach().float()) for name in others)


def _pair(base: Stored, own: Stored | None, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The base's tensor and the update's, as stored where both are, else as both were read."""
    old, new = base(name), weight if own is None else own(name)
    if old.shape != new.shape:
        what = f"{name} has shape {tuple(new.shape)}, the base's {tuple(old.shape)}"
        raise StudyError(f"{what}; compare updates of one model", NOT_COMPARABLE)
    if own is None:
        old = loading.on_grid(old.float())
    return old.float().to(new.device), new.float()


def _others(language: LanguageModel, base: Stored, own: Stored | None, linear: set[str]) -> Iterator[str]:
    """The parameters outside the blocks' linear modules that are not the base's, and those that only one side has."""
    held = {name: p for name, p in language.model.named_parameters(remove_duplicate=False) if name not in linear}
    for name in sorted({*held, *base.keys} - linear):
        if name not in held or name not in base.keys:
            yield name
            continue
        old, new = base(name).float(), held[name].cpu().float() if own is None else own(name).float()
        if not torch.equal(new, old if own is not None else loading.on_grid(old)):
            yield name


def _block(name: str, depth: int) -> int:
    """The block of a parameter; the embedding stands below all of them, the final norm and the head above."""
    found = re.search(r"\.(\d+)\.", name)
    if found:
        return int(found[1])
    return 0 if "embed" in name else depth


def unexplained(before: Activations, after: Activations, lowest: int) -> Sequence[str]:
    """The places at which states differ though nothing that makes them does: those of layers up to the first changed block."""
    return sorted(
        name for name, states in before.pooled.items()
        if int(name.split("/")[1]) <= lowest and not torch.equal(states, after.pooled[name])
    )  # fmt: skip
