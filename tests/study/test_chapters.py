"""A chapter has three names; the names of registries are read from their modules."""

import importlib

import pytest

from helpers.study import chapters, limits


@pytest.mark.parametrize("chapter", ["01", "first", "01_first"])
def test_a_chapter_has_three_names(chapter):
    assert chapters.find(chapter, ["01_first", "02_second"]) == "01_first"


def test_the_names_read_from_the_source_are_those_of_the_registries():
    for module, registry, _ in [*limits.REGISTRIES.values(), ("models.loading", "MODELS", ())]:
        real = getattr(importlib.import_module(f"helpers.{module}"), registry)
        assert limits.registry_names(module, registry) == list(real)
