"""Writes SER files (TIA), as small as RosettaSciIO reads them, for the tests."""
import struct

import numpy as np

TYPES = {'uint8': 1, 'uint16': 2, 'uint32': 3, 'int8': 4, 'int16': 5, 'int32': 6, 'float32': 7, 'float64': 8}


def write_ser(path, images, metres):
    """Images (n, y, x) with `metres` per pixel; elements with time tags, offsets of 32 bits (series version 0x0210)."""
    n, (h, w) = len(images), images[0].shape
    about = struct.pack('<ddiddiHII', 0, metres, 0, 0, metres, 0, TYPES[images[0].dtype.name], w, h)
    element = [about + np.ascontiguousarray(a[::-1]).tobytes() for a in images]
    axis = struct.pack('<iddiI', n, 0, 1, 0, 6) + b'Number' + struct.pack('<I', 0)
    start = 30 + len(axis)
    at = start + 8*n + np.cumsum([0, *(len(e) + 8 for e in element)])
    tags = at[:-1] + [len(e) for e in element]
    head = struct.pack('<HHHIIIII', 0x4949, 0x0197, 0x0210, 0x4122, 0x4152, n, n, start) + struct.pack('<I', 1)
    offsets = np.concatenate([at[:-1], tags]).astype('<u4').tobytes()
    path.write_bytes(head + axis + offsets + b''.join(e + struct.pack('<HHI', 0x4152, 0, 0) for e in element))
