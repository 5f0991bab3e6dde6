"""Sweeps: grids, runs that fail, interruptions, clusters; and what experiments share."""
import json
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest

from conftest import COMMAND, wait_for
from nanoshape.cli import main
from nanoshape.core import UserError, only_writer, read_json
from nanoshape.studies.sweep import load_sweep, sweep

CODE = '''import json, pathlib
if bad and seed: raise ValueError('two is too many')
pathlib.Path(out, 'metrics.json').write_text(json.dumps(dict(params=dict(bad=bad), commit='abc', tests={
    'near': dict(accuracy=.9, seed=7, confusion=[[1, 2]]), 'far': dict(accuracy=.5, confusion=[[3, 4]])})))'''


@pytest.fixture
def notebook(tmp_path):
    """An experiment that takes no time and fails on demand."""
    first = nbformat.v4.new_code_cell("seed: int = 0\nbad: bool = False\nname: str = 'a'\nout: str = '.'")
    first.metadata.tags = ['parameters']
    nb = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(CODE)])
    nb.metadata.kernelspec = dict(display_name='python3', language='python', name='python3')
    nbformat.write(nb, tmp_path/'quick.ipynb')
    return tmp_path/'quick.ipynb'


@pytest.fixture
def spec(notebook, tmp_path):
    def write(**profiles):
        (tmp_path/'s.yaml').write_text(json.dumps({'notebook': str(notebook), **profiles}))
        return tmp_path/'s.yaml'
    return write


def stamps(folder):
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob('*/metrics.json')}


def test_a_run_that_fails_is_recorded_and_the_others_go_on(spec, tmp_path, capsys):
    file, out, table = spec(laptop=dict(fixed=dict(bad=True), grid=dict(seed=[1, 0]))), tmp_path/'runs', tmp_path/'t.csv'
    assert main(['sweep', str(file), '--out', str(out), '--table', str(table), '--anywhere']) == 1
    printed = capsys.readouterr()
    assert '1 run, 2 rows' in printed.out and 'seed=1' in printed.err and 'tries them again' in printed.err
    text = (out/'seed=1/failure.txt').read_text()
    assert 'Traceback' in text and 'two is too many' in text
    t = pd.read_csv(table)
    assert t.test.tolist() == ['near', 'far'] and t.accuracy.tolist() == [.9, .5] and set(t.seed) == {0}
    assert t.test_seed[0] == 7 and set(t.commit) == {'abc'}
    assert json.loads(t.confusion[1]) == [[3, 4]] and not t.bad.isna().any()
    before = stamps(out)
    (out/'seed=1/params.json').unlink()
    spec(laptop=dict(fixed=dict(bad=True), grid=dict(seed=[1, 0])))
    assert sweep(file, out=out, table=table)[1].keys() == {'seed=1'}, 'a failed run is tried again'
    assert stamps(out) == before, 'a finished run is not'


def test_a_failed_sweep_does_not_touch_what_an_earlier_one_found(spec, tmp_path):
    out, table = tmp_path/'runs', tmp_path/'t.csv'
    sweep(spec(laptop=dict(grid=dict(seed=[0, 1]))), out=out, table=table)
    before = table.read_bytes()
    for k in (0, 1): (out/f'seed={k}/metrics.json').unlink()
    bad = dict(fixed=dict(bad=True))
    assert sweep(spec(laptop=dict(**bad, grid=dict(seed=[1]))), out=out, table=table)[1] and table.read_bytes() == before
    assert sweep(spec(laptop=dict(**bad, grid=dict(seed=[0, 1]))), out=out, table=table)[1].keys() == {'seed=1'}
    t = pd.read_csv(table).set_index('run')
    assert set(t.index) == {'seed=0', 'seed=1'} and len(t) == 4 and t.loc['seed=0'].bad.all() and not t.loc['seed=1'].bad.any()
    assert t.loc['seed=1'].accuracy.tolist() == [.9, .5]


def test_two_sweeps_on_one_folder_are_refused(spec, tmp_path):
    (tmp_path/'runs').mkdir()
    with only_writer(tmp_path/'runs'), pytest.raises(UserError, match='another process'):
        sweep(spec(laptop=dict(grid=dict(seed=[0]))), out=tmp_path/'runs', table=tmp_path/'t.csv')
    assert not (tmp_path/'t.csv').exists()


