"""The page: its widgets without a browser, who is let in, and a user in headless Chromium."""

import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import COMMAND, ROOT, stand_in, wait_for
from nanoshape import app
from nanoshape.core import NM
from nanoshape.micrographs.detection import Detector
from nanoshape.micrographs.reading import Micrograph


class Sure(torch.nn.Module):
    """Always sure of the second class."""
    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor([[0., 5.]]))

    def forward(self, x):
        return self.scores.expand(len(x), -1)


@pytest.fixture(scope='module')
def page():
    return app.Page()


def put(page, name, data):
    page.upload.value = ()
    when = datetime(2026, 1, 1, tzinfo=timezone.utc)
    page.upload.value = ({'name': name, 'type': '', 'size': len(data), 'content': memoryview(data), 'last_modified': when},)


def test_what_cannot_be_read_is_refused_and_nothing_stays(page, monkeypatch):
    put(page, '../../evil.dm4', b'no micrograph')
    assert 'role="alert"' in page.status.value and 'evil.dm4' in page.status.value and not page.results.children
    assert not os.listdir(page.folder.name) and not page.sample.disabled
    monkeypatch.setattr(app, 'MOST', 5)
    put(page, 'big.tif', b'0123456789')
    assert 'command line' in page.status.value


def test_names_are_no_markup(page):
    put(page, '<img src=x onerror=alert(1)>.tif', b'nothing')
    assert '<img' not in page.status.value and '&lt;img' in page.status.value


def test_correlation_is_the_best_over_shifts():
    a = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    assert app.correlation(a, torch.stack([3*a.roll((4, 7), (0, 1)) + 2, -a])).tolist()[0] == pytest.approx(1, abs=1e-5)
    assert app.correlation(a, -a[None]).item() < .5


def test_the_sample_shows_particles_and_files(page, monkeypatch):
    monkeypatch.setattr('nanoshape.studies.experiments.shared_data', lambda: None)
    monkeypatch.setattr(app, 'VIEWS', 2)
    page._guarded(page._sample)
    assert 'role="status"' in page.status.value and len(page.results.children) == 3
    files, (stage, _) = page.results.children[0].value, page.results.children[1].children
    assert 'download="particles.csv"' in files and 'download="report.html"' in files and 'nm per pixel' in files
    spots = stage.children[1:]
    assert len(spots) == len(page.table) and all(re.fullmatch(r'-?\d+px', b.layout.left) and b.tooltip for b in spots)
    spots[0].click()
    assert 'alt="the particle' in page.one.value and 'Particle 1' in page.status.value


def test_nothing_is_simulated_beside_an_undetermined_particle(page, grey, monkeypatch):
    shapes, simulated = stand_in(Sure(), classes=['cube', 'octahedron'], threshold=.7, feret_range_nm=[1, 4.5]), []
    monkeypatch.setattr(app, 'default_shape_network', lambda: shapes)
    monkeypatch.setattr(app, 'default_crystallinity_network', lambda: None)
    monkeypatch.setattr(app, 'default_detector', Detector)
    monkeypatch.setattr(app, 'best_matching_view', lambda field, *a: simulated.append(a[1]) or (field, .5))
    page.analyse(Micrograph(grey.astype(np.float32), .6, 'discs'))
    withheld, named = page.table.sort_values('shape_withheld', ascending=False).label
    page.choose(withheld)
    assert not simulated and 'undetermined' in page.one.value and 'simulation' not in page.one.value
    page.choose(named)
    assert simulated == ['octahedron'] and 'simulation' in page.one.value
    rows = page._rows()
    assert rows.count('0.99') == 1 and 'undetermined' in rows and 'nan' not in rows.lower()


