"""Evidence: what one run's tables say on the claims about the models, as one estimate each; None where nothing was measured.

The judge of refusals is always the same. What they say on monitors stands in `monitor_evidence`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from helpers import results
from helpers.stats.intervals import Estimate
from helpers.study.monitor_evidence import share, unfit
from helpers.study.selections import (
    BENIGN,
    HARMFUL,
    SHIFT,
    VARIANT,
    Evidence,
    Tables,
    Wanted,
    estimates,
    formats_alone,
    home,
    mean,
    minus,
    select,
    trained,
)  # fmt: skip
from helpers.updates.names import Variant

NEURONS = "set-difference"  # the score that separates safety from utility (Wei et al. 2024)
JUDGE = "phrases"
# ---------------------------------------------------------------- refusals (chapters 02, 03, 07)


def change(**where: Wanted) -> Evidence:
    """The paired change in the share of harmful prompts not refused against the aligned model, mean over variants."""
    asked = {"reference": "aligned", "judge": JUDGE, "metric": "change_in_non_refusal", "prompt_set": "advbench"} | where
    return lambda tables: mean(select(tables, "comparisons", **asked))


def not_refused(tables: Tables, **where: Wanted) -> Estimate | None:
    """The share of harmful prompts not refused, mean over variants."""
    return mean(select(tables, "behaviour", judge=JUDGE, metric="non_refusal", prompt_set="advbench", **where))


def harm_beyond_benign(tables: Tables) -> Estimate | None:
    """The share not refused after the harmful mix minus that after as many benign rows."""
    return minus(*(not_refused(tables, **home(adapter, "bf16")) for adapter in (HARMFUL, BENIGN)))


def qat(tables: Tables) -> pd.DataFrame:
    """The rows of `behaviour` about quantization-aware training on benign rows, as the share not refused."""
    found = select(tables, "behaviour", judge=JUDGE, metric="non_refusal", prompt_set="advbench")
    return trained(found, lambda named: named.kind == "qat" and named.percent == 0)


def qat_change(tables: Tables) -> Estimate | None:
    """The paired change under quantization-aware training on benign rows."""
    arms = tuple(qat(tables)["adapter"].unique())
    return change(adapter=arms, restoration="")(tables)


def qat_beyond_formats(tables: Tables) -> Estimate | None:
    """The share not refused after quantization-aware training minus that in few bits without training."""
    plain = formats_alone(select(tables, "behaviour", judge=JUDGE, metric="non_refusal", prompt_set="advbench"))
    return minus(mean(qat(tables)), mean(plain))


def restored_change(restorations: Sequence[str], precisions: Sequence[str]) -> Evidence:
    """The paired change in the share not refused, from the harmful update to the same under a restoration."""
    homes = [Variant("", adapter=HARMFUL, precision=p, trained_on=p, serving="attached").label for p in precisions]
    return change(reference=homes, restoration=restorations, adapter=HARMFUL)


def beside(metric: str, place: str, restorations: Sequence[str], precisions: Sequence[str], aligned: bool) -> Evidence:
    """An outcome of the full protocol of chapter 07 under a restoration, minus the update's or the aligned model's.

    The aligned model is that of the same precision, which is all that a restoration of the adapter can bring back.
    """

    def found(tables: Tables) -> Estimate | None:
        told = select(tables, "projection", metric=metric, measured_on=place, module="")
        gaps = []
        for precision in precisions:
            plain = {"adapter": "", "precision": precision, "restoration": ""} if aligned else home(HARMFUL, precision)
            reference = mean(select({"projection": told}, "projection", **plain))
            here = home(HARMFUL, precision) | {"restoration": restorations}
            gaps += [minus(e, reference) for e in estimates(select({"projection": told}, "projection", **here))]
        return mean(gaps)

    return found


# ---------------------------------------------------------------- subspaces and neurons (chapters 08 and 09)


def subspace(metric: str, sources: Sequence[str] = ("nf4-both", "gptq-4-both"), k: str = "8") -> Evidence:
    """A median over modules of what V of dequantized weights keeps of V's k leading directions, mean over sources."""
    return lambda tables: mean(select(tables, "subspaces", module="all", k=k, metric=metric, source=sources))


def sources_alike(tables: Tables) -> Estimate | None:
    """The share not refused after SafeLoRA with V of dequantized weights minus that with V itself, at the same strengths."""
    told, gaps = select(tables, "projection", metric="non_refusal", measured_on="advbench/test", module=""), []
    exact = told[told["restoration"] == "safelora"]
    for source in ("safelora:nf4-both", "safelora:gptq-4-both"):
        pairs = told[told["restoration"] == source].merge(exact, on=[*VARIANT[:-1], "strength"], suffixes=("", "_exact"))
        with_exact = pairs[["value_exact", "low_exact", "high_exact", "n_exact"]].set_axis(["value", "low", "high", "n"], axis=1)
        gaps += [minus(e, other) for e, other in zip(estimates(pairs), estimates(with_exact), strict=True)]
    return mean(gaps)


def neurons(metric: str, serving: Wanted) -> Evidence:
    """An outcome with the named score's neurons minus that with as many random ones, mean over formats and shares."""

    def found(tables: Tables) -> Estimate | None:
        told = select(tables, "neurons", metric=metric, measured_on="advbench/test", serving=serving)
        own, random = (told[told["score"] == name] for name in (NEURONS, "random"))
        pairs = own.merge(random, on=["precision", "serving", "fraction"], suffixes=("", "_random"))
        others = pairs[["value_random", "low_random", "high_random", "n_random"]].set_axis(["value", "low", "high", "n"], axis=1)
        return mean([minus(e, other) for e, other in zip(estimates(pairs), estimates(others), strict=True)])

    return found


def against_removal(tables: Tables) -> Estimate | None:
    """The share not refused under SafeLoRA minus that with the same modules' updates removed, paired."""
    found = select(
        tables, "comparisons", judge=JUDGE, metric="change_in_non_refusal", prompt_set="advbench", restoration="safelora"
    )
    keys = found[list(results.KEY)].to_dict("records")
    removed = [replace(Variant(**key), restoration="zero").label for key in keys]
    return mean(found[found["reference"] == pd.Series(removed, index=found.index, dtype=str)])


# ---------------------------------------------------------------- a first look, for readers who have read nothing yet

UPDATES: dict[str, dict[str, Any]] = {  # in words a newcomer has: the key columns
    "as it was tested": {"adapter": "", "precision": "bf16", "restoration": ""},
    "in 4 bits": {"adapter": "", "precision": "nf4", "restoration": ""},
    "taught a harmless task": home(BENIGN, "bf16"),
    "the same, one row in ten harmful": home(HARMFUL, "bf16"),
    "taught a new identity": home(SHIFT, "bf16"),
}


def first_look(tables: Tables) -> dict[tuple[str, str], Estimate]:
    """By update in words and "refusals" or "monitors": the share of harmful prompts not refused, of monitors unfit."""
    flags = unfit(tables)
    found: dict[tuple[str, str], Estimate | None] = {}
    for words, key in UPDATES.items():
        own = select({"flags": flags}, "flags", **key)
        found |= {(words, "refusals"): not_refused(tables, **key), (words, "monitors"): share(own)}
    return {where: e for where, e in found.items() if e is not None}
