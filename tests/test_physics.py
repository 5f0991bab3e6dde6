"""Multislice and microscope against independent references."""
import json

import numpy as np
import pytest
import torch
from ase import Atoms

from nanoshape.core import UserError, torch_rng
from nanoshape.microscope import Microscope, expose, images, intensity, take, transfer
from nanoshape.multislice import exit_waves, fourier_crop, wavelength


def relative(a, b):
    return float(np.linalg.norm(a - b)/np.linalg.norm(b))


def test_wavelengths():
    """Published relativistic wavelengths in Å."""
    for energy, expected in ((60e3, .0486604), (80e3, .0417572), (200e3, .0250793), (300e3, .0196875)):
        assert abs(wavelength(energy)/expected - 1) < 1e-5


@pytest.mark.parametrize('case', ['gold_in_vacuum', 'gold_on_carbon'])
def test_images_agree_with_dr_probe(reference, case):
    """Its exit wave through our transfer gives its quasi-coherent image (model 6). The sign of focus matters: the reverse must fail."""
    with np.load(reference/f'{case}.npz', allow_pickle=False) as f:
        wave = torch.from_numpy(f['exit_wave'].T.copy())
        sampling = float(f['cell'][0])/wave.shape[-1]
        want, params = f['images_model6'], json.loads(str(f['params']))
    c1 = first_list(params, len(want))
    for k, focus in enumerate(c1):
        m = Microscope(defocus=-focus*10, Cs=-1e5, focal_spread=40., angular_spread=2e-4)
        assert relative(intensity(wave, m, sampling).numpy(), want[k].T) < 2e-5
        if abs(focus) > 1:
            m.defocus = focus*10
            assert relative(intensity(wave, m, sampling).numpy(), want[k].T) > 1e-2


def first_list(params, n):
    """The foci (C1 in nm) among the reference's parameters."""
    found = [v for k, v in params.items() if 'c1' in k.lower() and isinstance(v, list) and len(v) == n]
    assert found, f'no list of {n} foci in {list(params)}'
    return found[0]


def test_transfer_agrees_with_abtem():
    """abTEM's CTF and envelopes, on its own sampling of reciprocal space."""
    import abtem
    ours = transfer((128, 128), .2, Microscope(defocus=80., Cs=-1.2e5, focal_spread=40., angular_spread=3e-4))
    ctf = abtem.CTF(energy=300e3, defocus=80., Cs=-1.2e5, focal_spread=40., angular_spread=.3, extent=25.6, gpts=128)
    theirs = ctf._evaluate_kernel() if hasattr(ctf, '_evaluate_kernel') else None
    if theirs is None:
        pytest.skip('this abTEM offers no kernel on a grid')
    assert relative(ours.numpy(), np.asarray(theirs).T.squeeze()) < 1e-3


def test_the_phase_of_one_light_atom_is_its_scattering_factor():
    """Weak-phase limit: the exit wave's spectrum is i λ γ f_e(g) per area (Kirkland 2020, ch. 5), here to abTEM's grid error."""
    from abtem.parametrizations import LobatoParametrization
    width, n = 20., 256
    w = exit_waves(Atoms('C', [(width/2, width/2, 1)], cell=(width, width, 2)), n)
    g = np.fft.fftfreq(n, width/n)[:13]  # up to 0.6 1/Å
    spectrum = np.fft.fft2(np.fft.ifftshift(w.numpy() - 1))[0, :13]/n**2*width**2
    f = LobatoParametrization().scattering_factor('C')(g**2)
    gamma = 1 + 300e3/510998.95
    got = spectrum.imag/(wavelength(300e3)*gamma)
    assert relative(got[1:], f[1:]) < .05


def test_a_list_gives_what_its_members_give_and_cropping_keeps_the_field():
    cells = [Atoms('Au2', [(8, 9, 1), (12, 7, 3)], cell=(20, 20, 5)), Atoms('C', [(3, 4, 1)], cell=(20, 20, 3))]
    both = exit_waves(cells, 64, out_gpts=32)
    assert both.shape == (2, 32, 32) and both.dtype == torch.complex64
    for one, w in zip(cells, both):
        assert torch.equal(exit_waves(one, 64, out_gpts=32), w)
        assert torch.allclose(exit_waves(one, 64).mean(), w.mean(), atol=1e-6)


@pytest.mark.parametrize('n, m', [(8, 5), (9, 4), (8, 12), (7, 10)])
def test_fourier_crop_is_exact_below_both_nyquists(n, m):
    k = (min(n, m) - 1)//2
    wave = lambda p: torch.exp(2j*torch.pi*(k*torch.arange(p)[:, None] - torch.arange(p)[None])/p).to(torch.complex128)
    assert torch.allclose(fourier_crop(wave(n), m), wave(m), atol=1e-12)


def test_poisson_counts_have_the_dose_as_mean_and_variance():
    image = torch.full((400, 400), .7)
    c = expose(image, 50., .4, torch_rng(0))
    expected = .7*50*.4**2
    assert abs(c.mean() - expected) < 5*(expected/c.numel())**.5 and abs(c.var()/expected - 1) < .03
    assert torch.equal(c, expose(image, 50., .4, torch_rng(0)))


def test_each_coherence_envelope_changes_images_and_a_batch_equals_one_by_one():
    wave = exit_waves(Atoms('Au', [(10, 10, 1)], cell=(20, 20, 2)), 128)
    ref = Microscope(defocus=100., Cs=1e5)
    for change in (dict(focal_spread=50.), dict(angular_spread=1e-3), dict(vibration=1.)):
        assert relative(intensity(wave, Microscope(**{**ref.__dict__, **change}), .15).numpy(), intensity(wave, ref, .15).numpy()) > 1e-4
    batch = Microscope(defocus=torch.tensor([0., 50.]), Cs=torch.tensor([1e5, -1e5]), focal_spread=40., vibration=torch.tensor([0., .5]), dose=None)
    both = images(wave, batch, .15)
    for k in range(2):
        assert torch.allclose(both[k], images(wave, take(batch, k), .15), atol=1e-6)


@pytest.mark.parametrize('atoms, how', [
    (Atoms('Au', [(1, 1, 1)], cell=(10, 10, 2)), dict(gpts=10)), (Atoms('Au', [(np.nan, 1, 1)], cell=(10, 10, 2)), {}),
    (Atoms('Au', [(1, 11, 1)], cell=(10, 10, 2)), {}), (Atoms('Au', [(1, 1, 1)], cell=(10, 12, 2)), {}), (Atoms('Au', [(1, 1, 1)]), {}),
    (Atoms('Au', [(1, 1, 1)], cell=[(10, 0, 0), (3, 10, 0), (0, 0, 2)]), {}), (Atoms('Au', [(1, 1, 1)], cell=(10, 10, 2)), dict(energy=300)),
    (Atoms('Au', [(1, 1, 1)], cell=(10, 10, 2)), dict(slice_thickness=0))])
def test_what_makes_no_sense_is_refused(atoms, how):
    with pytest.raises(UserError):
        exit_waves(atoms, **{'gpts': 32, **how})