def test_a_run_ends_with_its_sweep(spec, notebook, tmp_path):
    """However the sweep ends: papermill's process and the notebook's kernel go with it."""
    nb = nbformat.read(notebook, 4)
    nb.cells[1].source = "import os, time, pathlib; pathlib.Path(out, 'pid').write_text(f'{os.getpid()} {os.getppid()}'); time.sleep(300)"
    nbformat.write(nb, notebook)
    file, pid = spec(laptop=dict(grid=dict(seed=[0]))), tmp_path/'runs/seed=0/pid'
    command = [*COMMAND, 'sweep', str(file), '--out', str(tmp_path/'runs'), '--table', str(tmp_path/'t.csv'), '--anywhere']
    p = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: pid.is_file() and len(pid.read_text().split()) == 2)
    kernel, papermill = map(int, pid.read_text().split())
    p.kill(); p.wait()
    alive = lambda k: psutil.pid_exists(k) and psutil.Process(k).status() != psutil.STATUS_ZOMBIE
    wait_for(lambda: not alive(kernel) and not alive(papermill), 20)


def test_an_interrupted_sweep_goes_on_and_two_workers_agree(spec, tmp_path):
    file = spec(laptop=dict(grid=dict(seed=[0, 1, 2])))
    sweep(file, out=tmp_path/'runs', table=tmp_path/'t.csv', workers=2)
    first = stamps(tmp_path/'runs')
    whole = (tmp_path/'t.csv').read_bytes()
    (tmp_path/'runs/seed=1/metrics.json').unlink()
    sweep(file, out=tmp_path/'runs', table=tmp_path/'t.csv')
    again = stamps(tmp_path/'runs')
    assert (tmp_path/'t.csv').read_bytes() == whole and {k for k in first if again[k] != first[k]} == {'seed=1'}


def test_runs_share_out_the_cores_and_a_file_to_keep_must_be_there(spec, notebook, tmp_path):
    nb = nbformat.read(notebook, 4)
    nb.cells[1].source += "\nimport os; pathlib.Path(out, 'threads').write_text(os.environ.get('OMP_NUM_THREADS', 'theirs'))"
    nbformat.write(nb, notebook)
    laptop = dict(grid=dict(seed=[0]), keep={'absent.npz': str(tmp_path/'kept.npz'), 'threads': str(tmp_path/'kept')})
    with pytest.raises(UserError, match='keeps absent.npz'):
        sweep(spec(laptop=laptop), out=tmp_path/'runs', table=tmp_path/'t.csv', workers=64)
    with pytest.raises(UserError, match='first grid'):
        sweep(spec(laptop=[dict(grid=dict(seed=[0])), dict(laptop, grid=dict(seed=[1]))]), out=tmp_path/'runs', table=tmp_path/'t.csv')
    assert not (tmp_path/'kept.npz').exists() and (tmp_path/'t.csv').is_file(), 'the table is there all the same'
    laptop['keep'].pop('absent.npz')
    sweep(spec(laptop=laptop), out=tmp_path/'runs', table=tmp_path/'t.csv')
    assert (tmp_path/'kept').read_text() == '1', 'more runs at a time than cores: a thread each'


def test_a_kernel_that_dies_before_it_answers_is_started_again(spec, tmp_path, monkeypatch):
    """Kernels that start at once may choose the same port; the second of them dies."""
    (tmp_path/'kernel.sh').write_text(f'#!/bin/sh\necho >> {tmp_path}/starts\n[ $(wc -l < {tmp_path}/starts) -gt $KILLED ] || exit 1\n'
                                      f'exec {sys.executable} -m ipykernel_launcher "$@"\n')
    folder = tmp_path/'jupyter/kernels/python3'
    folder.mkdir(parents=True)
    (folder/'kernel.json').write_text(json.dumps({'argv': ['sh', f'{tmp_path}/kernel.sh', '-f', '{connection_file}'],
                                                  'display_name': 'python3', 'language': 'python'}))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    monkeypatch.setenv('KILLED', '2')
    assert not sweep(spec(laptop=dict(grid=dict(seed=[0]))), out=tmp_path/'runs', table=tmp_path/'t.csv')[1]
    assert (tmp_path/'starts').read_text() == '\n'*3
    monkeypatch.setenv('KILLED', '9')
    failed = sweep(spec(laptop=dict(grid=dict(seed=[1]))), out=tmp_path/'runs', table=tmp_path/'t.csv')[1]
    assert 'Kernel died' in failed['seed=1'] and (tmp_path/'starts').read_text() == '\n'*6, 'three starts, then it is told'


