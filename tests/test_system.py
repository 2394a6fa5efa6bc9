"""What differs from one operating system to another, and what is said where something cannot be done."""

import subprocess
import sys

import pytest

from helpers import __main__, console
from helpers.errors import StudyError


def test_the_memory_of_children_is_known_and_zero_where_no_record_is_kept(monkeypatch):
    subprocess.run([sys.executable, "-c", "bytearray(40_000_000)"], check=True)
    assert 0.04 < console.peak_gb() < 1000
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert console.peak_gb() == 0


def test_windows_is_told_before_anything_is_loaded_what_cannot_run_there(monkeypatch, capsys):
    console.check_supported("the study")  # the control: here it can
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(StudyError, match=r"the study needs Linux or macOS; on Windows run it in WSL") as caught:
        console.check_supported("the study")
    assert caught.value.code == 14
    assert __main__.main(["study"]) == 14
    assert "revalidate --scores run here" in capsys.readouterr().err


def test_a_missing_package_names_the_extra_and_a_missing_module_of_ours_stays_an_error(monkeypatch, capsys):
    def lacking(name):
        def doctor(options):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return doctor

    monkeypatch.setattr(__main__, "doctor", lacking("peft.utils"))
    assert __main__.main(["doctor"]) == 14
    assert "needs the package peft, which is not installed; install the extra `study`" in capsys.readouterr().err
    monkeypatch.setattr(__main__, "doctor", lacking("helpers.misspelt"))
    with pytest.raises(ModuleNotFoundError, match="misspelt"):
        __main__.main(["doctor"])
