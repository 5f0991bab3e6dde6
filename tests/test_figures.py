"""Pictures under sliders are what they would be if drawn anew."""
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
from ipywidgets import FloatSlider
from PIL import Image

from nanoshape.figures import as_png, emptied, sliders


def picture(x, top=1., axs=None):
    axs = plt.subplots(1, 2, figsize=(4, 2))[1] if axs is None else emptied(axs)
    axs[0].plot([0, 1], [0, x]); axs[0].text(.5, .9, 'text')
    axs[0].set(title=f'x = {x:.1f}', xlabel='x', ylim=(0, top))
    axs[1].imshow(np.full((4, 4), x), vmin=0, vmax=1)
    axs[1].set(title='constant', xticks=[], yticks=[]); axs[1].spines[:].set_visible(False)  # they would lie over the image
    return axs


def pixels(png):
    return np.asarray(Image.open(BytesIO(png)).convert('RGB')).astype(float)


@pytest.mark.parametrize('moves', [[], [('x', .8)], [('top', 2.)], [('x', .2), ('top', 3.), ('x', .8), ('top', 1.)]])
def test_titles_ticks_and_what_is_plotted_are_those_of_a_fresh_picture(moves):
    controls = dict(x=FloatSlider(.5, min=0, max=1), top=FloatSlider(1, min=0, max=5))
    box = sliders(picture, **controls)
    for name, value in moves:
        controls[name].value = value
    fig = picture(*(c.value for c in controls.values()))[0].figure
    drawn, fresh = pixels(box.children[0].value), pixels(as_png(fig, fig.dpi))
    assert drawn.shape == fresh.shape and (abs(drawn - fresh).max(-1) > 60).mean() < .002
