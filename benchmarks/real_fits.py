"""Models fitted to particles in real bright-field micrographs that show a lattice; nobody knows what these particles are.

    python benchmarks/real_fits.py [--data FOLDER] [--out data/results/real_fits.csv] [--pictures FOLDER]

FOLDER holds sintering (msa-em/microscopy-seg-track, CC BY 4.0, doi 10.69761/HDTA8338; its six particles with fringes; 0.0586 nm per pixel if the
metal is gold) and catalysts (Genc et al., Ultramicroscopy 271 (2025) 114116, MIT; of Pt_carbon2 the six particles with the strongest spots; its
lattice says 0.0461 nm per pixel). The files say neither voltage nor aberrations: 300 kV and no spherical aberration are assumed. With --pictures
each fit is drawn, to be looked at. About two minutes for a particle."""
import argparse
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from nanoshape.atoms.fit_report import plot_fit
from nanoshape.atoms.particle_fit import fit_particle, fit_row, view_particle
from nanoshape.core import NM, UserError, project_root, provenance, shared_data
from nanoshape.figures import use_style
from nanoshape.micrographs.detection import default_detector
from nanoshape.micrographs.particles import measure_lattice, measure_particles
from nanoshape.micrographs.reading import read
from real_kinds import FRINGED, fringed

IMAGES = [('sintering', name, .0586, 'Au') for name in sorted({name for name, *_ in FRINGED})] + [('catalysts', 'Pt_carbon2', .0461, 'Pt')]
MOST = 6  # particles of an image whose fringed particles nobody has listed


def chosen(name, m, labels, element):
    """The particles of an image that are fitted."""
    t = measure_particles(m, labels).merge(measure_lattice(m, labels, element), on='label')
    if any(n == name for n, *_ in FRINGED): return t[fringed(name, t)]
    return t[~t.border & (t.fringe_snr > 0)].nlargest(MOST, 'fringe_snr')


def fitted(folder, name, nm, element, detector, data, pictures):
    m = read(next((data/folder).glob(f'{name}.[jp]*g')), nm*NM, scanned=True)
    labels = detector(m)
    for r in chosen(name, m, labels, element).itertuples():
        row = dict(image=name, label=r.label, x_px=r.x_px, y_px=r.y_px, element=element, feret_max_nm=r.feret_max_nm, planes=r.planes)
        try:
            view = view_particle(m, labels, r.label, element)
            fit = fit_particle(view)
            row |= fit_row(fit, element)
            if pictures: plot_fit(view, fit)[0].figure.savefig(pictures/f'{name}_{r.label}.png', dpi=160); plt.close('all')
        except UserError as e: row |= dict(accepted=False, why=str(e))
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        yield row


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--data', type=Path, help='default: real/ of the data beside the checkout')
    p.add_argument('--out', default=project_root()/'data/results/real_fits.csv')
    p.add_argument('--pictures', type=Path, help='a folder for pictures')
    a = p.parse_args()
    warnings.simplefilter('ignore')
    use_style()
    data = a.data or (shared_data() or Path())/'real'
    if not data.is_dir(): raise SystemExit('the real micrographs are not there: give their folder with --data')
    if a.pictures: a.pictures.mkdir(parents=True, exist_ok=True)
    detector = default_detector()
    t = pd.DataFrame([row for image in IMAGES for row in fitted(*image, detector, data, a.pictures)])
    t.assign(**{k: v for k, v in provenance().items() if k in ('nanoshape', 'commit')}).round(4).to_csv(a.out, index=False)
    print(f'{int(t.accepted.sum())} of {len(t)} fits accepted')


if __name__ == '__main__': main()
