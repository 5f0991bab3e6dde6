"""How long the tutorials' sliders take to answer: each control is moved, and the picture drawn and encoded anew. Run it on a quiet machine.

    python benchmarks/sliders.py [--moves 7] [tutorial …]
"""
import argparse
import contextlib
import io
import json
import statistics
import time
import warnings

import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt

from nanoshape import figures
from nanoshape.core import project_root


def pictures(path):
    """The controls of each picture with sliders that a notebook makes."""
    made, ours = [], figures.sliders

    def kept(draw, **controls):
        ours(draw, **controls)
        made.append(controls)

    figures.sliders = kept
    try:
        space = {'display': lambda *a, **k: None}  # as in a notebook
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if c['cell_type'] == 'code':
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(''.join(c['source']), path.name, 'exec'), space)
                plt.close('all')
    finally:
        figures.sliders = ours
    return made


def moves(control, n):
    """So many values of a control, none twice in a row."""
    low, high = control.min, control.max
    for k in range(n):
        v = low + (high - low)*(.2 + .6*k/n)
        v = type(control.value)(10**v if hasattr(control, 'base') else v)
        yield v if v != control.value else control.value + getattr(control, 'step', 1)


def main():
    p = argparse.ArgumentParser(description=__doc__.split(':')[0])
    p.add_argument('tutorials', nargs='*', default=['from_atoms_to_image', 'the_microscope', 'what_a_network_sees', 'honest_scores'])
    p.add_argument('--moves', type=int, default=7)
    a = p.parse_args()
    warnings.simplefilter('ignore')
    print(f'{"tutorial":22} {"picture":>7} {"control":24} {"median (ms)":>11} {"slowest (ms)":>12}')
    for name in a.tutorials:
        for k, controls in enumerate(pictures(project_root()/f'nbs/tutorials/{name}.ipynb')):
            for what, control in controls.items():
                took = []
                for v in moves(control, a.moves + 1):
                    start = time.perf_counter()
                    control.value = v
                    took.append(1e3*(time.perf_counter() - start))
                print(f'{name:22} {k + 1:7} {what:24} {statistics.median(took[1:]):11.0f} {max(took[1:]):12.0f}', flush=True)


if __name__ == '__main__':
    main()
