"""Run notebooks and keep their outputs, but for widgets: those are blank without a kernel.

    python docs/run.py NOTEBOOK …
"""
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

WIDGET = 'application/vnd.jupyter.widget-view+json'


def without_widgets(nb):
    """The notebook without what only a running kernel can show."""
    nb.metadata.pop('widgets', None)
    for cell in nb.cells:
        if 'outputs' in cell:
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get('data', {})]
    return nb


def run(path):
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=900, kernel_name='python3', store_widget_state=False, resources={'metadata': {'path': str(path.parent)}}).execute()
    nbformat.write(without_widgets(nb), path)


def main():
    for path in map(Path, sys.argv[1:]):
        print(path, flush=True)
        try:
            run(path)
        except CellExecutionError as e:
            sys.exit(f'{path} failed and stays as it was:\n{e}')


if __name__ == '__main__':
    main()
