"""The validation of a run, measured again: for folders that hold weights but no detections."""

from __future__ import annotations

import time
from pathlib import Path

from triscale.data.open import open_dataset
from triscale.engines.pytorch import TorchEngine
from triscale.errors import UserError
from triscale.evaluation import choose_metric, evaluate
from triscale.log import Narrator
from triscale.predict import find_weights
from triscale.report.during import describe_validation
from triscale.report.found import BEST, Found, save_found
from triscale.report.story import Story, read_story


def measure_again(story: Story, *, device: str, narrator: Narrator) -> Found:
    """The validation of the run's best weights, else its newest, of which the best's is kept.

    Raises UserError if there are no weights, or if the data are gone.
    """
    recipe = story.recipe
    weights = find_weights(story.folder)
    engine = TorchEngine(weights, device=device)
    opened = open_dataset(
        Path(recipe.data.path), recipe.data, classes=engine.classes, splits=("val",)
    )
    assert opened.val is not None  # asked for
    narrator.begin("measuring", -(-len(opened.val) // 8))
    began = time.perf_counter()
    evaluation = evaluate(
        engine.model,
        opened.val,
        size=engine.info.size,
        input_config=engine.info.input,
        metric=choose_metric(recipe.evaluate.metric, opened.format),
        config=recipe.evaluate,
        decode=recipe.decode,
        device=engine.device,
        on_batch=narrator.advance,
    )
    narrator.end()
    best = story.best if weights.name == "best.safetensors" else None
    seconds = time.perf_counter() - began
    about = describe_validation(evaluation, seconds=seconds, device=engine.device)
    about |= {"epoch": best and best["epoch"], "step": best and best["step"]}
    about["weights"] = weights.name
    found = Found(about, opened.val, evaluation.detections)
    if best:  # else nothing tells later which weights these are of
        save_found(story.folder / BEST, found)
    return found


def read_or_measure(folder: Path, *, device: str, narrator: Narrator) -> Story:
    """The story of a run; if its detections are missing they are measured, or a note says why not.

    Raises UserError if there is no run in the folder.
    """
    story = read_story(folder)
    if story.found:
        return story
    narrator.say(f"{folder}: no detections of the best validation; measuring the weights again")
    try:
        return story._replace(found=measure_again(story, device=device, narrator=narrator))
    except UserError as error:
        narrator.warn(str(error))
        return story._replace(notes=(*story.notes, f"not measured again: {error}"))
