"""Measure once: each variant's behaviour and utility, kept by content and turned into the rows of the tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from helpers import behaviour, compute, judges, records, utility
from helpers.corpora import fingerprint
from helpers.definitions import MEASURE, content_key
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.judges import JudgeSettings
from helpers.names import Variant, keyed
from helpers.statistics import kappa, newcombe_paired
from helpers.subspaces import Spectrum
from helpers.variants import Parts, build_variant, from_table, variant_codes, variant_key


@dataclass(frozen=True)
class Protocol:
    """What is measured on every variant: the same prompts, texts, judges and token budgets."""

    sets: tuple[behaviour.PromptSet, ...]
    utility: utility.UtilitySets
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
    n_harmful: int, n_edgy: int, n_summaries: int, n_documents: int, n_questions: int, new_tokens: int, summary_tokens: int,
    judge_names: Sequence[str] = ("phrases", "fitted"), origin: str = "embedded", **asked,
) -> Protocol:  # fmt: skip
    """The measurement protocol of those sizes; `asked` says where the judges `llm` and `harmbench` are to be found."""
    return Protocol(
        tuple(behaviour.prompt_sets(n_harmful, n_edgy, origin)),
        utility.utility_sets(n_summaries, n_documents, n_questions, origin),
        tuple(judge_names), behaviour.judge_settings(origin, **asked), new_tokens, summary_tokens, origin,
    )  # fmt: skip


def identity_only(plan: Protocol, n_harmful: int) -> Protocol:
    """The protocol of the identity-shift question alone: the AdvBench prompts in that form, no utility."""
    sets = behaviour.prompt_sets(n_harmful, 0, plan.origin, ["advbench-identity"])
    return replace(plan, sets=tuple(sets), utility=utility.UtilitySets({}, {}, {}))


def with_extra(
    parts: Parts, measured: dict[Variant, pd.DataFrame], variants: Sequence[Variant], plan: Protocol
) -> dict[Variant, pd.DataFrame]:
    """The measured items with those of a further protocol added for some of the variants; nothing where only one is named."""
    extra = {v: items(parts, v, plan) for v in variants} if len(variants) > 1 else {}
    return {v: pd.concat([table, extra[v]], ignore_index=True) if v in extra else table for v, table in measured.items()}


def items(parts: Parts, variant: Variant, plan: Protocol) -> pd.DataFrame:
    """The labels of every item of the protocol on a variant: measured once, then read from the cache."""
    key = MEASURE.key(variant=variant_key(parts, variant), plan=plan.key(), **compute.machine(parts.device))
    return records.cached_table("measurements", key, lambda: _measured(parts, variant, plan))


def _measured(parts: Parts, variant: Variant, plan: Protocol) -> pd.DataFrame:
    language = build_variant(parts, variant)
    said = behaviour.measure(language, plan.sets, plan.judge_names, plan.settings, plan.new_tokens, plan.origin)
    return pd.concat([said, utility.measure(language, plan.utility, plan.summary_tokens)], ignore_index=True)


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
    return pd.concat([keyed(v, behaviour.summarize(t[t["kind"] != "utility"])) for v, t in measured.items()], ignore_index=True)


def utility_rows(measured: dict[Variant, pd.DataFrame]) -> pd.DataFrame:
    """The rows of the table `utility` for all measured variants."""
    return pd.concat([keyed(v, utility.summarize(t[t["kind"] == "utility"])) for v, t in measured.items()], ignore_index=True)


def comparison_rows(measured: dict[Variant, pd.DataFrame], reference: Variant) -> pd.DataFrame:
    """The paired change of every refusal rate against a reference variant, with Newcombe's interval (table `comparisons`)."""
    rows = []
    for variant, table in measured.items():
        if variant == reference:
            continue
        joined = _refusals(measured[reference]).join(_refusals(table), lsuffix="_before", how="inner").dropna()
        for (kind, name, judge), part in joined.groupby(level=[0, 1, 2]):
            row = (reference.label, judge, name, f"change_in_{behaviour.NAMES[kind, 'refused']}", *_change(kind, part))
            rows.append(keyed(variant, pd.DataFrame([row], columns=[*records.OWN["comparisons"], *records.VALUES])))
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


def measured_in(run: records.Run, *chapters: str) -> list[Variant]:
    """The variants whose behaviour those chapters measured, each once, in order."""
    tables = [records.read_table(run, "behaviour", chapter) for chapter in chapters]
    return from_table(pd.concat(tables, ignore_index=True))


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the variant's short name in a column `label`."""
    names = [variant.label for variant in from_table(table)]
    return table.assign(label=[names[i] for i in variant_codes(table)])


def subspace_rows(spectra: Sequence[Spectrum], variant: Variant, ranks: Sequence[int] = (8, 32, 128)) -> pd.DataFrame:
    """Rows of the table `subspaces`: size, stable rank and energy in k directions of each V; exact, so no interval has width."""
    found = []
    for s in spectra:
        values = [("norm", "", s.norm), ("relative_norm", "", s.norm / s.base_norm), ("stable_rank", "", s.stable_rank)]
        values += [("energy", str(k), s.energy(k)) for k in ranks if k <= len(s.values)]
        found += [("bf16", s.module, k, metric, value, value, value, s.entries) for metric, k, value in values]
    return keyed(variant, pd.DataFrame(found, columns=["source", "module", "k", "metric", "value", "low", "high", "n"]))


def judge_quality(origin: str = "embedded", seed: int = 0) -> pd.DataFrame:
    """How far the judges agree with people and each other (Cohen's kappa), and the error of HS (proxy) beside a constant."""
    settings = behaviour.judge_settings(origin, seed)
    replies, labels, groups = settings.human_refusals
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
