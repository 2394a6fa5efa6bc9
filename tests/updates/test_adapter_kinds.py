"""Every start and every field that PEFT has: what is accepted gives PEFT's own logits, the rest is refused by name."""

import inspect
import json
import re
import typing
import warnings
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer

from helpers.errors import REFUSED, StudyError
from helpers.models import loading
from helpers.updates import lora

pytestmark = pytest.mark.filterwarnings("ignore")


def starts() -> list[str]:
    """The names of PEFT's starts: those of its type, and those that its layers have a method for."""
    union = typing.get_type_hints(LoraConfig)["init_lora_weights"]
    told = {name for part in typing.get_args(union) for name in typing.get_args(part) if isinstance(name, str)}
    made = {name.removesuffix("_init") for name, _ in inspect.getmembers(LoraLayer) if name.endswith("_init")}
    return sorted({re.sub(r"\[.*\]", "4", name) for name in told | made})


IDS = torch.arange(3, 43)[None]
PLAIN = {
    "plain": {}, "rslora": {"use_rslora": True}, "dropout": {"lora_dropout": 0.3}, "no start": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"}, "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}},
    "some layers": {"layers_to_transform": [1, 2]}, "but one": {"exclude_modules": r".*layers\.0\.mlp.*"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """Saves what PEFT makes of a config on the tiny model, its factors drawn at random, and gives the folder."""

    def make(name, **config):
        torch.manual_seed(0)
        asked = LoraConfig(
            **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **config}
        )
        model = get_peft_model(loading.load(tiny, "fp32").model, asked)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_" in key:
                    p.add_(0.05 * torch.randn_like(p))
        folder = tmp_path_factory.mktemp("adapters") / name.replace(" ", "-")
        model.save_pretrained(folder)
        return folder

    return make


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits.float()


def theirs(tiny, folder):
    """The logits of the adapter as PEFT loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(PeftModel.from_pretrained(loading.load(tiny, "fp32").model, folder))


def ours(tiny, folder):
    return logits(lora.attach(loading.load(tiny, "fp32").model, lora.load_adapter(folder)))


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_accepted_gives_the_logits_of_peft(saved, tiny, name):
    folder = saved(name, **PLAIN[name])
    expected, plain = theirs(tiny, folder), logits(loading.load(tiny, "fp32").model)
    assert (ours(tiny, folder) - expected).norm() < 1e-3 * (expected - plain).norm()


@pytest.mark.parametrize("start", starts())
def test_every_start_of_peft_is_refused_or_gives_its_logits(saved, tiny, start):
    """A new release of PEFT with a start that is not known here fails as a member of this list."""
    assert start in lora.PLAIN_STARTS or start.startswith(lora.OTHER_BASE), f"say of {start!r} whether it changes the base"
    folder = saved(start)
    edit(folder, init_lora_weights=start)
    if start.startswith(lora.OTHER_BASE):
        with pytest.raises(
            StudyError, match=f"init_lora_weights='{start}', which changes the base weights; convert it"
        ) as caught:
            lora.load_adapter(folder)
        assert caught.value.code == REFUSED
        return
    expected, plain = theirs(tiny, folder), logits(loading.load(tiny, "fp32").model)
    assert (ours(tiny, folder) - expected).norm() < 1e-3 * (expected - plain).norm()


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_is_refused_is_another_model_on_the_plain_base(saved, tiny, start):
    """The control: without the refusal the weights would be wrong by a large part of the whole update."""
    folder = saved(start, init_lora_weights=start)
    expected, plain = theirs(tiny, folder), logits(loading.load(tiny, "fp32").model)
    edit(folder, init_lora_weights=True)
    assert (ours(tiny, folder) - expected).norm() > 0.1 * (expected - plain).norm()


@pytest.mark.parametrize("field", [field.name for field in fields(LoraConfig)])
def test_every_field_of_peft_is_known_here(field):
    assert field in (*lora.READ, *lora.SAID, *lora.NOT_PLAIN), f"say of {field!r} what it does to an adapter that is loaded"


def test_no_field_is_known_twice():
    known = (*lora.READ, *lora.SAID, *lora.NOT_PLAIN)
    assert len(known) == len(set(known))


@pytest.mark.parametrize(
    "change", [{"gate_scale": 4.0}, {"use_new_scaling": True}, {"lora_beta": 0}, {"init_lora_weights": "later"}]
)
def test_what_is_not_known_is_refused_by_name(saved, change):
    folder = saved("unknown")
    edit(folder, **change)
    with pytest.raises(StudyError, match=next(iter(change))) as caught:
        lora.load_adapter(folder)
    assert caught.value.code == REFUSED
    assert "merge it first" in str(caught.value)
    edit(folder, **dict.fromkeys(change))  # null says nothing
    assert lora.load_adapter(folder)
