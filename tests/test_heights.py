"""Column heights: images with maps, losses, reading, scores, the best reader, the lattice, the model of atoms, movies, and the command."""

from dataclasses import replace

import ase.io
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from torch import nn
from torch.nn import functional as F

from conftest import ROOT, one_sentence, shared, stand_in
from nanoshape.cli import main
from nanoshape.simulate.columns import column_crystal, column_table, zone
from nanoshape.core import read_yaml, UserError, read_json, rng, torch_rng
from nanoshape.datasets.batches import CONTRAST, WaveLoader, relative_input
from nanoshape.micrographs.detection import in_tiles
from nanoshape.simulate.columns import with_height, with_room
from nanoshape.learn.height_maps import (ClassLoss, HeightLoss, class_weights, frozen_pixels, height_classes,
                                         height_loaders, smoothed, train_heights)
from nanoshape.atoms.heights import (class_scores, column_answers, fitted_temperature, heights_score, image_noise,
                                     count_matched, disc_means, pixel_scores, read_columns, right_heights, predicted_heights,
                                     true_columns)
from nanoshape.atoms.limit import ideal_height_reader, most_likely
from nanoshape.simulate.microscope import intensity
from nanoshape.simulate.multislice import exit_waves
from nanoshape.atoms.column_lattice import (TILTED, asymmetry, check_axis, check_columns, check_counts, check_heights, fit_lattice,
                                            image_columns, noise_slope, read_simulated, refusal_score)
from nanoshape.atoms.atomic_model import build_model
from nanoshape.atoms.height_report import write_heights
from nanoshape.atoms.movies import flicker, simulate_movie, movie_score, read_movie, change_points, forward_backward
from nanoshape.micrographs.reading import Micrograph
from nanoshape.datasets.recipes import load_recipe, make_recipe, recorded_recipe
from nanoshape.datasets.samples import conditions, sample
from nanoshape.datasets.store import Joined, simulate
from nanoshape.learn.train import Checkpoint
from nanoshape.learn.models import build
from nanoshape.learn.network import Card, Network
from oracle import CLASSES, Oracle


@pytest.fixture(scope='module')
def recipe():
    return load_recipe(ROOT/'data/recipes/ceria_heights.yaml', structures=20, gpts=128, out_gpts=96, box_nm=4, size_nm=2.5, dose=1000)


@pytest.fixture(scope='module')
def store(recipe, tmp_path_factory):
    return simulate(recipe, tmp_path_factory.mktemp('columns')/'store', workers=0)


def oracle(heights, recipe, sure=20.):
    """The network that says these heights."""
    return stand_in(Oracle(heights, sure), classes=height_classes(recipe), sampling=recipe.sampling, gpts=recipe.out_gpts, material=recipe.material,
                    zone=recipe.zone)


def test_image_and_map_move_together(store):
    """Dark columns stay under the map's discs, whichever way a batch is turned."""
    sharp = store.imaged(dose=1e7, defocus_nm=6.)
    x, y = height_loaders(sharp, range(16), range(16, 20), bs=16).train.one_batch()
    still, truth = frozen_pixels(sharp, range(16))
    inside, before = [np.mean([im[m > 0].mean() - im[m == 0].mean() for im, m in zip(a[:, 0], b)]) for a, b in ((x, y), (still, truth))]
    assert abs(inside) > .3 and abs(inside - before) < .1*abs(before)
    assert sorted(y.flatten(1).sum(1).tolist()) == sorted(truth.flatten(1).sum(1).tolist())


def test_fresh_images_depend_on_epoch_and_sample_alone(store):
    draw = lambda: height_loaders(store, range(8), [9], bs=8).train
    (a, b), c = (draw().one_batch()[0] for _ in range(2)), draw()
    c.one_batch()
    assert torch.equal(a, b) and not torch.equal(a, c.one_batch()[0])


def test_a_window_is_cut_out_of_image_and_map(store):
    draw = lambda **how: height_loaders(store, range(8), [9], bs=8, **how).train.one_batch()
    (x, y), (small, there) = draw(), draw(crop=32)
    assert small.shape == (8, 1, 32, 32) and there.shape == (8, 32, 32)
    n = x.shape[-1] - 31
    at = [(i, j) for i in range(n) for j in range(n) if torch.equal(x[..., i:i + 32, j:j + 32], small)]
    assert len(at) == 1 and torch.equal(y[:, at[0][0]:at[0][0] + 32, at[0][1]:at[0][1] + 32], there)
    for crop in (33, 4096, -32):
        with pytest.raises(UserError, match='multiple of 32'):
            draw(crop=crop)


