"""How well particles are found on the 20 masked tiles of real micrographs (msa-em/microscopy-seg-track, CC BY 4.0, doi 10.69761/HDTA8338).

    python benchmarks/tiles.py [--folder FOLDER] [--out data/results/real_tiles.csv]

The folder holds train_image_K.png and train_label_K.png; the pixel size, 0.05886 nm, is that of {111} fringes of gold four pixels apart."""
import argparse
from pathlib import Path

import pandas as pd
from skimage import io

from nanoshape.core import project_root, provenance, shared_data
from nanoshape.detection import Detector, at_half_darkness, compare, detection_score
from nanoshape.reading import read


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--folder', default=None)
    p.add_argument('--out', default=project_root()/'data/results/real_tiles.csv')
    a, rows = p.parse_args(), []
    folder = Path(a.folder or (shared_data() or Path())/'real/sintering')
    network = Detector(project_root()/'data/models/particles.safetensors')
    ways = {'network': network, 'network, at half darkness': lambda m: at_half_darkness(m, network(m)), 'threshold': Detector()}
    for way, find in ways.items():
        counts = {.5: [], .3: []}
        for k in range(20):
            m, mask = read(folder/f'train_image_{k}.png', sampling=.5886), io.imread(folder/f'train_label_{k}.png')[..., 0] > 0
            labels = find(m)
            for least, c in counts.items(): c.append(compare(labels, mask, m.sampling, least))
        for least, c in counts.items():
            rows.append(dict(way=way, least_iou=least, **detection_score(c), **provenance()))
            print({k: v for k, v in rows[-1].items() if k in ('way', 'least_iou', 'particles', 'found', 'right', 'f1', 'pixel_iou', 'diameter')})
    pd.DataFrame(rows).to_csv(a.out, index=False)


if __name__ == '__main__': main()
