"""Monitors: probes frozen with their thresholds, one safetensors and one JSON file for all of them, checked when they are read.

The hash of a monitor covers every tensor and every field. It finds accidents and edits; it is no signature, and whoever can
rewrite both files can rewrite the hash too. The files can be read with json, struct and numpy alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_origin

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import special

from helpers.cache import atomic_file
from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models.foreign import templates
from helpers.monitors import probes
from helpers.monitors.probes import PROBES, Readout
from helpers.monitors.readouts import Features, Tensors
from helpers.stats.intervals import Estimate
from helpers.stats.roc import RATES

FORMAT = 2
TENSORS, METADATA = "monitors.safetensors", "monitors.json"
PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".npy", ".npz"}
FEATURES = (
    "x: one hidden state of size `width` a text, the residual stream after `layer` of `layers` blocks, at the last token or as "
    "the mean over content tokens (`pooling`); h: the same for every content token (kind attention). Nothing is standardized "
    "beforehand. Formulas by kind in `formulas`, tensors as <task>/<probe>/<layer>/<tensor>; flagged when score > threshold."
)


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==: two monitors are equal where their hashes are
class Monitor:
    """A probe in use: where it reads (layer = blocks passed, depth = layer / layers), its tensors, and when it flags.

    thresholds: false-positive rate in percent -> score above which a text is flagged. negatives: the harmless texts they
    rest on. reads: fingerprint of the tokenizer and template. limit: tokens of a text that it reads, 0 where nobody said.
    pooling is "" where the probe reads tokens.
    """

    task: str
    kind: str
    pooling: str
    layer: int
    depth: float
    width: int
    layers: int
    strength: float
    thresholds: dict[str, float]
    negatives: int
    seed: int
    reads: str
    limit: int
    model: str
    tensors: Tensors

    @property
    def probe(self) -> str:
        """Kind and pooling as one name: the column `probe` of the tables."""
        return f"{self.kind}-{self.pooling}" if self.pooling else self.kind

    @property
    def name(self) -> str:
        """<task>/<probe>/<layer>: unique among the monitors of a model."""
        return f"{self.task}/{self.probe}/{self.layer}"

    @property
    def readout(self) -> Readout:
        """The probe without the rest."""
        return Readout(self.kind, self.tensors, self.strength)

    @property
    def metadata(self) -> dict[str, Any]:
        """Every field but the tensors, as JSON holds it."""
        return {name: getattr(self, name) for name in FIELDS}

    @property
    def hash(self) -> str:
        """sha256 over the metadata (sorted JSON) and, by name, every tensor's name, type, shape and bytes."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True, allow_nan=False).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"\0{name} {tensor.dtype.str} {tensor.shape}\0".encode() + tensor.tobytes())
        return digest.hexdigest()

    def score(self, features: Features) -> Float[np.ndarray, " n"]:
        """The score of every text; an error names this monitor."""
        return probes.score(self.readout, features, self.name)


FIELDS: dict[str, Any] = {f.name: get_origin(f.type) or f.type for f in fields(Monitor) if f.name != "tensors"}


def threshold(negatives: Float[np.ndarray, " n"], rate: float) -> float | None:
    """The smallest t whose expected false-positive rate on new texts of the same kind is at most `rate`.

    With k of the n negatives' scores above t that expectation is (k + 1) / (n + 1), whatever their distribution (split
    conformal prediction, Vovk et al. 2005), so k = floor(rate (n + 1)) - 1 and t is the (k + 1)-th largest score. The plain
    choice, k = floor(rate n), would flag 9.5 % at a nominal 5 % with 20 negatives. None with fewer than 1 / rate - 1.
    """
    scores = np.sort(np.asarray(negatives, dtype=np.float64))
    allowed = int(np.floor(rate * (scores.size + 1) + 1e-9)) - 1  # 0.29 * 100 is 28.999...
    return float(scores[-1 - allowed]) if allowed >= 0 and scores.size else None


def thresholds(own: Float[np.ndarray, " n"], others: Float[np.ndarray, " m"]) -> dict[str, float]:
    """By level, the score above which a text is flagged: set on all harmless texts, and raised where the task's own ask for it.

    The higher of two thresholds keeps the promises of both, since a higher one flags no more: of new texts of the task's own
    kind, and of new texts like all that are there, no more than the rate is flagged in expectation. Set on all alone, it would
    flag 20 % of a task's own texts where these score higher than general ones and are a quarter of all. Own texts too few for
    the rate give their largest score, which promises 1 / (n + 1). A level is there if all texts together can set it.
    """
    every, found = np.concatenate([own, others]), {}
    for level, rate in RATES.items():
        cut = threshold(every, rate)
        if cut is not None:
            mine = threshold(own, max(rate, 1 / (len(own) + 1))) if len(own) else None
            found[level] = cut if mine is None else max(cut, mine)
    return found


