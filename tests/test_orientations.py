"""Rotations against formulas, group orders and geometry."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from nanoshape.core import UserError, rng
from nanoshape.simulate.orientations import (RANDOM, axis_angle, euler_zxz, even_rotations, random_rotation, reduced, rotated,
                                             symmetry_rotations, zone_angles)
from nanoshape.simulate.structures import SHAPES, UNSEEN, facets, particle

angles = st.floats(-7, 7)


@given(angles, angles, angles)
def test_euler_angles_follow_the_printed_matrix(phi, theta, psi):
    """The ZXZ matrix written out element by element."""
    (c1, s1), (c2, s2), (c3, s3) = ((np.cos(x), np.sin(x)) for x in (phi, theta, psi))
    printed = [[c1*c3 - s1*c2*s3, -c1*s3 - s1*c2*c3, s1*s2], [s1*c3 + c1*c2*s3, -s1*s3 + c1*c2*c3, -c1*s2], [s2*s3, s2*c3, c2]]
    assert np.allclose(euler_zxz(phi, theta, psi), printed, atol=1e-9)


@given(st.tuples(*[st.floats(-1, 1)]*3).filter(lambda v: np.linalg.norm(v) > .1), angles)
def test_a_turn_keeps_its_axis_and_has_its_angle(axis, angle):
    r = axis_angle(axis, angle)
    assert np.allclose(r@axis, axis, atol=1e-9) and np.isclose(np.trace(r), 1 + 2*np.cos(angle), atol=1e-9)


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


def test_even_angles_are_even_and_their_rotations_are_not():
    g = rng(0, 'angles')
    turns, euler = (np.stack([RANDOM[k](g) for _ in range(3000)]) for k in ('even angle', 'even Euler angles'))
    assert kstest(np.arccos((np.trace(turns, axis1=1, axis2=2) - 1)/2), 'uniform', args=(0, np.pi)).pvalue > .01
    assert kstest(np.arccos(euler[:, 2, 2]), 'uniform', args=(0, np.pi)).pvalue > .01
    for m in (turns, euler): assert kstest(m[:, 2, 2], 'uniform', args=(-1, 2)).pvalue < 1e-6


def test_even_sets_are_haar_and_distinct():
    m = even_rotations(2000)
    assert np.allclose(np.linalg.det(m), 1) and np.allclose(m@m.transpose(0, 2, 1), np.eye(3))
    assert all(kstest(m[:, i, j], 'uniform', args=(-1, 2)).statistic < .02 for i in range(3) for j in range(3))
    nearest = [np.sort((Rotation.from_matrix(m[i])*Rotation.from_matrix(m).inv()).magnitude())[1] for i in range(50)]
    assert np.degrees(min(nearest)) > 5


def test_point_groups_have_their_order():
    orders = {'cube': 24, 'cuboctahedron': 24, 'truncated octahedron': 24, 'octahedron': 24, 'icosahedron': 60, 'tetrahedron': 12,
            'Ino decahedron': 10}
    for shape, order in orders.items():
        normals, distance = facets(shape)
        assert len(symmetry_rotations(normals*distance[:, None])) == order, shape


def test_equivalent_orientations_reduce_to_one():
    group, g = symmetry_rotations(facets('cube')[0]), rng(0)
    for _ in range(20):
        r = random_rotation(g)
        same = [reduced(r@s, group) for s in group]
        assert np.allclose(same, same[0]) and np.isclose(Rotation.from_matrix(same[0]).magnitude(),
                min(Rotation.from_matrix(r@s).magnitude() for s in group))


def test_zone_angles():
    for family, axis in ((100, (0, 1, 0)), (110, (0, -1, 1)), (111, (-1, 1, 1))):
        beam = np.array(axis)/np.linalg.norm(axis)
        tilt = axis_angle(np.cross(beam, (.3, .2, .9)), np.radians(3))
        to_z = Rotation.align_vectors([[0, 0, 1]], [tilt@beam])[0].as_matrix()
        assert np.isclose(np.degrees(zone_angles(to_z)[f'angle_{family}']), 3, atol=1e-6)


def test_rotations_are_remembered_in_order():
    a, b = axis_angle((0, 0, 1), .3), axis_angle((1, 0, 0), .7)
    p = particle('cube', 20, rng(0))
    q = rotated(rotated(p, a), b)
    assert np.allclose(q.info['rotation'], b@a) and np.allclose(q.positions, p.positions@(b@a).T)


@pytest.mark.parametrize('call', [
    lambda: axis_angle((0, 0, 0), 1), lambda: even_rotations(0), lambda: symmetry_rotations(np.array([[0, 0, 1.], [0, 0, -1]])),
    lambda: rotated(particle(UNSEEN[0], 20, rng(0)), np.diag([1, 1, -1])), lambda: rotated(particle(SHAPES[0], 20, rng(0)), np.eye(3)*2)])
def test_impossible_rotations_say_why(call):
    with pytest.raises(UserError, match=r'\w+ \w+ \w+'):
        call()
