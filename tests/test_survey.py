"""A folder of micrographs."""
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from conftest import stand_in, wait_for
from dm import write_dm
from PIL import Image

from nanoshape.cli import main
from nanoshape.core import UserError
from nanoshape.learn.models import build
from nanoshape.learn.network import Card, Network
from nanoshape.micrographs import survey as room
from nanoshape.micrographs.detection import Detector
from nanoshape.micrographs.survey import (answer_counts, one_row_per_particle, lognormal_fit, micrograph_files, movie_files, natural,
                                          pixel_size, survey, tracks)


class Coin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor([0., 1.5]))

    def forward(self, x):
        return self.bias + x.std((1, 2, 3))[:, None]


def coin(threshold=.7):
    return stand_in(Coin(), classes=['cube', 'octahedron'], threshold=threshold, feret_range_nm=[1, 9])


@pytest.fixture
def folder(tmp_path, grey):
    (tmp_path/'session').mkdir()
    for k in range(2):
        Image.fromarray(np.roll(grey, 4*k, 1)).save(tmp_path/f'session/{k}.png')
    write_dm(tmp_path/'session/a.dm3', grey, .06)
    (tmp_path/'session/notes.txt').write_text('not looked at')
    (tmp_path/'session/bad.tif').write_text('no image')
    return tmp_path/'session'


def stamps(out):
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob('*/run.json')}


def test_bad_files_are_listed_and_the_others_go_on(folder, tmp_path):
    particles, failed = survey(folder, coin(), tmp_path/'out', sampling=.6)
    assert list(failed) == ['bad.tif'] and 'damaged' in failed['bad.tif'] and set(particles.file) == {'0.png', '1.png', 'a.dm3'}
    assert len(particles) == len(pd.read_csv(tmp_path/'out/particles.csv')) == 6
    again = pd.read_parquet(tmp_path/'out/particles.parquet')
    assert np.allclose(again.feret_max_nm, particles.feret_max_nm) and (again.file == particles.file).all()
    page = (tmp_path/'out/report.html').read_text()
    assert 'bad.tif' in page and 'href="a.dm3/report.html"' in page and '<img src="data:image/png' in page
    labels = tifffile.imread(tmp_path/'out/0.png/0_labels.tif')
    t = pd.read_csv(tmp_path/'out/0.png/particles.csv')
    assert set(np.unique(labels)) == {0, *t.label} and all(labels[round(r.y_px), round(r.x_px)] == r.label for r in t.itertuples())
    summary = json.loads((tmp_path/'out/survey.json').read_text())
    assert summary['finished'] and list(summary['failed']) == ['bad.tif']


def test_a_second_run_does_what_is_missing_or_has_changed(folder, tmp_path, grey, monkeypatch):
    done = []
    real = room.write_report
    def stops(m, *a, **k):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(m.name)
        return real(m, *a, **k)
    monkeypatch.setattr(room, 'write_report', stops)
    with pytest.raises(KeyboardInterrupt):
        survey(folder, coin(), tmp_path/'out', sampling=.6)
    monkeypatch.setattr(room, 'write_report', real)
    before = stamps(tmp_path/'out')
    assert len(before) == 2
    survey(folder, coin(), tmp_path/'out', sampling=.6)
    after = stamps(tmp_path/'out')
    assert len(after) == 3 and all(after[k] == before[k] for k in before)
    Image.fromarray(np.roll(grey, 9, 1)).save(folder/'1.png')
    os.utime(folder/'1.png', ns=(1, 1))
    survey(folder, coin(), tmp_path/'out', sampling=.6)
    third = stamps(tmp_path/'out')
    assert {k for k in third if third[k] != after[k]} == {'1.png'}
    survey(folder, coin(.9), tmp_path/'out', sampling=.6)
    assert all(stamps(tmp_path/'out')[k] != third[k] for k in third), 'another network: all anew'


