"""Recipes: distributions, kinds, truth, and what a paper's image set is."""
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, one_sentence
from nanoshape.core import NM, UserError, rng, torch_rng
from nanoshape.datasets.batches import check_split, dataloaders, fresh_images, frozen_images, save_images, write_card
from nanoshape.simulate.microscope import displacement, images, take
from nanoshape.datasets.recipes import KINDS, SPREADS_TAKE, bounds, draw, fingerprint, load_recipe, make_recipe
from nanoshape.datasets.samples import class_of, conditions, sample, truth_map, waves_of

SMALL = dict(name='small', structures=6, size_nm=2, box_nm=4, gpts=96, out_gpts=64, support_nm=.5)
spreads = st.one_of(
    st.floats(-100, 100).map(lambda a: {'fixed': a}), st.tuples(st.floats(-9, 0), st.floats(0, 9)).map(lambda v: {'uniform': list(v)}),
    st.tuples(st.floats(.1, 1), st.floats(1, 9)).map(lambda v: {'loguniform': list(v)}), st.tuples(st.floats(-9, 9),
            st.floats(0, 3)).map(lambda v: {'normal': list(v)}),
    st.lists(st.floats(-9, 9), min_size=1, max_size=5).map(lambda v: {'choice': v}),
    st.tuples(st.floats(-9, 0), st.floats(0, 9), st.integers(1, 9)).map(lambda v: {'grid': list(v)}))


@given(spreads, st.integers(0, 2**31))
def test_draws_stay_within_bounds(spec, seed):
    low, high = bounds(spec)
    assert all(low - 1e-9 <= draw(spec, rng(seed, k)) <= high + 1e-9 for k in range(5))


def test_a_grid_is_walked_in_turn():
    spec = {'grid': [-4, 4, 5]}
    assert [draw(spec, rng(0), k) for k in range(6)] == [-4, -2, 0, 2, 4, -4]
    assert {draw(spec, rng(0, k)) for k in range(50)} == {-4, -2, 0, 2, 4}
    assert set(SPREADS_TAKE) == {'fixed', 'uniform', 'loguniform', 'normal', 'choice', 'mixture', 'grid'}


@pytest.mark.parametrize('bad, path', [
    (dict(dose={'grid': [1, 2]}), r'dose\.grid'), (dict(dose={'grid': [1, 2, 2.5]}), r'dose\.grid'), (dict(dose={'choice': []}), r'dose\.choice'),
    (dict(dose={'normal': [5, -1]}), r'dose\.normal'), (dict(dose={'uniform': [1, 'x']}), r'dose\.uniform'), (dict(kind='films'),
            'kind'), (dict(weights=[1, 2]), 'weights'),
    (dict(kind='grains', classes=['cube']), 'classes'), (dict(support='paper'), 'support'), (dict(classes=['Wulff']),
            'surface_energies'), (dict(mtf=2), 'mtf'),
    (dict(kind='columns', material='NaCl'), 'NaCl'), (dict(kind='columns', heights=[5, 2]), 'heights'), (dict(orientations=0), 'orientations'),
    (dict(orientations='up'), 'orientations'), (dict(truncation=.6), 'truncation'), (dict(images=0), 'images'), (dict(support_options=3),
            'support_options'), (dict(support_options={'holes': 3}), "no 'holes'"),
    (dict(support_options={'roughness': .3}), 'options.roughness'), (dict(support_options={'vacuum': 2}), 'options.vacuum'),
    (dict(support='network', support_options={'density': 2}), 'density')])
def test_mistakes_are_named_by_their_path(bad, path):
    with pytest.raises(UserError, match=path):
        make_recipe(name='x', **bad)


def test_presets_are_what_they_say():
    r = {p.stem: load_recipe(p) for p in (ROOT/'data/recipes').glob('*.yaml')}
    test = r['shape_study_test']
    assert len(r['shape_study']) == 45000 and len(test)*test.images == 67200 and r['shape_study'].seed != test.seed
    counts = pd.Series([class_of(r['crystallinity_carbon'], s) for s in range(3565)]).value_counts()
    assert all(abs(counts[c] - n) <= 3 for c, n in zip(KINDS['grains'], (1252, 1806, 507)))
    total = sum(len(r[f'crystallinity_{k}']) for k in ('carbon', 'silicon', 'poly'))
    assert total == 1998 + 2630 + 3255 and len(r['crystallinity_pattern']) == 3000
    for p in (ROOT/'data/recipes').glob('*.yaml'):
        assert '#' in p.read_text(), 'a preset says in a comment where it comes from'


