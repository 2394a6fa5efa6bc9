"""Plans: a profile, models and seeds, checked: which runs there are, and with which parameters each of their chapters runs."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.errors import REFUSED, StudyError, nearest, shown
from helpers.folders import results_place
from helpers.models.compute import VARIABLE as COMPUTE
from helpers.study import chapters, fingerprints, limits, parameters, statuses
from helpers.study.chapters import PlannedRun


@dataclass(frozen=True)
class StudyPlan:
    """A checked profile: its runs, the parameters of each chapter in each run, and the fingerprints that follow from them."""

    root: Path
    profile: str
    notebooks: dict[str, Path]
    runs: tuple[PlannedRun, ...]
    values: dict[PlannedRun, dict[str, dict[str, Any]]]
    seconds: float
    figures: str = "all"  # the forms in which they are kept
    compute: str = "auto"  # what was asked for

    def fingerprints(self, run: PlannedRun) -> dict[str, str]:
        """What the status of each chapter of the run must bear."""
        return fingerprints.of_run(self.notebooks, self.values[run], self._others(run))

    def _others(self, run: PlannedRun) -> dict[str, str]:
        """What the profile's other runs hold, or will hold once this plan is carried out."""
        found = statuses.finished_runs((self.root / run.folder).parents[1], self.notebooks)
        found |= {other.place: fingerprints.holds(fingerprints.of_run(self.notebooks, self.values[other])) for other in self.runs}
        return {name: held for name, held in found.items() if name != run.place}


# ---------------------------------------------------------------- checking


def check(root: Path, profile: str, models: Sequence[str] = (), seeds: Sequence[int] = (), compute: str = "") -> StudyPlan:
    """The plan of a profile, every name, type and range checked; nothing is run or written.

    compute: what the command asks for; else the environment, the profile and `auto` are asked in this order.
    """
    notebooks = chapters.discover(root)
    defaults = parameters.consistent(notebooks)
    overrides = parameters.profile(profile, root / "profiles")
    where, known = f"profiles/{profile}.yaml", limits.all_limits()
    models = list(models or ()) or _several(overrides.pop("model", defaults.get("model", "embedded")))
    seeds = list(seeds or ()) or _several(overrides.pop("seed", defaults.get("seed", 0)))
    runs: list[PlannedRun] = []
    values: dict[PlannedRun, dict[str, dict[str, Any]]] = {}
    for model in models:
        slug = checked_model(model, where)
        for seed in seeds:
            seed = parameters.checked("seed", seed, 0, known["seed"], where)
            run = PlannedRun(profile, model, slug, seed, results_place() / profile / slug / f"seed-{seed}")
            named = {"profile": profile, "model": model, "seed": seed}
            chosen = {**overrides, **{name: value for name, value in named.items() if name in defaults}}
            values[run] = parameters.resolve(notebooks, chosen, known, where)
            runs.append(run)
    _check_devices(values.values())
    own = {
        name: parameters.checked(name, overrides.get(name, default), default, known[name], where)
        for name, default in parameters.RUNNER.items()
    }
    asked = compute or os.environ.get(COMPUTE, "")
    asked = asked and parameters.checked("compute", asked, "auto", known["compute"], "--compute" if compute else COMPUTE)
    return StudyPlan(
        root, profile, notebooks, tuple(runs), values, float(own["chapter_seconds"]), str(own["figure_forms"]),
        str(asked or own["compute"]),
    )  # fmt: skip


def _several(value: Any) -> list:
    """A profile may name one model or seed, or a list of them: one run each."""
    if value == []:
        raise StudyError("parameter 'model' or 'seed' is an empty list; name at least one")
    return value if isinstance(value, list) else [value]


def checked_model(model: object, where: str = "the command") -> str:
    """The folder name of a model that exists by name, as a folder, or as a pinned hub id."""
    names = limits.registry_names("models.loading", "MODELS")
    if not isinstance(model, str):
        raise StudyError(f"parameter 'model': expected str, got {type(model).__name__} {shown(model)} (from {where}); quote it")
    if model in names:
        return model
    from helpers import results
    from helpers.models import loading  # imports torch, so only where a path or a hub id is to be judged

    if Path(model).is_dir():
        loading.check_folder(Path(model))
        return results.slug(model)
    if len(parts := model.partition("@")[0].split("/")) != 2 or not all(parts) or model.startswith((".", "/")):
        close = nearest(model, names)
        raise StudyError(
            f"unknown model {shown(model)}; {close}choose one of {', '.join(names)}, a folder, or owner/name@revision"
        )
    if "@" not in model:
        raise StudyError(f"hub model {model!r} has no revision; pin one: {model}@<commit>", REFUSED)
    return results.slug(model)


def _check_devices(values: Iterable[Mapping[str, Mapping[str, Any]]]) -> None:
    for device in {own.get("device", "cpu") for run in values for own in run.values()}:
        if device != "cpu":
            from helpers.models import loading

            loading.device(str(device))


def fetch(plan: StudyPlan) -> None:
    """Brings the sources that are missing before any chapter runs: here a progress bar can be seen."""
    if "embedded" in {own.get(name) for run in plan.values.values() for own in run.values() for name in ("model", "texts")}:
        from helpers.data import sources

        sources.ensure()
