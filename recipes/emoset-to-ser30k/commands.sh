#!/usr/bin/env bash
# EmoSet-118K -> SER30K, photographs to stickers, at the size of Stable Diffusion 1.5: data check, captions, all methods
# in three seeds, reports, comparison, and a bundle for devices. NOT RUN by this project, which had neither the
# datasets nor the weights.
#
#     EMOSET=/data/EmoSet-118K SER30K=/data/SER30K SD15=/models/sd15 bash recipes/emoset-to-ser30k/commands.sh
#
# What it needs and how long it takes: docs/training.md. Stopped, it goes on where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../steps.sh"

EMOSET=${EMOSET:-EmoSet-118K}
SER30K=${SER30K:-SER30K}
SD15=${SD15:-stable-diffusion-v1-5}                   # diffusers layout: folders unet and vae
CLIP=${CLIP:-openai}                                  # ViT-L/14 in open_clip's layout; "openai": open_clip fetches it
INSTRUCTBLIP=${INSTRUCTBLIP:-instructblip-flan-t5-xl} # transformers' layout
PVT=${PVT:-pvt_v2_b2.in1k}                            # timm's layout, or a name that timm fetches
RUNS=${RUNS:-runs/emoset-to-ser30k}
SEEDS=${SEEDS:-0 1 2}
LATENTS=${LATENTS:-}     # a folder: encode every picture in 4 views, and train on these
MORE=${MORE:-}           # for every training of KCDP's network, such as "--set training.accumulate=4"

mkdir -p "$RUNS"
first=${SEEDS%% *}
source=(--source "emoset:$EMOSET")
target=(--target "ser30k:$SER30K")
neutral="ser30k:$SER30K?neutral=only"      # stickers that show none of the six emotions
told=(--captions "$RUNS/emoset.jsonl" --captions "$RUNS/ser30k.jsonl")
clip=(--set "model.text.weights=$CLIP")
network=(--set "model.backbone=$SD15" "${clip[@]}")
cache=()
if [ -n "$LATENTS" ]; then
    cache=(--set training.views=4 --set training.cache_latents=true --set "training.latents=$LATENTS")
fi

# 1. The data. Equal pictures in two splits or with two labels, damaged files: see docs/training.md.
check "$RUNS/emoset.check.json" "emoset:$EMOSET"
check "$RUNS/ser30k.check.json" "ser30k:$SER30K"

# 2. Captions, once for all methods; the triples that are read out of them are shown.
for data in "emoset:$EMOSET" "ser30k:$SER30K" "$neutral"; do
    file=${data%%:*}
    mark=$file
    if [ "$data" = "$neutral" ]; then mark=neutral; fi
    once "$RUNS/$mark.captioned" kcdp knowledge caption --data "$data" --captioner instructblip \
        --weights "$INSTRUCTBLIP" --out "$RUNS/$file.jsonl"
done
once "$RUNS/emoset.triples" kcdp knowledge triples --captions "$RUNS/emoset.jsonl"
once "$RUNS/ser30k.triples" kcdp knowledge triples --captions "$RUNS/ser30k.jsonl"

# 3. Training. No label of the target is used.
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
    for method in dann cdan mcc fixmatch; do
        train "$RUNS/$method-$seed" --preset sd15 --profile "$method" --config "$here/$method.toml" \
            "${source[@]}" "${target[@]}" "${told[@]}" "${network[@]}" "${cache[@]}" "${own[@]}" $MORE
    done
    train "$RUNS/as-published-code-$seed" --preset sd15 --profile as-published-code \
        --config "$here/as-published-code.toml" \
        "${source[@]}" "${target[@]}" "${told[@]}" "${network[@]}" "${own[@]}" $MORE
    train "$RUNS/kcdp-$seed" --preset sd15 --profile paper --config "$here/kcdp.toml" \
        "${source[@]}" "${target[@]}" "${told[@]}" "${network[@]}" "${cache[@]}" "${own[@]}" $MORE
    # The adapter that does without captions, for devices.
    train "$RUNS/device-$seed" --preset sd15 --profile paper --config "$here/device.toml" \
        "${source[@]}" "${target[@]}" "${told[@]}" --set "training.init_from=$RUNS/kcdp-$seed" \
        "${cache[@]}" "${own[@]}" $MORE
done

# 4. Reports: the target's test split, the source's beside it, abstention by the neutral stickers; then all of them in
#    one table, mean and spread over seeds.
runs=()
names=()
for method in clip-zero-shot clip-linear-probe pvt source-only dann cdan mcc fixmatch as-published-code kcdp device; do
    names+=(--name "$method")
    for seed in $SEEDS; do
        run=$RUNS/$method-$seed
        if [ ! -e "$run" ]; then continue; fi      # zero-shot has one seed
        evaluate "$run" --data "ser30k:$SER30K" --data "emoset:$EMOSET" --neutral "$neutral"
        runs+=("$run")
    done
done
once "$RUNS/comparison/comparison.md" kcdp report "${runs[@]}" "${names[@]}" --out "$RUNS/comparison"

# 5. A bundle of the first seed: choosing one by the target's labels would be cheating.
once "$RUNS/emoset-to-ser30k.kcdp" kcdp export "$RUNS/device-$first" --out "$RUNS/emoset-to-ser30k.kcdp"
