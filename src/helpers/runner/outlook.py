"""The outlook of a run before anything runs: in which compute, how many tokens, about how many minutes on this machine."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import console
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import compute as computing
from helpers.models.compute import Compute
from helpers.models.meter import Tokens
from helpers.study import chapters, statuses
from helpers.study.chapters import PlannedRun

if TYPE_CHECKING:  # nothing of this waits for torch until a model is tried
    import torch

    from helpers.models.loading import LanguageModel

KERNEL = 10.0  # seconds of a chapter that go to its kernel, imports and figures
PASSES = 1.2  # what a token takes in a chapter, by what it takes in the trial: batches are smaller, replies come one by one
STATISTICS = {"05": 20, "06": 25, "09": 25, "10": 50}  # seconds of intervals and fits, measured on quick
TRIED = (8, 16)  # texts x tokens of a pass of the trial: units for bf16 are three times as fast in wide passes as in narrow ones
TRIAL, SHORT = 2.0, 0.2  # seconds of the trial that tells how fast this machine is; and for what is over at once anyway
Values = Mapping[str, MutableMapping[str, Any]]  # the parameters of each chapter


@dataclass(frozen=True)
class Outlook:
    """What is about to be done. tokens: by run and chapter, from an empty cache; what is in the cache costs nothing."""

    compute: Compute
    tokens: Mapping[PlannedRun, Mapping[str, Tokens]] = field(default_factory=dict)
    minutes: float = 0.0

    @property
    def total(self) -> Tokens:
        """The tokens of all chapters of all runs."""
        return sum((one for found in self.tokens.values() for one in found.values()), Tokens())

    @property
    def words(self) -> str:
        """Machine, compute, tokens and minutes in one line."""
        count = cores()
        parts = [f"{count} core{'s' * (count != 1)}", self.compute.words]
        if self.total.cost:
            parts += [f"{self.total.words} planned", f"about {console.took(60 * self.minutes)} from an empty cache"]
        return "; ".join(parts)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settled(asked: str, device: str, folder: Path, kept: Iterable[str]) -> Compute:
    """The compute that a run goes on in: the one that was asked for, if the chapters it keeps were computed in it as well.

    `auto` also goes on in float32, which every machine can; results of two computes are never mixed in one run's folder.
    """
    chosen = computing.resolve(asked, device)
    before = {str(statuses.status(folder, name).get("machine", {}).get("compute") or "") for name in kept} - {""}
    if before <= {chosen.name}:
        return chosen
    if asked == "auto" and before == {"fp32"}:
        return computing.resolve("fp32", device)
    name = "/".join(folder.parts[-3:])
    raise StudyError(
        f"results/{name} was computed in {', '.join(sorted(before))}, and compute {asked} is {chosen.name} here; "
        f"--force (FORCE=1) runs it anew, --compute {sorted(before)[0]} goes on as it was begun",
        NOT_COMPARABLE,
    )


def counted(values: Values, names: Iterable[str]) -> dict[str, Tokens]:
    """The tokens of the named chapters of one run; of notebooks that are not the study's own nothing is known."""
    names = set(names)
    if not names & set(chapters.READ_MODELS):
        return {}
    from helpers.runner import budget

    return {name: tokens for name, tokens in budget.count(values).items() if name in names}


@dataclass(frozen=True)
class Speed:
    """What a trial on the model says of this machine: tokens read in a second, and the seconds in which the whole model is
    loaded, rounded to NF4, rounded by GPTQ (its passes apart), and taken into products with V."""

    tokens: float
    load: float = 0.0
    round: float = 0.0
    gptq: float = 0.0
    product: float = 0.0


