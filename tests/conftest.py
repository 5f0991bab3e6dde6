"""What the tests share."""
import os
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'agg')

import pytest

from nanoshape.core import project_root, shared_data

ROOT = project_root(Path(__file__))


@pytest.fixture(scope='session')
def root():
    return ROOT


def shared(part):
    """A folder of the data beside the checkout; skips the test where it is absent."""
    folder = shared_data()
    if folder is None or not (folder/part).is_dir():
        pytest.skip(f'../shared/data/{part} is not beside this checkout')
    return folder/part


@pytest.fixture(scope='session')
def reference():
    return shared('reference')


@pytest.fixture(scope='session')
def sintering():
    return shared('real/sintering')


@pytest.fixture(scope='session')
def tiny():
    from nanoshape.recipes import load_recipe
    return load_recipe(ROOT/'data/recipes/tiny.yaml')


@pytest.fixture(scope='session')
def tiny_store(tiny, tmp_path_factory):
    from nanoshape.store import simulate
    return simulate(tiny, tmp_path_factory.mktemp('tiny')/'store', workers=0)


@pytest.fixture(scope='session')
def run(tiny, tmp_path_factory):
    """A finished smoke-sized run: folder, metrics."""
    from nanoshape.studies import train_and_test
    out = tmp_path_factory.mktemp('run')/'run'
    return out, train_and_test(tiny, out, 'cnn4', epochs=2, workers=0)
