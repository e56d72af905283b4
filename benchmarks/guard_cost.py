"""What it costs that a step looks at itself: with the guards against a bare step, side by side.

Bare: gradients as autograd makes them, no look at them, the update. Guarded: what the loop of
`triscale.training` does: gradients in one tensor, batch statistics kept, everything looked at, the
numbers read (on a GPU two steps late). Steps of both kinds alternate on the same network and
pictures. Memory is the peak of a GPU; a CPU's isn't measured here.

    python benchmarks/guard_cost.py --backbone darknet53 --batch-size 8 --size 416 --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from triscale.gradients import Gradients, Statistics
from triscale.guard import LAG, Echo
from triscale.model.yolo import build_model
from triscale.optim import parameter_groups
from triscale.recipe import load_recipe
from triscale.sgd import SGD
from triscale.step import batch_losses
from triscale.types import Batch


def noise(pictures: int, side: int) -> Batch:
    """Random pictures, each with five objects."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(pictures, 5, 2, generator=generator) * side / 2
    sides = (0.1 + torch.rand(pictures, 5, 2, generator=generator)) * side / 3
    return Batch(
        images=torch.randint(
            0, 256, (pictures, side, side, 3), dtype=torch.uint8, generator=generator
        ),
        boxes=torch.cat([corners, corners + sides], -1),
        labels=torch.randint(0, 20, (pictures, 5), generator=generator),
        weights=torch.ones(pictures, 5),
        image_ids=torch.arange(pictures),
        original_sizes=torch.full((pictures, 2), side),
        colour=torch.eye(3, 4).repeat(pictures, 1, 1),
        rectangle=torch.tensor([0.0, 0.0, side, side]).repeat(pictures, 1),
    )


def main() -> None:
    """Measure and print one table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=15, help="of each kind")
    words = parser.parse_args()
    device = torch.device(words.device)
    recipe = load_recipe(
        "small",
        overrides=[f"model.backbone={words.backbone}", f"train.precision={words.precision}"],
    )
    model = build_model(recipe.model, 20, generator=torch.Generator().manual_seed(0))
    model.to(device).to(memory_format=torch.channels_last)
    batch = noise(words.batch_size, words.size).to(device)
    grid = model.grid((words.size, words.size))
    optimizer = SGD(parameter_groups(model, recipe.optim), lr=1e-6)
    gradients, kept = Gradients(model, notes=6), Statistics(model)
    views = [param.grad for param in model.parameters()]
    echo, number = Echo(lag=0 if device.type == "cpu" else LAG), 0

    def loss() -> torch.Tensor:
        return batch_losses(model, batch, grid, recipe=recipe, global_batch=words.batch_size).total

    def bare() -> None:
        for param in model.parameters():
            param.grad = None
        loss().backward()
        optimizer.step()

    def guarded() -> None:
        nonlocal number
        for param, view in zip(model.parameters(), views, strict=True):
            param.grad = view
        gradients.clear()
        kept.keep()
        total = loss()
        total.backward()
        gradients.notes[0] += total.detach()
        ok = gradients.finite()
        gradients.clear_unless(ok)
        kept.restore_unless(ok)
        optimizer.step(ok=ok)
        number += 1
        echo.send(number, gradients.notes, ok)
        list(echo.receive())

    def seconds(step: Callable[[], None]) -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for step in (bare, guarded, bare, guarded):  # warm up
        step()
    times: dict[str, list[float]] = {"bare": [], "guarded": []}
    for _ in range(words.steps):
        times["bare"].append(seconds(bare))
        times["guarded"].append(seconds(guarded))
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    ratio = statistics.median(g / b for b, g in zip(times["bare"], times["guarded"], strict=True))
    for kind, median in medians.items():
        print(f"{kind:8} {1000 * median:9.2f} ms a step (median of {words.steps})")
    print(f"guarded / bare: {ratio:.3f} (median of the pairs)")
    print(json.dumps({**vars(words), **medians, "ratio": ratio, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
