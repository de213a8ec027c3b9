"""Counts of the variants that nobody published, in the form of numbers.json.

They are this project's own, counted from its description of the networks.
"""

BY_ANALOGY = {
    "fc_hardnet_l1": {
        "params": 4119257,
        "conv_gmacs": 15.543,
        "ptflops_gmacs": 15.669,
        "talk": None,
    },
    "fc_hardnet_l2": {
        "params": 2857143,
        "conv_gmacs": 6.525,
        "ptflops_gmacs": 6.609,
        "talk": None,
    },
}
