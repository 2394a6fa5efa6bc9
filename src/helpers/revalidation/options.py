"""Options: what `revalidate` was asked for, and what of it fits a file of scores. No model, and no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.data import user_files
from helpers.errors import StudyError, nearest, shown


@dataclass(frozen=True)
class Options:
    """What was asked for, as `revalidate` takes it; a path, a name, or "" where it was not given.

    base: embedded, a folder, or owner/name@revision. update: a PEFT adapter's folder, a merged model's folder, or a quantizer.
    monitors: a folder of saved ones; or fit: labelled texts to fit some on, `kinds` at `depths` of both poolings. texts:
    unlabelled. labels: labelled. scores: scores of anybody's monitors; the rest is then not needed. required: names of monitors
    that must be fine (default: all). precision: what the updated model is served in. budget: labels that can be had.
    texts_limit: tokens of a text that are read. threads: 0 leaves torch's own number.
    """

    base: str = "embedded"
    update: str = ""
    monitors: str = ""
    fit: str = ""
    texts: str = ""
    labels: str = ""
    scores: str = ""
    required: tuple[str, ...] = ()
    precision: str = "bf16"
    seed: int = 0
    budget: int = 200
    depths: tuple[float, ...] = (0.6,)
    kinds: tuple[str, ...] = ("logistic", "mean-difference", "lda")
    texts_limit: int = 64
    device: str = "cpu"
    threads: int = 0


def scored(options: Options) -> dict[str, list[user_files.ScoreRow]]:
    """The rows of a score file by monitor; the options that need a model must be absent."""
    given = [name for name in ("update", "monitors", "fit", "texts", "labels") if getattr(options, name)]
    if given:
        raise StudyError(f"--scores was given with --{given[0]}; scores need no model and no text, so leave that out")
    found = user_files.scores(Path(options.scores))
    check_required(options.required, list(found))
    return found


def check_required(required: Sequence[str], names: Sequence[str]) -> None:
    """Raises StudyError where a required monitor is not there."""
    for name in required:
        if name not in names:
            raise StudyError(f"required monitor {shown(name)} is not there; {nearest(name, names)}there are {len(names)}")
