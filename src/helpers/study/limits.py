"""Limits: what each parameter may be: a range, names of a registry, or what a function of a helper module can read."""

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from helpers.errors import StudyError, nearest

# Parameters whose values must stand in a registry: parameter -> (module, registry, further names).
REGISTRIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "judges": ("models.judges", "JUDGES", ()),
    "quantizers": ("updates.quantizers", "QUANTIZERS", ()),
    "controls": ("updates.weight_errors", "CONTROLS", ()),
    "probes": ("monitors.probes", "PROBES", ()),
    "scores": ("neurons.neuron_scores", "NEURON_SCORES", ()),
    "disturbed": ("updates.quantizers", "QUANTIZERS", ()),
    "hybrids": ("neurons.hybrid_precision", "FORMATS", ()),
}
# Parameters whose values are read by a function of a helper module, which refuses what it cannot read.
PARSERS: dict[str, tuple[str, str]] = {
    "updates": ("updates.recipes", "parse"),
    "servings": ("updates.recipes", "parse_serving"),
    "monitor_tasks": ("data.tasks", "known"),
    "long_tasks": ("data.tasks", "known"),
    "attention": ("monitors.readings", "parse_attention"),
    "simulated": ("monitors.fitting", "parse_simulated"),
    "projected": ("updates.recipes", "parse"),
    "judge_options": ("models.judge_types", "checked_options"),
    "source_updates": ("updates.recipes", "parse"),
    "salora": ("updates.recipes", "parse"),
    "restorations": ("projection.restorations", "parse"),
    "elsewhere": ("projection.restorations", "parse"),
    "measured": ("projection.restorations", "parse"),
    "restoration": ("projection.restorations", "parse"),
    "sources": ("projection.restorations", "parse_source"),
    "v_sources": ("projection.restorations", "parse_source"),
    "rouge": ("projection.restorations", "parse"),
}


@dataclass(frozen=True)
class Limit:
    """What a parameter (or each element of a list) may be: numbers from `low` to `high`, or one of some names."""

    low: float | None = None
    high: float | None = None
    above: bool = False  # the low end itself is excluded
    choices: Callable[[], Collection[object]] | None = None  # a function, so that registries are read only when needed
    reads: Callable[[str], object] | None = None  # a function that raises StudyError, remedy included, for what it cannot read
    may_be_empty: bool = False

    def holds(self, value: object) -> bool:
        """Whether the value lies within the limit."""
        if self.choices is not None:
            return value in self.choices()
        if self.reads is not None:
            return not self._refusal(self.reads, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        low = self.low is None or (value > self.low if self.above else value >= self.low)
        return low and (self.high is None or value <= self.high)

    def _refusal(self, reads: Callable[[str], object], value: Any) -> str:
        try:
            reads(value)
        except StudyError as error:
            return str(error)
        return ""

    def remedy(self, value: object) -> str:
        """What to write instead."""
        if self.reads is not None:
            return self._refusal(self.reads, value)
        if self.choices is None:
            return f"allowed: {'above' if self.above else 'from'} {self.low} up to {self.high}"
        names = sorted(str(name) for name in self.choices())
        return f"{nearest(str(value), names)}allowed: {', '.join(names)}"


_COUNT, _TOKENS, _RATE = Limit(1, 100_000), Limit(1, 512), Limit(0, 0.1, above=True)
LIMITS: dict[str, Limit] = {
    "texts": Limit(choices=lambda: ("embedded", "tiny")),
    "threads": Limit(1, 256),
    "seed": Limit(0, 2**31 - 1),
    **dict.fromkeys(("n_harmful", "n_edgy", "n_references", "n_documents", "n_questions"), _COUNT),
    **dict.fromkeys(("align_refusals", "align_steps", "calibration_rows", "train_rows", "spectrum_depths"), _COUNT),
    "align_benign": Limit(0, 100_000),
    **dict.fromkeys(("new_tokens", "summary_tokens"), _TOKENS),
    "reply_tokens": Limit(1, 128),
    **dict.fromkeys(("align_lr", "train_lr"), _RATE),
    **dict.fromkeys(("attack_check", "attack_steps"), _COUNT),
    "attack_target": Limit(0, 1, above=True),
    "train_epochs": Limit(0, 100, above=True),
    **dict.fromkeys(("rows_train", "rows_validation", "rows_test"), Limit(4, 100_000)),
    **dict.fromkeys(("rows_elsewhere", "rows_threshold", "reply_prompts"), Limit(0, 100_000)),
    **dict.fromkeys(("text_tokens", "long_tokens"), Limit(4, 4096)),
    "simulated_draws": Limit(1, 100),
    "simulated_size": Limit(0, 10, above=True),
    "simulated_depths": Limit(0, 1, above=True),
    "depths": Limit(0, 1, above=True),
    "budgets": Limit(0, 1, above=True),
    "few_labels": Limit(4, 1000),
    **dict.fromkeys(("strengths", "source_strengths", "ablated", "patched", "kept"), Limit(0, 1, above=True)),
    **dict.fromkeys(("sketch_prompts", "sketch_edgy", "sketch_rows", "table_summaries", "score_rows"), _COUNT),
    **dict.fromkeys(("safety_rows", "subspace_depths", "directions"), _COUNT),
    **dict.fromkeys(("sketch_documents", "sketch_dialogues"), Limit(0, 100_000)),
    "sketch_tokens": _TOKENS,
    **dict.fromkeys(("doses", "v_scales"), Limit(0, 1000, above=True)),
    "harder": Limit(0, 100, above=True),
    "rank": Limit(1, 256),
    "alpha": Limit(0, 4096, above=True),
    "chapter_seconds": Limit(1, 30 * 24 * 3600),
    "figure_forms": Limit(choices=lambda: ("all", "light")),
    "compute": Limit(choices=lambda: ("auto", "bf16", "fp32")),
}


def registry_names(module: str, registry: str) -> list[str]:
    """The names in a registry of a helper module, which is imported only when they are asked for."""
    return list(getattr(importlib.import_module(f"helpers.{module}"), registry))


def all_limits() -> dict[str, Limit]:
    """The limits of all parameters, those included that name members of a registry."""

    def names(module: str, registry: str, more: tuple[str, ...]) -> Limit:
        return Limit(choices=lambda: [*more, *registry_names(module, registry)])

    def reads(module: str, parser: str) -> Limit:
        return Limit(reads=lambda value: getattr(importlib.import_module(f"helpers.{module}"), parser)(value), may_be_empty=True)

    written = {parameter: reads(*where) for parameter, where in PARSERS.items()}
    return {**LIMITS, **{parameter: names(*where) for parameter, where in REGISTRIES.items()}, **written}
