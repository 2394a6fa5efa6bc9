"""Chat templates: rendered with a clock that stands still, within a time and a length, and refused by file and line.

A template that tells the time would read every text otherwise tomorrow. What it sees as now is a recorded instant, `clock()`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

from helpers.errors import REFUSED, StudyError, shown
from helpers.models.foreign import boundary

INSTANT = "2024-07-26T12:00:00"  # of the day that Llama 3.2 falls back to
TELLS = re.compile(r"\b(?:strftime_now|date_string|datetime)\b")  # what a template asks the clock by
SECONDS = 10.0  # that a template may take for a text, which takes a good one a thousandth
LONGEST = 100_000  # characters that a template may put around a text
MEND = "mend the template, or use another model"

_NOW: ContextVar[str] = ContextVar("instant", default=INSTANT)


class Clock:
    """What a template sees as `datetime`: its now is the recorded instant, whichever way it asks."""

    def now(self, *_: Any) -> datetime:
        """The recorded instant."""
        return datetime.fromisoformat(instant())

    today = utcnow = now

    def strftime(self, form: str) -> str:
        """The recorded instant in a form of strftime."""
        return self.now().strftime(form)

    def __str__(self) -> str:
        return str(self.now())


def instant() -> str:
    """The recorded instant that templates see as now, in ISO 8601 without a zone."""
    return _NOW.get()


@contextmanager
def clock(recorded: str) -> Iterator[None]:
    """Runs the block with this instant as what templates see as now."""
    try:
        plain = datetime.fromisoformat(recorded).replace(tzinfo=None).isoformat(timespec="seconds")
    except (ValueError, TypeError) as error:
        raise StudyError(f"instant {shown(recorded)} is no date and time; write one such as {INSTANT}") from error
    token = _NOW.set(plain)
    try:
        yield
    finally:
        _NOW.reset(token)


def tells_time(template: object) -> bool:
    """Whether a template, or one of several, asks the clock."""
    if isinstance(template, Mapping):
        return any(map(tells_time, template.values()))
    return isinstance(template, str) and bool(TELLS.search(template))


def template_identity(template: object) -> object:
    """What stands for a template in a fingerprint: its source, and the instant where it asks the clock."""
    return {"source": template, "instant": instant()} if tells_time(template) else template


def rendered(tokenizer, turns: Sequence[Mapping[str, str]], opened: bool = True) -> str:
    """The turns in the tokenizer's chat template: the same on any day, and without thinking aloud.

    What the template itself raises comes through; StudyError where it takes too long or writes too much, or is none.
    """
    template = chosen(tokenizer)
    _stop_clock(template)
    told = {"chat_template": template, "date_string": Clock().strftime("%d %b %Y"), "enable_thinking": False}
    late = f"{place(tokenizer)}: the chat template did not end within {SECONDS:g} s; {MEND}"
    with boundary.at_most(SECONDS, late):
        text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=opened, **told)
    around = len(text) - sum(len(turn["content"]) for turn in turns)
    if around > LONGEST:
        raise StudyError(f"{place(tokenizer)}: the chat template writes {around} characters around a text; {MEND}", REFUSED)
    return text


def chosen(tokenizer) -> str:
    """The template that a chat is written with: the only one, or the one called default."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        if not isinstance(template.get("default"), str):
            names = shown(sorted(map(str, template)))
            raise StudyError(
                f"{place(tokenizer)}: its chat templates {names} have no default; give one of them that name", REFUSED
            )
        return template["default"]
    if not isinstance(template, str) or not template.strip():
        raise StudyError(f"{place(tokenizer)}: chat_template is {shown(template)}, no template; {MEND}", REFUSED)
    return template


def _stop_clock(template: str) -> None:
    """Puts the recorded instant in place of the clock in transformers' compiled template, which it keeps and uses next."""
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.environment.globals |= {"strftime_now": Clock().strftime, "datetime": Clock()}


def place(tokenizer) -> str:
    """The folder and file that a tokenizer has its chat template from, as far as it knows."""
    folder = Path(str(getattr(tokenizer, "name_or_path", "") or ""))
    name = next((n for n in ("chat_template.jinja", "chat_template.json") if (folder / n).is_file()), "tokenizer_config.json")
    return f"{folder.name}/{name}" if folder.name else owner(tokenizer)


def owner(tokenizer) -> str:
    """The name of the folder that a tokenizer was read from."""
    return Path(str(getattr(tokenizer, "name_or_path", "") or "")).name or "the model"


def failure(tokenizer, error: Exception, hidden: str = "") -> StudyError:
    """What to say of a template that fails: its file and line, and the reason, unless that holds the `hidden` text."""
    why = boundary.reason(error)
    if hidden.strip() and boundary.one_line(hidden)[:20] in why:
        why = type(error).__name__
    line = _line(error)
    where = f"{place(tokenizer)}{f', line {line}' if line else ''}"
    return StudyError(f"{where}: the chat template fails ({why}); {MEND}", REFUSED)


def _line(error: BaseException) -> int:
    """The line of the template at which it fails; 0 where nobody knows."""
    found, trace = int(getattr(error, "lineno", 0) or 0), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