def test_bright_images_come_first(store):
    loader = height_loaders(store.imaged(dose={'loguniform': [30, 1e6]}), range(8), [9], bs=8, bright=1).train
    all_bright = height_loaders(store.imaged(dose=1e6), range(8), [9], bs=8).train
    assert torch.equal(loader.one_batch()[0], all_bright.one_batch()[0])
    assert not torch.allclose(loader.one_batch()[0], all_bright.one_batch()[0], atol=.1)


def test_clean_goals_have_no_noise(store):
    x, y = frozen_pixels(store.imaged(dose=100), range(3), 'clean')
    _, z = frozen_pixels(store.imaged(dose=9000), range(3), 'clean')
    assert torch.allclose(y, z) and y.shape == x.shape and (x - y).std() > 3*(z - y).std()


def test_a_joined_store_keeps_its_parts_seeds(recipe, store, tmp_path):
    other = simulate(load_recipe(ROOT/'data/recipes/ceria_heights_tilted.yaml', **{k: getattr(recipe, k) for k in ('gpts', 'out_gpts', 'box_nm',
                     'size_nm', 'dose')}, structures=6), tmp_path/'t', 0)
    both = Joined([store, other])
    x, y = frozen_pixels(both, [21, 3])
    assert torch.equal(x[1], frozen_pixels(store, [3])[0][0]) and torch.equal(x[0], frozen_pixels(other, [1])[0][0])
    assert np.array_equal(y[0], other.maps([1])[0])


def test_relative_input_keeps_the_contrast():
    image = 1 + .1*torch.randn(1, 32, 32)
    assert torch.allclose(relative_input(image), relative_input(37*image), atol=1e-5)
    assert relative_input(image).std().item() == pytest.approx(.1*CONTRAST, rel=.1)


def test_weights_and_smoothing():
    maps = np.zeros((2, 20, 20), int)
    maps[:, :2] = 5
    assert class_weights(maps, CLASSES)[[0, 5, 7]].tolist() == [1, 3, 3] and class_weights(maps, CLASSES, 0).tolist() == [1]*CLASSES
    goal = F.one_hot(torch.as_tensor(maps), CLASSES).movedim(-1, 1).float()
    soft = smoothed(goal, 1.)
    assert torch.allclose(soft.sum(1), torch.ones(2, 20, 20), atol=1e-5) and 0 < soft[0, 5, 2, 9] < .5 and torch.equal(smoothed(goal, 0), goal)


def test_losses_are_least_at_the_truth():
    y = torch.randint(CLASSES, (2, 16, 16), generator=torch_rng(0))
    sure, w = 30*F.one_hot(y, CLASSES).movedim(-1, 1).float(), torch.ones(CLASSES)
    assert ClassLoss(w)(sure, y) < 1e-6 < ClassLoss(w)(sure.roll(1, 1), y)
    assert HeightLoss(w)(y[:, None].float(), y) == 0 < HeightLoss(w)(y[:, None] + 1., y)


def test_a_regression_becomes_classes():
    s = class_scores(torch.full((1, 1, 4, 4), 6.2), CLASSES)
    assert s.shape == (1, CLASSES, 4, 4) and (s.argmax(1) == 6).all()
    p = (s/.5**2).softmax(1)[0, :, 0, 0]
    assert float((p*torch.arange(CLASSES)).sum()) == pytest.approx(6.2, abs=.05)


def test_who_wavers_between_heights_still_sees_a_column():
    wavers = torch.tensor([[1.5, 0, 0, 0, .9, 1.1, 1, 0, 0, 0, 0, 0], [1.5, *[-3]*11]])
    assert wavers.argmax(1).tolist() == [0, 0] and predicted_heights(wavers).tolist() == [5, 0]
    assert predicted_heights(wavers.T[None]).shape == (1, 2)


