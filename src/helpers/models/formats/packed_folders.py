"""Packed folders: a model stored in few bits, unpacked once into a folder of bf16 that every wing can read and compare.

Tensors are unpacked one module at a time into shards below the cache; what a served model also rounds, its activations, is not
seen in weights and stands in the note. A folder that is not packed is given back as it is.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers import cache
from helpers.errors import REFUSED, StudyError
from helpers.models import checkpoints
from helpers.models.foreign.boundary import foreign
from helpers.models.formats.packed_tensors import FORMATS, PackedFormat, format_of
from helpers.models.loading import base_folder, identity

SHARD = 2**30  # bytes that are held before they are written
TOLD, UNPACKED, AT = "unpacked.json", "-unpacked-", "@"
HUB = re.compile(r"[\w.-]+/[\w.-]+@[\w.-]+")  # a model of the hub at a revision
NOT_TENSORS = (".safetensors", ".safetensors.index.json", ".bin", ".gguf")
ROUNDS = ("bitsandbytes 8 bit", "compressed-tensors")  # whose served models may round activations too


class Unpacked(NamedTuple):
    """A folder of plain tensors; `note` says what it was made of, and is empty where nothing was unpacked."""

    folder: Path
    note: str = ""


def plain_base(model: str) -> Unpacked:
    """The checked folder of a base, unpacked where it is stored in few bits: a local folder or a hub id; other names as known."""
    hub = not Path(model).exists() and HUB.fullmatch(model)
    if not (Path(model).is_dir() or hub):
        return Unpacked(base_folder(model))
    found = plain(checkpoints.from_hub(model) if hub else Path(model))
    return found._replace(folder=base_folder(str(found.folder)))


def called(folder: Path) -> str:
    """What a folder is called: of one in the hub's cache, whose name is a commit, the model's name and that commit."""
    hub = next((part.rpartition("--")[2] for part in reversed(folder.parts) if part.startswith("models--")), "")
    return f"{hub}{AT}{folder.name}" if hub else folder.name


def plain(folder: Path) -> Unpacked:
    """The folder itself, or, of packed weights, one in the cache with the same model in bf16.

    Refused before anything is unpacked: a format that is not read; settings of a format that no module is stored in.
    """
    config = checkpoints.config_of(folder)
    if not isinstance(config.get("quantization_config"), dict):
        return Unpacked(folder)
    settings = config["quantization_config"]
    told = f"{folder.name}/config.json: quantization_config"
    with foreign(f"{told} cannot be read", "mend it, or fetch the whole model again"):
        name = format_of(settings)
    checkpoints.check_folder(folder, packed=True)
    owners, form = checkpoints.shards(folder), FORMATS[name]
    modules = packed_modules(owners, form)
    if not modules:
        how = "remove that field from config.json, or fetch the whole model again"
        raise StudyError(f"{folder.name}: quantization_config says {name}, and no module is stored so; {how}", REFUSED)
    target = cache.cache_folder() / "models" / f"{called(folder)}{UNPACKED}{identity(folder).rpartition('-')[2]}"
    with foreign(f"{told} says {name}, and the weights cannot be unpacked so", "fetch the whole model again"):
        made = cache.atomic_folder(target, lambda temporary: _write(folder, temporary, config, name, owners, modules))
    return Unpacked(made, _note(folder, name, json.loads((made / TOLD).read_text(encoding="utf-8"))))


def _note(folder: Path, name: str, told: Mapping[str, int]) -> str:
    also = "; served, it may round activations too, which no weight shows" if name in ROUNDS else ""
    what = f"{told['modules']} modules of it were packed, {told['others']} other matrices were not"
    return f"{called(folder)} is stored as {name}: {what}; it was read as the bf16 weights that these codes stand for{also}"


def packed_modules(names: Mapping[str, Path], form: PackedFormat) -> dict[str, list[str]]:
    """By module, what follows its name in the tensors that belong to its packed weight."""
    marks = tuple(f".{mark}" for mark in form.marks)
    found: dict[str, list[str]] = {}
    for name in names:
        mark = next((mark for mark in marks if name.endswith(mark)), None)
        if mark:
            module = name.removesuffix(mark)
            parts = [part for part in (*form.marks, *form.parts) if f"{module}.{part}" in names]
            found[module] = parts
    return found


def _write(
    folder: Path, target: Path, config: Mapping[str, Any], name: str, owners: Mapping[str, Path], modules: Mapping[str, list[str]]
) -> None:
    """The model in bf16, its settings without the packing, and everything else of the folder, as it is."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "config.json" and not path.name.endswith(NOT_TENSORS):
            shutil.copyfile(path, target / path.name)
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    (target / "config.json").write_text(json.dumps({**kept, "dtype": "bfloat16"}, indent=2), encoding="utf-8")

    def read(tensor: str) -> Tensor:
        return checkpoints.tensor_of(owners[tensor], tensor)

    others = write_shards(target, _tensors(read, owners, modules, FORMATS[name], config["quantization_config"]))
    matrices = sum(count > 1 for count in others) - len(modules)
    (target / TOLD).write_text(json.dumps({"modules": len(modules), "others": matrices}), encoding="utf-8")


def _tensors(
    read: Callable[[str], Tensor], names: Mapping[str, Path], modules: Mapping[str, list[str]], form: PackedFormat, settings: Any
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the unpacked model: floats in bf16, rounded once."""
    belonging = {f"{module}.{part}" for module, parts in modules.items() for part in parts}
    for module, parts in modules.items():
        try:
            weight = form.decode({part: read(f"{module}.{part}") for part in parts}, settings)
        except (KeyError, ValueError, RuntimeError, IndexError, TypeError, StopIteration) as error:
            reason = (str(error) or type(error).__name__).split("\n")[0][:100]
            how = "fetch the whole model again"
            raise StudyError(f"{module}: its packed weight cannot be read ({reason}); {how}", REFUSED) from error
        if not weight.isfinite().all():
            raise StudyError(f"{module}: its packed weight stands for NaN or infinity; fetch the whole model again", REFUSED)
        yield f"{module}.weight", weight.to(torch.bfloat16)
    for name in names:
        if name not in belonging:
            tensor = read(name)
            yield name, tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def write_shards(target: Path, tensors: Iterator[tuple[str, Tensor]]) -> list[int]:
    """Writes the tensors as safetensors with their index, at most SHARD bytes at a time; the number of axes of each."""
    places: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    axes: list[int] = []
    total, written = 0, 0

    def flush() -> None:
        nonlocal written
        written += 1
        file = f"model-{written:05d}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in held.items()}, target / file, {"format": "pt"})
        places.update(dict.fromkeys(held, file))
        held.clear()

    for name, tensor in tensors:
        held[name] = tensor
        axes.append(tensor.ndim)
        total += tensor.nbytes
        if sum(one.nbytes for one in held.values()) > SHARD:
            flush()
    if held:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (target / checkpoints.INDEX).write_text(json.dumps(index), encoding="utf-8")
    return axes
