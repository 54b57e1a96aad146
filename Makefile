# make demo   the whole way on the embedded model, offline: activations, SAE, features, chat analysis, report
# make test   every notebook as a test
# make help   the rest
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo_output

.PHONY: help demo test test-slow test-browser checks readme pocket clean
help:            ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "sae_analysis needs Python 3.10 or newer; set PYTHON=..."; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: settings.ini setup.py | .venv/made
	@echo "installing sae_analysis and what it needs (several GB the first time; a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-dev: settings.ini setup.py | .venv/made
	@echo "installing sae_analysis, what it needs, and the development extras (several GB the first time; a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/installed

demo: .venv/installed   ## train, explain and analyse an SAE on the pocket model, offline, into demo_output/
	$(BIN)/sae_analysis demo --out $(OUT)

test: .venv/installed-dev   ## run every notebook as a test
	@echo "running the notebooks as tests"
	$(BIN)/python .ci/checks.py notebooks

test-slow: .venv/installed-dev   ## the same, with the cells flagged slow
	$(BIN)/python .ci/checks.py notebooks --flags slow

test-browser: .venv/installed-dev   ## quickstart, explorers and report in JupyterLab and Chromium; pictures of them in browser_screenshots/
	@command -v chromium chromium-browser google-chrome >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Chromium"; apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	else echo "this test needs Chromium; install chromium (Debian: apt-get install chromium) or google-chrome, and try again"; exit 1; fi
	$(BIN)/python .ci/browser.py

checks: .venv/installed-dev   ## format, lint, types and style; notebooks and package in step; README, docs, wheel
	$(BIN)/python .ci/checks.py format lint types style sync order readme docs wheel
	$(BIN)/python .ci/test_structure.py
	PYTHONPATH=. $(BIN)/python .ci/test_examples.py
	PYTHONPATH=. $(BIN)/python .ci/test_old_files.py

readme: .venv/installed-dev   ## write README.md from nbs/index.ipynb
	$(BIN)/python .ci/checks.py write-readme

pocket: .venv/installed-dev   ## train the pocket model anew (about two hours on two cores; goes on when interrupted)
	mkdir -p pocket_training
	cd nbs/tutorials && POCKET_FULL=1 POCKET_FOLDER=$(CURDIR)/pocket_training $(CURDIR)/$(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 --output-dir $(CURDIR)/pocket_training pocket_recipe.ipynb
	@echo "the model lies in pocket_training/pocket; copy it to sae_analysis/pocket to ship it"

clean:           ## remove what was made, but not .venv
	rm -rf build dist *.egg-info _proc _docs demo_output browser_screenshots nbs/nbdev.yml
