"""Does the multi-task network say the same of images made by the most exact path as of those of its test?

    python benchmarks/open_world_reference.py [--model data/models/open_world.safetensors] [--structures 60] [--phonons 2] [--pixel 0.2]
                                              [--images runs/open_world_reference.npz] [--out data/results/open_world_reference.csv]

The same particles of the recipe open_world_test under the same conditions, twice: as its waves make them (a coarser grid, a Debye–Waller factor,
an average over three foci), and with frozen phonons, slices of 1 Å, a fine grid and fifteen foci. The images by the exact path are made once, some
seconds each on one core, and kept. The detector's noise is drawn in the same way for both."""
import argparse
from pathlib import Path

import pandas as pd

from nanoshape.core import UserError, project_root, provenance
from nanoshape.datasets.recipes import load_recipe
from nanoshape.datasets.reference_images import ReferenceImages, write_reference
from nanoshape.learn.abstention import answer_scores, answer_table
from nanoshape.learn.network import Network
from nanoshape.studies.experiments import waves


def reference(recipe, path, phonons, pixel):
    """The reference images in a file, made if they are not there."""
    try: old = ReferenceImages(path)
    except UserError: old = None
    if old is None or old.recipe != recipe or (old.made_with['phonons'], old.made_with['pixel']) != (phonons, pixel):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_reference(recipe, path, phonons, pixel, provenance())
    return ReferenceImages(path)


def main():
    p, root = argparse.ArgumentParser(description=__doc__.splitlines()[0]), project_root()
    p.add_argument('--model', default=root/'data/models/open_world.safetensors')
    p.add_argument('--structures', type=int, default=60)
    p.add_argument('--phonons', type=int, default=2)
    p.add_argument('--pixel', type=float, default=.2)
    p.add_argument('--images', default=root/'runs/open_world_reference.npz')
    p.add_argument('--out', default=root/'data/results/open_world_reference.csv')
    p.add_argument('--make', action='store_true', help='only the images')
    a = p.parse_args()
    recipe = load_recipe(root/'data/recipes/open_world_test.yaml', structures=a.structures)
    exact = reference(recipe, a.images, a.phonons, a.pixel)
    if a.make: return
    network, usual = Network.load(a.model), waves(recipe, 1)
    tables = {'as trained': answer_table(network, usual), 'reference': answer_table(network, exact)}
    same = (tables['as trained'].best == tables['reference'].best).mean()
    drop = ('confusion', 'classes')
    rows = [{'images': k} | {a: v for a, v in answer_scores(t).items() if a not in drop} | {'same_answer': same} for k, t in tables.items()]
    t = pd.DataFrame(rows).assign(phonons=a.phonons, pixel=a.pixel, model=network.fingerprint, commit=provenance()['commit'])
    t.to_csv(a.out, index=False)
    print(t[['images', 'n', 'accuracy', 'calibration_error', 'answered', 'wrong_answered', 'same_answer']].round(3).to_string(index=False))


if __name__ == '__main__':
    main()
