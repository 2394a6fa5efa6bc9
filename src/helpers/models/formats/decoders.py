"""Decoders: blocks, residual stream and head of any causal language model, found by structure; no family is asked for by name.

What a family of transformers has of its own is read from the model: where its decoder lies (a model that also sees images holds
one beside its vision tower), which list of modules has as many members as it has layers, and what its head does to a product.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.errors import REFUSED, StudyError

# What a family multiplies its logits by, by the field that says so: Granite; Cohere; Falcon-H1
SCALES: dict[str, Callable[[float], float]] = {
    "logits_scaling": lambda value: 1 / value,
    "logit_scale": float,
    "lm_head_multiplier": float,
}


def causal(model: nn.Module) -> Any:
    """The transformers model itself, also where PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: nn.Module) -> Any:
    """The configuration of the decoder: a model that also sees images keeps it within its own."""
    config = causal(model).config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def backbone(model: nn.Module) -> nn.Module:
    """The network below the head, whatever its family calls it."""
    inner = causal(model)
    prefix = getattr(inner, "base_model_prefix", "")
    return getattr(inner, prefix if prefix and hasattr(inner, prefix) else "model")  # Llama 4 says language_model and has none


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the decoder in order: its outermost list of as many modules as it has layers; empty where it has none."""
    inner, depth = causal(model), text_config(model).num_hidden_layers
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else backbone(model)
    lists = [(name.count("."), part) for name, part in decoder.named_modules()
             if isinstance(part, nn.ModuleList) and len(part) == depth]  # fmt: skip
    return list(min(lists, key=lambda pair: pair[0])[1]) if lists else []


def logits(model: nn.Module, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocabulary"]:
    """Logits of final hidden states in float32, scaled (Granite, Cohere) and soft-capped (Gemma 2) where the family does so."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else model.lm_head
    config = text_config(model)
    scores, cap = head(hidden).float(), getattr(config, "final_logit_softcapping", None)
    for field, scale in SCALES.items():
        if getattr(config, field, None):
            scores = scores * scale(getattr(config, field))
    return cap * torch.tanh(scores / cap) if cap else scores


# ---------------------------------------------------------------- what is not read


@torch.no_grad()
def check_built(name: str, model: nn.Module, linear: bool) -> None:
    """Raises StudyError where the model of that name is built in a way that would be read wrongly.

    Its blocks must be found, and its head be a product, a scale and a soft cap: both are tried, on two tokens. With `linear` its
    blocks must also hold no matrices but those of linear modules, as wings need that change a model module by module.
    """
    inside = blocks(model)
    why = "" if inside else "its blocks are not found"
    if inside and linear and (other := other_matrices(model)):
        why = f"its blocks hold {type(model.get_submodule(other[0].rpartition('.')[0])).__name__}, no linear module"
    if not why and not _head_is_plain(model):
        why = "its head is more than a product, a scale and a soft cap"
    if why:
        kind = f"model type {causal(model).config.model_type!r} is built in another way than this study reads models"
        raise StudyError(f"{name}: {kind} ({why}); use another model", REFUSED)


def other_matrices(model: nn.Module) -> list[str]:
    """The names of parameters of the blocks with two or more axes that are no linear module's: experts in one tensor, Conv1D."""
    linear = {id(p) for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    inside = {id(p) for block in blocks(model) for p in block.parameters()}
    return [name for name, p in model.named_parameters() if p.ndim > 1 and id(p) in inside and id(p) not in linear]


def _head_is_plain(model: nn.Module) -> bool:
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    hidden = backbone(model)(input_ids=ids).last_hidden_state[0]
    wanted = causal(model)(input_ids=ids).logits[0].float()
    return float((logits(causal(model), hidden) - wanted).norm()) <= 0.05 * float(wanted.norm())
