"""Candidates: the updated model that somebody wants to deploy, checked before it is loaded, then built, and how far it moved."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from helpers import results
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, nearest, shown
from helpers.models import checkpoints, loading
from helpers.models.loading import LanguageModel
from helpers.monitors import frozen, readings
from helpers.updates import lora, moved_weights, quantized_models
from helpers.updates.lora import Adapter
from helpers.updates.quantizers import QUANTIZERS

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
ADAPTER, CONFIG = "adapter_config.json", "config.json"
CALIBRATION = 32  # texts, for the one quantizer that needs some


@dataclass(frozen=True)
class Candidate:
    """What happened to the base. kind: adapter, merged or quantizer; folder and adapter where they belong to the kind."""

    name: str
    kind: str
    folder: Path | None = None
    adapter: Adapter | None = None


def config(folder: Path) -> dict:
    """The configuration of a checked folder."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def fingerprint(folder: Path) -> str:
    """The fingerprint of a folder's tokenizer and chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:150]
        raise StudyError(f"{folder.name}: its tokenizer cannot be loaded ({reason}); save it again", REFUSED) from error
    return readings.fingerprint(tokenizer)


def check_update(name: str, precision: str, base: Path, reads: str) -> Candidate:
    """The update of that name or folder, if it can be put on the base, whose tokenizer and template are `reads`."""
    folder = Path(name)
    if not folder.is_dir():
        return _quantizer(name, precision)
    if (folder / ADAPTER).is_file() or list(folder.glob("adapter_model.*")):
        return _adapter(folder, base, reads)
    if not (folder / CONFIG).is_file():
        raise StudyError(f"--update {shown(folder.name)} has neither {ADAPTER} nor {CONFIG}; give one that has", REFUSED)
    loading.check_folder(folder)
    ours, theirs = config(base), config(folder)
    for field in ("model_type", "num_hidden_layers", "hidden_size"):
        if ours.get(field) != theirs.get(field):
            raise StudyError(
                f"{folder.name}: {field} is {theirs.get(field)!r}, the base's {ours.get(field)!r}; compare updates of one model",
                NOT_COMPARABLE,
            )
    _same_tokens(folder, reads)
    return Candidate(results.slug(str(folder)), "merged", folder)


def _quantizer(name: str, precision: str) -> Candidate:
    if name not in QUANTIZERS:
        choice = f"{nearest(name, QUANTIZERS)}choose one of {', '.join(QUANTIZERS)}, or a folder that exists"
        raise StudyError(f"--update {shown(Path(name).name)} is neither a folder nor a quantizer; {choice}")
    if precision != "bf16":
        raise StudyError(f"--update {name} is a precision itself; leave out --precision {precision}")
    return Candidate(name, "quantizer")


def _adapter(folder: Path, base: Path, reads: str) -> Candidate:
    """The adapter of a folder, which fits the base's modules; pickles in it are never opened."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in frozen.PICKLES)
    if pickles and not (folder / "adapter_model.safetensors").is_file():
        raise StudyError(f"{folder.name} holds {pickles[0]}, which can run code when opened; save it as safetensors", REFUSED)
    adapter = lora.load_adapter(folder)
    if (folder / TOKENIZER[0]).is_file() and (folder / TOKENIZER[1]).is_file():
        _same_tokens(folder, reads)
    _check_modules(folder, adapter, _empty_model(base))
    return Candidate(results.slug(str(folder)), "adapter", folder, adapter)


def _check_modules(folder: Path, adapter: Adapter, model: torch.nn.Module) -> None:
    """Raises StudyError that names the first three modules which the base does not have, or has in another shape."""
    shapes = {name: tuple(module.weight.shape) for name, module in model.named_modules() if hasattr(module, "weight")}
    strange = [name for name, pair in adapter.items() if shapes.get(name) != (pair.left.shape[0], pair.right.shape[1])]
    if strange:
        raise StudyError(
            f"{folder.name}: {len(strange)} of {len(adapter)} modules are not the base's ({', '.join(strange[:3])}); "
            "it was trained on another base",
            NOT_COMPARABLE,
        )


