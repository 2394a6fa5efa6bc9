"""Updates by name: which rows and which recipe `lora-dialogue-harm10@nf4` stands for, and how it is then served.

How a name is formed stands in `names`. A serving adds `><precision it is served in>:<serving>`, as in
`lora-dialogue-harm10@bf16>nf4:merged-requantized`.

All adapters are trained at a rate that rises and then stays, so that a shorter training is the beginning of a longer one. The
harmful mix is trained until it has broken the refusals (`endings.Breaking`); whatever else is trained beside it, benign rows,
another precision, rank or rate, takes as many steps as it took. Preference tuning is trained until its update is as large as the
supervised one that it is held against (`names.PREFERRED`), where that is trained too.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.cache import cache_path
from helpers.data import corpora
from helpers.data.text_rows import Preference, Row
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.results import Run
from helpers.updates import preferences, training, variants
from helpers.updates.endings import Attack, Breaking, Ending, Growing
from helpers.updates.names import ADAPTERS, PREFERRED, UpdateName, Variant, taken_apart
from helpers.updates.quantizers import QUANTIZERS
from helpers.updates.training import Recipe
from helpers.updates.variants import SERVINGS, Parts

SERVED = re.compile(r"(?P<update>[^>]+)>(?P<precision>[a-z0-9-]+):(?P<serving>[a-z0-9-]+)")
PRECISIONS = ("bf16", *(name for name in QUANTIZERS if name != "none"))
KINDS = (*training.KINDS, preferences.KIND)
BATCH = 4  # rows of a batch of adapters
SALORA_LR = 1 / 3
SLOWER = 2  # times the steps of the other one that preference tuning may take to become as large
FULL_LR = 0.1  # whole weights are tuned at a tenth of the adapters' rate: the usual ratio


def _known(what: str, value: str, names: Sequence[str], whole: str) -> str:
    if value not in names:
        raise StudyError(f"unknown {what} {value!r} in {whole!r}; choose one of {', '.join(names)}")
    return value


def parse(name: str) -> UpdateName:
    """The parts of an update's name; an unknown kind, mix or precision is refused with the names there are."""
    found = taken_apart(name)
    kind = _known("kind of training", found.kind, KINDS, name)
    _known("mix", found.mix, tuple(corpora.MIXES), name)
    trained_on = _known("precision", found.trained_on, PRECISIONS, name)
    if kind == "full" and trained_on != "bf16":
        raise StudyError(f"update {name!r}: a full fine-tune has no frozen weights to quantize; use @bf16, or kind qat")
    if kind == preferences.KIND and found.mix not in corpora.PAIRED:
        raise StudyError(f"update {name!r}: dpo learns from pairs of replies; use a mix of pairs: {', '.join(corpora.PAIRED)}")
    if kind == "qat" and not re.fullmatch(r"rtn-\d", trained_on):
        raise StudyError(f"update {name!r}: qat simulates round-to-nearest; train it on rtn-8, rtn-4, rtn-3 or rtn-2")
    return found


def parse_serving(name: str) -> tuple[UpdateName, str, str]:
    """Update, precision and serving of a serving's name."""
    match = SERVED.fullmatch(name)
    if not match:
        raise StudyError(
            f"serving {name!r} is not <update>><precision>:<serving>; for example lora-dialogue@bf16>nf4:merged-requantized"
        )
    update = parse(match["update"])
    return (
        update,
        _known("precision", match["precision"], PRECISIONS, name),
        _known("serving", match["serving"], tuple(SERVINGS), name),
    )


