"""The page: its widgets without a browser, who is let in, and a user in headless Chromium."""

import io
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from conftest import COMMAND, ROOT, stand_in, wait_for
from nanoshape import app
from nanoshape.core import NM
from nanoshape.micrographs.detection import Detector


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


def put(page, *files):
    """Upload (name, bytes) pairs, and wait for what they begin."""
    when = datetime(2026, 1, 1, tzinfo=timezone.utc)
    page.upload.value = tuple({'name': n, 'type': '', 'size': len(d), 'content': memoryview(d), 'last_modified': when} for n, d in files)
    page.wait()


def tiff(image, nm):
    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric='minisblack', **(dict(resolution=(1e7/nm, 1e7/nm), resolutionunit='CENTIMETER') if nm else {}))
    return file.getvalue()


@pytest.fixture
def quick(monkeypatch, grey):
    """Networks that know two shapes, particles found by darkness, and a micrograph of discs."""
    shapes = stand_in(Sure(), classes=['cube', 'octahedron'], threshold=.7, feret_range_nm=[1, 4.5])
    monkeypatch.setattr(app, 'default_networks', lambda: (shapes, None))
    monkeypatch.setattr(app, 'default_detector', Detector)
    return grey


def test_what_cannot_be_read_is_refused_and_nothing_stays(page, monkeypatch):
    put(page, ('../../evil.dm4', b'no micrograph'))
    assert 'role="alert"' in page.status.value and 'evil.dm4' in page.status.value and not page.results.children
    assert os.listdir(page.folder.name) == ['given'] and not page.sample.disabled
    assert not (Path(page.folder.name).parent.parent/'evil.dm4').exists()
    monkeypatch.setattr(app, 'MOST', 5)
    put(page, ('big.tif', b'0123456789'))
    assert 'command line' in page.status.value
    monkeypatch.setattr(app, 'MOST_FILES', 1)
    put(page, ('a.tif', b'0'), ('b.tif', b'0'))
    assert '2 files are more than 1' in page.status.value


@pytest.mark.parametrize('name, said', [('<img src=x onerror=alert(1)>.tif', '&lt;img src=x'), ('a$b$.tif', 'particles in a$b$.tif'),
                                        ('x'*252 + '.tif', 'cannot be kept under its name')])
def test_odd_names_are_no_markup_and_end_nothing(page, quick, name, said):
    put(page, (name, tiff(quick, .06)))
    assert '<img' not in page.status.value and said in page.status.value and page.work is None and not page.upload.disabled


def test_a_file_without_a_pixel_size_waits_for_it(page, quick):
    put(page, ('mine.tif', tiff(quick, None)))
    assert 'type it into the field' in page.status.value and '--' not in page.status.value and not page.again.disabled
    page.fields['pixel'].value = .06
    page.wait()
    assert 'role="status"' in page.status.value and len(page.table) == len(page.view.shapes) > 1
    put(page, ('mine.tif', tiff(quick, None)))  # the same file again
    assert page.results.children and page.m.sampling == pytest.approx(.6)
    page.fields['pixel'].value = 0


def test_a_person_says_metal_and_voltage(page, quick, monkeypatch):
    asked, plain = {}, app.write_report
    monkeypatch.setattr(app, 'write_report', lambda m, *a, **k: asked.update(k, voltage=m.voltage, Cs=m.Cs) or plain(m, *a, **k))
    page.fields['element'].value, page.fields['kv'].value, page.fields['cs'].value = 'Pt', 200, 1.2
    put(page, ('mine.tif', tiff(quick, .06)))
    assert asked['element'] == 'Pt' and asked['voltage'] == 200e3 and asked['Cs'] == pytest.approx(1.2e7)
    page.fields['element'].value, page.fields['kv'].value, page.fields['cs'].value = None, 0, 0