def _empty_model(folder: Path) -> torch.nn.Module:
    """The modules of a model with their shapes, without weights: what an adapter can be compared with at once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def _same_tokens(folder: Path, reads: str) -> None:
    theirs = fingerprint(folder)
    if theirs != reads:
        raise StudyError(
            f"{folder.name}: its tokenizer and template are {theirs}, the base's {reads}; compare updates that read alike",
            NOT_COMPARABLE,
        )


# ---------------------------------------------------------------- building it


def build(update: Candidate, base: Path, served_in: str, device: str, texts: Sequence[str]) -> LanguageModel:
    """The updated model, served in a precision; `texts` calibrate GPTQ, where it is asked for."""
    grid = "fp32" if served_in == "fp32" else "bf16"
    language = loading.load(update.folder if update.kind == "merged" and update.folder else base, grid, device)
    quantized_models.quantize_(language, update.name if update.kind == "quantizer" else served_in, tuple(texts[:CALIBRATION]))
    if update.adapter is None:
        return language
    adapter = {name: lora.LowRank(pair.left.to(device), pair.right.to(device)) for name, pair in update.adapter.items()}
    return replace(language, model=lora.attach(language.model, lora.on_grid(adapter)))


def serving(update: Candidate) -> str:
    """How the update meets the base."""
    return {"adapter": "attached", "merged": "merged", "quantizer": ""}[update.kind]


def content_hash(folder: Path) -> str:
    """sha256 over the weights, configuration and tokenizer of a folder; the same on every machine."""
    digest, kept = hashlib.sha256(), (ADAPTER, CONFIG, *TOKENIZER)
    for path in sorted(path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name in kept):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- how far it moved


@dataclass(frozen=True)
class Moved:
    """||W' - W|| / ||W|| over the linear modules of the blocks, and `lowest`, the first block that is not the same bit by bit.

    lowest is 0 where the embedding changed too, the depth where only what follows the blocks did, and above it where nothing
    did: a monitor on layer l reads what blocks 0 to l - 1 made.
    """

    relative: float
    lowest: int


@torch.no_grad()
def moved(language: LanguageModel, update: Candidate, served_in: str, base: Path) -> Moved:
    """How far the updated weights lie from the base's, one module at a time; squares summed in float64."""
    stored, depth = _stored(base), language.depth
    change, size, touched, linear = 0.0, 0.0, [depth + 1], set()
    for name, weight in moved_weights.effective_weights(language.model):
        old = stored(f"{name}.weight").to(weight.device).float()
        gap = float((weight - old).square().sum(dtype=torch.float64))
        change, size = change + gap, size + float(old.square().sum(dtype=torch.float64))
        linear.add(f"{name}.weight")
        touched += [_block(name, depth)] if gap > 0 else []
    touched += [_block(name, depth) for name, pair in (update.adapter or {}).items() if pair.norm() > 0]
    if update.kind == "merged":
        others = {name: p for name, p in language.model.named_parameters() if name not in linear}
        touched += [_block(name, depth) for name, p in others.items() if not torch.equal(p.float().cpu(), stored(name).float())]
    if {served_in, update.name} & {"int8", "fp32"}:  # activations are rounded otherwise too, which no weight shows
        touched.append(0)
    return Moved((change / size) ** 0.5 if size > 0 else 0.0, min(touched))


def _block(name: str, depth: int) -> int:
    """The block of a parameter; the embedding stands below all of them, the final norm and the head above."""
    found = re.search(r"\.(\d+)\.", name)
    if found:
        return int(found[1])
    return 0 if "embed" in name else depth


def _stored(folder: Path) -> Callable[[str], Tensor]:
    """The tensors of a checkpoint by name, read on demand."""
    owners = checkpoints.shards(folder)

    def read(name: str) -> Tensor:
        if name not in owners:
            raise StudyError(f"{folder.name} has no {name!r}; compare updates of one model", NOT_COMPARABLE)
        with safe_open(owners[name], framework="pt") as file:
            return file.get_tensor(name)

    return read
