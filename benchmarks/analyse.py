"""Seconds and memory of `nanoshape analyse` on a simulated micrograph of 4096 x 4096 pixels with 300 particles.

    python benchmarks/analyse.py [--detector FILE] [--out FILE.json]

The micrograph is put together from 16 fields of 41 nm. What is measured is the whole command in a process of its own, imports and report included."""
import argparse, json, resource, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from nanoshape.core import torch_rng
from nanoshape.simulate.microscope import images
from nanoshape.datasets.recipes import make_recipe
from nanoshape.datasets.samples import conditions, waves_of

SIDE, FIELD = 4, 1024


def micrograph():
    r = make_recipe(name='benchmark', kind='field', seed=77, structures=SIDE**2, particles={'choice': [18, 19, 20]}, size_nm={'uniform': [3, 6]},
                    support_nm=2, box_nm=41, gpts=FIELD, out_gpts=FIELD, defocus_nm=5, dose=4000)
    parts = []
    for i in range(SIDE**2):
        wave, _, _ = waves_of(r, [i])
        parts.append(images(wave, conditions(r, [i]), r.sampling, torch_rng(i))[0].numpy())
        print(f'field {i + 1} of {SIDE**2}', end='\r', file=sys.stderr)
    return np.block([parts[SIDE*k:SIDE*k + SIDE] for k in range(SIDE)]).astype(np.float32), r.sampling


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--detector', default=None)
    p.add_argument('--image', default=None, help='where the micrograph is kept between two calls')
    p.add_argument('--out', default=None)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        file = Path(a.image or f'{d}/large.tif')
        if not file.is_file():
            image, sampling = micrograph()
            tifffile.imwrite(file, image, resolution=(1e8/sampling,)*2, resolutionunit='CENTIMETER')
        command = [str(Path(sys.executable).with_name('nanoshape')), 'analyse', str(file), '--out', f'{d}/report']
        if a.detector: command += ['--detector', a.detector]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20
        n = len(pd.read_csv(f'{d}/report/particles.csv'))
    result = dict(pixels=SIDE*FIELD, particles_found=n, seconds=round(seconds, 1), peak_GiB=round(peak, 2))
    print(json.dumps(result))
    if a.out: Path(a.out).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': main()