@pytest.fixture(scope='module')
def address():
    """`nanoshape app` in a process of its own: the address with the token."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    p = subprocess.Popen([*COMMAND, 'app', '--port', str(port), '--no-browser'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                         text=True)

    def answers():
        assert p.poll() is None, 'the server has stopped'
        try:
            urllib.request.urlopen(url.split('/?')[0] + '/voila/static/none', timeout=5).close()
            return True
        except urllib.error.HTTPError as e:  # that there is no such file, or none for whom it does not know, is an answer, too
            return e.code < 500
        except OSError:  # not yet
            return False
    try:
        url = re.search(r'http://localhost:\d+/\?token=\S+', p.stdout.readline())[0]
        wait_for(answers)
        yield url
    finally:
        p.kill()
        p.wait()


def test_only_who_has_the_token_is_let_in(address):
    base, token = address.split('/?token=')
    answer = urllib.request.urlopen(base + '/', timeout=300)
    assert '/login' in answer.url and 'Page()' not in answer.read().decode() and len(token) > 15


@pytest.mark.parametrize('origin, status', [('own', 101), ('http://elsewhere.example', 403)])
def test_a_page_of_another_site_cannot_use_the_kernel(address, origin, status):
    """Not even with the token and a kernel's name."""
    base, token = address.split('/?token=')
    with urllib.request.urlopen(address, timeout=300) as page:
        text = ''
        while not (kernel := re.search(r'"kernelId": ?"([0-9a-f-]{36})"', text)): text += page.read1().decode()
        host = base.removeprefix('http://')
        with socket.create_connection(host.split(':'), timeout=60) as s:
            lines = [f'GET /api/kernels/{kernel[1]}/channels?token={token} HTTP/1.1', f'Host: {host}', 'Upgrade: websocket', 'Connection: Upgrade',
                     'Sec-WebSocket-Version: 13', 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==', f'Origin: {base if origin == "own" else origin}']
            s.sendall('\r\n'.join([*lines, '', '']).encode())
            assert int(s.recv(1000).split()[1]) == status


@pytest.fixture(scope='module')
def tab(address):
    """The page in headless Chromium."""
    where = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not where:
        pytest.skip('Chromium is not installed')
    from playwright.sync_api import sync_playwright
    quiet = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
             '--disable-sync']
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=where, args=quiet)
        t = browser.new_page(viewport={'width': 1280, 'height': 1100}, accept_downloads=True)
        t.set_default_timeout(300_000)
        t.goto(address)
        t.get_by_role('button', name='Take the sample').wait_for()
        yield t
        browser.close()


def shown(tab, name):
    """Keep a picture of the page where PAGE_SHOTS names a folder for it."""
    if os.environ.get('PAGE_SHOTS'):
        tab.screenshot(path=Path(os.environ['PAGE_SHOTS'])/f'{name}.png', full_page=True)


def give(tab, file):
    """Choose a file as a user does."""
    with tab.expect_file_chooser() as asked:
        tab.get_by_role('button', name='Choose a micrograph').click()
    asked.value.set_files(file)


def test_in_a_browser_a_bad_file_is_refused(tab):
    shown(tab, 'start')
    give(tab, {'name': 'notes.dm4', 'mimeType': '', 'buffer': b'no micrograph'})
    alert = tab.get_by_role('alert')
    alert.wait_for()
    assert 'notes.dm4' in alert.inner_text()
    shown(tab, 'refused')


def test_in_a_browser_a_file_can_be_dropped(tab):
    dropped = tab.evaluate_handle("""() => { const d = new DataTransfer(); d.items.add(new File(['no micrograph'], 'dropped.dm4')); return d; }""")
    tab.dispatch_event('body', 'drop', {'dataTransfer': dropped})
    tab.get_by_role('alert').filter(has_text='dropped.dm4').wait_for()


def test_in_a_browser_a_micrograph_is_read(tab, tmp_path):
    from nanoshape.datasets.recipes import load_recipe
    from nanoshape.studies.experiments import simulated_micrograph
    m, _ = simulated_micrograph(load_recipe(ROOT/'data/recipes/demo.yaml'), 5)
    grey = np.uint8(255*(m.image - m.image.min())/np.ptp(m.image))
    Image.fromarray(grey).save(tmp_path/'mine.png')
    tab.get_by_label('nm per pixel').fill(f'{m.sampling/NM:.5f}')
    tab.get_by_label('nm per pixel').press('Enter')
    give(tab, tmp_path/'mine.png')
    tab.locator('button.np-spot').first.wait_for()
    with tab.expect_download() as got:
        tab.get_by_text('Download particles.csv').click()
    table = pd.read_csv(got.value.path())
    assert len(table) == tab.locator('button.np-spot').count() > 0
    with tab.expect_download() as got:
        tab.get_by_text('Download report.html').click()
    assert 'mine' in Path(got.value.path()).read_text()
    shown(tab, 'particles')


def test_in_a_browser_a_particle_is_chosen_with_the_keyboard(tab):
    spots = tab.locator('button.np-spot')
    if not spots.count():
        tab.get_by_role('button', name='Take the sample').click()
        spots.first.wait_for()
    tab.get_by_role('button', name='Take the sample').focus()
    for _ in range(12):
        tab.keyboard.press('Tab')
        if 'np-spot' in (tab.evaluate('document.activeElement.className') or ''):
            break
    number = tab.evaluate('document.activeElement.innerText')
    tab.keyboard.press('Enter')
    tab.get_by_alt_text('the particle').wait_for()
    assert f'Particle {number}' in tab.get_by_role('status').inner_text()
    shown(tab, 'chosen')
