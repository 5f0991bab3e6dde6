"""settings.ini (ranges), constraints.txt (pins) and environment.yml (conda) say the same; the layout is the one agreed on."""
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import yaml
from packaging.requirements import Requirement


def name(r):
    return re.sub(r'[-_.]+', '-', r).lower()


@pytest.fixture(scope='module')
def ranges(root):
    c = ConfigParser(delimiters=['='])
    c.read(root/'settings.ini', encoding='utf-8')
    return [Requirement(r) for k in ('requirements', 'dev_requirements') for r in c['DEFAULT'][k].split()]


@pytest.fixture(scope='module')
def pins(root):
    lines = [l for l in (root/'constraints.txt').read_text().splitlines() if l and not l.startswith('#')]
    assert all('==' in l for l in lines)
    return {name(l.split('==')[0]): l.split('==')[1] for l in lines}


def test_layout(root):
    for p in ('nbs', 'nanoshape', 'data', 'settings.ini', 'setup.py', 'environment.yml', 'README.md', 'LICENSE', 'CITATION.cff', 'Makefile'):
        assert (root/p).exists(), p


def test_required_packages_are_asked_for(ranges):
    asked = {name(r.name) for r in ranges}
    wanted = ('jupyterlab papermill nbdev torch fastai abtem ase matplotlib ipywidgets numpy pytest '
              'torchvision scikit-learn scikit-image rosettasciio zarr dask optuna voila safetensors pooch')
    assert not set(wanted.split()) - asked


def test_each_range_holds_its_pin(ranges, pins):
    for r in ranges:
        assert r.specifier.contains(pins[name(r.name)]), f'{r}: pinned to {pins[name(r.name)]}'


def test_conda_asks_for_the_same(root, ranges):
    env = yaml.safe_load((root/'environment.yml').read_text())
    pip = next(d for d in env['dependencies'] if isinstance(d, dict))['pip']
    assert pip[0] == '--constraint constraints.txt' and pip[-1] == '-e .'
    assert {str(Requirement(r)) for r in pip[1:-1]} == {str(r) for r in ranges}
    assert 'python=3.11' in env['dependencies']


def test_installed_is_what_is_pinned(pins):
    from importlib.metadata import distributions
    have = {name(d.metadata['Name']): d.version for d in distributions()}
    assert not {k: (have[k], v) for k, v in pins.items() if k in have and have[k] != v}
    unpinned = set(have) - set(pins) - {'nanoshape', 'pip'}
    assert not unpinned, f'not in constraints.txt: {sorted(unpinned)}'


def test_what_builds_the_package_is_pinned(root, pins):
    import tomllib
    wanted = map(Requirement, tomllib.loads((root/'pyproject.toml').read_text())['build-system']['requires'])
    assert {name(r.name): str(r.specifier) for r in wanted} == {k: f'=={pins[k]}' for k in ('setuptools', 'wheel')}


def test_citation_is_valid_yaml(root):
    c = yaml.safe_load((root/'CITATION.cff').read_text())
    assert c['license'] == 'GPL-3.0-or-later' and c['references']
    assert 'GNU GENERAL PUBLIC LICENSE' in (root/'LICENSE').read_text()


FOUND = """import importlib.util, json
spec = importlib.util.find_spec('nanoshape')
print(json.dumps(spec and spec.origin))"""  # null: there is none, or it is no more than a folder of that name
IMPORTED = """import json, nanoshape, nanoshape.core, nanoshape.micrographs.reading as reading
print(json.dumps([nanoshape.__file__, nanoshape.core.__file__, reading.__file__]))"""


def test_beside_the_checkout_the_package_is_still_the_package(root, tmp_path):
    """From the folder that holds the checkout, as `nanoshape`, the name must not mean the checkout's folder, with its `data` and its `docs`."""
    try:
        distribution('nanoshape')
    except PackageNotFoundError:
        pytest.skip('the package is not installed, so only from its own folder can it be imported')

    def output(code, cwd, env):
        done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    import nanoshape
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'nanoshape').symlink_to(root, target_is_directory=True)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    if output(FOUND, tmp_path/'elsewhere', env) != nanoshape.__file__:  # PYTHONPATH names what is tested
        env = dict(os.environ)
    package = output(FOUND, tmp_path/'elsewhere', env)
    assert output(IMPORTED, tmp_path, env) == [package, *(package.replace('__init__.py', k) for k in ('core.py', 'micrographs/reading.py'))]


def test_reading_a_micrograph_imports_no_more_than_it_needs():
    """What is slow to import, and is for training, screenshots of widgets or other kinds of files."""
    code = ('import sys, nanoshape.micrographs.report; print(*{"torchvision", "zarr", "pint", "h5py", "ipywidgets", "dask"} & {*sys.modules})\n'
            'from fastai.vision.all import resnet18; from nanoshape.learn.models import DynamicUnet, XResNet\n'
            'import fastai.vision.models as m; print(m.unet.DynamicUnet is DynamicUnet and m.xresnet.XResNet is XResNet)')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == '\nTrue\n'
    code = 'import sys, nanoshape.micrographs.reading; print(*{"torch", "pandas", "matplotlib", "ase", "scipy.fft", "pint"} & {*sys.modules})'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '\n'


def test_an_installed_package_has_its_networks_and_recipes(root, tmp_path):
    """Built as `pip install` from the repository does, unpacked elsewhere, and used outside of any checkout."""
    away = shutil.ignore_patterns('.*', 'runs', 'build', '*.egg-info', 'results', 'sweeps', 'tests', 'docs', '__pycache__')
    shutil.copytree(root, tmp_path/'source', ignore=away)  # a build leaves files beside the sources
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path, tmp_path/'source']
    subprocess.run(command, check=True, timeout=300)
    wheel, = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as z: z.extractall(tmp_path/'site')
    code = ('from nanoshape.core import own_file; from nanoshape.datasets.recipes import load_recipe; '
            'from nanoshape.learn.defaults import default_shape_network; from nanoshape.simulate.supports import network_block; '
            'print(own_file("nbs/app/page.ipynb").is_file(), load_recipe(own_file("data/recipes/demo.yaml")).name, len(network_block()) > 1000, '
            'default_shape_network().card.classes[0], own_file("data").parent)')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path/'site')}, capture_output=True,
                          text=True, timeout=300)
    assert done.stdout.split() == ['True', 'demo', 'True', 'cube', str(tmp_path/'site/nanoshape/shipped')], done.stderr[-500:]
