"""Episodes of programs that ask over HTTP (envs/agent): whole conversations in, samples with exact tokens out."""
