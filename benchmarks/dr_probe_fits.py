"""Models fitted to images of a gold particle that another simulator has made.

    python benchmarks/dr_probe_fits.py [--out data/results/dr_probe_fits.csv] [--dose 1000]

A truncated octahedron of 1504 atoms in vacuum, by Dr. Probe (celslc, msa, wavimg; averages over 19 foci) at three foci. It has no thermal motion
and no detector blur; the fit assumes the one and finds the other. Poisson noise is added. The true outline stands in for the detector's; the
voltage and Cs are told, orientation, size, form, focus, spread and lattice constant are not. One row per image."""
import argparse
import json
import time

import numpy as np
import pandas as pd
from ase import Atoms
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from nanoshape.atoms.particle_fit import fit_particle, fit_row, view_particle
from nanoshape.core import NM, project_root, provenance, rng, shared_data
from nanoshape.datasets.samples import particle_map
from nanoshape.micrographs.reading import Micrograph
from nanoshape.simulate.structures import feret
from nanoshape.studies.fit_tests import fit_errors


def rotation(positions, a=4.08):
    """Of an fcc crystal: the next nearest neighbours of an atom inside lie along its cubic axes."""
    tree = cKDTree(positions)
    middle = tree.query(positions.mean(0))[1]
    near = [positions[k] - positions[middle] for k in tree.query_ball_point(positions[middle], 1.1*a)]
    x, *others = [v for v in near if abs(np.linalg.norm(v) - a) < .1*a]
    y = next(v for v in others if abs(v@x) < .1*a*a)
    axes = np.stack([x, y, np.cross(x, y)/a], 1)/a
    return Rotation.from_matrix(axes)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', default=project_root()/'data/results/dr_probe_fits.csv')
    p.add_argument('--dose', type=float, default=1000.)
    a = p.parse_args()
    with np.load(shared_data()/'reference/gold_in_vacuum.npz', allow_pickle=False) as f:
        positions, cell, made, pictures = f['positions'], f['cell'], json.loads(str(f['params'])), f['images_model1']
    sampling, rows = made['pixel_A'][0], []
    atoms = Atoms(['Au']*len(positions), positions, cell=cell)
    atoms.set_array('particle', np.zeros(len(atoms), int))
    outline = (particle_map(atoms, sampling, pictures.shape[-1], cell[0]) > 0).astype(int)
    below = cell[2] - positions[:, 2].max()
    truth = dict(element='Au', truncation=1/3, feret_max=feret(positions[:, :2])[0], positions=positions,
                 **dict(zip(('rotation_x', 'rotation_y', 'rotation_z'), rotation(positions).as_rotvec())))
    for C1, picture in zip(made['defocus_C1_nm_model1'], pictures):
        counts = rng(0, 'noise', f'{C1:g}').poisson(np.clip(picture.T, 0, None)*a.dose*sampling**2).astype(np.float32)
        truth['focus_nm'], start = -C1 - below/NM, time.time()
        view = view_particle(Micrograph(counts, sampling, f'C1 {C1:g} nm', voltage=300e3, Cs=10*made['C3_nm']), outline, 1, 'Au')
        fit = fit_particle(view)
        rows.append(dict(C1_nm=C1, dose=a.dose, **fit_row(fit), true_truncation=truth['truncation'], true_diameter_nm=truth['feret_max']/NM,
                         true_focus_nm=truth['focus_nm'], **fit_errors(view, fit, truth), seconds=round(time.time() - start)))
        print(rows[-1], flush=True)
    pd.DataFrame(rows).assign(**provenance()).to_csv(a.out, index=False)


if __name__ == '__main__': main()
