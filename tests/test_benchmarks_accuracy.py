"""Accuracy beside a rival, and the ablation table: what is trained, kept and shown."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("accuracy")


@pytest.fixture
def ablation(accuracy: ModuleType) -> ModuleType:
    return importlib.import_module("ablation")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Five pictures of 40x20 in VOC's layout; the third has no object, the last two are `val`."""
    root = tmp_path / "data"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    boxes = {"a": "1 1 10 20", "b": "5 3 14 12", "c": "", "d": "11 1 30 20", "e": "1 1 40 10"}
    for name, box in boxes.items():
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), np.full((20, 40, 3), 90, np.uint8))
        keys = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=False)
        corners = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
        item = f"<object><name>cell</name><bndbox>{corners}</bndbox></object>" if box else ""
        size = "<size><width>40</width><height>20</height></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{item}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("c\nb\na\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("e\nd\n")
    return root


class PerfectPeer:
    """Says of the pictures what is written in their labels."""

    def __init__(self) -> None:
        self.words: dict[str, Any] = {}
        self.trained_on: list[str] = []

    def ask(self, task: str, **words: Any) -> dict[str, Any]:
        assert task == "train"
        self.words = words
        root = Path(words["root"])
        self.trained_on = [p.resolve().name for p in sorted((root / "images/train").iterdir())]
        detections: list[list[list[float]]] = []
        for path in sorted((root / "images" / "val").iterdir()):
            height, width = cv2.imread(str(path)).shape[:2]
            lines = (root / "labels" / "val" / f"{path.stem}.txt").read_text().splitlines()
            rows = [[float(cell) for cell in line.split()] for line in lines]
            found: list[list[float]] = []
            for c, x, y, w, h in rows:
                first = (x - w / 2) * width, (y - h / 2) * height
                found.append([*first, (x + w / 2) * width, (y + h / 2) * height, 0.9, c])
            detections.append(found)
        return {"seconds": 5.0, "wall_seconds": 7.0, "steps": 4, "detections": detections}


def task(accuracy: ModuleType, data: Path, *overrides: str) -> Any:
    return accuracy.Task(str(data), "train", "val", "small", overrides, 3, 0.0, "cpu", 1, 0)


def test_layout_for_the_rival(accuracy: ModuleType, voc: Path, tmp_path: Path) -> None:
    """Boxes by hand: VOC's 5 3 14 12 are the columns 4 to 14 and the rows 2 to 12 of 40x20."""
    index = accuracy.open_dataset(voc).train
    accuracy.write_yolo({"train": index}, tmp_path / "yolo")
    names = ["0000000", "0000001", "0000002"]
    labels = [(tmp_path / "yolo/labels/train" / f"{name}.txt").read_text() for name in names]
    assert labels == ["", "0 0.225 0.35 0.25 0.5", "0 0.125 0.5 0.25 1"]
    links = sorted((tmp_path / "yolo" / "images" / "train").iterdir())
    assert [link.resolve().name for link in links] == ["c.jpg", "b.jpg", "a.jpg"]
    assert json.loads((tmp_path / "yolo" / "data.yaml").read_text()) == {"names": ["cell"]}


@pytest.mark.parametrize(
    ("overrides", "pictures"),
    [
        ((), ["c.jpg", "b.jpg", "a.jpg"]),
        (("data.inclusive_boxes=true",), ["c.jpg", "b.jpg", "a.jpg"]),
        (("data.num_samples=2",), None),  # those that a run of ours with this seed takes
    ],
)
def test_rival_is_measured_in_our_coordinates(
    accuracy: ModuleType, voc: Path, overrides: tuple[str, ...], pictures: list[str] | None
) -> None:
    """Whoever finds every box to the pixel has a VOC07 mAP and a COCO AP of 1."""
    peer = PerfectPeer()
    one = task(accuracy, voc, *overrides)
    settings = accuracy.rival_settings(one, "yolov3-tiny.yaml")
    asked = {"split": "train", "val": "val", "seed": 1, "size": 320, "batch": 8}
    asked |= {"epochs": 3, "minutes": 0.0, "workers": 0, "device": "cpu"}
    asked |= {"network": "yolov3-tiny.yaml"}
    result = accuracy.rival(peer, one, settings, 1)
    assert [result[key] for key in ("VOC07", "AP", "AP50")] == pytest.approx([1, 1, 1])
    assert result["per_class"] == {"cell": 1.0}
    taken = [result[key] for key in ("seconds", "wall_seconds", "steps", "images")]
    assert taken == [5.0, 7.0, 4, 2]
    del peer.words["root"]
    assert peer.words == asked
    if pictures is None:
        chosen = accuracy.subset(3, 2, 1)
        pictures = [["c.jpg", "b.jpg", "a.jpg"][i] for i in chosen]
        assert len(pictures) == 2
    assert peer.trained_on == pictures


