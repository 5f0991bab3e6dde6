"""What the multi-task network says of a gold particle that another simulator has made.

    python benchmarks/open_world_dr_probe.py [--model data/models/open_world.safetensors] [--out data/results/open_world_dr_probe.csv]

A truncated octahedron of 1504 atoms, one crystal, in vacuum, by Dr. Probe (celslc, msa, wavimg; averages over 19 foci) at three foci, without thermal
motion and detector blur. Vacuum is laid around the field of 8 nm, pixels are averaged 3 × 3, and Poisson noise is added at three doses, ten times
each. A disc as wide as the particle stands in for the detector's outline; voltage, Cs and metal are told. A row per focus and dose."""
import argparse
import json

import numpy as np
import pandas as pd

from nanoshape.core import NM, project_root, provenance, rng, shared_data
from nanoshape.learn.network import Network
from nanoshape.micrographs.kinds import classify_kinds
from nanoshape.micrographs.reading import Micrograph
from nanoshape.simulate.structures import feret, lattice_constant

AROUND, BIN, DOSES, DRAWS = 256, 3, (300, 1000, 5000), 10  # pixels; e/Å²


def wide(picture):
    """The picture with vacuum around it, in wider pixels."""
    x = np.pad(picture.T.astype(float), AROUND, constant_values=1.)
    n = len(x)//BIN
    return x[:n*BIN, :n*BIN].reshape(n, BIN, n, BIN).mean((1, 3))


def disc(positions, n, pixel, margin):
    """A disc around the atoms, and what lies beyond them."""
    y, x = (np.mgrid[:n, :n] + .5)*pixel
    low, high = positions[:, :2].min(0), positions[:, :2].max(0)
    cx, cy = (low + high)/2 + margin
    return (np.hypot(y - cy, x - cx) < (high - low).max()/2 + 1.5).astype(int)


def main():
    p, root = argparse.ArgumentParser(description=__doc__.splitlines()[0]), project_root()
    p.add_argument('--model', default=root/'data/models/open_world.safetensors')
    p.add_argument('--out', default=root/'data/results/open_world_dr_probe.csv')
    a = p.parse_args()
    with np.load(shared_data()/'reference/gold_in_vacuum.npz', allow_pickle=False) as f:
        positions, made, pictures = f['positions'], json.loads(str(f['params'])), f['images_model1']
    network, sampling, rows = Network.load(a.model), made['pixel_A'][0], []
    pixel, size = BIN*sampling, (feret(positions[:, :2])[0] + lattice_constant('Au')/2**.5)/NM
    for C1, picture in zip(made['defocus_C1_nm_model1'], pictures):
        clean = wide(picture)
        labels = disc(positions, len(clean), pixel, AROUND*sampling)
        for dose in DOSES:
            draws = [rng(0, 'noise', f'{C1:g}', dose, k).poisson(clean*dose*pixel**2).astype(np.float32) for k in range(DRAWS)]
            seen = [Micrograph(c, pixel, 'Dr. Probe', voltage=300e3, Cs=10*made['C3_nm']) for c in draws]
            t = pd.concat([classify_kinds(m, labels, network, 'Au') for m in seen])
            held = (t.size_nm_low <= size) & (size <= t.size_nm_high)
            told, wrong = t.crystallinity != 'undetermined', t.crystallinity.isin(['amorphous', 'polycrystalline'])
            rows.append(dict(C1_nm=C1, dose=dose, n=len(t), likeliest_right=(t.p_one_crystal > .5).mean(), named=(t.kind == 'one crystal').mean(),
                             named_wrong=(~t.kind.isin(['one crystal', 'undetermined'])).mean(), crystallinity_told=told.mean(),
                             crystallinity_wrong=wrong.mean(), size_nm=t.size_nm.mean(), true_size_nm=size, size_held=held.mean(),
                             focus_nm=t.focus_nm.mean()))
    out = pd.DataFrame(rows).round(4).assign(model=network.fingerprint, commit=provenance()['commit'])
    out.to_csv(a.out, index=False)
    print(out.to_string(index=False))


if __name__ == '__main__': main()
