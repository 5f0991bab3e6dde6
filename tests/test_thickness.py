"""Projected thickness: bodies whose volume is known, supports, fields and their outlines."""
import numpy as np
import pytest
from scipy import ndimage

from nanoshape.core import UserError, rng
from nanoshape.datasets.thickness_fields import CHOICES, thickness_field
from nanoshape.simulate.thickness import (NORMALS, SUPPORTS, band_noise, particle_thickness, random_solid, ring_noise, solid_thickness,
                                          support_thickness, window)


def grid(n=401, reach=1.7):
    y, x = np.mgrid[-reach:reach:n*1j, -reach:reach:n*1j]
    return x, y, (2*reach/(n - 1))**2


@pytest.mark.parametrize('seed', range(4))
def test_a_solids_thickness_adds_up_to_its_volume(seed):
    """Against a count of random points that lie inside all facets and the sphere."""
    solid = normals, distances, radius = random_solid(rng(seed))
    x, y, pixel = grid()
    points = np.random.default_rng(seed).uniform(-1.7, 1.7, (400_000, 3))
    inside = (points@normals.T <= distances).all(1) & (np.linalg.norm(points, axis=1) <= radius)
    assert solid_thickness(x, y, solid).sum()*pixel == pytest.approx(inside.mean()*3.4**3, rel=.02)


def test_an_octahedron_seen_along_its_axis_is_a_pyramid_on_a_pyramid():
    x, y, _ = grid()
    distances = np.where((np.arange(26) >= 6) & (np.arange(26) < 14), 1/3**.5, 9.)
    want = np.maximum(2*(1 - abs(x) - abs(y)), 0)
    assert np.allclose(solid_thickness(x, y, (NORMALS, distances, 9.)), want, atol=1e-5)


def test_noise_has_its_band():
    f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    power = lambda a: np.abs(np.fft.rfft2(a))**2
    ring, fine, middle = ring_noise(256, rng(0), 8.), band_noise(256, rng(1), 2.), band_noise(256, rng(1), 2., 8.)
    assert (f*power(ring)).sum()/power(ring).sum() == pytest.approx(1/8, rel=.05)
    for a in (ring, fine, middle): assert abs(a.mean()) < 1e-5 and a.std() == pytest.approx(1, abs=1e-4)
    coarse = f < .01
    assert power(middle)[coarse].sum() < .1*power(fine)[coarse].sum()


@pytest.mark.parametrize('kind', SUPPORTS)
def test_supports_have_thickness_where_they_are(kind):
    for k in range(5):
        t = support_thickness(kind, 96, rng(k))
        assert t.shape == (96, 96) and np.isfinite(t).all() and t.min() >= 0
        assert t.max() == 0 if kind == 'none' else np.quantile(t, .98) == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match='no support'): support_thickness('snow', 96, rng(0))


def test_a_particle_lies_where_it_was_put():
    assert window(64, -90, 10, 20) is None and particle_thickness(64, 10, 200, 20, rng(0)) is None
    for k in range(20):
        part, t = particle_thickness(128, 60, 70, 30, rng(k))
        field = np.zeros((128, 128)); field[part] = t
        y, x = ndimage.center_of_mass(field)
        assert abs(y - 60) < 10 and abs(x - 70) < 10  # a third of the diameter: some have grown together
        assert 20 < 2*((field > 1).sum()/np.pi)**.5 < 45


def test_fields_repeat_differ_and_show_what_their_labels_say():
    (a, la, ca), (b, lb, _), (other, *_) = (thickness_field(3, k, 160) for k in (5, 5, 6))
    assert np.array_equal(a, b) and np.array_equal(la, lb) and not np.array_equal(a, other)
    assert a.dtype == np.float32 and a.min() >= 0 and a.max() <= 1 and ca['particles'] == len(np.unique(la[la > 0]))
    with pytest.raises(UserError, match='do not fit'): thickness_field(0, 0, 64, {**CHOICES, 'colour': 1})


def test_particles_that_cannot_be_seen_have_negative_labels():
    faint, plain = ({**CHOICES, 'empty': 0, 'particle': p, 'brightness': 1., 'cover': .1, 'negative': 0} for p in (.002, 1.))
    hidden, shown = ([thickness_field(2, k, 128, c)[1] for k in range(8)] for c in (faint, plain))
    assert sum((l < 0).sum() for l in hidden) > 20*sum((l > 0).sum() for l in hidden)
    assert sum((l > 0).sum() for l in shown) > 5*sum((l < 0).sum() for l in shown)


@pytest.mark.parametrize('dark_field', [0, 1])
def test_particles_are_dark_in_bright_field_and_bright_in_dark_field(dark_field):
    plain = {**CHOICES, 'negative': 0, 'dark_field': dark_field, 'cover': .1, 'empty': 0}
    right = []
    for k in range(30):
        image, labels, _ = thickness_field(1, k, 128, plain)
        near = ndimage.binary_dilation(labels > 0, iterations=5) & (labels == 0)
        if (labels > 0).any() and near.any(): right.append((image[labels > 0].mean() > image[near].mean()) == bool(dark_field))
    assert len(right) > 15 and np.mean(right) > .9
