"""Definitions: what each kind of stored number means, with the number of that meaning. One page, to be read in every review.

A key names the definition and the inputs, never the code: renames, moves and speed-ups keep every result. The number of a
definition goes up when the same inputs would give other values, and for nothing else; then all that uses it is measured anew.
Golden values hold each definition to its number: `tests/golden.py`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass


def content_key(**parts: object) -> str:
    """A hash of named plain values; the same values give the same key on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Definition:
    """What a stored thing means: its name, the number of that meaning, and the definitions that it rests on.

    code: the helper modules that carry it out. A test watches them, and they tell which chapters ask for the definition; they
    are not part of any key.
    """

    name: str
    version: int
    uses: tuple["Definition", ...] = ()
    code: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"

    @property
    def lineage(self) -> tuple[str, ...]:
        """Name and number of this definition and of all that it rests on, sorted."""
        return lineage([self])

    def key(self, **inputs: object) -> str:
        """The content key of what this definition makes of the inputs."""
        return content_key(definition=self.lineage, **inputs)


def lineage(definitions: Iterable[Definition]) -> tuple[str, ...]:
    """Name and number of each definition and of all that they rest on, sorted."""
    found: set[str] = set()
    todo = list(definitions)
    while todo:
        one = todo.pop()
        found.add(str(one))
        todo += one.uses
    return tuple(sorted(found))


# ---------------------------------------------------------------- what everything rests on

TEXTS = Definition("texts", 1, code=("corpora", "splits", "slots", "tasks", "taskfiles"))  # which are drawn, and their splits
INTERVALS = Definition("intervals", 1, code=("statistics", "roc", "seeds"))
MODELS = Definition("models", 1, code=("models", "prefix"))  # a folder as a model; text as tokens; batches
QUANTIZE = Definition("quantize", 1, (MODELS,), code=("quantizers", "precision", "quantization"))
LOWRANK = Definition("lowrank", 1, code=("lowrank",))
REPLIES = Definition("replies", 1, (MODELS,), code=("generation",))
JUDGES = Definition("judges", 1, code=("judges",))

# ---------------------------------------------------------------- models that are made, and kept

TRAIN = Definition("train", 1, (MODELS, QUANTIZE, LOWRANK), code=("training", "names", "updates"))
SALORA = Definition("salora", 1, (TRAIN,), code=("salora",))
ALIGN = Definition("align", 1, (TRAIN, REPLIES, JUDGES), code=("alignment",))
RESTORE = Definition("restore", 1, (QUANTIZE, LOWRANK), code=("pairs", "subspaces", "ediem", "restorations"))
VARIANT = Definition("variant", 1, (QUANTIZE, LOWRANK), code=("variants",))  # trained and restored ones name more in their keys

# ---------------------------------------------------------------- what is measured on a model, and kept

ENCODE = Definition("encode", 1, (MODELS,), code=("encoding",))
ACTIVATIONS = Definition("activations", 1, (VARIANT, ENCODE), code=("activations",))
MEASURE = Definition("measure", 1, (VARIANT, REPLIES, JUDGES), code=("behaviour", "utility", "measurements"))
PROBES = Definition("probes", 1, (ENCODE,), code=("readouts", "probes", "monitors", "readings", "freezing", "baselines"))
SIGNALS = Definition("signals", 1, (VARIANT,), code=("moved_weights", "signals", "cells"))
SKETCH = Definition("sketch", 1, (ACTIVATIONS, MEASURE, PROBES), code=("sketches",))
NEURONS = Definition("neurons", 1, (TRAIN, ENCODE, REPLIES), code=("neurons",))
ARMS = Definition("arms", 1, (VARIANT, REPLIES, JUDGES), code=("lesions", "hybrid", "arms"))

# ---------------------------------------------------------------- what chapters compute of it; not kept, so in no key

STALENESS = Definition("staleness", 1, (PROBES, INTERVALS), code=("staleness", "interaction", "histograms", "verdicts"))
TRIAGE = Definition("triage", 1, (SIGNALS, INTERVALS), code=("predictors", "rules", "triage", "forecasts"))
PROJECTION = Definition("projection", 1, (RESTORE, SKETCH, INTERVALS), code=("projection", "recoveries"))
SUBSPACES = Definition("subspaces", 1, (RESTORE, SKETCH, INTERVALS), code=("dequantized", "choices", "doses"))
REALIGN = Definition("realign", 1, (PROBES, INTERVALS), code=("realignment", "repairs", "repair_tables", "policies", "rungs"))
FINDINGS = Definition("findings", 1, (INTERVALS,), code=("evidence", "claims", "findings"))

DEFINITIONS: dict[str, Definition] = {one.name: one for one in list(globals().values()) if isinstance(one, Definition)}

# ---------------------------------------------------------------- the modules that change no number of a chapter

# What they change is how a chapter looks: where their code is another than at its run, its figures are older than that code.
DRAWING = (
    *("alts", "arm_tables", "drawn", "figures", "inks", "plates", "tables"),
    *("monitor_figures", "staleness_figures", "triage_figures", "projection_figures"),
    *("subspace_figures", "neuron_figures", "repair_figures", "findings_figures"),
)
# Compute stands in the keys and sources are pinned by their hashes; the others carry values about.
PLAIN = ("compute", "definitions", "errors", "meter", "parameters", "progress", "records", "runs", "sources")
