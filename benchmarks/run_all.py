"""Run the benchmarks and write what they find into docs/benchmarks.md.

    python benchmarks/run_all.py [--peers] [name ..]

Each script's table stands between two marks, `<!-- name -->` and `<!-- /name -->`, and takes the
place of the one before; the rest of the document stays as it is. A script that fails is named and
the others go on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = (
    *("data_path", "loader", "loss", "step", "inference", "suppression", "metrics", "startup"),
    *("memory", "growth"),
)
FOLDER = Path(__file__).resolve().parent
DOCUMENT = FOLDER.parent / "docs" / "benchmarks.md"
BEFORE = "## A million pictures"  # a section that is new goes before this one


def main() -> None:
    """Run what is named; exit with 1 if a script failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--peers", action="store_true", help="beside the other programs")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="what is written into")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the scripts are")
    words = parser.parse_args()
    failed = False
    for name in words.names or SCRIPTS:
        script = words.folder / f"{name}.py"
        if not script.exists():
            print(f"{name}: there is no {script}", file=sys.stderr)
            failed |= bool(words.names)
            continue
        start = time.perf_counter()
        try:
            markdown = measured(script, peers=words.peers)
        except RuntimeError as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed = True
            continue
        text = words.document.read_text(encoding="utf-8")
        words.document.write_text(with_section(text, name, markdown), encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    sys.exit(failed)


def measured(script: Path, *, peers: bool) -> str:
    """The table that a script prints; RuntimeError with its last word if it fails."""
    words = ["--json"]
    if peers and "--peers" in run(script, "--help"):
        words.append("--peers")
    output = run(script, *words)
    try:
        return str(json.loads(output)["markdown"])
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f"with --json it printed {output[:80]!r}") from None


def run(script: Path, *words: str) -> str:
    """What it prints on stdout; what it says on stderr is passed on."""
    ended = subprocess.run(
        [sys.executable, script, *words], check=False, capture_output=True, text=True
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise RuntimeError(said[-1])
    print(ended.stderr, end="", file=sys.stderr)
    return ended.stdout


def with_section(text: str, name: str, markdown: str) -> str:
    """The document with this section in the place of the one of the same name."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{first}\n\n{markdown.strip()}\n\n{last}\n"
    found = re.compile(f"{re.escape(first)}\n.*?{re.escape(last)}\n?", re.DOTALL)
    if found.search(text):
        return found.sub(lambda _: section, text, count=1)
    head, mark, rest = text.partition(f"\n{BEFORE}\n")
    return f"{head.rstrip()}\n\n{section}{mark}{rest}"


if __name__ == "__main__":
    main()