@pytest.mark.parametrize('symmetries', [1, 8])
def test_scores_are_turned_back(symmetries):
    class Same(nn.Module):
        def __init__(self): super().__init__(); self.one = nn.Parameter(torch.ones(1))
        def forward(self, x): return torch.cat([x, -x], 1)*self.one
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(pixel_scores(Same(), x, 2, symmetries), torch.cat([x, -x], 1), atol=1e-6)


def test_an_oracle_scores_full_marks(store):
    for i in range(3):
        s = heights_score(*column_answers(oracle(store.maps([i])[0], store.recipe), store, [i]))
        assert s['accuracy'] > .97 and s['true_atoms'] == 1 and s['false_atoms'] == 0 and s['pixels'] == 1, s


def test_an_empty_answer_scores_nothing(store):
    s = heights_score(*column_answers(oracle(0*store.maps([0])[0], store.recipe), store, [0]))
    assert s['accuracy'] == s['within_one'] == s['true_atoms'] == 0 and s['false_atoms'] == 1


def test_columns_are_read_where_they_are(store, recipe):
    scene, _ = sample(recipe, 2)
    t = column_table(scene[scene.arrays['column'] >= 0])
    metal = t[t['element'] == 58]
    scores = disc_means(20*F.one_hot(torch.as_tensor(store.maps([2])[0].astype(np.int64)), CLASSES).movedim(-1, 0).float()[None], store.sampling)[0]
    found = read_columns(scores, store.sampling)
    assert len(found) == len(metal)
    far = np.linalg.norm(found[['x', 'y']].to_numpy()[:, None] - np.column_stack([metal['x'], metal['y']]), axis=-1)
    assert far.min(1).max() < store.sampling and (found.height.to_numpy() == metal['count'][far.argmin(1)]).all()
    assert np.allclose(found.filter(like='p_').sum(1), 1) and (found.sd < .1).all()


def test_matches_are_one_to_one():
    true = pd.DataFrame(dict(x=[0., 5.], y=[0., 0.]))
    assert count_matched(pd.DataFrame(dict(x=[.2, .4, 9.], y=[0., 0., 0.])), true) == 1 and count_matched(true, true) == 2
    assert count_matched(true[:0], true) == 0
    found = pd.DataFrame(dict(x=[.2, 5.3, 9.], y=[0., 0., 0.], height=[3, 4, 5]))
    assert right_heights(found, true.assign(height=[3, 5])) == .5 and right_heights(found[:0], true.assign(height=3)) == 0


def test_a_column_is_made_higher_and_lower(recipe):
    scene = with_room(sample(recipe, 0)[0], 12, 2)
    t = column_table(scene[scene.arrays['column'] >= 0])
    c = t[t['element'] == 58][3]
    up = [0, 0, -zone('CeO2', '110').repeat[2]]
    for height in (c['count'] - 2, c['count'] + 2):
        new = with_height(scene, c['column'], height, up)
        z = np.sort(new.positions[new.arrays['column'] == c['column'], 2])
        exit_side = scene.positions[scene.arrays['column'] == c['column'], 2].max()
        assert len(z) == height and z.max() == pytest.approx(exit_side) and len(new) == len(scene) + height - c['count']


def test_more_vacuum_before_the_crystal_changes_nothing(recipe):
    scene, _ = sample(recipe, 1)
    waves = exit_waves([scene, with_room(scene, 7, 2)], 128, 300e3, 2.)
    a, b = intensity(waves, conditions(recipe, [1]), recipe.box_nm*10/128, 128)
    assert torch.allclose(a, b, atol=1e-4)


def test_the_likeliest_is_drawn_as_often_as_theory_says():
    """One pixel, two rates: the likelihood ratio's threshold on Poisson counts is known."""
    from scipy.stats import poisson
    a, b = 8., 13.
    edge = (b - a)/np.log(b/a)
    chosen = most_likely(torch.tensor([[a], [b]], dtype=torch.float64), 0, 20000, torch_rng(1))
    assert (chosen == 0).mean() == pytest.approx(poisson.cdf(np.floor(edge), a), abs=.01)


def test_the_best_reader_needs_counts(recipe):
    t = ideal_height_reader(recipe, 0, 2, [30, 30000], 40).groupby('dose').right.mean()
    assert t[30] < .8 and t[30000] > .99
    with pytest.raises(UserError, match='tilt_deg'):
        ideal_height_reader(load_recipe(ROOT/'data/recipes/ceria_heights_tilted.yaml'), 0, 1, [100])


