"""Packaging from settings.ini, which nbdev and this file share."""
from configparser import ConfigParser
from pathlib import Path
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

SHIPPED = 'data/models', 'data/recipes', 'data/reference', 'data/structures', 'nbs/app'  # what commands need outside of a checkout


class BuildWithData(build_py):
    def run(self):
        super().run()
        if self.editable_mode: return  # the checkout is at hand
        for folder in SHIPPED:
            shutil.copytree(here/folder, Path(self.build_lib)/'nanoshape/shipped'/folder, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns('.ipynb_checkpoints'))


setup(
    cmdclass={'build_py': BuildWithData},
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    url=cfg['git_url'], license='GPL-3.0-or-later', keywords=cfg['keywords'].split(),
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['nanoshape', 'nanoshape.*']),
    package_dir={'': '.'},  # an editable install by path: from the folder that holds the checkout, `nanoshape` is still the package
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(), extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3.11',
                 'Topic :: Scientific/Engineering'],
)
