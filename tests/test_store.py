"""Stores: interruption, damage, foreign folders, full disks, clusters, exports."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import torch
import zarr

import nanoshape.datasets.store as module
from conftest import COMMAND, ROOT, wait_for
from nanoshape.cli import main
from nanoshape.core import only_writer, UserError, read_json, whole_file, write_json
from nanoshape.datasets.recipes import KINDS, load_recipe
from nanoshape.datasets.samples import sample, waves_of
from nanoshape.datasets.store import SHARD, Store, _check, one_thread, simulate, verify

TINY = str(ROOT/'data/recipes/tiny.yaml')


def digest(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def times(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def many():
    return load_recipe(TINY, structures=150)


@pytest.fixture(scope='module')
def whole(many, tmp_path_factory):
    """What an undisturbed run of `many` leaves."""
    return digest(simulate(many, tmp_path_factory.mktemp('many')/'s', workers=0).path)


@pytest.fixture
def copy(tiny_store, tmp_path):
    """A finished store that may be damaged."""
    shutil.copytree(tiny_store.path, tmp_path/'s')
    return tmp_path/'s'


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_do_not_change_a_byte(tiny, tiny_store, tmp_path, workers):
    simulate(tiny, tmp_path/'s', workers=workers)
    assert digest(tmp_path/'s') == digest(tiny_store.path)


def test_a_wave_does_not_depend_on_its_shard_or_batch(tiny, tiny_store):
    from nanoshape.datasets.samples import recipe_waves
    threads, atoms = torch.get_num_threads(), [sample(tiny, i)[0] for i in range(17, 24)]
    with one_thread():
        batches = [torch.cat([recipe_waves(tiny, atoms[k:k + n]) for k in range(0, 7, n)]) for n in (1, 3, 7)]
    assert torch.get_num_threads() == threads
    assert all(torch.equal(b, tiny_store.waves(range(17, 24))) for b in batches)


def test_killed_again_and_again_it_ends_the_same_to_the_byte(many, whole, tmp_path):
    ctx, g, out = get_context('forkserver'), np.random.default_rng(), tmp_path/'s'
    ctx.set_forkserver_preload(['nanoshape.datasets.store'])
    done = lambda: len(list(out.glob('shards/0*.json')))

    def begin_and_kill():
        p, before = ctx.Process(target=simulate, args=(many, out, 0)), done()
        p.start()
        wait_for(lambda: done() > before or not p.is_alive())
        time.sleep(g.uniform(0, .2))
        p.kill()
        p.join()
    for _ in range(4):
        begin_and_kill()
    if done() < 10:
        with pytest.raises(UserError, match='unfinished'):
            Store(out)
        assert any('missing' in x for x in verify(out))
    simulate(many, out, workers=0)
    assert digest(out) == whole and verify(out) == []


def test_killed_command_takes_its_workers_with_it_and_goes_on(many, whole, tmp_path):
    args = ['simulate', TINY, str(tmp_path/'s'), '--structures', '150']
    p = subprocess.Popen([*COMMAND, *args],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob('s/shards/0*.json')) or p.poll() is not None)
    p.send_signal(signal.SIGKILL)
    p.wait()

    def group_is_gone():
        try:
            os.killpg(p.pid, 0)
        except ProcessLookupError:
            return True
    wait_for(group_is_gone)
    simulate(many, tmp_path/'s', workers=0)
    assert {k: v for k, v in digest(tmp_path/'s').items() if not k.startswith('card')} == whole


def test_a_lost_worker_of_a_cluster_costs_its_shard_only(many, whole, tmp_path):
    from distributed import LocalCluster
    with LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50) as cluster:
        victim = cluster.workers[0].pid

        def kill():
            wait_for(lambda: len(list(tmp_path.glob('s/shards/0*.json'))) > 1)
            os.kill(victim, signal.SIGKILL)
        killer = Thread(target=kill)
        killer.start()
        store = simulate(many, tmp_path/'s', scheduler=cluster.scheduler_address)
        killer.join()
        assert len(store) == 150 and victim not in {w.pid for w in cluster.workers.values()}
    assert digest(tmp_path/'s') == whole


def test_no_scheduler(tiny, tmp_path, monkeypatch):
    import distributed

    def absent(*_, **__):
        raise OSError('Timed out')
    monkeypatch.setattr(distributed, 'Client', absent)
    with pytest.raises(UserError, match=r'no Dask scheduler answers at tcp://localhost:1 '):
        simulate(tiny, tmp_path/'s', scheduler='tcp://localhost:1')


def flip(path, g):
    b = bytearray(path.read_bytes())
    b[g.integers(len(b))] ^= 1 << int(g.integers(8))
    path.write_bytes(b)


def cut(path, g):
    os.truncate(path, int(g.integers(path.stat().st_size)))


def lose(path, g):
    path.unlink()


@pytest.mark.parametrize('harm', [flip, cut, lose])
@pytest.mark.parametrize('name, says', [('waves/c.1.0.0', 'shard 1 '), ('labels/000001.csv', 'shard 1 '), ('shards/000001.json', 'shard 1 '),
                                        ('waves/zarr.json', 'zarr.json')])
def test_damage_is_found_and_repaired_where_it_is(tiny, tiny_store, copy, harm, name, says, capsys):
    before = times(copy)
    harm(copy/name, np.random.default_rng())
    lines = verify(copy)
    assert len(lines) == 1 and lines[0].startswith(says) or 'zarr.json' in lines[0]
    assert name in lines[0] or 'shards' in name
    assert main(['verify', str(copy)]) == 1 and says in capsys.readouterr().out
    simulate(tiny, copy, workers=0)
    assert digest(copy) == digest(tiny_store.path)
    after = times(copy)
    allowed = {'waves/c.1.0.0', 'labels/000001.csv', 'shards/000001.json'} if 'shard' in says else {name}
    assert {k for k in after if after[k] != before[k]} <= allowed
    assert main(['verify', str(copy)]) == 0


def test_a_whole_store_is_opened_and_not_touched(tiny, copy):
    before = times(copy)
    simulate(tiny, copy)
    assert times(copy) == before


def test_a_truncated_store_says_so_when_read(copy):
    os.truncate(copy/'waves/c.2.0.0', 157500)
    store = Store(copy)
    assert store.waves([0, 33]).shape == (2, 96, 96)
    with pytest.raises(UserError, match='nanoshape verify'):
        store.waves([0, 39])
    with pytest.raises(IndexError):
        store.waves([40])
    os.truncate(copy/'labels/000000.csv', 500)
    with pytest.raises(UserError, match='nanoshape verify'):
        Store(copy)


@pytest.mark.parametrize('harm', [lambda text: text.replace('"seed": 1', '"seed": 3'), lambda text: text.replace('"sampling": 0', '"sampling": 1'),
                                  lambda text: text.replace('"commit": "', '"commit": "0'), lambda text: text[:300]])
def test_a_damaged_description_is_a_clear_refusal(tiny, copy, harm):
    text = (copy/'store.json').read_text()
    assert harm(text) != text
    (copy/'store.json').write_text(harm(text))
    before = times(copy)
    for f in (verify, Store, lambda p: simulate(tiny, p)):
        with pytest.raises(UserError, match=r'store\.json'):
            f(copy)
    assert times(copy) == before


def test_leftovers_of_killed_writers_go(tiny, tiny_store, copy):
    left = ['.store.77.tmp.json', 'labels/.000001.77.tmp.csv', 'shards/.000001.77.tmp.json', 'waves/.c.1.0.77.tmp.0']
    for p in left:
        (copy/p).write_text('half')
    assert verify(copy) == []
    simulate(tiny, copy, workers=0)
    assert digest(copy) == digest(tiny_store.path)


def test_a_run_killed_before_its_first_file_can_start_again(tiny, tmp_path):
    (tmp_path/'.store.77.tmp.json').write_text('{')
    assert len(simulate(replace(tiny, structures=3), tmp_path, workers=0)) == 3
    assert not list(tmp_path.rglob('*.tmp*'))


def test_two_recipes_do_not_mix(tiny, tiny_store, tmp_path):
    with pytest.raises(UserError, match='another recipe'):
        simulate(load_recipe(TINY, seed=2), tiny_store.path, workers=0)
    (tmp_path/'notes.txt').write_text('mine')
    for path, says in ((tmp_path, 'not a store'), (tmp_path/'notes.txt', 'not a store')):
        with pytest.raises(UserError, match=says):
            simulate(tiny, path, workers=0)
    assert (tmp_path/'notes.txt').read_text() == 'mine' and len(list(tmp_path.iterdir())) == 1
    for f in (Store, verify):
        with pytest.raises(UserError, match='not a store'):
            f(tmp_path)


@pytest.mark.parametrize('key', ['numpy', 'engine'])
def test_an_unfinished_store_of_other_versions_is_not_continued(tiny, copy, key):
    meta = read_json(copy/'store.json')
    meta['made_with'] |= {key: '0.0', 'commit': 'abc'}
    write_json(copy/'store.json', meta | {'check': _check(meta)})
    simulate(tiny, copy, workers=0)  # nothing is missing
    (copy/'shards/000001.json').unlink()
    before = times(copy)
    with pytest.raises(UserError, match=rf'{key} 0\.0, now .*commit abc, now'):
        simulate(tiny, copy, workers=0)
    assert times(copy) == before


def test_the_engine_knows_its_modules():
    import ast
    found, todo = set(), ['datasets/samples']
    while todo:
        m = todo.pop()
        found.add(m)
        tree = ast.walk(ast.parse((ROOT/f'nanoshape/{m}.py').read_text()))
        near = [n for n in tree if isinstance(n, ast.ImportFrom) and n.level and n.module]
        todo += {'/'.join([*m.split('/')[:-n.level], *n.module.split('.')]) for n in near} - found
    assert found - set(module._MODULES) <= {'simulate/microscope'} and set(module._MODULES) <= found


def test_one_writer_at_a_time(tiny, tmp_path):
    with only_writer(tmp_path):
        with pytest.raises(UserError, match='another process'):
            simulate(tiny, tmp_path, workers=0)
    with whole_file(tmp_path/'a.csv') as t:
        assert str(os.getpid()) in t.name
        t.write_text('x')
    assert [p.name for p in tmp_path.iterdir()] == ['a.csv']


def test_a_full_disk_stops_with_one_sentence_and_loses_nothing(tiny, tiny_store, tmp_path, monkeypatch, capsys):
    write, left = module._write, [5]

    def full(path, data):
        left[0] -= 1
        if left[0] >= 0:
            return write(path, data)
        with whole_file(path) as tmp:
            tmp.write_bytes(data[:len(data)//2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp))
    monkeypatch.setattr(module, '_write', full)
    with pytest.raises(UserError, match=r'disk of .*s is full \(.* in total\).*the same command goes on'):
        simulate(tiny, tmp_path/'s', workers=0)
    monkeypatch.setattr(module, '_write', write)
    kept = {k: v for k, v in times(tmp_path/'s').items() if '00000' in k or 'c.0' in k}
    assert [x.split(' ')[1] for x in verify(tmp_path/'s')] == ['1', '2'] and not list(tmp_path.rglob('.*.tmp*'))
    simulate(tiny, tmp_path/'s', workers=0)
    assert digest(tmp_path/'s') == digest(tiny_store.path)
    after = times(tmp_path/'s')
    assert all(after[k] == kept[k] for k in ('waves/c.0.0.0', 'labels/000000.csv', 'shards/000000.json'))


FULL = """import sys
from pathlib import Path
import nanoshape.datasets.store as module
from nanoshape.core import UserError
from nanoshape.datasets.recipes import load_recipe
from nanoshape.datasets.store import Store, verify
recipe = load_recipe(sys.argv[1], structures=48)
out, filler, write = Path(sys.argv[2])/'s', Path(sys.argv[2])/'filler', module._write_shard

