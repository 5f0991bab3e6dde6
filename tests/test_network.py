"""Models, training, scores, model files."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from nanoshape.core import UserError, read_json
from nanoshape.learn.evaluate import (ideal_observer, calibration_error, confidence_threshold, conformal_threshold,
                                      fit_temperature, logits, reliability, risk_coverage, score, wilson)
from nanoshape.learn.models import build, cnn
from nanoshape.learn.train import Autocast, bf16_pays
from nanoshape.learn.network import load_model, save_model
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
    save_model(path, net, 'cnn4', ['a', 'b'], .8, 64)
    assert load_model(path)[1]['classes'] == ['a', 'b']
    good, card = path.read_bytes(), read_json(tmp_path/'m.json')

    def refused(match):
        with pytest.raises(UserError, match=match):
            load_model(path)
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


def test_a_killed_training_goes_on_behind_its_last_epoch(tiny_store, tmp_path, monkeypatch):
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
    train(loaders(tiny_store), 'cnn4', 4, log=log, bf16=False, checkpoint=point)
    whole = pd.read_csv(log)
    assert whole.epoch.tolist() == [0, 1, 2, 3] and whole.train_loss[:2].tolist() == first.train_loss.tolist() and not point.exists()
    assert whole.train_loss.notna().all() and [p.name for p in tmp_path.iterdir()] == ['log.csv']


def test_a_training_that_goes_on_keeps_its_precision(tiny_store, tmp_path, monkeypatch):
    from nanoshape import train as module
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
    save_model(tmp_path/'m.safetensors', net, arch, 'abc', .78, 64)
    again, card = load_model(tmp_path/'m.safetensors')
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(net(x), again(x)) and card['arch'] == arch


def test_symmetries_average_over_the_square():
    from nanoshape.datasets.batches import dihedral
    from nanoshape.learn.evaluate import logits
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
