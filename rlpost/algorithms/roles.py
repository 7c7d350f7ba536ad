"""What the adapters of one base are in an algorithm: who acts, who values, who is stayed close to."""

ROLES = POLICY, CRITIC, REFERENCE = "policy", "critic", "reference"
