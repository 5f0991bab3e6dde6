"""Files off microscopes: what is read from them, and what is refused."""
import json
import os
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import tifffile
from conftest import one_sentence, shared
from dm import write_dm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ser import write_ser

from nanoshape.core import UserError
from nanoshape.micrographs import reading
from nanoshape.micrographs.reading import (MAX_PIXELS, Micrograph, burnt_in, check_field, file_header, frame_count,
                                           frames, header_sampling, read, resampled)

# ---- formats

@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.tif', 'rgba.png', 'la.png', '16bit.tif', 'float.tif', 'upper.TIF'])
def test_grey_images_in_all_their_forms(tmp_path, grey, name):
    path = tmp_path/name
    if name == 'rgba.png':
        Image.fromarray(np.dstack([grey]*3 + [np.full_like(grey, 255)])).save(path)
    elif name == 'la.png':
        Image.fromarray(grey).convert('LA').save(path)
    elif name == '16bit.tif':
        tifffile.imwrite(path, grey.astype(np.uint16)*100)
    elif name == 'float.tif':
        tifffile.imwrite(path, grey.astype(np.float32)/255)
    elif name.endswith(('tif', 'TIF')):
        tifffile.imwrite(path, grey)
    else:
        Image.fromarray(grey).save(path, quality=95)
    m = read(path, sampling=.6)
    assert m.image.shape == grey.shape and m.image.dtype == np.float32 and m.sampling == .6
    assert np.corrcoef(m.image.ravel(), grey.ravel())[0, 1] > (.95 if name == 'a.jpg' else .9999), 'the axes or the values have changed'


def test_the_files_own_pixel_size_is_used_and_can_be_overruled(tmp_path, grey):
    tifffile.imwrite(tmp_path/'a.tif', grey, imagej=True, resolution=(1/.06, 1/.06), metadata={'unit': 'nm'})
    assert abs(read(tmp_path/'a.tif').sampling - .6) < 1e-4  # TIFF keeps it as a fraction
    assert read(tmp_path/'a.tif', sampling=.5).sampling == .5


def test_a_tiffs_own_resolution_is_a_pixel_size_only_if_it_cannot_be_a_printers(tmp_path, grey):
    for name, unit, per in (('cm', 'CENTIMETER', 1e8/.586), ('inch', 'INCH', 2.54e8/.586), ('dpi', 'INCH', 300), ('none', 'INCH', 0)):
        tifffile.imwrite(tmp_path/f'{name}.tif', grey, resolution=(per, per), resolutionunit=unit)
    assert all(abs(read(tmp_path/f'{n}.tif').sampling - .586) < 1e-4 for n in ('cm', 'inch'))
    for n in ('dpi', 'none'):
        with pytest.raises(UserError, match='pixel size'): read(tmp_path/f'{n}.tif')


def test_emd_is_read(tmp_path, grey):
    from rsciio.emd import file_writer
    axis = dict(units='nm', scale=.06, offset=0., navigate=False)
    axes = [dict(axis, name=n, size=s, index_in_array=i) for i, (n, s) in enumerate(zip('yx', grey.shape))]
    metadata = {'General': {'title': 'x'}, 'Signal': {}}
    file_writer(str(tmp_path/'a.emd'), dict(data=grey.astype(np.float32), axes=axes, metadata=metadata, original_metadata={}))
    m = read(tmp_path/'a.emd')
    assert abs(m.sampling - .6) < 1e-6 and np.allclose(m.image, grey)