def test_a_cluster_gives_the_same_table(spec, tmp_path):
    from distributed import LocalCluster
    file = spec(laptop=[dict(grid=dict(seed=[0, 1])), dict(fixed=dict(name='b/c'), grid=dict(name=['b/c'], seed=[0]))])
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        t, failed = sweep(file, out=tmp_path/'a', table=tmp_path/'a.csv', scheduler=cluster.scheduler_address)
    assert not failed and sweep(file, out=tmp_path/'b', table=tmp_path/'b.csv')[0].equals(t) and len(t) == 6
    assert 'name=b_c,seed=0' in set(t.run)
    with pytest.raises(UserError, match='no Dask scheduler'):
        sweep(file, out=tmp_path/'c', table=tmp_path/'c.csv', scheduler='tcp://127.0.0.1:1')


@pytest.mark.parametrize('profiles, says', [
    ({}, 'no profile'), ({'full': {}}, 'has no profile .laptop.; it has full'), ({'laptop': {'fixed': {'seed': 1}}}, 'needs `grid`'),
    ({'laptop': {'grid': {'seed': 3}}}, 'list of values'), ({'laptop': {'grid': {'sed': [3]}}}, "no parameter 'sed'"),
    ({'laptop': {'grid': {'seed': [[3]]}}}, 'plain'), ({'laptop': []}, 'no runs'),
    ({'laptop': {'grid': {'out': ['x']}}}, 'chosen by the sweep'),
    ({'laptop': [{'grid': {'seed': [1]}}, {'grid': {'seed': [1]}, 'fixed': {'name': 'b'}}]}, 'two runs'),
])
def test_mistakes_are_found_before_the_first_run(spec, tmp_path, profiles, says, capsys):
    file = spec(**profiles)
    with pytest.raises(UserError, match=says):
        load_sweep(file)
    assert main(['sweep', str(file), '--out', str(tmp_path/'runs')]) == 2 and not (tmp_path/'runs').exists()
    assert 'Traceback' not in capsys.readouterr().err


def test_files_of_the_first_run_are_kept(spec, tmp_path):
    to = tmp_path/'kept/first.json'
    sweep(spec(laptop=dict(grid=dict(seed=[1, 0]), keep={'params.json': str(to)})), out=tmp_path/'runs', table=tmp_path/'t.csv')
    assert read_json(to) == {'seed': 1}


def test_other_fixed_values_do_not_mix_with_older_runs(spec, tmp_path):
    sweep(spec(laptop=dict(grid=dict(seed=[0]))), out=tmp_path/'runs', table=tmp_path/'t.csv')
    with pytest.raises(UserError, match='other fixed parameters'):
        sweep(spec(laptop=dict(fixed=dict(name='b'), grid=dict(seed=[0]))), out=tmp_path/'runs', table=tmp_path/'t.csv')


def test_the_sweeps_that_are_kept_name_what_their_notebooks_have():
    from conftest import ROOT
    files = sorted((ROOT/'data/sweeps').glob('*.yaml'))
    assert len(files) >= 8
    for f in files:
        for profile in ('laptop', 'full'):
            if f.stem == 'reference_images' or profile == 'full' and f.stem in ('training_size', 'reference_scores'):
                continue
            notebook, runs, _ = load_sweep(f, profile)
            if f.stem in ('convergence', 'reference_scores'):  # nothing is trained
                continue
            seeds = {r['seed'] for r in runs.values()}
            one_network = f.stem in ('shape_study', 'crystallinity_micrographs')
            assert notebook.is_file() and (len(seeds) >= 3 or one_network) and (profile == 'laptop' or len(seeds) == 10)


