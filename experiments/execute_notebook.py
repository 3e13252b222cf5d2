"""Executes a notebook, and keeps small outputs in it, for readers on the web.

    python -m experiments.execute_notebook experiments/notebooks/quickstart.ipynb

Pictures become JPEGs; warnings, progress bars, times of cells and lines that name the
home folder are left out.
"""

import base64
import io
import pathlib

import nbclient
import nbformat
import PIL.Image
import tyro

from experiments import command_line

WIDTH = 480  # of a picture, at most; pixels
QUALITY = 65  # of JPEGs


def main(notebook: tyro.conf.Positional[pathlib.Path]):
    """Executes all cells, and writes the notebook in its place.

    Args:
      notebook: an .ipynb file; its cells run in its folder.
    """
    content = nbformat.read(notebook, as_version=4)
    folder = {"metadata": {"path": notebook.parent}}
    options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    nbclient.NotebookClient(content, resources=folder, **options).execute()
    for cell in content.cells:
        if cell.cell_type == "code":
            kept = [one for one in cell.outputs if one.get("name") != "stderr"]
            cell.outputs = list(map(_small, kept))
    content.metadata.language_info = {"name": "python"}  # of any version
    nbformat.write(content, notebook)


def _small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Turns a PNG into a JPEG without its description, which has an address."""
    home, lines = str(pathlib.Path.home()), output.get("text", "").splitlines(True)
    if lines:
        output.text = "".join(line for line in lines if home not in line)
    encoded = output.get("data", {}).get("image/png")
    if encoded is not None:
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        picture.thumbnail((WIDTH, picture.height))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=QUALITY)
        output.data = {"image/jpeg": base64.b64encode(file.getvalue()).decode()}
        output.metadata = {}
    return output


if __name__ == "__main__":
    command_line.run(main)
