"""Structures measured: sizes, distances, directions."""
import ase.io
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay, cKDTree

from conftest import one_sentence, shared
from nanoshape.core import UserError, rng
from nanoshape.simulate.orientations import random_rotation, rotated
from nanoshape.simulate.structures import (FORMATS, SHAPES, UNSEEN, assemble, closed_shell,
                                           facet_down, facet_normals, facets, free_positions, lattice_constant, particle,
                                           polyhedron, projected_sizes, read_structure, volume_equivalent_diameter,
                                           write_structure)
from nanoshape.simulate.supports import amorphous

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


def test_particles_rest_on_the_film_where_they_are_put():
    parts = [rotated(particle('cube', s, rng(s)), random_rotation(rng(s))) for s in (30, 45)]
    scene = assemble(parts, 120, amorphous(120, 10, rng(0)), [(-30, 20), (25, -30)])
    gold, film = scene.positions[scene.numbers == 79], scene.positions[scene.numbers == 6]
    first, second = gold[:len(parts[0])], gold[len(parts[0]):]
    assert np.allclose((first.max(0) + first.min(0))[:2]/2, (30, 80)) and np.allclose((second.max(0) + second.min(0))[:2]/2, (85, 30))
    assert np.isclose(first[:, 2].max(), second[:, 2].max()) and 2.4 < film[:, 2].min() - gold[:, 2].max() < 3
    assert (scene.positions >= 0).all() and (scene.positions <= scene.cell.lengths()).all()


ENERGIES = {(1, 1, 1): 1., (1, 0, 0): 1.15}


def built(shape, size, seed, **options):
    return particle(shape, size, rng(seed), **({'surface_energies': ENERGIES} if shape == 'Wulff' else {}), **options)


@pytest.mark.parametrize('shape', SHAPES + UNSEEN)
@pytest.mark.parametrize('element', ['Au', 'Pt', 'Ni'])
def test_every_model_is_a_close_packed_metal(shape, element):
    """Nearest neighbours at a/√2 (5 % apart in five-fold particles), twelve of them inside, none inside a sphere of that size."""
    a = lattice_constant(element)
    p = built(shape, 50, 1, element=element)
    assert set(p.symbols) == {element} and p.info['element'] == element
    bond, strain = a/2**.5, .055 if shape == 'icosahedron' or 'decahedron' in shape else 1e-6
    d = cKDTree(p.positions).query(p.positions, 2)[0][:, 1]
    assert abs(d/bond - 1).max() < strain
    inner = np.linalg.norm(p.positions, axis=1) < (4 if shape == 'tetrahedron' else 8)
    assert inner.any() and (cKDTree(p.positions).query_ball_point(p.positions[inner], 1.2*bond, return_length=True) == 13).all()


@pytest.mark.parametrize('shape', UNSEEN)
def test_unseen_shapes_fill_their_sphere_and_no_more(shape):
    for seed in range(5):
        p = built(shape, 60, seed)
        reach = np.linalg.norm(p.positions, axis=1).max()
        assert 30 - (12 if shape == 'tetrahedron' else 4) < reach <= 30 + 1e-6  # hardly any lattice site falls into a sharp corner
        assert len({len(built(shape, 60 + .1*k, k)) for k in range(10)}) > (1 if shape == 'tetrahedron' else 5)


def test_facets_of_unseen_shapes():
    """Tetrahedron: faces enclose 70.53°. Decahedra: 10 caps that are {111}, 5 sides {100}; notches parallel to the axis."""
    n, _ = facets('tetrahedron')
    assert len(n) == 4 and np.allclose((n@n.T)[np.triu_indices(4, 1)], np.cos(np.radians(180 - 70.5288)))
    for shape, sides in (('Ino decahedron', 5), ('Marks decahedron', 15)):
        n, _ = facets(shape)
        caps = n[np.abs(n[:, 2]) > .1]
        assert len(caps) == 10 and len(n) == 10 + sides and np.allclose(np.abs(caps[:, 2]), (2/3)**.5)
        side = n[np.abs(n[:, 2]) < .1]
        assert np.isclose(np.degrees(np.arccos(np.sort(side@side.T, 1)[:, -2].min())), 72 if sides == 5 else 36, atol=1e-3) or sides == 15
    assert len(facets('Wulff', surface_energies={(1, 1, 1): 1.})[0]) == 8  # an octahedron


def test_marks_is_notched_and_ino_is_not():
    """Seen along the five-fold axis, Marks's outline is concave."""
    def filled(shape):
        p = built(shape, 70, 2).positions
        xy = p[np.abs(p[:, 2] - np.median(p[:, 2])) < 3, :2]
        grid = np.stack(np.meshgrid(*[np.linspace(-35, 35, 141)]*2), -1).reshape(-1, 2)
        hull = Delaunay(xy).find_simplex(grid) >= 0
        return (cKDTree(xy).query(grid[hull])[0] < 2.2).mean()
    assert filled('Marks decahedron') < .99 and filled('Ino decahedron') > .999


