"""The page in the browser, used without one; and who is let in."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone

import pytest
import torch

from conftest import ROOT
from nanoshape import app


@pytest.fixture(scope='module')
def page():
    return app.Page()


def put(page, name, data):
    page.upload.value = ()
    when = datetime(2026, 1, 1, tzinfo=timezone.utc)
    page.upload.value = ({'name': name, 'type': '', 'size': len(data), 'content': memoryview(data), 'last_modified': when},)


def test_what_cannot_be_read_is_refused_and_nothing_stays(page, monkeypatch):
    put(page, '../../evil.dm4', b'no micrograph')
    assert 'role="alert"' in page.said.value and 'evil.dm4' in page.said.value and not page.results.children
    assert not os.listdir(page.folder.name) and not page.sample.disabled
    monkeypatch.setattr(app, 'MOST', 5)
    put(page, 'big.tif', b'0123456789')
    assert 'command line' in page.said.value


def test_names_are_no_markup(page):
    put(page, '<img src=x onerror=alert(1)>.tif', b'nothing')
    assert '<img' not in page.said.value and '&lt;img' in page.said.value


def test_correlation_is_the_best_over_shifts():
    a = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    assert app.correlation(a, torch.stack([3*a.roll((4, 7), (0, 1)) + 2, -a])).tolist()[0] == pytest.approx(1, abs=1e-5)
    assert app.correlation(a, -a[None]).item() < .5


def test_the_sample_shows_particles_and_files(page, monkeypatch):
    monkeypatch.setattr(app, 'shared_data', lambda: None)
    monkeypatch.setattr(app, 'VIEWS', 2)
    page._tried(page._sample)
    assert 'role="status"' in page.said.value and len(page.results.children) == 3
    files, (stage, _) = page.results.children[0].value, page.results.children[1].children
    assert 'download="particles.csv"' in files and 'download="report.html"' in files and 'nm per pixel' in files
    spots = stage.children[1:]
    assert len(spots) == len(page.table) and all(re.fullmatch(r'-?\d+px', b.layout.left) and b.tooltip for b in spots)
    spots[0].click()
    assert 'alt="the particle' in page.one.value and 'Particle 1' in page.said.value


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into the process by its port')
def test_only_who_has_the_token_is_let_in():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    p = subprocess.Popen([sys.executable, '-c', f'from nanoshape.cli import main; main(["app", "--port", "{port}", "--no-browser"])'], cwd=ROOT,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = re.search(r'http://localhost:\d+/\?token=\S+', p.stdout.readline())[0]
        base, token = url.split('/?token=')
        for _ in range(120):
            try:
                status = urllib.request.urlopen(f'{base}/voila/static/none', timeout=5).status
            except urllib.error.HTTPError as e:
                status = e.code
            except OSError:
                time.sleep(.5)
                continue
            break
        answer = urllib.request.urlopen(base + '/', timeout=60)
        assert '/login' in answer.url and 'Page()' not in answer.read().decode() and len(token) > 15
    finally:
        p.kill()
        p.wait()
    assert status
