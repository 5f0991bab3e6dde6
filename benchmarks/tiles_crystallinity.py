"""How crystalline the particles of the 20 real tiles are called (msa-em/microscopy-seg-track, CC BY 4.0, doi 10.69761/HDTA8338).

    python benchmarks/tiles_crystallinity.py [--model FILE] [--folder FOLDER] [--out data/results/real_tiles_crystallinity.csv]

Six particles are listed as strongly fringed by who looked at them; all others are judged by their own power spectrum. One row per particle found."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from nanoshape.core import project_root, provenance, shared_data
from nanoshape.learn.network import Network
from nanoshape.micrographs.detection import Detector
from nanoshape.micrographs.particles import classify, crystallinity, probability_columns
from nanoshape.micrographs.reading import read

LISTED = {8: [(221, 272)], 15: [(117, 379), (213, 360)], 12: [(433, 401)], 1: [(74, 170), (219, 296)]}  # row, column


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', default=project_root()/'data/models/crystallinity.safetensors')
    p.add_argument('--folder', default=None)
    p.add_argument('--out', default=project_root()/'data/results/real_tiles_crystallinity.csv')
    a, rows, missed = p.parse_args(), [], 0
    folder = Path(a.folder or (shared_data() or Path())/'real/sintering')
    kept = project_root()/'data/models'
    find, shapes, crystals = Detector(kept/'particles.safetensors'), Network.load(kept/'shapes.safetensors'), Network.load(a.model)
    for k in range(20):
        m = read(folder/f'train_image_{k}.png', sampling=.5886)
        labels = find(m)
        t = crystallinity(m, labels, classify(m, labels, shapes), crystals)
        wanted = [int(labels[at]) for at in LISTED.get(k, [])]
        missed += wanted.count(0) + len(wanted) - wanted.count(0) - len({w for w in wanted if w})
        rows.append(t.assign(tile=k, listed=t.label.isin([w for w in wanted if w])))
    t, columns = pd.concat(rows), probability_columns(crystals.classes)
    kept = ['tile', 'label', 'x_px', 'y_px', 'equivalent_diameter_nm', 'border', 'film_focus_nm', 'spacings_nm', 'fringe_snr', *columns,
            'crystallinity_confidence', 'crystallinity', 'crystallinity_reason', 'listed']
    t[kept].round(4).assign(**provenance()).to_csv(a.out, index=False)
    plain, sure, answered = t.fringe_snr <= crystals.card.spot_min, t.crystallinity_confidence >= .8, t.crystallinity != 'undetermined'
    called = t.crystallinity.isin(['monocrystalline', 'polycrystalline', 'crystalline'])
    alone = np.array(crystals.classes)[t[columns].to_numpy().argmax(1)] != 'amorphous'
    print(f'listed: {(t.listed & called).sum()} of {t.listed.sum()} found ones called crystalline, '
          f'{(t.listed & alone).sum()} by the network alone; {missed} of the listed are not found, or not by themselves')
    print(f'without a spot above the floor: {plain.sum()}; the network is sure of {(plain & sure).sum()}, {(plain & answered).sum()} get an answer')
    print(f'with spots: {(~plain).sum()}; {(~plain & called).sum()} called crystalline')


if __name__ == '__main__': main()
