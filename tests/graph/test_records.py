"""Objects that models take and return, as records and back."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import built
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import octavo
from octavo.errors import CaptureError, InputError
from octavo.graph.as_json import decode, encode
from octavo.graph.records import Kind, Record, as_records, kind_of, with_objects


@dataclass
class Found:
    """A data class that pytree is told of."""

    boxes: Tensor
    scores: Tensor | None
    masks: Tensor | None = None


pytree.register_dataclass(Found)


@dataclass
class Unknown:
    """One that it is not told of."""

    boxes: Tensor


class Finder(nn.Module):
    """Returns a data class, nested in what ``wrap`` makes."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return self.wrap(Found(y, None), y.max(1))


def test_a_record_has_entries_attributes_and_items() -> None:
    record = Record(logits=torch.ones(1), hidden=(torch.zeros(1),))
    assert record.logits is record["logits"] is record[0] is record.to_tuple()[0]
    assert record[1:] == (record.hidden,)
    with pytest.raises(AttributeError, match="loss"):
        record.loss  # noqa: B018
    with pytest.raises(KeyError):
        record["loss"]
    with pytest.raises(IndexError):
        record[2]
    leaves, spec = pytree.tree_flatten(record)
    assert len(leaves) == 2
    assert isinstance(pytree.tree_unflatten(leaves, spec), Record)


def test_a_record_keeps_what_it_stands_for() -> None:
    record = Record.of(Kind("a.B", ("loss",)), [("logits", 1)])
    assert (record.loss, record.to_tuple()) == (None, (1,))
    copies = [
        copy.copy(record),
        copy.deepcopy(record),
        pytree.tree_map(lambda x: x, record),
        decode(encode(record)),
        with_objects(record),
    ]
    for other in copies:
        assert (other, kind_of(other)) == (record, kind_of(record))


@pytest.mark.parametrize("through_a_file", [False, True])
def test_data_classes_come_back_wherever_they_stand(tmp_path: Path, through_a_file: bool) -> None:
    model = Finder(lambda found, most: {"all": [found, OrderedDict(b=found, a=(most,))]}).eval()
    x = torch.rand(5, 4)
    q = octavo.quantize(model, x, mode="dynamic")
    if through_a_file:
        q.save(tmp_path / "m.octavo")
        q = octavo.load(tmp_path / "m.octavo")
    result, expected = q(x), model(x)
    found, ordered = result["all"]
    assert [type(part) for part in result["all"]] == [Found, OrderedDict]
    assert list(ordered) == ["b", "a"]
    assert (found.scores, found.masks) == (None, None)
    most = ordered["a"][0]
    assert type(most) is torch.return_types.max
    assert torch.equal(most.values, most[0])
    torch.testing.assert_close(found.boxes, expected["all"][0].boxes, atol=0.02, rtol=0)
    assert torch.equal(ordered["b"].boxes, found.boxes)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("subprocess.Popen", {"args": "true"}),  # pytree does not know it
        (f"{__name__}.Unknown", {"boxes": 1}),
        (f"{__name__}.Found", {"boxes": 1}),  # scores is missing
        (f"{__name__}.Found", {"boxes": 1, "scores": 2, "more": 3}),
        ("no.such.module.Class", {}),
    ],
)
def test_a_name_out_of_a_file_makes_nothing_but_a_data_class(name: str, entries: Any) -> None:
    record = decode({"object": [name, [], [[k, v] for k, v in entries.items()]]})
    before = set(sys.modules)
    result = with_objects(record)
    assert (type(result), result) == (Record, entries)
    assert set(sys.modules) == before


