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


def test_most_tables_name_their_commit():
    assert sum(bool(named(p)) for p in TABLES) >= 20


@pytest.mark.parametrize('path', sorted((ROOT/'data/models').glob('*.json')), ids=lambda p: p.stem)
def test_a_network_names_a_commit_that_is_there(path, history):
    for value in re.findall(r'"commit": "([^"]*)"', path.read_text(encoding='utf-8')):
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
