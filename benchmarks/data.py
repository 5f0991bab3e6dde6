"""Speed of making and of reading a data set.

    python benchmarks/data.py [--recipe data/recipes/demo.yaml] [--samples 128] [--workers 2] [--out data.json]

Making: exit waves per second, structures, labels and files included, by as many processes as there are cores. The first shard of each process
(imports, compiled functions, tables) is reported apart: a data set of thousands does not notice it. CPU time is told as well: it is what remains
when others use the cores.
Reading: waves per second in random batches of 32 while the files are in the page cache, from the store and, for comparison, through zarr from the
same chunks, from chunks of one wave, and from shards with one wave per inner chunk; and how far the process grew meanwhile.
"""
import argparse
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import zarr

from nanoshape.core import project_root, provenance, write_json
from nanoshape.datasets.recipes import load_recipe
from nanoshape.datasets.store import SHARD, _engine, _prepare, _write_shard, simulate, verify


def timed(job):
    """Waves of one shard and the CPU seconds that they took."""
    start = time.process_time()
    return _write_shard(*job), time.process_time() - start


def made_per_second(recipe, workers, folder):
    """Seconds until every worker has made its first shard; waves per second of all workers afterwards; CPU seconds per wave."""
    folder.mkdir()
    _prepare(recipe, folder, None)
    todo = [(recipe, folder, s, _engine()) for s in range(len(recipe)//SHARD)]
    with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
        start = time.perf_counter()
        first = [pool.submit(timed, t) for t in todo[:workers]]
        [f.result() for f in first]
        ready = time.perf_counter()
        made, cpu = map(sum, zip(*pool.map(timed, todo[workers:])))
        end = time.perf_counter()
    return ready - start, made/(end - ready), cpu/made


def read_per_second(read, n, batches=50):
    g = np.random.default_rng(0)
    draws = [g.integers(n, size=32) for _ in range(batches)]
    for idx in draws[:3]:
        read(idx)
    start = time.perf_counter()
    for idx in draws:
        read(idx)
    return 32*batches/(time.perf_counter() - start)


def growth(store):
    """MB by which the process grows while every wave is read several times over (Linux)."""
    size = lambda: int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/2**20
    read_per_second(store.waves, len(store))
    before = size()
    read_per_second(store.waves, len(store), 10*len(store)//32)
    return size() - before


def other_layouts(store, folder):
    """The same waves as zarr arrays with one wave per chunk, and with one wave per inner chunk of a shard."""
    waves, px = store.waves(range(len(store))).numpy(), store.recipe.out_gpts
    for name, options in (('zarr, one wave per chunk', {}), ('zarr, sharded', {'shards': (SHARD, px, px)})):
        n = -(-len(waves)//SHARD)*SHARD
        a = zarr.create_array(folder/name, shape=(n, px, px), chunks=(1, px, px), dtype='complex64', compressors=None, **options)
        a[:len(waves)] = waves
        yield name, a


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--recipe', default=project_root()/'data/recipes/demo.yaml')
    p.add_argument('--samples', type=int, default=128)
    p.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument('--out')
    a = p.parse_args()
    recipe, rows = load_recipe(a.recipe, structures=(a.workers + -(-a.samples//SHARD))*SHARD, views=1), {}
    print(f'{recipe.name}: {recipe.gpts} px, {recipe.box_nm:g} nm, {a.samples} samples, {a.workers} processes; '
          f'load of the machine before the start {os.getloadavg()[0]:.1f}')
    with tempfile.TemporaryDirectory() as d:
        rows['first_shards_s'], rows['made_per_s'], rows['cpu_s_per_wave'] = made_per_second(recipe, a.workers, Path(d)/'made')
        print(f'making    {rows["made_per_s"]:9.1f} waves/s, warm; {1e3*rows["cpu_s_per_wave"]:.0f} ms of CPU per wave; '
              f'start and first shards {rows["first_shards_s"]:.1f} s', flush=True)
        store = simulate(recipe, Path(d)/'made')
        start = time.perf_counter()
        assert verify(store.path) == []
        rows['verified_per_s'] = len(store)/(time.perf_counter() - start)
        print(f'verifying {rows["verified_per_s"]:9.0f} waves/s')
        plain = zarr.open_array(store.path/'waves', mode='r')
        for name, read in (('store', store.waves), ('zarr, the same chunks', lambda i: plain.oindex[i]),
                           *((k, lambda i, z=z: z.oindex[i]) for k, z in other_layouts(store, Path(d)))):
            rows[f'read_per_s {name}'] = v = read_per_second(read, len(store))
            print(f'reading   {v:9.0f} waves/s   {name}', flush=True)
        rows['growth_MB'] = growth(store)
        print(f'the process grew by {rows["growth_MB"]:.1f} MB while {10*len(store)*recipe.out_gpts**2*8/1e6:.0f} MB of waves were read')
    if a.out:
        write_json(a.out, dict(recipe=recipe.name, samples=a.samples, workers=a.workers, **rows, **provenance()))


if __name__ == '__main__':
    main()
