"""Search for answers to the held-out problems: generate and score at the same time.

Usage: python -m jobs.search CONFIG [section.key=value ...]
       ray job submit --working-dir . -- python -m jobs.search CONFIG [section.key=value ...]
"""

from prm_ray.entry import failing_in_one_line, read_command_line


def main() -> None:
    config = read_command_line(__doc__)  # a wrong config ends here, before torch or ray is imported
    from prm_ray.stages.pipeline import run_stage

    with failing_in_one_line():
        run_stage(config, "search")


if __name__ == "__main__":
    main()
