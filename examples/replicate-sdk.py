#!/usr/bin/env python3
"""Creates a prediction with Replicate's own client, waits for it, and prints it.

    REPLICATE_API_TOKEN=... examples/replicate-sdk.py "a red door"
    REPLICATE_API_TOKEN=... examples/replicate-sdk.py --id ID        follows an existing prediction

CLIPGATE_URL is the gateway, http://127.0.0.1:8080 by default. Needs the package replicate.
"""

import json
import os
import sys

from replicate.client import Client

# The base URL is the only change for the gateway. The client reads REPLICATE_API_TOKEN itself.
replicate = Client(base_url=os.environ.get("CLIPGATE_URL", "http://127.0.0.1:8080"))

first, *rest = sys.argv[1:] or ["a red door"]
if first == "--id":
    prediction = replicate.predictions.get(rest[0])
else:
    model = "black-forest-labs/flux-schnell"
    prediction = replicate.models.predictions.create(model, input={"prompt": first})
print("waiting for", prediction.id, file=sys.stderr)
# Reads the prediction every 0.5 s until its end.
prediction.wait()
print(json.dumps(prediction.dict()))
