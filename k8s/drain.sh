#!/bin/sh
# Runs before Kubernetes ends a pod of the Ray cluster: `longview-drain head|learner|actor`. What it does not get
# done within the pod's grace period is cut off, which loses no committed episode and no saved checkpoint.
set -u
case $1 in
head)
    # The driver has everything saved, and ends. Should the run be under way elsewhere, it is not ours to stop.
    name=$(sed -n "s/^name: *[\"']*\([^\"' #]*\).*/\1/p" /etc/longview/run.yaml)
    longview stop "$name" --timeout 120
    ;;
learner)
    # If the whole cluster ends, the head is told as well: wait until it has had the learner save, and ended it.
    seconds=0
    while [ "$seconds" -lt 120 ] && grep -qs '^ray::LearnerRank' /proc/[0-9]*/cmdline; do
        sleep 1
        seconds=$((seconds + 1))
    done
    ;;
esac
# Ray's workers are told to end: an actor abandons its episode, of which nothing was visible yet, removes what it
# had stored of it, and the driver gives the order to another one.
exec ray stop --grace-period 20
