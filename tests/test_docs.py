"""The site that `make docs` builds, and the texts in it."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from bs4 import BeautifulSoup

from conftest import ROOT
from dm import write_dm

TEXTS = [ROOT/p for p in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'data/README.md', 'docs/commands.md', 'docs/contents.md',
                          'docs/glossary.md', 'docs/real_micrographs.md', 'docs/lesson_plan.md')]


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
    assert not dead and {p.name for p in out.glob('*.html')} >= {'index.html', '00_core.html', 'README.html', 'docs-contents.html'}


def test_pages_ask_no_other_machine_for_anything(site):
    """Scripts, styles, pictures and fonts are the site's own; formulas are plain text, which needs none."""
    pages = [*site[0].rglob('*.html')]
    for page in pages:
        soup = BeautifulSoup(page.read_text(), 'html.parser')
        asked = [e.get('src') or e.get('href') for e in soup.find_all(['script', 'img', 'link', 'iframe', 'source', 'video'])]
        assert not [a for a in asked if a and re.match(r'(https?:)?//', a)], page.name
        assert not re.search(r'@import|url\(\s*["\']?https?:', ''.join(s.text for s in soup.find_all('style')))
    assert len(pages) > 8
    for path in notebooks('*.ipynb'):
        texts = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown']
        assert not [t for t in texts if re.search(r'\$[^$\n`]*\\[a-z]+[^$\n`]*\$', t)], f'{path.name} needs a program for its formulas'


def notebooks(pattern):
    return {p for p in (ROOT/'nbs').rglob(pattern) if '.ipynb_checkpoints' not in p.parts}


def test_every_library_notebook_belongs_to_one_part():
    module = loaded('build')
    files = [f for part in module.LIBRARY for f in module.PARTS[part]]
    assert len(set(files)) == len(files) and {*files} == notebooks('[0-9]*.ipynb')
    assert [*module.PARTS][2:-2] == [*module.LIBRARY] and all(module.PARTS.values())


def test_the_reference_is_grouped_by_part(site):
    page = BeautifulSoup((site[0]/'README.html').read_text(), 'html.parser')
    part = next(d for d in page.nav.find_all('details') if d.summary.text == 'Reference')
    assert [li.text for li in part.find_all('li')] == ['Foundations', 'nanoshape.core', 'Learn', 'nanoshape.learn.evaluate']


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
    """Every public function says what it is for."""
    import inspect
    missing = []
    for f in sorted((ROOT/'nanoshape').rglob('*.py')):
        if f.stem.startswith('_'):
            continue
        module = importlib.import_module('.'.join(f.relative_to(ROOT).with_suffix('').parts))
        missing += [f'{module.__name__}.{n}' for n in getattr(module, '__all__', ())
                    if inspect.isroutine(s := getattr(module, n)) and not inspect.getdoc(s)]
    assert not missing


def test_the_picture_is_the_one_that_the_notebook_makes():
    assert (ROOT/'docs/overview.png').read_bytes() == loaded('picture').picture(), 'run `python docs/picture.py`'


def test_the_picture_of_the_readme_is_taken_in(site):
    pictures = BeautifulSoup((site[0]/'README.html').read_text(), 'html.parser').find_all('img')
    assert pictures and all(p['src'].startswith('data:image/png') and p['alt'] for p in pictures)


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT/'README.md').read_text().split()) <= 700


@pytest.mark.parametrize('path', TEXTS, ids=lambda p: p.stem)
def test_links_of_texts_lead_somewhere(path):
    links = [l for l in re.findall(r'\]\(([^)#\s]+)', path.read_text()) if not l.startswith('http')]
    assert not [l for l in links if not (path.parent/l).exists()]


def test_the_contents_are_complete():
    contents = (ROOT/'docs/contents.md').read_text()
    listed = {(ROOT/'docs'/l).resolve() for l in re.findall(r'\]\(([^)#\s]+\.ipynb)', contents)}
    assert listed == notebooks('*.ipynb')
    assert {f'benchmarks/{p.name}' for p in (ROOT/'benchmarks').glob('*.py')} == {*re.findall(r'benchmarks/\w+\.py', contents)}


def test_every_file_of_data_is_described():
    """In a row's first cell, `_more.csv` and `.npz` stand for names that begin as the one before."""
    text, results, listed = (ROOT/'data/README.md').read_text(), ROOT/'data/results', set()
    for row in re.findall(r'^\| (`results/\w.*?) \|', text, re.M):
        first, *more = re.findall(r'`([^`]+)`', row)
        words = (ROOT/'data'/first).stem.split('_')
        begins = ['_'.join(words[:k]) for k in range(len(words), 0, -1)]
        listed |= {first.removeprefix('results/')} | {next(n for b in ('', *begins) if (results/(n := b + name)).is_file()) for name in more}
    assert listed == {p.name for p in results.iterdir()}
    assert {p.name for p in (ROOT/'data/sweeps').iterdir()} == {*re.findall(r'`sweeps/(\w+\.yaml)`', text)}
    assert {p.name for p in (ROOT/'data/models').glob('*.safetensors')} == {*re.findall(r'`models/(\w+\.safetensors)`', text)}


def shell_lines(path):
    """The command lines in a text's shell blocks, without their comments."""
    blocks = re.findall(r'```sh\n(.*?)```', path.read_text(), re.S)
    return [words for b in blocks for line in b.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize('path', [p for p in TEXTS if shell_lines(p)], ids=lambda p: p.stem)
def test_commands_in_texts_exist(path):
    from nanoshape.cli import parser
    makefile = (ROOT/'Makefile').read_text()
    targets = {*re.search(r'^\.PHONY: (.*)$', makefile, re.M)[1].split()}
    for command, *words in shell_lines(path):
        if command == 'nanoshape':
            parser().parse_args(words)
        elif command == 'make':
            assert {w for w in words if '=' not in w} <= targets
        for word in words:
            assert not word.startswith(('data/', 'nbs/')) or (ROOT/word).exists(), word


def test_the_clone_address_is_the_one_in_the_settings():
    from configparser import ConfigParser
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    assert ['git', 'clone', settings['DEFAULT']['git_url']] in shell_lines(ROOT/'README.md')


def test_the_python_in_the_readme_runs_from_another_folder(tmp_path):
    """From the folder that holds the clone, whose name is that of the package."""
    (tmp_path/'nanoshape').symlink_to(ROOT, target_is_directory=True)
    y, x = np.mgrid[:256, :256]
    image = np.random.default_rng(0).poisson(np.where(np.hypot(y - 120, x - 130) < 50, 60, 100)).astype(np.float32)
    file = write_dm(tmp_path/'micrograph.dm4', image, version=4)
    code = re.search(r'```python\n(.*?)```', (ROOT/'README.md').read_text(), re.S)[1].replace('path/to/micrograph.dm4', file.name)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code + 'print("rows:", len(table), "shape" in table)'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.stdout == 'rows: 1 True\n', done.stderr
