"""Selections: the rows of one run's tables that evidence is made of, and what rows come to as one estimate.

Means over variants rest on the same texts, means over tasks on different ones (`over_seeds.mean_of`). Differences that no
table holds paired come from two rates as if these were independent; they rest on the same texts, so that is rather wide.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from helpers import results
from helpers.stats.intervals import Estimate, square_and_add
from helpers.stats.over_seeds import mean_of
from helpers.updates.names import UpdateName, taken_apart

Tables = Mapping[str, pd.DataFrame]
Evidence = Callable[[Tables], Estimate | None]
Wanted = str | float | Sequence[str]

FORMATS = ("nf4", "int8", "gptq-4")  # "quantization" in the claims
LOW_BASES = ("nf4", "gptq-4")  # the quantized bases that updates are trained on
HARMFUL, BENIGN, SHIFT = "lora-dialogue-harm10", "lora-dialogue", "lora-identity-shift"
VARIANT = ["precision", "adapter", "trained_on", "serving", "restoration"]  # with strength, within one model and seed


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


def minus(new: Estimate | None, old: Estimate | None) -> Estimate | None:
    """new - old, as if independent; None where either is missing."""
    return None if new is None or old is None else square_and_add(old, new, 0.0)


def trained(found: pd.DataFrame, keep: Callable[[UpdateName], bool]) -> pd.DataFrame:
    """The rows about updates, without restoration, whose name `keep` accepts; doses of other rank or steps are left out."""
    found = found[(found["trained_on"] != "") & (found["restoration"] == "")]
    names = found["adapter"] + "@" + found["trained_on"]
    updates = {name: taken_apart(name) for name in names.unique()}
    kept = [name for name, update in updates.items() if update.series == update.adapter and keep(update)]
    return found[names.isin(kept)]


def is_lora(named: UpdateName) -> bool:
    """Whether an update is a LoRA, whatever precision it was trained on."""
    return named.kind == "lora"


def any_kind(named: UpdateName) -> bool:
    """Every fine-tune."""
    return True


def formats_alone(found: pd.DataFrame) -> pd.DataFrame:
    """The rows about the aligned model in few bits."""
    return found[(found["adapter"] == "") & (found["restoration"] == "") & found["precision"].isin(FORMATS)]


def home(adapter: str, precision: str, **more: object) -> dict[str, Any]:
    """The key columns of an update served as it was trained."""
    return {"adapter": adapter, "precision": precision, "trained_on": precision, "serving": "attached", "restoration": "", **more}
