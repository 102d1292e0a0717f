"""What a response says after its thinking: a draft within <think> is no answer."""


def after_thinking(response: str) -> str:
    """Return what follows the last closed <think>; nothing of one that is never closed."""
    return response.rpartition("</think>")[2].partition("<think>")[0]
