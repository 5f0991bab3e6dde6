"""Speed of the engine beside abTEM and beside the bare FFTs, in one process, warm, median of several.

    python benchmarks/engine.py [--device cuda] [--repeats 5] [--out engine.json]

(a) exit waves: batches of particles on carbon at 128, 256 and 512 px, and one 40 nm field of 20 particles at 1024 px.
(b) from atoms to a focal series of 20 images with aberrations, coherence and Poisson noise: both quasi-coherent, and both averaged over 5 foci.
(c) exit waves per second on the grids of recipes (`training` grade) and of refining (`fine`), see nbs/experiments/convergence.ipynb.

`floor` is the time of the FFTs of a multislice calculation with a band limit (per slice with atoms: one real pair for the potential, one complex
pair for the band limit of the phase grating; per slice: one complex pair for propagation), on preallocated memory, the best of torch in several batch
sizes and of FFTW with measured plans, as many side by side as there are threads. This engine has no band limit and so can go below it; abTEM has one.
abTEM runs eagerly on the same atoms, with the fastest of its FFT backends.
"""
import argparse
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba
import numpy as np
import torch

from nanoshape.core import provenance, rng, torch_rng, write_json
from nanoshape.simulate.microscope import Microscope, focus_nodes, images
from nanoshape.simulate.multislice import debye_waller_factors, exit_waves
from nanoshape.simulate.orientations import random_rotation, rotated
from nanoshape.datasets.recipes import make_recipe
from nanoshape.datasets.samples import sample
from nanoshape.simulate.structures import SHAPES, assemble, particle
from nanoshape.simulate.supports import amorphous

FOCI = torch.linspace(-80, 80, 20)


def particles(n, width_nm):
    """n particles of 4 to 8 nm on 1 to 3 nm of carbon (the demo's recipe; 0.4 of the width where the field is small)."""
    size = {'uniform': [.4*width_nm, .8*width_nm]}
    r = make_recipe(name='benchmark', structures=n, size_nm=size, support_nm={'uniform': [1, 3]}, box_nm=width_nm, gpts=512, out_gpts=128)
    return [sample(r, i)[0] for i in range(n)]


