"""Step rewards of one solution, without Ray: python examples/score_one_solution.py CHECKPOINT PROBLEM SOLUTION"""

import sys

from prm_ray.scorer import Scorer

checkpoint, problem, solution = sys.argv[1:]
(scored,) = Scorer.from_pretrained(checkpoint).score(problem, [solution.replace("\\n", "\n")])
for step, reward in zip(scored.steps, scored.step_rewards, strict=True):
    print(f"{reward:+.4f}  {step.strip()}")
print(f"{scored.rewards['sum']:+.4f}  sum")
