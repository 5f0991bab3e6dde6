"""Outlines of particles in truth maps are the particle's, wherever it stands in the periodic box and however much of it it fills."""
import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from nanoshape.datasets.recipes import make_recipe
from nanoshape.datasets.samples import RIM, in_one_piece, sample, truth_map

BOX = 93.75  # Å


def filled(diameter, shift, box=BOX, gpts=160):
    """The truth map of a disc of atoms somewhere in a periodic box."""
    grid = np.stack(np.meshgrid(*[np.arange(-200, 201)*.5]*2), -1).reshape(-1, 2)
    p = (grid[np.linalg.norm(grid, axis=1) <= diameter/2] + shift) % box
    atoms = Atoms(['Au']*len(p), np.column_stack([p, np.ones(len(p))]))
    atoms.set_array('particle', np.zeros(len(p), int))
    recipe = make_recipe(name='g', kind='grains', box_nm=box/10, gpts=max(2*gpts, 200), out_gpts=gpts, size_nm=2)
    return truth_map(recipe, atoms) > 0


@pytest.mark.parametrize('share', [.3, .5, .7, .9])
@pytest.mark.parametrize('shift', [(0, 0), (BOX/2, BOX/2), (20, 70), (90, 3)])
def test_an_outline_has_the_particles_area(share, shift):
    found = filled(share*BOX, shift).sum()*(BOX/160)**2
    radius = share*BOX/2 + RIM
    assert abs(found/(np.pi*radius**2) - 1) < .05


@pytest.mark.parametrize('shift', [0, 13, 47])
def test_an_outline_moves_with_the_particle(shift):
    """By whole pixels, around the sides of the box."""
    pixel = BOX/160
    still, moved = filled(.9*BOX, (0, 0)), filled(.9*BOX, (shift*pixel, 2*shift*pixel))
    assert (np.roll(still, (2*shift, shift), (0, 1)) != moved).mean() < .01


@given(st.floats(2, 90), st.floats(0, 100), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_coordinates_in_one_piece_differ_by_whole_boxes(extent, shift, seed):
    x = np.sort(np.random.default_rng(seed).uniform(0, extent, 200))
    x[0], x[-1] = 0, extent
    inside = (x + shift) % 100
    whole = in_one_piece(inside, 100)
    assert np.isclose(np.ptp(whole), extent) or extent > 85 and np.ptp(whole) <= extent + 1e-9
    assert np.allclose((whole - inside)/100, np.round((whole - inside)/100)) and whole[0] == inside[0]


def test_a_grain_of_nine_tenths_of_its_box_has_one_round_outline():
    recipe = make_recipe(name='large', kind='grains', structures=3, size_nm=8.4, box_nm=9.375, gpts=320, out_gpts=160, seed=3,
                         classes=['monocrystalline'])
    for i in range(3):
        outline = truth_map(recipe, sample(recipe, i)[0]) > 0
        region, = measure.regionprops(measure.label(outline))
        assert region.solidity > .95 and .8 < 2*np.sqrt(outline.sum()/np.pi)*recipe.sampling/84 < 1.1
