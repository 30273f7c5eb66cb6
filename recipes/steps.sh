# Functions for the commands.sh of every recipe, which reads this file. Each passes over what is done already.

# How a training is started. On four GPUs: TRAIN="accelerate launch --multi_gpu --num_processes 4 -m kcdp train"
TRAIN=${TRAIN:-kcdp train}

# once MARK COMMAND...: runs the command, unless MARK (a file or folder) is there; makes MARK when it has succeeded.
once() {
    local mark=$1
    shift
    if [ ! -e "$mark" ]; then
        "$@"
        mkdir -p "$(dirname "$mark")"
        touch "$mark"
    fi
}

# check MARK SPEC...: reads datasets whole. What is found there is for you to judge: the recipe stops, once.
check() {
    local mark=$1 status=0
    shift
    if [ -e "$mark" ]; then return; fi
    mkdir -p "$(dirname "$mark")"
    kcdp data check "$@" --json "$mark" || status=$?
    if [ "$status" -ne 0 ]; then
        echo "recipe: stopped by what is said above; the same command again goes on, if $mark is there" >&2
        exit "$status"
    fi
}

# train RUN ARGUMENTS...: begins a run, goes on with one that was stopped, passes over one that is done.
train() {
    local run=$1
    shift
    if [ -e "$run/done" ]; then return; fi
    if [ -e "$run/last.safetensors" ]; then
        $TRAIN --resume "$run"
    else
        $TRAIN --out "$run" "$@"
    fi
    touch "$run/done"
}

# part STEP RUN COPY ARGUMENTS...: the same up to a step, and a copy of the run as it then is. "train" goes on with it.
part() {
    local step=$1 run=$2 copy=$3
    shift 3
    if [ -e "$copy" ]; then return; fi
    if [ -e "$run/last.safetensors" ]; then
        $TRAIN --resume "$run" --stop-after "$step"
    else
        $TRAIN --out "$run" --stop-after "$step" "$@"
    fi
    rm -rf "$copy.partial"
    cp -r "$run" "$copy.partial"
    mv "$copy.partial" "$copy"
}

# evaluate RUN ARGUMENTS...: measures it, unless there is a report. To measure anew, delete RUN/report.
evaluate() {
    once "$1/report/report.json" kcdp evaluate "$@"
}