def test_frames_and_all_images(page, quick):
    put(page, ('movie.tif', tiff(np.stack([quick, quick[::-1], quick]), .06)))
    assert page.frame.max == 2 and page.frame.layout.display == '' and len(page.table)
    before = page.table.y_px.tolist()
    page.frame.value = 1
    page.wait()
    assert page.table.y_px.tolist() != before
    put(page, ('a.tif', tiff(quick, .06)), ('b.tif', tiff(quick, .06)))
    assert page.which.options == ('a.tif', 'b.tif') and page.frame.max == 0 and page.several.layout.display == ''
    page.every.click(); page.wait()
    assert 'in 2 images' in page.status.value and 'download="particles.csv"' in page.more.children[0].value
    assert '<iframe' in page.more.children[1].value


def test_outlines_are_corrected_by_hand(page, quick):
    put(page, ('mine.tif', tiff(quick, .06)))
    n, first = len(page.table), int(page.table.label.iloc[0])
    page._happened(dict(kind='drawn', points=[[3, 3], [14, 3], [14, 14], [3, 14], [3, 8]], n=1))
    assert len(page.view.shapes) == n + 1 and not page.measure.disabled
    page._happened(dict(kind='chosen', label=int(page.labels.max()), n=2))
    assert 'not measured yet' in page.status.value
    page._happened(dict(kind='removed', label=first, n=3))
    page._happened(dict(kind='drawn', points=[[3, 3], [3.2, 3], [3, 3.2]], n=4))
    assert 'role="alert"' in page.status.value
    page._measure_again(); page.wait()
    assert len(page.table) == n and abs(page.table.equivalent_diameter_nm.min() - 2*.66/np.pi**.5) < .15  # a square of 11 pixels


def test_what_takes_long_can_be_cancelled_and_a_fault_is_said(page, quick, monkeypatch, capsys):
    monkeypatch.setattr(app, 'write_report', lambda *a, **k: [time.sleep(.01) for _ in range(3000)])
    page._sample()
    assert page.waiting.layout.display == '' and page.sample.disabled
    page.cancel.click(); page.wait(25)
    assert 'Cancelled' in page.status.value and page.waiting.layout.display == 'none' and not page.sample.disabled
    monkeypatch.setattr(app, 'write_report', lambda *a, **k: 1/0)
    page._sample(); page.wait()
    assert 'unforeseen error of this program, please report it (ZeroDivisionError' in page.status.value and not page.sample.disabled
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_cancel_that_meets_a_destructor_is_said_again():
    class Deaf:
        def __del__(self):
            for _ in range(30): time.sleep(.01)

    def action(tell):
        Deaf()
        for _ in range(3000): time.sleep(.01)
    ends = []
    work = app.Work(action, ends.append)
    work.start()
    work.cancel()
    assert not work.is_alive() and isinstance(ends[0], app.Cancelled)


def test_correlation_is_the_best_over_shifts():
    a = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    assert app.correlation(a, torch.stack([3*a.roll((4, 7), (0, 1)) + 2, -a])).tolist()[0] == pytest.approx(1, abs=1e-5)
    assert app.correlation(a, -a[None]).item() < .5


def test_the_sample_shows_particles_and_files(page, monkeypatch):
    monkeypatch.setattr('nanoshape.studies.experiments.shared_data', lambda: None)
    monkeypatch.setattr(app, 'VIEWS', 2)
    page._sample(); page.wait()
    head, tools, middle, files, rows = page.results.children
    assert 'role="status"' in page.status.value and 'simulated' in head.value.lower() and 'nm per pixel' in head.value
    for name in ('particles.csv', 'particles.parquet', 'report.html', 'particles_rois.zip', 'particles.coco.json', '_labels.tif'):
        assert name in files.value
    assert len(page.view.shapes) == len(page.table) and all(s['path'].startswith('M') and s['text'] for s in page.view.shapes)
    page._happened(dict(kind='chosen', label=page.view.shapes[0]['label'], n=1))
    assert 'alt="the particle' in page.one.value and 'Particle 1' in page.status.value and page.view.chosen == 1


