#!/bin/sh
# Kubernetes runs this script before it ends a pod of the Ray cluster: `longview-drain head|learner|actor`.
# When the pod's grace period is over, the script is cut off. That loses no committed episode and no saved checkpoint.
set -u
case $1 in
head)
    # The driver saves everything and ends. If the run is under way on another head, this command leaves it alone.
    name=$(sed -n "s/^name: *[\"']*\([^\"' #]*\).*/\1/p" /etc/longview/run.yaml)
    longview stop "$name" --timeout 120
    ;;
learner)
    # When the whole cluster ends, the head is ending too. Wait until its driver has made the learner save and end.
    seconds=0
    while [ "$seconds" -lt 120 ] && grep -qs '^ray::LearnerRank' /proc/[0-9]*/cmdline; do
        sleep 1
        seconds=$((seconds + 1))
    done
    ;;
esac
# `ray stop` tells Ray's workers to end. An actor then abandons its unfinished episode, which no reader could see
# yet, and removes its stored chunks. The driver gives the order to another actor.
exec ray stop --grace-period 20
