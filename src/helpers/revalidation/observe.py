"""Observation: what the base and then the updated model show of a user's texts, one model in memory at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from helpers.data.splits import Example, seen
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import activations, checkpoints, loading
from helpers.models.activations import Activations
from helpers.models.checkpoints import Stored
from helpers.models.encoding import Plan
from helpers.models.loading import LanguageModel
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors import probes, readings
from helpers.monitors.exchange.plain_texts import as_read
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import PROBES
from helpers.monitors.readouts import Features, Pooled, Ragged
from helpers.revalidation.behaviour import replies, speech
from helpers.revalidation.behaviour.comparison import PairedItems
from helpers.revalidation.behaviour.replies import AskedPrompts, Replied
from helpers.revalidation.behaviour.speech import Spoken
from helpers.revalidation.candidate import movement, offer
from helpers.revalidation.candidate.movement import Movement
from helpers.revalidation.inputs import Inputs
from helpers.seeding import named_seed
from helpers.stats import roc

TASK = "texts"  # what all texts of a plan are called: monitors of several tasks read the same ones
DEPTHS = (0.2, 0.4, 0.6, 0.8, 1.0)  # where movement is looked at, as far up as the deepest monitor reads
BUDGETS = (512, 384)  # tokens of a batch; the second is the identity control's, whose batches are others
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class ObservedBase:
    """What the base shows of all texts, those unlabelled first, and of some once more; what it says; its weights as stored.

    again: read in other batches, at the places `checked`: those of labelled texts, or of all where there are none.
    """

    monitors: tuple[Monitor, ...]
    what: Plan
    before: Activations
    again: Activations
    checked: np.ndarray
    few: tuple[str, ...]
    spoken: Spoken
    replied: Replied | None
    stored: Stored


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
    said: tuple[PairedItems, ...]
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


def observe(inputs: Inputs, prompts: AskedPrompts | None, say: Say) -> ObservedPair:
    """Reads all texts with the base, then with the update; fits monitors first where none were given."""
    return observe_update(inputs, prompts, observe_base(inputs, prompts, say), say)


def observe_base(inputs: Inputs, prompts: AskedPrompts | None, say: Say) -> ObservedBase:
    """What the base shows and says; it is gone from memory afterwards."""
    options, examples = inputs.options, [*inputs.texts, *inputs.labels]
    say(f"loading the base {inputs.base.name}")
    base = loading.load(inputs.base, on=options.device, linear=False)
    frozen = inputs.monitors or fit(base, inputs, say)
    stored = checkpoints.of_model(inputs.base, base.model, loading.GRIDS["bf16"])
    what = plan(examples, frozen, base.depth, inputs.limit)
    checked = np.arange(len(inputs.texts) if inputs.labels else 0, len(examples))
    reader = replace(base, tokenizer=as_read(base.tokenizer, inputs.template))
    say(f"reading {len(examples)} texts with the base")
    before = activations.read(reader, what)
    again = activations.read(reader, replace(what, examples=tuple(what.examples[i] for i in checked), budget=BUDGETS[1]))
    few = tuple(seen(row) for row in examples[: speech.TEXTS])
    spoken, replied = speech.speak(base, few, inputs.limit), _replied(base, prompts, options.reply_tokens, say)
    return ObservedBase(tuple(frozen), what, before, again, checked, few, spoken, replied, stored)


def observe_update(inputs: Inputs, prompts: AskedPrompts | None, base: ObservedBase, say: Say) -> ObservedPair:
    """What the updated model shows and says of the same, beside the base."""
    options, examples = inputs.options, [*inputs.texts, *inputs.labels]
    say(f"building the update {inputs.update.name}")
    texts_alone = [seen(row) for row in examples]
    update = offer.build(inputs.update, inputs.base, options.precision, options.device, texts_alone)
    reader = replace(update, tokenizer=as_read(update.tokenizer, inputs.template))
    if (update.depth, readings.fingerprint(reader.tokenizer)) != (base.monitors[0].layers, inputs.reads):
        raise StudyError(f"{inputs.update.name}: it reads or stacks otherwise than the base; compare one model", NOT_COMPARABLE)
    say(f"reading {len(examples)} texts with the update")
    after = activations.read(reader, base.what)
    moved = movement.moved(update, inputs.update, options.precision, base.stored)
    both = (base.spoken, speech.speak(update, base.few, inputs.limit))
    replied, said = _replied(update, prompts, options.reply_tokens, say), speech.items(*both)
    if prompts and base.replied and replied:
        said = [*replies.paired(prompts, base.replied, replied), *said]
    texts, labels = np.split(np.arange(len(examples)), [len(inputs.texts)])
    return ObservedPair(base.monitors, base.before, after, base.again, base.checked, texts, labels, both, tuple(said), moved)


def _replied(language: LanguageModel, prompts: AskedPrompts | None, new_tokens: int, say: Say) -> Replied | None:
    """What a model replies to the prompts; None where there are none."""
    if prompts is None:
        return None
    say(f"replying to {len(prompts.rows)} prompts")
    return replies.reply(language, prompts, new_tokens)


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
