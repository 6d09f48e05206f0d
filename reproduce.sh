#!/bin/sh
# The published figures, measured again:   DATA=/data sh reproduce.sh    METHODS="winclip musc" DATASETS=mvtec sh reproduce.sh
# Trains what trains, tests every method on every dataset that is there, and sets the results beside the published figures:
# SAVE.csv and SAVE.html. Interrupted, or started again with more methods, it goes on where it was: docs/reproducing.md.
# Every setting can be given in the environment; further flags are passed on to every train.py and test.py.
set -eu
here=$(dirname "$0")

DATA=${DATA:-./data}     # folder that holds the datasets, each under its name: mvtec, visa, ...
METHODS=${METHODS:-}     # empty: all
DATASETS=${DATASETS:-}   # empty: all that data/ has a script for; those that are not there are named
K_SHOT=${K_SHOT:-1 2 4}  # of methods that take references; all are scored in one pass
SEED=${SEED:-}           # empty: winclip 1 2 3 4 5, anomaly_dino 0 1 2, all others 42
SAVE=${SAVE:-./results/reproduce}
PUBLISHED=${PUBLISHED:-} # empty: report/published.json; else a file of that form

PYTHON=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}

# shellcheck disable=SC2086 # some settings hold several words
exec "$PYTHON" "$here/reproduce.py" --data_path "$DATA" --save_path "$SAVE" --k_shot $K_SHOT \
    ${METHODS:+--methods $METHODS} ${DATASETS:+--datasets $DATASETS} ${SEED:+--seed $SEED} \
    ${PUBLISHED:+--published "$PUBLISHED"} "$@"
