"""Grains and columns measured."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from nanoshape.simulate.columns import (CERIA, SURFACES, column_crystal, column_table, tilted, with_adatoms,
                                        with_vacancies, zone)
from nanoshape.core import UserError, rng
from nanoshape.simulate.grains import (CUBIC, FEWEST, LEAST, MODELS, amorphous_particle, faceted, misorientation,
                                       polycrystal, single_crystal, twin)
from nanoshape.simulate.orientations import axis_angle, random_rotation
from nanoshape.simulate.structures import closed_shell

BOND = 4.08/2**.5
seeds = st.integers(0, 2**31)


def nearest(p):
    return cKDTree(p.positions).query(p.positions, 2)[0][:, 1]


@given(st.floats(10, 30), seeds)
@settings(max_examples=20, deadline=None)
def test_polycrystals(diameter, seed):
    """Each domain is a crystal in its stated orientation, the domains are apart by a plane, differently turned, and nowhere closer than a bond."""
    p = polycrystal(diameter, rng(seed))
    assert np.linalg.norm(p.positions, axis=1).max() <= diameter/2 and nearest(p).min() >= BOND*(1 - 1e-6)
    turns, domain = [np.array(t) for t in p.info['domains']], p.arrays['domain']
    assert len(turns) in (2, 3) and set(domain) == set(range(len(turns))) and len(p.info['planes']) == len(turns) - 1
    for k, turn in enumerate(turns):
        sites = p.positions[domain == k]@turn*2/4.08  # in half lattice constants, up to a shift
        steps = sites - sites[0]
        assert np.allclose(steps, steps.round(), atol=1e-6) and (steps.round().sum(1) % 2 == 0).all()
        assert all(misorientation(turn, other) >= LEAST for other in turns[:k])
    first = p.positions@np.array(p.info['planes'][0])
    assert first[domain == 0].max() <= first[domain == 1].min() + 1e-9 or len(turns) == 3


def test_half_of_them_have_a_third_crystal():
    n = [len(polycrystal(25, rng(k)).info['domains']) for k in range(120)]
    assert 40 <= n.count(3) <= 80


def test_single_crystals_are_cut_around_random_points():
    sizes = [len(single_crystal(20, rng(k))) for k in range(30)]
    assert np.std(sizes) > 1 and abs(np.mean(sizes)/(4/3*np.pi*10**3*4/4.08**3) - 1) < .02
    assert all(nearest(single_crystal(20, rng(k))).min() >= BOND*(1 - 1e-6) for k in range(5))


@given(st.floats(12, 30), seeds)
@settings(max_examples=20, deadline=None)
def test_twins_keep_all_neighbours(diameter, seed):
    p = twin(diameter, rng(seed))
    inner = np.linalg.norm(p.positions, axis=1) < diameter/2 - 3
    assert nearest(p).min() >= BOND*(1 - 1e-6)
    assert (cKDTree(p.positions).query_ball_point(p.positions[inner], 1.1*BOND, return_length=True) == 13).all()
    assert np.isclose(np.degrees(misorientation(*p.info['domains'])), 60)


@given(st.floats(10, 40), seeds, st.sampled_from([single_crystal, polycrystal, twin]))
@settings(max_examples=20, deadline=None)
def test_facets_are_planes_of_each_crystal(diameter, seed, make):
    """What is left lies within {111} and {100} planes of its own crystal, what is gone beyond one of them; no crystal is lost."""
    whole = make(diameter, rng(seed))
    p = faceted(whole, rng(seed, 'facets'))
    octahedron, cube = p.info['facet_distances']
    assert diameter/2/3**.5 <= min(octahedron, cube) and max(octahedron, cube) <= diameter/2*1.001
    def inside(a):
        own = np.abs(np.einsum('ni,nij->nj', a.positions, np.array(whole.info['domains'])[a.arrays['domain']]))  # along the own crystal's axes
        return (own.sum(1)/3**.5 <= octahedron + 1e-6) & (own.max(1) <= cube + 1e-6)
    assert inside(p).all() and inside(whole).sum() == len(p) <= len(whole)
    assert np.bincount(p.arrays['domain'], minlength=len(whole.info['domains'])).min() >= FEWEST
    with pytest.raises(UserError, match='no facets'):
        faceted(amorphous_particle(12, rng(0)), rng(0))


def test_misorientation_knows_the_symmetry():
    g = rng(0)
    for _ in range(10):
        r = random_rotation(g)
        assert np.isclose(misorientation(r, r@CUBIC[g.integers(24)]), 0, atol=1e-6)
        assert np.isclose(np.degrees(misorientation(r, r@CUBIC[g.integers(24)]@axis_angle((1, 2, 3), .2))), np.degrees(.2))


@given(st.floats(10, 30), seeds)
@settings(max_examples=15, deadline=None)
def test_amorphous_particles(diameter, seed):
    p = amorphous_particle(diameter, rng(seed))
    assert nearest(p).min() >= 2.48 and np.linalg.norm(p.positions, axis=1).max() <= diameter/2 + 1e-9
    assert abs(len(p) - 17.4/196.96657*.602214*4/3*np.pi*(diameter/2)**3) <= 1


def test_there_are_sixteen_single_and_six_twinned_models():
    models = [closed_shell(*m) for m in MODELS]
    assert len(models) == 22 and len({(len(m), m.info['shape']) for m in models}) == 22
    five_fold = [m for m in models if abs(nearest(m)/BOND - 1).max() > .01 or m.info['shape'] == 'decahedron']
    assert len(five_fold) == 6


@pytest.mark.parametrize('material,axis', [('CeO2', '110'), ('Au', '110'), ('Au', '100'), ('Pt', '110')])
@pytest.mark.parametrize('surface', SURFACES)
def test_columns_hold_what_the_table_says(material, axis, surface):
    """Found anew by grouping atoms in the image plane: same columns, same counts, one element each."""
    p = column_crystal(35, rng(2), material, axis, surface, (3, 10))
    table = column_table(p)
    xy = p.positions[:, :2].round(4)
    places, owner, count = np.unique(xy, axis=0, return_inverse=True, return_counts=True)
    assert len(places) == len(table)
    at = cKDTree(places).query(np.column_stack([table['x'], table['y']]))
    assert at[0].max() < 1e-3 and (count[at[1]] == table['count']).all()
    assert all(len(set(p.numbers[owner == k])) == 1 for k in range(len(places)))
    assert table['count'].min() >= 3 and table['count'].max() <= 10 and (surface != 'flat' or np.ptp(table['count']) == 0)
    assert nearest(p).min() > (2.3 if material == 'CeO2' else 2.7)


def test_ceria_is_fluorite():
    p = column_crystal(40, rng(0), surface='flat', heights=(10, 10))
    ce, o = p.positions[p.numbers == 58], p.positions[p.numbers == 8]
    d = cKDTree(ce).query(o)[0]
    assert np.isclose(d.min(), CERIA*3**.5/4) and abs(len(o)/len(ce) - 2) < .3
    inner = ce[(np.abs(ce) < 8).all(1)]
    assert (cKDTree(o).query_ball_point(inner, 2.4, return_length=True) == 8).all()
    cell = zone().repeat
    assert np.isclose(np.prod(cell)*2, CERIA**3)


def test_defects_and_tilt_keep_the_truth():
    p = column_crystal(35, rng(1), surface='stepped')
    worn = with_vacancies(p, 25, rng(0), 'O')
    assert (worn.symbols == 'Ce').sum() == (p.symbols == 'Ce').sum() and column_table(worn)['count'].sum() == len(p) - 25
    more = with_adatoms(p, 12, rng(0), 'Ce')
    gained = column_table(more)['count'] - column_table(p)['count']
    assert gained.sum() == 12 and gained.max() == 1 and nearest(more).min() > 2.2
    lean = tilted(p, np.radians(3), rng(0))
    assert np.isclose(np.degrees(lean.info['tilt'][0]), 3) and (column_table(lean)['count'] == column_table(p)['count']).all()
    of = lean.positions[lean.arrays['column'] == lean.arrays['column'][0]]
    assert np.isclose(np.hypot(*np.ptp(of[:, :2], axis=0)), (len(of) - 1)*CERIA/2**.5*np.sin(np.radians(3)), atol=1e-6)


@pytest.mark.parametrize('call', [
    lambda: single_crystal(1, rng(0)), lambda: polycrystal(500, rng(0)), lambda: amorphous_particle(20, rng(0), density=40.), lambda: twin(20,
    rng(0), 'Fe'),
    lambda: zone('CeO2', '100'), lambda: zone('NaCl'), lambda: column_crystal(30, rng(0), surface='wavy'), lambda: column_crystal(30, rng(0),
    heights=(5, 2)),
    lambda: column_crystal(1e6, rng(0)), lambda: column_table(single_crystal(20, rng(0))), lambda: with_vacancies(column_crystal(30, rng(0)), 10**6,
    rng(0)),
    lambda: with_adatoms(column_crystal(30, rng(0)), 10**6, rng(0))])
def test_impossible_grains_say_why(call):
    with pytest.raises(UserError, match=r'\w+ \w+ \w+'):
        call()


@pytest.mark.parametrize('seed', range(60))
def test_both_crystals_of_a_small_twin_have_atoms(seed):
    p = twin(12, rng(seed))
    assert np.bincount(p.arrays['domain'], minlength=2).min() >= FEWEST


@pytest.mark.parametrize('make', [twin, polycrystal])
def test_what_cannot_hold_two_crystals_is_refused(make):
    with pytest.raises(UserError, match='larger'):
        make(5, rng(0))


def test_a_crystal_of_few_atoms_cannot_have_facets():
    p = twin(20, rng(0))
    few = p[[*np.flatnonzero(p.arrays['domain'] == 0), *np.flatnonzero(p.arrays['domain'] == 1)[:3]]]
    with pytest.raises(UserError, match='atoms'):
        faceted(few, rng(0))
