# Makes requests with one client, all at once, and prints what each ended with: `python3 run.py <client>`, the rest as JSON on stdin.
import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor

given = json.load(sys.stdin)
client = getattr(importlib.import_module(f"{sys.argv[1]}_client"), given["settings"])


def ended(asked):
    try:
        status, body = client(asked["url"], asked["headers"], asked["retries"], asked["timeoutMs"] / 1000)
        return {"status": status, "body": body}
    except Exception as error:
        return {"error": repr(error)}


with ThreadPoolExecutor(len(given["requests"])) as pool:
    json.dump(list(pool.map(ended, given["requests"])), sys.stdout)
