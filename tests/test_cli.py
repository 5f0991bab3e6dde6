"""The command line as a user meets it."""
import json
import os
import re
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import COMMAND, ROOT
from nanoshape.cli import _read_frame, main, parser
from nanoshape.core import UserError
from nanoshape.learn.defaults import kept_network


def command(*args):
    """The command in a process of its own."""
    return subprocess.run([*COMMAND, *map(str, args)], cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})


def nanoshape(*args):
    """The command in this process, which need not import everything again."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, chdir(ROOT):
        try:
            status = main([*map(str, args)])
        except SystemExit as e:
            status = e.code
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    """Two dark discs; 0.06 nm per pixel."""
    g = np.random.default_rng(0)
    image = g.normal(150, 12, (220, 260))
    yy, xx = np.mgrid[:220, :260]
    for y, x, r in ((70, 75, 30), (140, 185, 42)):
        image[(yy - y)**2 + (xx - x)**2 <= r*r] -= 40
    path = tmp_path_factory.mktemp('pictures')/'two <b>discs.png'
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return path


def test_help_tells_a_newcomer_what_to_do():
    done = command('--help')
    assert done.returncode == 0
    for word in ('demo', 'analyse', 'Start with'):
        assert word in done.stdout
    assert '--pixel-size' in nanoshape('analyse', '--help').stdout


def test_decimal_commas_are_understood():
    from nanoshape.cli import parser
    assert parser().parse_args(['analyse', 'a.png', '--pixel-size', '0,0586']).pixel_size == .0586
    assert 'not a number such as' in nanoshape('analyse', 'a.png', '--pixel-size', '1.000,5').stderr
    for value in ('nan', 'inf', '-inf'):
        with pytest.raises(SystemExit): parser().parse_args(['tube', 'a.png', f'--cs={value}'])


def test_the_command_is_installed():
    from importlib.metadata import entry_points
    e, = entry_points(group='console_scripts', name='nanoshape')
    assert e.value == 'nanoshape.cli:main'


def test_help_and_mistyped_options_need_not_wait_for_torch():
    assert subprocess.run([sys.executable, '-c', "import sys, nanoshape.cli; sys.exit('torch' in sys.modules)"], cwd=ROOT).returncode == 0


def test_analyse_writes_a_whole_report(picture, run, tmp_path):
    out = tmp_path/'report'
    args = ('analyse', picture, '--pixel-size', '.06', '--model', run[0]/'model.safetensors', '--least-score', '0,6', '--out', out)
    done = command(*args)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.iterdir()} == {'report.html', 'particles.csv', f'{picture.stem}_labels.tif', 'overlay.png', 'confusion.png',
                                               'particles.coco.json', 'particles_rois.zip', 'curves.png', 'run.json'}
    assert [p.name for p in tmp_path.iterdir()] == ['report'], 'something was left behind'
    t = pd.read_csv(out/'particles.csv')
    assert len(t) == 2 and {'x_nm', 'y_nm', 'equivalent_diameter_nm', 'feret_max_nm', 'feret_min_nm', 'p_cube', 'p_icosahedron', 'shape'} <= set(t)
    probabilities = [c for c in t if c.startswith('p_')]
    crystals = ['p_amorphous', 'p_monocrystalline', 'p_polycrystalline']
    assert probabilities[-3:] == crystals and all(np.allclose(t[v].sum(1), 1, atol=1e-5) for v in (probabilities[:-3], crystals))
    page = (out/'report.html').read_text()
    assert page.count('data:image/png;base64,') == 5 and 'How crystalline' in page
    assert not re.search(r'(?:src|href)="(?!data:)', page), 'the page is not self-contained'
    assert '<b>discs' not in page and 'simulated images only, with a score of 0.6 or more' in page
    assert json.loads((out/'run.json').read_text())['least_score'] == .6
    assert str(out) in done.stdout
    assert nanoshape(*args).returncode == 0, 'a second run replaces the first'


@pytest.mark.parametrize('name', [b'b_$5_$^.png', b'x'*246 + b'.png', b'two\nlines.png', '中 µ.png'.encode()],
                         ids=['signs', 'long', 'newline', 'glyphs'])
def test_an_odd_name_alone_costs_nothing(picture, run, tmp_path, name):
    path = tmp_path/os.fsdecode(name)
    path.write_bytes(picture.read_bytes())
    model, out = run[0]/'model.safetensors', tmp_path/'out'
    done = nanoshape('analyse', path, '--pixel-size', '.06', '--model', model, '--detector', 'darkness', '--out', out)
    assert done.returncode == 0 and done.stderr == '' and len(pd.read_csv(out/'particles.csv')) == 2


def test_a_name_that_is_no_unicode_is_refused(picture, run, tmp_path):
    path = tmp_path/os.fsdecode(b'Probe_\xb5.png')
    try: path.write_bytes(picture.read_bytes())
    except OSError: pytest.skip('this file system takes Unicode names only')
    done = command('analyse', path, '--pixel-size', '.06', '--model', run[0]/'model.safetensors', '--out', tmp_path/'out')
    assert done.returncode == 2 and 'the name of Probe_?.png' in done.stderr and done.stderr.count('\n') == 1 and not (tmp_path/'out').exists()


@pytest.mark.parametrize('args, says', [
    (['none.dm4'], 'no file'), (['{picture}'], '--pixel-size'), (['{picture}', '--pixel-size', '300'], 'does not show'),
    (['{picture}', '--pixel-size', '.06', '--frame', '2'], 'no frame 2'),
    (['{picture}', '--pixel-size', '.06', '--model', 'none.safetensors'], 'no model'),
    (['{picture}', '--pixel-size', '.06', '--element', 'Fe'], 'not an fcc metal'),
    (['{picture}', '--pixel-size', '.06', '--least-score', '1,5'], 'from 0 to 1'),
    (['{picture}', '--element', 'Pt', '--calibrate', 'Au'], 'two metals'), (['{picture}', '--pixel-size', 'big'], 'is no')])
def test_a_mistake_gets_one_sentence_status_2_and_leaves_nothing(picture, run, tmp_path, args, says):
    args = [a.format(picture=picture) for a in args]
    if '--model' not in args:
        args += ['--model', run[0]/'model.safetensors']
    done = nanoshape('analyse', *args, '--out', tmp_path/'report')
    assert done.returncode == 2 and says in done.stderr
    if says != 'is no':
        assert done.stderr.startswith('nanoshape: ') and done.stderr.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_no_warning_of_numpy_is_shown():
    code = """import numpy as np
