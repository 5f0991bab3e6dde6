"""A figure can be drawn again from another sweep's table: what it reads and shows are parameters of its notebook."""
import ast
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import papermill
import pytest

from conftest import ROOT
from nanoshape.core import UserError
from nanoshape.studies.sweep import check_parameters

FIGURES = sorted((ROOT/'nbs/figures').glob('*.ipynb'))
EACH = pytest.mark.parametrize('path', FIGURES, ids=lambda p: p.stem)
DRAW = '''import json, sys, papermill
papermill.execute_notebook(*sys.argv[1:3], json.loads(sys.argv[3]), progress_bar=False)'''


def cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def parameters(path):
    """name → what papermill sees: its type, its default as code, its comment."""
    return papermill.inspect_notebook(str(path))


def shown(path):
    """The texts and the pictures of a notebook's outputs."""
    data = [o.get('data', {'text/plain': o.get('text', '')}) for c in cells(path) for o in c.get('outputs', [])]
    return '\n'.join(''.join(d.get('text/plain', '')) for d in data), [''.join(d['image/png']) for d in data if 'image/png' in d]


@EACH
def test_the_parameters_follow_the_title(path):
    tagged = [i for i, c in enumerate(cells(path)) if 'parameters' in c['metadata'].get('tags', [])]
    assert tagged == [1]


@EACH
def test_parameters_are_plain_commented_and_found_by_papermill(path):
    source = ''.join(cells(path)[1]['source'])
    found = parameters(path)
    assert list(found) == [line.split(':')[0] for line in source.splitlines()]
    for p in found.values():
        assert p['inferred_type_name'] == type(ast.literal_eval(p['default'])).__name__ in ('str', 'int', 'float', 'bool'), p
        assert p['help'], p


@EACH
def test_every_file_is_a_parameter_and_every_parameter_is_used(path):
    names = {k: ast.literal_eval(p['default']) for k, p in parameters(path).items()}
    files = [v for v in names.values() if str(v).startswith('data/')]
    assert files and all((ROOT/f).is_file() for f in files)
    code = '\n'.join(''.join(c['source']) for c in cells(path)[2:] if c['cell_type'] == 'code')
    assert 'data/' not in code and not [k for k in names if not re.search(rf'\b{k}\b', code)]


@pytest.fixture
def smoke_table(tmp_path):
    """A table as a sweep of the experiment on sizes makes it at smoke size, in one run."""
    tests = {'2 to 2.4 nm': .125, '2.4 to 2.8 nm': .375, 'all': .236, 'volume alone': .417, 'area and widths alone': .819}
    fixed = dict(recipe='data/recipes/tiny.yaml', structures=40, n=20, smallest_nm=0., largest_nm=100., seed=3, commit='91704e4')
    pd.DataFrame([fixed | dict(test=k, accuracy=a) for k, a in tests.items()]).to_csv(tmp_path/'size.csv', index=False)
    return tmp_path/'size.csv'


def test_a_figure_is_drawn_from_another_table(smoke_table, tmp_path):
    path, drawn = ROOT/'nbs/figures/size.ipynb', tmp_path/'size.ipynb'
    params = dict(table=str(smoke_table), all_sizes='0 to 100 nm', title='accuracy (%) of one run')
    check_parameters(path, params)
    command = [sys.executable, '-W', 'ignore', '-c', DRAW, str(path), str(drawn), json.dumps(params)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, 'MPLBACKEND': ''}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = 100*pd.read_csv(ROOT/'data/results/size.csv').query('smallest_nm == 4 and largest_nm == 8 and test == "volume alone"').accuracy
    (before, pictures_before), (after, pictures) = shown(path), shown(drawn)
    assert np.allclose([float(v) for v in re.findall(r'volume alone +(.*)', before)[0].split()], kept, atol=.05)
    assert re.findall(r'volume alone +(.*)', after) == ['41.7'] and re.findall(r'from the image +(.*)', after) == ['23.6']
    assert len(pictures) == 1 and pictures != pictures_before


def test_a_parameter_that_a_figure_does_not_have_is_noticed():
    with pytest.raises(UserError, match="size.ipynb has no parameter 'tabel'; it has table, all_sizes, title"):
        check_parameters(ROOT/'nbs/figures/size.ipynb', dict(tabel='data/results/size.csv'))
