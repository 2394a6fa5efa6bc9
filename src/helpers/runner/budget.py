"""The budget: how many tokens a run will read and train, counted from its texts and its grid before anything runs.

Each kind of pass is counted as it is made: the same texts as tokens, in the same batches, padding included, and the same
grid of variants and points. What depends on the models themselves is not known yet and taken at its most: every reply is as
long as it may be, and the sketch reads as deep as the deepest of `depths`.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from helpers.data import corpora
from helpers.data.text_rows import Row
from helpers.errors import StudyError
from helpers.models import behaviour, encoding, utility
from helpers.models.meter import Tokens
from helpers.monitors import fitting, readings, spot_check
from helpers.projection import stronger_alignment
from helpers.projection.restorations import RESTORATIONS, parse
from helpers.projection.restored_updates import SAFETY_ROWS
from helpers.runner.passes import (
    Lengths,
    Reader,
    Values,
    activations,
    calibrated,
    heard,
    padded,
    reader,
    replies,
    said,
    trained,
    useful,
)
from helpers.staleness import own_replies
from helpers.updates import endings, recipes, safety_tuning, salora, training

# tokens of one seed: forward, and three times those trained; of cpu only the first has the arms of doses besides, and the seeds
# from the fourth on are lean
BUDGETS = {"quick": 0.45e6, "cpu": 3.5e6}


# ---------------------------------------------------------------- what is measured


def protocol(of: Reader, v: Values) -> float:
    """Tokens of the full protocol on one variant."""
    sets = behaviour.prompt_sets(v["n_harmful"], v["n_edgy"], of.texts)
    texts = utility.utility_sets(v["n_references"], v["n_documents"], v["n_questions"], of.texts)
    return said(of, sets, v["new_tokens"]) + useful(of, texts)


def reading(of: Reader, v: Values) -> encoding.Plan:
    """The texts that monitors read, by the parameters of chapter 04."""
    asked = v["attention"] if "attention" in v["probes"] else []
    rows = [v[f"rows_{split}"] for split in ("train", "validation", "test", "elsewhere", "threshold")]
    later = {task: int(v["long_tokens"]) for task in v["long_tasks"]}
    return readings.plan(v["monitor_tasks"], v["depths"], asked, rows, v["text_tokens"], of.texts, later, v["seed"])


def on_variant(of: Reader, v: Values) -> float:
    """Tokens of what a variant reads of them."""
    return activations(of, readings.on_variants(reading(of, v)))


def _simulated(of: Reader, v: Values) -> float:
    """Tokens of the training texts under simulated updates."""
    models = sum(v["simulated_draws"] if name == fitting.LOW_RANK else 1 for name in v["simulated"])
    train = tuple(e for e in reading(of, v).examples if e.split == "train")
    return models * activations(of, replace(reading(of, v), examples=train, depths=tuple(v["simulated_depths"]), tokens=()))


def sketch(of: Reader, v: Values, monitors: Values, split: str) -> float:
    """Tokens of one sketch: a few prompts, a few texts, and the texts of one split at the deepest layer."""
    sets = spot_check.prompt_sets(split, v["sketch_prompts"], v["sketch_edgy"], of.texts)
    texts = spot_check.utility_sets(split, v["sketch_dialogues"], v["sketch_documents"], of.texts)
    kept = spot_check.first_rows(reading(of, monitors), split, v["sketch_rows"])
    read = activations(of, replace(reading(of, monitors), examples=kept, tokens=()))
    return said(of, sets, v["sketch_tokens"]) + useful(of, texts) + read


def _safety_tuning(of: Reader, v: Values, checks: int) -> Tokens:
    rows = corpora.alignment_rows(v["align_refusals"], v["align_benign"], of.texts, v["seed"])
    tuned = trained(of, rows, safety_tuning.safety_recipe(v["align_steps"], len(rows), v["align_lr"], v["seed"]))
    target = safety_tuning.Target()
    sets = (corpora.sample(name, target.prompts, of.texts) for name in ("advbench/validation", "edgy/validation"))
    return tuned + Tokens(checks * sum(replies(of.prompts(rows), target.tokens) for rows in sets))


def _update(of: Reader, v: Values, name: str, kind: str = "", steps: int = 0) -> Tokens:
    """One training, as long as it may be at most; of preference tuning as many steps as what it is held against."""
    named, count = recipes.parse(name), v["train_rows"]
    rows = corpora.mix(named.mix, named.rows or count, named.percent, of.texts, v["seed"])
    most = steps or (v["attack_steps"] if recipes.attacks_of(v["updates"]) else 0)
    recipe = recipes.update_recipe(named, count, v["train_epochs"], v["train_lr"], v["rank"], v["alpha"], v["seed"], most)
    tuned = trained(of, rows, recipe)
    if kind == salora.KIND:
        safety = corpora.alignment_rows(v["safety_rows"], 0, of.texts, v["seed"])
        tuned += Tokens(sum(_one_batch(of, read) for read in (safety, rows)))
    return tuned


def _one_batch(of: Reader, rows: Sequence[Row]) -> int:
    """Tokens of the one batch in which modules are looked at, padding included."""
    batch = salora.one_batch(training.examples(of.tokenizer, rows, training.Recipe.limit))
    return len(batch) * max(len(example.ids) for example in batch)


# ---------------------------------------------------------------- chapters


def _models(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    v = all_values["01"]
    shown = Tokens(replies(of.prompts([Row("Name three colours of the rainbow.", "")]), 24))
    looks = 1 + (v["align_steps"] - 1) // safety_tuning.CHECK_EVERY
    made = _safety_tuning(of, v, 1 if v["aligned_model"] else looks)
    return shown + (Tokens(made.forward) if v["aligned_model"] else made) + Tokens(2 * protocol(of, v))


def _quantization(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    v = all_values["02"]
    gptq = sum(calibrated(of, v, name) for name in v["quantizers"] if name.startswith("gptq"))
    return Tokens((len(v["controls"]) + len(v["quantizers"])) * protocol(of, all_values["01"]) + gptq)


def _finetuning(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    v, asked = all_values["03"], all_values["01"]
    trainings, breaking = recipes.trainings(v["updates"]), endings.Attack()
    found = sum((_update(of, v, name, "", 0 if whole else max(marks)) for name, (whole, marks) in trainings.items()), Tokens())
    prompts = of.prompts(corpora.sample("advbench/validation", breaking.prompts, of.texts))
    looks = len(recipes.attacks_of(v["updates"])) * math.ceil(v["attack_steps"] / v["attack_check"])
    served = [recipes.parse_serving(name)[1:] for name in v["servings"]]
    merged = sum(precision.startswith("gptq") and serving != "attached" for precision, serving in served)
    shifted = sum(recipes.parse(name).mix == "identity-shift" for name in v["updates"])
    sets = behaviour.prompt_sets(asked["n_harmful"], 0, of.texts, ["advbench-identity"]) if shifted else []
    also = (1 + shifted) * said(of, sets, asked["new_tokens"]) if shifted else 0.0
    whole = (len(v["updates"]) + len(served)) * protocol(of, asked) + looks * replies(prompts, breaking.tokens)
    return found + Tokens(whole + merged * calibrated(of, v) + also)


def _monitors(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    v = all_values["04"]
    alone = readings.aligned_alone(reading(of, v))
    return Tokens(on_variant(of, v) + (activations(of, alone) if alone.examples else 0.0) + _simulated(of, v))


def _staleness(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    formats, tuned = all_values["02"], all_values["03"]
    count = 1 + sum(len(part) for part in (formats["controls"], formats["quantizers"], tuned["updates"], tuned["servings"]))
    return Tokens(count * on_variant(of, all_values["04"]) + _own_replies(of, all_values, count))


def _own_replies(of: Reader, all_values: Mapping[str, Values], variants: int) -> float:
    """Tokens of every variant's own replies, and of those that monitors are fitted on."""
    v = all_values["05"]
    if not v["reply_prompts"]:
        return 0.0
    how = own_replies.asked(v["reply_prompts"], all_values["04"]["depths"], v["reply_tokens"], of.texts)
    return variants * heard(of, how.test, how) + heard(of, how.fitted, how) + heard(of, how.harmless, how)


