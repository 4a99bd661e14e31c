"""What the commands of evo_core and `evo` share: how one is made and carried out, how mistakes are told, the options
that several have."""