from nanoshape import cli
def mean_of_nothing(a): np.array([]).mean()
cli.verify = mean_of_nothing
cli.main(['verify', 'none'])"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ''


def test_no_warning_of_a_package_is_shown_by_workers(picture, run, tmp_path):
    (tmp_path/'two').mkdir()
    for k in range(2): (tmp_path/f'two/{k}.png').write_bytes(picture.read_bytes())
    (tmp_path/'two/cut.png').write_bytes(picture.read_bytes()[:99])
    command = [*COMMAND[:1], *COMMAND[3:], 'analyse', tmp_path/'two', '--pixel-size', '.06', '--workers', '2', '--model', run[0]/'model.safetensors',
               '--out', tmp_path/'out']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [l for l in done.stderr.replace('\r', '\n').splitlines() if l and not l.startswith('micrographs:')]
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith('nanoshape: cut.png')


def test_a_folder_with_other_things_is_never_replaced(picture, run, tmp_path):
    (tmp_path/'thesis.txt').write_text('three years')
    common = ('--pixel-size', '.06', '--model', run[0]/'model.safetensors')
    done = nanoshape('analyse', picture, *common, '--out', tmp_path)
    assert done.returncode == 2 and 'holds other things' in done.stderr
    assert (tmp_path/'thesis.txt').read_text() == 'three years' and len(list(tmp_path.iterdir())) == 1
    done = nanoshape('analyse', picture, *common, '--out', picture.parent)
    assert done.returncode == 2 and picture.is_file()


def test_the_demo_refuses_a_bad_image_before_it_trains(tmp_path):
    done = nanoshape('demo', '--image', 'none.dm4', '--out', tmp_path/'demo')
    assert done.returncode == 2 and 'no file' in done.stderr and not list(tmp_path.iterdir())
    assert nanoshape('demo', '--structures', '0').returncode == 2


@pytest.mark.slow
def test_a_small_demo_from_end_to_end(picture, tmp_path):
    args = ('demo', '--train', '--structures', '40', '--epochs', '1', '--image', picture, '--pixel-size', '.06', '--out', tmp_path/'demo')
    done = nanoshape(*args)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {'demo', 'demo-training'}
    assert (tmp_path/'demo/report.html').is_file() and '95 % interval' in done.stdout and str(tmp_path/'demo') in done.stdout.splitlines()[-1]
    again = nanoshape(*args)
    assert again.returncode == 0 and 'done before' in again.stdout and 'exit waves:' not in again.stderr


def test_the_demo_tests_the_kept_network_on_new_particles(picture, tmp_path):
    if not kept_network('shapes').is_file():
        pytest.skip('data/models/shapes.safetensors is not there')
    done = nanoshape('demo', '--structures', '20', '--image', picture, '--pixel-size', '.06', '--out', tmp_path/'demo')
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {'demo', 'demo-waves'} and (tmp_path/'demo/report.html').is_file()
    right = int(re.search(r'(\d+) of 20 test images right', done.stdout)[1])
    assert right >= 17, done.stdout


def test_a_frame_of_a_movie_in_single_files_is_chosen(tmp_path, grey, capsys):
    for k in (10, 2): Image.fromarray(grey + np.uint8(k)).save(tmp_path/f'frame_{k}.png')
    Image.fromarray(grey[:90]).save(tmp_path/'other.png')
    read = lambda frame: _read_frame(parser().parse_args(['heights', str(tmp_path), '--pixel-size', '.06', *frame]))
    assert read(['--frame', '1']).name == 'frame_10.png' and 'other.png: it has 250 × 90 pixels' in capsys.readouterr().err
    for frame in ([], ['--frame', '2'], ['--frame', '-1']):
        with pytest.raises(UserError, match='a movie of 2 files: choose one with --frame 0 … 1'): read(frame)


@pytest.mark.parametrize('where', ['/dev/null/x', '/proc/x'])
def test_a_result_that_can_go_nowhere_is_refused_at_once(where, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path/'p.png')
    for command in (['analyse', str(tmp_path/'p.png')], ['fit', str(tmp_path/'p.png')], ['heights', str(tmp_path/'p.png')],
                    ['sweep', str(ROOT/'data/sweeps/size.yaml')], ['train', 'open_world'], ['simulate', str(ROOT/'data/recipes/tiny.yaml'), where]):
        more = [] if command[0] == 'simulate' else ['--out', where]
        assert main([*command, *more]) == 2 and 'Traceback' not in (said := capsys.readouterr().err), command
        assert 'nothing can be written' in said, (command, said)
