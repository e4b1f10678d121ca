#!/bin/sh
# Dumps of the label store's database, each checked before it counts as one. The connection comes from PGHOST, PGUSER, …
#
#   sh backup.sh         a dump every BACKUP_HOURS (6); those older than BACKUP_DAYS (30) are removed
#   sh backup.sh once    one dump
set -eu

folder=${BACKUP_FOLDER:-/backups}

backup() {
  file="$folder/tiebreak-$(date -u +%Y%m%d-%H%M%S).dump"
  pg_dump --format=custom --file="$file.part"
  pg_restore --list "$file.part" > /dev/null
  mv "$file.part" "$file"
  echo "saved: $file"
  find "$folder" -name 'tiebreak-*.dump' -mtime "+${BACKUP_DAYS:-30}" ! -path "$file" -exec rm {} +
}

if [ "${1:-}" = once ]; then
  backup
  exit
fi
while true; do
  backup || echo "error: no backup was made; the next try is in ${BACKUP_HOURS:-6} hours" >&2
  sleep "$((${BACKUP_HOURS:-6} * 3600))" &
  wait "$!"
done
