"""What to do next: one or two sentences from what a run and its validation show.

Rules of thumb with their limits in one place. Each sentence states what was seen, then what usually
helps; none of them knows what the pictures look like, so they are put with care.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from triscale.report.found import Seen
from triscale.report.story import Story, epoch_seconds

MOST = 3  # sentences: more would be a list that nobody works through
NOTHING_FOUND = 0.02  # a mAP below it says that the network hasn't learnt yet
FEW_STEPS = 1000  # below it a network from random weights has rarely learnt
SKIPPED = 0.01  # share of the steps
WAITING = 0.25  # share of the time of the steps
RISING = 0.1  # the best validation lies in this last part of the run: it isn't at its end yet
LOSS_FALLS = 0.02  # share that the loss lost over the last fifth of the epochs
OVERFIT = 0.03  # mAP that was lost since the best validation, in the first two thirds of the run
MAIN_CAUSE = 0.3  # share of the AP that mistakes cost, from which on a kind is worth a sentence
SMALL = 16.0  # pixels of the network input, root of the area: two cells of the finest map
MOSTLY = 0.5  # share of the missed objects
TIGHT = 0.65  # AP75 over AP50: below it boxes are found, but lie badly
WELL = 0.98  # a mAP (AP50 with COCO's metric) above it leaves little to do
FEW_OBJECTS = 20  # of a class in validation: its AP is uncertain


class Loss(NamedTuple):
    """A kind of mistake, and which share of the AP that is lost it is responsible for."""

    kind: str
    share: float


def advise(story: Story, seen: Seen | None) -> list[str]:
    """Sentences, the most urgent first; at least one."""
    lines = [*_about_training(story), *(_about_mistakes(story, seen) if seen else [])]
    if not lines and seen:
        lines = ["Nothing stands out: compare with another recipe, or look at the galleries."]
    return lines[:MOST] or ["There is too little in this run folder yet to say what to do next."]


def losses_of(seen: Seen) -> list[Loss]:
    """The kinds of mistakes by what they cost, the dearest first; none if nothing was lost."""
    errors = seen.analysis.errors
    costs = np.clip(np.nan_to_num(errors.d_ap), 0.0, None)
    total = float(costs.sum())
    if total < 1e-3:
        return []
    order = np.argsort(-costs, kind="stable")
    return [Loss(errors.kinds[k], float(costs[k]) / total) for k in order.tolist()]


def _about_training(story: Story) -> list[str]:
    """What the log says."""
    train, lines = story.recipe.train, list[str]()
    steps = int(story.epochs[-1]["step"]) if story.epochs else 0
    if story.rollbacks or (steps and story.skipped > SKIPPED * steps):
        lines.append(
            f"{story.skipped} of {steps} steps were skipped because loss or gradients were no "
            "numbers: a lower rate (--set optim.lr=...) or --set train.precision=fp32 usually "
            "helps."
        )
    scores = [each["metrics"].get("mAP") for each in story.evals]
    known = [
        (each["epoch"], s) for each, s in zip(story.evals, scores, strict=True) if s is not None
    ]
    best = max((score for _, score in known), default=0.0)
    if known and best < NOTHING_FOUND:
        why = (
            f"only {steps} steps were made: most likely it needs more (--epochs)"
            if steps < FEW_STEPS
            else "see with `triscale check` and `triscale preview` whether the labels are right, "
            "then try a lower rate or --init"
        )
        lines.append(f"The network finds next to nothing yet (mAP {best:.3f}); {why}.")
        return lines
    if known:
        lines += _trend(story, known, best)
    spent = [epoch_seconds(story, k) for k in range(len(story.epochs))]
    waited, total = sum(each.waited for each in spent), sum(each.steps for each in spent)
    if total > 0 and waited / total > WAITING:
        lines.append(
            f"Training waited {waited / total:.0%} of its time for data: more data loading "
            f"processes (--workers, now {train.workers}) or kept pictures (--set data.cache=ram) "
            "would make it faster."
        )
    return lines


def _trend(story: Story, known: list[tuple[int, float]], best: float) -> list[str]:
    """Whether the run ended too early, or went on for too long."""
    last_epoch, last = known[-1]
    begun = story.recipe.train.start_epoch
    length = last_epoch + 1 - begun
    at = next(epoch for epoch, score in known if score == best)
    if len(known) < 3 or length < 3:
        return []
    if last_epoch + 1 < story.recipe.train.epochs:
        return []  # still at it, or stopped
    tail = story.epochs[-max(2, len(story.epochs) // 5) :]
    first, final = float(tail[0]["loss"]), float(tail[-1]["loss"])
    falls = first > 0 and (first - final) / first > LOSS_FALLS
    if at >= last_epoch - RISING * length and falls:
        return [
            f"The training loss still falls (by {(first - final) / first:.0%} over the last "
            f"{len(tail)} epochs) and mAP is at its best at the end: more epochs "
            f"(--epochs {2 * story.recipe.train.epochs}) would probably help."
        ]
    if at < begun + 2 * length / 3 and best - last > OVERFIT and falls:
        return [
            f"mAP was best after epoch {at} and has lost {best - last:.3f} since, while the "
            "training loss fell: fewer epochs, stronger augmentation or more pictures would "
            "probably help."
        ]
    return []


def _about_mistakes(story: Story, seen: Seen) -> list[str]:
    """What the validation says."""
    errors = seen.analysis.errors
    score = errors.ap
    if not len(seen.truth.boxes):
        return ["The validation split has no object, so nothing could be measured."]
    if score > WELL:
        return [f"Nearly everything is found and right (AP50 {score:.3f}): little is left to do."]
    main = [loss for loss in losses_of(seen)[:2] if loss.share >= MAIN_CAUSE]
    lines = [_of_kind(loss, story, seen) for loss in main]
    metrics = story.best["metrics"] if story.best else {}
    loose, tight = metrics.get("AP50") or 0.0, metrics.get("AP75") or 0.0
    if not any("poor boxes" in line for line in lines) and loose > 0.3 and tight < TIGHT * loose:
        lines.append(
            f"Objects are found (AP50 {loose:.3f}), but their boxes are not tight (AP75 "
            f"{tight:.3f}): a larger --size or more epochs usually helps."
        )
    if len(lines) < 2 and (rare := _rare(seen)):
        lines.append(rare)
    return lines


def _of_kind(loss: Loss, story: Story, seen: Seen) -> str:
    """A sentence for a kind of mistake that costs much."""
    said = f"{loss.share:.0%} of the AP that mistakes cost is due to "
    size = story.recipe.train.size
    if loss.kind == "missed":
        small, larger = _small_share(story, seen), min(1024, -(-size * 3 // 64) * 32)
        if small >= MOSTLY:
            return (
                f"{said}missed objects, {small:.0%} of which are smaller than {SMALL:.0f} pixels "
                f"at the size {size}: a larger one (--size {larger}) would probably help."
            )
        return (
            f"{said}missed objects, most of them not small: more epochs, or more pictures like "
            "those under Missed objects, would probably help."
        )
    if loss.kind == "class":
        return f"{said}wrong classes{_confused(seen)}: see whether these labels are consistent."
    if loss.kind == "location":
        term = "" if story.recipe.loss.iou_gain else ", or the recipe modern with its IoU term,"
        return f"{said}poor boxes: more epochs or a larger --size{term} usually tightens them."
    if loss.kind == "duplicate":
        return (
            f"{said}objects found twice: a lower --set decode.iou_threshold "
            f"(now {story.recipe.decode.iou_threshold:g}) suppresses more."
        )
    if loss.kind == "background":
        return (
            f"{said}detections where nothing is labelled: look at Most confident mistakes; "
            "objects that nobody labelled are the usual cause, else more pictures without objects "
            "help."
        )
    return f"{said}boxes that are poor and of the wrong class: more epochs would probably help."


def _small_share(story: Story, seen: Seen) -> float:
    """The share of the missed objects that are small at the network's input."""
    rows = seen.analysis.errors.missed
    if not len(rows):
        rows = seen.analysis.missed
    if not len(rows):
        return 0.0
    size = story.recipe.train.size
    height, width = seen.found.index.sizes[seen.truth.images[rows]].astype(np.float64).T
    sides = seen.truth.boxes[rows, 2:] - seen.truth.boxes[rows, :2]
    if story.recipe.input.fit == "letterbox":
        height = width = np.maximum(height, width)
    areas = sides[:, 0] * size / width * sides[:, 1] * size / height
    return float(np.mean(areas < SMALL**2))


def _confused(seen: Seen) -> str:
    """The two classes that are taken for each other most often, in brackets."""
    confusion = seen.analysis.confusion[:-1, :-1].copy()
    np.fill_diagonal(confusion, 0)
    if not confusion.any():
        return ""
    true, predicted = np.unravel_index(int(confusion.argmax()), confusion.shape)
    names = seen.found.index.classes
    times = int(confusion[true, predicted])
    return f" (most often {names[true]} is taken for {names[predicted]}, {times} times)"


def _rare(seen: Seen) -> str:
    """A sentence about classes with too few objects to measure; empty if there are none."""
    counts = np.bincount(
        seen.truth.labels[~seen.truth.difficult & ~seen.truth.crowd],
        minlength=len(seen.found.index.classes),
    )
    few = np.flatnonzero((counts > 0) & (counts < FEW_OBJECTS))
    if not len(few):
        return ""
    name = seen.found.index.classes[few[0]]
    others = f" and {len(few) - 1} more" if len(few) > 1 else ""
    objects = "object" if counts[few[0]] == 1 else "objects"
    return (
        f"{name}{others}: validation has only {counts[few[0]]} {objects} of it, "
        "so its AP is uncertain; more labelled pictures would help."
    )
