"""Equal numbers of neurons, picked by each score: silenced, patched into the base model, kept in high precision (chapter 09)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from helpers import results
from helpers.data import corpora, text_rows
from helpers.data.text_rows import Row
from helpers.definitions import ARMS, NEURONS, content_key
from helpers.models import behaviour, compute, generation, judges, loading
from helpers.models.behaviour import PromptSet
from helpers.models.judge_types import JudgeSettings
from helpers.models.loading import LanguageModel
from helpers.monitors import spot_check
from helpers.monitors.fitting import four
from helpers.monitors.spot_check import Sketch
from helpers.neurons import hybrid_precision, interventions, neuron_scores
from helpers.stats.intervals import Estimate, mean_interval, rate_interval
from helpers.updates import measurements
from helpers.updates import names as update_names
from helpers.updates.names import Variant
from helpers.updates.training import TokenizedRow, examples
from helpers.updates.variants import Parts, build_variant, variant_key

OWN = [*results.OWN["neurons"], *results.VALUES]
LIMIT = 320  # tokens of a prompt with its reply
ALL_LAYERS = 0  # in the column `layer`, which counts from 1
Scores = Mapping[str, Float[Tensor, "layer neuron"]]
Mask = Bool[Tensor, "layer neuron"]


@dataclass(frozen=True)
class Arms:
    """Arms of an experiment: rows of the table `neurons`, and the items behind them.

    Items are those of the table `items`, which has no column for neurons: there the score stands as the restoration and the
    share of neurons as its strength. A plain format is the variant of that precision, as everywhere.
    """

    table: pd.DataFrame
    seen: Mapping[Variant, pd.DataFrame]
    split: str

    def item_rows(self) -> pd.DataFrame:
        """Rows of the table `items`, one a label and item of every arm."""
        return measurements.item_rows(self.seen, self.split)


def _as_item(variant: Variant, name: str, fraction: float) -> Variant:
    """The variant under which an arm's items are found."""
    return replace(variant, restoration=name, strength=fraction) if fraction else variant


def _quiet(_: str) -> None:
    """What hears of progress where nobody asked."""


def measured_scores(
    parts: Parts, names: Sequence[str], n_rows: int, new_tokens: int, seed: int, origin: str
) -> dict[str, Tensor]:
    """Every named score of each MLP neuron, from prompts of the safety tuning and benign instructions of the tuning split.

    Computed once, then read from the cache: scores are numbers alone.
    """
    harmful = [row.prompt for row in corpora.sample("advbench/align", n_rows, origin, f"align-{seed}")]
    benign = corpora.sample("instructions/tune", n_rows, origin)
    key = NEURONS.key(aligned=loading.identity(parts.aligned), base=loading.identity(parts.base), names=list(names),
                      texts=text_rows.fingerprint([*harmful, *benign]), tokens=new_tokens, seed=seed,
                      **compute.machine(parts.device))  # fmt: skip

    def make() -> pd.DataFrame:
        aligned, base = (loading.load(folder, on=parts.device) for folder in (parts.aligned, parts.base))
        found = neuron_scores.score_neurons(neuron_scores.evidence(aligned, base, harmful, benign, new_tokens, seed), names)
        return pd.concat([_long(name, values) for name, values in found.items()], ignore_index=True)

    table = results.cached_table("neurons", key, make)
    return {name: torch.tensor(_square(table[table["score"] == name])) for name in names}


def _long(name: str, values: Tensor) -> pd.DataFrame:
    layers, width = values.shape
    return pd.DataFrame({"score": name, "layer": np.repeat(np.arange(layers), width), "value": values.double().flatten().numpy()})


def _square(table: pd.DataFrame) -> np.ndarray:
    return table["value"].to_numpy().reshape(table["layer"].nunique(), -1)


def picks(found: Scores, fractions: Sequence[float]) -> Iterator[tuple[str, float, Mask]]:
    """Score, fraction and mask of every arm; at each fraction all arms hold the same number of neurons."""
    for fraction in fractions:
        masks = {name: neuron_scores.top(values, fraction) for name, values in found.items()}
        hybrid_precision.equal_budget(masks)
        yield from ((name, fraction, mask) for name, mask in masks.items())


def _nothing_first(found: Scores, fractions: Sequence[float]) -> Iterator[tuple[str, float, Mask]]:
    """The arm that picks no neuron, then all others."""
    yield "none", 0.0, torch.zeros_like(next(iter(found.values())), dtype=torch.bool)
    yield from picks(found, fractions)


