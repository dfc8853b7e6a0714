"""Submit a job file and follow it: `python clients/submit_job.py job.yaml`."""

import sys

from qlora_client import Client
from qlora_engine.job.errors import QloradError
from qlora_engine.job.wording import describe


def main(path: str) -> int:
    """Returns 0 when the job is done."""
    client = Client()
    job = client.submit(path)
    print(job, flush=True)
    for event in client.events(job, follow=True):
        if event["event"] != "training.step":
            print(describe(event), flush=True)
    return 0 if client.job(job).state == "done" else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else "Usage: python clients/submit_job.py job.yaml")
    except QloradError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
