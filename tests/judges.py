"""A judge for a model that knows nothing: right and wrong both occur, and both are known exactly."""


def even_length(text: str, gold: str) -> bool:
    return len(text) % 2 == 0
