#!/usr/bin/env bash
# UC at the size of Stable Diffusion 1.5: trained on EmoSet-118K alone, measured on every other dataset that is there.
# NOT RUN by this project, which had neither EmoSet nor the weights.
#
#     EMOSET=/data/EmoSet-118K SER30K=/data/SER30K FI= SD15=/models/sd15 bash recipes/uc/commands.sh
#
# A dataset whose variable is empty, or names nothing, is left out. Needs and times: docs/training.md. Stopped, it goes
# on where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../steps.sh"

EMOSET=${EMOSET:-EmoSet-118K}
SER30K=${SER30K-SER30K}
FI=${FI-FI}
EMOTION6=${EMOTION6-Emotion6}
EMO8=${EMO8-Emo8}
FER2013=${FER2013-fer2013.zip}
SD15=${SD15:-stable-diffusion-v1-5}                   # diffusers layout: folders unet and vae
CLIP=${CLIP:-openai}                                  # ViT-L/14 in open_clip's layout; "openai": open_clip fetches it
INSTRUCTBLIP=${INSTRUCTBLIP:-instructblip-flan-t5-xl} # transformers' layout
PVT=${PVT:-pvt_v2_b2.in1k}                            # timm's layout, or a name that timm fetches
RUNS=${RUNS:-runs/uc}
SEEDS=${SEEDS:-0 1 2}
LATENTS=${LATENTS:-}     # a folder: encode every picture in 4 views, and train on these
MORE=${MORE:-}           # for every training of KCDP's network, such as "--set training.accumulate=4"

mkdir -p "$RUNS"
first=${SEEDS%% *}
source=(--source "emoset:$EMOSET")
clip=(--set "model.text.weights=$CLIP")
network=(--set "model.backbone=$SD15" "${clip[@]}")
cache=()
if [ -n "$LATENTS" ]; then
    cache=(--set training.views=4 --set training.cache_latents=true --set "training.latents=$LATENTS")
fi

# What is measured: the test split of a dataset that has splits, else all of it.
tested=()
for data in "ser30k:$SER30K" "fi:$FI" "emotion6:$EMOTION6" "emo8:$EMO8" "fer2013:$FER2013"; do
    path=${data#*:}
    if [ -n "$path" ] && [ -e "$path" ]; then tested+=("$data"); fi
done
if [ ${#tested[@]} -eq 0 ]; then
    echo "recipe: there is no dataset to measure on; name one with SER30K, FI, EMOTION6, EMO8 or FER2013" >&2
    exit 2
fi

# 1. The data.
for data in "emoset:$EMOSET" "${tested[@]}"; do
    check "$RUNS/${data%%:*}.check.json" "$data"
done

# 2. Captions, once for all methods.
told=(--captions "$RUNS/emoset.jsonl")
asked=()
measured=()
for data in "emoset:$EMOSET" "${tested[@]}"; do
    kind=${data%%:*}
    once "$RUNS/$kind.captioned" kcdp knowledge caption --data "$data" --captioner instructblip \
        --weights "$INSTRUCTBLIP" --out "$RUNS/$kind.jsonl"
    if [ "$kind" != emoset ]; then
        asked+=(--captions "$RUNS/$kind.jsonl")
        measured+=(--data "$data")
    fi
done

# 3. Training, on labelled photographs alone.
train "$RUNS/clip-zero-shot-$first" --preset sd15 --profile clip-zero-shot --config "$here/clip-zero-shot.toml" \
    "${source[@]}" "${clip[@]}" --set "training.seed=$first"
for seed in $SEEDS; do
    own=(--set "training.seed=$seed")
    train "$RUNS/clip-linear-probe-$seed" --preset sd15 --profile clip-linear-probe \
        --config "$here/clip-linear-probe.toml" "${source[@]}" "${clip[@]}" "${own[@]}"
    train "$RUNS/pvt-$seed" --preset sd15 --profile pvt --config "$here/pvt.toml" \
        "${source[@]}" "${told[@]}" "${clip[@]}" --set "model.backbone=$PVT" "${own[@]}"
    train "$RUNS/source-only-$seed" --preset sd15 --profile source-only --config "$here/source-only.toml" \
        "${source[@]}" "${told[@]}" "${network[@]}" "${cache[@]}" "${own[@]}" $MORE
    train "$RUNS/as-published-code-$seed" --preset sd15 --profile as-published-code \
        --config "$here/as-published-code.toml" "${source[@]}" "${told[@]}" "${network[@]}" "${own[@]}" $MORE
    train "$RUNS/kcdp-$seed" --preset sd15 --profile paper --config "$here/kcdp.toml" \
        "${source[@]}" "${told[@]}" "${network[@]}" "${cache[@]}" "${own[@]}" $MORE
done

# 4. Reports on all of these datasets at once, and all runs in one table. Models that take captions are given them.
runs=()
names=()
for method in clip-zero-shot clip-linear-probe pvt source-only as-published-code kcdp; do
    names+=(--name "$method")
    given=("${asked[@]}")
    case $method in clip-*) given=() ;; esac
    for seed in $SEEDS; do
        run=$RUNS/$method-$seed
        if [ ! -e "$run" ]; then continue; fi      # zero-shot has one seed
        evaluate "$run" "${measured[@]}" "${given[@]}"
        runs+=("$run")
    done
done
once "$RUNS/comparison/comparison.md" kcdp report "${runs[@]}" "${names[@]}" --out "$RUNS/comparison"
