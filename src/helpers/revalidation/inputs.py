"""Intake: what a user gave, checked before anything is computed. Each error is one line; no text of theirs stands in it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.data import splits, user_files
from helpers.data.near_duplicates import near_pairs
from helpers.data.splits import Example
from helpers.errors import REFUSED, StudyError, shown
from helpers.models import activations, checkpoints, loading
from helpers.models.foreign import templates
from helpers.models.formats import gguf_files, packed_folders
from helpers.monitors import frozen
from helpers.monitors.exchange import direction_folders
from helpers.monitors.exchange.direction_folders import BaseModel
from helpers.monitors.frozen import Monitor
from helpers.monitors.probes import PROBES
from helpers.revalidation.candidate import offer, settings
from helpers.revalidation.candidate.offer import Candidate
from helpers.revalidation.options import TOKENS, Options, check_required, with_policy
from helpers.revalidation.policy import GatePolicy
from helpers.revalidation.screening import FEW
from helpers.updates.names import CONTROL
from helpers.updates.quantizers import QUANTIZERS


@dataclass(frozen=True)
class Inputs:
    """What is compared, on which texts; monitors are empty where they are yet to be fitted on `training`.

    limit: tokens of a text that are read, those that the monitors were frozen at.
    """

    options: Options
    policy: GatePolicy
    base: Path
    reads: str  # fingerprint of the base's tokenizer and template
    template: bool  # whether monitors read texts in the chat template
    limit: int
    update: Candidate
    monitors: tuple[Monitor, ...]
    training: tuple[Example, ...]
    texts: tuple[Example, ...]
    labels: tuple[Example, ...]
    notes: tuple[str, ...]


# ---------------------------------------------------------------- options


def check_inputs(options: Options) -> Inputs:
    """The inputs of a comparison of two models, cheap checks first; nothing is written."""
    options, policy = with_policy(options)
    _check_options(options)
    drawn: list[str] = []  # what is said of files of which a sample is read
    training, texts, labels = _read_texts(options, drawn.append)
    early = () if options.fit else _ours(Path(options.monitors))
    base, unpacked = _base(options.base)
    config = checkpoints.sizes(base)
    found, reads, template, said = _put_on(base, config, early, options)
    limit, told = _limit(options, found)
    for monitor in found:
        frozen.check_fits(monitor, int(config["hidden_size"]), int(config["num_hidden_layers"]), reads)
    update = offer.check_update(options.update, options.precision, base, reads, template)
    tasks = tuple(dict.fromkeys(monitor.task for monitor in found)) or (training[0].task,)
    labels = _with_tasks(labels, tasks, Path(options.labels).name)
    notes = [
        *drawn,
        *unpacked,
        *said,
        *told,
        *update.notes,
        *_foreign_settings(base),
        *_beside(base),
        *_untried(str(config["model_type"]), base),
        *_notes(options, training, texts, labels, found, base),
    ]
    names = [monitor.name for monitor in found] or _names(options, tasks[0], int(config["num_hidden_layers"]))
    check_required(options.required, names)
    texts_read = (tuple(training), tuple(texts), tuple(labels))
    return Inputs(options, policy, base, reads, template, limit, update, found, *texts_read, tuple(notes))


def instant(options: Options) -> str:
    """The instant that chat templates see as now: the one asked for, else the monitors' own."""
    return options.instant or frozen.recorded_instant(Path(options.monitors))


def _foreign_settings(base: Path) -> list[str]:
    """What is said of a base whose settings ask for what is not done here, or whose template asks the clock."""
    notes = checkpoints.read_otherwise(base)
    if templates.tells_time(settings.tokenizer_of(base).chat_template):
        notes.append(f"{base.name}: its chat template asks the clock, which stood at {templates.instant()}, as the monitors say")
    return notes


def _base(model: str) -> tuple[Path, list[str]]:
    """The checked folder of the base, unpacked first where it is stored in few bits, and what to say of that."""
    if found := gguf_files.gguf_in(Path(model)):
        what = f"--base {shown(found[0].name)} is a GGUF file, which says too little of how its model is built"
        raise StudyError(f"{what}; give the folder of the model that it was made from, and it as --update", REFUSED)
    unpacked = packed_folders.plain_base(model)
    return unpacked.folder, [unpacked.note] if unpacked.note else []


