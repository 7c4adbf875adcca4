#!/bin/sh
# GPT-2 (124M) while you sleep: runs `overnight train` until it says done.
#
#   scripts/reproduce.sh gpt2-124m --processes 8
#
# The arithmetic (overnight plan gpt2-124m has it for your GPUs and your price):
#   tokens   19,073 steps x 524,288 tokens = 10.0 B, once and a little over FineWeb-Edu's sample-10BT
#   work     855 MFLOP a token (6 x 124 M parameters + 12 x 12 layers x 768 x 1,024 of attention) = 8.6 EFLOP
#   time     8.6 EFLOP / (GPUs x peak x MFU): 8 A100 of 312 TFLOP/s at 40% take 2 h 23 min, one takes 19 h
#   memory   18 bytes a parameter (weights, gradients and Adam's two moments in fp32, a copy of the weights in
#            bf16) are 2.2 GB; the rest is activations and logits, in proportion to the micro-batch
#   disk     2 bytes a token: 20 GB of shards; 1.5 GB a checkpoint, four of them at most
#
# Exit codes of `overnight train`: 0 done; 75 saved (the time was up, a machine was taken away): again at once;
# 2 wrong input and 130 Ctrl-C: stop. After anything else (a GPU fell off the bus, a node was killed) it goes on
# from the last checkpoint, but gives up when three tries in a row have saved nothing new.

if [ $# -eq 0 ]; then
    echo "usage: scripts/reproduce.sh PRESET [options of overnight train]" >&2
    exit 2
fi
run="runs/$1"
next=
for word in "$@"; do
    [ "$next" = run ] && run="$word"
    case "$word" in
        --run) next=run ;;
        --run=*) run="${word#--run=}"; next= ;;
        *) next= ;;
    esac
done
case "$run" in */*) ;; *) run="runs/$run" ;; esac

in_vain=0
while :; do
    before=$(ls "$run/checkpoints" 2>/dev/null | tail -n 1)
    overnight train "$@"
    code=$?
    case $code in
        0 | 2 | 130) exit $code ;;
        75) continue ;;
    esac
    if [ "$(ls "$run/checkpoints" 2>/dev/null | tail -n 1)" = "$before" ]; then
        in_vain=$((in_vain + 1))
    else
        in_vain=0
    fi
    if [ $in_vain -ge 3 ]; then
        echo "reproduce: three tries in a row saved nothing (the last ended with $code): see above." >&2
        exit $code
    fi
    echo "reproduce: ended with $code; again in ${PAUSE:-10} seconds." >&2
    sleep "${PAUSE:-10}"
done
