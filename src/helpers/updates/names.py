"""Names: what a variant and an update are called, and the key columns that carry such a name. No model, and no torch.

An update: `<kind>-<mix>[-harm<percent>][<dose>]@<precision it is trained on>`, such as `lora-dialogue-harm10@nf4`. A dose is
any of `-rows<n>-rank<r>-steps<n>-lr<multiple>-x<scale>`, in this order: so many rows, that rank, stopped after so many steps,
that multiple of the rate, and the trained change times `scale`.
"""

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from helpers.errors import StudyError
from helpers.results import KEY

CONTROL = "shuffled-labels"
SIMULATED = "simulated"  # how the kind of a probe begins that was fitted with simulated updates
EVERY = "all monitors"  # what rows about all monitors in use are measured on
FORM = "<kind>-<mix>[-harm<percent>][-rows<n>][-rank<r>][-steps<n>][-lr<multiple>][-x<scale>]@<precision>"
NUMBER = r"\d{1,4}(?:\.\d{1,4})?"
DOSES = {"rows": r"\d{1,5}", "rank": r"\d{1,3}", "steps": r"\d{1,5}", "lr": NUMBER, "x": NUMBER}  # as they follow in a name
_DOSE = "".join(f"(?:-{part}(?P<{part}>{number}))?" for part, number in DOSES.items())
NAME = re.compile(
    rf"(?P<adapter>(?P<series>(?P<kind>[a-z]+)-(?P<mix>[a-z-]+?)(?:-harm(?P<percent>\d{{1,3}}))?){_DOSE})@(?P<trained_on>[a-z0-9-]+)"
)
ADAPTERS = ("lora", "dpo")  # kinds of training that leave low-rank factors behind
PREFERRED = {  # preference tuning, and the supervised tuning that it is held against
    "dpo-preference": "lora-dialogue",
    "dpo-preference-harm10": "lora-dialogue-harm10",
}


@dataclass(frozen=True)
class Variant:
    """One concrete model; the fields are the key columns of every table, empty where they do not apply.

    precision: what the weights are served in (bf16, fp32 or a quantizer). adapter: the update (`base` is the model before
    alignment, `identity` the control that is saved and loaded again). trained_on: the precision the update was trained on.
    """

    model: str
    seed: int = 0
    precision: str = "bf16"
    adapter: str = ""
    trained_on: str = ""
    serving: str = ""
    restoration: str = ""
    strength: float | None = None

    @property
    def label(self) -> str:
        """A short name for people."""
        if self.adapter in {"base", "identity"}:
            return self.adapter
        if not self.adapter:
            return "aligned" if self.precision == "bf16" else self.precision
        dose = "" if self.strength is None else f" {self.strength:g}"
        restored = f" · {self.restoration}{dose}" if self.restoration else ""
        return f"{self.adapter} · {self.trained_on}→{self.precision} {self.serving}{restored}"


def keyed(variant: Variant, table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the variant's key columns in front."""
    front = pd.DataFrame({name: [getattr(variant, name)] * len(table) for name in KEY})
    front["strength"] = front["strength"].astype(float)
    return pd.concat([front, table.reset_index(drop=True)], axis=1)


def place_names(table: pd.DataFrame) -> pd.Series:
    """Where the monitors of a table's rows read, layer and pooling in one name: monitors of one place are relatives."""
    return table["probe"].str.rsplit("-", n=1).str[-1] + "/" + table["layer"].astype(str)


# ---------------------------------------------------------------- updates


@dataclass(frozen=True)
class UpdateName:
    """An update's name taken apart; rows, rank and steps are 0 where the name leaves them to the recipe, lr and x are 1."""

    adapter: str
    kind: str
    mix: str
    percent: int
    trained_on: str
    series: str  # the update of which this one is a dose: its name without any
    rows: int = 0
    rank: int = 0
    steps: int = 0
    lr: float = 1.0
    x: float = 1.0

    @property
    def doses(self) -> dict[str, float]:
        """The parts of the dose that the name gives."""
        usual = {"rows": 0, "rank": 0, "steps": 0, "lr": 1.0, "x": 1.0}
        return {part: getattr(self, part) for part in DOSES if getattr(self, part) != usual[part]}

    @property
    def arm(self) -> str:
        """What the update is called beside others of its kind: LoRA, QLoRA, LoRA on GPTQ, full, QAT, DPO."""
        if self.kind not in ADAPTERS:
            return {"full": "full fine-tune", "qat": "QAT"}[self.kind]
        on = self.trained_on.split("-")[0].upper()
        if self.kind == "dpo":
            return "DPO" if self.trained_on == "bf16" else f"DPO on {on}"
        return {"bf16": "LoRA", "nf4": "QLoRA"}.get(self.trained_on, f"LoRA on {on}")

    def without(self, *parts: str) -> str:
        """The name of the update that lacks these parts of the dose, such as `x`."""
        kept = "".join(f"-{part}{value:g}" for part, value in self.doses.items() if part not in parts)
        return f"{self.series}{kept}@{self.trained_on}"


def taken_apart(name: str) -> UpdateName:
    """An update's name taken apart; its form alone is checked, not whether its kind, mix and precision are known."""
    match = NAME.fullmatch(name)
    if not match:
        raise StudyError(f"update {name!r} is not {FORM}; for example lora-dialogue-harm10@nf4")
    percent = int(match["percent"] or 0)
    if percent > 100:
        raise StudyError(f"update {name!r} asks for {percent} % harmful rows; give 0 to 100")
    dose: dict[str, Any] = {
        part: (int if part in ("rows", "rank", "steps") else float)(match[part]) for part in DOSES if match[part]
    }
    if 0 in dose.values():
        raise StudyError(f"update {name!r}: rows, rank and steps are at least 1, lr and x above 0; mend or remove them")
    only = [part for part in ("rank", "x") if part in dose and match["kind"] not in ADAPTERS]
    if only:
        raise StudyError(f"update {name!r}: only adapters ({', '.join(ADAPTERS)}) have -{only[0]}; remove it")
    found: dict[str, Any] = {part: match[part] for part in ("adapter", "kind", "mix", "trained_on", "series")}
    return UpdateName(**found, percent=percent, **dose)
