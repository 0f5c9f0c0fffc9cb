"""A library imported without the optional ones that it would take along."""

import sys

import pytest

from runtime.absent import absent, empty_classes, hollow


def test_module_cannot_be_imported_inside_and_can_be_afterwards() -> None:
    sys.modules.pop("colorsys", None)
    with absent("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)


def test_module_that_is_loaded_stays() -> None:
    loaded = sys.modules["pathlib"]
    with absent("pathlib"):
        import pathlib
    assert pathlib is loaded


def test_hollow_module_has_what_is_given_inside_and_is_the_real_one_afterwards() -> None:
    sys.modules.pop("colorsys", None)
    with hollow({"colorsys": empty_classes("Palette")}):
        from colorsys import Palette  # type: ignore[attr-defined]

        assert isinstance(Palette, type)
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)


def test_loaded_module_is_not_made_hollow() -> None:
    loaded = sys.modules["pathlib"]
    with hollow({"pathlib": {}}):
        import pathlib
    assert pathlib is loaded