def test_waves_are_shared_whatever_the_microscope(tiny, tmp_path):
    from dataclasses import replace
    from nanoshape.studies.experiments import waves
    a = waves(tiny, 0, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
    b = waves(replace(tiny, name='other', dose=50., defocus_nm={'grid': [-4, 4, 3]}, images=3), 0, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before
    assert a.recipe == tiny and b.recipe.dose == 50. and b.recipe.name == 'other' and (a.waves([3]) == b.waves([3])).all()
    assert waves(replace(tiny, seed=8), 0, tmp_path).path != a.path


def test_a_subset_leaves_the_test_alone(tiny_store):
    from nanoshape.studies.experiments import subset
    (a, watch, test), (b, _, same) = (subset(tiny_store, 20, 10, s) for s in (0, 1))
    assert len(watch) == 10 and not set(watch) & (set(a) | set(test)) and len(subset(tiny_store, 20, 10, 0, watch=3)[1]) == 3
    assert set(test) == set(range(30, 40)) == set(same) and len(set(a)) == 20 and set(a) != set(b) and not set(a) & set(test)
    small = tiny_store.labels['size'] < tiny_store.labels['size'].median()
    assert small[subset(tiny_store, 5, 10, 0, small)[0]].all()
    with pytest.raises(UserError, match='simulate more'):
        subset(tiny_store, 30, 10, 0)


def test_training_and_test_need_seeds_of_their_own(tiny, tmp_path):
    from nanoshape.studies.experiments import train_and_test
    with pytest.raises(UserError, match='same seed'):
        train_and_test(tiny, tmp_path/'run', test=tiny)
    assert not (tmp_path/'run').exists()


def test_a_test_of_its_own_scores_all_its_images(tiny, tmp_path):
    from dataclasses import replace
    from nanoshape.studies.experiments import predictions, train_and_test, waves
    from nanoshape.learn.network import Network
    other = replace(tiny, seed=9, structures=10, images=2, defocus_nm={'grid': [-4, 4, 2]})
    m = train_and_test(tiny, tmp_path/'run', 'cnn4', epochs=1, workers=0, test=other, symmetries=8, folder=tmp_path/'waves')
    assert m['n'] == 20 and m['n_train'] + m['n_valid'] == len(tiny)
    network = Network.load(tmp_path/'run/model.safetensors')
    t = predictions(network, waves(other, 0, tmp_path/'waves'))
    assert len(t) == 20 and (t.true == t.answer).sum() == m['correct'] and set(t.defocus_nm) == {-4., 4.}
    assert np.allclose(t.filter(like='p_').sum(1), 1, atol=1e-3) and t.filter(like='angle_').max().max() < 55
    assert network.card.symmetries == 8 and read_json(tmp_path/'run/metrics.json')['params']['test']


def test_runs_that_need_the_same_waves_wait_for_each_other(tiny, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    import nanoshape.datasets.store as module
    from nanoshape.studies.experiments import waves
    made, write = [], module._write_shard

    def counted(*job):
        made.append(job[2])
        return write(*job)
    monkeypatch.setattr(module, '_write_shard', counted)
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda _: waves(tiny, 0, tmp_path), range(2))
    assert a.path == b.path and sorted(made) == [0, 1, 2], 'each shard is made once'


def test_a_sweep_from_elsewhere_is_asked_for(spec, tmp_path, capsys, monkeypatch):
    file = spec(laptop=dict(grid=dict(seed=[0])))
    command = ['sweep', str(file), '--out', str(tmp_path/'runs'), '--table', str(tmp_path/'t.csv')]
    assert main(command) == 2 and 'outside of the project' in capsys.readouterr().err and not (tmp_path/'runs').exists()
    own = dict(notebook='nbs/experiments/split.ipynb')
    for keep in ({'metrics.json': '/tmp/x.json'}, {'metrics.json': 'data/../x.json'}, {'../params.json': 'data/results/x.json'}):
        file.write_text(json.dumps(own | dict(laptop=dict(grid=dict(seed=[0]), keep=keep))))
        assert main(command) == 2 and 'outside of the project' in capsys.readouterr().err, keep