def promised(own: Float[np.ndarray, " n"], cut: float) -> Estimate:
    """The false-positive rate that a threshold guarantees on new texts like these: its expectation, and 95 % of draws.

    With k of n scores above it the true rate is Beta(k + 1, n - k), whatever their distribution (Vovk 2012); exact for an order
    statistic of the scores, an upper bound where the threshold lies between two of them.
    """
    n, above = len(own), int((np.asarray(own) > cut).sum())
    a, b = above + 1, max(n - above, 1)
    low, high = (float(special.betaincinv(a, b, share)) for share in (0.025, 0.975))
    return Estimate(a / (a + b), low, high, n)


def _read_only(tensor: np.ndarray) -> np.ndarray:
    copy = np.array(tensor, dtype="<f8", order="C")
    copy.flags.writeable = False
    return copy


def freeze(
    readout: Readout, negatives: Float[np.ndarray, " n"], *, task: str, pooling: str, layer: int, layers: int,
    seed: int, reads: str, model: str, limit: int = 0, others: Float[np.ndarray, " m"] | None = None,
) -> Monitor:  # fmt: skip
    """The monitor of a probe: thresholds from its scores of the task's own harmless texts and others', tensors read-only."""
    others = np.empty(0) if others is None else others
    monitor = Monitor(
        task=task, kind=readout.kind, pooling=pooling, layer=int(layer), depth=layer / layers,
        width=readout.width, layers=int(layers), strength=float(readout.strength),
        thresholds=thresholds(negatives, others), negatives=len(negatives) + len(others),
        seed=int(seed), reads=reads, limit=int(limit), model=model,
        tensors={name: _read_only(tensor) for name, tensor in readout.tensors.items()},
    )  # fmt: skip
    _check(monitor)
    return monitor


def check_fits(monitor: Monitor, width: int, layers: int, reads: str | None = None) -> None:
    """Raises StudyError, naming the field and both values, where the monitor was frozen on another kind of model."""
    ours = {"width": width, "layers": layers, "reads": monitor.reads if reads is None else reads}
    for field, value in ours.items():
        if getattr(monitor, field) != value:
            raise StudyError(
                f"monitor {monitor.name}: {field} is {getattr(monitor, field)!r}, the model's is {value!r}; fit it on this model",
                NOT_COMPARABLE,
            )


# ---------------------------------------------------------------- files


def save(monitors: Sequence[Monitor], folder: Path) -> None:
    """Writes `monitors.safetensors` and `monitors.json` into the folder, replacing both.

    A failure leaves the old pair; a crash between the two renames leaves a pair that `load` refuses.
    """
    names = [monitor.name for monitor in monitors]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise StudyError(f"monitor {twice[0]} is there twice; save one model and seed a folder")
    for monitor in monitors:
        _check(monitor)
    tensors = {f"{m.name}/{name}": tensor for m in monitors for name, tensor in m.tensors.items()}
    formulas = {kind: PROBES[kind].formula for kind in sorted({monitor.kind for monitor in monitors})}
    listed = [{**monitor.metadata, "hash": monitor.hash} for monitor in monitors]
    document = {"format": FORMAT, "features": FEATURES, "formulas": formulas, "instant": templates.instant(), "monitors": listed}

    def write(path: Path) -> None:  # the tensors inside: both are on the disk before either is put in place
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        atomic_file(folder / TENSORS, lambda other: save_file(tensors, other))

    atomic_file(folder / METADATA, write)


def load(folder: Path) -> list[Monitor]:
    """The monitors of a folder, in the order they were saved; what is missing, damaged, edited or a pickle is refused by name."""
    for path in (folder / METADATA, folder / TENSORS):
        if not path.is_file():
            raise _missing(folder, path.name)
    entries, tensors = _entries(folder / METADATA), _tensors(folder / TENSORS)
    monitors = [_monitor(entry, tensors) for entry in entries]
    wanted = {f"{monitor.name}/{name}" for monitor in monitors for name in monitor.tensors}
    if len({monitor.name for monitor in monitors}) < len(monitors) or wanted != set(tensors):
        strange = sorted(set(tensors) - wanted) or ["a monitor twice"]
        raise StudyError(f"{folder.name} holds {strange[0]}, which {METADATA} does not say; save the monitors again", REFUSED)
    return monitors


