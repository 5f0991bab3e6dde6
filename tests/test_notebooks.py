"""Notebooks are clean, in sync with the package, in the house's style, and they run."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import pytest

from conftest import ROOT

PARTS = ('simulate', 'datasets', 'learn', 'micrographs', 'atoms', 'studies')  # in order: a part imports only those before it
LIBRARY = [*sorted((ROOT/'nbs').glob('0[01]_*.ipynb')), *(p for part in PARTS for p in sorted((ROOT/'nbs'/part).glob('[0-9]*.ipynb'))),
           *sorted((ROOT/'nbs').glob('0[2345]_*.ipynb'))]
EXPERIMENTS = sorted((ROOT/'nbs/experiments').glob('*.ipynb'))
FIGURES = sorted((ROOT/'nbs/figures').glob('*.ipynb'))
READING = [ROOT/'nbs/index.ipynb', *sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))]
ALL = [*LIBRARY, *EXPERIMENTS, *FIGURES, *READING]


def ids(paths):
    return {'argvalues': paths, 'ids': ['/'.join(p.parts[-2:]).removesuffix('.ipynb') for p in paths]}


def slow(paths, but):
    """As `ids`; all but one are for `make test-all`."""
    return {'argvalues': [pytest.param(p, id=p.stem, marks=[pytest.mark.slow]*(p.stem != but)) for p in paths]}


def cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def source(cell):
    return ''.join(cell['source'])


def exported(path):
    return [source(c) for c in cells(path) if c['cell_type'] == 'code' and re.search(r'^#\|\s*export', source(c), re.M)]


def nbdev(command, cwd):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', f'from nbdev.{command}'], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """A copy of the checkout that may be changed."""
    to = tmp_path_factory.mktemp('copy')/'nanoshape'
    to.mkdir()
    for p in ('nbs', 'nanoshape', 'data'):
        shutil.copytree(ROOT/p, to/p, ignore=shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__'))
    for p in ('settings.ini', 'README.md'):
        shutil.copy(ROOT/p, to/p)
    return to


def test_there_are_notebooks():
    assert len(LIBRARY) >= 15 and EXPERIMENTS and FIGURES and all(p.is_file() for p in READING)


def test_export_is_in_sync(copy):
    shutil.rmtree(copy/'nanoshape')
    nbdev('export import nb_export; from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()', copy)
    want, got = ({str(p.relative_to(top)): p.read_text() for p in (top/'nanoshape').rglob('*.py')} for top in (ROOT, copy))
    assert got.keys() == want.keys()
    assert not [n for n in want if got[n] != want[n]], 'run `make export`'


def test_notebooks_are_clean(copy):
    nbdev('clean import nbdev_clean; nbdev_clean.__wrapped__()', copy)
    dirty = [str(p.relative_to(ROOT)) for p in ALL if (copy/p.relative_to(ROOT)).read_text() != p.read_text()]
    assert not dirty, 'run `make export`'


@pytest.mark.parametrize('path', **ids(ALL))
def test_no_output_needs_a_kernel(path):
    """A progress bar as a widget is a blank once its kernel is gone."""
    shown = [o for c in cells(path) for o in c.get('outputs', []) if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})]
    assert not shown and 'widgets' not in json.loads(path.read_text(encoding='utf-8'))['metadata']


def module_of(path):
    """`nanoshape.simulate.grains`, of its notebook."""
    return '.'.join(['nanoshape', *path.relative_to(ROOT/'nbs').parts[:-1], re.sub(r'^\d+_', '', path.stem)])


def imported(code, package='nanoshape'):
    """Modules of the package that some code imports anywhere, in functions as well."""
    for node in ast.walk(ast.parse(re.sub(r'^[%!].*$', '', code, flags=re.M))):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == package:
            yield node.module
            yield from (f'{node.module}.{a.name}' for a in node.names)
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split('.')[0] == package)


@pytest.mark.parametrize('path', **ids(LIBRARY))
def test_a_notebook_imports_only_what_comes_before_it(path):
    """Parts in order, and within a part lower numbers; what is exported and what is tried out alike."""
    order = [module_of(p) for p in LIBRARY]
    code = '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'code')
    later = set(order[order.index(module_of(path)):])
    assert not later & set(imported(code))


def test_no_module_is_without_a_notebook():
    made = {'.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in (ROOT/'nanoshape').rglob('*.py') if not p.name.startswith('_')}
    assert made == set(map(module_of, LIBRARY))


def filled(code):
    """Lines of a cell that hold code."""
    return [l for l in code.splitlines() if l.strip() and not l.startswith('#|')]


def style(path):
    """Of a library notebook: lines of each exported cell, lines of examples, the longest stretch of exported lines with neither prose nor
    example between, lines over 120 characters, all lines, words of prose."""
    sizes, examples, stretch, longest, wide, lines, words = [], 0, 0, 0, 0, 0, 0
    for c in cells(path):
        code = source(c)
        if c['cell_type'] == 'markdown':
            words, stretch = words + len(code.split()), 0
            continue
        wide, lines = wide + sum(len(l) > 120 for l in code.splitlines()), lines + len(code.splitlines())
        if re.search(r'^#\|\s*export', code, re.M):
            sizes.append(len(filled(code)))
            stretch += sizes[-1]
            longest = max(longest, stretch)
        elif filled(code):
            examples, stretch = examples + len(filled(code)), 0
    return dict(sizes=sizes, examples=examples, stretch=longest, wide=wide, lines=lines, words=words)


@pytest.mark.parametrize('path', **ids(LIBRARY))
def test_exported_cells_are_short_and_explained(path):
    s = style(path)
    assert max(s['sizes']) <= 30 and median(s['sizes']) <= 11 and s['stretch'] <= 40
    assert s['words'] >= 8*len(s['sizes']) and s['wide'] <= .03*s['lines']


def test_the_library_reads_like_a_text():
    """Short cells, an example for every third line, lines that fit a page."""
    all_of_them = [style(p) for p in LIBRARY]
    total = lambda k: sum(s[k] for s in all_of_them)
    sizes = [n for s in all_of_them for n in s['sizes']]
    assert median(sizes) <= 9 and total('examples') >= .3*sum(sizes) and total('wide') <= .02*total('lines')


@pytest.mark.parametrize('path', **ids([*FIGURES, *READING]))
def test_outputs_are_kept(path):
    assert any('image/png' in o.get('data', {}) for c in cells(path) for o in c.get('outputs', []))


def test_solutions_are_folded_with_what_they_print():
    metadata = [c['metadata'] for p in READING for c in cells(p) if 'solution' in c['metadata'].get('tags', [])]
    assert len(metadata) > 20 and all(m['jupyter'] == {'source_hidden': True, 'outputs_hidden': True} for m in metadata)


def test_the_line_that_a_folded_solution_shows_is_not_the_answer():
    first = [''.join(c['source']).splitlines()[0] for p in READING for c in cells(p) if 'solution' in c['metadata'].get('tags', [])]
    assert len(first) > 20 and set(first) == {'# A solution:'}


@pytest.mark.parametrize('path', **ids(ALL))
def test_no_error_and_no_path_of_a_machine_in_outputs(path):
    for c in cells(path):
        text = json.dumps(c.get('outputs', []))
        assert '"output_type": "error"' not in text
        assert not re.search(r'(?<![\w.])/(home|root|work|Users|tmp)/', re.sub(r'"image/png": "[^"]*"', '', text)), source(c)


@pytest.mark.parametrize('path', **ids(ALL))
def test_the_table_of_contents_makes_sense(path):
    """One title, on top; no level of heading left out; no heading twice."""
    text = '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    heads = re.findall(r'^(#+) (.+)$', text, re.M)
    levels = [len(h[0]) for h in heads]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:])) and len(set(heads)) == len(heads)


@pytest.mark.parametrize('path', **ids([*ALL, ROOT/'README.md', ROOT/'data/README.md']))
def test_links_lead_somewhere(path):
    text = path.read_text() if path.suffix == '.md' else '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    links = [l for l in re.findall(r'\]\(([^)#\s]+)', text) if not l.startswith('http')]
    assert not [l for l in links if not (path.parent/l).exists()]


def cells_run(path):
    """Run a notebook's cells in this process; their outputs, a list for each cell."""
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from matplotlib import rc_context
    os.environ.pop('MPLBACKEND', None)
    os.chdir(path.parent)
    shell, book = CaptureShell(mpl_format='png'), read_nb(path)
    with rc_context(): shell.run_all(book, exc_stop=True)
    return [c.get('outputs', []) for c in book.cells]


