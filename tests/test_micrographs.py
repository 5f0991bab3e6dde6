"""Reading, refusing, finding and measuring."""
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage as ndi
from skimage import io, measure

from conftest import listed, shared, stand_in
from nanoshape.core import torch_rng
from nanoshape.micrographs.detection import segment
from nanoshape.micrographs.particles import classify, measure_lattice, measure_particles, noise_share, particle_fields
from nanoshape.simulate.microscope import Microscope, images
from nanoshape.micrographs.reading import Micrograph, read, resampled
from nanoshape.datasets.recipes import make_recipe
from nanoshape.datasets.samples import waves_of
from nanoshape.learn.network import Network


# ---- finding and measuring

def test_discs_are_found_and_measured(grey):
    m = Micrograph(grey.astype(np.float32), .6, 'discs')
    lab = segment(m)
    t = measure_particles(m, lab)
    assert len(t) == 2 and not t.border.any()
    assert np.allclose(sorted(t.equivalent_diameter_nm), (3.6, 5.04), atol=.15)
    assert np.allclose(t[['x_px', 'y_px']].sort_values('x_px'), [(70, 60), (180, 120)], atol=1.5)
    assert ((t.feret_max_nm >= t.equivalent_diameter_nm) & (t.feret_min_nm <= t.equivalent_diameter_nm*1.05)).all()


def test_noise_and_gradients_hold_no_particles():
    g = np.random.default_rng(1)
    for _ in range(5):
        assert segment(Micrograph(g.normal(100, 10, (300, 300)).astype(np.float32), .5, 'noise')).max() == 0
    correlated = ndi.gaussian_filter(g.normal(size=(300, 300)), 3)
    assert segment(Micrograph(correlated.astype(np.float32), .5, 'film')).max() == 0


def test_resampling_keeps_a_lattice_and_the_mean():
    n, s = 400, .4
    x = (np.arange(n) + .5)*s
    fringe = lambda x: 5 + np.cos(2*np.pi*(x[None]/2.35 + x[:, None]/7))
    got = resampled(fringe(x), s, .8)
    assert got.shape == (200, 200) and abs(got.mean() - 5) < .02
    assert np.abs(got - fringe((np.arange(200) + .5)*.8))[30:-30, 30:-30].max() < .1


def test_a_field_shows_its_particle_in_the_middle_and_no_other(grey):
    m = Micrograph(grey.astype(np.float32), .6, 'discs')
    lab = segment(m)
    t = measure_particles(m, lab)
    f = particle_fields(m, lab, t, .78, 128).numpy()
    ground = f[:, :10].mean()
    for k in range(2):
        dark = ndi.gaussian_filter(f[k], 2) < ground - 20
        cy, cx = ndi.center_of_mass(dark)
        assert abs(cy - 64) < 3 and abs(cx - 64) < 3
        d = 2*(dark.sum()*.078**2/np.pi)**.5
        assert abs(d - t.equivalent_diameter_nm[k]) < .4, 'the other particle was not painted over'


def test_answers_are_withheld_for_the_stated_reasons(grey, run):
    network = Network.load(run[0]/'model.safetensors')
    m = Micrograph(grey.astype(np.float32), .6, 'discs')
    lab = segment(m)
    reasons = lambda **c: set(classify(m, lab, network.with_card(**c)).reason)
    assert reasons(threshold=0., feret_range_nm=[1, 9]) == {''}
    assert reasons(threshold=1.01, feret_range_nm=[1, 9]) == {'low confidence'}
    assert reasons(threshold=0., feret_range_nm=[1, 2]) == {'larger than trained on'}
    assert reasons(threshold=0., feret_range_nm=[7, 9]) == {'smaller than trained on'}
    t = classify(m, lab, network.with_card(threshold=0., feret_range_nm=[1, 9]))
    p = t[[c for c in t if c.startswith('p_')]].to_numpy()
    assert np.allclose(p.sum(1), 1, atol=1e-5) and (t['shape'] == np.array(network.classes)[p.argmax(1)]).all()
    assert len(classify(m, lab*0, network)) == 0
    cut = Micrograph(m.image[:, 75:], .6, 'cut')
    assert 'touches the edge' in set(classify(cut, segment(cut), network.with_card(gpts=64, feret_range_nm=[1, 9])).reason)


