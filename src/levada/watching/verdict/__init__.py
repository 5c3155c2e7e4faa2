"""From samples to findings: baselines, rules, what is confirmed and told, and the bundles that are kept of it."""
