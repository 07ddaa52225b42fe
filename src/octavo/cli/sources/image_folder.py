"""A folder of images as batches: a sub-folder is a class."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import InputError, optional_import
from octavo.graph.pixels import Pixels
from octavo.model.files.source_file import check_file, reason

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm")

# Pillow goes by content, and hands some formats to other programs: PostScript to Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
_MOST_PIXELS = 89_478_485  # from which on Pillow itself warns: a quarter of a gigabyte in RGB
_LARGEST_RATIO = 100  # of the sides; the longer one grows with the shorter, and is then cut off

# ImageNet's mean and standard deviation by number of channels; of one, the means of the three.
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}


@dataclass(frozen=True)
class ImageOptions:
    """How image files become a model's input.

    Attributes:
        size: the shorter side is resized to so many pixels, then the centre of ``size`` x ``size``
            is cut out.
        mean, std: one number for each channel, or one for all, of pixels in 0 to 1; ``None`` is
            ImageNet's.
        gray: one channel, not three.
        raw: pixels as they are, uint8, for a model that normalizes them itself.

    Raises:
        InputError: the size is not above zero, or mean or std does not fit.

    Example:
        >>> ImageOptions(size=32, gray=True).pixels
        Pixels(scale=0.00392156862745098, mean=(0.449,), std=(0.226,))
    """

    size: int = 224
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    gray: bool = False
    raw: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"image size {self.size}: at least 1 is needed")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is None:
                continue
            if len(numbers) not in (1, self.channels):
                raise InputError(
                    f"{name} has {len(numbers)} numbers {numbers}, the images have {self.channels} "
                    "channels; give one for each, or one for all"
                )
            if not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
                raise InputError(f"{name} is {numbers}; give finite numbers, above zero for std")

    @property
    def channels(self) -> int:
        return 1 if self.gray else 3

    @property
    def pixels(self) -> Pixels:
        """What makes floats of the pixels."""
        mean, std = IMAGENET[self.channels]
        return Pixels(1 / 255, self.mean or mean, self.std or std)


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder in batches, read anew each time that it is iterated.

    Attributes:
        files: in the order of the classes, then by name.
        labels: the class of each; ``None`` where the folder has no sub-folders.
        classes: names of the sub-folders, sorted: those of the labels 0, 1, 2 ...
        options: how images become numbers.
        batch_size: images in a batch; the last one may have fewer.

    Yields ``(images,)`` or ``(images, labels)``: ``[N, channels, size, size]``, float32 (uint8 if
    they are raw), and int64.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    options: ImageOptions = field(default_factory=ImageOptions)
    batch_size: int = 64

    @classmethod
    def of(cls, folder: Path, options: ImageOptions, batch_size: int) -> ImageFolder:
        """The images of a folder. Hidden files and files with another suffix are passed over.

        Raises:
            InputError: it has no images, a class has none, or there are images beside the classes.
            MissingExtra: Pillow is not installed.
        """
        _pillow()
        loose = _images(folder, "*")
        folders = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        found = {path.name: _images(path, "**/*") for path in folders}
        kinds = ", ".join(SUFFIXES)
        if not loose and not any(found.values()):
            raise InputError(f"the folder {folder} holds no images ({kinds})")
        if not folders:
            return cls(loose, None, (), options, batch_size)
        if loose:
            raise InputError(
                f"the folder {folder} holds images beside its classes {sorted(found)[:5]}, such as "
                f"{loose[0].name}: move them into a class, or give a folder without sub-folders"
            )
        empty = [name for name, files in found.items() if not files]
        if empty:
            raise InputError(
                f"classes of the folder {folder} without images ({kinds}): {empty[:5]}; each "
                "sub-folder counts as a class: remove those that are not classes"
            )
        files = tuple(file for files in found.values() for file in files)
        labels = tuple(i for i, files in enumerate(found.values()) for _ in files)
        return cls(files, labels, tuple(found), options, batch_size)

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, len(self.files), self.batch_size):
            part = slice(start, start + self.batch_size)
            images = torch.stack([read_image(file, self.options) for file in self.files[part]])
            batch = images if self.options.raw else self.options.pixels.normalized(images)
            yield (batch,) if self.labels is None else (batch, torch.tensor(self.labels[part]))


def read_image(file: Path, options: ImageOptions, content: bytes | None = None) -> Tensor:
    """The centre of an image, uint8 ``[channels, size, size]``.

    It is resized and cut as torchvision's ``Resize(size)`` and ``CenterCrop(size)`` do, and as
    there the pixels are taken as they are stored: a rotation in the EXIF data is not applied, of an
    animation the first picture is taken, and what is transparent has the colour below.

    Args:
        file: to read; with ``content`` it is only what errors call it.
        options: size and channels.
        content: what the file holds, where that lies in a table.

    Raises:
        InputError: the file is not an image of the formats in `SUFFIXES`, is damaged, has more
            than 8 bits for a pixel's channel, more than 89 million pixels, or sides of which one
            is more than 100 times the other.
        MissingExtra: Pillow is not installed.
    """
    pillow = _pillow()
    try:
        if content is None:
            check_file(file)
        opened = file if content is None else io.BytesIO(content)
        with pillow.open(opened, formats=_FORMATS) as image:
            _check_image(file, image.size, image.mode)
            whole = image.convert("L" if options.gray else "RGB")
        return _centre(whole, options, pillow.Resampling.BILINEAR)
    except InputError:
        raise
    except pillow.UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise InputError(f"cannot read {file} as an image: it is not one of {kinds}") from error
    except Exception as error:  # Pillow's readers have many: of zlib, struct, for bombs, for memory
        raise InputError(f"cannot read {file} as an image: {reason(error)}") from error


def _check_image(file: Path, size: tuple[int, int], mode: str) -> None:
    """What its header promises, before it is unpacked."""
    if mode in ("I", "F") or mode.startswith("I;"):
        raise InputError(
            f"the pixels of {file} have more than 8 bits (mode {mode}): convert the image to 8 bits"
        )
    width, height = size
    short, long = sorted(size)
    if width * height > _MOST_PIXELS or long > _LARGEST_RATIO * short:
        raise InputError(
            f"{file} has {width} x {height} pixels: images have at most {_MOST_PIXELS} and sides "
            f"in a ratio of at most {_LARGEST_RATIO}; cut or resize it, or take it out"
        )


def _centre(whole: Any, options: ImageOptions, filtering: Any) -> Tensor:
    """Of a picture of Pillow's."""
    width, height = whole.size
    short = min(width, height)
    width, height = options.size * width // short, options.size * height // short
    resized = whole.resize((width, height), filtering)
    left, top = round((width - options.size) / 2), round((height - options.size) / 2)
    centre = resized.crop((left, top, left + options.size, top + options.size))
    pixels = np.array(centre).reshape(options.size, options.size, options.channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _images(folder: Path, pattern: str) -> tuple[Path, ...]:
    """Sorted; what is hidden, as editors and systems leave it behind, is none of them."""
    return tuple(
        path
        for path in sorted(folder.glob(pattern))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _pillow() -> ModuleType:
    with optional_import("pillow", "images", "read images"):
        from PIL import Image
    return Image
