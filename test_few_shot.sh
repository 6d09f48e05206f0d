#!/bin/sh
# Test with a few normal reference images per class:   sh test_few_shot.sh    K_SHOT="1 2 4" SEED="1 2 3" sh test_few_shot.sh
# Every setting can be given in the environment; further flags are passed on to test.py.
set -eu
here=$(dirname "$0")

METHOD=${METHOD:-april_gan} # or any other method that takes references, such as winclip
DATASET=${DATASET:-visa}
[ "$DATASET" = mvtec ] && other=visa || other=mvtec
TRAINED_ON=${TRAINED_ON:-$other} # what train.sh was run on; untrained methods ignore it
DATA=${DATA:-./data/$DATASET}
CHECKPOINT=${CHECKPOINT:-} # empty: ./exps/METHOD/TRAINED_ON, if the method is trained; else a file, or a folder of train.sh
K_SHOT=${K_SHOT:-4}  # one or more, scored in one pass
SEED=${SEED:-42}     # one or more: mean and standard deviation over them
SAVE=${SAVE:-./results/$METHOD/$DATASET/few_shot}
MODEL=${MODEL:-}           # empty: the method's published one (april_gan: ViT-L-14-336, winclip: ViT-B-16-plus-240)
PRETRAINED=${PRETRAINED:-} # empty: the published weights (openai, laion400m_e31); else a tag or a file
CONFIG=${CONFIG:-}         # architecture JSON that open_clip does not ship
IMAGE_SIZE=${IMAGE_SIZE:-} # empty: the published one, or the own one of another MODEL
FEATURES=${FEATURES:-}     # empty: four evenly spaced layers (6 12 18 24 of ViT-L)
FEW_SHOT_FEATURES=${FEW_SHOT_FEATURES:-} # empty: as FEATURES
BATCH_SIZE=${BATCH_SIZE:-} # empty: 8

PYTHON=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}

# shellcheck disable=SC2086 # some settings hold several words
exec "$PYTHON" "$here/test.py" --method "$METHOD" --mode few_shot --dataset "$DATASET" --data_path "$DATA" \
    --trained_on "$TRAINED_ON" ${CHECKPOINT:+--checkpoint_path "$CHECKPOINT"} --save_path "$SAVE" --k_shot $K_SHOT --seed $SEED \
    ${FEW_SHOT_FEATURES:+--few_shot_features $FEW_SHOT_FEATURES} \
    ${MODEL:+--model "$MODEL"} ${PRETRAINED:+--pretrained "$PRETRAINED"} ${CONFIG:+--config_path "$CONFIG"} \
    ${IMAGE_SIZE:+--image_size "$IMAGE_SIZE"} ${FEATURES:+--features_list $FEATURES} \
    ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} "$@"
