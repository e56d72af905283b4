"""`triscale export` from weights to files, and what it refuses."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.exporting import CLASSES, SIZE, drawn, quietly, write_weights
from triscale.cli import main
from triscale.engines.header import Header, run_in_batches, unpacked
from triscale.engines.onnx import OnnxEngine
from triscale.engines.openvino import OpenVinoEngine
from triscale.engines.pytorch import TorchEngine
from triscale.errors import UserError
from triscale.export.compare import Outcome
from triscale.export.int8 import body, quantise
from triscale.export.parity import TOLERANCES
from triscale.export.pt2 import open_pt2
from triscale.export.write import Wanted
from triscale.predict import Detector, prepare


@pytest.fixture(scope="module")
def weights(onnx_file: Path) -> Path:
    return onnx_file.with_suffix(".safetensors")


def test_finds_the_same(weights: Path, onnx_file: Path) -> None:
    """torch, onnxruntime and OpenVINO, on pictures of different sizes, together and alone."""
    pictures = drawn(5)
    expected = Detector(weights, device="cpu")(pictures)
    assert sum(map(len, expected)) > 50
    images, sizes = prepare(pictures, (SIZE, SIZE), fit="letterbox")
    for engine in (OnnxEngine(onnx_file), OpenVinoEngine(onnx_file)):
        alone = [engine(images[i : i + 1], sizes[i : i + 1])[0] for i in range(5)]
        for found in (engine(images, sizes), alone):
            for one, two in zip(expected, found, strict=True):
                np.testing.assert_allclose(two.scores, one.scores, atol=1e-5)
                np.testing.assert_allclose(two.boxes, one.boxes, atol=1e-2)
                assert two.labels.tolist() == one.labels.tolist()


def test_header(onnx_file: Path) -> None:
    import onnx

    header = OnnxEngine(onnx_file).header
    assert header.classes == CLASSES
    assert (header.size, header.fit, header.precision) == ((SIZE, SIZE), "letterbox", "fp32")
    assert header.recipe["decode"]["top_k"] == 100
    proto = onnx.load(onnx_file)
    assert [node.domain for node in proto.graph.node if node.domain] == []  # standard operators
    assert "NonMaxSuppression" in {node.op_type for node in proto.graph.node}
    data = onnx_file.read_bytes()
    for name in (str(Path.home()), str(onnx_file.parent), "site-packages", ".py", "triscale/src"):
        assert name.encode() not in data


def test_body(onnx_file: Path) -> None:
    """What is quantised: no box, no score, no logit, no pixel."""
    import onnx

    graph = onnx.load(onnx_file).graph
    kinds = {node.name: node.op_type for node in graph.node}
    chosen = [kinds[name] for name in body(graph)]
    convolutions = [name for name, kind in kinds.items() if kind == "Conv"]
    assert chosen.count("Conv") == len(convolutions) - 3
    assert convolutions[0] in body(graph)
    assert not {"Sigmoid", "Exp", "Mul", "Add", "TopK", "Cast"} & set(chosen)


def test_dynamic_size(weights: Path, tmp_path: Path) -> None:
    quietly(weights, tmp_path / "any.onnx", Wanted(dynamic=True))
    exported = OnnxEngine(tmp_path / "any.onnx")
    for size in ((32, 64), (160, 96)):
        images, sizes = prepare(drawn(2), size, fit="letterbox")
        expected = TorchEngine(weights, device="cpu", size=size)(images, sizes)
        for one, two in zip(expected, exported(images, sizes), strict=True):
            np.testing.assert_allclose(two.scores, one.scores, atol=1e-5)
            np.testing.assert_allclose(two.boxes, one.boxes, atol=1e-2)


def test_resize_fixed_batch(weights: Path, tmp_path: Path) -> None:
    """Pictures of any size go in; a batch is filled up."""
    quietly(weights, tmp_path / "whole.onnx", Wanted(resize=True, batch=2, size=(64, 96)))
    exported = OnnxEngine(tmp_path / "whole.onnx")
    for picture in drawn(3):
        images, sizes = prepare([picture], (64, 96), fit="letterbox")
        (one,) = TorchEngine(weights, device="cpu", size=(64, 96))(images, sizes)
        (two,) = unpacked(run_in_batches(exported.run, exported.header, {"images": picture[None]}))
        assert abs(len(one) - len(two)) <= 1
        assert two.scores[0] == pytest.approx(one.scores[0], abs=TOLERANCES["resize"].score)
    with pytest.raises(UserError, match="--resize, for other programs"):
        Detector(tmp_path / "whole.onnx")


def test_openvino_folder(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "small_openvino"
    quietly(weights, target, Wanted(half=True))
    assert sorted(file.name for file in target.iterdir()) == ["detector.bin", "detector.xml"]
    detector = Detector(target)
    assert detector.engine.name.startswith("OpenVINO")
    assert detector.classes == CLASSES
    pictures = drawn(2)
    for one, two in zip(Detector(weights, device="cpu")(pictures), detector(pictures), strict=True):
        assert two.scores[0] == pytest.approx(one.scores[0], abs=0.03)
    quietly(weights, target, Wanted())  # ours: replaced
    (target / "notes.txt").touch()
    with pytest.raises(UserError, match="isn't a folder that triscale export wrote"):
        quietly(weights, target, Wanted())


def test_pt2(weights: Path, tmp_path: Path) -> None:
    """It runs without triscale, and has nothing pickled in it."""
    from triscale.export.onnx import Form

    path = tmp_path / "small.pt2"
    outcome = quietly(weights, path, Wanted())
    assert outcome.detections > 50
    with zipfile.ZipFile(path) as archive:
        pickled = [n for n in archive.namelist() if archive.read(n)[:40].count(b".storage")]
        assert not pickled
        inputs = [i.file_size for i in archive.infolist() if "sample_inputs" in i.filename]
        assert inputs == [0]  # torch wants the entry
    run = open_pt2(path, Form((SIZE, SIZE)))
    images, sizes = prepare(drawn(3), (SIZE, SIZE), fit="letterbox")
    expected = TorchEngine(weights, device="cpu")(images, sizes)
    for one, two in zip(expected, unpacked(run({"images": images, "sizes": sizes})), strict=True):
        np.testing.assert_allclose(two.scores, one.scores, atol=1e-5)


def test_int8(weights: Path, devkit: Path, tmp_path: Path) -> None:
    """Eight bits are measured with the data they were calibrated on."""
    target = tmp_path / "small.onnx"
    outcome = quietly(weights, target, Wanted(calibrate=devkit))
    assert OnnxEngine(target).header.precision == "int8"
    assert target.stat().st_size < 0.7 * weights.stat().st_size
    assert outcome.words == str(devkit)
    assert Detector(target).engine.name.startswith("onnxruntime")


def test_int8_in_openvino(tmp_path: Path) -> None:
    """It computes what onnxruntime computes: no bias is left out."""
    path = tmp_path / "small.onnx"
    weights = write_weights(tmp_path / "small.safetensors", fit="stretch", biases=0.5)
    quietly(weights, path, Wanted())
    images, sizes = prepare(drawn(8), (SIZE, SIZE), fit="stretch")
    inputs = [{"images": images[i : i + 1], "sizes": sizes[i : i + 1]} for i in range(8)]
    quantise(path, inputs, header=OnnxEngine(path).header, fused=True)
    found = [
        np.stack([each.scores[:20] for each in engine(images, sizes)])
        for engine in (OnnxEngine(path), OpenVinoEngine(path))
    ]
    assert np.abs(found[0] - found[1]).mean() < 5e-4


def test_what_differs_is_not_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp32", TOLERANCES["fp32"]._replace(score=-1.0))
    (tmp_path / "old.onnx").write_bytes(b"old")
    shown: list[Outcome] = []
    with pytest.raises(UserError, match=r"scores differ by .* expected at most -1; nothing was"):
        quietly(weights, tmp_path / "old.onnx", Wanted(raw=True), show=shown.append)
    assert shown[0].rows[0][0] == "scores differ by"
    assert [file.name for file in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("library", ["ours", "another"])
def test_a_full_disk(
    library: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line about the file that was wanted, also where a library calls it something else."""
    left = 0

    def write(path: Path, *_: object, header: Header) -> None:
        raise OSError(28, "full", str(path)) if library == "ours" else RuntimeError("iostream")

    monkeypatch.setattr("triscale.export.write.write_onnx", write)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=left))
    with pytest.raises(OSError, match=r"small_openvino'$") as caught:
        quietly(weights, tmp_path / "small_openvino", Wanted())
    assert caught.value.errno == 28
    assert not list(tmp_path.iterdir())
    left = 1 << 30
    with pytest.raises(RuntimeError if library == "another" else OSError):  # a bug stays one
        quietly(weights, tmp_path / "small_openvino", Wanted())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("small.tflite", "expected a name that ends in .onnx, .pt2 or _openvino"),
        ("small.onnx --size 100", "--size: expected multiples of 32 from 32 to 8192, got 100"),
        ("small.onnx --size big", "--size: expected N, HxW or dynamic, got 'big'"),
        ("small.onnx --batch 0", "--batch: expected 1 to 9999 or dynamic, got '0'"),
        ("small.onnx --resize --size dynamic", "--resize: needs a fixed --size"),
        ("small.onnx --resize --raw", "--resize: has no --raw"),
        ("small.onnx --int8", "--int8: name a data set with --calibrate"),
        ("small.onnx --calibrate data", "--calibrate: is for --int8"),
        ("small.onnx --int8 --calibrate data --half", "--int8: has no --half"),
        ("small.pt2 --int8 --calibrate data", "not for .pt2"),
        ("small.onnx --check nowhere", "nowhere"),
        ("no/such/folder/small.onnx", "no/such/folder: No such file or directory"),
        ("there.onnx", "there.onnx: is there already; --force replaces it"),
    ],
)
def test_refused(
    words: str,
    message: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    assert main(["export", str(weights), *words.split(), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["there.onnx"]


def test_missing_package(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triscale.packages.is_here", lambda name: not name.startswith("onnx"))
    with pytest.raises(UserError, match=r"pip install 'triscale\[export\]'$"):
        quietly(weights, tmp_path / "small.onnx", Wanted())


def test_exported_already(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is exported already"):
        quietly(onnx_file, tmp_path / "two.onnx", Wanted())


@pytest.mark.golden
def test_darknet_weights(shared: Path, tmp_path: Path) -> None:
    """Darknet's own yolov3-tiny on five photographs: within 0.1 px and 1e-3."""
    weights = shared / "weights" / "yolov3-tiny.weights"
    quietly(weights, tmp_path / "tiny.onnx", Wanted())
    pictures = sorted((shared / "data" / "pictures").glob("*.jpg"))[:5]
    expected = Detector(weights, device="cpu")(pictures)
    assert sum(map(len, expected)) > 10
    for engine in (OnnxEngine(tmp_path / "tiny.onnx"), OpenVinoEngine(tmp_path / "tiny.onnx")):
        found = engine(*prepare(pictures, engine.size, fit=engine.fit))
        for one, two in zip(expected, found, strict=True):
            assert one.labels.tolist() == two.labels.tolist()
            np.testing.assert_allclose(two.scores, one.scores, atol=1e-3)
            np.testing.assert_allclose(two.boxes, one.boxes, atol=0.1)
