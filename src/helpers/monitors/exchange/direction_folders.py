"""Direction folders: a probe of anybody's as numbers and words, `direction.safetensors` beside `monitor.json`, never a pickle.

The score of a hidden state x is weight @ z + bias, or weight @ relu(hidden.weight @ z + hidden.bias) + bias, with
z = (x - mean) / scale; a text is flagged where its score is above the threshold. Only `weight` must be there.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError, nearest, shown
from helpers.monitors.frozen import Monitor, freeze
from helpers.monitors.probes import PROBES, Readout
from helpers.stats.roc import RATES

TENSORS, WORDS = "direction.safetensors", "monitor.json"
LARGEST = 2**20  # bytes of monitor.json

# By what a layer is called, the blocks that have been passed at it, of `depth` in all. transformers' hidden_states[l] is the
# residual stream after l blocks, but for the last, which has gone through the final norm too.
CONVENTIONS: dict[str, Callable[[int, int], int]] = {
    "hidden_states": lambda layer, depth: layer if layer >= 0 else depth + 1 + layer,  # index into output_hidden_states
    "block": lambda layer, depth: (layer if layer >= 0 else depth + layer) + 1,  # behind the block of that number, from 0
    "resid_post": lambda layer, depth: layer + 1,  # TransformerLens
    "resid_pre": lambda layer, depth: layer,
}
FIELDS: dict[str, tuple[type, ...]] = {
    "layer": (int,), "convention": (str,), "pooling": (str,), "threshold": (int, float), "false_positive_rate": (int, float),
    "template": (bool,), "task": (str,), "kind": (str,), "limit": (int,), "tensor": (str,), "model": (str,), "made_by": (str,),
}  # fmt: skip
NEEDED = ("layer", "convention", "pooling", "template")
NAMES = {  # what others call the same
    "weight": ("weight", "w", "coef", "direction", "vector", "steering_vector"), "bias": ("bias", "b", "intercept"),
    "mean": ("mean", "mu"), "scale": ("scale", "std", "sigma"), "hidden.weight": ("hidden.weight",),
    "hidden.bias": ("hidden.bias",),
}  # fmt: skip
KINDS = ("logistic", "lda", "mean-difference", "mlp")  # by which a monitor is fitted anew where labels allow


@dataclass(frozen=True)
class BaseModel:
    """What a foreign monitor is put on: the base's name, width and depth, and how it reads with and without its template."""

    name: str
    width: int
    layers: int
    reads: str
    reads_plain: str


def is_direction_folder(folder: Path) -> bool:
    """Whether a folder, or those in it, hold monitors of this form."""
    return bool(_folders(folder))


def load_directions(folder: Path, base: BaseModel) -> tuple[list[Monitor], list[str]]:
    """The monitors of a folder and of those in it, put on the base, and what should be known of them."""
    found, notes = [], []
    for inner in _folders(folder):
        entries, tensors = _entries(inner), _tensors(inner)
        for entry in entries:
            where = f"{inner.name}/{WORDS}"
            monitor = _monitor(where, entry, _one(where, entry, tensors), base)
            found.append(monitor)
            notes += list(_told(monitor, entry))
    twice = [one.name for one in found if [other.name for other in found].count(one.name) > 1]
    if twice:
        raise StudyError(f"{folder.name}: two monitors are called {twice[0]}; give each its own task in {WORDS}", REFUSED)
    return found, notes


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and (path / WORDS).is_file())
    return [folder] if (folder / WORDS).is_file() else inner


def _told(monitor: Monitor, entry: Mapping[str, Any]) -> Iterator[str]:
    if "model" not in entry:
        yield f"monitor {monitor.name} does not say on which model it was fitted; its width fits this base"
    if "threshold" in entry and "false_positive_rate" not in entry:
        yield f"monitor {monitor.name} does not say which false_positive_rate its threshold promises; 5 % are taken"


# ---------------------------------------------------------------- words