def wide_field():
    """40 nm, 20 particles of 4 to 6 nm, 2 nm of carbon: more than 100 000 atoms."""
    g = rng(0, 'wide')
    parts = [rotated(particle(SHAPES[i % 5], g.uniform(40, 60), g), random_rotation(g)) for i in range(20)]
    shifts = [((i % 5 - 2)*78., (i//5 - 1.5)*98.) for i in range(20)]
    return assemble(parts, 400, amorphous(400, 20, g), shifts)


def synchronise(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def median_time(f, repeats, device='cpu'):
    f()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        f()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def torch_pair(wave, other):
    torch.fft.fft2(wave, out=other)
    torch.fft.ifft2(other, out=wave)


def fftw_times(gpts, repeats):
    """Seconds per real transform, its inverse, and complex pair with FFTW's measured plans, two of them side by side on two cores (or on one)."""
    import pyfftw
    threads = torch.get_num_threads()

    def plans():
        wave, other = (pyfftw.zeros_aligned((gpts, gpts), 'complex64') for _ in range(2))
        real, half = pyfftw.zeros_aligned((gpts, gpts), 'float32'), pyfftw.zeros_aligned((gpts, gpts//2 + 1), 'complex64')
        make = partial(pyfftw.FFTW, axes=(0, 1), flags=('FFTW_MEASURE',))
        return make(real, half), make(half, real, direction='FFTW_BACKWARD'), make(wave, other), make(other, wave, direction='FFTW_BACKWARD')

    spaces, turns = [plans() for _ in range(threads)], 20

    def run(which):
        def work(space):
            for _ in range(turns):
                for k in which:
                    space[k].execute()
        with ThreadPoolExecutor(threads) as pool:
            return median_time(lambda: list(pool.map(work, spaces)), 3*repeats)/turns/threads
    return run([0]), run([1]), run([2, 3])


def floor(atoms, gpts, device, repeats):
    """Seconds per structure for the unavoidable FFTs, best of several batch sizes."""
    heights = [max(1, int(np.ceil(a.cell.lengths()[2]/2 - 1e-6))) for a in atoms]
    filled = [len(np.unique(np.floor(a.positions[:, 2]/2))) for a in atoms]
    elements = [sum(len(np.unique(np.floor(a.positions[a.numbers == z, 2]/2))) for z in np.unique(a.numbers)) for a in atoms]
    best = np.inf
    for batch in sorted({1, 2, 4, 8, 16, 64} & set(range(1, 65 if torch.device(device).type == 'cuda' else 17))):
        real = torch.rand(batch, gpts, gpts, device=device)
        half, wave = torch.fft.rfft2(real), torch.complex(real, real)
        other = torch.empty_like(wave)
        spectrum, image = torch.empty_like(half), torch.empty_like(real)
        rfft = median_time(partial(torch.fft.rfft2, real, out=spectrum), 5*repeats, device)/batch
        irfft = median_time(partial(torch.fft.irfft2, half, s=(gpts, gpts), out=image), 5*repeats, device)/batch
        pair = median_time(partial(torch_pair, wave, other), 5*repeats, device)/batch
        best = min(best, sum(elements)*rfft + sum(filled)*(irfft + pair) + sum(heights)*pair)
    if torch.device(device).type == 'cpu':
        rfft, irfft, pair = fftw_times(gpts, repeats)
        best = min(best, sum(elements)*rfft + sum(filled)*(irfft + pair) + sum(heights)*pair)
    return best/len(atoms)


def each(f, atoms, *args):
    for a in atoms:
        f(a, *args)


def abtem_backends():
    return [{'fft': 'fftw', 'fftw.threads': 1}, {'fft': 'fftw', 'fftw.threads': 2}, {'fft': 'numpy'}]


def abtem_wave(atoms, gpts, config):
    import abtem
    with abtem.config.set({'diagnostics.progress_bar': False, **config}):
        potential = abtem.Potential(atoms, gpts=gpts, slice_thickness=2., parametrization='lobato', projection='infinite')
        return abtem.PlaneWave(energy=300e3).multislice(potential, lazy=False)


def abtem_series(atoms, gpts, config, nodes=1):
    import abtem
    z, weights = focus_nodes(nodes)
    around = (FOCI.numpy()[:, None] + 40.*z).ravel()
    with abtem.config.set({'diagnostics.progress_bar': False, **config}):
        wave = abtem_wave(atoms, gpts, config)
        ctf = abtem.CTF(energy=300e3, defocus=abtem.distributions.from_values(around), Cs=-1e5, focal_spread=40.*(nodes == 1), angular_spread=.2)
        intensity = wave.apply_ctf(ctf).intensity()
        if nodes == 1:
            return intensity.poisson_noise(dose_per_area=5e3).compute()
        mean = np.einsum('kfxy,f->kxy', intensity.compute().array.reshape(len(FOCI), nodes, gpts, gpts), weights)
        return np.random.default_rng(0).poisson(mean*5e3*(atoms.cell.lengths()[0]/gpts)**2)


def our_series(atoms, gpts, device, nodes=1):
    waves = exit_waves(atoms, gpts, device=device)
    m = Microscope(defocus=FOCI, Cs=-1e5, focal_spread=40., angular_spread=2e-4, dose=5e3, foci=nodes)
    sampling = atoms[0].cell.lengths()[0]/gpts
    return [images(w, m, sampling, torch_rng(0, device=device)) for w in waves]


def grades(device, repeats, structures):
    """Exit waves per second, particles of 4 to 8 nm on carbon, 10 nm."""
    atoms = particles(structures, 10)
    found = []
    for name, gpts, dz in (('training', 320, 3.), ('fine', 512, 2.)):
        thermal = debye_waller_factors(['Au', 'C'])
        t = median_time(partial(exit_waves, atoms, gpts, slice_thickness=dz, debye_waller=thermal, device=device), repeats, device)/len(atoms)
        print(f'(c) {name} grade, {gpts} px, slices of {dz:g} Å: {1/t:.1f} waves/s', flush=True)
        found.append(dict(case=f'(c) {name} grade', ours_s=t, per_second=1/t))
    return found


def row(name, ours, theirs, fft, unit):
    share = f'ours/FFT floor {ours/fft:4.2f}   ' if fft else ''
    print(f'{name:32} ours {1e3*ours:8.1f} ms   abTEM {1e3*theirs:8.1f} ms   ratio {theirs/ours:5.1f}   {share}{unit}', flush=True)
    return dict(case=name, ours_s=ours, abtem_s=theirs, ratio=theirs/ours, floor_s=fft, over_floor=ours/fft if fft else None)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cpu')
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--structures', type=int, default=8)
    p.add_argument('--out')
    a = p.parse_args()
    warnings.simplefilter('ignore')
    print(f'{a.device}, {torch.get_num_threads()} torch threads, {numba.get_num_threads()} numba threads; times per structure')
    rows = []
    for gpts, width in ((128, 5), (256, 10), (512, 10)):
        atoms = particles(a.structures, width)
        n = round(float(np.mean([len(x) for x in atoms])))
        best = min(abtem_backends(), key=lambda c: median_time(partial(abtem_wave, atoms[0], gpts, c), 3))
        theirs = median_time(partial(each, abtem_wave, atoms, gpts, best), max(2, a.repeats//2))/len(atoms)
        ours = median_time(partial(exit_waves, atoms, gpts, device=a.device), a.repeats, a.device)/len(atoms)
        fft = floor(atoms, gpts, a.device, a.repeats)
        rows.append(row(f'(a) {gpts} px, {n} atoms', ours, theirs, fft, str(best)))
        for nodes in (1, 5):
            theirs = median_time(partial(each, abtem_series, atoms[:2], gpts, best, nodes), 2)/2
            ours = median_time(partial(our_series, atoms[:2], gpts, a.device, nodes), a.repeats, a.device)/2
            rows.append(row(f'(b) {gpts} px, 20 images, {nodes} foci', ours, theirs, None, ''))
    field = wide_field()
    theirs = min(median_time(partial(abtem_wave, field, 1024, c), 1) for c in abtem_backends()[:2])
    ours = median_time(lambda: exit_waves([field], 1024, device=a.device), 3, a.device)
    rows += grades(a.device, a.repeats, a.structures)
    rows.append(row(f'(a) 1024 px, {len(field)} atoms', ours, theirs, floor([field], 1024, a.device, 2), ''))
    if a.out:
        write_json(a.out, dict(device=a.device, threads=torch.get_num_threads(), rows=rows, **provenance()))


if __name__ == '__main__':
    main()
