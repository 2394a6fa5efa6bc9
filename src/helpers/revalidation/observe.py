"""Observation: what the base and then the updated model show of a user's texts, one model in memory at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from helpers.data.splits import Example, seen
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import activations, checkpoints, loading
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.models.loading import LanguageModel, causal, encode_text
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors import probes, readings
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import PROBES
from helpers.monitors.readouts import Features, Pooled, Ragged
from helpers.revalidation.candidate import movement, offer
from helpers.revalidation.candidate.movement import Movement
from helpers.revalidation.inputs import Inputs
from helpers.seeding import named_seed
from helpers.stats import roc
from helpers.stats.intervals import mean_interval, rate_interval

TASK = "texts"  # what all texts of a plan are called: monitors of several tasks read the same ones
DEPTHS = (0.2, 0.4, 0.6, 0.8, 1.0)  # where movement is looked at, as far up as the deepest monitor reads
BUDGETS = (512, 384)  # tokens of a batch; the second is the identity control's, whose batches are others
SPOKEN = 32  # texts on which the next token is predicted
Say = Callable[[str], None]


@dataclass(frozen=True)
class Spoken:
    """What a model says next in each of a few texts: log-likelihood of the text's own tokens, and the likeliest ones."""

    totals: Float[np.ndarray, " n"]
    likeliest: tuple[Int[np.ndarray, " tokens"], ...]


@dataclass(frozen=True)
class ObservedPair:
    """Both models' activations of the same texts, those unlabelled first; `again`: the base's once more, in other batches.

    texts and labels: places of the unlabelled and the labelled texts; of `again`, `checked` gives the places it was read at.
    """

    monitors: tuple[Monitor, ...]
    before: Activations
    after: Activations
    again: Activations
    checked: np.ndarray
    texts: np.ndarray
    labels: np.ndarray
    spoken: tuple[Spoken, Spoken]
    moved: Movement


def plan(examples: Sequence[Example], frozen: Sequence[Monitor], depth: int, limit: int, budget: int = BUDGETS[0]) -> Plan:
    """What is read of the texts: all that the monitors read, and more layers below the deepest of them."""
    deepest = max(monitor.layer for monitor in frozen) / depth
    depths = sorted({*(monitor.layer / depth for monitor in frozen), *(d for d in DEPTHS if d < deepest)})
    tokens = {(TASK, monitor.layer / depth) for monitor in frozen if PROBES[monitor.kind].reads == "tokens"}
    return Plan(tuple(replace(row, task=TASK) for row in examples), tuple(depths), limit, tuple(sorted(tokens)), budget)


def features(found: Activations, monitor: Monitor, index: np.ndarray) -> Features:
    """What a monitor reads of the texts at these places."""
    if PROBES[monitor.kind].reads == "pooled":
        return Pooled(found.pooled[f"{monitor.pooling}/{monitor.layer}"][index])
    name = f"{TASK}/{monitor.layer}"
    return Ragged(found.tokens[name], found.offsets[name]).take(index)


def states(found: Activations, monitor: Monitor, index: np.ndarray) -> Float[np.ndarray, "n d"]:
    """The pooled states at a monitor's place; of one that reads tokens, their means."""
    return found.pooled[f"{monitor.pooling or 'mean'}/{monitor.layer}"][index].double().numpy()


def score(found: Activations, frozen: Sequence[Monitor], index: np.ndarray) -> Float[np.ndarray, "k n"]:
    """Scores of monitors (rows) on texts (columns)."""
    return np.array([monitor.score(features(found, monitor, index)) for monitor in frozen])


def cut(monitor: Monitor) -> tuple[float, float]:
    """The frozen threshold that is judged, the 5 % one where there is one, and its nominal rate; nan without any."""
    level = "5" if "5" in monitor.thresholds or not monitor.thresholds else next(iter(monitor.thresholds))
    return monitor.thresholds.get(level, np.nan), roc.RATES[level]


# ---------------------------------------------------------------- both models


