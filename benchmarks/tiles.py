"""How well particles are found on the 20 masked tiles of real micrographs (msa-em/microscopy-seg-track, CC BY 4.0, doi 10.69761/HDTA8338).

    python benchmarks/tiles.py [--folder FOLDER] [--out data/results/real_tiles.csv]

The folder holds train_image_K.png and train_label_K.png; the pixel size, 0.05886 nm, is that of {111} fringes of gold four pixels apart."""
import argparse
from pathlib import Path

import pandas as pd
from skimage import io

from nanoshape.core import project_root, provenance, shared_data
from nanoshape.detection import Detector, compare, detection_score
from nanoshape.reading import read


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--folder', default=None)
    p.add_argument('--out', default=project_root()/'data/results/real_tiles.csv')
    a, rows = p.parse_args(), []
    folder = Path(a.folder or (shared_data() or Path())/'real/sintering')
    for way, find in (('network', Detector(project_root()/'data/models/particles.safetensors')), ('threshold', Detector())):
        counts = []
        for k in range(20):
            m = read(folder/f'train_image_{k}.png', sampling=.5886)
            counts.append(compare(find(m), io.imread(folder/f'train_label_{k}.png')[..., 0] > 0, m.sampling))
        rows.append(dict(way=way, **detection_score(counts), **provenance()))
        print({k: v for k, v in rows[-1].items() if k in ('way', 'particles', 'found', 'right', 'f1', 'pixel_iou', 'diameter')})
    pd.DataFrame(rows).to_csv(a.out, index=False)


if __name__ == '__main__': main()
