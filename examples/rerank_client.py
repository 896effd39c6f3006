"""Rank candidate solutions over HTTP: python examples/rerank_client.py URL PROBLEM CANDIDATE CANDIDATE ...

URL is what `prm-ray serve` prints, for instance http://127.0.0.1:8000.
"""

import json
import sys
import urllib.error
import urllib.request

url, problem, *candidates = sys.argv[1:]
request = urllib.request.Request(
    f"{url}/rerank",
    data=json.dumps({"query": problem, "documents": candidates}).encode(),
    headers={"Content-Type": "application/json"},
)
try:
    with urllib.request.urlopen(request, timeout=60) as reply:
        results = json.load(reply)["results"]
except urllib.error.HTTPError as error:
    sys.exit(f"{error.code}: {json.load(error)['error']['message']}")
for result in results:
    print(result["relevance_score"], candidates[result["index"]], sep="\t")