def observe(inputs: Inputs, say: Say) -> ObservedPair:
    """Reads all texts with the base, then with the update; fits monitors first where none were given."""
    options, examples = inputs.options, [*inputs.texts, *inputs.labels]
    say(f"loading the base {inputs.base.name}")
    base = loading.load(inputs.base, on=options.device)
    frozen = inputs.monitors or fit(base, inputs, say)
    stored = checkpoints.of_model(inputs.base, base.model, loading.GRIDS["bf16"])
    what = plan(examples, frozen, base.depth, inputs.limit)
    texts, labels = np.split(np.arange(len(examples)), [len(inputs.texts)])
    checked = labels if len(labels) else texts
    say(f"reading {len(examples)} texts with the base")
    before = activations.read(base, what)
    again = activations.read(base, replace(what, examples=tuple(what.examples[i] for i in checked), budget=BUDGETS[1]))
    few = [seen(row) for row in examples[:SPOKEN]]
    spoken = speak(base, few, inputs.limit)
    del base  # one model at a time
    say(f"building the update {inputs.update.name}")
    texts_alone = [seen(row) for row in examples]
    update = offer.build(inputs.update, inputs.base, options.precision, options.device, texts_alone)
    if (update.depth, readings.fingerprint(update.tokenizer)) != (frozen[0].layers, inputs.reads):
        raise StudyError(f"{inputs.update.name}: it reads or stacks otherwise than the base; compare one model", NOT_COMPARABLE)
    say(f"reading {len(examples)} texts with the update")
    after = activations.read(update, what)
    moved = movement.moved(update, inputs.update, options.precision, stored)
    both = (spoken, speak(update, few, inputs.limit))
    return ObservedPair(tuple(frozen), before, after, again, checked, texts, labels, both, moved)


def fit(language: LanguageModel, inputs: Inputs, say: Say) -> list[Monitor]:
    """Monitors of the base from the user's labelled texts: every kind, both poolings, at every depth asked for."""
    options, rows = inputs.options, inputs.training
    found = activations.read(language, Plan(tuple(rows), options.depths, inputs.limit))
    parts = {split: np.flatnonzero([row.split == split for row in rows]) for split in ("train", "validation")}
    labels = np.array([row.label for row in rows])
    known = {"layers": language.depth, "reads": inputs.reads, "limit": inputs.limit, "task": rows[0].task,
             "model": loading.identity(inputs.base)}  # fmt: skip
    frozen = []
    with loading.threads(1):
        for layer in activations.layers(options.depths, language.depth):
            for pooling in activations.POOLINGS:
                states = found.pooled[f"{pooling}/{layer}"].double()
                for kind in options.kinds:
                    frozen.append(_frozen(kind, states, labels, parts, options.seed, pooling, layer, known))
    say(f"fitted {len(frozen)} monitors on {len(parts['train'])} texts, thresholds on {len(parts['validation'])}")
    return frozen


def _frozen(kind, states, labels, parts, seed, pooling, layer, known) -> Monitor:
    own = named_seed(seed, f"{known['task']}/{kind}/{pooling}/{layer}")
    sides = {split: (Pooled(states[index]), labels[index]) for split, index in parts.items()}
    readout = probes.fit_probe(kind, *sides["train"], *sides["validation"], own, f"{known['task']}, {kind}, layer {layer}")
    held, truth = sides["validation"]
    negatives = probes.score(readout, held)[truth == 0]
    return frozen_monitors.freeze(readout, negatives, pooling=pooling, layer=layer, seed=own, **known)


# ---------------------------------------------------------------- behaviour beside the monitors


@torch.no_grad()
def speak(language: LanguageModel, texts: Sequence[str], limit: int) -> Spoken:
    """What the model predicts at every token of the texts but the first; texts of one token are left out."""
    rows = [row for row in (encode_text(language.tokenizer, text, limit) for text in texts) if len(row) > 1]
    inner, totals, likeliest = causal(language.model), np.zeros(len(rows)), []
    for i, row in enumerate(rows):
        ids = torch.tensor([row], device=language.device)
        scores = loading.logits(inner, loading.backbone(inner)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1])
        totals[i] = -float(nn.functional.cross_entropy(scores, ids[0, 1:], reduction="sum"))
        likeliest.append(scores.argmax(dim=1).cpu().numpy())
    return Spoken(totals, tuple(likeliest))


def behaviour(spoken: tuple[Spoken, Spoken]) -> dict[str, Any]:
    """How the update changed what the model says of ordinary texts: log-likelihood a token, perplexity, likeliest next token.

    Intervals are over texts. A refusal rate needs prompts that should be refused, which a user's texts need not be.
    """
    before, after = spoken
    counts = np.array([len(row) for row in before.likeliest])
    if not counts.size:
        return {"texts": 0}
    groups = np.repeat(np.arange(counts.size), counts)
    change = mean_interval(np.repeat((after.totals - before.totals) / counts, counts), groups)
    differs = np.concatenate([a != b for a, b in zip(before.likeliest, after.likeliest, strict=True)])
    return {
        "texts": int(counts.size), "tokens": int(counts.sum()), "log_likelihood_change": change,
        "perplexity": {side: float(np.exp(-one.totals.sum() / counts.sum())) for side, one in
                       (("before", before), ("after", after))},
        "next_token_changed": rate_interval(differs, groups),
    }  # fmt: skip
