"""`mixlab doctor`: what of hardware and extras is here, and what is missing for what."""


def doctor() -> None:
    """Say what this machine has, what is missing, and what the missing things are for.

    \b
    Example:
      mixlab doctor
    """
    from mixlab.jobs.process import tune_process

    tune_process()
    from mixlab.cli.screen import print_table
    from mixlab.jobs.doctor import examine

    print_table(("what", "here", "meaning"), examine())
