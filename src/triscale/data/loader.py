"""From draws to batches: read, transform, collate, and the loader that does it in workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from triscale.data.augment import AugmentConfig, mix, train_transform, val_transform
from triscale.data.index import Index
from triscale.data.pictures import read_picture
from triscale.errors import UserError
from triscale.pixels import Fit
from triscale.types import Batch, Draw, Sample


def load(index: Index, image: int) -> Sample:
    """An image of the index as it is on disk, with its labels."""
    path = Path(index.paths[image])
    pixels = read_picture(path)
    height, width = index.sizes[image].tolist()
    if pixels.shape[:2] != (height, width):
        raise UserError(
            f"{path}: expected {width}x{height} pixels as when the data set was opened, "
            f"found {pixels.shape[1]}x{pixels.shape[0]}"
        )
    rows = index.objects(image)
    return Sample(
        image=pixels,
        boxes=index.boxes[rows],
        labels=index.labels[rows].astype(np.int64),
        weights=np.ones(rows.stop - rows.start, np.float32),
        image_id=image,
        original_size=(height, width),
        colour=np.eye(3, 4, dtype=np.float32),
        rectangle=np.array([0, 0, width, height], np.float32),
    )


def read(index: Index, draw: Draw, config: AugmentConfig, *, fit: Fit = "stretch") -> Sample:
    """The sample that a draw describes: a pure function of its arguments and the files."""
    sample = load(index, draw.index)
    if not draw.augment:
        return val_transform(sample, draw.size, fit=fit)
    if draw.partner is not None:
        other = load(index, draw.partner)
        sample = sample._replace(
            image=mix(sample.image, other.image, draw.ratio),
            boxes=np.concatenate([sample.boxes, other.boxes]),
            labels=np.concatenate([sample.labels, other.labels]),
            weights=np.concatenate(
                [
                    sample.weights * np.float32(draw.ratio),
                    other.weights * np.float32(1 - draw.ratio),
                ]
            ),
        )
    rng = np.random.Generator(np.random.PCG64(draw.seed))
    return train_transform(sample, draw.size, rng=rng, config=config)


def stack(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Arrays of one shape along a new first axis; numbers become float32, bytes stay."""
    stacked = np.stack(arrays)
    return stacked if stacked.dtype == np.uint8 else stacked.astype(np.float32)


def pad(arrays: Sequence[NDArray[np.generic]], fill: float = -1) -> NDArray[np.generic]:
    """Arrays of one rank as one array: every axis is filled up to the longest with `fill`."""
    longest = np.max([a.shape for a in arrays], axis=0)
    padded = np.full((len(arrays), *longest), fill, np.result_type(*arrays))
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(slice(0, n) for n in array.shape)] = array
    return padded


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as a batch; see types.Batch for the padding."""
    return Batch(
        images=torch.from_numpy(stack([s.image for s in samples])),
        boxes=torch.from_numpy(pad([s.boxes for s in samples])),
        labels=torch.from_numpy(pad([s.labels for s in samples])),
        weights=torch.from_numpy(pad([s.weights for s in samples], 0)),
        image_ids=torch.tensor([s.image_id for s in samples]),
        original_sizes=torch.tensor([s.original_size for s in samples]),
        colour=torch.from_numpy(stack([s.colour for s in samples])),
        rectangle=torch.from_numpy(stack([s.rectangle for s in samples])),
    )


class DrawDataset(Dataset[Sample | UserError]):
    """Samples by draw. A picture that can't be read is returned as an error, not raised: an
    exception that crosses from a worker arrives wrapped in its traceback."""

    def __init__(self, index: Index, config: AugmentConfig, fit: Fit = "stretch") -> None:
        self._index, self._config = index, config
        self._fit: Fit = fit

    def __getitem__(self, draw: Draw) -> Sample | UserError:
        try:
            return read(self._index, draw, self._config, fit=self._fit)
        except UserError as error:
            return error


def make_loader(
    index: Index,
    batches: Iterable[list[Draw]],
    *,
    config: AugmentConfig,
    workers: int,
    fit: Fit = "stretch",
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches of `batches`, in order, read ahead by `workers` processes (0: by this one).

    `fit` is for the draws without augmentation.
    Raises UserError, naming the file, when a picture can't be read.
    """
    with warnings.catch_warnings():
        # torch advises against more workers than cores; how many there are is the user's word.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader: DataLoader[Batch | UserError] = DataLoader(
            DrawDataset(index, config, fit),  # type: ignore[arg-type]  # torch: batches are samples
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate_or_error,
            worker_init_fn=_start_worker if workers else None,
            pin_memory=pin_memory,
            # its own: the global one would otherwise be drawn from for the workers' base seed
            generator=torch.Generator(),
        )
    stream = None
    try:
        with warnings.catch_warnings():  # it says so again when the workers start
            warnings.filterwarnings("ignore", "This DataLoader will create")
            stream = iter(loader)
        for batch in stream:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a data loading process died ({str(error).splitlines()[0]}); the usual reason is too "
            "little memory: try fewer --workers"
        ) from error
    finally:
        stream = None  # ends the workers now, not when the error that holds this frame is gone


def _collate_or_error(samples: list[Sample | UserError]) -> Batch | UserError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    return collate(good)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # one thread per worker: the processes already share the cores
    # Ctrl-C, and the signals that a scheduler sends to a whole job, are the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nothing tells who sent a signal: torch's handler stays
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End when the parent says so: it does at its exit, if an error still holds the loader."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
