"""Tiny random models of other families: what a chat model of somebody else may look like, made offline in a second.

Each has the shapes of its family (biases, double norms, windows, an untied head), a tokenizer of its own and its own chat
template, one of which refuses a system message.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 448,
}
WORDS = "polish the lamp and carry it across the river in the rain please name three colours of a lantern"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a tiny model.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MARKS = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A kind of model by its class in transformers, what its configuration says besides SIZES, and how it is spoken to."""

    model: str
    changes: dict[str, Any]
    template: str
    special: tuple[str, ...]
    eos: str
    ends: str  # the token that ends a turn
    bos: str | None = None
    trained: bool = False  # its tokenizer has merges, learned from a few words


QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
FAMILIES: dict[str, Family] = {
    "qwen2": Family("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": False}, CHATML, QWEN, "<|im_end|>", "<|im_end|>"),
    "qwen3": Family(
        "Qwen3", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}, CHATML, QWEN, "<|im_end|>", "<|im_end|>"
    ),
    "gemma3": Family(
        "Gemma3",
        {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 32,
         "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
        TURNS, GEMMA, "<eos>", "<end_of_turn>", "<bos>",
    ),
    "olmo2": Family(
        "Olmo2", {"num_key_value_heads": 4, "tie_word_embeddings": False}, MARKS,
        PLAIN, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", trained=True,
    ),
    "gpt-neox": Family(
        "GPTNeoX", {"rotary_pct": 0.25, "tie_word_embeddings": False}, MARKS,
        PLAIN, "<|endoftext|>", "<|endoftext|>", trained=True,
    ),
}  # fmt: skip


def tokenizer(family: Family):
    """A byte-level tokenizer with the family's special tokens and template; `trained` ones have merges of a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: i for i, token in enumerate([*family.special, *sorted(alphabet)])}
    found = Tokenizer(models.BPE() if family.trained else models.BPE(vocab=vocabulary, merges=[]))
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if family.trained:
        learn = trainers.BpeTrainer(vocab_size=320, special_tokens=list(family.special), initial_alphabet=sorted(alphabet))
        found.train_from_iterator([WORDS] * 4, learn)
    found.add_special_tokens(list(family.special))
    options = {"bos_token": family.bos} if family.bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=found, eos_token=family.eos, pad_token=family.special[0], **options)
    fast.chat_template = family.template
    return fast


def write(name: str, folder: Path) -> Path:
    """The folder, holding a random model of that family and its tokenizer."""
    import transformers

    family, own = FAMILIES[name], tokenizer(FAMILIES[name])
    tokens = {"eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id, "bos_token_id": own.bos_token_id}
    kind = "TextConfig" if family.model == "Gemma3" else "Config"
    config = getattr(transformers, f"{family.model}{kind}")(**{**SIZES, **tokens, **family.changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family.model}ForCausalLM")(config)
        for parameter in model.parameters():  # biases and norms at their start would hide that they are forgotten
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder
