#!/bin/sh
# The main job on a fresh machine:   sh quickstart.sh
#
# Sets up .venv, makes the sample data, trains APRIL-GAN on each of two datasets, and tests it on the other, zero-shot
# and few-shot. Nothing is downloaded but Python packages.
#
# With real weights and data (DATA holds the folders mvtec and visa as published):
#   MODEL=ViT-L-14-336 PRETRAINED=openai DATA=/path/to/datasets sh quickstart.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/utils/venv.sh"
set_up requirements.txt

METHOD=${METHOD:-april_gan}
SAVE=${SAVE:-$here/results/quickstart}
K_SHOT=${K_SHOT:-1 4}
SEED=${SEED:-1 2 3}

if [ -n "${DATA:-}" ]; then
    first=mvtec second=visa
    for dataset in $first $second; do
        [ -f "$DATA/$dataset/meta.json" ] || "$PYTHON" "$here/data/$dataset.py" --root "$DATA/$dataset"
    done
else
    first=demo_textures second=demo_objects DATA=$here/data/demo
    "$PYTHON" "$here/data/demo.py" --root "$DATA"
fi

if [ -z "${MODEL:-}" ]; then
    clip=$here/exps/quickstart/quickstart-clip
    [ -f "$clip.safetensors" ] || "$PYTHON" "$here/tools/random_clip.py"
    CONFIG=$clip.json MODEL=quickstart-clip PRETRAINED=$clip.safetensors
    random=yes
fi
CONFIG=${CONFIG:-} PRETRAINED=${PRETRAINED:-}
export METHOD MODEL PRETRAINED CONFIG K_SHOT SEED PYTHON

cross() { # train on $1, test on $2
    printf '\n== %s trained on %s ==\n' "$METHOD" "$1"
    DATASET=$1 DATA=$DATA/$1 SAVE=$SAVE/trained_on_$1 sh "$here/train.sh"
    for mode in zero few; do
        printf '\n== %s-shot on %s ==\n' "$mode" "$2"
        DATASET=$2 DATA=$DATA/$2 CHECKPOINT=$SAVE/trained_on_$1 SAVE=$SAVE/$2/${mode}_shot sh "$here/test_${mode}_shot.sh"
    done
}
cross "$first" "$second"
cross "$second" "$first"

printf '\n== results ==\n'
for dataset in $first $second; do
    for mode in zero few; do
        printf '\n%s\n\n' "$dataset"
        cat "$SAVE/$dataset/${mode}_shot/table.md"
    done
done
printf '\npictures (original | anomaly map | ground truth): %s\n' "$SAVE/*/*_shot/imgs"
printf 'metrics, predictions and references beside them: metrics.json, predictions.csv, k_shot.json\n'
if [ "${random:-}" = yes ]; then
    echo "NOTE: this CLIP has random weights. The figures show that everything runs, not what CLIP can do;"
    echo "      MODEL=ViT-L-14-336 PRETRAINED=openai sh quickstart.sh uses real weights."
fi
