"""Golden values: what each definition gave when it was given its number, and whether it still does.

`make golden` writes the values of a definition that has none under its number, and where values hold it records the code that
gave them. It never replaces values: other numbers need another number, or the code must be mended.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.definitions import DEFINITIONS, Definition
from helpers.study import fingerprints

FOLDER = Path(__file__).parents[1] / "golden"
# Of the largest number of an entry: what another machine's fp32 arithmetic may move. Seen beside AVX-512: 4e-6 with AVX2, 4e-5
# with SSE alone, where the exponential is another.
TOLERANCE = 5e-5
TINY = 1e-9  # what stands for 0
SHOWN = 8  # numbers of a long entry that are kept as they are, beside its mean and its size


def values(definition: Definition) -> dict[str, object]:
    """What the definition makes of its golden inputs: numbers and texts by name."""
    from support.golden_cases import CASES

    return dict(_flat(definition.name, CASES[definition.name]()))


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    """A nested value as named entries: a list of numbers, or a text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner)
    elif isinstance(value, pd.DataFrame):
        yield from _flat(f"{name} {len(value)} rows", {str(column): value[column].to_numpy() for column in value})
    elif is_dataclass(value):
        yield from _flat(name, asdict(value))
    elif isinstance(value, list | tuple) and not all(isinstance(one, str | int | float | bool) for one in value):
        yield from _flat(name, dict(enumerate(value)))
    elif hasattr(value, "detach"):
        yield from _flat(name, value.detach().cpu().double().numpy())
    else:
        yield from _entry(name, np.asarray(value).ravel())


def _entry(name: str, array: np.ndarray) -> Iterator[tuple[str, object]]:
    """A row of numbers or texts; a long one by its length, a few of its places, its mean and its size."""
    if array.dtype.kind not in "biuf":
        texts = [str(one) for one in array]
        yield name, " · ".join(texts) if len(texts) <= SHOWN else hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    elif len(array) <= SHOWN:
        yield name, array.astype(float).tolist()
    else:
        array = array.astype(float)
        finite = array[np.isfinite(array)]
        places = array[np.linspace(0, len(array) - 1, SHOWN).astype(int)]
        size = [finite.mean(), np.sqrt(np.mean(finite**2))] if len(finite) else []
        yield f"{name}[{len(array)}, {len(finite)} finite]", [*places, *size]


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """The entries that are not the same within the tolerance, each in words; what is new beside them changes none."""
    found = [f"{name} is gone" for name in before if name not in after]
    both = [(name, before[name], after[name]) for name in before if name in after]
    return found + [f"{name}: {_first(old, new)}" for name, old, new in both if not _same(old, new)]


def _same(old: object, new: object) -> bool:
    if isinstance(old, str) or isinstance(new, str) or len(old) != len(new):
        return old == new
    one, two = np.array(old, float), np.array(new, float)
    largest = np.abs(one[np.isfinite(one)]).max(initial=0.0) if len(one) > 1 else 0.0  # numbers of one kind, of which some cancel
    return np.allclose(one, two, rtol=TOLERANCE, atol=max(TOLERANCE * largest, TINY), equal_nan=True)


def _first(old: object, new: object) -> str:
    if isinstance(old, str) or isinstance(new, str) or len(old) != len(new):
        return f"{old!r} is now {new!r}"[:200]
    place = int(np.nanargmax(np.abs(np.array(old, float) - np.array(new, float))))
    return f"{old[place]!r} is now {new[place]!r}"


def path_of(definition: Definition) -> Path:
    """The file of a definition's golden values under its number."""
    return FOLDER / f"{definition.name}-v{definition.version}.json"


def check(definition: Definition, found: Mapping[str, object] | None = None) -> str:
    """What there is to say: nothing, or that code moved or values came while the old ones hold; else an AssertionError."""
    path = path_of(definition)
    if not path.is_file():
        raise AssertionError(f"{definition} has no golden values; run make golden and commit {path.name}")
    stored = json.loads(path.read_text(encoding="utf-8"))
    found = values(definition) if found is None else found
    wrong = differences(stored["values"], found)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise AssertionError(f"{definition} gives other numbers: raise its number or mend it; {wrong[0]}{more}")
    if len(found) > len(stored["values"]):  # a new member of a registry
        return f"{definition} gives new values and all of its old ones: run make golden to record them"
    moved = stored["code"] != fingerprints.code_hash(definition.code)
    return f"the code of {definition} moved; its golden values hold: run make golden to record it" if moved else ""


def record(definition: Definition) -> str:
    """Writes the values of a new number, or the code that gives the old ones still; what was done, in words."""
    path, found = path_of(definition), values(definition)
    new = not path.is_file()
    said = "" if new else check(definition, found)
    if not new and not said:
        return f"{definition}: unchanged"
    kept = found if new else {**found, **json.loads(path.read_text(encoding="utf-8"))["values"]}
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps({"code": fingerprints.code_hash(definition.code), "values": kept}, indent=0, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return f"{definition}: {'values written' if new else 'code recorded, values hold'}"


def main(names: list[str]) -> int:
    """Records the named definitions, or all; 12 where values do not hold."""
    import warnings

    import torch

    from helpers.models import compute, loading

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.path += [str(folder) for folder in FOLDER.parent.iterdir()]  # some cases borrow what tests plant
    wrong = 0
    with tempfile.TemporaryDirectory() as cache, compute.using("fp32"), loading.threads(1):
        os.environ["AFTER_UPDATE_CACHE"] = cache
        for one in DEFINITIONS.values():
            if not names or one.name in names:
                try:
                    print(record(one), flush=True)
                except AssertionError as error:
                    wrong += 1
                    print(f"error: {error}", file=sys.stderr)
    return 12 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
