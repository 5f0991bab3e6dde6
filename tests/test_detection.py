"""Finding particles: fields with particles that touch, the targets, tiles, the score, and the network in data/models/."""
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, stand_in
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage import io, measure

from nanoshape.core import UserError, project_root, read_yaml, rng, torch_rng
from nanoshape.learn.particle_masks import CHANNELS, field_loaders, targets
from nanoshape.micrographs.detection import (HALO, TILE, Detector, compare, detection_score, find_at_any_size, find_particles,
                                             looks_negative, pixel_probabilities, segment, separated)
from nanoshape.simulate.microscope import Microscope, images
from nanoshape.simulate.multislice import exit_waves
from nanoshape.micrographs.reading import Micrograph, read
from nanoshape.datasets.recipes import fingerprint, load_recipe, make_recipe, recorded_recipe, wave_recipe
from nanoshape.datasets.samples import sample, truth_map
from nanoshape.datasets.store import simulate
from nanoshape.datasets.thickness_fields import thickness_field
from nanoshape.simulate.structures import CONTACT, free_positions, particle
from nanoshape.simulate.supports import amorphous

KEPT = project_root()/'data/models/particles.safetensors'
kept = pytest.mark.skipif(not KEPT.is_file(), reason='data/models/ holds no network that finds particles')


# ---- fields

def nearest(atoms):  # between the atoms of different particles, Å
    number, w, p = atoms.arrays['particle'], atoms.cell[0, 0], atoms.positions.copy()
    p[:, :2] %= w
    best = []
    for k in range(number.max() + 1):
        tree = cKDTree(p[(number != k) & (number >= 0)], boxsize=(w, w, 0))
        best.append(tree.query(p[number == k])[0].min())
    return np.array(best)


@pytest.mark.parametrize('seed', range(6))
def test_pushed_particles_stand_atom_to_atom(seed):
    r = make_recipe(name='f', kind='field', seed=seed, structures=1, particles=8, touching=1, size_nm={'uniform': [1.5, 4]}, box_nm=20, gpts=400,
                    support_nm=0)
    d = nearest(sample(r, 0)[0])
    assert (d > CONTACT - .01).all() and (d < CONTACT + .06).sum() >= len(d)*.9


def test_nothing_is_pushed_by_default_and_the_draws_stay_the_same():
    parts = [particle('cube', 30, rng(k)) for k in range(6)]
    assert free_positions(parts, 200, rng(0)) == free_positions(parts, 200, rng(0), touching=0.)
    assert (nearest(sample(make_recipe(name='f', kind='field', structures=1, particles=8, size_nm=3, box_nm=20, gpts=400), 0)[0]) > CONTACT).all()


def test_data_sets_from_before_keep_their_names():
    r = recorded_recipe(read_yaml(project_root()/'data/recipes/shape_study_laptop.yaml') | dict(gpts=256, slice_nm=.2))
    assert fingerprint(wave_recipe(r)) == '2fb25227c1ac'  # as in data/results/fresh.csv
    assert fingerprint(make_recipe(name='f', kind='field', touching=.1)) != fingerprint(make_recipe(name='f', kind='field'))


def test_a_particle_of_a_few_atoms_has_an_outline():
    r = make_recipe(name='f', kind='field', seed=3, structures=1, classes=['tetrahedron'], particles=6, size_nm=1, box_nm=12, gpts=256, support_nm=0)
    found = measure.regionprops(truth_map(r, sample(r, 0)[0]))
    assert len(found) == 6 and all(p.area*r.sampling**2 > 3 for p in found)


# ---- targets, tiles, cutting

def discs(shape, *where):  # labels
    out = np.zeros(shape, int)
    y, x = np.mgrid[:shape[0], :shape[1]]
    for k, (cy, cx, r) in enumerate(where, 1): out[(y - cy)**2 + (x - cx)**2 <= r*r] = k
    return out


def test_touching_discs_are_told_apart_by_their_cores():
    truth = discs((128, 160), (60, 40, 20), (60, 79, 18), (60, 115, 17), (5, 5, 12))
    goal = targets(truth).numpy()
    assert measure.label(goal[0]).max() == 2 and measure.label(goal[1]).max() == 4
    assert (goal[1] <= goal[0]).all() and .15 < goal[1].sum()/goal[0].sum() < .35  # a quarter of a disc lies deeper than half its radius
    found = separated(goal, 1.)
    assert detection_score([compare(found, truth, 1.)])['f1'] == 1


