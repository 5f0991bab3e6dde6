"""A small writer of DigitalMicrograph files (versions 3 and 4), for tests: one grey image with a scale, a voltage and a mode."""
import struct

import numpy as np

TYPES = {'int16': (2, 1), 'int32': (3, 7), 'uint16': (4, 10), 'uint32': (5, 11), 'float32': (6, 2), 'float64': (7, 12), 'uint8': (10, 6)}


def _tag(version, name, data):
    """One tag; `data` is a dict or list (a group), a number, a text, or an array."""
    group = isinstance(data, (dict, list))
    long = '>q' if version == 4 else '>i'
    if group:
        entries = list(data.items()) if isinstance(data, dict) else [('', d) for d in data]
        body = b'\x01\x00' + struct.pack(long, len(entries)) + b''.join(_tag(version, k, v) for k, v in entries)
    else:
        if isinstance(data, str):
            info, raw = [20, 4, len(data)], data.encode('utf-16-le')
        elif isinstance(data, np.ndarray):
            info, raw = [20, TYPES[data.dtype.name][0], data.size], data.astype(data.dtype.newbyteorder('<')).tobytes()
        elif isinstance(data, float):
            info, raw = [7], struct.pack('<d', data)
        else:
            info, raw = [5], struct.pack('<I', data)
        body = b'%%%%' + struct.pack(long, len(info)) + b''.join(struct.pack(long, i) for i in info) + raw
    head = struct.pack('>BH', 0x14 if group else 0x15, len(name)) + name.encode()
    return head + (struct.pack('>Q', len(body)) if version == 4 else b'') + body


def write_dm(path, image, pixel_nm=.05, unit='nm', kilovolts=300, mode='TEM', version=3, brightness=(0., 1., '')):
    """Write `image` (y, x) of one of `TYPES`; `pixel_nm` may be a pair (x, y);
    brightness: origin, scale and unit of the intensities."""
    scales = pixel_nm if isinstance(pixel_nm, tuple) else (pixel_nm, pixel_nm)
    dims = [dict(Origin=0., Scale=float(s), Units=unit) for s in scales]
    number = TYPES[image.dtype.name][1]
    data = dict(Calibrations=dict(Brightness=dict(zip(('Origin', 'Scale', 'Units'), brightness)), Dimension=dims[:image.ndim]), Data=image.ravel(),
                DataType=number, Dimensions=[int(n) for n in image.shape[::-1]], PixelDepth=image.itemsize)
    microscope = {'Microscope Info': {'Voltage': kilovolts*1e3, 'Illumination Mode': mode}}
    thumbnail = dict(ImageData=dict(data, Data=np.zeros(4, np.uint8), DataType=6, Dimensions=[2, 2], PixelDepth=1), ImageTags={})
    root = dict(ImageList=[thumbnail, dict(ImageData=data, ImageTags=microscope, Name='image')],
                Thumbnails=[dict(ImageIndex=0)])
    entries = b''.join(_tag(version, k, v) for k, v in root.items())
    body = b'\x01\x00' + struct.pack('>q' if version == 4 else '>i', len(root)) + entries + b'\0'*8
    head = struct.pack('>iqi' if version == 4 else '>iii', version, len(body), 1)
    path.write_bytes(head + body)
    return path