def test_a_stopped_training_goes_on(store, tmp_path, monkeypatch):
    asked = dict(fit=range(8), watch=[10, 11], steps=4, bs=4, bf16=False)  # which precision is faster may differ from one moment to the next
    same = lambda a, b: all(torch.equal(*v) for v in zip(a.state_dict().values(), b.state_dict().values()))
    whole = train_heights(store, out=tmp_path/'a', **asked)
    assert len(pd.read_csv(tmp_path/'a/log.csv')) == 2

    save = Checkpoint._save
    def killed(self): save(self); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, '_save', killed)
        with pytest.raises(KeyboardInterrupt): train_heights(store, out=tmp_path/'b', **asked)
    assert len(pd.read_csv(tmp_path/'b/log.csv')) == 1
    assert same(whole, train_heights(store, out=tmp_path/'b', **asked))
    with monkeypatch.context() as m:  # it is done: no batch is looked at any more
        m.setattr(WaveLoader, 'create_batch', lambda *a: pytest.fail('trained again'))
        assert same(whole, train_heights(store, out=tmp_path/'b', **asked))


def test_heads_and_a_denoiser_in_front(store, tmp_path):
    denoiser = train_heights(store, range(8), [10], tmp_path/'d', 'denoiser', steps=2, bs=4)
    behind = train_heights(store, range(8), [10], tmp_path/'s', steps=2, bs=4, before=denoiser)
    regression = train_heights(store, range(8), [10], tmp_path/'r', 'regression', steps=2, bs=4)
    x, _ = frozen_pixels(store, [12])
    assert denoiser(x).shape == x.shape and behind(x).shape == (1, CLASSES, 96, 96) and regression(x).shape == x.shape
    assert pixel_scores(regression, x, CLASSES).shape == (1, CLASSES, 96, 96)
    with pytest.raises(UserError, match='no head'):
        train_heights(store, range(8), [10], tmp_path/'x', 'tail')
    with pytest.raises(UserError, match='two sides'):
        train_heights(store, range(8), [3], tmp_path/'x')


def test_other_recipes_have_no_heights(tiny):
    with pytest.raises(UserError, match='columns'):
        height_classes(tiny)
    assert height_classes(make_recipe(name='x', kind='columns', heights=[2, 4]))[-1] == '4'


def places(size=30, material='CeO2', turn=.4, noise=.1, seed=0):
    t = column_table(column_crystal(size, rng(seed), material))
    t = t[t['element'] == t['element'].max()]
    c, s = np.cos(turn), np.sin(turn)
    xy = np.column_stack([t['x'], t['y']])@np.array([[c, s], [-s, c]]) + 30 + rng(seed, 'noise').normal(0, noise, (len(t), 2))
    return xy, t['count']


@pytest.mark.parametrize('turn', np.linspace(0, np.pi, 9))
@pytest.mark.parametrize('material', ['CeO2', 'Au'])
def test_the_lattice_is_found_at_any_turn(material, turn):
    fit = fit_lattice(places(material=material, turn=turn)[0], material)
    assert fit.on.all() and fit.scale == pytest.approx(1, abs=.01) and len(set(map(tuple, fit.indices))) == len(fit.indices)
    check_columns(fit)


def test_wrong_materials_axes_and_noise_are_refused():
    with pytest.raises(UserError, match='times as far apart'):
        check_columns(fit_lattice(places(material='Au')[0], 'CeO2'))
    with pytest.raises(UserError, match='fewer than'):
        check_columns(fit_lattice(places()[0][:8]))
    square = np.stack(np.meshgrid(np.arange(0, 30, 2.9), np.arange(0, 30, 2.9)), -1).reshape(-1, 2)
    for wrong in (rng(0).uniform(0, 40, (100, 2)), square):
        with pytest.raises(UserError, match='lattice|apart'):
            check_columns(fit_lattice(wrong, 'CeO2'))
    with pytest.raises(UserError, match='too few'):
        fit_lattice(places()[0][:3])


