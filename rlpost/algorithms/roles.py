"""The roles that models have in an algorithm.

Policy, critic and reference are weights of one form over one base. The teacher may be an adapter of another form, or
another model.
"""

ROLES = POLICY, CRITIC, REFERENCE = "policy", "critic", "reference"
TEACHER = "teacher"
