"""Particles found in eleven real images of supported catalysts with boxes drawn by their authors.

    python benchmarks/catalysts.py [--detector FILE] [--folder FOLDER] [--out data/results/catalysts.csv] [--pictures FOLDER]

Images: Genc et al., Ultramicroscopy 271 (2025) 114116, MIT licence. Boxes agree where they share half of their union. Particles at the edge are
left out on both sides, as the authors mostly left them out, and in dark field those smaller than 12 pixels. One row per image, and one for all of
each mode; missed particles are counted by reason, see `missed`. The networks have never seen a real image. The files name no pixel size, and the
network asks for none."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from skimage import measure

from nanoshape.core import NM, project_root, provenance, rng, shared_data
from nanoshape.micrographs.detection import default_detector
from nanoshape.micrographs.reading import read

DARK_FIELD, SMALLEST, EDGE = {'PtCo', 'Pd1', 'Cu4', 'Ru2', 'PtW5', 'Pd_silica2', 'Cu_silica1'}, 12, 2  # pixels


def true_boxes(path, shape):
    """Boxes (y0, x0, y1, x1) in pixels, of lines `0 x y width height` in shares of the image."""
    rows = np.array([line.split()[1:] for line in path.read_text().splitlines() if line.strip()], float).reshape(-1, 4)
    (x, y), (w, h) = rows[:, :2].T, rows[:, 2:].T
    return np.stack([y - h/2, x - w/2, y + h/2, x + w/2], 1)*np.tile(shape, 2)


def inside(boxes, shape, smallest):
    size = np.sqrt((boxes[:, 2] - boxes[:, 0])*(boxes[:, 3] - boxes[:, 1]))
    return (boxes[:, :2] > EDGE).all(1) & (boxes[:, 2] < shape[0] - EDGE) & (boxes[:, 3] < shape[1] - EDGE) & (size >= smallest)


def overlaps(a, b):
    """Shared over united area of each pair of boxes."""
    side = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(side, 0, None).prod(-1)
    area = lambda c: (c[:, 2:] - c[:, :2]).prod(1)
    return shared/(area(a)[:, None] + area(b)[None] - shared)


def counts(found, true, shape, smallest):
    """Found, true and right particles; those left out are matched, too, so that a find on one of them is not false."""
    iou = overlaps(found, true)
    i, j = linear_sum_assignment(-iou)
    pairs = [(a, b) for a, b in zip(i, j) if iou[a, b] >= .5]
    f, t = inside(found, shape, smallest), inside(true, shape, smallest)
    right = [(a, b) for a, b in pairs if t[b]]
    forgiven = {a for a, b in pairs if not t[b]}
    size = lambda boxes, k: float(np.sqrt((boxes[k, 2:] - boxes[k, :2]).prod(-1)).sum())
    false = [a for a in range(len(found)) if f[a] and a not in forgiven and a not in {b for b, _ in right}]
    sizes = dict(size_found=size(found, [a for a, _ in right]), size_true=size(true, [b for _, b in right]))
    return dict(found=len(false) + len(right), true=int(t.sum()), right=len(right), **sizes), {b for _, b in right}


def contrast(image, box, bright):
    """How a box's middle stands out of a frame around it, in standard deviations of the frame."""
    y0, x0, y1, x1 = np.clip(box.round().astype(int), 0, None)
    h, w = y1 - y0, x1 - x0
    Y, X = max(0, y0 - h//2), max(0, x0 - w//2)
    around = image[Y:y1 + h//2, X:x1 + w//2].astype(float)
    frame = np.ones(around.shape, bool)
    frame[y0 - Y:y1 - Y, x0 - X:x1 - X] = False
    middle = image[y0 + h//4:y1 - h//4, x0 + w//4:x1 - w//4]
    return (middle.mean() - around[frame].mean())/max(around[frame].std(), 1e-6)*(1 if bright else -1)


def missed(image, labels, true, right, asked, bright):
    """Why boxes were missed: in one find with others, or less than a fifth of the box is in any find; and the contrast of both kinds."""
    centres = np.clip(((true[:, :2] + true[:, 2:])/2).round().astype(int), 0, np.subtract(labels.shape, 1))
    held = np.bincount(labels[tuple(centres.T)], minlength=labels.max() + 1)  # boxes' centres in each find
    merged = unseen = 0
    stands_out = {True: [], False: []}
    for k in np.flatnonzero(asked):
        stands_out[k in right].append(contrast(image, true[k], bright))
        if k in right: continue
        y0, x0, y1, x1 = np.clip(true[k].round().astype(int), 0, None)
        own = labels[y0:y1, x0:x1]
        merged += held[np.bincount(own[own > 0]).argmax()] > 1 if own.any() else 0
        unseen += (own > 0).mean() < .2
    return dict(missed_merged=int(merged), missed_unseen=int(unseen), **{f'contrast_{n}': np.median(v) if v else np.nan
                                                                      for n, v in (('right', stands_out[True]), ('missed', stands_out[False]))})


def score(rows, seed=0):
    t = pd.DataFrame(rows)
    s, g = t.sum(numeric_only=True), rng(seed, 'bootstrap')
    f1 = lambda s: 2*s.right/max(1, s.found + s.true)
    again = [f1(t.iloc[g.integers(len(t), size=len(t))].sum(numeric_only=True)) for _ in range(1000)] if len(t) > 1 else [np.nan]
    low, high = np.quantile(again, (.025, .975))
    return dict(found=int(s.found), true=int(s.true), right=int(s.right), precision=s.right/max(1, s.found), recall=s.right/max(1, s.true), f1=f1(s),
                f1_low=low, f1_high=high, size=s.size_found/s.size_true if s.size_true else np.nan,
                missed_merged=int(s.missed_merged), missed_unseen=int(s.missed_unseen), contrast_right=t.contrast_right.median(),
                contrast_missed=t.contrast_missed.median())


def picture(path, image, labels, true):
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(7, 7*image.shape[0]/image.shape[1]))
    ax.imshow(image, 'gray'); ax.axis('off')
    if labels.any(): ax.contour(labels > 0, [.5], colors='C0', linewidths=.6)
    for y0, x0, y1, x1 in true: ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec='C1', lw=.6))
    fig.savefig(path, dpi=120, bbox_inches='tight'); plt.close(fig)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--detector', default=project_root()/'data/models/sizes.safetensors')
    p.add_argument('--folder', default=None)
    p.add_argument('--out', default=project_root()/'data/results/catalysts.csv')
    p.add_argument('--pictures', default=None)
    a = p.parse_args()
    find, rows = default_detector(a.detector), []
    for path in sorted(Path(a.folder or (shared_data() or Path())/'real/catalysts').glob('*.jpg')):
        m = read(path, sampling=.1*NM)
        labels, bright = find.find(m)
        found = np.array([r.bbox for r in measure.regionprops(labels)], float).reshape(-1, 4)
        true, dark_field = true_boxes(path.with_suffix('.txt'), m.image.shape), path.stem in DARK_FIELD
        smallest = SMALLEST if dark_field else 0
        counted, right = counts(found, true, m.image.shape, smallest)
        why = missed(m.image, labels, true, right, inside(true, m.image.shape, smallest), dark_field)
        rows.append(dict(image=path.stem, mode='dark field' if dark_field else 'bright field', said='dark field' if bright else 'bright field',
                         **counted, **why))
        print(rows[-1], flush=True)
        if a.pictures: picture(Path(a.pictures)/f'{path.stem}.png', m.image, labels, true)
    t = pd.DataFrame(rows)
    table = [dict(image=r['image'], mode=r['mode'], said=r['said'], **score([r])) for r in rows]
    table += [dict(image='all', mode=mode, said='', **score(g.to_dict('records'))) for mode, g in t.groupby('mode')]
    pd.DataFrame(table).round(4).assign(**provenance()).to_csv(a.out, index=False)
    print(pd.DataFrame(table).round(3).to_string())


if __name__ == '__main__': main()
