"""The offer: the updated model that somebody wants to deploy, checked before it is loaded, then built."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from helpers import results
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, nearest, shown
from helpers.models import checkpoints, loading
from helpers.models.foreign import adapter_file, fetched, settings_file
from helpers.models.foreign.boundary import at_most, foreign, one_line
from helpers.models.foreign.culprit import field_at_fault
from helpers.models.formats import decoders, gguf_files, packed_folders
from helpers.models.loading import LanguageModel
from helpers.monitors import frozen
from helpers.revalidation.candidate import settings
from helpers.revalidation.candidate.settings import Setting
from helpers.updates import lora, quantized_models, quantizers
from helpers.updates.lora import Adapter
from helpers.updates.quantizers import QUANTIZERS

ADAPTER, CONFIG = "adapter_config.json", "config.json"
CALIBRATION = 32  # texts, for the one quantizer that needs some


@dataclass(frozen=True)
class Candidate:
    """What happened to the base. kind: adapter, merged or quantizer; folder and adapter where they belong to the kind.

    settings: what else a forward pass depends on, compared with the base; notes: what a user should know of the files.
    """

    name: str
    kind: str
    folder: Path | None = None
    adapter: Adapter | None = None
    settings: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def differing(self) -> tuple[Setting, ...]:
        """The settings in which it is not the base."""
        return tuple(one for one in self.settings if not one.same)


def config(folder: Path) -> dict:
    """The configuration of a checked folder."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def check_update(name: str, precision: str, base: Path, reads: str, template: bool = True) -> Candidate:
    """The update of that name or folder, if it can be put on the base, whose tokenizer and template are `reads`.

    template: whether monitors read texts in the chat template; else the templates may differ.
    """
    folder = Path(name)
    if not folder.is_dir() and not gguf_files.gguf_file(folder):
        return _quantizer(name, precision, base)
    found = _offered(folder, base, reads, template)
    return replace(found, notes=(*found.notes, *_left_as_they_are(precision, base)))


def _offered(folder: Path, base: Path, reads: str, template: bool) -> Candidate:
    """The adapter or merged model of a folder."""
    if (folder / ADAPTER).is_file() or list(folder.glob("adapter_model.*")):
        return _adapter(folder, base, reads, template)
    file = gguf_files.gguf_file(folder)
    if not file and not (folder / CONFIG).is_file():
        how = fetched.models_below(folder) or "give one that has"
        raise StudyError(f"--update {shown(folder.name)} has neither {ADAPTER} nor {CONFIG}; {how}", REFUSED)
    given, (folder, unpacked) = folder, gguf_files.on_base(file, base) if file else packed_folders.plain(folder)
    checkpoints.check_folder(folder)
    theirs = checkpoints.sizes(folder)
    for field, value in checkpoints.sizes(base).items():
        if value != theirs[field]:
            raise StudyError(
                f"{folder.name}: {field} is {theirs[field]!r}, the base's {value!r}; compare updates of one model", NOT_COMPARABLE
            )
    compared = tuple(settings.compare_folders(base, folder))
    settings.check_reading(folder, settings.tokenizer_of(folder), reads, template)
    notes = (*([unpacked] if unpacked else []), *([] if file else _lying_beside(given)))
    return Candidate(results.slug(str(given)), "merged", folder, settings=compared, notes=notes)


def _lying_beside(folder: Path) -> list[str]:
    """What is read otherwise than it stands, and what lies beside the weights that are read, and is not."""
    found = checkpoints.beside(folder)
    names = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    read = checkpoints.weight_files(folder)
    whence = read[0].name if len(read) == 1 else f"{len(read)} shards"
    lying = f"{folder.name}: {names} lie(s) beside the weights and was not read; the model is that of {whence}"
    return [*checkpoints.read_otherwise(folder), *([lying] if found else [])]


def _quantizer(name: str, precision: str, base: Path) -> Candidate:
    if instead := fetched.instead_of(Path(name)):
        raise StudyError(f"--update {instead}", REFUSED)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name):
        which, _, revision = name.partition("@")
        how = f"hf download {which} --revision {revision or '<commit>'} --local-dir {which.rpartition('/')[2]}"
        raise StudyError(
            f"--update {shown(name)} is no folder here; if it lies on the hub, fetch it ({how}) and give that folder"
        )
    if name not in QUANTIZERS:
        choice = f"{nearest(name, QUANTIZERS)}choose one of {', '.join(QUANTIZERS)}, or a folder that exists"
        raise StudyError(f"--update {shown(Path(name).name)} is neither a folder nor a quantizer; {choice}")
    if precision != "bf16":
        raise StudyError(f"--update {name} is a precision itself; leave out --precision {precision}")
    return Candidate(name, "quantizer", notes=tuple(_left_as_they_are(name, base)))


def _left_as_they_are(precision: str, base: Path) -> list[str]:
    """What a quantizer does not touch: matrices of the blocks that are no linear module's. One that touches none is refused."""
    if precision in loading.GRIDS:
        return []
    model = _empty_model(base)
    touched, others = quantizers.linear_names(model), decoders.other_matrices(model)
    what = f"{precision} is of {len(touched)} linear modules; {len(others)} other matrices of the blocks stay as they are"
    return [f"{base.name}: {what}, such as {others[0]}"] if others else []


