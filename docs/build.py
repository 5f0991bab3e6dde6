"""`make docs`: every notebook as a page, the reference from docstrings, the texts of docs/, a search, and a check of all links.

    python docs/build.py [FOLDER]      # default: docs/site; open index.html in a browser, no server needed
"""
import argparse
import base64
import importlib
import inspect
import json
import re
import sys
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mistune
import nbformat
from bs4 import BeautifulSoup
from fastcore.docments import docments
from jinja2 import Environment
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from nanoshape.core import UserError, check_replaceable, project_root, result_folder

ROOT = project_root(Path(__file__))
LIBRARY = {'Foundations': '0[01]_*', 'Simulate': 'simulate/*', 'Data sets': 'datasets/*', 'Learn': 'learn/*', 'Micrographs': 'micrographs/*',
           'Atoms': 'atoms/*', 'Studies': 'studies/*', 'Front': '0[2345]_*'}  # the package's parts, in order: each uses only those before it
PARTS = {part: sorted((ROOT/'nbs').glob(pattern + '.ipynb')) for part, pattern in
         ({'Start': 'index', 'Tutorials': 'tutorials/*'} | LIBRARY | {'Figures': 'figures/*', 'Experiments': 'experiments/*'}).items()}
TEXTS = {'README.md': 'README', 'docs/commands.md': 'Commands', 'docs/real_micrographs.md': 'Real micrographs',
         'docs/lesson_plan.md': 'A lesson plan', 'docs/contents.md': 'Contents', 'data/README.md': 'The data folder', 'docs/glossary.md': 'Glossary',
         'CONTRIBUTING.md': 'Working on nanoshape', 'CHANGELOG.md': 'Changes'}
RECORD = 'site.json'  # how a folder with a site is recognised

PAGE = '''<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · nanoshape</title><link rel="stylesheet" href="{{ up }}style.css">
<script defer src="{{ up }}pages.js"></script><script defer src="{{ up }}search.js"></script>
<body data-up="{{ up }}"><a class="skip" href="#main">Skip to the text</a>
<nav aria-label="All pages"><p><a href="{{ up }}index.html"><b>nanoshape</b></a></p>
<label for="search">Search</label> <input id="search" type="search" autocomplete="off"><ul id="found" aria-live="polite"></ul>
{% for part, pages in parts %}<details {{ 'open' if part == here }}><summary>{{ part }}</summary><ul>
{% for p in pages %}{% if p.group and loop.changed(p.group) %}<li class="group">{{ p.group }}</li>{% endif %}
<li><a href="{{ up }}{{ p.url }}"{{ ' aria-current="page"'|safe if p.url == url }}>{{ p.title }}</a></li>{% endfor %}</ul>
</details>{% endfor %}</nav><main id="main">{{ body|safe }}</main></body></html>'''

STYLE = '''body{font:16px/1.55 system-ui,sans-serif;color:#222;margin:0;display:flex}nav{width:17rem;flex:none;height:100vh;overflow:auto;
position:sticky;top:0;padding:1rem;box-sizing:border-box;background:#f6f6f6;font-size:14px}nav ul{padding-left:1rem;margin:.3rem 0}
main{padding:1rem 2rem;max-width:56rem;min-width:0}a{color:#0b5394}a:focus,input:focus,summary:focus{outline:3px solid #E69F00}
[aria-current]{font-weight:bold}.group{list-style:none;margin:.4rem 0 0 -1rem;color:#595959}
pre{overflow-x:auto;font-size:13px;line-height:1.35;background:#f7f7f7;padding:.6rem}img{max-width:100%}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}th,td{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:left}
.jp-InputPrompt,.jp-OutputPrompt,.anchor-link{display:none}.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem}
@media(max-width:50rem){body{display:block}nav{width:auto;height:auto;position:static}}'''

