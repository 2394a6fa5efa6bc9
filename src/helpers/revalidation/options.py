"""Options: what `revalidate` was asked for, and the policy that goes with it. Plain values, so that a command shows defaults."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.errors import StudyError, nearest, shown
from helpers.revalidation.policy import BEHAVIOUR, BEHAVIOURS, DEFAULT, GatePolicy, read_policy

TOKENS = 64  # of a text that are read, where monitors do not say how many they were frozen at
REPLY_TOKENS = 32  # of a reply to a prompt, at most: a refusal opens with its phrase
JUDGED_BY = ("phrases", "fitted")  # both say of each reply whether it refuses
PACKAGED = ("embedded", "tiny")  # prompts of verified packages, and stand-ins for them


@dataclass(frozen=True)
class Options:
    """What was asked for, as `revalidate` takes it; a path, a name, or "" where it was not given.

    base: embedded, a folder, or owner/name@revision. update: a PEFT adapter's folder, a merged model's folder, or a quantizer.
    monitors: a folder of saved ones; or fit: labelled texts to fit some on, `kinds` at `depths` of both poolings. texts:
    unlabelled. labels: labelled. scores: scores of anybody's monitors; the rest is then not needed. policy: a .toml file of what
    monitors must do. prompts: a file of harmful and safe prompts, or `embedded`. evidence: a report to be judged anew, without
    models. required: names of monitors that must be fit, and of behaviour that must be kept (default: the policy's, else all
    monitors). precision: what the updated model is served in. budget: labels that can be had. texts_limit: tokens of a text that
    are read; 0: as many as the monitors were frozen at, else TOKENS. reply_tokens: of a reply, at most. steps: which of a folder
    of checkpoints are looked at, `bisect` or `all`. threads: 0 leaves torch's own number. instant: what chat
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
    prompts: str = ""
    evidence: str = ""
    steps: str = "bisect"
    reply_tokens: int = REPLY_TOKENS
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
    """The options with what the policy says of monitors, seed and prompts, and the policy; what stands in both is refused."""
    path = Path(options.policy)
    policy = read_policy(path) if options.policy else DEFAULT
    if options.required and policy.required:
        raise StudyError(f"--required was given and {path.name} names required monitors too; leave one out")
    if options.seed and policy.seed not in {None, options.seed}:
        raise StudyError(f"--seed {options.seed} was given and {path.name} has seed {policy.seed}; leave one out")
    if options.prompts and policy.prompt_file:
        raise StudyError(f"--prompts was given and {path.name} names a prompt_file too; leave one out")
    policy = replace(policy, required=options.required or policy.required)
    _check_behaviour(policy.behaviour)
    named = policy.prompt_file
    prompts = options.prompts or (named if named in PACKAGED or not named else str(path.parent / named))
    return replace(options, required=policy.required, seed=policy.seed or options.seed, prompts=prompts), policy


def _check_behaviour(names: Sequence[str]) -> None:
    """Raises StudyError where a required measure of behaviour is none."""
    known = [*BEHAVIOURS, *(f"{name}/{judge}" for name in BEHAVIOURS[:2] for judge in JUDGED_BY)]
    for name in names:
        if name not in known:
            what = f"required {shown(BEHAVIOUR + name)} is no measure of behaviour; {nearest(name, known)}"
            raise StudyError(f"{what}use behaviour/ and one of {', '.join(BEHAVIOURS)}")


def check_required(required: Sequence[str], names: Sequence[str]) -> None:
    """Raises StudyError where a required monitor is not there; measures of behaviour are no monitors."""
    for name in required:
        if name not in names and not name.startswith(BEHAVIOUR):
            raise StudyError(f"required monitor {shown(name)} is not there; {nearest(name, names)}there are {len(names)}")
