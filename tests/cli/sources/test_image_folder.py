from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.cli.sources.data_source import load_data
from octavo.cli.sources.image_folder import ImageFolder, ImageOptions, read_image
from octavo.errors import InputError, MissingExtra
from octavo.graph.batches import Signature, split_batch

Image = pytest.importorskip("PIL.Image")

ONE = Signature(("x",), 1)
PLAIN = ImageOptions(size=2, mean=(0.0,), std=(1.0,))


def write(path: Path, pixels: object) -> Path:
    """Pixels ``[height, width]`` or ``[height, width, channels]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def flat(value: int, height: int = 2, width: int = 2) -> np.ndarray:
    return np.full((height, width), value, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes bird (one image), cat (three) and dog (one), each image of one shade."""
    for name, shade in {
        "dog/a.bmp": 40,
        "cat/c.PNG": 30,
        "cat/b.png": 20,
        "cat/more/z.pgm": 25,
        "bird/x.png": 10,
    }.items():
        write(tmp_path / "pets" / name, flat(shade))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / "cat" / "._b.png").write_text("what a system leaves behind")
    write(tmp_path / "pets" / ".thumbnails" / "b.png", flat(1))
    return tmp_path / "pets"


def test_batches_in_the_order_of_classes_and_names(folder: Path) -> None:
    data = load_data(str(folder), ONE, 2, PLAIN)
    assert isinstance(data, ImageFolder)
    assert data.classes == ("bird", "cat", "dog")
    for _ in range(2):  # it can be iterated again
        batches = [split_batch(batch, ONE) for batch in data]
        assert len(data) == len(batches) == 3
        shades = torch.cat([batch.args[0] for batch in batches])
        assert (shades.shape, shades.dtype) == ((5, 3, 2, 2), torch.float32)
        assert (shades[:, 0, 0, 0] * 255).round().tolist() == [10, 20, 30, 25, 40]
        assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 1, 1, 1, 2]


def test_files_are_read_when_their_batch_comes(folder: Path) -> None:
    batches = iter(load_data(str(folder), ONE, 1, PLAIN))
    next(batches)
    (folder / "cat" / "b.png").unlink()
    with pytest.raises(InputError, match=r"cannot read .*b\.png as an image"):
        next(batches)


def test_a_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", flat(0))
    ((images,),) = load_data(str(tmp_path), ONE, 4, PLAIN)
    assert images.shape == (1, 3, 2, 2)


def test_values_by_hand(tmp_path: Path) -> None:
    """The centre of 2 x 4 pixels, red, green and blue in turn, each with its mean and std."""
    rows = [[[0, 9, 9], [51, 102, 255], [0, 51, 204], [9, 9, 9]]] * 2
    write(tmp_path / "a.png", rows)
    options = ImageOptions(2, mean=(0.5, 0.4, 0.2), std=(0.5, 0.2, 0.1))
    ((images,),) = load_data(str(tmp_path), ONE, 4, options)
    expected = torch.tensor([[-0.6, -1.0], [0.0, -1.0], [8.0, 6.0]])
    torch.testing.assert_close(images[0], expected[:, None, :].expand(3, 2, 2))


def test_the_shorter_side_is_resized_and_the_centre_cut_out(tmp_path: Path) -> None:
    """4 x 12 to 2 x 6 halves: a pixel is the mean of the nearest four of a row, weighed 1 3 3 1."""
    row = [0, 0, 0, 0, 80, 80, 160, 160, 0, 0, 0, 0]
    file = write(tmp_path / "wide.png", [row] * 4)
    found = read_image(file, ImageOptions(2, gray=True))
    assert found.dtype is torch.uint8
    assert found.tolist() == [[[80, 130]] * 2]
    tall = write(tmp_path / "tall.png", np.transpose([row] * 4))
    assert torch.equal(read_image(tall, ImageOptions(2, gray=True)), found.mT)
    assert read_image(write(tmp_path / "small.png", flat(7, 3, 5)), ImageOptions(8)).unique() == 7


