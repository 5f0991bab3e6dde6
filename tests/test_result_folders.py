"""A run replaces the files that it wrote itself, and loses nothing that a person has put into its folder."""
import json
import os
import shutil
import warnings

import pandas as pd
import pytest

from conftest import ROOT, one_sentence
from nanoshape import core
from nanoshape.cli import main
from nanoshape.core import UserError, own_files, read_json, result_folder, start_results, write_json


def run(folder, record='run.json', kind='', **files):
    """A run that writes these files; `a__b` is b in the sub-folder a."""
    with result_folder(folder, record, kind) as new:
        for name, text in files.items():
            path = new/name.replace('__', '/')
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        write_json(new/record, dict(seed=1))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob('*')) if p.is_file() and p.suffix != '.json'}


def test_a_new_run_replaces_its_own_files_only(tmp_path):
    out = tmp_path/'out'
    run(out, table='1', picture='old', sub__page='old')
    (out/'notes.txt').write_text('mine')
    (out/'best').mkdir()
    (out/'best/copy').write_text('mine')
    (out/'sub/mine').write_text('mine')
    run(out, table='2', sub__page='new')
    assert contents(out) == {'table': '2', 'sub/page': 'new', 'notes.txt': 'mine', 'best/copy': 'mine', 'sub/mine': 'mine'}
    assert own_files(out).keys() == {'table', 'sub/page'} and read_json(out/'run.json')['finished'] is True
    assert not list(tmp_path.glob('.*'))


def test_a_corrected_table_is_kept_beside_the_new_one(tmp_path):
    out = tmp_path/'out'
    for text in ('first', 'second', 'third'):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            run(out, table=text)
        assert len(told) == (text != 'first') and all('is kept as table.edited' in str(w.message) for w in told)
        (out/'table').write_text(f'{text}, corrected')
    assert contents(out) == {'table': 'third, corrected', 'table.edited': 'first, corrected', 'table.edited1': 'second, corrected'}
    run(out, other='1')
    assert contents(out)['table'] == 'third, corrected', 'a table that is no longer written, but was corrected, stays'


def test_a_name_that_a_person_uses_already(tmp_path):
    out = tmp_path/'out'
    run(out, table='1')
    (out/'picture').write_text('mine')
    with pytest.warns(UserWarning, match='picture.edited'):
        run(out, table='1', picture='new')
    assert contents(out) == {'table': '1', 'picture': 'new', 'picture.edited': 'mine'}
    (out/'page').mkdir()
    (out/'sub').write_text('mine')
    before = contents(out), (out/'run.json').read_bytes()
    for files, match in ((dict(page='1'), 'is a folder'), (dict(sub__page='1'), 'is a file where a folder')):
        with pytest.raises(UserError, match=match) as e:
            run(out, table='2', **files)
        assert one_sentence(e) and before == (contents(out), (out/'run.json').read_bytes()), 'nothing has moved'


STRANGE = [{'../mine': 'x'}, {'/mine': 'x'}, {'a/../../mine': 'x'}, {'a': ['x']}, {'a': 1}]


@pytest.mark.parametrize('record', [*(json.dumps(dict(made_by='nanoshape', files=f)) for f in STRANGE),
                                    '{"made_by": "nanoshape", "files": {}, "earlier": null}',
                                    '{"made_by": "nanoshape", "files": {}, "earlier": {"a": "b"}}',
                                    '', '{}', '[]', '{"files": {"a": "b"}}', '{"made_by": "nanoshape"}', '{"made_by": "other", "files": {}}', 'x'])
def test_a_folder_that_is_not_ours_is_refused(tmp_path, record):
    (tmp_path/'thesis.tex').write_text('years of work')
    if record:
        (tmp_path/'run.json').write_text(record)
    for start in (lambda: run(tmp_path, table='1'), lambda: start_results(tmp_path, 'run.json')):
        with pytest.raises(UserError, match='choose another folder') as e:
            start()
        assert one_sentence(e)
    assert {p.name for p in tmp_path.iterdir()} == {'thesis.tex', *(['run.json'] if record else [])}


def test_an_empty_folder_and_a_file(tmp_path):
    (tmp_path/'empty').mkdir()
    run(tmp_path/'empty', table='1')
    assert contents(tmp_path/'empty') == {'table': '1'}
    (tmp_path/'file').write_text('1')
    with pytest.raises(UserError):
        run(tmp_path/'file', table='1')


def test_a_run_that_fails_changes_nothing(tmp_path):
    run(tmp_path/'out', table='1')
    before = {p.name: p.read_bytes() for p in (tmp_path/'out').iterdir()}
    with pytest.raises(ZeroDivisionError):
        with result_folder(tmp_path/'out') as new:
            (new/'table').write_text('2')
            raise ZeroDivisionError
    assert before == {p.name: p.read_bytes() for p in (tmp_path/'out').iterdir()} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('stop', range(1, 6))