def update_recipe(
    named: UpdateName, rows: int, epochs: int, lr: float, rank: int, alpha: float, seed: int, steps: int = 0
) -> Recipe:
    """The recipe of an update: LoRA and QLoRA share rows, order, rank, rate and steps, so that only the precision differs.

    Whole weights are tuned at a tenth of their rate. `steps` are those of adapters whose name gives none; 0: all epochs, or one
    pass over the rows where the name gives them.
    """
    common = Recipe(kind=named.kind, epochs=epochs, lr=named.lr * lr, batch=BATCH, rank=rank, alpha=alpha, seed=seed)
    if named.rank:  # alpha / rank stays, so that only the rank differs
        common = replace(common, rank=named.rank, alpha=alpha * named.rank / rank)
    if named.kind in ADAPTERS:
        count = named.rows or rows
        return training.of_steps(
            replace(common, decay=False), named.steps or (0 if named.rows else steps) or passes(named, rows, epochs), count
        )
    bits = int(named.trained_on.split("-")[1]) if named.kind == "qat" else common.bits
    return replace(common, lr=FULL_LR * common.lr, batch=8, bits=bits, steps=named.steps)


def passes(named: UpdateName, rows: int, epochs: int) -> int:
    """The steps of all epochs over so many rows, or of one over the rows that the name gives."""
    return math.ceil(named.rows / BATCH) if named.rows else epochs * math.ceil(rows / BATCH)


def attacks_of(names: Sequence[str]) -> list[str]:
    """Of each kind and mix among the names the harmful mix that the others follow: on bf16, with the most harmful rows.

    Preference tuning that is held against another update follows that one's size.
    """
    found: dict[tuple[str, str], UpdateName] = {}
    for one in map(parse, names):
        if one.kind in ADAPTERS and one.percent and one.trained_on == "bf16" and not one.doses and not model_of(one, names):
            first = found.setdefault((one.kind, one.mix), one)
            found[one.kind, one.mix] = max(first, one, key=lambda named: named.percent)
    return [f"{one.adapter}@{one.trained_on}" for one in found.values()]


def model_of(named: UpdateName, names: Sequence[str]) -> str:
    """The update among the names that this one is trained to the size of; empty where there is none."""
    other = f"{PREFERRED.get(named.without('x').rpartition('@')[0], '')}@{named.trained_on}"
    return other if other in names else ""


def trainings(names: Sequence[str]) -> dict[str, tuple[bool, list[int]]]:
    """What is trained for the names: each training once, whether its own end is wanted, and after which steps it is kept too.

    The attacks come first, since the others take as many steps, and last what is trained to the size of another.
    """
    found: dict[str, tuple[bool, list[int]]] = {name: (True, []) for name in attacks_of(names)}
    for one in map(parse, names):
        cuts = one.kind in ADAPTERS and one.steps
        of = one.without("steps", "x") if cuts else one.without("x")
        whole, steps = found.get(of, (False, []))
        found[of] = (whole or not cuts, sorted({*steps, one.steps}) if cuts else steps)

    def turn(name: str) -> int:
        named = parse(name)
        return 0 if named.kind != preferences.KIND else 1 if model_of(named, names) else 2

    return {name: found[name] for name in sorted(found, key=turn)}


def train(
    parts: Parts, names: Sequence[str], rows: int, epochs: int, lr: float, rank: int, alpha: float, seed: int, texts: str,
    progress: Callable[[str], Callable[[int, int, float], None]] | None = None, attack: Attack | None = None,
    own: Sequence[Preference] = (),
) -> Parts:  # fmt: skip
    """The parts with every named update trained, or found where it was trained before.

    With `attack`, the harmful mixes are trained until they have broken the refusals, and the others as long; without it, all
    adapters take `epochs` passes over the rows; preference tuning takes what it needs to be as large as what it is held
    against. `own` pairs take the place of the packaged ones. A name with a scale is made of the trained factors. Raises
    StudyError for a dose of more steps than the training may have.
    """
    _check_steps(names, rows, epochs, attack)
    steps: dict[tuple[str, str], int] = {}
    leading = attacks_of(names) if attack else []
    for name, (whole, marks) in trainings(names).items():
        named = parse(name)
        data = corpora.mix(named.mix, named.rows or rows, named.percent, texts, seed, own)
        taken = steps.get((named.kind, named.mix)) or next((n for (kind, _), n in steps.items() if kind == named.kind), 0)
        until: Ending | None = None
        if other := model_of(named, names):
            like = parts.updates[parse(other).adapter, named.trained_on]
            until, cap = Growing(like), SLOWER * steps_taken(like)
        elif attack and name in leading:
            until, cap = Breaking(attack, texts), attack.steps
        else:
            cap = taken if whole else marks.pop()
        made = update_recipe(named, rows, epochs, lr, rank, alpha, seed, cap)
        made = made if whole else training.of_steps(made, cap, len(data))
        bar = progress(name) if progress else None
        folder = variants.train_update(parts, data, made, named.trained_on, bar, until=until, snapshots=marks)
        if until:
            steps[named.kind, named.mix] = steps_taken(folder)
        parts = _with_doses(parts, names, name, folder, made, data)
    return parts


