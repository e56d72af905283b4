"""Every command line and code block of the documents, run.

A page is run from top to bottom in a folder of its own, in which tests/doc_stage.py puts something
small for each name of the reader's. Training commands get `--epochs 1`, a small input and a small
network behind what the page says. What can't be run here is listed, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import triscale.recipe
from tests import doc_stage
from tests.conftest import set_words
from tests.doc_stage import SMALL, TINY, Stage
from tests.test_docs import DOCUMENTS, command_lines, parse, snippet, words_of
from triscale import cli, train_yolo3
from triscale.data.open import open_dataset
from triscale.recipe import Recipe, make_recipe

# A line in which one of these patterns is found isn't run.
NOT_RUN = {
    r"^make ": "the developer's commands; `make test` is running",
    r"^torchrun ": "several processes: tests/test_torchrun.py",
    r"^sbatch ": "needs Slurm; the scripts are tested in tests/test_torchrun.py",
    r"^(pip|tensorboard|wandb|mlflow|curl|head) ": "other programs",
    r"^triscale serve ": "doesn't end by itself: tests/serve",
    r"^python benchmarks/": "measurements take minutes: tests/test_benchmarks.py",
    r"^triscale download (?!list)": "needs the network: tests/weights/test_zoo.py",
    r"^triscale train data --recipe gluoncv-voc": "darknet53 is too large: tests/weights",
    r" camera:\d| rtsp:": "needs a camera",
}
# Arguments that name what must be there already, and what it is.
ROLES = {
    "data": "data",
    "root": "data",
    "check": "data",
    "calibrate": "data",
    "weights": "weights",
    "models": "weights",
    "init": "weights",
    "source": "weights",
    "pretrained_base": "weights",
    "resume": "run",
    "runs": "run",
    "sources": "pictures",
    "pictures": "pictures",
    "cfg": "file",
    "classes": "file",
}
# How the reader's own pictures lie, where a page says it; else as a VOC devkit.
LAYOUTS = {"quickstart.md": "yolo", "data.md": "other", "troubleshooting.md": "yolo"}
FAST = (
    *("data.index_cache=false", "train.device=cpu", "train.precision=fp32", "train.pictures=1"),
    *("train.batch_size=4", "train.workers=0", "train.size=64", "augment.random_shape=false"),
    *("train.save_interval=0", "checkpoint.keep=1"),
)
LANGUAGES = {"sh", "bash", "python", "toml", "yaml", "json", "text", "layers", ""}
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def code_blocks(document: str) -> list[tuple[str, str]]:
    """(language, code) of each block of a Markdown text, in order."""
    return [
        (language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE))
        for indent, language, code in BLOCK.findall(document)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all pages share."""
    store = tmp_path_factory.mktemp("store")
    doc_stage.write_devkit(store / "VOCdevkit")
    return store


@pytest.fixture
def stage(
    tmp_path: Path,
    store: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Stage]:
    """An empty folder that is also the reader's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRISCALE_CACHE", str(tmp_path / ".cache" / "triscale"))
    yield Stage(tmp_path, store=store, run=lambda: request.getfixturevalue("trained"))
    shutil.rmtree(tmp_path)  # weights are large


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", []),
        ("```sh\na \\\n  b\n# c\n```\n", [("sh", "a \\\n  b\n# c\n")]),
        ("- x\n\n    ```sh\n    a\n    ```\n", [("sh", "a\n")]),
        ("```sh\na\n```\n```python\n1\n```\n", [("sh", "a\n"), ("python", "1\n")]),
    ],
)
def test_blocks_are_found(document: str, expected: list[tuple[str, str]]) -> None:
    assert code_blocks(document) == expected


def test_a_wrong_command_fails(stage: Stage) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        run_line("triscale train VOCdevkit --epoch-count 3", stage)
    with pytest.raises(AssertionError):
        run_line("triscale eval runs/mine VOCdevkit --split none", stage)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_runs(path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = code_blocks(path.read_text("utf-8"))
    lay_out(LAYOUTS.get(path.name, ""), stage)
    original = triscale.recipe.load_recipe
    for language, code in blocks:
        assert language in LANGUAGES, f"{path.name}: what is to be done with {language}?"
        if language == "sh":
            for line in command_lines(code):
                run_line(line, stage)
        elif language == "python" and path.name != "ARCHITECTURE.md":  # runs in test_docs.py
            with monkeypatch.context() as patch:
                patch.setattr(
                    triscale.recipe,
                    "load_recipe",
                    lambda name, *, overrides=(): original(name, overrides=[*overrides, *FAST]),
                )
                run_python(code, stage)
        elif language in ("toml", "yaml"):
            read_file(language, code, stage)
        elif language == "json":
            assert [json.loads(line) for line in code.splitlines()]
        elif language == "bash":
            checked = subprocess.run(["bash", "-n"], input=code, text=True, check=False)
            assert checked.returncode == 0, code


def lay_out(layout: str, stage: Stage) -> None:
    """The reader's own pictures, as a page draws them."""
    if layout == "yolo":
        doc_stage.write_yolo(Path("birds"), stage.devkit)
        doc_stage.write_yolo(Path("all-birds"), stage.devkit, flat=True)
    elif layout == "other":
        shutil.copytree(stage.devkit / "VOC2007", "birds")
        shutil.rmtree("birds/ImageSets")
        doc_stage.write_coco(Path(), stage.devkit, names=("gull", "tern"), plain=True)


