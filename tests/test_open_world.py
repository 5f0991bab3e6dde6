"""Several answers: masked losses, silent headers, maps that move with their images, calibration, abstention, and files."""
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from conftest import ROOT, stand_in
from nanoshape.core import UserError, torch_rng
from nanoshape.datasets.batches import dihedral, frozen_set, pairs
from nanoshape.datasets.recipes import load_recipe
from nanoshape.datasets import batches
from nanoshape.learn import abstention, multi_task
from nanoshape.learn.evaluate import UNKNOWN
from nanoshape.learn.abstention import (FAR, all_answers, answers, calibrated, condition_of, distance, fit_confidence, fit_thresholds,
                                        header_numbers, readings, shape_words, with_decision)
from nanoshape.learn.models import build
from nanoshape.learn.multi_task import (ANSWERS, FINE, AnswerLoader, AnswerLoss, answer_loaders, coarse_maps, coarser, frozen_answers,
                                        mean_and_spread, mean_direction, output_names, quantile, saved, slices, soft_goal,
                                        train_answers, truths, unit)
from nanoshape.learn.network import Network

N = len(output_names())


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    """Small particles of all forms in a small field."""
    from nanoshape.datasets.store import simulate
    r = load_recipe(ROOT/'data/recipes/open_world.yaml', structures=24, gpts=192, box_nm=6, out_gpts=64, wave_gpts=128,
                    size_nm={'uniform': [1.5, 3]}, shift_nm=.4, defocus_nm={'uniform': [-30, 30]}, Cs_um={'uniform': [-20, 20]})
    return simulate(r, tmp_path_factory.mktemp('forms')/'store', workers=0)


@pytest.fixture(scope='module')
def network(store):
    torch.manual_seed(0)
    return calibrated(build('multi_task_maps', N), store, range(12), range(12, 24))


def goal_of(n=6):
    """Rows of truths, all known."""
    g = torch_rng(1)
    return torch.stack([torch.randint(len(v), (n,), generator=g).float() if isinstance(v[0], (str, list))
                        else torch.empty(n).uniform_(v[0], v[-1], generator=g) for v in ANSWERS.values()], 1)


def test_what_has_no_truth_does_not_count():
    loss, scores, goal = AnswerLoss(), torch.randn(6, N, generator=torch_rng(0)).requires_grad_(), goal_of()
    whole, k = loss.of(scores, goal), [*ANSWERS].index('truncation')
    goal[:3, k] = torch.nan
    half = loss.of(scores, goal)
    rest = loss.of(scores[3:], goal[3:])
    assert torch.isclose(half['truncation'], rest['truncation']) and half['truncation'] != whole['truncation']
    assert all(half[a] == whole[a] for a in ANSWERS if a != 'truncation')
    loss(scores, goal).backward()
    assert scores.grad.isfinite().all() and not scores.grad[:3, slices()['truncation']].any() and scores.grad[3:, slices()['truncation']].any()
    goal[:, k] = torch.nan
    assert loss.of(scores, goal)['truncation'] == 0 and loss(scores, goal).isfinite()


def test_the_best_scores_tell_the_goal():
    loss, goal = AnswerLoss(), goal_of()
    best = torch.cat([soft_goal(goal[:, j], v).clamp(min=1e-12).log() for j, v in enumerate(ANSWERS.values())], 1)
    assert loss(best, goal) < loss(best + .3*torch.randn(best.shape, generator=torch_rng(0)), goal) < loss(torch.zeros(6, N), goal)


def test_a_number_that_a_header_does_not_say_has_no_influence():
    net, x = build('multi_task', N).eval(), torch.randn(2, 1, 64, 64, generator=torch_rng(0))
    told = header_numbers(2, 300, 'Au', 1000)
    silent = told.masked_fill(torch.tensor([False, True, True]), torch.nan)
    assert torch.equal(net(x, silent), net(x, header_numbers(2, 300)))
    assert torch.equal(net(x, header_numbers(2)), net(x))
    assert len({net(x, h)[0, 0].item() for h in (told, silent, header_numbers(2), header_numbers(2, 190, 'Pd', 450))}) == 4


def test_the_spectrum_says_the_same_of_a_turned_image_and_something_else_of_other_planes():
    net = build('multi_task_maps_spectrum', N).eval()
    y, x = np.mgrid[:96, :96]
    waves = lambda period, angle: torch.from_numpy(np.cos(2*np.pi*(x*np.cos(angle) + y*np.sin(angle))/period)).float()[None, None]
    noise = .5*torch.randn(1, 1, 96, 96, generator=torch_rng(0))
    crystal = waves(4, .3) + waves(4.6, 1.4) + noise
    features = lambda image: net.both(image)[1][:, 256:]
    turned, other = (features(v) - features(crystal) for v in (torch.rot90(crystal, 1, (-2, -1)), waves(5, .3) + waves(4.6, 1.4) + noise))
    assert turned.norm() < .05*features(crystal).norm() and other.norm() > 5*turned.norm()


