"""What nanoshape answers to real micrographs and to files that were once misread, beside what is right.

    python benchmarks/real_files.py [--data FOLDER] [--out data/results/real_files.csv]

FOLDER holds real/catalysts (Genc et al., Ultramicroscopy 271 (2025) 114116, MIT), real/sintering (msa-em/microscopy-seg-track, CC BY 4.0, doi
10.69761/HDTA8338), real/files and inputs. Each row is a file, the command that it was given to, the answer, and the right one. `agrees` is decided
here by the rule written beside each file, not by eye; for particles it is the F1 against the authors' boxes or masks (IoU of boxes ≥ 0.5)."""
import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from skimage import measure

sys.path.insert(0, str(Path(__file__).parent))
from catalysts import DARK_FIELD, SMALLEST, counts, true_boxes
from real_kinds import ideal
from nanoshape.cli import main as nanoshape
from nanoshape.core import project_root, provenance, shared_data

REFUSED, SIZES = 'refused', 'sizes only'
QUADRANTS = {(False, False): 'icosahedron', (False, True): 'cube', (True, False): 'cuboctahedron', (True, True): 'octahedron'}  # lower, right
FILES = [  # file, pixel size in nm (None: not known), what else is right
    ('real/files/berkeley_n_m.emd', .01225, 'a lattice image in dark field: its columns of atoms are no particles'),
    ('real/files/micrometres_shift_jis.tif', 2.99, 'sizes only'),
    ('real/files/velox_eels_eds.zip', None, 'a scanned image of a sound file: sizes, or a sentence that says what is missing'),
    ('real/files/coloured_scale_bar.tif', .02393, 'a micrograph, no screenshot; the pixel size is the file\'s own'),
    *((f'inputs/{name}', .0586, '18 particles or so') for name in ('A.dm3', 'ij_A.tif', 'ij_angstrom_escaped.tif', 'ij_um_escaped.tif',
                                                                   'ome_um.ome.tif', 'ij_oblong.tif', 'velox_fft_first.emd')),
    ('inputs/ij_inch96.tif', None, 'not known: asked for'), ('inputs/voxel_unset_1A.mrc', None, 'not known: asked for'),
    ('inputs/Pt.tif', .05, 'planes of Pt with --element Pt'),
    ('inputs/pt_200kV_cs1.2_66nm.dm3', .05, 'icosahedron, cube, cuboctahedron, octahedron; or withheld')]  # upper left to lower right


