"""The README's picture, taken out of the figure notebook that makes it.

    python docs/picture.py
"""
import base64
from pathlib import Path

import nbformat

from nanoshape.core import project_root, whole_file

ROOT = project_root(Path(__file__))


def picture():
    """The last PNG that the notebook keeps."""
    cells = nbformat.read(ROOT/'nbs/figures/overview.ipynb', as_version=4).cells
    return base64.b64decode([o.data['image/png'] for c in cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})][-1])


if __name__ == '__main__':
    with whole_file(ROOT/'docs/overview.png') as part:
        part.write_bytes(picture())