def test_each_choice_has_a_network_of_its_own():
    from nanoshape.learn.models import ARCHITECTURES, multi_task_name
    assert [multi_task_name(*v) for v in ((), (False,), (True, True), (True, False, False), (False, True, True, False))] == \
        ['multi_task_maps', 'multi_task', 'multi_task_maps_spectrum', 'multi_task_maps_no_header', 'multi_task_spectrum_no_image']
    net, x = build('multi_task_spectrum_no_image', N).eval(), torch.randn(2, 1, 64, 64, generator=torch_rng(0))
    assert not net.image and net.spectrum and net.pyramid is None and 'multi_task_no_image' not in ARCHITECTURES
    untold = build('multi_task_maps_no_header', N).eval()
    assert torch.equal(untold(x, header_numbers(2, 300, 'Au', 1000)), untold(x))


@pytest.mark.parametrize('k', range(8))
def test_a_map_moves_with_its_image(store, monkeypatch, k):
    """Where the particle is in the image is where it is in the map: with the sign of a shift or a turn wrong it would not be."""
    shift = (7, -5)
    monkeypatch.setattr(batches, 'fresh_images', lambda waves, n, *_, **__: torch.from_numpy(store.maps(n)).float())
    for name in ('saved', 'coarser'): monkeypatch.setattr(multi_task, name, lambda image, g: image)
    monkeypatch.setattr(batches, 'moved', lambda both, *_: dihedral(both.roll(shift, (-2, -1)), k))
    x, _, goal = AnswerLoader(store, range(4), bs=4, device=torch.device('cpu')).one_batch()
    covered, seen = goal[:, len(ANSWERS):].reshape(4, 2, 8, 8), x[:, 0]
    back = coarse_maps(seen - seen.amin((-2, -1), keepdim=True), torch.ones(4))
    assert torch.allclose(back[:, 0], covered[:, 0], atol=.02)
    wrong = coarse_maps((seen - seen.amin((-2, -1), keepdim=True)).flip(-1), torch.ones(4))
    assert not torch.allclose(wrong[:, 0], covered[:, 0], atol=.1)


def test_truth_belongs_to_the_image_of_the_epoch(store):
    from nanoshape.datasets.samples import conditions
    loader = AnswerLoader(store, range(24), bs=4, device=torch.device('cpu'))
    a, b = (loader.one_batch()[2][:, :len(ANSWERS)] for _ in range(2))
    focus = lambda draws, n: multi_task.signed_root(conditions(store.recipe, n, draws).defocus.numpy()/10)
    assert {round(float(v), 4) for v in a[:, 5]} == {round(float(v), 4) for v in focus(1, range(4))}
    assert not torch.equal(a[:, 5], b[:, 5])
    assert np.isnan(truths(store, range(24))[:, 2]).any() and np.isfinite(truths(store, range(24))[:, [0, 1, 4, 5, 6]]).all()


def test_a_beam_is_told_as_a_direction():
    """[1 1 0], [1 1 1] and one in between come back; a crystal's own symmetry, mirrors included, changes nothing."""
    true = unit([[1, 1, 0], [1, 1, 1], [5, 2, 1]])
    number = (true@unit(FINE).T).argmax(1).float()
    p = soft_goal(torch.cat([number, torch.tensor([torch.nan])]), ANSWERS['beam'])
    assert not p[3].any() and torch.allclose(p[:3].sum(1), torch.ones(3))
    mean, spread = mean_direction(p[:3], ANSWERS['beam'])
    assert np.degrees((mean*true).sum(1).clamp(max=1).arccos()).max() < 2.6 and spread.max() < np.radians(2)
    either = mean_direction(p[:2].mean(0, keepdim=True), ANSWERS['beam'])[1]
    assert np.radians(15) < either < np.radians(20)  # 35.3° apart


def test_the_true_beam_is_that_of_the_rotation(store):
    turn = dict(zip(('rotation_x', 'rotation_y', 'rotation_z'), (0, np.pi/4, 0)))  # about y: [1 0 1] along the beam
    rows = pd.DataFrame([turn | dict(crystal='one crystal'), turn | dict(crystal='icosahedron')])
    got = multi_task.beam_numbers(rows)
    assert torch.allclose(unit(FINE)[int(got[0])], unit([1, 1, 0]), atol=1e-3) and np.isnan(got[1])
    told, true = multi_task.beam_numbers(store.labels), store.labels.angle_110
    single = np.isfinite(told)
    assert (single == (store.labels.crystal == 'one crystal')).all()
    off = (unit(FINE)[told[single].astype(int)]@unit([1, 1, 0])).arccos()
    assert np.allclose(off, true[single], atol=.01)  # the triangle's [110] is the nearest of all