def test_a_fit_and_heights_are_shown_below(page, quick, monkeypatch):
    put(page, ('mine.tif', tiff(quick, .06)))
    def fake(m, *args, **kwargs):
        out = next(a for a in args if isinstance(a, Path))
        out.mkdir(exist_ok=True)
        (out/'report.html').write_text('<p>"report"</p>'); (out/'model_1.xyz').write_text('1')
        return pd.DataFrame(), 'One sentence.', False
    monkeypatch.setattr(app, 'write_fits', fake)
    monkeypatch.setattr(app, 'write_heights', lambda *a, **k: fake(*a)[1])
    monkeypatch.setattr(app, 'default_height_network', lambda material: None)
    for begin in (lambda: page._fit(1, 'Au'), lambda: page._heights('Au')):
        page.more.children = ()
        begin(); page.wait()
        assert 'One sentence.' in page.status.value and 'model_1.xyz' in page.more.children[0].value
        assert '&lt;p&gt;&quot;report' in page.more.children[1].value and 'sandbox="allow-scripts' in page.more.children[1].value
    page.choose(int(page.table.label.iloc[0]))
    assert page.buttons.children[0].disabled and 'no lattice' in page.buttons.children[1].value


def test_nothing_is_simulated_beside_an_undetermined_particle(page, quick, monkeypatch):
    simulated = []
    monkeypatch.setattr(app, 'best_matching_view', lambda field, *a: simulated.append(a[1]) or (field, .5))
    put(page, ('discs.tif', tiff(quick, .06)))
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
        t = browser.new_page(viewport={'width': 1400, 'height': 1100}, accept_downloads=True)
        t.set_default_timeout(90_000)
        t.elsewhere = []  # what was fetched from other machines
        t.on('response', lambda r: None if r.url.startswith((address.split('/?')[0], 'data:', 'blob:')) else t.elsewhere.append(r.url))
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
        tab.get_by_role('button', name='Drop micrographs here').click()
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


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    """A picture without a pixel size, and that size in nm."""
    from nanoshape.datasets.recipes import load_recipe
    from nanoshape.studies.experiments import simulated_micrograph
    m, _ = simulated_micrograph(load_recipe(ROOT/'data/recipes/demo.yaml'), 5)
    path = tmp_path_factory.mktemp('mine')/'<img src=x onerror=document.title=1>.png'
    Image.fromarray(np.uint8(255*(m.image - m.image.min())/np.ptp(m.image))).save(path)
    return path, m.sampling/NM


def test_in_a_browser_a_picture_is_asked_for_its_pixel_size_and_read(tab, mine):
    path, nm = mine
    give(tab, path)
    tab.get_by_role('alert').filter(has_text='does not say its pixel size').wait_for()
    tab.get_by_label('nm per pixel').fill(f'{nm:.5f}')
    tab.get_by_label('nm per pixel').press('Enter')
    tab.locator('.nv-one').first.wait_for()
    with tab.expect_download() as got:
        tab.get_by_text('Download particles.csv').click()
    table = pd.read_csv(got.value.path())
    assert len(table) == tab.locator('.nv-one').count() > 0 and tab.title() != '1'
    with tab.expect_download() as got:
        tab.get_by_text('Download report.html').click()
    assert 'onerror=document' in Path(got.value.path()).read_text()
    shown(tab, 'particles')


def particles(tab, mine):
    """The outlines; of the same picture once more if there are none."""
    if not tab.locator('.nv-one').count(): test_in_a_browser_a_picture_is_asked_for_its_pixel_size_and_read(tab, mine)
    return tab.locator('.nv-one')


def test_in_a_browser_a_particle_is_chosen_with_the_keyboard(tab, mine):
    one = particles(tab, mine).first
    tab.get_by_role('button', name='show the whole image').focus()
    tab.keyboard.press('Tab')
    assert 'nv-one' in tab.evaluate('document.activeElement.getAttribute("class")')
    number = one.get_attribute('data-label')
    tab.keyboard.press('Enter')
    tab.get_by_alt_text('the particle').wait_for()
    tab.get_by_role('status').filter(has_text=f'Particle {number}').wait_for()
    shown(tab, 'chosen')


def centre(box): return box['x'] + box['width']/2, box['y'] + box['height']/2


