"""What a fit under wrong assumptions leaves unexplained: another voltage, another metal, another spherical aberration.

    python benchmarks/fit_assumptions.py [--particles 4] [--seed 20] [--out data/results/fit_assumptions.csv]

Crystals as in data/sweeps/particle_fit.yaml, without and with a corrector, imaged by the exact path. No search is made: each fit starts at the true
orientation and form, with the nearest of many foci, so it is the best that a search could come to. One row per particle and assumption."""
import argparse
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from nanoshape.atoms.particle_fit import FINE, FIRM, LAST, ROUGH, SOFT, least_explained, placed, refined, sized, view_particle
from nanoshape.core import NM, project_root, provenance
from nanoshape.simulate.grains import misorientation
from nanoshape.studies.fit_tests import fit_recipe, recorded_particle

OTHER = {'Au': 'Pt', 'Pt': 'Au'}
ASSUMED = {'right': {}, 'voltage −10 %': dict(voltage=.9), 'voltage +10 %': dict(voltage=1.1), 'other metal': dict(element=True),
           'Cs −10 %': dict(Cs=.9)}


def fitted(mic, outline, truth, voltage=1., Cs=1., element=False):
    """The best model near the truth."""
    metal = OTHER[truth['element']] if element else truth['element']
    view = view_particle(replace(mic, voltage=mic.voltage*voltage, Cs=mic.Cs*Cs), outline, 1, metal)
    turn = Rotation.from_rotvec([truth[f'rotation_{k}'] for k in 'xyz']).as_matrix()
    start = sized(view, turn, truth['truncation'], truth['roundness'], edge=SOFT)
    p, = placed(view, [start], truth['focus_nm']*NM - view.reach/2 + np.arange(-100, 101, 10.))
    p = refined(view, p, 8, ROUGH, 0.)
    for edge, rounds, how in ((FIRM, 10, ROUGH), (.3, 6, FINE), *((e, 4, FINE) for e in LAST)): p = refined(view, replace(p, edge=edge), rounds, how)
    return view, p, float(np.degrees(misorientation(p.rotation, turn)))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--particles', type=int, default=4)
    p.add_argument('--seed', type=int, default=20)
    p.add_argument('--phonons', type=int, default=32)
    p.add_argument('--out', default=project_root()/'data/results/fit_assumptions.csv')
    a, rows = p.parse_args(), []
    for what, most in (('corrected', a.particles - a.particles//2), ('uncorrected', a.particles//2)):
        recipe = fit_recipe(what, a.seed, max(most, 1))
        for i in range(most):
            mic, outline, truth = recorded_particle(recipe, i, a.phonons)
            for name, wrong in ASSUMED.items():
                if what == 'corrected' and 'Cs' in wrong: continue  # a few µm: next to nothing
                view, p, off = fitted(mic, outline, truth, **wrong)
                rows.append(dict(what=what, particle=i, element=truth['element'], diameter_nm=truth['feret_max']/NM, assumed=name, misfit=p.misfit,
                                 explained=p.explained, accepted=p.explained >= least_explained(view), off_deg=off, lattice=p.lattice))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    pd.DataFrame(rows).round(4).assign(**provenance()).to_csv(a.out, index=False)


if __name__ == '__main__': main()