def test_bins_become_numbers():
    for name in ('truncation', 'focus', 'dose'):
        v = ANSWERS[name]
        true = torch.tensor([v[5] + .3*(v[1] - v[0]), v[9]])
        p = soft_goal(true, v)
        mean, spread = mean_and_spread(p, v)
        assert torch.allclose(mean, true, atol=.05*(v[1] - v[0])) and (spread < .3*(v[1] - v[0])).all()
        assert torch.allclose(quantile(p, v, .5), true, atol=.1*(v[1] - v[0]))
        low, high = (quantile(p, v, q) for q in (.05, .95))
        assert torch.allclose((high - low)/(v[1] - v[0]), torch.tensor(3.3), atol=.4)  # ± 1.645 σ, and a bin's own width


def test_eight_bits_keep_the_order_of_the_grey_levels():
    image = torch.rand(4, 16, 16, generator=torch_rng(0))*1e4
    out = saved(image, torch_rng(3), 1., 0.)
    assert out.min() == 0 and out.max() == 255 and (out == out.round()).all()
    order = image[0].flatten().argsort()
    assert (out[0].flatten()[order].diff() >= 0).all()


def test_files_blur_and_pack_but_do_not_move():
    """What a file does to an image leaves its large features where they are, and takes the finest away."""
    y, x = np.mgrid[:64, :64]
    wide = torch.from_numpy(np.exp(-((x - 20)**2 + (y - 40)**2)/200)).float()[None].repeat(4, 1, 1)
    for changed in (coarser(wide, torch_rng(0), 1.), saved(wide, torch_rng(0), 1., 1.)/255):
        v = changed - changed.amin((-2, -1), keepdim=True)
        centre = [(v*torch.from_numpy(a)).sum((-2, -1))/v.sum((-2, -1)) for a in (x, y)]
        assert np.allclose(centre[0], (wide*torch.from_numpy(x)).sum((-2, -1))/wide.sum((-2, -1)), atol=1.5)
        assert np.allclose(centre[1], (wide*torch.from_numpy(y)).sum((-2, -1))/wide.sum((-2, -1)), atol=1.5)
    waves = lambda period: torch.from_numpy(np.cos(2*np.pi*x/period)).float()[None]
    left = [float(coarser(waves(p), torch_rng(1), 1., .5).std()/waves(p).std()) for p in (2.2, 3.2, 8)]
    assert left[0] < .5 and left[1] < left[2] and left[2] > .8
    grain = torch.rand(6, 64, 64, generator=torch_rng(2))
    off = [(saved(grain, torch_rng(3), 1., 1.) - saved(grain, torch_rng(3), 1., 0.)).std((-2, -1))]
    assert (off[0] > 1).all()  # JPEG takes something away of each


def test_a_network_is_the_same_behind_a_file(network, store, tmp_path):
    network.save(tmp_path/'model.safetensors')
    again, images = Network.load(tmp_path/'model.safetensors'), frozen_set(store, pairs(range(12, 15), 1))
    a, b = (answers(n, images, store.sampling, energy_kev=200, element=['Au', None, 'Pt']) for n in (network, again))
    assert a.equals(b) and a.distance.gt(0).all() and again.card.other['answers'] == ANSWERS
    with pytest.raises(UserError, match='several answers'):
        again.probabilities(images)


def test_other_networks_are_refused(store):
    with pytest.raises(UserError, match='one answer'):
        answers(stand_in(nn.Flatten(), classes=('a', 'b')), torch.zeros(1, 64, 64))
    with pytest.raises(UserError, match='no element'):
        header_numbers(1, element='Unobtainium')


def test_loaders_refuse_other_samples(tiny_store, store):
    with pytest.raises(UserError, match='forms'):
        answer_loaders(tiny_store, range(4), [5])
    with pytest.raises(UserError, match='two sides'):
        answer_loaders(store, range(4), [3])


@pytest.fixture(scope='module')
def told():
    """Probabilities of 9000 images by a network that is better in some groups than in others, and the true places."""
    g, n = np.random.default_rng(0), 9000
    y, group = g.integers(6, size=n), g.integers(9, size=n)
    z = g.normal(size=(n, 6)) + (1 + group[:, None]/2)*np.eye(6)[y]
    p = np.exp(2*z)/np.exp(2*z).sum(1, keepdims=True)
    table = {f'p_{c}': v for c, v in zip(ANSWERS['crystal'], p.T)}
    return pd.DataFrame(table).assign(condition=group, distance=0.), y


