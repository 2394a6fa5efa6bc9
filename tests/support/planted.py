"""Planted data for the tests of monitors: bland matched pairs, activations whose signal is known, variants made by formula."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from helpers.data.splits import ELSEWHERE, SPLITS, THRESHOLD, Example
from helpers.models.activations import POOLINGS, Activations, layers
from helpers.models.encoding import Plan
from helpers.monitors import fitting
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import PROBES
from helpers.monitors.readouts import Ragged
from helpers.updates.variants import Parts

D, DEPTH = 12, 4  # d_model, and the blocks of the tiny model, whose tokenizer the monitors are frozen with


def plan(
    *names: str, pairs: tuple[int, int, int] = (40, 40, 60), depths: Sequence[float] = (0.5, 1.0), attention: bool = False,
    second: int = 0, harmless: int = 0,
) -> Plan:  # fmt: skip
    """So many matched pairs of every task in train, validation and test; attention: the tokens of the first task are kept.

    second: pairs of a second test set. harmless: texts for thresholds of another source.
    """
    sizes = {**dict(zip(SPLITS, pairs, strict=True)), ELSEWHERE: second, THRESHOLD: harmless}
    examples = [
        Example(task, split, label, f"{task}-{split}-{i}", " ".join(["item", str(i), "of", split, *["more"] * (i % 5 + label)]),
                corpus="others" if split in (ELSEWHERE, THRESHOLD) else "")
        for task in names for split, n in sizes.items() for i in range(n) for label in ((0,) if split == THRESHOLD else (1, 0))
    ]  # fmt: skip
    return Plan(tuple(examples), tuple(depths), 40, ((names[0], depths[0]),) if attention else ())


def activations(reading: Plan, strength: float = 3.0, axis: int = 0, seed: int = 0, width: int = D) -> Activations:
    """Noise of which pairs share a part, and `strength` more on one axis where the label is 1; the noise is the seed's."""
    rng = np.random.default_rng(seed)
    labels = np.array([e.label for e in reading.examples])
    groups = np.unique([e.group for e in reading.examples], return_inverse=True)[1]

    def rows(texts: np.ndarray) -> Tensor:
        found = 0.5 * rng.normal(size=(groups.max() + 1, width))[groups[texts]] + rng.normal(size=(len(texts), width))
        found[:, axis] += strength * labels[texts]
        return torch.tensor(found, dtype=torch.float32)

    pooled = {f"{pool}/{layer}": rows(np.arange(len(labels))) for layer in layers(reading.depths, DEPTH) for pool in POOLINGS}
    tokens, offsets = {}, {}
    for task, depth in reading.tokens:
        own, name = np.flatnonzero([e.task == task for e in reading.examples]), f"{task}/{layers((depth,), DEPTH)[0]}"
        lengths = rng.integers(1, 5, size=len(own))
        tokens[name], offsets[name] = rows(np.repeat(own, lengths)), np.cumsum([0, *lengths])
    return Activations(layers(reading.depths, DEPTH), pooled, tokens, offsets, {"texts": len(labels)})


def part_of(found: Activations, whole: Plan, plan: Plan) -> Activations:
    """The activations of a plan whose texts are some of the whole one's."""
    place = {example: i for i, example in enumerate(whole.examples)}
    index = np.array([place[example] for example in plan.examples])
    tokens, offsets = {}, {}
    for name, values in found.tokens.items():
        own = np.flatnonzero([e.task == name.rpartition("/")[0] for e in whole.examples])
        part = Ragged(values, found.offsets[name]).take(np.searchsorted(own, index[np.isin(index, own)]))
        tokens[name], offsets[name] = part.tokens, part.offsets
    return replace(found, pooled={name: rows[index] for name, rows in found.pooled.items()}, tokens=tokens, offsets=offsets)


def changed(found: Activations, how: Callable[[Tensor], Tensor]) -> Activations:
    """The activations of a variant in which every vector went through `how`."""
    pooled, tokens = ({name: how(values) for name, values in part.items()} for part in (found.pooled, found.tokens))
    return replace(found, pooled=pooled, tokens=tokens)


def monitors(found: Activations, reading: Plan, tiny, kinds: Sequence[str] = tuple(PROBES), seed: int = 0) -> list[Monitor]:
    """Monitors of these kinds, frozen on the activations."""
    return fitting.fit_monitors(found, reading, kinds, seed, Parts(tiny, tiny))