def _beside(base: Path) -> list[str]:
    """What lies beside the base's weights and is not read."""
    found = checkpoints.beside(base)
    return [f"{base.name}: {', '.join(found[:3])} lie(s) beside the base's weights and was not read"] if found else []


def _untried(kind: str, base: Path) -> list[str]:
    """What is said of a model of a family that no test here runs through every wing."""
    how = "its blocks were found by their structure; the control that reads the base twice shows whether they are read alike"
    return [] if kind in checkpoints.FAMILIES else [f"{base.name}: no test here runs models of type {kind!r}; {how}"]


def _limit(options: Options, found: Sequence[Monitor]) -> tuple[int, list[str]]:
    """Tokens of a text that are read: as many as the monitors were frozen at, whatever was asked for; and what to say of it."""
    frozen_at = sorted({monitor.limit for monitor in found} - {0})
    if len(frozen_at) > 1:
        how_many = " and ".join(map(str, frozen_at))
        raise StudyError(f"the monitors were frozen at {how_many} tokens a text; revalidate those of each in a run of their own")
    asked = options.texts_limit or TOKENS
    if not frozen_at:
        unknown = f"the monitors do not say how many tokens they read; {asked} are read here"
        return asked, [unknown] if found else []
    if options.texts_limit in {0, frozen_at[0]}:
        return frozen_at[0], []
    return frozen_at[0], [f"{frozen_at[0]} tokens of a text were read, as the monitors were frozen, not {options.texts_limit}"]


def _names(options: Options, task: str, depth: int) -> list[str]:
    """What the monitors will be called that are yet to be fitted; refuses depths that are no fractions of a network."""
    layers = activations.layers(options.depths, depth)
    return [f"{task}/{kind}-{pooling}/{n}" for n in layers for pooling in activations.POOLINGS for kind in options.kinds]


def _check_options(options: Options) -> None:
    if not options.base:
        raise StudyError("--base is missing; give embedded, a model's folder, or owner/name@revision")
    if not options.update:
        raise StudyError("--update is missing; give an adapter's folder, a merged model's folder or a quantizer's name")
    if bool(options.monitors) == bool(options.fit):
        raise StudyError("give either --monitors, a folder of saved ones, or --fit, labelled texts to fit some on")
    if not (options.texts or options.labels):
        raise StudyError("--texts and --labels are both missing; give texts, or nothing can be compared")
    precisions = ("bf16", "fp32", *QUANTIZERS)
    if options.precision not in precisions:
        raise StudyError(f"unknown precision {shown(options.precision)}; choose one of {', '.join(precisions)}")
    unknown = [kind for kind in options.kinds if kind not in PROBES or PROBES[kind].reads != "pooled"]
    if unknown or not options.kinds:
        pooled = ", ".join(kind for kind in PROBES if PROBES[kind].reads == "pooled" and kind != CONTROL)
        raise StudyError(f"--kinds {shown(unknown[0] if unknown else '')} is no kind that can be fitted here; use {pooled}")
    if options.texts_limit == 1 or min(options.texts_limit, options.budget, options.threads) < 0:
        raise StudyError("--texts-limit is at least 2, or 0; --budget and --threads are at least 0; give such numbers")
    loading.device(options.device)


# ---------------------------------------------------------------- texts


def _read_texts(options: Options, say: Callable[[str], None]) -> tuple[list[Example], list[Example], list[Example]]:
    """Training rows with their splits, unlabelled texts, labelled rows: those of --labels, else the test part of --fit."""
    texts = user_files.unlabelled(Path(options.texts), options.seed, say) if options.texts else []
    labels = user_files.labelled(Path(options.labels), options.seed, say) if options.labels else []
    if len(texts) == 1 and not (labels or options.fit):
        few = f"{Path(options.texts).name} holds one text, and nothing can be told of an update from one"
        raise StudyError(f"{few}; give {FEW} or more, or labelled ones", REFUSED)
    if not options.fit:
        return [], texts, labels
    path = Path(options.fit)
    user_files.labelled(path, options.seed)  # the plainer errors, such as the columns found
    training = user_files.read_labelled(path, (), options.seed, say)
    if not labels:
        return [row for row in training if row.split != "test"], texts, [row for row in training if row.split == "test"]
    known = [user_files.bare(row) for row in training]
    twice = user_files.repeated([user_files.bare(row) for row in labels], known)
    if twice:
        first = f"the first is row {twice[0] + 1} of {Path(options.labels).name}"
        raise StudyError(f"{len(twice)} text(s) of --labels are among those of --fit, {first}; remove them from one", REFUSED)
    # a threshold rests on the harmless texts of validation, and 20 of them would leave it to chance
    return [replace(row, split="validation") if row.split == "test" else row for row in training], texts, labels