def test_the_true_name_is_ruled_out_as_seldom_as_promised(told):
    """In each group, on images that the thresholds have not seen."""
    t, y = told
    other = dict(answers=ANSWERS, distance_max=1., thresholds=fit_thresholds(t[:4500], y[:4500], miss=.05), least_confidence=[1.]*9)
    said = with_decision(t[4500:], other)
    truth = np.array(ANSWERS['crystal'])[y[4500:]]
    missed = pd.Series([c not in names.split(', ') for c, names in zip(truth, said.names)]).groupby(said.condition.to_numpy()).mean()
    assert .02 < missed.min() and missed.max() < .08 and set(said.crystal) == {UNKNOWN}
    assert fit_thresholds(t[:10], y[:10])[0] == 0  # too few to say


def test_a_wrong_name_is_given_as_seldom_as_promised(told):
    """Of all and in each group, on images that the threshold has not seen; and what may be said is said."""
    t, y = told
    other = dict(answers=ANSWERS, distance_max=1., thresholds=[0.]*9, least_confidence=fit_confidence(t[:4500], y[:4500]))
    said = with_decision(t[4500:], other)
    named = said.crystal != UNKNOWN
    wrong = named & (said.crystal != np.array(ANSWERS['crystal'])[y[4500:]])
    assert .004 < wrong.mean() < .016 and wrong.groupby(said.condition).mean().max() < .045
    assert named.groupby(said.condition).mean().iloc[-1] > .9 > .3 > named.groupby(said.condition).mean().iloc[0]
    assert fit_confidence(t[:200], y[:200])[0] == 1  # too few of a group to say


def test_what_is_far_from_the_training_gets_no_answer(network, store):
    x, header, _ = frozen_answers(store, pairs(range(12, 24), 1))
    scores, features = readings(network.module, x, header)
    limit = network.card.other['distance_max']
    assert (distance(network.module, features) > limit).mean() <= max(2*FAR, 1/12)
    strange = features + 20*features.std()
    table = with_decision(all_answers(network.module, scores, strange), network.card.other)
    assert set(table.crystal) == {UNKNOWN} and set(table.reason) == {abstention.REASONS[0]}


def test_words_follow_from_numbers():
    assert shape_words(0, .03, 0) == 'octahedron' and shape_words(.97, 1, 0) == 'cube'
    assert shape_words(.05, .25, 0) == 'between octahedron and truncated octahedron'
    assert shape_words(0, 1, 0) == 'octahedron to cube' and shape_words(.6, .7, .6) == 'rounded between cuboctahedron and truncated cube'
    assert shape_words(*np.array([0, 1, 0.])) == 'octahedron to cube'  # as from a table
    assert condition_of([0, -59, 61], [499, 501, 3001]).tolist() == [0, 4, 8]


def test_an_interrupted_training_ends_as_an_uninterrupted_one(store, tmp_path, monkeypatch):
    from nanoshape.learn.train import Checkpoint
    ask = dict(steps=6, bs=8, bf16=False, maps=False)  # two epochs of three batches
    whole = train_answers(store, range(20), [20, 21], tmp_path/'whole', **ask)
    plain = Checkpoint.after_epoch

    def killed(self):
        plain(self)
        raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'after_epoch', killed)
    with pytest.raises(KeyboardInterrupt):
        train_answers(store, range(20), [20, 21], tmp_path/'killed', **ask)
    monkeypatch.setattr(Checkpoint, 'after_epoch', plain)
    resumed = train_answers(store, range(20), [20, 21], tmp_path/'killed', **ask)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_scores_count_what_the_table_says(network, store):
    t = abstention.answer_table(network, store, pairs(range(24), 1))
    t.loc[:9, 'crystal'], t.loc[:9, 'best'] = t.true_crystal[:10], t.true_crystal[:10]  # ten answers, all right
    t.loc[10:, 'crystal'] = UNKNOWN
    t.loc[10:13, ['crystal', 'best']] = 'decahedron'
    t.loc[10:13, 'true_crystal'] = 'amorphous'  # four answers, all wrong
    s = abstention.answer_scores(t)
    assert s['n'] == 24 and s['answered'] == 14/24 and s['wrong_answered'] == 4/24 and s['accuracy_answered'] == 10/14
    assert s['wrong_answered_low'] <= 4/24 <= s['wrong_answered_high']
    off = (t.width - t.true_width).abs().mean()
    assert s['width_error'] == pytest.approx(off) and s['truncation_error'] == pytest.approx((t.truncation - t.true_truncation).abs().mean())
    cells = abstention.by_condition(t)
    assert cells.n.sum() == 24 and (cells.n*cells.answered).sum() == pytest.approx(14) and (cells.n*cells.wrong_answered).sum() == pytest.approx(4)
    assert np.allclose(t.true_focus, np.sign(t.defocus_nm)*np.sqrt(t.defocus_nm.abs()), atol=1e-3)
