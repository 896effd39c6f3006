"""Judges for a model that knows nothing: right and wrong both occur, and both are known exactly."""


def even_length(text: str, gold: str) -> bool:
    return len(text) % 2 == 0


def by_first_word(text: str, gold: str) -> bool | None:
    """How a response begins decides, whatever the model says behind it; None: cannot be judged."""
    settled: dict[str, bool | None] = {"Right": True, "Wrong": False, "Odd": None}
    first = text.split("\n")[0]
    return settled[first] if first in settled else even_length(text, gold)