def recorded_instant(folder: Path) -> str:
    """The instant that chat templates saw as now when a folder's monitors were saved; the usual one where it does not say."""
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))["instant"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return templates.INSTANT
    return found if isinstance(found, str) else templates.INSTANT


def _missing(folder: Path, name: str) -> StudyError:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES) if folder.is_dir() else []
    if pickles:
        return StudyError(
            f"{folder.name} holds {pickles[0]}, which can run code when opened; where you trust it, open it yourself and "
            "write it with helpers.monitors.exchange.export",
            REFUSED,
        )
    return StudyError(f"{folder.name} has no {name}; run chapter 04, which writes the monitors", REFUSED)


def _entries(path: Path) -> list[dict]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, entries = found["format"], found["monitors"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StudyError(f"{path.name} cannot be read ({type(error).__name__}); save the monitors again", REFUSED) from error
    if version != FORMAT:
        raise StudyError(f"{path.name} is of format {version!r}, this version reads {FORMAT}; run chapter 04 again", REFUSED)
    if not isinstance(entries, list):
        raise StudyError(f"{path.name} lists no monitors; save the monitors again", REFUSED)
    return entries


def _tensors(path: Path) -> Mapping[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:  # also a dtype numpy lacks
        reason = str(error).strip().split("\n")[0][:100]
        raise StudyError(f"{path.name} is not safetensors ({reason}); save the monitors again", REFUSED) from error


def _monitor(entry: Any, tensors: Mapping[str, np.ndarray]) -> Monitor:
    odd = sorted({*FIELDS, "hash"} ^ set(entry)) if isinstance(entry, dict) else ["fields"]
    if odd:
        raise StudyError(f"{METADATA}: a monitor lacks or has too much of {odd[0]!r}; save the monitors again", REFUSED)
    for field, kind in FIELDS.items():
        if type(entry[field]) is not kind:
            raise StudyError(f"{METADATA}: a {field} is not of type {kind.__name__}; save the monitors again", REFUSED)
    told = {field: entry[field] for field in FIELDS}
    bare = Monitor(**told, tensors={})
    _check_place(bare)
    keys = {name: f"{bare.name}/{name}" for name in PROBES[bare.kind].axes}
    monitor = Monitor(**told, tensors={name: _read_only(tensors[key]) for name, key in keys.items() if key in tensors})
    _check(monitor)
    if monitor.hash != entry["hash"]:
        raise StudyError(f"monitor {monitor.name} was changed after it was frozen (its hash differs); save it again", REFUSED)
    return monitor


def _check(monitor: Monitor) -> None:
    """Raises StudyError where tensors do not fit the kind and width, or a number is not finite."""
    _check_place(monitor)
    sizes, axes = {"d": monitor.width}, PROBES[monitor.kind].axes
    odd = sorted(set(monitor.tensors) ^ set(axes))
    if odd:
        raise StudyError(f"monitor {monitor.name} lacks or has too much of tensor {odd[0]!r}; save it again", REFUSED)
    for name, letters in axes.items():
        shape = monitor.tensors[name].shape
        if len(shape) != len(letters) or any(sizes.setdefault(a, n) != n for a, n in zip(letters, shape, strict=True)):
            raise StudyError(
                f"monitor {monitor.name}: tensor {name!r} has shape {shape}, not {letters} with width d = {monitor.width}; "
                "save it again",
                REFUSED,
            )
    numbers = [monitor.depth, monitor.strength, *monitor.thresholds.values()]
    if not all(np.isfinite(part).all() for part in (np.array(numbers), *monitor.tensors.values())):
        raise StudyError(f"monitor {monitor.name} holds NaN or infinity; fit it again", REFUSED)


def _check_place(monitor: Monitor) -> None:
    """Raises StudyError where kind, pooling, layer or threshold levels are none that a monitor can have."""
    kind = PROBES.get(monitor.kind)
    wrong = {
        "kind": kind is None,
        "pooling": kind is not None and (kind.reads == "tokens") != (monitor.pooling == ""),
        "layer": not 1 <= monitor.layer <= monitor.layers,
        "thresholds": not all(level in RATES and type(cut) is float for level, cut in monitor.thresholds.items()),
    }
    field = next((field for field, is_wrong in wrong.items() if is_wrong), None)
    if field:
        raise StudyError(f"monitor {monitor.name}: {field} cannot be {getattr(monitor, field)!r}; fit it again", REFUSED)
