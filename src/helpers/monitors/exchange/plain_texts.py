"""Plain texts: what a probe reads that was fitted on texts as they stand, without the model's chat template."""

from copy import deepcopy
from typing import Any


def without_template(tokenizer: Any) -> Any:
    """A copy of the tokenizer whose chat template is the text itself, behind the token that opens a sequence where it has one."""
    opens = tokenizer("", add_special_tokens=True)["input_ids"][:1] == [tokenizer.bos_token_id]
    plain = deepcopy(tokenizer)
    plain.chat_template = ("{{ bos_token }}" if opens else "") + "{{ messages[0]['content'] }}"
    return plain


def as_read(tokenizer: Any, template: bool) -> Any:
    """The tokenizer with which monitors read: as it is, or without its template."""
    return tokenizer if template else without_template(tokenizer)
