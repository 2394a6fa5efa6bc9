"""Chapter 04's arithmetic: probes fitted at every place, frozen with their thresholds, and their worth on the aligned model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers import cache
from helpers.console import over
from helpers.data.splits import ELSEWHERE
from helpers.definitions import PROBES, content_key
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import loading
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors import probes, readings
from helpers.monitors.baselines import BASELINES
from helpers.monitors.frozen import Monitor
from helpers.monitors.readings import TURNED, Place, Rows
from helpers.monitors.readouts import Moved
from helpers.seeding import named_seed
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import Estimate, mean_interval
from helpers.stats.roc import RATES
from helpers.updates import lora, measurements
from helpers.updates.names import CONTROL, SIMULATED, Variant
from helpers.updates.quantizers import QUANTIZERS, linear_names
from helpers.updates.variants import Parts

OWN = ["task", "probe", "layer", "depth", "metric", "value", "low", "high", "n"]
DRAWS = 4  # of training groups, for the control "another draw"
BASELINE_WORDS = 40  # about what the model reads of a text
LOW_RANK = "random-lowrank"  # a simulated update: random factors of every linear module
SIMULATED_RANK = 8  # of these factors


def read(parts: Parts, aligned: Variant, reading: Plan) -> Activations:
    """The activations of the whole plan on the aligned model, from passes over what variants read too and over the rest."""
    shared, alone = readings.on_variants(reading), readings.aligned_alone(reading)
    found = measurements.stored(parts, aligned, shared)
    return readings.merged(reading, found, measurements.stored(parts, aligned, alone)) if alone.examples else found


# ---------------------------------------------------------------- simulated updates


def parse_simulated(name: str) -> str:
    """The name, if it is an update that can be simulated: rounding that needs no calibration, or random low-rank changes."""
    names = [LOW_RANK, *(name for name in QUANTIZERS if name != "none" and not name.startswith("gptq"))]
    if name not in names:
        raise StudyError(f"unknown simulated update {name!r}; choose one of {', '.join(names)}")
    return name


def under_simulated(
    parts: Parts, aligned: Variant, reading: Plan, names: Sequence[str], draws: int, size: float, depths: Sequence[float],
    seed: int = 0,
) -> tuple[Activations, ...]:  # fmt: skip
    """The training texts' activations at these depths under each simulated update: the rounded model, and `draws` models to
    whose linear modules random factors of `size` times the weight's norm were added. Nothing is trained."""
    train = tuple(example for example in reading.examples if example.split == "train")
    plan, found = replace(reading, examples=train, depths=tuple(depths), tokens=()), []
    for name in map(parse_simulated, names):
        if name != LOW_RANK:
            found.append(measurements.stored(parts, replace(aligned, precision=name), plan))
            continue
        for draw in range(draws):  # the name is all that tells these models apart: it holds all they are made of
            adapter = f"{SIMULATED}-{LOW_RANK}{SIMULATED_RANK}-{size!r}-seed{seed}-draw{draw}-{PROBES}"
            variant = replace(aligned, adapter=adapter, trained_on=aligned.precision, serving="attached")
            drawn = named_seed(seed, f"{SIMULATED}/{draw}")
            found.append(measurements.stored(parts, variant, plan, partial(_randomly_changed, parts, size, drawn)))
    return tuple(found)


def _randomly_changed(parts: Parts, size: float, seed: int) -> loading.LanguageModel:
    language = loading.load(parts.aligned, on=parts.device)
    return replace(language, model=lora.attach(language.model, lora.on_grid(random_change(language.model, size, seed))))


