"""The tensors of a checkpoint by name, read from safetensors one at a time."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError

Weights = Callable[[str], Tensor]  # module name -> its weight "d_out d_in" as stored, read on demand


def shards(folder: Path) -> dict[str, Path]:
    """Which safetensors file of a checkpoint holds each tensor; a shard that is missing or lies elsewhere is refused."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed(folder, index)
    owners: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                owners |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise StudyError(
                f"{folder.name}/{path.name} cannot be read ({error}); fetch the whole model again", REFUSED
            ) from error
    return owners


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    try:
        owners = {name: folder / file for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{folder.name}/{index.name} is not a shard index; fetch the whole model again", REFUSED) from error
    for path in set(owners.values()):
        if path.parent != folder or not path.is_file():
            raise StudyError(
                f"{folder.name}: shard {path.name!r} is missing or outside the folder; fetch the whole model again", REFUSED
            )
    return owners


def checkpoint(folder: Path) -> Weights:
    """The weights of a (sharded) safetensors checkpoint."""
    owners = shards(folder)
    if not owners:
        raise StudyError(f"{folder.name} holds no safetensors; save the model with safe_serialization=True", REFUSED)
    return partial(_of_checkpoint, folder, owners)


def _of_checkpoint(folder: Path, owners: dict[str, Path], module: str) -> Tensor:
    name = f"{module}.weight"
    if name not in owners:
        raise StudyError(f"module {module!r} is not in {folder.name}; base and aligned must be one architecture", NOT_COMPARABLE)
    return _tensor(owners[name], name)


def stored(path: Path) -> Weights:
    """The weights of one safetensors file that is keyed by module name, as the cache keeps GPTQ's result."""
    return partial(_tensor, path)


def _tensor(path: Path, name: str) -> Tensor:
    """One tensor, as a view of the file: pages are read when touched and given back with it, since no handle is kept."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:  # torn, or without the tensor that the index promises
        raise StudyError(
            f"{path.parent.name}/{path.name} cannot give {name!r} ({error}); fetch the whole model again", REFUSED
        ) from error