def test_a_movie_is_followed_image_by_image(tmp_path, grey):
    (tmp_path/'session').mkdir()
    stack = np.stack([np.roll(grey, 3*k, 1) for k in range(4)])
    tifffile.imwrite(tmp_path/'session/m.tif', stack, imagej=True, resolution=(1/.06, 1/.06), metadata={'unit': 'nm', 'axes': 'TYX'})
    particles, failed = survey(tmp_path/'session', coin(), tmp_path/'out')
    assert not failed and particles.groupby('frame').size().tolist() == [2, 2, 2, 2] and (tmp_path/'out/m.tif/0003/report.html').is_file()
    ways = particles.sort_values('frame').groupby('track').x_nm.agg(list)
    assert len(ways) == 2 and all(np.allclose(np.diff(w), .18, atol=.03) for w in ways)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'out').rglob('run.json')}
    survey(tmp_path/'session', coin(), tmp_path/'out')
    assert before == {p: p.stat().st_mtime_ns for p in before} and 'href="m.tif/"' in (tmp_path/'out/report.html').read_text()
    one, _ = survey(tmp_path/'session', coin(), tmp_path/'one', frame=2)
    assert len(one) == 2 and (tmp_path/'one/m.tif/0002/report.html').is_file()
    again, _ = survey(tmp_path/'session', coin(), tmp_path/'out', frame=2)
    assert len(again) == 2 and again.x_nm.tolist() == particles[particles.frame == 2].x_nm.tolist()
    card = Card(arch='cnn4', classes=[*'abcde'], sampling=.78, gpts=64, threshold=.7, feret_range_nm=[1, 9])
    Network(build('cnn4', 5), card).save(tmp_path/'m.safetensors')
    args = ['analyse', str(tmp_path/'session/m.tif'), '--model', str(tmp_path/'m.safetensors'), '--out', str(tmp_path/'movie')]
    assert main(args) == 0 and (tmp_path/'movie/m.tif/0000/report.html').is_file() and main([*args[:-1], str(tmp_path/'still'), '--frame', '1']) == 0
    assert (tmp_path/'still/report.html').is_file()


def test_an_image_of_a_movie_that_is_blank_is_named_and_the_others_count(tmp_path, grey):
    stack = np.stack([grey, np.full_like(grey, 90), grey])
    tifffile.imwrite(tmp_path/'m.tif', stack, imagej=True, resolution=(1/.06, 1/.06), metadata={'unit': 'nm', 'axes': 'TYX'})
    particles, failed = survey(tmp_path/'m.tif', coin(), tmp_path/'out')
    assert set(particles.frame) == {0, 2} and list(failed) == ['m.tif [1]'] and 'same everywhere' in failed['m.tif [1]']
    assert '>m.tif [1]<' in (tmp_path/'out/report.html').read_text()


def test_a_movie_of_two_particles_has_two_particles(tmp_path, grey):
    tifffile.imwrite(tmp_path/'m.tif', np.stack([grey]*12), imagej=True, resolution=(1/.06, 1/.06), metadata={'unit': 'nm', 'axes': 'TYX'})
    particles, _ = survey(tmp_path/'m.tif', coin(), tmp_path/'out')
    assert len(particles) == 24 and len(one_row_per_particle(particles)) == 2 and pd.read_csv(tmp_path/'out/shapes.csv').n.sum() == 2
    assert '1 micrograph, 2 particles' in (tmp_path/'out/report.html').read_text()


def test_planes_stay_texts_however_much_they_look_like_numbers(folder, tmp_path, monkeypatch):
    real = room.write_report
    def one_spot(m, network, out, *a, **k):
        real(m, network, out, *a, **k)
        t = pd.read_csv(out/'particles.csv')
        t['planes'], t['zone_axis'], t['spacings_nm'] = ('011', '001', '0.235') if m.name == '0.png' else ('111 200', '', '0.235 0.204')
        t.to_csv(out/'particles.csv', index=False)
    monkeypatch.setattr(room, 'write_report', one_spot)
    particles, _ = survey(folder, coin(), tmp_path/'out', sampling=.6)
    again = pd.read_parquet(tmp_path/'out/particles.parquet')
    assert set(again[again.file == '0.png'].planes) == {'011'} and set(again.zone_axis) == {'001', ''} and again.planes.equals(particles.planes)


def test_other_weights_under_the_same_card_analyse_anew(folder, tmp_path):
    survey(folder, coin(), tmp_path/'out', sampling=.6)
    before, other = stamps(tmp_path/'out'), coin()
    other.module.bias.data += .1
    survey(folder, other, tmp_path/'out', sampling=.6)
    assert all(stamps(tmp_path/'out')[k] != v for k, v in before.items())