def _projection(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    v, tuned, monitors = all_values["07"], all_values["03"], all_values["04"]
    found = sum((_update(of, ChainMap(v, tuned), name, salora.KIND) for name in v["salora"]), Tokens())
    drawn = [v["restorations"] if i == 0 else v["elsewhere"] for i in range(len(v["projected"]))]
    points = 1 + _low(v["projected"]) + sum(1 + len(names) * len(v["strengths"]) for names in drawn)
    restored = [name for names in drawn for name in v["measured"] if name in names] + ["salora"] * len(v["salora"])
    whole_cost = protocol(of, all_values["01"]) + on_variant(of, monitors)
    cost = points * sketch(of, v, monitors, "validation") + len(restored) * whole_cost
    if any(RESTORATIONS[parse(name).name].reads for names in drawn for name in names):
        cost += _one_batch(of, corpora.alignment_rows(SAFETY_ROWS, 0, of.texts, v["seed"]))
    if v["rouge"]:
        told = 1 + _low(v["projected"]) + len(drawn) + sum(name in v["rouge"] for name in restored)
        cost += told * useful(of, utility.summary_sets(v["table_summaries"], of.texts), v["summary_tokens"])
    return found + Tokens(cost)


def _low(updates: Sequence[str]) -> int:
    """In how many low precisions the updates are served, the aligned model being looked at in each."""
    return len({recipes.parse(name).trained_on for name in updates} - {"bf16"})


def _subspaces(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    v, first, monitors = all_values["08"], all_values["01"], all_values["04"]
    tuned = _safety_tuning(of, first, 1) * len(v["harder"])
    names = 2 + len(v["sources"]) + len(stronger_alignment.scaled_names(v["restoration"], v["v_scales"], v["v_sources"]))
    points = 1 + _low(v["source_updates"]) + len(v["source_updates"]) * (1 + names * len(v["source_strengths"]))
    formed = {source.rpartition("-")[0::2] for source in v["sources"] if source.startswith("gptq")}
    base = any(sides == "both" for _, sides in formed)
    return tuned + Tokens(points * sketch(of, v, monitors, "test") + base * calibrated(of, v))


PASSES = {"activation-contrast": (2, 0, 0), "wanda": (2, 0, 0), "outlier": (0, 1, 0)}  # over refusals, over use, with gradients


def _neurons(of: Reader, all_values: Mapping[str, Values]) -> Tokens:
    v, monitors = all_values["09"], all_values["04"]
    harmful = corpora.sample("advbench/align", v["score_rows"], of.texts, f"align-{v['seed']}")
    benign = training.examples(
        of.tokenizer, corpora.sample("instructions/tune", v["score_rows"], of.texts), training.Recipe.limit
    )
    asked = of.prompts(harmful)
    safety = _exchanges([len(row) + v["sketch_tokens"] for row in asked])
    use = _exchanges([len(example.ids) for example in benign])
    scored = replies(asked, v["sketch_tokens"])
    scored += sum(a * safety + b * use for a, b, _ in (PASSES.get(name, (0, 0, 0)) for name in v["scores"]))
    snip = bool({"snip", "set-difference"} & set(v["scores"])) * safety + ("set-difference" in v["scores"]) * use
    one, arms = sketch(of, v, monitors, "test"), len(v["scores"])
    prompts = of.prompts(corpora.sample("advbench/test", v["sketch_prompts"], of.texts))
    patched = 2 * replies(prompts, v["sketch_tokens"], whole=True) * (1 + len(v["patched"]) * arms)
    answered = _exchanges([len(row) + v["sketch_tokens"] for row in prompts])
    moved = replies(prompts, v["sketch_tokens"]) + 2 * answered * arms * len(v["disturbed"])
    points = len(v["ablated"]) * arms + len(v["hybrids"]) * (1 + len(v["kept"]) * arms)
    again = 0 if _same_sketch(v, all_values["08"]) else 1  # the aligned model's own: chapter 08 has taken it
    return Tokens(scored + (points + again) * one + patched + moved, snip)


def _exchanges(lengths: Lengths) -> float:
    return float(padded(lengths, encoding.token_batches(lengths, 512)))


def _same_sketch(one: Values, other: Values) -> bool:
    return all(one[name] == other[name] for name in one if name.startswith("sketch_"))


CHAPTERS: dict[str, Callable[[Reader, Mapping[str, Values]], Tokens]] = {
    "01_models": _models,
    "02_quantization": _quantization,
    "03_finetuning": _finetuning,
    "04_monitors": _monitors,
    "05_staleness": _staleness,
    "07_projection": _projection,
    "08_subspaces": _subspaces,
    "09_neurons": _neurons,
}  # fmt: skip; a chapter that is not listed reads no model: it works on what others have stored


def count(values: Mapping[str, Values]) -> dict[str, Tokens]:
    """The tokens of every chapter of one run, by the chapter's name, from an empty cache; `values` are its parameters."""
    return {name: _one(name, values) for name in values}


def total(found: Mapping[str, Tokens]) -> Tokens:
    """The tokens of all chapters together."""
    return sum(found.values(), Tokens())


# ---------------------------------------------------------------- which parameter weighs most


def heaviest(values: Mapping[str, Values]) -> tuple[str, float]:
    """The parameter whose halving would save most, and how many tokens that is: numbers and lists are cut in half."""
    read: dict[str, set[str]] = {chapter: set() for chapter in values}
    whole, found = {chapter: _one(chapter, values, read[chapter]) for chapter in values}, {}
    names = {name for own in values.values() for name, value in own.items() if _halved(value) is not None}
    for name in sorted(names - {"seed", "threads", "align_lr", "train_lr", "alpha"}):
        less = {chapter: {**own, name: _halved(own[name])} if name in own else own for chapter, own in values.items()}
        touched = [chapter for chapter in values if name in read[chapter]]
        with suppress(StudyError):  # half of it may be no plan at all, such as a task that another parameter names
            found[name] = sum(whole[chapter].cost - _one(chapter, less).cost for chapter in touched)
    best = max(found, key=found.__getitem__)
    return best, found[best]


class _Noted(dict):
    """Parameters that note the names of those that are read."""

    def __init__(self, values: Values, read: set[str]):
        super().__init__(values)
        self.read = read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def _one(chapter: str, values: Mapping[str, Values], read: set[str] | None = None) -> Tokens:
    """The tokens of one chapter; the names of all parameters that they depend on are added to `read`."""
    first = next(iter(values.values()))
    of, noted = reader(str(first["model"]), str(first.get("texts", "embedded"))), set() if read is None else read
    numbered = {name[:2]: _Noted(own, noted) for name, own in values.items()}
    return CHAPTERS[chapter](of, numbered) if chapter in CHAPTERS else Tokens()


def _halved(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return value // 2
    return value[: math.ceil(len(value) / 2)] if isinstance(value, list) and len(value) > 1 else None


def over(profile: str, cost: float) -> str:
    """By how much a count is over the budget of its profile, in words; nothing where it is within, or has none."""
    most = BUDGETS.get(profile, math.inf)
    return "" if cost <= most else f"{cost / 1e6:.2f} M tokens a seed, {100 * (cost / most - 1):.0f} % over {most / 1e6:.2f} M"
