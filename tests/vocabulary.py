"""The vocabulary of the project (one term per concept), and a search for the terms that it replaces.

`python tests/vocabulary.py [PATH ...]` lists what it finds, one line a finding.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEARCHED = ("src", "tests", "benchmarks", "scripts", "docs", "configs", "README.md", "Makefile", "pyproject.toml")
SUFFIXES = {".py", ".md", ".yaml", ".jinja", ".js", ".css", ".toml", ""}

# What to say, and a pattern of what we no longer say. Identifiers count as well as prose: an underscore ends a word.
TERMS: dict[str, str] = {
    "interact, interaction, seen item, unseen item": r"took|taken|untaken|takers?",
    "image": r"pictures?|pictured",
    "seen items included, excluded (exclude_seen)": r"left[ _-]out|leave out|leaves out|two looks|second look|looks",
    "missing-modality embedding": r"stand[ _-]?ins?",
    "non-learned baseline": r"floors?(?!\()",
    "random, chance": r"by[ _]lot",
    "package, module, import contract": r"rooms?|arrows?|house(?!hold)",
    "resume; from scratch; bit-identical": r"go(?:es)? on|going on|went on|anew|same digits|to the digits?",
    "catalogue, catalogue page": r"(?:on )?the wall|wall_page|on_the_wall",
    "precomputed embeddings": r"own[ _]vectors|vectors of (?:one's|your|their|the user's|his) own|own[ _]features",
    "chunk": r"stretch(?:es|ed)?",
    "backend": r"(?:which|its|the|other|ran|run)[ _]ways?(?: it| the| that| they)|both ways|ways",
    'embedding dimension ("384-d")': r"[\d,]+ numbers|numbers (?:a|an|each|per) |numbers wide",
    "item embeddings, item vectors": r"(?:scoring|item|the|of|its|an item's) keys?(?= \[)|item's key",
    "collaborative similarity": r"tastes?",
    "cold-start targets": r"arrivals?",
    "num_keywords": r"visual[._]words|best_words|picture_words|words: 15",
    "seen-item bias": r"repeat_bias|TAKEN|repeated_rows|with_repeats",
    "paired comparison": r"twins?",
    "extend the catalogue": r"grow(?! with)(?:n|s)?(?=\(|\.| the catalogue| a model)|grown|grow\.py",
    "log, callback, report": r"told|tells?|telling|speaks?|spoken",
    "complete, self-contained": r"whole|wholly",
    "table writer": r"sheets?(?!\.)",
    "user, customer, example user": r"people|persons?|somebody|nobody|anybody",
}
EXAMPLES = {
    "interact, interaction, seen item, unseen item": "an item that was taken",
    "image": "two pictures",
    "seen items included, excluded (exclude_seen)": "histories left out",
    "missing-modality embedding": "a learned stand-in",
    "non-learned baseline": "two floors",
    "random, chance": "a ranking by lot",
    "package, module, import contract": "the rooms",
    "resume; from scratch; bit-identical": "a run that goes on",
    "catalogue, catalogue page": "items on the wall",
    "precomputed embeddings": "vectors of your own",
    "chunk": "a stretch of items",
    "backend": "the ways of an encoder",
    'embedding dimension ("384-d")': "vectors of 384 numbers",
    "item embeddings, item vectors": "an item's key",
    "collaborative similarity": "by taste",
    "cold-start targets": "the arrivals",
    "num_keywords": "features.visual.words=5",
    "seen-item bias": "model.repeat_bias",
    "paired comparison": "its twins",
    "extend the catalogue": "the grown model",
    "log, callback, report": "a monitor is told",
    "complete, self-contained": "the whole run",
    "table writer": "a sheet",
    "user, customer, example user": "what people see",
}
"""A phrase that the pattern of each term must find; for the tests."""

# Lines that must use such a word: other projects' names, quoted titles, data.
ALLOWED = re.compile(r"math\.floor|np\.floor|torch\.floor|vocabulary: allow|style\s?sheets?|stylesheet|spreadsheet")
OWN = {"tests/vocabulary.py"}

PATTERNS = {
    use: re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", re.IGNORECASE) for use, pattern in TERMS.items()
}


def files(paths: list[str] | None = None) -> list[Path]:
    """The text files that are searched."""
    found: list[Path] = []
    for name in paths or list(SEARCHED):
        path = ROOT / name
        found += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [path for path in found if path.suffix in SUFFIXES and "__pycache__" not in path.parts]


def search(path: Path) -> Iterator[str]:
    """Yield "file:line: 'word' -> what to say" for each replaced term in a file."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    if name in OWN:
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if ALLOWED.search(line):
            continue
        for use, pattern in PATTERNS.items():
            if found := pattern.search(line):
                yield f"{name}:{number}: {found[0]!r} -> {use}"


if __name__ == "__main__":
    findings = [line for path in files(sys.argv[1:]) for line in search(path)]
    print("\n".join(findings))
    print(f"{len(findings)} findings", file=sys.stderr)
    sys.exit(bool(findings))