SEARCH = '''const box = document.getElementById('search'), list = document.getElementById('found'), up = document.body.dataset.up
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(w => w)
  const score = p => words.reduce((s, w) => s*((p.title.toLowerCase().includes(w) ? 20 : 0) + Math.min(p.text.split(w).length - 1, 9)), 1)
  const found = words.length ? PAGES.map(p => [score(p), p]).filter(v => v[0] > 0).sort((a, b) => b[0] - a[0]).slice(0, 12) : []
  list.replaceChildren(...found.map(([, p]) => {
    const a = Object.assign(document.createElement('a'), {href: up + p.url, textContent: p.title}), li = document.createElement('li')
    li.append(a); return li }))
  if (words.length && !found.length) list.textContent = 'nothing found'
})'''


def headings(nb):
    """Title, and of each cell the heading that it stands under."""
    now, out, title = '', [], None
    for c in nb.cells:
        if c.cell_type == 'markdown':
            for line in re.findall(r'^#+ (.+)$', c.source, re.M):
                title, now = title or line, line
        out.append(now)
    return title, out


def rendered(path, exporter):
    """A notebook's title, its body as HTML, and its pictures as files; they say which section they belong to."""
    nb = nbformat.read(path, 4)
    title, under = headings(nb)
    for cell, heading in zip(nb.cells, under):
        for k, o in enumerate(cell.get('outputs', [])):
            if 'image/png' in o.get('data', {}):
                o.setdefault('metadata', {}).setdefault('image/png', {})['alt'] = f'Figure: {heading}' + (f' ({k + 1})' if k else '')
    body, extra = exporter.from_notebook_node(nb, resources=dict(unique_key=path.stem, output_files_dir='pictures'))
    return title or path.stem, body, extra.get('outputs', {})


def described(sym):
    """A function's or class's signature, docstring, and what stands behind each parameter."""
    kind, doc = 'class ' if inspect.isclass(sym) else '', inspect.getdoc(sym) or ''
    try:
        notes = docments(sym, full=True, returns=not kind)
    except (ValueError, TypeError, OSError):
        notes = {}
    rows = [(k, inspect.formatannotation(v.anno) if v.anno is not inspect.Parameter.empty else '',
             '' if v.default is inspect.Parameter.empty else repr(v.default), v.docment or '') for k, v in notes.items() if k != 'self']
    head = f'<h2 id="{sym.__name__}"><code>{kind}{sym.__name__}({", ".join(k for k, *_ in rows if k != "return")})</code></h2>'
    cells = ''.join('<tr>' + ''.join(f'<td>{escape(v)}</td>' for v in r) + '</tr>' for r in rows)
    table = '<table><tr><th>parameter</th><th>type</th><th>default</th><th>meaning</th></tr>' + cells + '</table>' if rows else ''
    return head + f'<p>{escape(doc)}</p>' + table


def reference(name):
    """The public names of a module as HTML."""
    module = importlib.import_module(f'nanoshape.{name}')
    found = [s for s in (getattr(module, n) for n in module.__all__) if inspect.isfunction(s) or inspect.isclass(s)]
    return f'<h1>nanoshape.{name}</h1><p>{escape(module.__doc__ or "")}</p>' + ''.join(map(described, found))


def repaired(html, source, urls, url):
    """The page, parsed, with links to notebooks and texts turned into links to their pages; to other files of the project, into plain text;
    pictures taken in, solutions folded."""
    soup = BeautifulSoup(html, 'html.parser')
    for cell in soup.select('.celltag_solution'):
        cell.wrap(soup.new_tag('details', attrs={'class': 'solution'})).insert(0, BeautifulSoup('<summary>Solution</summary>', 'html.parser'))
    for a in soup.find_all('a', href=True):
        to = urlsplit(a['href'])
        if to.scheme or to.netloc or not to.path:
            continue
        file = (source.parent/unquote(to.path)).resolve()
        key = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else ''
        if key in urls:
            a['href'] = '../'*url.count('/') + urls[key] + (f'#{to.fragment}' if to.fragment else '')
        elif file.exists():
            a.name, a.attrs = 'code', {}
    for img in soup.find_all('img', src=True):
        if not urlsplit(img['src']).scheme and (file := source.parent/unquote(img['src'])).is_file():
            img['src'] = 'data:image/png;base64,' + base64.b64encode(file.read_bytes()).decode()
    return soup