def _with_tasks(labels: list[Example], tasks: Sequence[str], name: str) -> list[Example]:
    """The rows with the task whose monitors they are about."""
    if not labels or labels[0].task:
        strange = sorted({row.task for row in labels} - set(tasks))
        if strange:
            raise StudyError(f"{name} names task {shown(strange[0])}; the monitors have {', '.join(map(shown, tasks))}", REFUSED)
        return labels
    if len(tasks) > 1:
        raise StudyError(f"the monitors are of {len(tasks)} tasks; give {name} a column 'task' with one of {', '.join(tasks)}")
    return [replace(row, task=tasks[0]) for row in labels]


def _notes(
    options: Options, training: Sequence[Example], texts: Sequence[Example], labels: Sequence[Example],
    found: Sequence[Monitor], base: Path,
) -> list[str]:  # fmt: skip
    """What the user should know of their input, though it goes on."""
    notes, groups = [], len({row.group for row in labels})
    if len(texts) < FEW:
        notes.append(
            f"{len(texts)} unlabelled texts, fewer than {FEW}: drift can hardly be told from chance and no repair is tried; "
            "the verdict rests on the labels alone"
        )
    if labels and groups < 0.8 * len(labels):
        notes.append(
            f"{len(labels)} labelled texts lie in {groups} groups (near duplicates share one) and count as about so many"
        )
    if labels and texts and bool(labels[0].reply) != bool(texts[0].reply):
        notes.append("replies stand in only one of --texts and --labels: monitors read the reply where there is one")
    near = {i for i, _ in near_pairs([splits.seen(row) for row in labels], [splits.seen(row) for row in training])}
    if near:
        notes.append(f"{len(near)} labelled texts are near duplicates of texts that the monitors were fitted on")
    others = sorted({monitor.model for monitor in found} - {loading.identity(base)})
    if others:
        notes.append(f"the monitors were frozen on {others[0]}; what they say before the update is read from {base.name}")
    return notes


# ---------------------------------------------------------------- models and monitors


def _ours(folder: Path) -> tuple[Monitor, ...]:
    """The frozen monitors of a folder, controls left out; none where it holds monitors that were fitted elsewhere."""
    if not folder.is_dir():
        raise StudyError(f"--monitors {shown(folder.name)} is no folder; give one that holds monitors.json")
    if direction_folders.is_direction_folder(folder) and not (folder / frozen.METADATA).is_file():
        return ()
    found = tuple(monitor for monitor in frozen.load(folder) if monitor.kind != CONTROL)
    if not found:
        raise StudyError(f"{folder.name} holds no monitor to be revalidated; save some with monitors.save", REFUSED)
    return found


def _put_on(
    base: Path, config: Mapping[str, int | str], early: tuple[Monitor, ...], options: Options
) -> tuple[tuple[Monitor, ...], str, bool, list[str]]:
    """All monitors, how they read the base's texts (fingerprint, and whether in the chat template), and what to say of them."""
    reads, plain = settings.reads(base), settings.reads(base, template=False)
    found: tuple[Monitor, ...] = early
    said: list[str] = []
    if not early and not options.fit:
        width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        target = BaseModel(loading.identity(base), width, layers, reads, plain)
        others, said = direction_folders.load_directions(Path(options.monitors), target)
        found = tuple(others)
    without = [monitor for monitor in found if monitor.reads == plain]
    if without and len(without) < len(found):
        how = "revalidate those of each in a run of their own"
        raise StudyError(f"{len(without)} of {len(found)} monitors read texts without the chat template, the others in it; {how}")
    return found, plain if without else reads, not without, said