def test_channels(tmp_path: Path) -> None:
    colours = write(tmp_path / "rgb.png", [[[255, 0, 0]] * 2] * 2)
    gray, both = write(tmp_path / "gray.png", flat(9)), ImageOptions(2)
    assert read_image(colours, ImageOptions(2, gray=True)).unique().tolist() == [76]  # 0.299 * 255
    assert read_image(gray, both)[:, 0, 0].tolist() == [9, 9, 9]
    clear = write(tmp_path / "rgba.png", [[[1, 2, 3, 0]] * 2] * 2)
    assert read_image(clear, both)[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (ImageOptions(2), [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
        (ImageOptions(2, gray=True), [-0.449 / 0.226]),
        (ImageOptions(2, mean=(0.5,), std=(0.25,)), [-2.0, -2.0, -2.0]),
        (ImageOptions(2, gray=True, raw=True), [0]),
    ],
)
def test_normalization_of_black(tmp_path: Path, options: ImageOptions, value: list[float]) -> None:
    write(tmp_path / "black.png", flat(0))
    ((images,),) = load_data(str(tmp_path), ONE, 4, options)
    assert images[0, :, 0, 0].tolist() == pytest.approx(value)
    assert images.dtype is (torch.uint8 if options.raw else torch.float32)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    text, deep = tmp_path / "text.jpg", tmp_path / "deep.png"
    text.write_text("no image")
    with pytest.raises(InputError, match=r"cannot read .*text\.jpg as an image"):
        read_image(text, PLAIN)
    whole = write(tmp_path / "whole.png", np.random.randint(0, 256, (64, 64))).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read .*half\.png as an image"):
        read_image(tmp_path / "half.png", PLAIN)
    Image.fromarray(np.full((2, 2), 3000, np.uint16)).save(deep)
    with pytest.raises(InputError, match=r"deep\.png have more than 8 bits \(mode I;16\)"):
        read_image(deep, PLAIN)


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"none holds no images \(\.png, \.jpg"):
        load_data(str(tmp_path / "none"), ONE)
    (folder / "fish").mkdir()
    with pytest.raises(InputError, match=r"pets without images .*\['fish'\]"):
        load_data(str(folder), ONE)
    write(folder / "stray.png", flat(0))
    with pytest.raises(InputError, match=r"beside its classes \['bird'.* such as stray\.png"):
        load_data(str(folder), ONE)
    with pytest.raises(InputError, match=r"one argument; the model needs \['x', 'mask'\]"):
        load_data(str(folder), Signature(("x", "mask"), 2))
    with pytest.raises(InputError, match="batch size 0"):
        load_data(str(folder), ONE, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "image size 0"),
        ({"mean": (0.5, 0.5)}, r"mean has 2 numbers .* have 3 channels"),
        ({"gray": True, "std": (1.0, 1.0, 1.0)}, r"std has 3 numbers .* have 1 channels"),
        ({"std": (0.0,)}, r"std is \(0\.0,\)"),
        ({"mean": (float("nan"),)}, r"mean is \(nan,\)"),
    ],
)
def test_options_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageOptions(**options)


def test_without_pillow_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r'pillow is needed .* "octavo\[images\]"'):
        load_data(str(folder), ONE)


def encoded(image: object, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("height", [20_000, 1_000_000, 10_000_000])
def test_a_line_of_pixels_is_no_picture(tmp_path: Path, height: int) -> None:
    """118 bytes, which would become 224 x 4,480,000 pixels on the way to the centre."""
    file = tmp_path / "line.png"
    Image.new("L", (1, height)).save(file)
    with pytest.raises(InputError, match=f"has 1 x {height} pixels: .*ratio of at most 100"):
        read_image(file, PLAIN)
    Image.new("L", (1, 100), 7).save(file)
    assert read_image(file, PLAIN).unique().tolist() == [7]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("it was unpacked"))
    (tmp_path / "bomb.pgm").write_bytes(b"P5 10000 9999 255\n")
    with pytest.raises(InputError, match="has 10000 x 9999 pixels"):
        read_image(tmp_path / "bomb.pgm", PLAIN)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "ICO", "EPS", "PDF"])
def test_only_the_formats_that_are_named_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Pillow goes by content; PostScript it gives to Ghostscript, another program."""
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **rest: pytest.fail("a program ran"))
    file = tmp_path / "picture.png"
    file.write_bytes(encoded(Image.new("RGB", (8, 8)), form))
    with pytest.raises(InputError, match=r"picture\.png as an image: it is not one of PNG, JPEG"):
        read_image(file, PLAIN)


def test_kinds_of_pixels_and_animations(tmp_path: Path) -> None:
    colour, turned = Image.new("RGB", (4, 8), (10, 20, 30)), Image.Exif()
    turned[0x0112] = 6
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    other = [Image.new("RGB", (4, 8), (99, 0, 0))]
    half = Image.new("RGB", (4, 8), (10, 20, 30))
    half.paste((0, 0, 0), (2, 0, 4, 8))  # black to the right
    for name, content, first in (
        ("palette.png", encoded(palette, "PNG"), [9, 8, 7]),
        ("ink.jpg", encoded(Image.new("CMYK", (4, 4), (1, 2, 3, 4)), "JPEG"), [250, 249, 248]),
        ("one.png", encoded(Image.new("1", (4, 4), 1), "PNG"), [255, 255, 255]),
        ("moves.png", encoded(colour, "PNG", save_all=True, append_images=other), [10, 20, 30]),
        ("turned.png", encoded(half, "PNG", exif=turned), [10, 20, 30]),
    ):
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name, ImageOptions(4))[:, 0, 0].tolist() == first, name
    stored = read_image(tmp_path / "turned.png", ImageOptions(4))
    assert stored[0].tolist() == [[10, 10, 0, 0]] * 4


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "PPM"])
def test_damaged_images_are_one_error(tmp_path: Path, form: str) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    good, file = encoded(Image.fromarray(pixels), form), tmp_path / "x.png"
    for number in range(100):
        content = bytearray(good if number % 4 else good[: random.integers(len(good))])
        for _ in range(3):
            if content:
                content[random.integers(min(len(content), 120))] = random.integers(256)
        file.write_bytes(content)
        with contextlib.suppress(InputError):
            assert read_image(file, PLAIN).shape == (3, 2, 2)
