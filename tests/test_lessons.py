"""Exercises of the tutorials: what is right, what is a known mistake, and that each tutorial asks for what there is."""
import re

import pytest

from conftest import ROOT
from nanoshape.core import UserError
from nanoshape.lessons import check, exercises
from test_notebooks import cells, source


def asked():
    """Exercises that the tutorials check."""
    code = [source(c) for p in sorted((ROOT/'nbs/tutorials').glob('*.ipynb')) for c in cells(p) if c['cell_type'] == 'code']
    return [name for text in code for name in re.findall(r"^check\('(.+?)',", text, re.M)]


def test_every_exercise_is_asked_for_once_and_in_its_tutorial():
    assert sorted(asked()) == sorted(exercises())
    for name in exercises(): assert (ROOT/f'nbs/tutorials/{name.split()[0]}.ipynb').is_file()


@pytest.mark.parametrize('name', exercises())
def test_right_answers_are_taken_and_mistakes_are_not(name, capsys):
    e = exercises()[name]
    for right in [e.right] if isinstance(e.right, (str, int, float)) else e.right:
        check(name, right)
        assert capsys.readouterr().out == f'Right. {e.because}\n'
    for wrong, cause in e.mistakes.items():
        check(name, wrong)
        assert capsys.readouterr().out == f'Not yet. {cause}\n'
    check(name, None)
    assert capsys.readouterr().out == f'No answer yet. {e.hints[0]}\n'


def test_other_answers_get_one_hint_after_another(capsys):
    for _ in range(3): check('which_nanotube 3', 'a word')
    said = capsys.readouterr().out.splitlines()
    assert len(set(said)) == 2 and said[0] == said[2] and all(s.startswith('Not yet. ') for s in said)
    with pytest.raises(UserError, match='no exercise'): check('which_nanotube 9', 1)


def test_no_tutorial_gives_an_answer_away():
    for p in sorted((ROOT/'nbs/tutorials').glob('*.ipynb')):
        for c in cells(p):
            if "\ncheck('" in source(c): assert re.match(r'\w+ = None\b', source(c)), p.name