def minutes(found: Mapping[str, Tokens], speed: Speed, values: Values | None = None, at_once: int = 1) -> float:
    """About how many minutes the chapters take at that speed: passes, a kernel each, and what parameters ask for besides.

    at_once: chapters that run beside one another. They are then over when all work is shared out, and when the longest row of
    chapters is over of which each waits for the one before.
    """
    numbered = {name[:2]: own for name, own in (values or {}).items()}
    seconds, until = dict[str, float](), dict[str, float]()
    for name in sorted(found):
        more = besides(name[:2], numbered, speed) if numbered else 0.0
        seconds[name] = PASSES * found[name].cost / speed.tokens + KERNEL + more
        until[name] = seconds[name] + max((until[need] for need in chapters.needs(name, seconds)), default=0.0)
    return max(sum(seconds.values()) / at_once, *until.values(), 0.0) / 60


def besides(chapter: str, v: Values, speed: Speed) -> float:
    """Seconds of one chapter, by its number, in which no text passes a model: models made, products with V, statistics."""
    made = MADE[chapter](v) if chapter in MADE else {}
    return STATISTICS.get(chapter, 0) + sum(count * getattr(speed, name) for name, count in made.items())


def _formats(v: Values) -> dict[str, int]:
    """Chapter 02: each format once for its table and once for its model."""
    names, controls = v["02"]["quantizers"], v["02"]["controls"]
    return {"load": 1 + 2 * len(names) + len(controls), "round": 2 * len(names), "gptq": _gptq(names)}


def _gptq(names: Iterable[str]) -> int:
    return sum(name.startswith("gptq") for name in names)


def _low(v: Values) -> int:
    """How many variants of chapter 03 are in few bits."""
    updates, servings = v["03"]["updates"], v["03"]["servings"]
    return sum(not name.endswith("@bf16") for name in updates) + sum(">bf16" not in name for name in servings)


def _updates(v: Values) -> dict[str, int]:
    """Chapter 03: each update once to be trained and once to be measured."""
    return {"load": 2 * len(v["03"]["updates"]) + len(v["03"]["servings"]), "round": _low(v)}


def _every_variant(v: Values) -> dict[str, int]:
    """Chapter 05: all that chapters 02 and 03 measured."""
    lists = (v["02"]["controls"], v["02"]["quantizers"], v["03"]["updates"], v["03"]["servings"])
    return {"load": 1 + sum(map(len, lists)), "round": _low(v) + len(v["02"]["quantizers"])}


def _restored(v: Values) -> dict[str, int]:
    """Chapter 07: a model and products with V at each point."""
    own = v["07"]
    names = [own["restorations" if i == 0 else "elsewhere"] for i in range(len(own["projected"]))]
    points = sum(1 + len(some) * len(own["strengths"]) for some in names)
    return {"load": points, "product": points}


def _sources(v: Values) -> dict[str, int]:
    """Chapter 08: at each point both sides of V are rounded, and taken into products."""
    own = v["08"]
    points = len(own["source_updates"]) * (1 + (2 + len(own["sources"])) * len(own["source_strengths"]))
    return {"load": points, "round": 2 * points, "product": 2 * points, "gptq": int(_gptq(own["sources"]) > 0)}


def _arms(v: Values) -> dict[str, int]:
    """Chapter 09: a model for every arm."""
    own, arms = v["09"], len(v["09"]["scores"])
    return {"load": len(own["ablated"]) * arms + len(own["hybrids"]) * (1 + len(own["kept"]) * arms)}


MADE: dict[str, Callable[[Values], dict[str, int]]] = {  # by number of the chapter: how often a whole model is loaded, rounded ..
    "01": lambda v: {"load": 4}, "02": _formats, "03": _updates, "05": _every_variant,
    "07": _restored, "08": _sources, "09": _arms,
}  # fmt: skip


