"""The model that learns: adapters on one frozen base, run over packed rows."""
