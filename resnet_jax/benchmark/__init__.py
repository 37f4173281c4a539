"""How fast nets train, test and compile on the devices at hand, and how close that is to what the devices can do."""
