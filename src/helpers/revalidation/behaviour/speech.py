"""Speech: what a model expects of the tokens of ordinary texts, and how far an update moved it. Nats a token throughout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from helpers.errors import REFUSED, StudyError
from helpers.models import loading
from helpers.models.foreign import fetched
from helpers.models.loading import LanguageModel, causal, encode_text
from helpers.revalidation.behaviour.comparison import PairedItems
from helpers.stats.intervals import mean_interval, rate_interval

TEXTS = 32  # on which the next token is predicted
PLACES = 256  # at which whole distributions are kept, over all texts: a few hundred vocabularies of float32


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a model says next in each of a few texts: log-likelihood of the text's own tokens, and the likeliest ones.

    expected: log-probabilities of all next tokens, at places spread evenly over each text.
    """

    totals: Float[np.ndarray, " n"]
    likeliest: tuple[Int[np.ndarray, " tokens"], ...]
    expected: tuple[Float[Tensor, "places vocabulary"], ...]


@torch.no_grad()
def speak(language: LanguageModel, texts: Sequence[str], limit: int) -> Spoken:
    """What the model predicts at every token of the texts but the first; texts of one token are left out."""
    rows = [row for row in (encode_text(language.tokenizer, text, limit) for text in texts) if len(row) > 1]
    inner, totals, likeliest, expected = causal(language.model), np.zeros(len(rows)), [], []
    for i, row in enumerate(rows):
        ids = torch.tensor([row], device=language.device)
        scores = loading.logits(inner, loading.backbone(inner)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1])
        totals[i] = -float(nn.functional.cross_entropy(scores, ids[0, 1:], reduction="sum"))
        likeliest.append(scores.argmax(dim=1).cpu().numpy())
        places = np.linspace(0, len(scores) - 1, max(PLACES // len(rows), 1)).round().astype(int)
        expected.append(scores[np.unique(places)].log_softmax(-1).cpu())
    if not np.isfinite(totals).all():
        cause = fetched.weights_not_finite(language.model)
        why = f"its weight {cause} holds NaN or infinity" if cause else "its weights are finite, so it overflows"
        raise StudyError(
            f"{language.folder.name}: what it says next is NaN or infinite, though the states that monitors read are not: {why}; "
            "mend or leave out that model",
            REFUSED,
        )
    return Spoken(totals, tuple(likeliest), tuple(expected))


def divergence(before: Spoken, after: Spoken) -> Float[np.ndarray, " n"]:
    """Of each text the mean of KL(before || after) over its places, sum p log(p / q); of tokens that both have."""
    found = []
    for old, new in zip(before.expected, after.expected, strict=True):
        shared = min(old.shape[1], new.shape[1])
        p, q = (side[:, :shared].double().log_softmax(-1) for side in (old, new))
        found.append(float((p.exp() * (p - q)).sum(-1).mean().clamp(min=0)))
    return np.array(found)


def items(before: Spoken, after: Spoken) -> list[PairedItems]:
    """Negative log-likelihood and KL, a text each; none where no text has two tokens."""
    counts = np.array([len(row) for row in before.likeliest])
    if not counts.size:
        return []
    moved, texts = divergence(before, after), np.arange(counts.size)
    still = bool((before.totals == after.totals).all() and not moved.any())
    return [
        PairedItems("nll", "", -before.totals / counts, -after.totals / counts, texts, still),
        PairedItems("kl", "", np.zeros(counts.size), moved, texts, still),
    ]


def summary(before: Spoken, after: Spoken) -> dict[str, Any]:
    """How the update changed what the model says of ordinary texts: log-likelihood a token, perplexity, likeliest next token.

    Intervals are over texts. A refusal rate needs prompts that should be refused, which a user's texts need not be.
    """
    counts = np.array([len(row) for row in before.likeliest])
    if not counts.size:
        return {"texts": 0}
    groups = np.repeat(np.arange(counts.size), counts)
    change = mean_interval(np.repeat((after.totals - before.totals) / counts, counts), groups)
    differs = np.concatenate([a != b for a, b in zip(before.likeliest, after.likeliest, strict=True)])
    return {
        "texts": int(counts.size), "tokens": int(counts.sum()), "log_likelihood_change": change,
        "perplexity": {side: float(np.exp(-one.totals.sum() / counts.sum())) for side, one in
                       (("before", before), ("after", after))},
        "next_token_changed": rate_interval(differs, groups),
    }  # fmt: skip
