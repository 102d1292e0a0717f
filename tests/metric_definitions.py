"""The metrics of the teacher's signal written out in plain Python, twice where the published convention differs (behaviour 8.5)."""

import math


def mean(values):
    return sum(values) / len(values)


def average_ranks(values):
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def pearson(a, b):
    if len(set(a)) == 1 or len(set(b)) == 1:
        return None
    da, db = [x - mean(a) for x in a], [x - mean(b) for x in b]
    return sum(x * y for x, y in zip(da, db, strict=True)) / math.sqrt(sum(x * x for x in da) * sum(y * y for y in db))


def pairs_of(s, r):
    return [(s[i] - s[j], r[i] - r[j]) for i in range(len(s)) for j in range(i)]


def success_auc(s, y):
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, p in zip(s, y, strict=True) if p for b, q in zip(s, y, strict=True) if not q]
    return mean(wins) if wins else None


def brier(probabilities, y):
    return mean([(p - passed) ** 2 for p, passed in zip(probabilities, y, strict=True)])


def sigmoid(x):
    return math.exp(x) / (1 + math.exp(x)) if x < 0 else 1 / (1 + math.exp(-x))


def published(s, r, y):
    """Every metric of a group as behaviour 8.5 states it."""
    pairs = pairs_of(s, r)
    signs = [a * b for a, b in pairs if a * b != 0]
    apart = [a * b > 0 for a, b in pairs if b != 0]
    low, high = min(s), max(s)
    best = s.index(high)
    return {
        "mean_spearman": pearson(average_ranks(s), average_ranks(r)) or 0.0,
        "mean_kendall_tau": mean([1 if sign > 0 else -1 for sign in signs]) if signs else 0.0,
        "pairwise_accuracy": mean(apart) if apart else 0.0,
        "success_auc": success_auc(s, y) or 0.0,
        "success_point_biserial": pearson(s, [float(p) for p in y]) or 0.0,
        "success_brier_sigmoid": brier([sigmoid(x) for x in s], y),
        "success_brier_minmax": brier([(x - low) / (high - low) if high > low else 0.5 for x in s], y),
        "top1_hit_rate": float(r[best] == max(r) or y[best]),
    }


def defined(s, r, y):
    """Every metric of a group as this project defines it; None where it is not defined."""
    out = published(s, r, y)
    pairs = pairs_of(s, r)
    signs = [a * b for a, b in pairs if a * b != 0]
    untied_s, untied_r = sum(a != 0 for a, _ in pairs), sum(b != 0 for _, b in pairs)
    out["mean_spearman"] = pearson(average_ranks(s), average_ranks(r))
    out["mean_kendall_tau"] = (
        sum(1 if sign > 0 else -1 for sign in signs) / math.sqrt(untied_s * untied_r) if untied_s and untied_r else None
    )
    out["pairwise_accuracy"] = mean([1.0 if a * b > 0 else 0.5 if a == 0 else 0.0 for a, b in pairs if b != 0]) if untied_r else None
    out["success_auc"] = success_auc(s, y)
    out["success_point_biserial"] = pearson(s, [float(p) for p in y])
    if len(set(s)) == 1:
        out["success_brier_minmax"] = None
    hits = [reward == max(r) or passed for reward, passed in zip(r, y, strict=True)]
    top = [hit for hit, score in zip(hits, s, strict=True) if score == max(s)]
    out["top1_hit_rate"] = None if all(hits) else mean(top)
    return out
