# make demo: see it work.  make test: the whole suite.  Both install what they need.
.PHONY: setup setup-dev demo demo-clean test check format bench lock
PY := .venv/bin/python

setup:
	@scripts/setup run
setup-dev:
	@scripts/setup dev

demo: setup
	@scripts/demo
demo-clean:
	@scripts/demo clean

test: check
	@$(PY) -m pytest tests

check: setup-dev
	@.venv/bin/ruff format --check -q atoll tests bench
	@.venv/bin/ruff check -q atoll tests bench
	@.venv/bin/mypy --no-error-summary
	@$(PY) -m pytest -q tests/shape

format: setup-dev
	@.venv/bin/ruff format -q atoll tests bench
	@.venv/bin/ruff check -q --fix atoll tests bench

bench: setup-dev
	@$(PY) -m bench

# Pins every dependency, for every Python from 3.11 on, with hashes and without a registry's address.
LOCK = .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header -q
lock: setup-dev
	@$(PY) -m pip install -q uv
	@$(LOCK) --upgrade --all-extras -o requirements-dev.lock
	@$(LOCK) --extra build -c requirements-dev.lock -o requirements.lock
