#!/bin/sh
# Train on one dataset, to test on another:   sh train.sh    DATASET=visa sh train.sh    sh train.sh --num_workers 8
# Every setting can be given in the environment; further flags are passed on to train.py.
set -eu
here=$(dirname "$0")

METHOD=${METHOD:-april_gan} # or any other method that is trained, such as vcp_clip
DATASET=${DATASET:-mvtec}
DATA=${DATA:-./data/$DATASET}
SAVE=${SAVE:-./exps/$METHOD/$DATASET}
MODEL=${MODEL:-}           # empty: the method's published one (april_gan: ViT-L-14-336)
PRETRAINED=${PRETRAINED:-} # empty: the published weights (april_gan: openai); else a tag or a file
CONFIG=${CONFIG:-}         # architecture JSON that open_clip does not ship
IMAGE_SIZE=${IMAGE_SIZE:-} # empty: the published one (april_gan: 518), or the own one of another MODEL
FEATURES=${FEATURES:-}     # empty: four evenly spaced layers (6 12 18 24 of ViT-L); anomaly_clip: the last
BATCH_SIZE=${BATCH_SIZE:-} # empty: the published one (vcp_clip: 32, all others: 8)
EPOCH=${EPOCH:-}           # empty: the published one (april_gan: 3 on mvtec, 15 elsewhere)
AUG_RATE=${AUG_RATE:-}     # empty: the published one (april_gan and vcp_clip: 0.2 on mvtec)
VAL_DATASET=${VAL_DATASET:-} # scored after every saved epoch; the best one is kept as best.pth
VAL_DATA=${VAL_DATA:-}       # empty: ./data/VAL_DATASET

PYTHON=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}

# shellcheck disable=SC2086 # FEATURES holds several words
exec "$PYTHON" "$here/train.py" --method "$METHOD" --dataset "$DATASET" --train_data_path "$DATA" --save_path "$SAVE" \
    ${MODEL:+--model "$MODEL"} ${PRETRAINED:+--pretrained "$PRETRAINED"} ${CONFIG:+--config_path "$CONFIG"} \
    ${IMAGE_SIZE:+--image_size "$IMAGE_SIZE"} ${FEATURES:+--features_list $FEATURES} \
    ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} ${EPOCH:+--epoch "$EPOCH"} ${AUG_RATE:+--aug_rate "$AUG_RATE"} \
    ${VAL_DATASET:+--val_dataset "$VAL_DATASET"} ${VAL_DATA:+--val_data_path "$VAL_DATA"} "$@"
