"""Runs as the command line starts, resumes and measures them: paths in, folders out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from triscale.budget import fit_minutes
from triscale.checkpoint import has_state, load_state, require_unused
from triscale.choosing import choose
from triscale.config import apply_override, build, key_of, quoted, to_dict
from triscale.data.open import Data, describe, open_dataset
from triscale.data.options import DataConfig, for_measuring
from triscale.decode import DecodeConfig
from triscale.detections import Detections
from triscale.engines.pytorch import TorchEngine
from triscale.errors import UserError
from triscale.evaluation import EvalConfig, Evaluation, choose_metric, evaluate, score
from triscale.lengths import with_key
from triscale.log import Narrator, Volume
from triscale.model.yolo import YOLOv3, build_model
from triscale.pixels import InputConfig
from triscale.predict import Detector, find_weights
from triscale.recipe import Recipe, load_recipe, make_recipe, require_unchanged
from triscale.training import Result, train
from triscale.weights.contents import require_size
from triscale.weights.formats import read_weights
from triscale.weights.start import start_from
from triscale.weights.zoo import ZOO


class Wishes(NamedTuple):
    """What is left to be found out about a run when it starts."""

    base: Recipe | None = None  # fit this recipe to the data and the machine
    given: Collection[str] = ()  # keys that the user has set; they stay as they are
    minutes: float | None = None  # as many epochs as fit into this time
    since: float = 0.0  # time.perf_counter() when that began


def start_or_resume(
    data: Path,
    recipe: str,
    *,
    out: Path,
    overrides: Sequence[str] = (),
    wishes: Wishes,
    volume: Volume = "normal",
) -> Result:
    """Start a run in `out`, or go on with the one there: for jobs that are restarted."""
    if has_state(out):
        # what a run began with is in its folder already; where the data are may have changed
        given = [text for text in overrides if key_of(text) != "train.init"]
        given.append(quoted("data.path", str(data.absolute())))
        if wishes.minutes:  # no mistake: the command that starts a job also takes it up
            Narrator(enabled=_is_main(), volume=volume).say(
                f"{out}: goes on to the end that was planned when it began; --minutes plans new "
                "runs only, and --epochs N in its place moves this one's end"
            )
        return resume_run(out, overrides=given, volume=volume)
    settings = load_recipe(recipe, overrides=overrides)
    return start_run(data, settings, name=out.name, out=out, wishes=wishes, volume=volume)


def start_run(
    data: Path,
    settings: Recipe,
    *,
    name: str,
    out: Path | None = None,
    wishes: Wishes | None = None,
    volume: Volume = "normal",
) -> Result:
    """Open the data, say what was found, and train in a new folder (`runs/<data>-<name>`)."""
    run = out or Path("runs")
    if _is_main():  # the only process that writes; the others must not stumble over what it wrote
        run = out or _free_folder(run, f"{data.absolute().name}-{name}")
        require_unused(run)
    settings = replace(settings, data=replace(settings.data, path=str(data)))
    return _run(settings, run, resume=False, wishes=wishes, volume=volume)


def resume_run(run: Path, *, overrides: Sequence[str] = (), volume: Volume = "normal") -> Result:
    """Go on with the run in a folder from its newest state."""
    for assignment in overrides:
        if key_of(assignment) == "train.init":
            raise UserError(f"--set {assignment}: a run that goes on has its weights")
    path = run / "recipe.toml"
    if path.is_file():
        require_unchanged(path)
        begun, recipe = load_recipe(path), load_recipe(path, overrides=overrides)
    elif has_state(run):  # whose recipe is the same
        table = dict(load_state(run / "last")[0].values["recipe"])
        source = f"{run / 'last'}: recipe"
        begun = make_recipe(table, source=source)
        recipe = make_recipe(table, overrides=overrides, source=source)
    else:
        raise UserError(
            f"{run}: expected a run folder with recipe.toml; "
            f"start the run anew (triscale train DATA --out {run})"
        )
    if recipe.train.precision == "auto":  # settled when the run began
        recipe = replace(recipe, train=replace(recipe.train, precision=begun.train.precision))
    return _run(recipe, run, resume=True, volume=volume)


def evaluate_weights(
    weights: Path,
    data: Path,
    *,
    split: str | None = None,
    size: int | None = None,
    metric: str | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "auto"] = "fp32",
    overrides: Sequence[str] = (),
    volume: Volume = "normal",
) -> Evaluation:
    """Measure weights on a split; the weights' own recipe says how, unless it is overridden."""
    if batch_size < 1 or workers < 0:
        raise UserError("expected --batch-size >= 1 and --workers >= 0")
    if size is not None:
        require_size(size, source="--size")
    detector = Detector(weights, device=device, precision=precision)
    engine = detector.engine
    table = {key: dict(engine.recipe.get(key, {})) for key in ("data", "decode", "evaluate")}
    if isinstance(engine, TorchEngine):
        table["input"] = to_dict(engine.info.input)
    elif size is not None or any(text.startswith(("decode.", "input.")) for text in overrides):
        raise UserError(f"{detector.path}: size, input and decoding of an exported file are fixed")
    table["data"] = for_measuring(table["data"])
    for assignment in overrides:
        apply_override(table, assignment)
    if unknown := sorted(set(table) - {"data", "decode", "evaluate", "input"}):
        raise UserError(
            f"--set {unknown[0]}...: eval knows the sections data, decode, evaluate and input"
        )
    config = build(DataConfig, table["data"], where="data")
    if split:
        config = replace(config, val=split)
    opened = open_dataset(data, config, classes=detector.classes, splits=("val",))
    narrator = Narrator(volume=volume)
    for line in opened.skipped:
        narrator.say(f"skipped: {line}")
    if opened.note:
        narrator.say(f"{opened.note}; --split names another")
    assert opened.val
    chosen = build(EvalConfig, table["evaluate"], where="evaluate")
    measure = choose_metric(metric or chosen.metric, opened.format)
    with narrator:
        narrator.begin("evaluating", -(-len(opened.val) // batch_size))
        if not isinstance(engine, TorchEngine):
            found: list[Detections] = []
            for start in range(0, len(opened.val), batch_size):
                found += detector.batch(opened.val.paths[start : start + batch_size])
                narrator.advance()
            return score(found, opened.val, size=engine.size[0], metric=measure, config=chosen)
        return evaluate(
            engine.model,
            opened.val,
            size=size or engine.info.size,
            metric=measure,
            config=chosen,
            decode=build(DecodeConfig, table["decode"], where="decode"),
            input_config=build(InputConfig, table["input"], where="input"),
            batch_size=batch_size,
            workers=workers,
            device=engine.device,
            on_batch=narrator.advance,
        )


def open_and_fit(
    settings: Recipe,
    *,
    base: Recipe | None = None,
    given: Collection[str] = (),
    say: Callable[[str], None],
) -> tuple[Recipe, Data]:
    """The data of a recipe, and the recipe, fitted to them and the machine if it comes from `base`.

    The keys in `given` stay as they are. What was found and chosen is said.
    """
    path = str(Path(settings.data.path).absolute())
    settings = replace(settings, data=replace(settings.data, path=path))
    data = open_dataset(Path(path), settings.data)
    for line in [*(f"skipped: {line}" for line in data.skipped), *describe(data)]:
        say(line)
    if base:
        settings, lines = choose(settings, data, given=given, base=base)
        for line in lines:
            say(line)
    return settings, data


def initial_network(
    settings: Recipe, classes: Sequence[str], *, say: Callable[[str], None]
) -> tuple[YOLOv3, Recipe]:
    """The network that training begins with, from `train.init` or at random, and its recipe."""
    seeded = torch.Generator().manual_seed(settings.train.seed)
    if not settings.train.init:
        return build_model(settings.model, len(classes), generator=seeded), settings
    path = find_weights(Path(settings.train.init))
    start = start_from(
        read_weights(path),
        settings.model,
        classes,
        input_config=settings.input,
        source=str(path),
        generator=seeded,
    )
    for line in start.report:
        say(line)
    return start.model, replace(settings, model=start.config)


def _run(
    settings: Recipe, run: Path, *, resume: bool, wishes: Wishes | None = None, volume: Volume
) -> Result:
    settings.log.require_installed()  # before anything takes time
    wishes = wishes or Wishes()
    narrator = Narrator(enabled=_is_main(), volume=volume)
    # the number of epochs, if it follows from a time, is not one of the choices
    given = {*wishes.given, *(["train.epochs"] if wishes.minutes else [])}
    wanted = settings
    settings, data = open_and_fit(settings, base=wishes.base, given=given, say=narrator.say)
    model = None
    if settings.train.init and not resume:
        model, settings = initial_network(settings, data.classes, say=narrator.say)
    elif not resume:
        name = settings.model.backbone
        hint = f" (ImageNet's can be had: triscale download {name})" if name in ZOO else ""
        narrator.say(f"training {name} from random weights{hint} in {run}")

    def at_size(size: int) -> Recipe:
        """The choices again with another size; the network that was built stays."""
        plain = with_key(replace(wanted, data=settings.data), "train.size", size)
        found, _ = choose(plain, data, given={*given, "train.size"}, base=wishes.base)
        return replace(found, model=settings.model) if model else found

    if wishes.minutes:
        settings, lines = fit_minutes(
            settings,
            data,
            model or initial_network(settings, data.classes, say=narrator.say)[0],
            minutes=wishes.minutes,
            spent=time.perf_counter() - wishes.since,
            folder=run,
            given=wishes.given,
            at_size=at_size if wishes.base and "train.size" not in given else None,
        )
        for line in lines:
            narrator.say(line)
    result = train(settings, data, run, model=model, resume=resume, narrator=narrator)
    found = f"best mAP {result.best:.4f}; weights, log and pictures"
    if result.best < 0:
        found = "nothing was measured; the last weights and the log"
    narrator.conclude(f"{found} in {run}")
    return result


def _is_main() -> bool:
    """Whether this is the first process that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or with the first number behind it that is not taken."""
    number = 2
    folder = parent / name
    while folder.exists():
        folder = parent / f"{name}-{number}"
        number += 1
    return folder
