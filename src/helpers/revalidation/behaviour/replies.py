"""Replies: how a model answers harmful and safe prompts; judged where they are made, of which labels, lengths and hashes stay."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.data import near_duplicates, user_files
from helpers.data.text_rows import Row
from helpers.errors import REFUSED, StudyError, shown
from helpers.models import behaviour, generation, judges
from helpers.models.loading import LanguageModel
from helpers.revalidation.behaviour.comparison import LEAST, PairedItems
from helpers.revalidation.options import JUDGED_BY, PACKAGED, Options
from helpers.revalidation.policy import GatePolicy

AT_ONCE = 128  # prompts that are answered together: a step of so many takes hardly longer than one of a few
KINDS = {"harmful": "refusals", "safe": "over-refusals"}  # what a refusal of either kind counts as
PACKAGED_SETS = {"harmful": "advbench", "safe": "edgy"}
MOST = 64  # packaged prompts of a kind
MOST_OWN = 1_000  # prompts of one's own: each is answered twice


@dataclass(frozen=True, eq=False)
class AskedPrompts:
    """Prompts with their kinds: `harmful` ones should be refused, `safe` ones not. origin: of the labels that a judge learns."""

    rows: tuple[Row, ...]
    kinds: np.ndarray
    origin: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Replied:
    """What is kept of a model's replies: by judge whether each refuses, words, and a hash."""

    refused: dict[str, np.ndarray]
    words: np.ndarray
    hashes: tuple[str, ...]


# ---------------------------------------------------------------- which prompts


def asked_prompts(options: Options, policy: GatePolicy) -> AskedPrompts | None:
    """The prompts of the file or package that was named; None where none were. What is required must be among them."""
    needed = [name for name in policy.behaviour if name.partition("/")[0] in {*KINDS.values(), "length"}]
    if not options.prompts:
        if needed:
            raise StudyError(f"behaviour/{needed[0]} is required and no prompts were given; give --prompts, a file or embedded")
        return None
    if options.reply_tokens < 4:
        raise StudyError(f"--reply-tokens {options.reply_tokens} is too few to tell a refusal; give at least 4")
    if options.prompts in PACKAGED:
        sets = {kind: behaviour.PROMPT_SETS[name](MOST, options.prompts).rows for kind, name in PACKAGED_SETS.items()}
        found = [(kind, row) for kind, rows in sets.items() for row in rows]
        origin = options.prompts
    else:
        found, origin = _own(Path(options.prompts)), "tiny" if options.base == "tiny" else "embedded"
    kinds, rows = np.array([kind for kind, _ in found]), tuple(row for _, row in found)
    for kind, measure in KINDS.items():
        if (kinds == kind).sum() < LEAST and any(name.startswith(measure) for name in needed):
            have = f"there are {(kinds == kind).sum()} {kind} prompts"
            raise StudyError(f"behaviour/{measure} is required and {have}; give at least {LEAST}", REFUSED)
    digest = hashlib.sha256("\0".join(f"{kind}\0{row.prompt}" for kind, row in found).encode()).hexdigest()
    return AskedPrompts(rows, kinds, origin, digest)


def _own(path: Path) -> list[tuple[str, Row]]:
    """The prompts of a file with `text` (or `prompt`), `kind`, and, where rows belong together, `group`."""
    found = []
    for place, row in user_files.table_rows(user_files.checked_file(path, "prompts", (".jsonl", ".csv")), "text|prompt", "kind"):
        kind = user_files.word_in(row, "kind", place).lower()
        if kind not in KINDS:
            raise StudyError(f"{place}: its kind is {shown(kind, 30)}; write harmful or safe", REFUSED)
        prompt, _ = user_files.prompt_and_reply(row, place)
        found.append((kind, Row(prompt, group=user_files.word_in(row, "group", place))))
    if not 1 <= len(found) <= MOST_OWN:
        raise StudyError(f"{path.name} holds {len(found)} prompts; give 1 to {MOST_OWN}", REFUSED)
    again = user_files.repeated([" ".join(row.prompt.casefold().split()) for _, row in found])
    if again:
        raise StudyError(f"{path.name} row {again[0] + 1} is a prompt that stands above already; give each once", REFUSED)
    bare = [i for i, (_, row) in enumerate(found) if not row.group]
    if bare and len(bare) < len(found):
        raise StudyError(f"{path.name} row {bare[0] + 1} has no group, others have one; fill the column or remove it", REFUSED)
    if not bare:
        return found
    groups = near_duplicates.clusters([row.prompt for _, row in found])
    return [(kind, Row(row.prompt, group=str(group))) for (kind, row), group in zip(found, groups, strict=True)]


# ---------------------------------------------------------------- what is said


def reply(language: LanguageModel, prompts: AskedPrompts, new_tokens: int) -> Replied:
    """The greedy replies in the model's chat template, judged by both judges."""
    asked = [row.prompt for row in prompts.rows]
    said = generation.replies(language, asked, new_tokens=new_tokens, batch=AT_ONCE)
    settings = behaviour.judge_settings(prompts.origin)
    refused = {name: judges.judge(name, settings)(asked, said).refused for name in JUDGED_BY}
    hashes = tuple(hashlib.sha256(text.encode()).hexdigest()[:12] for text in said)
    return Replied(refused, np.array([len(text.split()) for text in said], dtype=float), hashes)


def paired(prompts: AskedPrompts, before: Replied, after: Replied) -> list[PairedItems]:
    """Refusals of harmful and of safe prompts by each judge, and the lengths of replies; kinds without prompts are left out."""
    groups, found = np.array([row.group for row in prompts.rows]), []
    for kind, name in KINDS.items():
        rows = np.flatnonzero(prompts.kinds == kind)
        still = all(before.hashes[i] == after.hashes[i] for i in rows)
        for judge in JUDGED_BY if len(rows) else ():
            old, new = (side.refused[judge][rows].astype(float) for side in (before, after))
            found.append(PairedItems(name, judge, old, new, groups[rows], still))
    return [*found, PairedItems("length", "", before.words, after.words, groups, before.hashes == after.hashes)]
