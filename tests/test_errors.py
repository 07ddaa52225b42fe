"""Errors about packages: what is missing, and what is there and cannot be imported."""

from __future__ import annotations

import pytest

from octavo.errors import MissingExtra, OctavoError, optional_import


def _imported(error: Exception) -> OctavoError:
    """What comes of an import that raises this."""
    with (
        pytest.raises(OctavoError) as caught,
        optional_import("transformers", "transformers", "read its models"),
    ):
        raise error
    return caught.value


def test_a_package_that_is_missing() -> None:
    error = _imported(ModuleNotFoundError("No module named 'transformers'"))
    assert isinstance(error, MissingExtra)
    assert 'pip install "octavo[transformers]"' in str(error)


def test_a_package_whose_import_fails_for_another_reason() -> None:
    error = _imported(RuntimeError("operator torchvision::nms does not exist\nmore"))
    assert not isinstance(error, MissingExtra)
    assert "its import fails: RuntimeError: operator torchvision::nms does not exist." in str(error)


def test_an_error_of_ours_is_told_as_it_is() -> None:
    ours = OctavoError("there is no such file")
    assert _imported(ours) is ours
