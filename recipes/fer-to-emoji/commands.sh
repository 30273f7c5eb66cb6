#!/usr/bin/env bash
# FER-2013 faces -> emoji artwork with the preset "edge": what labels of faces alone teach, and what adaptation to
# unlabelled emoji adds, at the same number of steps. Measured on artwork that no training has seen.
#
#     FER2013=fer2013.zip bash recipes/fer-to-emoji/commands.sh          about 90 minutes a training on one CPU core
#     SEED=1 RUNS=runs/fer-to-emoji-1 bash recipes/fer-to-emoji/commands.sh          another seed
#
# Emoji are fetched by npm. Stopped, it goes on where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../steps.sh"

FER2013=${FER2013:-fer2013.zip}        # the zip, the folder or the original csv
EMOJI=${EMOJI:-emoji}                  # made, where it is not there
RUNS=${RUNS:-runs/fer-to-emoji}
SEED=${SEED:-0}

source=(--source "fer2013:$FER2013")
target=(--target "emoji:$EMOJI?styles=twemoji,fluent,fluent-flat,openmoji")
own=(--set "training.seed=$SEED")
mkdir -p "$RUNS"

# 1. The data.
once "$EMOJI" kcdp data emoji --out "$EMOJI"
check "$RUNS/fer2013.check.json" "fer2013:$FER2013"

# 2. Labelled faces alone, 3,000 steps. After 1,500 the run is copied; then it goes on, to the bit as if it had not
#    been stopped.
start=(--preset edge --profile paper --config "$here/source.toml" "${source[@]}" "${own[@]}")
part 1500 "$RUNS/source" "$RUNS/source-1500" "${start[@]}"
train "$RUNS/source" "${start[@]}"

# 3. From those 1,500 steps on with unlabelled emoji in four artworks, 1,500 more.
train "$RUNS/kcdp" --preset edge --profile paper --config "$here/kcdp.toml" "${source[@]}" "${target[@]}" \
    --set "training.init_from=$RUNS/source-1500" "${own[@]}"

# 4. Reports: first the two artworks that neither training has seen; then all six, of which the adaptation has seen
#    four, without labels (the report says so); and FER-2013's test faces, against which neutral faces are held to
#    choose when to abstain.
for run in source kcdp; do
    evaluate "$RUNS/$run" --data "emoji:$EMOJI?styles=noto,fluent-3d&only=labelled" \
        --data "emoji:$EMOJI?only=labelled" --data "fer2013:$FER2013" --neutral "fer2013:$FER2013?neutral=only"
done
once "$RUNS/comparison/comparison.md" kcdp report "$RUNS/source" "$RUNS/kcdp" --name "source only" --name KCDP \
    --out "$RUNS/comparison"

# 5. A bundle.
once "$RUNS/fer-to-emoji.kcdp" kcdp export "$RUNS/kcdp" --out "$RUNS/fer-to-emoji.kcdp"
