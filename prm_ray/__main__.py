"""`python -m prm_ray VERB ...` is `prm-ray VERB ...`: what jobs call, to run the code they were sent with."""

from prm_ray.cli import main

if __name__ == "__main__":
    main()