@pytest.mark.parametrize('kind', list(KINDS))
def test_every_kind_is_a_pure_function_of_its_number(kind):
    options = dict(SMALL, kind=kind, **({'particles': 2, 'box_nm': 6, 'gpts': 128} if kind == 'field' else {}),
            **({'size_nm': 1.5} if kind == 'field' else {}))
    r = make_recipe(**options)
    waves, labels, maps = waves_of(r, range(4))
    again, relabelled, remapped = waves_of(r, [2])
    assert torch.allclose(waves[2], again[0], atol=1e-6) and {k: v for k, v in labels[2].items() if v == v} == {k: v for k,
            v in relabelled[0].items() if v == v}
    assert maps is None or np.array_equal(maps[2], remapped[0])
    assert waves.shape == (4, r.wave_px, r.wave_px) and torch.isfinite(waves.abs()).all() and waves.abs().std() > 1e-3
    assert {label['class'] for label in labels} <= set(KINDS[kind]) | {'field'}


def test_heights_in_the_map_are_those_of_the_columns():
    from nanoshape.simulate.columns import column_table
    r = make_recipe(**dict(SMALL, kind='columns', support='none', tilt_deg=1))
    atoms, labels = sample(r, 1)
    t, m = column_table(atoms), truth_map(r, atoms)
    ce = t[t['element'] == 58]
    x, y = ((ce[k]/r.sampling).round().astype(int) for k in 'xy')
    assert (m[y, x] == ce['count']).all() and set(np.unique(m)) <= {0, *ce['count']}
    assert np.isclose(np.degrees(labels['tilt']), 1)


@pytest.mark.parametrize('support', ['hard spheres', 'none'])
def test_a_field_may_be_empty(support):
    waves, labels, maps = waves_of(make_recipe(**dict(SMALL, kind='field', particles=0, box_nm=6, gpts=128, support=support)), [0])
    assert labels[0]['particles'] == 0 and maps.max() == 0 and (waves.std() > .01) == (support != 'none')


def test_outlines_in_the_map_cover_the_particles():
    r = make_recipe(**dict(SMALL, kind='field', particles=4, box_nm=8, gpts=192, size_nm=1.8))
    atoms, _ = sample(r, 0)
    m = truth_map(r, atoms)
    assert set(np.unique(m)) == {0, 1, 2, 3, 4}
    for k in range(4):
        x, y = (atoms.positions[atoms.arrays['particle'] == k, :2]/r.sampling).round().astype(int).T % 64
        assert (m[y, x] == k + 1).mean() > .98 and (m == k + 1).sum()*r.sampling**2 < np.pi*9**2*1.5
    assert (atoms.arrays['particle'][atoms.symbols == 'C'] == -1).all()


def test_few_orientations_are_few():
    r = make_recipe(**dict(SMALL, classes=['cube'], structures=40, orientations=3))
    assert len({round(sample(r, i)[1]['angle_100'], 6) for i in range(40)}) == 3


def test_the_ways_of_drawing_orientations_differ():
    looks = {how: [sample(make_recipe(**dict(SMALL, classes=['cube'], structures=4, orientations=how)), i)[1]['angle_100'] for i in range(4)]
             for how in ('random', 'even angle', 'even Euler angles')}
    assert len({tuple(v) for v in looks.values()}) == 3


@pytest.mark.parametrize('path', sorted((ROOT/'data/recipes').glob('*.yaml')), ids=lambda p: p.stem)
def test_no_recipe_asks_for_images_that_wrap_around(path):
    r = load_recipe(path)
    assert displacement(conditions(r, range(min(len(r), 2000))), 1/(2*r.sampling)) <= r.box_nm*NM/2


