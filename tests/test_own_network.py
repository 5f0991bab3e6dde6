"""A network of one's own: what is refused, what is said beforehand, and what `analyse` makes of it."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, one_sentence
from nanoshape.cli import main
from nanoshape.core import NM, UserError, read_json
from nanoshape.datasets.recipes import load_recipe
from nanoshape.learn.defaults import default_shape_network
from nanoshape.learn.evaluate import UNKNOWN
from nanoshape.learn.multi_task import slices
from nanoshape.learn.network import Network
from nanoshape.micrographs.kinds import NUMBERS, answer_names, classify_kinds, field_sampling
from nanoshape.micrographs.particles import probability_columns
from nanoshape.micrographs.reading import Micrograph
from nanoshape.micrographs.report import write_report
from nanoshape.micrographs.survey import survey
from nanoshape.studies.own_network import knowledge, own_network

SMALL = dict(structures=40, gpts=192, box_nm=6, out_gpts=64, wave_gpts=128, element='Pt', energy_kev=200, Cs_um=1200,
             size_nm={'uniform': [1.5, 3]}, shift_nm=.4, defocus_nm={'uniform': [40, 90]})
SET = [f'--set={k}={str(v).replace(chr(39), "")}' for k, v in SMALL.items()]


@pytest.fixture(scope='module')
def recipe():
    return load_recipe(ROOT/'data/recipes/open_world.yaml', **SMALL)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """`nanoshape train`, at the size of a smoke."""
    out = tmp_path_factory.mktemp('train')/'out'
    assert main(['train', 'open_world', *SET, '--steps', '4', '--workers', '1', '--out', str(out)]) == 0
    return out


@pytest.fixture(scope='module')
def sure(trained):
    """A network that is sure of one crystal, whatever it sees, and finds nothing strange."""
    network = Network.load(trained/'model.safetensors')
    last = network.module.head[-1]
    with torch.no_grad():
        last.weight.zero_(); last.bias.zero_()
        last.bias[slices()['crystal'].start + answer_names(network.card).index('one crystal')] = 9
        last.bias[slices()['outline'].start] = 9
    other = network.card.other | dict(thresholds=[.5]*9, least_confidence=[.5]*9, distance_max=1e9, temperatures={})
    return network.with_card(other=other, feret_range_nm=(.5, 9))


def lattice_image(n=160, sampling=.5, element_a=4.08, radius=20.):
    """A dark disc with {111} fringes of a metal, in the middle."""
    y, x = (np.mgrid[:n, :n] - n/2)*sampling
    g = np.random.default_rng(0)
    inside = np.hypot(y, x) < radius
    fringes = np.cos(2*np.pi*x*3**.5/element_a)
    return Micrograph((1000 + 12*g.normal(size=(n, n)) - inside*(250 + 150*fringes)).astype(np.float32), sampling, 'disc'), inside.astype(int)


def test_a_trained_network_is_what_analyse_takes(trained, recipe):
    card = default_shape_network(trained/'model.safetensors').card
    test = card.test['test']
    assert card.recipe['element'] == 'Pt' and test['n'] == np.sum(test['confusion']) == 2*4
    page = (trained/'report.html').read_text()
    assert 'confusion matrix' in page and not [*trained.rglob('state.pt')]
    assert all(line.split(':')[0] in page for line in knowledge(recipe))
    assert len(pd.read_csv(trained/'test.csv')) == test['n']


def test_a_second_run_trains_nothing_and_other_settings_are_refused(trained, capsys):
    before = (trained/'model.safetensors').stat().st_mtime_ns
    ask = ['train', 'open_world', *SET, '--workers', '1', '--out', str(trained)]
    assert main([*ask, '--steps', '4']) == 0 and (trained/'model.safetensors').stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*ask, '--steps', '5']) == 2
    assert 'other settings' in capsys.readouterr().err


@pytest.mark.parametrize('more, said', [
    (['shape_study', '--set', 'kind=grains'], 'recipe of grains'), (['no_such_recipe'], 'no file'),
    (['open_world', '--set', 'energy'], 'KEY=VALUE'), (['open_world', '--set', 'enrgy_kev=200'], 'enrgy_kev'),
    (['open_world', '--set', 'dose=[1, '], '--set dose'), (['open_world', '--set', 'energy_kev=1e3'], 'energy_kev')])
def test_mistakes_get_a_sentence(more, said, tmp_path, capsys):
    assert main(['train', *more, '--out', str(tmp_path/'out')]) == 2
    text = capsys.readouterr().err
    assert said in text and text.count('\n') == 1 and not (tmp_path/'out').exists()


def test_recipes_of_other_kinds_and_strange_folders_are_refused(recipe, tmp_path, trained):
    with pytest.raises(UserError) as e: own_network(load_recipe(ROOT/'data/recipes/ceria_heights.yaml'), tmp_path/'a')
    assert 'columns' in one_sentence(e)
    (tmp_path/'notes.txt').write_text('mine')
    with pytest.raises(UserError) as e: own_network(recipe, tmp_path)
    assert 'not empty' in one_sentence(e) and (tmp_path/'notes.txt').read_text() == 'mine'
    with pytest.raises(UserError) as e: own_network(load_recipe(ROOT/'data/recipes/tiny.yaml'), tmp_path/'b', trained/'model.safetensors')
    assert 'gives other answers' in one_sentence(e)


def test_a_recipe_of_particles_gives_a_network_for_shapes(tmp_path, capsys):
    """With its time said beforehand; another recipe's classes cannot go on from it."""
    ask = ['train', 'tiny', '--structures', '40', '--workers', '1']
    assert main([*ask, '--steps', '4', '--out', str(tmp_path/'out')]) == 0
    assert 'minutes of simulation' in capsys.readouterr().out
    network = default_shape_network(tmp_path/'out/model.safetensors')
    assert network.card.arch == 'fringes' and (tmp_path/'out/report.html').is_file()
    two = ['--set', f'classes=[{network.classes[0]}, {network.classes[1]}]', '--from', str(tmp_path/'out/model.safetensors')]
    assert main([*ask, *two, '--out', str(tmp_path/'two')]) == 2
    assert 'gives other answers' in capsys.readouterr().err and not (tmp_path/'two').exists()


