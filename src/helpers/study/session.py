"""A run of the study, opened in Python: what the command line and the chapters do with it, in a few calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from helpers import console, results, seeding
from helpers.results import Run

if TYPE_CHECKING:  # a reader of tables needs no torch
    from helpers.models.encoding import Plan
    from helpers.models.loading import LanguageModel
    from helpers.monitors.frozen import Monitor
    from helpers.updates.names import Variant
    from helpers.updates.variants import Parts


@dataclass(frozen=True)
class Session(Run):
    """A run whose tables can be read and whose models can be made; `helpers.study.open` gives one."""

    def read_table(self, name: str, chapter: str = "") -> pd.DataFrame:
        """The rows of a table, of one chapter or of all. Errors: no such table, none of that chapter."""
        return results.read_table(self, name, chapter)

    def write_table(self, chapter: str, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """The rows as stored: checked against the table's columns, in place of what that chapter wrote before."""
        return results.write_table(self, chapter, name, table)

    def joined(self, name: str, *parts: pd.DataFrame) -> pd.DataFrame:
        """Rows of one table made in several steps, with its columns in their order."""
        return results.joined(name, *parts)

    def read_note(self, chapter: str, name: str) -> Any:
        """A value that a chapter noted. Errors: it has not run."""
        return results.read_note(self, chapter, name)

    def write_note(self, chapter: str, name: str, value: object) -> None:
        """Notes a plain value for later chapters."""
        results.write_note(self, chapter, name, value)

    def counting(self, title: str, total: int) -> Callable[[str], None]:
        """A bar of `total` steps, to be called with what was done last."""
        return console.counting(title, total)

    def training(self, title: str) -> Callable[[int, int, float], None]:
        """A bar of a training, to be called with step, steps and loss."""
        return console.training(title)

    # ------------------------------------------------------------ models

    def parts(self, calibration_rows: int = 0, texts: str = "embedded", device: str = "cpu", updates: str = "") -> "Parts":
        """What this run's models are made of: the pair of chapter 01 and, where `updates` names a chapter, its updates."""
        from helpers.projection.restored_updates import with_restorations
        from helpers.updates import recipes, variants

        found = variants.parts_of(self.read_note("01_models", "pair"), calibration_rows, texts, device)
        found = recipes.restore(found, self.read_note(updates, "updates")) if updates else found
        return with_restorations(found, texts, self.seed)

    def variant(self, update: str = "", precision: str = "", serving: str = "attached") -> "Variant":
        """The name of a model: the aligned one, or an update (`lora-dialogue@bf16`), as it was trained or in a precision."""
        from helpers.updates import recipes
        from helpers.updates.names import Variant

        if not update:
            return Variant(self.model, self.seed, precision or "bf16")
        return recipes.served(self, f"{update}>{precision}:{serving}") if precision else recipes.home(self, update)

    def measured_variants(self, *chapters: str) -> list["Variant"]:
        """The variants whose behaviour those chapters measured, each once, in order."""
        from helpers.updates import variants

        return variants.measured_in(self, *chapters)

    def build(self, variant: "Variant", parts: "Parts | None" = None) -> "LanguageModel":
        """The model that a variant of this run names. Errors: its update is not in the cache."""
        from helpers.updates import variants

        return variants.build_variant(parts or self.parts(updates="03_finetuning"), variant)

    def restored(self, update: str, restoration: str = "safelora", strength: float = 0.5) -> "Variant":
        """The name of an update brought back by a restoration that changes that share of the modules."""
        from dataclasses import replace

        return replace(self.variant(update), restoration=restoration, strength=strength)

    # ------------------------------------------------------------ monitors

    def monitors(self) -> tuple["Plan", list["Monitor"], dict[str, str]]:
        """The texts that chapter 04 read, the monitors it froze, and the name of the one in use for each task."""
        from helpers.monitors import fitting, readings

        note = self.read_note("04_monitors", "monitors")
        in_use = {task: chosen["monitor"] for task, chosen in note["chosen"].items()}
        return readings.plan(**note["reading"]), fitting.load_fitted(note["monitors"]), in_use

    def scores(self, variant: "Variant", parts: "Parts | None" = None) -> pd.DataFrame:
        """One row a test text of each task: its label, its group, and the score of the task's frozen monitor on the variant."""
        from helpers.monitors import readings
        from helpers.updates import measurements

        reading, frozen, in_use = self.monitors()
        reading = readings.on_variants(reading)
        found = measurements.stored(parts or self.parts(updates="03_finetuning"), variant, reading)
        named, rows = {monitor.name: monitor for monitor in frozen}, []
        for task, name in in_use.items():
            test = readings.rows_of(reading, task, "test")
            (scores,) = readings.scores([named[name]], found, reading, test.index)
            said = {"task": task, "monitor": name, "label": test.labels, "group": test.groups, "score": scores}
            rows.append(pd.DataFrame({**said, "threshold": named[name].thresholds.get("5")}))
        return pd.concat(rows, ignore_index=True)


def open_session(profile: str = "quick", model: str = "embedded", seed: int = 0, threads: int = 0) -> Session:
    """The run of that profile, model and seed, finished or not; with `threads`, torch's threads and all seeds are set."""
    if threads:
        seeding.set_up(threads, seed)
    run = results.open_run(profile, model, seed)
    if results.only_read(run):
        print(f"{run.profile}, seed {run.seed}: a finished run, opened by hand. It is read, and nothing is written into it.")
    return Session(run.profile, run.model, run.seed, run.folder)