def _adapter(folder: Path, base: Path, reads: str, template: bool) -> Candidate:
    """The adapter of a folder, which fits the base's modules; pickles in it are never opened."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in frozen.PICKLES)
    if pickles and not (folder / "adapter_model.safetensors").is_file():
        raise StudyError(f"{folder.name} holds {pickles[0]}, which can run code when opened; save it as safetensors", REFUSED)
    adapter, idle = _factors(folder)
    compared: list[Setting] = []
    own = settings.adapters_tokenizer(folder, base)
    if own is not None:
        settings.check_reading(folder, own, reads, template)
        compared = settings.compare_tokenizers(settings.tokenizer_of(base), own)
    _check_modules(folder, adapter, _empty_model(base))
    notes = _adapter_notes(folder, idle, base)
    return Candidate(results.slug(str(folder)), "adapter", folder, adapter, tuple(compared), tuple(notes))


def _factors(folder: Path) -> tuple[Adapter, list[tuple[str, str]]]:
    """The adapter of a folder, and fields and patterns of its settings that no module of it has."""
    if (folder / "adapter_model.safetensors").is_file():  # without it, its reader says how to save one
        fetched.check_pointers(folder)
        adapter_file.check_adapter(folder)
    what = f"{folder.name}/{ADAPTER}"
    late = f"{what}: its patterns did not end within {adapter_file.SECONDS:g} s; name the modules instead"
    culprit = partial(field_at_fault, folder, (ADAPTER,), lora.base_of)
    with foreign(f"{what} cannot be read", adapter_file.AGAIN, culprit), at_most(adapter_file.SECONDS, late):
        adapter = lora.load_adapter(folder)
        idle = lora.idle_patterns(folder, adapter)
    broken = next((n for n, pair in adapter.items() if not (pair.left.isfinite().all() and pair.right.isfinite().all())), None)
    if broken:
        why = f"the update of {shown(broken)} at the scale of its config is NaN or infinite"
        raise StudyError(f"{folder.name}: {why}; save the adapter again, or leave it out", REFUSED)
    return adapter, idle


def _adapter_notes(folder: Path, patterns: Sequence[tuple[str, str]], base: Path) -> list[str]:
    """What is odd about an adapter that can be put on the base: other weights beside it, patterns without a module, its base."""
    notes = [f"{folder.name}: {one_line(name)[:120]} and others were read without what wrappers put into their names"
             for name in [lora.renamed(folder)] if name]  # fmt: skip
    if (folder / CONFIG).is_file() and checkpoints.weight_files(folder):
        other = checkpoints.weight_files(folder)[0].name
        notes.append(
            f"{folder.name} holds a whole model ({other}) beside an adapter: the adapter on the base was taken, not the model"
        )
    idle = [f"{field} {shown(pattern)}" for field, pattern in patterns]
    if idle:
        notes.append(f"{folder.name}: {', '.join(idle[:3])} of its config match(es) no module of the adapter")
    made_for, revision = (one_line(name)[:60] for name in lora.base_of(folder))
    if made_for and made_for.lower() not in _names_of(base):
        which = f"{made_for} (revision {revision})" if revision else made_for
        notes.append(f"{folder.name} was made for {which}, and is put on {base.name}, whose modules have the same shapes")
    elif revision and revision not in str(base.resolve()):
        notes.append(f"{folder.name} was made for revision {revision} of {made_for}; nothing shows that {base.name} is that one")
    return notes


def _names_of(base: Path) -> set[str]:
    """What a base may be called: by its folder, by the hub's cache around it, by what its own config remembers."""
    hub = [part.rpartition("--")[2] for part in base.resolve().parts if part.startswith("models--")]
    told = str(config(base).get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    unpacked = base.name.partition(packed_folders.UNPACKED)[0]
    own = (base.name, base.resolve().name, unpacked, unpacked.partition(packed_folders.AT)[0])
    return {name.lower() for name in (*own, told, *hub) if name}


def _check_modules(folder: Path, adapter: Adapter, model: torch.nn.Module) -> None:
    """Raises StudyError that names the first three modules which the base does not have, or has in another shape."""
    shapes = {name: tuple(module.weight.shape) for name, module in model.named_modules() if hasattr(module, "weight")}
    strange = [
        one_line(name)[:120] for name, pair in adapter.items() if shapes.get(name) != (pair.left.shape[0], pair.right.shape[1])
    ]
    if strange:
        raise StudyError(
            f"{folder.name}: {len(strange)} of {len(adapter)} modules are not the base's ({', '.join(strange[:3])}); "
            "it was trained on another base",
            NOT_COMPARABLE,
        )


def _empty_model(folder: Path) -> torch.nn.Module:
    """The modules of a model with their shapes, without weights: what an adapter can be compared with at once."""
    return settings_file.check_shapes(folder, settings_file.read_config(folder), checkpoints.shapes(folder))


# ---------------------------------------------------------------- building it


def build(update: Candidate, base: Path, served_in: str, device: str, texts: Sequence[str]) -> LanguageModel:
    """The updated model, served in a precision; `texts` calibrate GPTQ, where it is asked for."""
    grid = "fp32" if served_in == "fp32" else "bf16"
    language = loading.load(update.folder if update.kind == "merged" and update.folder else base, grid, device, linear=False)
    quantized_models.quantize_(language, update.name if update.kind == "quantizer" else served_in, tuple(texts[:CALIBRATION]))
    if update.adapter is None:
        return language
    adapter = {name: lora.LowRank(pair.left.to(device), pair.right.to(device)) for name, pair in update.adapter.items()}
    return replace(language, model=lora.attach(language.model, lora.on_grid(adapter)))


def serving(update: Candidate) -> str:
    """How the update meets the base."""
    return {"adapter": "attached", "merged": "merged", "quantizer": ""}[update.kind]


def content_hash(folder: Path) -> str:
    """sha256 over the weights that are read, configuration, tokenizer and templates of a folder; the same on every machine."""
    weights = [path.name for path in checkpoints.weight_files(folder)]
    kept = {
        *weights,
        "adapter_model.safetensors",
        ADAPTER,
        CONFIG,
        "generation_config.json",
        *settings.TOKENS,
        *settings.TEMPLATES,
    }
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name in kept):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