def test_odd_names_are_linked_or_refused_and_stop_nobody(folder, tmp_path, grey):
    Image.fromarray(grey).save(folder/'5%CeO2 #3.png')
    try: (folder/os.fsdecode(b'Probe_\xb5.png')).write_bytes((folder/'0.png').read_bytes())
    except OSError: pytest.skip('this file system takes Unicode names only')
    particles, failed = survey(folder, coin(), tmp_path/'out', sampling=.6)
    assert {'5%CeO2 #3.png', '0.png', '1.png', 'a.dm3'} == set(particles.file) and any('rename' in v for v in failed.values())
    assert 'href="5%25CeO2%20%233.png/report.html"' in (tmp_path/'out/report.html').read_text()


@pytest.mark.parametrize('name', ['$a_$ b.png', 'x'*236 + '.png', 'two\nlines.png', '<img src=x onerror=alert(1)>.png', 'é'*120 + '.png'],
                         ids=['dollars', 'long', 'newline', 'markup', 'long in bytes'])
def test_an_odd_name_costs_nothing(folder, tmp_path, name):
    try: (folder/name).write_bytes((folder/'0.png').read_bytes())
    except OSError: pytest.skip('this file system does not take the name')
    particles, failed = survey(folder, coin(), tmp_path/'out', sampling=.6)
    assert set(particles.file) == {'0.png', '1.png', 'a.dm3', name} and list(failed) == ['bad.tif']
    pages = [p.read_text() for p in (tmp_path/'out'/name/'report.html', tmp_path/'out/report.html')]
    assert not any('<img src=x' in page for page in pages)
    assert len(list((tmp_path/'out'/name).glob('*_labels.tif'))) == 1


def test_a_bug_in_one_image_costs_that_image_only(folder, tmp_path, monkeypatch):
    real = room.write_report
    def odd(m, *a, **k):
        if m.name == '1.png': raise ZeroDivisionError('division\nby zero')
        return real(m, *a, **k)
    monkeypatch.setattr(room, 'write_report', odd)
    particles, failed = survey(folder, coin(), tmp_path/'out', sampling=.6)
    assert set(particles.file) == {'0.png', 'a.dm3'} and set(failed) == {'1.png', 'bad.tif'}
    assert 'ZeroDivisionError: division by zero' in failed['1.png'] and failed['1.png'] in (tmp_path/'out/report.html').read_text()
    def full(*a, **k): raise OSError(errno.ENOSPC, 'full')
    monkeypatch.setattr(room, 'write_report', full)
    with pytest.raises(OSError): survey(folder, coin(), tmp_path/'full', sampling=.6)


def test_the_pictures_of_a_second_run_are_those_of_the_first(folder, tmp_path):
    import matplotlib as mpl
    pictures = lambda: re.findall(r'data:image/png[^"]+', (tmp_path/'out/report.html').read_text())
    with mpl.rc_context():
        survey(folder, coin(), tmp_path/'out', sampling=.6)
        first = pictures()
    mpl.rcdefaults()
    survey(folder, coin(), tmp_path/'out', sampling=.6)
    assert len(first) == 2 and pictures() == first


def test_several_magnifications_are_not_calibrated_as_one(folder, tmp_path, grey):
    write_dm(folder/'b.dm3', grey, .03)
    with pytest.raises(UserError, match='0.03 to 0.06 nm.*magnification'): pixel_size(folder)


