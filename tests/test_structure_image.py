"""`nanoshape image`: a structure that somebody brings, its micrograph, and mistakes."""
import json

import numpy as np
import pytest
import tifffile
from ase import Atoms
from ase.build import bulk
from ase.io import write

from nanoshape.core import UserError
from nanoshape.cli import main
from nanoshape.datasets.structure_image import in_a_box, is_crystal, structure_image
from nanoshape.micrographs.reading import read
from nanoshape.simulate.microscope import Microscope, scherzer

GOLD = bulk('Au', cubic=True)


def lens(**more): return Microscope(300e3, **dict(focal_spread=30., pixel_integration=True) | more)


@pytest.mark.parametrize('focus, sign', [(60., -1), (-60., 1)])
def test_atoms_are_dark_in_underfocus_and_bright_in_overfocus(focus, sign):
    """The textbook's sign for a weak object with Cs = 0; and the focus counts from the atom, wherever it lies in its cell."""
    image, _ = structure_image(in_a_box(Atoms('C', [(0, 0, 0)])), .2, lens(defocus=focus))
    middle = np.array(np.unravel_index(np.abs(image.numpy() - 1).argmax(), image.shape))
    assert sign*(float(image[tuple(middle)]) - 1) > .01 and np.abs(middle - len(image)/2).max() <= 1
    far, _ = structure_image(Atoms('C', [(15., 15., 5.)], cell=(30., 30., 60.), pbc=True), .2, lens(defocus=focus))
    near, _ = structure_image(Atoms('C', [(15., 15., 5.)], cell=(30., 30., 8.), pbc=True), .2, lens(defocus=focus))
    assert np.allclose(far, near, atol=2e-3)


def test_axes_are_those_of_the_file_and_tilts_turn_by_the_right_hand():
    """A heavy atom and a light one: along x they lie in a row; a quarter turn about x takes +z to −y, one about y takes +z to +x."""
    def ends(atoms, tilt):  # pixels (row, column) of the heavy atom from the light one
        scene = in_a_box(atoms, tilt)
        at = scene.positions[scene.symbols == 'Au'][0] - scene.positions[scene.symbols == 'C'][0]
        image = structure_image(scene, .2, lens(defocus=40.))[0].numpy()
        y, x = np.unravel_index(image.argmin(), image.shape)
        seen = np.array([y, x])*.2 - scene.positions[scene.symbols == 'Au'][0][1::-1]
        assert np.abs(seen).max() < .4  # the image shows it where the scene has it
        return at.round(6).tolist()
    assert ends(Atoms('AuC', [(8, 0, 0), (0, 0, 0)]), (0, 0)) == [8, 0, 0]
    up = Atoms('AuC', [(0, 0, 8), (0, 0, 0)])
    assert ends(up, (90, 0)) == [0, -8, 0] and ends(up, (0, 90)) == [8, 0, 0]


def test_what_fills_its_cell_is_a_crystal():
    cell = GOLD.copy()
    assert is_crystal(cell) and is_crystal(cell*(3, 4, 2)) and not is_crystal(Atoms('Au2', [(0, 0, 0), (0, 0, 3)]))
    free = cell*(3, 3, 3)
    free.center(vacuum=6.)
    assert not is_crystal(free)
    scene = in_a_box(cell*(3, 4, 2))
    assert scene.pbc.all() and np.allclose(scene.cell.lengths(), cell.cell.lengths()*[3, 4, 2])
    with pytest.raises(UserError, match='not rectangular'): in_a_box(bulk('Au')*(4, 4, 4))


def test_a_micrograph_shows_the_lattice_of_the_structure(tmp_path, capsys):
    """{200} fringes of gold along [001], 2.04 Å apart in both directions, with the pixel size that the file tells."""
    write(tmp_path/'gold.cif', GOLD)
    words = ['--repeat', '8', '10', '6', '--out', str(tmp_path/'gold.tif'), '--pixel-size', '0,02']
    assert not main(['image', str(tmp_path/'gold.cif'), *words])
    m = read(tmp_path/'gold.tif')
    a = GOLD.cell.lengths()[0]
    assert m.image.shape == (2*round(10*a/.4), 2*round(8*a/.4)) and abs(m.sampling - .2) < .005
    power = np.abs(np.fft.fft2(m.image - m.image.mean()))**2
    y, x = np.unravel_index(power.argmax(), power.shape)
    assert sorted(min(k, n - k) for k, n in zip((y, x), power.shape)) in ([0, 16], [0, 20])  # two {200} planes to a cell
    told = json.loads((tmp_path/'gold.json').read_text())
    assert told['atoms'] == 4*480 and told['kv'] == 300 and told['focus'] == 5 and 'commit' in told
    assert 'underfocus' in capsys.readouterr().out


def test_a_particles_own_debye_waller_factors_are_kept():
    """Those of a file go with the particle into its box, and blur its image."""
    one = Atoms('Au', [(0, 0, 0)])
    soft = one.copy()
    soft.info['b_factors'] = {'Au': 20.}
    hard, blurred = (structure_image(in_a_box(a), .2, lens(defocus=40.))[0].numpy() for a in (one, soft))
    assert np.ptp(blurred) < .6*np.ptp(hard)


def test_counts_follow_the_dose_and_the_seed(tmp_path):
    write(tmp_path/'p.xyz', Atoms('Au3', [(0, 0, 0), (2.9, 0, 0), (0, 2.9, 0)]))
    run = lambda name, *words: main(['image', str(tmp_path/'p.xyz'), '--dose', '1000', '--out', str(tmp_path/name), *words])
    for name, seed in (('a.tif', '1'), ('b.tif', '1'), ('c.tif', '2')): run(name, '--seed', seed)
    a, b, c = (tifffile.imread(tmp_path/f'{n}.tif') for n in 'abc')
    assert (a == b).all() and (a != c).any() and abs(a.mean()/(1000*.2**2) - 1) < .02


def test_without_a_corrector_scherzers_focus_is_taken(tmp_path, capsys):
    write(tmp_path/'p.xyz', Atoms('Au', [(0, 0, 0)]))
    main(['image', str(tmp_path/'p.xyz'), '--cs', '1.2', '--kv', '200', '--out', str(tmp_path/'p.tif')])
    assert json.loads((tmp_path/'p.json').read_text())['focus'] == pytest.approx(scherzer(200e3, 1.2e7)/10) == pytest.approx(67.2, abs=.1)


@pytest.mark.parametrize('words, says', [
    (['--out', 'x.png'], 'ends in .tif'), (['--out', 'no/x.tif'], 'there is no folder'), (['--out', 'there.tif'], 'exists already'),
    (['--pixel-size', '-0.05'], 'makes no sense'), (['--dose', '-1'], 'makes no sense'), (['--kv', '0'], ''), (['--mtf', '2'], 'makes no sense'),
    (['--repeat', '400', '400', '400'], 'too many')])
def test_a_mistake_gets_a_sentence_and_leaves_nothing(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write('p.cif', GOLD)
    (tmp_path/'there.tif').write_bytes(b'mine')
    assert main(['image', 'p.cif', *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith('nanoshape: ') and err.count('\n') == 1 and says in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ['p.cif', 'there.tif'] and (tmp_path/'there.tif').read_bytes() == b'mine'