def test_truncation_runs_from_octahedron_to_cuboctahedron():
    n = [len(particle('truncated octahedron', 60, rng(0), truncation=t)) for t in (.02, .2, 1/3, .45, .495)]
    assert len(particle('octahedron', 60, rng(0))) <= n[0]*1.05 and n[0] < n[1] < n[2]
    assert abs(n[4]/len(particle('cuboctahedron', 60, rng(0))) - 1) < .03
    assert [len(facets('truncated octahedron', truncation=t)[0]) for t in (.1, .3, .4)] == [14]*3


def test_counts_of_known_clusters():
    for n, atoms in ((2, 13), (3, 55), (4, 147), (5, 309)):
        assert len(closed_shell('icosahedron', n)) == len(closed_shell('cuboctahedron', n)) == atoms
    assert [len(closed_shell('truncated octahedron', *n)) for n in ((4, 1), (7, 2))] == [38, 201]
    assert [len(closed_shell('octahedron', n)) for n in (2, 3, 4)] == [6, 19, 44] and len(closed_shell('decahedron', 2, 2, 1)) == 75


def test_equal_volume_is_measured_from_atoms():
    """A 6 nm sphere of gold holds as many atoms as its volume says, whatever the lattice's place; so does one by its label."""
    for seed in range(4):
        assert abs(volume_equivalent_diameter(built('sphere', 60, seed)) - 60) < .3
    cube = built('cube', 80, 0)
    assert abs(volume_equivalent_diameter(cube)/((6/np.pi)**(1/3)*80/3**.5) - 1) < .03


def test_facet_normals_turn_with_the_particle_and_it_lies_on_one():
    p = particle('octahedron', 40, rng(0))
    turned = rotated(p, random_rotation(rng(1)))
    n = facet_normals(turned)
    assert all((turned.positions@v).max() <= 40/2/3**.5 + 1e-6 for v in n)
    below = [facet_down(turned, rng(k)) for k in range(4)]
    for q in below:
        assert np.isclose(facet_normals(q)[:, 2].max(), 1)
        assert (q.positions[:, 2] > q.positions[:, 2].max() - .3).sum() > 30  # a whole layer touches the support


def test_free_places_leave_no_overlap_even_across_the_sides():
    parts = [rotated(particle(SHAPES[i % 5], 30 + i, rng(i)), random_rotation(rng(i))) for i in range(15)]
    scene = assemble(parts, 260, None, free_positions(parts, 260, rng(1)))
    owner = np.repeat(np.arange(15), [len(p) for p in parts])
    close = cKDTree(scene.positions[:, :2], boxsize=260).query_pairs(4.9, output_type='ndarray')
    assert (owner[close[:, 0]] == owner[close[:, 1]]).all()


@pytest.mark.parametrize('suffix', list(FORMATS))
def test_files_come_back(suffix, tmp_path):
    scene = assemble(rotated(particle('cube', 20, rng(0)), random_rotation(rng(1))), 40)
    back = read_structure(write_structure(tmp_path/f'a{suffix}', scene))
    assert (back.numbers == scene.numbers).all() and np.allclose(back.positions, scene.positions, atol=1e-4) and np.allclose(back.cell, scene.cell,
            atol=1e-4)
    assert list(tmp_path.iterdir()) == [tmp_path/f'a{suffix}']


@pytest.mark.parametrize('suffix', list(FORMATS))
@pytest.mark.parametrize('damage', ['empty', 'cut', 'noise', 'nan'])
def test_damaged_files_say_so(suffix, damage, tmp_path):
    path = write_structure(tmp_path/f'a{suffix}', assemble(particle('cube', 12, rng(0)), 40))
    data = path.read_bytes()
    number = data.rfind(b'.')
    path.write_bytes({'empty': b'', 'cut': data[:60], 'noise': rng(0).bytes(3000), 'nan': data[:number - 1] + b'nan' + data[number + 4:]}[damage])
    try:
        atoms = read_structure(path)
    except UserError as e:
        assert path.name in str(e) and '\n' not in str(e)
    else:
        assert damage == 'nan' and np.isfinite(atoms.positions).all()  # the number was not a coordinate


LAMMPS = """cerium oxide

3 atoms
2 atom types
0 5.4 xlo xhi
0 5.4 ylo yhi
0 5.4 zlo zhi

Masses

1 140.116
2 15.999

Atoms # charge

1 1 2.4 0.0 0.0 0.0
2 2 -1.2 1.35 1.35 1.35
3 2 -1.2 4.05 1.35 1.35
"""