@pytest.mark.parametrize('width', [1400, 390])
def test_in_a_browser_outlines_stay_on_their_particles_at_any_width_and_zoom(tab, mine, width):
    """The share of the image at which an outline lies is the same, and a click in its middle chooses it."""
    some = particles(tab, mine)
    tab.set_viewport_size({'width': width, 'height': 1000})
    tab.wait_for_timeout(400)
    try:
        assert tab.evaluate('document.documentElement.scrollWidth') <= width + 1
        tab.get_by_role('button', name='show the whole image').click()
        image, one = tab.locator('.nv-picture image').bounding_box(), some.nth(1).bounding_box()
        at = [(c - image[k])/image[s] for c, k, s in zip(centre(one), 'xy', ('width', 'height'))]
        tab.get_by_role('button', name='zoom in').click()
        larger, moved = tab.locator('.nv-picture image').bounding_box(), some.nth(1).bounding_box()
        again = [(c - larger[k])/larger[s] for c, k, s in zip(centre(moved), 'xy', ('width', 'height'))]
        assert larger['width'] > 1.3*image['width'] and again == pytest.approx(at, abs=.004)
        tab.get_by_role('button', name='show the whole image').click()
        tab.mouse.click(*centre(some.nth(1).bounding_box()))
        tab.get_by_role('status').filter(has_text=f'Particle {some.nth(1).get_attribute("data-label")}:').wait_for()
        shown(tab, f'wide_{width}')
    finally: tab.set_viewport_size({'width': 1400, 'height': 1100})


def test_in_a_browser_an_outline_is_drawn_and_another_removed(tab, mine):
    some = particles(tab, mine)
    n = some.count()
    tab.get_by_role('button', name='Draw an outline').click()
    tab.locator('.nv[data-mode=draw]').wait_for()
    tab.locator('.nv-picture').scroll_into_view_if_needed()
    box = tab.locator('.nv-picture image').bounding_box()
    x, y = box['x'] + 30, box['y'] + 30
    tab.mouse.move(x, y); tab.mouse.down()
    for k in range(1, 13): tab.mouse.move(x + 15*np.sin(k/2), y + 15*(1 - np.cos(k/2)))
    tab.mouse.up()
    tab.get_by_role('status').filter(has_text=f'{n + 1} particles outlined').wait_for()
    tab.get_by_role('button', name='Remove').click()
    tab.locator('.nv[data-mode=remove]').wait_for()
    some.first.press('Enter')
    tab.get_by_role('status').filter(has_text=f'{n} particles outlined').wait_for()
    tab.get_by_role('button', name='Look').click()
    tab.get_by_role('button', name='Measure again').click()
    tab.get_by_role('status').filter(has_text='median equivalent diameter').wait_for()
    assert some.count() == n
    shown(tab, 'corrected')


def test_in_a_browser_nothing_comes_from_another_machine(tab, mine):
    particles(tab, mine)
    assert not tab.elsewhere
    assert tab.evaluate("fetch('https://example.com').then(() => 'fetched', () => 'refused')") == 'refused'


def test_in_a_browser_a_second_visitor_sees_nothing_of_the_first(tab, mine, address):
    particles(tab, mine)
    other = tab.context.browser.new_context().new_page()
    other.goto(address)
    other.get_by_role('button', name='Take the sample').wait_for()
    assert not other.locator('.nv-one').count() and 'onerror' not in other.inner_text('body')
    other.context.close()


def test_in_a_browser_a_report_in_its_frame_turns_its_model_and_reaches_nothing_else(tab):
    from nanoshape.micrographs.report import html_page, turnable_atoms
    atoms = turnable_atoms(np.random.default_rng(0).normal(size=(40, 3)))
    picture = dict(title='model', text='', alt='', src='data:,', atoms=atoms)
    page = tab.context.browser.new_context().new_page()
    page.set_content(app.framed(html_page('<b>x</b>', 'all', pd.DataFrame({'label': [1]}), [picture])))
    frame = page.frames[-1]
    canvas = frame.locator('canvas')
    canvas.wait_for()
    before = canvas.screenshot()
    canvas.focus()
    for _ in range(5): page.keyboard.press('ArrowRight')
    page.wait_for_timeout(300)
    assert canvas.screenshot() != before
    assert frame.evaluate('(() => { try { return parent.document.title } catch (e) { return e.name } })()') == 'SecurityError'
    page.context.close()
