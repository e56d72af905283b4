"""From draws to batches: read, transform, collate, and the loader that does it in workers."""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from triscale.data.augment import AugmentConfig, apply_view, draw_view, val_transform
from triscale.data.cut import mix
from triscale.data.decoded import DecodedPictures
from triscale.data.index import Index
from triscale.data.mosaic import draw_tiles, join_tiles
from triscale.data.pictures import picture_size, read_picture, reduced
from triscale.data.recent import RecentPictures
from triscale.data.watch import TICK, Places, end, next_batch, no_alarm, start_worker
from triscale.errors import UserError
from triscale.pixels import Fit
from triscale.types import Batch, Draw, Sample


def load(
    index: Index,
    image: int,
    *,
    places: Places | None = None,
    decoded: DecodedPictures | None = None,
    recent: RecentPictures | None = None,
    reduction: int = 1,
) -> Sample:
    """An image of the index as it is on disk, with its labels; `places` learns of it first.

    With a `reduction` its pixels are those of a smaller picture; all else is as it was.
    """
    if places:
        places.enter(image)
    if reduction > 1:  # what is kept has all pixels, and averaging those gives others
        decoded = None
    height, width = index.sizes[image].tolist()
    pixels = decoded.get(image) if decoded else None
    if pixels is None and recent:
        pixels = recent.get(image, reduction=reduction)
    if pixels is None:
        path = Path(index.paths[image])
        pixels = read_picture(path, reduction=reduction)
        if pixels.shape[:2] != reduced((height, width), reduction):
            found = picture_size(path)
            raise UserError(
                f"{path}: expected {width}x{height} pixels as when the data set was opened, "
                f"found {found[1]}x{found[0]}"
            )
        if decoded:
            decoded.put(image, pixels)
        if recent:
            recent.put(image, pixels, reduction=reduction)
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


def read(
    index: Index,
    draw: Draw,
    config: AugmentConfig,
    *,
    fit: Fit = "stretch",
    places: Places | None = None,
    decoded: DecodedPictures | None = None,
    recent: RecentPictures | None = None,
) -> Sample:
    """The sample that a draw describes: a pure function of its arguments and the files."""
    fetch = partial(load, index, places=places, decoded=decoded, recent=recent)
    if not draw.augment:
        return val_transform(fetch(draw.index), draw.size, fit=fit)
    images = [draw.index, *draw.tiles]
    if draw.partner is not None:
        images.append(draw.partner)
    boxes = [index.boxes[index.objects(image)] for image in images]
    rng = np.random.Generator(np.random.PCG64(draw.seed))
    if draw.tiles:
        sizes = [(height, width) for height, width in index.sizes[images].tolist()]
        tiles: list[Sample] = []
        views = draw_tiles(rng, sizes, boxes, size=draw.size, config=config)
        for image, view in zip(images, views, strict=True):
            if places:
                places.leave()  # what fails now has nothing to do with the tile before
            tiles.append(apply_view(fetch(image, reduction=view.reduction), view))
        return join_tiles(tiles)
    height, width = index.sizes[images].max(0).tolist()
    all_boxes = np.concatenate(boxes)
    view = draw_view(rng, (height, width), all_boxes, size=draw.size, config=config, reduce=True)
    first, *others = (fetch(image, reduction=view.reduction) for image in images)
    return apply_view(mixed(first, others[0], draw.ratio) if others else first, view)


def mixed(first: Sample, second: Sample, ratio: float) -> Sample:
    """Both pictures in one, the first one with weight `ratio`, and the objects of both."""
    weights = first.weights * np.float32(ratio), second.weights * np.float32(1 - ratio)
    return first._replace(
        image=mix(first.image, second.image, ratio),
        boxes=np.concatenate([first.boxes, second.boxes]),
        labels=np.concatenate([first.labels, second.labels]),
        weights=np.concatenate(weights),
    )


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
        # torch's own, because in a worker it stacks in shared memory: no copy is left to be made
        images=default_collate([torch.from_numpy(s.image) for s in samples]),
        boxes=torch.from_numpy(pad([s.boxes for s in samples])),
        labels=torch.from_numpy(pad([s.labels for s in samples])),
        weights=torch.from_numpy(pad([s.weights for s in samples], 0)),
        image_ids=torch.tensor([s.image_id for s in samples]),
        original_sizes=torch.tensor([s.original_size for s in samples]),
        colour=torch.from_numpy(stack([s.colour for s in samples])),
        rectangle=torch.from_numpy(stack([s.rectangle for s in samples])),
    )


