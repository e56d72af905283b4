"""Networks that begin with other weights: what is loaded, adapted and left at random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from triscale.errors import UserError
from triscale.model.yolo import ModelConfig, YOLOv3, build_model
from triscale.pixels import NORMALISATIONS, Fit, InputConfig
from triscale.weights.contents import Weights, WeightsInfo, fold_normalisation
from triscale.weights.start import Start, start_from

CONFIG = ModelConfig(backbone="mobilenet0.1", init="kaiming")
OTHER_ANCHORS = tuple(((10.0, 20.0), (20.0, 10.0), (30.0, 30.0)) for _ in range(3))


def make_weights(
    classes: tuple[str, ...] = ("cat", "Dog", "sofa"),
    config: ModelConfig = CONFIG,
    *,
    normalise: str = "imagenet",
    parts: tuple[str, ...] = ("backbone", "head"),
) -> Weights:
    model = build_model(config, max(len(classes), 1), generator=torch.Generator().manual_seed(5))
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(parts) and not name.endswith("num_batches_tracked")
    }
    info = WeightsInfo(classes, config, 416, InputConfig(normalise), {})  # type: ignore[arg-type]
    return Weights(tensors, info)


def start(
    weights: Weights,
    classes: tuple[str, ...],
    config: ModelConfig = CONFIG,
    *,
    fit: Fit = "stretch",
) -> Start:
    return start_from(
        weights,
        config,
        classes,
        input_config=InputConfig(fit=fit),
        source="w",
        generator=torch.Generator().manual_seed(7),
    )


def rows(model: YOLOv3, label: int | None = None) -> torch.Tensor:
    """The biases (3, 3, ...) of each stride and anchor: of a class, or of box and objectness."""
    biases = torch.stack([layer.bias.unflatten(0, (3, -1)) for layer in model.head.outputs])
    return biases[..., :5] if label is None else biases[..., 5 + label]


def test_the_same_classes_take_all() -> None:
    weights = make_weights()
    model, config, report = start(weights, ("cat", "Dog", "sofa"))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.tensors.items())
    assert config == CONFIG
    assert report == ("w: loaded 50 of 50 convolutions",)


def test_other_classes_are_matched_by_name() -> None:
    """By the exact name, by another case, by VOC's and COCO's two names for one thing."""
    weights = make_weights()
    model, _, report = start(weights, ("dog", "couch", "bird", "cat"))
    donor = build_model(CONFIG, 3, generator=torch.Generator())
    donor.load_state_dict(weights.tensors, strict=False)
    assert torch.equal(rows(model), rows(donor))
    for new, old in ((0, 1), (1, 2), (3, 0)):
        assert torch.equal(rows(model, new), rows(donor, old))
    assert report == (
        "w: loaded 50 of 50 convolutions",
        "  adapted: the outputs, with 3 classes (dog = Dog, couch = sofa, cat) by name",
        "  at random: the outputs for 1 class (bird)",
    )


def test_no_class_of_these_names() -> None:
    model, _, report = start(make_weights(), ("x", "y"))
    assert report[1:] == (
        "  adapted: the outputs, with no class by name",
        "  at random: the outputs for 2 classes (x, y)",
    )
    donor = build_model(CONFIG, 3, generator=torch.Generator())
    donor.load_state_dict(make_weights().tensors, strict=False)
    assert torch.equal(rows(model), rows(donor)), "where objects are is kept"


def test_a_backbone_alone() -> None:
    weights = make_weights((), parts=("backbone",))
    model, _, report = start(weights, ("a", "b"))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.tensors.items())
    fresh = build_model(CONFIG, 2, generator=torch.Generator().manual_seed(7)).state_dict()
    assert all(torch.equal(state[n], fresh[n]) for n in state if n.startswith("head."))
    assert report == (
        "w: loaded 27 of 50 convolutions",
        "  at random: 23 of the 23 convolutions of the head",
    )


def test_another_input_is_folded() -> None:
    weights = make_weights(normalise="unit")
    model, _, report = start(weights, weights.info.classes)
    assert report[1] == (
        "  adapted: the first convolution, from unit to imagenet input (exact but for the border)"
    )
    folded = fold_normalisation(weights.tensors, NORMALISATIONS["unit"], NORMALISATIONS["imagenet"])
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in folded.items())


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_another_fit_is_said(fit: Fit) -> None:
    *_, last = start(make_weights(), ("cat", "Dog", "sofa"), fit=fit).report
    said = "  not kept: pictures by stretch; --set input.fit=stretch keeps it"
    assert last == (said if fit == "letterbox" else "w: loaded 50 of 50 convolutions")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("x", "y", "z"), ["  adapted: the classes, by position: the file has no names"]),
        (("class0", "class1", "class2"), []),
    ],
)
def test_a_file_without_names_goes_by_position(
    classes: tuple[str, ...], expected: list[str]
) -> None:
    """As the reference does."""
    weights = make_weights(("class0", "class1", "class2"))
    weights = weights._replace(info=weights.info._replace(named=False))
    model, _, report = start(weights, classes)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.tensors.items())
    assert list(report[1:]) == expected


@pytest.mark.parametrize("asked", [(), OTHER_ANCHORS])
def test_the_files_anchors_are_kept_unless_the_recipe_names_its_own(
    asked: tuple[tuple[tuple[float, float], ...], ...],
) -> None:
    weights = make_weights(config=replace(CONFIG, anchors=OTHER_ANCHORS))
    made = start(weights, weights.info.classes, replace(CONFIG, anchors=asked))
    assert made.config.anchors == made.model.anchors == OTHER_ANCHORS
    said = () if asked else ("  adapted: the recipe, to the file's anchors",)
    assert made.report[1:] == said
    mine = tuple(tuple((w + 1, h) for w, h in row) for row in OTHER_ANCHORS)
    made = start(weights, weights.info.classes, replace(CONFIG, anchors=mine))
    assert made.model.anchors == mine
    assert made.report[1] == "  adapted: the anchors: sizes are now relative to the recipe's"


def test_another_number_of_anchors_leaves_the_outputs_at_random() -> None:
    weights = make_weights()
    two = tuple(row[:2] for row in OTHER_ANCHORS)
    made = start(weights, weights.info.classes, replace(CONFIG, anchors=two))
    assert made.model.head.outputs[0].out_channels == 2 * (5 + 3)
    assert made.report == (
        "w: loaded 47 of 50 convolutions",
        "  at random: 3 of the 23 convolutions of the head",
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            make_weights(config=ModelConfig(backbone="mobilenet0.2")),
            "w: holds mobilenet0.2, the recipe wants mobilenet0.1; "
            "use --set model.backbone=mobilenet0.2 (train_yolo3: --network)",
        ),
        (
            make_weights(config=replace(CONFIG, spp=True)),
            "w: has another head; use --set model.spp=true",
        ),
        (
            Weights({"backbone.x": torch.zeros(1)}, make_weights().info),
            "w: 242 tensors do not fit mobilenet0.1, the first is backbone.x",
        ),
        (
            Weights({"backbone.stem.conv.weight": torch.zeros(1)}, make_weights().info),
            "w: 241 tensors do not fit mobilenet0.1, the first is backbone.stem.conv.weight",
        ),
        (
            make_weights(parts=("backbone", "head.blocks", "head.transitions")),
            "w: 6 tensors do not fit mobilenet0.1, the first is head.outputs.0.weight",
        ),
        (
            make_weights((), parts=("backbone.stages",)),
            "w: 5 tensors do not fit mobilenet0.1, the first is backbone.stem.conv.weight",
        ),
    ],
)
def test_weights_of_another_network(weights: Weights, message: str) -> None:
    with pytest.raises(UserError) as caught:
        start(weights, weights.info.classes)
    assert str(caught.value) == message
