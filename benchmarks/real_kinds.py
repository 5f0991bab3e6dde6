"""What a multi-task network says of particles in real bright-field micrographs, of which nobody knows what they are.

    python benchmarks/real_kinds.py [--model data/models/open_world.safetensors] [--data FOLDER] [--out data/results/real_kinds.csv]
                                    [--picture FILE]

FOLDER holds sintering (msa-em/microscopy-seg-track, CC BY 4.0, doi 10.69761/HDTA8338; 0.0586 nm per pixel if the metal is gold) and catalysts
(Genc et al., Ultramicroscopy 271 (2025) 114116, MIT; 0.1 nm per pixel is assumed, but for Pt_carbon2, whose lattice says 0.046). To the eye
they are round, or shards: a name of an ideal polyhedron would be wrong. With --picture sixty whole particles are drawn with their answers, to be
looked at."""
import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from nanoshape.core import NM, project_root, provenance, rng, shared_data
from nanoshape.figures import show_images, use_style
from nanoshape.learn.network import Network
from nanoshape.micrographs.detection import default_detector
from nanoshape.micrographs.kinds import classify_kinds, field_sampling
from nanoshape.micrographs.particles import particle_fields
from nanoshape.micrographs.reading import read

IMAGES = [('catalysts', n, .0461 if n == 'Pt_carbon2' else .1, 'Pt') for n in ('Pt_carbon2', 'PtC1', 'PtCo1', 'PtCo3')]
IMAGES += [('sintering', f'train_image_{k}', .0586, None) for k in range(20)]
FRINGED = {('train_image_8', 221, 272), ('train_image_15', 117, 379), ('train_image_15', 213, 360), ('train_image_12', 433, 401),
           ('train_image_1', 74, 170), ('train_image_1', 219, 296)}  # row, column: crystalline to the eye
TOLD = .5  # width of the 90 % range of the roundness, below which it is told


def fringed(image, t):
    """Which rows are the particles whose fringes a person sees."""
    at = [(y, x) for name, y, x in FRINGED if name == image]
    return np.array([any(np.hypot(r.y_px - y, r.x_px - x) < 20 for y, x in at) for r in t.itertuples()], bool)


def analysed(folder, name, nm, element, network, detector, data):
    path = next((data/folder).glob(f'{name}.[jp]*g'))
    m = read(path, nm*NM, scanned=True)
    labels, bright = detector.find(m)
    m = replace(m, bright=bright)
    t = classify_kinds(m, labels, network, element)
    t.insert(0, 'image', name)
    t['fringed'] = fringed(name, t)
    if not t.size_nm.notna().all(): return t, [None]*len(t)  # the network was not asked
    at = field_sampling(network.card, element or 'Au')
    return t, particle_fields(m, labels, t, at, network.card.gpts)


def title(r):
    said = r.kind if r.kind != 'undetermined' else f'({r.prediction_set.replace(" | ", "/")[:26]})'
    round_ = f'round {r.roundness:.1f} [{r.roundness_low:.1f}–{r.roundness_high:.1f}]' if np.isfinite(r.roundness) else ''
    return '\n'.join([said, r['shape'][:26] or r.reason[:26], round_])


def draw(table, fields, path, network, most=60):
    g = rng(0, 'sixty')
    whole = np.flatnonzero(~table.border & table.roundness.notna())
    chosen = sorted({*np.flatnonzero(table.fringed), *g.permutation(whole)[:most - table.fringed.sum()]})
    use_style()
    axs = show_images([fields[k] for k in chosen], network.card.sampling, ncols=10, size=1.4, titles=[title(table.iloc[k]) for k in chosen])
    for ax in np.ravel(axs): ax.title.set_fontsize(4.5)
    plt.savefig(path, dpi=130)


def ideal(t):
    """Which particles are named as an ideal polyhedron."""
    return t['shape'].isin(['octahedron', 'truncated octahedron', 'cuboctahedron', 'cube']) | t.kind.isin(['decahedron', 'icosahedron'])


def summary(t):
    """Of whole particles of sizes that the training had: how many are named, and of which the roundness is told."""
    whole = t[~t.border & t.roundness.notna()]
    seen = t[t.fringed & ~t.border]
    return dict(particles=len(whole), named=(whole.kind != 'undetermined').mean(), ideal=ideal(whole).mean(),
                roundness_told=((whole.roundness_high - whole.roundness_low) < TOLD).mean(), median_roundness=whole.roundness.median(),
                fringed=len(seen), fringed_crystalline=(1 - seen.p_amorphous > .9).sum())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default=project_root()/'data/models/open_world.safetensors')
    p.add_argument('--data', default=None)
    p.add_argument('--out', default=project_root()/'data/results/real_kinds.csv')
    p.add_argument('--picture', default=None)
    a = p.parse_args()
    data = Path(a.data) if a.data else shared_data()/'real'
    network, detector = Network.load(a.model), default_detector()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        parts = [analysed(*i, network, detector, data) for i in IMAGES]
    table = pd.concat([t for t, _ in parts], ignore_index=True)
    if a.picture: draw(table, [f for _, some in parts for f in some], a.picture, network)
    print(pd.Series(summary(table)).round(3).to_string())
    kept = ['image', 'label', 'x_px', 'y_px', 'equivalent_diameter_nm', 'circularity', 'border', 'planes', 'fringe_snr', 'fringed', 'kind', 'reason',
            'prediction_set', 'confidence', 'p_amorphous', 'shape', 'roundness', 'roundness_low', 'roundness_high', 'size_nm', 'focus_nm', 'distance']
    table[kept].round(4).assign(model=network.fingerprint, commit=provenance()['commit']).to_csv(a.out, index=False)


if __name__ == '__main__':
    main()
