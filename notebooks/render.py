"""Runs the notebooks and writes them as HTML pages that need nothing else: ``make notebooks``, or for one of them

    python notebooks/render.py docs/notebooks notebooks/2_gates.ipynb

The notebooks themselves are kept without output; what they show is in ``docs/notebooks``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).parent
STYLE = """
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; color: #222; }
pre { overflow-x: auto; background: #f6f6f6; padding: 0.6rem; font-size: 13px; }
img { max-width: 100%; } .jp-RenderedHTMLCommon, .jp-OutputArea { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.7rem; text-align: left; white-space: nowrap; }
.jp-InputPrompt, .jp-OutputPrompt, .anchor-link { display: none; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}{colours}</style></head><body>
{body}
</body></html>
"""


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with the output of its cells; it is run in its own folder.

    Raises:
        CellExecutionError: when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # warnings of libraries name paths of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def page(notebook: nbformat.NotebookNode) -> str:
    """One HTML page, with all pictures inside."""
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    title = re.search(r"^# (.*)", notebook.cells[0].source, re.MULTILINE)
    colours = HtmlFormatter().get_style_defs(".highlight")
    return PAGE.format(title=title[1] if title else "LASER", style=STYLE, colours=colours, body=body)


def main(target: Path, paths: list[Path]) -> int:
    """Render some notebooks; returns the exit code."""
    target.mkdir(parents=True, exist_ok=True)
    for path in paths or sorted(HERE.glob("*.ipynb")):
        try:
            text = page(run(path))
        except (CellExecutionError, FileNotFoundError) as error:
            said = error.evalue if isinstance(error, CellExecutionError) else str(error)
            print(f"notebooks/render.py: {path}: {' '.join(said.split())}", file=sys.stderr)
            return 2
        (target / f"{path.stem}.html").write_text(text)
        print(target / f"{path.stem}.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
