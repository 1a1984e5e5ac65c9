"""Published results under attack: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing", ICLR 2022, arXiv 2006.09365: MNIST sorted by class, 25 workers of which 5 are malicious, 600 rounds of a
step. Needs MNIST; about 25 minutes for each of the three on 2 cores.
"""

SETTING = (
    "dataset._target_=tests.paper.bucketing.copied",
    "partition._target_=tests.paper.bucketing.sorted_by_class",
)
