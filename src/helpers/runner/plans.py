"""Plans: a profile, models and seeds, checked: which runs there are, and with which parameters each of their chapters runs."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.errors import REFUSED, StudyError, nearest, shown
from helpers.folders import results_place, run_folders
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
    left_out: dict[PlannedRun, frozenset[str]] = field(default_factory=dict)  # chapters that lean seeds do without

    def chapters(self, run: PlannedRun) -> dict[str, Path]:
        """The notebooks of the chapters that the run has: all, but for a lean seed."""
        return {name: path for name, path in self.notebooks.items() if name not in self.left_out.get(run, ())}

    def fingerprints(self, run: PlannedRun) -> dict[str, str]:
        """What the status of each chapter of the run must bear."""
        return fingerprints.of_run(self.chapters(run), self.values[run], self._others(run), self._lower(run))

    def _lower(self, run: PlannedRun) -> dict[str, list[str]]:
        """The fingerprints that the runs of the model with lower seeds have, or will have, of the chapters that read them."""
        asked = [name for name in self.chapters(run) if name[:2] in chapters.READS_EARLIER_SEEDS]
        planned = {one.seed: one for one in self.runs if asked and one.slug == run.slug and one.seed < run.seed}
        prints = [self._own(one) for one in planned.values()]
        for folder in run_folders((self.root / run.folder).parents[1]) if asked else []:
            seed = int(folder.name.removeprefix("seed-"))
            if folder.parent.name == run.slug and seed < run.seed and seed not in planned:
                prints.append({name: str(statuses.status(folder, name).get("fingerprint", "")) for name in asked})
        return {name: [found[name] for found in prints if found.get(name)] for name in asked}

    def _others(self, run: PlannedRun) -> dict[str, str]:
        """What the profile's other runs hold, or will hold once this plan is carried out."""
        found = statuses.finished_runs((self.root / run.folder).parents[1], self.notebooks)
        found |= {other.place: fingerprints.holds(self._own(other)) for other in self.runs}
        return {name: held for name, held in found.items() if name != run.place}

    def _own(self, run: PlannedRun) -> dict[str, str]:
        """The fingerprints of the run but for what other runs hold."""
        return fingerprints.of_run(self.chapters(run), self.values[run], None, self._lower(run))


@dataclass(frozen=True)
class Lean:
    """What a profile says of its seeds from one on: the chapters that they do without, and other values of parameters."""

    from_seed: int
    skip: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


ALONE = 2  # threads of a chapter that has the machine to itself, where the profile names no number
LEAN = {"from_seed": 0, "skip": [""], "changes": {}}  # the form of `lean` in a profile


def lean_seeds(value: Any, notebooks: Mapping[str, Path], where: str) -> list[Lean]:
    """The checked entry `lean` of a profile, or entries, in the order of the seeds from which each holds."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    return sorted((_lean(entry, notebooks, where) for entry in entries), key=lambda lean: lean.from_seed)


def _lean(value: Any, notebooks: Mapping[str, Path], where: str) -> Lean:
    if not isinstance(value, dict) or not set(value) <= set(LEAN) or "from_seed" not in value:
        raise StudyError(f"parameter 'lean' is {shown(value)} (from {where}); give from_seed, and skip or changes")
    seed = parameters.checked("lean.from_seed", value["from_seed"], 0, limits.LIMITS["seed"], where)
    names, changes = value.get("skip", []), value.get("changes", {})
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not isinstance(changes, dict):
        raise StudyError(
            f"parameter 'lean' (from {where}): skip is a list of chapters such as \"05\", changes are parameter: value"
        )
    skip = tuple(chapters.find(name, notebooks) for name in names)
    if fixed := {"model", "seed", "profile", *parameters.RUNNER} & set(changes):
        raise StudyError(f"parameter 'lean' changes {sorted(fixed)[0]!r} (from {where}); it is one for all seeds: take it out")
    return Lean(seed, skip, changes)


# ---------------------------------------------------------------- checking


def check(root: Path, profile: str, models: Sequence[str] = (), seeds: Sequence[int] = (), compute: str = "") -> StudyPlan:
    """The plan of a profile, every name, type and range checked; nothing is run or written.

    compute: what the command asks for; else the environment, the profile and `auto` are asked in this order.
    """
    notebooks = chapters.discover(root)
    defaults = parameters.consistent(notebooks)
    overrides = parameters.profile(profile, root / "profiles")
    where, known = f"profiles/{profile}.yaml", limits.all_limits()
    lean = lean_seeds(overrides.pop("lean", None), notebooks, where)
    models = list(models or ()) or _several(overrides.pop("model", defaults.get("model", "embedded")))
    seeds = list(seeds or ()) or _several(overrides.pop("seed", defaults.get("seed", 0)))
    runs: list[PlannedRun] = []
    values: dict[PlannedRun, dict[str, dict[str, Any]]] = {}
    left_out: dict[PlannedRun, frozenset[str]] = {}
    for model in models:
        slug = checked_model(model, where)
        for seed in seeds:
            seed = parameters.checked("seed", seed, 0, known["seed"], where)
            run = PlannedRun(profile, model, slug, seed, results_place() / profile / slug / f"seed-{seed}")
            named = {"profile": profile, "model": model, "seed": seed}
            told = {**_of_model(model), **overrides, **named}
            chosen = {name: value for name, value in told.items() if name in defaults or name in overrides}
            for stage in [stage for stage in lean if seed >= stage.from_seed][-1:]:
                chosen, left_out[run] = {**chosen, **stage.changes}, frozenset(stage.skip)
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
        str(asked or own["compute"]), left_out,
    )  # fmt: skip


def _several(value: Any) -> list:
    """A profile may name one model or seed, or a list of them: one run each."""
    if value == []:
        raise StudyError("parameter 'model' or 'seed' is an empty list; name at least one")
    return value if isinstance(value, list) else [value]


def checked_model(model: object, where: str = "the command") -> str:
    """The folder name of a model that exists by name, as a folder, or as a pinned hub id."""
    names = [*limits.registry_names("models.loading", "MODELS"), *limits.registry_names("models.loading", "PAIRS")]
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


def _of_model(model: str) -> dict[str, Any]:
    """Parameters that follow from the model, where the profile does not set them."""
    chat = _chat_of(model)
    return {**({"aligned_model": chat} if chat else {}), **({} if model in chapters.ROOM else {"threads": ALONE})}


def _chat_of(model: str) -> str:
    """The chat counterpart of a model that is known here as a pair of the hub; empty for any other."""
    from helpers.models.built_in import PAIRS  # which imports torch; `checked_model` has waited for it

    return PAIRS[model].chat if model in PAIRS else ""


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
