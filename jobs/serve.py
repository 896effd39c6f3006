"""Serve the trained model of a run over HTTP until the job is stopped.

Usage: python -m jobs.serve CONFIG [section.key=value ...]
       ray job submit --working-dir . -- python -m jobs.serve CONFIG [section.key=value ...]
"""

from prm_ray.entry import failing_in_one_line, read_command_line


def main() -> None:
    config = read_command_line(__doc__)  # a wrong config ends here, before torch or ray is imported
    from prm_ray.serve import server

    with failing_in_one_line():
        server.run(config)


if __name__ == "__main__":
    main()
