"""Chapters: which there are, what each needs, and whether what it wrote still holds.

A chapter is done if its status file bears the fingerprint of what would run now (its code cells, its parameters, the
definitions that its helpers carry out, the numeric packages, and the same of the chapters it needs) and the files it wrote
have the hashes recorded there. Neither times of files nor the text of helpers decide anything: a fresh clone with committed
results is done, and stays so when the house is mended. Where only the code that draws changed, figures are older than it.
"""

import ast
import hashlib
import importlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from helpers.definitions import DEFINITIONS, DRAWING, Definition, lineage
from helpers.errors import StudyError, nearest
from helpers.study.parameters import LIMITS, Limit, read_notebook, source

# What a chapter needs, by number; a chapter that is not listed needs all earlier ones.
CHAPTERS: dict[str, tuple[str, ...]] = {
    "01": (),
    "02": ("01",),
    "03": ("01", "02"),
    "04": ("01",),
    "05": ("01", "02", "03", "04"),
    "06": ("01", "02", "03", "04", "05"),
    "07": ("01", "02", "03", "04", "05"),
    "08": ("01", "03", "04"),
    "09": ("01", "04"),
    "10": ("01", "02", "03", "04", "05", "06", "07"),
}

# Chapters that pass texts through models; the others work on what these have stored.
READ_MODELS = (
    *("01_models", "02_quantization", "03_finetuning", "04_monitors", "05_staleness"),
    *("07_projection", "08_subspaces", "09_neurons"),
)
# Chapters that also read what the same chapter of lower seeds wrote, where it is there.
READS_EARLIER_SEEDS = frozenset({"06"})
# Chapters that read every finished run of the profile, and a file of theirs that stands beside the runs' folders.
READS_ALL_RUNS = {"11": "../../findings.parquet"}

# Parameters whose values must stand in a registry: parameter -> (module, registry, further names).
REGISTRIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "judges": ("models.judges", "JUDGES", ()),
    "quantizers": ("updates.quantizers", "QUANTIZERS", ()),
    "controls": ("updates.weight_errors", "CONTROLS", ()),
    "probes": ("monitors.probes", "PROBES", ()),
    "scores": ("neurons.neuron_scores", "NEURON_SCORES", ()),
    "disturbed": ("updates.quantizers", "QUANTIZERS", ()),
    "hybrids": ("neurons.hybrid_precision", "FORMATS", ()),
}
# Parameters whose values are read by a function of a helper module, which refuses what it cannot read.
PARSERS: dict[str, tuple[str, str]] = {
    "updates": ("updates.recipes", "parse"),
    "servings": ("updates.recipes", "parse_serving"),
    "monitor_tasks": ("data.tasks", "known"),
    "attention": ("monitors.readings", "parse_attention"),
    "projected": ("updates.recipes", "parse"),
    "source_updates": ("updates.recipes", "parse"),
    "salora": ("updates.recipes", "parse"),
    "restorations": ("projection.restorations", "parse"),
    "elsewhere": ("projection.restorations", "parse"),
    "measured": ("projection.restorations", "parse"),
    "restoration": ("projection.restorations", "parse"),
    "sources": ("projection.restorations", "parse_source"),
}
PACKAGE = Path(__file__).parents[1]
SESSION = "study.session"  # it imports what a chapter asks it for, and what a chapter asks for its own cells name
# The packages whose versions numbers depend on; the lock pins them.
NUMERIC = (
    *("torch", "transformers", "tokenizers", "peft", "bitsandbytes"),
    *("numpy", "scipy", "scikit-learn", "pandas", "rouge-score"),
)


