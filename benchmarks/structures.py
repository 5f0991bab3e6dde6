"""Time to build structures, warm, median of several: an 8 nm particle (to reach: 10 ms) and 10 × 10 × 3 nm of carbon (20 ms).

    python benchmarks/structures.py [--repeats 21]
"""
import argparse
import statistics
import time

from nanoshape.simulate.columns import column_crystal
from nanoshape.core import rng
from nanoshape.simulate.grains import MODELS, amorphous_particle, polycrystal, single_crystal, twin
from nanoshape.simulate.structures import SHAPES, UNSEEN, closed_shell, particle
from nanoshape.simulate.supports import SUPPORTS, support

ENERGIES = {(1, 1, 1): 1., (1, 0, 0): 1.15}


def cases():
    """Name, function of a seed, and the time to reach in ms."""
    for s in SHAPES + UNSEEN:
        options = {'surface_energies': ENERGIES} if s == 'Wulff' else {}
        yield f'{s}, 8 nm', lambda k, s=s, o=options: particle(s, 80, rng(k), **o), 10
    for s in SUPPORTS:
        yield f'{s}, 10 × 10 × 3 nm', lambda k, s=s: support(s, 100, 30, rng(k)) or (), 20
    for f in (single_crystal, polycrystal, twin, amorphous_particle):
        yield f'{f.__name__}, 3 nm', lambda k, f=f: f(30, rng(k)), None
    yield 'closed shells', lambda k: closed_shell(*MODELS[k % len(MODELS)]), None
    yield 'ceria, 5 nm, 3 to 10 atoms', lambda k: column_crystal(50, rng(k), surface='stepped'), None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=21)
    repeats = p.parse_args().repeats
    for name, build, limit in cases():
        n, times = len(build(0)), []
        for k in range(repeats):
            start = time.perf_counter()
            build(k)
            times.append(1e3*(time.perf_counter() - start))
        print(f'{name:36} {n:7} atoms {statistics.median(times):8.1f} ms' + (f'   (to reach: {limit})' if limit else ''), flush=True)


if __name__ == '__main__':
    main()
