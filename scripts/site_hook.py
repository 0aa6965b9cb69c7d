"""Hooks of mkdocs: adds the generated pages, and stops at a public name without a docstring."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from api_reference import undocumented
from reference import generated_pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    if missing := undocumented():
        raise PluginError(f"public names without a docstring: {', '.join(missing)}")
    for path, text in generated_pages(Path(config.docs_dir)).items():
        files.append(File.generated(config, path, content=text))
    return files
