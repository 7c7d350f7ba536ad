"""rlpost from Python (docs/api.md): what `import rlpost` offers for starting runs and looking at them.

    train(...) ─▶ words: a command line + objects ─▶ execute: rlpost.run.prepare, dispatch ─▶ Run
                  reward=f: env_args.score=given:f            same refusals, same tasks       a view of the record

Environments and functions are given as objects (rlpost/envs/given.py), rows as a list, which becomes a file of the
record. Errors are those of rlpost.errors, raised as they are.
"""