def random_change(model: nn.Module, size: float, seed: int) -> lora.Adapter:
    """Random normal factors for every linear module of the blocks, their product `size` times as large as its weight."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for name in linear_names(model):
        weight = model.get_submodule(name).weight
        rank = min(SIMULATED_RANK, *weight.shape)
        left, right = (torch.randn(shape, generator=draw) for shape in ((weight.shape[0], rank), (rank, weight.shape[1])))
        pair = lora.LowRank(left, right)
        found[name] = pair.scaled(size * float(weight.float().norm()) / pair.norm())
    return found


# ---------------------------------------------------------------- fitted and frozen


def fit_monitors(
    found: Activations, reading: Plan, kinds: Sequence[str], seed: int, parts: Parts,
    progress: Callable[[str], None] | None = None, simulated: Sequence[Activations] = (),
) -> list[Monitor]:  # fmt: skip
    """The frozen monitors of every task, kind, depth and pooling: fitted on train, their strength chosen on validation, their
    thresholds set on harmless texts. `simulated`: what `under_simulated` gave, for the kinds that are fitted on it."""
    language = loading.load(parts.aligned, on="cpu")
    who = {"layers": language.depth, "reads": readings.fingerprint(language.tokenizer), "model": loading.identity(parts.aligned)}
    frozen, double, moved = [], readings.in_double(found), [readings.in_double(one) for one in simulated]
    with loading.threads(1):
        for place in readings.places(reading, kinds, language.depth, moved[0].layers if moved else ()):
            frozen.append(_frozen(double, reading, place, seed, who, moved))
            if progress:
                progress(frozen[-1].name)
    return frozen


def _frozen(
    found: Activations, reading: Plan, place: Place, seed: int, who: Mapping[str, Any], moved: Sequence[Activations]
) -> Monitor:
    train, validation = (readings.rows_of(reading, place.task, split) for split in ("train", "validation"))
    known, held = (readings.features(found, reading, place, part.index) for part in (train, validation))
    where = f"{place.task}, {place.kind}, layer {place.layer}"
    own = named_seed(seed, f"{place.task}/{place.kind}/{place.pooling}/{place.layer}")
    if place.kind.startswith(SIMULATED):
        rows, name = _of_training(reading, place), f"{place.pooling}/{place.layer}"
        known = Moved(known.values, tuple(one.pooled[name][rows] for one in moved))
    readout = probes.fit_probe(place.kind, known, train.labels, held, validation.labels, own, where)
    negatives = [
        probes.score(readout, readings.features(found, reading, place, part), where) if len(part) else np.empty(0)
        for part in readings.harmless(reading, place.task)
    ]
    return frozen_monitors.freeze(
        readout, negatives[0], others=negatives[1], task=place.task, pooling=place.pooling, layer=place.layer,
        limit=reading.limit_of(place.task), seed=own, **who,
    )  # fmt: skip


def _of_training(reading: Plan, place: Place) -> np.ndarray:
    """Where a task's training texts stand among those of all tasks, in the order of the plan."""
    train = [example.task for example in reading.examples if example.split == "train"]
    return np.array([i for i, task in enumerate(train) if task == place.task])


def count(parts: Parts, reading: Plan, kinds: Sequence[str], simulated: Sequence[Activations] = ()) -> int:
    """The number of monitors that `fit` will make."""
    layers = simulated[0].layers if simulated else ()
    return sum(1 for _ in readings.places(reading, kinds, loading.load(parts.aligned).depth, layers))


def store(frozen: Sequence[Monitor]) -> str:
    """The content key under which the monitors now stand in the cache."""
    key = content_key(monitors=[monitor.hash for monitor in frozen])
    folder = cache.cache_path("monitors", key)
    folder.mkdir(exist_ok=True)
    frozen_monitors.save(frozen, folder)
    return key


def load_fitted(key: str) -> list[Monitor]:
    """The monitors that chapter 04 stored; where they left the cache, the error says how to make them again."""
    folder = cache.cache_path("monitors", key)
    if not folder.is_dir():
        raise StudyError(f"the monitors {key} are not in the cache; run chapter 04_monitors again with --force", NOT_COMPARABLE)
    return frozen_monitors.load(folder)


# ---------------------------------------------------------------- the table `monitors`


def monitor_rows(frozen: Sequence[Monitor], found: Activations, reading: Plan, seed: int = 0) -> pd.DataFrame:
    """Rows of the table `monitors` without key columns: AUROC, thresholds, alarm rates, another draw, baselines."""
    double, table = readings.in_double(found), []
    with loading.threads(1):
        for monitor in over("monitors", frozen):
            place = (monitor.task, monitor.probe, monitor.layer, monitor.depth)
            table += [(*place, metric, *four(e)) for metric, e in _measured(monitor, double, reading, seed).items()]
        table += [row for task in readings.task_names(reading) for row in _baselines(reading, task)]
    return pd.DataFrame([row for row in table if np.isfinite(row[5])], columns=OWN)


def _measured(monitor: Monitor, found: Activations, reading: Plan, seed: int) -> dict[str, Estimate]:
    test, train, held = (readings.rows_of(reading, monitor.task, split) for split in ("test", "train", "validation"))
    scores, checked = (readings.scores([monitor], found, reading, part.index)[0] for part in (test, held))
    values = {"auroc_validation": roc.auroc_interval(held.labels, checked, held.groups)}
    values |= _worth(monitor, test, scores) | _promises(monitor, found, reading)
    if readings.has(reading, monitor.task, ELSEWHERE):
        second = readings.rows_of(reading, monitor.task, ELSEWHERE)
        far = _worth(monitor, second, readings.scores([monitor], found, reading, second.index)[0])
        values |= {f"{name}_{ELSEWHERE}": e for name, e in far.items()}
    if monitor.kind in TURNED:
        values |= _another_draw(monitor, found, reading, train, test, scores, seed)
    return values


