"""Measure once: each variant's behaviour and utility, kept by content and turned into the rows of the tables."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers import cache, results
from helpers.cache import atomic_file
from helpers.data.text_rows import fingerprint
from helpers.definitions import ACTIVATIONS, MEASURE, content_key
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import behaviour, compute, judges
from helpers.models import utility as utility_measures
from helpers.models.activations import Activations, read
from helpers.models.encoding import Plan
from helpers.models.judge_types import JudgeSettings
from helpers.models.loading import LanguageModel
from helpers.stats.intervals import newcombe_paired
from helpers.stats.kappa import kappa
from helpers.updates.names import Variant, keyed
from helpers.updates.variants import Parts, build_variant, variant_key


@dataclass(frozen=True)
class Protocol:
    """What is measured on every variant: the same prompts, texts, judges and token budgets."""

    sets: tuple[behaviour.PromptSet, ...]
    utility: utility_measures.UtilitySets
    judge_names: tuple[str, ...]
    settings: JudgeSettings
    new_tokens: int
    summary_tokens: int
    origin: str

    def key(self) -> str:
        """A hash of everything that the measured values depend on, besides the variant."""
        texts = [repr(self.sets), repr(self.utility), repr(self.settings.human_refusals), repr(self.settings.human_severity)]
        vocabulary = sorted(behaviour.known_words(self.origin))  # the yardstick of coherence
        settings = self.settings
        return content_key(texts=fingerprint(texts), vocabulary=fingerprint(vocabulary), judges=self.judge_names,
                           opening=settings.opening, asked=(settings.model, settings.endpoint, settings.classifier),
                           seed=settings.seed, tokens=(self.new_tokens, self.summary_tokens))  # fmt: skip


def protocol(
    n_harmful: int, n_edgy: int, n_references: int, n_documents: int, n_questions: int, new_tokens: int,
    judge_names: Sequence[str] = ("phrases", "fitted"), origin: str = "embedded", asked: Mapping[str, Any] | None = None,
) -> Protocol:  # fmt: skip
    """The measurement protocol of those sizes; `asked` says where the judges `llm` and `harmbench` are to be found."""
    return Protocol(
        tuple(behaviour.prompt_sets(n_harmful, n_edgy, origin)),
        utility_measures.utility_sets(n_references, n_documents, n_questions, origin),
        tuple(judge_names), behaviour.judge_settings(origin, **(asked or {})), new_tokens, 0, origin,
    )  # fmt: skip


def identity_only(plan: Protocol, n_harmful: int) -> Protocol:
    """The protocol of the identity-shift question alone: the AdvBench prompts in that form, no utility."""
    sets = behaviour.prompt_sets(n_harmful, 0, plan.origin, ["advbench-identity"])
    return replace(plan, sets=tuple(sets), utility=utility_measures.UtilitySets({}, {}, {}))


def summaries_only(plan: Protocol, n_summaries: int, summary_tokens: int) -> Protocol:
    """The protocol of generated summaries alone, for ROUGE in the literature's form: no prompts, no likelihoods."""
    return replace(plan, sets=(), utility=utility_measures.summary_sets(n_summaries, plan.origin), summary_tokens=summary_tokens)


def with_extra(
    parts: Parts, measured: dict[Variant, pd.DataFrame], variants: Sequence[Variant], plan: Protocol
) -> dict[Variant, pd.DataFrame]:
    """The measured items with those of a further protocol added for some of the variants; nothing where only one is named."""
    extra = {v: items(parts, v, plan) for v in dict.fromkeys(variants)} if len(variants) > 1 else {}
    return {v: pd.concat([table, extra[v]], ignore_index=True) if v in extra else table for v, table in measured.items()}


def items(parts: Parts, variant: Variant, plan: Protocol) -> pd.DataFrame:
    """The labels of every item of the protocol on a variant: measured once, then read from the cache."""
    key = MEASURE.key(variant=variant_key(parts, variant), plan=plan.key(), **compute.machine(parts.device))
    return results.cached_table("measurements", key, lambda: _measured(parts, variant, plan))


