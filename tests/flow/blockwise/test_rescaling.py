"""Methods that scale inputs, on models in modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from dying import Dies, Killed
from language_models import language_model, rounded_by, texts
from torch import Tensor, nn

import octavo
from octavo.errors import InputError
from octavo.quantization.weights import Layer

FOUR = octavo.weight_only_qconfig(4, group_size=32)


def uneven(name: str) -> Any:
    """A model whose norms make a few inputs large, as those of language models do."""
    model = language_model(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in path:
                parameter.mul_(0.1)  # so small that errors of layers add up
            elif "norm" in path and path.endswith("weight"):
                parameter.mul_(1 + 20 * (torch.rand(len(parameter)) > 0.9))
    return model


def quantized(model: nn.Module, *methods: octavo.WeightMethod, **options: Any) -> Any:
    return rounded_by(model, *methods, calibration=options.pop("data", texts(3)), **options)


def error(model: Any, q: Any) -> float:
    with torch.no_grad():
        exact, logits = (net(**texts(3)[0]).logits for net in (model, q))
    return float((logits - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("llama", ()),
        ("qwen 3", ()),
        ("phi", ()),
        ("llama", (octavo.GPTQ(),)),
        ("phi", (octavo.GPTQ(),)),
        ("qwen 3, experts", (octavo.GPTQ(),)),
    ],
)
def test_awq_brings_a_model_nearer(name: str, others: tuple[octavo.WeightMethod, ...]) -> None:
    model = uneven(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rules = octavo.QConfigMapping().set_global(FOUR).set_object_type("embedding", None)
    without, with_it = (
        error(model, quantized(model, *methods, *others, qconfig=rules))
        for methods in ((), (octavo.AWQ(),))
    )
    assert with_it < 0.93 * without
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_smoothquant_brings_a_dynamic_model_nearer() -> None:
    model = uneven("llama")
    plain, smooth = (
        error(model, quantized(model, *methods, mode="dynamic", qconfig=None))
        for methods in ((), (octavo.SmoothQuant(),))
    )
    assert smooth < 0.8 * plain


def test_it_generates() -> None:
    q = quantized(uneven("llama"), octavo.AWQ())
    with torch.no_grad():
        ids = texts(3)[0]["input_ids"]
        cached = q.generate(ids, max_new_tokens=4, do_sample=False)
        plain = q.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_a_checkpoint_keeps_the_scales(tmp_path: Path) -> None:
    model = uneven("llama")
    right = quantized(model, octavo.AWQ(), octavo.Clip())
    with pytest.raises(Killed):
        quantized(model, octavo.AWQ(), Dies(), checkpoint=tmp_path)
    q = quantized(model, octavo.AWQ(), octavo.Clip(), checkpoint=tmp_path)
    for name, tensor in right.state_dict().items():
        assert torch.equal(q.state_dict()[name], tensor), name
    with pytest.raises(InputError, match="the checkpoint of other calibration data"):
        quantized(model, octavo.AWQ(), octavo.Clip(), checkpoint=tmp_path, data=texts(3)[:2])


def test_layers_that_nothing_scales_are_listed() -> None:
    with pytest.warns(octavo.OctavoWarning, match=r"awq left .*'transformer\.h\.0\.mlp\.c_proj'"):
        octavo.quantize(
            language_model("gpt 2"),
            calibration=texts(1),
            mode="weight_only",
            scope="modules",
            qconfig=FOUR,
            weights=[octavo.AWQ()],
            progress=False,
        )


def test_it_comes_before_what_rounds() -> None:
    with pytest.raises(InputError, match=r"'awq' behind a method that rounds.*give it first"):
        quantized(language_model("llama"), octavo.Clip(), octavo.AWQ())


@dataclass(frozen=True)
class Count:
    """A statistic that does not say what scaling makes of it."""

    def update(self, state: int | None, x: Tensor) -> int:
        return (state or 0) + len(x)

    def merge(self, one: int, other: int) -> int:
        return one + other


class Counts(octavo.WeightMethod):
    name: ClassVar[str] = "counts"

    def statistic(self, layer: Layer) -> Count:
        return Count()


def test_statistics_that_cannot_be_told_of_it() -> None:
    with pytest.raises(InputError, match=r"Count\(\) of the input of 'model\.layers\.0"):
        quantized(uneven("llama"), octavo.AWQ(), Counts())
