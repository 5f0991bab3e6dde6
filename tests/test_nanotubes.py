"""Carbon nanotubes: their atoms, their recipes, and what is read of them from one image."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial import cKDTree

from nanoshape.cli import main
from nanoshape.core import NM, UserError, project_root, rng, torch_rng
from nanoshape.datasets.recipes import load_recipe, make_recipe, tubes_of
from nanoshape.datasets.samples import sample
from nanoshape.micrographs.reading import Micrograph
from nanoshape.micrographs.tube_report import SURE, indices_told, write_tube
from nanoshape.micrographs.tubes import (Axis, along_axis, axis_angles, candidates, find_tube, fit_walls, foci_for, line_gain, line_orders,
                                         line_power, traced, wall_contrast)
from nanoshape.simulate.microscope import Microscope, intensity
from nanoshape.simulate.multislice import exit_waves
from nanoshape.simulate.nanotubes import (APART, BOND, bent, carbon_nanotube, chiral_angle, inner_walls, layer_lines, tube_diameter,
                                          tubes_between, with_flexural_motion, with_tube_defects)
from nanoshape.simulate.structures import assemble
from nanoshape.studies.tube_tests import image_without_tube, recorded_tube, tube_recipe

RECIPE = project_root()/'data/recipes/nanotubes.yaml'
indices = st.integers(3, 24).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@pytest.mark.parametrize('walls,radius', [(((10, 10),), 6.78), (((9, 0),), 3.52), (((6, 6), (11, 11)), 4.07)])
def test_radii(walls, radius):
    assert abs(carbon_nanotube(*walls).info['radii'][0] - radius) < .05


@given(indices, st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_every_atom_has_three_neighbours_whatever_the_indices(nm, seed):
    t = carbon_nanotube(nm, length=40, generator=rng(seed))
    inside, tree = np.abs(t.positions[:, 1]) < 16, cKDTree(t.positions)
    assert (tree.query_ball_point(t.positions[inside], 1.6, return_length=True) == 4).all()
    assert np.allclose(np.hypot(*t.positions[:, [0, 2]].T), tube_diameter(*nm)/2, atol=1e-6)
    assert abs(len(t)/40/(np.pi*tube_diameter(*nm)*4/(3*3**.5*BOND**2)) - 1) < .08


def test_a_tube_and_its_mirror_image_differ_by_the_mirror_alone():
    from nanoshape.simulate.nanotubes import _wall
    right, left = _wall(9, 4, 60, BOND), _wall(9, 4, 60, BOND, left=True)
    assert cKDTree(right).query(left*[-1, 1, 1])[0].max() < 1e-6
    apart = cKDTree(right).query(left)[0]  # a zigzag tube is its own mirror image, this one is not
    assert apart.max() > .3


def test_walls_within_walls():
    assert all(APART[0] <= (tube_diameter(17, 8) - tube_diameter(*t))/2 <= APART[1] for t in inner_walls(17, 8)) and inner_walls(17, 8)
    for walls, sentence in [(((2, 5),), 'give n ≥ 3'), (((10, 10), (11, 11)), 'touch'), (((11, 11), (6, 6)), 'from the inside out'),
                            ((), 'needs a wall')]:
        with pytest.raises(UserError, match=sentence): carbon_nanotube(*walls)


def test_a_bond_that_has_turned_leaves_its_middle_where_it_was():
    t = carbon_nanotube((12, 5), length=60)
    u = with_tube_defects(t, rng(0), stone_wales=1)
    moved = np.flatnonzero(np.abs(u.positions - t.positions).max(1) > 1e-6)
    before, after = t.positions[moved], u.positions[moved]
    assert len(moved) == 2 and np.allclose(before.mean(0), after.mean(0))
    assert abs(np.dot(*[(p[1] - p[0])/np.linalg.norm(p[1] - p[0]) for p in (before, after)])) < 1e-6  # by 90°
    assert len(with_tube_defects(t, rng(0), vacancies=7)) == len(t) - 7
    assert np.allclose(with_flexural_motion(t, .1, rng(1)).positions[:, 1], t.positions[:, 1])


def test_an_arc_keeps_lengths_along_its_axis():
    t = carbon_nanotube((8, 8), length=80)
    b = bent(t, 400., np.pi/2)
    middle = lambda p: np.array([p[np.abs(t.positions[:, 1] - y) < 1].mean(0) for y in np.arange(-36, 37, 4)])
    steps = np.linalg.norm(np.diff(middle(b.positions), axis=0), axis=1)
    assert np.allclose(steps, np.linalg.norm(np.diff(middle(t.positions), axis=0), axis=1), atol=.1)
    assert middle(b.positions)[[0, -1], 2].min() > 1.2 and abs(middle(b.positions)[:, 0]).max() < .2


def test_layer_lines_are_where_the_atoms_have_theirs():
    p = carbon_nanotube((12, 5), length=400, generator=rng(3)).positions
    g = np.arange(.05, .6, .0005)
    across = np.arange(.05, .5, .02)  # the atoms themselves, off the axis
    power = sum(np.abs(np.exp(2j*np.pi*(g[:, None]*p[:, 1] + q*p[:, 0])).sum(1))**2 for q in across)
    for d in layer_lines(chiral_angle(12, 5)):
        near = np.abs(g - d) < .01
        assert abs(g[near][power[near].argmax()] - d) < .0015 and power[near].max() > 10*np.median(power)
    assert sorted(abs(o) for _, o in line_orders(12, 5)) == [5, 12, 17]


def test_recipes_of_nanotubes():
    r = load_recipe(RECIPE, leave_out=[[10, 5]])
    assert (10, 5) not in tubes_of(r) and (10, 5) in tubes_of(load_recipe(RECIPE)) and len(tubes_of(load_recipe(RECIPE))) == 308
    narrow = dict(size_nm={'uniform': [.6, .9]}, classes=['double-walled'], weights=[])
    for wrong, sentence in [(dict(tubes=[[2, 1]]), 'tubes must be a list'), (dict(tubes=[[40, 0]]), 'leave no tube'),
                            (dict(leave_out=[5]), 'leave_out must'),
                            (dict(size_nm=.3), 'at least 0.4'), (dict(curvature=.5), 'curvature must lie'), (narrow, 'no tube fits into'),
                            (dict(maps=True), 'only particles take it')]:
        with pytest.raises(UserError, match=sentence): load_recipe(RECIPE, **wrong)
    with pytest.raises(UserError, match='only particles take it'): make_recipe(name='x', maps=True, kind='grains')


def test_samples_of_nanotubes():
    r = load_recipe(RECIPE, structures=12, tilt_deg=10, support_nm=0, flexural_nm=0, curvature=0, stone_wales=0, vacancies=0)
    for i in range(12):
        atoms, t = sample(r, i)
        assert abs(t['diameter'] - tube_diameter(t['n'], t['m'])) < 1e-9 and np.isclose(t['tilt'], np.radians(10))
        assert (t['inner_n'] > 0) == (t['class'] == 'double-walled')
        depth = np.ptp(atoms.positions[:, 2])
        assert abs(depth - t['diameter'] - 100*np.tan(np.radians(10))) < 4  # it leaves the image's plane
        assert np.ptp(atoms.positions[:, 1]) > 97
    again = sample(r, 3)[0]
    assert np.array_equal(again.positions, sample(r, 3)[0].positions)


def seen(nm, seed=0, dose=5000, **keys):
    keys = dict(energy_kev=80, Cs_um=-5, defocus_nm=4, support_nm=0, mtf=.5, tilt_deg=3, classes=['single-walled'], weights=[]) | keys
    r = load_recipe(RECIPE, structures=2, tubes=[list(nm)], dose=dose, seed=seed, **keys)
    return recorded_tube(r, 0)


@pytest.fixture(scope='module')
def tube():
    return seen((14, 6))


def test_the_contrast_across_walls_is_that_of_a_multislice_image():
    d, n, s = tube_diameter(12, 6), 256, .4
    atoms = carbon_nanotube((12, 6), length=120, generator=rng(0))
    atoms = atoms[np.abs(atoms.positions[:, 1]) < n*s/2 - .05]
    m = Microscope(80e3, defocus=60., Cs=1e4, focal_spread=40., angular_spread=6e-4)
    image = intensity(exit_waves([assemble(atoms, n*s)], n, 80e3), m, s)[0].numpy()
    profile = image.mean(0)/image.mean() - 1
    model = np.fft.fftshift(np.fft.irfft(wall_contrast(n, s, 80e3, 1e4, [d], [60.])[0, 0], n))
    assert np.corrcoef(profile, model)[0, 1] > .97 and abs(np.dot(profile, model)/np.dot(model, model) - 1) < .2  # sign and amount
    for wrong in (dict(Cs=1e4, foci=[-60.]), dict(Cs=1e4, foci=[60.], diameters=[d + 1])):
        other = np.fft.fftshift(np.fft.irfft(wall_contrast(n, s, 80e3, **dict(dict(diameters=[d]), **wrong))[0, 0], n))
        assert np.corrcoef(profile, other)[0, 1] < .9
    fit = fit_walls(profile, s, 80e3, 1e4, np.arange(8, 18, .1), np.arange(-100, 151, 10.))
    assert abs(fit.diameters[0] - d) < .15 and abs(fit.focus - 60) < 25 and abs(fit.place) <= 1


def test_a_tube_is_read_wherever_and_however_it_lies(tube):
    mic, truth = tube
    for image in (mic.image, np.rot90(mic.image), mic.image[::-1], np.rot90(mic.image, 2)):
        found = find_tube(Micrograph(image.copy(), mic.sampling, 'turned', voltage=80e3, Cs=mic.Cs))
        assert abs(found.walls.diameters[-1] - truth['diameter']) < .25
    best = candidates(found).iloc[0]
    assert (best.n, best.m) == (14, 6) and abs(best.tilt_deg - 3) < 2.5


def test_a_finer_pixel_and_a_larger_field_change_nothing(tube):
    mic, truth = tube
    fine = np.kron(mic.image, np.ones((2, 2)))
    wide = np.pad(fine, ((0, 200), (300, 0)), mode='reflect')
    found = find_tube(Micrograph(wide, mic.sampling/2, 'fine', voltage=80e3, Cs=mic.Cs))
    assert abs(found.walls.diameters[-1] - truth['diameter']) < .3
    assert tuple(candidates(found).loc[0, ['n', 'm']]) == (14, 6)
    near = find_tube(Micrograph(wide, mic.sampling/2, 'fine', voltage=80e3, Cs=mic.Cs), place=(540, 250))
    assert abs(near.walls.diameters[-1] - truth['diameter']) < .3


def test_the_axis_is_found_in_steps(tube):
    mic, truth = tube
    angle, clear = axis_angles(mic.image, mic.sampling)[0]
    assert clear > 8 and abs(angle + truth['in_plane']) < .02
    n = mic.image.shape[0]
    start = traced(mic.image/mic.image.mean() - 1, Axis(n/2 + 6, n/2, angle + .03), mic.sampling, 80e3, mic.Cs, foci_for(80e3, mic.Cs))
    assert abs(start.walls.place) <= 1 and abs(start.axis.angle - angle) < .01
    assert np.allclose(along_axis(mic.image, Axis(n/2, n/2), n)[1:-1, 1:-1], mic.image[1:-1, 1:-1], atol=1e-3)


def test_lines_of_another_tube_are_less_likely(tube):
    power = line_power(find_tube(tube[0]))
    best = line_gain(power, 14, 6, np.radians(3))
    assert best > 150 and all(line_gain(power, *t, np.radians(3)) < .9*best for t in ((15, 5), (13, 7), (14, 5), (15, 6)))
    assert line_gain(power, 14, 6, np.radians(3), scale=.96) < .5*best


def test_without_lines_no_indices_are_told():
    blurred, truth = seen((14, 6), vibration_nm=.1, dose=2000)
    found = find_tube(blurred)
    assert abs(found.walls.diameters[-1] - truth['diameter']) < .5
    assert not indices_told(candidates(found))


def test_what_is_no_tube_is_refused():
    r = tube_recipe('no tube', 91, 8)
    for i in range(8):
        with pytest.raises(UserError, match='nothing here is like|touch each other'): find_tube(image_without_tube(r, i))
    with pytest.raises(UserError, match='there are no tests of'): tube_recipe('triple-walled', 0, 1)


def test_the_command_writes_a_page_and_a_table(tube, tmp_path, capsys):
    mic, _ = tube
    file = tmp_path/'tube.tif'
    tifffile.imwrite(file, mic.image.astype(np.float32))
    ask = ['tube', str(file), '--pixel-size', f'{mic.sampling/NM:.5f}', '--kv', '80', '--cs', '-0.005', '--out', str(tmp_path/'out')]
    assert not main(ask)
    said = capsys.readouterr().out
    assert '(14, 6)' in said and 'mirror image' in said
    table = pd.read_csv(tmp_path/'out/tube.csv')
    assert (table.n[0], table.m[0]) == (14, 6) and table.probability[0] > SURE and (table.wall == 'outer').all()
    assert table.correlation[0] > .2 and table.matched.notna().sum() == 3 and not table.matched[1:].gt(table.matched[0]).any()
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'tube.csv', 'tube.png', 'run.json', 'report.html'}
    made = json.loads((tmp_path/'out/run.json').read_text())
    assert made['explained'] > .3 and made['energy_kev'] == 80 and made['Cs_mm'] == -.005 and len(made['matches']) == 3


BAD = {'coarse': 'do not show the lattice of graphene', 'small': 'of a tube are needed', 'subtracted': 'background is not above zero',
       'empty': 'nothing here is like', 'black': 'background is not above zero'}


@pytest.mark.parametrize('what,sentence', BAD.items())
def test_bad_images_get_a_sentence(tube, tmp_path, what, sentence):
    mic, _ = tube
    empty = torch.poisson(torch.full((240, 240), 500.), generator=torch_rng(1)).numpy()
    images = {'small': mic.image[:100, :90], 'subtracted': mic.image - 2*mic.image.mean(), 'black': 0*mic.image, 'empty': empty}
    bad = replace(mic, sampling=1.2) if what == 'coarse' else replace(mic, image=images[what])
    with pytest.raises(UserError, match=sentence): write_tube(bad, tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_a_place_outside_of_the_image_is_named(tube):
    with pytest.raises(UserError, match='there is no place 9999, 5'): find_tube(tube[0], place=(9999, 5))


def test_the_mirrored_world_beyond_the_edge_is_no_background(tube):
    """Of a tube near the edge, what is missing is not made up."""
    mic, truth = tube
    cut = replace(mic, image=mic.image[:, 45:])  # 2.5 nm are left beside the wall
    found = find_tube(cut)
    assert found.inside[0] < .05 and abs(found.walls.diameters[-1] - truth['diameter']) < .3
    bare = replace(found, inside=np.where(np.abs(np.arange(len(found.inside)) - len(found.inside)/2) < 40, 1., 0.))  # nothing but the tube
    with pytest.raises(UserError, match='too little background'): line_power(bare)
    half = replace(mic, image=np.roll(mic.image, -118, 1))  # a wall at either edge
    with pytest.raises(UserError): find_tube(half)


def test_lines_of_second_order_do_not_count_twice():
    """Power of first-order lines alone: those of second order that fall on them gain nothing."""
    import nanoshape.micrographs.tubes as room
    from nanoshape.micrographs.tubes import LinePower, REFERENCE, _line
    n, s = 240, .4167
    along, across = np.fft.rfftfreq(2*n, s), np.fft.fftfreq(n, s)
    blank = LinePower(along, across, np.ones((n + 1, n)), np.ones(99), n*s, 1.)
    for nm in ((10, 10), (12, 3), (12, 5)):
        shape = sum(np.abs(_line(blank, o, (along, d), tube_diameter(*nm)/2, 0.))**2 for d, o in line_orders(*nm) if d > .05)
        seen = replace(blank, power=1 + 100*shape/REFERENCE)
        whole, second = line_gain(seen, *nm), room.SECOND
        room.SECOND = ()
        try: first = line_gain(seen, *nm)
        finally: room.SECOND = second
        assert abs(whole - first) < .02*first


def test_noise_tells_no_indices():
    from nanoshape.micrographs.tube_report import LINES_SHOW
    from nanoshape.micrographs.tubes import Tube, Walls
    for diameter in (9., 20.):
        image = torch.poisson(torch.full((240, 240), 900.), generator=torch_rng(5, diameter)).numpy()/900 - 1
        walls = Walls((diameter,), 0., 0., .8, np.zeros(121, complex), 1., np.arange(5, 32, .2), np.full(135, .5))
        t = candidates(Tube(image, Axis(120, 120), walls, .1, .4167, 80e3, 0., np.ones(240)))
        assert len(t) and t.gain.max() < LINES_SHOW


def test_tubes_between_lists_each_tube_once():
    every = tubes_between(6, 25)
    brute = {(n, m) for n in range(3, 61) for m in range(n + 1) if 6 <= tube_diameter(n, m) <= 25}
    assert set(every) == brute and len(brute) == len(every)
    assert tubes_between(0, 25)[0] == (3, 0)


def test_no_power_counts_for_two_lines():
    """One strong line between two of another tube: an armchair's. Their rows overlap, so they share it."""
    from nanoshape.micrographs.tubes import LinePower, REFERENCE, _line
    n, s = 240, .4167
    along, across = np.fft.rfftfreq(2*n, s), np.fft.fftfreq(n, s)
    blank = LinePower(along, across, np.ones((n + 1, n)), np.ones(99), n*s, 1.)
    shape = np.abs(sum(_line(blank, o, (along, d), tube_diameter(14, 14)/2, 0.) for d, o in line_orders(14, 14) if d > .05))**2
    seen = replace(blank, power=1 + 100*shape/REFERENCE)
    gains = {t: line_gain(seen, *t) for t in ((14, 14), (15, 13), (16, 13), (15, 12), (16, 12))}
    assert max(gains, key=gains.get) == (14, 14), gains


