"""Utility: summaries and answers (ROUGE), perplexity, and multiple choice, all on texts that no update was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.data.corpora import sample
from helpers.data.text_rows import Question, Row, fingerprint, unit
from helpers.errors import REFUSED, StudyError
from helpers.models import generation
from helpers.models.behaviour import ITEM_COLUMNS
from helpers.models.loading import LanguageModel, encode_text
from helpers.stats import intervals

DOCUMENT_TOKENS = 128


@dataclass(frozen=True)
class UtilitySets:
    """The evaluation texts: rows with reference replies by corpus, documents by corpus, questions by corpus."""

    replies: dict[str, tuple[Row, ...]]
    documents: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[Question, ...]]


def utility_sets(n_summaries: int, n_documents: int, n_questions: int, origin: str = "embedded") -> UtilitySets:
    """The held-out dialogues and instructions, C4 documents and PIQA questions, in hash order."""
    return UtilitySets(
        {
            "dialogue": tuple(sample("dialogue/test", n_summaries, origin)),
            "instructions": tuple(sample("instructions/test", n_summaries, origin)),
        },
        {"c4": tuple(sample("c4/test", n_documents, origin))},
        {"piqa": tuple(sample("piqa", n_questions, origin))},
    )


def measure_utility(language: LanguageModel, sets: UtilitySets, summary_tokens: int) -> pd.DataFrame:
    """One row an item and metric, in the same columns as behaviour's items."""
    found = [row for name, rows in sets.replies.items() for row in _rouge(language, name, rows, summary_tokens)]
    found += [row for name, texts in sets.documents.items() for row in _perplexity(language, name, texts)]
    found += [row for name, questions in sets.questions.items() for row in _choices(language, name, questions)]
    return pd.DataFrame(found, columns=ITEM_COLUMNS)


def _item(name: str, text: str, group: str, metric: str, value: float, length: int) -> tuple:
    return ("utility", name, f"{int(unit(text) * 2**40):010x}", group, "", metric, float(value), length, "")


def _rouge(language: LanguageModel, name: str, rows: Sequence[Row], new_tokens: int) -> list[tuple]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found = []
    for row, reply in zip(rows, generation.replies(language, [row.prompt for row in rows], new_tokens=new_tokens), strict=True):
        scores = scorer.score(row.reply, reply)
        found += [
            _item(name, row.prompt, row.group, metric, 100 * scores[metric].fmeasure, len(reply.split())) for metric in scores
        ]
    return found


def _perplexity(language: LanguageModel, name: str, texts: Sequence[str]) -> list[tuple]:
    rows = [encode_text(language.tokenizer, text, DOCUMENT_TOKENS) for text in texts]
    short = [number for number, row in enumerate(rows) if len(row) < 2]
    if short:
        raise StudyError(
            f"document {short[0]} of {name!r} has fewer than two tokens, so nothing in it can be predicted; leave it out", REFUSED
        )
    total, count = generation.log_likelihoods(language, rows, [1] * len(rows))
    # a document is its own group, named by its hash: no text may enter the stored items
    return [_item(name, text, fingerprint([text]), "nll", -total[i] / count[i], int(count[i])) for i, text in enumerate(texts)]


def _choices(language: LanguageModel, name: str, questions: Sequence[Question]) -> list[tuple]:
    """Right where the right option has the highest log-likelihood a character, given the question (as in common harnesses)."""
    rows, starts, owners = [], [], []
    for number, question in enumerate(questions):
        prompt = encode_text(language.tokenizer, f"Question: {question.prompt}\nAnswer:")
        for option in question.options:
            rows.append(prompt + encode_text(language.tokenizer, " " + option))
            starts.append(len(prompt))
            owners.append((number, len(option)))
    total, _ = generation.log_likelihoods(language, rows, starts)
    scores: dict[int, list[float]] = {}
    for (number, length), value in zip(owners, total, strict=True):
        scores.setdefault(number, []).append(value / length)
    return [
        _item(name, q.prompt + q.options[0], q.group, "accuracy", int(np.argmax(scores[i])) == q.answer, 0)
        for i, q in enumerate(questions)
    ]


def summarize_utility(items: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table `utility`: ROUGE (0..100), perplexity (exp of the mean of documents of equal length), accuracy (0..1)."""
    found = []
    for (name, metric), part in items.groupby(["set", "metric"], sort=True):
        values, groups = part["value"].to_numpy(), part["group"].to_numpy()
        if metric == "accuracy":
            e = intervals.rate_interval(values, groups)
        else:
            e = intervals.mean_interval(values, groups, bounds=(0.0, 100.0))
        numbers = np.exp([e.value, e.low, e.high]) if metric == "nll" else (e.value, e.low, e.high)
        found.append((name, "perplexity" if metric == "nll" else metric, *map(float, numbers), e.n))
    return pd.DataFrame(found, columns=["corpus", "metric", "value", "low", "high", "n"])