@dataclass(frozen=True)
class PlannedRun:
    """One run of the study, profile x model x seed; `folder` is relative to the project root, so that no path leaks."""

    profile: str
    model: str
    slug: str
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        """The run in words, for lines on the screen."""
        return f"{self.profile}, {self.slug}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """One chapter of one run, as the runner hands it over in a file."""

    chapter: str
    run: PlannedRun
    parameters: dict[str, object]
    fingerprint: str
    seconds: float  # the chapter's limit
    runner: dict[str, object]  # pid, host, created: when that process is gone, the chapter ends itself
    marks: dict[str, object]  # what its status bears beside the fingerprint: see `marks`
    compute: str = "auto"
    planned: float = 0.0  # what its passes will cost, in tokens forward; 0 where that is not known


# ---------------------------------------------------------------- names


def discover(root: Path) -> dict[str, Path]:
    """The notebooks by chapter name, in the order of their numbers."""
    found = {path.stem: path for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise StudyError(
            "no chapter in notebooks/ (NN_name.ipynb); start the command in the project's folder or set AFTER_UPDATE_ROOT"
        )
    return found


def find(name: str, names: Iterable[str]) -> str:
    """The chapter meant by `02`, `quantization` or `02_quantization`."""
    names = list(names)
    meant = [chapter for chapter in names if name in {chapter, chapter[:2], chapter[3:]}]
    if not meant:
        words = [*names, *(chapter[3:] for chapter in names)]
        raise StudyError(f"unknown chapter {name!r}; {nearest(name, words)}choose one of {', '.join(names)}")
    return meant[0]


def needs(chapter: str, names: Iterable[str]) -> list[str]:
    """The chapters that must be done before this one."""
    earlier = [name for name in names if name < chapter]
    numbers = CHAPTERS.get(chapter[:2])
    return earlier if numbers is None else [name for name in earlier if name[:2] in numbers]


def registry_names(module: str, registry: str) -> list[str]:
    """The names in a registry of a helper module, which is imported only when they are asked for."""
    return list(getattr(importlib.import_module(f"helpers.{module}"), registry))


def limits() -> dict[str, Limit]:
    """The limits of all parameters, those included that name members of a registry."""

    def names(module: str, registry: str, more: tuple[str, ...]) -> Limit:
        return Limit(choices=lambda: [*more, *registry_names(module, registry)])

    def reads(module: str, parser: str) -> Limit:
        return Limit(reads=lambda value: getattr(importlib.import_module(f"helpers.{module}"), parser)(value), may_be_empty=True)

    written = {parameter: reads(*where) for parameter, where in PARSERS.items()}
    return {**LIMITS, **{parameter: names(*where) for parameter, where in REGISTRIES.items()}, **written}


# ---------------------------------------------------------------- fingerprints


@lru_cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """The bare code of a helper module (no docstrings, no comments) and the helpers it imports."""
    tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    top = ast.Module([node for node in tree.body if isinstance(node, ast.ImportFrom)], []) if name == SESSION else tree
    imports = tuple(sorted(_imports(top) - {name}))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:]
    return ast.dump(tree), imports


def _file(module: str) -> Path:
    """The file of a helper module by its dotted name in the package."""
    return PACKAGE / f"{module.replace('.', '/')}.py"


def _imports(tree: ast.AST) -> set[str]:
    """The helper modules that the code imports, at its top or inside a function, by dotted name in the package."""
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:  # what is imported from it may be a module or a name in one
            words |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            words |= {alias.name for alias in node.names}
    inside = {word.removeprefix("helpers.") for word in words if word.startswith("helpers.")}
    found = {word for word in inside if _file(word).is_file()}
    return found | _through_wings(tree, {word for word in inside if (PACKAGE / word).is_dir()})


def _through_wings(tree: ast.AST, wings: set[str]) -> set[str]:
    """The modules that code names through a wing which it imports whole, such as `figures.tables.show`, and its style."""
    named = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in wings
    }
    styled = {"figures.drawing.theme"} if "figures.style" in named else set()
    opened = {SESSION} if "study.open" in named else set()
    return {name for name in named | styled | opened if _file(name).is_file()}


def code_cells(notebook: Path) -> list[str]:
    """The code cells of a notebook in order; a line magic counts as text."""
    return [source(cell) for cell in read_notebook(notebook)["cells"] if cell["cell_type"] == "code"]


def imported_helpers(cells: Iterable[str]) -> list[str]:
    """The helper modules that the cells import, with all that these import in turn."""
    text = "\n".join(re.sub(r"(?m)^\s*[%!].*$", "", cell) for cell in cells)
    try:
        todo = _imports(ast.parse(text))
    except SyntaxError:  # the run will say so; until then every module counts
        todo = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    done: set[str] = set()
    while todo:
        name = todo.pop()
        done.add(name)
        todo |= set(_module(name)[1]) - done
    return sorted(done)


def definitions(cells: Iterable[str]) -> list[Definition]:
    """The definitions that the cells' numbers rest on: those whose code is among the modules that they reach."""
    reached = set(imported_helpers(cells))
    return [one for one in DEFINITIONS.values() if reached & set(one.code)]


