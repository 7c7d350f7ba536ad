"""Gymnasium environments with text in and text out. Nothing here knows of tokens, tensors or Ray.

Imported as `rlpost.envs`: in a checkout `rlpost/envs` is a link to this folder, a wheel has the files there. The name
`envs` is left to its users, who may have a package of that name themselves.
"""

if __name__ == "envs":
    raise ImportError("these environments are imported as rlpost.envs (`from rlpost.envs import registry`)")
