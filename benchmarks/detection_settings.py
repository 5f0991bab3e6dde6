"""Where the size network's two settings come from: F1 on simulated fields for several least scores and sets of scales.

    python benchmarks/detection_settings.py [--fields 40] [--model data/models/sizes.safetensors] [--out data/results/detection_settings.csv]

The fields have a seed of their own (3·10⁶), used neither for training nor for tests. Real images have no part in the choice."""
import argparse

import numpy as np
import pandas as pd
import torch
from skimage import segmentation

from nanoshape.core import project_root, provenance
from nanoshape.datasets.thickness_fields import thickness_field
from nanoshape.learn.network import Network
from nanoshape.micrographs import detection

SEED, WIDTH = 3*10**6, 512
SETS = {'2, 1, 1/2, 1/4, 1/8': (2., 1., .5, .25, .125), '1, 1/2, 1/4, 1/8': (1., .5, .25, .125), '1, 1/2, 1/4': (1., .5, .25), '1, 1/2': (1., .5),
        '1': (1.,)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--fields', type=int, default=40)
    p.add_argument('--model', default=project_root()/'data/models/sizes.safetensors')
    p.add_argument('--out', default=project_root()/'data/results/detection_settings.csv')
    a = p.parse_args()
    network, counts = Network.load(a.model), {}
    torch.set_grad_enabled(False)
    for i in range(a.fields):
        image, labels, drawn = thickness_field(SEED, i, WIDTH)
        mode = 'dark field' if drawn['dark_field'] else 'bright field'
        found = {s: detection._candidates(image, network, s, 0.) for s in SETS['2, 1, 1/2, 1/4, 1/8']}
        for name, scales in SETS.items():
            for sure in (.3, .4, .5, .6, .7, .8):
                kept = [c for s in scales for c in found[s] if c.score >= sure]
                one = segmentation.relabel_sequential(detection.without_other_side(image, detection._merged(kept, image.shape))[0])[0]
                counts.setdefault((name, sure), []).append(detection.compare(one, labels, 1.) | dict(mode=mode))
        print(i, end=' ', flush=True)
    rows = []
    for (name, sure), c in counts.items():
        for mode in ('bright field', 'dark field', 'all'):
            s = detection.detection_score([r for r in c if mode in ('all', r['mode'])])
            kept = {k: s[k] for k in ('images', 'precision', 'recall', 'f1', 'f1_interval', 'diameter')}
            rows.append(dict(scales=name, sure=sure, mode=mode, **kept))
    t = pd.DataFrame(rows)
    t.assign(**provenance()).to_csv(a.out, index=False)
    print(t[t['mode'] == 'all'].pivot(index='scales', columns='sure', values='f1').round(3).to_string())
    best = t[t['mode'] == 'all'].sort_values('f1').iloc[-1]
    print(f'best: scales {best.scales}, least score {best.sure}, F1 {best.f1:.3f}')
    assert np.isfinite(t.f1).all()


if __name__ == '__main__': main()
