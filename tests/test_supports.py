"""Supports measured: densities, distances, neighbours, surfaces."""
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from nanoshape.core import UserError, rng
from nanoshape.simulate.supports import (SUPPORTS, amorphous, carbon_black, carbon_network, coordination, displaced_diamond,
                                         network_block, number_density, pair_distribution, quenched, replaced,
                                         roughened, support, with_edge, with_hole, with_step)

seeds = st.integers(0, 2**31)


def nearest(film):
    width = film.cell.lengths()[0]
    return cKDTree(film.positions, boxsize=(width, width, 1e4)).query(film.positions, 2)[0][:, 1].min()


@given(st.floats(15, 60), st.floats(0, 30), st.floats(1.4, 1.6), st.floats(1.8, 2.2), seeds)
@settings(max_examples=20, deadline=None)
def test_amorphous_film(width, thickness, distance, density, seed):
    film = amorphous(width, thickness, rng(seed), density=density, min_distance=distance)
    mass = film.get_masses().sum()/6.02214076e23*1e24
    assert abs(mass - density*width**2*thickness) <= 12.1/.602214  # the nearest whole atom
    p = film.positions
    if len(p) > 1:
        assert (p >= 0).all() and (p[:, :2] < width).all() and (p[:, 2] <= thickness).all()
        assert nearest(film) >= distance


@pytest.mark.parametrize('kind', [k for k in SUPPORTS if k != 'none'])
def test_every_support_fills_its_slab_evenly(kind):
    film = support(kind, 55, 30, rng(3))
    x, y, z = film.positions.T
    assert min(x.min(), y.min(), z.min()) >= 0 and max(x.max(), y.max()) < 55 and z.max() < 30 and tuple(film.pbc) == (True, True, False)
    density = film.get_masses().sum()/film.cell.volume/.602214
    assert abs(density/{'silicon': 4.68, 'carbon black': 2.15, 'ceria': 7.22, 'zirconia': 6.2, 'titania': 3.89}.get(kind, 2.0) - 1) < .05
    for coordinate, length in ((x, 55), (y, 55), (z, 30)):
        share = np.histogram(coordinate, 5, (0, length))[0]/len(film)
        assert np.abs(share - .2).max() < .03
    assert np.array_equal(film.positions, support(kind, 55, 30, rng(3)).positions) and not np.array_equal(film.positions[0],
            support(kind, 55, 30, rng(4)).positions[0])


def strongest_planes(positions, spacing, rough=800):
    """Highest power of planes so far apart, in any direction, per atom, and that direction."""
    unit = lambda v: v/np.linalg.norm(v, axis=1, keepdims=True)
    v = unit(rng(0).normal(size=(rough, 3)))
    for step in (.1, .03, .01, 0):
        power = np.abs(np.exp(2j*np.pi/spacing*positions@v.T).sum(0))**2/len(positions)
        best = v[power.argmax()]
        v = unit(np.vstack([best, best + step*rng(1).normal(size=(150, 3))]))
    return power.max(), best


def test_layers_of_carbon_black_face_their_sphere():
    """A piece far from the centre has parallel layers, in any direction; one near it has none that are; bonds are those of graphene."""
    flat = [strongest_planes(carbon_black(30, 30, rng(s), sphere=1e6, disorder=0.).positions, 3.44) for s in range(4)]
    assert min(power for power, _ in flat) > 50
    upright = [abs(direction[2]) for _, direction in flat]
    assert min(upright) < .5 < max(upright)
    assert strongest_planes(carbon_black(30, 30, rng(0), sphere=20.).positions, 3.44)[0] < .5*flat[0][0]
    assert strongest_planes(carbon_black(30, 30, rng(0), sphere=1e6, disorder=0.).positions, 2.7)[0] < .3*flat[0][0]
    assert (coordination(carbon_black(50, 50, rng(0)), 1.6) == 3).mean() > .5


@pytest.mark.parametrize('kind, spacing, bond', [('ceria', 3.124, 2.343), ('zirconia', 2.939, 2.204), ('titania', 3.517, 1.934)])
def test_oxides_are_crystals(kind, spacing, bond):
    """Planes and bonds of handbooks, {111} of fluorite and {101} of anatase, in any grain's own direction."""
    film = support(kind, 60, 40, rng(2), grain=1000.)  # one grain
    metal = film.positions[(film.numbers > 8) & (np.abs(film.positions - (30, 30, 20)).max(1) < 20)]
    power = [strongest_planes(metal, d)[0]/len(metal) for d in (spacing, 1.07*spacing)]
    assert power[0] > .3 and power[1] < .15
    inner = np.abs(film.positions - (30, 30, 20)).max(1) < 12
    assert np.allclose(cKDTree(film.positions).query(film.positions[inner], 2)[0][:, 1], bond, atol=.02)
    several = support(kind, 60, 40, rng(2), grain=25.)
    assert nearest(several) >= 1.6 and .8 < len(several)/len(film) < 1.01


