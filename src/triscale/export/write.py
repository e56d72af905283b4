"""`triscale export`, top to bottom: weights in, a file out, kept only if it finds the same.

The file is written beside its place, run by the program that it is for, compared with the network
on pictures, and then moved to where it was wanted.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from triscale.engines.header import Run
from triscale.engines.onnx import OnnxEngine
from triscale.engines.openvino import OpenVinoEngine, xml_of
from triscale.engines.pytorch import TorchEngine
from triscale.errors import UserError
from triscale.export.compare import Outcome, compared
from triscale.export.int8 import Inputs, quantise
from triscale.export.onnx import Form, header_of, write_onnx
from triscale.export.openvino import write_openvino
from triscale.export.pictures import choose_pictures, training_pictures, with_bars
from triscale.export.pt2 import open_pt2, write_pt2
from triscale.files import flush, naming
from triscale.log import Narrator
from triscale.packages import require_packages
from triscale.predict import find_weights, is_exported, prepare, read_pixels
from triscale.weights.formats import load_weights

Kind = Literal["onnx", "pt2", "openvino"]
LEFT = 1 << 20  # bytes: with less of it a disk is full


class Wanted(NamedTuple):
    """What `triscale export` is asked for."""

    size: tuple[int, int] | None = None  # height, width; None: as the weights say
    dynamic: bool = False
    batch: int | None = None  # None: any
    resize: bool = False
    raw: bool = False
    half: bool = False
    calibrate: Path | None = None  # the data whose pictures tell the ranges for int8
    check: Path | None = None


def export(
    weights: Path,
    target: Path,
    wanted: Wanted,
    *,
    narrator: Narrator,
    show: Callable[[Outcome], None] | None = None,
) -> Outcome:
    """Write `target` from weights, if what was written finds what the network finds.

    Raises UserError, and leaves nothing, if it doesn't; `show` is told in either case.
    """
    kind = kind_of(target)
    _require_possible(kind, wanted)
    _require_replaceable(target, kind)
    source = find_weights(weights)
    if is_exported(source):
        raise UserError(f"{source}: is exported already; export the weights it was made from")
    model, info = load_weights(source)
    engine = TorchEngine(source, device="cpu", size=wanted.size)
    form = Form(
        engine.size,
        dynamic=wanted.dynamic,
        batch=wanted.batch,
        resize=wanted.resize,
        raw=wanted.raw,
        half=wanted.half and kind != "openvino",  # which halves the weights by itself
    )
    precision = "int8" if wanted.calibrate else "fp16" if wanted.half else "fp32"
    header = header_of(info, model, form, precision=precision)
    # 8 bits are always measured: nothing else says whether they are enough
    check = wanted.check or wanted.calibrate
    pictures = choose_pictures(info, check=check, measure=check is not None)
    parent = target.absolute().parent
    with naming(parent):
        beside = TemporaryDirectory(dir=parent, prefix=f".{target.name}-")
    with beside as folder, naming(target, Path(folder)), _full_disk_told(Path(folder)):
        made = Path(folder) / target.name
        narrator.say(f"writing {target}, {header.precision}")
        if kind == "pt2":
            write_pt2(made, model, info, form, header=header)
        else:
            onnx = made if kind == "onnx" else Path(folder) / "detector.onnx"
            write_onnx(onnx, model, info, form, header=header)
            if wanted.calibrate:
                narrator.say(f"looking at pictures of {wanted.calibrate} for the ranges")
                inputs = _inputs(engine, wanted.calibrate, form)
                quantise(onnx, inputs, header=header, fused=kind == "openvino")
            if kind == "openvino":
                write_openvino(made, onnx, header=header, half=wanted.half)
        run = _opened(made, kind, form)
        outcome = compared(engine, run, header=header, pictures=pictures, narrator=narrator)
        if show:
            show(outcome)
        outcome.require(target)
        for file in made.iterdir() if made.is_dir() else (made,):
            flush(file)
        if target.is_dir():
            shutil.rmtree(target)
        made.replace(target)
        flush(parent)
    return outcome


def kind_of(target: Path) -> Kind:
    """What the name of a file or folder asks for; UserError if it asks for nothing we write."""
    if target.suffix.lower() == ".onnx":
        return "onnx"
    if target.suffix.lower() == ".pt2":
        return "pt2"
    if target.name.endswith("_openvino"):
        return "openvino"
    raise UserError(
        f"{target}: expected a name that ends in .onnx, .pt2 or _openvino (a folder); for "
        "TensorRT, CoreML, TFLite and ncnn export .onnx first (docs/export.md)"
    )


def _require_possible(kind: Kind, wanted: Wanted) -> None:
    """UserError for wishes that don't go together, and for missing packages."""
    for side in wanted.size or ():
        if not 32 <= side <= 8192 or side % 32:
            raise UserError(f"--size: expected multiples of 32 from 32 to 8192, got {side}")
    for no, why in (
        (wanted.resize and wanted.dynamic, "--resize: needs a fixed --size to resize to"),
        (wanted.resize and wanted.raw, "--resize: has no --raw; resize before the network"),
        (wanted.calibrate and wanted.half, "--int8: has no --half; choose one"),
        (wanted.calibrate and kind == "pt2", "--int8: is for .onnx and _openvino, not for .pt2"),
    ):
        if no:
            raise UserError(why)
    if kind != "pt2":
        require_packages(
            *("onnx", "onnxscript", "onnxruntime"), purpose="triscale export", extra="export"
        )
    if kind == "openvino":
        require_packages("openvino", purpose="an export to OpenVINO")


def _require_replaceable(target: Path, kind: Kind) -> None:
    """UserError if what is there is nothing that an export wrote."""
    if kind != "openvino" and target.is_dir():
        raise UserError(f"{target}: is a folder; expected the name of a file")
    if kind == "openvino" and target.exists():
        ours = {xml_of(target).name, xml_of(target).with_suffix(".bin").name}
        if not target.is_dir() or not {file.name for file in target.iterdir()} <= ours:
            raise UserError(f"{target}: isn't a folder that triscale export wrote; name another")


@contextmanager
def _full_disk_told(folder: Path) -> Generator[None]:
    """Make an OSError of a full disk, for which onnx and OpenVINO have errors of their own."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        if shutil.disk_usage(folder).free > LEFT:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _opened(path: Path, kind: Kind, form: Form) -> Run:
    """The written file as the function that it is."""
    if kind == "pt2":
        return open_pt2(path, form)
    return OpenVinoEngine(path).run if kind == "openvino" else OnnxEngine(path).run


def _inputs(engine: TorchEngine, data: Path, form: Form) -> Iterator[Inputs]:
    """Training pictures as a graph of `form` takes them."""
    for path in training_pictures(data):
        pixels = read_pixels(path)
        images, sizes = prepare([pixels], engine.size, fit=engine.fit)
        inputs: dict[str, Any] = {"images": images, "sizes": sizes}
        if form.resize:
            inputs = {"images": pixels[None]}
        elif form.raw:
            inputs = {"images": with_bars(images, sizes, fit=engine.fit)}
        yield {name: values.repeat(form.batch or 1, axis=0) for name, values in inputs.items()}