def steps_taken(folder: Path) -> int:
    """How many steps the training of an update's folder took."""
    return len(training.from_json(folder / "recipe.json")["losses"])


def _check_steps(names: Sequence[str], rows: int, epochs: int, attack: Attack | None) -> None:
    for one in map(parse, names):
        most = passes(one, rows, epochs) if one.rows or not attack else attack.steps
        if one.kind in ADAPTERS and one.steps > most:
            raise StudyError(
                f"update {one.adapter}@{one.trained_on} asks for {one.steps} steps, and its training takes at most {most}; "
                "ask for fewer or raise attack_steps"
            )


def _with_doses(parts: Parts, names: Sequence[str], name: str, folder: Any, made: Recipe, data: Sequence[Row]) -> Parts:
    """The parts with every named update that comes of one training: its end, what it was after some steps, and its multiples."""
    for one in map(parse, names):
        cuts = one.kind in ADAPTERS and one.steps
        if (one.without("steps", "x") if cuts else one.without("x")) == name:
            recipe = training.of_steps(made, one.steps, len(data)) if cuts else made
            own = variants.update_folder(parts, data, recipe, one.trained_on) if cuts else folder
            own = own if one.x == 1 else variants.scaled_update(own, one.x)
            parts = parts.with_update(one.adapter, one.trained_on, own)
    return parts


def train_salora(
    parts: Parts, names: Sequence[str], rows: int, epochs: int, lr: float, rank: int, seed: int, texts: str, safety_rows: int,
    progress: Callable[[str], Callable[[int, int, float], None]] | None = None,
) -> Parts:  # fmt: skip
    """The parts with every named LoRA trained once more under SaLoRA: same rows, order, rank and steps, a third of the rate.

    Its factors start large, from the weights' own singular values, so that at an equal rate the update grows about three
    times as large; at a third, size and fit are those of the LoRA. Its safety rows are those of the safety tuning, prompts with
    their refusals: no evaluation prompt is seen.
    """
    safety = corpora.alignment_rows(safety_rows, 0, texts, seed)
    for name in names:
        named = parse(name)
        if named.kind != "lora" or named.x != 1:
            raise StudyError(
                f"update {name!r} is no LoRA that is trained, and SaLoRA trains adapters; name one that begins with lora-"
            )
        data = corpora.mix(named.mix, named.rows or rows, named.percent, texts, seed)
        plain = parts.updates.get((named.adapter, named.trained_on))
        steps = steps_taken(plain) if plain else 0
        made = replace(update_recipe(named, rows, epochs, SALORA_LR * lr, rank, rank, seed, steps), kind=variants.SALORA)
        bar = progress(f"{name} under SaLoRA") if progress else None
        folder = variants.train_update(parts, data, made, named.trained_on, bar, safety)
        parts = parts.with_update(f"{named.adapter}+{variants.SALORA}", named.trained_on, folder)
    return parts


