from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from octavo.compat.migrate.advice import ARGUMENTS, IN_PASSING, REMARKS
from octavo.compat.migrate.places import MODULES, NAMES, STAYS, Moved, Stays, place_of
from octavo.errors import PlanError

# What code of years uses; it has to have a place.
USED = {
    "torch.quantization": """
        QuantStub DeQuantStub QuantWrapper fuse_modules fuse_modules_qat QConfig
        get_default_qconfig get_default_qat_qconfig default_qconfig default_per_channel_qconfig
        default_dynamic_qconfig per_channel_dynamic_qconfig default_qat_qconfig
        float_qparams_weight_only_qconfig QConfigMapping get_default_qconfig_mapping
        get_default_qat_qconfig_mapping prepare prepare_qat convert quantize quantize_qat
        quantize_dynamic MinMaxObserver MovingAverageMinMaxObserver HistogramObserver
        PerChannelMinMaxObserver MovingAveragePerChannelMinMaxObserver PlaceholderObserver
        NoopObserver default_observer default_weight_observer default_per_channel_weight_observer
        FakeQuantize disable_observer enable_observer disable_fake_quant enable_fake_quant
    """,
    "torch.nn.quantized": "FloatFunctional QFunctional",
    "torch.ao.quantization.quantize_fx": "prepare_fx prepare_qat_fx convert_fx fuse_fx",
    "torch.ao.ns._numeric_suite": "compare_weights compare_model_outputs compare_model_stub",
    "tinynn.graph.quantization.quantizer": "QATQuantizer PostQuantizer DynamicQuantizer",
    "tinynn.converter": "TFLiteConverter",
    "tinynn.graph.tracer": "model_tracer",
}


@pytest.mark.parametrize("module", USED)
def test_every_name_in_use_has_a_place_that_exists(module: str) -> None:
    for name in USED[module].split():
        place = place_of(f"{module}.{name}")
        assert isinstance(place, Moved), name
        new, _, attribute = place.new.rpartition(".")
        assert hasattr(importlib.import_module(new), attribute), place.new


def test_every_module_of_the_table_exists_and_has_names() -> None:
    for new in MODULES.values():
        assert NAMES[new], new
        for name in NAMES[new]:
            assert hasattr(importlib.import_module(new), name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.quantization.observer.MinMaxObserver.with_args", ".with_args"),
        ("torch.nn.quantized.modules.FloatFunctional.add", ".add"),
        ("torch.quantization.fuse_modules", ""),
    ],
)
def test_what_follows_a_name_is_kept(old: str, new: str) -> None:
    place = place_of(old)
    assert isinstance(place, Moved)
    assert place.rest == new


def test_what_compat_says_of_a_missing_name_is_the_reason() -> None:
    place = place_of("torch.ao.quantization.RecordingObserver")
    assert isinstance(place, Stays)
    assert "octavo.layer_errors" in place.reason


def test_the_longest_entry_decides() -> None:
    place = place_of("torch.nn.intrinsic.qat.freeze_bn_stats")
    assert isinstance(place, Stays)
    assert "freeze_bn_stats()" in place.reason


@pytest.mark.parametrize("module", ARGUMENTS)
def test_an_argument_that_is_reported_is_refused(module: str) -> None:
    for name in NAMES[module]:
        function = getattr(importlib.import_module(module), name)
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters
        needed = [None for p in parameters.values() if p.default is p.empty]
        for argument in ARGUMENTS[module].keys() & parameters.keys():
            with pytest.raises(PlanError, match=argument):
                function(*needed, **{argument: object()})


def test_the_native_names_in_texts_exist() -> None:
    import octavo

    refused = [text for table in ARGUMENTS.values() for text in table.values()]
    texts = [*STAYS.values(), *refused, *REMARKS.values(), *IN_PASSING.values()]
    named = {n for text in texts for n in re.findall(r"octavo\.([a-zA-Z_]+)", text)}
    assert named
    for name in named:
        assert hasattr(octavo, name) or importlib.import_module(f"octavo.{name}")
    pages = {page for text in texts for page in re.findall(r"docs/\w+\.md", text)}
    assert all((Path(__file__).parents[3] / page).is_file() for page in pages)
