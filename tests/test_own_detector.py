"""`nanoshape train-detector`: which labels belong to which micrograph, what is held out, resuming, the score, mistakes."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nanoshape.core import UserError, read_json
from nanoshape.learn.defaults import kept_network
from nanoshape.learn.network import Network
from nanoshape.learn.particle_masks import NOT_ASKED, WIDTH, mask_loss
from nanoshape.micrographs.detection import KNOWN, Detector
from nanoshape.studies import own_detector as od
from test_cli import nanoshape

kept = pytest.mark.skipif(not kept_network('sizes').is_file(), reason='data/models/ holds no network for any pixel size')
TINY = dict(epochs=2, squares=4, bs=2, fields=1, device='cpu', bf16=False)


def rings(i, n=160):
    """Bright rings on a grainy ground, with the rings filled: nothing that simulated fields hold."""
    g, (y, x) = np.random.default_rng(i), np.mgrid[:n, :n]
    image, labels = g.normal(0, .25, (n, n)), np.zeros((n, n), np.uint16)
    for k in range(1, 9):
        cy, cx, r = *g.uniform(12, n - 12, 2), g.uniform(9, 16)
        d = np.hypot(y - cy, x - cx)
        if labels[d < r + 3].any(): continue
        image[abs(d - r + 2.5) < 2.5] += 1
        labels[d < r] = k
    return np.clip(90 + 60*image, 0, 255).astype(np.uint8), labels


def write(folder, numbers, **options):
    folder.mkdir(exist_ok=True)
    for i in numbers:
        image, labels = rings(i, **options)
        Image.fromarray(image).save(folder/f'im{i}.png')
        Image.fromarray(labels).save(folder/f'im{i}_labels.tif')
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path/'mine', range(3))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The log watches one simulated field instead of many."""
    loaders = od.own_loaders
    monkeypatch.setattr(od, 'own_loaders', lambda *args: loaders(*args, watch=1))


# ---- pairs

def test_labels_are_found_beside_and_elsewhere(folder, tmp_path):
    (folder/'im1_labels.tif').unlink()
    pairs, without = od.labelled_files(folder)
    assert [(p.name, l.name) for p, l in pairs] == [(f'im{i}.png', f'im{i}_labels.tif') for i in (0, 2)] and without == ['im1.png']
    other = tmp_path/'other'
    (other/'im2.png').mkdir(parents=True)
    Image.fromarray(rings(0)[1]).save(other/'im0.png')  # the same stem
    Image.fromarray(rings(1)[1]).save(other/'im1_labels.tif')  # the result of one analysis
    Image.fromarray(rings(2)[1]).save(other/'im2.png'/'im2_labels.tif')  # the result of a folder's analysis
    pairs, without = od.labelled_files(folder, other)
    assert [str(l.relative_to(other)) for _, l in pairs] == ['im0.png', 'im1_labels.tif', 'im2.png/im2_labels.tif'] and not without


def test_labels_are_those_that_analyse_writes(tmp_path):
    from nanoshape.learn.defaults import default_shape_network
    from nanoshape.micrographs.reading import read
    from nanoshape.micrographs.survey import survey
    folder = write(tmp_path/'raw', range(2))
    for p in folder.glob('*_labels.tif'): p.unlink()
    survey(folder, default_shape_network(), tmp_path/'results', sampling=1.)
    pairs, without = od.labelled_files(folder, tmp_path/'results')
    assert len(pairs) == 2 and not without
    assert all(od.read_labelled(*p).labels.shape == read(p[0], 1.).image.shape for p in pairs)


def test_one_image_under_two_names_is_refused(folder):
    shutil.copy(folder/'im0.png', folder/'copy.png')
    shutil.copy(folder/'im0_labels.tif', folder/'copy_labels.tif')
    with pytest.raises(UserError, match='same image'): od.labelled_files(folder)
    (folder/'copy.png').unlink()
    Image.open(folder/'im0.png').save(folder/'im0.tif')  # another file, the same labels
    with pytest.raises(UserError, match='share labels'): od.labelled_files(folder)