def test_conditions_follow_the_recipe():
    r = make_recipe(**SMALL, astigmatism_x_nm={'uniform': [-3, 3]}, astigmatism_y_nm=1, coma_um=.5, C5_mm=5, gradient=.1, mtf=.5,
            dose={'choice': [100, 200]})
    m = conditions(r, range(50))
    x, y = m.C12*torch.cos(2*m.phi12)/NM, m.C12*torch.sin(2*m.phi12)/NM
    assert x.min() >= -3 and x.max() <= 3 and x.std() > 1 and torch.allclose(y, torch.ones(50), atol=1e-4)
    assert torch.allclose(m.C21, torch.full((50,), 5e3)) and torch.allclose(m.C50, torch.full((50,), 5e7)) and set(m.dose.tolist()) == {100,
            200} and (m.mtf == .5).all()
    assert torch.allclose(torch.hypot(m.gradient_x, m.gradient_y), torch.full((50,), .1))


def test_a_papers_image_set(tiny, tmp_path):
    """n foci × m orientations: every wave at every focus, each image its own noise, always the same."""
    from dataclasses import replace
    from nanoshape.datasets.store import simulate
    r = replace(tiny, structures=5, images=3, defocus_nm={'grid': [-4, 4, 3]})
    store = simulate(r, tmp_path/'s', workers=0)
    sets = [frozen_images(store, range(5), k) for k in range(3)]
    assert [conditions(r, range(5), image=k).defocus.unique().item()/NM for k in range(3)] == pytest.approx([-4, 0, 4])
    assert not torch.equal(sets[0], sets[1]) and torch.equal(sets[2], frozen_images(store, range(5), 2))
    folder = save_images(store, range(5), tmp_path/'png')
    table = pd.read_csv(folder/'table.csv')
    assert len(table) == 15 and np.asarray(Image.open(folder/table.file[7])).shape == (64, 64) and table.C10.nunique() == 3
    tiff = save_images(store, [2], tmp_path/'tiff', 'tiff')
    import tifffile
    assert np.array_equal(tifffile.imread(tiff/'000002_1.tiff'), sets[1][2].numpy())


