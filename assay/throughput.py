"""What training is judged by: one formula for the script that prints it and for the reader that scores it."""

import math
from collections.abc import Iterable, Sequence

FINAL_STEPS = 10  # the final loss is the mean over so many last steps: a single step's loss is mostly its batch


def tgs(tokens: float, step_times: Sequence[Iterable[float]]) -> float:
    """Tokens per device and second: all tokens of the measured steps / (elapsed time × devices).

    step_times: s of every measured step, one sequence a rank. Elapsed is the longest sum of any rank: ranks march
    together, so summing each step's slowest rank would count jitter that the next step absorbs. Source: the evaluation report
    0.2.1 (TGS = tokens × global batch / (iteration time × devices)), over all iterations together.
    """
    return tokens / (max(math.fsum(times) for times in step_times) * len(step_times))
