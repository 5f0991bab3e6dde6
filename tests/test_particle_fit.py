"""Models fitted to particles: the physics of the model's image, what the power spectrum tells, what is refused, and the command."""
from dataclasses import replace

import ase.io
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from ase import Atoms
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import nanoshape.atoms.fit_report as fit_report
import nanoshape.atoms.particle_fit as particle_fit
from nanoshape.atoms.fit_report import fringed_particles, particle_fits, write_fits
from nanoshape.atoms.particle_fit import (FINE, ParticleFit, beam_directions, compared, exit_defocus, fit_row, likely_orientations,
                                          model_image, placed, refined, refused, sized, view_particle)
from nanoshape.atoms.particle_model import (CRYSTAL_KINDS, TWIN, ParticleModel, depths, facet_reaches, model_positions, shaped, soft_sites,
                                            turned_apart)
from nanoshape.cli import main
from nanoshape.core import NM, UserError, read_json, torch_rng
from nanoshape.micrographs.film import film_foci, film_spectrum
from nanoshape.micrographs.reading import Micrograph
from nanoshape.simulate.grains import misorientation
from nanoshape.simulate.microscope import Microscope, changed, expose, images, intensity
from nanoshape.simulate.forms import NORMALS, closed, facet_ratio
from nanoshape.simulate.multislice import debye_waller_factors, exit_waves, frozen_phonons
from nanoshape.simulate.orientations import axis_angle
from nanoshape.simulate.structures import lattice_constant


TRUE = shaped(Rotation.from_rotvec([.35, -.6, .2]).as_matrix(), 42., .5, body=(1.02, 0., 0.), defocus=60., shift=(3.4, -5.2))
WIDTH, PIXEL, PIXELS = 84., .56, 150  # Å; Å; pixels


