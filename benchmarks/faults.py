"""Commands are killed at random moments and started again: nothing of a person's is lost, and the end is the same to the byte.

    .venv/bin/python benchmarks/faults.py                    # every command, 100 kills each
    .venv/bin/python benchmarks/faults.py simulate sweep --kills 20

Before each start a note lies beside the result, as a person may have put it there; after each kill it must still be there.
Every tenth time the command runs to its end and is compared with one that nobody killed.
"""
import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import tifffile

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, '-W', 'ignore', '-c', 'import sys; from nanoshape.cli import main; sys.exit(main())']
CLOCK = re.compile(rb'"(time|seconds|date|minutes\w*|elapsed)": *("[^"]*"|[-+.\de]+)')  # what no two runs have in common
EXPERIMENT = '''import json, pathlib, time
time.sleep(.3)
pathlib.Path(out, 'metrics.json').write_text(json.dumps(dict(params=dict(seed=seed), tests={'one': dict(accuracy=seed/10)})))'''


def micrograph(path, seed=0, n=192):
    """A grey image with dark discs, its labels, and the image alone in another folder."""
    from nanoshape.datasets.batches import write_tiff
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n]
    labels = np.zeros((n, n), np.uint8)
    for k, (a, b) in enumerate([(48, 50), (130, 120)], 1): labels[np.hypot(y - a, x - b) < 22] = k
    image = g.poisson(400 - 120*(labels > 0)).astype(np.float32)
    write_tiff(path, image, .5)
    tifffile.imwrite(path.with_name(f'{path.stem}_labels.tif'), labels)
    write_tiff(path.parents[1]/f'plain/{path.name}', image, .5)


def crystal(path):
    """A ceria crystal along [110], as `nanoshape heights` reads it."""
    from nanoshape.datasets.batches import frozen_images
    from nanoshape.datasets.recipes import load_recipe
    from nanoshape.datasets.store import simulate
    recipe = load_recipe(ROOT/'data/recipes/ceria_heights.yaml', structures=1)
    store = simulate(recipe, path.parent/'waves', workers=0)
    tifffile.imwrite(path, frozen_images(store, [0])[0].numpy().astype(np.float32))
    shutil.rmtree(path.parent/'waves')
    return store.sampling/10


def jobs(home):
    """Name → arguments without `--out`, and whether an interrupted one goes on where it was."""
    for k in range(3): micrograph(home/f'images/im{k}.tif', k)
    pixel = crystal(home/'ceria.tif')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seed: int = 0\nout: str = '.'", metadata=dict(tags=['parameters'])),
                                               nbformat.v4.new_code_cell(EXPERIMENT)])
    notebook.metadata.kernelspec = dict(display_name='python3', language='python', name='python3')
    nbformat.write(notebook, home/'quick.ipynb')
    (home/'sweep.yaml').write_text(json.dumps(dict(notebook=str(home/'quick.ipynb'), laptop=dict(grid=dict(seed=[0, 1, 2])))))
    return {'simulate': (['simulate', str(ROOT/'data/recipes/tiny.yaml'), '--workers', '2'], True),
            'analyse': (['analyse', str(home/'plain'), '--workers', '1'], True),
            'sweep': (['sweep', str(home/'sweep.yaml'), '--anywhere', '--workers', '1', '--table', str(home/'table.csv')], True),
            'train': (['train', 'tiny', '--steps', '8', '--structures', '24'], True),
            'heights': (['heights', str(home/'ceria.tif'), '--pixel-size', f'{pixel:.5f}', '--counts'], False),
            'fit': (['fit', str(home/'images/im0.tif'), '--labels', str(home/'images/im0_labels.tif'), '--kv', '300'], False),
            'train-detector': (['train-detector', str(home/'images'), '--epochs', '1'], False)}


def contents(folder):
    """File → checksum, without what a clock has written."""
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.name != 'mine.txt']
    return {str(p.relative_to(folder)): hashlib.sha256(CLOCK.sub(b'', p.read_bytes())).hexdigest()[:12] for p in files
            if p.suffix not in ('.html', '.log') and p.name not in ('log.csv', 'notebook.ipynb')}


def begin(arguments, out):
    place = {'simulate': [str(out/'store')], 'train': ['--out', str(out/'network')], 'train-detector': ['--out', str(out/'own.safetensors')]}
    option = place.get(arguments[0], ['--out', str(out/'result')])
    return subprocess.Popen([*COMMAND, *arguments, *option], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, env=os.environ | dict(OMP_NUM_THREADS='1', MPLBACKEND='agg'))


def ended(process):
    said = process.communicate()[1]
    if process.returncode: raise SystemExit(f'a run that nobody killed failed: {said[-2000:]}')


def left_over(home):
    """Temporary files of processes that are gone."""
    return [p for p in home.rglob('*') if re.search(r'\.tmp$|\.part$|~$', p.name)]


def campaign(name, arguments, goes_on, home, kills, g):
    """Row of the table: kills, runs to the end, what went wrong."""
    whole, out = home/f'{name}-whole', home/f'{name}-killed'
    whole.mkdir()
    start = time.perf_counter()
    ended(begin(arguments, whole))
    seconds, wanted, lost, other, littered = time.perf_counter() - start, contents(whole), 0, 0, 0
    for k in range(kills):
        out.mkdir(exist_ok=True)
        (out/'mine.txt').write_text('a person\'s')
        process = begin(arguments, out)
        try: process.wait(g.uniform(.3, seconds))
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        lost += (out/'mine.txt').read_text() != 'a person\'s' if (out/'mine.txt').is_file() else 1
        if k % 10 < 9 and goes_on: continue
        if k % 10 == 9:
            ended(begin(arguments, out))
            other += contents(out) != wanted
            littered += bool(left_over(home))
        shutil.rmtree(out)
    return dict(command=name, seconds=round(seconds, 1), kills=kills, notes_lost=lost, other_results=other, left_over=littered)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('commands', nargs='*', help='which; default: all')
    p.add_argument('--kills', type=int, default=100, help='of each')
    p.add_argument('--seed', type=int, default=0, help='of the moments')
    a, rows = p.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for part in ('images', 'plain'): (home/part).mkdir()
        known = jobs(home)
        if wrong := [c for c in a.commands if c not in known]: raise SystemExit(f'no command {wrong[0]!r}: choose of {", ".join(known)}')
        for name in a.commands or known:
            rows.append(campaign(name, *known[name], home, a.kills, random.Random(f'{a.seed} {name}')))
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
    bad = sum(r['notes_lost'] + r['other_results'] + r['left_over'] for r in rows)
    raise SystemExit(f'{bad} faults' if bad else 0)


if __name__ == '__main__': main()