def test_a_tilt_breaks_the_mirror_lines():
    def fitted(i, tilt):
        r = load_recipe(ROOT/'data/recipes/ceria_heights.yaml', heights=[8, 10], tilt_deg=tilt, gpts=128, out_gpts=96, box_nm=4, size_nm=2.8)
        counts, heights = simulate_movie(r, i, 1, 1, 10000.)
        fit = fit_lattice(true_columns(heights[0], r.sampling)[['x', 'y']].to_numpy())
        return replace(fit, asymmetry=asymmetry(counts[0], r.sampling, fit))
    straight, leaning = ([fitted(i, t) for i in range(4)] for t in (0, 4))
    assert max(f.asymmetry for f in straight) < .005 < np.median([f.asymmetry for f in leaning])
    for f in straight: check_axis(f)
    with pytest.raises(UserError, match='mirror lines of CeO2.*--tilted'):
        check_axis(max(leaning, key=lambda f: f.asymmetry))


def test_a_ladder_of_columns_has_no_say_about_its_axis():
    a, b = np.array([[1.9, 2.7], [1.9, -2.7]])
    fit = fit_lattice(15 + np.array([i*a + k*b for i in range(6) for k in range(2)]))
    assert np.isnan(asymmetry(rng(0).normal(size=(128, 128)), .39, fit))
    check_axis(replace(fit, asymmetry=float('nan')))


@pytest.mark.parametrize('material', ['CeO2', 'Au'])
def test_a_model_is_the_crystal_it_was_read_from(material):
    xy, count = places(material=material, noise=.05)
    model = build_model(pd.DataFrame(dict(x=xy[:, 0], y=xy[:, 1], height=count)), fit_lattice(xy, material))
    assert model.arrays['measured'].sum() == count.sum()
    apart = model.get_all_distances()[np.triu_indices(len(model), 1)].min()
    assert apart > (2.1 if material == 'CeO2' else 2.6)
    metal = model[model.arrays['measured']]
    second = np.sort(metal.get_all_distances(), 1)[:, 1:13]
    assert np.median(second) == pytest.approx(5.411/2**.5 if material == 'CeO2' else 4.078/2**.5, rel=.02), 'fcc neighbours'
    assert set(model.symbols) == ({'Ce', 'O'} if material == 'CeO2' else {'Au'})


def test_neighbouring_frames_only_help_what_stays():
    p = np.full((5, 1, 3), 1/3)
    p[0] = [.98, .01, .01]
    assert (forward_backward(p)[:, 0].argmax(-1) == 0).all()
    sure = np.eye(3)[[0, 0, 2, 2, 2]][:, None]
    assert (forward_backward(sure)[:, 0].argmax(-1) == [0, 0, 2, 2, 2]).all() and flicker(sure.argmax(-1)) == .25
    assert np.allclose(forward_backward(p).sum(-1), 1)


def test_forward_and_backward_are_the_sum_over_all_paths():
    from itertools import product
    g, stay = rng(3, 'paths'), .8
    p = g.dirichlet(np.ones(3), (4, 1))
    want = np.zeros((4, 3))
    for path in product(range(3), repeat=4):
        weight = np.prod([p[f, 0, k] for f, k in enumerate(path)])*np.prod([stay if a == b else (1 - stay)/2 for a, b in zip(path, path[1:])])
        for f, k in enumerate(path):
            want[f, k] += weight
    assert np.allclose(forward_backward(p, stay)[:, 0], want/want.sum(1, keepdims=True))


def test_a_step_is_dated():
    p = np.full((10, 2, 4), .05)
    p[:6, 0, 3], p[6:, 0, 2], p[:, 1, 1] = .85, .85, .85
    t = change_points(p)
    assert t.loc[0, ['frame', 'before', 'after']].tolist() == [6, 4, 3] and t.gain[0] > 8 and t.gain[1] < 1e-6


def test_a_movie_changes_once(recipe):
    counts, maps = simulate_movie(recipe, 0, 4, 2, 1e8)
    off = [np.abs(a - b).mean() for a, b in zip(counts, counts[1:])]
    assert counts.shape == (4, 96, 96) and off[1] > 2*max(off[0], off[2]) and 0 < (maps[0] != maps[1]).mean()
    _, grown = simulate_movie(recipe, 0, 2, 1, 1e3, change=1)
    assert grown[1].sum() > grown[0].sum()


