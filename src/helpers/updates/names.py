"""Names: what a variant and an update are called, and the key columns that carry such a name. No model, and no torch.

An update: `<kind>-<mix>[-harm<percent>][-rank<r>][-steps<n>]@<precision it is trained on>`, such as `lora-dialogue-harm10@nf4`.
"""

import re
from dataclasses import dataclass

import pandas as pd

from helpers.errors import StudyError
from helpers.results import KEY

CONTROL = "shuffled-labels"
EVERY = "all monitors"  # what rows about all monitors in use are measured on
NAME = re.compile(
    r"(?P<adapter>(?P<kind>[a-z]+)-(?P<mix>[a-z-]+?)(?:-harm(?P<percent>\d{1,3}))?(?:-rank(?P<rank>\d{1,3}))?(?:-steps(?P<steps>\d{1,5}))?)"
    r"@(?P<trained_on>[a-z0-9-]+)"
)


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
    """An update's name taken apart; rank and steps are 0 where the name leaves them to the recipe."""

    adapter: str
    kind: str
    mix: str
    percent: int
    trained_on: str
    rank: int = 0
    steps: int = 0

    @property
    def series(self) -> str:
        """The update of which this one is a dose: its name without rank and steps."""
        return re.sub(r"(-rank\d+)?(-steps\d+)?$", "", self.adapter)

    @property
    def arm(self) -> str:
        """What the update is called beside others of its kind: LoRA, QLoRA, LoRA on GPTQ, full, QAT."""
        if self.kind != "lora":
            return {"full": "full fine-tune", "qat": "QAT"}[self.kind]
        return {"bf16": "LoRA", "nf4": "QLoRA"}.get(self.trained_on, f"LoRA on {self.trained_on.split('-')[0].upper()}")


def taken_apart(name: str) -> UpdateName:
    """An update's name taken apart; its form alone is checked, not whether its kind, mix and precision are known."""
    match = NAME.fullmatch(name)
    if not match:
        form = "<kind>-<mix>[-harm<percent>][-rank<r>][-steps<n>]@<precision>"
        raise StudyError(f"update {name!r} is not {form}; for example lora-dialogue-harm10@nf4")
    percent = int(match["percent"] or 0)
    if percent > 100:
        raise StudyError(f"update {name!r} asks for {percent} % harmful rows; give 0 to 100")
    dose = {part: int(match[part]) for part in ("rank", "steps") if match[part]}
    if 0 in dose.values() or (match["kind"] != "lora" and "rank" in dose):
        raise StudyError(f"update {name!r}: rank and steps are at least 1, and only lora has a rank; mend or remove them")
    return UpdateName(match["adapter"], match["kind"], match["mix"], percent, match["trained_on"], **dose)