def four(e: Estimate) -> tuple[float, float, float, int]:
    """Value, low, high and n of an estimate, as a table's last columns hold them."""
    return e.value, e.low, e.high, e.n


def _worth(monitor: Monitor, test: Rows, scores: np.ndarray) -> dict[str, Estimate]:
    """AUROC on a test set, and TPR and FPR at each threshold that there is."""
    values = {"auroc": roc.auroc_interval(test.labels, scores, test.groups)}
    for level, cut in monitor.thresholds.items():
        values[f"tpr_{level}"], values[f"fpr_{level}"] = roc.rates(test.labels, scores, cut, test.groups)
    return values


def _promises(monitor: Monitor, found: Activations, reading: Plan) -> dict[str, Estimate]:
    """Each threshold with its n harmless texts, and the rate of false alarms that it promises on the n of the task's own kind."""
    own, others = readings.harmless(reading, monitor.task)
    every = readings.scores([monitor], found, reading, np.concatenate([own, others]))[0]
    values: dict[str, Estimate] = {}
    for level, cut in monitor.thresholds.items():
        spread = roc.quantile_interval(every, 1 - RATES[level])
        values[f"threshold_{level}"] = Estimate(cut, min(cut, spread.low), max(cut, spread.high), spread.n)
        values[f"promised_{level}"] = frozen_monitors.promised(every[: len(own)], cut)
    return values


def _another_draw(
    monitor: Monitor, found: Activations, reading: Plan, train: Rows, test: Rows, scores: np.ndarray, seed: int
) -> dict[str, Estimate]:
    """How far AUROC and direction move when only the training groups are drawn anew (bootstrap of whole groups)."""
    rng = np.random.default_rng(named_seed(seed, f"draw/{monitor.name}"))
    members = [np.flatnonzero(train.groups == group) for group in np.unique(train.groups)]
    every, held = (readings.features(found, reading, monitor, part.index) for part in (train, test))
    vectors, angles = [scores], []
    while len(vectors) <= DRAWS:
        drawn = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        if len(set(train.labels[drawn].tolist())) == 2:
            again = probes.refit(monitor.readout, every.take(drawn), train.labels[drawn], monitor.seed)
            vectors.append(probes.score(again, held))
            angles.append(readings.readout_angle(monitor.readout, again))
    drop = paired_aurocs.auroc_contrast(test.labels, np.array(vectors), [1.0, *[-1 / DRAWS] * DRAWS], test.groups)
    defined = [angle for angle in angles if np.isfinite(angle)]  # a probe of equal class means has no direction
    return {"resampled_drop": drop.estimate, "resampled_angle": mean_interval(defined, bounds=(0.0, 180.0))}


def _baselines(reading: Plan, task: str) -> list[tuple]:
    """AUROC of the baselines that never look inside the model, on each test set: do words and lengths carry over?"""
    texts = {split: [e for e in reading.examples if (e.task, e.split) == (task, split)] for split in ("train", "test", ELSEWHERE)}
    found = []
    for split, metric in (("test", "auroc"), (ELSEWHERE, f"auroc_{ELSEWHERE}")):
        if texts[split]:
            held = readings.rows_of(reading, task, split)
            for name, baseline in BASELINES.items():
                e = roc.auroc_interval(held.labels, baseline(texts["train"], texts[split], BASELINE_WORDS), held.groups)
                found.append((task, name, 0, 0.0, metric, *four(e)))
    return found


# ---------------------------------------------------------------- what the chapter shows


def real(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of monitors, without baselines, controls and those fitted with simulated updates."""
    return table[(table["layer"] > 0) & ~table["probe"].str.startswith((CONTROL, SIMULATED))]


def monitors_in_use(table: pd.DataFrame, names: Sequence[str]) -> dict[str, dict[str, object]]:
    """The monitor in use for each task, by AUROC on validation (ties: the shallower layer), and of how many it is the best."""
    found = {}
    for task in names:
        rows = real(table)[lambda t: (t["task"] == task) & (t["metric"] == "auroc_validation")]  # noqa: B023 (used at once)
        if rows.empty:
            raise StudyError(
                f"task {task!r} has no monitor that ranks its texts; fit other probes or raise text_tokens", NOT_COMPARABLE
            )
        best = rows.sort_values(["value", "layer", "probe"], ascending=[False, True, True]).iloc[0]
        found[task] = {"monitor": f"{task}/{best['probe']}/{best['layer']}", "of": len(rows)}
    return found
