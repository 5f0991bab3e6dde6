"""Random particles: limits, labels, purity, distances; metals and energies in one batch."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from conftest import ROOT
from nanoshape.core import NM, UserError, rng, torch_rng
from nanoshape.datasets.batches import frozen_images
from nanoshape.datasets.recipes import NEWER_KEYS, bounds, check_spread, draw, fingerprint, load_recipe, make_recipe, recorded_recipe
from nanoshape.datasets.samples import class_of, conditions, element_of, energy_of, recipe_waves, sample, scale_of, thickness_map, truth_map, waves_of
from nanoshape.datasets.store import simulate
from nanoshape.learn.network import Card, outside
from nanoshape.simulate.forms import (CRYSTALS, FORMS, LIMITS, TEST_FORMS, Look, closed, facet_ratio, facetted, form_particle, grain_sites,
                                      on_surface, random_strain, rounded, truncation_of, twin_sites)
from nanoshape.simulate.microscope import Microscope, images, intensity, take, transfer
from nanoshape.simulate.structures import lattice_constant, particle, polyhedron

MIXED = dict(name='m', kind='forms', structures=12, size_nm={'uniform': [1.5, 2.5]}, box_nm=4, gpts=96, out_gpts=48, support_nm=.5, shift_nm=.2,
             element=['Au', 'Cu', 'Al'], energy_kev={'choice': [80, 200, 300]}, angular_spread_mrad=.5, defocus_nm={'uniform': [-20, 20]})
numbers = st.fixed_dictionaries({k: st.floats(low, min(high, .1) if k == 'surface' else high) for k, (low, high) in LIMITS.items()})


def nearest(p):
    return cKDTree(p).query(p, k=2)[0][:, 1].min()


@given(st.floats(0, 1))
def test_truncation_is_a_scale_of_the_ratio_of_distances(t):
    assert np.isclose(truncation_of(facet_ratio(t)), t) and 3**-.5 - 1e-9 <= facet_ratio(t) <= 3**.5
    assert np.isclose(facetted(t, rng(0)).truncation, t, atol=1e-6)


@pytest.mark.parametrize('name, t, facets', [('octahedron', 0, 8), ('truncated octahedron', 1/3, 14), ('cuboctahedron', .5, 14), ('cube', 1, 6)])
def test_ideal_numbers_give_the_ideal_bodies(name, t, facets):
    inside = facetted(t, rng(0)).inside
    p = rng(1).uniform(-1, 1, (20000, 3))
    assert (inside(p) == polyhedron(name).contains(p, 1.)).mean() > .9999 and len(facetted(t, rng(0)).facets) == facets
    g = rng(2); g.uniform(size=26)  # the facets' factors
    a, b = form_particle('facetted crystal', 50., rng(2), truncation=t), particle(name, 50., g)
    assert a.positions.shape == b.positions.shape and np.allclose(np.sort(a.positions, 0), np.sort(b.positions, 0))


@given(numbers, st.sampled_from(FORMS + TEST_FORMS), st.floats(15, 30), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_any_numbers_give_a_particle(look, form, size, seed):
    look |= dict(strain=min(look['strain'], .01))
    p = form_particle(form, size, rng(seed), 'Ag', **look)
    i, bond = p.info, lattice_constant('Ag')/2**.5
    assert i['form'] == form and i['crystal'] in CRYSTALS and i['element'] == 'Ag' and len(p) >= 5
    assert nearest(p.positions) >= .8*bond and np.linalg.norm(p.positions, axis=1).max() <= max(i['size'], size)/2*1.01 + bond
    assert np.isnan(i['truncation']) or 0 <= i['truncation'] <= 1
    assert (p.positions == form_particle(form, size, rng(seed), 'Ag', **look).positions).all()
    assert all(np.allclose(np.array(d)@np.array(d).T, np.eye(3)) and np.linalg.det(d) > 0 for d in i['domains'])


def test_rounding_ends_at_the_inscribed_sphere_and_a_size_is_that_of_the_circumscribed_one():
    p = rng(0).uniform(-1, 1, (40000, 3))
    cube = closed(np.vstack([np.eye(3), -np.eye(3)]), np.ones(6))
    assert (rounded(cube, 1.).inside(p) == ((p**2).sum(1) <= 1)).all() and (rounded(cube, 0.).inside(p) == cube.contains(p, 1.)).all()
    shares = [rounded(cube, r).inside(p).mean() for r in (0, .3, .6, 1)]
    assert shares == sorted(shares)  # rounder is fuller, for one circumscribed sphere
    for r in (0., .5, 1.):
        q = form_particle('facetted crystal', 60., rng(3), truncation=1., roundness=r).positions
        assert 60 - 2*4.08 < 2*np.linalg.norm(q, axis=1).max() <= 60 + 1e-6


def test_facets_that_close_no_body_are_refused():
    with pytest.raises(UserError, match='close no body'):
        closed(np.eye(3), np.ones(3))


@pytest.mark.parametrize('make', [twin_sites, grain_sites])
def test_each_crystal_is_turned_as_its_label_says(make):
    for k in range(6):
        s = make(4., 24., rng(k))
        assert 2 <= len(s.turns) <= 4 and len(s.views) == len(s.turns)
        for d, turn in enumerate(s.turns):
            p = s.p[s.domain == d]@turn  # in the crystal's own axes, an fcc lattice
            if len(p) < 20: continue
            steps = (p - p[0])/2
            assert np.allclose(steps, steps.round(), atol=1e-6) and (steps.round().sum(1) % 2 == 0).all()


def test_twins_share_a_111_axis():
    for k in range(8):
        turns = np.array(form_particle('twinned crystal', 40., rng(k)).info['domains'])
        for t in turns[1:]:
            angle = np.degrees(np.arccos((np.trace(turns[0].T@t) - 1)/2))
            assert np.isclose(angle, 180, atol=1e-3) or np.isclose(angle, 0, atol=1e-3)


def test_a_bipyramid_is_widest_at_its_twin_plane():
    p = form_particle('triangular bipyramid', 60., rng(0)).positions
    height = p@np.ones(3)/3**.5
    wide = lambda part: np.linalg.norm(p[part] - np.outer(height[part], np.ones(3)/3**.5), axis=1).max()
    assert wide(np.abs(height) < 2) > 1.8*max(wide(height > 8), wide(height < -8)) and abs(height.max() + height.min()) < 4


def test_hollow_spheres_are_hollow_and_rods_long():
    assert np.linalg.norm(form_particle('hollow sphere', 60., rng(0)).positions, axis=1).min() > 13
    spread = np.linalg.svd(form_particle('rod', 60., rng(0)).positions, compute_uv=False)
    assert spread[0] > 1.8*spread[1]


def test_surface_atoms_are_removed_or_added():
    whole, fewer, more = (form_particle('facetted crystal', 40., rng(1), truncation=.5, surface=s) for s in (0., -.1, .1))
    n = on_surface(whole.positions, 4.08/2**.5).sum()
    assert len(whole) - len(fewer) == len(more) - len(whole) == round(.1*n)
    near = cKDTree(whole.positions).query(more.positions)[0]
    assert (near > 1).sum() == len(more) - len(whole) and nearest(more.positions) > .99*4.08/2**.5


def test_strain_is_as_large_as_it_says():
    for k in range(5): assert np.isclose(np.abs(np.linalg.eigvalsh(random_strain(.008, rng(k)))).max(), .008)
    a, b = (form_particle('facetted crystal', 40., rng(1), strain=s).positions for s in (0., .01))
    assert 0 < np.abs(np.linalg.norm(b, axis=1)/np.linalg.norm(a, axis=1) - 1).max() <= .01 + 1e-9


def test_agglomerates_touch_and_fit():
    for k in range(6):
        p = form_particle('agglomerate', 50., rng(k))
        body = p.arrays['body']
        gaps = [cKDTree(p.positions[body == b]).query(p.positions[body != b])[0].min()/(4.08/2**.5) for b in range(body.max() + 1)]
        assert max(gaps) < 1.05 and p.info['size'] <= 50 and len(p.info['bodies']) == body.max() + 1 in (2, 3)
        assert (p.info['crystal'] == 'none of these') == ('amorphous' in p.info['bodies'] and set(p.info['bodies']) != {'amorphous'})


@pytest.mark.parametrize('bad, says', [(dict(form='teapot'), 'no form'), (dict(size=200.), '20 nm'), (dict(element='Fe'), 'Fe'),
                                       (dict(roundness=1.1), 'roundness'), (dict(truncation=-.1), 'truncation'), (dict(strain=.2), 'strain')])
def test_what_makes_no_particle_is_refused(bad, says):
    with pytest.raises(UserError, match=says):
        form_particle(**dict(form='lump', size=30., generator=rng(0)) | bad)


def test_a_mixture_draws_from_its_ranges():
    spec = {'mixture': [[-.02, .02], [.5, 1.4]]}
    values = np.array([draw(spec, rng(0, k)) for k in range(400)])
    high = values > .1
    assert bounds(spec) == (-.02, 1.4) and .4 < high.mean() < .6 and (np.abs(values[~high]) <= .02).all() and (values[high] >= .5).all()
    for bad in ([], [1, 2], [[1, 2, 3]], [[2, 1]]):
        with pytest.raises(UserError, match='mixture'): check_spread({'mixture': bad}, 'Cs_um')


def test_the_older_recipes_keep_their_fingerprints():
    plain = make_recipe(name='x', size_nm=5.)
    named = dict(edges=0., irregularity=0., roundness=0., surface=0., strain=0.)
    assert set(named) <= set(NEWER_KEYS) and fingerprint(make_recipe(name='x', size_nm=5., **named)) == fingerprint(plain)
    assert fingerprint(make_recipe(name='x', roundness=.5)) != fingerprint(make_recipe(name='x'))
    assert make_recipe(name='x', energy_kev=300).energy_kev == 300 and isinstance(make_recipe(name='x', energy_kev=300).energy_kev, int)
    assert fingerprint(load_recipe(ROOT/'data/recipes/tiny.yaml')) == TINY


TINY = '0619a9148dbf'  # before there were forms


@pytest.mark.parametrize('bad, says', [(dict(element=['Au', 'Fe']), 'Fe'), (dict(element=[]), 'at least one'), (dict(truncation=1.2), 'truncation'),
                                       (dict(roundness={'uniform': [0, 2]}), 'roundness'), (dict(classes=['cube']), 'cube'),
                                       (dict(energy_kev={'choice': [0, 300]}), 'energy_kev'), (dict(kind='particles', classes=['cube']), 'several')])
def test_impossible_recipes_are_refused(bad, says):
    with pytest.raises(UserError, match=says):
        make_recipe(**MIXED | bad)


def test_samples_are_pure_and_their_labels_say_what_they_are():
    r = make_recipe(**MIXED)
    assert r.classes == FORMS and recorded_recipe({k: getattr(r, k) for k in r.__dataclass_fields__}) == r
    for i in range(12):
        scene, l = sample(r, i)
        again = sample(make_recipe(**MIXED | dict(structures=500)), i)[0]
        assert (again.positions == scene.positions).all() and scene.info['energy'] == 1e3*l['energy_kev'] == energy_of(r, i)
        a = lattice_constant(l['element'])
        assert l['form'] == l['class'] == class_of(r, i) and l['element'] == element_of(r, i) and l['a'] == a
        assert np.isclose(scene.cell[0, 0]/a, 40/lattice_constant('Au')) and np.isclose(l['sampling'], scene.cell[0, 0]/48)
        cubic = l['crystal'] in CRYSTALS[1:3]
        assert np.isnan(l['angle_100']) != cubic and (l['crystal'] != 'amorphous' or np.isnan(l['rotation_x']))
        assert not cubic or np.linalg.norm([l['rotation_x'], l['rotation_y'], l['rotation_z']]) <= np.radians(62.8)


def test_pixels_per_lattice_constant_are_equal():
    for e in ('Au', 'Cu'):
        ideal = dict(size_nm=2.5, irregularity=0., surface=0., strain=0., support_nm=0)
        r = make_recipe(**MIXED | ideal | dict(element=e, classes=['facetted crystal']))
        scene = sample(r, 0)[0]
        lattice = lattice_constant(e)/4.08
        assert np.isclose(scene.cell[0, 0]/nearest(scene.positions), 40/(4.08/2**.5), rtol=2e-3) and np.isclose(scale_of(r, 0), lattice)


def test_waves_and_images_of_several_energies_and_metals_are_those_of_each_alone():
    r = make_recipe(**MIXED, foci=3, mtf={'uniform': [.3, 1]}, astigmatism_x_nm={'uniform': [-3, 3]})
    waves, labels, maps = waves_of(r, range(6))
    assert len({l['energy_kev'] for l in labels}) > 1 and len({l['element'] for l in labels}) > 1 and maps.dtype == np.float16
    m = conditions(r, range(6))
    seen = intensity(waves, m, r.sampling, r.out_gpts)
    for k, l in enumerate(labels):
        assert torch.allclose(waves_of(r, [k])[0][0], waves[k], atol=1e-5)
        one = take(m, k)
        plain = Microscope(1e3*l['energy_kev'], pixel_integration=True, foci=3, **{n: v for n, v in one.values.items() if n != 'scale'})
        alone = intensity(waves[k], plain, l['sampling'], r.out_gpts)  # with the true pixel and the true conditions
        assert torch.allclose(seen[k], alone, atol=5e-4)
    assert (torch.stack([intensity(waves[0], take(m, k), r.sampling, r.out_gpts) for k in range(3)]).std(0) > 1e-3).any()


def test_counts_follow_the_true_pixel():
    flat = torch.ones(2, 32, 32, dtype=torch.complex64)
    counts = images(flat, Microscope(dose=torch.tensor([500., 500.]), scale=torch.tensor([1., .5])), .8, torch_rng(0))
    assert torch.allclose(counts.mean((1, 2)), torch.tensor([320., 80.]), rtol=.02)


def test_energies_as_a_tensor_transfer_as_each_alone():
    m = Microscope(torch.tensor([80e3, 300e3]), defocus=200., Cs=1e6, A1=50., focal_spread=30.)
    both = transfer((32, 32), .5, m)
    for k, e in enumerate((80e3, 300e3)):
        alone = transfer((32, 32), .5, Microscope(e, defocus=200., Cs=1e6, A1=50., focal_spread=30.))
        assert torch.allclose(both[k], alone, atol=2e-4)
    assert '300000' in repr(m) and Microscope(200e3).energy == 200e3


def test_a_thickness_map_holds_the_volume_and_wraps_around():
    p = form_particle('facetted crystal', 40., rng(0), truncation=.4).positions[:, :2]
    v = 4.08**3/4
    a, b = (thickness_map((p + s) % 60, 80, 60., v).astype(float) for s in (30., 0.))
    assert np.isclose(a.sum()*.75**2, len(p)*v, rtol=.01) and np.allclose(np.roll(b, (40, 40), (0, 1)), a, atol=.1)
    assert a[0].max() == 0 and a.max() < 45 and (a[a > 0] >= .5).all()


def test_a_store_of_forms_keeps_labels_and_thickness(tmp_path):
    r = replace(make_recipe(**MIXED), structures=3, classes=('amorphous', 'agglomerate', 'icosahedron'))
    s = simulate(r, tmp_path/'store', workers=0)
    assert s.maps([1]).dtype == np.float16 and (s.maps([1])[0] == truth_map(r, sample(r, 1)[0])).all()
    assert {'form', 'crystal', 'truncation', 'roundness', 'size', 'element', 'a', 'energy_kev', 'sampling', 'rotation_x'} <= set(s.labels)
    assert s.labels.crystal[0] == 'amorphous' and s.labels.truncation.isna().all() and s.labels.energy_kev[2] == energy_of(r, 2)/1e3
    assert frozen_images(s, range(3)).shape == (3, 48, 48) and torch.equal(recipe_waves(r, [sample(r, 1)[0]])[0], s.waves([1])[0])


def test_a_structure_without_its_energy_is_refused():
    r = make_recipe(**MIXED)
    with pytest.raises(UserError, match='energy'):
        recipe_waves(r, [particle('cube', 20., rng(0))])


def test_a_card_says_all_metals_that_it_was_trained_on():
    card = Card(arch='resnet18', classes=('a', 'b'), sampling=.7, gpts=64, recipe=dict(MIXED))
    why = outside(card, energy_kev=120, element='Cu')
    assert not why['another element than trained on'] and not why['another voltage than trained on']
    assert outside(card, element='Pd')['another element than trained on'] and outside(card, energy_kev=60)['another voltage than trained on']


@pytest.mark.parametrize('name', ['open_world', 'open_world_test', 'open_world_left_out'])
def test_the_recipes_differ_in_seed_and_forms_alone(name):
    r, first = load_recipe(ROOT/f'data/recipes/{name}.yaml'), load_recipe(ROOT/'data/recipes/open_world.yaml')
    assert replace(r, name=first.name, seed=first.seed, structures=first.structures, classes=first.classes, weights=first.weights) == first
    assert set(r.classes) == set(TEST_FORMS if 'left' in name else FORMS) and Look().truncation == 1/3 and r.sampling < .8 < NM