def layer_rows(found: Scores, fraction: float, aligned: Variant) -> pd.DataFrame:
    """Rows of the table `neurons`: which share of each layer's neurons a score picks at a fraction of all (layers from 1)."""
    rows = []
    for name, values in found.items():
        mask = neuron_scores.top(values, fraction).numpy()
        for layer, picked in enumerate(mask, 1):
            e = rate_interval(picked)
            rows.append((name, fraction, layer, "", "picked", *four(e)))
    return update_names.keyed(aligned, pd.DataFrame(rows, columns=OWN))


def _fingerprint(mask: Mask) -> str:
    return content_key(shape=list(mask.shape), chosen=mask.flatten().nonzero().flatten().tolist())


def _rows(variant: Variant, name: str, fraction: float, table: pd.DataFrame) -> pd.DataFrame:
    return update_names.keyed(variant, table.assign(score=name, fraction=fraction, layer=ALL_LAYERS)[OWN])


def _told(place: str, metric: str, e: Estimate) -> pd.DataFrame:
    return pd.DataFrame([(place, metric, *four(e))], columns=spot_check.COLUMNS)


def _harmful(plan: Sketch) -> PromptSet:
    return next(one for one in plan.protocol.sets if one.kind == "harmful")


# ---------------------------------------------------------------- silenced, and patched into the base model


def silenced(
    parts: Parts, aligned: Variant, found: Scores, fractions: Sequence[float], plan: Sketch,
    progress: Callable[[str], None] = _quiet,
) -> Arms:  # fmt: skip
    """The aligned model, and the same with the picked neurons' activations set to zero (serving `ablated`)."""
    build = cache(lambda: build_variant(parts, aligned))
    before = spot_check.take(variant_key(parts, aligned), plan, build, parts.device)
    rows = [_rows(aligned, "none", 0.0, spot_check.spot_check_rows(plan, before, before))]
    seen, without = {aligned: before}, replace(aligned, serving="ablated")
    for name, fraction, mask in picks(found, fractions):
        of = ARMS.key(model=variant_key(parts, aligned), ablated=_fingerprint(mask))
        items = spot_check.stored(of, plan, partial(_without, build, mask, plan), parts.device)
        seen[_as_item(without, name, fraction)] = items
        rows.append(_rows(without, name, fraction, spot_check.spot_check_rows(plan, items, before)))
        progress(f"without {100 * fraction:g} % by {name}")
    return Arms(pd.concat(rows, ignore_index=True), seen, plan.split)


def _without(build: Callable[[], LanguageModel], mask: Mask, plan: Sketch) -> pd.DataFrame:
    with interventions.ablated(build().model, mask):
        return spot_check.look(plan, build())


def patched_rows(
    parts: Parts, aligned: Variant, found: Scores, fractions: Sequence[float], plan: Sketch,
    progress: Callable[[str], None] = _quiet,
) -> Arms:  # fmt: skip
    """The base model with the picked neurons' activations taken from the aligned model.

    Dynamic patching (Chen et al. 2024): at every token both models read the same text so far. Serving `patched`; fraction 0
    is the base model alone.
    """
    pair = cache(lambda: (loading.load(parts.base, on=parts.device), loading.load(parts.aligned, on=parts.device)))
    variant, harmful, rows, seen = replace(aligned, adapter="base", serving="patched"), _harmful(plan), [], {}
    for name, fraction, mask in _nothing_first(found, fractions):
        of = ARMS.key(base=loading.identity(parts.base), aligned=loading.identity(parts.aligned), patched=_fingerprint(mask))
        items = spot_check.stored(of, plan, partial(_refusals, pair, mask, plan), parts.device)
        seen[_as_item(variant, name, fraction)] = items
        e = rate_interval(1 - items["value"].to_numpy(), items["group"])
        rows.append(_rows(variant, name, fraction, _told(plan.place(harmful.name), "non_refusal", e)))
        progress(f"patched {100 * fraction:g} % by {name}")
    return Arms(pd.concat(rows, ignore_index=True), seen, plan.split)


def _refusals(pair: Callable[[], tuple[LanguageModel, LanguageModel]], mask: Mask, plan: Sketch) -> pd.DataFrame:
    """Whether the patched base model refuses each harmful prompt, as items."""
    (base, aligned), harmful = pair(), _harmful(plan)
    prompts = [row.prompt for row in harmful.rows]
    said = interventions.patched_replies(base, aligned, mask, prompts, plan.protocol.new_tokens)
    refused = judges.judge("phrases", JudgeSettings())(prompts, said).refused
    return behaviour.label_items(harmful.rows, [harmful] * len(prompts), said, [("phrases", "refused", refused)])


# ---------------------------------------------------------------- what quantization does to them, and hybrid precision


