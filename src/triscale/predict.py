"""A trained detector as a function of pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, cast, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from triscale.data.augment import val_transform
from triscale.data.pictures import read_picture
from triscale.detections import Detections
from triscale.engines import Engine
from triscale.errors import UserError
from triscale.packages import is_here, require_packages
from triscale.pixels import Fit
from triscale.types import Sample

Picture = str | Path | NDArray[np.uint8] | Image.Image
Precision = Literal["fp32", "bf16", "auto"]
Backend = Literal["auto", "openvino", "onnxruntime", "torch"]


class Detector:
    """Weights that are ready to use: `Detector("runs/mine")("picture.jpg")`.

    `weights` is a weights file of any format that weights/formats.py knows, a run folder (its best
    weights), the name of downloaded weights, or a file that `triscale export` wrote; with the last
    torch isn't needed, and OpenVINO, else onnxruntime runs it, unless `backend` names one:
    `engine.name` says which. `precision` is what the network computes in; `auto` is what is faster
    here. `size` (height, width) of the network input is what the weights say unless it is given,
    `threads` the number of cores; torch has one number of threads for the whole process. Raises
    UserError if the weights can't be read, or if a wish doesn't suit them.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        backend: Backend = "auto",
        size: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        self.path = find_weights(Path(weights))
        for side in size or ():
            if not 32 <= side <= 8192 or side % 32:
                raise UserError(f"size: expected multiples of 32 from 32 to 8192, got {side}")
        if is_exported(self.path):
            if device not in ("auto", "cpu"):
                raise UserError(
                    f"{self.path}: an exported file runs on the CPU here, not on '{device}'"
                )
            self.engine: Engine = _open_exported(
                self.path, precision=precision, backend=backend, size=size, threads=threads
            )
            return
        if backend not in ("auto", "torch"):
            raise UserError(f"{self.path}: {backend} runs what triscale export writes, no weights")
        require_packages("torch", purpose=str(self.path))
        from triscale.engines.pytorch import TorchEngine

        self.engine = TorchEngine(
            self.path, device=device, precision=precision, size=size, threads=threads
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that `Detections.labels` count."""
        return self.engine.classes

    @overload
    def __call__(self, images: Picture, *, batch_size: int = 4) -> Detections: ...
    @overload
    def __call__(self, images: Sequence[Picture], *, batch_size: int = 4) -> list[Detections]: ...
    def __call__(
        self, images: Picture | Sequence[Picture], *, batch_size: int = 4
    ) -> Detections | list[Detections]:
        """The detections in a picture, best first, in its pixels; for a list of them a list.

        A picture is a file, an RGB array (H, W, 3) or a PIL image. `batch_size` pictures of a list
        are read and computed together.
        """
        if not isinstance(images, (list, tuple)):
            return self.batch([cast("Picture", images)])[0]
        pictures = cast("Sequence[Picture]", images)
        starts = range(0, len(pictures), batch_size)
        return [found for i in starts for found in self.batch(pictures[i : i + batch_size])]

    def batch(self, images: Sequence[Picture]) -> list[Detections]:
        """The detections in each of some pictures, computed together."""
        if not images:
            return []
        return [
            replace(one, classes=self.classes, picture=partial(read_pixels, image))
            for one, image in zip(self.engine(*self.prepare(images)), images, strict=True)
        ]

    def prepare(self, images: Sequence[Picture]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Some pictures at the network's size (N, H, W, 3), and the sizes (N, 2) they have."""
        return prepare(images, self.engine.size, fit=self.engine.fit)


def prepare(
    images: Sequence[Picture], size: tuple[int, int], *, fit: Fit
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Some pictures fitted into `size` (N, H, W, 3), and the sizes (N, 2) that they had."""
    samples = [_sample(image) for image in images]
    sizes = np.array([sample.original_size for sample in samples], np.int64).reshape(-1, 2)
    return np.stack([val_transform(sample, size, fit=fit).image for sample in samples]), sizes


def read_pixels(image: Picture) -> NDArray[np.uint8]:
    """A file, an RGB array or a PIL image as RGB (H, W, 3), turned upright as its EXIF says."""
    if isinstance(image, (str, Path)):
        return read_picture(Path(image))
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise UserError(f"expected a PIL image of 8 bits per channel, got mode {image.mode}")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise UserError(
            f"expected an RGB image as uint8 of shape (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    return pixels


def is_exported(path: Path) -> bool:
    """Whether `triscale export` writes files of that name."""
    return path.suffix.lower() == ".onnx" or path.name.endswith("_openvino")


def find_weights(path: Path) -> Path:
    """The weights file that `path` means: itself, the best (else the newest) of a run folder, or
    what was downloaded under that name."""
    if path.suffix.lower() == ".xml" and is_exported(path.parent):
        path = path.parent
    if is_exported(path) and path.exists():
        return path
    if not path.is_dir():
        if path.is_file():
            return path
        from triscale.weights.zoo import ZOO, cached

        if downloaded := cached(str(path)):
            return downloaded
        hint = f"; get it with: triscale download {path}" if str(path) in ZOO else ""
        raise UserError(f"{path}: no such weights file or run folder{hint}")
    best = path / "best.safetensors"
    if best.is_file():
        return best
    epochs = list(path.glob("epoch_*.safetensors"))
    if not epochs:
        raise UserError(
            f"{path}: expected a run folder with best.safetensors or epoch_*.safetensors, "
            "found neither"
        )
    return max(epochs, key=lambda file: int(re.split(r"[_.]", file.name)[1]))


def _open_exported(
    path: Path,
    *,
    precision: Precision,
    backend: Backend,
    size: tuple[int, int] | None,
    threads: int | None,
) -> Engine:
    """The fastest of what is installed and runs the file, or what is asked for."""
    from triscale.engines.header import require_usable, size_for
    from triscale.engines.onnx import OnnxEngine
    from triscale.engines.openvino import OpenVinoEngine

    folder = path.is_dir()
    if backend == "torch" or (folder and backend == "onnxruntime"):
        other = "OpenVINO's form" if folder else "ONNX"
        raise UserError(f"{path}: is {other}, which {backend} doesn't run")
    if backend == "openvino" or folder or (backend == "auto" and is_here("openvino")):
        engine = OpenVinoEngine(path, precision=precision, threads=threads)
        whole = engine.header.precision != "int8" or folder
        if backend == "auto" and not whole and is_here("onnxruntime"):
            engine = OnnxEngine(path, threads=threads)  # it rounds this form better: export/int8.py
    else:
        if precision == "bf16":
            require_packages("openvino", purpose=f"{path} in bf16")
            raise UserError(f"{path}: onnxruntime has no bf16 on CPUs, OpenVINO has")
        engine = OnnxEngine(path, threads=threads)
    require_usable(engine.header, source=str(path))
    engine.size = size_for(engine.header, size, source=str(path))
    return engine


def _sample(image: Picture) -> Sample:
    """A picture without labels as the validation transform takes it."""
    pixels = read_pixels(image)
    height, width = pixels.shape[:2]
    return Sample(
        image=pixels,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        weights=np.zeros(0, np.float32),
        image_id=0,
        original_size=(height, width),
        colour=np.eye(3, 4, dtype=np.float32),
        rectangle=np.array([0, 0, width, height], np.float32),
    )