def run_line(line: str, stage: Stage) -> None:
    """A command of a shell block, with what it needs, in this process."""
    if any(re.search(pattern, line) for pattern in NOT_RUN):
        return
    words = [os.path.expanduser(word) for word in words_of(line)]
    if words[:3] == ["python", "-m", "triscale.train_yolo3"]:
        arguments = parse(words)
        provide(arguments, stage)
        small = ["--network", SMALL, "--epochs", "1", "--data-shape", "64", "--batch-size", "4"]
        small += ["--gpus", "", "-j", "0", "--no-random-shape", "--root", "VOCdevkit"]
        small += ["--start-epoch", "0", "--save-prefix", f"{len(os.listdir())}-"]
        stage.make("VOCdevkit", "data")
        assert train_yolo3.main([*words[3:], *small]) == 0, line
        return
    assert words[0] == "triscale", f"neither run nor listed in NOT_RUN: {line}"
    arguments = parse(words)
    provide(arguments, stage)
    extra: list[str] = []
    if words[1] == "train" and not arguments.resume:
        extra = set_words(*FAST)
        extra += ["--epochs", "1"]
        if arguments.minutes:  # which a run would fill: tests/test_budget.py
            at = words.index("--minutes")
            del words[at : at + 2]
        extra += ["--set", f"model.backbone={backbone_for(arguments.init)}"]
    elif words[1] in ("preview", "anchors"):
        extra = ["--set", "train.batch_size=4"]
    elif words[1] == "eval":
        extra = ["--size", "64", "--workers", "0"]
    elif words[1] == "bench":
        extra = ["--seconds", "0", *(["--size", "64"] if arguments.size else [])]
    fine = (0, 2) if words[1] == "check" else (0,)  # 2: it found something in the drawn pictures
    assert cli.main([*words[1:], *extra]) in fine, line


def backbone_for(init: str | None) -> str:
    """The network of the weights that a run starts from; without any a smaller one."""
    if not init:
        return "mobilenet0.1"
    return TINY if Path(init).is_dir() or ".weights" in init else SMALL


def provide(arguments: argparse.Namespace, stage: Stage) -> None:
    """Make what the arguments name."""
    for dest, role in ROLES.items():
        value = getattr(arguments, dest, None)
        for name in value if isinstance(value, list) else [value] if value else []:
            if dest != "resume" or not Path(name).suffix:
                stage.make(name, role)
            else:  # of the reference's flags: a weights file
                stage.make(name, "weights")


def run_python(code: str, stage: Stage) -> None:
    """A Python block, after what it opens has been made."""
    roles = {"Detector": "weights", "detector": "pictures", "open_dataset": "data"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            role = roles.get(node.func.id)
            for word in ast.walk(node.args[0]) if role and node.args else ():
                if isinstance(word, ast.Constant) and isinstance(word.value, str):
                    stage.make(word.value, role or "")
    snippet(code, stage.folder)


def read_file(language: str, code: str, stage: Stage) -> None:
    """A recipe, or a data set's description in the file that its first line names, opened."""
    content = tomllib.loads(code) if language == "toml" else yaml.safe_load(code)
    if set(content) <= set(Recipe.__dataclass_fields__):
        make_recipe(content, source="a document")
        return
    name = code.splitlines()[0].removeprefix("# ")
    (stage.folder / name).write_text(code)
    assert open_dataset(stage.folder / name).train
