// From rewards to ranks and to how numbers are written. Nothing here touches the page.

export const MEANINGS = {
  sum: "all step rewards added up",
  mean: "the average step reward",
  min: "the lowest step reward",
  last: "the reward of the last step",
  product: "log of the product of the steps' sigmoids",
  normalized: "all step rewards added up, for each token",
  prefix_min: "the lowest running total",
  prefix_mean: "the average running total",
};

/**
 * Results best first, as the server ranks: equal rewards keep their order, and what has no reward comes last.
 * Those with the same reward share the rank of the first of them and are `tied`.
 */
export function rank(results, aggregation) {
  const scored = results.filter((result) => !result.error);
  const rewardOf = (result) => result.rewards[aggregation];
  const sorted = [...scored].sort((one, other) => rewardOf(other) - rewardOf(one));
  const ranked = sorted.map((result) => {
    const reward = rewardOf(result);
    const place = sorted.findIndex((other) => rewardOf(other) === reward);
    const tied = sorted.filter((other) => rewardOf(other) === reward).length > 1;
    return { result, reward, rank: place + 1, tied };
  });
  return [...ranked, ...results.filter((result) => result.error).map((result) => ({ result, rank: null }))];
}

/** Index of the first step with the lowest reward; -1 where there is only one step to choose from. */
export function lowestStep(steps) {
  if (steps.length < 2) return -1;
  return steps.reduce((lowest, step, index) => (step.reward < steps[lowest].reward ? index : lowest), 0);
}

/** The largest step reward, whatever its sign: both ends of the colours, so that 0 is in the middle. */
export function largest(results) {
  const rewards = results.flatMap((result) => (result.error ? [] : result.steps.map((step) => Math.abs(step.reward))));
  return Math.max(0, ...rewards);
}

/** 0 to 1, by the square root: beside one very low step the others still differ. */
export function strength(reward, scale) {
  return scale > 0 ? Math.sqrt(Math.abs(reward) / scale) : 0;
}

/** A function that writes numbers of this size with a sign and about three digits. */
export function writer(size) {
  const digits = size > 0 ? Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(size)))) : 2;
  return (value) => signed(value, digits);
}

export function signed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  const sign = Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+";
  return sign + text;
}