def _measured(parts: Parts, variant: Variant, plan: Protocol) -> pd.DataFrame:
    language = build_variant(parts, variant)
    said = behaviour.measure_behaviour(
        language, plan.sets, plan.judge_names, plan.settings, plan.new_tokens, plan.origin, brief=plan.judge_names == ("phrases",)
    )
    useful = utility_measures.measure_utility(language, plan.utility, plan.summary_tokens)
    return pd.concat([part for part in (said, useful) if len(part)], ignore_index=True)


def measure(parts: Parts, variants: Iterable[Variant], plan: Protocol, progress=None) -> dict[Variant, pd.DataFrame]:
    """The items of several variants, with one step of progress each."""
    found = {}
    for variant in variants:
        found[variant] = items(parts, variant, plan)
        if progress:
            progress(variant.label)
    return found


def behaviour_rows(measured: dict[Variant, pd.DataFrame]) -> pd.DataFrame:
    """The rows of the table `behaviour` for all measured variants."""
    return pd.concat(
        [keyed(v, behaviour.summarize_behaviour(t[t["kind"] != "utility"])) for v, t in measured.items()], ignore_index=True
    )


def utility_rows(measured: dict[Variant, pd.DataFrame]) -> pd.DataFrame:
    """The rows of the table `utility` for all measured variants."""
    return pd.concat(
        [keyed(v, utility_measures.summarize_utility(t[t["kind"] == "utility"])) for v, t in measured.items()], ignore_index=True
    )


def item_rows(measured: Mapping[Variant, pd.DataFrame], split: str = "") -> pd.DataFrame:
    """The rows of the table `items` for all measured variants: one a label (refused, coherent, restates) or nll and item.

    An item is named by a hash, never by its text, and has the same name in every variant and seed: rows can be paired by it.
    With `split`, for what was sketched, the name of each set is followed by it, as in `advbench/test`. What a judge failed on
    has no row.
    """
    return pd.concat([keyed(v, _item_labels(table, split)) for v, table in measured.items()], ignore_index=True)


def _item_labels(table: pd.DataFrame, split: str) -> pd.DataFrame:
    prompts, texts = table["kind"].isin(["harmful", "edgy"]), table["kind"] == "utility"
    kept = (prompts & table["metric"].isin(["refused", "coherent", "restates"])) | (texts & (table["metric"] == "nll"))
    found = table[kept & table["value"].notna()]
    own = prompts[found.index] & (found["judge"] == "")  # what needs no judge stands beside the judge of phrases
    rows = pd.DataFrame({
        "judge": found["judge"].mask(own, "phrases"), "prompt_set": found["set"] + (f"/{split}" if split else ""),
        "item": found["item"], "metric": found["metric"], "value": found["value"].astype(float),
    })  # fmt: skip
    rows = rows.assign(low=rows["value"], high=rows["value"], n=1)
    return rows.drop_duplicates(["judge", "prompt_set", "item", "metric"], ignore_index=True)


def comparison_rows(measured: dict[Variant, pd.DataFrame], reference: Variant) -> pd.DataFrame:
    """The paired change of every refusal rate against a reference variant, with Newcombe's interval (table `comparisons`)."""
    rows = []
    for variant, table in measured.items():
        if variant == reference:
            continue
        joined = _refusals(measured[reference]).join(_refusals(table), lsuffix="_before", how="inner").dropna()
        for (kind, name, judge), part in joined.groupby(level=[0, 1, 2]):
            row = (reference.label, judge, name, f"change_in_{behaviour.NAMES[kind, 'refused']}", *_change(kind, part))
            rows.append(keyed(variant, pd.DataFrame([row], columns=[*results.OWN["comparisons"], *results.VALUES])))
    if not rows:
        raise StudyError(
            f"nothing to compare with {reference.label!r}: measure another variant on the same prompts", NOT_COMPARABLE
        )
    return pd.concat(rows, ignore_index=True)


def _refusals(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["metric"] == "refused"].set_index(["kind", "set", "judge", "item"])[["value"]]


def _change(kind: str, part: pd.DataFrame) -> tuple[float, float, float, int]:
    before, after = part["value_before"].to_numpy(), part["value"].to_numpy()
    e = newcombe_paired(1 - before, 1 - after) if kind == "harmful" else newcombe_paired(before, after)
    return e.value, e.low, e.high, e.n