def test_sizes_must_agree_and_the_file_is_named(folder):
    Image.fromarray(rings(1)[1][:-3]).save(folder/'im1_labels.tif')
    with pytest.raises(UserError, match='im1_labels.tif has 160 × 157 pixels and im1.png has 160 × 160'):
        od.read_labelled(folder/'im1.png', folder/'im1_labels.tif')


def test_a_mask_of_one_value_is_as_good_as_numbers(folder):
    numbered = od.read_labelled(folder/'im0.png', folder/'im0_labels.tif').labels
    Image.fromarray((255*(rings(0)[1] > 0)).astype(np.uint8)).save(folder/'im0_labels.tif')
    assert (od.read_labelled(folder/'im0.png', folder/'im0_labels.tif').labels == numbered).all() and numbered.max() > 3


# ---- squares

def discs(n, *radii):
    y, x = np.mgrid[:n, :n]
    labels = sum((k*(np.hypot(y - n/2, x - n*(k - .5)/len(radii)) < r) for k, r in enumerate(radii, 1)), np.zeros((n, n), int))
    return od.Labelled('discs', -(labels > 0).astype(np.float32), labels)


@pytest.mark.parametrize('radius', (4, 15, 200))
def test_scales_show_particles_at_sizes_that_the_network_knows(radius):
    scales = od.training_scales(discs(800, radius))
    assert scales and all(KNOWN[0] <= 2*radius*s*1.01 and .99*2*radius*s <= KNOWN[1] for s in scales)
    assert len(scales) < 4  # not all would do


def test_a_particle_of_unknown_size_is_not_asked_for():
    m = discs(400, 20, 21, 1.5)
    views = od._views([m])
    goals = [od._own_square(views, 0, k)[1] for k in range(20)]
    assert all(g.shape == (2, WIDTH, WIDTH) for g in goals)
    assert any((g == NOT_ASKED).any() for g in goals) and all(((g == NOT_ASKED).sum((1, 2)) < 30).all() for g in goals)
    scores = torch.zeros(1, 2, WIDTH, WIDTH, requires_grad=True)
    goal = next(g for g in goals if (g == NOT_ASKED).any())[None]
    mask_loss(scores, goal).backward()
    assert (scores.grad[goal < 0] == 0).all() and (scores.grad[goal >= 0] != 0).all()
    assert mask_loss(scores, goal) < mask_loss(scores, goal.clamp(min=0))  # else it would count as background


def test_small_images_are_mirrored_with_their_labels():
    m = discs(100, 30)
    x, goal = od._own_square([[od._view(m, 1.)]], 0, 0)
    assert x.shape == (1, WIDTH, WIDTH) and (((x[0] < 0) == (goal[0] > 0)).float().mean() > .999) and goal[0].sum() > 4*(m.labels > 0).sum()


def test_half_of_the_squares_are_simulated(folder):
    m = od.read_labelled(folder/'im0.png', folder/'im0_labels.tif')
    loader = od.MixedLoader(od._views([m]), 6, od.FIELDS, bs=2)
    own = [torch.equal(loader.create_item(i)[0], od._own_square(loader.views, od.FIELDS, i)[0]) for i in range(6)]
    assert own == [True, False]*3


def test_images_without_particles_cannot_be_learned_from(folder):
    m = od.read_labelled(folder/'im0.png', folder/'im0_labels.tif')
    with pytest.raises(UserError, match='no labelled particle'): od.own_loaders([od.Labelled('none', m.image, 0*m.labels)], 4)


# ---- what is held out

def test_something_is_held_out_and_something_left():
    for n in (2, 3, 7, 40):
        for share in (.01, .25, .99):
            held = od.held_out(n, share)
            assert 1 <= len(held) < n and len(set(held)) == len(held) and max(held) < n
    assert {od.held_out(2, seed=s)[0] for s in range(20)} == {0, 1}
    with pytest.raises(UserError, match='two labelled images are needed'): od.held_out(1)


