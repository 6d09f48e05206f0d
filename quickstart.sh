#!/bin/sh
# The main job on a fresh machine:   sh quickstart.sh
#
# Sets up .venv, makes the sample data, trains APRIL-GAN on each of two datasets, and tests it on the other, zero-shot
# and few-shot; then, on the model that ships, AnomalyDINO's memory bank, which needs no training. Ends with the tables,
# sheets of pictures, and a page that compares the methods. Nothing is downloaded but Python packages.
#
# With real weights and data (DATA holds the folders mvtec and visa as published):
#   MODEL=ViT-L-14-336 PRETRAINED=openai DATA=/path/to/datasets sh quickstart.sh
set -eu
if [ $# -gt 0 ]; then
    echo "error: quickstart.sh takes no arguments; settings are given before it: METHOD=winclip sh quickstart.sh" >&2
    exit 2
fi
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
    CONFIG=$clip.json MODEL=quickstart-clip PRETRAINED=$clip.safetensors
    small=yes
    EPOCH=${EPOCH:-5} # its adapters gain nothing after that (measured), and the published 15 take a minute longer
fi
CONFIG=${CONFIG:-} PRETRAINED=${PRETRAINED:-} EPOCH=${EPOCH:-}
export METHOD MODEL PRETRAINED CONFIG EPOCH K_SHOT SEED PYTHON

if [ "${small:-}" = yes ]; then
    echo "The model in exps/quickstart is a small one: it has seen ImageNet, but defects in generated pictures alone."
    echo "MODEL=ViT-L-14-336 PRETRAINED=openai sh quickstart.sh takes OpenAI's CLIP instead (a download)."
fi

abilities=$(PYTHONPATH=$here "$PYTHON" -m model "$METHOD") # sets trains, zero_shot and few_shot
eval "$abilities"
modes="${zero_shot:+zero} ${few_shot:+few}"
sheets=${few_shot:+few} sheets=${sheets:-zero}

cross() { # train on $1, test on $2; what the scripts print is in the log.txt of each folder
    if [ "$trains" ]; then
        echo "training $METHOD on $1 (follow it: tail -f $SAVE/trained_on_$1/log.txt)"
        DATASET=$1 DATA=$DATA/$1 SAVE=$SAVE/trained_on_$1 sh "$here/train.sh" ${small:+--feature_cache "$SAVE/features"} >/dev/null
    fi
    for mode in $modes; do
        echo "testing on $2, $mode-shot"
        DATASET=$2 DATA=$DATA/$2 CHECKPOINT=${trains:+$SAVE/trained_on_$1} SAVE=$SAVE/$2/${mode}_shot \
            sh "$here/test_${mode}_shot.sh" ${small:+--feature_cache "$SAVE/features"} >/dev/null
    done
}
cross "$first" "$second"
cross "$second" "$first"

if [ "${small:-}" = yes ] && [ "$METHOD" = april_gan ]; then
    bank=yes modes="$modes bank" sheets="$sheets bank"
    for dataset in $first $second; do
        echo "testing anomaly_dino on $dataset, few-shot: a memory bank of the same model's features"
        METHOD=anomaly_dino DATASET=$dataset DATA=$DATA/$dataset SAVE=$SAVE/$dataset/bank_shot sh "$here/test_few_shot.sh" >/dev/null
    done
fi

printf '\nPercent. px: per pixel, sp: per image; 100 is perfect, and 50 is chance for auroc. Several seeds: mean ± standard deviation.\n'
for dataset in $first $second; do
    for mode in $modes; do
        method=$METHOD
        [ "$mode" = bank ] && method=anomaly_dino
        printf '\n## %s, %s: ' "$dataset" "$method"
        cat "$SAVE/$dataset/${mode}_shot/table.md"
    done
done
if [ "${bank:-}" ]; then
    for dataset in $first $second; do
        printf '\n## %s: both methods side by side\n\n' "$dataset"
        PYTHONPATH=$here "$PYTHON" -m report.compare "$SAVE/$dataset/few_shot" "$SAVE/$dataset/bank_shot" \
            --metrics auroc_sp auroc_px aupro --save_path "$SAVE/$dataset/comparison.html"
    done
fi
printf '\nclearest hits and worst misses, a sheet per set, and pages to open (curves, scores, pictures):\n'
for dataset in $first $second; do
    for mode in $sheets; do
        PYTHONPATH=$here "$PYTHON" -m report.contact_sheet "$SAVE/$dataset/${mode}_shot" >/dev/null
        printf '    %s\n' "$SAVE/$dataset/${mode}_shot/sheet.png"
    done
    for mode in $modes; do
        printf '    %s\n' "$SAVE/$dataset/${mode}_shot/report.html"
    done
done
echo "beside them: imgs/ (all pictures), metrics.json, predictions.csv, log.txt"