def judge_quality(origin: str = "embedded", seed: int = 0) -> pd.DataFrame:
    """How far the judges agree with people and each other (Cohen's kappa), and the error of HS (proxy) beside a constant."""
    settings = behaviour.judge_settings(origin, seed)
    replies, labels, groups = behaviour.labelled_refusals(origin)
    by_phrase = judges.judge("phrases", settings)([""] * len(replies), replies).refused
    by_fit = judges.out_of_fold(replies, labels, groups, seed)
    rows = [("phrases and people", "kappa", kappa(by_phrase, list(map(bool, labels)), groups))]
    rows += [
        ("fitted and people", "kappa", kappa(by_fit, list(map(bool, labels)), groups)),
        ("phrases and fitted", "kappa", kappa(by_phrase, by_fit, groups)),
    ]
    if settings.human_severity:
        error = judges.cross_validated_error(*settings.human_severity, seed=seed)
        rows += [
            ("HS (proxy) and people", "mean absolute error", error.model),
            ("always the middle, and people", "mean absolute error", error.constant),
        ]
    return pd.DataFrame(
        [(who, what, e.value, e.low, e.high, e.n) for who, what, e in rows], columns=["who", "what", "value", "low", "high", "n"]
    )


NOTE = "activations"  # the entry of a stored file that says what is in it


def stored(parts: Parts, variant: Variant, plan: Plan, build: Callable[[], LanguageModel] | None = None) -> Activations:
    """The activations of a variant: read once, then mapped from the cache; a file that is torn or altered is made again.

    `build` gives the model where the caller has a way to share it; it is called only if the activations are not there.
    """
    of = {"variant": variant_key(parts, variant), "plan": plan.key()}
    key = ACTIVATIONS.key(**of, **compute.machine(parts.device))

    def made() -> Kept:
        language = build() if build else build_variant(parts, variant)
        try:
            return _taken_apart(read(language, plan))
        except StudyError as error:
            raise StudyError(f"variant {variant.label}: {error}", error.code) from error

    return _put_together(*stored_tensors("activations", key, of, made))


Kept = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and a note on them in JSON's own types


def _taken_apart(found: Activations) -> Kept:
    offsets = {name: torch.from_numpy(values) for name, values in found.offsets.items()}
    groups = {"pooled": found.pooled, "tokens": found.tokens, "offsets": offsets}
    tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    return tensors, {"layers": found.layers, "counts": found.counts}


def _put_together(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Activations:
    def group(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    offsets = {name: tensor.numpy() for name, tensor in group("offsets/").items()}
    return Activations(tuple(about["layers"]), group("pooled/"), group("tokens/"), offsets, about["counts"])


def stored_tensors(kind: str, key: str, of: Mapping[str, str], make: Callable[[], Kept]) -> Kept:
    """Tensors and the note on them: made once, then mapped from the cache; a file that is torn or altered is made again.

    of: what they are of, which the file repeats, so that it is never taken for another's.
    """
    path = cache.cache_path(kind, f"{key}.safetensors")
    with cache.alone(path):
        found = _load(path, of)
        if found is None:
            made = make()
            atomic_file(path, partial(_save, made, of))
            found = _load(path, of) or made
        return found


def _save(made: Kept, of: Mapping[str, str], path: Path) -> None:
    tensors, about = made
    note = json.dumps({"of": of, **about})
    # one entry: safetensors writes several in an order that changes, and equal content should give equal bytes
    save_file(tensors, path, metadata={NOTE: f"{_checksum(note, tensors)} {note}"})


def _load(path: Path, of: Mapping[str, str]) -> Kept | None:
    """The tensors of a file, mapped, not copied; None where it is absent, torn, altered, or of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            checksum, _, note = (file.metadata() or {}).get(NOTE, "").partition(" ")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if checksum != _checksum(note, tensors) or (about := json.loads(note)).pop("of") != of:
        return None
    return tensors, about


def _checksum(note: str, tensors: dict[str, Tensor]) -> str:
    """CRC-32 of the note and of every tensor with its name and shape: it sees any flipped byte, at 5 GB/s."""
    total = zlib.crc32(note.encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy(), total)
    return f"{total:08x}"