def test_a_match_tells_the_tube_and_where_it_is(tube):
    """An image that is simulated where a match has put the tube is explained by the same tube, and by no other."""
    from nanoshape.micrographs.tube_match import match_image, matched
    found = find_tube(tube[0])
    power = line_power(found)
    own = matched(found, power, 14, 6)
    assert own.gain > matched(found, power, 15, 5).gain + 10 and .2 < own.correlation < 1
    image, focus = match_image(found, power, own)
    made = replace(found, image=image)
    again = matched(made, power, 14, 6)
    assert abs(again.tilt - own.tilt) < .03 and abs(again.turn - own.turn) < .1 and abs(again.slide - own.slide) < .5
    assert matched(made, power, 15, 5).gain < .6*again.gain
    assert -40 < focus < 60  # 40 Å from the exit side of a tube that is 15 Å thick and a few above it


def test_the_lens_of_a_match_is_round(tube):
    """Its transfer at some frequency is sin χ, whichever the direction."""
    from nanoshape.micrographs.tube_match import _blurs
    from nanoshape.simulate.potential import scattering_factor, wavelength
    found = find_tube(tube[0])
    blur, = _blurs(found, [60.])
    assert blur.shape == found.image.shape and np.allclose(blur, blur.T, atol=1e-6)
    k, n = 20, len(blur)
    q = k/(n*found.sampling)
    chi = np.pi*wavelength(found.energy)*q**2*(-60. + found.Cs*wavelength(found.energy)**2*q**2/2)
    assert np.sign(blur[k, 0]) == np.sign(blur[0, k]) == np.sign(np.sin(chi)) and abs(blur[k, 0]) <= scattering_factor('C')(q)  # -Im exp(-iχ)


