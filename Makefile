# make demo        set up and run the main job; IMAGE=micrograph.dm4 PIXEL_SIZE=0.0586 (nm per pixel) reads your own
# make test        set up and run the tests, but for the slowest
# make test-all    with these: every experiment at smoke size
# make notebooks   run library, tutorials, tour and figures, and keep their outputs (after editing: make export)
# make docs        the notebooks, a reference and a search as web pages in docs/site/index.html (two minutes)
# make export      write nanoshape/ from the notebooks and clean them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.nanoshape-installed
NOTEBOOKS ?= nbs/0*.ipynb $(foreach part,simulate datasets learn micrographs atoms studies,nbs/$(part)/*.ipynb) nbs/tutorials/*.ipynb nbs/index.ipynb nbs/figures/*.ipynb

.PHONY: demo test test-all docs notebooks export clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/nanoshape demo $(if $(IMAGE),--image '$(IMAGE)') $(if $(PIXEL_SIZE),--pixel-size '$(PIXEL_SIZE)') $(if $(FRAME),--frame '$(FRAME)') $(if $(OUT),--out '$(OUT)')

test test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --durations 15 $(if $(filter test,$@),-m 'not slow')

docs: $(READY)
	PYTHONWARNINGS=ignore $(BIN)/python docs/build.py

# the environment is made once, and again only when what it is made from changes
$(READY): constraints.txt settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "nanoshape is pinned for Python 3.11, this is %d.%d: install python3.11 and python3.11-venv, or name another with make PYTHON=…" % sys.version_info[:2])'
	@echo 'Setting up .venv (about 3 minutes and 7 GB, once) …'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@

export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

notebooks: export
	PYTHONWARNINGS=ignore TQDM_DISABLE=1 $(BIN)/python docs/run.py $(NOTEBOOKS)
	$(BIN)/nbdev_clean
	$(BIN)/python docs/picture.py

clean:
	rm -rf $(VENV) build docs/site *.egg-info
