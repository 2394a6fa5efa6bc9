"""The outlook of a run before anything runs: in which compute, how many tokens, about how many minutes on this machine."""

import os
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import console
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import compute as computing
from helpers.models.compute import Compute
from helpers.models.meter import Tokens
from helpers.study import chapters, statuses
from helpers.study.chapters import PlannedRun

OVERHEAD = 15.0  # seconds of a chapter besides its passes: a kernel, imports, statistics, figures (measured on quick)
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
            parts += [f"{self.total.words} planned", f"at least {console.took(60 * self.minutes)} from an empty cache"]
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


def minutes(found: Mapping[str, Tokens], rate: float) -> float:
    """About how many minutes the chapters take at a rate of tokens a second, with what each takes besides."""
    return (sum(one.cost for one in found.values()) / rate + OVERHEAD * len(found)) / 60


def speed(model: str, threads: int, seconds: float = TRIAL) -> float:
    """Tokens that this machine reads in a second, from a trial of so many seconds on the model itself."""
    import time

    import torch

    from helpers.models import loading

    language = loading.load(loading.base_folder(model))
    ids = torch.full((16, 32), language.tokenizer.eos_token_id)
    with loading.threads(threads), torch.no_grad():
        loading.backbone(language.model)(input_ids=ids, use_cache=False)  # the first pass makes room
        begun, passes = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            loading.backbone(language.model)(input_ids=ids, use_cache=False)
            passes += 1
    return passes * ids.numel() / (time.perf_counter() - begun)


def of(
    asked: str, runs: Mapping[PlannedRun, Values], todo: Mapping[PlannedRun, Iterable[str]], folders: Mapping[PlannedRun, Path]
) -> dict[PlannedRun, Outlook]:
    """The outlook of every run that has something to do, by its parameters and the chapters to do.

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
                rates[run.model, chosen.name] = speed(run.model, threads, SHORT if run.model == "tiny" else TRIAL)
        found[run] = Outlook(chosen, {run: tokens}, minutes(tokens, rates[run.model, chosen.name]))
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
