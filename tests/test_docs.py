"""The documents against the code: commands parse, keys exist, tables are whole, snippets run.

The expected values come from the documents, which people write; what they are compared with is the
code. The list of the reference's bugs, B1 to B24, is that of its specification.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch

from triscale import train_yolo3
from triscale.cli import make_parser
from triscale.commands.train import DEFAULT_RECIPE
from triscale.config import to_dict
from triscale.model import yolo
from triscale.recipe import Recipe, load_recipe
from triscale.recipes import recipe_names

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "triscale"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SECTIONS = [field.name for field in dataclasses.fields(Recipe)]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a language in a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def command_lines(code: str) -> list[str]:
    """The commands of a shell block: whole lines without comments."""
    lines = [line.strip() for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def words_of(line: str) -> list[str]:
    """The words of a command; where its output goes is the shell's matter."""
    return shlex.split(re.split(r" [|>] ", line)[0], comments=True)


def commands(document: str) -> list[list[str]]:
    """The words of each `triscale` command line in the shell blocks of a Markdown text."""
    split = [words_of(line) for code in blocks(document, "sh") for line in command_lines(code)]
    return [words for words in split if {"triscale", "triscale.train_yolo3"} & set(words)]


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of a command line as its program reads them; SystemExit if it refuses them."""
    for module in ("triscale.train_yolo3", "triscale"):
        if module in words and words[words.index(module) - 1] == "-m":
            words = [module, *words[words.index(module) + 1 :]]
    program, *rest = words
    parser = train_yolo3._parser() if program == "triscale.train_yolo3" else make_parser()
    return parser.parse_args(rest)


def rows(document: str) -> list[list[str]]:
    """The cells of each table row in a Markdown text."""
    lines = [line for line in document.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def snippet(source: str, folder: Path) -> ModuleType:
    """Python from a document, imported."""
    path = folder / "snippet.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("snippet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", []),
        ("```sh\nmake demo\n```\n```python\ntriscale no\n```\n", []),
        ("```sh\ntriscale eval a b # c\n```\n", [["triscale", "eval", "a", "b"]]),
        ("```sh\ntriscale eval \\\n  a b > c\n```\n", [["triscale", "eval", "a", "b"]]),
    ],
)
def test_commands_are_found(document: str, expected: list[list[str]]) -> None:
    assert commands(document) == expected


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_parse(path: Path) -> None:
    for words in commands(path.read_text("utf-8")):
        arguments = parse(words)
        recipe = getattr(arguments, "recipe", None) or DEFAULT_RECIPE
        load_recipe(recipe, overrides=getattr(arguments, "overrides", []))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["triscale", "train", "data", "--epoch-count", "3"],
        ["torchrun", "--nproc-per-node", "2", "-m", "triscale", "train", "data", "--bogus"],
        ["python", "-m", "triscale.train_yolo3", "--bogus"],
    ],
)
def test_wrong_commands_do_not_parse(words: list[str]) -> None:
    with pytest.raises((SystemExit, ValueError)):
        parse(words)


def test_there_are_commands() -> None:
    names = ["README.md", *(f"docs/{n}.md" for n in ("quickstart", "data", "cli", "from-gluoncv"))]
    assert all(len(commands(text(name))) > 2 for name in names)


def test_every_flag_is_described() -> None:
    """The documents show each flag of `triscale` at least once."""
    documents = "".join(path.read_text("utf-8") for path in DOCUMENTS)
    (subparsers,) = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, parser in subparsers.choices.items():
        for action in parser._actions:
            for flag in action.option_strings:
                if flag not in ("-h", "--help"):
                    assert re.search(rf"{flag}\b", documents), f"{name} {flag}"


@pytest.mark.parametrize("section", SECTIONS)
def test_recipe_keys(section: str) -> None:
    """docs/recipes.md has each key once, with its default, and no other."""
    part = re.search(rf"^## \[{section}\]$(.*?)(?=^## |\Z)", text("docs/recipes.md"), re.M | re.S)
    assert part, section
    written = {key: default for key, default, meaning in rows(part[1])[1:] if meaning}
    values = getattr(Recipe(), section)
    expected = {f"`{k}`": f"`{json.dumps(v)}`" for k, v in to_dict(values).items()}
    assert len(rows(part[1])) == len(expected) + 1
    assert written == expected


def test_recipe_sections() -> None:
    assert re.findall(r"^## \[(\w+)\]$", text("docs/recipes.md"), re.M) == SECTIONS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_keys_exist(path: Path) -> None:
    """What a document names in code type as `section.key` is a key of a recipe."""
    spans = re.findall(r"`(?:--set )?([a-z_]+)\.([a-z_]+)(?:=[^`]*)?`", path.read_text("utf-8"))
    for section, key in spans:
        if section in SECTIONS and key not in ("py", "yaml", "txt", "jsonl"):  # files
            assert hasattr(getattr(Recipe(), section), key), f"{section}.{key}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(path: Path) -> None:
    """Links lead to files; Python files in code type exist in the package."""
    document = path.read_text("utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)", document):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"`((?:tests/)?(?:\w+/)?\w+\.py)`", document):
        new = name in ("model/plain.py", "util.py", "train_yolo3.py")  # proposed, refused, ours
        assert new or (PACKAGE / name).is_file() or (ROOT / name).is_file(), name


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_anchors_exist(path: Path) -> None:
    """Links to a heading find it in the files as they are read without the site."""
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", path.read_text("utf-8")):
        assert anchor in anchors(path.parent / link if link else path), f"{link}#{anchor}"


def test_quoted_messages_exist() -> None:
    """What docs/troubleshooting.md quotes is written by the code: some words in a row."""
    trees = [ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")]
    literals = [
        node.value.strip(" :;,(\n")
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quotes = re.findall(r"^> `(.*)`$", text("docs/troubleshooting.md"), re.MULTILINE)
    assert len(quotes) > 10
    for quote in quotes:
        pieces = [piece.strip() for piece in quote.split("...") if len(piece.split()) > 3]
        known = [literal for literal in literals if len(literal.split()) > 2 and literal in quote]
        assert known or any(p in literal for p in pieces for literal in literals), quote


def test_differences() -> None:
    """Each of the reference's 24 bugs has a full row: what, what instead, why, how to get it."""
    table = [cells for cells in rows(text("docs/differences.md")) if re.match(r"B\d+$", cells[0])]
    assert [cells[0] for cells in table] == [f"B{n}" for n in range(1, 25)]
    for cells in table:
        assert len(cells) == 5, cells[0]
        assert all(len(cell) > 5 for cell in cells[1:4]), cells[0]
        assert cells[4], cells[0]


