#!/bin/sh
# Starts Redis in its pod. It reads these variables:
#   LONGVIEW_REDIS_PASSWORD   password of the user `longview`, who has the episode store
#   RAY_REDIS_PASSWORD        password of the user `ray`, who has the state of Ray's head
#   MEMORY                    bytes that this container may use
# The first pod of the StatefulSet is the primary; every other pod replicates it.
#   start-redis.sh [REDIS_CONF RUN_FOLDER DATA_FOLDER [REDIS_OPTION ...]]
set -eu
conf=${1:-/etc/redis/redis.conf}
run=${2:-/run/redis}
data=${3:-/data}
[ $# -lt 3 ] || shift 3
umask 077

digest() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }
longview=$(digest "$LONGVIEW_REDIS_PASSWORD")
ray=$(digest "$RAY_REDIS_PASSWORD")
# The same rights as in docs/store.md, for runs of any name; a test compares both lists.
store='-@all +info +time +wait +cluster|slots +command +eval +evalsha +set +mget +exists +hget +hset
    +hsetnx +hdel +hgetall +hkeys +hlen +hexists +hincrby +hscan +zadd +zrem +zcard +zscore +zrange +zrangebyscore
    +zpopmin +zscan +persist +pexpire +pttl +unlink +scan'
cat >"$run/users.acl" <<ACL
user default off
user probe on nopass +ping
user longview on #$longview resetchannels ~{* $(echo $store)
user ray on #$ray resetchannels ~RAY* ~DUMMY +@all -@admin -@dangerous +info +keys
user replica on #$longview +ping +psync +replconf
ACL
{
    echo "include $conf"
    echo "dir $data"
    echo "aclfile $run/users.acl"
    # A quarter stays free for clients' buffers and for pages copied while the append-only file is rewritten.
    echo "maxmemory $((MEMORY / 4 * 3))"
    case ${HOSTNAME:-} in
    *-0) ;;
    *)
        echo "replicaof ${HOSTNAME%-*}-0.${HOSTNAME%-*}-pods 6379"
        echo "masteruser replica"
        echo "masterauth $LONGVIEW_REDIS_PASSWORD"
        ;;
    esac
} >"$run/redis.conf"
exec redis-server "$run/redis.conf" "$@"
