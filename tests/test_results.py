"""Every number in data/results can be followed to a commit that others can find, or says why it can't."""
import csv
import json
import re
import subprocess

import pytest

from conftest import ROOT
from nanoshape.core import commit, provenance

TABLES = sorted((ROOT/'data/results').glob('*.csv'))
COLUMNS = 'commit', 'waves_commit'


def git(*args, cwd=ROOT):
    return subprocess.run(['git', *args], cwd=cwd, capture_output=True, text=True)


def named(path):
    """What a table's columns of commits say, as text: pandas takes 91704e4 for a number."""
    with open(path, encoding='utf-8', newline='') as f:
        return {row[k] for row in csv.DictReader(f) for k in COLUMNS if k in row}


def check(value, where):
    if re.fullmatch(r'unrecorded \(.{10,80}\)', value):
        return
    assert re.fullmatch(r'[0-9a-f]{7,40}', value), f'{where}: {value!r} is neither a clean commit nor "unrecorded (why)"'
    assert git('merge-base', '--is-ancestor', value, 'HEAD').returncode == 0, f'{where}: {value} is no commit of this history'


@pytest.fixture(scope='module')
def history():
    if git('rev-parse', '--is-shallow-repository').stdout.strip() != 'false':
        pytest.skip('no git checkout with its whole history')


@pytest.mark.parametrize('path', TABLES, ids=lambda p: p.stem)
def test_a_table_names_commits_that_are_there(path, history):
    for value in named(path):
        check(value, path.name)


BELONGS_TO = {  # tables and arrays without commits of their own → the table of the same runs, or where they come from
    'shape_study_predictions.csv': 'shape_study', 'shape_study_unseen.csv': 'shape_study', 'shape_study_examples.npz': 'shape_study',
    'orientation_sampling.csv': 'orientation', 'detection_images.csv': 'detection', 'crystallinity_predictions.csv': 'crystallinity',
    'crystallinity_examples.npz': 'crystallinity', 'crystallinity_inputs_predictions.csv': 'crystallinity_inputs',
    'crystallinity_micrographs_predictions.csv': 'crystallinity_micrographs', 'crystallinity_diffracting.csv': 'crystallinity_limit',
    'convergence_examples.npz': 'convergence', 'detection_sizes_images.csv': 'detection_sizes',
    'heights_examples.npz': 'heights', 'heights_movie.npz': 'heights_movie',
    'open_world_test_conditions.csv': 'open_world_test', 'open_world_test_perturbed.csv': 'open_world_test',
    'crystallinity_published.csv': None}  # by hand


def test_every_result_names_a_commit_or_belongs_to_a_table_that_does():
    without = {p.name for p in TABLES if not named(p)} | {p.name for p in (ROOT/'data/results').glob('*.npz')}
    assert without == set(BELONGS_TO)
    assert all(named(ROOT/f'data/results/{table}.csv') for table in BELONGS_TO.values() if table)


@pytest.mark.parametrize('path', sorted((ROOT/'data/models').glob('*.json')), ids=lambda p: p.stem)
def test_a_network_names_a_commit_that_is_there(path, history):
    commits = re.findall(r'"commit": "([^"]*)"', path.read_text(encoding='utf-8'))
    assert commits, f'{path.name} names no commit'
    for value in commits:
        check(value, path.name)


def test_a_wrong_commit_is_noticed(history):
    for bad in ('91704e4-dirty', '91704000000.0', 'deadbee', '', 'unrecorded'):
        with pytest.raises(AssertionError):
            check(bad, 'a table')


def test_a_commit_is_recorded_only_if_others_can_find_it(tmp_path, monkeypatch):
    for part in ('nbs', 'nanoshape', 'data/results'):
        (tmp_path/part).mkdir(parents=True)
        (tmp_path/part/'file.txt').write_text('1')
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    monkeypatch.chdir(tmp_path)
    assert commit() == 'unrecorded (not in a git checkout)'
    identity = '-c', 'user.name=a', '-c', 'user.email=a@b.c'
    for args in (('init', '-q', '-b', 'main'), ('add', '.'), (*identity, 'commit', '-qm', 'first')):
        assert git(*args, cwd=tmp_path).returncode == 0
    head = git('rev-parse', '--short', 'HEAD', cwd=tmp_path).stdout.strip()
    assert commit() == provenance()['commit'] == head
    (tmp_path/'data/results/file.txt').write_text('2')
    assert commit() == head, 'a new table does not change the code'
    (tmp_path/'nanoshape/file.txt').write_text('2')
    assert commit() == f'unrecorded (changed since {head})'
    git('checkout', '-q', 'nanoshape', cwd=tmp_path)
    git('checkout', '-qb', 'other', cwd=tmp_path)
    git(*identity, 'commit', '-qam', 'second', cwd=tmp_path)
    assert 'is not on main' in commit()
    git('branch', 'alice/main', cwd=tmp_path)
    assert 'is not on main' in commit(), "somebody's main is not main"
    git('checkout', '-q', 'main', cwd=tmp_path)
    (tmp_path/'nanoshape/new.py').write_text('2')
    assert commit() == f'unrecorded (changed since {head})', 'a new module is a change'
    (tmp_path/'nanoshape/new.py').unlink()
    assert commit() == head
    (tmp_path/'.git/index').write_bytes(b'damaged')
    assert 'cannot tell' in commit()


def test_the_commit_of_another_project_is_not_ours(tmp_path, monkeypatch):
    copy = tmp_path/'thesis/nanoshape'
    for part in ('nbs', 'nanoshape'):
        (copy/part).mkdir(parents=True)
    (copy/'settings.ini').write_text('')
    monkeypatch.chdir(copy)
    git('init', '-q', '-b', 'main', cwd=copy.parent)
    git('-c', 'user.name=a', '-c', 'user.email=a@b.c', 'commit', '--allow-empty', '-qm', 'first', cwd=copy.parent)
    assert commit() == 'unrecorded (not in a git checkout)'


def test_a_sweeps_table_spells_out_the_recipe(tmp_path):
    from nanoshape.core import write_json
    from nanoshape.datasets.recipes import make_recipe
    from nanoshape.studies.experiments import recipe_keys
    from nanoshape.studies.sweep import collect
    keys = recipe_keys(make_recipe(name='mine', element='Pt', energy_kev=200., size_nm={'uniform': [2, 4]}, classes=['cube']))
    assert keys == dict(name='mine', element='Pt', energy_kev=200., size_nm={'uniform': [2, 4]}, classes=['cube'])
    write_json(tmp_path/'params.json', dict(seed=1))
    write_json(tmp_path/'metrics.json', dict(recipe_keys=keys, tests=dict(a=dict(accuracy=.5), b=dict(accuracy=.6))))
    table = collect([tmp_path])
    assert [json.loads(v) for v in table.recipe_keys] == [keys, keys]