def then_full(*job):  # after the first shard somebody else takes what is left
    n = write(*job)
    if not filler.exists():
        with open(filler, 'wb', buffering=0) as f:
            try:
                while f.write(bytes(4096)): pass
            except OSError: pass
    return n
module._write_shard = then_full
try: module.simulate(recipe, out, workers=0)
except UserError as e: print(e, file=sys.stderr)
else: sys.exit('the disk was not full')
assert (out/'shards/000000.json').is_file() and not (out/'shards/000002.json').is_file() and not list(out.rglob('.*.tmp*'))
before = (out/'waves/c.0.0.0').stat().st_mtime_ns
filler.unlink()
module._write_shard = write
module.simulate(recipe, out, workers=0)
assert verify(out) == []
assert (out/'waves/c.0.0.0').stat().st_mtime_ns == before and len(Store(out)) == 48
"""


def test_a_real_disk_that_fills_up_keeps_what_is_written(tmp_path):
    """On a small tmpfs of the test's own, in a mount namespace of its own."""
    mount = f'mount -t tmpfs -o size=4m none {tmp_path}'
    if not shutil.which('unshare') or subprocess.run(['unshare', '-rm', 'sh', '-c', mount], capture_output=True).returncode:
        pytest.skip('this machine does not let a user mount a tmpfs in a namespace')
    script = f'{mount} && exec "{sys.executable}" -W ignore -c "$CODE" "{TINY}" {tmp_path}'
    env = {**os.environ, 'CODE': FULL, 'PYTHONPATH': str(ROOT), 'TQDM_DISABLE': '1'}
    done = subprocess.run(['unshare', '-rm', 'sh', '-c', script], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0 and 'is full' in done.stderr, done.stderr


def _no_room(_): raise OSError(errno.ENOSPC, 'x', 'file')


def test_errors_of_the_disk_keep_their_number_on_the_way_from_a_worker():
    with ProcessPoolExecutor(1, get_context('spawn')) as pool, pytest.raises(OSError) as e:
        pool.submit(_no_room, 0).result()
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, 'file')