def test_a_piece_without_a_core_is_no_particle_and_an_empty_field_holds_none():
    mask, core = ((discs((64, 64), *where) > 0).astype(np.float32) for where in ([(20, 20, 8), (45, 45, 8)], [(20, 20, 4)]))
    assert ((separated(np.stack([mask, core]), 1.) > 0) == (discs((64, 64), (20, 20, 8)) > 0)).all()
    assert separated(np.zeros((2, 64, 64)), 1.).max() == 0


def test_small_holes_in_a_particle_are_filled_and_gaps_between_particles_stay():
    disc = discs((128, 128), (40, 40, 25)) > 0
    holed = disc & ~(discs((128, 128), (40, 40, 1), (30, 45, 1)) > 0)
    ring = disc & ~(discs((128, 128), (40, 40, 8)) > 0)
    assert ((separated(np.stack([holed, holed]).astype(np.float32), 1.) > 0) == disc).all()
    assert ((separated(np.stack([ring, ring]).astype(np.float32), 1.) > 0) == ring).all()


class Blur(torch.nn.Module):
    "A network whose view is narrower than the halo."
    def __init__(self):
        super().__init__()
        self.c = torch.nn.Conv2d(1, 2, 9, padding=4)
    def forward(self, x): return self.c(x)


@pytest.mark.parametrize('shape', [(100, 130), (TILE, TILE + 1), (2*TILE + 40, 700)])
def test_tiles_leave_no_seams(shape):
    torch.manual_seed(0)
    net, m = Blur(), Micrograph(np.random.default_rng(0).normal(size=shape).astype(np.float32), .8, 'noise')
    p = pixel_probabilities(m, stand_in(net, classes=CHANNELS, sampling=.8))
    x = (m.image - m.image.mean())/m.image.std(ddof=1)
    with torch.no_grad(): whole = net(torch.from_numpy(np.pad(x, HALO, mode='symmetric'))[None, None]).sigmoid()[0, :, HALO:-HALO, HALO:-HALO].numpy()
    assert p.shape == (2, *shape) and np.abs(p - whole).max() < 1e-5


def test_batches_are_the_same_again_and_leave_out_the_last_fields(tmp_path):
    r = make_recipe(name='f', kind='field', structures=6, particles=3, size_nm=2, box_nm=20, gpts=400, out_gpts=256, support_nm=0)
    store = simulate(r, tmp_path/'fields', workers=0)
    loaders = [field_loaders([store], valid=.3, bs=2) for _ in range(2)]
    (xa, ya), (xb, yb) = (next(iter(d.train)) for d in loaders)
    assert torch.equal(xa, xb) and torch.equal(ya, yb) and loaders[0].about == loaders[1].about
    assert {i for _, i in loaders[0].train.dataset} == {0, 1, 2, 3} and len(loaders[0].valid_ds) == 2


def test_a_negative_is_noticed(grey):
    m = lambda image: Micrograph(image.astype(np.float32), .6, 'discs')
    assert looks_negative(m(255. - grey)) and not looks_negative(m(grey + 0.))


@pytest.mark.parametrize('changes', [dict(out_gpts=128), dict(structures=1), dict(box_nm=25, gpts=500)])
def test_fields_that_do_not_serve_for_training_are_refused(tmp_path, changes):
    r = dict(name='f', kind='field', structures=2, particles=1, size_nm=2, box_nm=20, gpts=400, out_gpts=256, support_nm=0)
    stores = [simulate(make_recipe(**{**r, **c}), tmp_path/str(k), workers=0) for k, c in enumerate(({}, changes))]
    with pytest.raises(UserError, match='detector'): field_loaders(stores)


# ---- the score

