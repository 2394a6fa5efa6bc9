"""What code a chapter reaches, and what of it counts: code, and not prose."""

import nbformat

from helpers.study import fingerprints


def test_prose_does_not_age_results_and_code_does(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path)

    def bare(text: str) -> str:
        (tmp_path / "thing.py").write_text(text)
        fingerprints._module.cache_clear()
        return fingerprints._module("thing")[0]

    first = bare('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert bare("def f(x):\n    # why\n    return x + 1\n") == first
    assert bare("def f(x):\n    return x + 2\n") != first
    fingerprints._module.cache_clear()


def test_imports_are_followed():
    assert fingerprints.imported_helpers(["from helpers.study import parameters\n%matplotlib inline"]) == [
        "errors",
        "study.limits",
        "study.parameters",
    ]
    assert {"runner.guards", "study.chapters", "study.parameters", "errors"} <= set(
        fingerprints.imported_helpers(["import helpers.runner.guards"])
    )
    assert fingerprints.imported_helpers(["import os"]) == []


def test_a_parameter_counts_by_its_value_and_not_by_the_cell_that_holds_its_default(tmp_path):
    def marked(cell: str, code: str, **values: int) -> str:
        cells = [nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_first.ipynb")
        return fingerprints.fingerprint(tmp_path / "01_first.ipynb", values)

    first = marked("threads = 2  # old words", "print(threads)", threads=1)
    assert marked("threads = 1  # new words", "print(threads)", threads=1) == first
    assert marked("threads = 1  # new words", "print(threads)", threads=2) != first
    assert marked("threads = 1  # new words", "print(threads + 1)", threads=1) != first
