"""After the Update: the library under the book, in wings. A wing imports only from wings before it in `WINGS` and from the root
files; inside a wing no two files import each other. Each wing says on its first page what it is for."""

import logging
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
WINGS = (
    *("stats", "data", "models", "updates", "monitors", "staleness", "projection", "neurons"),
    *("study", "runner", "figures", "revalidation", "book"),
)


def opener(wing: str) -> Callable[[str], ModuleType]:
    """The `__getattr__` of a wing: `wing.module` imports the module when it is first asked for, and nothing before."""

    def get(name: str) -> ModuleType:
        try:
            return import_module(f"{wing}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{wing}.{name}":
                raise
            raise AttributeError(f"{wing} has no module {name!r}") from None

    return get


# Said by the libraries on every import or call, and of no use to a reader of a chapter.
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
logging.getLogger("bitsandbytes").addFilter(lambda record: "gemm_4bit_forward" not in record.getMessage())