def test_pair_distribution_of_a_known_crystal():
    """Diamond: 4 neighbours at a√3/4, 12 at a/√2; an ideal gas has g = 1."""
    d = bulk('C', 'diamond', a=3.567, cubic=True).repeat(5)
    r, g = pair_distribution(d, 4, 400)
    shell = 4*np.pi*r**2*(r[1] - r[0])*len(d)/d.cell.volume*g
    assert np.isclose(shell[np.abs(r - 1.545) < .05].sum(), 4, rtol=.02) and np.isclose(shell[np.abs(r - 2.522) < .05].sum(), 12, rtol=.02)
    assert (coordination(d) == 4).all()
    gas = d.copy(); gas.positions = rng(0).uniform(0, d.cell.lengths()[0], (len(d), 3))
    assert abs(pair_distribution(gas, 8, 8)[1][4:] - 1).max() < .05


def test_the_quenched_network_is_amorphous_carbon():
    """First peak 1.4 to 1.5 Å, a gap behind it, about three neighbours, no hard contact; and no crystal: no order beyond 8 Å."""
    block = network_block()
    r, g = pair_distribution(block, 12, 240)
    assert 1.4 <= r[g.argmax()] <= 1.5 and g[(r > 1.75) & (r < 1.95)].max() < .3
    n = coordination(block)
    assert 2.7 < n.mean() < 3.5 and (n == 3).mean() > .6 and ((n >= 2) & (n <= 4)).mean() > .99
    assert abs(g[r > 8] - 1).max() < .1
    film = carbon_network(60, 25, rng(0))
    assert nearest(film) >= 1.2 and abs(len(film)/(number_density('C', 2.)*60*60*25) - 1) < .02


def test_a_short_quench_goes_the_whole_way():
    cube = amorphous(8, 8, rng(0), min_distance=1.4)
    out = quenched(cube, 200, rng(1))
    assert len(out) == len(cube) and out.pbc.all() and out.calc is None
    assert np.array_equal(out.positions, quenched(cube, 200, rng(1)).positions)
    assert coordination(out).mean() > coordination(cube).mean()


def test_silicon_takes_the_same_sites():
    c, si = amorphous(30, 10, rng(1)), support('silicon', 30, 10, rng(1))
    assert np.array_equal(c.positions, si.positions) and set(si.symbols) == {'Si'} and set(c.symbols) == {'C'}


def test_surfaces():
    film = amorphous(80, 30, rng(0))
    rough = roughened(film, 3., rng(1))
    tops = [rough.positions[(np.abs(rough.positions[:, :2] - (x, y)) < 4).all(1), 2].min() for x in range(5, 80, 10) for y in range(5, 80, 10)]
    assert 1.5 < np.std(tops) < 4.5 and len(rough) < len(film) and rough.positions[:, 2].max() > 29
    hole = with_hole(film, 20, rng(1), ragged=0.)
    assert np.hypot(*(hole.positions[:, :2] - 40).T).min() >= 20 and abs(1 - len(hole)/len(film) - np.pi*20**2/80**2) < .01
    edge = with_edge(film, 30, rng(1), ragged=0.)
    assert edge.positions[:, 0].min() >= 30 and abs(len(edge)/len(film) - 50/80) < .01
    step = with_step(film, 30, 12, rng(1), ragged=0.)
    thin = step.positions[:, 0] >= 30
    assert step.positions[thin, 2].max() < 18 and step.positions[~thin, 2].max() > 29 and abs(1 - len(step)/len(film) - 50/80*12/30) < .01
    assert support('none', 50, 20, rng(0)) is None and support('network', 50, 0, rng(0)) is None


@pytest.mark.parametrize('call', [
    lambda: amorphous(20, 10, rng(0), density=4.), lambda: amorphous(20, 10, rng(0), min_distance=0), lambda: amorphous(-5, 10,
    rng(0)), lambda: amorphous(1e9, 10, rng(0)),
    lambda: displaced_diamond(20, 1, rng(0)), lambda: support('paper', 20, 10, rng(0)), lambda: roughened(amorphous(20, 10, rng(0)), 5, rng(0)),
    lambda: replaced(amorphous(20, 10, rng(0)), 'Xx'), lambda: pair_distribution(amorphous(20, 5, rng(0)))])
def test_impossible_supports_say_why(call):
    with pytest.raises(UserError, match=r'\w+ \w+ \w+'):
        call()