def test_a_run_that_is_stopped_between_two_files(tmp_path, monkeypatch, stop):
    """It says that it is not finished; the next one knows all files, old and new, for its own."""
    out, real, count = tmp_path/'out', os.replace, iter(range(100))
    run(out, a='1', b='1', c='1')
    (out/'notes').write_text('mine')

    def replace(*args):
        if next(count) == stop:
            raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(core.os, 'replace', replace)
    with pytest.raises(KeyboardInterrupt):
        run(out, a='2', b='2', d='2')
    monkeypatch.setattr(core.os, 'replace', real)
    assert read_json(out/'run.json')['finished'] is (stop == 1), 'before the first file moves the old result is whole'
    assert contents(out)['notes'] == 'mine'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(out, a='3', b='3')
    assert contents(out) == {'a': '3', 'b': '3', 'notes': 'mine'} and read_json(out/'run.json')['finished'] is True


def test_results_of_another_kind_are_not_replaced(tmp_path):
    run(tmp_path/'out', kind='particles', table='1')
    for start in (lambda: run(tmp_path/'out', kind='images', table='2'), lambda: start_results(tmp_path/'out', kind='images')):
        with pytest.raises(UserError, match='another kind'):
            start()
    assert contents(tmp_path/'out') == {'table': '1'}


def test_a_file_outside_of_the_folder_is_never_touched(tmp_path):
    from nanoshape.core import checksum
    (tmp_path/'mine').write_text('1')
    run(tmp_path/'out', table='1')
    record = read_json(tmp_path/'out/run.json')
    record['files']['../mine'] = checksum(tmp_path/'mine')
    write_json(tmp_path/'out/run.json', record)
    with pytest.raises(UserError):
        run(tmp_path/'out', table='2')
    assert (tmp_path/'mine').read_text() == '1'


def test_notes_in_the_record_are_kept(tmp_path):
    run(tmp_path/'out', table='1')
    write_json(tmp_path/'out/run.json', read_json(tmp_path/'out/run.json') | dict(note='mine'))
    with pytest.warns(UserWarning, match='run.edited.json'):
        run(tmp_path/'out', table='2')
    assert read_json(tmp_path/'out/run.edited.json')['note'] == 'mine' and 'note' not in read_json(tmp_path/'out/run.json')


def test_two_runs_at_once_do_not_share_a_temporary_folder(tmp_path):
    """As on two machines that give out the same process number."""
    with result_folder(tmp_path/'out') as one:
        (one/'a').write_text('1')
        with result_folder(tmp_path/'out') as two:
            assert one != two
            (two/'b').write_text('2')
        assert (one/'a').is_file()
    assert contents(tmp_path/'out') == {'a': '1'}


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path/'out').symlink_to(tmp_path/'unmounted/disk')
    for start in (lambda: run(tmp_path/'out', table='1'), lambda: start_results(tmp_path/'out')):
        with pytest.raises(UserError, match='link to nothing'):
            start()


def test_results_on_another_disk(tmp_path):
    import tempfile
    from pathlib import Path
    other = Path('/dev/shm')
    if not other.is_dir() or os.stat(other).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip('no second file system here')
    with tempfile.TemporaryDirectory(dir=other) as disk:
        (tmp_path/'out').symlink_to(disk)
        run(tmp_path/'out', table='0')
        (tmp_path/'elsewhere').mkdir()
        (Path(disk)/'sub').symlink_to(tmp_path/'elsewhere')
        for text in '12':
            run(tmp_path/'out', table=text, sub__page=text)
        assert contents(Path(disk))['table'] == '2' and (tmp_path/'elsewhere/page').read_text() == '2'


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path/'disk').mkdir()
    (tmp_path/'out').symlink_to(tmp_path/'disk')
    for text in '12':
        run(tmp_path/'out', table=text)
    assert (tmp_path/'out').is_symlink() and contents(tmp_path/'disk') == {'table': '2'}


def test_the_commands_keep_what_a_person_added(tmp_path, grey):
    from PIL import Image
    (tmp_path/'session').mkdir()
    Image.fromarray(grey).save(tmp_path/'session/image.png')
    if not (ROOT/'data/models/shapes.safetensors').is_file():
        pytest.skip('data/models/shapes.safetensors is not there')
    one = ['analyse', str(tmp_path/'session/image.png'), '--pixel-size', '0.06', '--detector', 'darkness', '--crystallinity', 'none']
    many = [one[0], str(tmp_path/'session'), *one[2:]]
    for args, record in ((one, 'run.json'), (many, 'survey.json')):
        out = tmp_path/record
        assert main([*args, '--out', str(out)]) == 0
        (out/'notes.txt').write_text('mine')
        (out/'for the paper').mkdir()
        shutil.copy(out/'particles.csv', out/'for the paper')
        pd.read_csv(out/'particles.csv').assign(reason='by hand').to_csv(out/'particles.csv', index=False)
        assert main([*args, '--out', str(out)]) == 0
        assert (out/'notes.txt').read_text() == 'mine' and (out/'for the paper/particles.csv').is_file()
        assert set(pd.read_csv(out/'particles.edited.csv').reason) == {'by hand'}
        assert 'by hand' not in (out/'particles.csv').read_text()
        assert json.loads((out/record).read_text())['finished'] is True
