"""What all judges share: settings in, judgements out, and replies cleaned of what could flip a judge."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers.errors import StudyError


@dataclass(frozen=True)
class Judgement:
    """What a judge said of each item: refused (bool), score (1..5, or nan), failed (bool: this judge could not score it)."""

    refused: np.ndarray
    score: np.ndarray
    failed: np.ndarray
    requests: int = 0  # sent to an endpoint, retries included
    retries: int = 0


Judge = Callable[[Sequence[str], Sequence[str]], Judgement]


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of all judges; each judge says which of them it needs."""

    opening: int = 160  # characters that "phrases" and "fitted" look at: about 32 tokens, as long as the study's replies
    seed: int = 0
    human_refusals: tuple[Sequence[str], Sequence[int], Sequence] | None = None  # replies, 1 = refusal, groups
    human_severity: tuple[Sequence[str], Sequence[str], Sequence[float], Sequence] | None = None  # prompts, replies, 0..1, groups
    generate: Callable[[list[str]], list[str]] | None = None  # prompts in, the HarmBench classifier's answers out
    classifier: str = ""  # the name of the model behind `generate`, for content keys
    endpoint: str = ""  # for example http://127.0.0.1:8000/v1
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key; "" for a server without one
    timeout: float = 60.0  # seconds for one whole request
    attempts: int = 4  # requests for one item before it counts as failed
    wait: float = 1.0  # seconds before the first retry, doubled each time
    budget: int = 1000  # requests in one call, retries included
    scores: Path | None = field(default=None)  # JSONL of hashes and scores, to go on after an interruption


OPTIONS = ("endpoint", "model", "key_variable", "harmbench_model")  # what a run may say of where judges are asked


def checked_options(options: Mapping[str, str]) -> Mapping[str, str]:
    """The options of judges that are asked elsewhere. Errors: an option that no judge has, or one that is no text."""
    for name, value in options.items():
        if name not in OPTIONS or not isinstance(value, str):
            raise StudyError(f"judges have no option {name!r} of value {value!r}; give texts for {', '.join(OPTIONS)}")
    return options


_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


_ROLES = "instruction|response|input|output|human|user|assistant|system|judge|score|rating|evaluation"


_CLOSING = re.compile(
    rf"<\|[^|<>\n]{{1,40}}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|(?:^|\s)#{{2,}}\s*(?:{_ROLES})\b\s*:?",
    re.IGNORECASE,
)


_DISCLAIMER = re.compile(
    r"(?:\n|(?<=[.!?])\s)\W*(?:disclaimer|note|warning)\W{0,3}:(?:(?!\n\s*\n).)*\Z", re.IGNORECASE | re.DOTALL
)


_SHORT = 20  # characters; less than this before a marker is no reply yet


def clean_reply(text: str, longest: int = 2000) -> str:
    """The reply as judges see it: the model's own turn, without control characters, at most `longest` characters.

    Text after an injected closing marker (<|im_end|>, [/INST], "### Score:" ...) belongs to no reply and is cut, as is a last
    paragraph labelled "Disclaimer:", "Note:" or "Warning:": either can flip a judge. A marker within the first 20 characters
    is only taken out, so that nothing can be hidden behind one.
    """
    text = _ANSI.sub("", str(text)).replace("\r\n", "\n")
    # Cc: control characters, Cf: bidi marks and zero-width characters, Cs: lone surrogates, which no encoder takes.
    text = "".join(mark for mark in text if mark in "\n\t" or unicodedata.category(mark) not in ("Cc", "Cf", "Cs"))
    kept = ""
    for turn in _CLOSING.split(text):
        kept = f"{kept} {turn.strip()}".strip()
        if len(kept) >= _SHORT:
            break
    without = _DISCLAIMER.sub("", kept).strip()
    return (without if len(without) >= _SHORT else kept)[:longest]


def opening_of(reply: str, length: int) -> str:
    """The first `length` characters of a clean reply, lower case, with one kind of apostrophe and of blank."""
    text = re.sub("[\u2018\u2019\u02bc`\u00b4]", "'", clean_reply(reply)).lower()
    return " ".join(text.split())[:length]


def checked_pairs(prompts: Sequence[str], replies: Sequence[str]) -> list[tuple[str, str]]:
    """The prompts with their replies, cleaned. Errors: lists of different length."""
    if len(prompts) != len(replies):
        raise StudyError(f"judge: {len(prompts)} prompts and {len(replies)} replies; pass one reply per prompt")
    return [(str(prompt), clean_reply(reply)) for prompt, reply in zip(prompts, replies, strict=True)]
