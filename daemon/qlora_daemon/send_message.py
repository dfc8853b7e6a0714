"""Sends one message to some addresses and ends: `python -P -m qlora_daemon.send_message`.

Standard input: `{"title": …, "text": …, "addresses": [[label, url], …]}`. Standard output: for each address in turn, as
soon as it is known, a line with why it did not take it, empty if it did. No address is ever printed.
"""

from __future__ import annotations

import contextlib
import json
import sys

import apprise


def send(title: str, text: str, url: str) -> str:
    """Send to one address; returns why not, or nothing."""
    outlet = apprise.Apprise()
    if not outlet.add(url):
        return "apprise knows no such address; see its list of services"
    return "" if outlet.notify(body=text, title=title) else "the service did not take it, or was not reached"


def main() -> int:
    """0 in any case: that a service is down is an answer."""
    request = json.load(sys.stdin)
    answer = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # a plug-in may print
        for _, url in request["addresses"]:
            print(send(request["title"], request["text"], url), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
