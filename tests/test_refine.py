"""Heights refined by simulation: conditions come back, wrong heights are mended, what does not fit is said."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

import nanoshape.atoms.refine as refine
from conftest import ROOT
from nanoshape.cli import main
from nanoshape.core import NM, UserError, read_json, torch_rng
from nanoshape.atoms.heights import right_heights, true_columns
from nanoshape.simulate.microscope import changed, expose, intensity
from nanoshape.micrographs.reading import Micrograph
from nanoshape.atoms.column_lattice import fit_lattice
from nanoshape.atoms.atomic_model import column_sites, build_model, build_atoms
from nanoshape.atoms.height_report import write_heights
from nanoshape.datasets.recipes import load_recipe
from nanoshape.datasets.samples import conditions, recipe_waves, sample, truth_map
from nanoshape.atoms.refine import (Guess, trained_microscope, best_focus, posterior, optics, refined, refined_answers,
                                    refined_columns, refined_score, fit_conditions, view)
from nanoshape.learn.network import Card, Network
from oracle import Oracle

def seen(recipe, i=0, dose=2000., **what):
    scene, _ = sample(recipe, i)
    wave = recipe_waves(recipe, [scene])
    m = changed(conditions(recipe, [i]), dose=torch.tensor([dose]), **what)
    clean = intensity(wave, m, recipe.sampling, recipe.out_gpts)
    return expose(clean, m, recipe.sampling, torch_rng(0, 'refine'))[0].numpy(), truth_map(recipe, scene), m


@pytest.fixture(scope='module')
def recipe():
    return load_recipe(ROOT/'data/recipes/ceria_heights.yaml', seed=5, size_nm=2.6, heights=[3, 6], adatoms=0, mtf=None, defocus_nm=4,
                       focal_spread_nm=4)


@pytest.fixture(scope='module')
def crystal(recipe):
    return seen(recipe)


@pytest.fixture(scope='module')
def card(recipe):
    return Card(arch='stand-in', classes=[str(k) for k in range(12)], temperature=10., sampling=recipe.sampling, gpts=recipe.out_gpts,
                material='CeO2', zone='110', energy_kev=300, optics=optics(load_recipe(ROOT/'data/recipes/ceria_heights.yaml')))


def test_conditions_come_back(crystal, card):
    image, heights, m = crystal
    true = true_columns(heights, card.sampling)
    fit = fit_lattice(true[['x', 'y']])
    fit = replace(fit, origin=fit.origin + [.12, -.08])
    sites = column_sites(fit, edge=True)
    v = view(image, card.sampling, sites, true.height, trained_microscope(card))
    start = best_focus(v, sites, Guess(true.height.to_numpy(), np.ones(sites.edge.sum(), bool)))
    assert abs(start.defocus - 4*NM) <= 1*NM
    g = fit_conditions(v, sites, start, rounds=6)
    assert g.misfit < start.misfit and abs(g.defocus - 4*NM) < .8*NM and g.misfit/len(v.y) < 1.5
    assert np.allclose(g.moved[:, 0], [-.12, .08], atol=.06)


def test_a_tilt_is_found_with_its_sign(leaning, card):
    """Swapped rows with the opposite tilt come close, but not as close."""
    image, heights, recipe, toward = leaning
    true = true_columns(heights, recipe.sampling)
    assert np.degrees(np.linalg.norm(toward)) == pytest.approx(2, abs=.01)
    tried = []
    for swapped in (False, True):
        sites = column_sites(fit_lattice(true[['x', 'y']]), swapped, edge=True)
        v = view(image, recipe.sampling, sites, true.height, trained_microscope(replace(card, optics=optics(recipe))))
        start = Guess(true.height.to_numpy(), np.zeros(sites.edge.sum(), bool), defocus=4*NM)
        tried += [fit_conditions(v, sites, replace(start, tilt=k*toward), rounds=8) for k in (.6, -.6)]
    assert np.linalg.norm(min(tried, key=lambda g: g.misfit).tilt - toward) < .2*np.radians(2)


def test_a_tilt_and_which_rows_are_higher_are_found_from_nothing(leaning, card):
    """And the model of the atoms has these rows higher."""
    image, heights, recipe, toward = leaning
    columns, fit = refined_columns(Micrograph(image, card.sampling, 'crystal'), Network(Oracle(heights), card))
    found, (scene, _) = fit.simulated, sample(recipe, 3)
    assert np.linalg.norm(np.radians([found[f'tilt_about_{k}_deg'] for k in 'xy']) - toward) < .2*np.radians(2)
    true, model = scene[scene.symbols == 'Ce'], build_model(columns, fit)
    level = lambda a: np.array([a.positions[a.arrays['column'] == k, 2].max() for k in np.unique(a.arrays['column']) if k >= 0])
    at = lambda a: np.array([a.positions[a.arrays['column'] == k, :2].mean(0) for k in np.unique(a.arrays['column']) if k >= 0])
    measured = model[model.arrays['measured']]
    near = [np.linalg.norm(at(true) - p, axis=1).argmin() for p in at(measured)]
    flat = level(true) - np.cross(np.append(toward, 0), np.column_stack([at(true), 0*level(true)]))[:, 2]
    assert np.corrcoef(flat[near], level(measured))[0, 1] > .9


@pytest.mark.parametrize('coarser', [.85, 1.1, 1.2])
def test_pixels_of_other_sizes_make_no_difference(coarser, crystal, recipe, card, monkeypatch):
    """Noise, and with it the misfit, is that of the recorded pixels."""
    monkeypatch.setattr(refine, 'TILT_GRID', ())
    (_, heights, m), (scene, _) = crystal, sample(recipe, 0)
    size, n = recipe.sampling*coarser, 2*round(recipe.out_gpts/coarser/2)
    size = recipe.sampling*recipe.out_gpts/n
    image = expose(intensity(recipe_waves(recipe, [scene]), m, size, n), m, size, torch_rng(0, 'refine'))[0].numpy()
    columns, fit = refined_columns(Micrograph(image, size, 'crystal'), Network(Oracle(heights), card))
    assert .85 < fit.simulated['misfit'] < 1.2 and right_heights(columns, true_columns(heights, card.sampling)) > .85


def test_no_height_is_counted_twice():
    """At the fewest and the most atoms present is no atom less, no atom more."""
    guess = Guess(np.array([1, refine.MAX_ATOMS, 5]), np.zeros(0, bool))
    prior = refine.log_prior(np.full((3, 11), 1/11), (1, refine.MAX_ATOMS))
    log_p = np.stack([refine._look_up(prior[1], guess.heights + d) for d in (-1, 0, 1)])
    p = posterior([(0., guess, log_p)])
    assert np.allclose(p.sum(1), 1) and np.allclose([p[0, 0], p[0, 1], p[1, -2], p[1, -1]], .5) and np.allclose(p[2, 3:6], 1/3)


def test_what_a_network_says_of_a_crystal_that_it_reads_too_low():
    p = np.full((9, 11), .02); p[:, 4] = .8  # five atoms everywhere
    prior = refine.log_prior(p, (3, 10))
    assert prior.shape == (3, 9, refine.MAX_ATOMS)
    total = lambda h: np.exp(refine._log_prior_of(prior, np.full(9, h)))
    assert (total(6).argmax(), total(5).argmax(), total(4).argmax()) == (0, 1, 2)
    assert total(6).sum() == pytest.approx(total(5).sum()*refine.OFFSET_PROBABILITY/(1 - 2*refine.OFFSET_PROBABILITY), rel=1e-3)
    assert total(6).sum() > 100*total(7).sum()
    assert (prior[1, :, 11] == prior[1, :, 9] - refine.UNTRAINED_PENALTY).all()


@pytest.fixture(scope='module')
def leaning():
    """A crystal that is tilted by two degrees: image, heights, recipe, what it is turned about times the angle."""
    recipe = load_recipe(ROOT/'data/recipes/ceria_heights.yaml', seed=5, size_nm=2.6, heights=[8, 8], vacancies=0, adatoms=0, mtf=None, defocus_nm=4,
                         focal_spread_nm=4, tilt_deg=2)
    image, heights, _ = seen(recipe, 3, dose=3000.)
    scene, _ = sample(recipe, 3)
    column = scene.positions[scene.arrays['column'] == 0]
    x, y, z = column[column[:, 2].argmax()] - column[column[:, 2].argmin()]
    return image, heights, recipe, np.array([-y, x])/z


def test_heights_that_are_all_wrong_by_one_are_mended(crystal, card, tmp_path):
    image, heights, _ = crystal
    network, m = Network(Oracle(np.where(heights > 0, heights + 1, 0)), card), Micrograph(image, card.sampling, 'crystal')
    text = write_heights(m, network, tmp_path/'out', read=refined_columns)
    table, true = pd.read_csv(tmp_path/'out/columns.csv'), true_columns(heights, card.sampling)
    answers, found = refined_answers(image, heights, network)
    assert (answers.network == answers.true + 1).all() and (answers.refined == answers.true).mean() > .85
    assert sorted(table.height) == sorted(answers.refined) and len(true) == len(table)
    assert np.allclose(table[[f'p_{k}' for k in range(1, 17)]].sum(1), 1, atol=1e-3)
    made = read_json(tmp_path/'out/run.json')['simulated']
    assert abs(made['defocus_nm'] - 4) < .5 and made['misfit'] < 1.2 and made['tilt_deg'] < .5
    assert 'comparison with simulated images' in text and 'not to be relied on' not in text
    images = pd.DataFrame([found | dict(true_defocus=4*NM, true_focal_spread=4*NM)])
    score = refined_score(answers.assign(sample=0), images)
    assert score['network'] == 0 and score['network_within_one'] == 1 and score['accuracy'] > .85 and score['defocus_error_nm'] < .5


def test_columns_thicker_than_any_that_the_network_knows_are_read(card, monkeypatch):
    monkeypatch.setattr(refine, 'TILT_GRID', ())
    recipe = load_recipe(ROOT/'data/recipes/ceria_heights.yaml', seed=5, size_nm=2.6, heights=[11, 12], adatoms=0, mtf=None, defocus_nm=4,
                         focal_spread_nm=4)
    image, heights, _ = seen(recipe, dose=5000.)
    answers, _ = refined_answers(image, heights, Network(Oracle(np.minimum(heights, 10)), replace(card, heights=[3, 10])))
    assert (answers.network <= 10).all() and answers.true.max() > 11 and (answers.refined == answers.true).mean() > .85


def test_an_image_that_no_guess_explains_is_said_to_be_such(recipe, card, tmp_path, monkeypatch):
    monkeypatch.setattr(refine, 'TILT_GRID', ())
    image, heights, _ = seen(recipe, dose=1e5, Cs=1.2e6)  # hardly corrected
    text = write_heights(Micrograph(image, card.sampling, 'crystal'), Network(Oracle(heights), card), tmp_path/'out', read=refined_columns)
    assert 'not to be relied on' in text and 'probability' not in text and '%' not in text.split('The lattice constant')[0]
    table, page = pd.read_csv(tmp_path/'out/columns.csv'), (tmp_path/'out/report.html').read_text()
    given = [k for k in table if k.startswith('p_') or k in ('confidence', 'mean', 'sd')]
    assert len(given) > 3 and table[given].isna().all().all() and table.height.notna().all() and '<th>confidence</th>' not in page


def test_what_cannot_be_refined_is_refused(crystal, card, monkeypatch):
    image, heights, _ = crystal
    m, network = Micrograph(image, card.sampling, 'crystal'), Network(Oracle(heights), card)
    with pytest.raises(UserError, match='says nothing of its microscope'):
        refined_columns(m, network.with_card(optics=None))
    monkeypatch.setattr(refine, 'MAX_PIXELS', 40)
    with pytest.raises(UserError, match='cut out at most'):
        refined_columns(m, network)
    nothing, found = refined_answers(image, heights, Network(Oracle(0*heights), card))
    assert found == dict(unread=True) and (nothing.refined == 0).all() and nothing.refined_confidence.isna().all()
    score = refined_score(nothing.assign(sample=0), pd.DataFrame([found | dict(true_defocus=0., true_focal_spread=0.)]))
    assert score['accuracy'] == 0 and score['unread'] == 1 and score['misfit'] is None and score['calibration_error'] is None
    ones = pd.DataFrame(dict(true=[1, 1, 2], network=[0, 1, 1], refined=0, refined_confidence=np.nan, sample=0))
    score = refined_score(ones, pd.DataFrame([found | dict(true_defocus=0., true_focal_spread=0.)]))
    assert score['within_one'] == 0 and score['network_within_one'] == pytest.approx(2/3)


def test_the_command_refines(crystal, card, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refine, 'TILT_GRID', ())
    tifffile.imwrite(tmp_path/'ceria.tif', crystal[0].astype(np.uint16))
    size = str(card.sampling/NM)
    assert main(['heights', str(tmp_path/'ceria.tif'), '--pixel-size', size, '--refine', '--out', str(tmp_path/'out')]) == 0
    assert 'comparison with simulated images' in capsys.readouterr().out
    assert abs(read_json(tmp_path/'out/run.json')['simulated']['defocus_nm'] - 4) < 1


def test_columns_beside_the_lattice_keep_their_heights(crystal, card, monkeypatch):
    monkeypatch.setattr(refine, 'TILT_GRID', ())
    image, heights, _ = crystal
    true = true_columns(heights, card.sampling)
    fit = fit_lattice(true[['x', 'y']])
    off = fit.off.copy(); off[3] = 2.  # as if it lay elsewhere
    table = true.assign(height=9, confidence=.2, mean=9., sd=1., **{f'p_{k}': 1/11 for k in range(1, 12)})
    new, *_ = refined(image, table, replace(fit, off=off), card)
    assert new.height[3] == 9 and new.confidence[3] == .2 and new.p_16[3] == 0 and (np.delete(new.height, 3) != 9).all()


def test_a_crystals_other_columns_stand_where_the_lattice_has_them(crystal, card):
    true = true_columns(crystal[1], card.sampling)
    fit = fit_lattice(true[['x', 'y']])
    inner, outer, other = column_sites(fit), column_sites(fit, edge=True), column_sites(fit, swapped=True)
    assert not inner.edge.any() and outer.edge.any() and (outer.symbol[outer.edge] == 'O').all() and len(outer.xy) == len(inner.xy) + outer.edge.sum()
    assert np.allclose(abs(inner.depth - other.depth), inner.spacing/2) and (inner.neighbours == other.neighbours).all()
    none, some = np.zeros(outer.edge.sum(), bool), np.arange(outer.edge.sum()) == 1
    h = true.height.to_numpy()
    bare = len(build_atoms(outer, h, none))
    assert bare == len(build_atoms(inner, h)) == len(build_model(true, fit)) < len(build_atoms(outer, h, some)) < len(build_atoms(outer, h))


@pytest.mark.parametrize('material, recipe', [('CeO2', 'ceria_heights'), ('Au', 'gold_heights')])
def test_the_kept_networks_say_what_microscope_they_know(material, recipe):
    card = Network.load(ROOT/f'data/models/heights_{material}.safetensors').card
    before = {} if 'mtf' in card.optics else {'mtf': None}  # older cards are of a perfect detector
    known = optics(load_recipe(ROOT/f'data/recipes/{recipe}.yaml', **before))
    assert {'mtf': [1, 1], **card.optics} == {k: list(v) for k, v in known.items()}


NOT_YET = pytest.mark.xfail(strict=True, reason='not reached in every draw, see figures/heights_refined')


@pytest.mark.parametrize('test, column, goal', [
    ('dose 10000', 'accuracy', .99), ('dose 1000', 'within_one', .99), pytest.param('dose 1000', 'accuracy', .94, marks=NOT_YET),
    pytest.param('dose 125', 'accuracy', .85, marks=NOT_YET), pytest.param('tilt 2', 'accuracy', .85, marks=NOT_YET)])
def test_refined_heights_are_as_right_as_was_wanted(test, column, goal):
    t = pd.read_csv(ROOT/'data/results/heights_refine.csv').query('recipe == "ceria_heights"')
    assert t[t.test == test][column].min() >= goal


def test_refining_helps_wherever_there_are_electrons():
    """Of ceria from 500 e⁻/Å² on; below, and of gold, nothing is gained, see figures/heights_refined."""
    t = pd.read_csv(ROOT/'data/results/heights_refine.csv')
    ceria, gold = (t[t.recipe == f'{k}_heights'] for k in ('ceria', 'gold'))
    assert (ceria.accuracy > ceria.network)[ceria.test != 'dose 125'].all()
    for none in (ceria[ceria.test == 'dose 125'], gold): assert abs(none.accuracy.mean() - none.network.mean()) < .03