def run(*args):
    """Exit status, and what was written to the screen."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(): status = nanoshape([str(a) for a in args])
    return status, out.getvalue().strip(), err.getvalue().strip()


def sentence(text):
    lines = [line.split('nanoshape: ')[-1] for line in text.splitlines() if line and not line.startswith('Results:')]
    return re.sub(r'(?<!\S)/\S*/', '…/', ' '.join(lines))[:400]


def analysed(path, folder, *more):
    """Row of one file, its particles, its labels and the record of the run."""
    out = Path(folder)/'out'
    status, said, err = run('analyse', path, '--out', out/path.stem, *more)
    row = dict(command=' '.join(['nanoshape analyse', path.name, *map(str, more)]), status=status, answer=sentence(said or err))
    if status: return row, None, None, None
    labels = tifffile.imread(next((out/path.stem).glob('*_labels.tif'))).astype(int)
    return row, pd.read_csv(out/path.stem/'particles.csv'), labels, json.loads((out/path.stem/'run.json').read_text())


def named_shapes(t):
    """The shape that each particle is called, '' for none."""
    return np.where(t.kind.isin(['decahedron', 'icosahedron']), t.kind, t['shape'].fillna(''))


def boxes(labels): return np.array([r.bbox for r in measure.regionprops(labels)], float).reshape(-1, 4)


def score(found, true, shape, smallest=0):
    c, _ = counts(found, true, shape, smallest)
    f1, size = 2*c['right']/max(1, c['found'] + c['true']), c['size_found']/c['size_true'] if c['size_true'] else np.nan
    return dict(found=c['found'], true=c['true'], f1=round(f1, 3), size=round(size, 3))


def catalyst(path, folder):
    row, t, labels, record = analysed(path, folder, '--pixel-size', '0.1')
    dark = path.stem in DARK_FIELD
    s = score(boxes(labels), true_boxes(path.with_suffix('.txt'), labels.shape), labels.shape, SMALLEST if dark else 0)
    right = f'{s["true"]} particles, {"brighter" if dark else "darker"} than their surroundings; no shapes'
    named = int(ideal(t).sum())
    return row | s | dict(right=right, named=named, agrees=record['bright'] == dark and named == 0 and s['f1'] >= (.75 if dark else .85))


def tile(path, folder):
    row, t, labels, _ = analysed(path, folder, '--pixel-size', '0.0586')
    mask = measure.label(tifffile_or_png(path.with_name(path.name.replace('image', 'label'))) > 0)
    true = boxes(mask)
    s, named = score(boxes(labels), true, labels.shape), int(ideal(t).sum())
    right = f'{s["true"]} round particles, most without fringes: undetermined'
    return row | s | dict(right=right, named=named, agrees=s['f1'] >= .9 and named == 0)


def tifffile_or_png(path):
    from PIL import Image
    return np.asarray(Image.open(path))[..., 0]


def pixel(path, right_nm, right, folder):
    if path.suffix == '.zip':
        with zipfile.ZipFile(path) as z: z.extractall(folder); path = Path(folder)/z.namelist()[0]
    row, t, _, record = analysed(path, folder, *(('--element', 'Pt') if path.stem == 'Pt' else ()))
    said = f'{right_nm} nm per pixel; {right}' if right_nm else right
    if row['status']:
        return row | dict(right=said, agrees=right_nm is None and row['status'] == 2 and 'pixel' in row['answer'])
    agrees = right_nm is not None and abs(record['sampling_nm']/right_nm - 1) < .01
    named = int(ideal(t).sum())
    if path.stem == 'Pt':  # planes of Pt, 0.2265 and 0.1961 nm, within 3 %
        planes = [(p, float(d)) for r in t.itertuples() for p, d in zip(str(r.planes).split(), str(r.spacings_nm).split())]
        right = {'111': .2265, '200': .1961}
        agrees &= {p for p, _ in planes} >= {*right} and all(abs(d/right[p] - 1) < .03 for p, d in planes if p in right)
    if path.stem.startswith('pt_200kV'):
        agrees &= all(shape in (QUADRANTS[r.y_px > 240, r.x_px > 240], '') for r, shape in zip(t.itertuples(), named_shapes(t)))
    if path.stem.startswith('berkeley'): agrees &= not (t.equivalent_diameter_nm < .5).any()
    return row | dict(right=said, found=len(t), named=named, agrees=bool(agrees))


def ceria(name, right, folder, data):
    path, out = data/'inputs'/name, Path(folder)/Path(name).stem
    status, said, err = run('heights', path, '--out', out, '--material', 'CeO2')
    row = dict(command=f'nanoshape heights {name}', status=status, answer=sentence(said or err), right=right)
    if status: return row | dict(agrees='refuse' in right)
    columns = pd.read_csv(out/'columns.csv')
    height = pd.to_numeric(columns.get('height', columns.get('atoms')), errors='coerce')
    mean = float(height.mean())
    return row | dict(found=len(columns), mean_height=round(mean, 2), agrees=abs(mean - 4.9) < .5 and 'refuse' not in right)


def structures(folder, data):
    inputs, rows = data/'inputs', []
    status, said, err = run('simulate', inputs/'pt200.yaml', Path(folder)/'pt200', '--structures', '2', '--workers', '1')
    rows.append(dict(file='inputs/pt200.yaml', command='nanoshape simulate pt200.yaml --structures 2', status=status, answer=sentence(said or err),
                     right='a recipe for another microscope, which works', agrees=status == 0))
    status, said, err = run('simulate', inputs/'wulff_unquoted.yaml', Path(folder)/'wulff', '--workers', '1')
    rows.append(dict(file='inputs/wulff_unquoted.yaml', command='nanoshape simulate wulff_unquoted.yaml', status=status, answer=sentence(said or err),
                     right='{111: …} without quotation marks is understood', agrees=status == 0))
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', default=None)
    p.add_argument('--out', default=project_root()/'data/results/real_files.csv')
    a = p.parse_args()
    data, rows = Path(a.data or shared_data() or '.'), []
    def keep(file, row):
        rows.append(dict(file=file, **{k: v for k, v in row.items() if k != 'file'}))
        print(file, '|', row['answer'], '|', row['right'], '|', row['agrees'], flush=True)
    with tempfile.TemporaryDirectory() as d:
        os.environ['NANOSHAPE_RUNS'] = d
        for name, nm, right in FILES: keep(name, pixel(data/name, nm, right, d))
        for name, right in [('ceria_dm_origin0.dm3', '4 to 6 atoms, mean 4.9'), ('ceria_dm_origin100.dm3', '4 to 6 atoms, mean 4.9'),
                            ('ceria_offset0.3.tif', 'zero is not zero: refused'), ('ceria_8bit.tif', 'no counts: refused')]:
            keep(f'inputs/{name}', ceria(name, right, d, data))
        for row in structures(d, data): keep(row['file'], row)
        for path in sorted((data/'real/catalysts').glob('*.jpg')): keep(f'real/catalysts/{path.name}', catalyst(path, d))
        for path in sorted((data/'real/sintering').glob('train_image_*.png')): keep(f'real/sintering/{path.name}', tile(path, d))
    pd.DataFrame(rows).assign(**provenance()).to_csv(a.out, index=False)


if __name__ == '__main__': main()
