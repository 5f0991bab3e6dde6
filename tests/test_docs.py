"""The site that `make docs` builds."""

import importlib.util
import subprocess
import sys

import pytest
from bs4 import BeautifulSoup

from conftest import ROOT


def loaded(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f'docs_{name}', ROOT/f'docs/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def docs():
    return loaded('build')


@pytest.fixture(scope='module')
def site(docs, tmp_path_factory):
    """A site of four notebooks, the texts, and the reference of two modules."""
    module, out = docs, tmp_path_factory.mktemp('docs')/'site'
    few = dict.fromkeys(module.LIBRARY, ()) | {k: [ROOT/'nbs'/f'{name}.ipynb'] for k, name in (('Start', 'index'),
          ('Tutorials', 'tutorials/honest_scores'), ('Figures', 'figures/size'), ('Foundations', '00_core'), ('Learn', 'learn/02_evaluate'))}
    before, module.PARTS = module.PARTS, few
    yield out, module.build(out)
    module.PARTS = before


def test_every_link_leads_somewhere(site):
    out, dead = site
    assert not dead and {p.name for p in out.glob('*.html')} >= {'index.html', '00_core.html', 'README.html', 'docs-glossary.html'}


def test_pictures_have_words(site):
    pictures = BeautifulSoup((site[0]/'figures/size.html').read_text(), 'html.parser').find_all('img')
    assert pictures and all(i['alt'].startswith('Figure: ') and (site[0]/'figures'/i['src']).is_file() for i in pictures)


def test_solutions_are_folded(site):
    page = BeautifulSoup((site[0]/'tutorials/honest_scores.html').read_text(), 'html.parser')
    assert len(page.find_all('details', class_='solution')) == 4


def test_the_reference_says_what_parameters_mean(site):
    page = BeautifulSoup((site[0]/'reference/learn.evaluate.html').read_text(), 'html.parser')
    assert page.find('h2', id='wilson') and 'successes' in page.get_text() and 'Wilson score interval' in page.get_text()


def test_every_page_can_be_searched(site):
    text = (site[0]/'pages.js').read_text()
    assert text.startswith('const PAGES') and 'temperature scaling' in text and 'nanoshape.learn.evaluate' in text


def test_a_dead_link_is_found(docs, tmp_path):
    (tmp_path/'b.html').write_text('<p id="there">')
    pages = {'a.html': '<a href="b.html#there">a</a><a href="b.html#gone">b</a><img src="none.png"><a href="https://example.org/x">c</a>',
             'b.html': '<p id="there">'}
    dead = docs.dead_links(tmp_path, {k: BeautifulSoup(v, 'html.parser') for k, v in pages.items()})
    assert dead == ['a.html: b.html#gone', 'a.html: none.png']


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    (tmp_path/'thesis.tex').write_text('years of work')
    done = subprocess.run([sys.executable, ROOT/'docs/build.py', tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and 'choose another folder' in done.stderr and (tmp_path/'thesis.tex').is_file()


def test_public_functions_are_documented():
    """Every public function says what it is for, and every parameter of a library function that is not obvious has its words in the reference."""
    import inspect
    missing = []
    for f in sorted((ROOT/'nanoshape').glob('*.py')):
        if f.stem.startswith('_'):
            continue
        module = importlib.import_module(f'nanoshape.{f.stem}')
        missing += [f'{f.stem}.{n}' for n in getattr(module, '__all__', ()) if inspect.isroutine(s := getattr(module, n)) and not inspect.getdoc(s)]
    assert not missing


def test_the_picture_is_the_one_that_the_notebook_makes():
    assert (ROOT/'docs/overview.png').read_bytes() == loaded('picture').picture(), 'run `python docs/picture.py`'


def test_the_picture_of_the_readme_is_taken_in(site):
    pictures = BeautifulSoup((site[0]/'README.html').read_text(), 'html.parser').find_all('img')
    assert pictures and all(p['src'].startswith('data:image/png') and p['alt'] for p in pictures)