def test_ours_goes_through_the_command_line(
    accuracy: ModuleType, voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands parse, nothing is validated in between, the last weights are measured."""
    commands: list[list[str]] = []

    def triscale(*words: str, threads: int) -> str:
        assert threads == 1
        commands.append(list(words))
        if words[0] == "train":
            run = Path(words[words.index("--out") + 1])
            run.mkdir()
            (run / "epoch_0002.safetensors").touch()
            (run / "log.jsonl").write_text('{"kind": "train", "step": 1}\n')
            return ""
        if "voc07" in words:
            return json.dumps({"mAP": 0.5, "per_class": {"cell": 0.5}, "images": 2})
        return json.dumps({"mAP": 0.3, "AP": 0.3, "AP50": 0.6, "per_class": {"cell": 0.3}})

    monkeypatch.setattr(accuracy, "triscale", triscale)
    result = accuracy.ours(task(accuracy, voc, "optim.lr=0.002", "train.val_interval=1"), 7)
    names = ("VOC07", "AP", "AP50", "per_class", "images", "steps")
    assert [result[name] for name in names] == [0.5, 0.3, 0.6, {"cell": 0.5}, 2, 1]
    from triscale.cli import make_parser
    from triscale.recipe import load_recipe

    train, voc07, coco = (make_parser().parse_args(words) for words in commands)
    recipe = load_recipe(train.recipe, overrides=train.overrides)
    assert (train.data, train.seed, train.epochs) == (str(voc), "7", "3")
    assert (recipe.data.train, recipe.data.val) == ("train", "val")
    assert (recipe.train.val_interval, recipe.optim.lr) == (0, 0.002)
    assert (voc07.metric, coco.metric) == ("voc07", "coco")
    for words in (voc07, coco):
        assert (words.weights, words.split) == (f"{train.out}/epoch_0002.safetensors", "val")
        assert "evaluate.network_resolution=false" in words.overrides


def test_a_failed_command_says_why(accuracy: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="no-such: no such folder"):
        accuracy.triscale("train", "no-such", threads=1)


def test_finished_runs_are_kept(accuracy: ModuleType, tmp_path: Path) -> None:
    """Half a line, as a killed process leaves it, counts for nothing and spoils nothing."""
    path = tmp_path / "runs" / "results.jsonl"
    trained: list[int] = []

    def run(seed: int) -> dict[str, Any]:
        trained.append(seed)
        return {"AP": seed / 10}

    def finished(system: str, seed: int, epochs: int) -> Any:
        settings = {"epochs": epochs, "overrides": ("a", "b")}
        return accuracy.finished(path, system, seed, settings=settings, run=run)["result"]

    assert finished("ours", 1, 20) == {"AP": 0.1}
    assert finished("ours", 1, 20) == {"AP": 0.1}
    assert trained == [1]
    path.write_text(path.read_text() + '{"system": "ours", "seed": 2, "settings": {}')
    assert finished("ours", 2, 20) == {"AP": 0.2}
    assert finished("ours", 1, 30) == {"AP": 0.1}
    assert finished("theirs", 1, 20) == {"AP": 0.1}
    assert trained == [1, 2, 1, 1]
    assert finished("ours", 2, 20) == {"AP": 0.2}
    assert len(trained) == 4


@pytest.mark.parametrize(
    ("values", "words", "expected"),
    [
        ([], {}, "-"),
        ([None], {}, "-"),
        ([0.612], {}, "61.2"),
        ([0.6, 0.62, 0.64], {}, "62.0 ± 2.0"),  # deviations -2, 0, 2: sqrt(8 / 2)
        ([0.6, None, 0.64], {}, "62.0 ± 2.8"),  # sqrt(8)
        ([0.01, 0.03], {"sign": "+"}, "+2.0 ± 1.4"),
        ([-0.01], {"sign": "+"}, "-1.0"),
        ([1199.6, 1200.4], {"scale": 1}, "1,200 ± 0.6"),
    ],
)
def test_mean_and_spread(
    accuracy: ModuleType, values: list[float | None], words: dict[str, Any], expected: str
) -> None:
    assert accuracy.mean_and_spread(values, **words) == expected


def test_table_of_both(accuracy: ModuleType, voc: Path) -> None:
    result = {"VOC07": 0.7, "AP": 0.4, "AP50": 0.6, "per_class": {"cell": 0.7, "dot": None}}
    found = {
        "triscale": [{"seed": s, "result": {**result, "seconds": 9.0, "steps": 4}} for s in (1, 2)],
        "ultralytics": [{"seed": 1, "result": {**result, "seconds": 30.0, "steps": 4}}],
    }
    shown = accuracy.report(task(accuracy, voc), found, {})
    assert shown.columns == ("what", "triscale", "ultralytics")
    assert shown.rows == [
        ("VOC07 mAP", "70.0 ± 0.0", "70.0"),
        ("COCO AP", "40.0 ± 0.0", "40.0"),
        ("COCO AP50", "60.0 ± 0.0", "60.0"),
        ("- cell", "70.0 ± 0.0", "70.0"),
        ("- dot", "-", "-"),
        ("training, s", "9 ± 0.0", "30"),
        ("steps", "4 ± 0.0", "4"),
    ]
    assert "3 epochs" in shown.notes[0]


TRICKS = """
recipe = "small"
set = ["train.batch_size=4"]
[tricks]
"no flip" = ["augment.flip=0.0"]
rate = ["optim.lr=0.002", "optim.momentum=0.8"]
"""


def test_variants(ablation: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tricks.toml").write_text(TRICKS)
    table = ablation.read_table(tmp_path / "tricks.toml")
    common, flip = "train.batch_size=4", "augment.flip=0.0"
    rate = ("optim.lr=0.002", "optim.momentum=0.8")
    added = [
        ("plain", (common,), ""),
        ("+ no flip", (common, flip), "plain"),
        ("+ rate", (common, *rate), "plain"),
    ]
    removed = [
        ("full", (common, flip, *rate), "plain"),
        ("- no flip", (common, *rate), "full"),
        ("- rate", (common, flip), "full"),
    ]
    assert list(ablation.variants_of(table, ("added", "removed"))) == [*added, *removed]
    assert list(ablation.variants_of(table, ("removed",))) == [added[0], *removed]


@pytest.mark.parametrize("directions", [("added",), ("removed",)])
def test_no_trick_is_the_plain_recipe(ablation: ModuleType, directions: tuple[str]) -> None:
    table = ablation.Table("small", (), {})
    assert list(ablation.variants_of(table, directions)) == [("plain", (), "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe: expected the name or file"),
        ("recipe =", "tricks.toml: Invalid value"),
        ("recipe = 'small'\nvariants = 1", "expected recipe, set and .tricks., found variants"),
        ("recipe = 'small'\n[tricks]\nema = 'x=1'", "tricks.ema: expected a list .*, found 'x=1'"),
        ("recipe = 'small'\nset = [1]", r"set: expected a list .*, found \[1\]"),
    ],
)
def test_wrong_tables(ablation: ModuleType, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tricks.toml").write_text(text)
    with pytest.raises(SystemExit, match=message):
        ablation.read_table(tmp_path / "tricks.toml")


def test_ablation(
    ablation: ModuleType,
    voc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each variant is trained once for each seed; differences are those of one seed."""
    trained: list[tuple[str, ...]] = []

    def ours(task: Any, seed: int) -> dict[str, Any]:
        trained.append(task.overrides)
        if "optim.momentum=0.8" in task.overrides and seed == 2:
            raise RuntimeError("out of memory")
        gain = 0.05 * len(task.overrides)
        ap = seed / 10 + gain
        return {"VOC07": 0.5, "AP": ap, "AP50": 0.6, "per_class": {}, "seconds": 60.0, "steps": 1}

    monkeypatch.setattr(ablation, "ours", ours)
    (tmp_path / "tricks.toml").write_text(TRICKS)
    words = ["--data", str(voc), "--seeds", "1", "2", "--jobs", "2", "--directions", "added"]
    results = tmp_path / "ablation.jsonl"
    command = ["ablation", str(tmp_path / "tricks.toml"), *words, "--results", str(results)]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    ablation.main()
    output = capsys.readouterr()
    assert "+ rate, seed 2: out of memory" in output.err.splitlines()
    rows = json.loads(output.out)["rows"]
    assert [(row["variant"], row["COCO AP"], row["difference in COCO AP"]) for row in rows] == [
        ("plain", "20.0 ± 7.1", "-"),
        ("+ no flip", "25.0 ± 7.1", "+5.0 ± 0.0 (plain)"),
        ("+ rate", "25.0", "+10.0 (plain)"),
    ]
    assert (len(trained), len(results.read_text().splitlines())) == (6, 5)
    ablation.main()  # only what failed is tried again
    assert len(trained) == 7


def test_variants_that_are_the_same_are_trained_once(
    ablation: ModuleType, accuracy: ModuleType, voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    monkeypatch.setattr(ablation, "train", lambda task, seed, path: record(seed, trained))
    same = task(accuracy, voc)
    found = ablation.train_all({"+ a": same, "full": same}, [3], path=voc / "results", jobs=2)
    assert trained == [3]
    assert found["+ a"] == found["full"]


def record(seed: int, trained: list[int]) -> dict[str, Any]:
    """A finished run that is counted in `trained`."""
    trained.append(seed)
    return {"result": {"VOC07": 0.5, "AP": 0.3, "AP50": 0.6, "seconds": 1.0}}


def test_mistakes_end_the_program_at_once(accuracy: ModuleType, tmp_path: Path) -> None:
    words = accuracy.task_parser("Doc.").parse_args(["--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="unknown key 'learning_rate'"):
        accuracy.task_of(words, "small", ("optim.learning_rate=1",))
