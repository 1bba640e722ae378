"""What the site has beside the pages of its folder: files of the repository's top, and links that lead to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TOP = ("CONTRIBUTING.md", "SECURITY.md", "bench/results/REPORT.md", "bench/results/cluster.md", "bench/results/tls.md")
"""Pages of the repository that the site has, too."""
LINK = re.compile(r"\]\((?P<up>\.\./)?(?P<path>[^)#:\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the pictures that they show."""
    for name in TOP:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    for picture in sorted((ROOT / "bench/results").glob("*.png")):
        files.append(File.generated(config, f"bench/results/{picture.name}", content=picture.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links lead where they lead in the repository; to what the site does not have there is none."""
    inside = page.file.src_uri in TOP

    def led(found: re.Match[str]) -> str:
        path = found["path"].removeprefix("docs/") if inside else found["path"]
        if found["up"] and path not in TOP and not path.endswith(".png"):
            return "]"
        return f"]({path}{found['anchor'] or ''})"

    return LINK.sub(led, markdown)
