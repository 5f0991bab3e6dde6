"""Reference images: what is kept, how they are read, and how they are made."""
import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT
from nanoshape.core import UserError
from nanoshape.datasets.batches import frozen_images
from nanoshape.datasets.recipes import bounds, load_recipe
from nanoshape.datasets.reference_images import ReferenceImages, exact_image, write_reference
from nanoshape.datasets.samples import conditions, recipe_waves, sample
from nanoshape.simulate.microscope import changed, image_error, intensity

KEPT = sorted((ROOT/'data/reference').glob('*.npz'))
made = pytest.mark.skipif(not KEPT, reason='data/sweeps/reference_images.yaml has not been run yet')


@made
def test_what_is_kept_is_small_and_complete():
    assert {p.stem for p in KEPT} == {'particles', 'grains', 'ceria', 'gold'} and sum(p.stat().st_size for p in KEPT) <= 8e6
    seeds = {load_recipe(p).seed for p in (ROOT/'data/recipes').glob('*.yaml')}
    for p in KEPT:
        r = ReferenceImages(p)
        assert len(r) == len(r.labels) == 40 and r.images.dtype == np.float16 and np.isfinite(r.images).all()
        assert r.recipe.seed not in seeds, 'it would share structures with a training set'
        assert r.made_with['phonons'] >= 8 and r.made_with['foci'] >= 15 and bounds(r.recipe.mtf) == (.4, 1)
        assert abs(r.noise_free(range(40)).mean() - 1) < .1


@made
@pytest.mark.parametrize('kind', ['ceria', 'particles'])
def test_a_kept_image_is_that_of_its_sample(kind):
    """Computed anew, coarsely and with a Debye–Waller factor; the next sample's image is another."""
    r = ReferenceImages(kind)
    m = changed(conditions(r.recipe, [3]), dose=None)
    usual = intensity(recipe_waves(r.recipe, [sample(r.recipe, 3)[0]]), m, r.sampling, r.recipe.out_gpts)[0]
    ours, other = r.noise_free([3, 4])
    assert image_error(usual, ours)['error'] < .4 < 1 < image_error(usual, other)['error']
    assert sample(r.recipe, 3)[1]['class'] == r.labels['class'][3]


def test_only_the_detector_can_be_changed(tmp_path):
    r = load_recipe(ROOT/'data/recipes/tiny.yaml', structures=2)
    write_reference(r, tmp_path/'two.npz', phonons=1, pixel=.4)
    two = ReferenceImages(tmp_path/'two.npz')
    assert torch.allclose(two.noise_free([1])[0], exact_image(r, 1, 1, .4), atol=2e-3)
    few, many = (frozen_images(two.imaged(dose=d), [0, 1]) for d in (100., 1e4))
    assert abs(many.mean()/few.mean()/100 - 1) < .02 and not torch.equal(few[0], few[1])
    for changes in (dict(defocus_nm=1), dict(aperture_mrad=20), dict(seed=3)):
        with pytest.raises(UserError, match='cannot be changed'):
            two.imaged(**changes)


def test_a_file_that_holds_none_is_refused(tmp_path):
    for name, values in (('other', dict(images=np.zeros(3))), ('pickle', dict(images=np.array([{}], object)))):
        np.savez(tmp_path/f'{name}.npz', **values)
        with pytest.raises(UserError, match='holds no reference images'):
            ReferenceImages(tmp_path/f'{name}.npz')
    with pytest.raises(UserError, match='there are no reference images'):
        ReferenceImages('clouds')


def test_image_error_knows_scale_and_shift():
    x = pd.Series(np.sin(np.arange(100.))).to_numpy().reshape(10, 10)
    assert image_error(x + 5, x) == pytest.approx(dict(error=0, correlation=1)) and image_error(-x, x)['correlation'] == pytest.approx(-1)
    assert image_error(2*x, x)['error'] == pytest.approx(1) and image_error(x, 2*x)['error'] == pytest.approx(.5)
