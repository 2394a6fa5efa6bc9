"""Whether the files of a model were fetched whole: pointers in place of files, shards without the index that names them."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from helpers.errors import REFUSED, StudyError, shown

POINTER, SHORT = b"version https://git-lfs", 1024  # how a pointer of Git LFS begins, and bytes that none exceeds
OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".gguf")
ADAPTER = "adapter_model.safetensors"


def check_pointers(folder: Path) -> None:
    """Raises StudyError where a file is a pointer of Git LFS, which was cloned without what it points to."""
    for path in sorted(folder.iterdir()):
        if path.suffix in OF_A_MODEL and path.is_file() and path.stat().st_size < SHORT:
            with path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    raise StudyError(
                        f"{folder.name}/{path.name} is a pointer of Git LFS, not the file itself; run git lfs pull there, or "
                        "fetch the model again",
                        REFUSED,
                    )


def check_indexed(folder: Path, loaded: Sequence[Path]) -> None:
    """Raises StudyError where safetensors lie in a folder of which transformers would load none."""
    lying = sorted(path.name for path in folder.glob("*.safetensors"))
    if loaded or not lying:
        return
    what = ", ".join(lying[:3]) + (", …" if len(lying) > 3 else "")
    if lying == [ADAPTER]:
        how = "that is an adapter; give its base model's folder as a base, and this one as an update with adapter_config.json"
    elif len(lying) == 1:
        how = "rename it to model.safetensors if it is the whole model"
    else:
        how = "fetch the index too, or save the model again with save_pretrained"
    raise StudyError(
        f"{folder.name} holds {what}, but neither model.safetensors nor model.safetensors.index.json; {how}", REFUSED
    )


def instead_of(path: Path) -> str:
    """What to do with a file that was given in place of a model's folder; "" where it is none."""
    if not path.is_file():
        return ""
    what = f"{path.name} is a file, no folder"
    if path.suffix == ".gguf":
        how = f"AutoModelForCausalLM.from_pretrained({shown(path.parent.name)}, gguf_file={shown(path.name)}, dtype='bfloat16')"
        return f"{what}; convert it once: {how}.save_pretrained(...), its tokenizer likewise, and give that folder"
    if path.suffix in {".safetensors", ".json"}:
        return f"{what}; give the folder in which it lies, with config.json and the tokenizer"
    if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}:
        return f"{what}, and a pickle, which can run code; convert it with save_pretrained on a machine you can spare"
    return f"{what}; give the folder of a transformers model"


def models_below(folder: Path) -> str:
    """What to say of a folder that is no model but holds some: their names, the newest of them last; "" where it holds none."""
    found = [path for path in folder.iterdir() if path.is_dir() and any(
        (path / name).is_file() for name in ("adapter_config.json", "config.json"))]  # fmt: skip
    if not found:
        return ""
    newest = max(found, key=lambda path: path.stat().st_mtime)
    names = ", ".join(sorted(path.name for path in found)[:5])
    return f"it holds {len(found)} folder(s) that have one ({names}); give one of them, such as {folder.name}/{newest.name}"


def weights_not_finite(model: nn.Module) -> str:
    """The name of the first parameter that holds NaN or infinity; "" where none does."""
    return next((name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()), "")
