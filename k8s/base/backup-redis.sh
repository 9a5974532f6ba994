#!/bin/sh
# Copies all data of Redis into a file, and keeps the newest backups. It reads LONGVIEW_REDIS_PASSWORD.
#   backup-redis.sh HOST [PORT FOLDER]
set -eu
host=$1
port=${2:-6379}
folder=${3:-/backup}
keep=3
umask 077

file=$folder/$(date -u +%Y%m%dT%H%M%SZ).rdb
REDISCLI_AUTH=$LONGVIEW_REDIS_PASSWORD redis-cli -h "$host" -p "$port" --user backup --rdb "$folder/unfinished"
redis-check-rdb "$folder/unfinished" >/dev/null
mv "$folder/unfinished" "$file"
for old in $(find "$folder" -name '*.rdb' | sort | head -n -$keep); do
    rm "$old"
done
echo "$file"