@pytest.fixture(scope='module')
def image(store, recipe):
    """An image with its oracle, as a micrograph."""
    x, y = frozen_pixels(store, [4])
    m = Micrograph((x[0, 0].numpy()/CONTRAST + 1)*100, store.sampling, 'crystal')
    return m, oracle(y[0].numpy(), recipe)


def heights_of(network): return network.module.scores[0].argmax(0).numpy()


def test_tiles_give_what_one_pass_gives(image):
    m, network = image
    assert in_tiles(m.image.astype(np.float32), network.module).shape == (CLASSES, 96, 96)


def test_a_users_image_becomes_a_table_and_atoms(image, tmp_path):
    m, network = image
    text = write_heights(m, network, tmp_path/'out')
    table, atoms = pd.read_csv(tmp_path/'out/columns.csv'), ase.io.read(tmp_path/'out/model.xyz')
    true = true_columns(heights_of(network), m.sampling)
    assert len(table) == len(true) and f'{len(true)} columns of CeO2' in text
    assert atoms.arrays['measured'].sum() == table.height[table.on_lattice].sum()
    assert set(table.element[table.on_lattice]) == {'Ce'} and table.element[~table.on_lattice].isna().all()
    page = (tmp_path/'out/report.html').read_text()
    assert 'counts' in page and '<h2>Columns</h2>' in page and 'atoms in three dimensions' in page


def test_what_cannot_be_read_is_refused(image, recipe, tmp_path):
    m, network = image
    nothing = oracle(0*heights_of(network), recipe)
    with pytest.raises(UserError, match='too coarse'):
        image_columns(Micrograph(m.image, 2*m.sampling, 'coarse'), network)
    with pytest.raises(UserError, match='0 columns'):
        image_columns(m, nothing)
    with pytest.raises(UserError, match='200 kV.*300 kV'):
        image_columns(replace(m, voltage=2e5), network.with_card(energy_kev=300))
    assert len(image_columns(replace(m, voltage=3e5), network.with_card(energy_kev=300))[0])
    with pytest.raises(UserError, match='lattice|apart'):
        image_columns(m, network.with_card(material='Au'))
    with pytest.raises(UserError):
        write_heights(m, nothing, tmp_path/'none')
    assert not (tmp_path/'none').exists()


def test_an_image_without_mirror_lines_is_read_only_if_asked_for(image, tmp_path):
    m, network = image
    assert image_columns(m, network)[1].asymmetry < TILTED
    leaning = Micrograph(m.image + .5*np.roll(m.image, (2, 1), (0, 1)), m.sampling, 'leaning')  # a weaker ghost beside each column
    with pytest.raises(UserError, match='leaning: .*mirror lines'):
        write_heights(leaning, network, tmp_path/'out')
    assert not (tmp_path/'out').exists()
    assert 'mirror lines' in write_heights(leaning, network, tmp_path/'out', tilted=True)
    made = read_json(tmp_path/'out/run.json')
    assert made['tilted'] and made['asymmetry'] > TILTED


def test_simulated_images_and_movies_are_read_back(image, store, recipe):
    m, network = image
    heights = heights_of(network)
    good = read_simulated(m.image, heights, m.sampling, network)
    none = read_simulated(m.image, heights, m.sampling, oracle(0*heights, recipe))
    assert good['right'] == 1 and not good['refused'] and none['refused'] and none['unread']
    score = refusal_score(pd.DataFrame([good, good, none]))
    assert score['n'] == 3 and score['refused'] == pytest.approx(1/3) and score['right_if_read'] == 1 and score['right_if_refused'] is None

    counts, maps = simulate_movie(recipe, 4, 6, 3, 1e6)
    p, true = read_movie(counts, maps, 3, m.sampling, oracle(maps[0], recipe))  # never sees that anything changes
    score = movie_score(p, true, 3)
    assert 0 < score['found'] + score['accuracy'] < 1 and score['flicker'] == 0 and score['false'] == 0
    p[3:] = read_movie(counts, maps, 3, m.sampling, oracle(maps[1], recipe))[0][3:]
    moved = true[0] != true[-1]
    assert moved.any() and movie_score(p[:, true[-1] > 0], true[:, true[-1] > 0], 3)['found'] == 1


