"""State dicts of quantized models: the restored model is the saved one, or loading refuses."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError, OctavoError

HOST = octavo.host_target()
RULES = octavo.QConfigMapping
FORMS: dict[str, dict[str, Any]] = {
    "static": {},
    "partly float": {"qconfig": RULES().set_module_name("2", None)},
    "dynamic": {"mode": "dynamic"},
    "weight_only": {"mode": "weight_only"},
    "int4": {"qconfig": octavo.weight_only_qconfig(4, group_size=16)},
    "bfloat16": {"qconfig": RULES().set_module_name("2", torch.bfloat16)},
}
STATIC = ("static", "partly float", "bfloat16")


@functools.cache
def built(form: str, seed: int, scale: float, target: str) -> octavo.QuantizedModel:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 5)
    )
    x = torch.randn(8, 32) * scale
    given = {"calibration": [x]} if form in STATIC else {"example_inputs": x}
    return octavo.quantize(net, progress=False, target=target, **given, **FORMS[form])


def build(
    form: str, seed: int = 0, scale: float = 1.0, target: str = HOST
) -> octavo.QuantizedModel:
    """Of other weights and other ranges for another seed and scale."""
    return copy.deepcopy(built(form, seed, scale, target))


def same(one: octavo.QuantizedModel, other: octavo.QuantizedModel) -> bool:
    """Bit for bit, on both runtimes, and in all that the model says of itself."""
    x = torch.randn(7, 32)
    alike = (one.lower(r)(x).equal(other.lower(r)(x)) for r in ("torch", "reference"))
    return all(alike) and one.plan == other.plan and one.provenance == other.provenance


@pytest.mark.parametrize("form", FORMS)
def test_the_restored_model_is_the_saved_one(form: str) -> None:
    trained, skeleton = build(form), build(form, seed=1, scale=0.02)
    assert not same(trained, skeleton)
    skeleton.load_state_dict(trained.state_dict())
    assert same(trained, skeleton)
    assert skeleton(torch.ones(2, 32)).equal(trained(torch.ones(2, 32)))  # itself, not lowered anew


def test_also_where_it_was_run_before() -> None:
    trained, skeleton = build("static"), build("static", seed=1, scale=0.02)
    x = torch.randn(3, 32)
    before = skeleton(x)
    skeleton.load_state_dict(trained.state_dict())
    assert skeleton(x).equal(trained(x))
    assert not skeleton(x).equal(before)


def through_torch(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    save_file(state, folder / "state.safetensors")
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize("way", [through_torch, through_safetensors])
@pytest.mark.parametrize("assign", [False, True])
def test_through_files(way: Any, assign: bool, tmp_path: Path) -> None:
    trained, skeleton = build("static"), build("static", seed=1, scale=0.02)
    skeleton.load_state_dict(way(trained.state_dict(), tmp_path), assign=assign)
    assert same(trained, skeleton)


def test_as_a_part_of_another_module() -> None:
    trained = nn.Sequential(build("static"), nn.Linear(5, 2))
    skeleton = nn.Sequential(build("static", seed=1, scale=0.02), nn.Linear(5, 2))
    skeleton.load_state_dict(trained.state_dict())
    x = torch.randn(4, 32)
    assert skeleton(x).equal(trained(x))
    head = {name: tensor for name, tensor in trained.state_dict().items() if name[0] == "1"}
    assert skeleton.load_state_dict(head, strict=False).missing_keys  # a part without it: as torch
    assert skeleton(x).equal(trained(x))


@pytest.mark.parametrize(
    ("saved", "here"),
    [
        (("static", "x86-avx2"), ("static", "x86")),
        (("dynamic", "x86"), ("weight_only", "x86")),  # alike in their tensors
    ],
)
def test_of_another_target_or_mode_it_becomes_that_model(saved: Any, here: Any) -> None:
    trained = build(saved[0], target=saved[1])
    skeleton = build(here[0], seed=1, scale=0.02, target=here[1])
    skeleton.load_state_dict(trained.state_dict())
    assert (skeleton.target, skeleton.plan.mode) == (saved[1], saved[0])
    assert same(trained, skeleton)


def float_state() -> dict[str, Tensor]:
    layers = nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 5)
    return nn.Sequential(*layers).state_dict()


def without(*names: str) -> dict[str, Tensor]:
    state = build("static").state_dict()
    return {name: tensor for name, tensor in state.items() if name not in names}


def with_extra(tensor: Tensor) -> dict[str, Tensor]:
    return {**build("static").state_dict(), "_extra_state": tensor}


REFUSED: dict[str, tuple[Any, str]] = {
    "scales are missing": (lambda: without("_extra_state"), "no '_extra_state', which holds the"),
    "a tensor is missing": (lambda: without("2.bias"), "it has no '2.bias': .* whole or not at"),
    "of the float model": (float_state, "no '_extra_state', .* of a float model"),
    "of another mode": (lambda: build("int4").state_dict(), r"'0.weight' is uint8\[.* and int8\["),
    "of another plan": (
        lambda: build("partly float").state_dict(),
        r"'2.weight' is float32\[64, 48\] there and int8\[64, 48\] here; quantize this model as",
    ),
    "other sizes": (
        lambda: {**without(), "4.bias": torch.zeros(6)},
        r"'4.bias' is float32\[6\] there and float32\[5\] here",
    ),
    "other dtype": (lambda: {**without(), "4.bias": torch.zeros(5).half()}, "'4.bias' is float16"),
    "damaged text": (lambda: with_extra(torch.ones(9, dtype=torch.uint8)), "malformed"),
    "no text": (lambda: with_extra(torch.zeros(2, 2)), "not what Octavo writes"),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_changes_nothing(case: str, strict: bool) -> None:
    make, message = REFUSED[case]
    model, untouched = build("static", seed=1), build("static", seed=1)
    with pytest.raises(ArtifactError, match=message):
        model.load_state_dict(make(), strict=strict)
    assert same(model, untouched)


def test_another_model_that_shares_tensors_is_left_as_it_was() -> None:
    model = build("static", seed=1, scale=0.02)
    reference, x = model.lower("reference"), torch.randn(5, 32)
    before = reference(x)
    model.load_state_dict(build("static").state_dict())
    assert reference.lower("reference")(x).equal(before)


def test_layers_may_be_called_like_its_own_attributes() -> None:
    def make(seed: int, scale: float) -> octavo.QuantizedModel:
        torch.manual_seed(seed)
        net = nn.Sequential()
        for name in ("plan", "signature", "provenance"):
            net.add_module(name, nn.Linear(6, 6))
        return octavo.quantize(net, calibration=[torch.randn(8, 6) * scale], target=HOST)

    trained, skeleton, x = make(0, 1.0), make(1, 0.02), torch.randn(3, 6)
    skeleton.load_state_dict(trained.state_dict())
    assert skeleton(x).equal(trained(x))
    assert skeleton.plan == trained.plan


@pytest.mark.parametrize("form", FORMS)
def test_copies_and_pickles_are_the_same_model(form: str) -> None:
    model = build(form)
    assert same(copy.deepcopy(model), model)
    assert same(pickle.loads(pickle.dumps(model)), model)  # noqa: S301
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=False), model)


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
@pytest.mark.parametrize("form", FORMS)
def test_no_dtype_is_changed(form: str, change: Any) -> None:
    model = build(form)
    with pytest.raises(OctavoError, match="cannot change its dtype"):
        change(nn.Sequential(model))
    assert same(model, build(form))


def test_what_is_in_bfloat16_is_not_widened() -> None:
    model = build("bfloat16")
    with pytest.raises(OctavoError, match="cannot change its dtype"):
        model.float()
    assert same(model, build("bfloat16"))
    assert same(build("static").float(), build("static"))  # no change at all