def test_outputs_of_transformers_come_back_in_their_class(tmp_path: Path) -> None:
    model = built("BertForSequenceClassification", output_hidden_states=True)
    x = {"input_ids": torch.randint(0, 50, (2, 8))}
    q = octavo.quantize(model, x, mode="dynamic")
    out, expected = q(**x), model(**x)
    assert type(out) is type(expected)
    assert list(out) == list(expected) == ["logits", "hidden_states"]
    assert out.loss is None
    assert out[0] is out.logits is out.to_tuple()[0]
    assert torch.equal(out[1][-1], out.hidden_states[-1])
    torch.testing.assert_close(out.logits, expected.logits, atol=0.05, rtol=0)
    q.save(tmp_path / "m.octavo")
    assert type(octavo.load(tmp_path / "m.octavo")(**x)) is type(expected)
    fresh = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TRANSFORMERS, str(tmp_path / "m.octavo")],
        capture_output=True,
        text=True,
    )
    assert fresh.stdout.split() == ["Record", "None", "2", "True", "False"], fresh.stderr


_WITHOUT_TRANSFORMERS = """
import sys, octavo, torch
out = octavo.load(sys.argv[1])(input_ids=torch.zeros(2, 8, dtype=torch.long))
same = out[0] is out.logits is out["logits"]
print(type(out).__name__, out.loss, len(out.to_tuple()), same, "transformers" in sys.modules)
"""


def _gpt2() -> Any:
    return built("GPT2LMHeadModel", num_hidden_layers=2, bos_token_id=0, eos_token_id=0)


def test_a_cache_comes_back_as_one_that_the_float_model_takes() -> None:
    transformers = pytest.importorskip("transformers")
    model = _gpt2()
    ids = torch.randint(0, 50, (4, 12))
    q = octavo.quantize(model, {"input_ids": ids}, mode="weight_only")
    cache, expected = q(input_ids=ids).past_key_values, model(input_ids=ids).past_key_values
    assert type(cache) is transformers.DynamicCache
    assert cache.get_seq_length() == expected.get_seq_length() == 12
    torch.testing.assert_close(cache.layers[1].keys, expected.layers[1].keys, atol=0.01, rtol=0)
    token = torch.randint(0, 50, (4, 1))
    continued = model(input_ids=token, past_key_values=cache)
    exact = model(input_ids=token, past_key_values=expected)
    torch.testing.assert_close(continued.logits, exact.logits, atol=0.02, rtol=0)


def test_a_cache_is_an_input_like_others() -> None:
    model = _gpt2()
    cache = model(input_ids=torch.randint(0, 50, (4, 12))).past_key_values
    call = {"input_ids": torch.randint(0, 50, (4, 1)), "past_key_values": cache}
    q = octavo.quantize(model, call, mode="weight_only")
    assert cache.get_seq_length() == 12, "the caller's own cache grew"
    out = q(**call)
    assert cache.get_seq_length() == 12
    assert out.past_key_values.get_seq_length() == 13
    octavo.compare(model, q, [call], rounds=1, progress=False)
    assert cache.get_seq_length() == 12
    torch.testing.assert_close(out.logits, model(**call).logits, atol=0.02, rtol=0)


def test_an_encoder_decoder_cache_comes_back() -> None:
    transformers = pytest.importorskip("transformers")
    both = [transformers.DynamicCache(), transformers.DynamicCache()]
    for number, cache in enumerate(both):
        cache.update(torch.full((1, 2, 3, 4), number), torch.zeros(1, 2, 3, 4), 0)
    cache = transformers.EncoderDecoderCache(*both)
    back = with_objects(as_records(cache))
    assert type(back) is transformers.EncoderDecoderCache
    assert torch.equal(back.cross_attention_cache.layers[0].keys, both[1].layers[0].keys)


def test_a_cache_that_slides_is_told_what_to_give() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1)
    cache = transformers.StaticCache(config=config, max_cache_len=4)
    with pytest.raises(InputError, match=r"StaticCache.*DynamicCache.*scope=.regions. or"):
        octavo.capture(_gpt2(), (torch.zeros(1, 1, dtype=torch.long), cache))


def test_a_module_that_fills_its_callers_cache_has_no_graph() -> None:
    model = _gpt2()
    cache = model(input_ids=torch.randint(0, 50, (4, 12))).past_key_values
    call = {"past_key_values": cache}
    with pytest.raises(CaptureError, match="GPT2Block fills the DynamicCache that it is given"):
        octavo.capture(model.transformer.h[0], (torch.rand(4, 1, 16),), call)
    assert cache.get_seq_length() == 12
