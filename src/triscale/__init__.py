"""Train, evaluate and ship YOLOv3-family object detectors on PyTorch.

The public names below are loaded when first used, so that `import triscale` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from triscale.choosing import choose
    from triscale.data.open import open_dataset
    from triscale.detections import Detections
    from triscale.errors import UserError
    from triscale.evaluation import evaluate
    from triscale.metrics.coco import coco_ap
    from triscale.metrics.voc import voc_ap
    from triscale.model.darknet import darknet53
    from triscale.model.mobilenet import mobilenet
    from triscale.model.yolo import YOLOv3, build_model
    from triscale.predict import Detector
    from triscale.recipe import Recipe, load_recipe
    from triscale.training import train
    from triscale.types import Batch, Sample
    from triscale.weights.formats import load_weights
    from triscale.weights.native import save_weights

__all__ = [
    "Batch",
    "Detections",
    "Detector",
    "Recipe",
    "Sample",
    "UserError",
    "YOLOv3",
    "build_model",
    "choose",
    "coco_ap",
    "darknet53",
    "evaluate",
    "load_recipe",
    "load_weights",
    "mobilenet",
    "open_dataset",
    "save_weights",
    "train",
    "voc_ap",
]

_HOMES = {
    "triscale.choosing": ("choose",),
    "triscale.data.open": ("open_dataset",),
    "triscale.detections": ("Detections",),
    "triscale.errors": ("UserError",),
    "triscale.evaluation": ("evaluate",),
    "triscale.metrics.coco": ("coco_ap",),
    "triscale.metrics.voc": ("voc_ap",),
    "triscale.model.darknet": ("darknet53",),
    "triscale.model.mobilenet": ("mobilenet",),
    "triscale.model.yolo": ("YOLOv3", "build_model"),
    "triscale.predict": ("Detector",),
    "triscale.recipe": ("Recipe", "load_recipe"),
    "triscale.training": ("train",),
    "triscale.types": ("Batch", "Sample"),
    "triscale.weights.formats": ("load_weights",),
    "triscale.weights.native": ("save_weights",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'triscale' has no attribute '{name}'")
    try:
        home = importlib.import_module(_HOME_OF[name])
    except ModuleNotFoundError as error:
        from triscale.packages import explained

        raise explained(error, f"triscale.{name}") from None
    return getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
