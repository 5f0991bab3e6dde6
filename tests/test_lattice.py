"""Spots, planes, zone axes, and pixel sizes from them."""
from itertools import product

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import shared
from nanoshape.core import UserError, rng, torch_rng
from nanoshape.micrographs.film import film_focus
from nanoshape.micrographs.lattice import calibrate, find_spots, indexed, rings_used
from nanoshape.simulate.microscope import Microscope, images
from nanoshape.simulate.multislice import exit_waves
from nanoshape.simulate.orientations import rotated
from nanoshape.micrographs.reading import Micrograph, read
from nanoshape.simulate.structures import assemble, lattice_constant, particle
from nanoshape.simulate.supports import amorphous


@pytest.fixture(scope='module')
def field():
    """Six particles along ⟨011⟩ and ⟨001⟩, turned in the plane, on 1.5 nm of carbon: 24 nm at 0.5 Å per pixel."""
    turns = [Rotation.from_euler('z', a, degrees=True)*Rotation.align_vectors([[0, 0, 1]], [v])[0]
             for a, v in ((10, [0, 1, 1]), (40, [0, 0, 1]), (75, [0, 1, 1]), (100, [0, 0, 1]), (130, [0, 1, 1]), (160, [0, 0, 1]))]
    parts = [rotated(particle('cuboctahedron', 55., rng(0), 'Au'), t.as_matrix()) for t in turns]
    places = [(x, y) for y in (-60, 60) for x in (-80, 0, 80)]
    wave = exit_waves(assemble(parts, 240., amorphous(240., 15, rng(0)), places), 720, 300e3, out_gpts=480)
    return images(wave, Microscope(300e3, defocus=60., focal_spread=30., dose=5e3), .5, torch_rng(0)).numpy()


@pytest.mark.parametrize('header', [.5, .575, .425])
def test_the_pixel_size_is_found_whatever_the_header_says(field, header):
    c = calibrate(Micrograph(field, header, 'field'))
    assert abs(c['sampling'] - .5) < .006 and abs(c['sampling'] - .5) < 4*c['error'] + .002
    assert abs(c['header'] - header/.5) < .02*header/.5 and c['spots']['111'] >= 3 and c['spots']['200'] >= 3


def test_where_the_rings_do_not_decide_it_nothing_is_claimed():
    g = np.random.default_rng(0)
    noise = Micrograph(g.normal(size=(400, 400)).astype(np.float32), .5, 'noise')
    with pytest.raises(UserError, match='fringes of two kinds'):
        calibrate(noise)
    y, x = np.mgrid[:400, :400]
    one = Micrograph((noise.image + np.cos(2*np.pi*(.2*x + .1*y))).astype(np.float32), .5, 'one kind of fringe')
    with pytest.raises(UserError, match='fringes of two kinds'):
        calibrate(one)


def test_a_turned_particle_has_the_same_axis():
    for angle in (0, 33, 71):
        turn = Rotation.from_euler('z', angle, degrees=True)*Rotation.align_vectors([[0, 0, 1]], [[0, 1, 1]])[0]
        atoms = assemble(rotated(particle('octahedron', 45., rng(0), 'Au'), turn.as_matrix()), 80.)
        wave = exit_waves(atoms, 384, 300e3, out_gpts=192, debye_waller={'Au': .6})
        im = images(wave, Microscope(300e3, defocus=40., focal_spread=30., dose=3e3), 80/192, torch_rng(0)).numpy()
        found = indexed(find_spots(im[32:160, 32:160]), 80/192)
        assert found['axis'] == '011' and found['planes'].count('111') == 2


def test_off_any_axis_no_axis_is_named():
    turn = Rotation.align_vectors([[0, 0, 1]], [[.31, .52, .8]])[0]
    wave = exit_waves(assemble(rotated(particle('octahedron', 45., rng(0), 'Au'), turn.as_matrix()), 80.), 384, 300e3, out_gpts=192)
    im = images(wave, Microscope(300e3, defocus=40., focal_spread=30., dose=3e3), 80/192, torch_rng(0)).numpy()
    assert indexed(find_spots(im[32:160, 32:160]), 80/192)['axis'] == ''


def test_the_real_tiles_calibrate_themselves(sintering):
    """4.0 and 3.42 pixels, says the data's README: 0.0586 nm per pixel if the metal is gold."""
    tiles = [np.asarray(Image.open(p))[..., 0].astype(np.float32) for p in sorted(sintering.glob('train_image_*.png'))]
    c = calibrate([Micrograph(t, .586, 'tile') for t in tiles])
    assert abs(c['sampling'] - .586) < .006 and c['spots']['111'] > 3*c['spots']['200'] > 0


# ---- supports with fringes of their own

