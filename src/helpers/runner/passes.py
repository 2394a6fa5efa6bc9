"""Passes: what one of each kind costs in tokens, counted as it is made: in the same batches, padding included."""

import json
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from helpers.data.text_rows import Row
from helpers.models import behaviour, encoding, loading, shared_prefix, utility
from helpers.models.activations import layers
from helpers.models.loading import chat_text, encode_text, length_batches
from helpers.models.meter import Tokens
from helpers.models.utility import DOCUMENT_TOKENS
from helpers.staleness import own_replies
from helpers.updates import preferences, training
from helpers.updates.quantized_models import CALIBRATION_TOKENS, calibration_kind, calibration_texts

Values = MutableMapping[str, Any]  # the parameters of one chapter
Lengths = Sequence[int]


@dataclass(frozen=True)
class Reader:
    """What a count needs of a model: how it turns text into tokens, and how many blocks it has."""

    tokenizer: Any
    depth: int
    texts: str

    def prompts(self, rows: Iterable[Row]) -> list[list[int]]:
        """The rows' prompts in the chat template, as tokens."""
        return [encode_text(self.tokenizer, chat_text(self.tokenizer, row.prompt, row.system)) for row in rows]


@lru_cache(4)
def reader(model: str, texts: str) -> Reader:
    """The reader of a model by its name or folder; no weight is loaded."""
    folder = loading.base_folder(model)
    depth = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    return Reader(loading.read_tokenizer(folder), depth, texts)


# ---------------------------------------------------------------- passes


def padded(lengths: Lengths, batches: Iterable[Sequence[int]]) -> int:
    """Tokens of the batches, each row as long as the longest beside it."""
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


def replies(rows: Sequence[Sequence[int]], new_tokens: int, whole: bool = False, batch: int = 32) -> float:
    """Tokens of `generation.completions`, every reply as long as it may be."""
    if not rows:
        return 0.0
    shared = 0 if whole else shared_prefix.common(rows)
    lengths = [len(row) - shared for row in rows]
    return shared + padded(lengths, length_batches(lengths, batch)) + len(rows) * (new_tokens - 1)


def likelihoods(lengths: Lengths, batch: int = 32) -> float:
    """Tokens of `generation.log_likelihoods`."""
    return float(padded(lengths, length_batches(lengths, batch)))


def said(of: Reader, sets: Iterable[behaviour.PromptSet], new_tokens: int) -> float:
    """Tokens of `behaviour.measure`."""
    return replies(of.prompts(row for group in sets for row in group.rows), new_tokens)


def useful(of: Reader, sets: utility.UtilitySets, summary_tokens: int = 0) -> float:
    """Tokens of `utility.measure`."""
    found = sum(replies(of.prompts(rows), summary_tokens) for rows in sets.answered.values())
    for rows in sets.references.values():
        told = [len(encode_text(of.tokenizer, row.reply)) for row in rows]
        found += likelihoods([len(asked) + n for asked, n in zip(of.prompts(rows), told, strict=True)])
    found += sum(
        likelihoods([len(encode_text(of.tokenizer, t, DOCUMENT_TOKENS)) for t in texts]) for texts in sets.documents.values()
    )
    for questions in sets.questions.values():
        asked = [(encode_text(of.tokenizer, f"Question: {q.prompt}\nAnswer:"), q.options) for q in questions]
        found += likelihoods(
            [len(q) + len(encode_text(of.tokenizer, f" {option}")) for q, options in asked for option in options]
        )
    return found


def activations(of: Reader, plan: encoding.Plan) -> float:
    """Tokens of `activations.read`: only as deep as the deepest layer that is read."""
    encoded = encoding.encode(of.tokenizer, plan)
    shared = encoding.shared_prefix(encoded)
    lengths = [len(row) - shared for row in encoded.rows]
    deepest = max(layers([*plan.depths, *(depth for _, depth in plan.tokens)], of.depth))
    return (shared + padded(lengths, encoding.token_batches(lengths, plan.budget))) * deepest / of.depth


def heard(of: Reader, rows: Sequence[Row], how: own_replies.ReplyPlan) -> float:
    """Tokens of `own_replies.listen`: the replies, what stands before them, and both together, as long as they may be."""
    asked = of.prompts(rows)
    before = encoding.Plan(tuple(own_replies.example(row) for row in rows), how.depths, own_replies.PROMPT_TOKENS)
    shared = shared_prefix.common(asked)
    lengths = [len(row) + how.tokens - shared for row in asked]
    during = shared + padded(lengths, encoding.token_batches(lengths, before.budget))
    return replies(asked, how.tokens) + activations(of, before) + during * max(layers(how.depths, of.depth)) / of.depth


def trained(of: Reader, rows: Sequence[Row], recipe: training.Recipe) -> Tokens:
    """Tokens of `training.tune`; preference tuning reads both replies, and once more for the reference."""
    if recipe.kind == preferences.KIND:
        pairs = preferences.pairs(of.tokenizer, rows, recipe.limit)
        batches = training.plan([len(pair.ids) for pair in pairs], recipe.batch, recipe.epochs, recipe.seed, recipe.pool)
        longest = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in pairs]
        both = 2 * padded(longest, batches[: recipe.steps or None])
        return Tokens(both, both)
    lengths = [len(example.ids) for example in training.examples(of.tokenizer, rows, recipe.limit)]
    batches = training.plan(lengths, recipe.batch, recipe.epochs, recipe.seed, recipe.pool)
    return Tokens(trained=padded(lengths, batches[: recipe.steps or None]))


def calibrated(of: Reader, v: Values, precision: str = "gptq-4") -> float:
    """Tokens of one GPTQ: every block runs twice on the calibration texts."""
    texts = calibration_texts(calibration_kind(precision), v["calibration_rows"], of.texts)
    rows = [encode_text(of.tokenizer, t, CALIBRATION_TOKENS) for t in texts]
    kept = [row for row in rows if len(row) == CALIBRATION_TOKENS] or rows
    return 2.0 * len(kept) * max(map(len, kept))