def code_hash(modules: Iterable[str]) -> str:
    """A hash of the bare code of helper modules: no part of any key, it tells a reader that code moved."""
    return hashlib.sha256("\0".join(_module(name)[0] for name in sorted(modules)).encode()).hexdigest()[:16]


def marks(notebook: Path) -> dict[str, object]:
    """What the status of a chapter bears beside its fingerprint: its definitions, and a hash of the code that draws it."""
    cells = code_cells(notebook)
    drawing = {name for name in imported_helpers(cells) if name.startswith(f"{DRAWING}.")}
    return {"definitions": list(lineage(definitions(cells))), "drawn": code_hash(drawing)}


def pinned(lock: Path) -> dict[str, list[str]]:
    """The versions at which the lock pins the numeric packages (one, or one for each kind of machine)."""
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    return {name: re.findall(rf"(?im)^{name.replace('-', '[-_.]')}==([^\s;]+)", text) for name in NUMERIC}


def fingerprint(notebook: Path, parameters: Mapping[str, object], before: Iterable[str] = ()) -> str:
    """A hash of all that decides what a chapter writes; `before` are the fingerprints of the chapters it needs."""
    cells = code_cells(notebook)
    packages = pinned(notebook.parent.parent / "requirements.lock")
    parts = [cells, dict(parameters), lineage(definitions(cells)), packages, list(before)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprints(
    notebooks: Mapping[str, Path], parameters: Mapping[str, Mapping[str, object]], others: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The fingerprint of every chapter of a run, in order; `others`, what other runs hold, counts where a chapter reads them."""
    found: dict[str, str] = {}
    for name, path in notebooks.items():
        before = [found[need] for need in needs(name, notebooks)]
        if name[:2] in READS_ALL_RUNS:
            before += [f"{run} {holds}" for run, holds in sorted((others or {}).items())]
        found[name] = fingerprint(path, parameters[name], before)
    return found


def holds(prints: Mapping[str, str]) -> str:
    """A hash of what a run holds, from the fingerprints of those of its chapters that other runs may read."""
    return hashlib.sha256(json.dumps({n: p for n, p in prints.items() if n[:2] not in READS_ALL_RUNS}).encode()).hexdigest()


def finished_runs(profile_folder: Path, names: Iterable[str]) -> dict[str, str]:
    """What each run of a profile holds, by <model>/seed-<n>, where all chapters that other runs may read are done."""
    wanted, found = [name for name in names if name[:2] not in READS_ALL_RUNS], {}
    for folder in sorted(profile_folder.glob("*/seed-*")):
        prints = {name: str(status(folder, name).get("fingerprint", "")) for name in wanted}
        if all(prints.values()):
            found[f"{folder.parent.name}/{folder.name}"] = holds(prints)
    return found


# ---------------------------------------------------------------- what is done


def sha256(path: Path) -> str:
    """sha256 of a file, or an empty string where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def status_path(folder: Path, chapter: str) -> Path:
    """Where the status of a chapter stands."""
    return folder / "status" / f"{chapter}.json"


def status(folder: Path, chapter: str) -> dict:
    """What the chapter's status file says; empty where there is none that can be read."""
    try:
        found = json.loads(status_path(folder, chapter).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def written(folder: Path, chapter: str) -> dict[str, str]:
    """The files that a chapter wrote and the tables it is part of, with their hashes."""
    parts = sorted(path for path in (folder / "parts" / chapter).glob("*") if not path.name.startswith("."))
    tables = [folder / "tables" / path.name for path in parts if path.suffix == ".parquet"]
    executed = folder / "executed" / f"{chapter}.ipynb"
    found = {path.relative_to(folder).as_posix(): sha256(path) for path in (*parts, *tables, executed)}
    beside = READS_ALL_RUNS.get(chapter[:2])
    return {**found, **({beside: sha256(folder / beside)} if beside else {})}


def expected(statuses: Iterable[dict]) -> dict[str, str]:
    """The hash that each file should have: of the tables that several chapters write, the last writer's."""
    found: dict[str, str] = {}
    for entry in sorted(statuses, key=lambda entry: str(entry.get("finished", ""))):
        found.update(entry.get("files", {}))
    return found


def stale(run: PlannedRun, root: Path, prints: Mapping[str, str]) -> dict[str, str]:
    """The chapters that must run, in order, each with the reason."""
    folder = root / run.folder
    statuses = {chapter: status(folder, chapter) for chapter in prints}
    hashes = expected(statuses.values())
    found: dict[str, str] = {}
    for chapter, fresh in prints.items():
        reason = _reason(folder, statuses[chapter], fresh, hashes)
        before = [name for name in needs(chapter, prints) if name in found]
        if reason or before:
            found[chapter] = reason or f"{before[0]} runs again"
    return found


def _reason(folder: Path, entry: dict, fresh: str, hashes: Mapping[str, str]) -> str:
    if not entry:
        return "not run yet"
    if entry.get("fingerprint") != fresh:
        return _changed(entry)
    damaged = [name for name in entry.get("files", {}) if sha256(folder / name) != hashes[name]]
    return f"{damaged[0]} is missing or damaged" if damaged else ""


def _changed(entry: dict) -> str:
    """What is known of why a chapter's fingerprint is not that of its status."""
    if "definitions" not in entry:
        return "it was made under older keys"
    present = {str(one) for one in DEFINITIONS.values()}
    raised = [one for one in entry["definitions"] if one not in present]
    return f"{raised[0]} is no longer what that name means" if raised else "its cells, parameters or packages changed"


def older_figures(folder: Path, notebooks: Mapping[str, Path]) -> list[str]:
    """The chapters whose figures were drawn by other code than today's; their numbers stand."""
    statuses = {name: status(folder, name) for name in notebooks}
    return [name for name, entry in statuses.items() if entry.get("drawn", "") not in {"", marks(notebooks[name])["drawn"]}]


def forget(folder: Path, stale_chapters: Iterable[str]) -> None:
    """Removes the manifest, and the status, parts and rows of the chapters that will run: what is no longer true is not there."""
    (folder / "manifest.json").unlink(missing_ok=True)
    tables: set[str] = set()
    for chapter in stale_chapters:
        status_path(folder, chapter).unlink(missing_ok=True)
        tables |= {path.stem for path in (folder / "parts" / chapter).glob("*.parquet")}
        shutil.rmtree(folder / "parts" / chapter, ignore_errors=True)
    if tables:
        _merge(folder, tables)


def _merge(folder: Path, names: Iterable[str]) -> None:
    """The named tables written anew from the parts that are left, so that they are what the chapters left recorded."""
    from helpers import (
        cache,
        results,  # and with it pandas, which a study with nothing to do can spare
    )

    for name in names:
        path = folder / "tables" / f"{name}.parquet"
        if any((folder / "parts").glob(f"*/{name}.parquet")):
            cache.write_file(path, results._merged(folder, name).to_parquet)
        else:
            path.unlink(missing_ok=True)