def test_results_of_another_image_are_not_replaced(tmp_path, grey, capsys, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for day in ('day1', 'day2'):
        (tmp_path/day).mkdir()
        write_dm(tmp_path/day/'0001.dm3', grey, .06)
    args = ['--model', str(run[0]/'model.safetensors'), '--detector', 'darkness', '--out', str(tmp_path/'out')]
    assert main(['analyse', 'day1/0001.dm3', *args]) == 0
    before = (tmp_path/'out/run.json').read_text()
    assert main(['analyse', 'day2/0001.dm3', *args]) == 2 and 'day1' in capsys.readouterr().err and (tmp_path/'out/run.json').read_text() == before
    assert main(['analyse', 'day1/0001.dm3', *args]) == 0


def test_a_particle_that_jumps_or_is_missed_once_begins_a_new_track():
    rows = [dict(frame=k, x_nm=x, y_nm=0., equivalent_diameter_nm=4.) for k, x in ((0, 0.), (1, .5), (3, 1.), (4, 9.))]
    assert tracks(pd.DataFrame(rows)).tolist() == [1, 1, 2, 3]
    assert len(tracks(pd.DataFrame(rows)[:0])) == 0


def test_what_is_not_a_folder_of_micrographs(tmp_path):
    with pytest.raises(UserError, match='no file or folder'):
        micrograph_files(tmp_path/'none')
    (tmp_path/'a.txt').write_text('')
    with pytest.raises(UserError, match='holds no micrographs'):
        micrograph_files(tmp_path)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.tex').write_text('')
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path/'a.png')
    with pytest.raises(UserError, match='other things'):
        survey(tmp_path, coin(), tmp_path/'mine')
    assert (tmp_path/'mine/thesis.tex').is_file()


def test_the_command_with_a_folder(folder, tmp_path, capsys, run):
    out = tmp_path/'out'
    args = ['analyse', str(folder), '--pixel-size', '.06', '--out', str(out), '--model', str(run[0]/'model.safetensors')]
    assert main(args) == 1
    printed = capsys.readouterr()
    assert '3 micrographs, 6 particles' in printed.out and 'bad.tif' in printed.err
    (folder/'bad.tif').unlink()
    assert main(args) == 0
    assert main(['analyse', str(folder), '--out', str(folder.parent)]) == 2
    assert main(['analyse', str(folder), '--calibrate', 'Au', '--out', str(tmp_path/'c')]) == 2
    assert 'fringes' in capsys.readouterr().err and not (tmp_path/'c').exists()


def test_the_real_tiles_name_their_own_pixel_size(sintering):
    c = pixel_size(sintering)
    assert abs(c['sampling'] - .5886) < .004 and c['header'] is None  # 4.0 pixels per {111} of gold


def test_sizes_and_counts():
    d = np.exp(np.random.default_rng(0).normal(np.log(4), .2, 300))
    f = lognormal_fit(d)
    assert abs(f['median'] - 4) < 4*f['median_error'] and abs(f['sigma'] - .2) < 4*f['sigma_error']
    assert lognormal_fit([1, 2]) is None and lognormal_fit([3.]*9) is None
    t = answer_counts(pd.DataFrame({'shape': ['cube']*3 + ['undetermined']*2}), ['cube', 'octahedron'])
    assert t.n.tolist() == [3, 0, 2] and t.share[0] == 1 and t.low[0] < .5 and t.high[1] > .5
    assert answer_counts(pd.DataFrame({'shape': []}), ['cube']).n.sum() == 0


def test_a_particle_seen_often_has_one_crystallinity():
    seen = pd.DataFrame(dict(file='m', track=[1, 1, 1, 2], shape='cube', crystallinity=['crystalline', 'undetermined', 'crystalline', None],
                             equivalent_diameter_nm=4., border=False))
    once = one_row_per_particle(seen)
    assert once.crystallinity.tolist() == ['crystalline', 'undetermined'] and once['shape'].tolist() == ['cube']*2
    t = answer_counts(once, ['amorphous', 'crystalline'], 'crystallinity')
    assert t.crystallinity.tolist() == ['amorphous', 'crystalline', 'undetermined'] and t.n.tolist() == [0, 1, 1]


def test_where_nothing_can_be_read_there_is_a_sentence_and_an_empty_table(tmp_path, grey):
    (tmp_path/'session').mkdir()
    (tmp_path/'session/bad.tif').write_text('no image')
    with pytest.raises(UserError, match='no micrograph that could be read'):
        pixel_size(tmp_path/'session')
    g = np.random.default_rng(0)
    Image.fromarray(g.normal(150, 12, (200, 250)).clip(0, 255).astype(np.uint8)).save(tmp_path/'session/empty.png')
    particles, failed = survey(tmp_path/'session', coin(), tmp_path/'out', sampling=.6)
    assert len(particles) == 0 and list(failed) == ['bad.tif'] and (tmp_path/'out/particles.parquet').is_file()
    stack = np.stack([grey, np.roll(grey, 3, 1)])
    tifffile.imwrite(tmp_path/'m.tif', stack, imagej=True, resolution=(1/.06, 1/.06), metadata={'unit': 'nm', 'axes': 'TYX'})
    with pytest.raises(UserError, match='fringes of two kinds'):
        pixel_size(tmp_path/'m.tif')


