"""What the multi-task network says of the crystallinity study's particles: amorphous, one crystal, or several.

    python benchmarks/open_world_poly.py [--model data/models/open_world.safetensors] [--structures 60] [--out data/results/open_world_poly.csv]

The study's set Poly (Gumbiowski et al. 2024) as this project simulates it: single crystals and amorphous particles on carbon and on silicon, and
polycrystals; so many new structures of each recipe, with a seed that nothing was trained on, in fields of 15 nm instead of 6, which the network
needs. Each image is taken as a micrograph of gold at 300 kV with its particle's true outline. Twinned crystals, decahedra and icosahedra count as
polycrystalline; *none of these* is wrong for all three."""
import argparse

import pandas as pd

from nanoshape.core import project_root, provenance
from nanoshape.datasets.batches import frozen_set, pairs
from nanoshape.datasets.recipes import load_recipe
from nanoshape.learn.abstention import crystallinity_of
from nanoshape.learn.evaluate import CRYSTALLINE, UNKNOWN, cluster_interval
from nanoshape.learn.network import Network
from nanoshape.micrographs.kinds import classify_kinds
from nanoshape.micrographs.reading import Micrograph
from nanoshape.simulate.forms import CRYSTALS
from nanoshape.studies.experiments import waves

PARTS, SEED = ('carbon', 'silicon', 'poly'), 990
WIDE = dict(box_nm=15, gpts=640, out_gpts=560)  # the recipes' own pixels
MEANS = {c: crystallinity_of([c]) for c in CRYSTALS}


def said(store, network):
    """A row per image: what is true, the likeliest class, and what is told."""
    rows, outlines = [], store.maps(range(len(store))) > 0
    for k, (image, outline) in enumerate(zip(frozen_set(store, pairs(range(len(store)), 1)), outlines)):
        m = Micrograph(image.numpy(), store.sampling, str(k), voltage=3e5)
        t = classify_kinds(m, outline.astype(int), network, 'Au').iloc[0]
        p = pd.Series({c: sum(t[f'p_{k.replace(" ", "_")}'] for k, v in MEANS.items() if v == c) for c in dict.fromkeys(MEANS.values())})
        rows.append(dict(true=store.labels['class'].iloc[k], best=p.idxmax(), p_amorphous=p.amorphous, told=t.crystallinity,
                         structure=f'{store.recipe.name} {store.labels.structure.iloc[k]}', planes=t.fringe_snr > 0, reason=t.reason))
    return pd.DataFrame(rows)


def scores(t):
    """The likeliest of three classes and of two; how often an answer is told, `crystalline` among them, and how often it is wrong."""
    right, two = (t.best == t.true).to_numpy(), ((t.p_amorphous > .5) == (t.true == 'amorphous')).to_numpy()
    given, crystalline = (t.told != UNKNOWN).to_numpy(), ((t.told == CRYSTALLINE) & (t.true != 'amorphous')).to_numpy()
    wrong = given & ~crystalline & (t.told != t.true).to_numpy()
    of = lambda name, v: {name: v.mean(), **dict(zip((f'{name}_low', f'{name}_high'), cluster_interval(v, t.structure)))}
    return dict(n=len(t), **of('three', right), **of('two', two), answered=given.mean(), **of('wrong_answered', wrong))


def main():
    p, root = argparse.ArgumentParser(description=__doc__.splitlines()[0]), project_root()
    p.add_argument('--model', default=root/'data/models/open_world.safetensors')
    p.add_argument('--structures', type=int, default=60)
    p.add_argument('--out', default=root/'data/results/open_world_poly.csv')
    a = p.parse_args()
    network = Network.load(a.model)
    stores = [waves(load_recipe(root/f'data/recipes/crystallinity_{k}.yaml', structures=a.structures, seed=SEED + n, **WIDE), 1)
              for n, k in enumerate(PARTS)]
    t = pd.concat([said(s, network) for s in stores], ignore_index=True)
    groups = {'all': t, 'planes visible': t[t.planes], **dict(tuple(t.groupby('true')))}
    out = pd.DataFrame([dict(images=k, **scores(g)) for k, g in groups.items()])
    out = out.assign(structures=a.structures, seed=SEED, model=network.fingerprint, commit=provenance()['commit'])
    out.round(4).to_csv(a.out, index=False)
    print(out.round(3).to_string(index=False))
    print(pd.crosstab(t.true, t.best), t.reason.value_counts(), sep='\n')


if __name__ == '__main__':
    main()
