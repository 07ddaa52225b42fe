"""Samples on the page: a picture, a text or numbers, and the two answers in words."""

from __future__ import annotations

import base64
import zlib

import torch
from torch import Tensor

from octavo.measuring.samples import Sample
from octavo.reporting.samples import Shown, png, shown

WORDS = ["the", "cat", "sat", "mat", "dog"]


def text_of(ids: list[int]) -> str:
    return " ".join(WORDS[index] for index in ids)


def sample(inputs: tuple[Tensor, ...], before: Tensor, after: Tensor, changed: float) -> Sample:
    return Sample(3, inputs, torch.tensor(1), before, after, 20.0, changed)


def test_a_picture_and_the_classes_by_name() -> None:
    scores = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, 1.5, 1.75])
    seen = shown(sample((torch.rand(3, 4, 5),), *scores, 1.0), ["cat", "dog", "fox"], None)
    assert (seen.given, seen.label, seen.changed) == ("", "dog", True)
    assert seen.before == "dog (2; next fox, 1)"
    assert seen.after == "fox (1.75; next dog, 1.5)"
    assert [name for name, _ in seen.pictures] == ["input"]


def test_a_text_without_its_padding_and_the_first_word_that_differs() -> None:
    ids, mask = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 1, 0])
    before = torch.eye(5)[[1, 2, 3, 0]]
    after = torch.eye(5)[[1, 4, 3, 0]]
    seen = shown(sample((ids, mask), before, after, 0.25), None, text_of)
    assert seen.given == "the cat sat"
    assert seen.before == "'sat' at place 1 of 4"
    assert seen.after == "'dog' at place 1 of 4; 1 places differ"
    assert shown(sample((ids,), before, after, 0.25), None, None).given == "0 1 2 0"


def test_numbers() -> None:
    seen = shown(
        sample((torch.arange(10.0),), torch.tensor([1.5]), torch.tensor([1.25]), 0), None, None
    )
    assert seen == Shown(3, "0 1 2 3 4 5 6 7 ...", "1.5", "1.25", "class 1", False, 20.0, ())


def test_maps_of_classes_are_pictures_of_one_scale() -> None:
    before = torch.zeros(5, 2, 2)
    before[4, 0] = 1.0
    seen = shown(sample((torch.rand(1, 2, 2),), before, before.flip(1), 0.5), None, None)
    assert [name for name, _ in seen.pictures] == ["input", "before", "after"]
    assert seen.after == "50.00 % of its decisions differ"


def test_png_holds_the_pixels() -> None:
    pixels = torch.tensor([[[255, 0, 7], [1, 2, 3]]], dtype=torch.uint8)
    content = base64.b64decode(png(pixels).partition(",")[2])
    assert content[16:26] == bytes([0, 0, 0, 2, 0, 0, 0, 1, 8, 2])
    length = int.from_bytes(content[33:37], "big")
    assert zlib.decompress(content[41 : 41 + length]) == bytes([0, 255, 0, 7, 1, 2, 3])