class Odd(Detector):
    "Fails on 0.png, ends its process on 1.png, and takes its time with others where it is told to."
    def __init__(self, naps=None, out=None):
        super().__init__()
        self.naps, self.out = naps, out
    def find(self, m):
        if self.naps:
            (self.naps/f'{os.getpid()}.pid').write_text('')
            time.sleep(100)
        if m.name == '0.png': raise ZeroDivisionError('division by zero')
        if m.name == '1.png':
            (self.out/f'.1.png.{os.getpid()}-abcd.tmp').mkdir(parents=True)  # as `result_folder` names them
            if parent_process(): os.kill(os.getpid(), signal.SIGKILL)
        return super().find(m)


def results(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob('*')) if p.suffix in ('.csv', '.tif', '.parquet')}


def test_workers_give_what_one_process_gives(folder, tmp_path):
    (folder/'bad.tif').rename(folder/'0bad.tif')
    one, failed = survey(folder, coin(), tmp_path/'one', sampling=.6)
    many, failed_too = survey(folder, coin(), tmp_path/'many', sampling=.6, workers=2)
    assert many.equals(one) and failed_too == failed and [*failed] == ['0bad.tif']
    assert many.file.drop_duplicates().tolist() == ['0.png', '1.png', 'a.dm3']
    assert results(tmp_path/'many') == results(tmp_path/'one') and len(results(tmp_path/'one')) == 9
    before = stamps(tmp_path/'many')
    again, _ = survey(folder, coin(), tmp_path/'many', sampling=.6, workers=2)
    assert again.equals(one) and stamps(tmp_path/'many') == before


def test_a_worker_that_fails_or_dies_costs_one_file(folder, tmp_path):
    particles, failed = survey(folder, coin(), tmp_path/'out', detector=Odd(out=tmp_path/'out'), sampling=.6, workers=2)
    assert particles.file.unique().tolist() == ['a.dm3'] and [*failed] == ['0.png', '1.png', 'bad.tif']
    assert 'ZeroDivisionError' in failed['0.png'] and 'signal 9' in failed['1.png'] and 'damaged' in failed['bad.tif']
    assert not [*(tmp_path/'out').rglob('.*.tmp')] and failed['1.png'] in (tmp_path/'out/report.html').read_text()


def alive(pid):
    try: return 'Z' not in Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1]
    except OSError: return False


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL], ids=['stopped', 'killed'])
def test_workers_end_with_their_parent(folder, tmp_path, how):
    code = ('import sys; sys.path.insert(0, sys.argv[1]); from test_survey import *\n'
            'signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # a shell's background jobs, and what they start, ignore it
            "survey(sys.argv[2], coin(), sys.argv[3], detector=Odd(Path(sys.argv[4])), sampling=.6, workers=2)")
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, Path(__file__).parent, folder, tmp_path/'out', tmp_path],
                               stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len([*tmp_path.glob('*.pid')]) == 2)
    process.send_signal(how)
    words = process.communicate(timeout=180)[1]
    assert process.returncode and ('KeyboardInterrupt' in words) == (how == signal.SIGINT) and words.count('Traceback') < 2
    wait_for(lambda: not any(alive(p.stem) for p in tmp_path.glob('*.pid')), 30)
    assert not [*(tmp_path/'out').rglob('.*.tmp')]


def test_a_worker_that_was_ended_for_good_does_not_start_again(tmp_path):
    """A thread that was about to start one when the run was stopped gets an answer at once."""
    from nanoshape.micrographs.survey import _Worker
    worker = _Worker(b'never loaded', tmp_path)
    assert worker.end(over=True) == 0
    (table, failed), heard = worker('a.png')
    assert table is None and 'ended' in failed[''] and worker.process is None


