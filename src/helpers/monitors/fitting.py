"""Chapter 04's arithmetic: probes fitted at every place, frozen with their thresholds, and their worth on the aligned model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers import cache
from helpers.console import over
from helpers.definitions import content_key
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import loading
from helpers.models.activations import Activations
from helpers.models.encoding import Plan
from helpers.monitors import frozen as frozen_monitors
from helpers.monitors import probes, readings
from helpers.monitors.baselines import BASELINES
from helpers.monitors.frozen import Monitor
from helpers.monitors.readings import TURNED, Place, Rows
from helpers.seeding import named_seed
from helpers.stats import paired_aurocs, roc
from helpers.stats.intervals import Estimate, mean_interval
from helpers.stats.roc import RATES
from helpers.updates.names import CONTROL
from helpers.updates.variants import Parts

OWN = ["task", "probe", "layer", "depth", "metric", "value", "low", "high", "n"]
DRAWS = 4  # of training groups, for the control "another draw"
BASELINE_WORDS = 40  # about what the model reads of a text


def fit_monitors(
    found: Activations, reading: Plan, kinds: Sequence[str], seed: int, parts: Parts,
    progress: Callable[[str], None] | None = None,
) -> list[Monitor]:  # fmt: skip
    """The frozen monitors of every task, kind, depth and pooling: fitted on train, strength and thresholds from validation."""
    language = loading.load(parts.aligned, on="cpu")
    who = {"layers": language.depth, "reads": readings.fingerprint(language.tokenizer), "model": loading.identity(parts.aligned)}
    frozen, double = [], readings.in_double(found)
    with loading.threads(1):
        for place in readings.places(reading, kinds, language.depth):
            frozen.append(_frozen(double, reading, place, seed, who))
            if progress:
                progress(frozen[-1].name)
    return frozen


def _frozen(found: Activations, reading: Plan, place: Place, seed: int, who: Mapping[str, Any]) -> Monitor:
    train, validation = (readings.rows_of(reading, place.task, split) for split in ("train", "validation"))
    known, held = (readings.features(found, reading, place, part.index) for part in (train, validation))
    where = f"{place.task}, {place.kind}, layer {place.layer}"
    own = named_seed(seed, f"{place.task}/{place.kind}/{place.pooling}/{place.layer}")
    readout = probes.fit_probe(place.kind, known, train.labels, held, validation.labels, own, where)
    negatives = probes.score(readout, held, where)[validation.labels == 0]
    read = {"pooling": place.pooling, "layer": place.layer, "limit": reading.limit_of(place.task)}
    return frozen_monitors.freeze(readout, negatives, task=place.task, seed=own, **read, **who)


def count(parts: Parts, reading: Plan, kinds: Sequence[str]) -> int:
    """The number of monitors that `fit` will make."""
    return sum(1 for _ in readings.places(reading, kinds, loading.load(parts.aligned).depth))


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
    values = {
        "auroc": roc.auroc_interval(test.labels, scores, test.groups),
        "auroc_validation": roc.auroc_interval(held.labels, checked, held.groups),
        **_alarms(monitor, test, scores, checked[held.labels == 0]),
    }
    if monitor.kind in TURNED:
        values |= _another_draw(monitor, found, reading, train, test, scores, seed)
    return values


def four(e: Estimate) -> tuple[float, float, float, int]:
    """Value, low, high and n of an estimate, as a table's last columns hold them."""
    return e.value, e.low, e.high, e.n


def _alarms(monitor: Monitor, test: Rows, scores: np.ndarray, negatives: np.ndarray) -> dict[str, Estimate]:
    """Threshold, TPR and FPR on test at each level that validation could set."""
    values: dict[str, Estimate] = {}
    for level, cut in monitor.thresholds.items():
        spread = roc.quantile_interval(negatives, 1 - RATES[level])
        values[f"threshold_{level}"] = Estimate(cut, min(cut, spread.low), max(cut, spread.high), spread.n)
        values[f"tpr_{level}"], values[f"fpr_{level}"] = roc.rates(test.labels, scores, cut, test.groups)
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
    """AUROC of the baselines that never look inside the model."""
    train, test = ([e for e in reading.examples if e.task == task and e.split == split] for split in ("train", "test"))
    held = readings.rows_of(reading, task, "test")
    found = []
    for name, baseline in BASELINES.items():
        e = roc.auroc_interval(held.labels, baseline(train, test, BASELINE_WORDS), held.groups)
        found.append((task, name, 0, 0.0, "auroc", *four(e)))
    return found


# ---------------------------------------------------------------- what the chapter shows


def real(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of monitors, without baselines and controls."""
    return table[(table["layer"] > 0) & ~table["probe"].str.startswith(CONTROL)]


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