def test_structures_that_simulations_leave_are_read(tmp_path):
    scene = assemble(particle('cube', 12, rng(0), 'Pt'), 40)
    for name, kind in (('POSCAR', 'vasp'), ('a.vasp', 'vasp'), ('a.pdb', 'proteindatabank')):
        ase.io.write(tmp_path/name, scene, format=kind)
        back = read_structure(tmp_path/name)
        assert (back.numbers == 78).all() and np.allclose(back.positions, scene.positions, atol=2e-3)
        assert np.allclose(back.cell, scene.cell, atol=2e-3)
    (tmp_path/'a.lmp').write_text(LAMMPS)
    with pytest.warns(UserWarning, match='a.lmp gives charges: they are left out'): oxide = read_structure(tmp_path/'a.lmp')
    assert str(oxide.symbols) == 'CeO2' and np.allclose(oxide.positions[2], [4.05, 1.35, 1.35]) and not oxide.get_initial_charges().any()


def test_a_lammps_file_that_names_no_elements_is_refused(tmp_path):
    (tmp_path/'a.data').write_text(LAMMPS.replace('Masses\n\n1 140.116\n2 15.999\n\n', ''))
    with pytest.raises(UserError, match='does not say which elements') as e: read_structure(tmp_path/'a.data')
    one_sentence(e)


def test_occupancies_of_a_pdb(tmp_path):
    line = 'ATOM  {n:5d} {s:>2}   MOL     1    {x:8.3f}{x:8.3f}{x:8.3f}{p:6.2f}{b:6.2f}          {s:>2}\n'
    write = lambda p, b: (tmp_path/'a.pdb').write_text(''.join(line.format(n=k, s='AU', x=3.*k, p=p, b=b) for k in range(1, 401)) + 'END\n')
    write(.5, .6)
    with pytest.warns(UserWarning, match='Biso of Au 0.6'): half = read_structure(tmp_path/'a.pdb')
    assert 150 < len(half) < 250 and np.allclose(half.arrays['b_factor'], .6)
    write(0., 0.)  # as programs write it that do not know
    assert len(read_structure(tmp_path/'a.pdb')) == 400


@pytest.mark.parametrize('name', ['POSCAR', 'a.pdb', 'a.lmp'])
@pytest.mark.parametrize('damage', ['empty', 'cut', 'noise'])
def test_damaged_files_of_simulations_say_so(name, damage, tmp_path):
    path, scene = tmp_path/name, assemble(particle('cube', 12, rng(0)), 40)
    if name == 'a.lmp': path.write_text(LAMMPS)
    else: ase.io.write(path, scene, format={'POSCAR': 'vasp', 'a.pdb': 'proteindatabank'}[name])
    data = path.read_bytes()
    path.write_bytes({'empty': b'', 'cut': data[:60], 'noise': rng(0).bytes(3000)}[damage])
    with pytest.raises(UserError, match=name) as e: read_structure(path)
    one_sentence(e)


CEL = """a site of gold and palladium, one of gold, one of oxygen in one cell of ten
0 2.0 2.0 0.4 90.0 90.0 90.0
Au 0.25 0.25 0.5 0.5 0.0060 0 0 0
Pd 0.25 0.25 0.5 0.5 0.0060 0 0 0
Au 0.75 0.75 0.5 1.0 0.0060 0 0 0
O  0.75 0.25 0.5 0.1 0.0100 0 0 0
*
"""


def occupied_in_part(folder, suffix):
    """The structure above, as CEL, or as CIF: in P 1, or with a mirror plane across its short axis, which is b there."""
    path, mirrored = folder/('a' + suffix[-4:]), suffix == 'm.cif'
    sites = ((s, x, *(('0.5', y) if mirrored else (y, '0.5')), p) for s, x, y, _, p, *_ in map(str.split, CEL.splitlines()[2:-1]))
    b, c = (4, 20) if mirrored else (20, 4)
    head = f"data_a\n_cell_length_a 20\n_cell_length_b {b}\n_cell_length_c {c}\n_cell_angle_alpha 90\n_cell_angle_beta 90\n" \
           f"_cell_angle_gamma 90\n_symmetry_space_group_name_H-M '{'P m' if mirrored else 'P 1'}'\nloop_\n_atom_site_label\n" \
           "_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n"
    path.write_text(CEL if suffix == '.cel' else head + ''.join(f'{r[0]}{k} {" ".join(r)}\n' for k, r in enumerate(sites)))
    return path


