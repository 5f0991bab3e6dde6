"""Cost of the virtual microscope beside the training step that it feeds: ResNet-18, 128 px, batch 32. To reach: 25 % of a bfloat16 step on a CPU.

    python benchmarks/training.py [--device cuda] [--repeats 9]

Imaging is everything from stored waves to the network's input: conditions, transfer, inverse transforms, vibration, counting, shift, symmetry,
normalisation. A step is forward, loss, backward and optimiser, in float32 and in bfloat16.
"""
import argparse
import statistics
import time

import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from nanoshape.core import project_root
from nanoshape.datasets.batches import fresh_images, network_input
from nanoshape.datasets.recipes import load_recipe
from nanoshape.datasets.samples import waves_of

BATCH = 32


def median_ms(f, repeats, device):
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(1e3*(time.perf_counter() - start))
    return statistics.median(times)


def trainer(device):
    net = resnet18(num_classes=5)
    net.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    net.to(device)
    opt = torch.optim.Adam(net.parameters())
    y = torch.randint(5, (BATCH,), device=device)

    def step(x, bf16):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = cross_entropy(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return step


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cpu')
    p.add_argument('--repeats', type=int, default=9)
    a = p.parse_args()
    step = trainer(a.device)
    for name in ('shape_study', 'crystallinity_carbon'):
        recipe = load_recipe(project_root()/f'data/recipes/{name}.yaml', out_gpts=128)
        waves = waves_of(recipe, range(4))[0].repeat(BATCH//4, 1, 1).to(a.device)

        def make(waves=waves, recipe=recipe):
            return network_input(fresh_images(waves, range(BATCH), recipe, 1))
        x, imaging = make(), median_ms(make, a.repeats, a.device)
        for bf16 in (False, True):
            t = median_ms(lambda x=x, b=bf16: step(x, b), a.repeats, a.device)
            print(f'{name:24} {"bfloat16" if bf16 else "float32":9} imaging {imaging:6.1f} ms   step {t:7.1f} ms   imaging/step {imaging/t:.1%}',
                    flush=True)


if __name__ == '__main__':
    main()
