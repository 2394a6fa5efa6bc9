"""Variants: the one place where base, adapter, precision and serving meet.

A `Variant` is a name for one concrete model and opens every table; `build_variant` makes the model it names out of the
`Parts` that the earlier steps left in the cache. Whatever the precision, the result is an ordinary transformers model.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers import cache, definitions, results
from helpers.cache import cache_path
from helpers.data.corpora import OPENING
from helpers.data.text_rows import Row, fingerprint
from helpers.definitions import RESTORE, TRAIN, VARIANT
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.models import compute, loading
from helpers.models.loading import LanguageModel
from helpers.results import KEY
from helpers.updates import lora, names, preferences, salora, training
from helpers.updates.endings import Ending
from helpers.updates.names import Variant
from helpers.updates.quantized_models import calibration_kind, calibration_texts, quantize_

SALORA = "salora"  # the restoration that is trained: helpers.salora
ADAPTERS = (*names.ADAPTERS, SALORA)  # kinds of training that leave low-rank factors behind
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Update:
    """What a training left behind: adapter factors, or whole weights of the tuned modules (float32)."""

    adapter: lora.Adapter | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Parts:
    """What variants are made of: the two checkpoints, calibration texts (`more_texts`: of other kinds), and trained updates.

    An update that was trained under a restoration stands beside the plain one as `<adapter>+<restoration>`. restore: makes the
    restored update of a variant; `projection.restored_updates.with_restorations` sets it, since this wing knows no projection.
    """

    base: Path
    aligned: Path
    calibration: tuple[str, ...] = ()
    updates: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    device: str = "cpu"
    more_texts: Callable[[str], tuple[str, ...]] | None = field(default=None, compare=False, repr=False)
    restore: Callable[["Parts", Variant], Update] | None = field(default=None, compare=False, repr=False)

    def texts_for(self, precision: str) -> tuple[str, ...]:
        """The texts that a precision is calibrated on, if it is. Errors: these parts have none of its kind."""
        kind = calibration_kind(precision)
        if kind and self.more_texts is None:
            raise StudyError(f"precision {precision!r} is calibrated on {kind}, and these parts have none; use open_parts")
        return self.more_texts(kind) if kind and self.more_texts else self.calibration

    def with_update(self, adapter: str, trained_on: str, folder: Path) -> "Parts":
        """The same parts with one more update."""
        return replace(self, updates={**self.updates, (adapter, trained_on): folder})


def from_table(table: pd.DataFrame) -> list[Variant]:
    """The variants whose key columns open the rows of a table, each once, in the table's order."""
    return [_of_row(row) for row in table[list(KEY)].drop_duplicates().to_dict("records")]


def _of_row(row: dict[str, Any]) -> Variant:
    row["strength"] = None if pd.isna(row["strength"]) else row["strength"]
    return Variant(**row)


def variant_codes(table: pd.DataFrame) -> pd.Series:
    """For each row of a table, the place of its variant in `from_table`."""
    return table.groupby(list(KEY), dropna=False, sort=False).ngroup()


def pair_note(model: str, aligned_model: str, aligned: Path) -> dict[str, str]:
    """What later chapters need to find the pair again: names, never absolute paths."""
    return {"model": model, "aligned_model": aligned_model, "aligned": aligned.name}


def open_parts(base: Path, aligned: Path, calibration_rows: int = 0, texts: str = "embedded", device: str = "cpu") -> Parts:
    """The parts of a pair, with the first C4 calibration texts in hash order."""

    def of_kind(kind: str) -> tuple[str, ...]:
        return tuple(calibration_texts(kind, calibration_rows, texts))

    return Parts(base, aligned, of_kind(""), device=device, more_texts=of_kind)


def parts_of(note: Mapping[str, str], calibration_rows: int, texts: str = "embedded", device: str = "cpu") -> Parts:
    """The parts that chapter 01 noted; where the aligned model is no longer in the cache, the error says how to make it again."""
    aligned = loading.base_folder(note["aligned_model"]) if note["aligned_model"] else cache_path("models", note["aligned"])
    if not aligned.is_dir():
        raise StudyError(
            f"the aligned model {aligned.name} is not in the cache; run chapter 01_models again with --force", NOT_COMPARABLE
        )
    return open_parts(loading.base_folder(note["model"]), aligned, calibration_rows, texts, device)


