"""Definitions: what each kind of stored number means, with the number of that meaning. One page, to be read in every review.

A key names the definition and the inputs, never the code: renames, moves and speed-ups keep every result. The number of a
definition goes up when the same inputs would give other values, and for nothing else; then all that uses it is measured anew.
Golden values hold each definition to its number: `make golden`.
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

TEXTS = Definition(  # which are drawn, and their splits
    "texts", 2,
    code=("data.text_rows", "data.near_duplicates", "data.stand_ins", "data.corpora", "data.human_labels", "data.splits",
          "data.pii_templates", "data.elsewhere", "data.tasks", "data.user_files", "data.intake.samples"),
)  # fmt: skip
INTERVALS = Definition(
    "intervals", 2,
    code=("stats.intervals", "stats.over_seeds", "stats.unbalanced", "stats.kappa", "stats.p_values", "stats.roc",
          "stats.paired_aurocs"),
)  # fmt: skip
MODELS = Definition(  # a folder as a model; text as tokens; batches
    "models", 1,
    code=("models.loading", "models.built_in", "models.checkpoints", "models.shared_prefix", "models.formats.decoders",
          "models.formats.fused_experts", "models.foreign.templates"),
)  # fmt: skip
QUANTIZE = Definition(
    "quantize", 1, (MODELS,),
    code=("updates.packed_codes", "updates.quantizers", "updates.quantized_models", "updates.weight_errors"),
)  # fmt: skip
LOWRANK = Definition("lowrank", 1, code=("updates.lora",))
REPLIES = Definition("replies", 1, (MODELS,), code=("models.generation",))
JUDGES = Definition("judges", 2, code=("models.judge_types", "models.judges", "models.judge_llm"))

# ---------------------------------------------------------------- models that are made, and kept

TRAIN = Definition(
    "train",
    2,
    (MODELS, QUANTIZE, LOWRANK),
    code=("updates.training", "updates.preferences", "updates.endings", "updates.names", "updates.recipes"),
)
SALORA = Definition("salora", 2, (TRAIN,), code=("updates.salora",))
ALIGN = Definition("align", 1, (TRAIN, REPLIES, JUDGES), code=("updates.safety_tuning",))
RESTORE = Definition(
    "restore", 2, (QUANTIZE, LOWRANK, TRAIN),
    code=("projection.alignment_matrix", "projection.subspaces", "projection.safelora", "projection.safety_inputs",
          "projection.restorations", "projection.restored_updates"),
)  # fmt: skip
VARIANT = Definition("variant", 1, (QUANTIZE, LOWRANK), code=("updates.variants",))  # its key names update and restoration too

# ---------------------------------------------------------------- what is measured on a model, and kept

ENCODE = Definition("encode", 2, (MODELS,), code=("models.encoding",))
ACTIVATIONS = Definition("activations", 2, (VARIANT, ENCODE), code=("models.activations",))
MEASURE = Definition(
    "measure", 2, (VARIANT, REPLIES, JUDGES), code=("models.behaviour", "models.utility", "updates.measurements")
)
PROBES = Definition(
    "probes", 2, (ENCODE,),
    code=("monitors.readouts", "monitors.probes", "monitors.frozen", "monitors.readings", "monitors.fitting",
          "monitors.baselines"),
)  # fmt: skip
OWN_REPLIES = Definition("own-replies", 1, (ACTIVATIONS, REPLIES, JUDGES, PROBES), code=("staleness.own_replies",))
SIGNALS = Definition(
    "signals", 2, (VARIANT,), code=("staleness.moved_weights", "staleness.drift_signals", "staleness.forecast_data")
)
SKETCH = Definition("sketch", 2, (ACTIVATIONS, MEASURE, PROBES), code=("monitors.spot_check",))
NEURONS = Definition("neurons", 1, (TRAIN, ENCODE, REPLIES), code=("neurons.neuron_scores",))
ARMS = Definition(
    "arms", 2, (VARIANT, REPLIES, JUDGES), code=("neurons.interventions", "neurons.hybrid_precision", "neurons.experiments")
)

# ---------------------------------------------------------------- what chapters compute of it; not kept, so in no key

STALENESS = Definition(
    "staleness", 2, (PROBES, INTERVALS),
    code=("monitors.stale", "staleness.cohorts", "staleness.drops", "staleness.interaction", "staleness.score_histograms",
          "staleness.verdicts"),
)  # fmt: skip
TRIAGE = Definition(
    "triage", 2, (SIGNALS, INTERVALS),
    code=("staleness.predictors", "staleness.threshold_rules", "staleness.order_measures", "staleness.triage"),
)  # fmt: skip
PROJECTION = Definition("projection", 2, (RESTORE, SKETCH, INTERVALS), code=("projection.curves", "projection.recoveries"))
SUBSPACES = Definition(
    "subspaces", 2, (RESTORE, SKETCH, INTERVALS), code=("projection.quantized_subspaces", "projection.stronger_alignment")
)
REALIGN = Definition(
    "realign", 2, (PROBES, INTERVALS),
    code=("monitors.realignment", "monitors.repair_case", "monitors.repairs", "monitors.gate", "monitors.repair_measures",
          "monitors.repair_ladder", "staleness.policies"),
)  # fmt: skip
FINDINGS = Definition(
    "findings", 5, (INTERVALS,),
    code=("study.paired_items", "study.selections", "study.evidence.behaviour", "study.evidence.monitors",
          "study.evidence.repair", "study.evidence.replies", "study.claims", "study.reasons", "study.findings"),
)  # fmt: skip

DEFINITIONS: dict[str, Definition] = {one.name: one for one in list(globals().values()) if isinstance(one, Definition)}

# ---------------------------------------------------------------- the modules that change no number of a chapter

# Figures change how a chapter looks: where their code is another than at its run, its figures are older than that code.
DRAWING = "figures"  # the wing
# Compute stands in the keys and sources are pinned by their hashes; the others carry values about.
PLAIN = (
    *("cache", "console", "definitions", "errors", "folders", "results", "seeding"),
    *("data.intake.files", "data.sources", "data.source_list", "data.downloads", "data.archives"),
    *("models.foreign.boundary", "models.foreign.culprit", "models.foreign.settings_file", "models.foreign.tokens"),
    "models.foreign.fetched",
    *("models.compute", "models.meter", "study.limits", "study.parameters", "study.session"),
)
