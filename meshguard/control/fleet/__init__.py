"""One instance in its fleet: the store's connection, policy and quarantine from it, what is enforced reported to it."""
