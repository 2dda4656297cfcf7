#!/usr/bin/env python3
"""Creates two clips, waits for both with one long-poll, and prints the finished clips.

    AIMLAPI_KEY=... examples/python.py "night drive"

CLIPGATE_URL is the gateway, http://127.0.0.1:8080 by default. Needs the package requests.
"""

import json
import os
import sys
import time

import requests

BASE = os.environ.get("CLIPGATE_URL", "http://127.0.0.1:8080") + "/v2/generate/audio/suno-ai"
session = requests.Session()
session.headers["Authorization"] = f"Bearer {os.environ['AIMLAPI_KEY']}"


def call(method, path, attempts=5, **options):
    """Sends a request. After 429 and 503 it waits as long as Retry-After says, and sends the request again."""
    # The gateway ends a wait after 120 s, and its answer may take up to 15 s more.
    response = session.request(method, BASE + path, timeout=150, **options)
    if response.status_code in (429, 503) and attempts > 1:
        retry_after = response.headers.get("Retry-After", "")
        pause = int(retry_after) if retry_after.isdigit() else 1
        print(f"{response.status_code}, asking again in {pause} s", file=sys.stderr)
        time.sleep(pause)
        return call(method, path, attempts - 1, **options)
    if not response.ok:
        sys.exit(f"{response.status_code} {response.text} (request {response.headers.get('X-Request-Id')})")
    return response.json()


def wait_for(ids):
    """Returns the clips once all are finished. A wait that runs out of time returns the current states: ask again."""
    while True:
        clips = call("GET", "/clips", params={"clip_ids[]": ids, "status": "completed"})
        if all(clip["status"] in ("complete", "error") for clip in clips):
            return clips


prompt = sys.argv[1] if len(sys.argv) > 1 else "night drive"
ids = call("POST", "/clip", json={"prompt": prompt})["clip_ids"]
print("waiting for", *ids, file=sys.stderr)
print(json.dumps(wait_for(ids)))