def _entries(folder: Path) -> list[dict]:
    path = folder / WORDS
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{folder.name}/{WORDS} cannot be read ({type(error).__name__}); write JSON", REFUSED) from error
    entries = found.get("monitors", [found]) if isinstance(found, dict) else found
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise StudyError(f"{folder.name}/{WORDS} describes no monitor; write one object, or a list of them", REFUSED)
    for entry in entries:
        check_entry(f"{folder.name}/{WORDS}", entry)
    return entries


def check_entry(where: str, entry: Mapping[str, Any]) -> None:
    """Raises StudyError by the name of the first field that is missing, unknown or of another kind."""
    for name in (*NEEDED, *entry):
        if name not in entry:
            raise StudyError(f"{where} has no {name!r}; say it: {_choice(name)}", REFUSED)
        if name not in FIELDS:
            raise StudyError(f"{where}: {shown(name)} is unknown; {nearest(name, FIELDS)}use {', '.join(FIELDS)}", REFUSED)
        value = entry[name]
        odd = type(value) not in FIELDS[name] or (isinstance(value, float) and not np.isfinite(value))
        known = {"convention": CONVENTIONS, "pooling": ("last", "mean"), "kind": KINDS, "false_positive_rate": RATES.values()}
        if odd or (name in known and value not in known[name]):
            raise StudyError(f"{where}: {name} is {shown(value)}; {_choice(name)}", REFUSED)


def _choice(name: str) -> str:
    """What a field may be."""
    words = {
        "layer": "a whole number", "convention": f"one of {', '.join(CONVENTIONS)}", "pooling": "last or mean",
        "template": "true where texts stood in the chat template when it was fitted, else false", "threshold": "a number",
        "false_positive_rate": f"one of {', '.join(map(str, RATES.values()))}", "kind": f"one of {', '.join(KINDS)}",
        "limit": "tokens of a text that it reads, a whole number",
    }  # fmt: skip
    return words.get(name, "a text")


