#!/bin/sh
# For nginx before 1.27.3: writes the upstreams origin and edge into an include, and reloads nginx if they changed. Run it
# every 30 s by a timer of systemd, as root. It needs jq. A reload keeps old workers until their last session ends.
# If MongoDB is away, or a role lost most of its nodes at once, nothing changes.
set -eu
include=/etc/nginx/conf.d/ams-upstreams.conf
new=$(mktemp "$include.XXXXXX")
trap 'rm -f "$new"' EXIT
list=$(amsagent balance --once -o json --mongo file:/etc/amsagent/mongo)
printf '%s\n' "$list" | jq -r '
  .servers | group_by(.role)[] | "upstream \(.[0].role) {\n  least_conn;", (.[] |
  "  server \(if .address | contains(":") then "[\(.address)]" else .address end):\(.port);"), "}"' >"$new"
cmp -s "$new" "$include" && exit 0
cp "$include" "$include.before" 2>/dev/null || :
mv "$new" "$include"
if ! nginx -t; then
  if [ -e "$include.before" ]; then mv "$include.before" "$include"; else rm "$include"; fi
  exit 1
fi
nginx -s reload
