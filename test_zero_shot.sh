#!/bin/sh
# Test on one dataset what was trained on another:   sh test_zero_shot.sh    DATASET=mvtec TRAINED_ON=visa sh test_zero_shot.sh
# Every setting can be given in the environment; further flags are passed on to test.py.
set -eu
here=$(dirname "$0")

METHOD=${METHOD:-april_gan} # test.py --help lists all
DATASET=${DATASET:-visa}
[ "$DATASET" = mvtec ] && other=visa || other=mvtec
TRAINED_ON=${TRAINED_ON:-$other} # what train.sh was run on; untrained methods ignore it
DATA=${DATA:-./data/$DATASET}
CHECKPOINT=${CHECKPOINT:-} # empty: ./exps/METHOD/TRAINED_ON, if the method is trained; else a file, or a folder of train.sh
SAVE=${SAVE:-./results/$METHOD/$DATASET/zero_shot}
MODEL=${MODEL:-}           # empty: the method's published one (april_gan: ViT-L-14-336, winclip: ViT-B-16-plus-240)
PRETRAINED=${PRETRAINED:-} # empty: the published weights (openai, laion400m_e31); else a tag or a file
CONFIG=${CONFIG:-}         # architecture JSON that open_clip does not ship
IMAGE_SIZE=${IMAGE_SIZE:-} # empty: the published one, or the own one of another MODEL
FEATURES=${FEATURES:-}     # empty: four evenly spaced layers (6 12 18 24 of ViT-L); anomaly_clip: the last
BATCH_SIZE=${BATCH_SIZE:-} # empty: 8

PYTHON=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}

# shellcheck disable=SC2086 # FEATURES holds several words
exec "$PYTHON" "$here/test.py" --method "$METHOD" --mode zero_shot --dataset "$DATASET" --data_path "$DATA" \
    --trained_on "$TRAINED_ON" ${CHECKPOINT:+--checkpoint_path "$CHECKPOINT"} --save_path "$SAVE" \
    ${MODEL:+--model "$MODEL"} ${PRETRAINED:+--pretrained "$PRETRAINED"} ${CONFIG:+--config_path "$CONFIG"} \
    ${IMAGE_SIZE:+--image_size "$IMAGE_SIZE"} ${FEATURES:+--features_list $FEATURES} \
    ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} "$@"
