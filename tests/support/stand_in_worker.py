"""The real worker, whose training process is the stand-in."""

import sys

from qlora_worker.__main__ import main

if __name__ == "__main__":
    sys.exit(main(task_module="support.stand_in_task"))