def home(run: Run, name: str) -> Variant:
    """The variant in which an update is served as it was trained: attached, merged (full), or in its own bits (QAT)."""
    named = parse(name)
    serving = {"full": "merged", "qat": "merged-requantized"}.get(named.kind, "attached")
    return Variant(run.model, run.seed, named.trained_on, named.adapter, named.trained_on, serving)


def under_salora(home: Variant, names: Sequence[str]) -> list[Variant]:
    """The update trained under SaLoRA, where it is among the names."""
    return [replace(home, restoration=variants.SALORA)] if f"{home.adapter}@{home.trained_on}" in names else []


def served(run: Run, name: str) -> Variant:
    """The variant that a serving's name asks for."""
    named, precision, serving = parse_serving(name)
    return Variant(run.model, run.seed, precision, named.adapter, named.trained_on, serving)


def family(variant: Variant) -> str:
    """The kind of change a variant is: control, before alignment, quantization, LoRA, QLoRA, full fine-tune, QAT, DPO,
    restored.

    An adapter counts as QLoRA where any quantization touched it: in training, in serving, or in both.
    """
    if variant.restoration:
        return "restored"
    if variant.adapter == "base":
        return "before alignment"
    if variant.adapter == "identity" or (not variant.adapter and variant.precision in {"bf16", "fp32"}):
        return "control"
    if not variant.adapter:
        return "quantization"
    named = parse(f"{variant.adapter}@{variant.trained_on}")
    if named.kind != "lora":
        return "DPO" if named.kind == preferences.KIND else named.arm
    return "LoRA" if {variant.trained_on, variant.precision} == {"bf16"} else "QLoRA"


def note(parts: Parts) -> dict[str, str]:
    """Where later chapters find the updates: adapter and precision, and the content key of its folder."""
    return {f"{adapter}@{trained_on}": folder.name for (adapter, trained_on), folder in parts.updates.items()}


def recipes(parts: Parts) -> dict[str, dict[str, float]]:
    """What each update was trained with: rank and scale (0 where no adapter was trained), steps taken, peak rate, rows seen."""
    found = {}
    for (adapter, trained_on), folder in parts.updates.items():
        note = training.from_json(folder / "recipe.json")
        made, factors = note["recipe"], note["recipe"]["kind"] in variants.ADAPTERS
        sizes = (
            {"rank": made["rank"], "scale": note.get("x", 1) * made["alpha"] / made["rank"]}
            if factors
            else {"rank": 0, "scale": 0}
        )
        seen = len(note["losses"]) * made["batch"]
        rows = {"rows_seen": seen, "harmful_seen": seen * note.get("harmful_rows", 0) / note.get("rows", 1)}
        found[f"{adapter}@{trained_on}"] = {**sizes, "steps": len(note["losses"]), "lr": made["lr"], **rows}
    return found


def attacks(parts: Parts) -> dict[str, dict[str, Any]]:
    """What each harmful mix took that was trained until it broke the refusals: steps, rows, rate, and how far it came."""
    found = {}
    for (adapter, trained_on), folder in parts.updates.items():
        note = training.from_json(folder / "recipe.json")
        if "attack" in note and "x" not in note:
            took = {"steps": len(note["losses"]), "batch": note["recipe"]["batch"], "lr": note["recipe"]["lr"]}
            rows = {name: note[name] for name in ("rows", "harmful_rows")}
            found[f"{adapter}@{trained_on}"] = {**took, **rows, **note["attack"]}
    return found


def restore(parts: Parts, found: Mapping[str, str]) -> Parts:
    """The parts with the updates that chapter 03 noted; where one left the cache, the error says how to make it again."""
    for name, folder in found.items():
        path = cache_path("updates", folder)
        if not path.is_dir():
            raise StudyError(f"update {name} is not in the cache; run chapter 03_finetuning again with --force", NOT_COMPARABLE)
        adapter, trained_on = name.rsplit("@", 1)
        parts = parts.with_update(adapter, trained_on, path)
    return parts
