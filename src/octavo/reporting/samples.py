"""Samples as people see them: pictures, texts and answers, before and after."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.measuring.samples import Sample

Decode = Callable[[Any], str]
_FEW = 8  # numbers, or tokens without a tokenizer, that are shown


@dataclass(frozen=True)
class Shown:
    """One sample on the page.

    Attributes:
        index: its place in the data, from 0.
        given: what the model got, in words; empty where a picture shows it.
        before, after: the answers of the float and of the quantized model, in words.
        label: the right answer, in words, where it is known.
        changed: whether a decision differs.
        sqnr_db: of the answer.
        pictures: ``(caption, source for <img>)``: the input, and answers that are images.
    """

    index: int
    given: str
    before: str
    after: str
    label: str | None
    changed: bool
    sqnr_db: float
    pictures: tuple[tuple[str, str], ...]


def shown(sample: Sample, names: Sequence[str] | None, decode: Decode | None) -> Shown:
    """A sample in words and pictures.

    Args:
        sample: from `octavo.measuring.samples`.
        names: of the classes, in their order; without, they are numbered.
        decode: token ids -> text, as a tokenizer's ``decode``.
    """
    before, after, first = sample.before, sample.after, _first(sample.inputs)
    pictures = []
    if first is not None and _is_image(first):
        pictures.append(("input", png(_levels(first))))
    if before.dim() == 3 and before.shape[-1] > 1 and before.shape[-2] > 1:
        low, high = float(before.min()), float(before.max())
        for name, answer in (("before", before), ("after", after)):
            pictures.append((name, png(_map(answer, low, high))))
    tokens = first if first is not None and first.dim() == 1 and _is_whole(first) else None
    texts = _answers(sample, names, decode if tokens is not None else None)
    return Shown(
        sample.index,
        "" if pictures and tokens is None else _given(sample.inputs, tokens, decode),
        *texts,
        _label(sample.label, names),
        sample.changed > 0,
        sample.sqnr_db,
        tuple(pictures),
    )


def png(pixels: Tensor) -> str:
    """A picture as the source of an ``<img>``.

    Args:
        pixels: uint8 ``[height, width]`` or ``[height, width, 3]``.
    """
    height, width = pixels.shape[:2]
    colors = 2 if pixels.dim() == 3 else 0
    rows = b"".join(b"\0" + row.numpy().tobytes() for row in pixels.contiguous())
    header = struct.pack(">IIBBBBB", width, height, 8, colors, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _first(inputs: tuple[Tensor, ...]) -> Tensor | None:
    return next((tensor for tensor in inputs if tensor.dim()), None)


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _is_image(tensor: Tensor) -> bool:
    return tensor.dim() == 3 and tensor.shape[0] in (1, 3) and min(tensor.shape[1:]) > 1


def _levels(image: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """``[1 or 3, height, width]`` of any range as pixels, uint8."""
    image = image.detach().float()
    low = float(image.min()) if low is None else low
    high = float(image.max()) if high is None else high
    pixels = ((image - low) / max(high - low, 1e-12) * 255).clamp(0, 255).byte()
    return pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)


def _map(answer: Tensor, low: float, high: float) -> Tensor:
    """An answer that is an image, or the class of each pixel as a level of gray."""
    if len(answer) in (1, 3):
        return _levels(answer, low, high)
    return _levels(answer.argmax(0, keepdim=True), 0, len(answer) - 1)


def _given(inputs: tuple[Tensor, ...], tokens: Tensor | None, decode: Decode | None) -> str:
    if tokens is not None and decode is not None:
        mask = next((i for i in inputs[1:] if i.shape == tokens.shape and _is_mask(i)), None)
        return str(decode((tokens if mask is None else tokens[mask.bool()]).tolist()))
    return "; ".join(_numbers(tensor) for tensor in inputs)


def _is_mask(tensor: Tensor) -> bool:
    return _is_whole(tensor) and bool(tensor.any()) and bool((tensor <= 1).all())


def _numbers(tensor: Tensor) -> str:
    if tensor.dim() > 1:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    values = tensor.reshape(-1)[:_FEW].tolist()
    more = " ..." if tensor.numel() > _FEW else ""
    return " ".join(f"{value:.4g}" for value in values) + more


def _answers(sample: Sample, names: Sequence[str] | None, decode: Decode | None) -> tuple[str, str]:
    before, after = sample.before, sample.after
    if before.dim() <= 1:
        if before.numel() < 2:
            return f"{float(before):.4g}", f"{float(after):.4g}"
        return _best(before, names), _best(after, names)
    if before.dim() == 2 and sample.changed:
        one, other = before.argmax(-1), after.argmax(-1)
        differ = one != other
        place = int(differ.nonzero()[0])
        where = f"at place {place} of {len(one)}"
        told = [_word(int(line[place]), names, decode) for line in (one, other)]
        return f"{told[0]} {where}", f"{told[1]} {where}; {int(differ.sum())} places differ"
    if sample.changed:
        return "", f"{100 * sample.changed:.2f} % of its decisions differ"
    return "", "the same decisions" if before.dim() > 1 else ""


def _best(scores: Tensor, names: Sequence[str] | None) -> str:
    """The class with the highest score, and how near the next one is."""
    (best, next_), (first, second) = (part.tolist() for part in scores.topk(2))
    return (
        f"{_word(first, names, None)} ({best:.4g}; next {_word(second, names, None)}, {next_:.4g})"
    )


def _word(index: int, names: Sequence[str] | None, decode: Decode | None) -> str:
    if decode is not None:
        return repr(decode([index]))
    return str(names[index]) if names is not None and index < len(names) else f"class {index}"


def _label(label: Any, names: Sequence[str] | None) -> str | None:
    if not isinstance(label, Tensor) or label.dim():
        return None
    return _word(int(label), names, None) if _is_whole(label) else f"{float(label):.4g}"