# ---- withheld answers

class Sure(torch.nn.Module):
    """Scores of its own, the same for every field."""
    def __init__(self, *scores):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor([scores]))

    def forward(self, x):
        return self.scores.expand(len(x), -1)


class Alternating(Sure):
    """Sure of one class, and of another one for every third field."""
    def forward(self, x):
        return torch.where(torch.arange(len(x))[:, None] % 3 == 0, -self.scores, self.scores)


def lattice_of_discs(n):
    """n whole dark discs and one that the edge cuts."""
    y, x = np.mgrid[:320, :320]
    labels = np.zeros((320, 320), int)
    places = [(40 + 60*(k//5), 40 + 60*(k % 5)) for k in range(n)] + [(300, 2)]
    for k, (a, b) in enumerate(places, 1): labels[(y - a)**2 + (x - b)**2 < 18**2] = k
    return Micrograph((np.random.default_rng(0).normal(1, .1, labels.shape) - .5*(labels > 0)).astype(np.float32), .6, 'discs'), labels


def test_a_network_with_one_answer_for_everything_is_not_believed():
    m, labels = lattice_of_discs(10)
    card = dict(classes=['cube', 'octahedron'], threshold=.7, feret_range_nm=[1, 9])
    t = classify(m, labels, stand_in(Sure(0., 5.), **card))
    assert set(t['shape']) == {'undetermined'} and (t.p_octahedron > .9).all() and t.shape_withheld.all()
    assert t.reason.str.contains('does not know').sum() == 10 and (t.prediction_set == '').all()
    t = classify(m, labels, stand_in(Alternating(-5., 5.), **card))
    assert set(t['shape'][~t.border]) == {'cube', 'octahedron'} and t.shape_withheld.tolist() == t.border.tolist()
    m, labels = lattice_of_discs(9)
    t = classify(m, labels, stand_in(Sure(0., 5.), **card))
    assert (t['shape'] == 'octahedron').sum() == 9, 'nine are too few to tell'


def test_the_report_prints_no_probability_of_a_withheld_answer(tmp_path):
    from nanoshape.micrographs.report import _gallery_title, write_report
    m, labels = lattice_of_discs(10)
    network = stand_in(Sure(0., 5.), classes=['cube', 'octahedron'], threshold=.7, feret_range_nm=[1, 9])
    t = write_report(m, network, tmp_path/'out', detector=known(labels))
    assert len(t) == 11 and {_gallery_title(r, 'shape').split(chr(10))[1] for r in t.itertuples()} == {'undetermined'}
    page = (tmp_path/'out/report.html').read_text()
    assert '10 of 10' in page and 'does not know these particles' in page and '<td>0.99</td>' not in page
    csv = pd.read_csv(tmp_path/'out/particles.csv')
    assert csv.p_octahedron.round(2).eq(.99).all() and csv.shape_withheld.all()
    few, labels = lattice_of_discs(3)
    t = write_report(few, network, tmp_path/'few', detector=known(labels))
    page = (tmp_path/'few/report.html').read_text()
    assert page.count('<td>0.99</td>') == 3 and 'does not know' not in page
    assert sum(bool(re.search(r'octahedron.99%', _gallery_title(r, 'shape'), re.DOTALL)) for r in t.itertuples()) == 3


def known(labels):
    """A detector that gives these labels."""
    from nanoshape.micrographs.detection import Detector
    class Known(Detector):
        def find(self, m): return labels, False
    return Known()


# ---- real micrographs

def matches(found, truth):
    """At IoU ≥ 0.5: equivalent diameters (px) of the true particles that were found and that were missed; number of false alarms."""
    hit, missed = [], []
    for r in measure.regionprops(truth):
        here = truth == r.label
        near = [f for f in np.unique(found[here]) if f]
        ok = any(((found == f) & here).sum() >= .5*((found == f) | here).sum() for f in near)
        (hit if ok else missed).append(r.equivalent_diameter_area)
    return hit, missed, found.max() - len(hit)


def test_particles_of_the_real_tiles_are_found(sintering):
    """All 20 tiles, never used for anything else. What is missed is under 1 nm across, mostly slivers at an edge, which is not looked for."""
    hits, missed, false, ious = [], [], 0, []
    for k in range(20):
        m = read(sintering/f'train_image_{k}.png', sampling=.586)
        truth = measure.label(io.imread(sintering/f'train_label_{k}.png')[..., 0] > 0)
        found = segment(m)
        hit, miss, wrong = matches(found, truth)
        hits, missed, false = hits + hit, missed + miss, false + wrong
        ious.append(((found > 0) & (truth > 0)).sum()/((found > 0) | (truth > 0)).sum())
    assert np.mean(ious) > .96 and false == 0 and len(hits) >= 300
    assert all(d*.0586 < 1 for d in missed)


def test_the_lattice_is_found_on_the_listed_particles(sintering):
    """{111} of gold at its 4.0 pixels, on all six, an order of magnitude above the noise."""
    for k, places in listed().items():
        m = read(sintering/f'train_image_{k}.png', sampling=.5886)
        labels = segment(m)
        t = measure_lattice(m, labels).set_index('label')
        for y, x in places:
            row = t.loc[labels[y, x]]
            assert row.planes.split()[0] == '111' and abs(float(row.spacings_nm.split()[0]) - .2355) < .005 and row.fringe_snr > 100


def test_noise_and_featureless_particles_have_no_lattice(grey):
    for seed in range(6):
        g = np.random.default_rng(seed)
        m = Micrograph((grey + g.normal(0, 10, grey.shape)).astype(np.float32), .6, 'discs')
        t = measure_lattice(m, segment(m))
        assert len(t) == 2 and (t.planes == '').all() and (t.zone_axis == '').all() and (t.fringe_snr == 0).all()


def test_a_fringe_of_the_support_is_no_fringe_of_the_particle():
    y, x = np.mgrid[:256, :256]
    disc = (y - 128)**2 + (x - 128)**2 < 50**2
    def seen(spacing, element):
        image = np.random.default_rng(0).normal(size=disc.shape) + disc*(np.cos(2*np.pi*x*.5/spacing) - 1)
        return measure_lattice(Micrograph(image.astype(np.float32), .5, 'disc'), disc.astype(int), element).iloc[0]
    assert seen(3.44, 'Pt').fringe_snr == 0 and seen(3.44, 'Pt').planes == '?'
    assert seen(2.265, 'Pt').fringe_snr > 100 and seen(2.265, 'Pt').planes == '111' and seen(2.265, 'Pt').element == 'Pt'
    assert seen(2.09, 'Cu').planes == '111' and seen(2.09, 'Au').planes == '200'


def test_the_report_says_where_an_element_is_assumed(grey, tmp_path):
    from nanoshape.micrographs.report import write_report
    network = stand_in(Sure(0., 5.), classes=['cube', 'octahedron'], threshold=.7, feret_range_nm=[1, 9])
    for element, says in ((None, 'No element was named, so the planes are those of Au'), ('Pt', 'Planes are those of Pt.')):
        t = write_report(Micrograph(grey.astype(np.float32), .6, 'discs'), network, tmp_path/str(element), element=element)
        assert says in (tmp_path/str(element)/'report.html').read_text() and set(t.element) == {element or 'Au'}


def test_no_shape_is_named_without_fringes(grey, run):
    network = Network.load(run[0]/'model.safetensors')
    m = Micrograph(grey.astype(np.float32), .6, 'discs')
    t = classify(m, segment(m), network.with_card(threshold=0., feret_range_nm=[1, 9], fringe_snr_min=20.))
    assert set(t.reason) == {'no or weaker fringes than trained on'} and set(t['shape']) == {'undetermined'}


def test_far_from_focus_or_with_coarse_pixels_no_shape_is_named(run):
    """A particle on a film, 100 nm from focus; the answer's place is taken by the reason."""
    network = Network.load(run[0]/'model.safetensors')
    r = make_recipe(name='one', seed=3, size_nm=3, support_nm=2, box_nm=20, gpts=400, out_gpts=256)
    wave, _, _ = waves_of(r, [0])
    at_100_nm = Microscope(3e5, defocus=1000., focal_spread=40., dose=3000.)
    m = Micrograph(images(wave, at_100_nm, r.sampling, torch_rng(0), r.out_gpts)[0].numpy(), r.sampling, 'far')
    y, x = np.mgrid[:256, :256]
    labels = ((y - 128)**2 + (x - 128)**2 < 18**2).astype(int)
    network = network.with_card(threshold=0., feret_range_nm=[1, 9], fringe_snr_min=0., noise_max=1.)
    up_to = lambda nm: network.with_card(recipe={**network.card.recipe, 'defocus_nm': {'uniform': [-nm, nm]}})
    far = classify(m, labels, up_to(10))
    assert abs(far.film_focus_nm.item() - 100) < 5 and far.reason.item() == 'farther from focus than trained on' and far.prediction_set.item() == ''
    near = classify(m, labels, up_to(120))
    assert near.reason.item() == '' and near['shape'].item() in near.prediction_set.item()
    assert classify(m, labels, network.with_card(sampling=network.card.sampling/4)).reason.item() == 'coarser pixels than trained on'


def test_noise_is_told_from_a_lattice_whatever_the_camera_counts():
    r = make_recipe(name='one', seed=3, size_nm=5, support_nm=2)
    wave, _, _ = waves_of(r, [0])
    at = lambda **dose: images(wave, Microscope(3e5, defocus=60., focal_spread=40., **dose), r.sampling, torch_rng(0), r.out_gpts).numpy()
    shares = [noise_share(at(dose=dose)).item() for dose in (100., 1e3, 1e4)] + [noise_share(at()).item()]
    assert shares[0] > .85 and shares == sorted(shares)[::-1]
    for counts in (at(dose=100.), at(dose=1e4)): assert np.isclose(noise_share(7*counts + 300), noise_share(counts), rtol=1e-3)


def test_painting_over_neighbours_depends_neither_on_their_order_nor_adds_noise():
    g, (y, x) = np.random.default_rng(0), np.mgrid[:256, :256]
    film = ndi.gaussian_filter(g.normal(size=(256, 256)), 2)*10
    labels = np.zeros((256, 256), int)
    for k, (cy, cx) in enumerate(((128, 128), (128, 158), (100, 90), (160, 100)), 1): labels[(y - cy)**2 + (x - cx)**2 <= 15**2] = k
    image = (film - 20.*(labels > 0)).astype(np.float32)
    order = np.array([0, 4, 3, 2, 1])
    shares = []
    for lab, mine in ((labels, 1), (order[labels], 4)):
        m = Micrograph(image, .78, 'film')
        t = measure_particles(m, lab)
        field = particle_fields(m, lab, t[t.label == mine], .78, 128)[0].numpy()
        own = (labels == 1)[64:192, 64:192]
        assert np.array_equal(field[own], image[64:192, 64:192][own])
        shares.append(noise_share(field).item())
    alone = np.where(labels == 1, film - 20, film)[64:192, 64:192]
    assert max(shares) < noise_share(alone).item() + .02


def test_fringes_are_found_on_very_fine_pixels():
    y, x = np.mgrid[:600, :600]
    disc = (y - 300)**2 + (x - 300)**2 < 200**2
    for s in (.12, .19, .35):
        image = np.random.default_rng(0).normal(size=disc.shape) + disc*(np.cos(2*np.pi*x*s/2.355) - 1)
        t = measure_lattice(Micrograph(image.astype(np.float32), s, 'fine'), disc.astype(int))
        assert '111' in t.planes.item() and t.fringe_snr.item() > 100


def test_a_card_without_a_test_writes_its_curves_under_their_name(tmp_path, grey):
    from nanoshape.learn.models import build
    from nanoshape.learn.network import Card, Network
    from nanoshape.micrographs.report import write_report
    log = dict(epoch=[0, 1], train_loss=[1., .5], valid_loss=[1., .6], accuracy=[.3, .7])
    card = Card(arch='cnn4', classes=['cube', 'octahedron'], sampling=.8, gpts=64, threshold=.9, feret_range_nm=[1, 9], log=log)
    write_report(Micrograph(grey.astype(np.float32), .6, 'discs'), Network(build('cnn4', 2), card), tmp_path/'out')
    assert {p.name for p in (tmp_path/'out').glob('*.png')} == {'overlay.png', 'curves.png'}


def test_another_voltage_or_element_withholds_every_answer(tmp_path, grey):
    """And record and page say both what the file says and what the network has learned."""
    from nanoshape.core import read_json
    from nanoshape.learn.models import build
    from nanoshape.learn.network import Card
    from nanoshape.micrographs.report import summarise, write_report
    recipe = dict(kind='particles', element='Au', energy_kev=300, defocus_nm=0, dose=1000)
    network = Network(build('cnn4', 2), Card(arch='cnn4', classes=['cube', 'octahedron'], sampling=.8, gpts=64, recipe=recipe))
    said = dict(mode='TEM', camera='<Ceta>', date='2023-11-14')
    at = lambda volts: Micrograph(grey.astype(np.float32), .6, 'discs', volts, file=said | dict(voltage_kv=volts/1e3))
    assert (write_report(at(3e5), network, tmp_path/'a')['shape'] != 'undetermined').all()
    assert 'its answers are withheld' not in (tmp_path/'a/report.html').read_text()
    t = write_report(at(2e5), network, tmp_path/'b')
    assert (t['shape'] == 'undetermined').all() and (t.reason == 'another voltage than trained on').all()
    assert 'another voltage than trained on (2)' in summarise(at(2e5), t)
    page, record = (tmp_path/'b/report.html').read_text(), read_json(tmp_path/'b/run.json')
    assert 'The image is of 200 kV, and the network has learned 300 kV' in page and 'TEM, 200 kV, camera &lt;Ceta&gt;, 2023-11-14.' in page
    assert record['file'] == at(2e5).file
    t = write_report(at(3e5), network, tmp_path/'c', element='Pt')
    assert (t.reason == 'another element than trained on').all()
    assert 'is of Pt, and the network has learned Au' in (tmp_path/'c/report.html').read_text()


def test_a_network_for_300_kv_does_not_answer_at_200(tmp_path):
    from nanoshape.learn.defaults import default_shape_network
    m = read(shared('inputs')/'pt_200kV_cs1.2_66nm.dm3')
    t = classify(m, segment(m), default_shape_network(None))
    assert len(t) > 3 and (t['shape'] == 'undetermined').all() and (t.reason == 'another voltage than trained on').all()


def test_labels_and_positions_are_on_the_pixels_of_the_file(tmp_path, grey):
    """Of oblong pixels, too; positions in nm, sizes and answers are those of the same image with square ones."""
    import tifffile
    from nanoshape.learn.models import build
    from nanoshape.learn.network import Card
    from nanoshape.micrographs.report import write_report
    network = Network(build('cnn4', 2), Card(arch='cnn4', classes=['cube', 'octahedron'], sampling=.8, gpts=64))
    oblong = grey.reshape(100, 2, 250).mean(1).astype(np.float32)
    nm = dict(imagej=True, metadata={'unit': 'nm'})
    tifffile.imwrite(tmp_path/'square.tif', grey, resolution=(1/.05, 1/.05), **nm)
    tifffile.imwrite(tmp_path/'oblong.tif', oblong, resolution=(1/.05, 1/.1), **nm)
    square, other = (write_report(read(tmp_path/f'{k}.tif'), network, tmp_path/k) for k in ('square', 'oblong'))
    labels = tifffile.imread(tmp_path/'oblong/oblong_labels.tif')
    assert labels.shape == oblong.shape and len(other) == len(square) == 2
    for r, s in zip(other.itertuples(), square.itertuples()):
        y, x = ndi.center_of_mass(labels == r.label)
        assert abs(x - r.x_px) < .5 and abs(y - r.y_px) < .5 and oblong[labels == r.label].mean() < 130
        assert abs(r.x_px - s.x_px) < 1 and abs(r.y_px - (s.y_px - .5)/2) < 1
        assert abs(r.x_nm - (r.x_px + .5)*.05) < .01 and abs(r.y_nm - (r.y_px + .5)*.1) < .01
        assert abs(r.equivalent_diameter_nm - s.equivalent_diameter_nm) < .1


def test_the_oblong_pixels_of_a_file(tmp_path):
    m = read(shared('inputs')/'ij_oblong.tif')
    assert m.pixels == (256, 512) and m.image.shape == (512, 512) and abs(m.sampling - .586) < 1e-4


# ---- sizes only

def test_whatever_shows_no_lattice_is_measured_and_nothing_else(grey, tmp_path):
    """Coarse pixels, scanned images, bright particles and narrow images: sizes, no shape, and why."""
    from nanoshape.micrographs.particles import crystallinity
    network, image = stand_in(Sure(0., 5.), classes=['cube', 'octahedron']), grey.astype(np.float32)
    why = {'too coarse': Micrograph(image, 5., 'a'), 'scanned': Micrograph(image, .6, 'a', file=dict(mode='STEM')),
           'bright': Micrograph(-image, .6, 'a', bright=True), 'narrower': Micrograph(image, .05, 'a')}
    labels = segment(Micrograph(image, .6, 'a'))
    whole = classify(Micrograph(image, .6, 'a'), labels, network)
    for reason, m in why.items():
        t = classify(m, labels, network)
        assert len(t) == 2 and t.reason.str.contains(reason).all() and t.shape_withheld.all() and (t['shape'] == 'undetermined').all()
        assert t.filter(like='p_').isna().all(axis=None) and t.confidence.isna().all() and (t.planes == '').all()
        assert np.allclose(t.equivalent_diameter_nm/m.sampling, whole.equivalent_diameter_nm/.6)
        assert list(t.columns) == list(whole.columns) and (t.contrast_snr > .5).all()
        crystals = network.with_card(classes=['amorphous', 'monocrystalline'])
        assert crystallinity(m, labels, t, crystals).crystallinity_reason.str.contains(reason).all()
    assert not whole.reason.str.contains('|'.join(why)).any()


def test_coarse_pixels_get_a_report_of_sizes(grey, tmp_path):
    from nanoshape.micrographs.report import write_report
    m = Micrograph(grey.astype(np.float32), 5., 'coarse')
    t = write_report(m, stand_in(Sure(0., 5.), classes=['cube', 'octahedron']), tmp_path/'out')
    page = (tmp_path/'out/report.html').read_text()
    assert len(t) == 2 and 'Sizes only' in page and '0.118 nm' in page


def test_what_one_detector_says_of_an_image_is_not_told_to_the_next(grey, tmp_path):
    from nanoshape.micrographs.report import write_report
    m, network = Micrograph(grey.astype(np.float32), .6, 'discs'), stand_in(Sure(0., 5.), classes=['cube', 'octahedron'])
    detector = known(segment(m))
    found = detector.find(m)[0]
    detector.find = lambda m: (found, True)
    t = write_report(m, network, tmp_path/'out', detector=detector)
    assert t.reason.str.contains('bright').all() and not m.bright and 'Sizes only' in (tmp_path/'out/report.html').read_text()


# ---- outlines out and in

def test_outlines_go_out_and_corrected_ones_come_back(grey, tmp_path):
    import json
    import tifffile
    from nanoshape.core import UserError
    from nanoshape.micrographs.detection import Drawn, read_labels
    from nanoshape.micrographs.reading import header_sampling
    from nanoshape.micrographs.report import write_report
    m, network = Micrograph(grey.astype(np.float32), .6, 'discs.png'), stand_in(Sure(0., 5.), classes=['cube', 'octahedron'])
    t = write_report(m, network, tmp_path/'out')
    file = tmp_path/'out/discs_labels.tif'
    assert abs(header_sampling(file)/.6 - 1) < 1e-4
    found = json.loads((tmp_path/'out/particles.coco.json').read_text())['annotations']
    for a, r in zip(found, measure.regionprops(tifffile.imread(file))):
        x, y = np.array(a['segmentation'][0]).reshape(-1, 2).T
        area = abs(np.dot(x[:-1], np.diff(y)) - np.dot(y[:-1], np.diff(x)))/2
        assert a['id'] == r.label and a['area'] == r.area and abs(area/r.area - 1) < .05
        assert abs(x.mean() - r.centroid[1] - .5) < 1.5 and abs(y.mean() - r.centroid[0] - .5) < 1.5
        assert a['bbox'] == [r.bbox[1], r.bbox[0], r.bbox[3] - r.bbox[1], r.bbox[2] - r.bbox[0]]
    rois = Drawn(tmp_path/'out/particles_rois.zip').find(m)[0]
    assert (rois == tifffile.imread(file)).all(), 'ROIs of ImageJ are other pixels than the labels'
    mine = read_labels(file)
    mine[mine == 1] = 0
    mine[5:40, 200:240] = 9  # drawn by hand
    tifffile.imwrite(tmp_path/'mine.tif', mine.astype(np.uint16))
    again = write_report(m, network, tmp_path/'again', detector=Drawn(tmp_path/'mine.tif'))
    assert set(again.label) == {1, 2} and np.isclose(again.area_nm2, 35*40*.06**2).sum() == 1 and len(set(again.area_nm2) & set(t.area_nm2)) == 1
    assert 'label image mine.tif' in (tmp_path/'again/report.html').read_text()
    tifffile.imwrite(tmp_path/'small.tif', mine[:-1].astype(np.uint16))
    tifffile.imwrite(tmp_path/'real.tif', mine.astype(np.float32))
    (tmp_path/'text.png').write_text('no image')
    for bad, says in (('small.tif', 'same size'), ('real.tif', 'whole numbers'), ('text.png', 'no label image'), ('none.tif', 'there is no label')):
        try: Drawn(tmp_path/bad).find(m)
        except UserError as e: assert says in str(e)
        else: raise AssertionError(bad)


def test_rois_that_are_none_are_refused_in_a_sentence(tmp_path):
    import zipfile
    from nanoshape.core import UserError
    from nanoshape.micrographs import detection
    (tmp_path/'text.roi').write_text('no outline')
    with zipfile.ZipFile(tmp_path/'other.zip', 'w') as z: z.writestr('a.txt', 'no outline')
    (tmp_path/'cut.zip').write_bytes((tmp_path/'other.zip').read_bytes()[:30])
    for name in ('text.roi', 'other.zip', 'cut.zip', 'absent.zip'):
        with pytest.raises(UserError, match=name): detection.Drawn(tmp_path/name)
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a.roi', bytes(detection.MAX_ROIS + 1))
    with pytest.raises(UserError, match='more than can be read'): detection.Drawn(tmp_path/'bomb.zip')
