"""A table is made of a quantized model and the float model that it was made of, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import InputError

HOST = octavo.host_target()


def images() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)),
    )


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(40, 32), nn.LayerNorm(32)
        self.states, self.head = nn.LSTM(32, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(self.norm(self.words(x)))[0][:, -1])


def of_images(batch: int = 4) -> Tensor:
    return torch.rand(batch, 3, 8, 8)


def of_words(batch: int = 4) -> Tensor:
    return torch.randint(0, 40, (batch, 5))


SPEC = octavo.QSpec
CLIPPING = octavo.QConfig(
    activation=octavo.static_qconfig(HOST).activation,
    weight=SPEC(octavo.Scheme("int4", symmetric=True), octavo.FixedRange(-0.05, 0.05)),
)
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "static": (images, of_images, {"calibration": [of_images()], "target": HOST}),
    "clipped": (images, of_images, {"calibration": [of_images()], "qconfig": CLIPPING}),
    "dynamic": (Words, of_words, {"mode": "dynamic"}),
    "weight_only": (Words, of_words, {"mode": "weight_only"}),
    "int4": (Words, of_words, {"qconfig": octavo.weight_only_qconfig(4, group_size=16)}),
}


@cache
def built(case: str) -> tuple[nn.Module, octavo.QuantizedModel, Tensor]:
    make, data, options = CASES[case]
    torch.manual_seed(0)
    model, x = make().eval(), data()
    example = {} if "calibration" in options else {"example_inputs": x}
    return model, octavo.quantize(model, progress=False, **example, **options), x


def other_seed(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return type(model)() if isinstance(model, Words) else images().eval()


def one_weight(model: nn.Module) -> nn.Module:
    """A single value has moved by two steps, towards zero and beyond."""
    changed = copy.deepcopy(model)
    last = [m for m in changed.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight[1, 2] -= last.weight[1, 2].sign() * 2 * last.weight[1].abs().max() / 7
    return changed


def float_parts(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    norm = next(m for m in changed.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[0] = 3.0
    return changed


TABLES: dict[str, Callable[..., Any]] = {
    "layer_errors": octavo.layer_errors,
    "distributions": octavo.distributions,
    "compare": lambda model, q, data: octavo.compare(model, q, data, rounds=1, progress=False),
    "report": lambda model, q, data: octavo.report(model, q, data, progress=False),
}


@pytest.mark.parametrize("change", [other_seed, one_weight, float_parts])
@pytest.mark.parametrize("case", [name for name in CASES if name != "clipped"])
def test_other_weights_are_refused(case: str, change: Callable[[nn.Module], nn.Module]) -> None:
    model, q, x = built(case)
    assert octavo.layer_errors(model, q, [x], progress=False).rows
    with pytest.raises(InputError, match=r"the float model's '.*' differs from"):
        octavo.layer_errors(change(model), q, [x], progress=False)


def test_clipped_weights_are_no_other_weights() -> None:
    model, q, x = built("clipped")
    rows = {row.tensor: row for row in octavo.layer_errors(model, q, [x], progress=False).rows}
    assert rows["0.weight"].clipped > 0.3  # beyond the fixed range
    torch.manual_seed(1)
    with pytest.raises(InputError, match="differs from the quantized one's"):
        octavo.layer_errors(images().eval(), q, [x], progress=False)


@pytest.mark.parametrize("table", TABLES)
def test_in_every_table(table: str) -> None:
    model, q, x = built("static")
    with pytest.raises(InputError, match="differs from the quantized one's"):
        TABLES[table](other_seed(model), q, [x])
    with pytest.raises(InputError, match="takes the float model first, but got a QuantizedModel"):
        TABLES[table](q, model, [x])
    with pytest.raises(InputError, match="float model first"):
        TABLES[table](q, q, [x])
    with pytest.raises(
        InputError, match=r"takes a quantized model, but got a Sequential: octavo.q"
    ):
        TABLES[table](model, model, [x])


def test_a_comparison_says_which_model_it_was() -> None:
    model, q, x = built("static")
    again = octavo.quantize(model, progress=False, **CASES["static"][2])
    torch.manual_seed(1)
    other = octavo.quantize(images().eval(), calibration=[x], target=HOST, progress=False)
    with pytest.raises(
        InputError, match=r"'second' was not made from this float model: .*'0.weight'"
    ):
        octavo.compare(model, {"first": q, "second": other}, [x], rounds=1, progress=False)
    both = octavo.compare(model, {"first": q, "second": again}, [x], rounds=1, progress=False)
    assert both["first"].sqnr_db == both["second"].sqnr_db


def test_other_sizes_are_refused() -> None:
    _, q, x = built("dynamic")
    wide = Words()
    wide.words = nn.Embedding(50, 32)
    with pytest.raises(InputError, match=r"'words.weight' is \[50, 32\], the quantized one's \[40"):
        octavo.layer_errors(wide, q, [x], progress=False)


def test_a_model_that_was_stored_in_16_bits_in_between_is_the_same() -> None:
    model, q, x = built("static")
    stored = copy.deepcopy(model).half().float()
    assert octavo.layer_errors(stored, q, [x], progress=False).rows
    assert octavo.compare(stored, q, [x], rounds=1, progress=False)["int8"].sqnr_db > 20


def test_what_was_trained_with_rounding_may_have_moved() -> None:
    model, _, x = built("static")
    qat = octavo.prepare_qat(model, x, target=HOST)
    qat.train()
    optimizer = torch.optim.SGD(qat.parameters(), 0.02)
    for _ in range(3):
        optimizer.zero_grad()
        qat(x).square().sum().backward()
        optimizer.step()
    trained = octavo.convert(qat.eval())
    assert octavo.compare(model, trained, [x], rounds=1, progress=False)["int8"].sqnr_db is not None
    assert octavo.layer_errors(model, trained, [x], progress=False).rows
    with pytest.raises(InputError, match="differs from the quantized one's"):
        octavo.layer_errors(other_seed(model), trained, [x], progress=False)


def test_pixels_are_no_other_weights() -> None:
    model, _, _ = built("static")
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    q = octavo.quantize(model, calibration=[pixels], input_mean=0.5, input_std=0.2, target=HOST)
    assert octavo.layer_errors(model, q, [pixels], progress=False).rows
    with pytest.raises(InputError, match="differs from the quantized one's"):
        octavo.layer_errors(one_weight(model), q, [pixels], progress=False)
