"""Updates by name: which rows and which recipe `lora-dialogue-harm10@nf4` stands for, and how it is then served.

`<kind>-<mix>[-harm<percent>][-rank<r>][-steps<n>]@<precision it is trained on>`; rank and steps make another dose of the same
update. A serving adds `><precision it is served in>:<serving>`, as in `lora-dialogue-harm10@bf16>nf4:merged-requantized`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from helpers.cache import cache_path
from helpers.data import corpora
from helpers.errors import NOT_COMPARABLE, StudyError
from helpers.results import Run
from helpers.updates import training, variants
from helpers.updates.names import UpdateName, Variant, taken_apart
from helpers.updates.quantizers import QUANTIZERS
from helpers.updates.training import Recipe
from helpers.updates.variants import SERVINGS, Parts

SERVED = re.compile(r"(?P<update>[^>]+)>(?P<precision>[a-z0-9-]+):(?P<serving>[a-z0-9-]+)")
PRECISIONS = ("bf16", *(name for name in QUANTIZERS if name != "none"))
SALORA_LR = 1 / 3
FULL_LR = 0.1  # whole weights are tuned at a tenth of the adapters' rate: the usual ratio


def _known(what: str, value: str, names: Sequence[str], whole: str) -> str:
    if value not in names:
        raise StudyError(f"unknown {what} {value!r} in {whole!r}; choose one of {', '.join(names)}")
    return value


def parse(name: str) -> UpdateName:
    """The parts of an update's name; an unknown kind, mix or precision is refused with the names there are."""
    found = taken_apart(name)
    kind = _known("kind of training", found.kind, training.KINDS, name)
    _known("mix", found.mix, tuple(corpora.MIXES), name)
    trained_on = _known("precision", found.trained_on, PRECISIONS, name)
    if kind == "full" and trained_on != "bf16":
        raise StudyError(f"update {name!r}: a full fine-tune has no frozen weights to quantize; use @bf16, or kind qat")
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


def update_recipe(named: UpdateName, epochs: int, lr: float, rank: int, alpha: float, seed: int) -> Recipe:
    """The recipe of an update: LoRA and QLoRA share rows, order, rank, rate and steps, so that only the precision differs."""
    common = Recipe(kind=named.kind, epochs=epochs, lr=lr, batch=4, rank=rank, alpha=alpha, seed=seed, steps=named.steps)
    if named.rank:  # alpha / rank stays, so that only the rank differs
        common = replace(common, rank=named.rank, alpha=alpha * named.rank / rank)
    if named.kind == "lora":
        return common
    bits = int(named.trained_on.split("-")[1]) if named.kind == "qat" else common.bits
    return replace(common, lr=FULL_LR * lr, batch=8, bits=bits)


def train(
    parts: Parts, names: Sequence[str], rows: int, epochs: int, lr: float, rank: int, alpha: float, seed: int, texts: str,
    progress: Callable[[str], Callable[[int, int, float], None]] | None = None,
) -> Parts:  # fmt: skip
    """The parts with every named update trained, or found where it was trained before."""
    for name in names:
        named = parse(name)
        data = corpora.mix(named.mix, rows, named.percent, texts, seed)
        made = update_recipe(named, epochs, lr, rank, alpha, seed)
        folder = variants.train_update(parts, data, made, named.trained_on, progress(name) if progress else None)
        parts = parts.with_update(named.adapter, named.trained_on, folder)
    return parts


def train_salora(
    parts: Parts, names: Sequence[str], rows: int, epochs: int, lr: float, rank: int, seed: int, texts: str, safety_rows: int,
    progress: Callable[[str], Callable[[int, int, float], None]] | None = None,
) -> Parts:  # fmt: skip
    """The parts with every named LoRA trained once more under SaLoRA: same rows, order, rank and steps, a third of the rate.

    Its factors start large, from the weights' own singular values, so that at an equal rate the update grows about three
    times as large; at a third, size and fit are those of the LoRA. Its safety rows are those of the safety tuning, refusals
    and all: no evaluation prompt is seen.
    """
    safety = corpora.alignment_rows(safety_rows, 0, texts, seed)
    for name in names:
        named = parse(name)
        if named.kind != "lora":
            raise StudyError(f"update {name!r} is no LoRA, and SaLoRA trains adapters; name one that begins with lora-")
        data = corpora.mix(named.mix, rows, named.percent, texts, seed)
        made = replace(update_recipe(named, epochs, SALORA_LR * lr, rank, rank, seed), kind=variants.SALORA)
        bar = progress(f"{name} under SaLoRA") if progress else None
        folder = variants.train_update(parts, data, made, named.trained_on, bar, safety)
        parts = parts.with_update(f"{named.adapter}+{variants.SALORA}", named.trained_on, folder)
    return parts


def home(run: Run, name: str) -> Variant:
    """The variant in which an update is served as it was trained: attached, merged (full), or in its own bits (QAT)."""
    named = parse(name)
    serving = {"lora": "attached", "full": "merged", "qat": "merged-requantized"}[named.kind]
    return Variant(run.model, run.seed, named.trained_on, named.adapter, named.trained_on, serving)


def under_salora(home: Variant, names: Sequence[str]) -> list[Variant]:
    """The update trained under SaLoRA, where it is among the names."""
    return [replace(home, restoration=variants.SALORA)] if f"{home.adapter}@{home.trained_on}" in names else []


def served(run: Run, name: str) -> Variant:
    """The variant that a serving's name asks for."""
    named, precision, serving = parse_serving(name)
    return Variant(run.model, run.seed, precision, named.adapter, named.trained_on, serving)


def family(variant: Variant) -> str:
    """The kind of change a variant is: control, before alignment, quantization, LoRA, QLoRA, full fine-tune, QAT, restored.

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
        return named.arm
    return "LoRA" if {variant.trained_on, variant.precision} == {"bf16"} else "QLoRA"


def note(parts: Parts) -> dict[str, str]:
    """Where later chapters find the updates: adapter and precision, and the content key of its folder."""
    return {f"{adapter}@{trained_on}": folder.name for (adapter, trained_on), folder in parts.updates.items()}


def recipes(parts: Parts) -> dict[str, dict[str, float]]:
    """What each update was trained with: rank and scale (0 where no adapter was trained), steps taken, and peak rate."""
    found = {}
    for (adapter, trained_on), folder in parts.updates.items():
        note = training.from_json(folder / "recipe.json")
        made, lora = note["recipe"], note["recipe"]["kind"] == "lora"
        sizes = {"rank": made["rank"], "scale": made["alpha"] / made["rank"]} if lora else {"rank": 0, "scale": 0}
        found[f"{adapter}@{trained_on}"] = {**sizes, "steps": len(note["losses"]), "lr": made["lr"]}
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
