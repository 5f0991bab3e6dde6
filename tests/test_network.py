"""Models, training, scores, networks with their cards, model files."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, one_sentence, stand_in
from nanoshape.core import UserError, read_json
from nanoshape.datasets.batches import cut_out, network_input
from nanoshape.learn.evaluate import (ideal_observer, calibration_error, confidence_threshold, conformal_threshold,
                                      fit_temperature, logits, reliability, risk_coverage, score, wilson)
from nanoshape.learn.models import build, cnn
from nanoshape.learn.train import Autocast, bf16_pays
from nanoshape.learn.network import (COARSE, FOCUS_MARGIN, Card, Network, card_from, card_values, outside,
                                     temperature_at, training)
from nanoshape.studies.experiments import simulated_micrograph, train_and_test


def test_networks_end_in_two_by_two_maps():
    for b, px in ((4, 32), (5, 64), (6, 128)):
        assert cnn(b)[:b](torch.zeros(2, 1, px, px)).shape[-2:] == (2, 2)
    with pytest.raises(UserError):
        build('resnet152', 5)


def test_wilson_known_values():
    """Textbook values (Newcombe 1998, table I): 81 of 263, and 0 of 20."""
    assert np.allclose(wilson(81, 263), (.2553, .3662), atol=5e-4)
    assert np.allclose(wilson(0, 20), (0, .1611), atol=5e-4)


def test_score_counts():
    s = score([0, 0, 1, 1, 1], np.eye(2)[[0, 1, 1, 1, 0]], ['a', 'b'])
    assert s['confusion'] == [[1, 1], [1, 2]] and s['correct'] == 3 and s['chance'] == .6
    json.dumps(s)


def test_temperature_changes_no_answer_and_finds_the_truth():
    g = torch.Generator().manual_seed(0)
    truth = 2*torch.randn(3000, 4, generator=g)
    y = torch.multinomial(truth.softmax(1), 1, generator=g)[:, 0]
    assert abs(fit_temperature(truth*2.5, y) - 2.5) < .3
    assert .05 <= fit_temperature(torch.eye(4)*50, torch.arange(4)) <= 20  # all right: must not diverge


def test_threshold():
    p = np.array([[.9, .1]]*20 + [[.6, .4]]*20)
    y = np.array([0]*20 + [0, 1]*10)
    assert confidence_threshold(p, y, .95) == .9 and confidence_threshold(p, y, .7) == .6 and confidence_threshold(p, 1 - y*0, .9) > 1


def test_a_network_learns_what_can_be_learnt():
    """Two classes of fringes, told apart within a few steps: the learner, the callback and the loss do their work."""
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from nanoshape.learn.train import train
    g = torch.Generator().manual_seed(0)
    y = torch.arange(96) % 2
    x = torch.randn(96, 1, 64, 64, generator=g) + torch.cos(torch.arange(64)*torch.where(y == 0, .6, 1.4)[:, None])[:, None, None]
    data = list(zip(x, y))
    for bf16 in (False, True):
        cpu = torch.device('cpu')
        dls = DataLoaders(DataLoader(data[:64], bs=16, shuffle=True, device=cpu), DataLoader(data[64:], bs=32, device=cpu))
        dls.vocab = ['wide', 'narrow']
        learn = train(dls, 'cnn4', epochs=6, lr=3e-3, bf16=bf16)
        assert any(isinstance(c, Autocast) for c in learn.cbs) == bf16
        assert (logits(learn.model, x[64:]).argmax(1) == y[64:]).float().mean() > .95
        assert next(learn.model.parameters()).dtype == torch.float32


def test_measuring_bf16_leaves_the_weights_alone():
    net = build('cnn4', 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bf16_pays(net, torch.randn(4, 1, 32, 32), steps=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_run_is_repeatable_and_kept(tiny, run, tmp_path):
    out, m = run
    assert m['n_train'] + m['n_valid'] + m['n'] == len(tiny)
    assert {p.name for p in out.iterdir()} == {'waves', 'log.csv', 'model.safetensors', 'model.json', 'metrics.json'}
    stamp = (out/'model.safetensors').stat().st_mtime_ns
    assert train_and_test(tiny, out, 'cnn4', epochs=2, workers=0) == m
    assert (out/'model.safetensors').stat().st_mtime_ns == stamp, 'a finished run was trained again'
    with pytest.raises(UserError, match='other parameters'):
        train_and_test(tiny, out, 'cnn4', epochs=3, workers=0)
    again = train_and_test(tiny, tmp_path/'again', 'cnn4', epochs=2, workers=0)
    assert again['params'] == m['params'] and again['n'] == m['n']


def test_the_card_says_what_the_network_is_for(run, tiny):
    card = read_json(run[0]/'model.json')
    assert card['classes'] == list(tiny.classes) and card['sampling'] == tiny.sampling and card['gpts'] == tiny.out_gpts
    lo, hi = card['feret_range_nm']
    assert 1.5 < lo < hi < 3.2, 'particles of 2 to 2.8 nm, an atom wider'
    assert card['test']['n'] == run[1]['n'] and len(card['log']['epoch']) == 2


def test_damaged_or_foreign_model_files_are_refused(tmp_path):
    net = build('cnn4', 2)
    path = tmp_path/'m.safetensors'
    Network(net, Card(arch='cnn4', classes=['a', 'b'], sampling=.8, gpts=64)).save(path)
    assert Network.load(path).classes == ('a', 'b')
    good, card = path.read_bytes(), read_json(tmp_path/'m.json')

    def refused(match):
        with pytest.raises(UserError, match=match):
            Network.load(path)
    path.write_bytes(good[:-100])
    refused('weights')
    path.write_bytes(b'\x80\x04pickle')
    refused('weights')
    path.write_bytes(good)
    changes = (dict(card, arch='os.system'), 'architecture'), (dict(card, classes=['a', 'b', 'c']), 'weights'), ({'arch': 'cnn4'}, 'lacks')
    for bad, match in changes:
        (tmp_path/'m.json').write_text(json.dumps(bad))
        refused(match)
    (tmp_path/'m.json').unlink()
    refused('no file')


# ---- cards

GOOD = dict(arch='cnn4', classes=['a', 'b'], sampling=.8, gpts=64)


@pytest.fixture
def saved(tmp_path):
    """A model file, and what writes another card beside it."""
    path = tmp_path/'m.safetensors'
    Network(build('cnn4', 2), Card(**GOOD)).save(path)
    return path, lambda values: path.with_suffix('.json').write_text(json.dumps(values))


@pytest.mark.parametrize('changes, says', [
    (dict(sampling=0), 'sampling must be'), (dict(sampling=float('nan')), 'sampling must be'), (dict(sampling=float('inf')), 'sampling must be'),
    (dict(sampling=True), 'sampling must be'), (dict(sampling='0.8'), 'sampling must be'), (dict(gpts=0), 'gpts must be'),
    (dict(gpts=64.5), 'gpts must be'), (dict(temperature=0), 'temperature must be'), (dict(temperature=-1), 'temperature must be'),
    (dict(temperature_tilted=0), 'temperature_tilted must be'), (dict(classes=['a', 'a']), 'different names'), (dict(classes=[]), 'different names'),
    (dict(classes=[1, 2]), 'different names'), (dict(classes='ab'), 'different names'), (dict(symmetries=10**9), 'symmetries must be'),
    (dict(symmetries=0), 'symmetries must be'), (dict(threshold=2), 'threshold must be'), (dict(threshold=-.1), 'threshold must be'),
    (dict(feret_range_nm=[9, 1]), 'the smaller first'), (dict(feret_range_nm=[1]), 'two numbers'), (dict(heights=[10, 3]), 'the smaller first'),
    (dict(defocus_nm=[9, float('nan')]), 'two numbers'), (dict(noise=dict(range=[.5, 4.], power=.5)), r'a mean \(at\)'),
    (dict(noise=dict(at=1., range=[4., .5], power=.5)), 'noise must be'), (dict(noise=dict(at=0, range=[.5, 4.], power=.5)), 'noise must be'),
    (dict(noise=dict(at=1., range=[0, 4.], power=.5)), 'noise must be'), (dict(cut=-96), 'cut must be'), (dict(cut=96), 'cut must not exceed'),
    (dict(noise_max=-.1), 'noise_max must be'), (dict(fringe_snr_min='none'), 'fringe_snr_min must be'),
    (dict(optics=dict(Cs_um=[1.])), 'optics must be'), (dict(recipe='cubes'), 'recipe must be'), (dict(recipes=5), 'recipes must be'),
    (dict(recipe=dict(energy_kev='high')), "recipe's energy_kev"), (dict(heights=[2.5, 9]), 'whole numbers'), (dict(material=79), 'material must be'),
    (dict(log=dict(epoch=[0, 1], loss=[.5])), 'one length'), (dict(classes=[['a'], ['b']]), 'different names'), (dict(arch=5), 'arch must be'),
    (dict(classes=['a', 'b', 'c']), 'does not hold weights for its card')])
def test_a_card_that_cannot_be_is_refused_in_one_sentence(changes, says, saved):
    path, write = saved
    write({**GOOD, **changes})
    with pytest.raises(UserError, match=says) as e:
        Network.load(path)
    one_sentence(e)


@pytest.mark.parametrize('key', GOOD)
def test_a_card_without_what_every_card_has_is_refused(key, saved):
    path, write = saved
    for lacking in ({k: v for k, v in GOOD.items() if k != key}, {**GOOD, key: None}):
        write(lacking)
        with pytest.raises(UserError, match=f'lacks {key}$') as e:
            Network.load(path)
        one_sentence(e)


@pytest.mark.parametrize('values', [[], ['arch', 'classes'], 'cnn4', 5, None])
def test_a_card_that_is_no_table_is_refused(values, saved):
    path, write = saved
    write(values)
    with pytest.raises(UserError, match='no table') as e:
        Network.load(path)
    one_sentence(e)


def test_a_card_cannot_be_made_or_changed_into_one_that_cannot_be(saved):
    network = Network.load(saved[0])
    for make in (lambda: Card(**{**GOOD, 'temperature': 0}), lambda: network.with_card(temperature=0)):
        with pytest.raises(UserError, match='temperature must be') as e:
            make()
        one_sentence(e)
    with pytest.raises(AttributeError):
        network.card.temperature = 0.
    warmer = network.with_card(temperature=2.)
    assert (network.card.temperature, warmer.card.temperature) == (1., 2.) and warmer.module is network.module


def test_what_a_task_needs_of_a_card_is_named(saved):
    path, write = saved
    with pytest.raises(UserError, match='m.json lacks cut$') as e:
        Network.load(path, needs=('cut',))
    one_sentence(e)
    with pytest.raises(UserError, match='m.json lacks cut, material$'):
        Network.load(path, needs=('cut', 'temperature', 'material'))
    write({**GOOD, 'cut': 48, 'material': 'Au'})
    assert Network.load(path, needs=('cut', 'material')).card.cut == 48


def test_weights_that_are_not_numbers_are_refused(saved):
    path, _ = saved
    network = Network.load(path)
    next(network.module.parameters()).data.view(-1)[0] = float('nan')
    network.save(path)
    with pytest.raises(UserError, match='not numbers') as e:
        Network.load(path)
    one_sentence(e)


@pytest.mark.parametrize('name', ['shapes', 'particles', 'sizes', 'crystallinity', 'heights_CeO2', 'heights_Au'])
def test_the_kept_networks_keep_their_cards(name, tmp_path):
    """To and fro nothing is lost or changed; what a card did not say is a default."""
    network, values = Network.load(ROOT/f'data/models/{name}.safetensors'), read_json(ROOT/f'data/models/{name}.json')
    bare = Card(**{k: values[k] for k in GOOD})
    written = card_values(card_from(values))
    assert {k: written[k] for k in values} == values
    assert all(written[k] == getattr(bare, k) for k in set(written) - set(values))
    network.save(tmp_path/'again.safetensors')
    again = Network.load(tmp_path/'again.safetensors')
    assert again.card == network.card and again.fingerprint == network.fingerprint and read_json(tmp_path/'again.json') == written
    assert 'log' in written and network.settings == {k: v for k, v in written.items() if k not in ('log', 'test')}


def test_cards_of_the_first_version_are_read(saved):
    """They hold fewer keys, and some that no code looks at any more."""
    path, write = saved
    write({**GOOD, 'nanoshape': '0.1.0', 'seed': 0, 'set_threshold': .99})
    card = Network.load(path).card
    assert card.other == {'nanoshape': '0.1.0', 'seed': 0, 'set_threshold': .99}
    assert (card.temperature, card.threshold, card.symmetries, card.noise_max, card.cut, card.noise) == (1., 0., 1, 1., None, None)


# ---- what lies outside of the training

RECIPES = (dict(element='Au', energy_kev=300, defocus_nm={'uniform': [-4, 6]}, dose={'loguniform': [100, 1000]}),
           dict(element='Pt', energy_kev=200, defocus_nm=9, dose=5000.))


def test_the_training_is_all_that_was_trained_on():
    t = training(Card(**GOOD, recipes=RECIPES, feret_range_nm=[2, 8]))
    assert t.elements == ('Au', 'Pt') and t.energies_kev == (200, 300) and t.defocus_nm == (-4, 9) and t.dose == (100, 5000) and t.feret_nm == (2, 8)
    assert t == training(Card(**GOOD, recipe=RECIPES[1], recipes=[RECIPES[0]], feret_range_nm=[2, 8]))
    own = training(Card(**GOOD, recipe=RECIPES[0], material='CeO2', energy_kev=80, defocus_nm=[1, 9], heights=[3, 10]))
    assert own.elements == ('CeO2',) and own.energies_kev == (80, 80) and own.defocus_nm == (1, 9) and own.heights == (3, 10)


FAR = 9 + FOCUS_MARGIN


@pytest.mark.parametrize('reason, key, inside, beyond', [
    ('smaller than trained on', 'feret_nm', 2., np.nextafter(2., 0)), ('larger than trained on', 'feret_nm', 8., np.nextafter(8., 9)),
    ('coarser pixels than trained on', 'sampling', COARSE*.8, np.nextafter(COARSE*.8, 9)),
    ('farther from focus than trained on', 'focus_nm', FAR, np.nextafter(FAR, 99)), ('more noise than trained on', 'noise', .6, np.nextafter(.6, 1)),
    ('another voltage than trained on', 'energy_kev', .99*200, np.nextafter(.99*200, 0)),
    ('another voltage than trained on', 'energy_kev', 1.01*300, np.nextafter(1.01*300, 999)),
    ('another element than trained on', 'element', 'Pt', 'Ag')])
def test_what_is_outside_is_told_at_the_limit(reason, key, inside, beyond):
    card = Card(**GOOD, recipes=RECIPES, feret_range_nm=[2, 8], noise_max=.6)
    several = (lambda v: np.array([v, v])) if key in ('feret_nm', 'noise') else lambda v: v
    within, without = (outside(card, **{key: several(v)}) for v in (inside, beyond))
    assert reason in within and not any(np.any(v) for v in within.values())
    assert np.all(without.pop(reason)) and not any(np.any(v) for v in without.values())


def test_what_is_not_given_and_what_a_card_does_not_say_is_not_asked():
    everything = dict(feret_nm=np.array([.1, 99.]), sampling=.8, focus_nm=500., noise=np.array([.1, .9]), energy_kev=80., element='Ag')
    silent = outside(Card(**GOOD), **everything)
    assert set(silent) == {'coarser pixels than trained on', 'more noise than trained on'} and not any(np.any(v) for v in silent.values())
    assert outside(Card(**GOOD, recipes=RECIPES, feret_range_nm=[2, 8])) == {}
    told = outside(Card(**GOOD, recipes=RECIPES, feret_range_nm=[2, 8]), **everything)
    assert len(told) == 7 and told['smaller than trained on'].tolist() == [True, False] and told['larger than trained on'].tolist() == [False, True]
    unknown = outside(Card(**GOOD, recipes=RECIPES), focus_nm=float('nan'))  # no rings to be seen
    assert not unknown['farther from focus than trained on']


# ---- probabilities

def test_probabilities_are_those_of_the_scores_at_the_cards_temperature():
    net, x = build('cnn4', 3), 50 + 7*torch.randn(5, 64, 64)
    for t, n in ((1., 1), (2.5, 1), (.4, 8)):
        p = stand_in(net, classes=[*'abc'], temperature=t, symmetries=n).probabilities(x)
        assert p.dtype == np.float32 and p.shape == (5, 3)
        assert np.array_equal(p, (logits(net, network_input(x), symmetries=n)/t).softmax(1).numpy())


def test_a_network_that_sees_cut_outs_cuts_them_out():
    net, x = build('cnn4', 3), 50 + 7*torch.randn(4, 64, 64)
    yy, xx = np.mgrid[:64, :64]
    outlines = torch.from_numpy(np.stack([(yy - 30 - k)**2 + (xx - 36 + k)**2 < 12**2 for k in range(4)]))
    network = stand_in(net, classes=[*'abc'], cut=48)
    by_hand = logits(net, network_input(cut_out(x, outlines, 48))).softmax(1).numpy()
    assert np.array_equal(network.probabilities(x, outlines), by_hand) and not np.allclose(by_hand, network.with_card(cut=None).probabilities(x))
    with pytest.raises(UserError, match='outlines'):
        network.probabilities(x)


@pytest.mark.parametrize('cut', [None, 48])
def test_of_no_images_there_are_no_probabilities(cut):
    none = stand_in(build('cnn4', 3), classes=[*'abc'], cut=cut).probabilities(torch.zeros(0, 64, 64), torch.zeros(0, 64, 64, dtype=torch.bool))
    assert none.shape == (0, 3) and none.dtype == np.float32


def test_a_network_with_an_answer_per_pixel_has_none_for_the_image():
    with pytest.raises(UserError, match='each pixel'):
        stand_in(build('unet', 2).eval(), classes=[*'ab']).probabilities(torch.randn(2, 64, 64))


def test_a_fingerprint_is_that_of_the_weights(saved):
    network, again = (Network.load(saved[0]) for _ in range(2))
    before = network.fingerprint
    assert before == again.fingerprint == network.with_card(temperature=2.).fingerprint and len(before) == 12
    one = [*again.module.parameters()][-1].data.view(-1)
    one[0] = torch.nextafter(one[0], torch.tensor(9.))
    assert again.fingerprint != before == network.fingerprint


def test_temperatures_follow_the_noise_up_to_the_ends_of_its_range():
    card = Card(**GOOD, temperature=2., noise=dict(at=1., range=[.5, 4.], power=.5))
    assert [temperature_at(card, n) for n in (.1, .5, 1., 4., 9.)] == pytest.approx([2**.5, 2**.5, 2., 4., 4.])
    assert temperature_at(card, 0.) == temperature_at(card, .5) < temperature_at(card, .51)
    assert temperature_at(card, 1e9) == temperature_at(card, 4.) > temperature_at(card, 3.99)
    assert temperature_at(Card(**GOOD, temperature=3.), 9.) == temperature_at(Card(**GOOD, temperature=3., noise=None), 9.) == 3.


def test_a_simulated_micrograph_shows_its_particles(tiny):
    from nanoshape.micrographs.detection import segment
    from nanoshape.datasets.recipes import make_recipe
    r = make_recipe(name='m', defocus_nm=8, dose=20000)
    m, shapes = simulated_micrograph(r, 1)
    assert len(shapes) == 4 and m.field == (240, 240)
    assert np.array_equal(simulated_micrograph(r, 1)[0].image, m.image)
    assert segment(m).max() <= 6


def loaders(store):
    from nanoshape.datasets.batches import dataloaders
    return dataloaders(store, range(30), range(30, 40), bs=10, device=torch.device('cpu'))


def test_a_killed_training_goes_on_behind_its_last_epoch(tiny_store, tmp_path, monkeypatch, one_thread):
    from nanoshape.learn.train import Checkpoint, train
    save, log, point = Checkpoint._save, tmp_path/'log.csv', tmp_path/'state.pt'

    def killed(self):
        save(self)
        if self.epoch == 1:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, '_save', killed)
        with pytest.raises(KeyboardInterrupt):
            train(loaders(tiny_store), 'cnn4', 4, log=log, bf16=False, checkpoint=point)
    first = pd.read_csv(log)
    assert first.epoch.tolist() == [0, 1] and point.is_file()
    torch.rand(7)  # whatever else drew numbers in between
    resumed = train(loaders(tiny_store), 'cnn4', 4, log=log, bf16=False, checkpoint=point)
    whole = pd.read_csv(log)
    assert whole.epoch.tolist() == [0, 1, 2, 3] and whole.train_loss[:2].tolist() == first.train_loss.tolist() and not point.exists()
    assert whole.train_loss.notna().all() and [p.name for p in tmp_path.iterdir()] == ['log.csv']
    undisturbed = train(loaders(tiny_store), 'cnn4', 4, bf16=False)  # with dropout, to the last bit
    assert all(map(torch.equal, resumed.model.state_dict().values(), undisturbed.model.state_dict().values()))


def test_a_run_killed_while_it_is_calibrated_keeps_its_network(tiny, tmp_path, monkeypatch):
    from nanoshape.studies import experiments
    ask = dict(arch='cnn4', epochs=1, workers=0)

    def killed(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(experiments, '_calibrated', killed)
        with pytest.raises(KeyboardInterrupt):
            experiments.train_and_test(tiny, tmp_path/'run', **ask)
    log = (tmp_path/'run/log.csv').read_bytes()
    experiments.train_and_test(tiny, tmp_path/'run', **ask)
    assert (tmp_path/'run/log.csv').read_bytes() == log and not (tmp_path/'run/state.pt').exists()


def test_a_training_that_goes_on_keeps_its_precision(tiny_store, tmp_path, monkeypatch):
    from nanoshape.learn import train as module
    from nanoshape.learn.train import Checkpoint, train
    save, point = Checkpoint._save, tmp_path/'state.pt'

    def killed(self):
        save(self)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, '_save', killed)
        patch.setattr(module, 'bf16_pays', lambda *a: True)
        with pytest.raises(KeyboardInterrupt):
            train(loaders(tiny_store), 'cnn4', 2, checkpoint=point)
    monkeypatch.setattr(module, 'bf16_pays', lambda *a: pytest.fail('measured again'))
    learn = train(loaders(tiny_store), 'cnn4', 2, checkpoint=point, keep=True)
    assert any(isinstance(c, Autocast) for c in learn.cbs) and point.is_file()


def test_the_order_of_the_samples_follows_from_seed_and_epoch(tiny_store):
    def order(seed, epochs, start=0):
        torch.manual_seed(epochs)  # must not matter
        loader = loaders(tiny_store).train
        loader.seed, loader.draws = seed, start
        return [torch.cat([y for _, y in loader]).tolist() for _ in range(epochs)]
    assert order(1, 3)[1:] == order(1, 2, start=1) and order(1, 1) != order(2, 1)


def test_a_checkpoint_of_other_data_is_refused(tiny_store, tmp_path, monkeypatch):
    from nanoshape.learn.train import Checkpoint, train
    save = Checkpoint._save

    def killed(self):
        save(self)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, '_save', killed)
        with pytest.raises(KeyboardInterrupt):
            train(loaders(tiny_store), 'cnn4', 2, bf16=False, checkpoint=tmp_path/'state.pt')
    for other in (dict(dls=loaders(tiny_store.imaged(dose=50.))), dict(dls=loaders(tiny_store), lr=1e-3)):
        with pytest.raises(UserError, match='belongs to a training with'):
            train(arch='cnn4', epochs=2, bf16=False, checkpoint=tmp_path/'state.pt', **other)


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'\x80\x04cos\nsystem\n.'])
def test_a_damaged_checkpoint_is_refused(content, tiny_store, tmp_path):
    from nanoshape.learn.train import train
    (tmp_path/'state.pt').write_bytes(content)
    with pytest.raises(UserError, match='checkpoint'):
        train(loaders(tiny_store), 'cnn4', 2, bf16=False, checkpoint=tmp_path/'state.pt')


def test_a_checkpoint_of_another_network_is_refused(tiny_store, tmp_path):
    from nanoshape.learn.train import train
    torch.save(dict(epoch=1, rows=[], model={'x': torch.zeros(1)}, opt={}, average=None, steps=0), tmp_path/'state.pt')
    with pytest.raises(UserError, match='another network'):
        train(loaders(tiny_store), 'cnn4', 2, bf16=False, checkpoint=tmp_path/'state.pt')


def test_the_average_is_what_is_kept(tiny_store):
    from nanoshape.learn.train import train
    learn = train(loaders(tiny_store), 'cnn4', 2, bf16=False)
    state = learn.model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in learn.average.state.items())


@pytest.mark.parametrize('arch', ['resnet18', 'outline', 'fringes', 'cnn4'])
def test_every_network_takes_one_channel_and_keeps_in_a_file(arch, tmp_path):
    net = build(arch, 3).eval()
    Network(net, Card(arch=arch, classes=[*'abc'], sampling=.78, gpts=64)).save(tmp_path/'m.safetensors')
    again = Network.load(tmp_path/'m.safetensors')
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(net(x), again.module(x)) and again.card.arch == arch


def test_symmetries_average_over_the_square():
    from nanoshape.datasets.batches import dihedral
    net, x = build('cnn4', 3), torch.randn(3, 1, 32, 32)
    assert torch.allclose(logits(net, x, symmetries=8), logits(net, dihedral(x, 3), symmetries=8), atol=1e-5)
    assert not torch.allclose(logits(net, x), logits(net, dihedral(x, 3)), atol=1e-5)


def test_reliability_counts_every_answer_once():
    g = np.random.default_rng(0)
    conf = g.uniform(.5, 1, 1003)
    right = g.random(1003) < conf
    t = reliability(conf, right)
    assert t.n.sum() == 1003 and (t.low <= t.accuracy).all() and (t.accuracy <= t.high).all() and calibration_error(t) < .05
    assert np.isclose(calibration_error(reliability(np.full(50, .9), np.arange(50) % 2 == 0)), .4)


def test_risk_ends_at_the_error_of_all_answers():
    share, risk = risk_coverage([.9, .5, .7, .6], [True, False, True, True])
    assert share.tolist() == [.25, .5, .75, 1] and risk.tolist() == [0, 0, 0, .25]


def test_conformal_sets_keep_their_promise_on_average():
    """Exchangeable data: coverage at least 1 − miss on average over calibrations, and not much more (Vovk et al. 2005)."""
    g = np.random.default_rng(1)
    hits = []
    for _ in range(300):
        p = g.dirichlet(np.ones(4), 60)
        y = np.array([g.choice(4, p=q) for q in p])
        cut = conformal_threshold(p[:49], y[:49], .1)
        hits.append((p[49:] >= cut)[np.arange(11), y[49:]].mean())
    assert .885 < np.mean(hits) < .93


def test_the_best_observer_of_white_noise_is_the_sum_over_pixels():
    d = np.random.default_rng(0).normal(size=(16, 16))
    assert np.isclose(ideal_observer(d, 4*d.size), np.sqrt((d**2).sum())/2)
