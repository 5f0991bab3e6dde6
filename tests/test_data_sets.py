"""Recipes, splits, frozen and fresh images."""
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT
from nanoshape.core import UserError
from nanoshape.datasets.batches import dataloaders, fresh_images, frozen_images, network_input, split_by_structure
from nanoshape.datasets.recipes import load_recipe, make_recipe
from nanoshape.datasets.samples import conditions, sample
from nanoshape.simulate.microscope import intensity


@pytest.mark.parametrize('bad, names', [
    (dict(sizes_nm=5), 'sizes_nm'), (dict(size_nm='big'), 'size_nm'), (dict(size_nm={'gauss': [4, 8]}), 'gauss'),
    (dict(size_nm={'uniform': [8, 4]}), 'size_nm'),
    (dict(size_nm=12), 'box_nm'), (dict(size_nm=.1), 'size_nm'), (dict(dose={'loguniform': [0, 5]}), 'dose'), (dict(dose=-1), 'dose'),
    (dict(gpts=64), 'gpts'), (dict(gpts=2.5), 'gpts'), (dict(structures=0), 'structures'), (dict(structures=True), 'structures'),
    (dict(classes=['ball']), 'ball'),
    (dict(classes=[]), 'classes'), (dict(element='Fe'), 'Fe'), (dict(out_gpts=512), 'out_gpts'), (dict(defocus_nm=float('nan')), 'defocus_nm')])
def test_a_bad_recipe_is_refused_by_name(bad, names):
    with pytest.raises(UserError, match=names):
        make_recipe(name='x', **bad)


def test_presets_load():
    for p in (ROOT/'data/recipes').glob('*.yaml'):
        assert len(load_recipe(p)) > 0


def test_a_recipe_file_that_is_none(tmp_path):
    (tmp_path/'r.yaml').write_text('!!python/object/apply:os.system ["true"]')
    with pytest.raises(UserError):
        load_recipe(tmp_path/'r.yaml')
    with pytest.raises(UserError, match='no file'):
        load_recipe(tmp_path/'none.yaml')


def test_views_share_the_particle_and_nothing_else(tiny):
    r = make_recipe(**{**asdict(tiny), 'views': 3, 'structures': 2})
    (a, la), (b, lb), (c, lc) = (sample(r, i) for i in (0, 1, 3))
    assert la['structure'] == lb['structure'] == 0 and lc['structure'] == 1
    assert la['size'] == lb['size'] and la['n_atoms'] == lb['n_atoms'] and la['feret_max'] != lb['feret_max']


def test_frozen_images_do_not_depend_on_the_batch(tiny_store):
    a = frozen_images(tiny_store, range(8), batch=3)
    assert torch.equal(a, frozen_images(tiny_store, range(8), batch=64))
    assert torch.equal(a[5], frozen_images(tiny_store, [5])[0])


def test_fresh_images_differ_by_epoch_and_repeat_by_number(tiny_store):
    w, r = tiny_store.waves([1, 2]), tiny_store.recipe
    a, b, again = fresh_images(w, [1, 2], r, 1), fresh_images(w, [1, 2], r, 2), fresh_images(w, [1, 2], r, 1)
    assert torch.equal(a, again) and not torch.equal(a, b)
    assert not torch.equal(conditions(r, [1], 1).defocus, conditions(r, [1], 2).defocus)