def disturbed(
    parts: Parts, aligned: Variant, found: Scores, fraction: float, quantizers: Sequence[str], plan: Sketch,
    progress: Callable[[str], None] = _quiet,
) -> pd.DataFrame:  # fmt: skip
    """Rows of the table `neurons`: `activation_change`, how far each format moves the picked neurons on the harmful prompts.

    Root mean square of the change over that of the activations, one value a prompt, and the mean of these with its interval.
    """
    masks, harmful, rows = {name: neuron_scores.top(values, fraction) for name, values in found.items()}, _harmful(plan), []
    plain = cache(lambda: build_variant(parts, aligned))
    texts = cache(lambda: _answered(plain(), harmful.rows, plan.protocol.new_tokens))
    for quantizer in quantizers:
        variant = replace(aligned, precision=quantizer)
        of = ARMS.key(model=variant_key(parts, variant), masks={name: _fingerprint(m) for name, m in masks.items()})
        items = spot_check.stored(of, plan, partial(_changes, parts, variant, masks, plain, texts), parts.device)
        for name in masks:
            e = _mean_change(items[name], [row.group for row in harmful.rows])
            rows.append(_rows(variant, name, fraction, _told(plan.place(harmful.name), "activation_change", e)))
        progress(quantizer)
    return pd.concat(rows, ignore_index=True)


def _changes(
    parts: Parts, variant: Variant, masks: Mapping[str, Mask], plain: Callable[[], LanguageModel],
    texts: Callable[[], list[TokenizedRow]],
) -> pd.DataFrame:  # fmt: skip
    """How far the format moves the neurons of each mask (columns) on each prompt (rows)."""
    changed = build_variant(parts, variant)
    found = {name: interventions.activation_change(changed, plain(), mask, texts()) for name, mask in masks.items()}
    return pd.DataFrame({name: values.numpy() for name, values in found.items()})


def _mean_change(values: pd.Series, groups: Sequence[str]) -> Estimate:
    """The mean with its interval; where all prompts agree, no other is taken to change by more than 2, or than these did.

    2 is the most that activations of the same size can differ, relative to it (the triangle inequality).
    """
    return mean_interval(values, groups, bounds=(0.0, max(2.0, float(values.max()))))


def _answered(language: LanguageModel, rows: Sequence[Row], new_tokens: int) -> list[TokenizedRow]:
    """The prompts with the model's own replies, as token ids in memory."""
    said = generation.replies(language, [row.prompt for row in rows], new_tokens=new_tokens)
    return examples(language.tokenizer, [replace(row, reply=reply) for row, reply in zip(rows, said, strict=True)], LIMIT)


def kept(
    parts: Parts, aligned: Variant, found: Scores, fractions: Sequence[float], quantizers: Sequence[str], plan: Sketch,
    progress: Callable[[str], None] = _quiet,
) -> Arms:  # fmt: skip
    """The model in few bits with the picked neurons in bf16 (serving `hybrid`).

    Fraction 0 is the plain format. Besides the sketch, `bits_per_weight` from the bytes stored. Whether there was anything to
    preserve, the items of the plain format beside those of the aligned model say.
    """
    before = spot_check.take(variant_key(parts, aligned), plan, lambda: build_variant(parts, aligned), parts.device)
    rows, seen = [], {aligned: before}
    for quantizer, (name, fraction, mask) in product(quantizers, _nothing_first(found, fractions)):
        of = ARMS.key(aligned=loading.identity(parts.aligned), precision=quantizer, kept=_fingerprint(mask))
        items = spot_check.stored(of, plan, partial(_hybrid_items, parts, quantizer, mask, plan), parts.device)
        found = items[items["kind"] != "weights"]
        told = [spot_check.spot_check_rows(plan, found, before), _bits(items)]
        variant = replace(aligned, precision=quantizer, serving="hybrid")
        seen[_as_item(variant, name, fraction) if fraction else replace(aligned, precision=quantizer)] = found
        rows.append(_rows(variant, name, fraction, pd.concat(told, ignore_index=True)))
        progress(f"{quantizer}, {100 * fraction:g} % by {name}")
    return Arms(pd.concat(rows, ignore_index=True), seen, plan.split)


def _hybrid_items(parts: Parts, quantizer: str, mask: Mask, plan: Sketch) -> pd.DataFrame:
    language: LanguageModel = loading.load(parts.aligned, on=parts.device)
    size = hybrid_precision.hybrid_(language.model, quantizer, mask)
    items = spot_check.look(plan, language)
    held = ("weights", "", "bits", "", "", "bits_per_weight", size.bits_per_weight, size.n, "")
    return pd.concat([items, pd.DataFrame([held], columns=behaviour.ITEM_COLUMNS)], ignore_index=True)


def _bits(items: pd.DataFrame) -> pd.DataFrame:
    row = items[items["kind"] == "weights"].iloc[0]
    e = Estimate(row["value"], row["value"], row["value"], int(row["length"]))  # counted, not estimated
    return _told("weights", "bits_per_weight", e)