def test_the_score_agrees_with_a_count_by_hand():
    truth = discs((200, 200), (40, 40, 15), (40, 120, 20), (120, 40, 10), (150, 150, 25))
    found = discs((200, 200), (41, 40, 15), (40, 112, 12), (150, 150, 24), (100, 100, 9))  # right, too small, right, false; one is missed
    c = compare(found, truth, 1.)
    assert (c['n_found'], c['n_true'], c['n_right']) == (4, 4, 2)
    s = detection_score([c])
    assert s['precision'] == s['recall'] == s['f1'] == .5
    assert s['diameter'] == pytest.approx((15 + 12 + 24 + 9)/(15 + 20 + 10 + 25), rel=.01) and s['diameter_right'] == pytest.approx(39/40, rel=.01)


def test_one_particle_cut_in_two_is_right_once_however_little_is_asked():
    truth = discs((100, 100), (50, 50, 20))
    halves = np.where(truth, 1 + (np.arange(100) > 50), 0)
    assert compare(halves, truth, 1., .3)['n_right'] == 1 and compare(halves, truth, 1., .3)['n_found'] == 2


def test_slivers_are_neither_asked_for_nor_false():
    truth = discs((100, 100), (50, 50, 12), (50, 101, 3))  # what the edge leaves of the second is under 0.8 nm wide
    assert compare(truth, truth, 1.5)['n_true'] == compare(truth, truth, 1.5)['n_found'] == 1
    assert detection_score([compare(np.where(truth == 1, 1, 0), truth, 1.5)])['f1'] == 1


def test_a_field_that_is_all_particle_counts_one():
    c = compare(np.ones((30, 30), int), np.ones((30, 30), int), 1.)
    assert (c['n_found'], c['n_true'], c['n_right']) == (1, 1, 1)


def test_nothing_found_is_no_division_by_zero():
    s = detection_score([compare(np.zeros((50, 50), int), discs((50, 50), (20, 20, 9)), 1.)])
    assert s['f1'] == s['recall'] == 0 and s['precision'] is None and s['diameter'] is None


# ---- the network that is kept

@kept
def test_a_network_of_shapes_is_no_detector_and_coarse_pixels_go_by_darkness(grey):
    with pytest.raises(UserError, match='does not find particles'): Detector(KEPT.with_name('shapes.safetensors'))
    d, fine, coarse = Detector(KEPT), *(Micrograph(grey.astype(np.float32), s, 'discs') for s in (.6, 3.))
    assert 'network' in d.how(fine) and 'too coarse' in d.how(coarse) and (d(coarse) == segment(coarse)).all()


@pytest.fixture(scope='module')
def tiles(sintering):
    """The 20 tiles, never trained on: way → labels, and the masks."""
    network, out = Detector(KEPT), []
    for k in range(20):
        m, mask = read(sintering/f'train_image_{k}.png', sampling=.5886), io.imread(sintering/f'train_label_{k}.png')[..., 0] > 0
        out.append((network(m), segment(m), mask))
    return out


def scored(tiles, way, least=.5):
    return detection_score([compare(t[way], t[2], .5886, least) for t in tiles])


@kept
def test_darkness_finds_the_particles_of_the_real_tiles(tiles):
    s = scored(tiles, 1)
    assert s['f1'] >= .97 and s['pixel_iou'] >= .95


@kept
def test_the_network_misses_few_particles_of_the_real_tiles(tiles):
    """With wider outlines than the masks, so a smaller share of the union is asked for."""
    assert scored(tiles, 0, .3)['recall'] >= .97


@kept
@pytest.mark.xfail(strict=True, reason='some thirty specks of a nanometre, see data/results/real_tiles.csv')
def test_the_network_finds_little_else_on_the_real_tiles(tiles):
    s = scored(tiles, 0, .3)
    assert s['precision'] >= .9 and s['diameter_right'] < 1.2


@kept
@pytest.mark.xfail(strict=True, reason='not reached, see data/results/real_tiles.csv and figures/detection')
def test_the_network_reproduces_the_masks_of_the_real_tiles(tiles):
    s = scored(tiles, 0)
    assert s['f1'] >= .97 and s['pixel_iou'] >= .95


@kept
def test_the_network_finds_what_darkness_does_not(tmp_path):
    """A few new fields of small particles; the test proper is in data/results/detection.csv."""
    r = load_recipe(project_root()/'data/recipes/hard_small.yaml', structures=6, seed=2042)
    from nanoshape.studies.experiments import detections
    store, d = simulate(r, tmp_path/'fields', workers=0), Detector(KEPT)
    network, darkness = (detection_score(detections(f, store).to_dict('records'))['f1'] for f in (d, segment))
    assert network > .8 and network > darkness + .3