# ---------------------------------------------------------------- numbers


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / TENSORS
    if not path.is_file():
        others = sorted(other.name for other in folder.iterdir() if other.suffix == ".safetensors")
        how = f"rename {others[0]}" if len(others) == 1 else "write it with helpers.monitors.exchange.export"
        raise StudyError(f"{folder.name} has {WORDS} but no {TENSORS}; {how}", REFUSED)
    try:
        return {name: np.asarray(tensor, dtype=np.float64) for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:  # also bf16, which numpy lacks
        reason = str(error).strip().split("\n")[0][:100]
        raise StudyError(f"{folder.name}/{TENSORS} cannot be read ({reason}); save float32 as safetensors", REFUSED) from error


def _one(where: str, entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one monitor under our names: those that `tensor` opens, or it alone as the weight, else all."""
    chosen = str(entry.get("tensor", ""))
    own = {name.removeprefix(f"{chosen}."): part for name, part in tensors.items() if not chosen or name.startswith(f"{chosen}.")}
    if chosen in tensors:
        own = {"weight": tensors[chosen], **own}
    if not own:
        raise StudyError(
            f"{where}: no tensor is called {shown(chosen)}; {nearest(chosen, tensors)}there are {len(tensors)}", REFUSED
        )
    found = {}
    for name, part in own.items():
        ours = next((ours for ours, theirs in NAMES.items() if name in theirs), None) or next(
            (ours for ours, theirs in NAMES.items() if name.rpartition(".")[2] in theirs), None
        )
        if ours is None or ours in found:
            why = "stands for the same as another" if ours else "is no part of a direction"
            raise StudyError(f"{where}: tensor {shown(name)} {why}; use {', '.join(NAMES)}, or say which by 'tensor'", REFUSED)
        found[ours] = part
    if "weight" not in found:
        raise StudyError(f"{where}: no weight among the tensors; a direction needs one, called weight", REFUSED)
    return found


def _readout(where: str, entry: Mapping[str, Any], parts: Mapping[str, np.ndarray]) -> Readout:
    """The probe that reads raw hidden states: mean and scale are folded into what follows them."""
    weight, bias = parts["weight"], parts.get("bias", np.zeros(1))
    if weight.ndim == 2 and len(weight) == 2 and bias.size in {1, 2}:  # two logits: what counts is their difference
        weight, bias = weight[1] - weight[0], np.diff(bias) if bias.size == 2 else np.zeros(1)
    weight, bias = np.squeeze(weight), np.squeeze(bias)
    first = parts.get("hidden.weight", weight)
    size = first.shape[-1:]
    mean, scale = parts.get("mean", np.zeros(size)), parts.get("scale", np.ones(size))
    if weight.ndim != 1 or bias.ndim or first.ndim > 2 or {mean.shape, scale.shape} != {size}:
        shapes = ", ".join(f"{name} {part.shape}" for name, part in parts.items())
        raise StudyError(f"{where}: {shapes} are no direction; give weight [d], bias [], mean [d], scale [d]", REFUSED)
    if not (scale > 0).all() or not all(np.isfinite(part).all() for part in parts.values()):
        raise StudyError(f"{where}: a number is not finite, or a scale not above 0; write them anew", REFUSED)
    if "hidden.weight" not in parts:
        w, kind = weight / scale, str(entry.get("kind", "logistic"))
        # its penalty is in no file: fitted anew, it takes scikit-learn's default, which is 1 on rows not divided by the root of d
        return Readout(kind, {"w": w, "b": np.array(bias - mean @ w)}, 1 / len(w) if kind == "logistic" else 0.0)
    w1 = parts["hidden.weight"] / scale
    b1 = parts.get("hidden.bias", np.zeros(len(w1))) - w1 @ mean
    return Readout("mlp", {"W1": w1, "b1": b1, "w2": weight, "b2": np.array(bias)}, 0.0)


def _monitor(where: str, entry: Mapping[str, Any], parts: Mapping[str, np.ndarray], base: BaseModel) -> Monitor:
    readout, layer = _readout(where, entry, parts), _layer(where, entry, base)
    axes = PROBES[readout.kind].axes
    if readout.width != base.width or set(axes) != set(readout.tensors):
        raise StudyError(
            f"{where}: it reads {readout.width} numbers, the model has {base.width}; fit it on this model", NOT_COMPARABLE
        )
    task = str(entry.get("task") or where.split("/")[0])
    frozen = freeze(
        readout, np.empty(0), task=task, pooling=entry["pooling"], layer=layer, layers=base.layers, seed=0,
        reads=base.reads if entry["template"] else base.reads_plain, model=str(entry.get("model", base.name)),
        limit=int(entry.get("limit", 0)),
    )  # fmt: skip
    return replace(frozen, thresholds={_level(entry): float(entry["threshold"])} if "threshold" in entry else {})


def _level(entry: Mapping[str, Any]) -> str:
    rate = entry.get("false_positive_rate", RATES["5"])
    return next(level for level, value in RATES.items() if value == rate)


def _layer(where: str, entry: Mapping[str, Any], base: BaseModel) -> int:
    """The blocks passed where it reads; the last hidden_states of transformers are behind the final norm, which is not read."""
    layer, convention = entry["layer"], entry["convention"]
    blocks = CONVENTIONS[convention](layer, base.layers)
    if not 1 <= blocks <= base.layers:
        raise StudyError(
            f"{where}: layer {layer} by {convention} is none of 1 to {base.layers} blocks passed; give such a one", NOT_COMPARABLE
        )
    if convention == "hidden_states" and blocks == base.layers:
        how = "it has gone through the final norm, which no monitor here reads behind; fit it one layer lower, or before the norm"
        raise StudyError(f"{where}: layer {layer} is the last of hidden_states: {how}, and say convention 'block'", REFUSED)
    return blocks
