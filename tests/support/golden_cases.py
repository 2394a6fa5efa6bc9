"""What each definition makes of fixed inputs: small enough for seconds, chosen so that most lines of its code run.

The models are tiny and their weights come from numpy's generator, which gives the same numbers on every machine. Everything is
planted here or in `planted.py`; where an input must change, the golden values must be made anew, so change none without need.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from test_claims import world
from test_policies import many
from test_predictors import planted as cells_with

from helpers import cache as cache_files
from helpers import results
from helpers.data import corpora, pii_templates, splits, tasks, text_rows, user_files
from helpers.figures import models, monitors, repair_tables, staleness_tables
from helpers.figures import subspaces as subspace_figures
from helpers.models import activations, behaviour, built_in, encoding, generation, judges, loading, utility
from helpers.models.judge_types import JudgeSettings
from helpers.monitors import fitting, readings, repair_ladder, spot_check
from helpers.monitors import frozen as frozen_monitors
from helpers.neurons import experiments, hybrid_precision, interventions, neuron_scores
from helpers.projection import (
    alignment_matrix,
    curves,
    quantized_subspaces,
    recoveries,
    restorations,
    safelora,
    safety_inputs,
    stronger_alignment,
    subspaces,
)
from helpers.projection.alignment_matrix import Pair
from helpers.projection.restored_updates import with_restorations
from helpers.results import Run
from helpers.staleness import (
    cohorts,
    drift_signals,
    drops,
    forecast_data,
    interaction,
    own_replies,
    policies,
    predictors,
    score_histograms,
    triage,
    verdicts,
)
from helpers.stats import intervals as stats_intervals
from helpers.stats import kappa, over_seeds, p_values, paired_aurocs, roc
from helpers.study import findings
from helpers.updates import (
    lora,
    measurements,
    names,
    preferences,
    quantized_models,
    quantizers,
    recipes,
    safety_tuning,
    salora,
    training,
    variants,
    weight_errors,
)
from helpers.updates.lora import LowRank
from helpers.updates.names import Variant
from helpers.updates.training import Recipe
from helpers.updates.variants import Parts
from support import given, planted
from support.angles import principal_angles
from support.bland import things
from support.grams import collect_grams

TASKS = ("toxicity", "jailbreak")
CALIBRATION = tuple(f"The {noun} stands by the door and somebody will paint it soon. " * 3 for noun in ("lamp", "river", "boat"))
ALIGNED = Variant("tiny")
LORA = replace(ALIGNED, adapter="lora-dialogue", trained_on="bf16", serving="attached")
RECIPE = Recipe(epochs=1, lr=1e-3, batch=2, rank=2, alpha=4, limit=60, steps=3)


# ---------------------------------------------------------------- the same numbers on every machine


def numbers(*shape: int, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    """Gaussian numbers of numpy's generator, as a float32 tensor."""
    return torch.tensor(size * np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def _saved(name: str, size: float) -> Path:
    """The folder of a tiny model: weights from numbers, and for `size` above 0 changed by a few directions of that size."""
    from transformers import LlamaForCausalLM

    folder = cache_files.cache_folder() / "models" / f"golden-{name}"
    if not folder.is_dir():
        model = LlamaForCausalLM(built_in.tiny_config(num_hidden_layers=2))
        with torch.no_grad():
            for place, parameter in enumerate(model.parameters()):
                if parameter.ndim == 2:
                    left, right = (numbers(side, 3, seed=100 * place + i) for i, side in enumerate(parameter.shape))
                    parameter.copy_(numbers(*parameter.shape, seed=place, size=0.08) + size * left @ right.T)
        loading.save(loading.LanguageModel(model.to(torch.bfloat16), built_in.tiny_tokenizer(), folder), folder)
    return folder


@cache
def pair_of_models() -> Parts:
    """A base and an aligned model."""
    return with_restorations(Parts(_saved("base", 0.0), _saved("aligned", 0.01), CALIBRATION))


def loaded(dtype: str = "fp32") -> loading.LanguageModel:
    """The aligned model, fresh."""
    return loading.load(pair_of_models().aligned, dtype)


@cache
def rows() -> tuple[text_rows.Row, ...]:
    """Rows to train on."""
    return tuple(corpora.mix("dialogue", 6, 34, "tiny", 0))


@cache
def parts() -> Parts:
    """The pair with a trained adapter, and with whole weights that moved."""
    found = pair_of_models()
    folder = variants.train_update(found, rows(), RECIPE, "bf16")
    whole = cache_files.cache_folder() / "updates" / "golden-whole"
    whole.mkdir(parents=True, exist_ok=True)
    weights = {name: loaded().model.get_submodule(name).weight for name in quantizers.linear_names(loaded().model)}
    moved = {f"{name}.weight": w + numbers(*w.shape, seed=i, size=0.01) for i, (name, w) in enumerate(weights.items())}
    save_file(moved, whole / "weights.safetensors")
    (whole / "recipe.json").write_text("{}")
    return found.with_update("lora-dialogue", "bf16", folder).with_update("full-dialogue", "bf16", whole)


@cache
def texts_read() -> encoding.Plan:
    """A plan of labelled stand-in texts."""
    return readings.plan(TASKS, [0.5, 1.0], [f"{TASKS[0]}:0.5"], (8, 20, 10), 40, "tiny")


@cache
def frozen() -> tuple[frozen_monitors.Monitor, ...]:
    """Monitors frozen on what the aligned model holds of those texts."""
    found = measurements.stored(pair_of_models(), ALIGNED, texts_read())
    return tuple(fitting.fit_monitors(found, texts_read(), ["logistic", "mean-difference", "attention"], 0, pair_of_models()))


PLAN = planted.plan(*TASKS, pairs=(30, 40, 40), depths=(0.5,), attention=True)
BASE = planted.activations(PLAN, strength=2.0)
TURNED = planted.changed(BASE, lambda x: x + 0.6 * x.roll(1, dims=1) + 1.5 * torch.eye(planted.D)[0])


@cache
def planted_monitors() -> tuple[frozen_monitors.Monitor, ...]:
    """Monitors of most kinds on planted activations."""
    kinds = ["logistic", "mean-difference", "lda", "attention", names.CONTROL]
    return tuple(planted.monitors(BASE, PLAN, loading.tiny(), kinds))


@cache
def observed() -> drops.Observed:
    """What the planted monitors say on an update and its quantized parts."""
    qlora = replace(LORA, precision="nf4", trained_on="nf4")
    seen = {
        ALIGNED: BASE,
        LORA: TURNED,
        replace(ALIGNED, precision="nf4"): planted.changed(BASE, lambda x: 0.9 * x),
        qlora: planted.changed(TURNED, lambda x: x + 0.2 * x.roll(2, dims=1)),
    }
    references = drops.references(planted_monitors(), BASE, PLAN)
    tables, scores = [], {}
    for variant, found in seen.items():
        compared = {task: drops.compare(one, found, PLAN) for task, one in references.items()}
        tables.append(names.keyed(variant, pd.concat([table for table, _ in compared.values()], ignore_index=True)))
        scores[variant] = {task: after for task, (_, after) in compared.items()}
    return drops.Observed(pd.concat(tables, ignore_index=True), references, scores)


IN_USE = {task: f"{task}/logistic-mean/2" for task in TASKS}
CHOSEN = {task: {"monitor": name, "of": 3} for task, name in IN_USE.items()}


@cache
def sketch() -> spot_check.Sketch:
    """A quick look: a few prompts and texts, and one monitor a task."""
    monitors_in_use = tuple(next(m for m in frozen() if m.task == task and m.kind == "logistic") for task in TASKS)
    sets = spot_check.prompt_sets("test", 4, 3, "tiny"), spot_check.utility_sets("test", 3, 1, "tiny")
    protocol = measurements.Protocol(*sets, ("phrases",), JudgeSettings(), 3, 0, "tiny")
    reading = spot_check.restricted(texts_read(), monitors_in_use, "test", 4)
    return spot_check.Sketch(protocol, reading, monitors_in_use, "test")


# ---------------------------------------------------------------- one case a definition


def texts():
    corpora_read = ("advbench/align", "advbench/test", "edgy/validation", "dialogue/test", "instructions/tune", "c4/test", "piqa")
    sampled = {name: text_rows.fingerprint(corpora.sample(name, 5, "tiny", "salt")) for name in corpora_read}
    mixed = {name: text_rows.fingerprint(corpora.mix(name, 8, 25, "tiny", 1)) for name in corpora.MIXES}
    asked = {task: text_rows.fingerprint(tasks.examples(task, "tiny", 6, 6, 6)) for task in TASKS}
    words = [
        splits.Example("t", "train", i % 2, things(i // 2, 6), things(i // 2, 6) + " and so on" * (i % 2)) for i in range(40)
    ]
    dealt = splits.balanced(splits.in_splits(splits.linked(words)), 8)
    own = cache_files.cache_folder() / "golden.jsonl"
    given.write(own, given.labelled(24))
    return {
        "sampled": sampled,
        "mixed": mixed,
        "asked": asked,
        "dealt": text_rows.fingerprint(dealt),
        "aligned on": text_rows.fingerprint(corpora.alignment_rows(4, 4, "tiny", 1)),
        "slots": pii_templates.generic("[NAME] in [CITY]"),
        "own": text_rows.fingerprint(user_files.read_labelled(own)),
        "clipped": corpora.clip("One two. Three four five. Six.", 3),
    }


def intervals():
    rng = np.random.default_rng(0)
    labels, groups = np.arange(60) % 2, np.repeat(np.arange(20), 3)
    before, after = rng.normal(size=60) + labels, rng.normal(size=60) + 0.5 * labels
    hits, later = (before > 0.5).astype(float), (after > 0.5).astype(float)
    contrast = paired_aurocs.auroc_contrast(labels, np.array([before, after]), (1, -1), groups)
    s, bounded = stats_intervals, [stats_intervals.mean_interval(x, groups, bounds=(-5, 5)) for x in (before, after)]
    return {
        "means": bounded,
        "two": s.paired_difference(before, after, groups),
        "wilson": [s.wilson(k, 9) for k in (0, 4, 9)],
        "rates": [s.rate_interval(hits, groups), s.rate_interval(np.ones(8)), s.newcombe_paired(hits, later)],
        "alike": s.mean_interval(np.ones(8), bounds=(0.0, 2.0)),
        "levels": over_seeds.two_level([before[:20], after[:20], before[20:40]], groups[:20]),
        "kappa": kappa.kappa(hits.astype(bool), later.astype(bool), groups),
        "holm": p_values.holm([0.01, 0.04, 0.03, 0.2]),
        "tost": p_values.tost(0.01, 0.02, 0.05, 12),
        "knife": s.jackknife(1.0, [0.9, 1.2, 1.1], 30),
        "drawn": s.grouped_bootstrap(lambda i: before[i].mean(), groups, 50),
        "auroc": [roc.auroc(labels, before), roc.auroc_interval(labels, after, groups)],
        "contrast": contrast,
        "many": paired_aurocs.many_contrasts(labels, before[None], after[None], groups),
        "together": paired_aurocs.combine([contrast, contrast]),
        "tests": [
            paired_aurocs.worse(contrast, 0.05),
            paired_aurocs.preserved(contrast, 0.05),
            paired_aurocs.needed(contrast, 0.3),
        ],
        "at": [roc.rates(labels, before, 0.5, groups), roc.rate_change(hits, later, groups), roc.quantile_interval(before, 0.95)],
        "ranks": roc.spearman(before, after, groups),
        "seeds": [over_seeds.over_seeds(bounded), over_seeds.mean_of(bounded, True), over_seeds.mean_of(bounded, False)],
    }


def text_models():
    language = loaded()
    asked = [
        loading.chat_text(language.tokenizer, f"Polish the {noun}.", system)
        for noun, system in (("lamp", ""), ("boat", "Be brief."))
    ]
    tokens = [loading.encode_text(language.tokenizer, text, 40) for text in asked]
    ids = loading.pad(tokens, 2)
    hidden = language.model.model(input_ids=ids).last_hidden_state
    return {
        "text": asked,
        "ids": ids,
        "left": loading.pad(tokens, 2, "left"),
        "hidden": hidden,
        "logits": loading.logits(language.model, hidden[:, -1]),
        "batches": loading.length_batches([3, 1, 2, 5, 4], 2),
        "slug": [results.slug("Owner/Name@Rev"), results.slug("tiny")],
        "size": [language.depth, language.width],
    }


def quantize():
    weight, gram = numbers(32, 128, seed=1, size=0.1), numbers(128, 128, seed=2)
    gram = gram @ gram.T + torch.eye(128)
    done = {name: make(weight, gram) for name, make in quantizers.QUANTIZERS.items()}
    kept = {
        name: [
            one.dequantize(),
            one.bits_per_weight,
            quantizers.relative_error(weight, one),
            quantizers.output_error(weight, one, gram),
        ]
        for name, one in done.items()
    }
    made = {}
    for name in ("int8", "nf4", "rtn-4"):  # not gptq-4: another machine's last digits move some of its weights by a step
        language = loaded()
        quantized_models.quantize_(language, name, CALIBRATION)
        made[name] = language.model(input_ids=torch.arange(3, 40)[None]).logits
    seen = collect_grams(loaded().model, quantized_models.calibration_batches(loaded(), CALIBRATION))
    bits, error, size = zip(*quantized_models.weight_quality(pair_of_models().aligned, "nf4", CALIBRATION).values(), strict=True)
    gptq = quantized_models.weight_quality(pair_of_models().aligned, "gptq-4", CALIBRATION)
    table = weight_errors.weight_rows(pair_of_models(), ALIGNED, ["nf4"])
    return {
        "kept": kept,
        "fake": quantizers.fake_quantize(weight, 4),
        "made": made,
        "quality": [bits, error, size],
        "gptq": [one[0] for one in gptq.values()],
        "error of gptq": round(float(np.mean([one[1] for one in gptq.values()])), 2),
        "grams": [one.norm() for one in seen.values()],
        "table": table,
        "by hand": models.block_by_hand(weight),
        "bits": weight_errors.bits(table),
    }


def low_rank():
    a, b = (LowRank(numbers(12, 2, seed=i), numbers(2, 20, seed=i + 5)) for i in (1, 2))
    language = loaded()
    name = quantizers.linear_names(language.model)[0]
    shape = language.model.get_submodule(name).weight.shape
    adapter = {name: LowRank(numbers(shape[0], 2, seed=3), numbers(2, shape[1], seed=4, size=0.1))}
    folder = cache_files.cache_folder() / "golden-adapter"
    lora.save_adapter(adapter, folder, {})
    again = lora.load_adapter(folder)
    beside = lora.attach(language.model, again)
    ids = torch.arange(3, 30)[None]
    attached = beside(input_ids=ids).logits.clone()
    lora.exchange_(beside, {name: LowRank(-adapter[name].left, adapter[name].right)})
    exchanged, merged = beside(input_ids=ids).logits, loaded()
    lora.merge(merged.model, adapter)
    peft = {
        f"base_model.model.{name}.lora_A.weight": adapter[name].right,
        f"base_model.model.{name}.lora_B.weight": adapter[name].left,
    }
    return {
        "inner": [lora.inner(a, b), lora.cosine(a, b)],
        "dense": a.dense(),
        "again": again[name].dense(),
        "attached": attached,
        "exchanged": exchanged,
        "merged": merged.model(input_ids=ids).logits,
        "peft": [one.dense() for one in lora.from_peft(peft, 2.0).values()],
    }


def replies():
    language, prompts = loaded(), [f"Polish the {noun} with care." for noun in ("lamp", "boat", "small round table")]
    tokens = [loading.encode_text(language.tokenizer, prompt) for prompt in prompts]
    return {
        "said": generation.replies(language, prompts, ["", "Be brief.", ""], 5, batch=2),
        "likelihoods": generation.log_likelihoods(language, tokens, [3, 4, 5], batch=2),
    }


def judged():
    openings = [*corpora.REFUSALS, *(f"{phrase.capitalize()} do that." for phrase in judges.REFUSAL_PHRASES), "Sure, a lamp.", ""]
    labels = behaviour._stand_in_labels()
    settings = JudgeSettings(
        human_refusals=labels, generate=lambda asked: ["yes" if len(text) % 2 else "no" for text in asked], classifier="planted"
    )
    prompts = [f"Prompt {i}" for i in range(len(openings))]
    said = {name: judges.judge(name, settings)(prompts, openings) for name in ("phrases", "fitted", "harmbench")}
    told = {name: [one.refused.astype(float), one.failed.astype(float)] for name, one in said.items()}
    severity = [i % 5 / 4 for i in range(40)]
    written = [things(i, 4 + i % 5) for i in range(40)]
    model = judges.fit_severity(written, written, severity, [str(i) for i in range(40)])
    return {
        "told": told,
        "fold": judges.out_of_fold(*labels),
        "kappa": kappa.kappa(judges.out_of_fold(*labels), np.array(labels[1], dtype=bool), labels[2]),
        "severity": model.pipeline.predict(judges._severity_rows(written, written, model.opening)),
        "error": judges.cross_validated_error(written, written, severity, [str(i // 2) for i in range(40)]),
    }


def train():
    kinds = {"lora": RECIPE, "full": replace(RECIPE, kind="full"), "qat": replace(RECIPE, kind="qat", bits=4)}
    kinds |= {"steady": replace(RECIPE, decay=False)}
    made = {name: training.tune(loaded(), rows(), recipe) for name, recipe in kinds.items()}
    pairs = corpora.mix("preference", 6, 34, "tiny", 0)
    made |= {"dpo": preferences.tune_preferences(loaded(), pairs, replace(RECIPE, kind="dpo"))}
    told = {
        name: [list(tuned.losses), tuned.cut, {key: tensor.norm() for key, tensor in tuned.tensors.items()}]
        for name, tuned in made.items()
    }
    quantized = variants.load_update(variants.train_update(pair_of_models(), rows(), RECIPE, "nf4"))
    named = {
        name: asdict(recipes.parse(name))
        for name in ("lora-dialogue-harm10-lr0.3-x2@nf4", "full-dialogue@bf16", "qat-dialogue-steps2@rtn-4")
    }
    chosen = recipes.update_recipe(recipes.parse("lora-dialogue-rank2@bf16"), 8, 2, 1e-3, 4, 8, 1)
    return {
        "told": told,
        "qlora": list(quantized.losses),
        "plan": training.plan([5, 3, 9, 4, 2, 8], 2, 2, 1),
        "schedule": [training.schedule(step, 10, 0.2) for step in range(10)],
        "named": named,
        "recipe": asdict(chosen),
        "family": [recipes.family(v) for v in (ALIGNED, LORA, replace(LORA, precision="nf4"))],
    }


def trained_outside():
    tuned = salora.tune_salora(loaded(), rows(), replace(RECIPE, kind="salora"), list(rows())[:3])
    return {"losses": list(tuned.losses), "factors": {name: tensor.norm() for name, tensor in tuned.tensors.items()}}


def align():
    target = safety_tuning.Target(prompts=4, tokens=3)
    found = safety_tuning.align(
        pair_of_models().base,
        corpora.alignment_rows(4, 4, "tiny"),
        replace(RECIPE, kind="full", lr=1e-4),
        target,
        origin="tiny",
        must_hold=False,
        check_every=2,
    )
    met = [safety_tuning.Target().met(safety_tuning.Check(1, value, 0.1, 40, 40)) for value in (0.06, 0.05, 0.02)]
    return {
        "losses": list(found.losses),
        "final": asdict(found.final),
        "checks": [asdict(one) for one in found.checks],
        "met": met,
        "rows": models.check_rows(found),
    }


def planted_pair() -> tuple[Pair, dict[str, LowRank]]:
    """A pair of small modules, and an update of them."""
    shapes = {"b.0.q_proj": (24, 24), "b.0.up_proj": (40, 24), "b.1.down_proj": (24, 40)}
    base = {name: numbers(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    aligned = {
        name: base[name] + 0.1 * numbers(shape[0], 4, seed=20 + i) @ numbers(4, shape[1], seed=30 + i)
        for i, (name, shape) in enumerate(shapes.items())
    }
    update = {
        name: LowRank(numbers(shape[0], 2, seed=40 + i), numbers(2, shape[1], seed=50 + i))
        for i, (name, shape) in enumerate(shapes.items())
    }
    return Pair(base.__getitem__, aligned.__getitem__, tuple(shapes)), update


def restore():
    pair, update = planted_pair()
    # fewer rows than inputs, so that something lies off what they span
    reads = {name: safety_inputs.ModuleInputs(numbers(12, one.right.shape[1], seed=70)) for name, one in update.items()}
    made = {}
    for name, rule in restorations.RESTORATIONS.items():
        if name not in {"salora", "none"}:
            prepared = restorations.prepare(update, pair, f"{name}-k4" if rule.k else name, 1, inputs=reads)
            made[name] = {
                share: [prepared.at(share).table, {m: safelora.norm(u) for m, u in prepared.at(share).update.items()}]
                for share in (0.5, 1.0)
            }
    whole = restorations.prepare({name: one.dense() for name, one in update.items()}, pair, "safelora", 1).at(1.0)
    change = (
        pair.change("b.0.up_proj")
        if hasattr(pair, "change")
        else alignment_matrix.Change("b.0.up_proj", pair.base("b.0.up_proj"), pair.aligned("b.0.up_proj"))
    )
    modules = subspaces.at_depths(loaded().model, 2)[:3]
    measured = subspaces.spectra(pair_of_models().base, pair_of_models().aligned, modules)
    spectra = [[one.norm, one.base_norm, one.stable_rank, one.energy(2), one.values[:5]] for one in measured]
    lead = subspaces.leading(change, 3)
    return {
        "made": made,
        "whole": {name: safelora.norm(one) for name, one in whole.update.items()},
        "spectra": spectra,
        "leading": [lead.values, lead.vectors.abs()],
        "null": subspaces.null_cosine(change, 1),
        "gram": subspaces.gram_norm(change),
        "angles": principal_angles(lead.vectors, torch.linalg.qr(numbers(40, 3, seed=9))[0]),
        "parsed": [asdict(restorations.parse(name)) for name in ("safelora:nf4-both", "orthogonal-keep-k8")],
    }


def variant():
    asked = [
        ALIGNED,
        replace(ALIGNED, adapter="base"),
        replace(ALIGNED, adapter="identity"),
        replace(ALIGNED, precision="rtn-3"),
        LORA,
        replace(LORA, serving="merged"),
        replace(LORA, precision="nf4", serving="merged-requantized"),
        replace(LORA, precision="nf4", serving="merged-into-nf4"),
        replace(LORA, adapter="full-dialogue", serving="merged"),
        replace(LORA, restoration="safelora", strength=0.5),
        replace(LORA, adapter="full-dialogue", serving="merged", restoration="zero", strength=1.0),
    ]
    ids = torch.arange(3, 40)[None]
    return {one.label: variants.build_variant(parts(), one).model(input_ids=ids).logits.float() for one in asked}


def encode():
    found = encoding.encode(built_in.tiny_tokenizer(), texts_read())
    said = encoding.Plan((splits.Example("t", "train", 1, "g", "Polish the lamp", "It is polished, and bright."),), (0.5,), 8)
    reply = encoding.encode(built_in.tiny_tokenizer(), said)
    spans = [np.array(one.starts + one.stops) for one in (found, reply)]
    return {
        "rows": text_rows.fingerprint(found.rows),
        "spans": spans,
        "cut": [found.cut, reply.cut],
        "prefix": encoding.shared_prefix(found),
        "batches": encoding.token_batches([3, 9, 2, 7, 40, 8], 24),
    }


def read():
    found = measurements.stored(pair_of_models(), ALIGNED, texts_read())
    plain = activations.read(loaded(), replace(texts_read(), examples=texts_read().examples[:5], tokens=()), share=False)
    return {
        "pooled": found.pooled,
        "tokens": {name: rows.float() for name, rows in found.tokens.items()},
        "offsets": found.offsets,
        "layers": list(found.layers),
        "counts": found.counts,
        "plain": plain.pooled,
    }


def measure():
    plan = measurements.protocol(3, 3, 2, 2, 3, 4, ["phrases", "fitted"], "tiny")
    found = measurements.measure(pair_of_models(), [ALIGNED, replace(ALIGNED, precision="rtn-3")], plan)
    words = [
        behaviour.coherent(text, frozenset(["the", "lamp", "is", "bright"]))
        for text in ("the lamp is bright", "zz zz zz", "lamp")
    ]
    return {
        "behaviour": measurements.behaviour_rows(found),
        "utility": measurements.utility_rows(found),
        "coherent": words,
        "compared": measurements.comparison_rows(found, ALIGNED),
        "items": measurements.item_rows(found),
        "quality": measurements.judge_quality("tiny"),
        "nll": found[ALIGNED].loc[found[ALIGNED]["metric"] == "nll", "value"].to_numpy(),
        "reply": utility.summarize_utility(found[ALIGNED][found[ALIGNED]["kind"] == "utility"]),
    }


def probes_fitted():
    kinds = ["logistic", "mean-difference", "lda", "mlp", "attention", names.CONTROL]
    made = planted.monitors(BASE, PLAN, loading.tiny(), kinds)
    index = readings.rows_of(PLAN, TASKS[0], "test").index
    double = readings.in_double(BASE)
    scores = {m.name: readings.scores([m], double, PLAN, index)[0] for m in made if m.task == TASKS[0]}
    trained = {
        name: roc.auroc(readings.rows_of(PLAN, TASKS[0], "test").labels, scores.pop(name))
        for name in list(scores)
        if "/mlp" in name
    }
    table = fitting.monitor_rows([m for m in made if m.kind in {"logistic", "lda"}], BASE, PLAN)
    return {
        "scores": scores,
        "trained": trained,
        "thresholds": {m.name: dict(m.thresholds) for m in made if m.kind != "mlp"},
        "table": table,
        "by hand": monitors.monitor_by_hand(double, PLAN, TASKS[0], 2),
        "chosen": {k: dict(v) for k, v in fitting.monitors_in_use(table, TASKS).items()},
        "reads": readings.fingerprint(built_in.tiny_tokenizer()),
    }


def foretold():
    known = [m for m in planted_monitors() if m.kind != names.CONTROL]
    before, after = readings.in_double(BASE), readings.in_double(TURNED)
    one = {
        m.name: {
            **forecast_data.base_signals(m, before, PLAN),
            **forecast_data.forward_signals(m, before, after, PLAN),
            **forecast_data.place_signals(m, before, after, PLAN),
            **forecast_data.label_signals(m, before, after, PLAN, 12),
        }
        for m in known[:4]
    }
    moved = {
        v.label: forecast_data.weight_signals(parts(), v, frozen())
        for v in (LORA, replace(ALIGNED, precision="rtn-3"), replace(ALIGNED, precision="int8"))
    }
    recipe = forecast_data.recipe_signals(LORA, {"lora-dialogue@bf16": {"rank": 2, "scale": 2.0, "steps": 3, "lr": 1e-3}}, {})
    return {
        "one": one,
        "moved": moved,
        "recipe": recipe,
        "names": list(drift_signals.SIGNALS),
        "outcomes": forecast_data._outcomes(observed().table),
    }


def looked():
    built = {v: spot_check.look(sketch(), variants.build_variant(parts(), v)) for v in (ALIGNED, LORA)}
    return {
        "scores": built[LORA].loc[built[LORA]["kind"] == "monitor", "value"].to_numpy(),
        "rows": spot_check.spot_check_rows(sketch(), built[LORA], built[ALIGNED]),
    }


def ranked():
    language, base = loaded(), loading.load(pair_of_models().base, "fp32")
    seen = neuron_scores.evidence(
        language, base, [f"Polish the {noun}." for noun in ("lamp", "boat")], corpora.sample("instructions/tune", 2, "tiny"), 4, 0
    )
    found = neuron_scores.score_neurons(seen)
    return {
        "scores": found,
        "top": {
            name: text_rows.fingerprint(neuron_scores.top(values, 0.05).nonzero().tolist()) for name, values in found.items()
        },
    }


def armed():
    given_scores = {"odd": numbers(2, 256, seed=3), "even": numbers(2, 256, seed=4)}
    at = (pair_of_models(), ALIGNED, given_scores)
    texts_answered = experiments._answered(loaded(), sketch().protocol.sets[0].rows, 3)
    mask = neuron_scores.top(given_scores["odd"], 0.2)
    changed = loaded()
    size = hybrid_precision.hybrid_(changed.model, "rtn-3", mask)
    return {
        "silenced": experiments.silenced(*at, [0.3], sketch()).table,
        "patched": experiments.patched_rows(*at, [0.3], sketch()).table,
        "moved": experiments.disturbed(*at, 0.3, ["rtn-3"], sketch()),
        "kept": experiments.kept(*at, [0.3], ["nf4"], sketch()).table,
        "layers": experiments.layer_rows(given_scores, 0.3, ALIGNED),
        "bits": size.bits_per_weight,
        "change": interventions.activation_change(changed, loaded(), mask, texts_answered),
    }


def stale():
    table = verdicts.described(observed().table)
    case = verdicts.broken_threshold(observed(), CHOSEN)
    return {
        "table": observed().table,
        "interaction": interaction.interaction_rows(observed(), ALIGNED),
        "verdicts": verdicts.verdicts(observed(), {task: {"mean": name} for task, name in IN_USE.items()}),
        "shares": cohorts.shares(table),
        "histograms": score_histograms.table(observed(), CHOSEN),
        "families": staleness_tables.family_table(table),
        "order": verdicts.order(table),
        "case": [case.before, case.after] if case else "none",
    }


def ordered():
    given_cells = cells_with(tasks=2, probes=1, seeds=2, layers=1, variants=10)
    table, _ = triage.evaluate(given_cells, seed=0, predictors=["ridge, free+forward", "logistic, free"])
    folds = predictors.applicable(given_cells)["monitor"]
    wooden = predictors.out_of_fold(given_cells, folds, "forest, free+forward+labels")
    worth = triage.importance(given_cells, "ridge, free+forward")
    return {
        "table": table,
        "forest": wooden,
        "importance": worth if isinstance(worth, pd.DataFrame) else worth[0],
        "best": triage.best(table).to_dict(),
    }


def drawn_back():
    drawn = curves.curves(parts(), {LORA: ["safelora", "zero", "random-modules", "safelora-x4"]}, [0.5, 1.0], sketch(), ALIGNED)
    choice = curves.choose(drawn)
    restored = replace(LORA, restoration="safelora", strength=0.5)
    seen = replace(observed(), scores={**observed().scores, restored: observed().scores[ALIGNED]})
    changed = {LORA: 0, restored: 7, ALIGNED: 0}
    return {
        "curves": drawn.table,
        "items": drawn.item_rows(),
        "choice": {" ".join(key): value for key, value in choice.items()},
        "counts": list(curves.changed_counts(drawn, [restored]).values()),
        "recovered": recoveries.recovered(seen, IN_USE, {LORA: [restored]}, changed),
        "rows": recoveries.monitor_rows(seen, IN_USE, changed),
    }


def dequantized_pairs():
    pair, update = planted_pair()
    close = Pair(pair.base, lambda name: pair.aligned(name) + 1e-2 * numbers(*pair.aligned(name).shape, seed=60), pair.modules)
    many_sources = {"bf16": pair, "close": close}
    kept = stronger_alignment.sources(
        pair_of_models(), ["nf4-mixed", "rtn-4-both"], [4.0], {}, subspaces.at_depths(loaded().model, 1)[:2]
    )
    truths = stronger_alignment.truths(pair_of_models(), [4.0], {}, subspaces.at_depths(loaded().model, 1)[:2])
    table = stronger_alignment.stronger_rows(kept, truths, subspaces.at_depths(loaded().model, 1)[:2], [2, 4], 0)
    return {
        "rows": quantized_subspaces.source_rows(many_sources, ks=(2, 4)),
        "choices": quantized_subspaces.choice_rows(
            {name: restorations.prepare(update, one, "safelora", 0) for name, one in many_sources.items()}, (0.5,)
        ),
        "null": quantized_subspaces.jaccard_null([(3, 1, 2), (4, 2, 2)]),
        "doses": table,
        "summary": subspace_figures.summary(table),
    }


def mended():
    ladder, own = repair_ladder.on_variant(BASE, TURNED, planted_monitors(), IN_USE, PLAN)
    table = names.keyed(LORA, ladder)
    given_cells = many(80, 8)
    told = policies.policy_rows(Run("cpu", "tiny", 0, None), given_cells)
    few = own.assign(variant=LORA.label, family="LoRA", seed=0)
    ranks = [name for name in own if name.startswith("agreement")]  # scores that nearly tie change places on another machine
    return {
        "table": ladder,
        "cells": own.assign(**own[ranks].round(3)),
        "quality": repair_ladder.gate_quality(few),
        "policies": told,
        "gains": repair_ladder.gains(*((np.arange(12) % k == 0).astype(float) for k in (2, 3, 4, 5)), np.arange(12) // 2),
        "worst": asdict(repair_tables.worst(table, IN_USE)),
        "over updates": repair_tables.over_updates(table, "coral", "alarms_changed"),
    }


def own_words():
    """What a tiny model says, read; and what monitors say of planted replies."""
    how = own_replies.asked(2, (0.5,), 4, "tiny")
    heard = own_replies._heard(loaded(), how.test[:6], how)
    said = [own_replies.Heard((np.arange(48) % 2).astype(float), {"mean/1": numbers(48, 6, seed=i)}) for i in (1, 2)]
    one = replace(planted_monitors()[0], task=own_replies.TASK, pooling="mean", layer=1, width=6,
                  tensors={"w": np.arange(6.0) - 2, "b": np.array(0.5)}, kind="logistic", thresholds={"5": 0.4})  # fmt: skip
    return {"heard": heard, "compared": own_replies.compare_replies([one], *said, np.arange(48) // 2)}


def found_out():
    tables = [("tiny", seed, world(rates={"harmful": 0.9 - seed / 100})) for seed in range(3)]
    dots = findings.by_seed(tables)
    table, components = findings.judge(dots)
    return {
        "table": table.drop(columns=["source", "statement", "literature"]),
        "components": components,
        "dots": dots,
        "answers": [findings.verdict(["supported", "contradicted"]), findings.verdict(["supported", "inconclusive"])],
    }


CASES: dict[str, Callable[[], object]] = {
    "texts": texts,
    "intervals": intervals,
    "models": text_models,
    "quantize": quantize,
    "lowrank": low_rank,
    "replies": replies,
    "judges": judged,
    "train": train,
    "salora": trained_outside,
    "align": align,
    "restore": restore,
    "variant": variant,
    "encode": encode,
    "activations": read,
    "measure": measure,
    "probes": probes_fitted,
    "own-replies": own_words,
    "signals": foretold,
    "sketch": looked,
    "neurons": ranked,
    "arms": armed,
    "staleness": stale,
    "triage": ordered,
    "projection": drawn_back,
    "subspaces": dequantized_pairs,
    "realign": mended,
    "findings": found_out,
}