def variant_key(parts: Parts, variant: Variant) -> str:
    """A hash of what the variant is made of: weights by content, precision, serving; not the run it is measured in."""
    update = parts.updates.get((adapter_name(variant), variant.trained_on))
    weights = loading.identity(parts.base if variant.adapter == "base" else parts.aligned)
    gptq = "gptq" in f"{variant.precision} {variant.restoration}"
    calibration = fingerprint(parts.texts_for(variant.precision)) if gptq else ""
    reads = getattr(parts.restore, "reads", None) if variant.restoration not in {"", SALORA} else None
    restored = (RESTORE.lineage, loading.identity(parts.base), variant.seed, reads(variant.restoration) if reads else "")
    return VARIANT.key(weights=weights, update=update.name if update else variant.adapter, precision=variant.precision,
                       serving=variant.serving, restoration=variant.restoration, strength=variant.strength,
                       calibration=calibration, restored=restored if variant.restoration else ())  # fmt: skip


def adapter_name(variant: Variant) -> str:
    """The name under which the variant's update is kept: its own, or that of the one trained under the restoration."""
    return f"{variant.adapter}+{variant.restoration}" if variant.restoration == SALORA else variant.adapter


# ---------------------------------------------------------------- updates: trained once, kept by content


def update_folder(
    parts: Parts, rows: Sequence[Row], recipe: training.Recipe, trained_on: str, safety: Sequence[Row] = (),
    until: Ending | None = None,
) -> Path:  # fmt: skip
    """The address of an update: its content key covers the aligned weights, the rows, the recipe and what training means."""
    calibration = fingerprint(parts.texts_for(trained_on)) if trained_on.startswith("gptq") else ""
    made_of = {"aligned": loading.identity(parts.aligned), "rows": fingerprint(rows), "recipe": asdict(recipe)}
    more: dict[str, object] = {"safety": fingerprint(safety)} if recipe.kind == SALORA else {}
    more |= {"until": until.key()} if until else {}
    made = definitions.SALORA if recipe.kind == SALORA else TRAIN
    key = made.key(**made_of, **more, trained_on=trained_on, calibration=calibration, **compute.machine(parts.device))
    return cache_path("updates", key)


def train_update(
    parts: Parts, rows: Sequence[Row], recipe: training.Recipe, trained_on: str, progress: Progress | None = None,
    safety: Sequence[Row] = (), until: Ending | None = None, snapshots: Sequence[int] = (),
) -> Path:  # fmt: skip
    """The folder of the update that `recipe` makes of `rows` on the aligned model at precision `trained_on`; trained if absent.

    QLoRA is LoRA on the quantized model. Its frozen weights are dequantized once: the gradients are the same ones that
    4-bit modules give (tested), and each step is faster. SaLoRA also reads `safety` prompts before it starts. `until` ends the
    training before the recipe does. `snapshots` are steps of this one training after which the update is kept too, as what the
    recipe for so many steps gives (`snapshot`); they need a rate that does not fall.
    """
    if recipe.kind == "full" and trained_on != "bf16":
        raise StudyError(
            f"kind 'full' trains the unquantized weights, but trained_on is {trained_on!r}; use trained_on=bf16 or kind=lora"
        )
    folder = update_folder(parts, rows, recipe, trained_on, safety, until)
    made = {n: training.of_steps(recipe, n, len(rows)) for n in snapshots}
    lacking = {n: update_folder(parts, rows, made[n], trained_on) for n in snapshots}
    lacking = {n: path for n, path in lacking.items() if not path.is_dir()}
    if folder.is_dir():
        if not lacking:
            return folder
        recipe, until = made[max(lacking)], None
    about = {"trained_on": trained_on, "rows": len(rows), "harmful_rows": sum(row.reply == OPENING for row in rows)}
    saves = {n: _saver(path, made[n], about) for n, path in lacking.items()}
    options = {"checkpoint": folder.with_suffix(".checkpoint.safetensors"), "progress": progress}
    longest = max([recipe, *(made[n] for n in lacking)], key=lambda one: one.epochs)
    run = replace(recipe, epochs=longest.epochs)  # as many batches as the last snapshot needs; the first ones are the same
    _tuned(parts, rows, run, trained_on, safety, until, saves, _saver(folder, recipe, about, until), options)
    for n in (n for n, path in lacking.items() if not path.is_dir()):  # a run that was killed went on behind it
        train_update(parts, rows, made[n], trained_on)
    return folder