def lattice_image(n, mean=150, contrast=.3):
    """What an electron counter sees of crossed fringes."""
    y, x = np.mgrid[:n, :n]
    return np.random.default_rng(0).poisson(mean*(1 + contrast*np.cos(x/3)*np.cos(y/3))).astype(np.float32)


@pytest.mark.parametrize('gain', [1., 3.3])
@pytest.mark.parametrize('pedestal', [0., .3, -.3])
def test_noise_shows_whether_zero_is_zero(gain, pedestal):
    counts = gain*(lattice_image(512) + pedestal*150)
    ratio, slope, error = noise_slope(counts)
    assert abs(slope - (1 + pedestal)) < 3*error < .1 and ratio == pytest.approx(gain/(1 + pedestal), rel=.01)
    m = Micrograph(counts, .4, 'a.tif')
    if not pedestal: return check_counts(m)
    with pytest.raises(UserError, match='of the mean.*--counts') as e: check_counts(m)
    one_sentence(e)
    check_counts(replace(m, file=dict(electrons=True)))


def test_grey_levels_for_display_are_no_counts():
    stretched = lambda a: ((a - a.min())/np.ptp(a)*255).round().astype(np.float32)
    for a, how, says in ((stretched(lattice_image(512)), dict(stored_as='uint8'), '8-bit'), (257*stretched(lattice_image(512)), {}, 'of the mean'),
                         (3*lattice_image(80), {}, 'too little to tell'), (3*lattice_image(40), {}, 'too little to tell')):
        with pytest.raises(UserError, match=says) as e: check_counts(Micrograph(a, .4, 'a.tif', file=how))
        one_sentence(e)
    check_counts(Micrograph(lattice_image(80), .4, 'counted.tif'))  # as few as these, but their variance is their mean


def test_one_height_for_columns_that_differ_is_no_answer(image, recipe, tmp_path):
    m, network = image
    columns, fit = image_columns(m, network)
    assert columns.height.nunique() > 1
    check_heights(m, columns, fit)
    with pytest.raises(UserError, match='all columns would have 5 atoms, but') as e: check_heights(m, columns.assign(height=5), fit)
    one_sentence(e)
    flat = np.where(heights_of(network) > 0, 5, 0)
    with pytest.raises(UserError, match='no answer'): write_heights(m, oracle(flat, recipe), tmp_path/'out')
    assert not (tmp_path/'out').exists()
    alike = m.image.copy()
    alike[:] = np.random.default_rng(0).poisson(100, alike.shape)
    check_heights(replace(m, image=alike), columns.assign(height=5), fit)


@pytest.mark.parametrize('name, says', [('ceria_offset0.3.tif', 'of the mean'), ('ceria_8bit.tif', '8-bit'), ('ceria_dm_origin100.dm3', '')])
def test_heights_of_files_that_count_and_of_those_that_do_not(name, says, tmp_path, capsys):
    status = main(['heights', str(shared('inputs')/name), '--out', str(tmp_path/'out')])
    assert status == (2 if says else 0) and says in capsys.readouterr().err and (tmp_path/'out').exists() == (not says)
    if not says:
        main(['heights', str(shared('inputs')/'ceria_dm_origin0.dm3'), '--out', str(tmp_path/'same')])
        assert pd.read_csv(tmp_path/'out/columns.csv').equals(pd.read_csv(tmp_path/'same/columns.csv'))
    if name == 'ceria_offset0.3.tif': assert main(['heights', str(shared('inputs')/name), '--counts', '--out', str(tmp_path/'out')]) == 0


def test_tilted_crystals_have_confidences_of_their_own(image, tmp_path):
    m, network = image
    network = network.with_card(temperature_tilted=8., heights=[3, 10], defocus_nm=[1, 9], energy_kev=300)
    sure, unsure = (image_columns(m, network, tilted)[0] for tilted in (False, True))
    assert (unsure.confidence < sure.confidence).all() and unsure.height.equals(sure.height)
    write_heights(m, network, tmp_path/'out')
    assert '3 to 10 atoms, 1 to 9 nm underfocus and 300 kV' in (tmp_path/'out/report.html').read_text()