def trial(model: str, threads: int, seconds: float = TRIAL) -> Speed:
    """The speed of this machine, from a trial of about so many seconds on the model itself."""
    import torch

    from helpers.models import loading

    loading.load(folder := loading.base_folder(model))  # the first one imports the architecture
    begun = time.perf_counter()
    language = loading.load(folder)
    loaded = time.perf_counter() - begun
    ids = torch.full(TRIED, language.tokenizer.eos_token_id)
    with loading.threads(threads), torch.no_grad():
        loading.backbone(language.model)(input_ids=ids, use_cache=False)  # the first pass makes room
        begun, passes = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            loading.backbone(language.model)(input_ids=ids, use_cache=False)
            passes += 1
        rate = passes * ids.numel() / (time.perf_counter() - begun)
        return Speed(rate, loaded, *_matrices(language))


def _matrices(language: "LanguageModel") -> tuple[float, ...]:
    """Seconds for all linear modules, from one of each size: rounded to NF4, by GPTQ, and taken into a product with V."""
    from helpers.updates.quantizers import linear_names

    found = [0.0, 0.0, 0.0]
    weights = [language.model.get_submodule(name).weight for name in linear_names(language.model)]
    _once(weights[0][:64, :64].float())  # the first of everything loads libraries, which no module after it does
    for size, count in Counter(tuple(weight.shape) for weight in weights).items():
        weight = next(weight for weight in weights if tuple(weight.shape) == size)
        found = [before + count * one for before, one in zip(found, _once(weight.float()), strict=True)]
    return tuple(found)


def _once(weight: "torch.Tensor") -> list[float]:
    """The same seconds for one weight."""
    import torch

    from helpers.projection.alignment_matrix import Change, projected
    from helpers.updates.quantizers import QUANTIZERS

    (d_out, d_in), marks = weight.shape, [time.perf_counter()]
    for work in (
        lambda: QUANTIZERS["nf4"](weight, None).dequantize(),
        lambda: QUANTIZERS["gptq-4"](weight, torch.eye(d_in)),
        lambda: projected(Change("trial", weight, weight + 1e-3), torch.ones(d_out, 8)),
    ):
        work()
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def of(
    asked: str, runs: Mapping[PlannedRun, Values], todo: Mapping[PlannedRun, Iterable[str]], folders: Mapping[PlannedRun, Path],
    at_once: int = 1,
) -> dict[PlannedRun, Outlook]:  # fmt: skip
    """The outlook of every run that has something to do, by its parameters and the chapters to do, `at_once` of them.

    folders: of the results that the run goes on from; a run without one begins anew.
    """
    found, rates = {}, {}
    for run, names in ((run, list(names)) for run, names in todo.items()):
        if not names:
            continue
        values = runs[run]
        if not set(names) & set(chapters.READ_MODELS):
            continue  # and torch can stay where it is
        own = values[names[0]]
        device, threads = str(own.get("device", "cpu")), int(own.get("threads", 1))
        kept = set(values) - set(names)
        chosen = settled(asked, device, folders[run], kept) if run in folders else computing.resolve(asked, device)
        tokens = counted(values, names)
        if not tokens or device != "cpu":
            found[run] = Outlook(chosen, {run: tokens})
            continue
        with computing.using(chosen.name):
            if (run.model, chosen.name) not in rates:
                rates[run.model, chosen.name] = trial(run.model, threads, SHORT if run.model == "tiny" else TRIAL)
        found[run] = Outlook(chosen, {run: tokens}, minutes(tokens, rates[run.model, chosen.name], values, at_once))
    return found


def together(outlooks: Mapping[PlannedRun, Outlook]) -> Outlook | None:
    """One outlook for all runs, for the line that a study begins with; None where there is nothing to do."""
    if not outlooks:
        return None
    tokens = {run: found for one in outlooks.values() for run, found in one.tokens.items()}
    return Outlook(next(iter(outlooks.values())).compute, tokens, sum(one.minutes for one in outlooks.values()))


def of_job(found: Outlook | None, run: PlannedRun, name: str) -> tuple[str, float]:
    """The compute and the planned cost of one chapter's job."""
    if found is None:
        return "auto", 0.0
    planned = found.tokens.get(run, {}).get(name)
    return found.compute.name, planned.cost if planned else 0.0
