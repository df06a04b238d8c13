"""Goldens of crates/trainer/src/comparison/statistics.rs. Made with SciPy 1.17.1, NumPy 2: pip install scipy."""

import numpy as np
import scipy.stats as st

print("quantiles", st.t.ppf(0.975, [1, 2, 9, 199, 10_000]))
print("tails", 2 * st.t.sf([0.5, 2.0, 12.0, 40.0], [3, 9, 199, 50]))
for won, lost in [(0, 1), (3, 12), (150, 97), (1, 600)]:
    print("mcnemar", won, lost, st.binomtest(won, won + lost, 0.5).pvalue)
for k, n in [(0, 200), (199, 200), (200, 200), (7, 31)]:
    print("wilson", k, n, st.binomtest(k, n).proportion_ci(method="wilson"))

# A ratio of two sums over rows, Cochran 1977, section 6.3.
x, w = np.array([2.0, 3.5, 1.25, 9.0]), np.array([4, 5, 2, 11.0])
r, n = x.sum() / w.sum(), len(x)
error = np.sqrt(n / (n - 1) * ((x - r * w) ** 2).sum()) / w.sum()
half = st.t.ppf(0.975, n - 1) * error
print("ratio", r, r - half, r + half, 2 * st.t.sf(r / error, n - 1))
print("t test", st.ttest_1samp([0.1, 0.3, -0.05, 0.2, 0.12], 0).pvalue)