@pytest.mark.parametrize('suffix', ['.cel', '.cif', 'm.cif'])
@pytest.mark.filterwarnings('ignore:.*(Biso|crystal system|occupanc)')
def test_sites_that_are_occupied_in_part_are_drawn(suffix, tmp_path):
    from nanoshape.simulate.potential import VOLT, scattering_factor
    path = occupied_in_part(tmp_path, suffix)
    many = read_structure(path, repeat=(50, 1, 50) if suffix == 'm.cif' else (50, 50, 1))
    n = {s: int((many.symbols == s).sum()) for s in ('Au', 'Pd', 'O')}
    assert n['Au'] + n['Pd'] == 2*2500, 'a site holds one of the two, never both and never none'
    assert abs(n['Pd'] - 1250) < 4*25 and abs(n['O'] - 250) < 4*15
    integral = lambda symbols: VOLT*sum(float(scattering_factor(s)(0.)) for s in symbols)
    half = many.symbols[(many.positions[:, 0] % 20 < 10)]
    assert integral(half)/2500 == pytest.approx((integral(['Au']) + integral(['Pd']))/2, rel=.02)
    assert integral(['O']*n['O'])/2500 == pytest.approx(integral(['O'])/10, rel=.25)
    one, same, other = (read_structure(path, seed) for seed in (3, 3, 8))
    assert len(one) in (2, 3) and (one.numbers == same.numbers).all() and np.array_equal(one.positions, same.positions)
    assert len({tuple(read_structure(path, seed).symbols) for seed in range(20)}) > 1


def test_biso_of_a_cel_is_kept_and_said(tmp_path):
    path = occupied_in_part(tmp_path, '.cel')
    with pytest.warns(UserWarning, match='a.cel gives Biso of Au 0.6.*debye_waller'): atoms = read_structure(path, repeat=(9, 9, 1))
    assert atoms.info['b_factors'] == pytest.approx(dict(Au=.6, Pd=.6, O=1.)) and np.allclose(atoms.arrays['b_factor'][atoms.symbols == 'O'], 1)
    back = write_structure(tmp_path/'b.cel', atoms)
    with pytest.warns(UserWarning, match='Biso'): assert np.allclose(read_structure(back).arrays['b_factor'], atoms.arrays['b_factor'])


@pytest.mark.parametrize('old, new', [('0.5 0.5 0.0060', '0.5 0.7 0.0060'), ('0.5 0.1 ', '0.5 -0.1 '), ('0.5 0.1 ', '0.5 nan ')])
def test_impossible_occupancies_are_refused(tmp_path, old, new):
    (tmp_path/'a.cel').write_text(CEL.replace(old, new))
    with pytest.raises(UserError, match='a.cel has a site with an occupancy') as e: read_structure(tmp_path/'a.cel')
    one_sentence(e)


@pytest.mark.filterwarnings('ignore:.*Biso')
def test_a_half_occupied_site_of_a_file():
    path = shared('inputs')/'half_occupied.cel'
    seen = [sorted(read_structure(path, seed).symbols) for seed in range(30)]
    assert all(s.count('Au') + s.count('Pd') == 2 for s in seen) and {s.count('Pd') for s in seen} == {0, 1} == {s.count('O') for s in seen}
    with pytest.raises(UserError, match='too many'): read_structure(path, repeat=(5000, 5000, 1))


def test_equal_seeds_equal_atoms():
    a, b, c = (particle('icosahedron', 40, rng(s)).positions for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a[:10], c[:10])


@pytest.mark.parametrize('call', [
    lambda: particle('dodecahedron', 50, rng(0)), lambda: particle('cube', 1, rng(0)), lambda: particle('cube', 50, rng(0), 'Fe'),
    lambda: assemble([particle('cube', 20, rng(0))]*2, 60, None, [(0, 0), (1, 0)]),
    lambda: lattice_constant('Xx'), lambda: assemble(particle('cube', 60, rng(0)), 30),
    lambda: projected_sizes(particle('cube', 30, rng(0))[:2]), lambda: particle('Wulff', 50, rng(0)), lambda: particle('cube', 50, rng(0), a=0.1),
    lambda: particle('Wulff', 50, rng(0), surface_energies={(0, 0, 0): 1.}), lambda: particle('Wulff', 50, rng(0), surface_energies={(1, 1, 1): -1.}),
    lambda: particle('truncated octahedron', 50, rng(0), truncation=.7), lambda: closed_shell('icosahedron', -3), lambda: closed_shell('cube', 3),
    lambda: facet_down(particle('sphere', 30, rng(0)), rng(0)),
    lambda: free_positions([particle('cube', 60, rng(0))]*20, 150, rng(0)), lambda: read_structure('missing.cif'), lambda: read_structure('a.pdf'),
    lambda: write_structure('a.cif', particle('cube', 20, rng(0))), lambda: assemble(particle('cube', 20, rng(0)), 60, amorphous(50, 5, rng(0)))])
def test_impossible_requests_say_why(call):
    with pytest.raises(UserError, match=r'\w+ \w+ \w+'):
        call()
