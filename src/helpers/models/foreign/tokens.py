"""Tokenizers of other people: loaded and tried on a text, or refused by file and field."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from helpers.errors import REFUSED, StudyError, shown
from helpers.models.foreign.boundary import foreign
from helpers.models.foreign.culprit import field_at_fault

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEXT = "Text, 1 ü \n end"
AGAIN = "save the tokenizer again with the transformers that is installed here, or fetch the whole model again"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder as transformers reads it, after it has read a text and told its places."""
    what = f"{folder.name}: its tokenizer cannot be loaded"
    with foreign(what, AGAIN, partial(_culprit, folder)):
        return _tried(folder)


def _culprit(folder: Path, message: str) -> str:
    """The file and field at fault; the file alone where no field by itself is."""
    from tokenizers import Tokenizer

    named = field_at_fault(folder, FILES, _tried, message)
    if not named and (folder / FILES[0]).is_file():
        with suppress(Exception):
            Tokenizer.from_file(str(folder / FILES[0]))
            return ""
        return f"{folder.name}/{FILES[0]} cannot be read"
    return named


def _tried(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    found = tokenizer(TEXT, add_special_tokens=False, return_offsets_mapping=True)
    tokenizer("", add_special_tokens=True)
    tokenizer.decode(found["input_ids"], skip_special_tokens=True)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        getattr(tokenizer, name)
    return tokenizer


def check_largest(who: str, tokenizer: Any, ids: int, rows: int) -> None:
    """Raises StudyError where the largest token id is beyond the rows of the model's embedding table."""
    if ids >= rows:
        try:
            token = shown(tokenizer.convert_ids_to_tokens(ids))
        except Exception:  # what it is called is only for the message
            token = "a token"
        raise StudyError(
            f"{who}: {token} of its tokenizer has id {ids}, but the model's embedding has {rows} rows; take that token out of "
            "the tokenizer and the chat template, or save the model after resize_token_embeddings",
            REFUSED,
        )
