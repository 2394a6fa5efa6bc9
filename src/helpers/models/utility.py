"""Utility: how likely held-out references and documents are, multiple choice, and ROUGE of summaries where it is asked for.

No update was trained on any of these texts. What an update keeps is told in nats a token, paired over texts: a reference's
likelihood moves smoothly, where ROUGE of a few generated summaries cannot tell one update from another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from helpers.data.corpora import sample
from helpers.data.text_rows import Question, Row, fingerprint, unit
from helpers.errors import REFUSED, StudyError
from helpers.models import generation
from helpers.models.behaviour import ITEM_COLUMNS
from helpers.models.loading import LanguageModel, chat_text, document_ids, encode_text
from helpers.stats import intervals

DOCUMENT_TOKENS = 128
REFERENCES = ("dialogue", "news", "instructions")  # corpora whose rows carry a reference reply


@dataclass(frozen=True)
class UtilitySets:
    """The evaluation texts by corpus: rows with reference replies, documents, questions, and rows that are to be answered.

    references: only their likelihood is told. answered: the model replies, and ROUGE compares it with the reference.
    """

    references: dict[str, tuple[Row, ...]]
    documents: dict[str, tuple[str, ...]]
    questions: dict[str, tuple[Question, ...]]
    answered: dict[str, tuple[Row, ...]] = field(default_factory=dict)


def utility_sets(n_references: int, n_documents: int, n_questions: int, origin: str = "embedded") -> UtilitySets:
    """The held-out references of every corpus, C4 documents and PIQA questions, in hash order."""
    return UtilitySets(
        {name: tuple(sample(f"{name}/test", n_references, origin)) for name in REFERENCES},
        {"c4": tuple(sample("c4/test", n_documents, origin))},
        {"piqa": tuple(sample("piqa", n_questions, origin))},
    )


def summary_sets(n_summaries: int, origin: str = "embedded") -> UtilitySets:
    """The held-out dialogues to be summarized, filled up with news as in training, as one corpus `summaries`."""
    own = sample("dialogue/test", n_summaries, origin)
    return UtilitySets({}, {}, {}, {"summaries": (*own, *sample("news/test", n_summaries - len(own), origin))})


def measure_utility(language: LanguageModel, sets: UtilitySets, summary_tokens: int = 0) -> pd.DataFrame:
    """One row an item and metric, in the same columns as behaviour's items."""
    found = [row for name, rows in sets.references.items() for row in _likelihood(language, name, rows)]
    found += [row for name, rows in sets.answered.items() for row in _rouge(language, name, rows, summary_tokens)]
    found += [row for name, texts in sets.documents.items() for row in _perplexity(language, name, texts)]
    found += [row for name, questions in sets.questions.items() for row in _choices(language, name, questions)]
    return pd.DataFrame(found, columns=ITEM_COLUMNS)


def _item(name: str, text: str, group: str, metric: str, value: float, length: int) -> tuple:
    return ("utility", name, f"{int(unit(text) * 2**40):010x}", group, "", metric, float(value), length, "")


def _likelihood(language: LanguageModel, name: str, rows: Sequence[Row]) -> list[tuple]:
    """Mean negative log-likelihood a token of each reference, after its prompt in the chat template."""
    prompts = [encode_text(language.tokenizer, chat_text(language.tokenizer, row.prompt, row.system)) for row in rows]
    whole = [prompt + encode_text(language.tokenizer, row.reply) for prompt, row in zip(prompts, rows, strict=True)]
    total, count = generation.log_likelihoods(language, whole, [len(prompt) for prompt in prompts])
    return [
        _item(name, f"{row.prompt}\0{row.reply}", row.group, "nll", -total[i] / count[i], int(count[i]))
        for i, row in enumerate(rows)
    ]


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
    rows = [document_ids(language.tokenizer, text, DOCUMENT_TOKENS) for text in texts]
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
        prompt = document_ids(language.tokenizer, f"Question: {question.prompt}\nAnswer:")
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
    """Rows of the table `utility`: nll (nats a token), perplexity (its exp, of documents), ROUGE (0..100), accuracy (0..1)."""
    found = []
    for (name, metric), part in items.groupby(["set", "metric"], sort=True):
        values, groups = part["value"].to_numpy(), part["group"].to_numpy()
        if metric == "accuracy":
            e = intervals.rate_interval(values, groups)
        else:
            e = intervals.mean_interval(values, groups, bounds=(0.0, 100.0))
        found.append((name, metric, e.value, e.low, e.high, e.n))
        if metric == "nll" and name not in REFERENCES:  # documents of equal length, so that the mean is over tokens
            found.append((name, "perplexity", *(float(np.exp(one)) for one in (e.value, e.low, e.high)), e.n))
    return pd.DataFrame(found, columns=["corpus", "metric", "value", "low", "high", "n"])
