#!/usr/bin/env bash
# Creates a clip, waits for it with a long-poll, and prints the finished clip.
#
#   AIMLAPI_KEY=... examples/curl.sh "night drive"
#
# CLIPGATE_URL is the gateway, http://127.0.0.1:8080 by default. Needs curl and grep.
set -euo pipefail

base=${CLIPGATE_URL:-http://127.0.0.1:8080}/v2/generate/audio/suno-ai
prompt=${1:-night drive}
head=$(mktemp)
trap 'rm -f "$head"' EXIT

# call CURL_ARGUMENT...: prints the body of the response. The gateway ends a wait after 120 s, and its answer may take up
# to 15 s more, hence --max-time 150. After 429 and 503 it waits as long as Retry-After says, and asks again.
call() {
  local status pause attempt body
  for attempt in 1 2 3 4 5; do
    body=$(curl --silent --show-error --max-time 150 --dump-header "$head" \
      --header "Authorization: Bearer ${AIMLAPI_KEY:?set AIMLAPI_KEY}" "$@")
    status=$(grep -oE '^HTTP/[0-9.]+ [0-9]+' "$head" | tail -1 | grep -oE '[0-9]+$')
    case $status in
      2*) echo "$body" && return ;;
      429 | 503)
        pause=$(grep -ioE '^retry-after: *[0-9]+' "$head" | grep -oE '[0-9]+$' || echo 1)
        echo "$status, asking again in $pause s" >&2
        sleep "$pause"
        ;;
      *) break ;;
    esac
  done
  echo "failed: $status $body ($(grep -i '^x-request-id' "$head"))" >&2
  return 1
}

# The prompt must not contain characters that JSON escapes. The API makes two clips; this follows the first.
clips=$(call --data "{\"prompt\":\"$prompt\"}" --header 'Content-Type: application/json' "$base/clip")
id=$(grep -oE '[0-9a-f]{8}-[0-9a-f-]{27}' <<<"$clips" | head -1)
echo "waiting for $id" >&2

# A wait ends with the current state if the clip is not finished in time. Then the client asks again.
until [[ ${clip:-} =~ \"status\":\ *\"(complete|error)\" ]]; do
  clip=$(call "$base/clip?clip_id=$id&status=completed")
done
echo "$clip"