def test_recipe_table() -> None:
    """README names the shipped recipes with their networks."""
    part = text("README.md").split("\n## Recipes\n")[1].split("\n## ")[0]
    written = {cells[0]: cells[1] for cells in rows(part)[1:]}
    assert written == {f"`{n}`": load_recipe(n).model.backbone for n in recipe_names()}


def test_readme_imports() -> None:
    """The names that the documents' Python imports exist, and are not modules of that name."""
    documents = [text("README.md"), text("docs/from-gluoncv.md")]
    trees = [ast.parse(block) for document in documents for block in blocks(document, "python")]
    imports = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert imports
    for node in imports:
        for alias in node.names:
            value = getattr(importlib.import_module(str(node.module)), alias.name)
            assert callable(value), alias.name


def test_backbone_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone in ARCHITECTURE.md fits the detector."""
    (source,) = blocks(text("ARCHITECTURE.md"), "python")
    assert len(re.findall(r"^ .*\S", source, re.M)) <= 20
    plain = snippet(source, tmp_path).Plain
    monkeypatch.setattr(yolo, "build_backbone", lambda name: {"plain": plain}[name](8))
    config = yolo.ModelConfig(backbone="plain", init="kaiming")
    model = yolo.build_model(config, 2, generator=torch.Generator().manual_seed(0))
    predictions = model(torch.zeros(1, 3, 70, 64))
    # ceil(70 / 32) = 3 rows of 2 cells, 5 of 4, 9 of 8, three anchors each
    assert predictions.classes.shape == (1, 3 * (3 * 2 + 5 * 4 + 9 * 8), 2)
    assert torch.isfinite(predictions.objectness).all()


def test_layers() -> None:
    """The layers in ARCHITECTURE.md name each module once, and imports only go downwards."""
    (block,) = blocks(text("ARCHITECTURE.md"), "layers")
    layer = {name: n for n, line in enumerate(block.splitlines()) for name in line.split()}
    files = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert len(layer) == len(block.split())
    assert set(layer) ^ set(files) == set()
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            for alias in node.names:
                for module in (node.module, f"{node.module}.{alias.name}"):
                    used = module.removeprefix("triscale.")
                    if module.startswith("triscale.") and used in layer:
                        assert layer[name] <= layer[used], f"{name} imports {used}"