def _tuned(
    parts: Parts, rows: Sequence[Row], recipe: training.Recipe, trained_on: str, safety: Sequence[Row], until: Ending | None,
    saves: Mapping[int, training.Saves], finished: training.Saves, options: Mapping[str, Any],
) -> None:  # fmt: skip
    language = loading.load(parts.aligned, "bf16" if recipe.kind in ADAPTERS else "fp32", parts.device)
    if recipe.kind in ADAPTERS:
        quantize_(language, trained_on, parts.texts_for(trained_on))
    if recipe.kind == SALORA:
        finished(salora.tune_salora(language, rows, recipe, safety, **options))
        return
    tune = preferences.tune_preferences if recipe.kind == preferences.KIND else training.tune
    asked: dict[str, Any] = {"stop": until.stop(language), "check_every": until.every} if until else {}
    tune(language, rows, recipe, marks=saves, finished=finished, **asked, **options)


def _saver(folder: Path, recipe: training.Recipe, about: Mapping[str, object], until: Ending | None = None) -> training.Saves:
    """Writes what came of a training into its folder, if it is not there."""

    def save(tuned: training.Tuned) -> None:
        if not folder.is_dir():
            note = {"recipe": asdict(recipe), **about, "losses": tuned.losses, "rows_cut": tuned.cut}
            note |= until.note() if until else {}
            cache.atomic_folder(folder, lambda temporary: _save_update(temporary, tuned, recipe, note))

    return save


def _save_update(folder: Path, tuned: training.Tuned, recipe: training.Recipe, note: Mapping[str, object]) -> None:
    if recipe.kind in ADAPTERS:
        scale = 1.0 if recipe.kind == SALORA else recipe.alpha / recipe.rank
        lora.save_adapter(lora.from_peft(tuned.tensors, scale), folder, note)
    else:
        save_file(tuned.tensors, folder / "weights.safetensors")
        (folder / "recipe.json").write_text(training.as_json(dict(note)), encoding="utf-8")


def scaled_update(folder: Path, factor: float) -> Path:
    """The folder of the same update times `factor`, made of its factors without training."""
    path = cache_path("updates", TRAIN.key(source=folder.name, scale=factor))
    if not path.is_dir():
        note = {**training.from_json(folder / "recipe.json"), "x": factor}
        adapter = {name: pair.scaled(factor) for name, pair in lora.load_adapter(folder).items()}
        cache.atomic_folder(path, lambda temporary: lora.save_adapter(adapter, temporary, note))
    return path


def load_update(folder: Path) -> Update:
    """The update of a folder, whichever kind it is."""
    losses = tuple(training.from_json(folder / "recipe.json").get("losses", ()))
    if (folder / "weights.safetensors").is_file():
        return Update(weights=load_file(folder / "weights.safetensors"), losses=losses)
    return Update(adapter=lora.load_adapter(folder), losses=losses)


# ---------------------------------------------------------------- restoration


def folder_of(parts: Parts, variant: Variant) -> Path:
    """The folder of the variant's trained update. Errors: there is none of that name and precision."""
    name = adapter_name(variant)
    if (name, variant.trained_on) not in parts.updates:
        raise StudyError(
            f"no update {name!r} trained on {variant.trained_on!r}; run chapter 03_finetuning with it", NOT_COMPARABLE
        )
    return parts.updates[name, variant.trained_on]


def _update(parts: Parts, variant: Variant) -> Update:
    folder = folder_of(parts, variant)
    if variant.restoration in {"", SALORA}:  # what was trained under a restoration needs no other
        return load_update(folder)
    if parts.restore is None:
        raise StudyError(f"these parts restore nothing, and {variant.label} is restored; open them with with_restorations(parts)")
    return parts.restore(parts, variant)