@kept
def test_bare_films_hold_no_particles():
    """In focus and far from it."""
    d = Detector(KEPT)
    for k, focus in ((0, 0.), (1, 60.), (2, 1000.)):
        scope = Microscope(3e5, defocus=focus, focal_spread=40., dose=2000.)
        film = images(exit_waves(amorphous(200, 20, rng(k)), 400, out_gpts=256), scope, 200/256, torch_rng(k)).numpy()
        assert d(Micrograph(film, 200/256, 'film')).max() == 0


@kept
def test_noise_holds_no_particles():
    d = Detector(KEPT)
    for seed in range(3):
        m = Micrograph(np.random.default_rng(seed).normal(100, 10, (300, 420)).astype(np.float32), .8, 'noise')
        assert find_particles(m, d.network).shape == m.image.shape
        assert d(m).max() == 0


# ---- any magnification

SIZES = KEPT.with_name('sizes.safetensors')


@pytest.mark.parametrize('side, pixel', [(1, 5.), (-1, 5.), (1, .5)])
def test_particles_of_either_brightness_are_found_at_any_pixel_size(side, pixel):
    """Discs of 12 to 60 pixels; their sign turned, the mode turns; which pixel they have does not matter."""
    where = [(60, 60, 6), (60, 180, 12), (180, 70, 20), (180, 190, 30)]
    true = discs((256, 256), *where)
    g = np.random.default_rng(0)
    image = ndimage.gaussian_filter(side*.6*(true > 0), 1.) + g.normal(1, .05, true.shape)
    labels, bright = Detector(SIZES).find(Micrograph(image.astype(np.float32), pixel, 'discs'))
    c = compare(labels, true, 1.)
    assert bright == (side > 0) and (c['n_found'], c['n_right']) == (4, 4)


def test_a_smaller_least_score_finds_more():
    image, true, _ = thickness_field(2*10**6, 0, 256)
    m, usual = Micrograph(image, 5., 'field'), Detector(SIZES)
    counts = [int(Detector(SIZES, sure=s)(m).max()) for s in (.95, .7, .2)]
    assert counts[0] < counts[1] < counts[2] and counts[1] == usual(m).max()
    assert 'with a score of 0.2 or more (usual: 0.7)' in Detector(SIZES, sure=.2).how(m) and 'score' not in usual.how(m)
    for s in (-.1, 1.1, np.nan):
        with pytest.raises(UserError, match='give one from 0 to 1'): Detector(SIZES, sure=s)


def test_real_tiles_are_bright_field(sintering):
    for k in (1, 12): assert not find_at_any_size(read(sintering/f'train_image_{k}.png', .5886).image, Detector(SIZES).sizes)[1]


def test_modes_of_real_catalysts_are_told_and_hardly_a_find_is_false():
    t = pd.read_csv(ROOT/'data/results/catalysts.csv')
    each, all_of_a_mode = t[(t.image != 'all') & (t.found > 0)], t[t.image == 'all']
    assert len(each) >= 10 and (each['mode'] == each.said).all() and (all_of_a_mode.precision > .8).all()


@pytest.mark.xfail(strict=True, reason='not reached, see figures/detection_sizes')
@pytest.mark.parametrize('mode, goal', [('bright field', .85), ('dark field', .75)])
def test_particles_of_real_catalysts_are_found_as_well_as_was_wanted(mode, goal):
    t = pd.read_csv(ROOT/'data/results/catalysts.csv').query('image == "all"').set_index('mode')
    assert t.f1[mode] >= goal


def test_columns_of_atoms_are_no_particles():
    """Discs of 12, 24, 40 and 60 pixels, with pixels that make some or all of them narrower than 5 Å."""
    true = discs((256, 256), (60, 60, 6), (60, 180, 12), (180, 70, 20), (180, 190, 30))
    image = ndimage.gaussian_filter(.6*(true > 0), 1.) + np.random.default_rng(0).normal(1, .05, true.shape)
    found = [Detector(SIZES).find(Micrograph(image.astype(np.float32), pixel, 'discs'))[0].max() for pixel in (.05, .1, .15, .3)]
    assert found == [0, 1, 2, 3]