@kept
def test_held_out_images_are_never_trained_on(folder, tmp_path, monkeypatch):
    """Another held-out image, with other labels, gives the same weights; another training image does not."""
    seen, loaders = [], od.own_loaders
    monkeypatch.setattr(od, 'own_loaders', lambda images, *args: seen.append({m.name for m in images}) or loaders(images, *args))
    first = od.own_detector(folder, tmp_path/'a.safetensors', **TINY)
    held = next(f['image'] for f in first.card.other['request']['files'] if f['held_out'])
    assert seen == [{'im0.png', 'im1.png', 'im2.png'} - {held}]
    for k, name in enumerate((held, *sorted(seen[0])[:1])):
        image, labels = rings(50 + k)
        Image.fromarray(image).save(folder/name)
        Image.fromarray(labels).save(folder/f'{name[:-4]}_labels.tif')
        again = od.own_detector(folder, tmp_path/f'b{k}.safetensors', **TINY)
        assert (again.fingerprint == first.fingerprint) == (name == held)
    assert again.card.test['held out'] != first.card.test['held out']


# ---- training

@kept
def test_interrupted_and_resumed_equals_uninterrupted(folder, tmp_path, monkeypatch, one_thread):
    whole = od.own_detector(folder, tmp_path/'whole.safetensors', **TINY)
    fit, out = od.train, tmp_path/'stopped.safetensors'

    class Stop(od.MixedLoader):
        def before_iter(self):
            if self.draws == 1: raise KeyboardInterrupt
            super().before_iter()
    with monkeypatch.context() as m:
        m.setattr(od, 'MixedLoader', Stop)
        with pytest.raises(KeyboardInterrupt): od.own_detector(folder, out, **TINY)
    work = tmp_path/'stopped_training'
    assert torch.load(work/'state.pt', weights_only=True)['epoch'] == 1 and not out.exists() and not out.with_suffix('.json').exists()
    with pytest.raises(UserError, match='unfinished training'): od.own_detector(folder, out, **TINY | dict(seed=1))
    epochs = []
    monkeypatch.setattr(od, 'train', lambda *args, **kw: epochs.append(fit(*args, **kw)) or epochs[-1])
    resumed = od.own_detector(folder, out, **TINY)
    assert resumed.fingerprint == whole.fingerprint != Network.load(kept_network('sizes')).fingerprint
    assert sum(map(bool, epochs[0].recorder.values)) == 1 and resumed.card.log['valid_loss'] == whole.card.log['valid_loss']  # one epoch was left
    assert not work.exists()


@kept
def test_a_finished_network_is_read_back_and_never_replaced(folder, tmp_path, monkeypatch):
    out = tmp_path/'my.safetensors'
    made = od.own_detector(folder, out, **TINY)
    before = {p.name: p.read_bytes() for p in tmp_path.glob('my*')}
    assert set(before) == {'my.safetensors', 'my.json', 'my_scores.csv'}
    monkeypatch.setattr(od, 'train', None)  # nothing is trained
    assert od.own_detector(folder, out, **TINY).fingerprint == made.fingerprint
    for change in (dict(seed=1), dict(epochs=3), dict(share=.5)):
        with pytest.raises(UserError, match='made otherwise'): od.own_detector(folder, out, **TINY | change)
    Image.fromarray(rings(9)[1]).save(folder/'im0_labels.tif')
    with pytest.raises(UserError, match='made otherwise'): od.own_detector(folder, out, **TINY)
    assert before == {p.name: p.read_bytes() for p in tmp_path.glob('my*')}


@kept
def test_the_card_says_what_was_learned_from(folder, tmp_path):
    out = tmp_path/'my.safetensors'
    network = od.own_detector(folder, out, **TINY)
    text = out.with_suffix('.json').read_text()
    assert network.card.any_pixel and network.card.arch == Network.load(kept_network('sizes')).card.arch and str(tmp_path) not in text
    assert [f['image'] for f in read_json(out.with_suffix('.json'))['request']['files']] == ['im0.png', 'im1.png', 'im2.png']
    d = Detector(out)
    assert d.sizes.fingerprint == network.fingerprint
    m = od.read_labelled(folder/'im0.png', folder/'im0_labels.tif')
    from nanoshape.micrographs.reading import Micrograph
    assert 'on 2 micrographs that a person labelled' in d.how(Micrograph(m.image, 1., 'im0'))
    assert 'simulated images only' in Detector(kept_network('sizes')).how(Micrograph(m.image, 1., 'im0'))