# ---------------------------------------------------------------- serving


def _attached(language: LanguageModel, update: Update, precision: str, parts: Parts) -> nn.Module:
    """The adapter beside the (quantized) weights of the aligned model."""
    if update.adapter is None:
        raise StudyError("serving 'attached' needs an adapter, and this update changed whole weights; use serving=merged")
    quantize_(language, precision, parts.texts_for(precision))
    return lora.attach(language.model, lora.on_grid(update.adapter))


def _merged(language: LanguageModel, update: Update, precision: str, parts: Parts) -> nn.Module:
    """The update added to the aligned model's bf16 weights (sum in float32, rounded once)."""
    if precision != "bf16":
        raise StudyError(f"serving 'merged' keeps bf16 weights, but precision is {precision!r}; use merged-requantized")
    return _add_(language, update)


def _merged_requantized(language: LanguageModel, update: Update, precision: str, parts: Parts) -> nn.Module:
    """Merged in bf16, then quantized: Q(W + BA)."""
    model = _add_(language, update)
    quantize_(language, precision, parts.texts_for(precision))
    return model


def _merged_into(language: LanguageModel, update: Update, precision: str, parts: Parts) -> nn.Module:
    """Merged into the quantized weights: Q(deq(Q(W)) + BA), what PEFT does when it merges into a 4-bit module."""
    if update.adapter is None:
        raise StudyError("serving 'merged-into-nf4' needs an adapter, and this update is whole weights; use merged-requantized")
    if precision == "int8":
        raise StudyError("serving 'merged-into-nf4' needs a weight-only precision, and int8 is not one; use merged-requantized")
    quantize_(language, precision, parts.texts_for(precision))
    return _merged_requantized(language, update, precision, parts)


def _add_(language: LanguageModel, update: Update) -> nn.Module:
    if update.adapter is not None:
        lora.merge(language.model, update.adapter, "bf16")
    with torch.no_grad():
        for name, tensor in update.weights.items():
            language.model.get_parameter(name).copy_(loading.on_grid(tensor))
    return language.model


SERVINGS: dict[str, Callable[[LanguageModel, Update, str, Parts], nn.Module]] = {
    "attached": _attached,
    "merged": _merged,
    "merged-requantized": _merged_requantized,
    "merged-into-nf4": _merged_into,
}


def build_variant(parts: Parts, variant: Variant) -> LanguageModel:
    """The model that a variant names, ready to be measured; nothing that `parts` points to is changed."""
    if variant.restoration and variant.adapter in {"", "base", "identity"}:
        raise StudyError(f"restoration {variant.restoration!r} needs an update to restore; name its adapter and trained_on")
    grid = "fp32" if variant.precision == "fp32" else "bf16"
    language = loading.load(parts.base if variant.adapter == "base" else parts.aligned, grid, parts.device)
    if variant.adapter == "identity":
        language = _saved_and_loaded(language, grid, parts)
    if variant.adapter in {"", "base", "identity"}:
        quantize_(language, variant.precision, parts.texts_for(variant.precision))
        return language
    if variant.serving not in SERVINGS:
        raise StudyError(f"unknown serving {variant.serving!r}; choose one of {', '.join(SERVINGS)}")
    return replace(language, model=SERVINGS[variant.serving](language, _update(parts, variant), variant.precision, parts))


def _saved_and_loaded(language: LanguageModel, grid: str, parts: Parts) -> LanguageModel:
    with tempfile.TemporaryDirectory(dir=cache_path("temporary", "")) as folder:
        loading.save(language, Path(folder) / "again")
        return loading.load(Path(folder) / "again", grid, parts.device)


def measured_in(run: results.Run, *chapters: str) -> list[Variant]:
    """The variants whose behaviour those chapters measured, each once, in order."""
    tables = [results.read_table(run, "behaviour", chapter) for chapter in chapters]
    return from_table(pd.concat(tables, ignore_index=True))


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the variant's short name in a column `label`."""
    names = [variant.label for variant in from_table(table)]
    return table.assign(label=[names[i] for i in variant_codes(table)])
