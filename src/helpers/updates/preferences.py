"""Preference tuning (DPO): of two replies to a prompt, the chosen one is made likelier against the rejected one.

Rafailov et al. (2023), arXiv 2305.18290. With pi the model under training and ref the model before it,

    loss = -log sigmoid(beta ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r))))

over pairs of a chosen reply c and a rejected reply r, each log-likelihood a sum over the reply's tokens. The adapter is all
that is trained, so that the reference is the same model with its adapter switched off: no second model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.data.text_rows import Row
from helpers.errors import REFUSED, StudyError
from helpers.models.loading import LanguageModel, backbone, causal, logits, pad
from helpers.updates import training
from helpers.updates.training import IGNORE, Recipe, TokenizedRow, Tuned

KIND = "dpo"


@dataclass(frozen=True)
class TokenizedPair:
    """Both replies to one prompt as token ids, each after the prompt."""

    chosen: TokenizedRow
    rejected: TokenizedRow

    @property
    def ids(self) -> tuple[int, ...]:
        return self.chosen.ids + self.rejected.ids

    @property
    def cut(self) -> bool:
        return self.chosen.cut or self.rejected.cut


def pairs(tokenizer, rows: Sequence[Row], limit: int) -> list[TokenizedPair]:
    """The rows as pairs of token ids. Errors: a row that has no rejected reply."""
    rejected = [getattr(row, "rejected", "") for row in rows]
    if not all(rejected):
        raise StudyError(
            f"row {rejected.index('') + 1} has no rejected reply, and dpo learns from pairs; use a mix of pairs", REFUSED
        )
    other = [replace(row, reply=reply) for row, reply in zip(rows, rejected, strict=True)]
    both = (training.examples(tokenizer, part, limit) for part in (rows, other))
    return [TokenizedPair(*pair) for pair in zip(*both, strict=True)]


def reply_log_likelihoods(model: nn.Module, rows: Sequence[TokenizedRow], fill: int, device: torch.device) -> Float[Tensor, " n"]:
    """Sum of the log-probabilities of each row's reply tokens; the head runs at those positions only."""
    ids = pad([row.ids for row in rows], fill).to(device)
    labels = pad([[IGNORE] * row.start + list(row.ids[row.start :]) for row in rows], IGNORE).to(device)[:, 1:]
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    owner, place = (labels != IGNORE).nonzero(as_tuple=True)
    lost = nn.functional.cross_entropy(logits(causal(model), hidden[owner, place]), labels[owner, place], reduction="none")
    return torch.zeros(len(rows), dtype=lost.dtype, device=device).index_add(0, owner, -lost)


def preference_loss(
    model: nn.Module, batch: Sequence[TokenizedPair], fill: int, device: torch.device, beta: float = 0.1
) -> Tensor:
    """The mean loss over the pairs; log 2 as long as the adapter changes nothing."""
    rows = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
    with torch.no_grad(), model.disable_adapter():
        before = reply_log_likelihoods(model, rows, fill, device)
    gain = reply_log_likelihoods(model, rows, fill, device) - before
    return -nn.functional.logsigmoid(beta * (gain[: len(batch)] - gain[len(batch) :])).mean()


def _opened(language: LanguageModel, recipe: Recipe, data: Sequence[Any]) -> nn.Module:
    return training.trainable(language, replace(recipe, kind="lora"))


def tune_preferences(language: LanguageModel, rows: Sequence[Row], recipe: Recipe, **options) -> Tuned:
    """The factors that preference tuning on `rows` of chosen and rejected replies gives; otherwise as `training.tune`."""
    data = pairs(language.tokenizer, rows, recipe.limit)
    return training.tune(
        language, rows, recipe, prepare=_opened, data=data, loss=partial(preference_loss, beta=recipe.beta), **options
    )
