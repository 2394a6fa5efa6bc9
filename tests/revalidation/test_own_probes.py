"""The path of the page for somebody with scikit-learn's probes on a Qwen model: its own lines, run on a tiny one."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from support import families, given

from helpers import __main__
from helpers.data.splits import Example
from helpers.models import activations, encoding, loading
from helpers.monitors.exchange import direction_folders
from helpers.monitors.exchange.plain_texts import as_read
from helpers.monitors.readouts import Pooled
from helpers.revalidation import error_rates, observe

PAGE = (Path(__file__).parents[2] / "book" / "revalidate.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Probes from scikit-learn, on a Qwen model")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which the page's names stand for a tiny random Qwen, an adapter and bland texts."""
    families.write("qwen2", tmp_path / "models" / "qwen")
    sizes = families.SIZES["hidden_size"], families.SIZES["intermediate_size"]
    given.adapter(tmp_path / "models" / "candidate", 0.5, d_out=sizes[0], d_in=sizes[1])
    given.write(tmp_path / "fit.jsonl", given.labelled(160, "fit"))
    given.write(tmp_path / "checked.jsonl", given.labelled(120, "checked"))
    given.write(tmp_path / "traffic.jsonl", given.unlabelled(60))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_leads_from_hidden_states_to_an_answer(place, monkeypatch):
    """Scores are scikit-learn's own on the states that the page reads, and the gate reads the same ones."""
    monkeypatch.setattr(error_rates, "DRAWS", 20)
    monkeypatch.setattr(error_rates, "LEAST", 20)
    assert [kind for kind, _ in BLOCKS] == ["python", "python", "bash"]
    names: dict = {}
    for _, lines in BLOCKS[:2]:
        exec(lines, names)  # the lines of the project's own page
    probe, state = names["probe"], names["state"]
    texts = [json.loads(line)["text"] for line in Path("checked.jsonl").read_text().splitlines()]
    wanted = probe.decision_function(np.array([state(text) for text in texts]))
    language = loading.load(loading.base_folder("models/qwen"))
    base = direction_folders.BaseModel("qwen", language.width, language.depth, "with", "without")
    (monitor,), _ = direction_folders.load_directions(Path("probes"), base)
    examples = tuple(Example(observe.TASK, "", 0, "", text) for text in texts)
    reader = loading.LanguageModel(language.model, as_read(language.tokenizer, template=False), language.folder)
    pooled = activations.read(reader, encoding.Plan(examples, (monitor.layer / language.depth,), 64)).pooled
    found = monitor.score(Pooled(pooled[f"mean/{monitor.layer}"]))
    assert np.corrcoef(found, wanted)[0, 1] > 0.995  # in bf16 a text's states move with its batch
    assert np.abs(found - wanted).max() < 0.2 * wanted.std()

    words = shlex.split(BLOCKS[2][1].replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "helpers"]
    code = __main__.main(words[3:])
    report = json.loads(Path("revalidation/report.json").read_text())
    assert code == report["code"] in {0, 10, 11}
    (line,) = report["monitors"]
    assert line["name"] == f"dates/logistic-mean/{monitor.layer}"
    labels, flags = np.arange(120) % 2, wanted > names["cut"]
    before = {test["measure"].split("_")[0]: test["before"] for test in line["tests"]}
    assert before["tpr"] == pytest.approx(flags[labels == 1].mean(), abs=0.05)
    assert before["fpr"] == pytest.approx(flags[labels == 0].mean(), abs=0.05)