class DrawDataset(Dataset[Sample | UserError]):
    """Samples by draw. A picture that can't be used is returned as an error, not raised: an
    exception that crosses from a worker arrives wrapped in its traceback."""

    def __init__(
        self,
        index: Index,
        config: AugmentConfig,
        fit: Fit = "stretch",
        places: Places | None = None,
        decoded: DecodedPictures | None = None,
    ) -> None:
        self._index, self._config, self._decoded = index, config, decoded
        self._fit: Fit = fit
        self._places = places or Places(index, 0)
        # without mosaics no picture is asked for twice
        self._recent = RecentPictures() if config.mosaic else None

    def __getitem__(self, draw: Draw) -> Sample | UserError:
        try:
            return read(
                self._index,
                draw,
                self._config,
                fit=self._fit,
                places=self._places,
                decoded=self._decoded,
                recent=self._recent,
            )
        except UserError as error:
            return error
        except MemoryError:
            return UserError(f"{self._places.here()}: memory ran out; try fewer --workers")
        except (OSError, cv2.error) as error:
            reason = " ".join(str(error).split())
            return UserError(f"{self._places.here()}: can't be used ({reason})")
        except Exception as error:  # a bug: it keeps its traceback
            error.add_note(f"while reading {self._places.here()}")
            raise
        finally:
            self._places.leave()


def make_loader(
    index: Index,
    batches: Iterable[list[Draw]],
    *,
    config: AugmentConfig,
    workers: int,
    fit: Fit = "stretch",
    decoded: DecodedPictures | None = None,
    pin_memory: bool = False,
    timeout: float = 600,
) -> Iterator[Batch]:
    """The batches of `batches`, in order, read ahead by `workers` processes (0: by this one).

    `fit` is for the draws without augmentation, `decoded` holds pictures that needn't be decoded.
    Raises UserError, naming the file, when a picture can't be read; when a worker died at it; and
    when the workers stood still for `timeout` seconds (0: never), because a disk doesn't answer.
    It is raised when a batch is asked for, not in between. Without workers nothing watches.
    """
    places = Places(index, workers)
    with warnings.catch_warnings():
        # torch advises against more workers than cores; how many there are is the user's word.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader: DataLoader[Batch | UserError] = DataLoader(
            DrawDataset(index, config, fit, places, decoded),  # type: ignore[arg-type]  # torch: batches are samples
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate_or_error,
            worker_init_fn=start_worker if workers else None,
            pin_memory=pin_memory,
            timeout=min(TICK, timeout or TICK) if workers else 0,
            # its own: the global one would otherwise be drawn from for the workers' base seed
            generator=torch.Generator(),
        )
    stream, crew = None, list[BaseProcess]()
    others = multiprocessing.active_children()
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():  # it says so again when the workers start
                warnings.filterwarnings("ignore", "This DataLoader will create")
                stream = iter(loader)
            crew += [child for child in multiprocessing.active_children() if child not in others]
            pinning = [t for t in threading.enumerate() if "_pin_memory_loop" in t.name]
            stack.enter_context(no_alarm(crew))
            while batch := next_batch(stream, crew, places, pinning=pinning, timeout=timeout):
                if isinstance(batch, UserError):
                    raise batch
                fields = [torch.as_tensor(field) for field in batch]
                # torch has pinned the pictures
                rest = (field.pin_memory() if pin_memory else field for field in fields[1:])
                yield Batch(fields[0], *rest)
        finally:
            stream = None  # ends the workers now, not when an error that holds this frame is gone
            end(crew)


def _collate_or_error(samples: list[Sample | UserError]) -> Batch | UserError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    try:
        batch = collate(good)
        if not get_worker_info():
            return batch
        # Each tensor would travel as a file of its own in shared memory. Only the pictures are
        # large enough for that: the others go as arrays, in the message.
        return Batch._make([batch.images, *(field.numpy() for field in batch[1:])])
    except (MemoryError, RuntimeError) as error:
        shared = "shared memory" in str(error)  # torch's own error, which is no OSError
        if isinstance(error, RuntimeError) and not shared:
            raise
        return UserError(
            f"{'shared ' * shared}memory ran out for a batch of {len(good)} pictures; "
            f"{'make /dev/shm larger, or ' * shared}try a smaller --batch-size or fewer --workers"
        )
