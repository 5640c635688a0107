#!/usr/bin/env python3
"""Send handwritten digits to a running gpulet over the v2 protocol and print what they are read as.

Needs nothing but Python. tritonclient works too: tritonclient.http.InferenceServerClient("127.0.0.1:8000"),
tritonclient.grpc.InferenceServerClient("127.0.0.1:8001").

  python3 examples/infer.py --url http://127.0.0.1:8000 build/demo/digit.json
"""
import argparse
import json
import sys
import urllib.error
import urllib.request


def infer(url: str, model: str, request: bytes) -> list:
    """Post a v2 inference request and return the numbers of its first output."""
    post = urllib.request.Request(f"{url}/v2/models/{model}/infer", data=request, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(post) as response:
        return json.load(response)["outputs"][0]["data"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("file", nargs="+", help="a request as JSON")
    args = parser.parse_args()
    for file in args.file:
        with open(file, "rb") as f:
            request = f.read()
        try:
            scores = infer(args.url, args.model, request)
        except urllib.error.HTTPError as error:
            sys.exit(f"{file}: HTTP status {error.code}: {json.load(error).get('error', '')}")
        print(f"{file}: {args.model} says {max(range(len(scores)), key=scores.__getitem__)}")


if __name__ == "__main__":
    main()
