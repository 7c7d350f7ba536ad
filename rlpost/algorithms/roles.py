"""The roles that the adapters of one base have in an algorithm: policy, critic, reference."""

ROLES = POLICY, CRITIC, REFERENCE = "policy", "critic", "reference"
