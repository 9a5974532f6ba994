#!/bin/sh
# Starts Redis in its pod. It reads these variables:
#   LONGVIEW_REDIS_PASSWORD   password of the user `longview`, who has the episode store
#   RAY_REDIS_PASSWORD        password of the user `ray`, who has the state of Ray's head
#   RUN                       name of the run, whose keys are in this Redis
#   MEMORY                    bytes that this container may use
#   PRIMARY                   host and port of the first pod's Redis; by default as the StatefulSet names them
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
set_name=${HOSTNAME%-*}  # longview-redis-RUN
primary=${PRIMARY:-$set_name-0.longview-replicas${set_name#longview-redis} 6379}

# A backup that lies here becomes the data. Redis loads it as the base of an append-only file.
if [ -e "$data/restore.rdb" ]; then
    rm -rf "$data/appendonlydir" "$data/identity"
    mkdir "$data/appendonlydir"
    mv "$data/restore.rdb" "$data/appendonlydir/appendonly.aof.1.base.rdb"
    echo "file appendonly.aof.1.base.rdb seq 1 type b" >"$data/appendonlydir/appendonly.aof.manifest"
fi

# The data has an identity, which lies beside it. A replica only follows a primary with the identity of its own data:
# a primary that lost its volume comes back with another one, and does not wipe the replica. A replica without data
# learns it from the name of the primary's config file, which `INFO` tells. Redis has data if its append-only file has a
# manifest: without one it starts empty.
case ${HOSTNAME:-} in
*-0)
    if [ ! -e "$data/identity" ] || [ ! -s "$data/appendonlydir/appendonly.aof.manifest" ]; then
        od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$data/identity"
    fi
    ;;
*)
    until [ -s "$data/identity" ]; do
        # shellcheck disable=SC2086
        REDISCLI_AUTH=$LONGVIEW_REDIS_PASSWORD redis-cli -h ${primary% *} -p ${primary#* } --user replica info server |
            sed -n 's:^config_file\:.*/\([0-9a-f]*\)\.conf.*:\1:p' >"$data/learnt" || true
        if [ -s "$data/learnt" ]; then mv "$data/learnt" "$data/identity"; else sleep 1; fi
    done
    ;;
esac
identity=$(cat "$data/identity")

# The same rights as in docs/store.md; a test compares both lists.
store='-@all +info +time +wait +cluster|slots +command +eval +evalsha +set +mget +exists +hget +hset
    +hsetnx +hdel +hgetall +hkeys +hlen +hexists +hincrby +hscan +zadd +zrem +zcard +zscore +zrange +zrangebyscore
    +zpopmin +zscan +persist +pexpire +pttl +unlink +scan'
cat >"$run/users.acl" <<ACL
user default off
user probe on nopass +ping
user exporter on nopass -@all +ping +info
user longview on #$longview resetchannels ~{$RUN}:* ~{$RUN:*}:* $(echo $store)
user ray on #$ray resetchannels ~RAY* ~DUMMY +@all -@admin -@dangerous +info +keys
user replica on #$longview +ping +info
user replica-$identity on #$longview +ping +psync +replconf
user backup on #$longview +ping +sync +psync +replconf
ACL
{
    echo "include $conf"
    echo "dir $data"
    echo "aclfile $run/users.acl"
    # replay.byte_budget is at most half of the memory. A quarter is left for what a replica has not read yet: while
    # it copies all data for the first time, everything that is written waits here. The last quarter is for clients'
    # buffers, and for pages copied while the append-only file is rewritten.
    echo "maxmemory $((MEMORY / 4 * 3))"
    echo "client-output-buffer-limit replica $((MEMORY / 4)) 0 0"
    # A replica that was away for less than this much data needs no full copy.
    echo "repl-backlog-size $((MEMORY / 64))"
    case ${HOSTNAME:-} in
    *-0) ;;
    *)
        echo "replicaof $primary"
        echo "masteruser replica-$identity"
        echo "masterauth $LONGVIEW_REDIS_PASSWORD"
        ;;
    esac
} >"$run/$identity.conf"
exec redis-server "$run/$identity.conf" "$@"
