"""README and docs: what they show runs, and their links lead somewhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "llms.txt", *sorted((ROOT / "docs").rglob("*.md"))]
ALL = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
OPTIONAL = {"accelerate", "datasets", "lightning", "peft", "skorch", "transformers"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def snippets(text: str) -> str:
    """The Python of a page as one program, in which each line has the number that it has there."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        if fence:
            inside = line == "```python"
        lines.append("" if fence or not inside else line)
    return "\n".join(lines)


def imported(program: str) -> set[str]:
    """The names of the modules that a program imports whole."""
    nodes = (node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Import))
    return {name.name for node in nodes for name in node.names}


def without_blocks(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the pages' builder make them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_snippets_are_found() -> None:
    assert snippets("a\n```python\nb\n```\nc\n```text\nd\n```\n") == "\n\nb\n\n\n\n\n"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    """All of a page run one after the other, as a reader would paste them."""
    program = snippets(page.read_text(encoding="utf-8"))
    if not program.strip():
        return
    for library in sorted(OPTIONAL & imported(program)):
        pytest.importorskip(library)
    script = tmp_path / page.with_suffix(".py").name
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, "-W", "error::UserWarning:__main__", str(script)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, f"line numbers are those of {page}\n{ran.stderr}"


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_within_the_project(page: Path) -> None:
    prose = re.sub(r"`[^`\n]+`", "", without_blocks(page))  # nor code within a line
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose)
    for target in targets:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} leads nowhere"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}: {file.name} has no such heading"


def test_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "api.html").exists()
