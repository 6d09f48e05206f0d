#!/bin/sh
# Set up, lint, check types, test:   sh run_tests.sh [pytest's own arguments]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/utils/venv.sh"
set_up requirements.txt requirements-export.txt requirements-dev.txt

cd "$here"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# As many processes as there are cores, one thread of PyTorch each; the tests of a file stay together.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$PYTHON" -m pytest -n logical --maxprocesses 8 --dist loadfile "$@"
