# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Measure how long planning takes for 1,000 hosts with 50 guests each, and a policy of five rules.

PYTHONPATH=$ANSIBLE_COLLECTIONS_PATH python tests/bench/plan.py
"""

from __future__ import annotations

import json
import time
from collections import Counter

from ansible_collections.kvm.liveupdate.plugins.plugin_utils._plan import plan
from ansible_collections.kvm.liveupdate.plugins.plugin_utils._policy import Policy
from kvmbench.facts import GUESTS, POLICY, host

HOSTS = 1000


def main() -> None:
    """Plan each host as the filter does. It reads the policy again for each."""
    fleet = [json.loads(json.dumps(host())) for _number in range(HOSTS)]
    begun = time.process_time()
    plans = [plan(facts, Policy(POLICY)) for facts in fleet]
    spent = time.process_time() - begun
    ways = Counter(planned["way"] for made in plans for planned in made["guests"])
    print(f"{HOSTS} hosts with {GUESTS} guests: {spent:.2f} s of CPU; {', '.join(f'{way} {count}' for way, count in sorted(ways.items()))}")


if __name__ == "__main__":
    main()