def test_a_killed_training_ends_as_another(recipe, tmp_path, monkeypatch, one_thread):
    from nanoshape.learn import train as training
    from nanoshape.studies import own_network as room
    monkeypatch.setattr(training, 'bf16_pays', lambda *_: False)  # else measured, by a clock
    ask = dict(steps=4, bs=16, images=1, workers=0)
    whole = own_network(recipe, tmp_path/'whole', **ask)

    def killed(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(room, 'calibrated', killed)
        with pytest.raises(KeyboardInterrupt): own_network(recipe, tmp_path/'killed', **ask)
    log = (tmp_path/'killed/log.csv').read_bytes()  # with the clock: another training would write another one
    again = own_network(recipe, tmp_path/'killed', **ask)
    assert again.fingerprint == whole.fingerprint and (tmp_path/'killed/log.csv').read_bytes() == log


def test_kinds_are_named_and_withheld_with_a_reason(sure):
    m, labels = lattice_image()
    t = classify_kinds(m, labels, sure, 'Au')
    assert t.reason.item() == 'another element than trained on' and t.kind.item() == UNKNOWN
    assert np.isfinite(t.size_nm.item()) and np.isnan(t.roundness.item())
    m, labels = lattice_image(element_a=3.92)
    at = lambda **k: classify_kinds(replace(m, **k), labels, sure, 'Pt')
    t = at()
    assert t.kind.item() == 'one crystal' and not t.kind_withheld.item() and t.reason.item() == '' and '111' in t.planes.item()
    assert np.isfinite(t[list(NUMBERS)].to_numpy(float)).all() and t.prediction_set.item() == 'one crystal'
    assert at(voltage=200e3).kind.item() == 'one crystal' and at(voltage=300e3).reason.item() == 'another voltage than trained on'
    assert np.isnan(at(voltage=300e3).truncation.item()) and at(bright=True).reason.item() == 'bright particles, as in dark field'
    width = at().feret_max_nm.item()  # sizes are those of gold in the card: a particle of Pt counts 4 % wider
    for upper, reason in ((1.06*width, ''), (1.02*width, 'larger than trained on')):
        assert classify_kinds(m, labels, sure.with_card(feret_range_nm=(.5, upper)), 'Pt').reason.item() == reason
    flat = replace(m, image=np.where(labels, 700, 1000 + np.random.default_rng(1).normal(0, 12, labels.shape)).astype(np.float32))
    t = classify_kinds(flat, labels, sure, 'Pt')
    assert t.reason.item() == 'no plane of the element shows' and t.crystallinity.item() == UNKNOWN
    assert np.isnan(t.truncation.item()) and np.isfinite(t[['roundness', 'roundness_low', 'roundness_high']].to_numpy(float)).all()
    assert classify_kinds(m, 0*labels, sure, 'Pt').empty


def test_what_the_header_says_reaches_the_network(sure, monkeypatch):
    from nanoshape.micrographs import kinds
    heard, plain = [], kinds.answers
    monkeypatch.setattr(kinds, 'answers', lambda network, images, at, **h: heard.append((at, h)) or plain(network, images, at, **h))
    m, labels = lattice_image()
    classify_kinds(replace(m, voltage=200e3, Cs=1.2e7), labels, sure, 'Pt')
    classify_kinds(m, labels, sure)
    (pt, told), (_, nothing) = heard
    assert told == dict(energy_kev=200, element='Pt', Cs_um=1200) and set(nothing.values()) == {None}
    assert pt == field_sampling(sure.card, 'Pt') == pytest.approx(sure.card.sampling*3.92/4.08)


def test_a_report_and_a_folder_by_kinds(sure, tmp_path):
    import tifffile
    m, labels = lattice_image(element_a=3.92)

    class Given:
        network = sizes = None
        sure = .7
        def find(self, m): return labels, False
        def how(self, m): return 'given'
    t = write_report(m, sure, tmp_path/'one', detector=Given(), element='Pt')
    assert t.kind.tolist() == ['one crystal']
    page = (tmp_path/'one/report.html').read_text()
    assert 'Kinds determined: one crystal (1)' in page and 'Outline colour: kind' in page and read_json(tmp_path/'one/run.json')['finished']
    (tmp_path/'in').mkdir()
    for k in range(2): tifffile.imwrite(tmp_path/f'in/{k}.tif', m.image)
    particles, failed = survey(tmp_path/'in', sure, tmp_path/'out', detector=Given(), element='Pt', sampling=m.sampling)
    assert not failed and particles.kind.tolist() == ['one crystal']*2
    counts = pd.read_csv(tmp_path/'out/kinds.csv')
    assert counts.set_index('kind').n['one crystal'] == 2 and counts.kind.tolist() == [*answer_names(sure.card), UNKNOWN]
    far = pd.read_csv(tmp_path/'out/0.tif/particles.csv')
    assert {*probability_columns(answer_names(sure.card)), *NUMBERS} <= set(far) and far.size_nm.item() == pytest.approx(t.size_nm.item(), rel=1e-3)
    assert far.size_nm.item() < 2*m.field[0]/NM


@pytest.mark.parametrize('odd', [dict(thresholds=.5), dict(thresholds=['a']), dict(temperatures={'crystal': 0}), dict(temperatures=None),
                                 dict(distance_max='far'), dict(least_confidence=[2.]), dict(least_confidence=None),
                                 dict(answers={'crystal': []}), dict(answers={'crystal': ['a', 'b']}), dict(answers=7)])
def test_odd_cards_of_several_answers_are_refused(trained, tmp_path, odd):
    import json, shutil
    shutil.copy(trained/'model.safetensors', tmp_path/'m.safetensors')
    (tmp_path/'m.json').write_text(json.dumps(read_json(trained/'model.json') | odd))
    with pytest.raises(UserError) as e: default_shape_network(tmp_path/'m.safetensors')
    assert 'answers' in one_sentence(e)


def test_analyse_and_the_page_take_it(sure, tmp_path, monkeypatch, capsys):
    """With all the kept networks beside it, as on a person's machine."""
    import tifffile
    m, _ = lattice_image(n=320, element_a=3.92)
    tifffile.imwrite(tmp_path/'disc.tif', m.image)
    sure.save(tmp_path/'sure.safetensors')
    ask = ['analyse', str(tmp_path/'disc.tif'), '--pixel-size', '.05', '--model', str(tmp_path/'sure.safetensors'), '--element', 'Pt', '--kv', '200']
    assert main([*ask, '--cs', '1.2', '--out', str(tmp_path/'out')]) == 0
    t = pd.read_csv(tmp_path/'out/particles.csv')
    assert 'Kinds determined' in capsys.readouterr().out and 'one crystal' in set(t.kind)
    assert (t.crystallinity[t.kind == 'one crystal'] == 'monocrystalline').all() and 'Crystallinity' in (tmp_path/'out/report.html').read_text()

    from nanoshape import app
    monkeypatch.setattr(app, 'default_networks', lambda: (sure, None))
    page = app.Page()
    page._analyse(lambda: (m, ()), m.image.size)
    page.wait()
    page.choose(int(page.table.label.iloc[0]))
    assert 'equivalent diameter' in page.one.value and '<img' in page.one.value