def test_the_command_refuses_in_one_sentence(tmp_path, capsys, tiny):
    tifffile.imwrite(tmp_path/'a.tif', np.random.default_rng(0).poisson(50, (256, 256)).astype(np.uint16))
    assert main(['heights', str(tmp_path/'a.tif'), '--material', 'Pt', '--pixel-size', '.04', '--out', str(tmp_path/'o')]) == 2
    assert 'no network for columns of Pt' in capsys.readouterr().err and not (tmp_path/'o').exists()
    Network(build('cnn4', 2), Card(arch='cnn4', classes=[*'ab'], sampling=1., gpts=64)).save(tmp_path/'net.safetensors')
    assert main(['heights', str(tmp_path/'a.tif'), '--model', str(tmp_path/'net.safetensors'), '--out', str(tmp_path/'o')]) == 2
    printed = capsys.readouterr().err
    assert 'net.json lacks material, zone: for heights' in printed and 'with --model' in printed and not (tmp_path/'o').exists()


@pytest.mark.parametrize('material, recipe', [('CeO2', 'ceria_heights'), ('Au', 'gold_heights')])
def test_the_kept_networks_read_new_crystals_and_refuse_noise(tmp_path, material, recipe):
    network = Network.load(ROOT/f'data/models/heights_{material}.safetensors')
    r = read_yaml(ROOT/f'data/recipes/{recipe}.yaml') | dict(structures=4, seed=77, dose=3000)
    as_trained = make_recipe(**r) if 'mtf' in network.card.optics else recorded_recipe(r | dict(mtf=None))  # else quasi-coherent
    fresh = simulate(as_trained, tmp_path/'s', 0)
    s = heights_score(*column_answers(network, fresh, range(4)))
    assert s['accuracy'] > .4 and s['within_one'] > .8 and s['true_atoms'] > .98 and s['false_atoms'] < .01
    noise = Micrograph(np.random.default_rng(0).poisson(100, (256, 256)).astype(np.float32), fresh.sampling, 'noise')
    with pytest.raises(UserError, match='noise'):
        image_columns(noise, network)


@pytest.mark.xfail(strict=True, reason='not reached, see figures/heights_dose')
@pytest.mark.parametrize('test, column, goal', [('dose 1000', 'accuracy', .94), ('dose 125', 'accuracy', .85), ('dose 1000', 'within_one', .99),
                                                ('dose 125', 'within_one', .99), ('tilt 2', 'accuracy', .85)])
def test_heights_are_read_as_well_as_was_wanted(test, column, goal):
    t = pd.read_csv(ROOT/'data/results/heights.csv')
    assert t[t.test == test].groupby('seed')[column].min().min() >= goal


@pytest.mark.xfail(strict=True, reason='0.03 to 0.06, see figures/heights_dose')
@pytest.mark.parametrize('test', ['dose 1000', 'dose 125'])
def test_confidences_are_as_calibrated_as_was_wanted(test):
    t = pd.read_csv(ROOT/'data/results/heights.csv')
    assert t[t.test == test].calibration_error.max() <= .03


def test_hardly_a_false_atom_is_found():
    t = pd.read_csv(ROOT/'data/results/heights.csv')
    assert (t[t.test.isin(['dose 125', 'dose 1000'])].false_atoms <= .01).all()


def test_noise_is_measured(store, recipe):
    at = {dose: float(image_noise(frozen_pixels(store.imaged(dose=dose), [3])[0])) for dose in (100., 1600.)}
    assert at[100.] == pytest.approx(4*at[1600.], rel=.05)  # shot noise
    assert at[1600.] == pytest.approx(CONTRAST/(1600**.5*store.sampling), rel=.15)  # of the mean's counts per pixel


def test_temperatures_are_fitted_to_the_noise(store):
    network = oracle(store.maps([0])[0], store.recipe, sure=1.)  # always right about sample 0, and not sure
    by = fitted_temperature(network, store, [0])
    assert by['temperature'] < .5 and by['noise']['range'][0]*(1 - 1e-6) <= by['noise']['at'] <= by['noise']['range'][1]*(1 + 1e-6)
    assert fitted_temperature(network, store, [0], by_noise=False)['noise'] is None
    assert fitted_temperature(network, store, [1])['temperature'] > by['temperature']