def test_one_frame_of_a_stack(tmp_path, grey):
    stack = np.stack([grey, 255 - grey, grey//2])
    tifffile.imwrite(tmp_path/'s.tif', stack, imagej=True, resolution=(1/.06, 1/.06), metadata={'unit': 'nm', 'axes': 'TYX'})
    with pytest.raises(UserError, match='stack of 3') as e:
        read(tmp_path/'s.tif')
    assert '--frame' in one_sentence(e)
    m = read(tmp_path/'s.tif', frame=1)
    assert np.array_equal(m.image, 255 - grey) and '1' in m.name
    with pytest.raises(UserError, match='no frame 3'):
        read(tmp_path/'s.tif', frame=3)


# ---- what is refused

def write(path, image):
    Image.fromarray(image).save(path) if path.suffix == '.png' else tifffile.imwrite(path, image)
    return path


@pytest.mark.parametrize('make, how, says', [
    (lambda d, g: d/'none.png', {}, 'no file'),
    (lambda d, g: d, {}, 'no file'),
    (lambda d, g: (d/'a.txt').write_text('hello') and d/'a.txt', {}, 'known kind'),
    (lambda d, g: (d/'a.npy').write_bytes(b'\x93NUMPY') and d/'a.npy', {}, 'known kind'),
    (lambda d, g: (d/'a.png').write_text('hello') and d/'a.png', {}, 'damaged'),
    (lambda d, g: (d/'a.dm4').write_bytes(b'\0'*100) and d/'a.dm4', {}, 'damaged'),
    (lambda d, g: (d/'a.dm3').write_bytes(b'') or d/'a.dm3', {}, 'damaged'),
    (lambda d, g: (d/'a.mrc').write_bytes(b'x'*2000) and d/'a.mrc', {}, 'cannot hold'),
    (lambda d, g: (d/'a.ser').write_bytes(b'x'*2000) and d/'a.ser', {}, 'damaged'),
    (lambda d, g: (d/'a.emd').write_bytes(b'x'*2000) and d/'a.emd', {}, 'damaged'),
    (lambda d, g: write(d/'a.png', g), dict(sampling=None), '--pixel-size'),
    (lambda d, g: write(d/'a.tif', g), dict(sampling=None), '--pixel-size'),
    (lambda d, g: write(d/'a.png', g), dict(sampling=1300.), 'does not show'),
    (lambda d, g: write(d/'a.png', g), dict(sampling=0.), 'does not show'),
    (lambda d, g: write(d/'a.png', g), dict(sampling=-1.), 'does not show'),
    (lambda d, g: write(d/'a.png', g), dict(sampling=float('nan')), 'does not show'),
    (lambda d, g: write(d/'a.png', np.dstack([g, g, g//2])), {}, 'colour'),
    (lambda d, g: write(d/'a.png', np.dstack([g, g, g//2, g*0 + 255])), {}, 'colour'),
    (lambda d, g: write(d/'a.png', np.dstack([g, g, g, g])), {}, 'transparent'),
    (lambda d, g: write(d/'a.tif', np.dstack([g, g, g//2])), {}, 'colour'),
    (lambda d, g: write(d/'a.tif', np.where(g > 150, np.nan, g).astype(np.float32)), {}, 'not numbers'),
    (lambda d, g: write(d/'a.tif', np.where(g > 150, np.inf, g).astype(np.float32)), {}, 'not numbers'),
    (lambda d, g: write(d/'a.tif', np.zeros((200, 200), np.float32)), {}, 'same everywhere'),
    (lambda d, g: write(d/'a.tif', np.zeros((2, 3, 60, 60), np.float32) + np.arange(60)), {}, 'dimensions|stack'),
    (lambda d, g: write(d/'a.tif', (g + 1j*g).astype(np.complex64)), {}, 'real-valued'),
])
def test_bad_input_is_refused_in_one_sentence(tmp_path, grey, make, how, says):
    path = make(tmp_path, grey)
    with pytest.raises(UserError, match=says) as e:
        read(path, **{'sampling': .6, **how})
    one_sentence(e)


def test_a_truncated_file_is_refused(tmp_path, grey):
    for name in ('a.png', 'a.tif'):
        data = write(tmp_path/name, grey).read_bytes()
        (tmp_path/name).write_bytes(data[:len(data)//2])
        with pytest.raises(UserError) as e:
            read(tmp_path/name, sampling=.6)
        one_sentence(e)


def test_a_declared_size_is_looked_at_before_memory_is_taken(tmp_path):
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0))
    (tmp_path/'huge.png').write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IEND', b''))
    with pytest.raises(UserError) as e:
        read(tmp_path/'huge.png', sampling=.6)
    one_sentence(e)


def test_axes_in_the_units_that_microscopes_use():
    from nanoshape.micrographs.reading import _scales
    axis = lambda name, scale, units: dict(name=name, scale=scale, units=units, navigate=False)
    with pytest.raises(UserError, match='diffraction'):
        _scales([axis('y', .1, '1/nm'), axis('x', .1, '1/nm')])
    assert _scales([axis('y', 1., 'px'), axis('x', 1., '')]) is None and _scales([axis('y', 0., 'nm'), axis('x', 0., 'nm')]) is None
    assert np.allclose(_scales([axis('y', 50., 'pm'), axis('x', 50., 'pm')]), .5)
    assert np.allclose(_scales([axis('y', 5e-5, 'µm'), axis('x', 1e-4, 'um')]), [.5, 1.])


def imagej(path, image, unit, per_pixel):
    """A TIFF as ImageJ writes it, its unit as bytes."""
    tifffile.imwrite(path, image, imagej=True, resolution=(1/per_pixel, 1/per_pixel), metadata={'unit': 'UNITUNITUNIT'})
    path.write_bytes(path.read_bytes().replace(b'unit=UNITUNITUNIT', b'unit=' + unit.ljust(12)))
    return path


@pytest.mark.parametrize('unit, per_pixel', [
    (b'\\u00B5m', 5.86e-5), (b'\\u00C5', .586), (b'A', .586), ('µm'.encode('latin-1'), 5.86e-5), ('µm'.encode(), 5.86e-5),
    ('μm'.encode('shift_jis'), 5.86e-5), (b'Angstrom', .586), (b'micron', 5.86e-5)])
def test_units_as_imagej_writes_them(tmp_path, grey, unit, per_pixel):
    assert header_sampling(imagej(tmp_path/'a.tif', grey, unit, per_pixel)) == pytest.approx(.586, rel=1e-3)


@pytest.mark.parametrize('unit, per_pixel', [(b'inch', 1/96), (b'inch', 1/300), (b'px', 1.), (b'pixel', 1.), (b'cm', .01), (b'blorps', 1.)])
def test_a_screens_and_a_printers_pixels_are_no_calibration(tmp_path, grey, unit, per_pixel):
    path = imagej(tmp_path/'a.tif', grey, unit, per_pixel)
    assert header_sampling(path) is None
    with pytest.raises(UserError, match='does not say its pixel size'): read(path)


def test_the_pixel_size_of_an_ome_tiff(tmp_path, grey):
    for name, size, unit in (('um', 5.86e-5, 'µm'), ('nm', .0586, 'nm'), ('none', 5.86e-5, None)):
        metadata = dict(PhysicalSizeX=size, PhysicalSizeY=size) | (dict(PhysicalSizeXUnit=unit, PhysicalSizeYUnit=unit) if unit else {})
        tifffile.imwrite(tmp_path/f'{name}.ome.tif', grey, metadata=metadata)
        assert header_sampling(tmp_path/f'{name}.ome.tif') == pytest.approx(.586), name


def test_angstroms_of_a_dm_file_are_no_amperes(tmp_path, grey):
    assert header_sampling(write_dm(tmp_path/'a.dm3', grey, .586, 'A')) == pytest.approx(.586)


def test_a_voxel_of_one_angstrom_is_not_believed(tmp_path, grey):
    path = write_mrc(tmp_path/'a.mrc', grey.astype(np.float32), 1.)
    assert header_sampling(path) is None and header_sampling(write_mrc(tmp_path/'b.mrc', grey.astype(np.float32), 1.01)) == pytest.approx(1.01)
    with pytest.raises(UserError, match='1 Å.*--pixel-size') as e: read(path)
    one_sentence(e)
    assert read(path, sampling=1.).sampling == 1.


@pytest.mark.parametrize('name, right', [
    ('inputs/A.dm3', .586), ('inputs/ij_A.tif', .586), ('inputs/ij_angstrom_escaped.tif', .586), ('inputs/ij_um_escaped.tif', .586),
    ('inputs/ome_um.ome.tif', .586), ('inputs/ij_oblong.tif', .586), ('inputs/ij_inch96.tif', None), ('inputs/voxel_unset_1A.mrc', None),
    ('real/files/berkeley_n_m.emd', .1225), ('real/files/micrometres_shift_jis.tif', 29.9)])
def test_pixel_sizes_of_real_programs(name, right):
    found = header_sampling(shared(name.rpartition('/')[0])/name.rpartition('/')[2])
    assert found is None if right is None else found == pytest.approx(right, rel=2e-3)


def test_a_micrograph_smaller_than_one_field_is_refused(grey):
    with pytest.raises(UserError, match='less than the 10 nm') as e:
        check_field(Micrograph(grey.astype(np.float32), .4, 'small.png'), 100)
    one_sentence(e)


# ---- what microscopes write

@pytest.mark.parametrize('version', [3, 4])
@pytest.mark.parametrize('kind', ['uint8', 'int16', 'uint16', 'int32', 'float32', 'float64'])
def test_dm_files_of_both_versions(tmp_path, grey, version, kind):
    m = read(write_dm(tmp_path/f'a.dm{version}', grey.astype(kind), .06, kilovolts=200, version=version))
    assert np.array_equal(m.image, grey) and abs(m.sampling - .6) < 1e-6 and m.voltage == 200e3 and m.hidden is None and m.notes == ()


def test_intensities_of_a_dm_file_have_an_origin_and_a_scale(tmp_path, grey):
    stored = grey.astype(np.int32)*2 + 100
    m = read(write_dm(tmp_path/'a.dm3', stored, .06, brightness=(100., .5, 'e-')))
    assert np.array_equal(m.image, grey) and m.file['electrons']
    m = read(write_dm(tmp_path/'b.dm3', stored, .06, brightness=(100., .5, '')))
    assert np.array_equal(m.image, grey) and not m.file['electrons']
    for senseless in ((5., 0., ''), (5., -1., ''), (float('nan'), 1., '')):
        assert np.array_equal(read(write_dm(tmp_path/'c.dm3', stored, .06, brightness=senseless)).image, stored)


def test_ceria_is_the_same_in_electrons_wherever_its_origin_is():
    counts = np.load(shared('inputs')/'ceria_truth.npz')['counts'].reshape(128, 128)
    for name in ('ceria_dm_origin0.dm3', 'ceria_dm_origin100.dm3'):
        m = read(shared('inputs')/name)
        assert np.array_equal(m.image, counts) and m.file['electrons'], name


def test_units_and_oblong_pixels_of_a_dm_file(tmp_path, grey):
    assert abs(read(write_dm(tmp_path/'a.dm3', grey, 60., 'pm')).sampling - .6) < 1e-6
    m = read(write_dm(tmp_path/'b.dm3', grey, (.06, .09)))
    assert m.image.shape == (300, 250) and abs(m.sampling - .6) < 1e-6 and 'made square' in m.notes[0]
    assert np.corrcoef(m.image[:, 100], resampled(grey, (.9, .6), .6)[:, 100])[0, 1] > .999
    with pytest.raises(UserError, match='more like lines'):
        read(write_dm(tmp_path/'c.dm3', grey, (.01, .09)))
    with pytest.raises(UserError, match='reciprocal'):
        read(write_dm(tmp_path/'d.dm3', grey, .1, '1/nm'))


@pytest.mark.parametrize('mode', ['STEM', 'STEM NANOPROBE', 'SEM'])
def test_scanned_images_are_refused(tmp_path, grey, mode):
    with pytest.raises(UserError, match='scanned image') as e:
        read(write_dm(tmp_path/'a.dm3', grey, mode=mode))
    one_sentence(e)


def write_mrc(path, a, pixel=.6, mode=None, size=None):
    """An MRC file of one image or a stack; `size` is what the header declares."""
    a = np.atleast_3d(a.T).T
    nx, ny, nz = size or a.shape[::-1]
    mode = {'int8': 0, 'int16': 1, 'float32': 2, 'uint16': 6}[a.dtype.name] if mode is None else mode
    head = struct.pack('<10i', nx, ny, nz, mode, 0, 0, 0, nx, ny, nz) + struct.pack('<6f', nx*pixel, ny*pixel, nz*pixel, 90, 90, 90)
    path.write_bytes((head + struct.pack('<3i', 1, 2, 3)).ljust(208, b'\0') + b'MAP ' + b'DA\0\0' + b'\0'*(1024 - 216) + a.tobytes())
    return path


@pytest.mark.parametrize('kind', ['uint16', 'int32', 'float32'])
def test_ser_files(tmp_path, grey, kind):
    """An image and a movie; a truncated one is an error."""
    frames = np.stack([grey, grey[::-1]]).astype(kind)
    write_ser(tmp_path/'one.ser', frames[:1], .06e-9); write_ser(tmp_path/'two.ser', frames, .06e-9)
    m = read(tmp_path/'one.ser')
    assert m.image.shape == grey.shape and abs(m.sampling - .6) < 1e-6 and np.abs(m.image - grey).max() == 0
    assert frame_count(tmp_path/'two.ser') == 2 and np.abs(read(tmp_path/'two.ser', frame=1).image - grey[::-1]).max() == 0
    whole = (tmp_path/'one.ser').read_bytes()
    for part in (20, 60, len(whole)//2):
        (tmp_path/'cut.ser').write_bytes(whole[:part])
        with pytest.raises(UserError): read(tmp_path/'cut.ser')


@pytest.mark.parametrize('kind', ['int8', 'int16', 'uint16', 'float32'])
def test_mrc_files(tmp_path, grey, kind):
    m = read(write_mrc(tmp_path/'a.mrc', (grey//2).astype(kind)))
    assert sorted(m.image.shape) == sorted(grey.shape) and abs(m.sampling - .6) < 1e-4
    assert {float(m.image.min()), float(m.image.max())} == {float((grey//2).min()), float((grey//2).max())}


@pytest.mark.parametrize('compression', ['lzw', 'zlib', 'packbits', 'jpeg'])
def test_compressed_tiff(tmp_path, grey, compression):
    tifffile.imwrite(tmp_path/'a.tif', grey, compression=compression)
    assert np.abs(read(tmp_path/'a.tif', sampling=.6).image - grey).mean() < (6 if compression == 'jpeg' else 1e-6)


def test_a_negative_is_made_positive(tmp_path, grey):
    tifffile.imwrite(tmp_path/'a.tif', 255 - grey, photometric='miniswhite')
    m = read(tmp_path/'a.tif', sampling=.6)
    assert np.corrcoef(m.image.ravel(), grey.ravel())[0, 1] > .999 and 'inverted' in m.notes[0]
    m = read(write_dm(tmp_path/'b.dm3', 255 - grey), inverted=True)
    assert np.corrcoef(m.image.ravel(), grey.ravel())[0, 1] > .999


def test_the_frames_of_a_movie_one_by_one(tmp_path, grey):
    stack = np.stack([np.roll(grey, 5*k, 1) for k in range(4)])
    tifffile.imwrite(tmp_path/'s.tif', stack, imagej=True, resolution=(1/.06, 1/.06), metadata={'unit': 'nm', 'axes': 'TYX'})
    seen = list(frames(tmp_path/'s.tif'))
    assert len(seen) == 4 and all(np.array_equal(m.image, s) for m, s in zip(seen, stack)) and seen[2].name == 's.tif [2]'
    assert len(list(frames(write_dm(tmp_path/'one.dm3', grey)))) == 1


# ---- several images in one file

def write_velox(path, *images, mode=1):
    """A file as Velox writes it; images: (array (y, x), metres per pixel, unit, detector)."""
    with h5py.File(path, 'w') as f:
        f['Version'] = [json.dumps(dict(format='Velox', version='1.0'))]
        for k, (a, size, unit, detector) in enumerate(images):
            if np.iscomplexobj(a): a = np.rec.fromarrays([a.real, a.imag], dtype=[('realFloatHalfEven', '<f4'), ('imagFloatHalfEven', '<f4')])
            sizes = dict(PixelSize=dict(width=str(size), height=str(size)), Offset=dict(x='0', y='0'), PixelUnitX=unit, PixelUnitY=unit)
            metadata = dict(Core={}, Instrument={}, Sample={}, Acquisition=dict(AcquisitionStartDatetime=dict(DateTime='1700000000')),
                            Optics=dict(AccelerationVoltage='200000', OperatingMode=str(mode)),
                            BinaryResult=dict(sizes, Detector=detector, DetectorIndex='0'), Scan={}, CustomProperties={},
                            Detectors={'Detector-0': dict(DetectorName=detector)})
            g = f.create_group(f'Data/Image/{k:032x}')
            g.create_dataset('Data', data=np.asarray(a)[..., None], chunks=(*a.shape, 1))
            g['Metadata'] = np.frombuffer(json.dumps(metadata).encode().ljust(8000, b'\0'), np.uint8)[:, None]
    return path


def test_of_several_images_the_largest_in_real_space_with_a_pixel_size_is_taken(tmp_path, grey):
    image, flipped = grey.astype(np.uint16), grey[::-1].astype(np.uint16)
    fft = (np.fft.fft2(grey)[:, :126].astype(np.complex64), 1e8, '1/m', 'FFT')
    preview, unsized = (image[::4, ::4], 5.86e-11, 'm', 'preview'), (image + 1, 1., '', 'BF')
    path = write_velox(tmp_path/'a.emd', fft, preview, unsized, (flipped, 5.86e-11, 'm', 'BM-Ceta'), (image, 5.86e-11, 'm', 'Falcon'))
    m = read(path)
    assert np.array_equal(m.image, flipped) and m.sampling == pytest.approx(.586) and m.voltage == 200e3
    assert m.file['image'] == '3 of 0 … 4 (BM-Ceta)' and m.file['camera'] == 'BM-Ceta' and m.file['mode'] == 'TEM' and m.file['date'][:4] == '2023'
    assert np.array_equal(read(path, number=4).image, image) and file_header(path, 4)['camera'] == 'Falcon'
    assert read(path, number=1, sampling=.6).image.shape == preview[0].shape and frame_count(path, 4) == 1
    for number, says in ((0, 'real-space image'), (5, 'images 0 … 4'), (-1, 'images 0 … 4')):
        with pytest.raises(UserError, match=says) as e: read(path, number=number)
        one_sentence(e)


def test_a_preview_never_wins(tmp_path, grey):
    """Not even if it comes first and alone has a pixel size."""
    with tifffile.TiffWriter(tmp_path/'a.tif') as f:
        f.write(grey[::4, ::4], resolution=(1e8/2.4, 1e8/2.4), resolutionunit='CENTIMETER')
        f.write(grey)
    m = read(tmp_path/'a.tif', sampling=.6)
    assert np.array_equal(m.image, grey) and m.file['image'] == '1 of 0 … 1' and header_sampling(tmp_path/'a.tif') is None
    assert header_sampling(tmp_path/'a.tif', 0) == pytest.approx(2.4)


def test_a_single_image_has_no_other(tmp_path, grey):
    Image.fromarray(grey).save(tmp_path/'a.png')
    for path in (tmp_path/'a.png', write_dm(tmp_path/'a.dm3', grey)):
        assert read(path, .6, number=0).image.shape == grey.shape and 'image' not in file_header(path)
        with pytest.raises(UserError, match='single image'): read(path, .6, number=1)


def test_the_camera_image_behind_a_fourier_transform(tmp_path):
    m = read(shared('inputs')/'velox_fft_first.emd')
    assert m.image.shape == (512, 512) and m.sampling == pytest.approx(.586) and m.file['image'] == '1 of 0 … 1 (BM-Ceta)'


def test_a_sound_file_with_an_element_map_is_not_damaged(tmp_path):
    with zipfile.ZipFile(shared('real/files')/'velox_eels_eds.zip') as z: name, = z.namelist(); z.extractall(tmp_path)
    assert file_header(tmp_path/name)['mode'] == 'STEM' and header_sampling(tmp_path/name) == pytest.approx(1586.6, rel=1e-4)
    with pytest.raises(UserError, match='scanned image'): read(tmp_path/name)


def test_what_a_file_says_of_its_microscope(tmp_path, grey):
    said = file_header(write_dm(tmp_path/'a.dm3', grey, kilovolts=200))
    assert said == dict(mode='TEM', voltage_kv=200., electrons=False, stored_as='uint8')
    assert file_header(write_dm(tmp_path/'a.dm3', grey, mode='STEM'))['mode'] == 'STEM'
    assert file_header(write_velox(tmp_path/'b.emd', (grey, 1e-10, 'm', 'DF4'), mode=2))['mode'] == 'STEM'


# ---- scale bars

@pytest.mark.parametrize('background', [None, 0])
@pytest.mark.parametrize('place', [(182, 12), (182, 180), (8, 12)])
def test_a_burnt_in_bar_is_painted_over(tmp_path, grey, background, place):
    y, x = place
    marked = grey.copy()
    if background is not None:
        marked[y - 4:y + 16, x - 4:x + 56] = background
    marked[y + 8:y + 11, x:x + 50] = 255
    for k in range(4):  # a label of four strokes
        marked[y:y + 5, x + 12*k:x + 12*k + 2] = 255
    Image.fromarray(marked).save(tmp_path/'a.png')
    m = read(tmp_path/'a.png', sampling=.6)
    changed = marked != grey
    assert m.hidden[changed].mean() > .97 and m.hidden.mean() < .1 and 'scale bar' in m.notes[0]
    assert abs(m.image[m.hidden].mean() - grey.mean()) < 25 and m.image[m.hidden].max() < 250


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.jpg'])
def test_a_coloured_bar_is_painted_over(tmp_path, grey, name):
    marked = np.dstack([grey]*3)
    marked[190:194, 15:75] = 255, 40, 0
    marked[180:186, 30:60:8] = 255, 40, 0
    if name == 'a.tif': tifffile.imwrite(tmp_path/name, marked)
    else: Image.fromarray(marked).save(tmp_path/name, quality=95)
    m = read(tmp_path/name, sampling=.6)
    assert m.hidden[190:194, 15:75].all() and m.hidden[182, 30] and m.hidden.mean() < .03 and 'coloured scale bar' in m.notes[0]
    assert m.file['stored_as'] == 'uint8' and abs(m.image[m.hidden].mean() - 150) < 15
    assert np.abs(m.image - grey)[~m.hidden].max() < (1 if name != 'a.jpg' else 30)
    marked[100:120] = 255, 40, 0  # 10 %: a drawing
    Image.fromarray(marked).save(tmp_path/'b.png')
    with pytest.raises(UserError, match='colour picture'): read(tmp_path/'b.png', sampling=.6)


def test_the_coloured_bar_of_a_real_program():
    m = read(shared('real/files')/'coloured_scale_bar.tif', number=0, sampling=.23928)
    assert m.hidden[96:, :24].any() and m.hidden.mean() < .05 and 'coloured scale bar' in m.notes[0]
    best = read(shared('real/files')/'coloured_scale_bar.tif')  # the same image in 16 bit, without the bar
    assert best.sampling == pytest.approx(.23928, rel=1e-4) and best.hidden is None
    shown = ~m.hidden
    assert np.corrcoef(m.image[shown], best.image[shown])[0, 1] > .9


def test_a_strip_of_words_is_hidden_whole(tmp_path, grey):
    marked = np.vstack([grey, np.zeros((24, grey.shape[1]), np.uint8)])
    marked[208:216, 10:200:7] = 255
    Image.fromarray(marked).save(tmp_path/'a.png')
    m = read(tmp_path/'a.png', sampling=.6)
    assert m.hidden[200:].all() and not m.hidden[:190].any()


def test_no_bar_is_seen_where_there_is_none(grey, request):
    assert not burnt_in(grey).any()
    clipped = grey.clip(120, 160)  # a detector at its limits
    assert not burnt_in(clipped).any()
    g = np.random.default_rng(0)
    for _ in range(20):
        assert not burnt_in(g.poisson(g.uniform(.5, 50), (128, 128)).astype(np.float32)).any()


# ---- damaged files: whatever happens, one sentence, soon, and in little memory

def valid_files(folder, image):
    a = image[:64, :80]
    yield write_dm(folder/'v.dm3', a.astype(np.int16)), a
    yield write_dm(folder/'v.dm4', a.astype(np.float32), version=4), a
    yield write_mrc(folder/'v.mrc', a.astype(np.float32)), a
    tifffile.imwrite(folder/'v.tif', a.astype(np.uint16), compression='lzw')
    yield folder/'v.tif', a
    tifffile.imwrite(folder/'w.tif', a.astype(np.float32))
    yield folder/'w.tif', a
    Image.fromarray(a).save(folder/'v.png')
    yield folder/'v.png', a
    Image.fromarray(a).save(folder/'v.jpg')
    yield folder/'v.jpg', a
    from rsciio.emd import file_writer
    axes = [dict(name=n, units='nm', scale=.06, offset=0., size=s, index_in_array=i, navigate=False) for i, (n, s) in enumerate(zip('yx', a.shape))]
    signal = dict(data=a.astype(np.float32), axes=axes, metadata={'General': {'title': ''}, 'Signal': {}}, original_metadata={})
    file_writer(str(folder/'v.emd'), signal)
    yield folder/'v.emd', a


def attempt(path):
    """Read it: an image that can be analysed, or one sentence; in less than 20 s."""
    start = time.monotonic()
    try:
        m = read(path, sampling=.6)
    except UserError as e:
        text = str(e)
        assert '\n' not in text and 20 < len(text) < 400, text
        outcome = text
    else:
        assert np.isfinite(m.image).all() and m.image.ndim == 2 and m.image.size <= MAX_PIXELS
        outcome = None
    assert time.monotonic() - start < 20
    return outcome


def test_two_hundred_truncated_and_flipped_files(tmp_path, grey):
    g, refused, tried = np.random.default_rng(0), 0, 0
    for path, _ in valid_files(tmp_path, grey):
        assert attempt(path) is None, f'{path.name} is sound'
        data = path.read_bytes()
        damaged = [data[:n] for n in (0, 1, 4, 16, len(data)//10, len(data)//2, len(data) - 1)]
        for _ in range(18):
            flipped = bytearray(data)
            for at in g.integers(0, min(len(data), 1200), g.integers(1, 5)):
                flipped[at] ^= 1 << int(g.integers(8))
            damaged.append(bytes(flipped))
        for k, d in enumerate(damaged):
            (tmp_path/f'd{k}{path.suffix}').write_bytes(d)
            refused += attempt(tmp_path/f'd{k}{path.suffix}') is not None
            tried += 1
    assert tried >= 200 and refused >= 7*8 - 8, f'{refused} of {tried} refused'


@pytest.mark.parametrize('size', [(2**30, 2**30, 1), (2**31 - 1, 1, 1), (0, 64, 1), (-5, 64, 1), (64, 64, 2**30), (1, 1, 1)])
def test_absurd_sizes_in_a_header(tmp_path, size):
    assert attempt(write_mrc(tmp_path/'a.mrc', np.ones((64, 80), np.float32), size=size))


@pytest.mark.parametrize('shape', [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_images_of_hardly_any_pixels(tmp_path, shape):
    g = np.random.default_rng(0)
    tifffile.imwrite(tmp_path/'a.tif', g.random(shape).astype(np.float32))
    refusal = attempt(tmp_path/'a.tif')
    if refusal is None:
        with pytest.raises(UserError, match='less than the'):
            check_field(read(tmp_path/'a.tif', sampling=.6), 100)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(['.dm3', '.dm4', '.mrc', '.tif', '.png', '.ser', '.emd', '.jpg']), data=st.binary(max_size=4000),
       magic=st.booleans())
def test_any_bytes_under_any_name(tmp_path, kind, data, magic):
    start = {'.dm3': b'\0\0\0\3', '.dm4': b'\0\0\0\4', '.tif': b'II*\0\x08\0\0\0', '.png': b'\x89PNG\r\n\x1a\n', '.jpg': b'\xff\xd8\xff\xe0',
             '.emd': b'\x89HDF\r\n\x1a\n', '.ser': b'II\x97\x01'}.get(kind, b'')
    (tmp_path/f'a{kind}').write_bytes((start if magic else b'') + data)
    attempt(tmp_path/f'a{kind}')


def test_a_reader_that_hangs_or_dies_is_stopped_and_the_next_file_is_read(tmp_path, grey, monkeypatch):
    os.mkfifo(tmp_path/'pipe.tif')
    with pytest.raises(UserError, match='no file'):
        read(tmp_path/'pipe.tif', sampling=.6)
    read(write_dm(tmp_path/'a.dm3', grey))
    child = reading._readers.process
    child.send_signal(19)  # stopped: what a reader looks like that goes round in circles
    monkeypatch.setattr(reading, 'PATIENCE', 1.)
    with pytest.raises(UserError, match='longer than 1 s'):
        read(tmp_path/'a.dm3')
    monkeypatch.setattr(reading, 'PATIENCE', 30.)
    assert np.array_equal(read(tmp_path/'a.dm3').image, grey) and reading._readers.process is not child


def test_a_read_that_is_interrupted_is_not_the_answer_to_the_next(tmp_path, grey, monkeypatch):
    first, second = write_dm(tmp_path/'a.dm3', grey), write_dm(tmp_path/'b.dm3', grey[::-1].copy())
    read(first)
    plain = reading._exchange_in_time

    def interrupted(process, request):
        process.stdin.write(json.dumps(request).encode() + b'\n'); process.stdin.flush()
        raise KeyboardInterrupt
    monkeypatch.setattr(reading, '_exchange_in_time', interrupted)
    with pytest.raises(KeyboardInterrupt): read(first)
    monkeypatch.setattr(reading, '_exchange_in_time', plain)
    assert np.array_equal(read(second).image, grey[::-1])


def test_nothing_is_imported_from_the_current_folder(tmp_path, grey, monkeypatch):
    """Not even where PYTHONPATH has it, as a relative path."""
    path = write_dm(tmp_path/'a.dm3', grey)
    for name in ('pint', 'nanoshape', 'rsciio'):
        (tmp_path/f'{name}.py').write_text(f'open({str(tmp_path/"imported")!r}, "a").write({name!r})\nraise SystemExit\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', '.:' + os.environ.get('PYTHONPATH', ''))
    monkeypatch.setattr(reading, '_readers', reading._Readers())
    assert np.array_equal(read(path).image, grey) and not (tmp_path/'imported').exists()
    reading._readers.process.kill()


def test_a_missing_package_is_named():
    for e in (ModuleNotFoundError("No module named 'mrcz'", name='mrcz'), ModuleNotFoundError("The 'mrcz' library was not found")):
        assert reading._missing_package(e) == 'mrcz'


def test_a_mask_is_refused_and_single_electrons_are_not(tmp_path):
    g = np.random.default_rng(0)
    yy, xx = np.mgrid[:200, :200]
    tifffile.imwrite(tmp_path/'mask.tif', ((yy - 90)**2 + (xx - 80)**2 < 2000).astype(np.uint8))
    with pytest.raises(UserError, match='a mask'):
        read(tmp_path/'mask.tif', sampling=.6)
    tifffile.imwrite(tmp_path/'counts.tif', (g.random((200, 200)) < .2).astype(np.uint8))
    assert read(tmp_path/'counts.tif', sampling=.6).image.mean() < .3


# ---- pixels

@given(old=st.integers(20, 60), new=st.integers(20, 60), place=st.floats(.3, .7))
@settings(max_examples=40, deadline=None)
def test_what_is_resampled_stays_where_it_is(old, new, place):
    """The middle of a soft spot, as a share of the field, whatever the pixels are."""
    spot = lambda n: np.exp(-((np.arange(n) + .5)/n - place)**2/2/.1**2)
    got = resampled(spot(old)[None].repeat(old, 0), 1., old/new)
    assert got.shape == (new, new) and np.abs(got - spot(new)).max() < .01


def test_hot_pixels_are_cooled_and_grey_16_bit_colours_are_read(tmp_path, grey):
    import tifffile
    hot = grey.astype(np.uint16); hot[50, 60] = hot[90, 20] = 60000
    tifffile.imwrite(tmp_path/'hot.tif', hot)
    m = read(tmp_path/'hot.tif', sampling=.6)
    assert m.image.max() < 300 and any('2 hot pixels' in n for n in m.notes)
    tifffile.imwrite(tmp_path/'rgb.tif', np.stack([grey.astype(np.uint16)]*3, -1), photometric='rgb')
    assert frame_count(tmp_path/'rgb.tif') == 1 and np.array_equal(read(tmp_path/'rgb.tif', sampling=.6).image, grey)


SHAPE = 3000, 2048, 2048  # 12 GB of a byte each: more than the reading process may take


def sparse_tiff(path):
    tifffile.imwrite(path, shape=SHAPE, dtype=np.uint8, bigtiff=True, metadata=None)


def sparse_mrc(path):
    head = np.zeros(256, '<i4')
    head[:3] = head[7:10] = SHAPE[::-1]
    head[16:19], head[52] = (1, 2, 3), 0x2050414d
    head.view('<f4')[10:16] = [1.2*n for n in SHAPE[::-1]] + [90]*3
    with path.open('wb') as f:
        f.write(head.tobytes())
        f.truncate(1024 + int(np.prod(SHAPE)))


@pytest.mark.parametrize('write, suffix', [(sparse_tiff, 'tif'), (sparse_mrc, 'mrc')])
def test_a_huge_stack_is_refused_before_it_is_read(tmp_path, write, suffix):
    write(path := tmp_path/f'movie.{suffix}')
    with pytest.raises(UserError, match='is a stack of 3000 images'):
        read(path, .6)
    assert frame_count(path) == 3000
    with pytest.raises(UserError, match='same everywhere'):
        read(path, .6, 2999)


def test_a_ser_movie_is_refused_before_it_is_read(tmp_path, grey, monkeypatch):
    import rsciio.tia
    write_ser(tmp_path/'movie.ser', [grey]*3, 6e-11)
    monkeypatch.setattr(rsciio.tia, 'file_reader', lambda *a, **k: 1/0)
    with pytest.raises(UserError, match='stack of 3 images'):
        reading._load(tmp_path/'movie.ser', None)
    with pytest.raises(ZeroDivisionError):
        reading._load(tmp_path/'movie.ser', 1)


def test_one_frame_of_a_moving_picture_is_decoded_alone(tmp_path, grey):
    frames = [Image.fromarray(np.roll(grey, k, 1)) for k in range(3)]
    frames[0].save(tmp_path/'movie.png', save_all=True, append_images=frames[1:])
    a, header = reading._open_picture(tmp_path/'movie.png')
    assert isinstance(a, reading._PictureFrames) and a.shape == (3, *grey.shape) and header['file']['stored_as'] == 'uint8'
    assert (reading._load(tmp_path/'movie.png', 2)[0] == np.roll(grey, 2, 1)).all()


def test_a_reader_may_take_no_more_memory_than_that(tmp_path):
    code = ('import numpy as np; from nanoshape.micrographs import reading as r; r._limit_memory()\n'
            'np.ones(r.MEMORY//4, np.uint8)\n'
            'try: np.ones(r.MEMORY + 2**28, np.uint8)\n'
            'except MemoryError: print("refused")')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == 'refused\n'


def _berkeley(path, data):
    """An EMD file of the old kind; `data` puts the numbers into the group."""
    h5py = pytest.importorskip('h5py')
    with h5py.File(path, 'w') as f:
        f.attrs.update(version_major=0, version_minor=2)
        g = f.create_group('data/a'); g.attrs['emd_group_type'] = 1
        data(g, h5py)
        for k in (1, 2):
            d = g.create_dataset(f'dim{k}', data=np.arange(64.)*.05); d.attrs.update(name='x', units='[n_m]')
    return path


def test_an_emd_file_reads_no_other_file(tmp_path):
    (tmp_path/'secret').write_bytes(bytes(range(256))*16)
    stored = _berkeley(tmp_path/'stored.emd', lambda g, h5py: g.create_dataset('data', (64, 64), 'u1', external=[(str(tmp_path/'secret'), 0, 4096)]))
    own = _berkeley(tmp_path/'own.emd', lambda g, h5py: g.create_dataset('data', data=np.arange(4096.).reshape(64, 64)))
    linked = _berkeley(tmp_path/'linked.emd', lambda g, h5py: g.__setitem__('data', h5py.ExternalLink(str(own), '/data/a/data')))
    def virtual(g, h5py):
        v = h5py.VirtualLayout((64, 64), 'f8'); v[...] = h5py.VirtualSource(str(own), 'data/a/data', (64, 64))
        g.create_virtual_dataset('data', v)
    assert read(own).image.shape == (64, 64)
    for path in (stored, linked, _berkeley(tmp_path/'virtual.emd', virtual)):
        with pytest.raises(UserError, match='links to data in other files'): read(path)


def test_a_large_picture_is_not_called_damaged(tmp_path, monkeypatch):
    from PIL import Image
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    Image.fromarray(np.zeros((13500, 13500), np.uint8)).save(tmp_path/'p.png')
    with pytest.raises(UserError, match='13500 × 13500 pixels, and 134 million are read at most'): read(tmp_path/'p.png', sampling=.5)
