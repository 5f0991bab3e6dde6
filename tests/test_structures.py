"""Structures measured: sizes, distances, directions."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.stats import kstest

from nanoshape.core import UserError, rng
from nanoshape.orientations import random_rotation, rotated
from nanoshape.structures import SHAPES, assemble, facets, lattice_constant, particle, polyhedron, projected_sizes
from nanoshape.supports import amorphous

shapes, sizes, seeds = st.sampled_from(SHAPES), st.floats(20, 80), st.integers(0, 2**31)


@given(shapes, sizes, seeds)
@settings(max_examples=40, deadline=None)
def test_a_particle_fills_its_polyhedron_and_no_more(shape, size, seed):
    p = particle(shape, size, rng(seed)).positions
    normals, dist = facets(shape)
    reach = (p@normals.T).max(0)
    assert (reach <= dist*size/2 + 1e-9).all()
    assert (reach > dist*size/2 - 2.6).all(), 'a facet is more than one layer ({111}: 2.36 Å) inside'
    assert np.ptp(p, 0).max() <= size + 1e-9


@given(shapes, st.floats(25, 60), seeds)
@settings(max_examples=20, deadline=None)
def test_distances_do_not_change_with_orientation_and_atoms_do_not_overlap(shape, size, seed):
    p = particle(shape, size, rng(seed))
    q = rotated(p, random_rotation(rng(seed, 'turn')))
    nearest = [cKDTree(a.positions).query(a.positions, 2)[0][:, 1] for a in (p, q)]
    assert np.allclose(*nearest, atol=1e-9) and nearest[0].min() > 2.7


def test_corners_are_on_the_unit_sphere():
    for c in (polyhedron(s).corners for s in SHAPES):
        assert np.allclose(np.linalg.norm(c, axis=1), 1) and np.allclose(c.sum(0), 0)


def test_known_facet_angles():
    """Between neighbouring facets: cube 90°, octahedron 109.47°, icosahedron 138.19° (interior)."""
    for shape, angle in (('cube', 90), ('octahedron', 109.4712), ('icosahedron', 138.1897)):
        n, _ = facets(shape)
        cos = np.sort(n@n.T, axis=1)[:, -2]  # the nearest other normal
        assert np.allclose(180 - np.degrees(np.arccos(cos)), angle, atol=1e-3)


def test_inner_fcc_atoms_have_twelve_neighbours():
    p = particle('octahedron', 60, rng(0)).positions
    inner = np.linalg.norm(p, axis=1) < 10
    count = cKDTree(p).query_ball_point(p[inner], 3.1, return_length=True) - 1
    assert inner.sum() > 100 and (count == 12).all()


def test_sizes_are_continuous():
    """Cutting around a random point gives several atom counts within 3 Å of size, where a ladder of closed shells has one or two."""
    for s in SHAPES:
        counts = {len(particle(s, 50 + .1*k, rng(k))) for k in range(30)}
        assert len(counts) >= 5, s


def test_orientations_are_haar():
    """Any fixed direction turns into one with a uniform z; the angle about it is uniform too (Kolmogorov–Smirnov, fixed seed)."""
    g = rng(0, 'haar')
    m = np.stack([random_rotation(g) for _ in range(3000)])
    assert np.allclose(np.linalg.det(m), 1)
    for axis in range(3):
        assert kstest(m[:, 2, axis], 'uniform', args=(-1, 2)).pvalue > .01
    assert kstest(np.arctan2(m[:, 1, 0], m[:, 0, 0]), 'uniform', args=(-np.pi, 2*np.pi)).pvalue > .01
    angle = np.arccos((np.trace(m, axis1=1, axis2=2) - 1)/2)  # its density is (1 − cos θ)/π
    assert kstest(angle, lambda t: (t - np.sin(t))/np.pi).pvalue > .01


@given(st.floats(15, 60), st.floats(0, 30), st.floats(1.4, 1.6), st.floats(1.8, 2.2), seeds)
@settings(max_examples=20, deadline=None)
def test_amorphous_film(width, thickness, distance, density, seed):
    film = amorphous(width, thickness, rng(seed), density=density, min_distance=distance)
    mass = film.get_masses().sum()/6.02214076e23*1e24
    assert abs(mass - density*width**2*thickness) <= 12.1/.602214  # the nearest whole atom
    p = film.positions
    if len(p) > 1:
        assert (p >= 0).all() and (p[:, :2] < width).all() and (p[:, 2] <= thickness).all()
        box = (width, width, 1e4)  # periodic in x and y only
        assert cKDTree(p, boxsize=box).query(p, 2)[0][:, 1].min() >= distance


def test_particles_rest_on_the_film_where_they_are_put():
    parts = [rotated(particle('cube', s, rng(s)), random_rotation(rng(s))) for s in (30, 45)]
    scene = assemble(parts, 120, amorphous(120, 10, rng(0)), [(-30, 20), (25, -30)])
    gold, film = scene.positions[scene.numbers == 79], scene.positions[scene.numbers == 6]
    first, second = gold[:len(parts[0])], gold[len(parts[0]):]
    assert np.allclose((first.max(0) + first.min(0))[:2]/2, (30, 80)) and np.allclose((second.max(0) + second.min(0))[:2]/2, (85, 30))
    assert np.isclose(first[:, 2].max(), second[:, 2].max()) and 2.4 < film[:, 2].min() - gold[:, 2].max() < 3
    assert (scene.positions >= 0).all() and (scene.positions <= scene.cell.lengths()).all()


def test_equal_seeds_equal_atoms():
    a, b, c = (particle('icosahedron', 40, rng(s)).positions for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a[:10], c[:10])


@pytest.mark.parametrize('call', [
    lambda: particle('dodecahedron', 50, rng(0)), lambda: particle('cube', 1, rng(0)), lambda: particle('cube', 50, rng(0), 'Fe'),
    lambda: lattice_constant('Xx'), lambda: amorphous(20, 10, rng(0), density=4.), lambda: assemble(particle('cube', 60, rng(0)), 30),
    lambda: projected_sizes(particle('cube', 30, rng(0))[:2])])
def test_impossible_requests_say_why(call):
    with pytest.raises(UserError, match=r'\w+ \w+ \w+'):
        call()
