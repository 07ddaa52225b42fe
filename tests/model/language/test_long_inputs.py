"""`round_long_inputs`: what rounded rows cost, and which calls they are in."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from language_models import language_model
from torch import Tensor, nn

import octavo
from octavo.errors import InputError
from octavo.model.language.long_inputs import round_long_inputs
from octavo.model.nn import Linear
from octavo.numerics.native import library

pytestmark = pytest.mark.skipif(bool(library.obstacle()), reason="needs the native kernels")

FORMS = {
    "int8": octavo.weight_only_qconfig(),
    "int4, groups of 32": octavo.weight_only_qconfig(4, group_size=32),
    "int4, affine": octavo.weight_only_qconfig(4, group_size=64, symmetric=False),
}


def layer(form: str, columns: int = 192, rows: int = 100) -> Linear:
    torch.manual_seed(0)
    return Linear.from_float(nn.Linear(columns, rows).eval(), FORMS[form])


def sqnr_db(exact: Tensor, found: Tensor) -> float:
    return float(20 * torch.log10(exact.double().norm() / (exact.double() - found).norm()))


def rounded_by_rows(x: Tensor) -> Tensor:
    """Each row to 256 steps of its range, in float64."""
    low, high = x.double().clamp(max=0).amin(1, True), x.double().clamp(min=0).amax(1, True)
    step = (high - low) / 255
    zero = (-low / step).round()
    return ((x.double() / step).round() + zero).clamp(0, 255).sub(zero) * step


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_rows_are_rounded_by_their_own_ranges(form: str) -> None:
    own, x = layer(form), torch.randn(40, 192) * torch.logspace(-3, 3, 40)[:, None]
    weight, bias = own.weight.double(), own.own_tensors()["bias"].double()
    assert round_long_inputs(own) == 1
    expected = rounded_by_rows(x) @ weight.T
    # Each row by itself: a large one would hide the errors of the others.
    worst = min(sqnr_db(e, y) for e, y in zip(expected, own(x).double() - bias, strict=True))
    assert worst > (80 if form == "int8" else 38)


@torch.no_grad()
def test_calls_of_fewer_rows_stay_as_they_were() -> None:
    own = layer("int4, groups of 32")
    plain, x = copy.deepcopy(own), torch.randn(2, 16, 192)
    round_long_inputs(own, rows=33)
    assert torch.equal(own(x), plain(x))
    round_long_inputs(own, rows=32)  # in both texts together
    assert not torch.equal(own(x), plain(x))


@torch.no_grad()
def test_a_row_that_is_not_finite_is_what_the_float_layer_makes_of_it() -> None:
    own, x = layer("int8"), torch.randn(40, 192)
    x[3, 5] = math.inf
    exact = own(x)
    round_long_inputs(own)
    result = own(x)
    assert not result[3].isfinite().any()
    assert sqnr_db(exact[4:], result[4:]) > 38


@torch.no_grad()
def test_prompts_of_a_model_are_near_and_steps_the_same() -> None:
    q = octavo.quantize(language_model("llama"), mode="weight_only", scope="modules")
    ids = torch.randint(3, 60, (1, 48))
    exact, step = q(ids).logits, q(ids[:, :8]).logits
    assert round_long_inputs(q) == sum(isinstance(m, Linear) for m in q.modules())
    assert 25 < sqnr_db(exact, q(ids).logits) < 80
    assert torch.equal(step, q(ids[:, :8]).logits)


def test_models_without_such_layers_are_refused() -> None:
    with pytest.raises(InputError, match='mode="weight_only"'):
        round_long_inputs(nn.Linear(8, 8))
    with pytest.raises(InputError, match="rows is 0"):
        round_long_inputs(layer("int8"), rows=0)
