"""`python -m prm_ray VERB ...` is `prm-ray VERB ...`: what jobs call, to run the code they were sent with."""

import signal

from prm_ray.cli import main

if __name__ == "__main__":
    # Where Ray was started in the background, what it starts ignores interrupts, and a job could only be killed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
