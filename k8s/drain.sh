#!/bin/sh
# Kubernetes runs this script before it ends a pod of the Ray cluster: `longview-drain head|learner|actor`.
# When the pod's grace period is over, the script is cut off. That loses no committed episode and no saved checkpoint.
set -u
case $1 in
head)
    # `longview launch` wrote down on which host it runs. The driver saves everything and ends.
    grep -ls "\"host\": \"$(uname -n)\"" "$LONGVIEW_RUNS"/*/run.json | while read -r state; do
        longview stop "$(dirname "$state")" --timeout 220
    done
    ;;
learner)
    # When the whole cluster ends, the head is ending too. Wait until its driver has made the learner save and end.
    seconds=0
    while [ "$seconds" -lt 220 ] && grep -qs '^ray::LearnerRank' /proc/[0-9]*/cmdline; do
        sleep 1
        seconds=$((seconds + 1))
    done
    ;;
esac
# `ray stop` tells Ray's workers to end. An actor then abandons its unfinished episode, which no reader could see
# yet, and removes its stored chunks. The driver gives the order to another actor.
exec ray stop --grace-period 20