def smooth(g, n, width):
    a = ndimage.gaussian_filter(g.normal(size=(n//8, n//8)), width/8)
    return ndimage.zoom(a/a.std(), 8, order=1)


def carbon_black(g, y, x, px, domains, spacing=3.45):
    """Arcs of graphitic layers, only where a domain of them shows, on a support that they darken a little."""
    n, out = len(y), np.zeros(y.shape)
    for _ in range(domains):
        (cy, cx), radius = g.uniform(-.1, 1.1, 2)*n*px, g.uniform(25, 90)
        r = np.hypot(y - cy, x - cx)
        there, phase = np.clip(2*smooth(g, n, 12/px), 0, 1), .7*smooth(g, n, 25/px)
        out += (r < radius)*(3*there*np.cos(2*np.pi*r/spacing/(1 + g.normal(0, .02)) + phase) - .4)
    return out


def fcc_sphere(g, y, x, r, size, element):
    """Kinematic fringes of a sphere in a random orientation: of planes within the width that its size gives to spots."""
    hkl = np.array([h for h in product(range(-3, 4), repeat=3) if len({c % 2 for c in h}) == 1 and 0 < sum(c*c for c in h) <= 12], float)
    k = Rotation.random(rng=g).apply(hkl)/lattice_constant(element)
    amplitude = np.exp(-(k[:, 2]*size/1.2)**2 - (np.linalg.norm(k, axis=1)/.42)**2)*(k[:, 0] > 0)
    waves = sum(a*np.cos(2*np.pi*(v[0]*x + v[1]*y) + g.uniform(0, 7)) for a, v in zip(amplitude, k) if a > .02)
    return (r < size/2)*1.5*(waves - np.sqrt(np.clip(1 - (2*r/size)**2, 0, None)))


def on_carbon_black(element, px, seed, n=768, particles=45):
    g, (y, x) = np.random.default_rng(seed), np.mgrid[:n, :n]*px
    image = g.normal(size=(n, n)) + carbon_black(g, y, x, px, round(1.8*(n*px/40)**2/np.pi))
    for _ in range(particles):
        (cy, cx), size = g.uniform(0, n*px, 2), g.uniform(20, 50)
        image += fcc_sphere(g, y, x, np.hypot(y - cy, x - cx), size, element)
    return Micrograph(image.astype(np.float32), .5, 'on carbon black')


@pytest.mark.parametrize('element, px, seed', [('Pt', .46, 1), ('Au', .46, 3), ('Cu', .36, 5)])
def test_fringes_of_graphite_are_not_taken_for_the_metals(element, px, seed):
    """Right, or no answer; the layers of carbon black are 3.45 Å apart and seen more often than any planes of the metal."""
    try: c = calibrate(on_carbon_black(element, px, seed), element)
    except UserError as e: assert 'fringes of two kinds' in str(e)
    else: assert abs(c['sampling']/px - 1) < .01 and c['error'] >= .005*px and c['spots']['311'] <= c['spots']['111']


def test_a_support_alone_has_no_answer():
    with pytest.raises(UserError, match='fringes of two kinds'): calibrate(on_carbon_black('Pt', .46, 7, 512, 0), 'Pt')


def test_platinum_on_carbon_calibrates_itself():
    """Pt {111} at 4.85 px beside graphite at 7.7 px, says the data's README: 0.0455 to 0.0467 nm per pixel."""
    c = calibrate(read(shared('real/catalysts')/'Pt_carbon2.jpg', sampling=.5), 'Pt')
    assert .455 < c['sampling'] < .4675 and c['carbon'] > 50 and 'graphite' in rings_used(c) and '{111}' in rings_used(c)


# ---- focus

@pytest.mark.parametrize('voltage', [None, 2e5])
def test_the_films_rings_tell_how_far_from_focus(voltage):
    """Both sides of focus, to 3 % and the film's own thickness; near focus, in noise and without a film there is no answer."""
    film, kv = amorphous(200, 25, rng(1)), voltage or 3e5
    wave, none = exit_waves(film, 400, kv, out_gpts=256), np.zeros((256, 256), int)
    scope = lambda f: Microscope(kv, defocus=float(f), focal_spread=40., dose=2000.)
    seen = lambda f: Micrograph(images(wave, scope(f), 200/256, torch_rng(2)).numpy(), 200/256, 'film', voltage)
    for f in (-2500, -1000, -300, 250, 400, 900, 2000): assert abs(film_focus(seen(f), none) - abs(f)) < 25 + .03*abs(f)
    assert all(film_focus(seen(f), none) is None for f in (-60, 0, 60))
    noise = [Micrograph(np.random.default_rng(k).normal(size=(256, 256)).astype(np.float32), .8, 'noise') for k in range(20)]
    assert all(film_focus(m, none) is None for m in noise)
    assert film_focus(noise[0], none + 1) is None and film_focus(Micrograph(noise[0].image[:90, :90], .8, 'small'), none[:90, :90]) is None