def test_a_folder_of_few_particles_an_image_with_one_answer_for_all_is_not_believed(tmp_path, grey):
    (tmp_path/'session').mkdir()
    for k in range(6): Image.fromarray(np.roll(grey, 2*k, 1)).save(tmp_path/f'session/{k}.png')
    five, _ = survey(tmp_path/'session', coin(.5), tmp_path/'out', sampling=.6)
    assert set(five['shape']) == {'undetermined'} and set(five.reason) == {'in a folder that the network does not know'} and len(five) == 12
    page = (tmp_path/'out/report.html').read_text()
    assert '12 of 12 whole ones got the same first choice, octahedron' in page and 'no shapes' in page
    shapes = pd.read_csv(tmp_path/'out/shapes.csv').set_index('shape').n
    assert shapes.undetermined == 12 and shapes.octahedron == 0
    assert set(pd.read_csv(tmp_path/'out/0.png/particles.csv')['shape']) == {'octahedron'}  # two particles are too few to tell
    for k in (4, 5): (tmp_path/f'session/{k}.png').unlink()
    few, _ = survey(tmp_path/'session', coin(.5), tmp_path/'out', sampling=.6)
    assert set(few['shape']) == {'octahedron'} and len(few) == 8 and 'no shapes' not in (tmp_path/'out/report.html').read_text()


@pytest.fixture
def camera(tmp_path, grey):
    "A movie as in-situ cameras write it: frames 0, 1, 2 and, after a pause, 10; a picture of another size beside them."
    for k in (0, 1, 2, 10):
        (place := tmp_path/f'insitu/Hour_00/Minute_{k//10:02d}/Second_{k}').mkdir(parents=True)
        write_dm(place/'frame.dm4', np.roll(grey, 4*k, 1), .06, version=4)
    write_dm(tmp_path/'insitu/overview.dm4', grey[:100], .06, version=4)
    return tmp_path/'insitu'


def test_files_of_a_camera_are_one_movie(camera, tmp_path):
    files, odd = movie_files(camera)
    assert [f.parent.name for f in files] == ['Second_0', 'Second_1', 'Second_2', 'Second_10'] and [*odd] == ['overview.dm4']
    assert '250 × 100' in odd['overview.dm4'] and '250 × 200' in odd['overview.dm4']
    particles, failed = survey(camera, coin(), tmp_path/'out', movie=True, workers=2)
    assert failed == odd and set(particles.file) == {'insitu'} and set(particles.frame) == {*range(4)}
    ways = particles[particles.frame < 3].sort_values('frame').groupby('track').x_nm.agg(list)
    assert len(ways) == 2 and all(np.allclose(np.diff(w), .24, atol=.03) for w in ways)
    assert (tmp_path/'out/insitu/Hour_00/Minute_01/Second_10/frame.dm4/report.html').is_file()
    assert 'href="insitu/"' in (tmp_path/'out/report.html').read_text()


def test_subfolders_are_searched_where_that_is_asked_for(camera, tmp_path):
    (camera/'Hour_00/old').mkdir()
    survey(camera, coin(), camera/'Hour_00/old')  # its label images are no micrographs
    with pytest.raises(UserError, match='its subfolders do: add --recursive'): micrograph_files(camera/'Hour_00')
    assert [f.name for f in micrograph_files(camera)] == ['overview.dm4'] and len(micrograph_files(camera, recursive=True)) == 5
    particles, failed = survey(camera, coin(), tmp_path/'out', recursive=True)
    assert not failed and 'Hour_00/Minute_00/Second_1/frame.dm4' in set(particles.file) and particles.file.nunique() == 5
    page = (tmp_path/'out/report.html').read_text()
    assert 'href="Hour_00/Minute_00/Second_1/frame.dm4/report.html"' in page
    assert (tmp_path/'out/Hour_00/Minute_00/Second_1/frame.dm4/report.html').is_file()


def test_numbers_in_names_are_compared_as_numbers():
    names = ['a/2_10.dm4', 'a/2_9.dm4', 'b/1.dm4', 'a/10_1.dm4', 'a/frame.dm4']
    assert [str(p) for p in sorted(map(Path, names), key=natural)] == ['a/2_9.dm4', 'a/2_10.dm4', 'a/10_1.dm4', 'a/frame.dm4', 'b/1.dm4']