@pytest.mark.slow
@kept
def test_rings_are_learned(tmp_path):
    """Bright rings are to be filled: what the kept network does badly, a short training with three images does better."""
    folder, settings = write(tmp_path/'rings', range(4)), dict(TINY, squares=24, bs=4, epochs=4, lr=2e-3)
    test = od.own_detector(folder, tmp_path/'rings.safetensors', **settings).card.test['held out']
    assert test['after']['f1'] > test['before']['f1'] and test['after']['pixel_iou'] > test['before']['pixel_iou']


# ---- the score in words

def test_a_network_that_is_no_better_is_not_recommended():
    of = lambda f1: dict(f1=f1, images=2)
    test = lambda a, b, c, d: {'held out': dict(before=of(a), after=of(b)), 'simulated': dict(before=of(c), after=of(d))}
    better, same, worse, forgot = (' '.join(od.verdict(test(*f))) for f in ((.5, .6, .7, .7), (.5, .5, .7, .7), (.5, .4, .7, .7), (.5, .6, .7, .6)))
    assert 'rose from 0.50 to 0.60' in better and 'stay with' not in better
    assert 'stay with' in same and 'stay with' in worse and 'simulated fields it fell from 0.70 to 0.60' in forgot
    assert all('not independent' in s for s in (better, same, worse, forgot)) and 'it fell' not in better


# ---- mistakes at the command line

@pytest.mark.parametrize('case, says', (
    ('none', 'there is no file or folder'), ('one', 'two labelled images are needed'), ('labels', 'there is no folder'),
    ('suffix', 'must end in .safetensors'), ('device', 'there is no device'), ('share', 'between 0 and 1'), ('sizes', 'im1_labels.tif has'),
    ('taken', 'exists and was made otherwise'), ('colours', 'whole numbers')))
def test_a_mistake_is_one_sentence(case, says, folder, tmp_path):
    if not kept_network('sizes').is_file(): pytest.skip('data/models/ holds no network for any pixel size')
    out, words = tmp_path/'my.safetensors', []
    if case == 'none': folder = tmp_path/'nowhere'
    if case == 'one': [p.unlink() for p in [*folder.glob('im1*'), *folder.glob('im2*')]]
    if case == 'labels': words = ['--labels', tmp_path/'nowhere']
    if case == 'suffix': out = tmp_path/'my.pt'
    if case == 'device': words = ['--device', 'abacus']
    if case == 'share': words = ['--held-out', '1']
    if case == 'sizes': Image.fromarray(rings(1)[1][:-3]).save(folder/'im1_labels.tif')
    if case == 'taken': out.write_bytes(b'a network of many weeks')
    if case == 'colours': Image.fromarray(rings(1)[1].astype(np.float32)).save(folder/'im1_labels.tif')
    done = nanoshape('train-detector', folder, '--out', out, *words)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} <= {'mine', 'my.safetensors'}  # nothing was begun
    if case == 'taken': assert out.read_bytes() == b'a network of many weeks'


@kept
def test_the_command_prints_scores_and_names_what_is_left_out(folder, tmp_path, monkeypatch):
    own = od.own_detector
    monkeypatch.setattr(od, 'own_detector', lambda folder, out, labels, epochs, share, seed, device: own(folder, out, labels, **TINY))
    (folder/'im2_labels.tif').unlink()
    done = nanoshape('train-detector', folder, '--out', tmp_path/'my.safetensors', '--epochs', 1)
    assert done.returncode == 0 and 'left out: im2.png' in done.stderr
    assert all(w in done.stdout for w in ('held out', 'simulated', 'before', 'after', 'F1', '--detector', 'not independent'))
