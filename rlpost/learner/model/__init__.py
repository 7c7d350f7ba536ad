"""The model that is trained: adapters on one frozen base, run over packed rows."""
