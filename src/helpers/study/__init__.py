"""The study: its chapters and parameters, and what it claims.

- `parameters`, `limits`: parameters of notebooks and profiles, checked, and what each may be
- `chapters`, `fingerprints`, `statuses`: which chapter needs which; what decides what it writes; whether that still holds
- `session`: a run opened in Python, which `helpers.study.open` gives
- `claims`: `CLAIMS`, one entry a claim; `evidence`: what each rests on, made of `selections` and `paired_items`
- `findings`: the verdicts over seeds; `reasons`: why one is open, and what it would take

May import: the science (for the names in its registries) and the root files; nothing that runs or draws. A new claim is one
entry in `claims.CLAIMS` and its evidence.
"""

from typing import TYPE_CHECKING

from helpers import opener

if TYPE_CHECKING:
    from helpers.study.session import Session

__getattr__ = opener(__name__)


def open(profile: str = "quick", model: str = "embedded", seed: int = 0, threads: int = 0) -> "Session":
    """The run of that profile, model and seed, finished or not; with `threads`, torch's threads and all seeds are set."""
    from helpers.study.session import open_session

    return open_session(profile, model, seed, threads)