def pages():
    """All that becomes a page: part, source, url, title, HTML."""
    exporter, md, out = HTMLExporter(template_name='basic'), mistune.create_markdown(escape=False, plugins=['table', 'strikethrough']), []
    exporter.exclude_anchor_links = True
    exporter.register_preprocessor('nbconvert.preprocessors.ExtractOutputPreprocessor', enabled=True)
    for part, files in PARTS.items():
        for f in files:
            f = ROOT/f
            title, html, pictures = rendered(f, exporter)
            folder = '' if f.parent.name == 'nbs' else f'{f.parent.name}/'
            out.append(dict(part=part, source=f, url=f'{folder}{f.stem}.html', title=title, html=html, pictures=pictures))
    for f, title in TEXTS.items():
        text = (ROOT/f).read_text(encoding='utf-8')
        out.append(dict(part='Start', source=ROOT/f, url=f.replace('/', '-').replace('.md', '.html'), title=title, html=md(text)))
    for group, f in ((part, f) for part in LIBRARY for f in PARTS[part]):
        name = '.'.join([*f.relative_to(ROOT/'nbs').parts[:-1], re.sub(r'^\d+_', '', f.stem)])
        out.append(dict(part='Reference', group=group, source=(ROOT/'nanoshape').joinpath(*name.split('.')).with_suffix('.py'),
                        url=f'reference/{name}.html', title=f'nanoshape.{name}', html=reference(name)))
    return out


def dead_links(folder, soups):
    """Relative links and pictures of pages (url → parsed) that lead nowhere."""
    names, dead = {u: {t['id'] for t in s.find_all(id=True)} for u, s in soups.items()}, []
    for url, soup in soups.items():
        for link in (t.get('href') or t.get('src') for t in soup.find_all(['a', 'img']) if t.get('href') or t.get('src')):
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            file = (folder/url).parent/unquote(to.path) if to.path else folder/url
            there = str(file.resolve().relative_to(folder.resolve())) if file.exists() else ''
            if not file.is_file() or to.fragment and unquote(to.fragment) not in names.get(there, ()):
                dead.append(f'{url}: {link}')
    return sorted(set(dead))


def build(out):
    """Write the site; returns its dead links."""
    all_pages, template = pages(), Environment(autoescape=True).from_string(PAGE)
    urls = {str(p['source'].relative_to(ROOT)): p['url'] for p in all_pages}
    parts = [(k, [p for p in all_pages if p['part'] == k]) for k in dict.fromkeys(p['part'] for p in all_pages)]
    dict(parts)['Tutorials'].sort(key=lambda p: p['title'])  # they begin with their numbers
    soups = {p['url']: repaired(p['html'], p['source'], urls, p['url']) for p in all_pages}
    with result_folder(out, RECORD) as tmp:
        for p in all_pages:
            file = tmp/p['url']
            file.parent.mkdir(parents=True, exist_ok=True)
            for name, data in p.get('pictures', {}).items():
                (file.parent/name).parent.mkdir(exist_ok=True)
                (file.parent/name).write_bytes(data)
            file.write_text(template.render(title=p['title'], up='../'*p['url'].count('/'), parts=parts, here=p['part'], url=p['url'],
                                            body=str(soups[p['url']])), encoding='utf-8')
        found = [dict(title=p['title'], url=p['url'], text=' '.join(soups[p['url']].get_text(' ').lower().split())[:20000]) for p in all_pages]
        (tmp/'pages.js').write_text(f'const PAGES = {json.dumps(found)}', encoding='utf-8')
        (tmp/'search.js').write_text(SEARCH, encoding='utf-8')
        (tmp/'style.css').write_text(STYLE + HtmlFormatter(style='default').get_style_defs('.highlight'), encoding='utf-8')
        return dead_links(tmp, soups)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('out', nargs='?', default=ROOT/'docs/site', type=Path)
    out = p.parse_args().out
    if (out/'pages.js').is_file() and not (out/RECORD).is_file():
        raise UserError(f'{out} holds the site of an earlier version: remove that folder, or choose another folder')
    check_replaceable(out, RECORD)
    dead = build(out)
    print('\n'.join(f'dead link in {d}' for d in dead) or f'{out}/index.html: every link leads somewhere')
    return 1 if dead else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as e:
        sys.exit(f'docs: {e}')