def test_a_store_that_cannot_fit_is_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: namedtuple('usage', 'total used free')(10**7, 0, 10**6))
    assert main(['simulate', TINY, str(tmp_path/'s')]) == 2
    says = capsys.readouterr().err
    assert '3.6 MB more' in says and '1.0 MB free' in says and not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', ['columns', 'field', 'patterns', 'grains'])
def test_every_kind_goes_into_a_store_and_comes_back(kind, tiny, tmp_path):
    classes = KINDS[kind][:3]
    r = replace(tiny, kind=kind, classes=classes, structures=18, particles=1., size_nm=2., support_nm=.5)
    store = simulate(r, tmp_path/'s', workers=0)
    waves, labels, maps = waves_of(r, [17])
    assert torch.allclose(store.waves([17]), waves, atol=1e-6) and store.labels['class'].iloc[17] == labels[0]['class']
    assert verify(tmp_path/'s') == []
    if maps is None:
        with pytest.raises(UserError, match='no truth maps'):
            store.maps([17])
    else:
        assert np.array_equal(store.maps([17]), maps) and maps.max() > 0
        assert np.array_equal(zarr.open_array(tmp_path/'s/maps', mode='r')[17], maps[0])
        flip(tmp_path/'s/maps/c.1.0.0', np.random.default_rng())
        assert 'maps/c.1.0.0 damaged' in verify(tmp_path/'s')[0]