def test_exports_do_not_touch_other_folders(tiny_store, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.txt').write_text('x')
    with pytest.raises(UserError):
        save_images(tiny_store, [0], tmp_path/'mine')
    with pytest.raises(UserError, match='bmp'):
        save_images(tiny_store, [0], tmp_path/'new', 'bmp')
    assert [p.name for p in tmp_path.rglob('*')] == ['mine', 'thesis.txt']


def test_a_card_stands_alone(tiny_store, tmp_path):
    page = write_card(tiny_store, tmp_path/'card').read_text()
    assert 'http' not in page and 'data:image/png;base64' in page and 'cuboctahedron' in page and str(len(tiny_store)) in page
    assert (tmp_path/'card/card.png').stat().st_size > 10000


def test_a_leak_is_an_error(tiny_store):
    labels = pd.DataFrame({'structure': [0, 0, 1, 1, 2, 2]})
    check_split(labels, [0, 1], [2, 3], [4, 5])
    with pytest.raises(UserError, match='two sides'):
        check_split(labels, [0, 2], [3, 4])
    with pytest.raises(UserError, match='two sides'):
        dataloaders(tiny_store, [0, 1], [1, 2])


def test_fresh_images_are_shifted(tiny, tiny_store):
    from dataclasses import replace
    waves = tiny_store.waves(range(8))
    still, moved = (fresh_images(waves, range(8), replace(tiny, shift_nm=s, dose=1e9, defocus_nm=0, Cs_um=0), 1) for s in (0., .5))
    def spectrum(x): return torch.fft.fft2(x).abs().sort(-1)[0].sum()
    assert not torch.equal(still, moved) and torch.allclose(spectrum(still), spectrum(moved), rtol=.02)


def test_show_batch_names_what_it_shows(tiny_store):
    import matplotlib.pyplot as plt
    axs = dataloaders(tiny_store, range(20), range(20, 30), bs=10, device=torch.device('cpu')).train.show_batch(5)
    assert len(axs.flat) == 5 and all('nm' in ax.get_title() for ax in axs.flat)
    plt.close('all')


def test_a_film_may_be_rough_and_end_somewhere():
    plain = dict(name='x', kind='field', size_nm=2, particles=3, box_nm=12, gpts=256, out_gpts=128, support_nm=2, structures=12, seed=5)
    carbon = lambda **o: [int((sample(make_recipe(**plain, support_options=o), i)[0].numbers == 6).sum()) for i in range(12)]
    whole, some = carbon(), carbon(vacuum={'choice': [0, .5]})
    share = np.array(some)/whole
    assert set(np.round(share, 1)) <= {.4, .5, .6, 1.} and .2 < (share < .9).mean() < .9
    assert all(.4 < b/a < .95 for a, b in zip(whole, carbon(roughness=.1)))


def test_each_image_has_its_own_detector_if_the_recipe_says_so():
    r = make_recipe(**SMALL, dose=100., mtf={'uniform': [.1, .9]})
    m, again = conditions(r, range(6)), conditions(r, [4, 2])
    assert len(set(m.mtf.tolist())) == 6 and torch.equal(again.mtf, m.mtf[[4, 2]]) and .1 <= m.mtf.min() <= m.mtf.max() <= .9
    perfect = conditions(make_recipe(**SMALL, dose=100.), range(6))
    assert perfect.mtf is None and all(torch.equal(perfect.values[k], m.values[k]) for k in perfect.values)
    flat = torch.ones(6, 64, 64, dtype=torch.complex64)
    seen, alone = (images(flat[:len(c.mtf)], c, r.sampling, torch_rng(0)) for c in (m, take(m, slice(0, 1))))
    assert torch.allclose(seen.var((1, 2)).argsort(), m.mtf.argsort()) and torch.allclose(seen[0], alone[0], rtol=1e-4)
    with pytest.raises(UserError, match='mtf'): make_recipe(**SMALL, mtf={'uniform': [0, .5]})


def test_facets_are_for_crystals_and_change_no_older_data_set():
    plain = make_recipe(name='x', kind='grains', size_nm=2.5, support_nm=0, box_nm=4)
    cut = make_recipe(name='x', kind='grains', size_nm=2.5, support_nm=0, box_nm=4, facets=1.)
    a, b = ([sample(r, i)[1] for i in range(3)] for r in (plain, cut))
    assert [x['class'] for x in a] == ['amorphous', 'monocrystalline', 'polycrystalline']
    assert a[0]['n_atoms'] == b[0]['n_atoms'] and all(x['n_atoms'] > y['n_atoms'] for x, y in zip(a[1:], b[1:]))
    assert fingerprint(plain) == fingerprint(make_recipe(name='x', kind='grains', size_nm=2.5, support_nm=0, box_nm=4, facets=0.)) != fingerprint(cut)
    with pytest.raises(UserError, match='facets'):
        make_recipe(name='x', kind='grains', facets=1.5)


def test_surface_energies_as_yaml_writes_them(tmp_path):
    (tmp_path/'wulff.yaml').write_text('name: w\nclasses: [Wulff]\nsize_nm: 3\nbox_nm: 5\ngpts: 128\nout_gpts: 64\nsupport: none\nsupport_nm: 0\n'
                                       'surface_energies: {111: 1.0, 001: 1.15}\n')
    r = load_recipe(tmp_path/'wulff.yaml')
    assert r.surface_energies == {'111': 1.0, '001': 1.15} and len(sample(r, 0)[0])
    for wrong in ({'11': 1.}, {'111': -1.}, {'abc': 1.}, {111: 'low'}):
        with pytest.raises(UserError, match='surface_energies'): load_recipe(tmp_path/'wulff.yaml', surface_energies=wrong)


@pytest.mark.parametrize('text, said', [
    ('name: x\nstructures: 1000000000', 'structures must not exceed'), ('name: x\nseed: -1', 'seed must be 0 or more'),
    ('name: x\ngpts: 100000', 'gpts must not exceed'), ('name: x\nshift_nm: -1', 'shift_nm must be 0 or more'),
    ('name: 2020-99-99', 'readable YAML'), ('name: ' + '['*3000 + ']'*3000, 'readable YAML'), ('name: x\n#' + 'a'*2**20, 'very large'),
    ('name: x\ndose: 1e3', 'dose must be a number')])
def test_odd_recipes_get_a_sentence_at_once(text, said, tmp_path):
    (tmp_path/'r.yaml').write_text(text)
    with pytest.raises(UserError) as e: load_recipe(tmp_path/'r.yaml')
    assert said in one_sentence(e)


def test_what_is_no_file_is_no_recipe():
    for path in ('/dev/zero', str(ROOT)):
        with pytest.raises(UserError, match='no YAML file'): load_recipe(path)
