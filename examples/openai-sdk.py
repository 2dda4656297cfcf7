#!/usr/bin/env python3
"""Creates a background response with OpenAI's own client, waits for it, and prints it.

    OPENAI_API_KEY=... examples/openai-sdk.py "one line about rain"
    OPENAI_API_KEY=... examples/openai-sdk.py --id ID        follows an existing response

CLIPGATE_URL is the gateway, http://127.0.0.1:8080 by default. Needs the package openai.
"""

import os
import sys
import time

from openai import OpenAI

# The base URL is the only change for the gateway. The client reads OPENAI_API_KEY itself.
openai = OpenAI(base_url=os.environ.get("CLIPGATE_URL", "http://127.0.0.1:8080") + "/v1")

first, *rest = sys.argv[1:] or ["one line about rain"]
if first == "--id":
    response = openai.responses.retrieve(rest[0])
else:
    response = openai.responses.create(model="gpt-5-mini", input=first, background=True)
print("waiting for", response.id, file=sys.stderr)
# The loop of OpenAI's guide to background mode, every second.
while response.status in ("queued", "in_progress"):
    time.sleep(1)
    response = openai.responses.retrieve(response.id)
print(response.to_json(indent=None))