@pytest.fixture(scope='module')
def shell():
    """A process in which notebooks run one after the other, so that the libraries are imported once."""
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:
        yield lambda path: pool.submit(cells_run, path).result(timeout=900)


@pytest.mark.parametrize('path', **ids([*LIBRARY, *READING[1:]]))
def test_notebook_runs(path, shell):
    shell(path)


def test_the_tour_runs_in_a_kernel_of_its_own(tmp_path):
    path = READING[0]
    command = [sys.executable, '-W', 'ignore', '-m', 'nbconvert', '--to', 'notebook', '--execute', '--output-dir', str(tmp_path), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'MPLBACKEND': ''}, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('path', **ids(FIGURES))
def test_figure_rebuilds_from_results_alone(path, shell):
    code = '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'code')
    assert 'data/results' in code and not re.search(r'nanoshape\.(simulate\.multislice|datasets\.store|learn\.train|studies\.experiments)', code)
    assert any('image/png' in o.get('data', {}) for outputs in shell(path) for o in outputs)


@pytest.mark.parametrize('path', **slow(EXPERIMENTS, 'shape_study'))
def test_experiment_runs_through_papermill(path, tmp_path):
    from resource import RUSAGE_CHILDREN, getrusage
    from nanoshape.studies.sweep import run_notebook
    start = getrusage(RUSAGE_CHILDREN)
    if path.stem in ('convergence', 'reference_images'):  # nothing is trained
        metrics = run_notebook(path, tmp_path/'run', phonons=1)
        assert metrics['params']['phonons'] == 1 and all(m['n'] > 0 and 0 <= m['error'] < 2 for m in metrics['tests'].values())
        return
    metrics = run_notebook(path, tmp_path/'run', seed=1)
    assert metrics['params']['seed'] == 1, 'the parameters cell was not replaced'
    if path.stem == 'reference_scores':
        named = [m for m in metrics['tests'].values() if 'n' in m]
        assert len(named) == 12 and all(0 <= m['accuracy_low'] <= m['accuracy'] <= m['accuracy_high'] <= 1 for m in named)
        return
    if path.stem == 'carbon_network':
        assert 1 < metrics['mean_neighbours'] < 5
        return
    if path.stem == 'limit':
        rows = list(metrics['tests'].values())
        assert all(0 <= r['error'] <= .5 for r in rows) and len(rows) == 4*7
        d = {(r['shape'], r['dose']): r['d'] for r in rows if r['film']}
        assert all(d[s, 10] < d[s, 100] < d[s, 5000] for s, _ in d), 'more electrons tell shapes apart better'
        return
    if path.stem == 'detection':
        assert {k.split(', ')[1] for k in metrics['tests']} == {'network', 'threshold'}
        assert all(m['images'] == 2 and m['particles'] > 0 and 0 <= m['f1'] <= 1 for m in metrics['tests'].values())
        return
    if path.stem == 'detection_sizes':
        assert metrics['tests']['all']['images'] == 2 and all(0 <= m['f1'] <= 1 for m in metrics['tests'].values())
        return
    if path.stem == 'particle_fit':
        assert all('why' in m and .5 < m['misfit'] < 20 and 0 < m['by_chance'] < 1 for m in metrics['tests'].values())
        return
    if path.stem == 'nanotubes':
        m = metrics['tests']['all']
        assert m['n'] == 3 and all(0 <= m[k] <= 1 for k in ('found', 'first', 'three', 'told', 'wrong_told')) and m['first'] <= m['three']
        return
    if path.stem == 'heights_axis':
        assert all(m['n'] == 1 and m['refused_low'] <= m['refused'] <= m['refused_high'] for m in metrics['tests'].values())
        return
    for m in metrics.get('tests', {'': metrics}).values():
        assert m['n'] > 0 and 0 <= m['accuracy_low'] <= m['accuracy'] <= m['accuracy_high'] <= 1
    end = getrusage(RUSAGE_CHILDREN)  # processor time, not the clock: the machine may be busy
    took = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    assert 0 < took < 60, 'the defaults of an experiment are meant to run in under 20 s on a quiet machine'


def test_wrong_parameters_are_refused_before_anything_runs(tmp_path):
    from nanoshape.core import UserError
    from nanoshape.studies.sweep import run_notebook
    for bad in ({'sed': 1}, {'epochs': [1, 2]}):
        with pytest.raises(UserError):
            run_notebook(EXPERIMENTS[0], tmp_path/'run', **bad)
    assert not (tmp_path/'run').exists()


def test_ruff():
    done = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
