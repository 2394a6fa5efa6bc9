"""Texts to tokens: a plan of what is read, each text in the model's chat template, and where in it the content stands.

The texts of a plan open with the same tokens (the system prompt of the chat template), their shared prefix. Batches depend on
the texts alone, so every variant sees the same ones: bf16 results move with the batch a text sits in.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from helpers.data.splits import Example
from helpers.data.text_rows import fingerprint
from helpers.definitions import content_key
from helpers.errors import REFUSED, StudyError
from helpers.models import shared_prefix as prefix
from helpers.models.foreign import templates, tokens
from helpers.models.foreign.boundary import foreign
from helpers.models.loading import MARK, chat_text


@dataclass(frozen=True)
class Plan:
    """What is read: the texts, the depths as fractions of the network, and the pairs (task, depth) whose tokens are kept.

    limit: tokens of content a text may have before it is cut. limits: those of single tasks that have another. budget: tokens of
    a batch, padding counted and the shared prefix not; 512 was the fastest on a CPU.
    """

    examples: tuple[Example, ...]
    depths: tuple[float, ...]
    limit: int
    tokens: tuple[tuple[str, float], ...] = ()
    budget: int = 512
    limits: tuple[tuple[str, int], ...] = ()

    def limit_of(self, task: str) -> int:
        """The tokens of content that a text of the task may have."""
        return dict(self.limits).get(task, self.limit)

    def key(self) -> str:
        """A hash of everything in the plan that the activations depend on; labels, groups and splits are not."""
        texts = fingerprint([(example.task, example.prompt, example.reply) for example in self.examples])
        return content_key(
            texts=texts, depths=self.depths, limit=(self.limit, self.limits), tokens=self.tokens, budget=self.budget
        )


@dataclass(frozen=True)
class Encoded:
    """Token ids of each text, with the span [start, stop) of its content; `cut` counts the texts that were shortened."""

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    cut: int


def encode(tokenizer, plan: Plan, context: int | None = None) -> Encoded:
    """The texts of a plan in the model's chat template, as tokens, each with the span of its content.

    The content is the reply where there is one, after its prompt (cut to half the limit); else it is the user's text. It is
    cut to `limit` tokens before the template is applied, so that what is read is a text the model could meet. A token that
    reaches over its edge (line breaks may join) belongs to it. A text without content, or longer than `context` tokens, is
    refused.
    """
    shortest = min([plan.limit, *(limit for _, limit in plan.limits)])
    if not plan.examples or shortest < 2:
        raise StudyError(f"a plan of {len(plan.examples)} texts with limit {shortest}; give at least one text and limit 2")
    frame, limits = _frame(tokenizer), [plan.limit_of(example.task) for example in plan.examples]
    found = [_encoded(tokenizer, frame, e, limit, i) for i, (e, limit) in enumerate(zip(plan.examples, limits, strict=True))]
    rows, starts, stops, cuts = zip(*found, strict=True)
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if context is not None and len(rows[longest]) > context:
        who = _name(plan.examples[longest], longest)
        raise StudyError(
            f"{who} has {len(rows[longest])} tokens, but the model reads {context}; use a limit below {limits[longest]}", REFUSED
        )
    return Encoded(rows, starts, stops, sum(cuts))


def _name(example: Example, number: int) -> str:
    """How an error names a text: by its place and a short hash, never by its words."""
    short = hashlib.sha256(f"{example.prompt}\0{example.reply}".encode("utf-8", "replace")).hexdigest()[:8]
    return f"text {number} ({short}) of task {example.task!r}"


def _frame(tokenizer) -> tuple[str, str]:
    """What the chat template puts before and after the user's text."""
    before, mark, after = chat_text(tokenizer, MARK).partition(MARK)
    if not mark:
        raise StudyError(f"{templates.place(tokenizer)}: the chat template leaves out the user's text; {templates.MEND}", REFUSED)
    return before, after


def _encoded(tokenizer, frame: tuple[str, str], example: Example, limit: int, number: int) -> tuple:
    """Tokens of one text, start and stop of its content, and whether it was cut."""
    prompt, reply = _plain(example.prompt), _plain(example.reply)
    if not (reply or prompt).strip():
        raise StudyError(f"{_name(example, number)} is empty; remove it from the task", REFUSED)
    asked, said = _cut(tokenizer, prompt, limit // 2 if reply else limit), _cut(tokenizer, reply, limit)
    rendered = chat_text(tokenizer, asked)
    first, last = (len(rendered), len(rendered) + len(said)) if reply else _inside(rendered, frame, example, number)
    ids, offsets = _tokens(tokenizer, rendered + said)
    content = [place for place, (begin, end) in enumerate(offsets) if begin < last and end > first]
    if not content:
        raise StudyError(f"{_name(example, number)} has no token left of its content; raise limit above {limit}", REFUSED)
    return tuple(ids), content[0], content[-1] + 1, (asked, said) != (prompt, reply)


def _plain(text: str) -> str:
    """The text with lone surrogates, which have no UTF-8 and which no tokenizer takes, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _tokens(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and the characters [begin, end) that each stands for."""
    with foreign(f"{templates.owner(tokenizer)}: its tokenizer cannot read a text", tokens.AGAIN):
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], found["offset_mapping"]


def _cut(tokenizer, text: str, limit: int) -> str:
    """The beginning of a text, up to a token's border, that has at most `limit` tokens when it is read anew."""
    while len(offsets := _tokens(tokenizer, text)[1]) > limit:
        # an emoji spreads over several tokens with the same characters: it is kept whole first, and goes whole if it is too much
        text = text[: min(offsets[limit - 1][1], len(text) - 1)]
    return text


def _inside(rendered: str, frame: tuple[str, str], example: Example, number: int) -> tuple[int, int]:
    """The characters of the user's text in the rendered one: found by what surrounds it, since it may occur there as well."""
    before, after = frame
    if not (rendered.startswith(before) and rendered.endswith(after)):
        raise StudyError(f"the chat template treats {_name(example, number)} unlike other texts; remove it", REFUSED)
    return len(before), len(rendered) - len(after)


def shared_prefix(encoded: Encoded) -> int:
    """The number of tokens that all texts open with; it ends before any content and leaves at least one token to each."""
    return prefix.common(encoded.rows, min(*encoded.starts, *(len(row) - 1 for row in encoded.rows)))


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of at most `budget` tokens, padding counted, sorted by length (ties by index).

    A text longer than the budget is a batch of its own.
    """
    if budget < 1:
        raise StudyError(f"budget {budget} leaves no room for a token; use 512")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
