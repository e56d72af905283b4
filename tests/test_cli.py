"""The command line as a contract: commands, flags, JSON fields, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SETS, TINY, set_words
from triscale import __version__, budget, choosing, runs
from triscale.budget import Speed
from triscale.cli import main
from triscale.demo.scenes import write_scenes
from triscale.model.yolo import ModelConfig, build_model
from triscale.pixels import InputConfig
from triscale.recipe import Recipe, load_recipe
from triscale.training import Result
from triscale.weights.contents import WeightsInfo
from triscale.weights.formats import read_weights
from triscale.weights.native import save_weights
from triscale.weights.zoo import ZOO

ENDLESS = set_words(*(text for text in TINY if not text.startswith("train.epochs=")))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def triscale(*words: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "triscale", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)


# --- before anything heavy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["--help", "train --help", "--version", "train -x", "train", "convert a"]
)
def test_quick_answers_do_not_import_torch(words: str) -> None:
    code = (
        "import sys\n"
        "from triscale.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print('heavy:', sorted({'torch', 'cv2'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.endswith("heavy: []\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"triscale {__version__}\n"


@pytest.mark.parametrize(
    "words",
    ["", "fly", "train x --epoch", "train a b", "eval w", "eval w d --metric map", "predict w"],
)
def test_wrong_flags(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(words.split())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: " in printed.err.splitlines()[-1]


def test_a_closed_pipe_is_no_error() -> None:
    process = triscale("recipes", "gluoncv-voc")
    assert process.stdout
    assert process.stderr
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


# --- convert and download ------------------------------------------------------------------------


def test_convert(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run to GluonCV's format and back; nothing that is there is replaced without --force."""
    params, back = tmp_path / "a.params", tmp_path / "b.safetensors"
    names = tmp_path / "my.names"
    names.write_text("u\nv\nw\nx\ny\nz\n")
    assert main(["convert", str(trained), str(params)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{trained / 'best.safetensors'}: mobilenet0.1, ")
    assert said[0].endswith("input 64x64, stretch, normalised as imagenet")
    lost = "the recipe, the class names, the size, 64"
    assert said[1] == f"wrote {params}; it has no place for {lost}"
    flags = ["--classes", str(names), "--size", "96", "--fit", "letterbox"]
    assert main(["convert", str(params), str(back), *flags]) == 0
    assert "6 classes (u, v, w, x, y, ...); input 96x96, letterbox" in capsys.readouterr().out
    before = back.read_bytes()
    assert main(["convert", str(params), str(back)]) == 2
    said = capsys.readouterr().err
    assert said == f"triscale: error: {back}: is there already; --force replaces it\n"
    assert back.read_bytes() == before
    assert main(["convert", str(params), str(back), "--force"]) == 0
    assert back.read_bytes() != before


def test_a_description_beside_darknets_weights_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.cfg").write_text("precious")
    (tmp_path / "a.weights").touch()
    assert main(["convert", str(tmp_path / "a.weights"), str(tmp_path / "b.weights")]) == 2
    assert f"{tmp_path / 'b.cfg'}: is there already" in capsys.readouterr().err
    assert (tmp_path / "b.cfg").read_text() == "precious"


def test_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transfer itself is tested in weights/test_zoo.py."""
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / "cache"))
    assert main(["download", "list"]) == 0
    assert capsys.readouterr().out.split() == list(ZOO)
    for words, message in (
        (["yolo3_darknet53_vok"], "did you mean 'yolo3_darknet53_voc'?"),
        (["darknet53", "--mirror", "ftp://x"], "expected an address with http:// or https://"),
        (["darknet53", "--to", "x.pth"], "x.pth: expected a name that ends in .safetensors"),
        (["darknet53", "--to", str(tmp_path)], "expected a name that ends in .safetensors"),
    ):
        assert main(["download", *words]) == 2
        assert message in capsys.readouterr().err
    path = tmp_path / "cache" / f"darknet53-{ZOO['darknet53'][:8]}.safetensors"
    config = ModelConfig(backbone="mobilenet0.1")
    model = build_model(config, 1, generator=torch.Generator())
    path.parent.mkdir()
    save_weights(path, model, WeightsInfo(("a",), config, 64, InputConfig(), {}))
    assert main(["download", "darknet53"]) == 0, "it is there: no network is needed"
    assert capsys.readouterr().out == f"{path}\n"
    target = tmp_path / "copy.params"
    assert main(["download", "darknet53", "--to", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert read_weights(target).info.classes == ("class0",)
    assert main(["download", "darknet53", "--to", str(target)]) == 2
    assert "is there already" in capsys.readouterr().err


# --- recipes -------------------------------------------------------------------------------------


def test_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["bof", "demo", "finetune", "gluoncv-coco", "gluoncv-voc", "modern", "small"]
    assert [line.split()[0] for line in lines] == names
    for name in names:
        assert main(["recipes", name]) == 0
        path = tmp_path / f"{name}.toml"
        path.write_text(capsys.readouterr().out)
        assert load_recipe(path) == load_recipe(name), "what is printed is a recipe file"


# --- train ---------------------------------------------------------------------------------------


def test_train_flags_reach_the_run(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "deep"
    flags = ["--epochs", "1", "--batch-size", "5", "--size", "96", "--seed", "7", "--workers", "1"]
    words = ["train", str(devkit), "--recipe", "demo", "--out", str(run), "--device", "cpu", *flags]
    assert main([*words, "--set", "model.backbone=mobilenet0.1"]) == 0
    recipe = load_recipe(run / "recipe.toml")
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.size) == (1, 5, 96)
    assert (recipe.train.seed, recipe.train.workers, recipe.train.device) == (7, 1, "cpu")
    assert recipe.data.path == str(devkit)
    assert recipe.optim == load_recipe("demo").optim
    printed = capsys.readouterr()
    assert printed.out == ""
    said = printed.err.splitlines()
    assert said[0] == f"voc data in {devkit}: 6 classes"
    assert said[1].startswith("2007_trainval: 10 pictures, ")
    assert said[-1].startswith("best mAP ")
    assert str(run) in said[-1]


def test_default_folder_is_not_taken_twice(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        str(devkit),
        *SETS,
        "--set",
        "train.epochs=1",
        "--set",
        "train.val_interval=0",
    ]
    assert main(words) == 0
    assert main(words) == 0
    assert [p.name for p in sorted((tmp_path / "runs").iterdir())] == [
        "VOCdevkit-modern",
        "VOCdevkit-modern-2",
    ]


def test_a_recipe_that_is_named_is_used_as_it_is(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(devkit), *SETS, "--set", "train.precision=fp32", "--epochs", "1"]
    assert main([*words, "--recipe", "small", "--out", str(tmp_path / "named")]) == 0
    assert "optim.lr=" not in capsys.readouterr().err
    assert load_recipe(tmp_path / "named" / "recipe.toml").optim == load_recipe("small").optim
    assert main([*words, "--out", str(tmp_path / "chosen")]) == 0
    said = [line.partition("=") for line in capsys.readouterr().err.splitlines()]
    keys = [key for key, equals, _ in said if equals]
    # what SETS and the flags give isn't chosen
    assert keys == ["optim.lr"]
    recipe = load_recipe(tmp_path / "chosen" / "recipe.toml")
    assert recipe.optim.lr == 0.0021, "0.003 for batches of 8; here they are of 4"
    assert recipe.schedule.warmup_epochs == 0
    assert main(["train", "--resume", str(tmp_path / "chosen"), "--epochs", "2"]) == 0
    assert load_recipe(tmp_path / "chosen" / "recipe.toml").optim.lr == 0.0021


def test_minutes(
    devkit: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole run is over after about the time; how exactly depends on what else runs here."""
    for name in ("_TRAINING_SECONDS", "_VALIDATION_SECONDS", "_WARM_SECONDS"):
        monkeypatch.setattr(budget, name, 0.2)
    run = tmp_path / "run"
    words = ["train", str(devkit), "--recipe", "small", *ENDLESS, "--out", str(run)]
    began = time.monotonic()
    assert main([*words, "--minutes", "0.15"]) == 0
    assert time.monotonic() - began < 30
    said = capsys.readouterr().err
    recipe = load_recipe(run / "recipe.toml")
    assert re.search(rf"^{recipe.train.epochs} epochs? fits? into 0.15 minutes \(", said, re.M)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["epoch"] == recipe.train.epochs - 1
    assert main([*words[:-1], str(tmp_path / "none"), "--minutes", "0.001"]) == 2
    said = capsys.readouterr().err
    assert "--minutes 0.001: too few for one epoch of 10 pictures" in said
    assert not (tmp_path / "none").exists()


def test_little_time_makes_the_pictures_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows from the size is chosen anew; a size that is given stays."""
    write_scenes(tmp_path / "set", num_train=10, num_test=1, size=(384, 384))
    sizes = list[int]()

    def measured(recipe: Recipe, *_: object, **__: object) -> tuple[Recipe, Speed, list[str]]:
        sizes.append(recipe.train.size)
        return recipe, Speed(0.1, 0.0, 0.0), []

    trained = list[Recipe]()

    def train(recipe: Recipe, *_: object, **__: object) -> Result:
        trained.append(recipe)
        return Result(tmp_path, -1, None)

    monkeypatch.setattr(budget, "measure", measured)
    monkeypatch.setattr(runs, "train", train)
    words = ["train", str(tmp_path / "set"), "--minutes", "10", "--set", "optim.lr=0.5"]
    monkeypatch.setattr(choosing, "SMALL", 1000)  # all objects are: the whole size is chosen
    assert main(words) == 0
    assert sizes == [384, 256]
    assert (trained[0].train.size, trained[0].optim.lr) == (256, 0.5)
    said = capsys.readouterr().err
    assert "train.size=384 (" in said
    assert re.search(r"^train.size=256 \(at 384 only 5\.\d epochs fit; --size\)$", said, re.M)
    assert main([*words, "--size", "384"]) == 0
    assert main([*words, "--recipe", "modern"]) == 0
    assert [recipe.train.size for recipe in trained[1:]] == [384, 320]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x --minutes soon", "--minutes: expected a number above 0 and up to 525,600, got 'soon'"),
        ("x --minutes 0", "--minutes: expected a number above 0 and up to 525,600, got '0'"),
        ("x --minutes nan", "--minutes: expected a number above 0 and up to 525,600, got 'nan'"),
        ("x --minutes 1e9", "--minutes: expected a number above 0 and up to 525,600, got '1e9'"),
        ("x --minutes inf", "--minutes: expected a number above 0 and up to 525,600, got 'inf'"),
        ("x --minutes 3 --epochs 2", "--minutes decides the number of epochs"),
        ("x --minutes 3 --set train.epochs=2", "--minutes decides the number of epochs"),
        ("--resume x --minutes 3", "minutes can't be given again"),
    ],
)
def test_minutes_that_make_no_sense(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_several_processes_measure_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "x", "--minutes", "3"]) == 2
    assert "can't measure with several processes" in capsys.readouterr().err


def test_init_takes_weights_by_class_name(
    devkit: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(devkit), *SETS, "--init", str(trained), "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "same")]) == 0
    assert "best.safetensors: loaded 50 of 50 convolutions\n" in capsys.readouterr().err
    classes = '["balloon","bird","boat","crab","fish","lighthouse","whale"]'
    more = [*words, "--set", f"data.classes={classes}", "--out", str(tmp_path / "more")]
    assert main(more) == 0
    said = capsys.readouterr().err
    named = "with 6 classes (balloon, bird, boat, crab, fish, lighthouse) by name\n"
    assert f"  adapted: the outputs, {named}  at random: the outputs for 1 class (whale)\n" in said
    other = [*words, "--set", "model.backbone=tiny", "--out", str(tmp_path / "other")]
    assert main(other) == 2
    assert "use --set model.backbone=mobilenet0.1" in capsys.readouterr().err


def test_ctrl_c_saves_and_the_run_goes_on(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = triscale("train", str(devkit), "--out", str(run), *SETS, "--epochs", "1000")
    for _ in range(1200):
        if (run / "log.jsonl").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("triscale: stopped after step ")
    assert said.splitlines()[-1].endswith(f"go on with: triscale train --resume {run}")
    step = max(int(p.stem.removeprefix("step-")) for p in (run / "last").glob("*.json"))
    epochs = step * 4 // 10 + 1
    assert main(["train", "--resume", str(run), "--epochs", str(epochs)]) == 0
    assert f"resuming after step {step}" in capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(
        range(1, epochs * 10 // 4 + 1)
    )


def test_auto_resume_starts_or_goes_on(
    devkit: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one command of a job that is restarted: the same words start it and take it up."""
    run = tmp_path / "run"
    words = ["train", str(devkit), "--out", str(run), *SETS, "--auto-resume"]
    weights = ["--init", str(trained)]
    assert main([*words, *weights, "--set", "train.epochs=1"]) == 0
    assert "loaded 50 of 50 convolutions" in capsys.readouterr().err
    assert main([*words, *weights, "--set", "train.epochs=2"]) == 0
    said = capsys.readouterr().err
    assert "resuming after step 2" in said
    assert "loaded" not in said
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert main(words[:2] + words[4:]) == 2
    assert "--auto-resume: name the run folder with --out" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--auto-resume"]) == 2
    assert "auto_resume can't be given again" in capsys.readouterr().err
    assert main([*words[:4], *ENDLESS, "--auto-resume", "--minutes", "3"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"{run}: goes on to the end that was planned when it began; --minut")
    assert "step 5 of 5: nothing is left to do" in said
    moved = tmp_path / "moved"
    shutil.copytree(devkit, moved)
    words = ["train", str(moved), "--out", str(run), *SETS, "--auto-resume"]
    assert main([*words, "--set", "train.epochs=2"]) == 0
    assert load_recipe(run / "recipe.toml").data.path == str(moved)
    shutil.rmtree(run / "last")
    (run / "best.safetensors").unlink()
    (run / "recipe.toml").write_text("[train]\nepochs = 9\n")  # somebody's own
    assert main([*words, "--set", "train.epochs=2"]) == 2
    assert "recipe.toml: not as a run wrote it" in capsys.readouterr().err
    assert main(["train", str(devkit), "--out", ""]) == 2
    assert "--out: expected a folder, got an empty text" in capsys.readouterr().err


def test_a_state_holds_the_recipe_too(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "recipe.toml").unlink()
    assert main(["train", "--resume", str(run), "--set", "train.epochs=3"]) == 0
    assert (run / "recipe.toml").read_text() == (trained / "recipe.toml").read_text()
    shutil.rmtree(run / "last")
    (run / "recipe.toml").unlink()
    assert main(["train", "--resume", str(run)]) == 2
    assert "expected a run folder with recipe.toml" in capsys.readouterr().err


def test_resume_of_a_finished_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "log.jsonl").read_text()
    assert main(["train", "--resume", str(trained)]) == 0, "a run through the API can be resumed"
    assert (trained / "log.jsonl").read_text() == before
    assert "nothing is left to do" in capsys.readouterr().err


# --- eval ----------------------------------------------------------------------------------------


def evaluate(
    words: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 0
) -> dict[str, Any]:
    assert main(["eval", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_eval_json(trained: Path, devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers are those of the best epoch in the run's own log."""
    found = evaluate([str(trained), str(devkit)], capsys)
    assert list(found) == ["metric", "mAP", "per_class", "images"]
    assert (found["metric"], found["images"]) == ("voc07", 4)
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    logged = [line["metrics"] for line in lines if line["kind"] == "eval"]
    best = max(logged, key=lambda metrics: metrics["mAP"])
    assert found["mAP"] == pytest.approx(best["mAP"], abs=1e-6)
    assert {f"AP/{k}": v for k, v in found["per_class"].items()} == {
        k: v if v is None else pytest.approx(v, abs=1e-6) for k, v in best.items() if k != "mAP"
    }


def test_eval_coco_json(trained: Path, devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(trained / "best.safetensors"), str(devkit), "--metric", "coco", "--size", "96"]
    found = evaluate([*words, "--split", "2007_trainval", "--batch-size", "3"], capsys)
    assert list(found) == [
        *("metric", "mAP", "AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge"),
        *("AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge", "per_class", "images"),
    ]
    assert found["mAP"] == found["AP"]
    assert found["images"] == 10


def test_eval_table(trained: Path, devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(trained), str(devkit)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "AP"]
    assert lines[-1].startswith("voc07 mAP 0.")
    assert lines[-1].endswith(" on 4 pictures")


def test_nothing_to_measure(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a validation, or one without objects, there is no number, and none is made up."""
    bare = tmp_path / "VOCdevkit"
    shutil.copytree(devkit, bare)
    for name in (bare / "VOC2007/ImageSets/Main/test.txt").read_text().split():
        path = bare / f"VOC2007/Annotations/{name}.xml"
        path.write_text(re.sub("(?s)<object>.*</object>", "", path.read_text()))
    words = ["train", str(bare), "--recipe", "small", *SETS, "--set", "train.epochs=1"]
    for name, more in (("none", ["--set", "train.val_interval=0"]), ("bare", [])):
        run = tmp_path / name
        assert main([*words, *more, "--out", str(run)]) == 0
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == f"nothing was measured; the last weights and the log in {run}"
        assert [line for line in said if "mAP" in line] == (
            ["[epoch 0] voc07 mAP: no object to find"] if name == "bare" else []
        )
        assert (run / "epoch_0000.safetensors").exists()
    for metric in ("voc07", "coco"):
        assert main(["eval", str(run), str(bare), "--metric", metric]) == 0
        *others, last = capsys.readouterr().out.splitlines()
        assert last == f"{metric} mAP: no object to find on 4 pictures"
        assert "nan" not in " ".join(others)


def test_data_without_a_validation_split(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training holds pictures out, and eval measures on the same."""
    data, run = tmp_path / "VOCdevkit", tmp_path / "run"
    shutil.copytree(devkit, data)
    shutil.rmtree(data / "VOC2007/ImageSets")
    sets = ["--set", "train.epochs=1", "--set", "data.holdout=0.15"]
    assert main(["train", str(data), "--recipe", "small", *SETS, *sets, "--out", str(run)]) == 0
    note = (
        "no validation split: 2 of the 14 pictures of 2007_all, chosen by a hash of their names, "
        "are held out as one (data.holdout=0.15)"
    )
    assert note in capsys.readouterr().err.splitlines()
    assert main(["eval", str(run), str(data), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"{note}; --split names another"]
    (line,) = (run / "log.jsonl").read_text().splitlines()[-1:]
    assert json.loads(line)["metrics"]["mAP"] == pytest.approx(json.loads(printed.out)["mAP"])
    assert main(["eval", str(run), str(data), "--split", "2007_all"]) == 0
    printed = capsys.readouterr()
    assert (printed.out.splitlines()[-1][-15:], printed.err) == (" on 14 pictures", "")
    assert main(["eval", str(run), str(data), "--set", "data.holdout=0"]) == 2
    assert "and data.holdout is 0; name one with --set data.val=..." in capsys.readouterr().err


# --- predict -------------------------------------------------------------------------------------


def test_predict_json(
    trained: Path,
    devkit: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = devkit / "VOC2007" / "JPEGImages"
    sources = [str(pictures / "000003.jpg"), str(pictures / "00001*.jpg")]
    assert main(["predict", str(trained), *sources, "--score", "0", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = ["000003", "000010", "000011", "000012", "000013", "000014"]
    assert [line["image"] for line in lines] == [str(pictures / f"{n}.jpg") for n in names]
    classes = {"balloon", "bird", "boat", "crab", "fish", "lighthouse"}
    for line in lines:
        assert list(line) == ["image", "size", "detections"]
        assert line["size"] == [128, 96]
        assert line["detections"]
        for found in line["detections"]:
            assert list(found) == ["label", "score", "box"]
            assert found["label"] in classes
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 <= x2 <= 128
            assert 0 <= y1 <= y2 <= 96
        scores = [found["score"] for found in line["detections"]]
        assert scores == sorted(scores, reverse=True)
    assert not list(tmp_path.iterdir()), "no pictures are drawn unless asked for"


def test_predict_loses_no_picture(
    trained: Path, devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (devkit / "VOC2007" / "JPEGImages" / "000001.jpg").read_bytes()
    names = ["a.jpg", "sub/a.jpg", "a-2.jpg"]  # the second one's drawing wants the third one's name
    for name in [*names, "folder.jpg/b.jpg"]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(source)
    out = tmp_path / "out"
    words = [str(tmp_path / "in" / name) for name in names]
    assert main(["predict", str(trained), *words, "--out", str(out)]) == 0
    assert len(list(out.iterdir())) == 3
    assert main(["predict", str(trained), str(tmp_path / "in/*.jpg"), "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()[-2:]
    assert [json.loads(line)["image"] for line in shown] == [
        str(tmp_path / "in" / name) for name in ("a-2.jpg", "a.jpg")
    ]
    assert main(["predict", str(trained), words[0], "--out", str(tmp_path / "in")]) == 2
    assert "would be replaced" in capsys.readouterr().err
    assert (tmp_path / "in" / "a.jpg").read_bytes() == source


def test_predict_draws_and_prints_a_table(
    trained: Path, devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = tmp_path / "copies"
    (copies / "a").mkdir(parents=True)
    (copies / "b").mkdir()
    source = devkit / "VOC2007" / "JPEGImages" / "000001.jpg"
    for folder in ("a", "b"):
        (copies / folder / "p.jpg").write_bytes(source.read_bytes())
    out = tmp_path / "drawn"
    words = ["predict", str(trained), str(copies), "--out", str(out), "--score", "1"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["picture", "label", "score", "x1", "y1", "x2", "y2"]
    assert [line.split() for line in lines[1:3]] == [
        [str(copies / folder / "p.jpg"), "-"] for folder in ("a", "b")
    ]
    assert lines[3] == f"2 drawn pictures in {out}"
    assert sorted(p.name for p in out.iterdir()) == ["p-2.jpg", "p.jpg"]
