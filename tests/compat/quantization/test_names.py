"""The names of torch.ao.quantization: here, or an error that says what to do instead."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch.ao.quantization as theirs

import octavo
import octavo.compat.quantization as ours


def test_every_name_is_shared_or_explained() -> None:
    unexplained = []
    own = [name for name in vars(theirs) if "qconfig" in name.lower() or name.isupper()]
    modules = {name for name in own if isinstance(getattr(theirs, name), ModuleType)}
    for name in sorted({*theirs.__all__, *own} - modules):
        try:
            getattr(ours, name)
        except octavo.OctavoError as error:
            unexplained += [] if f"has no {name}: " in str(error) else [name]
        except AttributeError:
            unexplained.append(name)
    assert unexplained == []


def test_all_names_exist() -> None:
    assert [name for name in ours.__all__ if not hasattr(ours, name)] == []
    assert len(set(ours.__all__)) == len(ours.__all__)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("observer", "MinMaxObserver HistogramObserver default_observer"),
        ("fake_quantize", "FakeQuantize default_fake_quant disable_observer"),
        ("qconfig", "QConfig default_dynamic_qconfig get_default_qconfig QConfigAny"),
        ("qconfig_mapping", "QConfigMapping get_default_qconfig_mapping"),
        ("quantize", "prepare convert quantize_dynamic"),
        ("quantize_fx", "prepare_fx convert_fx prepare_qat_fx fuse_fx"),
        ("stubs", "QuantStub DeQuantStub QuantWrapper"),
        ("fuse_modules", "fuse_modules fuse_modules_qat"),
        ("_numeric_suite", "compare_weights compare_model_outputs compare_model_stub"),
    ],
)
def test_the_old_spellings_can_be_imported(module: str, names: str) -> None:
    found = importlib.import_module(f"octavo.compat.quantization.{module}")
    assert all(hasattr(found, name) for name in names.split())


def test_an_import_of_what_is_not_shared_says_so() -> None:
    with pytest.raises(octavo.OctavoError, match=r"octavo\.layer_errors"):
        from octavo.compat.quantization import RecordingObserver  # noqa: F401
    with pytest.raises(octavo.OctavoError, match="do their own logging"):
        from octavo.compat.numeric_suite import OutputLogger  # noqa: F401
    with pytest.raises(octavo.OctavoError, match="is the oracle"):
        from octavo.compat.quantize_fx import convert_to_reference_fx  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        ours.nonsense  # noqa: B018
