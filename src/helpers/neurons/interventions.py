"""Lesions: what a model does while some of its neurons are silenced, or speak as another model's do.

Both are causal tests of a ranking of neurons: silencing the ones that carry refusal should end it, and giving a base model the
aligned model's activations of them should bring it. Nothing of a model is changed: hooks act while a block runs, then are gone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from helpers.errors import NOT_COMPARABLE, REFUSED, StudyError
from helpers.models import generation
from helpers.models.loading import LanguageModel, backbone
from helpers.neurons.neuron_scores import at_replies, hooked, shape
from helpers.updates.training import TokenizedRow

Mask = Bool[Tensor, "layer neuron"]


def _fitting(mask: Mask, model: nn.Module) -> Mask:
    """The mask on the model's device; one for another architecture is refused."""
    if tuple(mask.shape) != shape(model):
        raise StudyError(
            f"mask of neurons is {tuple(mask.shape)}, the model has {shape(model)} (layers, neurons); score its own neurons",
            NOT_COMPARABLE,
        )
    return mask.to(next(model.parameters()).device)


@contextmanager
def ablated(model: nn.Module, mask: Mask) -> Iterator[None]:
    """Runs the block with the activations of the chosen neurons set to zero."""
    mask = _fitting(mask, model)
    with hooked(model, lambda layer, active: active.masked_fill(mask[layer], 0)):
        yield


@contextmanager
def patched(base: LanguageModel, aligned: LanguageModel, mask: Mask) -> Iterator[None]:
    """Runs the block with the chosen neurons of `base` giving what those of `aligned` give on the same tokens.

    Dynamic activation patching (Chen et al. 2024, arXiv 2406.14144): before every pass of the base model the aligned one reads
    the same tokens, with keys and values of its own. A base model that goes on from a cache begun elsewhere is refused.
    """
    receiver, donor = backbone(base.model), backbone(aligned.model)
    if receiver is donor:
        raise StudyError("patching needs two models, but base and aligned are one object; load them apart")
    mask = _fitting(_fitting(mask, aligned.model), base.model)
    given: dict[int, Tensor] = {}
    past = None

    def ask(_: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal past
        past = _continued(past, kwargs.get("past_key_values"), donor)
        with hooked(aligned.model, given.__setitem__):
            donor(*args, **{**kwargs, "past_key_values": past})

    asking = receiver.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        with hooked(base.model, lambda layer, active: torch.where(mask[layer], given.pop(layer).to(active), active)):
            yield
    finally:
        asking.remove()


def _continued(past, theirs, donor: nn.Module):
    """The donor's keys and values of the tokens that the receiver's cache holds: its own from before, or new ones for none."""
    from transformers import DynamicCache

    if theirs is None:
        return None
    if theirs.get_seq_length() == 0:
        return DynamicCache(config=donor.config)
    if past is None or past.get_seq_length() != theirs.get_seq_length():
        raise StudyError("the base model goes on from a cache that the aligned model has not seen; start with an empty one")
    return past


def patched_replies(
    base: LanguageModel, aligned: LanguageModel, mask: Mask, prompts: Sequence[str], new_tokens: int = 16, batch: int = 32
) -> list[str]:
    """The greedy replies of the base model while the chosen neurons are patched: batches and padding as for any other reply."""
    with patched(base, aligned, mask):
        return generation.replies(base, prompts, new_tokens=new_tokens, batch=batch, whole=True)


def activation_change(
    language: LanguageModel, reference: LanguageModel, mask: Mask, texts: Sequence[TokenizedRow]
) -> Float[Tensor, " text"]:
    """Of each text, how far the chosen neurons' activations are from the reference model's: ||a - a_ref|| / ||a_ref||.

    The norms are over the chosen neurons and the places that the reply comes from, in float32. One value a text, so that an
    interval can be formed over texts.
    """
    mask = _fitting(_fitting(mask, reference.model), language.model)
    change, size = torch.zeros(2, len(texts), device=mask.device)
    for (owners, ours), (_, theirs) in zip(at_replies(language, texts), at_replies(reference, texts), strict=True):
        change.index_add_(0, owners, _squares(ours.float() - theirs.float(), mask))
        size.index_add_(0, owners, _squares(theirs.float(), mask))
    if not size.all():
        raise StudyError(f"the chosen neurons are silent in text {int(size.argmin())}; choose more neurons", REFUSED)
    return (change / size).sqrt().cpu()


def _squares(states: Float[Tensor, "layer place neuron"], mask: Mask) -> Float[Tensor, " place"]:
    return torch.einsum("lpn,ln->p", states.square(), mask.float())
