"""What the tests share."""
import os
import sys
import time
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'agg')

import numpy as np
import pytest
import torch

from nanoshape.core import project_root, shared_data
from nanoshape.learn.network import Card, Network

ROOT = project_root(Path(__file__))
COMMAND = [sys.executable, '-W', 'ignore', '-c', 'import sys; from nanoshape.cli import main; sys.exit(main())']  # `nanoshape`, in a process


def wait_for(condition, seconds=300):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(.01)


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
    from nanoshape.datasets.recipes import load_recipe
    return load_recipe(ROOT/'data/recipes/tiny.yaml')


@pytest.fixture(scope='session')
def tiny_store(tiny, tmp_path_factory):
    from nanoshape.datasets.store import simulate
    return simulate(tiny, tmp_path_factory.mktemp('tiny')/'store', workers=0)


@pytest.fixture(scope='session')
def run(tiny, tmp_path_factory):
    """A finished smoke-sized run: folder, metrics."""
    from nanoshape.studies.experiments import train_and_test
    out = tmp_path_factory.mktemp('run')/'run'
    return out, train_and_test(tiny, out, 'cnn4', epochs=2, workers=0)


@pytest.fixture
def grey():
    """A grey image: two dark discs on noise; 0.6 Å per pixel, 12 × 15 nm."""
    g = np.random.default_rng(0)
    image = g.normal(150, 12, (200, 250))
    yy, xx = np.mgrid[:200, :250]
    for y, x, r in ((60, 70, 30), (120, 180, 42)):
        image[(yy - y)**2 + (xx - x)**2 <= r*r] -= 40
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def stand_in(module, **card):
    """A network whose answers are known, with a card that says no more than is asked."""
    return Network(module, Card(**{'arch': 'stand-in', 'sampling': .78, 'gpts': 64, **card}))


def one_sentence(e):
    """The words of an error that a person can read."""
    text = str(e.value)
    assert '\n' not in text and 20 < len(text) < 400 and 'Traceback' not in text
    return text


def listed():
    """Tile → places (row, column) of the particles that the real data's README lists as strongly fringed."""
    import runpy
    return runpy.run_path(str(ROOT/'benchmarks/tiles_crystallinity.py'))['LISTED']
