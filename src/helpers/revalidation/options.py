"""Options: what `revalidate` was asked for, and the policy that goes with it. Plain values, so that a command shows defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.errors import StudyError, nearest, shown
from helpers.revalidation.policy import DEFAULT, GatePolicy, read_policy

TOKENS = 64  # of a text that are read, where monitors do not say how many they were frozen at


@dataclass(frozen=True)
class Options:
    """What was asked for, as `revalidate` takes it; a path, a name, or "" where it was not given.

    base: embedded, a folder, or owner/name@revision. update: a PEFT adapter's folder, a merged model's folder, or a quantizer.
    monitors: a folder of saved ones; or fit: labelled texts to fit some on, `kinds` at `depths` of both poolings. texts:
    unlabelled. labels: labelled. scores: scores of anybody's monitors; the rest is then not needed. policy: a .toml file of what
    monitors must do. required: names of monitors that must be fit (default: the policy's, else all). precision: what the
    updated model is served in. budget: labels that can be had. texts_limit: tokens of a text that are read; 0: as many as the
    monitors were frozen at, else TOKENS. threads: 0 leaves torch's own number. instant: what chat
    templates see as now, in ISO 8601 (default: the monitors' own).
    """

    base: str = "embedded"
    update: str = ""
    monitors: str = ""
    fit: str = ""
    texts: str = ""
    labels: str = ""
    scores: str = ""
    policy: str = ""
    required: tuple[str, ...] = ()
    precision: str = "bf16"
    seed: int = 0
    budget: int = 50
    depths: tuple[float, ...] = (0.6,)
    kinds: tuple[str, ...] = ("logistic", "mean-difference", "lda")
    texts_limit: int = 0
    device: str = "cpu"
    threads: int = 1
    instant: str = ""


def with_policy(options: Options) -> tuple[Options, GatePolicy]:
    """The options with the monitors that the policy requires, and the policy; names in both places are refused."""
    policy = read_policy(Path(options.policy)) if options.policy else DEFAULT
    if options.required and policy.required:
        raise StudyError(f"--required was given and {Path(options.policy).name} names required monitors too; leave one out")
    required = options.required or policy.required
    return replace(options, required=required), replace(policy, required=required)


def check_required(required: Sequence[str], names: Sequence[str]) -> None:
    """Raises StudyError where a required monitor is not there."""
    for name in required:
        if name not in names:
            raise StudyError(f"required monitor {shown(name)} is not there; {nearest(name, names)}there are {len(names)}")