def recorded(model):
    """A known model's image by another path than the fit's: frozen phonons, a finer grid, thinner slices, more foci, counted electrons."""
    at = model_positions(model, 'Au')
    place = [WIDTH/2 + model.shift[1]*PIXEL, WIDTH/2 + model.shift[0]*PIXEL, 3 - at[:, 2].min()]
    atoms = Atoms(['Au']*len(at), at + place, cell=[WIDTH, WIDTH, np.ptp(at[:, 2]) + 5], pbc=True)
    moved = frozen_phonons(atoms, debye_waller_factors({'Au'}), 6, np.random.default_rng(0))
    m = Microscope(300e3, Cs=-1e5, defocus=exit_defocus(model) + 2, focal_spread=40., angular_spread=3e-4, vibration=.3,
                   pixel_integration=True, foci=9)
    clean = intensity(exit_waves(moved, 360, 300e3, 1.), m, PIXEL, PIXELS).mean(0, keepdim=True)
    image = expose(clean, changed(m, dose=3000., mtf=.5), PIXEL, torch_rng(0, 'noise'))[0].numpy()
    y, x = np.mgrid[:PIXELS, :PIXELS]
    xy = (at[:, :2] + place[:2])/PIXEL
    labels = (cKDTree(xy).query(np.stack([x, y], -1).reshape(-1, 2))[0] < 2.).reshape(PIXELS, PIXELS).astype(int)
    labels = ndimage.binary_fill_holes(labels).astype(int)
    mic = Micrograph(image, PIXEL, 'a particle', voltage=300e3, Cs=-1e5)
    view = view_particle(mic, labels, 1)
    shift = tuple(PIXELS/2 + s - c - view.n//2 for s, c in zip(model.shift, view.corner))  # counted from the middle of the view
    return mic, labels, view, replace(model, shift=shift)


@pytest.fixture(scope='module')
def seen(): return recorded(TRUE)


def test_white_noise_has_a_flat_spectrum_of_its_variance():
    noise = np.random.default_rng(0).normal(1, .1, (256, 256))
    f, power = film_spectrum(noise, np.ones(noise.shape, bool))
    assert np.allclose(power[2:24], .01, rtol=.12) and f[24] == pytest.approx(.5)
    with pytest.raises(UserError, match='too little background'):
        film_spectrum(noise, np.zeros(noise.shape, bool))


@pytest.mark.parametrize('Cs, defocus', [(0., 150.), (-1e5, 150.), (-1e5, -190.), (1.2e7, 640.), (1.2e7, 420.)])
def test_the_rings_of_a_film_tell_its_focus(Cs, defocus):
    """Rings by the textbook's formula, with noise; with a corrector under- and overfocus look alike, but one of both is right."""
    n, s, l = 48, .55, .019687
    f = np.arange(33)/n
    g = f/s
    chi = np.pi*l*defocus*g**2 - np.pi/2*Cs*l**3*g**4
    damped = np.exp(-2*(np.pi*l*40*g**2/2)**2 - 2*(3e-4*np.pi*(defocus*g - Cs*l**2*g**3))**2 - 2*(1.5*g)**2)
    power = (1 + 4*np.sin(chi)**2*damped)*np.random.default_rng(0).normal(1, .02, len(f))
    found = np.array(film_foci(f, power, s, 300e3, Cs))
    assert len(found) and np.abs(found - defocus).min() < 25
    if Cs > 1e6: assert np.abs(found - defocus).max() < 60
    assert film_foci(f, 1 + .02*np.random.default_rng(1).normal(size=len(f)), s, 300e3, Cs) == []  # no film


def test_foci_are_searched_around_the_films_and_else_in_a_wide_range(seen):
    view = replace(seen[2], foci=(120.,))
    far = view.reach/2 + 10
    assert np.allclose(particle_fit.focus_range(view), 120 + far*np.linspace(-1, 1, 5))
    assert np.ptp(particle_fit.focus_range(replace(view, foci=()))) == 560
    assert particle_fit.focus_range(replace(view, foci=(), Cs=1.2e7)).mean() == pytest.approx((1.5*1.2e7*.019687)**.5, rel=.01)  # Scherzer's


def test_a_model_is_made_of_the_elements_lattice_and_turns_with_its_rotation():
    r = Rotation.from_rotvec([.3, -.2, .5]).as_matrix()
    body = lambda size, *form: shaped(np.eye(3), size, *form)
    p = body(40., .5)
    at, turned = model_positions(p, 'Pt'), model_positions(replace(p, rotation=r), 'Pt')
    assert np.allclose(turned, at@r.T) and np.allclose(at*2/lattice_constant('Pt'), (at*2/lattice_constant('Pt')).round())
    assert 38 < 2*np.linalg.norm(at, axis=1).max() <= 40
    cube, octahedron, cuboctahedron = (len(model_positions(body(100., t), 'Pt')) for t in (1, 0, .5))
    assert cube/cuboctahedron == pytest.approx(8/27**.5/(5*2**.5/3), abs=.1)  # volumes of bodies in one sphere
    assert octahedron/cuboctahedron == pytest.approx(4/3/(5*2**.5/3), abs=.1)
    ball = model_positions(body(40., .5, 1.), 'Pt')
    assert len(ball)/(4/3*np.pi*20**3)*lattice_constant('Pt')**3/4 == pytest.approx(1, abs=.06)


def test_the_true_model_leaves_little_more_than_noise_and_wrong_ones_leave_more(seen):
    view, true = seen[2:]
    right, = compared(view, [true])
    assert right.misfit < 1.6 and right.explained > .9
    wrong = [replace(true, rotation=axis_angle((1, 1, 0), .035)@true.rotation),
             shaped(true.rotation, 42., 0., body=true.body, defocus=true.defocus, shift=true.shift),
             replace(true, d111=1.15*true.d111, d100=1.15*true.d100, radius=1.15*true.radius),
             replace(true, defocus=true.defocus + 30),
             replace(true, defocus=-true.defocus),
             replace(true, shift=(true.shift[0] + .6, true.shift[1]))]
    for q in compared(view, wrong): assert q.misfit > right.misfit + .1, q


def test_refining_brings_back_what_was_changed(seen):
    view, true = seen[2:]
    off = replace(true, rotation=axis_angle((1, -1, 0), np.radians(1.2))@true.rotation, defocus=true.defocus + 15, d111=1.06*true.d111,
                  d100=.95*true.d100, radius=1.05*true.radius, body=(0., .5, -.5), edge=.4)
    p = refined(view, off, 12)
    assert misorientation(p.rotation, true.rotation) < np.radians(.4) and abs(p.defocus - true.defocus) < 6
    assert abs(p.truncation - true.truncation) < .06 and abs(p.d111/true.d111 - 1) < .03 and p.explained > .96


def test_derivatives_are_those_of_the_model(seen):
    """Each column, times a small change, against the change of the weighted image."""
    view, true = seen[2:]
    true = replace(true, edge=.8, radius=.9*true.radius)  # the sphere cuts
    spectrum = lambda p: particle_fit._weighted(view, p.brightness*particle_fit._shifted(
        particle_fit._image(view, particle_fit._waves(view, [p], FINE)[0], p, FINE), p.shift))
    J, names = particle_fit._derivatives(view, true, FINE, particle_fit.FREER), [*particle_fit.FREER]
    by = dict(lattice=.0005, facet3=-.1, facet9=-.1, astigmatism_x=2, astigmatism_y=2, defocus=2, mtf=-.01, x=.05, y=.05,
              rz=.001, rx=.001, d111=-.1, d100=-.1, radius=-.1, bx=.1, bz=-.1, brightness=.02)
    for k, d in by.items():
        q = replace(true, brightness=true.brightness + d) if k == 'brightness' else particle_fit._moved(true, **{k: d})
        change = torch.view_as_real(spectrum(q) - spectrum(true)).flatten().double().numpy()
        expected = J[:, names.index(k)]*d
        assert np.linalg.norm(change - expected) < .5*np.linalg.norm(change), k


def test_the_shift_is_along_y_and_x(seen):
    view, true = seen[2:]
    a, b = model_image(view, true), model_image(view, replace(true, shift=(true.shift[0] + 3, true.shift[1] - 2)))
    assert torch.allclose(torch.roll(a, (3, -2), (0, 1)), b, atol=1e-4)


def test_the_body_moves_and_the_lattice_stays(seen):
    true = seen[3]
    q = replace(true, body=(2.5, -1., 0.))
    near = cKDTree(model_positions(replace(true, d111=60., d100=60., radius=60.))).query(model_positions(q))[0]
    assert near.max() < 1e-6 and len(model_positions(q)) != len(model_positions(true))
    middle = lambda p: (model_positions(p)@p.rotation).mean(0)
    assert np.allclose(middle(q) - middle(true), np.subtract(q.body, true.body), atol=.8)


@pytest.mark.parametrize('truncation', [0., .1, .33, .5, .7, 1.])
def test_a_bodys_corners_and_facets_are_those_of_its_half_spaces(truncation):
    q = facet_ratio(truncation)
    body = closed(NORMALS[:14], np.repeat([q, 1.], (6, 8)))  # of radius one
    corner, nearest = facet_reaches(10., 10*q)
    assert nearest/corner == pytest.approx(body.distances.min(), rel=1e-6)
    assert shaped(np.eye(3), 30., truncation).truncation == pytest.approx(truncation, abs=1e-6)
    p = shaped(np.eye(3), 30., truncation, .3)
    assert p.roundness == pytest.approx(.3, abs=1e-6) and p.radius == pytest.approx(15)


def test_a_soft_surface_holds_as_many_atoms_as_a_hard_one(seen):
    sites, full = soft_sites(replace(seen[3], edge=.4), 'Au')
    assert full.sum() == pytest.approx(len(model_positions(seen[3])), rel=.05) and full.min() < .1 and full.max() > .999


def test_a_chain_keeps_to_models_that_the_image_allows(seen):
    view, true = seen[2:]
    chain, best = particle_fit._sampled(view, compared(view, [true])[0], 12)
    assert best.misfit <= compared(view, [replace(true, edge=0.)], particle_fit.ROUGH)[0].misfit + 1e-6
    assert all(view.freedom*(q.misfit - best.misfit) < 60*particle_fit.TEMPERATURE for q in chain) and len(chain) == 20
    assert len({q.d111 for q in chain} | {q.body for q in chain}) > 2


def test_what_cuts_the_corners_can_be_swapped():
    sharp = shaped(np.eye(3), 40., .33)
    ball = particle_fit._swapped(replace(sharp, radius=1.2*sharp.radius), .5)
    assert ball.radius == pytest.approx(sharp.d100 + .5) and ball.d100 == pytest.approx(3**.5*sharp.d111)
    assert particle_fit._swapped(ball, .5).d100 == pytest.approx(sharp.d100)


@pytest.mark.parametrize('kind, order', [('one crystal', 24), ('twin', 6), ('decahedron', 10), ('icosahedron', 60)])
def test_beam_directions_cover_the_sphere_once(kind, order):
    up = beam_directions(kind).transpose(0, 2, 1)[:, :, 2]
    alike = np.einsum('gij,nj->gni', CRYSTAL_KINDS[kind].symmetry, up).reshape(-1, 3)
    some = np.random.default_rng(0).normal(size=(500, 3))
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    assert np.degrees(np.arccos(np.clip((some@alike.T).max(1), -1, 1)).max()) < 3.5
    assert len(CRYSTAL_KINDS[kind].symmetry) == order and len(up) == pytest.approx(7600/order, rel=.06)


def test_the_power_spectrum_tells_the_orientation(seen):
    starts = likely_orientations(seen[2], 10)
    off = [misorientation(p.rotation, seen[3].rotation) for p in starts]
    assert np.degrees(min(off)) < 3.5
    flipped = axis_angle((0, 0, 1), np.pi)@seen[3].rotation  # it has the same power spectrum
    assert np.degrees(min(misorientation(p.rotation, flipped) for p in starts)) < 4


def test_a_model_is_as_wide_as_the_outline(seen):
    view = seen[2]
    at = model_positions(sized(view, seen[3].rotation, .5), 'Au')
    from nanoshape.simulate.structures import feret
    assert feret(at[:, :2])[0] == pytest.approx(view.reach, rel=.14)


@pytest.mark.parametrize('values,words', [
    (dict(correlation=.3), 'hardly more like'), (dict(ahead=10), 'another orientation'), (dict(misfit=1.05, explained=.6), 'no model fits'),
    (dict(explained=np.nan), 'no model fits'), (dict(beyond=.1), 'hardly stands out'), ({}, '')])
def test_a_fit_is_refused_for_a_reason(values, words):
    values = dict(correlation=.6, ahead=100., misfit=1.1, explained=.95) | values
    p = ParticleModel(np.eye(3), 12., 12., 20., misfit=values['misfit'], explained=values['explained'], correlation=values['correlation'])
    why = refused(p, [.1, .2], values['ahead'], beyond=values.get('beyond', 1.))
    assert (words in why) if words else why == ''


def test_what_cannot_be_fitted_gets_a_sentence(seen):
    mic, labels, *_ = seen
    for m, l, n, words in ((mic, labels, 3, 'no such particle'), (replace(mic, bright=True), labels, 1, 'dark-field'),
                           (replace(mic, sampling=1.3), labels, 1, 'do not show the lattice'),
                           (mic, np.roll(labels, -np.nonzero(labels)[0].min(), 0), 1, 'cut by the edge')):
        with pytest.raises(UserError, match=words): view_particle(m, l, n)
    flat = replace(mic, image=np.random.default_rng(0).poisson(900, mic.image.shape).astype(np.float32))
    with pytest.raises(UserError, match='no lattice'): particle_fit.fit_particle(view_particle(flat, labels, 1))


def known_fit(true, why=''):
    ranges = dict(truncation=((.48, .52), (.45, .55)), roundness=((0., .1), (0., .2)), diameter=((35., 36.), (34., 37.)))
    return ParticleFit(replace(true, misfit=1.1, explained=.9, correlation=.8), [.1], 300., dict(defocus=3.), ranges, (.1, .4), why)


def test_a_fit_that_is_not_accepted_has_no_shape(seen):
    good, bad = (fit_row(known_fit(seen[3], why)) for why in ('', 'another orientation fits nearly as well'))
    assert fit_row(replace(known_fit(seen[3]), ahead=np.inf))['ahead'] is None  # it goes into JSON
    assert good['shape'] == 'cuboctahedron' and 'shape' not in bad and 'truncation' not in bad and bad['misfit'] == 1.1


def test_the_folder_holds_what_was_done_when_it_was_stopped(seen, tmp_path):
    mic, labels, view, true = seen
    def fits(m, labels, numbers, element):
        yield 1, view, known_fit(true)
        yield 2, None, 'the particle is cut by the edge of the image: choose one that is whole'
        raise KeyboardInterrupt
    table, text, stopped = write_fits(mic, labels, tmp_path/'out', numbers=[1, 2, 7], fits=fits)
    assert stopped and 'Stopped before the other 1' in text and table.accepted.tolist() == [True, False]
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['fit_1.png', 'fits.csv', 'model_1.xyz', 'report.html', 'run.json']
    assert len(ase.io.read(tmp_path/'out/model_1.xyz')) == len(model_positions(true, 'Au'))
    assert pd.read_csv(tmp_path/'out/fits.csv').label.tolist() == [1, 2]
    made = read_json(tmp_path/'out/run.json')['models']['1']
    again = model_image(view, ParticleModel(np.array(made['rotation']), **{k: made[k] for k in ('d111', 'd100', 'radius', 'defocus',
                        'focal_spread', 'mtf', 'brightness')}, body=tuple(made['body']), shift=tuple(made['shift'])))
    assert torch.allclose(again, model_image(view, true), atol=1e-5)


def test_the_model_lies_where_the_particle_is(seen):
    """`place` in the fixture is where it was put, in the whole image."""
    mic, labels, view, true = seen
    found, = placed(view, [replace(true, shift=(0., 0.))], [true.defocus], how=FINE)
    at = fit_report.fit_atoms(view, known_fit(refined(view, found, 3))).positions
    put = model_positions(TRUE, 'Au')[:, :2] + [WIDTH/2 + TRUE.shift[1]*PIXEL, WIDTH/2 + TRUE.shift[0]*PIXEL]
    assert np.allclose(at[:, :2] - put, .5*PIXEL, atol=.2)  # positions are counted from the corner of the first pixel


def test_the_command(seen, tmp_path, monkeypatch, capsys):
    mic, labels, view, true = seen
    tifffile.imwrite(tmp_path/'p.tif', mic.image); tifffile.imwrite(tmp_path/'l.tif', labels.astype(np.uint8))
    monkeypatch.setattr(fit_report, 'fit_particle', lambda v, tell: known_fit(true))
    common = ['fit', str(tmp_path/'p.tif'), '--pixel-size', str(mic.sampling/NM), '--labels', str(tmp_path/'l.tif'), '--out', str(tmp_path/'out')]
    assert main([*common, '--kv', '300']) == 0
    said = capsys.readouterr().out
    assert 'accepted: 1 (1 cuboctahedron)' in said and (tmp_path/'out/model_1.xyz').is_file()
    assert 'a spherical aberration within 30 µm of 0' in (tmp_path/'out/report.html').read_text()
    (tmp_path/'out/mine.txt').write_text('a person\'s')
    assert main([*common, '--particle', '9']) == 0
    assert (tmp_path/'out/mine.txt').is_file() and not (tmp_path/'out/model_1.xyz').exists()
    assert 'no such particle' in capsys.readouterr().err
    assert main([*common, '--element', 'Fe']) == 2


def test_only_whole_particles_with_a_lattice_are_fitted_unasked(seen):
    mic, labels, *_ = seen
    assert fringed_particles(mic, labels, 'Au') == [1]
    noise = replace(mic, image=np.random.default_rng(1).poisson(900, mic.image.shape).astype(np.float32))
    assert fringed_particles(noise, labels, 'Au') == []
    assert [(n, v) for n, v, why in particle_fits(mic, labels, [5], 'Au')] == [(5, None)]


def test_compared_is_for_each_model_alone(seen):
    view, true = seen[2:]
    several = compared(view, [replace(true, d100=f*true.d100) for f in (.8, 1., 1.2)]*4)
    assert len(several) == 12 and several[1].misfit == pytest.approx(compared(view, [true])[0].misfit, rel=1e-3)


def test_an_analysis_with_fits_says_what_is_fitted_and_what_predicted(seen, tmp_path, monkeypatch, capsys):
    mic, labels, view, true = seen
    tifffile.imwrite(tmp_path/'p.tif', mic.image); tifffile.imwrite(tmp_path/'l.tif', labels.astype(np.uint8))
    monkeypatch.setattr(fit_report, 'fit_particle', lambda v, tell: known_fit(true))
    common = ['analyse', str(tmp_path/'p.tif'), '--pixel-size', str(mic.sampling/NM), '--labels', str(tmp_path/'l.tif'), '--out', str(tmp_path/'out'),
              '--crystallinity', 'none', '--fit']
    assert main(common) == 0 and 'Fitted: 1 of 1.' in capsys.readouterr().out
    t = pd.read_csv(tmp_path/'out/particles.csv', keep_default_na=False)
    assert t['shape'].tolist() == ['cuboctahedron'] and t.shape_by.tolist() == ['fitted'] and t.reason.tolist() == ['']
    page = (tmp_path/'out/report.html').read_text()
    assert len(ase.io.read(tmp_path/'out/model_1.xyz')) == page.split('data-atoms="')[1].split('"')[0].count('],[') + 1
    assert 'src="http' not in page and 'getContext' in page  # turned by the page's own script
    monkeypatch.setattr(fit_report, 'fit_particle', lambda v, tell: known_fit(true, 'another orientation fits nearly as well'))
    assert main(common) == 0 and not (tmp_path/'out/model_1.xyz').exists()
    t = pd.read_csv(tmp_path/'out/particles.csv', keep_default_na=False)
    assert t.shape_by.tolist() in ([''], ['predicted']) and t.fit_why[0].startswith('another')
    def stopped(v, tell): raise KeyboardInterrupt
    monkeypatch.setattr(fit_report, 'fit_particle', stopped)
    assert main(common) == 130 and (tmp_path/'out/particles.csv').is_file()
    (tmp_path/'folder').mkdir(); (tmp_path/'folder/p.tif').write_bytes((tmp_path/'p.tif').read_bytes())
    assert main(['analyse', str(tmp_path/'folder'), '--fit', '--out', str(tmp_path/'other')]) == 2
    assert '--fit is for one micrograph' in capsys.readouterr().err


def test_models_are_turned_about_the_normals_of_planes_along_the_beam(seen, monkeypatch):
    view, true = seen[2:]
    monkeypatch.setattr(particle_fit, 'refined', lambda view, p, *a, **k: p)
    turned = particle_fit._turned_models(view, true)
    angles = np.degrees([np.arccos((np.trace(q.rotation@true.rotation.T) - 1)/2) for q in turned])
    assert np.allclose(np.sort(angles), [12]*4 + [24]*4)
    kinds = np.array([(a, b, c) for a in (1, -1) for b in (1, -1) for c in (1, -1)])/3**.5, np.eye(3)
    flat = np.sort(np.abs(np.concatenate([k@true.rotation[2] for k in kinds])))[:3]
    for q in turned:
        turn = q.rotation@true.rotation.T
        still = [abs(n@true.rotation[2]) for k in kinds for n in k if np.allclose(turn@(true.rotation@n), true.rotation@n, atol=1e-9)]
        assert still and min(still) <= flat[-1] + 1e-9


def test_a_freer_model_has_facets_of_its_own(seen):
    true = seen[3]
    p = particle_fit._moved(true, facet2=2., facet7=-1.)
    grown = p.distances - replace(p, facets=(0.,)*26).distances
    assert np.argmax(grown) == 2 and np.argmin(grown) == 7 and abs(np.mean(p.facets[:6])) < 1e-9 and abs(np.mean(p.facets[6:14])) < 1e-9
    assert np.allclose(p.distances[:14] - np.repeat([true.d100, true.d111], (6, 8)), 2.*(np.arange(14) == 2) - (np.arange(14) == 7))
    n, far = NORMALS[2], model_positions(p)@true.rotation
    assert far[:, 0].size != len(model_positions(true)) and (far@n).max() > (model_positions(true)@true.rotation@n).max() - 1e-9
    assert abs(p.truncation - true.truncation) < .05


def test_a_body_that_grows_too_large_fits_badly_and_raises_nothing(seen):
    view, true = seen[2:]
    huge, = compared(view, [replace(true, d111=90., d100=90., radius=120.)], particle_fit.ROUGH)
    assert huge.misfit > compared(view, [true], particle_fit.ROUGH)[0].misfit + .5


def test_a_wrong_pixel_size_is_a_wrong_lattice_constant(seen):
    mic, labels, _, true = seen
    view = view_particle(replace(mic, sampling=1.01*PIXEL), labels, 1)
    start, = placed(view, [replace(true, edge=.4, d111=1.01*true.d111, d100=1.01*true.d100, radius=1.01*true.radius)], [true.defocus])
    p = refined(view, start, 12, particle_fit.ROUGH)
    assert p.lattice == pytest.approx(1.01, abs=.001) and p.explained > .95


def test_what_ends_at_another_focus_is_found_again(seen):
    view, true = seen[2:]
    wrong, = placed(view, [replace(true, edge=.4)], [true.defocus + 75.])
    p = particle_fit._refocused(view, refined(view, wrong, 2, particle_fit.ROUGH))
    assert abs(p.defocus - true.defocus) < 25 and p.misfit < wrong.misfit - .5


def test_a_restart_finds_an_orientation_a_few_degrees_off(seen):
    """A model tilted by 2.5°, turned by half a turn about the beam, which its spectrum doesn't tell, misplaced and out of focus."""
    view, true = seen[2:]
    wrong = axis_angle((0, 0, 1), np.pi)@axis_angle((1, .3, 0), np.radians(2.5))@true.rotation
    stuck, = compared(view, [replace(true, rotation=wrong, shift=(true.shift[0] + 1.2, true.shift[1] - 1.), defocus=true.defocus + 60)],
                      particle_fit.ROUGH)
    assert stuck.explained < .5
    best = particle_fit._other_tilts(view, stuck)[0]
    assert misorientation(best.rotation, true.rotation) < np.radians(.4) and abs(best.defocus - true.defocus) < 15 and best.explained > .9


def test_tilts_lie_as_close_as_descents_come_back_from():
    at = particle_fit._hexagons(1., 4.)
    apart = np.linalg.norm(at[:, None] - at, axis=-1)
    assert len(at) == 61 and np.allclose(np.sort(apart, 1)[:, 1], 1) and np.hypot(*at.T).max() == pytest.approx(4)


def test_another_body_takes_the_place_of_a_wrong_one(seen):
    """A ball where a facetted crystal was recorded, at its place: forms that differ start anew, and come near."""
    view, true = seen[2:]
    ball = shaped(true.rotation, view.reach, .5, 1., body=true.body, shift=true.shift, defocus=true.defocus, edge=particle_fit.SOFT)
    ball, = compared(view, [ball], particle_fit.ROUGH)
    best = particle_fit._other_bodies(view, ball)[0]
    assert best.explained > .9 and abs(best.truncation - true.truncation) < .1


def test_an_image_moves_by_whole_pixels_as_by_fractions():
    image = torch.rand(3, 24, 24)
    by_phase = particle_fit._shifted(image, (2 + 1e-9, -5 + 1e-9))
    assert torch.allclose(particle_fit._shifted(image, (2., -5.)), by_phase, atol=1e-5)
    assert particle_fit._shifted(image, (2., -5.))[0, 2, 19] == image[0, 0, 0]


def test_noise_takes_little_off_what_has_to_be_explained(seen):
    """Two standard deviations of the noise's power, relative to what is beyond it; at most 5 %."""
    view = seen[2]
    strong = replace(view, recorded=torch.full((1000,), 3 + 0j), freedom=800.)
    assert particle_fit.least_explained(strong) == pytest.approx(.95 - 2*(2/800)**.5/8)
    weak = replace(view, recorded=torch.full((1000,), 1.1**.5 + 0j), freedom=800.)
    nothing = replace(view, recorded=torch.full((9,), .9 + 0j))
    assert particle_fit.least_explained(weak) == particle_fit.least_explained(nothing) == pytest.approx(.9)
    p = replace(seen[3], misfit=1.1, explained=.94, correlation=.6)
    assert 'no model fits' in refused(p, [.1], 100.) and refused(p, [.1], 100., .93) == ''


def test_an_untold_spherical_aberration_is_refined(seen):
    """Assumed 25 µm off, most of it comes back (a focus makes up for the rest); where the file tells it, it stays."""
    view, true = seen[2:]
    off = replace(view, Cs=view.Cs - 2.5e5, cs_told=False)
    p, told = (refined(v, replace(true, edge=.4), 10, particle_fit.ROUGH, 0.) for v in (off, replace(off, cs_told=True)))
    assert 1e5 < p.Cs_offset < 3e5 and told.Cs_offset == 0 and p.misfit < told.misfit - .02


def test_the_record_has_both_parts_of_the_spherical_aberration(seen):
    """What was assumed and what was found: without either the image is another one."""
    view, true = seen[2:]
    made = fit_report._record([(1, view, known_fit(replace(true, Cs_offset=7e4)))])['1']
    assert made['Cs'] == view.Cs and made['Cs_offset'] == 7e4
    same, other = (particle_fit.model_image(view, replace(true, Cs_offset=v)) for v in (made['Cs_offset'], 0.))
    assert (same - other).std() > 1e-3*same.std()


def test_the_curvature_is_that_of_a_profile(seen):
    """χ² with the focus held two standard deviations off and all else refined: four more, but for what the noise's estimate lacks."""
    view, true = seen[2:]
    p = refined(view, replace(true, edge=.4), 8, particle_fit.ROUGH, 0.)
    numbers = particle_fit._free(view, particle_fit.NUMBERS)
    J = particle_fit._derivatives(view, p, numbers=numbers)
    sd = np.sqrt(np.diag(np.linalg.inv(particle_fit._curvature(view, J) + particle_fit._prior(numbers))))
    sd = sd[[*numbers].index('defocus')]
    others = {k: v for k, v in numbers.items() if k != 'defocus'}
    rise = [view.freedom*(refined(view, replace(p, defocus=p.defocus + side*2*sd), 4, particle_fit.ROUGH, 0., others).misfit - p.misfit)
            for side in (-1, 1)]
    assert 1 < np.mean(rise) < 9, rise


def test_corrected_derivatives_predict_the_last_step_and_keep_what_it_did_not_touch():
    rng, numbers = np.random.default_rng(0), particle_fit.NUMBERS
    J, change = rng.normal(size=(50, len(numbers))), rng.normal(size=50)
    width = np.array([v[0] for v in numbers.values()])
    step, other = rng.normal(size=(2, len(numbers)))*width
    new = particle_fit._corrected(J, step, change, numbers)
    assert np.allclose(new@step, change)
    other -= step*(other/width**2@step)/(step/width**2@step)
    assert np.allclose(new@other, J@other)


@pytest.mark.parametrize('kind', ['twin', 'decahedron', 'icosahedron'])
def test_bodies_of_several_crystals_have_their_symmetry(kind):
    """Every rotation of the kind leaves a centred body as it is, and a depth is the least over all facets."""
    p = shaped(np.eye(3), 36., .4, .1, kind)
    at = model_positions(p)
    for s in CRYSTAL_KINDS[kind].symmetry: assert cKDTree(at).query(at@s.T)[0].max() < 1e-6
    assert (depths(p, at) > -1e-6).all() and depths(p, at*1.3).min() < -1
    if kind != 'twin': return
    below, above = (at[s*(at@TWIN) > .1] for s in (-1, 1))
    assert len(below) == len(above) and cKDTree(above).query(below - 2*np.outer(below@TWIN, TWIN))[0].max() < 1e-6
    assert not np.allclose(np.sort(depths(replace(p, kind='one crystal'), at)), np.sort(depths(p, at)))


def test_a_twin_is_found_from_one_of_its_crystals():
    """The plane's axis, side and place are not told; a single crystal explains less."""
    turn = Rotation.from_rotvec([.5, -.4, .2]).as_matrix()
    twin = shaped(turn, 38., .45, kind='twin', body=tuple(-4.*TWIN), defocus=60., shift=(2., -1.))
    _, _, view, true = recorded(twin)
    own, = compared(view, [true])
    half = CRYSTAL_KINDS['one crystal'].symmetry[7]
    parent, = placed(view, [shaped(turn@half, 38., .45, defocus=60.)], [60.])
    found, = particle_fit._twinned(view, [parent])
    assert own.explained > .95 and parent.explained < .8
    assert found.kind == 'twin' and found.explained > .93 and turned_apart(found, true) < np.radians(.5)
    assert 'twin' in fit_row(replace(known_fit(found), model=found))['crystal']


def test_an_icosahedrons_power_spectrum_tells_its_orientation():
    turn = Rotation.from_rotvec([.2, .5, -.3]).as_matrix()
    true = shaped(turn, 42., 0., kind='icosahedron', defocus=60.)
    view = recorded(true)[2]
    off = [np.degrees(turned_apart(p, true)) for p in likely_orientations(view, 8, kind='icosahedron')]
    assert min(off) < 4 and all(p.kind == 'icosahedron' and np.isnan(p.truncation) for p in likely_orientations(view, 2, kind='icosahedron'))


def test_another_kind_of_crystal_has_to_be_clearly_better(seen, monkeypatch):
    view, true = seen[2:]
    one, twin = replace(true, misfit=1.5, explained=.6), replace(true, kind='twin', misfit=1.45, explained=.65)
    def descended(view, tell, kind='one crystal'): return [replace(one, kind=kind, misfit=one.misfit + .5*(kind != one.kind))]
    monkeypatch.setattr(particle_fit, '_descended', descended)
    monkeypatch.setattr(particle_fit, '_improved', lambda view, found, tell: found)
    monkeypatch.setattr(particle_fit, '_freed', lambda view, found: found)
    monkeypatch.setattr(particle_fit, '_evened', lambda view, models: models)
    for worse, kind in ((particle_fit.AHEAD - 5, 'one crystal'), (particle_fit.AHEAD + 5, 'twin')):
        better = replace(twin, misfit=one.misfit/(1 + worse/view.freedom))
        monkeypatch.setattr(particle_fit, '_twinned', lambda view, found, better=better: [better])
        best, others = particle_fit._of_all_kinds(view, lambda share: None)
        rivals = set(CRYSTAL_KINDS) - {kind, 'twin'} if kind == 'one crystal' else set(CRYSTAL_KINDS) - {kind}  # a twin is all but one crystal
        assert best.kind == kind and {p.kind for p in others} - {'one crystal'} == rivals - {'one crystal'}  # or one with free facets


def test_kinds_and_rivals_are_compared_at_one_setting(seen, monkeypatch):
    """The same model is as good as itself, whatever setting it comes from; facets that differ have to be worth their numbers."""
    view, true = seen[2:]
    rough, = compared(view, [replace(true, edge=particle_fit.SOFT)], particle_fit.ROUGH)
    fine, = compared(view, [replace(true, edge=particle_fit.FIRM)], FINE)
    even = particle_fit._evened(view, [rough, fine])
    assert abs(particle_fit._worse(view, rough, fine)) > 3*abs(particle_fit._worse(view, *even)) and abs(particle_fit._worse(view, *even)) < 10
    monkeypatch.setattr(particle_fit, '_evened', lambda view, models: models)
    plain = replace(true, misfit=1.5)
    for better, told in ((particle_fit.AHEAD + 30, plain), (particle_fit.AHEAD + 80, None)):
        free = replace(true, facets=(.1,)*26, misfit=1.5/(1 + better/view.freedom))
        best, _ = particle_fit._simplest(view, [[plain], [free]])
        assert best is (told or free)


def test_numbers_can_leave_their_limits(seen):
    """At a limit the derivative is measured towards the inside, and is that of a model just inside."""
    view, true = seen[2:]
    for k, (low, high) in particle_fit.LIMITS.items():
        for end in (low, high):
            q, made = particle_fit._nudged(replace(true, **{k: end}), k, particle_fit.NUMBERS[k][2])
            assert low <= getattr(q, k) <= high and abs(made) == pytest.approx(abs(particle_fit.NUMBERS[k][2])), k
    at = replace(true, mtf=.1)
    J = particle_fit._derivatives(view, at, numbers=particle_fit.NUMBERS)
    assert np.abs(J[:, [*particle_fit.NUMBERS].index('mtf')]).max() > 0
    assert refined(replace(view, cs_told=True), at, 6, particle_fit.ROUGH, 0.).mtf > .15


def test_restarts_keep_the_lens(seen, monkeypatch):
    view, true = seen[2:]
    lens = replace(true, Cs_offset=5e4, astigmatism=(3., -4.), focal_spread=50., mtf=.4)
    begun = []
    monkeypatch.setattr(particle_fit, 'placed', lambda view, models, foci, *a, **k: begun.extend(models) or [*models])
    monkeypatch.setattr(particle_fit, '_thinned', lambda view, some, steps: some[:1])
    monkeypatch.setattr(particle_fit, '_all_refined', lambda view, models, *a, **k: [*models])
    monkeypatch.setattr(particle_fit, 'refined', lambda view, p, *a, **k: p)
    particle_fit._other_bodies(view, lens); particle_fit._twinned(view, [replace(lens, explained=.2)])
    assert len(begun) > 20 and all((p.Cs_offset, p.astigmatism, p.focal_spread, p.mtf) == (5e4, (3., -4.), 50., .4) for p in begun)


def test_wrong_orientations_are_wrong(seen, monkeypatch):
    """Of 32 random orientations those near the best model's are left out."""
    view, true = seen[2:]
    near = replace(true, rotation=Rotation.random(1, rng=0).as_matrix()[0])
    asked = []
    def placed_(view, models, foci, how): asked.extend(models); return [*models]
    monkeypatch.setattr(particle_fit, 'placed', placed_)
    monkeypatch.setattr(particle_fit, '_all_refined', lambda view, models, *a: [*models])
    assert len(particle_fit._chance(view, near)) == 8
    assert min(np.degrees(turned_apart(p, near)) for p in asked) > 10


def test_neighbours_and_what_lies_beyond_the_image_are_not_compared():
    labels = np.zeros((80, 80), int)
    labels[20:40, 30:50], labels[20:40, 56:70] = 1, 2
    w = particle_fit._window(labels, 1, 30, 40, 70, 1.)
    there = w[:, :]  # the view's pixel (35, 35) is the image's (30, 40)
    assert w[35, 35] == 1 and w[35, 55] == 0 and w[35, 61] == 0 and 0 < w[35, 48] < 1, 'the neighbour begins at 51'
    assert w[35, 20] == 1 and w[0, 35] == 0 and there.max() == 1
    at_edge = np.zeros((40, 80), int); at_edge[2:22, 30:50] = 1
    w = particle_fit._window(at_edge, 1, 12, 40, 70, 1.)
    assert (w[:23] == 0).all() and w[35, 35] == 1, 'rows above the image'


def test_an_uncorrected_lens_gets_room(seen):
    """Cs 1.2 mm at 200 kV moves beams by 4.5 nm: no image of the search may wrap around, whatever its focus."""
    small = particle_fit._width(.4, 300e3, 0., 38.)*.4
    wide = particle_fit._width(.4, 200e3, 1.2e7, 38.)*.4
    assert 66 < small < 76 and 88 < wide < 110
    lens = dict(energy=200e3, Cs=1.2e7, focal_spread=particle_fit.LEAST_SPREAD, angular_spread=particle_fit.CONE)
    for off in (-400, 0, 400):
        narrow, enough = (torch.ones(1, round(w/.4), round(w/.4), dtype=torch.complex64) for w in (small, wide))
        with pytest.raises(UserError): images(narrow, Microscope(defocus=900. + off, **lens), .4)
        assert images(enough, Microscope(defocus=900. + off, **lens), .4).isfinite().all()


def test_noise_that_is_too_strong_is_corrected_and_a_faint_particle_is_searched_to_the_end(seen):
    """The noise beside the particle may be 10 % too strong; most frequencies of a crystal say how strong it is at most."""
    view, true = seen[2:]
    strong = replace(view, weight=view.weight/3, recorded=view.recorded/3)
    back = particle_fit._levelled(strong)
    assert (back.recorded.abs()**2).median() == pytest.approx(np.log(2), rel=1e-3)
    assert torch.allclose(back.weight/strong.weight, (back.recorded.abs().sum()/strong.recorded.abs().sum()).expand(view.n, view.n), rtol=1e-4)
    noise = torch.complex(*torch.randn(2, 200000, generator=torch.Generator().manual_seed(0)))/2**.5
    assert (noise.abs()**2).median()/np.log(2) == pytest.approx(1, abs=.02)
    good = replace(true, explained=.99)
    faint = replace(view, recorded=noise*1.2)
    assert particle_fit._enough(replace(view, recorded=noise*2), good) and not particle_fit._enough(faint, good)


def test_one_failure_costs_one_particle(seen, monkeypatch):
    mic, labels, view, true = seen
    def fails(view, tell): raise ValueError('no such luck')
    monkeypatch.setattr(fit_report, 'fit_particle', fails)
    (n, none, why), = particle_fits(mic, labels, [1], 'Au')
    assert (n, none) == (1, None) and why == 'the fit failed (ValueError: no such luck)'
    nothing = replace(known_fit(true), model=replace(true, explained=np.nan, misfit=np.inf))
    made = fit_report._record([(1, view, nothing)])['1']
    assert made['explained'] is None and made['misfit'] is None and made['reach'] == view.reach
    clipped = replace(mic, image=np.where(labels > 0, mic.image, 255.).astype(np.float32))
    with pytest.raises(UserError, match='no noise'): view_particle(clipped, labels, 1)
    with pytest.raises(UserError, match='thermal motion of Rh'): view_particle(mic, labels, 1, 'Rh')
    with pytest.raises(UserError, match='scale bar'): view_particle(replace(mic, hidden=labels == 1), labels, 1)


def test_a_fitted_particle_keeps_none_of_the_networks_answers():
    table = pd.DataFrame(dict(label=[1, 2], shape=['x', 'y'], reason=['several', ''], shape_by='predicted', kind=['undetermined', 'decahedron'],
                              kind_withheld=[True, False], prediction_set=['a | b', 'decahedron'], crystallinity='crystalline', truncation=[.1, .2],
                              roundness_low=[.1, .2], diameter_nm=[5., 6.]))
    after = fit_report._with_fit(table, 1, dict(accepted=True, shape='cuboctahedron', crystal='one crystal', truncation=.5, why=''))
    assert after.loc[0, ['shape', 'reason', 'kind', 'prediction_set', 'crystallinity']].tolist() == [
        'cuboctahedron', '', 'one crystal', 'one crystal', 'monocrystalline'] and not after.kind_withheld[0]
    assert np.isnan(after.truncation[0]) and np.isnan(after.roundness_low[0]) and after.fit_truncation[0] == .5 and after.diameter_nm[0] == 5
    assert after.kind[1] == 'decahedron' and after.truncation[1] == .2


def test_a_five_fold_particle_is_told_without_what_it_does_not_have(seen):
    p = shaped(np.eye(3), 40., 0., kind='icosahedron', misfit=1.1, explained=.97, correlation=.8)
    fit = replace(known_fit(seen[3]), model=p)
    fit = replace(fit, ranges={k: v for k, v in fit.ranges.items() if k != 'truncation'})
    row = fit_row(fit)
    assert row['shape'] == row['crystal'] == 'icosahedron' and 'truncation' not in row and 'beam_h' not in row