def test_labels_come_back_to_the_last_digit(tiny, tiny_store):
    t = pd.DataFrame([sample(tiny, i)[1] for i in (0, 20, 39)])
    pd.testing.assert_frame_equal(t, tiny_store.labels.iloc[[0, 20, 39]].reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize('to', ['hdf5', 'npz'])
def test_exports_come_back(tiny_store, tmp_path, to, capsys, monkeypatch):
    import h5py
    args = ['export', str(tiny_store.path), '--to', to, str(tmp_path/'waves.x')]
    assert main(args) == 0 and '40 exit waves' in capsys.readouterr().out
    if to == 'hdf5':
        with h5py.File(tmp_path/'waves.x') as h:
            waves, labels = h['waves'][:], {k: (d.asstr() if d.dtype == object else d)[:] for k, d in h['labels'].items()}
            assert h.attrs['sampling_A'] == tiny_store.sampling and json.loads(h.attrs['recipe'])['name'] == 'tiny'
    else:
        with np.load(tmp_path/'waves.x') as z:
            waves, labels = z['waves'], {k[7:]: z[k] for k in z if k.startswith('labels_')}
    assert np.array_equal(waves, tiny_store.waves(range(40)).numpy()) and set(labels) == set(tiny_store.labels)
    assert all(np.array_equal(v, tiny_store.labels[k].to_numpy()) for k, v in labels.items())
    assert main(args) == 2 and 'exists' in capsys.readouterr().err
    monkeypatch.setattr(module, 'NPZ_LIMIT', 1000)
    args[-1] += 'y'
    assert main(args) == (2 if to == 'npz' else 0) and (tmp_path/'waves.xy').exists() == (to == 'hdf5')


def test_the_command_line_speaks_in_sentences(tmp_path, capsys):
    for args, says in ((['verify', str(tmp_path)], 'is not a store'), (['export', str(tmp_path), str(tmp_path/'f')], 'is not a store'),
                       (['simulate', str(tmp_path/'none.yaml'), str(tmp_path/'s')], 'no file')):
        assert main(args) == 2
        err = capsys.readouterr().err
        assert err.startswith('nanoshape: ') and says in err and err.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_shards_are_small():
    assert SHARD*128*128*8 == 2**21
