"""`python -m prm_ray` is `prm-ray`, for places that know a Python but not where its commands are: a job of a cluster."""

import signal

from prm_ray.cli import main

if __name__ == "__main__":
    # Where Ray was started in the background, what it starts ignores interrupts, and a job could only be killed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