def test_a_place_names_its_own_tube_and_touching_ones_are_refused(tube):
    s, n = .4, 400
    def profile(at, d):
        half = wall_contrast(n, s, 80e3, 0., [d], [60.])[0, 0]
        return np.roll(np.fft.irfft(half, n), n//2 + round(at/s))
    def image_of(*parts):
        p = sum(profile(*a) for a in parts)
        return 1 + np.tile(p, (n, 1)) + np.random.default_rng(0).normal(0, .02, (n, n))
    pair = Micrograph(image_of((-40, 10.), (30, 22.)), s, 'two', voltage=80e3, Cs=0.)
    for at, d in ((-40, 10.), (30, 22.)):
        found = find_tube(pair, (n/2 + at/s, n/2))
        assert abs(found.walls.diameters[-1] - d) < 1 and abs((found.axis.x - n/2)*s - at) < 2
    with pytest.raises(UserError, match='like a single tube'): find_tube(pair, (n/2, n/2))
    stretched = replace(pair, pixels=(n, n//2))  # of a file whose pixels were twice as wide as high
    assert find_tube(stretched, ((n/2 + 30/s)/2, n/2)).walls.diameters[-1] > 20
    touching = Micrograph(image_of((-8.7, 14.), (8.7, 14.)), s, 'bundle', voltage=80e3, Cs=0.)
    with pytest.raises(UserError, match='touch each other'): find_tube(touching)


def test_no_walls_and_no_length_make_no_tube():
    with pytest.raises(UserError, match='needs a wall'): carbon_nanotube()
    with pytest.raises(UserError, match='has no atoms'): carbon_nanotube((10, 5), length=-3.)


def test_turned_bonds_keep_their_distance():
    from ase import Atoms
    from nanoshape.simulate.nanotubes import with_tube_defects
    for seed in range(3):
        p = carbon_nanotube((17, 6), length=150).positions
        out = with_tube_defects(Atoms(numbers=[6]*len(p), positions=p), np.random.default_rng(seed), stone_wales=30)
        assert cKDTree(out.positions).query(out.positions, 2)[0][:, 1].min() > 1.2


def test_indices_are_told_only_where_the_image_agrees(tube):
    from nanoshape.micrographs.tube_match import TubeMatch
    table = candidates(find_tube(tube[0]))
    match = lambda n, m: TubeMatch(n, m, 0., 0., 0., 50., 30., .4)
    assert indices_told(table) and indices_told(table, proved=[match(14, 6), match(15, 5)])
    assert not indices_told(table, proved=[match(15, 5), match(14, 6)]) and not indices_told(table, 2, [match(14, 6)])
