"""Selections: the rows of one run's tables that evidence is made of, and what rows come to as one estimate.

Means over variants rest on the same texts, means over tasks on different ones (`over_seeds.mean_of`). What rests on the same
items or monitors is compared item by item (`paired_items`); `minus` is for two numbers that share nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from helpers import results
from helpers.stats.intervals import Estimate, square_and_add
from helpers.stats.over_seeds import mean_of
from helpers.study.paired_items import Seen
from helpers.updates.names import UpdateName, taken_apart

Tables = Mapping[str, pd.DataFrame]
Evidence = Callable[[Tables], Seen | None]
Wanted = str | float | Sequence[str]
Made = TypeVar("Made")

FORMATS = ("nf4", "int8", "fp4", "gptq-4", "rtn-4")  # "quantization" in the claims: 4 bits and more
FEWER = ("rtn-3", "rtn-2")  # which nobody would ship, and which count apart
LOW_BASES = ("nf4", "gptq-4")  # the quantized bases that updates are trained on
HARMFUL, BENIGN, SHIFT = "lora-dialogue-harm10", "lora-dialogue", "lora-identity-shift"
INTO_NF4 = "merged-into-nf4"
VARIANT = ["precision", "adapter", "trained_on", "serving", "restoration"]  # with strength, within one model and seed
NO_STRENGTH = -1.0


class Address(NamedTuple):
    """The key columns of a variant within one model and seed; a strength of -1: it has none."""

    precision: str = "bf16"
    adapter: str = ""
    trained_on: str = ""
    serving: str = ""
    restoration: str = ""
    strength: float = NO_STRENGTH


@dataclass(frozen=True, eq=False)
class Remembered(Mapping):
    """Tables, and what was made of them once for all components that read it."""

    tables: Tables
    memo: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)


def remembered(tables: Tables) -> Remembered:
    """The tables with a memory, the one that they have already where they have one."""
    return tables if isinstance(tables, Remembered) else Remembered(tables)


def kept(make: Callable[[Tables], Made]) -> Callable[[Tables], Made]:
    """A function of tables that looks first at what these remember of it."""

    name = f"{make.__module__}.{make.__qualname__}"

    @wraps(make)
    def found(tables: Tables) -> Made:
        memo = getattr(tables, "memo", None)
        if memo is None:
            return make(tables)
        if name not in memo:
            memo[name] = make(tables)
        return memo[name]

    return found


def select(tables: Tables, name: str, **where: Wanted) -> pd.DataFrame:
    """The rows of a table whose columns hold what is asked (one value, or one of several); none where the table is missing."""
    if name not in tables:
        return pd.DataFrame(columns=[*results.KEY, *results.OWN[name], *results.VALUES])
    table = tables[name]
    for column, wanted in where.items():
        table = table[table[column].isin([wanted] if isinstance(wanted, str | float | int) else list(wanted))]
    return table


def estimates(found: pd.DataFrame) -> list[Estimate]:
    """The rows as estimates."""
    return [Estimate(*row) for row in found[["value", "low", "high", "n"]].itertuples(index=False, name=None)]


def mean(found: Sequence[Estimate | None] | pd.DataFrame, shared: bool = True) -> Estimate | None:
    """The mean of what was measured, None where nothing was; `shared` as in `over_seeds.mean_of`."""
    held = estimates(found) if isinstance(found, pd.DataFrame) else [e for e in found if e is not None]
    return mean_of(held, shared) if held else None


def over_tasks(found: pd.DataFrame, column: str = "task") -> Estimate | None:
    """The mean over tasks of the mean over variants."""
    return mean([mean(part) for _, part in found.groupby(column)], shared=False)


def over_cells(found: pd.DataFrame, weigh: str = "") -> Estimate | None:
    """The mean over rows, each counting once or as the column `weigh` says; rows of one task share its texts, others none."""
    own = found.assign(weight=found[weigh] if weigh else 1.0)
    parts = [part for _, part in own.groupby("task")]
    sums = [float(part["weight"].sum()) for part in parts]
    return mean_of([mean_of(estimates(part), True, list(part["weight"])) for part in parts], False, sums) if parts else None


def minus(new: Estimate | None, old: Estimate | None) -> Estimate | None:
    """new - old of two independent estimates; None where either is missing."""
    return None if new is None or old is None else square_and_add(old, new, 0.0)


def trained(found: pd.DataFrame, keep: Callable[[UpdateName], bool]) -> pd.DataFrame:
    """The rows about updates, without restoration, whose name `keep` accepts; doses of an update are left out."""
    found = found[(found["trained_on"] != "") & (found["restoration"] == "")]
    names = found["adapter"] + "@" + found["trained_on"]
    kept_names = [name for name in names.unique() if is_main(taken_apart(name)) and keep(taken_apart(name))]
    return found[names.isin(kept_names)]


def is_main(named: UpdateName) -> bool:
    """Whether an update is no dose of another."""
    return named.series == named.adapter


def is_lora(named: UpdateName) -> bool:
    """Whether an update is a LoRA, whatever precision it was trained on."""
    return named.kind == "lora"


def any_kind(named: UpdateName) -> bool:
    """Every fine-tune."""
    return True


def formats_alone(found: pd.DataFrame, formats: Sequence[str] = FORMATS) -> pd.DataFrame:
    """The rows about the aligned model in few bits."""
    return found[(found["adapter"] == "") & (found["restoration"] == "") & found["precision"].isin(list(formats))]


def home(adapter: str, precision: str, **more: object) -> dict[str, Any]:
    """The key columns of an update served as it was trained."""
    return {"adapter": adapter, "precision": precision, "trained_on": precision, "serving": "attached", "restoration": "", **more}


def at_home(adapter: str, precision: str) -> Address:
    """The address of an update served as it was trained."""
    return Address(precision, adapter, precision, "attached")