def test_each_epoch_of_the_loader_is_fresh(tiny_store):
    dls = dataloaders(tiny_store, range(20), range(20, 40), bs=20, device=torch.device('cpu'))
    one, two = (next(iter(dls.train))[0] for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(torch.cat([x for x, _ in dls.valid]), torch.cat([x for x, _ in dls.valid]))
    y = torch.cat([y for _, y in dls.valid])
    assert [dls.vocab[i] for i in y] == tiny_store.labels['class'][20:40].tolist()


def test_no_structure_is_on_two_sides():
    labels = pd.DataFrame({'structure': np.arange(400)//4})
    for seed in range(20):
        parts = split_by_structure(labels, seed=seed)
        groups = [set(labels.structure[p]) for p in parts]
        assert sum(map(len, groups)) == 100 and len(set.union(*groups)) == 100
        assert abs(len(parts[2]) - 80) <= 4 and abs(len(parts[1]) - 40) <= 4
    with pytest.raises(UserError, match='too few'):
        split_by_structure(labels.iloc[:4])


def test_network_input_ignores_scale_and_survives_a_constant_image():
    x = torch.rand(3, 32, 32)
    assert torch.allclose(network_input(x), network_input(7 + 300*x), atol=1e-3)
    assert torch.isfinite(network_input(torch.ones(1, 8, 8))).all()


def test_the_command_line_makes_a_store_its_card_and_images(tmp_path, capsys):
    from nanoshape.cli import main
    recipe, store = str(ROOT/'data/recipes/tiny.yaml'), str(tmp_path/'s')
    assert main(['simulate', recipe, store, '--structures', '5', '--workers', '1']) == 0 and (tmp_path/'s/card.html').is_file()
    assert main(['simulate', recipe, store, '--structures', '5', '--workers', '1']) == 0  # nothing left to do
    assert main(['images', store, str(tmp_path/'i'), '--first', '3']) == 0
    assert len(list((tmp_path/'i').glob('*.png'))) == 3 and 'table.csv' in capsys.readouterr().out
    assert main(['simulate', recipe, store, '--structures', '6']) == 2 and 'another recipe' in capsys.readouterr().err
    assert main(['images', str(tmp_path/'none'), str(tmp_path/'j')]) == 2 and not (tmp_path/'j').exists()


def test_a_store_under_another_microscope(tiny_store):
    dim = tiny_store.imaged(dose=50., name='dim')
    assert dim.recipe.dose == 50. and tiny_store.recipe.dose != 50. and torch.equal(dim.waves([3]), tiny_store.waves([3]))
    assert frozen_images(dim, [3]).mean() < .1*frozen_images(tiny_store, [3]).mean()
    for bad, says in ((dict(size_nm=3.), 'size_nm decides the waves'), (dict(dos=3.), 'dos decides'), (dict(out_gpts=65), '64 pixels and no more'),
                      (dict(dose=-1.), 'dose')):
        with pytest.raises(UserError, match=says):
            tiny_store.imaged(**bad)


def test_coarser_pixels_are_the_inner_part_of_the_spectrum(tiny_store):
    coarse = tiny_store.imaged(out_gpts=32)
    def spectrum(s):
        image = intensity(s.waves([0]), conditions(replace(s.recipe, pixel_integration=False), [0]), s.sampling, s.recipe.out_gpts)
        return torch.fft.fftshift(torch.fft.fft2(image, norm='forward'), dim=(-2, -1))
    assert torch.allclose(spectrum(coarse)[:, 1:, 1:], spectrum(tiny_store)[:, 17:48, 17:48], atol=1e-5)
    assert np.isclose(coarse.sampling, 2*tiny_store.sampling) and torch.equal(coarse.waves([0]), tiny_store.waves([0]))
    assert frozen_images(coarse, [0]).shape == (1, 32, 32)


def test_a_frozen_set_shows_the_same_images_in_every_epoch(tiny_store):
    from nanoshape.datasets.batches import dihedral, frozen_set, pairs
    items = pairs([3, 5], 2)
    assert items.tolist() == [[3, 0], [3, 1], [5, 0], [5, 1]]
    x = network_input(frozen_set(tiny_store, items))[:, 0]
    assert not torch.equal(x[0], x[1]) and torch.equal(x[[2]], network_input(frozen_images(tiny_store, [5]))[0])
    loader = dataloaders(tiny_store, items, [8], bs=4, device=torch.device('cpu')).train
    for _ in range(2):
        seen, y = next(iter(loader))
        known = torch.stack([dihedral(im, k) for im in x for k in range(8)]).half().float().flatten(1)
        sums = known.sort(1).values
        assert all((v.flatten().sort().values == sums).all(1).any() for v in seen) and y.tolist().count(3) == 2


def test_pairs_of_one_structure_on_both_sides_are_a_leak(tiny_store):
    with pytest.raises(UserError, match='two sides'):
        dataloaders(tiny_store, [[3, 0], [4, 0]], [[3, 1]])
