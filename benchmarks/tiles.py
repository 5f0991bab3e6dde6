"""How well particles are found on the 20 masked tiles of real micrographs (msa-em/microscopy-seg-track, CC BY 4.0, doi 10.69761/HDTA8338).

    python benchmarks/tiles.py [--folder FOLDER] [--out data/results/real_tiles.csv]

The folder holds train_image_K.png and train_label_K.png; the pixel size, 0.05886 nm, is that of {111} fringes of gold four pixels apart."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from skimage import io

from nanoshape.core import NM, project_root, provenance, shared_data
from nanoshape.micrographs.detection import Detector, at_half_darkness, compare, detection_score, segment
from nanoshape.micrographs.film import film_focus
from nanoshape.micrographs.reading import read


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--folder', default=None)
    p.add_argument('--out', default=project_root()/'data/results/real_tiles.csv')
    a, rows = p.parse_args(), []
    folder = Path(a.folder or (shared_data() or Path())/'real/sintering')
    models, counts, foci = project_root()/'data/models', {}, []
    network, sizes = Detector(models/'particles.safetensors'), Detector(models/'sizes.safetensors')
    for k in range(20):
        m, mask = read(folder/f'train_image_{k}.png', sampling=.5886), io.imread(folder/f'train_label_{k}.png')[..., 0] > 0
        found, any_size = network(m), sizes(m)
        ways = {'network': found, 'network, at half darkness': at_half_darkness(m, found), 'network for any pixel size': any_size,
                'network for any pixel size, at half darkness': at_half_darkness(m, any_size), 'threshold': segment(m)}
        for way, labels in ways.items():
            for least in (.5, .3): counts.setdefault((way, least), []).append(compare(labels, mask, m.sampling, least))
        foci += [f/NM for f in [film_focus(m, mask)] if f]
    focus = dict(tiles_with_rings=len(foci), film_focus_nm=float(np.median(foci)) if foci else None)
    for (way, least), c in counts.items():
        rows.append(dict(way=way, least_iou=least, **detection_score(c), **focus, **provenance()))
        print({k: v for k, v in rows[-1].items() if k in ('way', 'least_iou', 'particles', 'found', 'right', 'f1', 'pixel_iou', 'diameter')}, focus)
    pd.DataFrame(rows).to_csv(a.out, index=False)


if __name__ == '__main__': main()
